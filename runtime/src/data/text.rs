//! Text: a file of bytes, cut into windows that a model of sequences learns to continue.
//!
//! Invariants:
//! 1. The last `test_fraction` of the bytes, rounded up, is held out: no window for training reaches into it.
//! 2. A window is `context + 1` bytes: its first `context` are the input, its last `context` the labels, each byte the label
//!    of the one before it. Windows for training begin every `stride` bytes. Those for testing begin every `context` bytes,
//!    so every held-out byte but the first is predicted once, a last part shorter than a window aside.
//! 3. Every error names the file and what is wrong; memory grows with what was read, at most [`BYTES_MOST`].
//! 4. [`Text::content_hash`] covers the bytes and how they are cut.
//! 5. The file is read through a descriptor that is opened once, and whose position is not moved.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use testudo_actors::Dataset;

use super::whole::Whole;

/// Most bytes of text: the windows of one are counted by 32 bits, whatever the stride.
pub const BYTES_MOST: u64 = u32::MAX as u64;
/// Domain separation of [`Text::content_hash`].
const HASH_CONTEXT: &str = "testudo 2026-11-29 text data set content";

/// What is wrong with a text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The file cannot be opened or read.
    #[error("{}: cannot be read: {source}; data.path must name the file that holds the text", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// There is more of it than windows can be counted.
    #[error("{}: more than {BYTES_MOST} bytes, which is the most that is taken", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// A part has no whole window.
    #[error(
        "{}: {part} would be {bytes} bytes, too few for one window of {window} (model.context and one more): use a longer text, \
         a shorter context, or another data.test_fraction",
        path.display()
    )]
    TooShort {
        /// The file.
        path: PathBuf,
        /// What the part is for.
        part: &'static str,
        /// Its bytes.
        bytes: usize,
        /// A window's.
        window: usize,
    },
}

/// How a text is cut.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cut {
    /// Bytes that a model sees.
    pub context: usize,
    /// Bytes from one training window's begin to the next one's.
    pub stride: usize,
    /// The part that is held out, above 0 and below 1.
    pub test_fraction: f64,
}

/// The file of a text, opened.
#[derive(Debug)]
pub struct TextFile {
    path: PathBuf,
    file: File,
}

impl TextFile {
    /// Opens it.
    ///
    /// # Errors
    /// [`TextError::Unreadable`].
    pub fn open(path: &Path) -> Result<TextFile, TextError> {
        let unreadable = |source| TextError::Unreadable { path: path.to_owned(), source };
        // A pipe is not waited for.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
        if !file.metadata().map_err(unreadable)?.is_file() {
            return Err(unreadable(std::io::Error::other("it is no regular file")));
        }
        Ok(TextFile { path: path.to_owned(), file })
    }

    /// That of `path`, which another process has opened.
    #[must_use]
    pub fn of_descriptor(path: &Path, descriptor: OwnedFd) -> TextFile {
        TextFile { path: path.to_owned(), file: descriptor.into() }
    }

    /// Its descriptor.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Bytes that it says it has.
    #[must_use]
    pub fn announced_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }
}

/// A training and a test set of windows.
#[derive(Debug, Clone)]
pub struct Text {
    /// What is trained on.
    pub train: Windows,
    /// What is held out.
    pub test: Windows,
    hash: [u8; 32],
}

impl Text {
    /// Reads and cuts it.
    ///
    /// # Errors
    /// [`TextError`] saying what is wrong.
    pub fn read(file: &TextFile, cut: Cut) -> Result<Text, TextError> {
        let path = || file.path.clone();
        let mut bytes = Vec::new();
        // Memory was checked for as many as it said it has.
        let announced = file.announced_bytes();
        let read = Whole::new(&file.file).take(announced.min(BYTES_MOST) + 1).read_to_end(&mut bytes);
        read.map_err(|source| TextError::Unreadable { path: path(), source })?;
        if announced <= BYTES_MOST && bytes.len() as u64 > announced {
            let source = std::io::Error::other("it grew while it was read");
            return Err(TextError::Unreadable { path: path(), source });
        }
        if bytes.len() as u64 > BYTES_MOST {
            return Err(TextError::TooLong { path: path() });
        }
        let held_out = (bytes.len() as f64 * cut.test_fraction).ceil() as usize;
        let middle = bytes.len().saturating_sub(held_out);
        let (context, window) = (cut.context, cut.context.saturating_add(1));
        for (part, length) in [("what is trained on", middle), ("what is held out", bytes.len() - middle)] {
            if length < window {
                return Err(TextError::TooShort { path: path(), part, bytes: length, window });
            }
        }
        let bytes: Arc<[u8]> = bytes.into();
        let windows = |first: usize, end: usize, stride: usize| Windows {
            bytes: Arc::clone(&bytes),
            first,
            count: (end - first - window) / stride.max(1) + 1,
            stride: stride.max(1),
            context,
        };
        let (train, test) = (windows(0, middle, cut.stride), windows(middle, bytes.len(), context));
        let mut hasher = blake3::Hasher::new_derive_key(HASH_CONTEXT);
        for number in [context, train.stride, middle] {
            hasher.update(&(number as u64).to_le_bytes());
        }
        hasher.update(&bytes);
        Ok(Text { train, test, hash: *hasher.finalize().as_bytes() })
    }

    /// BLAKE3 over the bytes and how they are cut.
    #[must_use]
    pub fn content_hash(&self) -> [u8; 32] {
        self.hash
    }
}

