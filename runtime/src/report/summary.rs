//! The result of a run: a table for people, JSON for programs.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use testudo_actors::JobSpec;
use testudo_actors::message::Finished;
use testudo_kernels::{Codec, Precision};

use super::human;
use super::metrics::number;
use crate::checkpoint::storage::{Disk, replace};
use crate::config::{Config, MatrixProducts, Placement};
use crate::job;
use crate::signing::hex;

/// The result of a run, as `summary.json` and the last line of `testudo run --json` hold it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The job's name.
    pub job: String,
    /// Share of the test set's targets that the final model puts into their own class, 0 to 1; `null` where it was not
    /// measured.
    pub test_accuracy: Option<f64>,
    /// Mean loss over the test set's targets, in nats; `null` where it was not measured.
    #[serde(default)]
    pub test_loss: Option<f64>,
    /// The same in bits for each byte of the text that was held out; `null` for data that is no text.
    #[serde(default)]
    pub bits_per_byte: Option<f64>,
    /// Mean training loss of the last step, over its targets, in nats.
    #[serde(with = "number")]
    pub final_loss: f64,
    /// Steps that were taken.
    pub steps: u64,
    /// Epochs that were begun.
    pub epochs: u64,
    /// Whether the run ended before its planned steps.
    pub stopped_early: bool,
    /// Training examples a second, over all steps.
    #[serde(with = "number")]
    pub samples_per_second: f64,
    /// Seconds from the command's start to its end.
    #[serde(with = "number")]
    pub wall_seconds: f64,
    /// Bytes that all workers sent, frames included.
    pub bytes_sent: u64,
    /// Bytes that all workers received, frames included.
    pub bytes_received: u64,
    /// Workers that took part.
    pub workers: u32,
    /// Servers that took part.
    pub servers: u32,
    /// Who shared a process.
    #[serde(default)]
    pub placement: Placement,
    /// What workers computed in.
    #[serde(default)]
    pub precision: Precision,
    /// How workers multiplied matrices.
    #[serde(default)]
    pub products: MatrixProducts,
    /// How gradients and parameters travelled.
    #[serde(flatten, default)]
    pub codecs: CodecSummary,
    /// BLAKE3 over the final parameters, in hex: equal for equal bits.
    pub params_blake3: String,
    /// The step of the newest training checkpoint, from which the run can be resumed; `null` if there is none.
    pub checkpoint_step: Option<u64>,
    /// The step that the run was resumed from; `null` if it began at its seed.
    pub resumed_from_step: Option<u64>,
    /// The public key that the exported model is signed with, by the hex SHA-256 of its PEM; `null` where none was
    /// exported.
    pub model_key: Option<String>,
    /// The head of the audit log, in hex: whoever notes it sees whether the log is cut or changed later; `null` where the log
    /// could not be written or does not hold.
    pub audit_head: Option<String>,
    /// The run directory, absolute.
    pub run_dir: PathBuf,
}

/// How values travelled, what that saved and what it cost. Part of the summary's own object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CodecSummary {
    /// The codec of gradients.
    pub push_codec: String,
    /// The codec of parameters.
    pub pull_codec: String,
    /// Bytes of all slices in the push codec over their bytes as f32.
    pub push_ratio: f64,
    /// The same in the pull codec.
    pub pull_ratio: f64,
    /// What was lost of gradients, relative to them (root mean square, over a sample of every slice and step).
    pub push_error: f64,
    /// What workers did not know of the final parameters, relative to them.
    pub pull_error: f64,
    /// Logical shards whose residuals were lost with their workers: the run's bits are then its own.
    pub residuals_lost: u32,
}

impl Default for CodecSummary {
    fn default() -> Self {
        CodecSummary {
            push_codec: Codec::F32.name().into(),
            pull_codec: Codec::F32.name().into(),
            push_ratio: 1.0,
            pull_ratio: 1.0,
            push_error: 0.0,
            pull_error: 0.0,
            residuals_lost: 0,
        }
    }
}

impl CodecSummary {
    /// Of a run of `job`.
    #[must_use]
    pub fn new(job: &JobSpec, finished: &Finished) -> CodecSummary {
        let (push_ratio, pull_ratio) = job::codec_ratios(job);
        CodecSummary {
            push_codec: job.codecs.push.name().into(),
            pull_codec: job.codecs.pull.name().into(),
            push_ratio,
            pull_ratio,
            push_error: finished.push_error,
            pull_error: finished.pull_error,
            residuals_lost: finished.residuals_lost,
        }
    }

    fn rows(&self) -> impl Iterator<Item = (&'static str, String)> {
        let row = |name, codec: &str, ratio: f64, error: f64| {
            let text = format!("{codec}, {} of f32, error {}", human::percent(ratio), human::percent(error));
            (codec != Codec::F32.name()).then_some((name, text))
        };
        let lost = (self.residuals_lost > 0).then(|| {
            ("residuals", format!("lost of {}", counted(self.residuals_lost.into(), "logical shard")))
        });
        [
            row("gradients", &self.push_codec, self.push_ratio, self.push_error),
            row("parameters as", &self.pull_codec, self.pull_ratio, self.pull_error),
            lost,
        ]
        .into_iter()
        .flatten()
    }
}

