//! What a parameter server must get right, end to end: a real scheduler and real servers over QUIC, with workers that the
//! test plays by hand. Lines are those of the list of semantics; the same on pure cores is in the actors' own tests, and
//! lines 9 and 13 are in `membership.rs`.

use std::collections::HashMap;

use bytes::Bytes;
use testudo_actors::JobSpec;
use testudo_actors::message::{MemberRole, Outcome, Pull, PullRefusal, Push, PushRefusal};
use testudo_actors::placement::SliceId;
use testudo_actors::tree::Node;
use testudo_tests::cluster::{Cluster, Links, Site, Wiring};
use testudo_tests::member::{Answer, GIVEN_UP, Lane, Member, give_up, in_time};
use testudo_tests::stage::{BATCH, job, play};
use testudo_transport::{Error, Role};

const FIRST: SliceId = SliceId { parameter: 0, index: 0 };

/// What a step makes of a value: every worker's contribution once, divided once by the batch's examples.
fn moved(before: &[f32], sum: f32) -> Vec<f32> {
    before.iter().map(|v| v - sum / BATCH as f32).collect()
}

/// Line 1: a duplicate is acknowledged as one and ignored; line 2: contributions are sums, divided once.
#[test]
fn line_1_a_duplicate_counts_once_and_line_2_sums_are_divided_once() {
    play(job(2, 2, 4), async |stage| {
        let before = stage.values(0, FIRST, 0).await;
        assert_eq!(stage.push(0, 0, FIRST, 1.0).await, Answer::Accepted(false));
        for _ in 0..3 {
            assert_eq!(stage.push(0, 0, FIRST, 1.0).await, Answer::Accepted(true));
        }
        let waiting = stage.lane(0, FIRST).pull(&Pull { slice: FIRST, version: 1, exact: false }).await;
        assert_eq!(stage.push(1, 0, FIRST, 3.0).await, Answer::Accepted(false));
        assert_eq!(stage.lane(0, FIRST).answer(waiting).await, Answer::Values(moved(&before, 4.0)));
        assert_eq!(stage.push(1, 0, FIRST, 3.0).await, Answer::Accepted(true), "late, and still the same");
        assert_eq!(stage.values(1, FIRST, 1).await, moved(&before, 4.0));
    });
}

/// Line 1: a leaf under an accepted node is a duplicate: what a worker had pushed before it died is not counted again when
/// its shards come back in pieces.
#[test]
fn line_1_a_leaf_under_an_accepted_node_is_a_duplicate() {
    play(job(3, 1, 6), async |stage| {
        let before = stage.values(0, FIRST, 0).await;
        assert_eq!(stage.nodes[2], Node { first: 4, leaves: 2 });
        assert_eq!(stage.push(2, 0, FIRST, 5.0).await, Answer::Accepted(false));
        stage.members[2].connection().close(0, "dies");
        let mut pieces = HashMap::new();
        for worker in [0, 1] {
            let membership = stage.members[worker].membership().await;
            let mine =
                membership.leases.iter().find(|l| l.worker == worker as u32 && l.since == membership.epoch);
            pieces.insert(worker, (membership.epoch, mine.unwrap().node));
        }
        let nodes: Vec<Node> = [0, 1].map(|w| pieces[&w].1).into();
        assert!(nodes.contains(&Node::leaf(4)) && nodes.contains(&Node::leaf(5)), "{nodes:?}");
        for worker in [0, 1] {
            let (epoch, node) = pieces[&worker];
            let push = Push { epoch, node, ..stage.push_of(worker, 0, FIRST) };
            let answer = stage.lane(worker, FIRST).pushed(&push, &vec![2.5; before.len()]).await;
            assert_eq!(answer, Answer::Accepted(true));
        }
        // What the dead worker's former connection would still send is not even heard.
        let former = stage.lane(2, FIRST);
        let told = in_time("the server to hang up", former.connection().closed()).await;
        assert_eq!(by_peer(&told), Some("its leases have moved to others"), "{told}");
        stage.push(0, 0, FIRST, 1.0).await;
        stage.push(1, 0, FIRST, 2.0).await;
        assert_eq!(stage.values(0, FIRST, 1).await, moved(&before, 8.0));
        stage.members.pop();
    });
}

