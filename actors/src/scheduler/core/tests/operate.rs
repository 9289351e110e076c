//! What operators command: a pause, a stop, a list of nodes.

use super::*;

/// A run of `steps` steps under way.
fn long(steps: u64) -> JobSpec {
    JobSpec { max_steps: Some(steps), ..job(2, 1) }
}

impl Bench {
    /// Both workers are done with `step`.
    fn step(&mut self, step: u64) -> Vec<Effect<u32>> {
        let mut effects = Vec::new();
        for (worker, node) in [(0, LEFT), (1, RIGHT)] {
            let nodes = vec![NodeLoss { node, loss_sum: 1.0, correct: 1, examples: 2 }];
            let done = NodeDone {
                step,
                nodes,
                times: StepTimes::default(),
                bytes_sent: 0,
                bytes_received: 0,
                pushed: Default::default(),
            };
            effects.extend(self.handle(Input::NodeDone { worker, done }));
        }
        effects
    }
}

fn extended(effects: &[Effect<u32>]) -> Option<u64> {
    effects.iter().find_map(|e| match e {
        Effect::Send { message: ToMember::Extended(e), .. } => Some(e.until),
        _ => None,
    })
}

/// Invariants 1 to 3 of `operate.rs`.
#[test]
fn a_paused_run_ends_what_is_under_way_and_begins_nothing() {
    let mut bench = Bench::training(long(10));
    assert_eq!(extended(&bench.step(0)), Some(5));
    let (_, answer) = bench.command(Command::Pause);
    assert!(answer.unwrap().contains("ends with step 5"));
    assert_eq!(bench.command(Command::Pause).1, Ok("the run is paused already".into()));
    assert_eq!(extended(&bench.step(1)), None, "a paused run leases no step");
    // What was leased is still owed, and its absence is still a stall.
    let everyone = [(server(0), idle()), (worker(0), idle()), (worker(1), idle())];
    assert!(notices(&bench.pass(TIMEOUT * 2, &everyone)).contains("no progress"));
    for step in 2..5 {
        assert_eq!(extended(&bench.step(step)), None);
    }
    let effects = bench.pass(TIMEOUT * 5, &everyone);
    assert_eq!(notices(&effects), "", "a paused run is no stalled one");
    let report = bench.core.report();
    assert!(report.paused && report.stalled.is_none() && report.steps_done == 5 && report.until == 5);
    let (effects, answer) = bench.command(Command::Resume);
    assert_eq!((answer, extended(&effects)), (Ok("resumed after step 5".into()), Some(9)));
    assert_eq!(bench.command(Command::Resume).1, Ok("the run was not paused".into()));
    assert_eq!(extended(&bench.step(5)), Some(10));
}

/// A worker that dies in a pause is replaced in it.
#[test]
fn leases_move_while_a_run_is_paused() {
    let mut bench = Bench::training(long(10));
    bench.command(Command::Pause).1.unwrap();
    assert_eq!(told_of_members(&bench.gone(worker(0), 2)), [server(0)]);
    let effects = bench.handle(Input::Ready { server: 0, epoch: 2, version: 0 });
    assert_eq!(told_of_members(&effects), [worker(1)]);
    let membership = effects.iter().find_map(|e| match e {
        Effect::Send { message: ToMember::Membership(m), .. } => Some(m.clone()),
        _ => None,
    });
    let membership = membership.unwrap();
    assert_eq!(membership.until, 4, "no step is added by a change of membership");
    assert_eq!(
        membership.workers,
        [WorkerMember { index: 1, incarnation: 1, commitment: [1; 32], start: 0 }]
    );
}

