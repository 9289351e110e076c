//! semantics.md, lines 9 and 13, and the core's invariants, on the core alone.

use testudo_kernels::{ModelSpec, OptimizerSpec, Schedule};

use super::*;
use crate::job::{DataSpec, Evaluation};
use crate::tree::Node;

mod hashing;
mod operate;
mod returning;
mod waiting;
mod weighing;
mod witnessing;

/// The connection of an operator.
const OPERATOR: u32 = 1_000;

const TIMEOUT: Duration = Duration::from_millis(1_000);

fn job(workers: u32, servers: u32) -> JobSpec {
    JobSpec {
        format: crate::job::FORMAT,
        name: "job".into(),
        trust_domain: "test".into(),
        workers,
        servers,
        elastic: Default::default(),
        model: ModelSpec::Mlp { inputs: 2, hidden: vec![], classes: 2 },
        precision: testudo_kernels::Precision::F32,
        optimizer: OptimizerSpec::shipped("sgd").unwrap(),
        learning_rate: 0.1,
        schedule: Schedule::Constant,
        seed: 1,
        epochs: 1,
        batch_size: 4,
        logical_shards: 4,
        aggregation: testudo_kernels::Aggregation::Mean,
        clip_norm: None,
        max_steps: Some(1),
        evaluation: Evaluation::default(),
        data: DataSpec { train_examples: 40, test_examples: 10, blake3: [0; 32] },
        slice_bytes: 64,
        codecs: crate::Codecs::default(),
        determinism: crate::job::Determinism::Strict,
        heartbeat_ms: 100,
        heartbeat_timeout_ms: 1_000,
        export: true,
        checkpoints: crate::job::Checkpoints::default(),
        audit: crate::job::Audit { hash_every: 0, countersign_every: 0 },
        witness_rate: 0.0,
        resume: None,
    }
}

fn server(index: u32) -> Member {
    Member { role: MemberRole::Server, index }
}

fn worker(index: u32) -> Member {
    Member { role: MemberRole::Worker, index }
}

fn join_of(member: Member) -> Join {
    let address = (member.role == MemberRole::Server).then(|| "here:1".into());
    Join {
        release: "1.2.3".into(),
        fingerprint: "avx2".into(),
        address,
        commitment: [member.index as u8; 32],
    }
}

/// A scheduler whose connections are numbers.
struct Bench {
    core: SchedulerCore<u32>,
    now: Time,
    connections: u32,
}

impl Bench {
    fn new(job: JobSpec) -> Bench {
        let core = SchedulerCore::new(Arc::new(job), "1.2.3".into(), vec!["w".into(), "b".into()]);
        Bench { core, now: Time::default(), connections: 0 }
    }

    /// Every member has joined, servers are ready, training has begun.
    fn training(job: JobSpec) -> Bench {
        let (servers, workers) = (job.servers, job.workers);
        let mut bench = Bench::new(job);
        for member in (0..servers).map(server).chain((0..workers).map(worker)) {
            bench.join(member);
        }
        for index in 0..servers {
            bench.handle(Input::Ready { server: index, epoch: 1, version: 0 });
        }
        assert_eq!(bench.core.report().phase, Phase::Training);
        bench
    }

    fn handle(&mut self, input: Input<u32>) -> Vec<Effect<u32>> {
        self.core.handle(self.now, input);
        std::iter::from_fn(|| self.core.poll()).collect()
    }

    fn join(&mut self, member: Member) -> Vec<Effect<u32>> {
        self.join_as(member, join_of(member))
    }

    fn join_as(&mut self, member: Member, join: Join) -> Vec<Effect<u32>> {
        self.connections += 1;
        let connection = self.connections;
        self.handle(Input::Join { member, connection, join })
    }

    /// An operator commands, and is answered at the end of all that comes of it.
    fn command(&mut self, command: Command) -> (Vec<Effect<u32>>, Result<String, String>) {
        let mut effects = self.handle(Input::Command { connection: OPERATOR, request: 7, command });
        let at = effects.iter().position(|e| matches!(e, Effect::Answer { .. }));
        match effects.remove(at.expect("every command is answered")) {
            Effect::Answer { connection: OPERATOR, request: 7, result } => (effects, result),
            other => panic!("answered elsewhere: {other:?}"),
        }
    }

    /// Members join in order, so server `i` is on connection `i + 1`, and workers follow.
    fn gone(&mut self, member: Member, connection: u32) -> Vec<Effect<u32>> {
        self.handle(Input::Gone { member, connection, reason: "reset".into() })
    }

