//! Gradient accumulation: a step that sums several batches is the step of one batch as large as they are, in parts as many times as
//! many, whose sum leaves a worker once.

use std::collections::BTreeMap;
use std::path::Path;

use testudo::config::Config;
use testudo_actors::message::{Body, Finished, Push};
use testudo_actors::server::SumOrder;
use testudo_actors::worker::ShardCompute;
use testudo_actors::{DataSpec, JobSpec};
use testudo_tests::place::Place;
use testudo_tests::sim::Simulation;
use testudo_tests::toy;

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// The job of a cluster file on the toy data, with `set` besides.
fn job(set: &[&str]) -> JobSpec {
    let toy = toy::job(1, 1, 1, 1);
    let text = format!(
        "[job]\nname = \"toy\"\n[data]\nkind = \"mnist\"\npath = \".\"\n[model]\nkind = \"mlp\"\ninputs = {}\nhidden = [24, 16]\n\
         classes = {}\n[training]\nepochs = 50\nmax_steps = 6\nseed = 7\n[optimizer]\nkind = \"momentum\"\nlearning_rate = 0.05\n\
         [transport]\nslice_bytes = 1024\n",
        toy::INPUTS,
        toy::CLASSES
    );
    let set: Vec<String> = set.iter().map(|one| (*one).to_owned()).collect();
    let config = Config::parse(&text, Path::new("toy.toml"), &set).unwrap();
    testudo::job::spec(&config, toy.data)
}

/// Four batches of 12 examples in two parts each, or one of 48 in eight parts.
const FOUR: [&str; 3] = ["training.batch_size=12", "training.logical_shards=2", "training.accumulate=4"];
const ONE: [&str; 2] = ["training.batch_size=48", "training.logical_shards=8"];

fn simulate(job: JobSpec, seed: u64) -> (Finished, Simulation) {
    let mut simulation = Simulation::new(job, seed, SumOrder::Canonical);
    let finished = simulation.finish();
    (finished, simulation)
}

/// The bits are those of the larger batch, whoever computes which part, and of no other.
#[test]
fn a_step_has_the_bits_of_the_batch_that_it_stands_for() {
    for codec in ["f32", "f16", "bf16"] {
        let codec = format!("transport.push_codec=\"{codec}\"");
        let of = |set: &[&str], workers: u32| JobSpec {
            workers,
            servers: 2,
            ..job(&[set, &[codec.as_str(), "cluster.workers=1"]].concat())
        };
        assert_eq!(of(&FOUR, 2), of(&ONE, 2), "{codec}: the job is the same");
        let (expected, whole) = simulate(of(&ONE, 1), 0);
        let examples: Vec<u64> = whole.steps.iter().map(|step| step.examples).collect();
        assert_eq!(examples, [48, 48, 48, 48, 8, 48], "{codec}: of 200 a round");
        for (seed, workers) in [(1, 1), (2, 2), (3, 4)] {
            let (found, steps) = simulate(of(&FOUR, workers), seed);
            assert_eq!(found.params_blake3, expected.params_blake3, "{codec}: {workers} workers");
            let losses = |simulation: &Simulation| -> Vec<u64> {
                simulation.steps.iter().map(|step| step.loss.to_bits()).collect()
            };
            assert_eq!(losses(&steps), losses(&whole));
        }
        let once = simulate(of(&FOUR[..2], 2), 1).0;
        assert_ne!(
            once.params_blake3, expected.params_blake3,
            "{codec}: accumulating changes what is learnt"
        );
    }
}

/// What it is for: the memory of one part, and one push a slice and step, however many parts a worker sums.
#[test]
fn a_worker_holds_one_part_and_pushes_their_sum_once() {
    let accumulating = JobSpec { workers: 2, ..job(&FOUR) };
    // A quarter of what the whole batch takes in as many parts as the small one has.
    let largest = |set: &[&str]| {
        let job = job(set);
        let data = DataSpec { train_examples: 100_000, ..job.data };
        ShardCompute::largest_batch(&JobSpec { data, ..job })
    };
    assert_eq!(largest(&["training.batch_size=4096", "training.logical_shards=2"]), 2048);
    assert_eq!(
        largest(&["training.batch_size=1024", "training.logical_shards=2", "training.accumulate=4"]),
        512
    );

    let (finished, simulation) = simulate(accumulating.clone(), 1);
    assert!(simulation.refused.is_empty());
    let mut pushes = BTreeMap::new();
    for (_, body, _) in simulation.carried.iter().filter(|(kind, ..)| *kind == Push::KIND) {
        let push = Push::decode(body).unwrap();
        assert_eq!(push.node.leaves, 4, "a worker's parts together: {push:?}");
        *pushes.entry((push.step, push.slice, push.node.first)).or_insert(0) += 1;
    }
    let slices = testudo_tests::member::placement(&accumulating).slices().len();
    assert!(slices > 4);
    assert_eq!(pushes.len() as u64, finished.steps * slices as u64 * 2);
    assert!(pushes.values().all(|count| *count == 1), "{pushes:?}");

    // A codec without a residual says each part by itself, and docs/codecs.md says what that costs.
    let by_itself = JobSpec { workers: 2, ..job(&[&FOUR[..], &["transport.push_codec=\"bf16\""]].concat()) };
    let (_, simulation) = simulate(by_itself, 1);
    let sent = simulation.carried.iter().filter(|(kind, ..)| *kind == Push::KIND).count();
    assert_eq!(sent, pushes.len() * 4);
}

/// From the cluster file to the model, by real processes.
#[test]
fn processes_that_accumulate_end_where_the_larger_batch_does() {
    let place = Place::small(PROGRAM);
    let run = |name: &str, set: [&str; 3]| {
        let set: Vec<&str> = set.iter().flat_map(|set| ["--set", *set]).collect();
        let fixed = ["--quiet", "--set", "training.max_steps=8", "--workers", "2"];
        place.run(name, &[&fixed[..], &set].concat()).succeeded().json()
    };
    let [size, parts, times] =
        ["training.batch_size=32", "training.logical_shards=2", "training.accumulate=2"];
    let four = run("four", [size, parts, times]);
    let one = run("one", ["training.batch_size=64", "training.logical_shards=4", "training.accumulate=1"]);
    let small = run("small", [size, parts, "training.accumulate=1"]);
    assert_eq!(four["params_blake3"], one["params_blake3"]);
    assert_eq!(four["final_loss"], one["final_loss"]);
    assert_ne!(four["params_blake3"], small["params_blake3"]);
}