/// Line 1: a second, different value for the same place is refused as a conflict, to its sender, and changes nothing.
#[test]
fn line_1_a_second_different_value_is_a_conflict() {
    play(job(2, 1, 2), async |stage| {
        let before = stage.values(0, FIRST, 0).await;
        stage.push(0, 0, FIRST, 1.0).await;
        assert_eq!(stage.push(0, 0, FIRST, 2.0).await, Answer::Refused(PushRefusal::Conflict));
        stage.push(1, 0, FIRST, 1.0).await;
        assert_eq!(
            stage.push(1, 0, FIRST, 2.0).await,
            Answer::Refused(PushRefusal::Conflict),
            "a step later too"
        );
        assert_eq!(stage.values(0, FIRST, 1).await, moved(&before, 2.0));
    });
}

/// Line 3: an acknowledged push is applied, whatever becomes of the connection that brought it.
#[test]
fn line_3_an_acknowledged_push_survives_its_connection() {
    play(job(2, 1, 2), async |stage| {
        let before = stage.values(1, FIRST, 0).await;
        assert_eq!(stage.push(0, 0, FIRST, 4.0).await, Answer::Accepted(false));
        let gone = stage.lanes[0].remove(0);
        gone.connection().close(0, "lost");
        gone.connection().closed().await;
        assert_eq!(stage.push(1, 0, FIRST, 4.0).await, Answer::Accepted(false));
        assert_eq!(stage.values(1, FIRST, 1).await, moved(&before, 8.0));
    });
}

/// Line 4: a pull of the next version waits until the slice is updated, and gets exactly that version.
#[test]
fn line_4_a_pull_of_the_next_version_waits() {
    play(job(2, 1, 2), async |stage| {
        let before = stage.values(0, FIRST, 0).await;
        let waiting = stage.lane(0, FIRST).pull(&Pull { slice: FIRST, version: 1, exact: false }).await;
        stage.push(0, 0, FIRST, 1.0).await;
        // Answers on one stream keep their order: had the pull been answered, it would be here by now.
        stage.values(0, FIRST, 0).await;
        assert!(!stage.lane(0, FIRST).answered(waiting));
        stage.push(1, 0, FIRST, 1.0).await;
        assert_eq!(stage.lane(0, FIRST).answer(waiting).await, Answer::Values(moved(&before, 2.0)));
    });
}

/// Line 4: a version that is gone or not yet possible gets a typed error, and so does a slice that is nowhere.
#[test]
fn line_4_a_pull_that_cannot_be_served_is_refused() {
    play(job(2, 2, 2), async |stage| {
        for step in 0..3 {
            stage.complete(step, FIRST, 1.0).await;
        }
        assert_eq!(stage.pull(0, FIRST, 0).await, Answer::NotServed(PullRefusal::Gone { version: 3 }));
        assert_eq!(stage.pull(0, FIRST, 1).await, Answer::NotServed(PullRefusal::Gone { version: 3 }));
        for version in [8, 9, u64::MAX] {
            let refused = Answer::NotServed(PullRefusal::NotYetPossible { version: 3 });
            assert_eq!(stage.pull(1, FIRST, version).await, refused);
        }
        let nowhere = SliceId { parameter: 99, index: 0 };
        assert_eq!(stage.pull(0, nowhere, 0).await, Answer::NotServed(PullRefusal::UnknownSlice));
        // A slice that the other server keeps.
        let (mine, theirs) =
            (stage.map.of_server(0).next().unwrap().id, stage.map.of_server(1).next().unwrap().id);
        let answer = stage.lanes[0][0].pulled(&Pull { slice: theirs, version: 0, exact: false }).await;
        assert_eq!(answer, Answer::NotServed(PullRefusal::UnknownSlice));
        assert!(matches!(
            stage.pull(0, mine, 0).await,
            Answer::Values(_) | Answer::NotServed(PullRefusal::Gone { .. })
        ));
    });
}