    /// Time passes, with these heartbeats and no others.
    fn pass(&mut self, time: Duration, members: &[(Member, Heartbeat)]) -> Vec<Effect<u32>> {
        let mut effects = Vec::new();
        let end = self.now.after(time);
        while self.now < end {
            self.now = self.now.after(Duration::from_millis(50));
            for (member, heartbeat) in members {
                effects
                    .extend(self.handle(Input::Heartbeat { member: *member, heartbeat: heartbeat.clone() }));
            }
            effects.extend(self.handle(Input::Tick));
        }
        effects
    }

    /// A worker reports a node of a step.
    fn report(&mut self, worker: u32, step: u64, node: Node, examples: u64) -> Vec<Effect<u32>> {
        let nodes = vec![NodeLoss { node, loss_sum: 1.0, correct: 0, examples }];
        let done = NodeDone {
            step,
            nodes,
            times: StepTimes::default(),
            bytes_sent: 0,
            bytes_received: 0,
            pushed: Default::default(),
        };
        self.handle(Input::NodeDone { worker, done })
    }

    fn outcome(&self) -> Option<Outcome> {
        self.core.report().outcome
    }

    /// The last step is done, evaluated and exported.
    fn complete(&mut self, workers: &[(u32, Node)]) -> Vec<Effect<u32>> {
        let mut effects = Vec::new();
        for (index, node) in workers {
            let loss = NodeLoss { node: *node, loss_sum: 1.0, correct: 1, examples: 2 };
            let done = NodeDone {
                step: 0,
                nodes: vec![loss],
                times: StepTimes::default(),
                bytes_sent: 1,
                bytes_received: 1,
                pushed: Default::default(),
            };
            effects.extend(self.handle(Input::NodeDone { worker: *index, done }));
        }
        for effect in effects.clone() {
            let Effect::Send { member, message, .. } = effect else { continue };
            effects.extend(match message {
                ToMember::Evaluate(Evaluate { version, first, examples }) => {
                    let result = EvaluationResult { version, first, examples, loss_sum: 1.0, correct: 1 };
                    self.handle(Input::Evaluated { worker: member.index, result })
                }
                ToMember::Export(Export { version, .. }) => {
                    let exported =
                        Exported { version, params_blake3: [7; 32], bytes: 1, pulled: Default::default() };
                    self.handle(Input::Exported { worker: member.index, exported })
                }
                _ => Vec::new(),
            });
        }
        effects
    }
}

fn sent(effects: &[Effect<u32>], wanted: impl Fn(&ToMember) -> bool) -> Vec<Member> {
    let send = |e: &Effect<u32>| match e {
        Effect::Send { member, message, .. } if wanted(message) => Some(*member),
        _ => None,
    };
    effects.iter().filter_map(send).collect()
}

fn dismissed(effects: &[Effect<u32>]) -> Vec<Member> {
    sent(effects, |m| matches!(m, ToMember::Shutdown(_)))
}

fn told_of_members(effects: &[Effect<u32>]) -> Vec<Member> {
    sent(effects, |m| matches!(m, ToMember::Membership(_)))
}

fn refusal(effects: &[Effect<u32>]) -> &str {
    let refused = effects.iter().find_map(|e| match e {
        Effect::Refuse { refused, .. } => Some(refused.reason.as_str()),
        _ => None,
    });
    refused.unwrap_or_else(|| panic!("not refused: {effects:?}"))
}

fn failure(effects: &[Effect<u32>]) -> &str {
    let failed = effects.iter().find_map(|e| match e {
        Effect::Over(Outcome::Failed(reason) | Outcome::ServerLost(reason)) => Some(reason.as_str()),
        _ => None,
    });
    failed.unwrap_or_else(|| panic!("not failed: {effects:?}"))
}

fn notices(effects: &[Effect<u32>]) -> String {
    let texts = effects.iter().filter_map(|e| match e {
        Effect::Notice(text) => Some(text.as_str()),
        _ => None,
    });
    texts.collect::<Vec<_>>().join("; ")
}

fn idle() -> Heartbeat {
    Heartbeat { step: 0, waiting: None, load: Load::default(), served: None }
}

const LEFT: Node = Node { first: 0, leaves: 2 };
const RIGHT: Node = Node { first: 2, leaves: 2 };