/// Invariant 4 of leases: what the dead held may be joined from the horizon on, and a report of what is joined counts each shard
/// once. Votes stay apart.
#[test]
fn what_moved_may_be_joined_from_the_horizon_on() {
    let root = Node { first: 0, leaves: 4 };
    let mut bench = Bench::training(long(10));
    (0..3).for_each(|step| drop(bench.step(step)));
    assert_eq!(bench.core.until, 7);
    bench.gone(worker(1), 3);
    bench.handle(Input::Ready { server: 0, epoch: 2, version: 0 });
    let alone = |bench: &Bench| bench.core.leases.iter().map(|l| l.alone_from).collect::<Vec<_>>();
    assert_eq!(alone(&bench), [0, 7]);
    for step in 3..6 {
        assert!(bench.report(0, step, root, 4).is_empty(), "step {step} may hold what the dead contributed");
        assert!(bench.report(0, step, LEFT, 2).is_empty());
        assert!(bench.report(0, step, RIGHT, 2).iter().any(|e| matches!(e, Effect::Step(_))));
    }
    bench.report(0, 6, LEFT, 2);
    bench.report(0, 6, RIGHT, 2);
    let samples = bench.core.progress.samples;
    bench.report(0, 7, LEFT, 2);
    assert!(bench.report(0, 7, root, 4).is_empty(), "the left half is counted");
    bench.report(0, 7, RIGHT, 2);
    assert!(bench.report(0, 8, root, 4).iter().any(|e| matches!(e, Effect::Step(_))));
    assert_eq!(bench.core.progress.samples - samples, 2 + 2 + 4);

    let rule = testudo_kernels::Aggregation::Median { hostile: 1 };
    let mut bench = Bench::training(JobSpec { aggregation: rule, ..long(10) });
    bench.gone(worker(1), 3);
    assert_eq!(alone(&bench), [u64::MAX; 4], "votes are never joined");
}

/// A run that was paused while it formed begins when it is resumed.
#[test]
fn a_job_may_be_paused_before_it_begins() {
    let mut bench = Bench::new(long(10));
    assert!(bench.command(Command::Pause).1.unwrap().contains("no step is begun"));
    for member in [server(0), worker(0), worker(1)] {
        bench.join(member);
    }
    bench.handle(Input::Ready { server: 0, epoch: 1, version: 0 });
    assert_eq!((bench.core.report().phase, bench.core.report().until), (Phase::Training, 0));
    let (effects, answer) = bench.command(Command::Resume);
    assert_eq!((answer, extended(&effects)), (Ok("resumed after step 0".into()), Some(4)));
}

/// A paused run can be stopped: at once if nothing is under way, and in order.
#[test]
fn a_paused_run_can_be_stopped() {
    let mut bench = Bench::training(long(10));
    bench.command(Command::Pause).1.unwrap();
    for step in 0..4 {
        bench.step(step);
    }
    let (effects, answer) = bench.command(Command::Stop);
    assert_eq!(answer, Ok("stopping after step 4".into()));
    assert!(!sent(&effects, |m| matches!(m, ToMember::Export(_))).is_empty(), "{effects:?}");
    assert_eq!(bench.core.report().phase, Phase::Finishing);
    assert!(bench.command(Command::Pause).1.unwrap_err().contains("stopping after step 4"));
    assert_eq!(bench.command(Command::Stop).1, Ok("the run is stopping after step 4 already".into()));
    assert!(bench.command(Command::Resume).1.unwrap().contains("not paused"));
}

/// What an operator reads of each node.
#[test]
fn every_node_is_listed_with_what_it_last_said() {
    let mut bench = Bench::training(long(10));
    bench.now = bench.now.after(Duration::from_millis(300));
    let slice = crate::placement::SliceId { parameter: 1, index: 3 };
    let waiting = Some(Waiting { slice, step: 2, missing: None });
    let load = Load { held_bytes: 9, ..Load::default() };
    bench.handle(Input::Heartbeat {
        member: worker(1),
        heartbeat: Heartbeat { step: 3, waiting, load, served: None },
    });
    bench.now = bench.now.after(Duration::from_millis(50));
    let nodes = bench.core.nodes(bench.now);
    assert_eq!(nodes.iter().map(|n| n.member).collect::<Vec<_>>(), [server(0), worker(0), worker(1)]);
    let [_, quiet, loud] = &nodes[..] else { panic!("{nodes:?}") };
    assert_eq!((quiet.heard_ms, quiet.incarnation, quiet.shards, quiet.step), (350, 1, 2, 0));
    assert_eq!((loud.heard_ms, loud.step, loud.load), (50, 3, load));
    assert_eq!(loud.waiting.as_deref(), Some("b (slice 3) after step 2"));
    assert_eq!(bench.join(worker(9)).len(), 1);
    assert_eq!(bench.core.report().joins_refused, 1);
}

