//! Models as safetensors files (<https://github.com/huggingface/safetensors>), which PyTorch, NumPy, JAX
//! and most else can read, and which hold no code.
//!
//! A file is the header's length (u64, little-endian), the header (JSON, padded with spaces to a multiple
//! of 8) and the tensors' bytes. Under `__metadata__` stand `format` (`"testudo"`), `job`, `step`,
//! `params_blake3` and, where it is known, `model`: the architecture as JSON, so that a file can be served by itself.
//!
//! Invariants:
//! 1. [`write()`] is atomic: a reader, or a crash at any moment, finds the old file or the whole new one. The
//!    bytes are on disk before the name is.
//! 2. The same tensors and metadata give the same bytes: tensors and keys stand in order of their names.
//!    (The safetensors crate writes its metadata in the order of a hash map, so the header is ours.)
//! 3. [`read`] trusts nothing: the header is validated by the safetensors crate, and only f32 tensors and
//!    files of at most [`BYTES_MOST`] are taken.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::Serialize;

/// Largest file that [`read`] takes: models beyond this are kept in parts.
pub const BYTES_MOST: u64 = 64 << 30;
/// Alignment of the first tensor's bytes, which the format asks for.
const ALIGNMENT: usize = 8;
/// Name of an exported model in its folder.
pub const MODEL_FILE: &str = "model.safetensors";
/// What `__metadata__.format` says in every file written here.
pub const FORMAT: &str = "testudo";

/// A tensor to write, borrowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tensor<'a> {
    /// Unique name.
    pub name: &'a str,
    /// Dimensions, outermost first; their product is the number of values.
    pub shape: &'a [usize],
    /// The values in row-major order.
    pub values: &'a [f32],
}

/// A tensor that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnedTensor {
    /// Unique name.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The values in row-major order.
    pub values: Vec<f32>,
}

/// What a checkpoint says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// The job's name.
    pub job: String,
    /// Steps that were taken.
    pub step: u64,
    /// BLAKE3 over the parameters, as the job reports it.
    pub params_blake3: [u8; 32],
    /// The architecture: a `ModelSpec` as JSON.
    pub model: Option<String>,
}

/// A checkpoint that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Everything under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// The tensors in order of their names.
    pub tensors: Vec<OwnedTensor>,
}

/// Why a checkpoint was not written or not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A tensor whose values do not fit its shape.
    #[error("tensor {name:?} has {found} values but its shape {shape:?} calls for another number")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// How many values it has.
        found: usize,
    },
    /// Two tensors of one name, or one whose name the format reserves.
    #[error("tensor name {name:?} is reserved or stands twice")]
    Name {
        /// The name.
        name: String,
    },
    /// The header cannot be written as JSON.
    #[error("cannot describe the tensors as JSON: {0}")]
    Header(serde_json::Error),
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is no valid safetensors file.
    #[error("{} is no valid safetensors file: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A tensor of another type than f32.
    #[error("{}: tensor {name:?} is of type {found}, only F32 is taken", path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        found: String,
    },
    /// The file is larger than what may be read.
    #[error("{} has {found} bytes, at most {most} are taken", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// Bytes that are taken at most.
        most: u64,
    },
}

/// Writes `tensors` to `path`, atomically, replacing what is there; the folder must exist. Answers the
/// file's size in bytes. The file is readable by its owner alone.
///
/// # Errors
/// Tensors that contradict themselves, or the operating system's refusal; either way `path` is as before.
pub fn write(path: &Path, tensors: &[Tensor<'_>], metadata: &Metadata) -> Result<u64, CheckpointError> {
    let (header, order) = header(tensors, metadata)?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let temporary = folder.join(format!(
        ".{}.{}.tmp",
        path.file_name().unwrap_or_default().to_string_lossy(),
        std::process::id()
    ));
    let result = write_whole(&temporary, &header, &order)
        .map_err(|source| CheckpointError::Io { action: "write", path: temporary.clone(), source })
        .and_then(|size| {
            fs::rename(&temporary, path).map(|()| size).map_err(|source| CheckpointError::Io {
                action: "rename to",
                path: path.to_path_buf(),
                source,
            })
        });
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
        return result;
    }
    // The new name itself must survive a crash too.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| CheckpointError::Io {
        action: "sync",
        path: folder.to_path_buf(),
        source,
    })?;
    result
}

fn write_whole(path: &Path, header: &[u8], tensors: &[Tensor<'_>]) -> io::Result<u64> {
    // A leftover of a crashed process with our id; ours alone to remove.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    let mut writer = BufWriter::with_capacity(1 << 20, &file);
    writer.write_all(&(header.len() as u64).to_le_bytes())?;
    writer.write_all(header)?;
    for tensor in tensors {
        write_values(&mut writer, tensor.values)?;
    }
    writer.flush()?;
    drop(writer);
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

fn write_values(writer: &mut impl Write, values: &[f32]) -> io::Result<()> {
    if cfg!(target_endian = "little") {
        return writer.write_all(bytemuck::cast_slice(values));
    }
    values.iter().try_for_each(|value| writer.write_all(&value.to_le_bytes()))
}

#[derive(Serialize)]
struct Entry<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: [usize; 2],
}

#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__")]
    metadata: BTreeMap<&'static str, String>,
    #[serde(flatten)]
    tensors: BTreeMap<&'a str, Entry<'a>>,
}

