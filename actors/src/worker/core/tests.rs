//! semantics.md, lines 4, 5 and 10, and the core's invariants, on the core alone.

use testudo_kernels::{Codec, Distortion};

use super::*;
use crate::message::{Evaluate, Export, PullRefusal, ServerMember};

const HEARTBEAT: Duration = Duration::from_secs(1);
const LEFT: Node = Node { first: 0, leaves: 2 };
const RIGHT: Node = Node { first: 2, leaves: 2 };

fn id(parameter: u32) -> SliceId {
    SliceId { parameter, index: 0 }
}

fn lease(node: Node, worker: u32, since: u64, from_step: u64) -> Lease {
    Lease { node, worker, since, from_step, alone_from: from_step, to_step: None }
}

fn membership(epoch: u64, leases: Vec<Lease>) -> Membership {
    let servers = vec![ServerMember { index: 0, address: "here:1".into() }];
    Membership { epoch, servers, workers: Vec::new(), leases, until: 2 }
}

/// Worker 0 of a job of two one-slice parameters (`w` with two elements, `b` with one) and four steps.
struct Bench(WorkerCore<&'static str>);

impl Bench {
    /// With lease on the left half, connected, and with both slices of version 0.
    fn new() -> Bench {
        let mut bench = Bench::bare();
        bench.handle(Input::Membership(membership(1, vec![lease(LEFT, 0, 1, 0), lease(RIGHT, 1, 1, 0)])));
        bench.handle(Input::Connected);
        bench.handle(arrived(0, 0));
        bench.handle(arrived(1, 0));
        bench
    }

    fn bare() -> Bench {
        let map = SliceMap::new(&[2, 1], 16, &[0]).unwrap();
        let tree = ReductionTree::new(4).unwrap();
        Bench(WorkerCore::new(0, tree, map, vec!["w".into(), "b".into()], (0, 4), HEARTBEAT))
    }

    /// What comes of an input, heartbeats aside.
    fn handle(&mut self, input: Input<&'static str>) -> Vec<Effect<&'static str>> {
        self.try_handle(input).unwrap()
    }

    fn try_handle(&mut self, input: Input<&'static str>) -> Result<Vec<Effect<&'static str>>, WorkerError> {
        self.handle_at(0, input)
    }

    /// So many milliseconds after the beginning.
    fn handle_at(
        &mut self,
        milliseconds: u64,
        input: Input<&'static str>,
    ) -> Result<Vec<Effect<&'static str>>, WorkerError> {
        self.0.handle(Time::default().after(Duration::from_millis(milliseconds)), input)?;
        Ok(std::iter::from_fn(|| self.0.poll()).filter(|e| !matches!(e, Effect::Heartbeat(_))).collect())
    }

    /// Computes, pushes and has acknowledged one node of a step.
    fn contribute(&mut self, step: u64, node: Node) -> Vec<Effect<&'static str>> {
        for slice in [id(1), id(0)] {
            self.handle(Input::Gradient { step, node, slice, values: "g" });
        }
        self.handle(Input::Computed { step, loss: loss(node), compute_us: 5, pushed: Distortion::default() });
        self.handle(Input::Accepted { step, node, slice: id(1) });
        self.handle(Input::Accepted { step, node, slice: id(0) })
    }
}

fn loss(node: Node) -> NodeLoss {
    NodeLoss { node, loss_sum: 1.5, correct: 1, examples: 2 }
}

fn arrived(parameter: u32, version: u64) -> Input<&'static str> {
    let bytes = if parameter == 0 { 8 } else { 4 };
    Input::Slice { slice: id(parameter), version, codec: 0, values: "p", bytes }
}

fn pull(parameter: u32, version: u64) -> Effect<&'static str> {
    Effect::Pull { server: 0, pull: Pull { slice: id(parameter), version, exact: false } }
}

fn install(parameter: u32) -> Effect<&'static str> {
    Effect::Install { slice: id(parameter), codec: Codec::F32, values: "p" }
}

/// Invariant 1: a step begins when every slice is there, and not before.
#[test]
fn a_step_begins_when_every_slice_is_there() {
    let mut bench = Bench::bare();
    let told = bench.handle(Input::Membership(membership(1, vec![lease(LEFT, 0, 1, 0)])));
    assert!(matches!(&told[..], [Effect::Connect(servers)] if servers.len() == 1), "{told:?}");
    assert_eq!(bench.handle(Input::Connected), [pull(0, 0), pull(1, 0)]);
    assert_eq!(bench.handle(arrived(1, 0)), [install(1)]);
    let compute = Effect::Compute { step: 0, nodes: vec![LEFT] };
    assert_eq!(bench.handle(arrived(0, 0)), [install(0), Effect::Adopt { version: 0 }, compute]);
    assert_eq!(bench.0.version(), Some(0));
}

