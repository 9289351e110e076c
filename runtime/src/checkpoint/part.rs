//! One server's part of a checkpoint: a safetensors file inside an age file.
//!
//! The plaintext is a safetensors file of one-dimensional tensors. Slices that follow each other in a parameter make
//! one f32 tensor of each kind, called by what it is, the parameter and its first element there: `weights/fc1.weight@0`,
//! `velocity/fc1.weight@262144`, as the optimizer's program calls its states. Numbers that the program keeps of a parameter are f64
//! tensors of one element (`mu_product/fc1.weight@0`), before all others, and the same wherever a part of the parameter is. Under `__metadata__` stand `format`, `job`, `step`, `server`, and `extra`, the version of
//! whatever further state later features put beside parameters and optimizer state (as tensors `extra/...`); this build
//! writes and reads version 0, which is none.
//!
//! Reading trusts nothing (invariant 2 of [`super`]): sizes are checked before anything is allocated, values are streamed,
//! and [`read`] succeeds only if the file's BLAKE3 is the manifest's and age's last block was the last.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use age::x25519;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Serialize;
use testudo_actors::JobSpec;
use testudo_actors::checkpoint::{PartReceipt, SliceSnapshot, Snapshot};
use testudo_actors::placement::Slice;
use testudo_kernels::{Aggregation, ModelSpec, Program};

use super::keys::Identities;
use super::manifest::Manifest;
use super::resume::{AGGREGATION, PROGRAM};
use super::storage::{Output, Storage};
use super::{CheckpointError, storage};

/// What `__metadata__.format` says.
pub const FORMAT: &str = "testudo checkpoint part, format 1";
/// The version of state beside parameters and optimizer state: none yet.
const EXTRA: &str = "0";
/// The name of parameters among the kinds of tensors.
pub const WEIGHTS: &str = "weights";
/// What a rule keeps of the step before; no program's state can be called so.
pub const AGGREGATE: &str = "previous-aggregate";
/// Bytes of a part's header at most: a hundred thousand tensors' worth.
const HEADER_MOST: u64 = 16 << 20;
/// Bytes of an age header at most: many times that of as many recipients as a job can name.
const AGE_HEADER_MOST: u64 = 64 << 10;
/// Begins the last line of an age header.
const AGE_HEADER_END: &[u8] = b"\n--- ";
/// Bytes that are read or written at a time.
const BUFFER: usize = 1 << 20;
/// Values that are handed over at a time.
const VALUES: usize = 16 << 10;

/// What the parts of one checkpoint have in common: which tensors there can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The job's name.
    pub job: String,
    /// The step.
    pub step: u64,
    /// Every parameter's name and number of elements, in the model's order.
    pub parameters: Vec<(String, usize)>,
    /// What is kept of each element: [`WEIGHTS`], then the optimizer's state, then [`AGGREGATE`] under a rule that keeps it.
    pub kinds: Vec<String>,
    /// The numbers that the optimizer keeps of each parameter.
    pub scalars: Vec<String>,
}

impl Frame {
    /// The frame of a checkpoint of `job` at `step`.
    ///
    /// # Errors
    /// [`CheckpointError::OtherJob`] when the job's model is none.
    pub fn new(job: &JobSpec, step: u64) -> Result<Frame, CheckpointError> {
        Frame::with(&job.name, step, &job.model, &job.optimizer.program, job.aggregation)
    }

    fn with(
        job: &str,
        step: u64,
        model: &ModelSpec,
        program: &str,
        rule: Aggregation,
    ) -> Result<Frame, CheckpointError> {
        let parameters = model.parameters().map_err(|e| CheckpointError::OtherJob(e.to_string()))?;
        let program = Program::parse(program)
            .map_err(|e| CheckpointError::OtherJob(format!("its optimizer's program: {e}")))?;
        let kinds = std::iter::once(WEIGHTS).chain(program.state_tensors().iter().map(String::as_str));
        let kinds = kinds.chain(rule.keeps_aggregate().then_some(AGGREGATE));
        Ok(Frame {
            job: job.to_owned(),
            step,
            parameters: parameters.iter().map(|p| (p.name.clone(), p.shape.elements())).collect(),
            kinds: kinds.map(str::to_owned).collect(),
            scalars: program.scalar_states().iter().map(|state| state.name.clone()).collect(),
        })
    }

    /// The frame of the checkpoint that `manifest` describes, from what it says of model and optimizer.
    ///
    /// # Errors
    /// [`CheckpointError::OtherJob`] when that is no model or optimizer of this build.
    pub fn of(manifest: &Manifest) -> Result<Frame, CheckpointError> {
        let model = Frame::model(manifest)?;
        let program: String = setting(manifest, PROGRAM).map_err(|_| {
            let reason = "it does not state its optimizer's program, as versions before programs did not: only such a \
                          version can open it";
            CheckpointError::OtherJob(reason.into())
        })?;
        let rule = match manifest.settings.contains_key(AGGREGATION) {
            true => setting(manifest, AGGREGATION)?,
            false => Aggregation::Mean,
        };
        Frame::with(&manifest.job, manifest.step, &model, &program, rule)
    }

