//! A crash at every write (invariant 1; threats, class G): what is found afterwards is whole.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use testudo_kernels::Codec;

use super::site::{Site, shard_residuals, values};
use crate::checkpoint::load;
use crate::checkpoint::part::Frame;
use crate::checkpoint::resume;
use crate::checkpoint::retention::Retention;
use crate::checkpoint::storage::{Disk, Output, Storage};

/// What a crash may undo, because nobody has waited for it to be on disk.
#[derive(Debug)]
enum Unsynced {
    /// A name was given; what had it before.
    Renamed { from: PathBuf, to: PathBuf, before: Option<Vec<u8>> },
    /// A file was removed; what it was.
    Removed { path: PathBuf, before: Vec<u8> },
}

impl Unsynced {
    fn folder(&self) -> &Path {
        let (Unsynced::Renamed { to: path, .. } | Unsynced::Removed { path, .. }) = self;
        path.parent().unwrap()
    }
}

#[derive(Debug, Default)]
struct State {
    /// Operations until the crash.
    left: usize,
    crashed: bool,
    names: Vec<Unsynced>,
    files: HashSet<PathBuf>,
}

/// A file system that crashes at one operation, in the middle of it if it is a write, and does nothing from then on.
#[derive(Debug, Clone)]
struct Crashing(Arc<Mutex<State>>);

struct CrashingFile {
    inner: Box<dyn Output>,
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

fn crash() -> io::Error {
    io::Error::other("crash")
}

impl Crashing {
    fn after(operations: usize) -> Arc<Crashing> {
        Arc::new(Crashing(Arc::new(Mutex::new(State { left: operations, ..State::default() }))))
    }

    fn operation(&self) -> io::Result<()> {
        step(&mut self.0.lock().unwrap())
    }

    fn has_crashed(&self) -> bool {
        self.0.lock().unwrap().crashed
    }

    /// Everything that was not waited for is lost: names are what they were, files end in the middle.
    fn lose_what_is_not_synced(&self) {
        let mut state = self.0.lock().unwrap();
        for path in state.files.drain() {
            if let Ok(file) = std::fs::OpenOptions::new().write(true).open(path) {
                let len = file.metadata().unwrap().len();
                file.set_len(len / 2).unwrap();
            }
        }
        for unsynced in state.names.drain(..).rev() {
            match unsynced {
                Unsynced::Renamed { from, to, before } => {
                    if std::fs::rename(&to, &from).is_ok()
                        && let Some(before) = before
                    {
                        std::fs::write(to, before).unwrap();
                    }
                }
                // A folder that is gone is not missed: it was recorded before.
                Unsynced::Removed { path, before } => drop(std::fs::write(path, before)),
            }
        }
    }
}

fn step(state: &mut State) -> io::Result<()> {
    if state.left == 0 || state.crashed {
        state.crashed = true;
        return Err(crash());
    }
    state.left -= 1;
    Ok(())
}

impl Write for CrashingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Err(error) = step(&mut self.state.lock().unwrap()) {
            let _ = self.inner.write(&bytes[..bytes.len() / 2]);
            return Err(error);
        }
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Output for CrashingFile {
    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        step(&mut state)?;
        state.files.remove(&self.path);
        drop(state);
        self.inner.sync()
    }
}

