//! TensorBoard's event files: what a run is like while it goes on, and afterwards, in a tool that people have.
//!
//! Invariants:
//! 1. A file holds whole records: what a failed write left of one is cut off again. A record that the disk does not take is left
//!    out, for nothing but curves is lost: `metrics.jsonl` has the numbers.
//! 2. Each process that writes begins a file of its own; readers take those of a folder in the order of their names, which begin
//!    with the time. The first record after the head says from which step on earlier files count no more.
//! 3. Files are their owner's alone, and no file that is there is written to or followed.

mod event;
mod record;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use testudo_actors::message::Evaluated;
use testudo_actors::scheduler::TensorSpread;

use super::metrics::StepRecord;
use crate::appender::Tail;
use crate::process::handover;
use event::Value;

/// What the names of event files begin with, before the second in which they were begun.
const NAME: &str = "events.out.tfevents.";
/// Files that may begin in one second.
const SAME_SECOND_MOST: u32 = 100;

/// Writes the event file of one process.
#[derive(Debug)]
pub struct Events<F = File> {
    file: F,
    /// Bytes of the whole records in the file.
    length: u64,
    /// Whether a part of a record stands beyond `length`.
    is_torn: bool,
    /// Whether it has been said from which step on this file counts.
    is_begun: bool,
    /// Whether the last record was left out.
    is_failing: bool,
}

impl Events {
    /// Begins a file in `folder`, which is made for its owner alone if it is not there.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn begin(folder: &Path, now: SystemTime) -> io::Result<Events> {
        let made = {
            let mut builder = std::fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.create(folder)
        };
        if let Err(error) = made
            && error.kind() != ErrorKind::AlreadyExists
        {
            return Err(error);
        }
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // A clock that was set back must not bring this file before those that are there.
        let seconds = seconds.max(newest(folder)?);
        // What readers look for, and a name of the writer in place of its host's.
        let stem = format!("{NAME}{seconds:010}.scheduler-0");
        let mut file = handover::create_in(folder, &stem);
        for number in 2..=SAME_SECOND_MOST {
            if !matches!(&file, Err(error) if error.kind() == ErrorKind::AlreadyExists) {
                break;
            }
            file = handover::create_in(folder, &format!("{stem}.{number:03}"));
        }
        let mut events = Events::new(file?);
        events.append(&event::version(wall(now)))?;
        Ok(events)
    }
}

/// The time in the name of the folder's last file; 0 if there is none.
fn newest(folder: &Path) -> io::Result<u64> {
    let mut newest = 0;
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let begun =
            name.to_str().and_then(|name| name.strip_prefix(NAME)).and_then(|rest| rest.split('.').next());
        newest = newest.max(begun.and_then(|seconds| seconds.parse().ok()).unwrap_or(0));
    }
    Ok(newest)
}

impl<F: Tail> Events<F> {
    fn new(file: F) -> Events<F> {
        Events { file, length: 0, is_torn: false, is_begun: false, is_failing: false }
    }

    /// A step is complete.
    pub fn step(&mut self, now: SystemTime, record: &StepRecord) {
        let mut told = vec![
            ("train/loss", record.loss),
            ("train/learning_rate", record.learning_rate),
            ("throughput/samples_per_second", record.samples_per_second),
            ("network/bytes_sent", record.bytes_sent as f64),
            ("network/bytes_received", record.bytes_received as f64),
            ("step_ms/compute", record.compute_ms),
            ("step_ms/send", record.send_ms),
            ("step_ms/wait", record.wait_ms),
        ];
        if record.push_error != 0.0 {
            told.push(("train/push_error", record.push_error));
        }
        self.scalars(now, record.step, record.step, &told);
    }

    /// The test set is evaluated.
    pub fn evaluated(&mut self, now: SystemTime, found: &Evaluated) {
        let told = [("test/loss", found.loss), ("test/accuracy", found.accuracy)];
        // A resumed run evaluates what it goes on from again; the step that led there was taken before, and stays.
        self.scalars(now, found.step + 1, found.step, &told);
    }

    /// How gradients and parameters are spread after `step`.
    pub fn spread(&mut self, now: SystemTime, step: u64, tensors: &[TensorSpread]) {
        self.start(now, step);
        // A tensor at a time: a record is small, whatever the model is.
        for tensor in tensors {
            let spreads = [("parameters", Some(&tensor.values)), ("gradients", tensor.gradient.as_ref())];
            // Where nothing is finite there is no bucket, and readers have no word for that.
            let told: Vec<_> = spreads
                .into_iter()
                .filter_map(|(kind, spread)| Some((kind, spread.filter(|spread| spread.count > 0)?)))
                .map(|(kind, spread)| (format!("{kind}/{}", tensor.name), Value::Histogram(spread)))
                .collect();
            if !told.is_empty() {
                self.tell(&event::values(wall(now), step, &told));
            }
        }
    }

    fn scalars(&mut self, now: SystemTime, first: u64, step: u64, told: &[(&str, f64)]) {
        self.start(now, first);
        let told: Vec<_> =
            told.iter().map(|(tag, value)| ((*tag).to_owned(), Value::Scalar(*value))).collect();
        self.tell(&event::values(wall(now), step, &told));
    }

