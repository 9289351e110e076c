//! Reads `metrics.jsonl` and `evaluations.jsonl` as they grow.
//!
//! 1. Each whole line is read once; half of one waits for the rest.
//! 2. A file that is replaced, as when a run goes on from an earlier step, is read from its beginning, and what was read of the former
//!    one is forgotten.
//! 3. What is kept of a line is bounded ([`LINE_MOST`]); a line that is no record is passed over: the file is checked when the run
//!    ends.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use super::feed::Feed;
use crate::report::metrics::{EvaluationRecord, StepRecord};
use crate::rundir::RunDir;

/// Between two looks at the files.
const EVERY: Duration = Duration::from_millis(250);
/// Bytes of a line at most: records have some 300.
const LINE_MOST: usize = 8 << 10;
/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// The thread that reads.
#[derive(Debug)]
pub(super) struct Follower {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Follows the files of `run_dir` into `feed`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(run_dir: &RunDir, feed: Arc<Feed>) -> io::Result<Follower> {
        let (mut steps, mut tests) = (Tail::new(run_dir.metrics()), Tail::new(run_dir.evaluations()));
        let (stop, stopped) = mpsc::channel();
        let follow = move || {
            loop {
                let over = stopped.recv_timeout(EVERY) != Err(mpsc::RecvTimeoutError::Timeout);
                look(&mut steps, &mut tests, &feed);
                if over {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("dashboard-files".into()).spawn(follow)?;
        Ok(Follower { stop: Some(stop), thread: Some(thread) })
    }

    /// Reads what is left, and ends.
    pub(super) fn finish(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.finish();
    }
}

fn look(steps: &mut Tail, tests: &mut Tail, feed: &Feed) {
    // What cannot be read is read the next time.
    let _ = steps.read(|news| {
        let mut history = feed.history();
        match news {
            News::Anew => history.forget_steps(),
            News::Lines(lines) => {
                records::<StepRecord>(lines).for_each(|record| history.step(&record));
            }
        }
    });
    let _ = tests.read(|news| {
        let mut history = feed.history();
        match news {
            News::Anew => history.forget_tests(),
            News::Lines(lines) => {
                records::<EvaluationRecord>(lines).for_each(|record| history.test(record));
            }
        }
    });
}

fn records<R: serde::de::DeserializeOwned>(lines: &[u8]) -> impl Iterator<Item = R> {
    lines.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok())
}

/// A file that grows.
struct Tail {
    path: PathBuf,
    open: Option<Open>,
}

struct Open {
    file: File,
    read: u64,
    /// The beginning of a line.
    half: Vec<u8>,
    /// Whether the rest of the line is passed over.
    skips: bool,
}

enum News<'a> {
    /// It is another file.
    Anew,
    /// Whole lines, without the last line feed.
    Lines(&'a [u8]),
}

impl Tail {
    fn new(path: PathBuf) -> Tail {
        Tail { path, open: None }
    }

    fn read(&mut self, mut tell: impl FnMut(News<'_>)) -> io::Result<()> {
        let there = match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            there => there?,
        };
        if let Some(open) = &self.open {
            let here = open.file.metadata()?;
            if (here.dev(), here.ino()) != (there.dev(), there.ino()) || here.len() < open.read {
                self.open = None;
                tell(News::Anew);
            }
        }
        let open = match &mut self.open {
            Some(open) => open,
            none => {
                none.insert(Open { file: File::open(&self.path)?, read: 0, half: Vec::new(), skips: false })
            }
        };
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = open.file.read(&mut chunk)?;
            if count == 0 {
                return Ok(());
            }
            open.read += count as u64;
            open.take(chunk.get(..count).unwrap_or_default(), &mut tell);
        }
    }
}

impl Open {
    fn take(&mut self, bytes: &[u8], tell: &mut impl FnMut(News<'_>)) {
        let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else { return self.keep(bytes) };
        let (mut whole, rest) = bytes.split_at(end);
        if self.skips {
            let next = whole.iter().position(|byte| *byte == b'\n').map_or(whole.len(), |at| at + 1);
            whole = whole.get(next..).unwrap_or_default();
            self.skips = false;
        }
        self.half.extend_from_slice(whole);
        tell(News::Lines(&self.half));
        self.half.clear();
        self.keep(rest.get(1..).unwrap_or_default());
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.skips || self.half.len() + bytes.len() > LINE_MOST {
            (self.skips, self.half) = (true, Vec::new());
        } else {
            self.half.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// What a look finds: `-` for a file anew, and the lines.
    fn found(tail: &mut Tail) -> String {
        let mut text = String::new();
        tail.read(|news| match news {
            News::Anew => text += "-",
            News::Lines(lines) => text += &String::from_utf8_lossy(lines).replace('\n', "|"),
        })
        .unwrap();
        text
    }

    /// Invariants 1 and 2.
    #[test]
    fn lines_are_read_once_and_a_replaced_file_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut tail = Tail::new(path.clone());
        assert_eq!(found(&mut tail), "", "not there yet");
        let mut file = File::create(&path).unwrap();
        for (written, read) in [("a\nb", "a"), ("c", ""), ("\nd\n", "bc|d"), ("", ""), ("\n", "")] {
            file.write_all(written.as_bytes()).unwrap();
            assert_eq!(found(&mut tail), read, "{written:?}");
        }
        let new = folder.path().join("new");
        std::fs::write(&new, "a\n").unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert_eq!(found(&mut tail), "-a", "replaced");
        File::options().write(true).truncate(true).open(&path).unwrap();
        assert_eq!(found(&mut tail), "-", "cut off");
        std::fs::write(&path, "e\n").unwrap();
        assert_eq!(found(&mut tail), "e");
    }

    /// Invariant 3.
    #[test]
    fn a_line_without_an_end_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut tail = Tail::new(path.clone());
        let mut file = File::create(&path).unwrap();
        for _ in 0..4 {
            file.write_all(&vec![b'x'; CHUNK]).unwrap();
            assert_eq!(found(&mut tail), "");
            assert!(tail.open.as_ref().unwrap().half.len() <= LINE_MOST);
        }
        file.write_all(b"x\ny\nz").unwrap();
        assert_eq!(found(&mut tail), "y");
        file.write_all(b"\n").unwrap();
        assert_eq!(found(&mut tail), "z");
    }

    #[test]
    fn records_of_a_run_become_its_curves() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(&folder.path().join("run")).unwrap();
        let feed = Arc::new(Feed::new("mnist", run.path()));
        let mut follower = Follower::start(&run, Arc::clone(&feed)).unwrap();
        let line = "{\"step\":1,\"epoch\":1,\"loss\":2.5,\"learning_rate\":0.1,\"samples_per_second\":8.5,\"bytes_sent\":1,\
                    \"bytes_received\":2,\"compute_ms\":1,\"send_ms\":1,\"wait_ms\":1,\"elapsed_seconds\":0.5}";
        std::fs::write(run.metrics(), format!("{line}\nno record\n")).unwrap();
        std::fs::write(run.evaluations(), "{\"step\":1,\"test_loss\":0.5,\"test_accuracy\":0.75}\n").unwrap();
        // What is left when it ends is read.
        follower.finish();
        let curves = feed.history().event(&mut Default::default());
        assert_eq!(curves["points"][0][2], 2.5);
        assert_eq!((curves["points"].as_array().unwrap().len(), &curves["tests"][0][2]), (1, &0.75.into()));
    }
}
