//! Codecs, rules, clipping, optimizers and evaluations together, each pair of which is tested by itself elsewhere: the same bits for
//! any number of servers, through a death, and from a checkpoint.

use testudo_actors::checkpoint::Snapshot;
use testudo_actors::server::SumOrder;
use testudo_actors::{Checkpoints, Codecs, Evaluation, JobSpec, Resume};
use testudo_kernels::{Aggregation, Codec, OptimizerSpec};
use testudo_tests::sim::Simulation;
use testudo_tests::toy;

const STEPS: u64 = 6;
const WORKERS: u32 = 5;

const CODECS: [Codecs; 4] = [
    Codecs { push: Codec::F32, pull: Codec::F32 },
    Codecs { push: Codec::Bf16, pull: Codec::Bf16 },
    Codecs { push: Codec::Int8, pull: Codec::Int8 },
    Codecs { push: Codec::TopK { fraction: 0.25 }, pull: Codec::F16 },
];

const RULES: [(Aggregation, Option<f64>); 5] = [
    (Aggregation::Mean, Some(0.05)),
    (Aggregation::MultiKrum { hostile: 1 }, None),
    (Aggregation::CentredClipping { hostile: 1, radius: 0.1 }, Some(0.05)),
    (Aggregation::GeometricMedian { hostile: 1 }, None),
    (Aggregation::Median { hostile: 1 }, Some(0.05)),
];

fn job(servers: u32, codecs: Codecs, rule: (Aggregation, Option<f64>), optimizer: &str) -> JobSpec {
    let (aggregation, clip_norm) = rule;
    let optimizer = OptimizerSpec::shipped(optimizer).unwrap();
    let evaluation = Evaluation { every_steps: 2, early_stopping: None };
    let toy = toy::job(WORKERS, servers, WORKERS, STEPS);
    JobSpec {
        codecs,
        aggregation,
        clip_norm,
        optimizer,
        evaluation,
        learning_rate: 0.01,
        slice_bytes: 1600,
        ..toy
    }
}

/// Every job here, but for its number of servers.
fn each(mut with: impl FnMut(&dyn Fn(u32) -> JobSpec, &str)) {
    for codecs in CODECS {
        for rule in RULES {
            for optimizer in ["adam", "lamb"] {
                let name = format!("{} up, {} down, {}, {optimizer}", codecs.push, codecs.pull, rule.0);
                with(&|servers| job(servers, codecs, rule, optimizer), &name);
            }
        }
    }
}

#[test]
fn the_number_of_servers_changes_no_bit() {
    let mut seed = 0;
    each(|job, name| {
        let run = |servers, seed| {
            let mut simulation = Simulation::new(job(servers), seed, SumOrder::Canonical);
            (simulation.finish().params_blake3, simulation.evaluations)
        };
        seed += 1;
        assert_eq!(run(3, seed), run(1, 0), "{name}");
    });
}

/// Error feedback loses a dead worker's residuals, and says so: those codecs are left out here.
#[test]
fn a_death_and_a_resumption_change_no_bit() {
    let mut seed = 0;
    each(|job, name| {
        seed += 1;
        if job(1).codecs.push.feeds_back() {
            return;
        }
        let mut simulation = Simulation::new(job(1), 0, SumOrder::Canonical);
        let whole = (simulation.finish().params_blake3, simulation.evaluations);

        let mut simulation = Simulation::new(job(2), seed, SumOrder::Canonical);
        assert!(simulation.run_until(|s| s.steps.len() as u64 == 1 + seed % 4), "{name}");
        simulation.kill(2);
        assert_eq!((simulation.finish().params_blake3, simulation.evaluations), whole, "{name}, one dead");

        let checkpoints = Checkpoints { every_steps: 0, at_end: true };
        let first = JobSpec { checkpoints, max_steps: Some(3), ..job(3) };
        let mut former = Simulation::new(first, seed, SumOrder::Canonical);
        let _ = former.finish();
        let commit = former.commits.last().unwrap();
        let parts: Vec<Snapshot> = former.parts[&commit.step].values().cloned().collect();
        let (samples, last_loss, best) = (commit.mark.samples, commit.mark.last_loss, commit.mark.best);
        let resume = Resume { step: 3, manifest_blake3: [0; 32], samples, last_loss, best };
        let job = JobSpec { resume: Some(resume), ..job(1) };
        let mut resumed = Simulation::resumed(job, seed, SumOrder::Canonical, parts);
        assert_eq!(resumed.finish().params_blake3, whole.0, "{name}, resumed");
        assert_eq!(resumed.evaluations, whole.1[1..], "{name}, resumed");
    });
}
