//! The run directory: everything a run leaves behind, in one place that only its owner can enter.
//!
//! ```text
//! runs/mnist-20261123T081613Z/
//!   cluster.toml                          the effective cluster file
//!   job.signed                            the job as the operator signed it
//!   control.json                          where the scheduler is, while the run goes on
//!   dashboard.url                         a link that opens the run's page, once, while it has one
//!   metrics.jsonl                         one line a step
//!   evaluations.jsonl                     one line an evaluation of the test set
//!   summary.json                          the result
//!   audit.log                             what happened, hash-chained and signed
//!   loss.svg                              the plot
//!   checkpoint/final/model.safetensors    the exported model
//!   checkpoint/...                        training checkpoints: see `checkpoint/layout.rs`
//!   job-1.signed, cluster-1.toml          of the run before it was resumed for the first time
//!   inputs.json                           root's own: which inputs root named, if root began the run (`rundir/inputs.rs`)
//!   lock                                  held while the run is under way
//!   checkpoint/final/model.sig            its signature
//!   checkpoint/model.pub.pem              the key that the signature verifies under
//!   logs/worker-1.log                     each node's log
//!   tensorboard/events.out.tfevents.*      what TensorBoard shows, a file for each process that wrote one
//!   prometheus/worker-1.json              where each node's metrics are scraped, if they are
//!   identities/worker-1/                  each node's key and certificate
//!   identities/audit/                     the audit log's key and certificate
//!   ca/                                   the run's certificate authority; its key is there while the run goes on
//! ```
//!
//! Invariants:
//! 1. The directory is new, or a run's that is resumed and not under way: no run ever mixes with another.
//! 2. It and all inside it have mode 0700.
//! 3. These names stand here and nowhere else.
//! 4. A directory that is held ([`RunDir::hold`]) is reached through an open descriptor alone: whoever may enter the
//!    directory itself can go on using it, whatever its parents allow. [`in_words`] says its name again.

mod held;
pub(crate) mod inputs;
mod time;

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::OFlags;

use crate::process::handover;
use crate::process::locked::{Locked, is_locked};

pub use held::in_words;
pub(crate) use held::reached;
pub use time::timestamp;

/// How many runs of one job may begin in one second before a name must be given.
const SAME_SECOND_MOST: u32 = 100;

