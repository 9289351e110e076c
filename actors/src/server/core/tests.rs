//! semantics.md, lines 1, 3 to 6 and 13, and the core's invariants, on the core alone.

use super::*;
use crate::message::{ServedStep, ServerMember};

const HEARTBEAT: Duration = Duration::from_millis(100);
const A: [u8; 32] = [0xa; 32];
const B: [u8; 32] = [0xb; 32];
const LEFT: Node = Node { first: 0, leaves: 2 };
const RIGHT: Node = Node { first: 2, leaves: 2 };
const FIRST: SliceId = SliceId { parameter: 0, index: 0 };
const SHORT: SliceId = SliceId { parameter: 0, index: 1 };

/// A server of two slices (four elements and one) in a job of four shards; a reply is a number.
struct Bench {
    core: ServerCore<u32, &'static str>,
    now: Time,
}

fn lease(node: Node, worker: u32, since: u64) -> Lease {
    Lease { node, worker, since, from_step: 0, alone_from: 0, to_step: None }
}

fn membership(epoch: u64, leases: Vec<Lease>) -> Membership {
    let servers = vec![ServerMember { index: 0, address: "here:1".into() }];
    Membership { epoch, servers, workers: Vec::new(), leases, until: 100 }
}

fn push(node: Node, step: u64) -> Push {
    Push { epoch: 1, step, slice: FIRST, node, codec: 0 }
}

impl Bench {
    /// Told of nothing yet.
    fn bare() -> Bench {
        let map = SliceMap::new(&[5], 16, &[0]).unwrap();
        let tree = ReductionTree::new(4).unwrap();
        Bench { core: ServerCore::new(0, tree, map, 0, HEARTBEAT), now: Time::default() }
    }

    /// Initialised, with the shards halved between workers 0 and 1 in epoch 1.
    fn new() -> Bench {
        let mut bench = Bench::bare();
        bench.handle(Input::Membership(membership(1, vec![lease(LEFT, 0, 1), lease(RIGHT, 1, 1)])));
        bench.handle(Input::Initialised);
        bench
    }

    /// What comes of an input, heartbeats aside.
    fn handle(&mut self, input: Input<u32, &'static str>) -> Vec<Effect<u32, &'static str>> {
        self.core.handle(self.now, input);
        std::iter::from_fn(|| self.core.poll()).filter(|e| !matches!(e, Effect::Heartbeat(_))).collect()
    }

    fn push(
        &mut self,
        worker: u32,
        reply: u32,
        push: Push,
        digest: [u8; 32],
    ) -> Vec<Effect<u32, &'static str>> {
        let bytes = if push.slice == SHORT { 4 } else { 16 };
        self.handle(Input::Push(PushInput { worker, reply, push, values: "v", bytes, digest }))
    }

    fn stored(&mut self, node: Node, step: u64, version: Option<u64>) -> Vec<Effect<u32, &'static str>> {
        let updated = version.map(|version| Updated { version, slices: vec![FIRST] });
        self.handle(Input::Stored { slice: FIRST, step, node, updated })
    }

    fn pull(&mut self, worker: u32, reply: u32, version: u64) -> Vec<Effect<u32, &'static str>> {
        self.handle(Input::Pull { worker, reply, pull: Pull { slice: FIRST, version, exact: false } })
    }

    /// Both halves of a step contribute; replies are 0.
    fn step(&mut self, step: u64) {
        assert_eq!(self.push(0, 0, push(LEFT, step), A), [store(LEFT, step)]);
        assert_eq!(self.stored(LEFT, step, None), [accept(0, false)]);
        assert_eq!(self.push(1, 0, push(RIGHT, step), B), [store(RIGHT, step)]);
        assert_eq!(self.stored(RIGHT, step, Some(step + 1))[0], accept(0, false));
    }
}

fn store(node: Node, step: u64) -> Effect<u32, &'static str> {
    Effect::Store { slice: FIRST, step, node, values: "v" }
}

fn accept(reply: u32, duplicate: bool) -> Effect<u32, &'static str> {
    Effect::Accept { reply, duplicate }
}

