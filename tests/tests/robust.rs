//! Robust rules in whole clusters: bits that neither servers nor order nor deaths change, liars who are outvoted, and all that
//! computes an update again.

use testudo_actors::checkpoint::{Mark, Snapshot};
use testudo_actors::message::{Finished, Outcome};
use testudo_actors::replay::Replay;
use testudo_actors::server::SumOrder;
use testudo_actors::{Checkpoints, JobError, JobSpec, Resume};
use testudo_kernels::Aggregation;
use testudo_tests::cluster::{Cluster, Links, Site, Wiring};
use testudo_tests::liar::{Lie, flipped, subnormal};
use testudo_tests::sim::Simulation;
use testudo_tests::toy;

const STEPS: u64 = 6;
const WORKERS: u32 = 7;
const LIARS: [u32; 2] = [1, 4];
const RULES: [Aggregation; 7] = [
    Aggregation::Median { hostile: 2 },
    Aggregation::TrimmedMean { hostile: 2 },
    Aggregation::Krum { hostile: 2 },
    Aggregation::MultiKrum { hostile: 2 },
    Aggregation::GeometricMedian { hostile: 2 },
    Aggregation::CentredClipping { hostile: 2, radius: 0.2 },
    Aggregation::NormBound { hostile: 2, bound: 0.5 },
];

/// The toy's batch of 37 is cut unevenly among seven, and its epochs end in a batch of 15.
fn job(aggregation: Aggregation, servers: u32) -> JobSpec {
    JobSpec { aggregation, ..toy::job(WORKERS, servers, WORKERS, STEPS) }
}

fn simulate(job: JobSpec, seed: u64) -> Finished {
    Simulation::new(job, seed, SumOrder::Canonical).finish()
}

/// Invariant 1 of the rules, in a cluster: any order of events, any number of servers, duplicates, and orders of summing that
/// would betray a sum. Each rule has its own bits.
#[test]
fn bits_depend_on_neither_servers_nor_order() {
    let mut all = vec![simulate(job(Aggregation::Mean, 1), 0).params_blake3];
    for rule in RULES {
        let expected = simulate(job(rule, 1), 0).params_blake3;
        for (seed, servers) in [(1_u64, 1), (2, 2), (3, 3), (4, 5), (5, 2)] {
            let order = if seed.is_multiple_of(2) { SumOrder::Canonical } else { SumOrder::Arrival };
            let mut simulation = Simulation::new(job(rule, servers), seed, order);
            simulation.duplicate = seed.is_multiple_of(3);
            assert_eq!(simulation.finish().params_blake3, expected, "{rule}, seed {seed}, {servers} servers");
        }
        for links in [Links::Memory, Links::Quic] {
            let (finished, _) = Cluster::start(toy::unhurried(job(rule, 2)), links).finish();
            assert_eq!(finished.params_blake3, expected, "{rule}, {links:?}");
        }
        assert!(!all.contains(&expected), "{rule} is another rule's");
        all.push(expected);
    }
}

/// A dead worker's vote is cast by another, which computes it from the same examples: no bit changes. What that does to the
/// guarantee is said.
#[test]
fn a_death_moves_a_vote_and_is_warned_of() {
    for (rule, warned) in RULES.map(|rule| (rule, if rule.bears(WORKERS) == 3 { 2 } else { 1 })) {
        let expected = simulate(job(rule, 1), 0).params_blake3;
        for seed in 0..3 {
            let mut simulation = Simulation::new(job(rule, 2), seed, SumOrder::Canonical);
            let mut notices = Vec::new();
            for (nth, worker) in [3, 5].into_iter().enumerate() {
                assert!(simulation.run_until(|s| s.steps.len() > nth && s.pushes_under_way(worker) > 0));
                simulation.kill(worker);
                let lost = format!("worker/{worker} was lost");
                assert!(simulation.run_until(|s| s.notices.iter().any(|n| n.contains(&lost))));
                notices.push(simulation.notices.iter().any(|n| n.contains("hostile workers may now have")));
            }
            // The medians of seven bear three votes, the others what they are told: two.
            assert_eq!(notices, [warned == 1, true], "{rule}: {:?}", simulation.notices);
            let finished = simulation.finish();
            assert_eq!(finished.params_blake3, expected, "{rule}, seed {seed}");
            assert_eq!(finished.workers_lost, 2);
        }
    }
}

/// The witness computes with the rule too: an honest run, liars among its workers included, is left as it is, and a server that
/// applies a wrong update is named.
#[test]
fn updates_are_witnessed_under_a_rule() {
    for rule in RULES {
        let witnessed = JobSpec { witness_rate: 1.0, ..job(rule, 2) };
        let lie = |worker| LIARS.contains(&worker).then_some(flipped as Lie);
        let run = |job| {
            let mut simulation = Simulation::with_liars(job, 3, SumOrder::Canonical, vec![], lie);
            let hash = simulation.finish().params_blake3;
            assert!(!simulation.notices.iter().any(|n| n.contains("witness")), "{:?}", simulation.notices);
            hash
        };
        assert_eq!(run(witnessed.clone()), run(job(rule, 1)));

        let order = |server| if server == 1 { SumOrder::Wrong { step: 2 } } else { SumOrder::Canonical };
        let wiring = Wiring { order: Box::new(order), ..Wiring::default() };
        let outcome =
            Cluster::start_with(Site::new(toy::unhurried(witnessed), Links::Memory), wiring).outcome();
        let named = "server/1 applied a wrong update in step 3";
        assert!(matches!(&outcome, Outcome::Failed(reason) if reason.contains(named)), "{outcome:?}");
    }
}