/// Invariant 1: a step that is not leased yet waits for its lease.
#[test]
fn a_step_waits_for_its_lease() {
    let mut bench = Bench::new();
    for step in 0..2 {
        bench.contribute(step, LEFT);
        bench.handle(arrived(0, step + 1));
        let last = bench.handle(arrived(1, step + 1)).pop();
        let begun = matches!(last, Some(Effect::Compute { .. }));
        assert_eq!(begun, step == 0, "steps below 2 may be begun: {last:?}");
    }
    assert_eq!(bench.handle(Input::Extended { epoch: 7, until: 9 }), [], "another epoch's word");
    let compute = Effect::Compute { step: 2, nodes: vec![LEFT] };
    assert_eq!(bench.handle(Input::Extended { epoch: 1, until: 3 }), [compute]);
}

/// Invariant 2: the pull of a slice's next version follows its push at once.
#[test]
fn the_pull_follows_the_push() {
    let mut bench = Bench::new();
    let push = Push { epoch: 1, step: 0, slice: id(1), node: LEFT, codec: 0 };
    let pushed = bench.handle(Input::Gradient { step: 0, node: LEFT, slice: id(1), values: "g" });
    assert_eq!(pushed, [Effect::Push { server: 0, push, values: "g" }, pull(1, 1)]);
}

/// Invariant 3: a step is reported when every slice of it is acknowledged; semantics.md, line 3, rests on it.
#[test]
fn a_step_is_done_when_all_of_it_is_acknowledged() {
    let mut bench = Bench::new();
    for slice in [id(1), id(0)] {
        bench.handle(Input::Gradient { step: 0, node: LEFT, slice, values: "g" });
    }
    assert_eq!(bench.handle(Input::Accepted { step: 0, node: LEFT, slice: id(1) }), []);
    assert_eq!(
        bench.handle(Input::Computed {
            step: 0,
            loss: loss(LEFT),
            compute_us: 5,
            pushed: Distortion::default()
        }),
        []
    );
    let done = bench.handle(Input::Accepted { step: 0, node: LEFT, slice: id(0) });
    assert!(matches!(&done[..], [Effect::Report(d)] if d.step == 0 && d.nodes == [loss(LEFT)]), "{done:?}");
}

/// A report counts its step's moments back from itself. What is there before the last push of the step before is acknowledged was not
/// waited for, and what is there before the step may begin is not waited for any longer.
#[test]
fn a_report_says_how_long_ago_its_step_was() {
    let mut bench = Bench::new();
    let mut step = |step: u64, pushed: u64, next: Option<u64>, acknowledged: u64| {
        for slice in [id(1), id(0)] {
            bench.handle_at(pushed, Input::Gradient { step, node: LEFT, slice, values: "g" }).unwrap();
        }
        let loss = loss(LEFT);
        let computed = Input::Computed { step, loss, compute_us: 5, pushed: Distortion::default() };
        bench.handle_at(pushed, computed).unwrap();
        if let Some(at) = next {
            bench.handle_at(at - 1, arrived(0, step + 1)).unwrap();
            bench.handle_at(at, arrived(1, step + 1)).unwrap();
        }
        bench.handle_at(acknowledged, Input::Accepted { step, node: LEFT, slice: id(1) }).unwrap();
        let done = bench.handle_at(acknowledged, Input::Accepted { step, node: LEFT, slice: id(0) }).unwrap();
        let [Effect::Report(done)] = &done[..] else { panic!("{done:?}") };
        if next.is_none() {
            bench.handle_at(acknowledged + 8, arrived(0, step + 1)).unwrap();
            bench.handle_at(acknowledged + 8, arrived(1, step + 1)).unwrap();
            bench.handle_at(acknowledged + 18, Input::Extended { epoch: 1, until: 4 }).unwrap();
        }
        done.times
    };
    let times = |send: u64, wait: u64, ready: u64, began: u64, said: u64| StepTimes {
        compute_us: 5,
        send_us: 1_000 * send,
        wait_us: 1_000 * wait,
        ready_ago_us: 1_000 * ready,
        began_ago_us: 1_000 * began,
        said_at_us: 1_000 * said,
    };
    assert_eq!(step(0, 6, Some(9), 12), times(6, 0, 12, 12, 12));
    assert_eq!(step(1, 20, None, 22), times(2, 0, 13, 13, 22));
    assert_eq!(step(2, 45, Some(46), 47), times(2, 8, 17, 7, 47));
}