fn refuse(reply: u32, worker: u32, reason: PushRefusal) -> Effect<u32, &'static str> {
    Effect::RefusePush { reply, worker, reason }
}

fn answer(reply: u32, version: u64) -> Effect<u32, &'static str> {
    Effect::Answer { reply, slice: FIRST, version }
}

fn refuse_pull(reply: u32, reason: PullRefusal) -> Effect<u32, &'static str> {
    Effect::RefusePull { reply, reason }
}

/// Line 1: contributions are a set of places. However often a push comes, its place fills once, and the step waits for the
/// other place.
#[test]
fn a_duplicate_is_acknowledged_and_ignored() {
    let mut bench = Bench::new();
    assert_eq!(bench.push(0, 1, push(LEFT, 0), A), [store(LEFT, 0)]);
    assert_eq!(bench.stored(LEFT, 0, None), [accept(1, false)]);
    for reply in 2..6 {
        assert_eq!(bench.push(0, reply, push(LEFT, 0), A), [accept(reply, true)]);
    }
    assert_eq!(bench.push(1, 6, push(RIGHT, 0), B), [store(RIGHT, 0)]);
    assert_eq!(bench.stored(RIGHT, 0, Some(1)), [accept(6, false)]);
    // What arrives late belongs to the step before, whose places are remembered.
    assert_eq!(bench.push(0, 7, push(LEFT, 0), A), [accept(7, true)]);
}

/// Line 1: a leaf under an accepted node is a duplicate, in its step and in the one after.
#[test]
fn a_leaf_under_an_accepted_node_is_a_duplicate() {
    let mut bench = Bench::new();
    bench.push(0, 1, push(LEFT, 0), A);
    bench.stored(LEFT, 0, None);
    // Worker 0 is gone; its shards are cut and given to worker 1.
    let leases = vec![lease(Node::leaf(0), 1, 2), lease(Node::leaf(1), 1, 2), lease(RIGHT, 1, 1)];
    bench.handle(Input::Membership(membership(2, leases)));
    let leaf = |shard, step| Push { epoch: 2, ..push(Node::leaf(shard), step) };
    assert_eq!(bench.push(1, 2, leaf(0, 0), B), [accept(2, true)]);
    assert_eq!(bench.push(1, 3, leaf(1, 0), B), [accept(3, true)]);
    assert_eq!(bench.push(1, 4, push(RIGHT, 0), B), [store(RIGHT, 0)]);
    bench.stored(RIGHT, 0, Some(1));
    assert_eq!(bench.push(1, 5, leaf(1, 0), A), [accept(5, true)]);
    // In the next step the leaves are places of their own.
    assert_eq!(bench.push(1, 6, leaf(1, 1), A), [store(Node::leaf(1), 1)]);
}

/// Line 1: a second, different value for the same place is an error that names the sender.
#[test]
fn a_second_different_value_is_a_conflict() {
    let mut bench = Bench::new();
    bench.push(0, 1, push(LEFT, 0), A);
    // Whether or not the first is stored yet.
    assert_eq!(bench.push(0, 2, push(LEFT, 0), B), [refuse(2, 0, PushRefusal::Conflict)]);
    bench.stored(LEFT, 0, None);
    assert_eq!(bench.push(0, 3, push(LEFT, 0), B), [refuse(3, 0, PushRefusal::Conflict)]);
    bench.push(1, 4, push(RIGHT, 0), A);
    bench.stored(RIGHT, 0, Some(1));
    assert_eq!(bench.push(1, 5, push(RIGHT, 0), B), [refuse(5, 1, PushRefusal::Conflict)]);
}

/// A node above an accepted one would count shards twice.
#[test]
fn a_node_above_an_accepted_one_is_refused() {
    let mut bench = Bench::bare();
    let root = Node { first: 0, leaves: 4 };
    bench.handle(Input::Membership(membership(1, vec![lease(LEFT, 0, 1), lease(root, 1, 1)])));
    bench.handle(Input::Initialised);
    bench.push(0, 1, push(LEFT, 0), A);
    assert_eq!(bench.push(1, 2, push(root, 0), B), [refuse(2, 1, PushRefusal::Overlap)]);
}

