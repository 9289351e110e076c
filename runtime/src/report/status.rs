//! What `testudo status` shows: a table for people, JSON for programs.
//!
//! Texts in it come from peers: nothing of them can move a terminal's cursor.

use std::fmt::Write as _;

use serde_json::{Value, json};
use testudo_actors::message::{Load, NodeStatus, Outcome, Phase, Refused, StatusReport};

use super::human;

/// The phase in one word, an operator's decisions included.
#[must_use]
pub fn state(report: &StatusReport) -> &'static str {
    match (report.phase, &report.outcome) {
        (_, Some(Outcome::Finished(_))) => "finished",
        (_, Some(Outcome::Failed(_) | Outcome::ServerLost(_))) => "failed",
        (Phase::Forming | Phase::Training, None) if report.paused => "paused",
        (Phase::Training, None) if report.stopping => "stopping",
        (Phase::Forming, None) => "forming",
        (Phase::Training, None) => "training",
        (Phase::Finishing | Phase::Over, None) => "finishing",
    }
}

/// The report as a table, lines ended by line feeds.
#[must_use]
pub fn table(job: &str, report: &StatusReport) -> String {
    let mut text = String::new();
    let loss = report.loss.map_or_else(|| "-".into(), human::loss);
    let _ = writeln!(
        text,
        "{}: {}, step {} of {}, epoch {} of {}, loss {loss}, {} samples/s",
        plain(job),
        state(report),
        human::count(report.steps_done),
        human::count(report.steps),
        report.epoch + 1,
        report.epochs,
        human::rate(report.samples_per_second),
    );
    let _ = writeln!(
        text,
        "membership epoch {}, steps below {} may begin, {} lost, {} connected\n",
        report.membership_epoch,
        human::count(report.until),
        many(u64::from(report.workers_lost), "worker"),
        many(u64::from(report.operators), "operator"),
    );
    if let Some(found) = &report.evaluated {
        let _ = writeln!(
            text,
            "evaluated after step {}: test loss {}, accuracy {}\n",
            human::count(found.step),
            human::loss(found.loss),
            human::percent(found.accuracy),
        );
    }
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.push(row("scheduler/0", "-", "-", "-", "-", "", &report.load));
    rows.extend(report.nodes.iter().map(node));
    columns(&mut text, &rows);
    let refused = total(report);
    let seen: Vec<String> = refused
        .reasons()
        .into_iter()
        .chain([("joins", report.joins_refused)])
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| format!("{reason} {}", human::count(count)))
        .collect();
    let _ = match seen.is_empty() {
        true => writeln!(text, "\nrefused: nothing"),
        false => writeln!(text, "\nrefused: {}", seen.join(", ")),
    };
    if let Some(stalled) = &report.stalled {
        let _ = writeln!(text, "stalled: {}", plain(stalled));
    }
    if let Some(Outcome::Failed(reason) | Outcome::ServerLost(reason)) = &report.outcome {
        let _ = writeln!(text, "failed: {}", plain(reason));
    }
    text
}

const HEADINGS: [&str; 8] =
    ["node", "incarnation", "heard", "step", "shards", "held/promised/budget", "refused", "waits for"];

fn node(node: &NodeStatus) -> [String; 8] {
    let heard = format!("{} ms ago", human::count(node.heard_ms));
    row(
        &node.member.to_string(),
        &node.incarnation.to_string(),
        &heard,
        &human::count(node.step),
        &match node.shards {
            0 => "-".to_owned(),
            shards => shards.to_string(),
        },
        node.waiting.as_deref().unwrap_or_default(),
        &node.load,
    )
}

fn row(
    name: &str,
    incarnation: &str,
    heard: &str,
    step: &str,
    shards: &str,
    waits: &str,
    load: &Load,
) -> [String; 8] {
    let bytes = [load.held_bytes, load.promised_bytes, load.budget_bytes].map(human::bytes).join(" / ");
    let refused = load.refused.reasons().into_iter().fold(0, |sum: u64, (_, n)| sum.saturating_add(n));
    [name, incarnation, heard, step, shards, &bytes, &human::count(refused), waits].map(plain)
}

fn columns(text: &mut String, rows: &[[String; 8]]) {
    let mut widths = [0; 8];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "  {cell}{}", " ".repeat(width - cell.chars().count()));
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

/// What all nodes refused, as far as the scheduler has heard.
pub(super) fn total(report: &StatusReport) -> Refused {
    let loads = report.nodes.iter().map(|n| n.load.refused);
    loads.fold(report.load.refused, |sum, more| Refused {
        datagrams: sum.datagrams.saturating_add(more.datagrams),
        knocks: sum.knocks.saturating_add(more.knocks),
        handshakes: sum.handshakes.saturating_add(more.handshakes),
        strangers: sum.strangers.saturating_add(more.strangers),
        full: sum.full.saturating_add(more.full),
        faults: sum.faults.saturating_add(more.faults),
        shut_out: sum.shut_out.saturating_add(more.shut_out),
    })
}