    /// The model that `manifest` names.
    ///
    /// # Errors
    /// As [`Frame::of`].
    pub fn model(manifest: &Manifest) -> Result<ModelSpec, CheckpointError> {
        setting(manifest, "model")
    }
}

fn setting<T: serde::de::DeserializeOwned>(manifest: &Manifest, name: &str) -> Result<T, CheckpointError> {
    let text = manifest.settings.get(name).map_or("", String::as_str);
    serde_json::from_str(text).map_err(|e| CheckpointError::OtherJob(format!("its {name} is {text:?}: {e}")))
}

/// A run of one kind of a parameter's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The parameter, in the model's order.
    pub parameter: usize,
    /// What it is, by its place in [`Frame::kinds`]; beyond those, in [`Frame::scalars`].
    pub kind: usize,
    /// Its first element in the parameter.
    pub first: usize,
    /// How many elements; one, if it is a scalar's.
    pub elements: usize,
}

/// A number that the optimizer keeps of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scalar {
    /// The parameter, in the model's order.
    pub parameter: usize,
    /// Which number, by its place in [`Frame::scalars`].
    pub scalar: usize,
    /// Its value.
    pub value: f64,
}

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
    let write = |temporary: &Path| write_stream(storage, temporary, frame, snapshot, recipients);
    storage::replace_with(storage, path, write).map_err(CheckpointError::io("write", path))
}

fn write_stream(
    storage: &dyn Storage,
    path: &Path,
    frame: &Frame,
    snapshot: &Snapshot,
    recipients: &[x25519::Recipient],
) -> io::Result<PartReceipt> {
    let runs = runs(snapshot);
    let header = header(frame, snapshot, &runs)?;
    let output = Hashed { inner: storage.create(path)?, hasher: blake3::Hasher::new(), bytes: 0 };
    let recipients = recipients.iter().map(|r| r as &dyn age::Recipient);
    let encryptor = age::Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
    let mut stream = encryptor.wrap_output(BufWriter::with_capacity(BUFFER, output))?;
    stream.write_all(&(header.len() as u64).to_le_bytes())?;
    stream.write_all(&header)?;
    for slice in runs.iter().filter_map(|run| run.first()) {
        for scalar in slice.scalars.iter().take(frame.scalars.len()) {
            stream.write_all(&scalar.to_le_bytes())?;
        }
    }
    for run in &runs {
        for kind in 0..frame.kinds.len() {
            for slice in run.iter() {
                let values = match kind {
                    0 => slice.weights.as_slice(),
                    state => slice.state.get(state - 1).map_or(&[][..], Vec::as_slice),
                };
                stream.write_all(bytemuck::cast_slice(values))?;
            }
        }
    }
    let mut output = stream.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    output.inner.sync()?;
    Ok(PartReceipt { bytes: output.bytes, blake3: *output.hasher.finalize().as_bytes() })
}

type Slices<'a> = &'a [SliceSnapshot];

/// The snapshot's slices, in groups that follow each other within a parameter.
fn runs(snapshot: &Snapshot) -> Vec<Slices<'_>> {
    let follows = |a: &SliceSnapshot, b: &SliceSnapshot| {
        a.slice.id.parameter == b.slice.id.parameter && a.slice.first + a.slice.elements == b.slice.first
    };
    snapshot.slices.chunk_by(follows).collect()
}