/// Line 3: no acknowledgement leaves before the values are stored; then one for each push that brought them.
#[test]
fn an_acknowledgement_means_stored() {
    let mut bench = Bench::new();
    assert_eq!(bench.push(0, 1, push(LEFT, 0), A), [store(LEFT, 0)]);
    assert_eq!(bench.push(0, 2, push(LEFT, 0), A), []);
    assert_eq!(bench.push(0, 3, push(LEFT, 0), A), []);
    assert_eq!(bench.stored(LEFT, 0, None), [accept(1, false), accept(2, true), accept(3, true)]);
}

/// Line 3 and the finiteness check: what was not stored is not acknowledged, and its place is free for a good value.
#[test]
fn values_that_are_not_finite_leave_their_place_free() {
    let mut bench = Bench::new();
    bench.push(0, 1, push(LEFT, 0), A);
    bench.push(0, 2, push(LEFT, 0), A);
    let refused = |reply| refuse(reply, 0, PushRefusal::NotFinite { element: 3 });
    let reason = PushRefusal::NotFinite { element: 3 };
    let found = Input::Unusable { slice: FIRST, step: 0, node: LEFT, reason };
    assert_eq!(bench.handle(found), [refused(1), refused(2)]);
    assert_eq!(bench.push(0, 3, push(LEFT, 0), B), [store(LEFT, 0)]);
    assert_eq!(bench.stored(LEFT, 0, None), [accept(3, false)]);
}

/// Line 4: a pull of the next version waits and then gets exactly that one.
#[test]
fn a_pull_of_the_next_version_waits_for_it() {
    let mut bench = Bench::new();
    assert_eq!(bench.pull(0, 10, 1), []);
    assert_eq!(bench.pull(1, 11, 1), []);
    bench.push(0, 1, push(LEFT, 0), A);
    assert_eq!(bench.stored(LEFT, 0, None), [accept(1, false)], "half a step answers nobody");
    bench.push(1, 2, push(RIGHT, 0), B);
    assert_eq!(bench.stored(RIGHT, 0, Some(1)), [accept(2, false), answer(10, 1), answer(11, 1)]);
    assert_eq!(bench.pull(0, 12, 1), [answer(12, 1)]);
}

/// Line 4: what is gone or not yet possible gets a typed error at once.
#[test]
fn a_pull_that_cannot_be_served_is_refused() {
    let mut bench = Bench::new();
    for step in 0..3 {
        bench.step(step);
    }
    assert_eq!(bench.pull(0, 1, 1), [refuse_pull(1, PullRefusal::Gone { version: 3 })]);
    assert_eq!(bench.pull(0, 2, 8), [refuse_pull(2, PullRefusal::NotYetPossible { version: 3 })]);
    assert_eq!(bench.pull(0, 3, u64::MAX), [refuse_pull(3, PullRefusal::NotYetPossible { version: 3 })]);
    let unknown = Pull { slice: SliceId { parameter: 0, index: 2 }, version: 3, exact: false };
    let input = Input::Pull { worker: 0, reply: 4, pull: unknown };
    assert_eq!(bench.handle(input), [refuse_pull(4, PullRefusal::UnknownSlice)]);
    // A worker that floods a slice with waiting pulls takes no more room than its own few.
    assert_eq!((bench.pull(0, 5, 4), bench.pull(0, 6, 4)), (vec![], vec![]));
    assert_eq!(bench.pull(0, 7, 4), [refuse_pull(7, PullRefusal::TooManyWaiting)]);
    assert_eq!(bench.pull(1, 8, 4), [], "and nobody else's");
}

