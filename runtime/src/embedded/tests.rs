use std::path::Path;
use std::sync::Arc;

use testudo_actors::{DataSpec, Dataset};
use testudo_kernels::{Aggregation, ModelSpec};

use super::builder::DEFAULTS;
use super::reports::{Board, KEPT};
use super::*;
use crate::config::Config;

/// One number, which says the class.
struct Sign(usize);

impl Dataset for Sign {
    fn len(&self) -> usize {
        self.0
    }

    fn input_elements(&self) -> usize {
        1
    }

    fn fill(&self, index: usize, input: &mut [f32], labels: &mut [u32]) {
        input.fill(if index.is_multiple_of(2) { 1.0 } else { -1.0 });
        labels.fill((index % 2) as u32);
    }
}

fn small() -> JobBuilder {
    let model = ModelSpec::Mlp { inputs: 1, hidden: vec![], classes: 2 };
    Job::builder().model(model).data(Sign(32), Sign(8)).batch_size(8).logical_shards(2)
}

/// What a builder begins with is what a cluster file has that says nothing.
#[test]
fn defaults_are_those_of_the_cluster_file() {
    let text = DEFAULTS.replace("inputs = 1", "inputs = 1\nhidden = []");
    let config = Config::parse::<&str>(&text, Path::new("a.toml"), &["optimizer.kind=adamw"]).unwrap();
    let built = small().optimizer("adamw").spec().unwrap();
    assert_eq!(built.heartbeat_timeout_ms, 60_000, "nodes of one process stand still together");
    let data = DataSpec { train_examples: 32, test_examples: 8, blake3: built.data.blake3 };
    let mut stated = crate::job::spec(&config, data);
    assert_eq!(built.optimizer, stated.optimizer);
    assert_eq!(built.learning_rate, stated.learning_rate);
    (stated.batch_size, stated.logical_shards) = (8, 2);
    (stated.export, stated.checkpoints, stated.audit) = (built.export, built.checkpoints, built.audit);
    stated.elastic = built.elastic;
    assert_eq!(built, stated);
}

#[test]
fn what_is_wrong_is_said_the_first_thing_first() {
    let said = |builder: JobBuilder| builder.spec().unwrap_err().to_string();
    assert!(said(Job::builder()).contains("has no model"));
    let model = || ModelSpec::Mlp { inputs: 1, hidden: vec![], classes: 2 };
    assert!(said(Job::builder().model(model())).contains("has no data"));
    assert!(said(small().optimizer("adamm")).contains("adamm"));
    assert!(said(small().workers(3)).contains("training.logical_shards"));
    assert!(
        said(small().aggregation(Aggregation::Median { hostile: 2 }).workers(4).logical_shards(4))
            .contains("outvote")
    );
    let owners =
        small().workers(2).data_of(|worker| (Arc::new(Sign(4 + worker as usize)), Arc::new(Sign(8))));
    assert!(said(owners).contains("worker 1 has (5, 8)"));
    let unnamed = small().own_model("mine", move |setup| model().build(setup.max_examples));
    assert!(said(unnamed).contains("name@version"));
}

/// Data are known by their content.
#[test]
fn a_hash_of_data_is_of_every_number_and_label() {
    struct Changed(usize);
    impl Dataset for Changed {
        fn len(&self) -> usize {
            8
        }
        fn input_elements(&self) -> usize {
            1
        }
        fn fill(&self, index: usize, input: &mut [f32], labels: &mut [u32]) {
            Sign(8).fill(index, input, labels);
            match self.0 {
                1 if index == 7 => input.fill(0.5),
                2 if index == 7 => labels.fill(0),
                _ => {}
            }
        }
    }
    let [same, number, label] = [0, 1, 2].map(|change| Changed(change).blake3());
    assert_eq!(same, Sign(8).blake3());
    assert_ne!(same, number);
    assert_ne!(same, label);
    assert_ne!(same, Sign(9).blake3());
}

/// Invariant 4.
#[test]
fn reports_that_nobody_takes_are_counted() {
    let board = Board::default();
    for step in 0..KEPT as u64 + 5 {
        board.put(Report::Missed(step));
    }
    board.end();
    let mut reports = Reports(board);
    assert_eq!(reports.next(), Some(Report::Missed(5)));
    assert_eq!(reports.next(), Some(Report::Missed(5)), "the oldest that is left");
    assert_eq!(reports.count(), KEPT - 1);
}

/// Invariant 3: a run of a million steps, of which nobody waits for the end.
#[test]
fn a_job_that_is_dropped_is_stopped() {
    let running = small().epochs(1 << 20).start().unwrap();
    let first = running.reports().next().unwrap();
    // Whoever comes late has missed the first ones.
    let is_first = matches!(first, Report::Step(ref step) if step.step == 0);
    assert!(is_first || matches!(first, Report::Missed(_)), "{first:?}");
    assert!(!running.is_over());
    let reports = running.reports();
    drop(running);
    // The board is ended by the scheduler's thread: this ends.
    assert!(reports.count() <= KEPT + 1);
}

/// A second one of a name would have the first one's mail.
#[test]
fn an_actors_name_is_given_once() {
    use testudo_actors::own::{Actor, OwnActor, StoppedActor};
    struct Idle;
    impl Actor for Idle {}
    let running = small().epochs(1 << 20).start().unwrap();
    let actors = running.actors();
    let first = actors.start("one", OwnActor::new(|| Idle)).unwrap();
    let taken =
        |found: Option<EmbeddedError>| matches!(found, Some(EmbeddedError::NameTaken(name)) if name == "one");
    assert!(taken(actors.start("one", OwnActor::new(|| Idle)).err()));
    assert!(taken(actors.caller("one").err()));
    let reserved = actors.caller("audit").err();
    assert!(matches!(reserved, Some(EmbeddedError::Actor(StoppedActor::Identity(_)))), "{reserved:?}");
    assert!(actors.caller("two").is_ok() && actors.caller("No Name").is_err());
    first.stop().unwrap();
}

#[tokio::test]
async fn a_job_may_be_run_from_within_another_runtime() {
    let running = small().epochs(1 << 20).start().unwrap();
    assert!(running.stop().unwrap().contains("stop"));
    // Stopped before training began, or after some steps.
    match running.wait() {
        Ok(trained) => assert!(trained.finished.stopped_early),
        Err(error) => assert!(error.to_string().contains("stopped before training began"), "{error}"),
    }
}
