//! What a run leaves behind in numbers is what `docs/metrics.md` says: every field stands there, and no other does.

use std::collections::BTreeSet;

use serde::Serialize;

use super::metrics::{EvaluationRecord, StepRecord};
use super::summary::tests::summary;

/// The fields in the table of the page's section `heading`.
fn documented(heading: &str) -> BTreeSet<String> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let page = std::fs::read_to_string(page).unwrap();
    let section = page.split("\n## ").find(|section| section.lines().next() == Some(heading)).unwrap();
    let first_cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
    first_cells.flat_map(|cell| cell.trim_end_matches('`').split("`, `")).map(str::to_owned).collect()
}

fn fields(record: &impl Serialize) -> BTreeSet<String> {
    let value = serde_json::to_value(record).unwrap();
    value.as_object().unwrap().keys().cloned().collect()
}

#[test]
fn every_field_of_a_step_stands_in_the_reference_and_no_other() {
    let step = StepRecord {
        step: 1,
        epoch: 1,
        loss: 1.0,
        learning_rate: 1.0,
        samples_per_second: 1.0,
        bytes_sent: 1,
        bytes_received: 1,
        compute_ms: 1.0,
        send_ms: 1.0,
        wait_ms: 1.0,
        elapsed_seconds: 1.0,
        // Left out where it is 0.
        push_error: 0.5,
    };
    assert_eq!(documented("`metrics.jsonl`"), fields(&step));
}

#[test]
fn every_field_of_an_evaluation_stands_in_the_reference_and_no_other() {
    let evaluation = EvaluationRecord { step: 1, test_loss: 1.0, test_accuracy: 0.5 };
    assert_eq!(documented("`evaluations.jsonl`"), fields(&evaluation));
}

#[test]
fn every_field_of_the_summary_stands_in_the_reference_and_no_other() {
    assert_eq!(documented("`summary.json` and `--json`"), fields(&summary()));
}