/// One that computes a step again has the run's bits, and its losses.
#[test]
fn a_replay_has_the_bits_of_the_run() {
    for rule in RULES {
        let mut simulation = Simulation::new(job(rule, 2), 5, SumOrder::Canonical);
        let finished = simulation.finish();
        let job = job(rule, 3);
        let model = job.build_model().unwrap();
        let mut replay = Replay::new(&job, model, toy::data(), None).unwrap();
        for step in &simulation.steps {
            assert_eq!(replay.advance().unwrap().loss.to_bits(), step.loss.to_bits());
        }
        assert_eq!(replay.params_blake3(), finished.params_blake3, "{rule}");
    }
}

/// A resumed run goes on as if it had never stopped.
#[test]
fn a_checkpoint_is_resumed_under_a_rule() {
    let checkpoints = Checkpoints { every_steps: 0, at_end: true };
    for rule in RULES {
        let first = JobSpec { max_steps: Some(3), checkpoints, ..job(rule, 2) };
        let mut former = Simulation::new(first, 1, SumOrder::Canonical);
        let _ = former.finish();
        let commit = former.commits.last().unwrap();
        let parts: Vec<Snapshot> = former.parts[&commit.step].values().cloned().collect();
        let Mark { samples, last_loss, best } = commit.mark;
        let resume = Resume { step: 3, manifest_blake3: [0; 32], samples, last_loss, best };
        let again = JobSpec { resume: Some(resume), ..job(rule, 3) };
        let mut simulation = Simulation::resumed(again, 2, SumOrder::Canonical, parts);
        assert_eq!(simulation.finish().params_blake3, simulate(job(rule, 1), 0).params_blake3, "{rule}");
    }
}

/// Steps after which the toy is learnt.
const LEARNT: u64 = 60;

fn with_subnormal(rule: Aggregation, servers: u32) -> Finished {
    let job = JobSpec { max_steps: Some(LEARNT), slice_bytes: 512, ..job(rule, servers) };
    let lie = |worker| LIARS.contains(&worker).then_some(subnormal as Lie);
    Simulation::with_liars(job, 8, SumOrder::Canonical, vec![], lie).finish()
}

/// Subnormal numbers are numbers: they are accepted, kept, and give the same bits on any server.
#[test]
fn subnormal_votes_are_votes() {
    for rule in [Aggregation::Mean].into_iter().chain(RULES) {
        let first = with_subnormal(rule, 1);
        let second = with_subnormal(rule, 3);
        assert_eq!(first.params_blake3, second.params_blake3, "{rule}");
        println!("{rule}: {}", first.test_accuracy);
        // Two votes of next to nothing are next to each other, nearer than honest ones that differ by more than they are long: Krum
        // keeps one of them, and learns nothing; multi-Krum keeps both beside one other, and learns slowly.
        let fooled = matches!(rule, Aggregation::Krum { .. } | Aggregation::MultiKrum { .. });
        assert_eq!(first.test_accuracy < 0.95, fooled, "{rule}: {}", first.test_accuracy);
    }
}

/// What cannot work is refused when the job is signed and whenever it is opened.
#[test]
fn jobs_that_no_rule_can_serve_are_refused() {
    let rule = |hostile| Aggregation::Median { hostile };
    for (job, part) in [
        (JobSpec { aggregation: rule(4), ..job(RULES[0], 1) }, "7 votes cannot outvote 4"),
        (JobSpec { logical_shards: 14, ..job(RULES[0], 1) }, "set it to 7"),
        (JobSpec { workers: 3, ..job(RULES[1], 1) }, "3 votes cannot outvote 2"),
        (JobSpec { workers: 5, ..job(RULES[1], 1) }, "set it to 5"),
        (job(Aggregation::Krum { hostile: 3 }, 1), "7 votes cannot outvote 3: 9 are needed"),
        (job(Aggregation::NormBound { hostile: 2, bound: f64::NAN }, 1), "a radius or bound of NaN"),
        (JobSpec { clip_norm: Some(0.0), ..job(Aggregation::Mean, 1) }, "training.clip_norm is 0"),
        (JobSpec { batch_size: 194, ..job(RULES[1], 1) }, "last batch has 6 examples"),
    ] {
        match job.validate() {
            Err(JobError::Invalid(text)) => assert!(text.contains(part), "{part:?} is not in {text:?}"),
            other => panic!("{part}: {other:?}"),
        }
    }
    for good in [job(rule(3), 1), JobSpec { batch_size: 200, ..job(RULES[1], 1) }] {
        good.validate().unwrap();
    }
}
