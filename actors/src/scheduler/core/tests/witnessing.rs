//! What workers tell of witnessed values, on the core alone.

use super::*;
use crate::placement::SliceMap;

/// Four weights and two biases, all of them witnessed.
const VALUES: usize = 6;

/// Training with two workers whose every value is witnessed.
fn witnessed() -> Bench {
    let job = JobSpec { witness_rate: 1.0, max_steps: Some(9), ..job(2, 1) };
    let parameters = job.model.parameters().unwrap();
    let elements: Vec<usize> = parameters.iter().map(|p| p.shape.elements()).collect();
    let map = SliceMap::new(&elements, job.slice_bytes, &[0]).unwrap();
    let key = Key::known([3; 32]);
    let witness = Witness::new(&Arc::new(job.clone()), &map, &parameters, &key, None).unwrap();
    assert_eq!(witness.elements(), VALUES);
    let mut bench = Bench::new(job);
    bench.core = bench.core.with_witness(key, witness);
    for member in [server(0), worker(0), worker(1)] {
        bench.join(member);
    }
    bench.handle(Input::Ready { server: 0, epoch: 1, version: 0 });
    bench
}

impl Bench {
    fn testify(&mut self, worker: u32, step: u64, node: Node, value: f32) -> Vec<Effect<u32>> {
        let testimony = Testimony { step, node };
        self.handle(Input::Testimony { worker, testimony, values: vec![value; VALUES] })
    }

    fn failed(&self) -> String {
        match self.outcome() {
            Some(Outcome::Failed(reason)) => reason,
            other => panic!("not failed: {other:?}"),
        }
    }
}

#[test]
fn who_tells_before_it_reports_is_never_named() {
    let mut bench = witnessed();
    for step in 0..5 {
        for (worker, node) in [(0, LEFT), (1, RIGHT)] {
            assert_eq!(bench.testify(worker, step, node, 0.5), []);
            let effects = bench.report(worker, step, node, 2);
            assert!(!notices(&effects).contains("witnessed"), "{effects:?}");
        }
    }
    // Reports may overtake each other: what they are held against was told before both.
    for step in 5..7 {
        bench.testify(0, step, LEFT, 0.5);
        bench.testify(1, step, RIGHT, 0.5);
    }
    for (worker, step, node) in [(0, 6, LEFT), (0, 5, LEFT), (1, 6, RIGHT), (1, 5, RIGHT)] {
        bench.report(worker, step, node, 2);
    }
    assert_eq!((bench.outcome(), bench.core.steps_done()), (None, 7));
    assert!(bench.core.testified.told.is_empty(), "steps that are complete are forgotten");
    assert!(bench.core.witness.is_some());
}

/// A live worker cannot switch the witnesses off by leaving its testimony out, of whichever step and however it reports.
#[test]
fn a_worker_that_reports_what_it_did_not_tell_is_named() {
    for (told, reported, examples) in [(None, 0, 2), (None, 0, 0), (Some(1), 1, 2)] {
        let mut bench = witnessed();
        bench.testify(0, 0, LEFT, 0.5);
        bench.report(0, 0, LEFT, 2);
        if let Some(step) = told {
            bench.testify(1, step, RIGHT, 0.5);
        }
        let lost = notices(&bench.report(1, reported, RIGHT, examples));
        assert!(lost.contains("worker/1 was lost (it reports step 0"), "{told:?}: {lost}");
    }
    // Another's word is not its own.
    let mut bench = witnessed();
    bench.testify(0, 0, RIGHT, 0.5);
    let lost = notices(&bench.report(1, 0, RIGHT, 2));
    assert!(lost.contains("worker/1 was lost (it reports step 0"), "{lost}");
}

#[test]
fn who_tells_what_is_not_finite_is_lost_by_name() {
    for step in [0, 3] {
        for value in [f32::NAN, f32::INFINITY] {
            let mut bench = witnessed();
            let lost = notices(&bench.testify(1, step, RIGHT, value));
            assert!(lost.contains(&format!("(it tells a contribution to step {step}")), "{lost}");
            assert_eq!(bench.outcome(), None);
        }
    }
    // What is finite and adds up to what is not is for the servers to say, which have added up the same, or have not.
    let mut bench = witnessed();
    bench.testify(0, 0, LEFT, f32::MAX);
    let told = notices(&bench.testify(1, 0, RIGHT, f32::MAX));
    assert!(told.contains("no update is witnessed any longer") && bench.core.witness.is_none(), "{told}");
    assert_eq!(bench.outcome(), None);
}

/// Invariant 4 of the witness: a contribution that went with its worker ends witnessing, said aloud, and nobody is named; but
/// its heir tells what it computes itself.
#[test]
fn a_worker_that_was_lost_ends_witnessing_and_its_heir_is_held_to_its_own_word() {
    let heir = || {
        let mut bench = witnessed();
        bench.testify(0, 0, LEFT, 0.5);
        bench.report(0, 0, LEFT, 2);
        bench.gone(worker(1), 3);
        bench.handle(Input::Ready { server: 0, epoch: 2, version: 0 });
        bench
    };
    let mut bench = heir();
    let effects = bench.report(0, 0, RIGHT, 0);
    assert!(notices(&effects).contains("no update is witnessed any longer"), "{effects:?}");
    assert_eq!((bench.outcome(), bench.core.steps_done()), (None, 1));
    let mut bench = heir();
    bench.report(0, 0, RIGHT, 2);
    assert!(bench.failed().contains("worker/0 reports step 0"));
    // What was begun after the loss has no other's contribution in it.
    let mut bench = heir();
    for step in 0..4 {
        bench.testify(0, step, LEFT, 0.5);
        bench.testify(0, step, RIGHT, 0.5);
        bench.report(0, step, LEFT, 2);
        bench.report(0, step, RIGHT, 2);
    }
    assert_eq!((bench.outcome(), bench.core.steps_done()), (None, 4));
    bench.report(0, 4, RIGHT, 0);
    assert!(bench.failed().contains("worker/0 reports step 4"));
}