/// Windows of a text, all of one length.
#[derive(Clone)]
pub struct Windows {
    bytes: Arc<[u8]>,
    first: usize,
    count: usize,
    stride: usize,
    context: usize,
}

impl std::fmt::Debug for Windows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Windows { count, context, stride, first, .. } = self;
        write!(f, "Windows({count} of {context} and one, every {stride} from {first})")
    }
}

impl Dataset for Windows {
    fn len(&self) -> usize {
        self.count
    }

    fn input_elements(&self) -> usize {
        self.context
    }

    fn targets(&self) -> usize {
        self.context
    }

    fn fill(&self, index: usize, input: &mut [f32], labels: &mut [u32]) {
        let start = self.first + index * self.stride;
        let window = self.bytes.get(start..start + self.context + 1).unwrap_or_default();
        for (value, byte) in input.iter_mut().zip(window) {
            *value = f32::from(*byte);
        }
        for (label, byte) in labels.iter_mut().zip(window.iter().skip(1)) {
            *label = u32::from(*byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &tempfile::TempDir, bytes: &[u8]) -> TextFile {
        let path = folder.path().join("text");
        std::fs::write(&path, bytes).unwrap();
        TextFile::open(&path).unwrap()
    }

    const CUT: Cut = Cut { context: 4, stride: 3, test_fraction: 0.3 };

    fn all(windows: &Windows) -> Vec<(String, String)> {
        (0..windows.len())
            .map(|index| {
                let (mut input, mut labels) = ([f32::NAN; 4], [999; 4]);
                windows.fill(index, &mut input, &mut labels);
                (
                    input.iter().map(|byte| *byte as u8 as char).collect(),
                    labels.map(|l| l as u8 as char).iter().collect(),
                )
            })
            .collect()
    }

    /// Invariants 1 and 2.
    #[test]
    fn windows_cover_their_parts_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let text = file(&folder, b"abcdefghijklmnopqrstuvwxyz");
        let text = Text::read(&text, CUT).unwrap();
        let pair = |input: &str, labels: &str| (input.to_owned(), labels.to_owned());
        // 8 of 26 bytes are held out: s to z.
        let expected = ["abcde", "defgh", "ghijk", "jklmn", "mnopq"].map(|w| pair(&w[..4], &w[1..]));
        assert_eq!(all(&text.train), expected);
        assert_eq!(all(&text.test), [pair("stuv", "tuvw")]);
        assert_eq!((text.train.input_elements(), text.train.targets()), (4, 4));
    }

    /// Every byte is taken as it is, also one that is part of no character.
    #[test]
    fn bytes_are_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..=255).rev().collect();
        let text = Text::read(&file(&folder, &bytes), CUT).unwrap();
        let (mut input, mut labels) = ([0.0; 4], [0; 4]);
        text.train.fill(0, &mut input, &mut labels);
        assert_eq!((input, labels), ([255.0, 254.0, 253.0, 252.0], [254, 253, 252, 251]));
    }

    /// Invariant 3, at the least that is enough and one less of each part.
    #[test]
    fn what_is_too_short_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let read = |bytes: usize, cut: Cut| Text::read(&file(&folder, &vec![b'x'; bytes]), cut);
        let half = Cut { test_fraction: 0.5, ..CUT };
        assert!(read(10, half).is_ok_and(|text| text.train.len() == 1 && text.test.len() == 1));
        for (bytes, part, cut) in [
            (9, "trained on", half),
            (0, "trained on", half),
            (30, "held out", Cut { test_fraction: 0.1, ..CUT }),
            (30, "trained on", Cut { test_fraction: 0.9, ..CUT }),
        ] {
            let error = read(bytes, cut).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("window of 5"), "{error}");
        }
        let missing = TextFile::open(&folder.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("none") && missing.contains("data.path"), "{missing}");
        let of_folder = TextFile::open(folder.path()).and_then(|file| Text::read(&file, CUT)).unwrap_err();
        assert!(matches!(of_folder, TextError::Unreadable { .. }));
    }

    /// Invariant 4.
    #[test]
    fn the_hash_is_of_the_bytes_and_the_cut() {
        let folder = tempfile::tempdir().unwrap();
        let hash = |bytes: &[u8], cut: Cut| Text::read(&file(&folder, bytes), cut).unwrap().content_hash();
        let (bytes, mut other) = ([7; 64], [7; 64]);
        other[63] = 8;
        let same = hash(&bytes, CUT);
        assert_eq!(same, hash(&bytes, CUT));
        for (bytes, cut) in [
            (&other, CUT),
            (&bytes, Cut { context: 5, ..CUT }),
            (&bytes, Cut { stride: 4, ..CUT }),
            (&bytes, Cut { test_fraction: 0.4, ..CUT }),
        ] {
            assert_ne!(same, hash(bytes, cut), "{cut:?}");
        }
    }

    /// Invariant 5.
    #[test]
    fn an_open_file_is_read_from_its_start() {
        let folder = tempfile::tempdir().unwrap();
        let open = file(&folder, b"abcdefghijklmnopqrstuvwxyz");
        let handed = TextFile::of_descriptor(&open.path, open.descriptor().try_clone_to_owned().unwrap());
        std::fs::remove_file(&open.path).unwrap();
        assert_eq!(handed.announced_bytes(), 26);
        let hashes = [&open, &handed, &open].map(|file| Text::read(file, CUT).unwrap().content_hash());
        assert_eq!(hashes[0], hashes[1]);
        assert_eq!(hashes[0], hashes[2]);
    }
}