/// A run directory.
#[derive(Debug, Clone)]
pub struct RunDir {
    /// Its name.
    path: PathBuf,
    /// Where this process reaches it: its name, or its open descriptor's.
    at: PathBuf,
    held: Option<Arc<OwnedFd>>,
    /// Its folder of checkpoints, where that alone is held.
    checkpoints: Option<(PathBuf, Arc<OwnedFd>)>,
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
    /// It is a user's whom this process may not become.
    #[error(
        "{} belongs to user {owner}, and the run would go on as {run_as} (security.run_as): give --set \
         security.run_as={owner} if you trust that user, or go on as that user",
        path.display()
    )]
    Others {
        /// The directory.
        path: PathBuf,
        /// Its owner's number.
        owner: u32,
        /// Whom the run would go on as.
        run_as: String,
    },
    /// It cannot be given to the user that the run goes on as.
    #[error("{} cannot be given to the user that runs go on as (security.run_as): {source}", path.display())]
    HandOver {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
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
        let made = Self::named(path);
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
            true => Ok(Self::named(std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()))),
            false => Err(RunDirError::Missing { path: path.to_path_buf() }),
        }
    }

    fn named(path: PathBuf) -> Self {
        Self { at: path.clone(), path, held: None, checkpoints: None }
    }

    /// The directory itself, absolute: its name, for people and for other processes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The effective cluster file.
    pub fn cluster_file(&self) -> PathBuf {
        self.at.join("cluster.toml")
    }

    /// The job as the operator signed it.
    pub fn signed_job(&self) -> PathBuf {
        self.at.join("job.signed")
    }

    /// Where the scheduler is, while the run goes on.
    pub fn control(&self) -> PathBuf {
        self.at.join("control.json")
    }

    /// A link that opens the run's page.
    pub fn dashboard(&self) -> PathBuf {
        self.at.join("dashboard.url")
    }

    /// Where a node's metrics are scraped.
    pub fn scraped(&self, role: &str, index: u32) -> PathBuf {
        self.at.join("prometheus").join(format!("{role}-{index}.json"))
    }

    /// The folder of TensorBoard's event files.
    pub fn tensorboard(&self) -> PathBuf {
        self.at.join("tensorboard")
    }

    /// One JSON line a step.
    pub fn metrics(&self) -> PathBuf {
        self.at.join("metrics.jsonl")
    }

    /// One JSON line an evaluation.
    pub fn evaluations(&self) -> PathBuf {
        self.at.join("evaluations.jsonl")
    }

    /// The result as JSON.
    pub fn summary(&self) -> PathBuf {
        self.at.join("summary.json")
    }

    /// The audit log.
    pub fn audit_log(&self) -> PathBuf {
        self.at.join("audit.log")
    }

    /// The folder of the key that signs the audit log.
    pub fn audit_identity(&self) -> PathBuf {
        self.identities().join("audit")
    }

    /// The plot of the loss.
    pub fn loss_plot(&self) -> PathBuf {
        self.at.join("loss.svg")
    }

    /// The folder of checkpoints, the exported model among them.
    pub fn checkpoints(&self) -> PathBuf {
        match &self.checkpoints {
            Some((at, _)) => at.clone(),
            None => self.at.join("checkpoint"),
        }
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
        self.checkpoints().join("model.pub.pem")
    }

    /// The folder of the nodes' logs.
    pub fn logs(&self) -> PathBuf {
        self.at.join("logs")
    }

    /// The log of one node; `role` in lower case.
    pub fn log(&self, role: &str, index: u32) -> PathBuf {
        self.logs().join(format!("{role}-{index}.log"))
    }

    /// The folder of all identities.
    pub fn identities(&self) -> PathBuf {
        self.at.join("identities")
    }

    /// The folder of the run's certificate authority.
    pub fn authority(&self) -> PathBuf {
        self.at.join("ca")
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
        let path = self.at.join("lock");
        let failed = |source| RunDirError::Create { path: self.path.join("lock"), source };
        let file = handover::append(&path).map_err(failed)?;
        match Locked::new(file) {
            Ok(file) => Ok(RunLock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(RunDirError::Busy { path: self.path.clone() }),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// [`RunDir::lock`], where the file system has locks: a directory that many machines share may be on one that has none.
    ///
    /// # Errors
    /// As above.
    pub fn lock_if_kept(&self) -> Result<Option<RunLock>, RunDirError> {
        use rustix::io::Errno;
        match self.lock() {
            Err(RunDirError::Create { source, .. })
                if [Errno::NOLCK, Errno::NOSYS, Errno::OPNOTSUPP]
                    .iter()
                    .any(|none| source.raw_os_error() == Some(none.raw_os_error())) =>
            {
                Ok(None)
            }
            locked => locked.map(Some),
        }
    }

    /// Whether a run holds the directory. Nothing is made in it; where there is no lock, or it cannot be asked, nobody does.
    ///
    /// # Errors
    /// [`RunDirError::Busy`].
    pub fn check_idle(&self) -> Result<(), RunDirError> {
        // Whoever may write there may have put anything in its place.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(self.at.join("lock"));
        let Ok(file) = file else { return Ok(()) };
        if is_locked(&file) { Err(RunDirError::Busy { path: self.path.clone() }) } else { Ok(()) }
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
                .any(|name| self.at.join(name.replace("{n}", &n.to_string())).exists())
        };
        let number = (1..).find(|n| !taken(n)).unwrap_or(u32::MAX);
        for (from, to) in [
            (self.signed_job(), format!("job-{number}.signed")),
            (self.cluster_file(), format!("cluster-{number}.toml")),
        ] {
            match std::fs::copy(from, self.at.join(to)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        for gone in [self.identities(), self.authority()] {
            match std::fs::remove_dir_all(gone) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
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
    _file: Locked,
}

fn make_private(path: &Path, recursive: bool) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(recursive);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_directory_that_is_locked_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(&folder.path().join("run")).unwrap();
        run.check_idle().unwrap();
        let lock = run.lock_if_kept().unwrap();
        assert!(matches!(run.check_idle(), Err(RunDirError::Busy { .. })));
        assert!(matches!(run.lock_if_kept(), Err(RunDirError::Busy { .. })));
        drop(lock);
        run.check_idle().unwrap();
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
        assert_eq!(RunDir::open(&path).unwrap().path(), run.path());
        assert!(RunDir::open(&folder.path().join("none")).is_err());

        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(matches!(RunDir::create(&folder.path().join("file")), Err(RunDirError::Exists { .. })));
        let error = RunDir::create(&folder.path().join("file/run")).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }

    /// Invariant 4: it is found although it is called something else by now, and is still called what it was.
    #[test]
    fn a_held_directory_is_reached_through_its_descriptor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let run = RunDir::create(&path).unwrap().hold().unwrap();
        std::fs::rename(&path, folder.path().join("moved")).unwrap();
        std::fs::write(run.metrics(), "here").unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("moved/metrics.jsonl")).unwrap(), "here");
        assert_eq!(run.path(), path);
        assert_eq!(run.reach(&path.join("logs/a.log")), run.logs().join("a.log"));
        assert_eq!(run.reach(Path::new("/elsewhere")), Path::new("/elsewhere"));
        // No process has so many descriptors: another test's folder is not one of them.
        let other = format!("{}7777777/x: no", run.at.display());
        let said = in_words(&format!("{}: no; {other}", run.summary().display()));
        assert_eq!(said, format!("{}: no; {other}", path.join("summary.json").display()));
        let again = RunDir::of_descriptor(&path, run.descriptor().unwrap().try_clone_to_owned().unwrap());
        assert_eq!(std::fs::read_to_string(again.metrics()).unwrap(), "here");
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
        let run = RunDir::named(PathBuf::from("/r"));
        let names = [
            (run.cluster_file(), "cluster.toml"),
            (run.signed_job(), "job.signed"),
            (run.control(), "control.json"),
            (run.dashboard(), "dashboard.url"),
            (run.metrics(), "metrics.jsonl"),
            (run.summary(), "summary.json"),
            (run.loss_plot(), "loss.svg"),
            (run.model(), "checkpoint/final/model.safetensors"),
            (run.log("scheduler", 0), "logs/scheduler-0.log"),
            (run.identity("server", 12), "identities/server-12"),
            (run.authority(), "ca"),
        ];
        for (path, name) in names {
            assert_eq!(path, Path::new("/r").join(name));
        }
    }
}
