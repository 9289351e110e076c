//! `testudo replay`: is a step of a run what the job makes it?

use std::io::{IsTerminal as _, Stderr};
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde_json::json;
use testudo_actors::plan::Plan;
use testudo_actors::replay::ReplayedStep;

use crate::error::Failure;
use crate::replay::{self as checking, Check, Report, Request, Watcher};
use crate::report::progress::{Progress, Status, Style};
use crate::say::say;

/// `testudo replay`
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 confirmed, every record of the step agrees; 1 refuted, or a record of it was altered; 2 it cannot be \
said, and what is missing is named.

Examples:
  testudo replay runs/mnist-20261123T081613Z --step 200
  testudo replay runs/mnist-20261123T081613Z --step 200 --from-seed --json"
)]
pub(crate) struct ReplayArguments {
    /// The run directory; nothing in it is changed
    run_dir: PathBuf,
    /// The step: the parameters after so many steps
    #[arg(long, value_name = "N")]
    step: u64,
    /// Begin at the job's seed, and believe no checkpoint
    #[arg(long)]
    from_seed: bool,
    /// The age identity that opens checkpoints [default: the run's own key]
    #[arg(long, value_name = "FILE")]
    identity_file: Option<PathBuf>,
    /// Trust the CAs in this PEM file instead of those that the run directory lists
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The folder of the training data [default: data.path of the cluster file]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print no progress
    #[arg(long)]
    quiet: bool,
    /// Print one JSON object on the last line of standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn replay(arguments: &ReplayArguments) -> Result<(), Failure> {
    let request = Request {
        step: arguments.step,
        identity_file: arguments.identity_file.clone(),
        ca: arguments.ca.clone(),
        data: arguments.data.clone(),
        from_seed: arguments.from_seed,
    };
    let style =
        Style::choose(arguments.quiet, std::io::stderr().is_terminal(), |name| std::env::var(name).ok());
    let mut display = Display {
        progress: Progress::new(std::io::stderr(), style),
        begun: Instant::now(),
        examples: 0,
        believed: arguments.ca.is_none(),
    };
    let found = checking::replay(&arguments.run_dir, &request, &mut display);
    display.progress.finish();
    let report = found.map_err(|unknown| {
        if arguments.json {
            say!(
                "{}",
                json!({ "step": arguments.step, "verdict": "unknown", "missing": unknown.to_string() })
            );
        }
        Failure::misconfigured(format!(
            "it cannot be said whether step {} is right: {unknown}",
            arguments.step
        ))
    })?;
    if arguments.json {
        let verdict = if report.confirmed { "confirmed" } else { "refuted" };
        let Report { step, from, steps_taken, params_blake3, checks, .. } = &report;
        let object = json!({
            "step": step, "verdict": verdict, "from": from, "steps_taken": steps_taken,
            "params_blake3": params_blake3, "checks": checks,
        });
        say!("{object}");
    }
    if !report.confirmed {
        return Err(Failure::failed(refusal(&report)));
    }
    if !arguments.json {
        say!("step {} is confirmed: {}", report.step, report.params_blake3);
        say!("  computed again from {} ({})", report.from, steps(report.steps_taken));
        for check in &report.checks {
            say!("  as recorded in: {}", check.record);
        }
    }
    Ok(())
}

fn steps(count: u64) -> String {
    format!("{count} step{}", if count == 1 { "" } else { "s" })
}

/// What is wrong, record by record.
fn refusal(report: &Report) -> String {
    let mut lines = vec![format!(
        "step {} is refuted: computed again from {} ({}) it is {}",
        report.step,
        report.from,
        steps(report.steps_taken),
        report.params_blake3
    )];
    for Check { record, params_blake3, agrees, problem, differences } in &report.checks {
        lines.push(match (agrees, problem, params_blake3) {
            (true, ..) => format!("  {record}: agrees"),
            (false, Some(problem), _) => format!("  {record}: it does not hold: {problem}"),
            (false, None, Some(hash)) if *hash != report.params_blake3 => {
                format!("  {record}: it has {hash}")
            }
            (false, None, _) => format!("  {record}: the parameters agree, the optimizer's state does not"),
        });
        lines.extend(differences.iter().map(|difference| format!("    {difference}")));
    }
    lines.join("\n")
}

/// Shows how far it is.
struct Display {
    progress: Progress<Stderr>,
    begun: Instant,
    examples: u64,
    /// Whether the run directory's own list of CAs is believed, which is still to be said.
    believed: bool,
}

impl Watcher for Display {
    fn notice(&mut self, text: &str) {
        self.progress.note(text);
    }

    fn step(&mut self, taken: &ReplayedStep, plan: &Plan, first: u64, last: u64) {
        if std::mem::take(&mut self.believed) {
            self.progress.note("the CAs that the run directory lists are believed; --ca names others");
        }
        self.examples += taken.examples;
        let elapsed = self.begun.elapsed().as_secs_f64();
        let epoch = |step: u64| plan.step(step).epoch + 1;
        self.progress.update(&Status {
            step: taken.step + 1 - first,
            total_steps: last - first,
            epoch: epoch(taken.step),
            epochs: epoch(last.saturating_sub(1)),
            loss: taken.loss,
            bytes: false,
            test_accuracy: None,
            samples_per_second: if elapsed > 0.0 { self.examples as f64 / elapsed } else { 0.0 },
            elapsed_seconds: elapsed,
        });
    }
}
