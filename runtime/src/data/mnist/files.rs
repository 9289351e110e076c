//! The four files of a data set, opened once.
//!
//! Whoever has them open can read them whatever he may open since, and hand the descriptors to another process. Reading never
//! moves a descriptor's position, which all its holders share.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::{BYTES, DataError};
use crate::data::whole::Whole;

/// The files' names, without `.gz`, in the order in which they are kept.
const NAMES: [&str; 4] = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
];

/// Buffer for reading files: large enough that system calls do not count.
const READ_BUFFER: usize = 256 << 10;
/// How every gzip stream begins (RFC 1952, section 2.3.1); an IDX file begins with two zero bytes.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// One open file.
#[derive(Debug)]
pub struct OpenFile {
    path: PathBuf,
    file: File,
}

/// Training images, training labels, test images, test labels.
#[derive(Debug)]
pub struct Files([OpenFile; 4]);

impl Files {
    /// How many there are.
    pub const COUNT: usize = NAMES.len();

    /// Opens them in `folder`, each as it is or with `.gz`.
    ///
    /// # Errors
    /// [`DataError::Missing`] or [`DataError::Unreadable`] for the first that cannot be opened.
    pub fn open(folder: &Path) -> Result<Files, DataError> {
        let [a, b, c, d] = NAMES.map(|name| OpenFile::open(folder, name));
        Ok(Files([a?, b?, c?, d?]))
    }

    /// Those of `folder` that another process has opened, in this order.
    #[must_use]
    pub fn of_descriptors(folder: &Path, descriptors: [OwnedFd; Files::COUNT]) -> Files {
        let mut names = NAMES.into_iter();
        Files(descriptors.map(|descriptor| OpenFile {
            path: folder.join(names.next().unwrap_or_default()),
            file: descriptor.into(),
        }))
    }

    /// Their descriptors, in order.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; Files::COUNT] {
        self.0.each_ref().map(|open| open.file.as_fd())
    }

    /// Bytes of pixels and labels that their headers announce; what cannot be read counts as nothing, and is told when it is read.
    #[must_use]
    pub fn announced_bytes(&self) -> u64 {
        let [train, _, test, _] = &self.0;
        [train, test].into_iter().map(OpenFile::announced_bytes).fold(0, u64::saturating_add)
    }

    pub(super) fn all(&self) -> &[OpenFile; Files::COUNT] {
        &self.0
    }
}

impl OpenFile {
    fn open(folder: &Path, name: &'static str) -> Result<OpenFile, DataError> {
        let plain = folder.join(name);
        let zipped = folder.join(format!("{name}.gz"));
        match (File::open(&plain), File::open(&zipped)) {
            (Ok(file), _) => Ok(OpenFile { path: plain, file }),
            (_, Ok(file)) => Ok(OpenFile { path: zipped, file }),
            (Err(first), Err(second)) => {
                use io::ErrorKind::NotFound;
                Err(match (first.kind(), second.kind()) {
                    (NotFound, NotFound) => DataError::Missing { folder: folder.to_path_buf(), name },
                    (NotFound, _) => DataError::Unreadable { path: zipped, source: second },
                    _ => DataError::Unreadable { path: plain, source: first },
                })
            }
        }
    }

    /// Where it was found.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For a file of images: their pixels, and a label each.
    fn announced_bytes(&self) -> u64 {
        let mut words = [[0; 4]; 4];
        if self.content().and_then(|(mut reader, _)| reader.read_exact(words.as_flattened_mut())).is_err() {
            return 0;
        }
        let [kind, images, rows, columns] = words.map(|word| u64::from(u32::from_be_bytes(word)));
        if kind != u64::from(BYTES | 3) {
            return 0;
        }
        images.saturating_mul(rows).saturating_mul(columns).saturating_add(images)
    }

    /// What is in it, from its beginning, and whether that was gzipped.
    pub(super) fn content(&self) -> io::Result<(Box<dyn Read + '_>, bool)> {
        let mut reader = BufReader::with_capacity(READ_BUFFER, self.whole());
        Ok(match reader.fill_buf()?.starts_with(&GZIP_MAGIC) {
            true => (Box::new(MultiGzDecoder::new(reader)), true),
            false => (Box::new(reader), false),
        })
    }

    fn whole(&self) -> Whole<'_> {
        Whole::new(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many bytes as the headers say, gzipped or not; files that are none announce nothing.
    #[test]
    fn what_will_be_held_is_known_before_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        NAMES.iter().for_each(|name| std::fs::write(folder.path().join(name), name).unwrap());
        assert_eq!(Files::open(folder.path()).unwrap().announced_bytes(), 0);
        let images: Vec<u8> =
            [0x803_u32, 60_000, 28, 28].iter().flat_map(|word| word.to_be_bytes()).collect();
        std::fs::write(folder.path().join(NAMES[0]), &images).unwrap();
        let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut zip, &images).unwrap();
        std::fs::write(folder.path().join(NAMES[2]), zip.finish().unwrap()).unwrap();
        assert_eq!(Files::open(folder.path()).unwrap().announced_bytes(), 2 * 60_000 * (784 + 1));
    }

    /// Invariant 5 of the module above: a removed file is read, again and again, also through a copy of its descriptor.
    #[test]
    fn open_files_are_read_from_their_start_whoever_has_read_them() {
        let folder = tempfile::tempdir().unwrap();
        for name in NAMES {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let files = Files::open(folder.path()).unwrap();
        let copies = files.descriptors().map(|fd| fd.try_clone_to_owned().unwrap());
        let copies = Files::of_descriptors(folder.path(), copies);
        std::fs::remove_dir_all(folder.path()).unwrap();
        for _ in 0..2 {
            for (open, name) in files.all().iter().chain(copies.all()).zip(NAMES.iter().cycle()) {
                let mut text = String::new();
                open.whole().read_to_string(&mut text).unwrap();
                assert_eq!(text, *name);
            }
        }
        assert!(matches!(Files::open(folder.path()), Err(DataError::Missing { .. })));
    }
}