/// Line 4: a worker that lets pulls wait takes up its own few places and nobody else's.
#[test]
fn line_4_waiting_pulls_are_bounded_for_each_worker() {
    play(job(2, 1, 2), async |stage| {
        let pull = Pull { slice: FIRST, version: 1, exact: false };
        let mut first = Vec::new();
        for _ in 0..2 {
            first.push(stage.lane(0, FIRST).pull(&pull).await);
        }
        let refused = Answer::NotServed(PullRefusal::TooManyWaiting);
        assert_eq!(stage.pull(0, FIRST, 1).await, refused);
        let others = stage.lane(1, FIRST).pull(&pull).await;
        stage.complete(0, FIRST, 1.0).await;
        for request in first {
            assert!(matches!(stage.lane(0, FIRST).answer(request).await, Answer::Values(_)));
        }
        assert!(matches!(stage.lane(1, FIRST).answer(others).await, Answer::Values(_)));
    });
}

/// Line 5: pushes for the next step touch nothing that a slow worker's pull of this one reads.
#[test]
fn line_5_steps_do_not_bleed() {
    play(job(2, 1, 2), async |stage| {
        let zero = stage.values(1, FIRST, 0).await;
        assert_eq!(
            stage.push(0, 1, FIRST, 9.0).await,
            Answer::Refused(PushRefusal::StepAhead { version: 0 })
        );
        stage.complete(0, FIRST, 1.0).await;
        let one = moved(&zero, 2.0);
        stage.push(0, 1, FIRST, 9.0).await;
        assert_eq!(stage.values(1, FIRST, 1).await, one, "half of step 1 is there");
        assert_eq!(stage.values(1, FIRST, 0).await, zero);
        stage.push(1, 1, FIRST, 9.0).await;
        assert_eq!(stage.values(1, FIRST, 1).await, one, "all of step 1 is there");
        assert_eq!(stage.values(1, FIRST, 2).await, moved(&one, 18.0));
        assert_eq!(stage.push(1, 0, FIRST, 1.0).await, Answer::Refused(PushRefusal::StepGone { version: 2 }));
    });
}

/// Line 6: before the job has formed no server has parameters, and who asks is sent away, with the reason, as often as it
/// asks. Nothing of that is left when the job forms.
#[test]
fn line_6_who_asks_before_initialisation_is_sent_away() {
    let wiring = Wiring { absent: vec![0, 1], ..Wiring::default() };
    let cluster = Cluster::start_with(Site::new(job(2, 1, 2), Links::Quic), wiring);
    let (site, scheduler) = (&cluster.site, cluster.scheduler.to_string());
    let networks = ["0", "1"].map(|index| site.network(&site.identity(Role::Worker, index)));
    let (server, address) = (site.job.member(Role::Server, 0).unwrap(), cluster.servers[0].to_string());
    site.runtime.block_on(async {
        let mut first = Member::join(&networks[0], &scheduler, MemberRole::Worker).await.unwrap();
        for _ in 0..3 {
            // The server's word comes while the connection is being made, or just after.
            let told = match in_time("the server's word", networks[0].connect(&address, &server)).await {
                Ok(connection) => in_time("the server's word", connection.closed()).await.to_string(),
                Err(reason) => reason,
            };
            assert!(told.contains("servers serve workers that hold a lease"), "{told}");
        }
        let mut second = Member::join(&networks[1], &scheduler, MemberRole::Worker).await.unwrap();
        first.membership().await;
        second.membership().await;
        let mut lane = Lane::dial(&networks[0], &address, &server).await;
        assert!(matches!(
            lane.pulled(&Pull { slice: FIRST, version: 0, exact: false }).await,
            Answer::Values(_)
        ));
        give_up([&mut first, &mut second].into_iter()).await;
    });
    assert_eq!(cluster.outcome(), Outcome::Failed(GIVEN_UP.into()));
}

/// The reason that the other end gave when it closed a connection.
fn by_peer(error: &Error) -> Option<&str> {
    match error {
        Error::Closed { by_peer: true, reason, .. } => Some(reason),
        _ => None,
    }
}

/// Line 6: initial parameters come from the seed alone: every node could compute them, and two servers have the same as one.
#[test]
fn line_6_initial_parameters_are_a_function_of_the_seed() {
    for servers in [1, 2] {
        play(job(1, servers, 1), async |stage| {
            let (parameters, seed) = (stage.job.model.parameters().unwrap(), stage.job.seed);
            let mut varied = false;
            for slice in stage.map.clone().slices() {
                let mut expected = vec![0.0; slice.elements];
                parameters[slice.id.parameter as usize].initialize(seed, slice.first, &mut expected);
                assert_eq!(stage.values(0, slice.id, 0).await, expected, "{}", slice.id);
                varied |= expected.iter().any(|v| *v != 0.0);
            }
            assert!(varied, "a model of zeros would prove nothing");
        });
    }
}