/// Line 5: pushes for the next step touch nothing that a slow worker still pulls, and a step that cannot be is refused.
#[test]
fn steps_do_not_bleed() {
    let mut bench = Bench::new();
    assert_eq!(bench.push(0, 1, push(LEFT, 1), A), [refuse(1, 0, PushRefusal::StepAhead { version: 0 })]);
    bench.step(0);
    assert_eq!(bench.push(0, 2, push(LEFT, 1), A), [store(LEFT, 1)]);
    bench.stored(LEFT, 1, None);
    // The slow worker reads version 1, and even version 0, while step 1 fills.
    assert_eq!(bench.pull(1, 3, 1), [answer(3, 1)]);
    assert_eq!(bench.pull(1, 4, 0), [answer(4, 0)]);
    bench.push(1, 5, push(RIGHT, 1), B);
    assert_eq!(bench.stored(RIGHT, 1, Some(2)), [accept(5, false)]);
    assert_eq!(bench.pull(1, 6, 1), [answer(6, 1)]);
    assert_eq!(bench.push(0, 7, push(LEFT, 0), A), [refuse(7, 0, PushRefusal::StepGone { version: 2 })]);
    // A verdict on a step that is over changes nothing.
    assert_eq!(bench.stored(LEFT, 0, Some(9)), []);
    let reason = PushRefusal::Malformed;
    assert_eq!(bench.handle(Input::Unusable { slice: FIRST, step: 0, node: LEFT, reason }), []);
    assert_eq!(bench.pull(1, 8, 2), [answer(8, 2)]);
}

/// Line 6: initialisation comes once, whatever comes first; before it everything is a typed error.
#[test]
fn nothing_is_served_before_initialisation_which_comes_once() {
    let mut bench = Bench::bare();
    let early = |reply| refuse(reply, 0, PushRefusal::NotInitialised);
    assert_eq!(bench.push(0, 1, push(LEFT, 0), A), [early(1)]);
    assert_eq!(bench.pull(0, 2, 0), [refuse_pull(2, PullRefusal::NotInitialised)]);
    let leases = vec![lease(LEFT, 0, 1), lease(RIGHT, 1, 1)];
    assert_eq!(bench.handle(Input::Membership(membership(1, leases.clone()))), [Effect::Initialise]);
    assert_eq!(bench.push(0, 3, push(LEFT, 0), A), [early(3)]);
    assert_eq!(bench.pull(0, 4, 1), [refuse_pull(4, PullRefusal::NotInitialised)]);
    assert_eq!(bench.handle(Input::Membership(membership(2, leases.clone()))), [], "it is under way");
    assert_eq!(bench.handle(Input::Initialised), [Effect::Ready { epoch: 2, version: 0 }]);
    assert_eq!(
        bench.handle(Input::Membership(membership(3, leases.clone()))),
        [Effect::Ready { epoch: 3, version: 0 }]
    );
    assert_eq!(bench.handle(Input::Membership(membership(2, leases))), [], "what is over stays over");
    assert_eq!(bench.pull(0, 5, 0), [answer(5, 0)]);
}

/// A push is taken from the holder of the lease alone, as it is in the current epoch.
#[test]
fn only_the_holder_of_a_lease_may_push() {
    let mut bench = Bench::new();
    let no_lease = |reply, worker| refuse(reply, worker, PushRefusal::NoLease);
    assert_eq!(bench.push(1, 1, push(LEFT, 0), A), [no_lease(1, 1)], "another's shards");
    assert_eq!(bench.push(7, 2, push(LEFT, 0), A), [no_lease(2, 7)], "a stranger");
    assert_eq!(bench.push(0, 3, push(Node::leaf(0), 0), A), [no_lease(3, 0)], "part of its shards");
    assert_eq!(
        bench.push(0, 4, push(Node { first: 0, leaves: 3 }, 0), A),
        [no_lease(4, 0)],
        "no node of the tree"
    );
    assert_eq!(bench.push(0, 5, Push { epoch: 2, ..push(LEFT, 0) }, A), [no_lease(5, 0)], "an epoch to come");
    assert_eq!(
        bench.push(0, 6, Push { epoch: 0, ..push(LEFT, 0) }, A),
        [no_lease(6, 0)],
        "an epoch before its lease"
    );
    // The shards move to worker 1 and come back: what worker 0 still sends from its former lease is refused.
    bench.handle(Input::Membership(membership(2, vec![lease(LEFT, 1, 2), lease(RIGHT, 1, 1)])));
    assert_eq!(bench.push(0, 7, push(LEFT, 0), A), [no_lease(7, 0)]);
    bench.handle(Input::Membership(membership(3, vec![lease(LEFT, 0, 3), lease(RIGHT, 1, 1)])));
    assert_eq!(bench.push(0, 8, push(LEFT, 0), A), [no_lease(8, 0)]);
    assert_eq!(bench.push(0, 9, Push { epoch: 3, ..push(LEFT, 0) }, A), [store(LEFT, 0)]);
    // Who kept a lease may go on under the epoch it knows.
    assert_eq!(bench.push(1, 10, push(RIGHT, 0), A), [store(RIGHT, 0)]);
}

