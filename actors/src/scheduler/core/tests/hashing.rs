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
    let done = NodeDone { step: 0, nodes, times: StepTimes::default(), bytes_sent: 0, bytes_received: 0 };
    bench.handle(Input::NodeDone { worker: 0, done });
    let result = EvaluationResult { version: 1, first: 0, examples: 10, loss_sum: 1.0, correct: 5 };
    bench.handle(Input::Evaluated { worker: 0, result });
    let exported = Exported { version: 1, params_blake3: exported, bytes: 0 };
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