impl Storage for Crashing {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.operation()?;
        Disk.create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        self.operation()?;
        let inner = Disk.create(path)?;
        self.0.lock().unwrap().files.insert(path.to_path_buf());
        Ok(Box::new(CrashingFile { inner, path: path.to_path_buf(), state: Arc::clone(&self.0) }))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        self.operation()?;
        // What was there before was waited for: only a crash in the middle of a write cuts this one.
        let inner = Disk.append(path)?;
        Ok(Box::new(CrashingFile { inner, path: path.to_path_buf(), state: Arc::clone(&self.0) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operation()?;
        let before = std::fs::read(to).ok();
        Disk.rename(from, to)?;
        let (from, to) = (from.to_path_buf(), to.to_path_buf());
        let mut state = self.0.lock().unwrap();
        if state.files.remove(&from) {
            state.files.insert(to.clone());
        }
        state.names.push(Unsynced::Renamed { from, to, before });
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.operation()?;
        self.0.lock().unwrap().names.retain(|unsynced| unsynced.folder() != path);
        Disk.sync_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.operation()?;
        if let Ok(before) = std::fs::read(path) {
            self.0.lock().unwrap().names.push(Unsynced::Removed { path: path.to_path_buf(), before });
        }
        Disk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.operation()?;
        Disk.remove_dir_all(path)
    }
}

/// Step 4 is there; a run that resumed from it crashes at every operation in turn while it writes steps 8 and 12 (the second
/// deletes what the first was to replace). What is found afterwards is whole, the newest that was told to be there or a later
/// one, and the run goes on from it.
#[test]
fn a_crash_at_every_write_leaves_the_last_one_whole() {
    for lossy in [false, true] {
        let mut operations = 0;
        loop {
            let site = Site::with_codec(Codec::Int8);
            site.write(4, 2);
            let resume =
                |site: &Site| resume::resume(&site.job, &site.checkpoints().newest(None).unwrap()).unwrap();
            let storage = Crashing::after(operations);
            let keep = Retention { keep_last: 1, max_age: None };
            let mut told = 4;
            let opened = site.ledger_on(Arc::clone(&storage) as Arc<dyn Storage>, Some(resume(&site)), keep);
            if let Ok(mut ledger) = opened {
                for step in [8, 12] {
                    if site.write_on(&storage, &mut ledger, step, 2).is_ok() {
                        told = step;
                    }
                }
            }
            if lossy {
                storage.lose_what_is_not_synced();
            }
            let at = format!("crash at operation {operations}, lossy: {lossy}");

            let all = site.checkpoints();
            let whole = all.newest(None).unwrap_or_else(|error| panic!("{at}: {error}"));
            assert!(whole.step() >= told, "{at}: {} was told, {} is found", told, whole.step());
            all.check_parts(&whole).unwrap_or_else(|error| panic!("{at}: {error}"));
            let frame = Frame::new(&site.job, whole.step()).unwrap();
            let loaded = load::load_all(all.layout(), &whole.manifest, &site.identities(), &frame).unwrap();
            for parameter in loaded {
                assert_eq!(parameter.weights, values(whole.step(), 0.0, 0, parameter.weights.len()), "{at}");
            }
            let shards = [0, 1, 2, 3];
            let residuals =
                load::residuals(all.layout(), &whole.manifest, &site.identities(), &frame, &shards).unwrap();
            for (shard, kept) in shards.into_iter().zip(residuals) {
                assert_eq!(kept, shard_residuals(&site.job, shard, whole.step()), "{at}");
            }
            let mut checked = Vec::new();
            let problems = all.verify(&mut checked).unwrap();
            // One that was being deleted may be there in part: it was recorded, and is not whole.
            assert!(problems.is_empty(), "{at}: {problems:?}");

            // The run goes on, and what was left half-written is gone.
            let mut ledger = site.ledger_on(Arc::new(Disk), Some(resume(&site)), keep).unwrap();
            assert!(site.checkpoints().unfinished().unwrap().is_empty(), "{at}: left behind");
            site.write_with(&mut ledger, 16, 3).unwrap_or_else(|error| panic!("{at}: {error}"));
            assert_eq!(site.checkpoints().newest(None).unwrap().step(), 16, "{at}");
            assert_eq!(site.checkpoints().steps().unwrap(), [16], "{at}");
            if !storage.has_crashed() {
                assert!(operations > 60, "{operations} operations are not two checkpoints");
                break;
            }
            operations += 1;
        }
    }
}

/// Steps 4, 8 and 12 are there, and a run that goes on from step 4 crashes at every operation in turn while it puts the others
/// aside. What is found afterwards is a whole chain: a plain resume goes on from its end, and one from step 4 puts the rest aside.
#[test]
fn a_crash_while_checkpoints_are_put_aside_leaves_a_chain() {
    for (lossy, from_four) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut operations = 0;
        loop {
            let site = Site::new();
            for step in [4, 8, 12] {
                site.write(step, 2);
            }
            let keep = Retention { keep_last: 9, max_age: None };
            let resume = |at_most| {
                let whole = site.checkpoints().newest(at_most)?;
                resume::resume(&site.job, &whole)
            };
            let storage = Crashing::after(operations);
            let fourth = resume(Some(4)).unwrap();
            drop(site.ledger_on(Arc::clone(&storage) as Arc<dyn Storage>, Some(fourth), keep));
            if lossy {
                storage.lose_what_is_not_synced();
            }
            let at = format!("crash at operation {operations}, lossy: {lossy}, from step 4: {from_four}");

            let all = site.checkpoints();
            let whole = all.newest(None).unwrap_or_else(|error| panic!("{at}: {error}"));
            all.check_parts(&whole).unwrap_or_else(|error| panic!("{at}: {error}"));
            let problems = all.verify(&mut Vec::new()).unwrap();
            assert!(problems.is_empty(), "{at}: {problems:?}");

            let left: Vec<u64> = if from_four { vec![4] } else { all.steps().unwrap() };
            let resumed = resume(from_four.then_some(4)).unwrap_or_else(|error| panic!("{at}: {error}"));
            let mut ledger = site.ledger_on(Arc::new(Disk), Some(resumed), keep).unwrap();
            site.write_with(&mut ledger, 16, 3).unwrap_or_else(|error| panic!("{at}: {error}"));
            let newest = site.checkpoints().newest(None).unwrap_or_else(|error| panic!("{at}: {error}"));
            assert_eq!(newest.step(), 16, "{at}");
            assert_eq!(site.checkpoints().steps().unwrap(), [&left[..], &[16]].concat(), "{at}");
            if !storage.has_crashed() {
                assert_eq!(all.steps().unwrap(), [4, 16], "{at}");
                assert!(operations > 10, "{operations} operations put nothing aside");
                break;
            }
            operations += 1;
        }
    }
}