/// Line 9: a live identity joins once. A newcomer under the same one is refused, whatever it says, and does not stand in for
/// a member that is missing.
#[test]
fn a_second_join_of_a_live_identity_is_refused() {
    let mut bench = Bench::new(job(2, 1));
    bench.join(server(0));
    assert!(matches!(bench.join(worker(0))[..], [Effect::Welcome { incarnation: 1, .. }]));
    for _ in 0..3 {
        let effects = bench.join(worker(0));
        assert!(refusal(&effects).contains("worker/0 takes part already"), "{effects:?}");
        assert_eq!(told_of_members(&effects), [], "two joins of one worker are not two workers");
    }
    assert_eq!(bench.core.report().phase, Phase::Forming);
    // The newcomer's end is not the member's.
    assert_eq!(bench.gone(worker(0), 4), []);
    assert_eq!(told_of_members(&bench.join(worker(1))), [server(0)], "now all are there");
}

/// Line 9: before anything has begun, a member whose connection is gone may come back, as its next incarnation.
#[test]
fn a_member_that_is_gone_may_join_again_while_the_job_forms() {
    let mut bench = Bench::new(job(2, 1));
    bench.join(worker(0));
    bench.gone(worker(0), 1);
    assert!(matches!(bench.join(worker(0))[..], [Effect::Welcome { incarnation: 2, .. }]));
}

/// Line 9: training begins when every server has installed the epoch: distinct servers of this generation, however often
/// one of them says so.
#[test]
fn the_first_barrier_counts_distinct_servers() {
    let mut bench = Bench::new(job(1, 2));
    bench.join(server(0));
    bench.join(server(1));
    assert_eq!(told_of_members(&bench.join(worker(0))), [server(0), server(1)], "invariant 2: servers first");
    for epoch in [1, 1, 1, 99] {
        assert_eq!(told_of_members(&bench.handle(Input::Ready { server: 0, epoch, version: 0 })), []);
    }
    assert_eq!(
        told_of_members(&bench.handle(Input::Ready { server: 7, epoch: 1, version: 0 })),
        [],
        "nobody's word"
    );
    assert_eq!(
        told_of_members(&bench.handle(Input::Ready { server: 1, epoch: 0, version: 0 })),
        [],
        "another generation's word"
    );
    assert_eq!(told_of_members(&bench.handle(Input::Ready { server: 1, epoch: 1, version: 0 })), [worker(0)]);
    assert_eq!(
        told_of_members(&bench.handle(Input::Ready { server: 1, epoch: 1, version: 0 })),
        [],
        "told once"
    );
}

/// Line 9: the barrier of a later epoch is one of its own.
#[test]
fn every_epoch_has_a_barrier_of_its_own() {
    let mut bench = Bench::training(job(2, 2));
    assert_eq!(told_of_members(&bench.gone(worker(0), 3)), [server(0), server(1)]);
    assert_eq!(told_of_members(&bench.handle(Input::Ready { server: 0, epoch: 2, version: 0 })), []);
    assert_eq!(
        told_of_members(&bench.handle(Input::Ready { server: 1, epoch: 1, version: 0 })),
        [],
        "the epoch before"
    );
    assert_eq!(told_of_members(&bench.handle(Input::Ready { server: 1, epoch: 2, version: 0 })), [worker(1)]);
}

/// Line 9 and invariant 3: a dead server ends the wait, whatever is waited for, with an error that names it.
#[test]
fn a_dead_server_ends_the_wait_by_name() {
    let mut forming = Bench::new(job(1, 2));
    forming.join(server(0));
    forming.join(server(1));
    assert!(failure(&forming.gone(server(1), 2)).contains("server/1 was lost (reset)"));
    assert!(matches!(forming.outcome(), Some(Outcome::ServerLost(_))));
    // Another life of the job may be about to begin: whoever comes late is not misconfigured.
    let late = forming.join(worker(0));
    assert!(
        late.iter().any(|e| matches!(e, Effect::Refuse { refused, .. } if refused.transient)),
        "{late:?}"
    );

    let mut training = Bench::training(job(1, 2));
    let ended = Command::Ended { member: server(0), exit: "killed by signal 9".into() };
    let (effects, _) = training.command(ended);
    assert_eq!(dismissed(&effects), [worker(0)], "workers leave first");
    let effects = training.gone(worker(0), 3);
    assert!(failure(&effects).contains("server/0 was lost (killed by signal 9)"), "{effects:?}");
    assert_eq!(dismissed(&effects), [server(1)]);
}

