//! `testudo::Job`: whole clusters from code, in this process. Numbers are those of `runtime/src/embedded.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use testudo::{Job, JobBuilder, Links, Report};
use testudo_actors::message::Outcome;
use testudo_actors::{Dataset, JobSpec};
use testudo_kernels::{
    Aggregation, Aggregator, Batch, Loss, Model, ModelError, ModelSpec, OwnName, OwnRule, ParameterSpec,
    Philox, Purpose, RuleInput, VotesOnSlice,
};
use testudo_tests::cluster::{self, Cluster};
use testudo_tests::process;
use testudo_tests::toy::{self, CLASSES, INPUTS};
use testudo_tests::{files, process::Started};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

fn model() -> ModelSpec {
    ModelSpec::Mlp { inputs: INPUTS, hidden: vec![24], classes: CLASSES }
}

/// A small job on the toy data.
fn small() -> JobBuilder {
    let (train, test) = toy::data();
    let job = Job::builder().name("small").model(model()).data_of(move |_| (train.clone(), test.clone()));
    job.optimizer("momentum")
        .learning_rate(0.05)
        .batch_size(40)
        .epochs(10)
        .max_steps(12)
        .slice_bytes(256)
        .logical_shards(3)
}

fn hash(job: JobBuilder) -> String {
    job.run().unwrap().params_blake3()
}

