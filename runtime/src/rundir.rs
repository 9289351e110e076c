//! The run directory: everything a run leaves behind, in one place that only its owner can enter.
//!
//! ```text
//! runs/mnist-20261123T081613Z/
//!   cluster.toml                          the effective cluster file
//!   job.signed                            the job as the operator signed it
//!   control.json                          where the scheduler is, while the run goes on
//!   metrics.jsonl                         one line a step
//!   summary.json                          the result
//!   audit.log                             what happened, hash-chained and signed
//!   loss.svg                              the plot
//!   checkpoint/final/model.safetensors    the exported model
//!   checkpoint/...                        training checkpoints: see `checkpoint/layout.rs`
//!   job-1.signed, cluster-1.toml          of the run before it was resumed for the first time
//!   lock                                  held while the run is under way
//!   checkpoint/final/model.sig            its signature
//!   checkpoint/model.pub.pem              the key that the signature verifies under
//!   logs/worker-1.log                     each node's log
//!   identities/worker-1/                  each node's key and certificate
//!   identities/audit/                     the audit log's key and certificate
//! ```
//!
//! Invariants:
//! 1. The directory is new, or a run's that is resumed and not under way: no run ever mixes with another.
//! 2. It and all inside it have mode 0700.
//! 3. These names stand here and nowhere else.

use std::fs::DirBuilder;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How many runs of one job may begin in one second before a name must be given.
const SAME_SECOND_MOST: u32 = 100;
const SECONDS_PER_DAY: u64 = 86_400;

/// A run directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

