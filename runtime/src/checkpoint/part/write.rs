//! Writing a part: its header, then its tensors, encrypted and hashed as they go.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use age::x25519;
use serde::Serialize;
use testudo_actors::checkpoint::{PartReceipt, ResidualSnapshot, SliceSnapshot, Snapshot};

use super::{BUFFER, EXTRA, FORMAT, Frame, HEADER_MOST, Holder, residual};
use crate::checkpoint::storage::{Output, Storage};
use crate::checkpoint::{CheckpointError, storage};

#[derive(Serialize)]
struct Entry {
    dtype: &'static str,
    shape: [usize; 1],
    data_offsets: [usize; 2],
}

#[derive(Serialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    metadata: BTreeMap<&'static str, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, Entry>,
}

/// A tensor, whose values lie in pieces.
struct Tensor<'a> {
    name: String,
    values: Values<'a>,
}

enum Values<'a> {
    /// One number of the optimizer's.
    Wide(f64),
    /// f32, one piece after the other.
    Pieces(Vec<&'a [f32]>),
}

impl Tensor<'_> {
    fn dtype(&self) -> &'static str {
        match self.values {
            Values::Wide(_) => "F64",
            Values::Pieces(_) => "F32",
        }
    }

    fn elements(&self) -> usize {
        match &self.values {
            Values::Wide(_) => 1,
            Values::Pieces(pieces) => pieces.iter().map(|piece| piece.len()).sum(),
        }
    }

    fn bytes(&self) -> usize {
        self.elements() * if matches!(self.values, Values::Wide(_)) { 8 } else { 4 }
    }
}

/// Encrypts `snapshot` to `recipients` and stores it at `path`, whole or not at all.
///
/// # Errors
/// [`CheckpointError::Io`]; what was at `path` before is still there then.
pub fn write(
    storage: &dyn Storage,
    path: &Path,
    frame: &Frame,
    snapshot: &Snapshot,
    recipients: &[x25519::Recipient],
) -> Result<PartReceipt, CheckpointError> {
    let holder = (Holder::Server(snapshot.server), snapshot.version);
    store(storage, path, frame, holder, slices(frame, snapshot), recipients)
}

/// As [`write()`], for the residuals of worker `worker`.
///
/// # Errors
/// As [`write()`].
pub fn write_residuals(
    storage: &dyn Storage,
    path: &Path,
    frame: &Frame,
    (worker, snapshot): (u32, &ResidualSnapshot),
    recipients: &[x25519::Recipient],
) -> Result<PartReceipt, CheckpointError> {
    let holder = (Holder::Worker(worker), snapshot.version);
    store(storage, path, frame, holder, residuals(frame, snapshot), recipients)
}

fn store(
    storage: &dyn Storage,
    path: &Path,
    frame: &Frame,
    (holder, step): (Holder, u64),
    tensors: io::Result<Vec<Tensor<'_>>>,
    recipients: &[x25519::Recipient],
) -> Result<PartReceipt, CheckpointError> {
    let write = |temporary: &Path| {
        let tensors = tensors?;
        let header = header(&frame.job, holder, step, &tensors)?;
        write_stream(storage, temporary, &header, &tensors, recipients)
    };
    storage::replace_with(storage, path, write).map_err(CheckpointError::io("write", path))
}

