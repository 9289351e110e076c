//! What classes G to I share: a run that was left behind, copies of it to spoil, and what must hold of a copy after an operation
//! that was refused: nothing in it has changed.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use testudo_tests::files::{self, text};
use testudo_tests::process::{self, Ended};

use crate::PROGRAM;

/// A command, the exit status that it must end with, and what it must say.
pub(crate) struct Expected<'a>(pub(crate) &'a [&'a str], pub(crate) i32, pub(crate) &'a [&'a str]);

/// A run, and room for copies.
pub(crate) struct Artefacts {
    folder: tempfile::TempDir,
    copies: u32,
    failed: Vec<String>,
}

impl Artefacts {
    /// Trains the small job with these options of `testudo run`.
    pub(crate) fn train(options: &[&str]) -> Artefacts {
        let folder = tempfile::tempdir().unwrap();
        let file = files::write_job(folder.path());
        let run = folder.path().join("run");
        let arguments =
            [&["run", text(&file), "--run-dir", text(&run), "--json", "--quiet"], options].concat();
        let _ = process::run(PROGRAM, &arguments, &run).succeeded();
        Artefacts { folder, copies: 0, failed: Vec::new() }
    }

    /// The run's directory.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// A copy of the run, owners and modes included.
    pub(crate) fn copy(&mut self) -> PathBuf {
        self.copies += 1;
        let copy = self.folder.path().join(format!("copy-{}", self.copies));
        let done =
            std::process::Command::new("cp").args(["-a", text(&self.path()), text(&copy)]).status().unwrap();
        assert!(done.success());
        copy
    }

    /// Has `spoil` change a copy. Each command of `commands` (with the copy's path for `DIR`) must then end with its exit status,
    /// say all of its words, print no panic, and leave every file of the copy as it was.
    pub(crate) fn case(&mut self, what: &str, spoil: impl FnOnce(&Path), commands: &[Expected<'_>]) {
        self.case_within(what, "", spoil, commands);
    }

    /// As [`case`](Artefacts::case), of commands that change other files than those whose paths in the run begin with `within`.
    pub(crate) fn case_within(
        &mut self,
        what: &str,
        within: &str,
        spoil: impl FnOnce(&Path),
        commands: &[Expected<'_>],
    ) {
        let copy = self.copy();
        spoil(&copy);
        let kept = |path: &PathBuf| path.strip_prefix(&copy).unwrap().to_str().unwrap().starts_with(within);
        let contents = || -> BTreeMap<PathBuf, Vec<u8>> {
            contents(&copy).into_iter().filter(|(path, _)| kept(path)).collect()
        };
        let before = contents();
        assert!(!before.is_empty());
        for Expected(arguments, code, words) in commands {
            let arguments: Vec<String> = arguments.iter().map(|a| a.replace("DIR", text(&copy))).collect();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let Ended { status, stdout, stderr } = process::run(PROGRAM, &arguments, &copy);
            let said = format!("{stdout}{stderr}");
            if status.code() != Some(*code) || !words.iter().all(|word| said.contains(word)) {
                self.failed
                    .push(format!("{what}: {arguments:?}: {status}, not {code} with {words:?}: {said}"));
            }
            if said.contains("panicked") {
                self.failed.push(format!("{what}: {arguments:?} panicked: {said}"));
            }
            let after = contents();
            if after != before {
                let changed: Vec<_> = after
                    .iter()
                    .filter(|(name, bytes)| before.get(*name) != Some(bytes))
                    .map(|(name, _)| name)
                    .collect();
                self.failed.push(format!("{what}: {arguments:?} changed {changed:?} or removed something"));
            }
        }
    }

    /// Fails with every case that failed.
    pub(crate) fn finish(self) {
        assert!(self.failed.is_empty(), "{}", self.failed.join("\n"));
    }
}

/// Every file under `folder` with its content, every link with its target, every folder. What goes while it is looked for is not
/// there.
pub(crate) fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let content = path.symlink_metadata().and_then(|metadata| {
                if metadata.is_symlink() {
                    return Ok(std::fs::read_link(&path)?.into_os_string().into_encoded_bytes());
                }
                if metadata.is_dir() {
                    folders.push(path.clone());
                    return Ok(Vec::new());
                }
                std::fs::read(&path)
            });
            match content {
                Ok(content) => drop(found.insert(path, content)),
                Err(why) => assert_eq!(why.kind(), ErrorKind::NotFound, "{}: {why}", path.display()),
            }
        }
    }
    found
}

/// Flips one bit of a file.
pub(crate) fn flip(path: &Path, byte: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = byte % bytes.len();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// Changes one character of Base64 in a file: the one `skip` characters behind the first `after`.
pub(crate) fn another(path: &Path, after: &str, skip: usize) {
    let mut text = std::fs::read_to_string(path).unwrap();
    let at = text.find(after).unwrap() + after.len() + skip;
    let other = if text[at..].starts_with('A') { "B" } else { "A" };
    text.replace_range(at..=at, other);
    std::fs::write(path, text).unwrap();
}