/// A lease counts from its first step on.
#[test]
fn a_lease_counts_from_its_first_step() {
    let mut bench = Bench::bare();
    let later = Lease { from_step: 1, ..lease(LEFT, 0, 1) };
    bench.handle(Input::Membership(membership(1, vec![later, lease(RIGHT, 1, 1)])));
    bench.handle(Input::Initialised);
    assert_eq!(bench.push(0, 1, push(LEFT, 0), A), [refuse(1, 0, PushRefusal::NoLease)]);
}

/// A push that does not fit its slice is refused before anything is stored.
#[test]
fn a_push_fits_its_slice() {
    let mut bench = Bench::new();
    for bytes in [0, 4, 12, 15, 17, 20, u64::MAX] {
        let input = PushInput { worker: 0, reply: 1, push: push(LEFT, 0), values: "v", bytes, digest: A };
        let reason = PushRefusal::WrongLength { expected: 16, found: bytes };
        assert_eq!(bench.handle(Input::Push(input)), [refuse(1, 0, reason)]);
    }
    let codec = Push { codec: 9, ..push(LEFT, 0) };
    assert_eq!(bench.push(0, 2, codec, A), [refuse(2, 0, PushRefusal::UnknownCodec(9))]);
    for slice in [
        SliceId { parameter: 0, index: 2 },
        SliceId { parameter: 1, index: 0 },
        SliceId { parameter: u32::MAX, index: u32::MAX },
    ] {
        let nowhere = Push { slice, ..push(LEFT, 0) };
        assert_eq!(bench.push(0, 3, nowhere, A), [refuse(3, 0, PushRefusal::UnknownSlice)]);
    }
    let short = Push { slice: SHORT, ..push(LEFT, 0) };
    let stored = Effect::Store { slice: SHORT, step: 0, node: LEFT, values: "v" };
    assert_eq!(bench.push(0, 4, short, A), [stored], "the last slice of a parameter is short");
}

/// In a job with a codec, no other counts, nor another length than it gives; what is no encoding leaves its place free.
#[test]
fn a_push_is_in_the_jobs_codec() {
    let mut bench = Bench::new();
    bench.core = std::mem::replace(&mut bench.core, Bench::bare().core).with_codec(Codec::Int8);
    let int8 = |bytes, codec| {
        let push = Push { codec, ..push(LEFT, 0) };
        Input::Push(PushInput { worker: 0, reply: 1, push, values: "v", bytes, digest: A })
    };
    for codec in [0, 1, 2, 4, 255] {
        assert_eq!(bench.handle(int8(16, codec)), [refuse(1, 0, PushRefusal::UnknownCodec(codec))]);
    }
    for bytes in [0, 4, 7, 9, 16, u64::MAX] {
        let reason = PushRefusal::WrongLength { expected: 8, found: bytes };
        assert_eq!(bench.handle(int8(bytes, 3)), [refuse(1, 0, reason)]);
    }
    assert_eq!(bench.handle(int8(8, 3)), [store(LEFT, 0)]);
    let dropped = Input::Unusable { slice: FIRST, step: 0, node: LEFT, reason: PushRefusal::Malformed };
    assert_eq!(bench.handle(dropped), [refuse(1, 0, PushRefusal::Malformed)]);
    assert_eq!(bench.handle(int8(8, 3)), [store(LEFT, 0)]);
}