/// The padded header, and the tensors in the order in which their bytes follow.
fn header<'a>(
    tensors: &[Tensor<'a>],
    metadata: &Metadata,
) -> Result<(Vec<u8>, Vec<Tensor<'a>>), CheckpointError> {
    let mut order = tensors.to_vec();
    order.sort_by_key(|tensor| tensor.name);
    for tensor in &order {
        if elements(tensor.shape) != Some(tensor.values.len()) {
            return Err(CheckpointError::Shape {
                name: tensor.name.to_string(),
                shape: tensor.shape.to_vec(),
                found: tensor.values.len(),
            });
        }
    }
    let shapes: Vec<_> = order.iter().map(|tensor| (tensor.name, tensor.shape)).collect();
    Ok((describe(&shapes, metadata)?, order))
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |count, dimension| count.checked_mul(*dimension))
}

/// What a file of tensors of these names and shapes begins with, up to the first value: the same bytes that [`write()`]
/// writes.
///
/// # Errors
/// A shape that overflows, or a name that stands twice.
pub fn head(shapes: &[(&str, &[usize])], metadata: &Metadata) -> Result<Vec<u8>, CheckpointError> {
    let mut shapes = shapes.to_vec();
    shapes.sort_by_key(|(name, _)| *name);
    let header = describe(&shapes, metadata)?;
    Ok([&(header.len() as u64).to_le_bytes()[..], &header].concat())
}

/// The padded header of tensors in order of their names.
fn describe(shapes: &[(&str, &[usize])], metadata: &Metadata) -> Result<Vec<u8>, CheckpointError> {
    let mut entries = BTreeMap::new();
    let mut offset = 0_usize;
    for &(name, shape) in shapes {
        let bytes = elements(shape).and_then(|count| count.checked_mul(size_of::<f32>()));
        let Some(end) = bytes.and_then(|bytes| offset.checked_add(bytes)) else {
            return Err(CheckpointError::Shape { name: name.to_string(), shape: shape.to_vec(), found: 0 });
        };
        let entry = Entry { dtype: "F32", shape, data_offsets: [offset, end] };
        if name == "__metadata__" || entries.insert(name, entry).is_some() {
            return Err(CheckpointError::Name { name: name.to_string() });
        }
        offset = end;
    }
    let mut said = BTreeMap::from([
        ("format", FORMAT.to_string()),
        ("job", metadata.job.clone()),
        ("params_blake3", blake3::Hash::from_bytes(metadata.params_blake3).to_hex().to_string()),
        ("step", metadata.step.to_string()),
    ]);
    said.extend(metadata.model.clone().map(|model| ("model", model)));
    let header = Header { metadata: said, tensors: entries };
    let mut bytes = serde_json::to_vec(&header).map_err(CheckpointError::Header)?;
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), b' ');
    Ok(bytes)
}

/// Reads the checkpoint at `path`.
///
/// # Errors
/// See [`CheckpointError`].
pub fn read(path: &Path) -> Result<Checkpoint, CheckpointError> {
    read_at_most(path, BYTES_MOST)
}

/// The same, of a file of which it is known how large it may be.
///
/// # Errors
/// See [`CheckpointError`].
pub fn read_at_most(path: &Path, most: u64) -> Result<Checkpoint, CheckpointError> {
    let io = |source| CheckpointError::Io { action: "read", path: path.to_path_buf(), source };
    // A pipe in its place is no reason to wait.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblock).open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(io(io::Error::other("it is no regular file")));
    }
    let found = metadata.len();
    if found > most.min(BYTES_MOST) {
        return Err(CheckpointError::Size { path: path.to_path_buf(), found, most: most.min(BYTES_MOST) });
    }
    let mut bytes = Vec::new();
    file.take(most.min(BYTES_MOST)).read_to_end(&mut bytes).map_err(io)?;
    parse(path, &bytes)
}

/// Parses the bytes of a file; `path` names it in messages.
///
/// # Errors
/// See [`CheckpointError`].
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
    let invalid = |error: safetensors::SafeTensorError| CheckpointError::Invalid {
        path: path.to_path_buf(),
        reason: error.to_string(),
    };
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(invalid)?;
    let parsed = SafeTensors::deserialize(bytes).map_err(invalid)?;
    let mut tensors = Vec::with_capacity(parsed.len());
    for (name, view) in parsed.iter() {
        if view.dtype() != Dtype::F32 {
            let found = format!("{:?}", view.dtype());
            return Err(CheckpointError::Type { path: path.to_path_buf(), name: name.to_string(), found });
        }
        let words = view.data().chunks_exact(4);
        let values = words.map(|word| f32::from_le_bytes(word.try_into().unwrap_or_default())).collect();
        tensors.push(OwnedTensor { name: name.to_string(), shape: view.shape().to_vec(), values });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let metadata =
        metadata.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok(Checkpoint { metadata, tensors })
}

#[cfg(test)]
mod tests;