fn header(frame: &Frame, snapshot: &Snapshot, runs: &[Slices<'_>]) -> io::Result<Vec<u8>> {
    let mut tensors = BTreeMap::new();
    let mut offset = 0;
    let mut tensor = |slice: &Slice, kind: &str, dtype: &'static str, shape: [usize; 1], bytes: usize| {
        let parameter = frame.parameters.get(slice.id.parameter as usize);
        let (name, _) = parameter.ok_or_else(|| io::Error::other("a slice of no parameter"))?;
        let end = offset + bytes;
        let entry = Entry { dtype, shape, data_offsets: [offset, end] };
        tensors.insert(format!("{kind}/{name}@{}", slice.first), entry);
        offset = end;
        io::Result::Ok(())
    };
    // The wider numbers first, so that all are aligned.
    for first in runs.iter().filter_map(|run| run.first()) {
        if first.scalars.len() != frame.scalars.len() {
            return Err(io::Error::other("a slice with another optimizer's state"));
        }
        for kind in &frame.scalars {
            tensor(&first.slice, kind, "F64", [1], 8)?;
        }
    }
    for run in runs {
        let Some(first) = run.first() else { continue };
        let elements = run.iter().map(|s| s.slice.elements).sum();
        for kind in &frame.kinds {
            tensor(&first.slice, kind, "F32", [elements], elements * 4)?;
        }
    }
    let metadata = BTreeMap::from([
        ("extra", EXTRA.to_owned()),
        ("format", FORMAT.to_owned()),
        ("job", frame.job.clone()),
        ("server", snapshot.server.to_string()),
        ("step", snapshot.version.to_string()),
    ]);
    let mut bytes = serde_json::to_vec(&Header { metadata, tensors })?;
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    if bytes.len() as u64 > HEADER_MOST {
        let text = format!("{} tensors are more than one part holds: use more servers", runs.len());
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

/// A part's plaintext as it is decrypted. What it gives is not to be used before [`finish`](Plaintext::finish).
pub struct Plaintext<'a> {
    path: &'a Path,
    expected: PartReceipt,
    seen: Arc<Mutex<(blake3::Hasher, u64)>>,
    stream: age::stream::StreamReader<BufReader<Observed>>,
}

/// Hashes what is read of a file.
struct Observed {
    file: File,
    seen: Arc<Mutex<(blake3::Hasher, u64)>>,
}

impl Read for Observed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.0.update(buffer.get(..read).unwrap_or(&[]));
        seen.1 += read as u64;
        Ok(read)
    }
}

impl<'a> Plaintext<'a> {
    /// Opens the part at `path`, which must be as long as `expected` says.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] for another file, [`CheckpointError::Key`] when `identities` do not open it.
    pub fn open(
        path: &'a Path,
        expected: PartReceipt,
        identities: &Identities,
    ) -> Result<Plaintext<'a>, CheckpointError> {
        check(path, expected)?;
        let (mut file, _) = open_regular(path)?;
        // age reads a header line by line for as long as it goes on: one that does not end soon is not begun.
        let mut start = Vec::new();
        let read =
            Read::by_ref(&mut file).take(AGE_HEADER_MOST).read_to_end(&mut start).and_then(|_| file.rewind());
        read.map_err(CheckpointError::io("read", path))?;
        if !start.windows(AGE_HEADER_END.len()).any(|bytes| bytes == AGE_HEADER_END) {
            return Err(CheckpointError::damaged(path, "no age file: its header does not end"));
        }
        let seen = Arc::new(Mutex::new((blake3::Hasher::new(), 0)));
        let observed = Observed { file, seen: Arc::clone(&seen) };
        let decryptor = age::Decryptor::new_buffered(BufReader::with_capacity(BUFFER, observed))
            .map_err(|why| CheckpointError::damaged(path, format!("no age file: {why}")))?;
        let stream = decryptor.decrypt(identities.iter()).map_err(|why| match why {
            age::DecryptError::NoMatchingKeys => CheckpointError::Key {
                path: path.to_path_buf(),
                reason: "none of the given keys opens it: give the right one with --identity-file".into(),
            },
            why => CheckpointError::damaged(path, why),
        })?;
        Ok(Plaintext { path, expected, seen, stream })
    }

    /// Checks that the plaintext has ended, and that the file was the manifest's: now it may be used.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`].
    pub fn finish(mut self) -> Result<(), CheckpointError> {
        let path = self.path;
        match self.stream.read(&mut [0]) {
            Ok(0) => {}
            Ok(_) => return Err(CheckpointError::damaged(path, "more data than its tensors take")),
            Err(why) => return Err(CheckpointError::damaged(path, why)),
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.1 != self.expected.bytes
            || seen.0.finalize() != blake3::Hash::from_bytes(self.expected.blake3)
        {
            return Err(CheckpointError::damaged(path, "its BLAKE3 is not the manifest's"));
        }
        Ok(())
    }
}

impl Read for Plaintext<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

/// Checks that the file at `path` has this size and this BLAKE3.
///
/// # Errors
/// [`CheckpointError::Damaged`] when it has not.
pub fn check(path: &Path, expected: PartReceipt) -> Result<(), CheckpointError> {
    let (file, bytes) = open_regular(path)?;
    if bytes != expected.bytes {
        let reason = format!("{bytes} bytes, the manifest says {}", expected.bytes);
        return Err(CheckpointError::damaged(path, reason));
    }
    let mut hasher = blake3::Hasher::new();
    let hashed = hasher.update_reader(file.take(bytes)).map_err(CheckpointError::io("read", path))?;
    if hashed.finalize() != blake3::Hash::from_bytes(expected.blake3) {
        return Err(CheckpointError::damaged(path, "its BLAKE3 is not the manifest's"));
    }
    Ok(())
}

/// Opens a regular file, no link, and tells its size.
pub(super) fn open_regular(path: &Path) -> Result<(File, u64), CheckpointError> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(CheckpointError::io("open", path))?;
    let found = file.metadata().map_err(CheckpointError::io("read", path))?;
    if !found.is_file() {
        return Err(CheckpointError::damaged(path, "it is no regular file"));
    }
    Ok((file, found.len()))
}

