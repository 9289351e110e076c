//! The phase in which whole gradients are weighed, in whole clusters: clipping by the global norm, and what happens while servers
//! wait for weights.

use testudo_actors::checkpoint::Snapshot;
use testudo_actors::message::Outcome;
use testudo_actors::replay::Replay;
use testudo_actors::server::SumOrder;
use testudo_actors::{Checkpoints, JobSpec, Resume};
use testudo_kernels::{Aggregation, OptimizerSpec};
use testudo_tests::cluster::{Cluster, Links, Site, Wiring};
use testudo_tests::sim::Simulation;
use testudo_tests::toy;

const STEPS: u64 = 6;
/// Less than the toy's gradients have at first.
const CLIP: f64 = 0.05;

fn job(workers: u32, servers: u32) -> JobSpec {
    JobSpec { clip_norm: Some(CLIP), ..toy::job(workers, servers, 8, STEPS) }
}

fn krum(servers: u32) -> JobSpec {
    JobSpec { aggregation: Aggregation::MultiKrum { hostile: 1 }, ..toy::job(5, servers, 5, STEPS) }
}

fn simulate(job: JobSpec, seed: u64) -> [u8; 32] {
    let mut simulation = Simulation::new(job, seed, SumOrder::Canonical);
    simulation.duplicate = seed.is_multiple_of(2);
    simulation.finish().params_blake3
}

/// The same bits for any number of workers and servers, any order and any link; others than unclipped.
#[test]
fn clipping_has_one_result() {
    let expected = simulate(job(1, 1), 0);
    for (seed, workers, servers) in [(1, 2, 1), (2, 3, 2), (3, 8, 3), (4, 5, 5)] {
        assert_eq!(simulate(job(workers, servers), seed), expected, "{workers} workers, {servers} servers");
    }
    for links in [Links::Memory, Links::Quic] {
        let (finished, _) = Cluster::start(toy::unhurried(job(3, 2)), links).finish();
        assert_eq!(finished.params_blake3, expected, "{links:?}");
    }
    assert_ne!(simulate(JobSpec { clip_norm: None, ..job(2, 2) }, 0), expected);
    // What no gradient is longer than clips nothing.
    let loose = JobSpec { clip_norm: Some(1e6), ..job(2, 2) };
    assert_eq!(simulate(loose, 1), simulate(JobSpec { clip_norm: None, ..job(2, 2) }, 0));
}

/// A step of plain gradient descent moves all parameters together by the learning rate times the clipped norm.
#[test]
fn a_step_is_as_long_as_it_may_be() {
    let checkpoints = Checkpoints { every_steps: 1, at_end: true };
    let plain = OptimizerSpec::shipped("sgd").unwrap();
    let rules =
        [Aggregation::Mean, Aggregation::Median { hostile: 1 }, Aggregation::GeometricMedian { hostile: 1 }];
    for aggregation in rules {
        let job = JobSpec { aggregation, optimizer: plain.clone(), checkpoints, ..krum(2) };
        let clipped = JobSpec { clip_norm: Some(CLIP), learning_rate: 0.5, ..job };
        let mut simulation = Simulation::new(clipped, 4, SumOrder::Canonical);
        let _ = simulation.finish();
        let weights = |step: u64| {
            let mut slices: Vec<_> =
                simulation.parts[&step].values().flat_map(|part| part.slices.clone()).collect();
            slices.sort_by_key(|slice| slice.slice.id);
            slices.iter().flat_map(|slice| slice.weights.to_vec()).collect::<Vec<f32>>()
        };
        let (one, two) = (weights(1), weights(2));
        let moved: f64 = one.iter().zip(&two).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
        assert!((moved.sqrt() - 0.5 * CLIP).abs() < 1e-6, "{aggregation}: {}", moved.sqrt());
    }
}

/// Workers die while a server's products are under way: what they contributed is there, and no bit changes.
#[test]
fn deaths_in_the_phase_change_nothing() {
    for (job, expected) in [(job(5, 2), simulate(job(1, 1), 0)), (krum(2), simulate(krum(1), 0))] {
        for seed in 0..4 {
            let mut simulation = Simulation::new(job.clone(), seed, SumOrder::Canonical);
            assert!(simulation.run_until(|s| s.steps.len() == 2 && s.products_under_way(1)));
            simulation.frozen = vec!["server/1>scheduler".into()];
            simulation.kill(3);
            assert!(simulation.run_until(|s| s.notices.iter().any(|n| n.contains("worker/3 was lost"))));
            assert_eq!(simulation.steps.len(), 2, "no step is complete before it is weighed");
            simulation.frozen.clear();
            let finished = simulation.finish();
            assert_eq!(finished.params_blake3, expected, "seed {seed}");
            assert_eq!((finished.steps, finished.workers_lost), (STEPS, 1));
        }
    }
}

/// A run that is stopped between, and goes on from its checkpoint, has the bits of one that was not.
#[test]
fn a_clipped_run_is_resumed_and_replayed() {
    let checkpoints = Checkpoints { every_steps: 0, at_end: true };
    let expected = simulate(job(1, 1), 0);
    let mut former =
        Simulation::new(JobSpec { max_steps: Some(3), checkpoints, ..job(3, 2) }, 1, SumOrder::Canonical);
    let _ = former.finish();
    let commit = former.commits.last().unwrap();
    let parts: Vec<Snapshot> = former.parts[&commit.step].values().cloned().collect();
    let resume = Resume {
        step: 3,
        manifest_blake3: [0; 32],
        samples: commit.mark.samples,
        last_loss: commit.mark.last_loss,
        best: None,
    };
    let again = JobSpec { resume: Some(resume), ..job(2, 3) };
    assert_eq!(Simulation::resumed(again, 2, SumOrder::Canonical, parts).finish().params_blake3, expected);

    let job = job(2, 2);
    let model = job.build_model().unwrap();
    let mut replay = Replay::new(&job, model, toy::data(), None).unwrap();
    for _ in 0..STEPS {
        let _ = replay.advance().unwrap();
    }
    assert_eq!(replay.params_blake3(), expected);
}

/// The witness clips too: it names a server that applies a wrong update, and nobody else.
#[test]
fn clipped_updates_are_witnessed() {
    let witnessed = JobSpec { witness_rate: 1.0, ..job(3, 2) };
    let mut simulation = Simulation::new(witnessed.clone(), 3, SumOrder::Canonical);
    assert_eq!(simulation.finish().params_blake3, simulate(job(1, 1), 0));
    assert!(!simulation.notices.iter().any(|n| n.contains("witness")), "{:?}", simulation.notices);

    let order = |server| if server == 1 { SumOrder::Wrong { step: 2 } } else { SumOrder::Canonical };
    let wiring = Wiring { order: Box::new(order), ..Wiring::default() };
    let outcome = Cluster::start_with(Site::new(toy::unhurried(witnessed), Links::Memory), wiring).outcome();
    let named = "server/1 applied a wrong update in step 3";
    assert!(matches!(&outcome, Outcome::Failed(reason) if reason.contains(named)), "{outcome:?}");
}
