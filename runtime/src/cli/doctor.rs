//! `testudo doctor`: what is wrong here, all at once.

use std::path::PathBuf;

use clap::Args;

use crate::doctor::{Report, Severity, examine};
use crate::error::Failure;
use crate::say::say;

/// `testudo doctor`
#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 no problem; 1 there are problems, all of them listed.

Examples:
  testudo doctor
  testudo doctor runs/mnist-20261123T081613Z
  testudo doctor cluster.toml --json")]
pub(crate) struct DoctorArguments {
    /// A cluster's directory, an identity's, a run's, or a cluster file [default: this machine alone]
    pub(crate) path: Option<PathBuf>,
    /// Print one JSON object on the last line of standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// Print what is as it should be, too
    #[arg(long, short)]
    pub(crate) verbose: bool,
}

pub(super) fn doctor(arguments: &DoctorArguments) -> Result<(), Failure> {
    let report = examine(arguments.path.as_deref());
    if arguments.json {
        let line = serde_json::json!({
            "problems": report.count(Severity::Problem),
            "warnings": report.count(Severity::Warning),
            "findings": report.findings,
        });
        say!("{line}");
    } else {
        print(&report, arguments.verbose);
    }
    match report.count(Severity::Problem) {
        0 => Ok(()),
        1 => Err(Failure::failed("1 problem")),
        many => Err(Failure::failed(format!("{many} problems"))),
    }
}

fn print(report: &Report, verbose: bool) {
    for (severity, word) in
        [(Severity::Problem, "problem"), (Severity::Warning, "warning"), (Severity::Good, "good")]
    {
        if severity == Severity::Good && !verbose {
            continue;
        }
        for finding in report.findings.iter().filter(|f| f.severity == severity) {
            say!("{word:<8} {}: {}", finding.place, one_line(&finding.what));
            if !finding.fix.is_empty() {
                say!("         fix: {}", finding.fix);
            }
        }
    }
    let (problems, warnings) = (report.count(Severity::Problem), report.count(Severity::Warning));
    if problems == 0 {
        let good = report.count(Severity::Good);
        say!("no problem found; {warnings} warnings, {good} things as they should be");
    }
}

/// What files say of themselves cannot move a terminal's cursor.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