    /// Says once that this file counts from step `first` on (invariant 2).
    fn start(&mut self, now: SystemTime, first: u64) {
        if !self.is_begun {
            self.is_begun = true;
            self.tell(&event::started(wall(now), first));
        }
    }

    /// Writes a record, and says in the log when that begins or ceases to fail.
    fn tell(&mut self, event: &[u8]) {
        match (self.append(event), self.is_failing) {
            (Ok(()), true) => tracing::info!("the event file for TensorBoard is written again"),
            (Err(error), false) => {
                tracing::warn!(%error, "the event file for TensorBoard cannot be written; what is new is left out of it");
            }
            (Ok(()), false) => return,
            (Err(_), true) => return,
        }
        self.is_failing = !self.is_failing;
    }

    fn append(&mut self, event: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.file.cut(self.length)?;
            self.is_torn = false;
        }
        let record = record::framed(event);
        match self.file.write_all(&record) {
            Ok(()) => {
                self.length += record.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.is_torn = self.file.cut(self.length).is_err();
                Err(error)
            }
        }
    }
}

/// Seconds since 1970, as events have them.
fn wall(now: SystemTime) -> f64 {
    now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use testudo_actors::histogram::{Histogram, Tally};

    use super::*;

    /// The bytes of the records in `file`, which must be whole.
    fn records(mut file: &[u8]) -> Vec<&[u8]> {
        let mut found = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            let bytes = &file[12..12 + length];
            assert_eq!(record::framed(bytes), file[..16 + length]);
            found.push(bytes);
            file = &file[16 + length..];
        }
        found
    }

    fn found(step: u64) -> Evaluated {
        Evaluated { step, loss: 0.5, accuracy: 0.75 }
    }

    /// Invariants 2 and 3.
    #[test]
    fn each_process_has_a_file_of_its_own_which_says_where_it_begins() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("tensorboard");
        let now = UNIX_EPOCH + Duration::from_secs(1_764_412_345);
        let mut first = Events::begin(&at, now).unwrap();
        let mut second = Events::begin(&at, now).unwrap();
        first.evaluated(now, &found(1));
        second.evaluated(now, &found(40));
        second.evaluated(now, &found(41));
        let mut names: Vec<_> = std::fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        let last = |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        let stem = "events.out.tfevents.1764412345.scheduler-0";
        assert_eq!(names.iter().map(last).collect::<Vec<_>>(), [stem.to_owned(), format!("{stem}.002")]);
        for path in names.iter().chain([&at]) {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o077, 0, "{path:?}");
        }
        let bytes = std::fs::read(&names[1]).unwrap();
        let told = records(&bytes);
        assert_eq!(told[..2], [event::version(wall(now)), event::started(wall(now), 41)]);
        assert_eq!(told.len(), 4, "it begins once");
        // A clock that was set back, or has come to a folder of a machine whose clock is ahead.
        drop(Events::begin(&at, now - Duration::from_secs(90)).unwrap());
        let names = std::fs::read_dir(&at).unwrap().map(|entry| last(&entry.unwrap().path()));
        assert_eq!(names.max().unwrap(), format!("{stem}.003"));
    }

    /// A tensor in which nothing is finite has no histogram.
    #[test]
    fn what_is_nowhere_finite_is_left_out() {
        let spread = |values: [f32; 2]| {
            let mut tally = Tally::default();
            tally.count(values);
            tally.histogram()
        };
        let (finite, none) = (spread([1.0, f32::NAN]), spread([f32::NAN, f32::INFINITY]));
        let tensor = |values: &Histogram, gradient: &Histogram| TensorSpread {
            name: "w".into(),
            values: values.clone(),
            gradient: Some(gradient.clone()),
        };
        let mut events = Events::new(Small(Vec::new(), 1 << 20));
        events.spread(UNIX_EPOCH, 7, &[tensor(&none, &none), tensor(&finite, &none)]);
        let told = [("parameters/w".to_owned(), Value::Histogram(&finite))];
        assert_eq!(records(&events.file.0), [event::started(0.0, 7), event::values(0.0, 7, &told)]);
    }

    /// A disk with so much room.
    struct Small(Vec<u8>, usize);

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.1 - self.0.len());
            self.0.extend(&bytes[..taken]);
            if taken == 0 { Err(ErrorKind::StorageFull.into()) } else { Ok(taken) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Tail for Small {
        fn cut(&mut self, length: u64) -> io::Result<()> {
            self.0.truncate(length as usize);
            Ok(())
        }
    }

    /// Invariant 1.
    #[test]
    fn a_full_disk_leaves_whole_records() {
        let mut events = Events::new(Small(Vec::new(), 200));
        (0..9).for_each(|step| events.evaluated(UNIX_EPOCH, &found(step)));
        let before = records(&events.file.0).len();
        assert!(events.is_failing && (1..9).contains(&before), "{before}");
        events.file.1 = 1 << 20;
        events.evaluated(UNIX_EPOCH, &found(9));
        assert!(!events.is_failing);
        assert_eq!(records(&events.file.0).len(), before + 1);
    }
}
