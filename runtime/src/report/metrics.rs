//! `metrics.jsonl`: one JSON object a step, and `evaluations.jsonl`: one an evaluation, each in the order of the steps.
//!
//! Invariants:
//! 1. Each record is one line, written by one call and at once: whoever follows the file sees whole lines,
//!    and a killed run has all steps it reported. What a full disk does not take is held, and follows once there is room.
//! 2. A number that JSON cannot hold (NaN, infinity: a loss that diverged) is written as `null` and read
//!    back as NaN.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use testudo_actors::scheduler::StepSummary;

use crate::appender::Appender;
use crate::checkpoint::storage::{Disk, replace};
use crate::process::handover;

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The step, from 1.
    pub step: u64,
    /// The epoch the step belongs to, from 1.
    pub epoch: u64,
    /// Mean training loss over the step's batch, before its update.
    #[serde(with = "number")]
    pub loss: f64,
    /// The learning rate the step was taken with.
    #[serde(with = "number")]
    pub learning_rate: f64,
    /// Examples a second over the whole cluster, in this step.
    #[serde(with = "number")]
    pub samples_per_second: f64,
    /// Bytes that all workers sent in this step, frames included.
    pub bytes_sent: u64,
    /// Bytes that all workers received in this step, frames included.
    pub bytes_received: u64,
    /// Milliseconds of forward and backward passes, mean over the workers.
    #[serde(with = "number")]
    pub compute_ms: f64,
    /// Milliseconds from the end of the backward pass until every push was acknowledged, mean over the workers.
    #[serde(with = "number")]
    pub send_ms: f64,
    /// Milliseconds spent waiting for parameters, mean over the workers.
    #[serde(with = "number")]
    pub wait_ms: f64,
    /// Seconds since training began, at the end of the step.
    #[serde(with = "number")]
    pub elapsed_seconds: f64,
    /// What the push codec lost of the step's gradients, relative to them; absent where that is nothing.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub push_error: f64,
}

impl From<&StepSummary> for StepRecord {
    fn from(summary: &StepSummary) -> StepRecord {
        let samples_per_second =
            if summary.seconds > 0.0 { summary.examples as f64 / summary.seconds } else { 0.0 };
        StepRecord {
            step: summary.step + 1,
            epoch: summary.epoch + 1,
            loss: summary.loss,
            learning_rate: summary.learning_rate,
            samples_per_second,
            bytes_sent: summary.bytes_sent,
            bytes_received: summary.bytes_received,
            compute_ms: summary.compute_ms,
            send_ms: summary.send_ms,
            wait_ms: summary.wait_ms,
            elapsed_seconds: summary.elapsed_seconds,
            push_error: summary.push_error,
        }
    }
}

fn is_nothing(error: &f64) -> bool {
    *error == 0.0
}

/// What one evaluation found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// Steps taken.
    pub step: u64,
    /// Mean loss over the test set's targets.
    #[serde(with = "number")]
    pub test_loss: f64,
    /// Share of the test set's targets classified right.
    #[serde(with = "number")]
    pub test_accuracy: f64,
}

/// A line of such a file.
pub trait Record: Serialize + DeserializeOwned {
    /// The step that it is about, or the steps taken by then.
    fn step(&self) -> u64;
}

impl Record for StepRecord {
    fn step(&self) -> u64 {
        self.step
    }
}

impl Record for EvaluationRecord {
    fn step(&self) -> u64 {
        self.step
    }
}

/// Why the metrics file cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A line is no record.
    #[error("{}, line {line}: no such record: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Too many records wait for a disk that takes none.
    #[error("step {step} is left out of {}: too many before it could not be written", path.display())]
    LeftOut {
        /// The step.
        step: u64,
        /// The file.
        path: PathBuf,
    },
    /// A record cannot be written as JSON.
    #[error("cannot write step {step} as JSON: {reason}")]
    Record {
        /// The step.
        step: u64,
        /// What the serializer said.
        reason: String,
    },
}

/// Appends records to the file.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    lines: Appender,
    /// Records that could not wait.
    left_out: u64,
}

impl MetricsWriter {
    /// Opens the file at `path` for appending, making it if need be.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn open(path: &Path) -> Result<Self, MetricsError> {
        let lines = handover::append(path).and_then(Appender::new);
        let lines = lines.map_err(|source| io_error("open", path, source))?;
        Ok(Self { path: path.to_path_buf(), lines, left_out: 0 })
    }

    /// Appends one record, and all that are held; they are in the file when this returns.
    ///
    /// # Errors
    /// The operating system's refusal (a full disk, for instance): the record is held, and written before the next one. Where
    /// too many are held already, it is left out.
    pub fn append(&mut self, record: &impl Record) -> Result<(), MetricsError> {
        let step = record.step();
        let mut line = serde_json::to_vec(record)
            .map_err(|error| MetricsError::Record { step, reason: error.to_string() })?;
        line.push(b'\n');
        if !self.lines.has_room() {
            self.left_out += 1;
            return Err(MetricsError::LeftOut { step, path: self.path.clone() });
        }
        self.lines.append(&line).map_err(|source| io_error("write to", &self.path, source))
    }

    /// Writes the records that are held.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn flush(&mut self) -> Result<(), MetricsError> {
        self.lines.flush().map_err(|source| io_error("write to", &self.path, source))
    }

    /// Records that were left out since this was last asked.
    pub fn take_left_out(&mut self) -> u64 {
        std::mem::take(&mut self.left_out)
    }

    /// Whether records wait for a disk that takes none.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.lines.held() > 0
    }
}

