//! Every optimizer that ships trains on servers, with the same bits however tensors are cut and whoever takes part, and from a
//! checkpoint on.

use testudo_actors::message::Outcome;
use testudo_actors::placement::SliceMap;
use testudo_actors::server::SumOrder;
use testudo_actors::{Checkpoints, JobSpec, Resume};
use testudo_kernels::optimizer::shipped;
use testudo_kernels::{ModelSpec, OptimizerSpec};
use testudo_tests::sim::Simulation;
use testudo_tests::toy;

const SHARDS: u32 = 4;
const STEPS: u64 = 10;

/// Workers, servers, bytes of a slice.
type Cluster = (u32, u32, u32);

fn job(name: &str, (workers, servers, slice_bytes): Cluster) -> JobSpec {
    let learning_rate = match name {
        "adadelta" | "lars" => 1.0,
        "ftrl" | "sgd" => 0.5,
        "momentum" | "nesterov" => 0.1,
        _ => 0.02,
    };
    let mut optimizer = OptimizerSpec::shipped(name).unwrap();
    if name == "lars" {
        optimizer = optimizer.with("trust", 0.02);
    }
    let job = toy::job(workers, servers, SHARDS, STEPS);
    let ModelSpec::Mlp { inputs, classes, .. } = job.model else { panic!("the toy model is a perceptron") };
    // FTRL forgets what weights began with: a model with hidden layers would never leave zero.
    let hidden = if name == "ftrl" { vec![] } else { vec![24, 16] };
    let model = ModelSpec::Mlp { inputs, hidden, classes };
    JobSpec { model, optimizer, learning_rate, slice_bytes, ..job }
}

/// Invariants 3 of `actors/src/placement.rs`, 4 of `actors/src/server/math.rs` and 2 of `actors/src/server/rules.rs`.
#[test]
fn all_that_ship_train_with_the_same_bits_on_any_cluster_and_after_a_checkpoint() {
    for (name, seed) in shipped::names().zip(0..) {
        let mut alone = Simulation::new(job(name, (1, 1, 1 << 20)), seed, SumOrder::Canonical);
        let whole = alone.finish();
        let losses: Vec<f64> = alone.steps.iter().map(|step| step.loss).collect();
        assert!(losses[STEPS as usize - 1] < 0.97 * losses[0], "{name} does not train: {losses:?}");
        let checkpoints = Checkpoints { every_steps: 5, at_end: false };
        let (first, second) = ((3, 3, 64), (2, 2, 48));
        let mut cluster =
            Simulation::new(JobSpec { checkpoints, ..job(name, first) }, seed, SumOrder::Canonical);
        assert_eq!(cluster.finish().params_blake3, whole.params_blake3, "{name} on three servers");
        let commit = cluster.commits.iter().find(|commit| commit.step == 5).unwrap();
        let parts = cluster.parts[&5].values().cloned().collect();
        let resume = Resume {
            step: 5,
            manifest_blake3: [0; 32],
            samples: commit.mark.samples,
            last_loss: None,
            best: None,
        };
        let again = JobSpec { resume: Some(resume), ..job(name, second) };
        let mut resumed = Simulation::resumed(again, seed + 100, SumOrder::Canonical, parts);
        assert_eq!(resumed.finish().params_blake3, whole.params_blake3, "{name}, resumed halfway");
        assert_eq!(resumed.steps.iter().map(|step| step.loss).collect::<Vec<_>>(), losses[5..], "{name}");
    }
}

/// What needs whole tensors has each on one server, and a worker's death changes nothing.
#[test]
fn whole_tensors_go_on_together_through_a_death() {
    let whole = Simulation::new(job("lamb", (1, 1, 1 << 20)), 0, SumOrder::Canonical).finish();
    for seed in 0..4 {
        let job = job("lamb", (3, 2, 32));
        let parameters = job.model.parameters().unwrap();
        let map = SliceMap::of(&job, &parameters).unwrap();
        assert!(map.slices().len() > 20, "tensors of many slices");
        for parameter in 0..parameters.len() {
            let slices = map.of_parameter(parameter);
            assert!(slices.iter().all(|slice| slice.server == slices[0].server));
        }
        let mut simulation = Simulation::new(job, seed, SumOrder::Canonical);
        assert!(simulation.run_until(|s| s.steps.len() as u64 >= 2 && s.pushes_under_way(1) > 2));
        simulation.kill(1);
        assert_eq!(simulation.finish().params_blake3, whole.params_blake3, "seed {seed}");
    }
}

/// Whole tensors are witnessed whole: honest servers are named by nobody, and one that is wrong is.
#[test]
fn whole_tensors_are_witnessed() {
    for rate in [1.0, 0.01] {
        let job = |rate| JobSpec { witness_rate: rate, ..job("lamb", (2, 2, 64)) };
        let honest = Simulation::new(job(rate), 1, SumOrder::Canonical).finish();
        assert_eq!(
            honest.params_blake3,
            Simulation::new(job(0.0), 1, SumOrder::Canonical).finish().params_blake3
        );
    }
    let job = JobSpec { witness_rate: 1.0, ..job("lamb", (2, 2, 64)) };
    let outcome = Simulation::new(job, 1, SumOrder::Wrong { step: 3 }).run();
    let Outcome::Failed(reason) = outcome else { panic!("nobody said that servers were wrong") };
    assert!(reason.contains("applied a wrong update in step 4"), "{reason}");
}

/// Weight decay by name: what a pattern names has none, whatever else has, on any number of servers.
#[test]
fn parameters_that_a_pattern_names_do_not_decay() {
    let run = |decay: f64, patterns: &[&str], servers: u32| {
        let job = job("adamw", (2, servers, 64));
        let optimizer = job.optimizer.clone().with("weight_decay", decay).without_decay(patterns);
        Simulation::new(JobSpec { optimizer, ..job }, 3, SumOrder::Canonical).finish().params_blake3
    };
    let [none, all] = [0.0, 0.5].map(|decay| run(decay, &[], 1));
    assert_eq!(run(0.5, &["*"], 2), none, "a pattern that names every parameter");
    assert_eq!(run(0.5, &["conv*"], 2), all, "one that names none");
    let biases = run(0.5, &["*.bias"], 1);
    assert!(biases != none && biases != all);
    assert_eq!(run(0.5, &["fc?.bias"], 3), biases, "the same by another pattern");
}
