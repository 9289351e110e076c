//! The parameters' hashes, on the core alone.

use super::*;
use crate::params_hash::Stream;
use crate::placement::{Slice, SliceMap};

/// The pieces of a server's slices, all of whose values are `value`.
fn pieces(job: &JobSpec, server: u32, version: u64, value: f32) -> ParameterPieces {
    let parameters = job.model.parameters().unwrap();
    let elements: Vec<usize> = parameters.iter().map(|p| p.shape.elements()).collect();
    let map = SliceMap::new(&elements, job.slice_bytes, &[0, 1]).unwrap();
    let stream = Stream::of(&parameters);
    let piece = |slice: &Slice| {
        let values = vec![value; slice.elements];
        stream.range(slice).unwrap().piece(slice.id, bytemuck::cast_slice(&values))
    };
    ParameterPieces { version, pieces: map.of_server(server).map(piece).collect() }
}

fn hashed_job() -> JobSpec {
    JobSpec { audit: crate::job::Audit::default(), slice_bytes: 8, ..job(1, 2) }
}

fn hash_of(value: f32) -> [u8; 32] {
    // Two weights and a bias for each of two classes.
    *blake3::hash(bytemuck::cast_slice(&[value; 6])).as_bytes()
}

/// The run up to its end, but for the hash of its last step; worker 0 has exported parameters of that hash.
fn up_to_the_hash(exported: [u8; 32]) -> Bench {
    let mut bench = Bench::training(hashed_job());
    for server in 0..2 {
        bench.handle(Input::Pieces { server, told: pieces(&hashed_job(), server, 0, 0.0) });
    }
    let root = Node { first: 0, leaves: 4 };
    let nodes = vec![NodeLoss { node: root, loss_sum: 1.0, correct: 1, examples: 4 }];
    let done = NodeDone {
        step: 0,
        nodes,
        times: StepTimes::default(),
        bytes_sent: 0,
        bytes_received: 0,
        pushed: Default::default(),
    };
    bench.handle(Input::NodeDone { worker: 0, done });
    let result = EvaluationResult { version: 1, first: 0, examples: 10, loss_sum: 1.0, correct: 5 };
    bench.handle(Input::Evaluated { worker: 0, result });
    let exported = Exported { version: 1, params_blake3: exported, bytes: 0, pulled: Default::default() };
    bench.handle(Input::Exported { worker: 0, exported });
    bench
}

#[test]
fn pieces_of_every_server_make_the_hash_and_the_run_ends_with_it() {
    let mut bench = up_to_the_hash(hash_of(1.0));
    assert_eq!(bench.core.report().outcome, None, "the last hash is owed");
    let effects = bench.handle(Input::Pieces { server: 1, told: pieces(&hashed_job(), 1, 1, 1.0) });
    assert!(!effects.iter().any(|e| matches!(e, Effect::Parameters { .. })));
    let effects = bench.pass(TIMEOUT * 2, &[]);
    let waits = |e: &Effect<u32>| matches!(e, Effect::Notice(text) if text.contains("server/0 to hash"));
    assert!(effects.iter().any(waits) || bench.core.report().outcome.is_some(), "{effects:?}");
    let mut bench = up_to_the_hash(hash_of(1.0));
    bench.handle(Input::Pieces { server: 1, told: pieces(&hashed_job(), 1, 1, 1.0) });
    let effects = bench.handle(Input::Pieces { server: 0, told: pieces(&hashed_job(), 0, 1, 1.0) });
    let expected = Effect::Parameters { version: 1, params_blake3: hash_of(1.0) };
    assert!(effects.contains(&expected), "{effects:?}");
    assert!(matches!(bench.core.report().outcome, Some(Outcome::Finished(_))));
}

#[test]
fn a_model_that_is_not_what_the_servers_keep_fails_the_run() {
    let mut bench = up_to_the_hash(hash_of(2.0));
    for server in 0..2 {
        bench.handle(Input::Pieces { server, told: pieces(&hashed_job(), server, 1, 1.0) });
    }
    let outcome = bench.core.report().outcome;
    assert!(
        matches!(&outcome, Some(Outcome::Failed(why)) if why.contains("not what the servers keep")),
        "{outcome:?}"
    );
}