/// Reads all records of the file at `path`. A last line without a line feed is a write that was cut short
/// and is left out.
///
/// # Errors
/// The operating system's refusal, or the first line that is no record.
pub fn read<R: Record>(path: &Path) -> Result<Vec<R>, MetricsError> {
    let text = std::fs::read_to_string(path).map_err(|source| io_error("read", path, source))?;
    let whole = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or(""));
    let parse = |(index, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| MetricsError::Line {
            path: path.to_path_buf(),
            line: index + 1,
            reason: error.to_string(),
        })
    };
    whole.lines().enumerate().map(parse).collect()
}

/// Keeps the records of steps up to `step`, for a run that goes on from there: what came after will come again.
///
/// # Errors
/// The operating system's refusal; the file is then as it was. One that is not there is left so.
pub fn keep_until<R: Record>(path: &Path, step: u64) -> Result<(), MetricsError> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|source| io_error("read", path, source))?,
    };
    let early = |line: &&str| serde_json::from_str::<R>(line).is_ok_and(|record| record.step() <= step);
    let mut kept = String::with_capacity(text.len());
    for line in text.lines().filter(early) {
        kept += line;
        kept.push('\n');
    }
    replace(&Disk, path, kept.as_bytes()).map_err(|source| io_error("write", path, source))
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> MetricsError {
    MetricsError::Io { action, path: path.to_path_buf(), source }
}

/// Numbers that may not be finite (invariant 2).
pub(super) mod number {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        match value.is_finite() {
            true => serializer.serialize_f64(*value),
            false => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, loss: f64) -> StepRecord {
        StepRecord {
            step,
            epoch: 1,
            loss,
            learning_rate: 0.1,
            samples_per_second: 8640.5,
            bytes_sent: 2_678_824,
            bytes_received: 2_678_900,
            compute_ms: 11.5,
            send_ms: 2.25,
            wait_ms: 1.0,
            elapsed_seconds: 0.015,
            push_error: 0.0,
        }
    }

    /// Invariant 1.
    #[test]
    fn records_are_lines_that_are_there_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut writer = MetricsWriter::open(&path).unwrap();
        writer.append(&record(1, 2.34567)).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"step\":1,\"epoch\":1,\"loss\":2.34567,\"learning_rate\":0.1,\"samples_per_second\":8640.5,\
             \"bytes_sent\":2678824,\"bytes_received\":2678900,\"compute_ms\":11.5,\"send_ms\":2.25,\"wait_ms\":1.0,\
             \"elapsed_seconds\":0.015}\n"
        );
        writer.append(&record(2, 2.0)).unwrap();
        assert_eq!(read::<StepRecord>(&path).unwrap(), [record(1, 2.34567), record(2, 2.0)]);
        drop(writer);
        MetricsWriter::open(&path).unwrap().append(&record(3, 1.0)).unwrap();
        assert_eq!(read::<StepRecord>(&path).unwrap().len(), 3, "opened again, it goes on");
    }

    /// A resumed run goes on where its checkpoint is, not where its metrics end.
    #[test]
    fn what_comes_again_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        keep_until::<StepRecord>(&path, 5).unwrap();
        assert!(!path.exists());
        let mut writer = MetricsWriter::open(&path).unwrap();
        (1..=9).for_each(|step| writer.append(&record(step, 1.0)).unwrap());
        std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + "{\"step\":1").unwrap();
        keep_until::<StepRecord>(&path, 5).unwrap();
        let steps: Vec<u64> = read::<StepRecord>(&path).unwrap().iter().map(|r| r.step).collect();
        assert_eq!(steps, [1, 2, 3, 4, 5]);
        assert!(std::fs::read_to_string(&path).unwrap().ends_with('\n'));
    }

    /// Invariant 2.
    #[test]
    fn a_diverged_loss_is_null() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut writer = MetricsWriter::open(&path).unwrap();
        for loss in [f64::NAN, f64::INFINITY] {
            writer.append(&record(1, loss)).unwrap();
        }
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"loss\":null"));
        assert!(read::<StepRecord>(&path).unwrap().iter().all(|record| record.loss.is_nan()));
    }

    #[test]
    fn a_cut_line_is_left_out_and_a_bad_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        MetricsWriter::open(&path).unwrap().append(&record(1, 1.0)).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, format!("{whole}{}", &whole[..length])).unwrap();
            assert_eq!(read::<StepRecord>(&path).unwrap().len(), 1, "{length}");
        }
        std::fs::write(&path, format!("{whole}{{}}\n")).unwrap();
        let error = read::<StepRecord>(&path).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert!(read::<StepRecord>(&folder.path().join("none")).is_err());
    }
}