impl Summary {
    /// Of a run of `job` that ended in order, and took so many seconds; whose model nobody has signed yet.
    #[must_use]
    pub fn of(
        config: &Config,
        job: &JobSpec,
        run_dir: &Path,
        finished: &Finished,
        wall_seconds: f64,
        audit_head: Option<String>,
    ) -> Summary {
        let speed = match finished.training_seconds {
            seconds if seconds > 0.0 => finished.samples as f64 / seconds,
            _ => 0.0,
        };
        let finite = |number: f64| Some(number).filter(|number| number.is_finite());
        Summary {
            job: job.name.clone(),
            test_accuracy: Some(finished.test_accuracy),
            test_loss: finite(finished.test_loss),
            bits_per_byte: config.data.bits_per_byte(finished.test_loss).and_then(finite),
            final_loss: finished.final_loss,
            steps: finished.steps,
            epochs: job.epochs,
            stopped_early: finished.stopped_early,
            samples_per_second: speed,
            wall_seconds,
            bytes_sent: finished.bytes_sent,
            bytes_received: finished.bytes_received,
            workers: job.workers,
            servers: job.servers,
            placement: config.cluster.placement,
            products: config.workers.products,
            precision: job.precision,
            codecs: CodecSummary::new(job, finished),
            params_blake3: hex(&finished.params_blake3),
            checkpoint_step: finished.checkpoint,
            resumed_from_step: job.resume.map(|resume| resume.step),
            model_key: None,
            audit_head,
            run_dir: run_dir.to_owned(),
        }
    }

    /// One line of JSON, without a line feed.
    ///
    /// # Errors
    /// A run directory whose path is not UTF-8.
    pub fn to_json_line(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// Writes `summary.json`: the same object over several lines. It appears whole or not at all.
    ///
    /// # Errors
    /// The operating system's refusal, or a path that is not UTF-8.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        replace(&Disk, path, self.text()?.as_bytes())
    }

    /// Writes the same to a file that is open, and empty.
    ///
    /// # Errors
    /// As [`write`](Summary::write).
    pub fn write_to(&self, file: &mut impl io::Write) -> io::Result<()> {
        file.write_all(self.text()?.as_bytes())
    }

    fn text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    /// A table for a terminal: names to the left, values to the right of them.
    pub fn table(&self, color: bool) -> String {
        let (bold, dim, plain) = if color { ("\x1b[1m", "\x1b[2m", "\x1b[0m") } else { ("", "", "") };
        let rows = self.rows();
        let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let mut table = String::new();
        for (index, (name, value)) in rows.iter().enumerate() {
            let padding = " ".repeat(width - name.chars().count());
            let emphasis = if index == 0 { bold } else { "" };
            let end = if emphasis.is_empty() { "" } else { plain };
            let _ = writeln!(table, "  {dim}{name}{plain}{padding}  {emphasis}{value}{end}");
        }
        table
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let early = if self.stopped_early { ", stopped early" } else { "" };
        let resumed = self
            .resumed_from_step
            .map_or(String::new(), |step| format!(", resumed from step {}", human::count(step)));
        let steps =
            format!("{} in {}{early}{resumed}", human::count(self.steps), counted(self.epochs, "epoch"));
        let nodes = match self.placement {
            Placement::Dedicated => {
                format!(
                    "{}, {}",
                    counted(self.workers.into(), "worker"),
                    counted(self.servers.into(), "server")
                )
            }
            Placement::Colocated => {
                format!("{}, each a worker and a server", counted(self.workers.into(), "peer"))
            }
        };
        let nodes = match self.products {
            MatrixProducts::Exact => nodes,
            products => format!("{nodes}; matrix products in {} by cuBLAS", products.word()),
        };
        let bits =
            self.bits_per_byte.map(|bits| ("bits per byte", format!("{bits:.3} of the text held out")));
        let mut rows = Vec::from_iter(bits);
        rows.extend([
            ("test accuracy", self.test_accuracy.map_or("not measured".into(), human::percent)),
            ("final loss", human::loss(self.final_loss)),
            ("steps", steps),
            ("speed", format!("{} samples/s", human::rate(self.samples_per_second))),
            ("wall time", human::seconds(self.wall_seconds)),
            ("sent", human::bytes(self.bytes_sent)),
            ("received", human::bytes(self.bytes_received)),
            ("nodes", nodes),
            ("parameters", format!("blake3 {}", self.params_blake3)),
            (
                "signed by",
                self.model_key.as_ref().map_or("nothing exported".into(), |key| format!("key {key}")),
            ),
            (
                "audit log",
                self.audit_head.as_ref().map_or("does not hold".into(), |head| format!("head {head}")),
            ),
            ("run directory", self.run_dir.display().to_string()),
        ]);
        let nodes = rows.iter().position(|(name, _)| *name == "nodes").unwrap_or(rows.len());
        let precision = (self.precision != Precision::default())
            .then(|| ("precision", format!("{}, f32 parameters", self.precision.name())));
        rows.splice(nodes..nodes, precision.into_iter().chain(self.codecs.rows()));
        rows
    }
}

fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", human::count(number), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn summary() -> Summary {
        Summary {
            precision: Precision::F32,
            codecs: CodecSummary::default(),
            job: "mnist".into(),
            test_accuracy: Some(0.98123),
            test_loss: Some(0.0721),
            bits_per_byte: None,
            final_loss: 0.012345,
            steps: 4690,
            epochs: 10,
            stopped_early: false,
            samples_per_second: 15_890.4,
            wall_seconds: 42.25,
            bytes_sent: 12_563_687_014,
            bytes_received: 12_563_700_000,
            workers: 2,
            servers: 1,
            placement: Placement::Dedicated,
            products: MatrixProducts::Exact,
            params_blake3: "ab".repeat(32),
            checkpoint_step: Some(4690),
            resumed_from_step: None,
            model_key: Some("cd".repeat(32)),
            audit_head: Some("ef".repeat(32)),
            run_dir: "/runs/mnist-1".into(),
        }
    }

    #[test]
    fn the_table_is_aligned_and_human() {
        let table = summary().table(false);
        let expected = "  test accuracy  98.12 %
  final loss     0.0123
  steps          4,690 in 10 epochs
  speed          15,890 samples/s
  wall time      42.2 s
  sent           11.7 GiB
  received       11.7 GiB
  nodes          2 workers, 1 server
  parameters     blake3 abababababababababababababababababababababababababababababababab
  signed by      key cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd
  audit log      head efefefefefefefefefefefefefefefefefefefefefefefefefefefefefefefef
  run directory  /runs/mnist-1
";
        assert_eq!(table, expected);
        let early = Summary { stopped_early: true, epochs: 1, test_accuracy: None, ..summary() }.table(false);
        assert!(early.contains("4,690 in 1 epoch, stopped early\n"), "{early}");
        let resumed = Summary { resumed_from_step: Some(1200), ..summary() }.table(false);
        assert!(resumed.contains("4,690 in 10 epochs, resumed from step 1,200\n"), "{resumed}");
        assert!(early.contains("not measured"), "{early}");
        let text = Summary { bits_per_byte: Some(2.34567), ..summary() }.table(false);
        assert!(
            text.starts_with("  bits per byte  2.346 of the text held out\n  test accuracy  98.12 %\n"),
            "{text}"
        );
        assert!(!table.contains("gradients") && !table.contains("precision"), "{table}");
        let mixed = Summary { precision: Precision::Bf16, ..summary() }.table(false);
        assert!(mixed.contains("precision      bf16, f32 parameters\n"), "{mixed}");
        let codecs = CodecSummary {
            push_codec: "int8".into(),
            push_ratio: 0.2539,
            push_error: 0.0071,
            residuals_lost: 2,
            ..CodecSummary::default()
        };
        let lossy = Summary { codecs, ..summary() }.table(false);
        assert!(lossy.contains("gradients      int8, 25.39 % of f32, error 0.71 %\n"), "{lossy}");
        assert!(lossy.contains("residuals      lost of 2 logical shards\n"), "{lossy}");
    }

    #[test]
    fn color_changes_nothing_but_color() {
        let mut colored = summary().table(true);
        assert!(colored.contains("\x1b[1m98.12 %\x1b[0m"));
        for code in ["\x1b[0m", "\x1b[1m", "\x1b[2m"] {
            colored = colored.replace(code, "");
        }
        assert_eq!(colored, summary().table(false));
    }

    #[test]
    fn json_holds_every_field_and_round_trips() {
        let line = summary().to_json_line().unwrap();
        assert!(!line.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        for field in [
            "test_accuracy",
            "test_loss",
            "final_loss",
            "steps",
            "samples_per_second",
            "params_blake3",
            "model_key",
            "audit_head",
            "wall_seconds",
            "bytes_sent",
            "bytes_received",
            "workers",
            "servers",
            "job",
            "run_dir",
            "stopped_early",
            "precision",
        ] {
            assert!(value.get(field).is_some_and(|found| !found.is_null()), "{field}");
        }
        assert_eq!(serde_json::from_str::<Summary>(&line).unwrap(), summary());

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("summary.json");
        summary().write(&path).unwrap();
        let written = std::fs::read_to_string(&path).unwrap();
        assert_eq!(serde_json::from_str::<Summary>(&written).unwrap(), summary());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
        let diverged = Summary { final_loss: f64::NAN, ..summary() }.to_json_line().unwrap();
        assert!(diverged.contains("\"final_loss\":null"));
    }
}