/// Why a run directory could not be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunDirError {
    /// It is there already.
    #[error("the run directory {} exists: name another with --run-dir, or move this one away", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// It is not there, or is no directory.
    #[error("{} is no run directory", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// The run is under way.
    #[error("{} is in use: the run in it is under way; stop it first", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot create {}: {source}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl RunDir {
    /// Makes the directory `path` and its folders; missing parents are made too.
    ///
    /// # Errors
    /// It exists, or cannot be made.
    pub fn create(path: &Path) -> Result<Self, RunDirError> {
        let failed = |path: &Path, source| RunDirError::Create { path: path.to_path_buf(), source };
        let path = std::path::absolute(path).map_err(|source| failed(path, source))?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|source| failed(parent, source))?;
        }
        make_private(&path, false).map_err(|source| match source.kind() {
            ErrorKind::AlreadyExists => RunDirError::Exists { path: path.clone() },
            _ => failed(&path, source),
        })?;
        let made = Self { path };
        for folder in [made.logs(), made.identities(), made.checkpoint_final()] {
            make_private(&folder, true).map_err(|source| failed(&folder, source))?;
        }
        Ok(made)
    }

    /// Makes `<output>/<job>-<UTC time>`, with a number added when runs begin in the same second.
    ///
    /// # Errors
    /// As [`RunDir::create`].
    pub fn create_default(output: &Path, job: &str, now: SystemTime) -> Result<Self, RunDirError> {
        let name = format!("{job}-{}", timestamp(now));
        let mut attempt = Self::create(&output.join(&name));
        for number in 2..=SAME_SECOND_MOST {
            if !matches!(attempt, Err(RunDirError::Exists { .. })) {
                break;
            }
            attempt = Self::create(&output.join(format!("{name}-{number}")));
        }
        attempt
    }

    /// The run directory at `path`, made earlier.
    ///
    /// # Errors
    /// There is no directory.
    pub fn open(path: &Path) -> Result<Self, RunDirError> {
        match path.is_dir() {
            true => Ok(Self { path: std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()) }),
            false => Err(RunDirError::Missing { path: path.to_path_buf() }),
        }
    }

    /// The directory itself, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The effective cluster file.
    pub fn cluster_file(&self) -> PathBuf {
        self.path.join("cluster.toml")
    }

    /// The job as the operator signed it.
    pub fn signed_job(&self) -> PathBuf {
        self.path.join("job.signed")
    }

    /// Where the scheduler is, while the run goes on.
    pub fn control(&self) -> PathBuf {
        self.path.join("control.json")
    }

    /// One JSON line a step.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The result as JSON.
    pub fn summary(&self) -> PathBuf {
        self.path.join("summary.json")
    }

    /// The audit log.
    pub fn audit_log(&self) -> PathBuf {
        self.path.join("audit.log")
    }

    /// The folder of the key that signs the audit log.
    pub fn audit_identity(&self) -> PathBuf {
        self.identities().join("audit")
    }

    /// The plot of the loss.
    pub fn loss_plot(&self) -> PathBuf {
        self.path.join("loss.svg")
    }

    /// The folder of checkpoints, the exported model among them.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoint")
    }

    /// The folder of the exported model.
    pub fn checkpoint_final(&self) -> PathBuf {
        self.checkpoints().join("final")
    }

    /// The exported model.
    pub fn model(&self) -> PathBuf {
        self.checkpoint_final().join(crate::checkpoint::safetensors::MODEL_FILE)
    }

    /// The public key that the exported model is signed with.
    pub fn model_key(&self) -> PathBuf {
        self.path.join("checkpoint").join("model.pub.pem")
    }

    /// The folder of the nodes' logs.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// The log of one node; `role` in lower case.
    pub fn log(&self, role: &str, index: u32) -> PathBuf {
        self.logs().join(format!("{role}-{index}.log"))
    }

    /// The folder of all identities.
    pub fn identities(&self) -> PathBuf {
        self.path.join("identities")
    }

    /// The folder of one node's key and certificate; `role` in lower case.
    pub fn identity(&self, role: &str, index: u32) -> PathBuf {
        self.identities().join(format!("{role}-{index}"))
    }

    /// Takes the directory for a run: while the answer lives, nobody else's command takes it.
    ///
    /// # Errors
    /// [`RunDirError::Busy`], or it cannot be written.
    pub fn lock(&self) -> Result<RunLock, RunDirError> {
        let path = self.path.join("lock");
        let failed = |source| RunDirError::Create { path: path.clone(), source };
        let mut options = std::fs::OpenOptions::new();
        options.create(true).truncate(false).write(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&path).map_err(failed)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(RunLock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(RunDirError::Busy { path: self.path.clone() }),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Makes ready for the run to be resumed: its signed job and cluster file are kept under a number, and its identities,
    /// whose CA is gone, are removed.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn begin_again(&self) -> io::Result<()> {
        let taken = |n: &u32| {
            ["job-{n}.signed", "cluster-{n}.toml"]
                .iter()
                .any(|name| self.path.join(name.replace("{n}", &n.to_string())).exists())
        };
        let number = (1..).find(|n| !taken(n)).unwrap_or(u32::MAX);
        for (from, to) in [
            (self.signed_job(), format!("job-{number}.signed")),
            (self.cluster_file(), format!("cluster-{number}.toml")),
        ] {
            match std::fs::copy(from, self.path.join(to)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match std::fs::remove_dir_all(self.identities()) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        make_private(&self.identities(), true)?;
        make_private(&self.checkpoint_final(), true)
    }

    /// Makes the folder of one node's identity and answers its path.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create_identity(&self, role: &str, index: u32) -> Result<PathBuf, RunDirError> {
        let path = self.identity(role, index);
        make_private(&path, false).map_err(|source| RunDirError::Create { path: path.clone(), source })?;
        Ok(path)
    }
}

/// Holds a run directory for one command; let go when it is dropped, or when the process ends.
#[derive(Debug)]
pub struct RunLock {
    _file: std::fs::File,
}

fn make_private(path: &Path, recursive: bool) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(recursive);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// `time` in UTC as `20261123T081613Z` (ISO 8601, basic form), which sorts by age and holds nothing a
/// file system dislikes. Times before 1970 count as 1970.
pub fn timestamp(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (year, month, day) = civil_from_days(seconds / SECONDS_PER_DAY);
    let of_day = seconds % SECONDS_PER_DAY;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Year, month and day of the day that is `days` after 1970-01-01, in the Gregorian calendar. Years begin
/// in March, so that the leap day is the last one (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", civil_from_days).
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    const DAYS_PER_ERA: u64 = 146_097; // 400 years
    const FROM_MARCH_OF_YEAR_0: u64 = 719_468;
    let shifted = days + FROM_MARCH_OF_YEAR_0;
    let (era, of_era) = (shifted / DAYS_PER_ERA, shifted % DAYS_PER_ERA);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn timestamps_are_utc() {
        for (seconds, expected) in [
            (0, "19700101T000000Z"),
            (68_169_599, "19720228T235959Z"),
            (68_169_600, "19720229T000000Z"),
            (951_782_400, "20000229T000000Z"),
            (1_795_421_773, "20261123T081613Z"),
            (4_107_542_399, "21000228T235959Z"),
            (4_107_542_400, "21000301T000000Z"),
            (253_402_300_799, "99991231T235959Z"),
        ] {
            assert_eq!(timestamp(at(seconds)), expected);
        }
        assert_eq!(timestamp(SystemTime::UNIX_EPOCH - Duration::from_secs(9)), "19700101T000000Z");
    }

    /// Day by day over eight centuries, against counting.
    #[test]
    fn the_calendar_agrees_with_counting() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..300_000 {
            assert_eq!(civil_from_days(days), (year, month, day));
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let last = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            (year, month, day) = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                (_, day) if day == last => (year, month + 1, 1),
                _ => (year, month, day + 1),
            };
        }
    }

    /// Invariants 1 and 2.
    #[test]
    fn directories_are_new_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/run");
        let run = RunDir::create(&path).unwrap();
        assert_eq!(run.create_identity("worker", 1).unwrap(), path.join("identities/worker-1"));
        for inside in
            [run.path().to_path_buf(), run.logs(), run.checkpoint_final(), run.identity("worker", 1)]
        {
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt as _;
                let mode = std::fs::metadata(&inside).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o700, "{}", inside.display());
            }
        }
        let error = RunDir::create(&path).unwrap_err();
        assert!(matches!(error, RunDirError::Exists { .. }));
        assert!(error.to_string().contains("--run-dir"), "{error}");
        assert!(run.create_identity("worker", 1).is_err(), "an identity is never written over");
        assert_eq!(RunDir::open(&path).unwrap(), run);
        assert!(RunDir::open(&folder.path().join("none")).is_err());

        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(matches!(RunDir::create(&folder.path().join("file")), Err(RunDirError::Exists { .. })));
        let error = RunDir::create(&folder.path().join("file/run")).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }

    #[test]
    fn runs_of_the_same_second_get_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<_> = (0..3)
            .map(|_| RunDir::create_default(folder.path(), "mnist", at(1_795_421_773)).unwrap())
            .map(|run| run.path().file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["mnist-20261123T081613Z", "mnist-20261123T081613Z-2", "mnist-20261123T081613Z-3"]);
    }

    #[test]
    fn names_are_those_of_the_manual() {
        let run = RunDir { path: PathBuf::from("/r") };
        let names = [
            (run.cluster_file(), "cluster.toml"),
            (run.signed_job(), "job.signed"),
            (run.control(), "control.json"),
            (run.metrics(), "metrics.jsonl"),
            (run.summary(), "summary.json"),
            (run.loss_plot(), "loss.svg"),
            (run.model(), "checkpoint/final/model.safetensors"),
            (run.log("scheduler", 0), "logs/scheduler-0.log"),
            (run.identity("server", 12), "identities/server-12"),
        ];
        for (path, name) in names {
            assert_eq!(path, Path::new("/r").join(name));
        }
    }
}