/// Line 9: when no worker is left, the wait ends with the last one's name.
#[test]
fn the_last_workers_death_ends_the_wait_by_name() {
    let mut bench = Bench::training(job(2, 1));
    assert!(notices(&bench.gone(worker(0), 2)).contains("worker/0"));
    assert!(failure(&bench.gone(worker(1), 3)).contains("worker/1 was lost (reset), and no worker is left"));
    assert!(matches!(bench.outcome(), Some(Outcome::Failed(_))));
}

/// Line 9 and invariant 5: servers leave after every worker has left and after the model is stored.
#[test]
fn servers_leave_last() {
    let mut bench = Bench::training(job(2, 2));
    let effects = bench.complete(&[(0, LEFT), (1, RIGHT)]);
    assert_eq!(dismissed(&effects), [worker(0), worker(1)], "{effects:?}");
    assert_eq!(bench.core.report().phase, Phase::Finishing);
    assert_eq!(bench.gone(worker(1), 4).len(), 1, "one connection is closed and nobody dismissed");
    // The same worker's end, told again by another, is not the other's.
    let ended = Command::Ended { member: worker(1), exit: "0".into() };
    assert_eq!(bench.command(ended), (vec![], Ok("worker/1 counts as lost".into())));
    let effects = bench.gone(worker(0), 3);
    assert_eq!(dismissed(&effects), [server(0), server(1)]);
    assert!(
        matches!(effects.last(), Some(Effect::Over(Outcome::Finished(f))) if f.steps == 1),
        "{effects:?}"
    );
    assert_eq!(bench.core.poll_timeout(), None);
}

/// Line 9: half of the workers' reports are not all of them, however often they come.
#[test]
fn a_step_counts_distinct_shards() {
    let mut bench = Bench::training(job(2, 1));
    let effects = bench.complete(&[(0, LEFT), (0, LEFT), (0, LEFT)]);
    assert!(!effects.iter().any(|e| matches!(e, Effect::Step(_))), "{effects:?}");
    let effects = bench.complete(&[(0, RIGHT)]);
    assert!(effects.is_empty(), "another's shards: {effects:?}");
    assert!(bench.complete(&[(1, RIGHT)]).iter().any(|e| matches!(e, Effect::Step(_))));
}

/// Who may take part: an index of the job, this release, this arithmetic, an address to dial.
#[test]
fn who_does_not_fit_is_turned_away_with_the_reason() {
    let mut bench = Bench::new(job(2, 1));
    assert!(refusal(&bench.join(worker(2))).contains("admits 2"));
    assert!(refusal(&bench.join(server(1))).contains("admits 1"));
    let other = Join { release: "9.9.9\n".into(), ..join_of(worker(0)) };
    let reason = refusal(&bench.join_as(worker(0), other)).to_owned();
    assert!(reason.contains("9.9.9") && reason.contains("1.2.3") && !reason.contains('\n'), "{reason:?}");
    for address in [None, Some(String::new()), Some("x".repeat(301))] {
        let bad = Join { address, ..join_of(server(0)) };
        assert!(refusal(&bench.join_as(server(0), bad)).contains("dial"));
    }
    bench.join(worker(0));
    let mixed = Join { fingerprint: "neon".into(), ..join_of(worker(1)) };
    let reason = refusal(&bench.join_as(worker(1), mixed)).to_owned();
    for part in ["neon", "avx2", "worker/0", "relaxed"] {
        assert!(reason.contains(part), "{part:?} is missing in {reason:?}");
    }
    let mut under_way = Bench::training(job(2, 2));
    assert!(refusal(&under_way.join(server(2))).contains("under way"));
    assert!(refusal(&under_way.join(worker(2))).contains("admits 2"));
    // What passes by itself is worth another start of the same node; the rest is not.
    let passes = |effects: &[Effect<u32>]| {
        effects.iter().any(|e| matches!(e, Effect::Refuse { refused, .. } if refused.transient))
    };
    for member in [worker(0), server(0)] {
        let late = under_way.join(member);
        assert!(refusal(&late).contains("takes part already") && passes(&late), "{late:?}");
    }
    assert!(!passes(&under_way.join(worker(2))) && !passes(&under_way.join(server(2))));
}