/// Invariant 1: a cluster file gives the same parameters here and as processes, over any link.
#[test]
fn a_cluster_file_gives_the_bits_that_it_gives_as_processes() {
    let folder = tempfile::tempdir().unwrap();
    let file = files::write_job(folder.path());
    let run_dir = folder.path().join("run");
    // No node counts as dead that is only slow.
    let set = ["training.max_steps=20", "cluster.heartbeat_timeout_ms=60000"];
    let arguments = ["run", files::text(&file), "--run-dir", files::text(&run_dir), "--json", "--quiet"];
    let arguments = [&arguments[..], &set.map(|set| ["--set", set]).concat()].concat();
    let processes: Started = process::start(PROGRAM, &arguments, &run_dir);
    let expected: Value = processes.wait().succeeded().json();
    for links in [Links::Memory, Links::Secured, Links::Quic] {
        let job = Job::from_file(&file, &set).unwrap().links(links).start().unwrap();
        let steps: Vec<Report> = job.reports().collect();
        let trained = job.wait().unwrap();
        assert_eq!(expected["params_blake3"], trained.params_blake3(), "{links:?}");
        assert_eq!(expected["test_accuracy"], trained.finished.test_accuracy);
        assert!(trained.lost.is_empty(), "{:?}", trained.lost);
        let step = |report: &Report| match report {
            Report::Step(step) => Some(step.step),
            _ => None,
        };
        assert_eq!(steps.iter().filter_map(step).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
        let model = folder.path().join(format!("{links:?}.safetensors"));
        trained.save(&model).unwrap();
        let kept = std::fs::read(run_dir.join("checkpoint/final/model.safetensors")).unwrap();
        assert_eq!(std::fs::read(model).unwrap(), kept, "the same file");
    }
}

/// What a cluster file's data were known by is not what others are signed with.
#[test]
fn data_that_replace_a_files_are_known_by_their_own_hash() {
    let folder = tempfile::tempdir().unwrap();
    let file = files::write_job(folder.path());
    let of_file = || Job::from_file::<&str>(&file, &[]).unwrap();
    let replaced = |seed| {
        let (train, test) = (toy::Toy::new(seed, 60), toy::Toy::new(seed + 100, 60));
        of_file().data_of(move |_| (train.clone(), test.clone())).spec().unwrap().data
    };
    let (one, other) = (replaced(1), replaced(2));
    assert_eq!((one.train_examples, one.test_examples), (60, 60));
    assert_ne!(one.blake3, of_file().spec().unwrap().data.blake3);
    assert_ne!(one.blake3, other.blake3);
}

/// Determinism: neither links nor the numbers of workers and servers are in the bits; evaluations between steps are told.
#[test]
fn no_bit_depends_on_the_cluster() {
    let expected = hash(small());
    assert_eq!(hash(small().workers(3).servers(2)), expected);
    assert_eq!(hash(small().workers(2).servers(3).links(Links::Memory)), expected);
    assert_ne!(hash(small().seed(2)), expected);
    let job = small().evaluate_every(5).start().unwrap();
    let evaluated: Vec<u64> = job
        .reports()
        .filter_map(|report| match report {
            Report::Evaluated(found) => Some(found.step),
            _ => None,
        })
        .collect();
    assert_eq!(evaluated, [5, 10, 12], "and at the end");
    assert_eq!(job.wait().unwrap().params_blake3(), expected);
}

/// A model from outside the crates that ship: it hands everything to one that ships, under its own name.
struct Own(Box<dyn Model>);

impl Model for Own {
    fn parameters(&self) -> &[ParameterSpec] {
        self.0.parameters()
    }

    fn input_elements(&self) -> usize {
        self.0.input_elements()
    }

    fn classes(&self) -> usize {
        self.0.classes()
    }

    fn gradients(
        &mut self,
        parameters: &[&[f32]],
        batch: Batch<'_>,
        ready: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Loss, ModelError> {
        self.0.gradients(parameters, batch, ready)
    }

    fn evaluate(&mut self, parameters: &[&[f32]], batch: Batch<'_>) -> Result<Loss, ModelError> {
        self.0.evaluate(parameters, batch)
    }

    fn probabilities(
        &mut self,
        parameters: &[&[f32]],
        inputs: &[f32],
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        self.0.probabilities(parameters, inputs, out)
    }
}

#[test]
fn a_model_of_ones_own_trains_as_one_that_ships() {
    let own = || {
        small().own_model("own@1", |setup| {
            Ok(Box::new(Own(model().build(setup.max_examples)?)) as Box<dyn Model>)
        })
    };
    let (expected, trained) = (hash(small()), own().workers(3).servers(2).run().unwrap());
    assert_eq!(trained.params_blake3(), expected);
    assert!(matches!(&trained.job.model, ModelSpec::Custom { name, .. } if name == "own@1"));
    // A worker with another model than the job's is refused by itself, and the run with it.
    let other = own().own_model("own@1", |setup| {
        let hidden = vec![if setup.max_examples == 1 { 24 } else { 25 }];
        ModelSpec::Mlp { inputs: INPUTS, hidden, classes: CLASSES }.build(setup.max_examples)
    });
    let error = other.run().unwrap_err().to_string();
    assert!(error.contains("differ in fc1.weight"), "{error}");
}

type Rule = dyn Fn(VotesOnSlice<'_>, &mut [f32]) -> Result<(), String> + Send + Sync;

/// A rule from outside the crates that ship.
struct OwnAggregation(RuleInput, bool, Box<Rule>);

impl OwnAggregation {
    fn of(
        input: RuleInput,
        rule: impl Fn(VotesOnSlice<'_>, &mut [f32]) -> Result<(), String> + Send + Sync + 'static,
    ) -> OwnAggregation {
        OwnAggregation(input, true, Box::new(rule))
    }
}

impl Aggregator for OwnAggregation {
    fn name(&self) -> OwnName {
        OwnName::new("own@1").unwrap()
    }

    fn input(&self) -> RuleInput {
        self.0
    }

    fn is_deterministic(&self) -> bool {
        self.1
    }

    fn hostile(&self) -> u32 {
        1
    }

    fn aggregate(&self, slice: VotesOnSlice<'_>, out: &mut [f32]) -> Result<(), String> {
        (self.2)(slice, out)
    }
}

/// A rule of one's own that does what one that ships does gives its bits: over votes, and over the mean.
#[test]
fn rules_of_ones_own_are_given_votes_or_the_mean() {
    let median = || {
        OwnAggregation::of(RuleInput::Votes, |slice, out| {
            assert_eq!(slice.votes.len(), 3);
            for (at, out) in out.iter_mut().enumerate() {
                let mut column: Vec<f32> = slice.votes.iter().map(|vote| vote[at]).collect();
                column.sort_by(f32::total_cmp);
                *out = column[1];
            }
            Ok(())
        })
    };
    let shipped = hash(small().workers(3).aggregation(Aggregation::Median { hostile: 1 }));
    assert_eq!(hash(small().workers(3).own_aggregation(median())), shipped);
    assert_eq!(hash(small().workers(3).servers(3).slice_bytes(64).own_aggregation(median())), shipped);
    let mean = || {
        OwnAggregation::of(RuleInput::Mean, |slice, out| {
            assert_eq!(slice.votes.len(), 1);
            out.copy_from_slice(&slice.votes[0]);
            Ok(())
        })
    };
    let shipped = hash(small());
    assert_ne!(shipped, hash(small().workers(3).aggregation(Aggregation::Median { hostile: 1 })));
    assert_eq!(hash(small().own_aggregation(mean())), shipped);
    assert_eq!(hash(small().workers(3).servers(2).own_aggregation(mean())), shipped);
    let clipped = hash(small().clip_norm(0.1).own_aggregation(mean()));
    assert_eq!(hash(small().workers(2).servers(2).clip_norm(0.1).own_aggregation(mean())), clipped);
    assert_ne!(clipped, shipped);
    // Noise by place: no bit depends on slices, servers or workers.
    let noisy = || {
        OwnAggregation::of(RuleInput::Mean, |slice, out| {
            let name = u64::from_le_bytes(
                blake3::hash(slice.parameter.as_bytes()).as_bytes()[..8].try_into().unwrap(),
            );
            let random = Philox::new(slice.seed, Purpose::Noise, slice.step, name);
            for (at, (out, mean)) in out.iter_mut().zip(&slice.votes[0]).enumerate() {
                *out = mean + random.block((slice.first + at) as u32)[0] as f32 / u32::MAX as f32 - 0.5;
            }
            Ok(())
        })
    };
    let expected = hash(small().own_aggregation(noisy()));
    assert_eq!(hash(small().workers(3).servers(3).slice_bytes(64).own_aggregation(noisy())), expected);
    assert_ne!(expected, shipped);
}

/// What a rule does wrong ends the run with its name, and a job says of it what it says of itself.
#[test]
fn a_rule_that_fails_is_named() {
    fn error(
        rule: impl Fn(VotesOnSlice<'_>, &mut [f32]) -> Result<(), String> + Send + Sync + 'static,
    ) -> String {
        let own = OwnAggregation::of(RuleInput::Mean, rule);
        small().own_aggregation(own).run().unwrap_err().to_string()
    }
    let said = error(|_, _| Err("no idea".into()));
    assert!(said.contains("own@1") && said.contains("no idea"), "{said}");
    let said = error(|_, out| {
        out.fill(f32::NAN);
        Ok(())
    });
    assert!(said.contains("is not finite"), "{said}");
    let unsteady = || OwnAggregation(RuleInput::Mean, false, Box::new(|_, _| Ok(())));
    let replaced = small().own_aggregation(unsteady()).aggregation(Aggregation::Mean).spec().unwrap();
    assert_eq!(replaced, small().spec().unwrap(), "a rule that another has replaced leaves nothing behind");
    let spec = small().own_aggregation(unsteady()).spec().unwrap();
    let strict = JobSpec { determinism: testudo_actors::Determinism::Strict, ..spec.clone() };
    assert!(strict.validate().unwrap_err().to_string().contains("does not promise the same bits"));
    let witnessed = JobSpec { witness_rate: 0.5, ..spec };
    assert!(witnessed.validate().unwrap_err().to_string().contains("audit.witness_rate"));
}

/// A node whose program has not got the job's rule does not take the job up, and says which it is.
#[test]
fn a_server_without_the_rule_refuses_the_job() {
    let rule = OwnAggregation::of(RuleInput::Mean, |_, _| Ok(()));
    let aggregation = Aggregation::Own(OwnRule::of(&rule));
    let job = JobSpec { aggregation, heartbeat_timeout_ms: 600_000, ..toy::job(1, 1, 2, 4) };
    match Cluster::start(job, cluster::Links::Memory).outcome() {
        Outcome::Failed(reason) | Outcome::ServerLost(reason) => {
            assert!(reason.contains("server/0"), "{reason}")
        }
        Outcome::Finished(finished) => panic!("{finished:?}"),
    }
}

/// Data of several owners: each worker trains and evaluates on its own, all of which is in the job's hash and in its bits.
#[test]
fn every_owners_data_count() {
    struct Watched(u64, Arc<AtomicUsize>);
    impl Dataset for Watched {
        fn len(&self) -> usize {
            60
        }
        fn input_elements(&self) -> usize {
            INPUTS
        }
        fn fill(&self, index: usize, input: &mut [f32], labels: &mut [u32]) {
            self.1.fetch_add(1, Ordering::Relaxed);
            toy::Toy::new(self.0, 60).fill(index, input, labels);
        }
    }
    let run = |last: u64| {
        let reads: Vec<Arc<AtomicUsize>> = (0..3).map(|_| Arc::default()).collect();
        let own = reads.clone();
        let job = small().workers(3).aggregation(Aggregation::Median { hostile: 1 }).data_of(move |worker| {
            let seed = if worker == 2 { last } else { u64::from(worker) };
            let set = |seed| Arc::new(Watched(seed, Arc::clone(&own[worker as usize])));
            (set(seed), set(seed + 100))
        });
        let trained = job.run().unwrap();
        // Both sets once for the hash, and a third of each step's batch, which has 40 or 20 examples.
        let reads: Vec<usize> = reads.iter().map(|reads| reads.load(Ordering::Relaxed)).collect();
        assert!(reads.iter().all(|reads| *reads >= 120 + 6 * (13 + 6)), "{reads:?}");
        (trained.params_blake3(), trained.job.data.blake3)
    };
    let (one, other) = (run(2), run(3));
    assert_ne!(one.0, other.0, "the third owner's data are in the bits");
    assert_ne!(one.1, other.1, "and in the hash");
    assert_eq!(one, run(2));
}