fn write_stream(
    storage: &dyn Storage,
    path: &Path,
    header: &[u8],
    tensors: &[Tensor<'_>],
    recipients: &[x25519::Recipient],
) -> io::Result<PartReceipt> {
    let output = Hashed { inner: storage.create(path)?, hasher: blake3::Hasher::new(), bytes: 0 };
    let recipients = recipients.iter().map(|r| r as &dyn age::Recipient);
    let encryptor = age::Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
    let mut stream = encryptor.wrap_output(BufWriter::with_capacity(BUFFER, output))?;
    stream.write_all(&(header.len() as u64).to_le_bytes())?;
    stream.write_all(header)?;
    for tensor in tensors {
        match &tensor.values {
            Values::Wide(value) => stream.write_all(&value.to_le_bytes())?,
            Values::Pieces(pieces) => {
                for piece in pieces {
                    stream.write_all(bytemuck::cast_slice(piece))?;
                }
            }
        }
    }
    let mut output = stream.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    output.inner.sync()?;
    Ok(PartReceipt { bytes: output.bytes, blake3: *output.hasher.finalize().as_bytes() })
}

/// A server's tensors: slices that follow each other within a parameter together.
fn slices<'a>(frame: &Frame, snapshot: &'a Snapshot) -> io::Result<Vec<Tensor<'a>>> {
    let follows = |a: &SliceSnapshot, b: &SliceSnapshot| {
        a.slice.id.parameter == b.slice.id.parameter && a.slice.first + a.slice.elements == b.slice.first
    };
    let runs: Vec<&[SliceSnapshot]> = snapshot.slices.chunk_by(follows).collect();
    let name = |first: &SliceSnapshot, kind: &str| {
        let parameter = frame.parameters.get(first.slice.id.parameter as usize);
        let (name, _) = parameter.ok_or_else(|| io::Error::other("a slice of no parameter"))?;
        io::Result::Ok(format!("{kind}/{name}@{}", first.slice.first))
    };
    let mut tensors = Vec::new();
    // The wider numbers first, so that all are aligned.
    for first in runs.iter().filter_map(|run| run.first()) {
        if first.scalars.len() != frame.scalars.len() {
            return Err(io::Error::other("a slice with another optimizer's state"));
        }
        for (kind, value) in frame.scalars.iter().zip(&first.scalars) {
            tensors.push(Tensor { name: name(first, kind)?, values: Values::Wide(*value) });
        }
    }
    for run in runs {
        let Some(first) = run.first() else { continue };
        for (at, kind) in frame.kinds.iter().enumerate() {
            let values = |slice: &'a SliceSnapshot| match at {
                0 => slice.weights.as_slice(),
                state => slice.state.get(state - 1).map_or(&[][..], Vec::as_slice),
            };
            let pieces = run.iter().map(values).collect();
            tensors.push(Tensor { name: name(first, kind)?, values: Values::Pieces(pieces) });
        }
    }
    Ok(tensors)
}

/// A worker's tensors: whole parameters.
fn residuals<'a>(frame: &Frame, snapshot: &'a ResidualSnapshot) -> io::Result<Vec<Tensor<'a>>> {
    let mut tensors = Vec::new();
    for shard in &snapshot.shards {
        let (found, wanted) = (shard.values.iter().map(Vec::len), frame.parameters.iter().map(|p| p.1));
        if !found.eq(wanted) {
            return Err(io::Error::other("residuals of another model"));
        }
        let kind = residual(shard.shard);
        for ((name, _), values) in frame.parameters.iter().zip(&shard.values).filter(|(_, v)| !v.is_empty()) {
            let values = Values::Pieces(vec![values.as_slice()]);
            tensors.push(Tensor { name: format!("{kind}/{name}@0"), values });
        }
    }
    Ok(tensors)
}

fn header(job: &str, holder: Holder, step: u64, all: &[Tensor<'_>]) -> io::Result<Vec<u8>> {
    let (mut tensors, mut offset) = (BTreeMap::new(), 0);
    for tensor in all {
        let end = offset + tensor.bytes();
        let (dtype, shape) = (tensor.dtype(), [tensor.elements()]);
        tensors.insert(tensor.name.clone(), Entry { dtype, shape, data_offsets: [offset, end] });
        offset = end;
    }
    let (role, index) = holder.said();
    let metadata = BTreeMap::from([
        ("extra", EXTRA.to_owned()),
        ("format", FORMAT.to_owned()),
        ("job", job.to_owned()),
        (role, index),
        ("step", step.to_string()),
    ]);
    let mut bytes = serde_json::to_vec(&Header { metadata, tensors })?;
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    if bytes.len() as u64 > HEADER_MOST {
        let text = format!("{} tensors are more than one part holds: use more {role}s", all.len());
        return Err(io::Error::other(text));
    }
    Ok(bytes)
}

/// Counts and hashes what goes through.
struct Hashed {
    inner: Box<dyn Output>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..taken).unwrap_or(bytes));
        self.bytes += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