/// Line 13: while the job forms, those who are missing are named.
#[test]
fn a_job_that_does_not_form_says_who_is_missing() {
    let mut bench = Bench::new(job(2, 2));
    bench.join(server(0));
    bench.join(worker(1));
    let effects = bench.pass(TIMEOUT * 2, &[(server(0), idle()), (worker(1), idle())]);
    let text = notices(&effects);
    assert!(text.contains("waiting for server/1, worker/0 to join"), "{text}");
    assert_eq!(bench.core.report().stalled.as_deref(), Some("waiting for server/1, worker/0 to join"));
}

/// Line 13: a step that does not end says which worker, which shards, which slice, which server.
#[test]
fn a_stalled_step_says_what_it_waits_for() {
    let mut bench = Bench::training(job(2, 1));
    let slice = crate::placement::SliceId { parameter: 1, index: 3 };
    let waiting = Some(Waiting { slice, step: 0, missing: Some(RIGHT) });
    let waiting = Heartbeat { step: 0, waiting, load: Load::default(), served: None };
    let members = [(server(0), waiting), (worker(0), idle()), (worker(1), idle())];
    let text = notices(&bench.pass(TIMEOUT * 2, &members));
    for part in ["no progress", "worker/1", "shards 2 to 3", "b (slice 3)", "step 0", "server/0"] {
        assert!(text.contains(part), "{part:?} is missing in {text:?}");
    }
    let shown = bench.complete(&[(0, LEFT), (1, RIGHT)]);
    assert!(notices(&shown).contains("training goes on"), "{shown:?}");
    assert_eq!(bench.core.report().stalled, None);
}

/// Line 13: without a server's word, the reports that are missing are named.
#[test]
fn a_stall_without_a_word_names_the_missing_reports() {
    let mut bench = Bench::training(job(2, 1));
    bench.complete(&[(0, LEFT)]);
    let members = [(server(0), idle()), (worker(0), idle()), (worker(1), idle())];
    let text = notices(&bench.pass(TIMEOUT * 2, &members));
    assert!(text.contains("worker/1 (shards 2 to 3) in step 0") && !text.contains("worker/0"), "{text}");
}

/// Line 13: who falls silent for longer than the timeout is lost, by name; a worker's shards move, once.
#[test]
fn who_falls_silent_is_lost_by_name() {
    let mut bench = Bench::training(job(2, 1));
    let effects = bench.pass(TIMEOUT * 2, &[(server(0), idle()), (worker(1), idle())]);
    assert!(
        notices(&effects).contains("worker/0 was lost (no heartbeat for 1000 ms)"),
        "{}",
        notices(&effects)
    );
    let moved = effects.iter().find_map(|e| match e {
        Effect::Send { message: ToMember::Membership(m), .. } => Some(m.leases.clone()),
        _ => None,
    });
    assert!(moved.unwrap().iter().all(|l| l.worker == 1));
    let effects = bench.pass(TIMEOUT * 2, &[(worker(1), idle())]);
    assert_eq!(dismissed(&effects), [worker(1)]);
    assert!(failure(&bench.gone(worker(1), 3)).contains("server/0 was lost (no heartbeat for 1000 ms)"));
}

/// Invariant 3: a loss that is not finite, or a step that was not leased, costs the run the reporter, by name, and ends it where
/// nobody else is left.
#[test]
fn who_reports_what_cannot_be_is_lost_by_name() {
    for (step, loss_sum, part) in [(0, f64::NAN, "not finite"), (50, 1.0, "step 50, which it was not leased")]
    {
        let mut bench = Bench::training(job(2, 1));
        let nodes = vec![NodeLoss { node: LEFT, loss_sum, correct: 0, examples: 2 }];
        let done = NodeDone {
            step,
            nodes,
            times: StepTimes::default(),
            bytes_sent: 0,
            bytes_received: 0,
            pushed: Default::default(),
        };
        let effects = bench.handle(Input::NodeDone { worker: 0, done: done.clone() });
        let fault = |e: &Effect<u32>| matches!(e, Effect::Fault { member, .. } if *member == worker(0));
        assert!(effects.iter().any(fault), "{effects:?}");
        let notice = notices(&effects);
        assert!(notice.contains("worker/0 was lost (it reports") && notice.contains(part), "{notice}");
        assert_eq!(bench.outcome(), None);
        bench.handle(Input::Ready { server: 0, epoch: 2, version: 0 });
        bench.handle(Input::NodeDone { worker: 1, done });
        let effects = bench.gone(worker(1), 3);
        let reason = failure(&effects);
        assert!(reason.contains("worker/1 reports") && reason.contains(part), "{reason}");
    }
}