fn many(count: u64, what: &str) -> String {
    format!("{} {what}{}", human::count(count), if count == 1 { "" } else { "s" })
}

/// What a terminal shows as it stands: without control characters, and without those that have no width or turn the direction of
/// writing.
pub(super) fn plain(text: &str) -> String {
    let shows = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            && !matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    text.chars().map(|c| if shows(c) { c } else { ' ' }).collect()
}

/// The report as one JSON object.
#[must_use]
pub fn json(job: &str, report: &StatusReport) -> Value {
    let nodes: Vec<Value> = report
        .nodes
        .iter()
        .map(|node| {
            json!({
                "node": node.member.to_string(),
                "incarnation": node.incarnation,
                "heard_ms": node.heard_ms,
                "step": node.step,
                "shards": node.shards,
                "waiting": node.waiting,
                "load": load(&node.load),
            })
        })
        .collect();
    json!({
        "job": job,
        "state": state(report),
        "step": report.steps_done,
        "steps": report.steps,
        "epoch": report.epoch + 1,
        "epochs": report.epochs,
        "loss": report.loss,
        "evaluated": report.evaluated.map(|found| json!({
            "step": found.step,
            "test_loss": found.loss,
            "test_accuracy": found.accuracy,
        })),
        "samples_per_second": report.samples_per_second,
        "paused": report.paused,
        "stopping": report.stopping,
        "stalled": report.stalled,
        "membership_epoch": report.membership_epoch,
        "until": report.until,
        "workers_lost": report.workers_lost,
        "workers_wanted": report.workers_wanted,
        "joins_refused": report.joins_refused,
        "operators": report.operators,
        "load": load(&report.load),
        "nodes": nodes,
        "failed": match &report.outcome {
            Some(Outcome::Failed(reason) | Outcome::ServerLost(reason)) => Some(reason),
            _ => None,
        },
    })
}

fn load(load: &Load) -> Value {
    let refused: serde_json::Map<String, Value> =
        load.refused.reasons().into_iter().map(|(reason, n)| (reason.replace(' ', "_"), n.into())).collect();
    json!({
        "held_bytes": load.held_bytes,
        "promised_bytes": load.promised_bytes,
        "budget_bytes": load.budget_bytes,
        "connections": load.connections,
        "pushes": load.pushes,
        "pulls": load.pulls,
        "refused": refused,
        "busy_us": load.busy_us,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use testudo_actors::message::{Evaluated, Member, MemberRole};

    use super::*;

    pub(in crate::report) fn report() -> StatusReport {
        let load = Load {
            held_bytes: 2048,
            refused: Refused { strangers: 3, ..Refused::default() },
            ..Load::default()
        };
        let node = NodeStatus {
            member: Member { role: MemberRole::Worker, index: 1 },
            incarnation: 2,
            heard_ms: 1_200,
            step: 7,
            shards: 4,
            waiting: Some("fc1\u{1b}[2J after step 7".into()),
            load,
        };
        StatusReport {
            phase: Phase::Training,
            steps_done: 1_234,
            steps: 9_380,
            epoch: 1,
            epochs: 10,
            loss: Some(0.25),
            evaluated: Some(Evaluated { step: 1_200, loss: 0.3, accuracy: 0.91 }),
            samples_per_second: 8_640.0,
            stalled: None,
            paused: false,
            stopping: false,
            membership_epoch: 3,
            until: 1_238,
            workers_lost: 1,
            workers_wanted: 2,
            joins_refused: 0,
            operators: 2,
            load: Load::default(),
            nodes: vec![node],
            timeline: None,
            outcome: None,
        }
    }

    #[test]
    fn a_table_says_what_is_known_and_moves_no_cursor() {
        let text = table("mnist", &report());
        for part in [
            "mnist: training, step 1,234 of 9,380, epoch 2 of 10, loss 0.25",
            "evaluated after step 1,200: test loss 0.3000, accuracy 91.00 %",
            "8,640 samples/s",
            "epoch 3, steps below 1,238 may begin, 1 worker lost, 2 operators connected",
            "worker/1",
            "1,200 ms ago",
            "2.00 KiB",
            "refused: strangers 3",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn a_decision_of_an_operator_is_the_state() {
        assert_eq!(state(&StatusReport { paused: true, ..report() }), "paused");
        assert_eq!(state(&StatusReport { stopping: true, ..report() }), "stopping");
        let failed = StatusReport { outcome: Some(Outcome::Failed("gone".into())), paused: true, ..report() };
        assert_eq!(state(&failed), "failed");
        assert!(table("mnist", &failed).contains("failed: gone"));
        assert_eq!(json("mnist", &failed)["failed"], "gone");
        assert_eq!(json("mnist", &report())["nodes"][0]["load"]["refused"]["strangers"], 3);
    }
}
