//! Whose word a path is that a cluster file names, and with whose rights it is opened.
//!
//! Whoever gives a command names what is in the cluster file that the command names. A run directory is another matter: it is
//! its user's, who may have written anything into the cluster file there since. If root resumes the run, a path in that file
//! must not open what that user could not open: data would be handed to a node of that user's, a key of root's would sign that
//! user's model.
//!
//! 1. As root, in a run directory that is not root's, the cluster file and the inputs that it names are opened with the rights of
//!    the directory's owner, whoever the run goes on as, `--allow-root` or not.
//! 2. Excepted is what root has named itself: on this command line (`--set`), or when it started the run (`rundir/inputs.rs`); and what a
//!    variable of its own environment names, which is no word of the directory's.

use std::fmt::Display;
use std::path::Path;

use crate::error::Failure;
use crate::process::RunAs;
use crate::process::user::{is_root, try_as};
use crate::rundir::{RunDir, in_words, inputs};

/// Who named the inputs of a run.
#[derive(Debug)]
pub(super) struct Naming<'a> {
    /// The user whose word the cluster file is; `None` if it is this process's own.
    author: Option<Author>,
    /// `--set`, as given.
    overrides: &'a [String],
}

#[derive(Debug)]
struct Author {
    user: RunAs,
    /// What root named when it started the run.
    roots: Vec<std::path::PathBuf>,
}

impl<'a> Naming<'a> {
    /// For the run in the directory `former`, or for a new one.
    pub(super) fn of(former: Option<&RunDir>, overrides: &'a [String]) -> Result<Self, Failure> {
        let mine = Ok(Naming { author: None, overrides });
        let Some(run_dir) = former.filter(|_| is_root()) else { return mine };
        let owner = run_dir.owner().map_err(|e| Failure::file(run_dir.path(), "cannot be looked at", e))?;
        if owner == 0 {
            return mine;
        }
        let user = RunAs::find(&owner.to_string()).map_err(Failure::misconfigured)?;
        let roots = run_dir.descriptor().map(inputs::recorded).unwrap_or_default();
        Ok(Naming { author: Some(Author { user, roots }), overrides })
    }

    /// Whether the cluster file is the word of whoever runs this process.
    pub(super) fn is_mine(&self) -> bool {
        self.author.is_none()
    }

    /// Reads the cluster file itself, or does whatever else only its author may see the outcome of.
    pub(super) fn read<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T, Failure> {
        try_as(self.author.as_ref().map(|author| &author.user), act).map_err(Failure::misconfigured)
    }

    /// Opens the input `path`, the value of `key`.
    pub(super) fn open<T: Send, E: Display + Send>(
        &self,
        key: &str,
        path: &Path,
        act: impl FnOnce() -> Result<T, E> + Send,
    ) -> Result<T, Failure> {
        let author = self.author.as_ref().filter(|author| {
            let is_set = |set: &String| set.split_once('=').is_some_and(|(name, _)| name.trim() == key);
            !author.roots.iter().any(|root| root == path) && !self.overrides.iter().any(is_set)
        });
        let Some(Author { user, .. }) = author else { return act().map_err(Failure::misconfigured) };
        let opened = try_as(Some(user), act).map_err(Failure::misconfigured)?;
        opened.map_err(|why| {
            Failure::misconfigured(format!(
                "{}\n{key} is named by the run directory, which is the user {}'s, and so is opened with that user's rights; if you \
                 mean this file, name it yourself: --set {key}={}",
                in_words(&why.to_string()),
                user.name(),
                path.display()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariants 1 and 2. Checks nothing for others than root.
    #[test]
    fn what_a_runs_user_names_is_opened_with_that_users_rights() {
        if !is_root() {
            return;
        }
        let user = RunAs::find("3141592").unwrap();
        let who = || Ok::<u32, String>(rustix::process::geteuid().as_raw());
        let fails = || Err::<(), String>("it is not there".to_owned());
        let none: Vec<String> = Vec::new();
        let naming = |overrides| Naming {
            author: Some(Author { user: user.clone(), roots: vec!["/roots".into()] }),
            overrides,
        };
        let theirs = naming(&none);
        assert_eq!(theirs.open("data.path", Path::new("/theirs"), who).unwrap(), 3_141_592);
        assert_eq!(theirs.read(|| rustix::process::geteuid().as_raw()).unwrap(), 3_141_592);
        let refused = theirs.open("data.path", Path::new("/theirs"), fails).unwrap_err().message;
        assert!(refused.contains("--set data.path=/theirs") && refused.contains("3141592"), "{refused}");
        assert_eq!(theirs.open("data.path", Path::new("/roots"), who).unwrap(), 0, "root named it");
        let set = vec!["data.path=/theirs".to_owned(), " training.seed =1".to_owned()];
        assert_eq!(naming(&set).open("data.path", Path::new("/theirs"), who).unwrap(), 0);
        assert_eq!(naming(&set).open("checkpoint.sign_key", Path::new("/theirs"), who).unwrap(), 3_141_592);
        let mine = Naming { author: None, overrides: &none };
        assert_eq!(mine.open("data.path", Path::new("/theirs"), who).unwrap(), 0);
        assert_eq!(rustix::process::geteuid().as_raw(), 0, "only a thread of its own became another");
    }
}
