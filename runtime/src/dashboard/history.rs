//! The curves of a run in bounded memory.
//!
//! 1. A curve has [`POINTS_MOST`] points at most, however long the run. Each point stands for the same number of steps, and when there
//!    are too many, neighbours are merged: means of what was measured, sums of bytes, the lowest and the highest loss. So nothing is
//!    left out, and what is merged is said ([`History::event`]'s `stride`).
//! 2. Of evaluations there are [`TESTS_MOST`] at most; of more, every other older one is left out, and never the newest.
//! 3. A reader that has some of it is sent the rest; one that has what has been merged since, or has nothing, is sent all.

use serde_json::{Value, json};

use crate::report::metrics::{EvaluationRecord, StepRecord};

/// More than a screen has pixels for.
const POINTS_MOST: usize = 1024;
const TESTS_MOST: usize = 512;

/// What some steps measured.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    /// Steps that it stands for, and the last of them.
    steps: u64,
    step: u64,
    /// Seconds since training began, and the learning rate, at its end.
    elapsed: f64,
    learning_rate: f64,
    /// Sums over its steps.
    loss: f64,
    rate: f64,
    compute_ms: f64,
    send_ms: f64,
    wait_ms: f64,
    bytes_sent: u64,
    bytes_received: u64,
    /// Of its losses.
    low: f64,
    high: f64,
}

impl Point {
    fn of(record: &StepRecord) -> Point {
        Point {
            steps: 1,
            step: record.step,
            elapsed: record.elapsed_seconds,
            learning_rate: record.learning_rate,
            loss: record.loss,
            rate: record.samples_per_second,
            compute_ms: record.compute_ms,
            send_ms: record.send_ms,
            wait_ms: record.wait_ms,
            bytes_sent: record.bytes_sent,
            bytes_received: record.bytes_received,
            low: record.loss,
            high: record.loss,
        }
    }

    fn merge(self, later: Point) -> Point {
        Point {
            steps: self.steps + later.steps,
            step: later.step,
            elapsed: later.elapsed,
            learning_rate: later.learning_rate,
            // A loss that is no number makes the mean none: there is a gap where training diverged.
            loss: self.loss + later.loss,
            rate: self.rate + later.rate,
            compute_ms: self.compute_ms + later.compute_ms,
            send_ms: self.send_ms + later.send_ms,
            wait_ms: self.wait_ms + later.wait_ms,
            bytes_sent: self.bytes_sent.saturating_add(later.bytes_sent),
            bytes_received: self.bytes_received.saturating_add(later.bytes_received),
            low: self.low.min(later.low),
            high: self.high.max(later.high),
        }
    }

    /// In the order of `COLUMNS` in `page/dashboard.js`.
    fn json(&self) -> Value {
        let mean = |sum: f64| short(sum / self.steps.max(1) as f64);
        json!([
            self.step,
            short(self.elapsed),
            mean(self.loss),
            short(self.low),
            short(self.high),
            mean(self.rate),
            self.bytes_sent,
            self.bytes_received,
            mean(self.compute_ms),
            mean(self.send_ms),
            mean(self.wait_ms),
            short(self.learning_rate),
        ])
    }
}

/// Six digits, which is more than a curve shows; `null` for what is no number.
fn short(value: f64) -> Value {
    format!("{value:.5e}").parse::<f64>().ok().filter(|value| value.is_finite()).into()
}

/// The curves of a run.
#[derive(Debug)]
pub(super) struct History {
    /// Counts the times that what was there has changed, from 1.
    generation: u64,
    /// Steps of a whole point.
    stride: u64,
    points: Vec<Point>,
    /// Of fewer steps than a whole one, as yet.
    open: Option<Point>,
    tests: Vec<EvaluationRecord>,
    bytes_sent: u64,
    bytes_received: u64,
}

/// How much of it a reader has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Read {
    generation: u64,
    points: usize,
    tests: usize,
}

impl Default for History {
    fn default() -> History {
        History {
            generation: 1,
            stride: 1,
            points: Vec::new(),
            open: None,
            tests: Vec::new(),
            bytes_sent: 0,
            bytes_received: 0,
        }
    }
}

impl History {
    /// A step is complete.
    pub(super) fn step(&mut self, record: &StepRecord) {
        self.bytes_sent = self.bytes_sent.saturating_add(record.bytes_sent);
        self.bytes_received = self.bytes_received.saturating_add(record.bytes_received);
        let new = Point::of(record);
        let open = self.open.take().map_or(new, |open| open.merge(new));
        if open.steps < self.stride {
            self.open = Some(open);
            return;
        }
        if self.points.len() == POINTS_MOST {
            self.merge();
            // It is half of a point now.
            self.open = Some(open);
        } else {
            self.points.push(open);
        }
    }

    fn merge(&mut self) {
        let merged = self.points.chunks(2).filter_map(|pair| match pair {
            [one, other] => Some(one.merge(*other)),
            rest => rest.first().copied(),
        });
        self.points = merged.collect();
        self.stride *= 2;
        self.generation += 1;
    }