/// semantics.md, line 5: what arrives for the next step is put aside; the step that is computed keeps its parameters.
#[test]
fn the_next_version_is_put_aside_until_all_of_it_is_there() {
    let mut bench = Bench::new();
    bench.handle(Input::Gradient { step: 0, node: LEFT, slice: id(1), values: "g" });
    assert_eq!(bench.handle(arrived(1, 1)), [install(1)], "installed beside, and not adopted");
    assert_eq!(bench.0.version(), Some(0));
    // A death meanwhile: what has moved here is computed for the step that is under way.
    let moved = membership(2, vec![lease(LEFT, 0, 1, 0), lease(RIGHT, 0, 2, 0)]);
    let compute = Effect::Compute { step: 0, nodes: vec![RIGHT] };
    assert_eq!(bench.handle(Input::Membership(moved)), [compute]);
}

/// semantics.md, line 10: shards that moved here after their step was complete are reported, not computed again.
#[test]
fn what_is_complete_is_not_computed_again() {
    let mut bench = Bench::new();
    for step in 0..2 {
        bench.contribute(step, LEFT);
        bench.handle(arrived(0, step + 1));
        bench.handle(arrived(1, step + 1));
    }
    // Step 2 is not leased: version 2 is complete, and its contributors' reports may be lost with them.
    let moved = membership(2, vec![lease(LEFT, 0, 1, 0), lease(RIGHT, 0, 2, 1)]);
    let effects = bench.handle(Input::Membership(moved));
    let reported = |e: &Effect<_>| matches!(e, Effect::Report(d) if d.step == 1 && d.nodes[0].node == RIGHT && d.nodes[0].examples == 0);
    assert!(effects.iter().any(reported), "{effects:?}");
    assert!(!effects.iter().any(|e| matches!(e, Effect::Compute { .. })), "{effects:?}");
}

/// What nobody asked for, or does not fit, is the server's fault, by name.
#[test]
fn what_was_not_asked_for_is_the_servers_fault() {
    let slice = |parameter, version, codec, bytes| Input::Slice {
        slice: id(parameter),
        version,
        codec,
        values: "p",
        bytes,
    };
    for wrong in [slice(0, 1, 0, 8), slice(0, 0, 0, 8), slice(5, 1, 0, 8), slice(0, u64::MAX, 0, 8)] {
        let error = Bench::new().try_handle(wrong).unwrap_err();
        assert!(matches!(&error, WorkerError::Unasked { server, .. } if server == "server/0"), "{error}");
    }
    for (codec, bytes) in [(0, 4), (0, 12), (3, 8)] {
        let mut bench = Bench::bare();
        bench.handle(Input::Membership(membership(1, vec![lease(LEFT, 0, 1, 0)])));
        bench.handle(Input::Connected);
        assert!(bench.try_handle(slice(0, 0, codec, bytes)).is_err(), "codec {codec}, {bytes} bytes");
    }
    let mut bench = Bench::bare();
    bench.handle(Input::Membership(membership(1, vec![lease(LEFT, 0, 1, 0)])));
    bench.handle(Input::Connected);
    bench.handle(arrived(0, 0));
    assert!(bench.try_handle(arrived(0, 0)).is_err(), "the same version twice");
}

/// semantics.md, lines 1 and 4: a refusal names server, parameter, slice and step; one for shards that have moved on is no
/// error.
#[test]
fn a_refusal_is_told_with_names() {
    let mut bench = Bench::new();
    let refused = |reason| Input::Refused { step: 0, node: LEFT, slice: id(1), reason };
    let error = bench.try_handle(refused(PushRefusal::Conflict)).unwrap_err().to_string();
    for part in ["server/0", "b", "slice 0", "step 0", "another value"] {
        assert!(error.contains(part), "{part:?} is missing in {error:?}");
    }
    assert!(bench.try_handle(refused(PushRefusal::NoLease)).is_err(), "it holds the lease");
    let reason = PullRefusal::Gone { version: 9 };
    let error =
        bench.try_handle(Input::PullRefused { slice: id(0), version: 1, reason }).unwrap_err().to_string();
    for part in ["server/0", "version 1", "w", "version 9"] {
        assert!(error.contains(part), "{part:?} is missing in {error:?}");
    }
    bench.handle(Input::Membership(membership(2, vec![lease(LEFT, 1, 2, 0)])));
    assert_eq!(bench.handle(refused(PushRefusal::NoLease)), [], "owed by its new holder");
}

