//! Training does not wait for checkpoints: while a part or a manifest is being written, steps are taken. No clock decides these
//! tests: a disk stands still until so many steps were taken beyond the checkpoint, which never happens if training waits for it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use testudo_actors::checkpoint::{
    Commit, Committed, Ledger, PartReceipt, PartSource, PartWriter, ServerSetup, Snapshot,
};
use testudo_actors::server::SumOrder;
use testudo_actors::{CheckpointError, Checkpoints, JobSpec, Resume};
use testudo_tests::cluster::{Cluster, Links, Site, Wiring};
use testudo_tests::sim::Simulation;
use testudo_tests::toy;

const STEPS: u64 = 11;
/// The first checkpoint's step, and every so many after it.
const EVERY: u64 = 2;
/// Steps that are complete before the disk goes on: two more checkpoints fall due meanwhile.
const MEANWHILE: u64 = 8;

/// Only a run that waits for its disk reaches this.
const HANG: Duration = Duration::from_secs(60);

/// A disk that stands still while it writes the first checkpoint.
#[derive(Clone)]
struct Disk {
    /// Steps taken, as the ledger of the test is told of them.
    taken: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Whether parts are what it stands still with; else manifests.
    parts: bool,
    committed: Arc<Mutex<Vec<u64>>>,
}

impl Disk {
    fn stand_still(&self) -> Result<(), CheckpointError> {
        let begun = Instant::now();
        while (self.taken)() < MEANWHILE {
            if begun.elapsed() > HANG {
                return Err(CheckpointError("training waits for the disk".into()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl ServerSetup for Disk {
    fn writer(&mut self, _: &JobSpec, _: u32) -> Result<Box<dyn PartWriter>, String> {
        Ok(Box::new(self.clone()))
    }

    fn source(&mut self, _: &JobSpec, _: &Resume) -> Result<Box<dyn PartSource>, String> {
        Err("nothing is resumed".into())
    }
}

impl PartWriter for Disk {
    fn write(&mut self, snapshot: &Snapshot) -> Result<PartReceipt, CheckpointError> {
        if self.parts && snapshot.version == EVERY {
            self.stand_still()?;
        }
        Ok(PartReceipt { bytes: 1, blake3: [0; 32] })
    }
}

impl Ledger for Disk {
    fn commit(&mut self, commit: &Commit) -> Result<Committed, CheckpointError> {
        if !self.parts && commit.step == EVERY {
            self.stand_still()?;
        }
        self.committed.lock().unwrap().push(commit.step);
        Ok(Committed { step: commit.step, manifest_blake3: [0; 32], deleted: Vec::new() })
    }
}

fn job(checkpoints: Checkpoints) -> JobSpec {
    JobSpec { checkpoints, ..toy::unhurried(toy::job(2, 2, 4, STEPS)) }
}

/// The steps of the checkpoints of a run whose disk stands still while the first is written; the run has an undisturbed one's bits.
fn committed(parts: bool, links: Links) -> Vec<u64> {
    let steps = Arc::new(Mutex::new(None::<Arc<Mutex<Vec<_>>>>));
    let seen = Arc::clone(&steps);
    let taken = Arc::new(move || {
        let steps = seen.lock().unwrap().clone();
        steps.map_or(0, |steps: Arc<Mutex<Vec<testudo_actors::scheduler::StepSummary>>>| {
            steps.lock().unwrap().len() as u64
        })
    });
    let disk = Disk { taken, parts, committed: Arc::default() };
    let (ours, ledger) = (disk.clone(), Box::new(disk.clone()));
    let wiring = Wiring {
        checkpoints: Box::new(move |_| Box::new(ours.clone())),
        ledger: Some(ledger),
        ..Wiring::default()
    };
    let checkpoints = Checkpoints { every_steps: EVERY, at_end: true };
    let cluster = Cluster::start_with(Site::new(job(checkpoints), links), wiring);
    *steps.lock().unwrap() = Some(Arc::clone(&cluster.steps.0));
    let (finished, _) = cluster.finish();
    let undisturbed = Simulation::new(job(Checkpoints::default()), 0, SumOrder::Canonical).finish();
    assert_eq!(finished.params_blake3, undisturbed.params_blake3);
    let committed = disk.committed.lock().unwrap();
    committed.clone()
}

/// Invariant 2 of `actors/src/server/snapshot.rs`: six steps are taken while the parts of step 2 are written, and the checkpoints that
/// fall due meanwhile are skipped; the last one of the run is not.
#[test]
fn steps_are_taken_while_parts_are_written_and_what_falls_due_is_skipped() {
    for links in [Links::Memory, Links::Quic] {
        let committed = committed(true, links);
        assert_eq!((committed.first(), committed.last()), (Some(&EVERY), Some(&STEPS)), "{committed:?}");
        assert!(!committed.contains(&4) && !committed.contains(&6), "{committed:?}");
    }
}

/// The same while the manifest of step 2 is written. Parts are written meanwhile; manifests follow in the order of their steps.
#[test]
fn steps_are_taken_while_a_manifest_is_written() {
    let committed = committed(false, Links::Memory);
    assert_eq!((committed.first(), committed.last()), (Some(&EVERY), Some(&STEPS)), "{committed:?}");
    assert!(committed.is_sorted_by(|one, next| one < next), "{committed:?}");
}