    /// A version was evaluated.
    pub(super) fn test(&mut self, record: EvaluationRecord) {
        if self.tests.len() == TESTS_MOST {
            // The last one stays.
            let mut place = 0;
            self.tests.retain(|_| {
                place += 1;
                place % 2 == 0
            });
            self.generation += 1;
        }
        self.tests.push(record);
    }

    /// The run goes on from an earlier step: the records of steps are read anew.
    pub(super) fn forget_steps(&mut self) {
        let tests = std::mem::take(&mut self.tests);
        *self = History { generation: self.generation + 1, tests, ..History::default() };
    }

    /// The same of evaluations.
    pub(super) fn forget_tests(&mut self) {
        self.tests.clear();
        self.generation += 1;
    }

    /// What a reader does not have yet, and now has.
    pub(super) fn event(&self, read: &mut Read) -> Value {
        let whole = read.generation != self.generation;
        if whole {
            *read = Read { generation: self.generation, ..Read::default() };
        }
        let points = self.points.get(read.points..).unwrap_or_default();
        let tests = self.tests.get(read.tests..).unwrap_or_default();
        let event = json!({
            "whole": whole,
            "stride": self.stride,
            "points": points.iter().map(Point::json).collect::<Vec<_>>(),
            // Comes again, until it is whole.
            "open": self.open.as_ref().map(Point::json),
            "tests": tests.iter().map(|t| json!([t.step, short(t.test_loss), short(t.test_accuracy)])).collect::<Vec<_>>(),
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
        });
        (read.points, read.tests) = (self.points.len(), self.tests.len());
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> StepRecord {
        StepRecord {
            step,
            epoch: 1,
            loss: step as f64,
            learning_rate: 0.1,
            samples_per_second: 100.0,
            bytes_sent: 10,
            bytes_received: 20,
            compute_ms: 3.0,
            send_ms: 2.0,
            wait_ms: 1.0,
            elapsed_seconds: step as f64 / 4.0,
            push_error: 0.0,
        }
    }

    fn columns(event: &Value, column: usize) -> Vec<f64> {
        let points = event["points"]
            .as_array()
            .unwrap()
            .iter()
            .chain(event["open"].is_array().then(|| &event["open"]));
        points.map(|point| point[column].as_f64().unwrap()).collect()
    }

    /// Invariants 1 and 3: whenever it is looked at, all steps are in it, each once, and means are means.
    #[test]
    fn a_long_run_is_merged_and_nothing_is_left_out() {
        let mut history = History::default();
        let mut read = Read::default();
        let (mut points, mut merged) = (Vec::new(), 0);
        for step in 1..=10_000 {
            history.step(&record(step));
            if step % 97 != 0 {
                continue;
            }
            let event = history.event(&mut read);
            if event["whole"] == true {
                points.clear();
                merged += 1;
            }
            points.extend(event["points"].as_array().unwrap().iter().cloned());
            let all = json!({ "points": points, "open": event["open"] });
            assert!(points.len() <= POINTS_MOST);
            assert_eq!(columns(&all, 6).iter().sum::<f64>(), 10.0 * step as f64, "bytes of every step, once");
            assert_eq!(columns(&all, 0).last(), Some(&(step as f64)));
            assert_eq!(event["bytes_received"], 20 * step);
        }
        assert!(merged == 5, "first, and at each doubling: {merged}");
        let event = history.event(&mut Read::default());
        let stride = event["stride"].as_u64().unwrap();
        assert_eq!(stride, 16);
        let first = &event["points"][0];
        let expected = json!([16, 4.0, 8.5, 1.0, 16.0, 100.0, 160, 320, 3.0, 2.0, 1.0, 0.1]);
        assert_eq!(*first, expected);
    }

    /// Invariant 2.
    #[test]
    fn evaluations_are_thinned_out_from_behind() {
        let mut history = History::default();
        for step in 1..=2_000 {
            history.test(EvaluationRecord { step, test_loss: 0.5, test_accuracy: 0.9 });
            let event = history.event(&mut Read::default());
            let tests = event["tests"].as_array().unwrap();
            assert!(tests.len() <= TESTS_MOST && tests.last().unwrap()[0] == step);
        }
    }

    #[test]
    fn what_comes_again_is_forgotten_and_a_loss_that_is_none_is_a_gap() {
        let mut history = History::default();
        let mut read = Read::default();
        history.step(&StepRecord { loss: f64::NAN, ..record(1) });
        history.test(EvaluationRecord { step: 1, test_loss: f64::INFINITY, test_accuracy: 0.5 });
        let event = history.event(&mut read);
        assert_eq!((&event["points"][0][2], &event["tests"][0][1]), (&Value::Null, &Value::Null));
        let event = history.event(&mut read);
        assert_eq!(
            (&event["whole"], &event["points"], &event["tests"]),
            (&json!(false), &json!([]), &json!([]))
        );
        history.forget_steps();
        let event = history.event(&mut read);
        assert_eq!(
            (&event["whole"], &event["points"], &event["bytes_sent"]),
            (&json!(true), &json!([]), &json!(0))
        );
        assert_eq!(event["tests"].as_array().unwrap().len(), 1);
        history.forget_tests();
        assert_eq!(history.event(&mut read)["tests"], json!([]));
    }
}