#[test]
fn a_server_that_hashes_what_it_does_not_keep_is_named() {
    let job = hashed_job();
    let told = |server: u32, version: u64| pieces(&job, server, version, 0.0);
    let mut cut = told(0, 0);
    cut.pieces[0].edges.pop();
    let twice = ParameterPieces { version: 0, pieces: [told(0, 0).pieces, told(0, 0).pieces].concat() };
    let cases = [("another's", told(1, 0)), ("far ahead", told(0, 5)), ("cut", cut), ("twice", twice)];
    for (what, told) in cases {
        let mut bench = Bench::training(job.clone());
        bench.handle(Input::Pieces { server: 0, told });
        let outcome = bench.core.report().outcome;
        let named = matches!(&outcome, Some(Outcome::Failed(why)) if why.starts_with("server/0 misbehaved"));
        assert!(named, "{what}: {outcome:?}");
    }
}

/// Invariant 3 of `parameters.rs`: training waits for a server that withholds its hashes, and ends by its name if that does not
/// change; what one tells in the meantime is bounded, and an honest one that was late is not named.
#[test]
fn a_server_that_withholds_its_hashes_is_named_and_what_waits_for_them_is_bounded() {
    let job = JobSpec { max_steps: None, epochs: 100, ..hashed_job() };
    let root = Node { first: 0, leaves: 4 };
    let ahead = || {
        let mut bench = Bench::training(job.clone());
        for step in 0..1000 {
            bench.handle(Input::Pieces { server: 0, told: pieces(&job, 0, step, 0.0) });
            if step >= bench.core.report().until {
                break;
            }
            bench.report(0, step, root, 4);
        }
        assert_eq!(bench.outcome(), None);
        let report = bench.core.report();
        assert_eq!(report.until, report.steps_done, "no step begins");
        assert!((64..80).contains(&report.until), "{report:?}");
        bench
    };
    let members = [(server(0), idle()), (server(1), idle()), (worker(0), idle())];
    let mut bench = ahead();
    bench.pass(TIMEOUT * 2, &members);
    let outcome = bench.outcome();
    let named =
        |why: &str| why.contains("server/1 to hash its parameters at step 0") && !why.contains("server/0");
    assert!(matches!(&outcome, Some(Outcome::Failed(why)) if named(why)), "{outcome:?}");

    let mut bench = ahead();
    let until = bench.core.report().until;
    let effects = bench.handle(Input::Pieces { server: 1, told: pieces(&job, 1, 0, 0.0) });
    assert!(effects.contains(&Effect::Parameters { version: 0, params_blake3: hash_of(0.0) }), "{effects:?}");
    for version in 1..=until {
        bench.handle(Input::Pieces { server: 1, told: pieces(&job, 1, version, 0.0) });
    }
    assert!(bench.core.report().until > until, "training goes on");
    let effects = bench.pass(TIMEOUT / 2, &members);
    assert_eq!((bench.outcome(), effects), (None, vec![]));
}

/// A run that was resumed has no hashes of the steps before: they would wait for ever for those of others.
#[test]
fn hashes_of_steps_before_the_resumption_are_not_due() {
    let resume =
        crate::job::Resume { step: 500, manifest_blake3: [0; 32], samples: 0, last_loss: None, best: None };
    let job = JobSpec { max_steps: None, epochs: 100, resume: Some(resume), ..hashed_job() };
    let mut bench = Bench::training(job.clone());
    bench.handle(Input::Pieces { server: 0, told: pieces(&job, 0, 500, 0.0) });
    assert_eq!(bench.outcome(), None);
    bench.handle(Input::Pieces { server: 0, told: pieces(&job, 0, 499, 0.0) });
    let outcome = bench.outcome();
    assert!(matches!(&outcome, Some(Outcome::Failed(why)) if why.contains("not due")), "{outcome:?}");
}
