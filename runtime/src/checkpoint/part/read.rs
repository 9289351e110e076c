//! Reading a part, of which nothing is believed.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use testudo_actors::checkpoint::PartReceipt;

use super::{BUFFER, EXTRA, FORMAT, Frame, HEADER_MOST, Holder, Run, Scalar};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::keys::Identities;

/// Bytes of an age header at most: many times that of as many recipients as a job can name.
const AGE_HEADER_MOST: u64 = 64 << 10;
/// Begins the last line of an age header.
const AGE_HEADER_END: &[u8] = b"\n--- ";
/// Values that are handed over at a time.
const VALUES: usize = 16 << 10;

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
pub(in crate::checkpoint) fn open_regular(path: &Path) -> Result<(File, u64), CheckpointError> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(CheckpointError::io("open", path))?;
    let found = file.metadata().map_err(CheckpointError::io("read", path))?;
    if !found.is_file() {
        return Err(CheckpointError::damaged(path, "it is no regular file"));
    }
    Ok((file, found.len()))
}

/// Reads `holder`'s part at `path` and hands every run's values to `take`, in pieces: the run, the place of the
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
    holder: Holder,
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
        parse_header(&header, frame, holder).map_err(|reason| CheckpointError::damaged(path, reason))?;
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

/// The runs, scalars among them, that `holder`'s part lists in its safetensors `header`, in the order of their bytes. The
/// safetensors crate has seen to it that they follow each other without gap or overlap and are as long as their shapes say.
///
/// # Errors
/// What the header is not.
pub fn parse_header(header: &[u8], frame: &Frame, holder: Holder) -> Result<Vec<Run>, String> {
    let metadata: Metadata =
        serde_json::from_slice(header).map_err(|e| format!("no safetensors header: {e}"))?;
    let said = metadata.metadata().clone().unwrap_or_default();
    let (step, (role, index)) = (frame.step.to_string(), holder.said());
    let expected =
        [("format", FORMAT), ("job", &frame.job), ("step", &step), (role, &index), ("extra", EXTRA)];
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