/// Invariant 5: what the dead left behind ends nothing; what differs from one's own does.
#[test]
fn what_a_lost_worker_contributed_counts() {
    let moved = Lease { alone_from: 2, ..lease(RIGHT, 0, 2, 0) };
    let mut bench = Bench::new();
    bench.handle(Input::Membership(membership(2, vec![lease(LEFT, 0, 1, 0), moved])));
    let refused = |node, slice| Input::Refused { step: 0, node, slice, reason: PushRefusal::Conflict };
    bench.handle(Input::Gradient { step: 0, node: RIGHT, slice: id(0), values: "g" });
    let effects = bench.handle(refused(RIGHT, id(0)));
    assert!(matches!(&effects[..], [Effect::Differs { node: RIGHT, step: 0, .. }]), "{effects:?}");
    bench.handle(Input::Gradient { step: 0, node: RIGHT, slice: id(1), values: "g" });
    bench.handle(Input::Computed {
        step: 0,
        loss: loss(RIGHT),
        compute_us: 5,
        pushed: Distortion::default(),
    });
    let effects = bench.handle(Input::Accepted { step: 0, node: RIGHT, slice: id(1) });
    assert!(matches!(&effects[..], [Effect::Report(done)] if done.nodes[0].node == RIGHT), "{effects:?}");
    assert!(bench.try_handle(refused(LEFT, id(0))).is_err(), "its own");
}

/// Evaluation and export wait for their version.
#[test]
fn orders_wait_for_their_version() {
    let mut bench = Bench::new();
    let (export, evaluate) =
        (Export { version: 1, write: true }, Evaluate { version: 1, first: 0, examples: 9 });
    assert_eq!(bench.handle(Input::Export(export.clone())), []);
    assert_eq!(bench.handle(Input::Evaluate(evaluate.clone())), []);
    bench.contribute(0, LEFT);
    bench.handle(arrived(0, 1));
    let effects = bench.handle(arrived(1, 1));
    assert!(
        effects.contains(&Effect::Export(export)) && effects.contains(&Effect::Evaluate(evaluate)),
        "{effects:?}"
    );
}

/// `exact.rs`, invariants 1 and 2: under a lossy codec, a version is evaluated and exported with what servers keep, pulled once.
#[test]
fn what_is_evaluated_and_exported_is_exact() {
    let mut bench = Bench::bare();
    bench.0 = bench.0.with_codecs(Codecs { push: Codec::Int8, pull: Codec::Bf16 });
    bench.handle(Input::Membership(membership(1, vec![lease(LEFT, 0, 1, 0)])));
    bench.handle(Input::Connected);
    let slice = |parameter, codec: Codec, elements| Input::Slice {
        slice: id(parameter),
        version: 0,
        codec: codec.id(),
        values: "p",
        bytes: codec.encoded_len(elements) as u64,
    };
    assert!(bench.try_handle(slice(0, Codec::F32, 2)).is_err(), "the job's codec alone");
    let installed = Effect::Install { slice: id(0), codec: Codec::Bf16, values: "p" };
    assert_eq!(bench.handle(slice(0, Codec::Bf16, 2)), [installed]);
    let effects = bench.handle(slice(1, Codec::Bf16, 1));
    assert!(effects.contains(&Effect::Adopt { version: 0 }), "{effects:?}");
    let push = bench.handle(Input::Gradient { step: 0, node: LEFT, slice: id(1), values: "g" });
    assert!(matches!(&push[0], Effect::Push { push, .. } if push.codec == Codec::Int8.id()), "{push:?}");

    let exact =
        |parameter| Effect::Pull { server: 0, pull: Pull { slice: id(parameter), version: 0, exact: true } };
    let export = Export { version: 0, write: true };
    let evaluate = Evaluate { version: 0, first: 0, examples: 9 };
    assert_eq!(bench.handle(Input::Export(export.clone())), [exact(0), exact(1)]);
    assert_eq!(bench.handle(Input::Evaluate(evaluate.clone())), [], "they are on their way");
    let kept = |parameter| Effect::InstallExact { slice: id(parameter), values: "p" };
    assert_eq!(bench.handle(slice(1, Codec::F32, 1)), [kept(1)]);
    assert!(bench.try_handle(slice(1, Codec::F32, 1)).is_err(), "twice");
    assert!(bench.try_handle(slice(0, Codec::Bf16, 2)).is_err(), "every bit was asked for");
    let (export, evaluate) = (Effect::Export(export), Effect::Evaluate(evaluate));
    assert_eq!(bench.handle(slice(0, Codec::F32, 2)), [kept(0), export, evaluate]);
    let again = Evaluate { version: 0, first: 9, examples: 9 };
    assert_eq!(bench.handle(Input::Evaluate(again.clone())), [Effect::Evaluate(again)], "and stay there");
}
