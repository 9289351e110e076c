//! Invariant 6 of the core, and the invariants of `scheduler/weighing.rs`.

use super::*;
use crate::message::GradientWeights;

const BOTH: [(u32, Node); 2] = [(0, Node { first: 0, leaves: 2 }), (1, Node { first: 2, leaves: 2 })];

/// Two workers, two servers with slices of one element each, gradients clipped to a norm of 1.
fn clipped() -> JobSpec {
    let checkpoints = crate::job::Checkpoints { every_steps: 0, at_end: true };
    JobSpec { clip_norm: Some(1.0), slice_bytes: 4, checkpoints, ..job(2, 2) }
}

/// Products of a gradient that holds `value` alone, as bytes.
fn products(job: &JobSpec, value: f32) -> Vec<u8> {
    let mut products = job.weighing().unwrap().products();
    products.add(0, &[&[value]]).unwrap();
    products.to_bytes()
}

fn post(bench: &mut Bench, server: u32, step: u64, bytes: Vec<u8>) -> Vec<Effect<u32>> {
    bench.handle(Input::Products { server, step, bytes })
}

fn weights(effects: &[Effect<u32>]) -> Vec<(Member, GradientWeights)> {
    let sent = effects.iter().filter_map(|effect| match effect {
        Effect::Send { member, message: ToMember::Weights(weights), .. } => Some((*member, weights.clone())),
        _ => None,
    });
    sent.collect()
}

/// Both workers have reported; the step is complete when both servers have posted, and not before.
#[test]
fn a_step_is_complete_when_it_is_weighed() {
    let job = clipped();
    let mut bench = Bench::training(job.clone());
    let none_yet = BOTH.map(|(worker, node)| bench.report(worker, 0, node, 2)).concat();
    assert!(!none_yet.iter().any(|effect| matches!(effect, Effect::Step(_))), "{none_yet:?}");
    assert!(weights(&post(&mut bench, 1, 0, products(&job, 4.0))).is_empty());
    let effects = post(&mut bench, 0, 0, products(&job, 3.0));
    // The norm of (3, 4) is 5, of a sum over 4 examples.
    let expected = GradientWeights { step: 0, weights: vec![1.0], clip: 0.8 };
    assert_eq!(weights(&effects), [(server(0), expected.clone()), (server(1), expected)]);
    let at = |what: fn(&Effect<u32>) -> bool| effects.iter().position(what);
    let (sent, step, order) = (
        at(|e| matches!(e, Effect::Send { message: ToMember::Weights(_), .. })),
        at(|e| matches!(e, Effect::Step(_))),
        at(|e| matches!(e, Effect::Send { message: ToMember::Checkpoint(_), .. })),
    );
    assert!(sent < step && step < order && sent.is_some(), "{effects:?}");
}

/// Weights that come first let the step be complete with its last report.
#[test]
fn weights_may_come_before_reports() {
    let job = JobSpec { max_steps: Some(2), ..clipped() };
    let mut bench = Bench::training(job.clone());
    post(&mut bench, 0, 0, products(&job, 0.5));
    let effects = post(&mut bench, 1, 0, products(&job, 0.5));
    assert_eq!(weights(&effects)[0].1.clip, 1.0, "short enough");
    assert!(bench.report(0, 0, BOTH[0].1, 2).iter().all(|e| !matches!(e, Effect::Step(_))));
    assert!(bench.report(1, 0, BOTH[1].1, 2).iter().any(|e| matches!(e, Effect::Step(_))));
    // And the next step is weighed in its turn.
    post(&mut bench, 0, 1, products(&job, 0.5));
    assert_eq!(weights(&post(&mut bench, 1, 1, products(&job, 0.5))).len(), 2);
}

/// Whoever says what cannot be is named, and no server is told weights made of it.
#[test]
fn a_server_that_lies_about_products_is_named() {
    let job = clipped();
    let good = || products(&job, 1.0);
    let alone = JobSpec { slice_bytes: 64, servers: 7, ..clipped() };
    let idle = (0..7).find(|index| !crate::scheduler::checkpoints::holders(&alone).contains(index)).unwrap();
    let many = JobSpec { slice_bytes: 4, ..job.clone() };
    let unasked = JobSpec { clip_norm: None, ..job.clone() };
    for (job, posts, part) in [
        (
            &many,
            vec![(0, 0, good()[1..].to_vec())],
            "server/0 misbehaved: it posts 79 bytes of products, which take 80",
        ),
        (&many, vec![(1, 0, [good(), good()].concat())], "server/1 misbehaved: it posts 160 bytes"),
        (&many, vec![(1, 0, Vec::new())], "0 bytes"),
        (
            &many,
            vec![(1, 0, good()), (1, 0, good())],
            "server/1 misbehaved: it posts its products of step 0 twice",
        ),
        (
            &many,
            vec![(0, 1, good())],
            "server/0 misbehaved: it posts products of step 1, which is not under way",
        ),
        (&many, vec![(0, 0, good()), (1, 0, good()), (0, 0, good())], "of step 0, which is not under way"),
        (&many, vec![(0, 0, good()), (1, 0, good()), (0, 1, good())], "of step 1, which is not under way"),
        (&alone, vec![(idle, 0, good())], "which this job asks it for none of"),
        (&unasked, vec![(0, 0, good())], "which this job asks it for none of"),
    ] {
        let mut bench = Bench::training((*job).clone());
        let (last, before) = posts.split_last().unwrap();
        for (server, step, bytes) in before {
            post(&mut bench, *server, *step, bytes.clone());
        }
        assert_eq!(bench.outcome(), None, "{part}");
        let effects = post(&mut bench, last.0, last.1, last.2.clone());
        assert!(weights(&effects).is_empty(), "{part}");
        assert!(
            matches!(bench.outcome(), Some(Outcome::Failed(reason)) if reason.contains(part)),
            "{part}: {:?}",
            bench.outcome()
        );
    }
}

/// Invariant 4: a stall in this phase has a name.
#[test]
fn a_server_that_withholds_products_is_named() {
    let job = clipped();
    let mut bench = Bench::training(job.clone());
    post(&mut bench, 1, 0, products(&job, 1.0));
    let beat = |member| (member, Heartbeat { step: 0, waiting: None, load: Load::default(), served: None });
    let members = [beat(server(0)), beat(server(1)), beat(worker(0)), beat(worker(1))];
    let notices = bench.pass(TIMEOUT + TIMEOUT / 2, &members);
    let named = "waiting for server/0 to post products of step 0";
    assert!(notices.iter().any(|e| matches!(e, Effect::Notice(text) if text.contains(named))), "{notices:?}");
}
