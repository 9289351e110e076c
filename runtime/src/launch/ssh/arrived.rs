//! What workers on hosts send at their end, and which of it is the run's final model.
//!
//! 1. What each worker sends is kept apart, and is bounded.
//! 2. Only what is, byte for byte, the model that the scheduler reported is put in the model's place ([`Reported`]), when the run is
//!    over; all else is removed, and its worker's log says so.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use testudo_kernels::ModelSpec;

use super::{names, parcel};
use crate::checkpoint::safetensors::Metadata;
use crate::launch::ToStart;
use crate::rundir::RunDir;
use crate::signing::export::{ExportError, Reported};

/// What is called so, with the worker's role and index, came from that worker.
const ARRIVING: &str = "arriving-";

/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;

fn path(run_dir: &RunDir, node: &ToStart) -> PathBuf {
    run_dir.checkpoints().join(format!("{ARRIVING}{}-{}", node.role, node.index))
}

/// Keeps what the node sends, if it is called a model and has at most `most` bytes. A node that is killed sends nothing.
pub(super) fn take(
    from: &mut impl Read,
    run_dir: &RunDir,
    node: &ToStart,
    most: u64,
) -> Result<(), parcel::ParcelError> {
    let arriving = path(run_dir, node);
    let taken = parcel::take(from, most, &mut |name, contents| {
        if name != names::MODEL {
            return Err(std::io::Error::other(format!("it is called {name}")));
        }
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&arriving)?;
        std::io::copy(contents, &mut file)?;
        file.sync_all()
    });
    if taken.is_err() {
        let _ = std::fs::remove_file(&arriving);
    }
    taken.map(|_| ())
}

/// Says in the node's log why what it sent was not taken.
pub(super) fn refuse(run_dir: &RunDir, node: &ToStart, why: &dyn std::fmt::Display) {
    let note = format!("what {}/{} sent at its end was not taken: {why}\n", node.role, node.index);
    let log = OpenOptions::new().append(true).open(run_dir.log(node.role.as_str(), node.index));
    let _ = log.and_then(|mut log| log.write_all(note.as_bytes()));
}

/// Puts the model that the scheduler reported in its place, if one of `nodes` has sent it (invariant 2); returns whether.
///
/// # Errors
/// [`ExportError`] where the job's model has no description; the operating system's refusals are those of one node's file.
pub(super) fn settle(
    run_dir: &RunDir,
    nodes: impl IntoIterator<Item = ToStart>,
    model: &ModelSpec,
    metadata: &Metadata,
) -> Result<bool, ExportError> {
    let mut placed = false;
    for node in nodes {
        let arriving = path(run_dir, &node);
        if !arriving.exists() {
            continue;
        }
        match compare(&arriving, Reported::new(model, metadata)?) {
            Ok(()) if !placed => match std::fs::rename(&arriving, run_dir.model()) {
                Ok(()) => placed = true,
                Err(error) => refuse(run_dir, &node, &error),
            },
            Ok(()) => {}
            Err(why) => refuse(run_dir, &node, &why),
        }
        let _ = std::fs::remove_file(&arriving);
    }
    Ok(placed)
}

/// `Err` says why the file is not the model that was reported.
fn compare(arrived: &Path, mut reported: Reported) -> Result<(), String> {
    let mut file = File::open(arrived).map_err(|e| e.to_string())?;
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk).map_err(|e| e.to_string())? {
            0 => break,
            count => reported.update(chunk.get(..count).unwrap_or_default()),
        }
    }
    reported.finish().map_err(|what| format!("it is not the model that the scheduler reported ({what})"))
}

#[cfg(test)]
mod tests {
    use testudo_transport::Role;

    use super::*;
    use crate::checkpoint::safetensors::{self, Tensor};

    fn worker(index: u32) -> ToStart {
        ToStart { role: Role::Worker, index, scheduler: None }
    }

    /// Invariant 1: what is no model, too large, or cut, is not kept.
    #[test]
    fn only_a_model_that_came_whole_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = RunDir::create(&folder.path().join("run")).unwrap();
        let take = |parcel: &[u8]| take(&mut &*parcel, &run_dir, &worker(0), 4).is_ok();
        let parcel = |name: &str, bytes: &[u8]| parcel::pack(&[(name, bytes)]).unwrap();
        let good = parcel(names::MODEL, b"1234");
        let (other, large) = (parcel("model.sig", b"1"), parcel(names::MODEL, b"12345"));
        let alone = || std::fs::read_dir(run_dir.checkpoints()).unwrap().count() == 1;
        for bad in [other.as_slice(), &large, &good[..good.len() - 2]] {
            assert!(!take(bad) && alone(), "`final` alone is there");
        }
        assert!(take(b"") && alone(), "a node that was killed");
        assert!(take(&good));
        assert_eq!(std::fs::read(path(&run_dir, &worker(0))).unwrap(), b"1234");
        assert!(!run_dir.model().exists());
    }

    /// Invariant 2: whoever else sends something, before or after, the model is the one that was reported.
    #[test]
    fn a_host_that_sends_another_model_replaces_none() {
        let spec = ModelSpec::Mlp { inputs: 3, hidden: vec![], classes: 2 };
        let values: Vec<f32> = (0..8).map(|i| i as f32 - 2.5).collect();
        let mut hasher = blake3::Hasher::new();
        hasher.update(bytemuck::cast_slice(&values[6..]));
        hasher.update(bytemuck::cast_slice(&values[..6]));
        let metadata = Metadata {
            job: "job".into(),
            step: 7,
            params_blake3: *hasher.finalize().as_bytes(),
            model: Some(serde_json::to_string(&spec).unwrap()),
        };
        let file = |values: &[f32]| {
            let folder = tempfile::tempdir().unwrap();
            let tensors = [
                Tensor { name: "fc1.weight", shape: &[2, 3], values: &values[..6] },
                Tensor { name: "fc1.bias", shape: &[2], values: &values[6..] },
            ];
            let path = folder.path().join("model");
            safetensors::write(&path, &tensors, &metadata).unwrap();
            std::fs::read(path).unwrap()
        };
        let (good, other) = (file(&values), file(&[0.0; 8]));
        for honest in [Some(0), Some(1), Some(2), None] {
            let folder = tempfile::tempdir().unwrap();
            let run_dir = RunDir::create(&folder.path().join("run")).unwrap();
            for index in 0..3 {
                std::fs::write(run_dir.log("worker", index), "").unwrap();
                let sent = if honest == Some(index) { &good } else { &other };
                let parcel = parcel::pack(&[(names::MODEL, sent)]).unwrap();
                take(&mut parcel.as_slice(), &run_dir, &worker(index), 1 << 20).unwrap();
            }
            let placed = settle(&run_dir, (0..3).map(worker), &spec, &metadata).unwrap();
            assert_eq!(placed, honest.is_some());
            assert_eq!(std::fs::read(run_dir.model()).ok(), honest.map(|_| good.clone()));
            assert_eq!(std::fs::read_dir(run_dir.checkpoints()).unwrap().count(), 1, "nothing is left over");
            for index in (0..3).filter(|index| honest != Some(*index)) {
                let log = std::fs::read_to_string(run_dir.log("worker", index)).unwrap();
                assert!(log.contains("its values are others"), "{log}");
            }
        }
    }
}