/// Reads server `server`'s part at `path` and hands every run's values to `take`, in pieces: the run, the place of the
/// piece's first value in it, the values. The answer is those runs, and the optimizer's scalars. Nothing of what was handed over may
/// be used if this fails.
///
/// # Errors
/// [`CheckpointError`] saying what the part is not.
pub fn read(
    path: &Path,
    expected: PartReceipt,
    identities: &Identities,
    frame: &Frame,
    server: u32,
    take: &mut dyn FnMut(Run, usize, &[f32]),
) -> Result<(Vec<Run>, Vec<Scalar>), CheckpointError> {
    let mut plaintext = Plaintext::open(path, expected, identities)?;
    let damaged = |why: io::Error| CheckpointError::damaged(path, why);
    let mut length = [0; 8];
    plaintext.read_exact(&mut length).map_err(damaged)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_MOST.min(expected.bytes) {
        return Err(CheckpointError::damaged(path, format!("its header would have {length} bytes")));
    }
    let mut header = Vec::new();
    plaintext.by_ref().take(length).read_to_end(&mut header).map_err(damaged)?;
    let runs =
        parse_header(&header, frame, server).map_err(|reason| CheckpointError::damaged(path, reason))?;
    let (mut values, mut scalars) = (vec![0.0_f32; VALUES], Vec::new());
    for run in &runs {
        if let Some(scalar) = run.kind.checked_sub(frame.kinds.len()) {
            let mut bytes = [0; 8];
            plaintext.read_exact(&mut bytes).map_err(damaged)?;
            scalars.push(Scalar { parameter: run.parameter, scalar, value: f64::from_le_bytes(bytes) });
            continue;
        }
        let mut done = 0;
        while done < run.elements {
            let count = VALUES.min(run.elements - done);
            let piece = values.get_mut(..count).unwrap_or(&mut []);
            plaintext.read_exact(bytemuck::cast_slice_mut(piece)).map_err(damaged)?;
            take(*run, done, piece);
            done += count;
        }
    }
    plaintext.finish()?;
    let runs = runs.into_iter().filter(|run| run.kind < frame.kinds.len()).collect();
    Ok((runs, scalars))
}

/// The runs, scalars among them, that server `server`'s part lists in its safetensors `header`, in the order of their bytes. The
/// safetensors crate
/// has seen to it that they follow each other without gap or overlap and are as long as their shapes say.
///
/// # Errors
/// What the header is not.
pub fn parse_header(header: &[u8], frame: &Frame, server: u32) -> Result<Vec<Run>, String> {
    let metadata: Metadata =
        serde_json::from_slice(header).map_err(|e| format!("no safetensors header: {e}"))?;
    let said = metadata.metadata().clone().unwrap_or_default();
    let (step, server) = (frame.step.to_string(), server.to_string());
    let expected =
        [("format", FORMAT), ("job", &frame.job), ("step", &step), ("server", &server), ("extra", EXTRA)];
    for (key, value) in expected {
        match said.get(key) {
            Some(found) if found == value => {}
            found => return Err(format!("its {key} is {found:?} instead of {value:?}")),
        }
    }
    let mut runs = Vec::new();
    for name in metadata.offset_keys() {
        let unknown = || format!("tensor {name:?} is none of this job's");
        let (kind, rest) = name.split_once('/').ok_or_else(unknown)?;
        let (parameter, first) = rest.rsplit_once('@').ok_or_else(unknown)?;
        let kind = frame.kinds.iter().chain(&frame.scalars).position(|k| k == kind).ok_or_else(unknown)?;
        let parameter = frame.parameters.iter().position(|(n, _)| n == parameter).ok_or_else(unknown)?;
        let first: usize = first.parse().map_err(|_| unknown())?;
        let info = metadata.info(&name).ok_or_else(unknown)?;
        let [elements] = info.shape[..] else {
            return Err(format!("tensor {name:?} has another shape than a slice"));
        };
        let total = frame.parameters.get(parameter).map_or(0, |(_, elements)| *elements);
        if kind >= frame.kinds.len() {
            if info.dtype != Dtype::F64 || elements != 1 || first >= total {
                return Err(format!("tensor {name:?} is no f64, or of no element of its parameter"));
            }
            runs.push(Run { parameter, kind, first, elements });
            continue;
        }
        if info.dtype != Dtype::F32
            || elements == 0
            || first.checked_add(elements).is_none_or(|end| end > total)
        {
            return Err(format!("tensor {name:?} is not f32, or reaches beyond its parameter"));
        }
        runs.push(Run { parameter, kind, first, elements });
    }
    Ok(runs)
}

#[cfg(test)]
mod tests;