/// Another server's slice is none of this one's.
#[test]
fn another_servers_slice_is_unknown() {
    let map = SliceMap::new(&[40], 16, &[0, 1]).unwrap();
    let theirs = map.of_server(1).next().unwrap().id;
    let mut bench = Bench::new();
    bench.core = ServerCore::new(0, ReductionTree::new(4).unwrap(), map, 0, HEARTBEAT);
    bench.handle(Input::Membership(membership(1, vec![lease(LEFT, 0, 1)])));
    bench.handle(Input::Initialised);
    let pushed = bench.push(0, 1, Push { slice: theirs, ..push(LEFT, 0) }, A);
    assert_eq!(pushed, [refuse(1, 0, PushRefusal::UnknownSlice)]);
    let pull = Pull { slice: theirs, version: 0, exact: false };
    assert_eq!(
        bench.handle(Input::Pull { worker: 0, reply: 2, pull }),
        [refuse_pull(2, PullRefusal::UnknownSlice)]
    );
}

/// Line 13: a heartbeat names the slice that is furthest behind and a node that it lacks.
#[test]
fn a_heartbeat_names_what_is_missing() {
    let mut bench = Bench::new();
    bench.push(0, 1, push(LEFT, 0), A);
    bench.stored(LEFT, 0, None);
    let beat = |bench: &mut Bench| {
        bench.now = bench.now.after(HEARTBEAT);
        bench.core.handle(bench.now, Input::Tick);
        match std::iter::from_fn(|| bench.core.poll()).last() {
            Some(Effect::Heartbeat(heartbeat)) => heartbeat,
            other => panic!("no heartbeat: {other:?}"),
        }
    };
    let waiting = |slice, step, node| Some(Waiting { slice, step, missing: Some(node) });
    assert_eq!(
        beat(&mut bench),
        Heartbeat { step: 0, waiting: waiting(FIRST, 0, RIGHT), load: Load::default(), served: None }
    );
    bench.push(1, 2, push(RIGHT, 0), B);
    bench.stored(RIGHT, 0, Some(1));
    assert_eq!(
        beat(&mut bench),
        Heartbeat { step: 0, waiting: waiting(SHORT, 0, LEFT), load: Load::default(), served: None }
    );
    assert_eq!(bench.core.poll_timeout(), Some(bench.now.after(HEARTBEAT)));
}

/// Invariant 1 of `served.rs`, by the core's own inputs: from the first contribution that counts to the last slice's update.
#[test]
fn a_heartbeat_tells_when_a_step_was_served() {
    let mut bench = Bench::new();
    let at = |milliseconds| Time::default().after(Duration::from_millis(milliseconds));
    let short = |node| Push { slice: SHORT, ..push(node, 0) };
    for (moment, worker, push) in [
        (10, 0, push(LEFT, 0)),
        (20, 1, push(RIGHT, 0)),
        (30, 0, short(LEFT)),
        (40, 1, short(RIGHT)),
        // Of a step that is still to come, and once more.
        (45, 1, push(RIGHT, 5)),
        (45, 1, push(RIGHT, 0)),
    ] {
        bench.now = at(moment);
        let digest = if worker == 0 { A } else { B };
        bench.push(worker, 0, push, digest);
    }
    for (moment, slice) in [(50, FIRST), (60, SHORT)] {
        bench.now = at(moment);
        let updated = Some(Updated { version: 1, slices: vec![slice] });
        bench.handle(Input::Stored { slice, step: 0, node: RIGHT, updated });
    }
    bench.core.handle(at(105), Input::Tick);
    let Some(Effect::Heartbeat(heartbeat)) = bench.core.poll() else { panic!("no heartbeat") };
    let served = ServedStep {
        step: 0,
        first_ago_us: 95_000,
        last_ago_us: 65_000,
        done_ago_us: 45_000,
        said_at_us: 105_000,
    };
    assert_eq!(heartbeat.served, Some(served));
}
