//! Witnessing in whole clusters: a server that applies wrong updates is named, an honest run is left as it is, and nobody
//! honest is accused, whatever dies on the way.

use std::sync::Arc;

use testudo_actors::audit::Entry;
use testudo_actors::message::Outcome;
use testudo_actors::server::SumOrder;
use testudo_actors::{Checkpoints, JobSpec, Resume};
use testudo_tests::cluster::{Cluster, Links, Site, Wiring};
use testudo_tests::sim::Simulation;
use testudo_tests::toy;

const STEPS: u64 = 8;
const SHARDS: u32 = 6;

fn job(workers: u32, servers: u32, rate: f64) -> JobSpec {
    JobSpec { witness_rate: rate, ..toy::job(workers, servers, SHARDS, STEPS) }
}

/// The same where nobody dies, however busy the machine is.
fn patient(job: JobSpec) -> JobSpec {
    JobSpec { heartbeat_timeout_ms: 600_000, ..job }
}

fn expected() -> [u8; 32] {
    Simulation::new(job(1, 1, 0.0), 0, SumOrder::Canonical).finish().params_blake3
}

/// A cluster over `links` in which server `liar` is wrong in step `step` (from 0).
fn with_liar(job: JobSpec, links: Links, liar: u32, step: u64) -> (Outcome, Vec<Entry>) {
    let order = move |server| if server == liar { SumOrder::Wrong { step } } else { SumOrder::Canonical };
    let wiring = Wiring { order: Box::new(order), ..Wiring::default() };
    let cluster = Cluster::start_with(Site::new(patient(job), links), wiring);
    let told = Arc::clone(&cluster.steps.1);
    let outcome = cluster.outcome();
    (outcome, std::mem::take(&mut told.lock().unwrap()))
}

/// The line: the server is named, with the step, while the run goes on.
#[test]
fn a_server_that_applies_a_wrong_update_is_named_with_its_step() {
    for (workers, servers, liar, step, links) in [
        (2, 2, 1, 0, Links::Memory),
        (3, 3, 0, 4, Links::Memory),
        (1, 1, 0, 7, Links::Memory),
        (2, 2, 1, 3, Links::Quic),
    ] {
        let (Outcome::Failed(reason), told) = with_liar(job(workers, servers, 1.0), links, liar, step) else {
            panic!("server {liar} of {servers} lied in step {step}, and nobody said so");
        };
        // Also in the very last step: what it made is looked at before the run is over.
        let named = format!("server/{liar} applied a wrong update in step {}", step + 1);
        assert!(reason.contains(&named), "{named:?} is not in {reason}");
        // The audit log has it, once, before the run's end.
        let at = told.iter().position(|entry| matches!(entry, Entry::Finding { .. })).expect("a finding");
        let Entry::Finding { server, step: found, right_blake3, found_blake3, elements, worker, .. } =
            &told[at]
        else {
            unreachable!()
        };
        assert_eq!((server, *found), (&format!("server/{liar}"), Some(step + 1)));
        assert!(right_blake3 != found_blake3 && *elements > 0 && worker.starts_with("worker/"));
        let rest = &told[at + 1..];
        assert!(!rest.iter().any(|entry| matches!(entry, Entry::Finding { .. })), "{rest:?}");
        assert!(matches!(rest.last(), Some(Entry::End { failure: Some(_), .. })), "{rest:?}");
    }
}

/// A small share finds a server that lies about all it keeps, because of every server something is witnessed.
#[test]
fn a_small_share_finds_who_lies_about_everything() {
    // Of slices of four values, the first is wrong: whatever block is chosen.
    let (outcome, _) = with_liar(job(2, 3, 0.01), Links::Memory, 2, 2);
    assert!(
        matches!(&outcome, Outcome::Failed(reason) if reason.contains("server/2 applied a wrong update in step 3")),
        "{outcome:?}"
    );
}

/// At a rate of 0 nothing is witnessed.
#[test]
fn without_witnesses_the_lie_goes_through() {
    let (Outcome::Finished(finished), _) = with_liar(job(2, 2, 0.0), Links::Memory, 1, 3) else {
        panic!("it failed")
    };
    assert_ne!(finished.params_blake3, expected());
}

/// Invariant 3: the bits of a run that nobody witnesses, over every link.
#[test]
fn an_honest_run_is_left_as_it_is() {
    for (workers, servers, rate, links) in [
        (4, 3, 1.0, Links::Memory),
        (3, 2, 0.05, Links::SecuredMemory),
        (2, 2, 1.0, Links::Quic),
        (1, 1, 1.0, Links::Memory),
    ] {
        let (finished, _) = Cluster::start(patient(job(workers, servers, rate)), links).finish();
        assert_eq!(finished.params_blake3, expected(), "{workers} workers, {servers} servers, {links:?}");
    }
}

fn quiet(simulation: &Simulation) -> bool {
    !simulation.notices.iter().any(|notice| notice.contains("witnessed"))
}

/// Invariants 3 and 4, under seeds: any order of events; and workers that die at any moment, which may end witnessing, said
/// aloud, and never has an honest server named.
#[test]
fn nobody_honest_is_accused_whatever_happens() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..40 {
        let mut simulation = Simulation::new(job(4, 2, 1.0), seed, SumOrder::Canonical);
        simulation.duplicate = seed % 3 == 0;
        if seed % 2 == 1 {
            let at = 1 + seed % 6;
            assert!(simulation.run_until(|s| s.steps.len() as u64 >= at && s.pushes_under_way(1) > 0));
            simulation.kill(1);
        }
        assert_eq!(simulation.finish().params_blake3, expected(), "seed {seed}");
        match (seed % 2, quiet(&simulation)) {
            (0, quiet) => assert!(quiet, "seed {seed}: {:?}", simulation.notices),
            (_, true) => kept += 1,
            (_, false) => lost += 1,
        }
    }
    assert!(
        kept > 0,
        "witnessing goes on after a death, where what was pushed was told ({kept} against {lost})"
    );
}

/// A run that is resumed is witnessed from its checkpoint on.
#[test]
fn a_resumed_run_is_witnessed_from_its_checkpoint() {
    let checkpoints = Checkpoints { every_steps: 0, at_end: true };
    let first = JobSpec { max_steps: Some(4), checkpoints, ..job(2, 2, 1.0) };
    let mut former = Simulation::new(first, 1, SumOrder::Canonical);
    let _ = former.finish();
    let commit = former.commits.last().unwrap();
    let parts: Vec<_> = former.parts[&commit.step].values().cloned().collect();
    let resume = Resume {
        step: 4,
        manifest_blake3: [0; 32],
        samples: commit.mark.samples,
        last_loss: commit.mark.last_loss,
        best: None,
    };
    let again = JobSpec { resume: Some(resume), ..job(3, 1, 1.0) };
    let mut simulation = Simulation::resumed(again, 2, SumOrder::Canonical, parts);
    assert_eq!(simulation.finish().params_blake3, expected());
    assert!(quiet(&simulation), "{:?}", simulation.notices);
}

/// Invariant 1: no link to a server ever carries what tells it.
#[test]
fn no_server_is_ever_told_what_is_witnessed() {
    use testudo_actors::message::{Body, Given, Testimony, Witnessed};
    use testudo_transport::Role;
    for rule in testudo_actors::policy::rules(1 << 20) {
        if [Witnessed::KIND, Testimony::KIND, Given::KIND].contains(&rule.kind) {
            assert!(!rule.to.admits(Role::Server) && !rule.from.admits(Role::Server), "{}", rule.name);
        }
    }
}