/// Line 7: a parameter's last slice is as short as what is left, and is pushed and pulled like any other; so is a parameter
/// of fewer elements than servers.
#[test]
fn line_7_short_slices_are_slices() {
    let job = JobSpec { slice_bytes: 20, ..job(1, 5, 1) };
    play(job, async |stage| {
        let lengths: Vec<usize> = stage.map.slices().iter().map(|s| s.elements).collect();
        assert!((1..=5).all(|n| n == 2 || lengths.contains(&n)), "slices of many lengths: {lengths:?}");
        for slice in stage.map.clone().slices() {
            let before = stage.values(0, slice.id, 0).await;
            assert_eq!(before.len(), slice.elements);
            stage.complete(0, slice.id, 8.0).await;
            assert_eq!(stage.values(0, slice.id, 1).await, moved(&before, 8.0));
        }
    });
}

/// A push is refused, with the reason as a value: without a lease, under another epoch, for what does not exist or does not
/// fit. None of them changes anything.
#[test]
fn a_push_that_may_not_be_is_refused_with_its_reason() {
    play(job(2, 1, 4), async |stage| {
        let before = stage.values(0, FIRST, 0).await;
        let good = stage.push_of(0, 0, FIRST);
        let theirs = stage.nodes[1];
        let values = vec![1.0f32; before.len()];
        let no_lease = PushRefusal::NoLease;
        let unknown = SliceId { parameter: 0, index: 9999 };
        for (push, reason) in [
            (Push { node: theirs, ..good.clone() }, no_lease.clone()),
            (Push { node: Node::leaf(0), ..good.clone() }, no_lease.clone()),
            (Push { node: Node { first: 0, leaves: 3 }, ..good.clone() }, no_lease.clone()),
            (Push { node: Node { first: u32::MAX, leaves: u32::MAX }, ..good.clone() }, no_lease.clone()),
            (Push { epoch: good.epoch - 1, ..good.clone() }, no_lease.clone()),
            (Push { epoch: good.epoch + 1, ..good.clone() }, no_lease),
            (Push { slice: unknown, ..good.clone() }, PushRefusal::UnknownSlice),
            (Push { codec: 200, ..good.clone() }, PushRefusal::UnknownCodec(200)),
            (Push { step: 1, ..good.clone() }, PushRefusal::StepAhead { version: 0 }),
            (Push { step: u64::MAX, ..good.clone() }, PushRefusal::StepAhead { version: 0 }),
        ] {
            assert_eq!(stage.lanes[0][0].pushed(&push, &values).await, Answer::Refused(reason), "{push:?}");
        }
        for length in [0, 4, 15] {
            let request = stage.lanes[0][0].push_bytes(&good, Bytes::from(vec![0; length])).await;
            let found = length as u64;
            let reason = PushRefusal::WrongLength { expected: 16, found };
            assert_eq!(stage.lanes[0][0].answer(request).await, Answer::Refused(reason));
        }
        stage.complete(0, FIRST, 1.0).await;
        assert_eq!(stage.values(0, FIRST, 1).await, moved(&before, 2.0));
    });
}

/// NaN and infinities are refused with the element, and leave the place free for a good value.
#[test]
fn values_that_are_not_finite_are_refused_by_element() {
    play(job(2, 1, 2), async |stage| {
        let before = stage.values(0, FIRST, 0).await;
        let push = stage.push_of(0, 0, FIRST);
        for (element, bad) in [(0, f32::NAN), (2, f32::INFINITY), (3, f32::NEG_INFINITY)] {
            let mut values = vec![1.0; before.len()];
            values[element] = bad;
            let reason = PushRefusal::NotFinite { element: element as u64 };
            assert_eq!(stage.lane(0, FIRST).pushed(&push, &values).await, Answer::Refused(reason));
        }
        stage.complete(0, FIRST, 1.0).await;
        assert_eq!(stage.values(1, FIRST, 1).await, moved(&before, 2.0));
    });
}