/// Invariants 1 and 2 of `timeline.rs`: what nodes say of a step is placed by the quickest of their words, whatever their clocks say;
/// servers' moments are shown with workers' where both are of one step.
#[test]
fn a_steps_moments_are_told_node_by_node() {
    let mut bench = Bench::training(long(10));
    let wait = |bench: &mut Bench, ms| bench.now = bench.now.after(Duration::from_millis(ms));
    // Nodes' clocks began an hour before the scheduler's, and words take `late` milliseconds.
    let said = |bench: &Bench, late: u64| 3_600_000_000 + bench.now.0.as_micros() as u64 - 1_000 * late;
    let report = |bench: &mut Bench, step, worker, node, late| {
        let times = StepTimes {
            compute_us: 9_000,
            send_us: 900,
            wait_us: 90,
            ready_ago_us: 11_000,
            began_ago_us: 10_000,
            said_at_us: said(bench, late),
        };
        let nodes = vec![NodeLoss { node, loss_sum: 1.0, correct: 1, examples: 2 }];
        let none = (0, Default::default());
        let done =
            NodeDone { step, nodes, times, bytes_sent: none.0, bytes_received: none.0, pushed: none.1 };
        bench.handle(Input::NodeDone { worker, done });
    };
    let beat = |bench: &mut Bench, step, late| {
        let said_at_us = said(bench, late);
        let served =
            ServedStep { step, first_ago_us: 7_000, last_ago_us: 2_000, done_ago_us: 1_000, said_at_us };
        let heartbeat = Heartbeat { step, waiting: None, load: Load::default(), served: Some(served) };
        bench.handle(Input::Heartbeat { member: worker(0), heartbeat: heartbeat.clone() });
        bench.handle(Input::Heartbeat { member: server(0), heartbeat });
    };
    let worked = |worker: u32, ended_at_us: i64| WorkerSpan {
        worker,
        wait_us: 90,
        compute_us: 9_000,
        send_us: 900,
        ready_at_us: ended_at_us - 11_000,
        began_at_us: ended_at_us - 10_000,
        ended_at_us,
    };
    let served = |heard: i64| ServerSpan {
        server: 0,
        first_at_us: heard - 7_000,
        last_at_us: heard - 2_000,
        done_at_us: heard - 1_000,
    };
    wait(&mut bench, 20);
    report(&mut bench, 0, 1, RIGHT, 0);
    wait(&mut bench, 5);
    // Of a step that is not complete, and by the way of one that was never begun.
    beat(&mut bench, 0, 0);
    beat(&mut bench, u64::MAX, 0);
    beat(&mut bench, 0, 0);
    assert_eq!(bench.core.timeline(), None, "not complete");
    report(&mut bench, 0, 0, LEFT, 0);
    let timeline = bench.core.timeline().unwrap();
    assert_eq!((timeline.step, timeline.duration_us), (0, 25_000));
    assert_eq!(
        (&timeline.workers[..], &timeline.servers[..]),
        (&[worked(0, 25_000), worked(1, 20_000)][..], &[served(25_000)][..])
    );

    // The next one shows when its server has told of it: before, its workers alone are known.
    for (worker, node) in [(0, LEFT), (1, RIGHT)] {
        report(&mut bench, 1, worker, node, 0);
    }
    assert_eq!(bench.core.timeline().unwrap().step, 0);
    wait(&mut bench, 3);
    beat(&mut bench, 1, 0);
    let timeline = bench.core.timeline().unwrap();
    assert_eq!(
        (timeline.step, &timeline.servers[..]),
        (1, &[served(28_000)][..]),
        "all are open since the beginning"
    );
    bench.step(2);
    assert_eq!(
        bench.core.timeline(),
        Some(timeline),
        "a step that nobody tells the times of changes nothing"
    );

    // Step 4 was opened when step 0 was complete. Its words have waited somewhere.
    wait(&mut bench, 72);
    bench.step(3);
    for (worker, node) in [(0, LEFT), (1, RIGHT)] {
        report(&mut bench, 4, worker, node, 5);
    }
    beat(&mut bench, 4, 2);
    let timeline = bench.core.timeline().unwrap();
    assert_eq!(
        (timeline.step, timeline.workers[0], timeline.servers[0]),
        (4, worked(0, 70_000), served(73_000))
    );
}

/// Invariants 3 and 4 of `timeline.rs`: whatever the number of steps and whatever nodes say, what is kept does not grow, and what is shown
/// is possible.
#[test]
fn what_is_kept_of_moments_does_not_grow() {
    let job = long(3_000);
    let mut timelines = crate::scheduler::timeline::Timelines::new(&job);
    let now = Time::default().after(Duration::from_secs(5));
    let possible = -5_000_000..=5_000_000;
    for step in 0..2_000 {
        timelines.open(now, step + 4);
        let nodes = vec![NodeLoss { node: LEFT, loss_sum: 1.0, correct: 1, examples: 2 }];
        let odd = if step % 2 == 0 { u64::MAX } else { step };
        let times = StepTimes {
            compute_us: u64::MAX,
            send_us: odd,
            wait_us: odd,
            ready_ago_us: odd,
            began_ago_us: u64::MAX,
            said_at_us: odd,
        };
        let done =
            NodeDone { step, nodes, times, bytes_sent: 0, bytes_received: 0, pushed: Default::default() };
        timelines.worked(now, 0, &done);
        timelines.completed(step, 0.01);
        let served = ServedStep {
            step: if step % 3 == 0 { step } else { step * 7 },
            first_ago_us: u64::MAX,
            last_ago_us: 0,
            done_ago_us: 0,
            said_at_us: step << 40,
        };
        timelines.served(now, 0, served);
        let shown = timelines.shown().unwrap();
        for span in &shown.workers {
            let moments = [span.ready_at_us, span.began_at_us, span.ended_at_us];
            assert!(moments.iter().all(|at| possible.contains(at)), "{span:?}");
            assert!(
                [span.wait_us, span.compute_us, span.send_us].iter().all(|us| *us <= 5_000_000),
                "{span:?}"
            );
        }
        for span in &shown.servers {
            let moments = [span.first_at_us, span.last_at_us, span.done_at_us];
            assert!(moments.iter().all(|at| possible.contains(at)), "{span:?}");
        }
    }
    assert!(timelines.kept() <= 48, "{}", timelines.kept());
    assert!(timelines.shown().is_some());
}

/// Invariant 1 of `timeline.rs`: a node's next process has another clock.
#[test]
fn a_new_process_has_another_clock() {
    let mut timelines = crate::scheduler::timeline::Timelines::new(&long(10));
    let at = |milliseconds| Time::default().after(Duration::from_millis(milliseconds));
    let mut ends_at = |step, heard, said_at_us| {
        timelines.open(at(0), step + 1);
        let times = StepTimes { compute_us: 1, said_at_us, ..StepTimes::default() };
        let nodes = vec![NodeLoss { node: LEFT, loss_sum: 1.0, correct: 1, examples: 2 }];
        let done =
            NodeDone { step, nodes, times, bytes_sent: 0, bytes_received: 0, pushed: Default::default() };
        timelines.worked(at(heard), 0, &done);
        timelines.completed(step, 0.01);
        if step == 1 {
            timelines.joined(worker(0));
        }
        timelines.shown().unwrap().workers[0].ended_at_us
    };
    assert_eq!(ends_at(0, 500, 450_000), 500_000);
    assert_eq!(ends_at(1, 550, 490_000), 540_000, "ten milliseconds more than the quickest word");
    assert_eq!(ends_at(2, 600, 20_000), 600_000, "its clock began anew");
}
