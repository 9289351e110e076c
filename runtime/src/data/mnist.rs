//! MNIST and whatever else comes as four IDX files (LeCun, Cortes and Burges, <http://yann.lecun.com/exdb/mnist/>).
//!
//! An IDX file of bytes is a big-endian header (magic `0x0000_08dd` with `dd` dimensions, then each
//! dimension as a u32) and the bytes. Images have three dimensions (count, rows, columns), labels one.
//! Files may be gzipped, with or without the name saying so.
//!
//! Invariants:
//! 1. A loaded set has as many labels as images, at least one of each, every label below the number of
//!    classes, and images of one size in training and test.
//! 2. Every error names the file and what is wrong in it; a label out of range, its index too.
//! 3. A decompression bomb costs no more than the header announces, and the header no more than
//!    [`BYTES_MOST`]; memory grows with what was read, never with what was announced.
//! 4. [`Mnist::content_hash`] covers dimensions, pixels, labels and normalisation, and not how the files
//!    were compressed.
//! 5. Files are read through descriptors that are opened once ([`Files`]), so that a process may open them, give away the
//!    right to, and read them then.

mod files;

use std::io::Read;
use std::path::{Path, PathBuf};

pub use files::{Files, OpenFile};

/// Most bytes of pixels in one file: 5,000 times MNIST's test set, and still within a machine's memory.
pub const BYTES_MOST: u64 = 4 << 30;
/// How an IDX file of bytes begins, with the number of its dimensions added.
const BYTES: u32 = 0x0000_0800;
/// Domain separation of [`Mnist::content_hash`].
const HASH_CONTEXT: &str = "testudo 2026-11-23 idx data set content";

/// How a pixel `x` (a byte) becomes a number: `(x / 255 - mean) / std`, computed as `x * scale + offset` in
/// f32 with `scale = 1 / (255 std)` and `offset = -mean / std`, each rounded once from f64. Both operations
/// are IEEE 754's and are never fused, so every machine gets the same bits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalisation {
    /// Mean of the pixels, each divided by 255.
    pub mean: f64,
    /// Their standard deviation, above 0.
    pub std: f64,
}

impl Normalisation {
    /// Mean and standard deviation of MNIST's 47,040,000 training pixels, to four digits.
    pub const MNIST: Self = Self { mean: 0.1307, std: 0.3081 };

    fn affine(self) -> (f32, f32) {
        ((1.0 / (255.0 * self.std)) as f32, (-self.mean / self.std) as f32)
    }
}

/// A training and a test set, in memory.
#[derive(Debug, Clone)]
pub struct Mnist {
    /// The training examples.
    pub train: Examples,
    /// The test examples.
    pub test: Examples,
}

/// Labelled images of one size, kept as bytes and normalised when asked for.
#[derive(Clone)]
pub struct Examples {
    pixels: Vec<u8>,
    labels: Vec<u8>,
    rows: usize,
    columns: usize,
    scale: f32,
    offset: f32,
}

/// What is wrong with a data set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// Neither the file nor its gzipped form is there.
    #[error("{}: no such file, nor {name}.gz beside it; data.path must name the folder that holds the four MNIST files", folder.join(name).display())]
    Missing {
        /// The folder that was searched.
        folder: PathBuf,
        /// The file's name without `.gz`.
        name: &'static str,
    },
    /// The file cannot be opened or read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is gzipped and damaged.
    #[error("{}: damaged gzip data: {reason}; fetch the file again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// The file is not the IDX file it should be.
    #[error("{}: begins with {found:#010x}, but {what} begin with {expected:#010x}: this is another kind of file", path.display())]
    Magic {
        /// The file.
        path: PathBuf,
        /// What the file should hold.
        what: &'static str,
        /// The magic number found.
        found: u32,
        /// The magic number of such files.
        expected: u32,
    },
    /// The file ends early.
    #[error("{}: truncated: its header needs {expected} bytes in all, it holds {found}; fetch the file again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes the header calls for, header included, after decompression.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The file goes on after its last example.
    #[error("{}: bytes follow the {expected} that its header announces: the file is damaged or another kind of file", path.display())]
    Trailing {
        /// The file.
        path: PathBuf,
        /// Bytes the header calls for, header included.
        expected: u64,
    },
    /// The header announces nothing, or more than is ever loaded.
    #[error("{}: its header announces {announced}: nothing from 1 to {BYTES_MOST} bytes", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// The dimensions in words.
        announced: String,
    },
    /// Images and labels differ in number.
    #[error("{} holds {images} images but {} holds {labels} labels: the two belong to different sets", images_path.display(), labels_path.display())]
    Count {
        /// The file of images.
        images_path: PathBuf,
        /// How many it holds.
        images: usize,
        /// The file of labels.
        labels_path: PathBuf,
        /// How many it holds.
        labels: usize,
    },
    /// A label that no class has.
    #[error("{}: label {label} at index {index} (from 0), but there are only {classes} classes (model.classes), 0 to {}", path.display(), classes - 1)]
    Label {
        /// The file of labels.
        path: PathBuf,
        /// The label's index, from 0.
        index: usize,
        /// The label.
        label: u8,
        /// How many classes there are.
        classes: usize,
    },
    /// The model takes another number of pixels than the images have.
    #[error("{}: its images have {found} pixels, but model.inputs is {expected}: set model.inputs = {found}, or point data.path at other images", folder.display())]
    Inputs {
        /// The folder of the four files.
        folder: PathBuf,
        /// Pixels of an image.
        found: usize,
        /// What the model takes.
        expected: usize,
    },
    /// The model takes images of another size.
    #[error("{}: its images are {height} x {width} with one channel, but model.image is {expected:?}: set model.image = [1, {height}, {width}], or point data.path at other images", folder.display())]
    Image {
        /// The folder of the four files.
        folder: PathBuf,
        /// Rows of an image.
        height: usize,
        /// Columns of an image.
        width: usize,
        /// What the model takes: channels, height and width.
        expected: [usize; 3],
    },
    /// A worker that holds them cannot keep to `limits.memory_mib`.
    #[error("{0}")]
    Memory(String),
    /// Training and test images differ in size.
    #[error("{}: test images have {test} pixels (rows x columns), training images {train}", path.display())]
    Dimensions {
        /// The file of test images.
        path: PathBuf,
        /// Size of the training images.
        train: String,
        /// Size of the test images.
        test: String,
    },
}

impl Mnist {
    /// Loads the four files from `folder`: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
    /// `t10k-images-idx3-ubyte`, `t10k-labels-idx1-ubyte`, each as it is or with `.gz`.
    ///
    /// # Errors
    /// See [`DataError`]; the first problem found, with its file.
    pub fn load(folder: &Path, classes: usize, normalisation: Normalisation) -> Result<Self, DataError> {
        Mnist::read(&Files::open(folder)?, classes, normalisation)
    }

    /// [`Mnist::load`] from files that are open already.
    ///
    /// # Errors
    /// As there.
    pub fn read(files: &Files, classes: usize, normalisation: Normalisation) -> Result<Self, DataError> {
        let [train_images, train_labels, test_images, test_labels] = files.all();
        let train = Examples::read(train_images, train_labels, classes, normalisation)?;
        let test = Examples::read(test_images, test_labels, classes, normalisation)?;
        if (train.rows, train.columns) != (test.rows, test.columns) {
            return Err(DataError::Dimensions {
                path: test_images.path().to_path_buf(),
                train: format!("{}x{}", train.rows, train.columns),
                test: format!("{}x{}", test.rows, test.columns),
            });
        }
        Ok(Self { train, test })
    }

    /// BLAKE3 over what training sees: dimensions, pixels and labels of both sets, and the
    /// normalisation. Equal on two nodes if and only if they train on the same examples.
    pub fn content_hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(HASH_CONTEXT);
        for set in [&self.train, &self.test] {
            for number in [set.len(), set.rows, set.columns] {
                hasher.update(&(number as u64).to_le_bytes());
            }
            for value in [set.scale, set.offset] {
                hasher.update(&value.to_bits().to_le_bytes());
            }
            hasher.update(&set.pixels).update(&set.labels);
        }
        *hasher.finalize().as_bytes()
    }
}

impl Examples {
    fn read(
        images: &OpenFile,
        labels: &OpenFile,
        classes: usize,
        normalisation: Normalisation,
    ) -> Result<Self, DataError> {
        let (images_path, labels_path) = (images.path().to_path_buf(), labels.path().to_path_buf());
        let ([count, rows, columns], pixels) = read_idx(images, "IDX files of images")?;
        let ([labels_count], labels) = read_idx(labels, "IDX files of labels")?;
        if count != labels_count {
            return Err(DataError::Count { images_path, images: count, labels_path, labels: labels_count });
        }
        if let Some(index) = labels.iter().position(|label| usize::from(*label) >= classes) {
            let label = labels.get(index).copied().unwrap_or_default();
            return Err(DataError::Label { path: labels_path, index, label, classes });
        }
        let (scale, offset) = normalisation.affine();
        Ok(Self { pixels, labels, rows, columns, scale, offset })
    }

    /// How many examples there are, at least 1.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Never: an empty set is refused when it is loaded.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Rows and columns of an image.
    #[must_use]
    pub fn size(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// Numbers in one example: rows times columns.
    pub fn input_elements(&self) -> usize {
        self.rows * self.columns
    }

    /// Rows and columns of an image.
    pub fn dimensions(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// The label of example `index`, which must be below [`Examples::len`].
    pub fn label(&self, index: usize) -> u32 {
        u32::from(self.labels[index])
    }

    /// Writes example `index` (below [`Examples::len`]), normalised, row by row, into `input`, which has
    /// [`Examples::input_elements`] elements; answers its label. Other arguments are a bug of the caller.
    pub fn fill(&self, index: usize, input: &mut [f32]) -> u32 {
        let elements = self.input_elements();
        debug_assert_eq!(input.len(), elements);
        let pixels = &self.pixels[index * elements..(index + 1) * elements];
        for (value, pixel) in input.iter_mut().zip(pixels) {
            *value = f32::from(*pixel) * self.scale + self.offset;
        }
        self.label(index)
    }
}

impl std::fmt::Debug for Examples {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Examples({} of {}x{})", self.len(), self.rows, self.columns)
    }
}

/// Reads an open IDX file of bytes with `D` dimensions, none of them 0.
fn read_idx<const D: usize>(file: &OpenFile, what: &'static str) -> Result<([usize; D], Vec<u8>), DataError> {
    let path = file.path();
    let (reader, zipped) =
        file.content().map_err(|source| DataError::Unreadable { path: path.to_path_buf(), source })?;
    parse_idx(path, what, reader, zipped)
}

fn parse_idx<const D: usize>(
    path: &Path,
    what: &'static str,
    mut reader: impl Read,
    zipped: bool,
) -> Result<([usize; D], Vec<u8>), DataError> {
    let failed = |source: std::io::Error| match zipped {
        true => DataError::Damaged { path: path.to_path_buf(), reason: source.to_string() },
        false => DataError::Unreadable { path: path.to_path_buf(), source },
    };
    let header_length = 4 + 4 * D as u64;
    let truncated = |expected, found| DataError::Truncated { path: path.to_path_buf(), expected, found };
    let mut header = Vec::new();
    let read = (&mut reader).take(header_length).read_to_end(&mut header);
    let mut words =
        header.chunks_exact(4).map(|word| u32::from_be_bytes(word.try_into().unwrap_or_default()));
    // A file of another kind is called that even where it is too short, or no gzip data after all.
    let expected = BYTES | D as u32;
    if let Some(found) = words.next()
        && found != expected
    {
        return Err(DataError::Magic { path: path.to_path_buf(), what, found, expected });
    }
    read.map_err(failed)?;
    if (header.len() as u64) < header_length {
        return Err(truncated(header_length, header.len() as u64));
    }
    let mut dimensions = [0; D];
    let mut length = Some(1_u64);
    for (dimension, word) in dimensions.iter_mut().zip(words) {
        *dimension = word as usize;
        length = length.and_then(|length| length.checked_mul(u64::from(word)));
    }
    let Some(length) = length.filter(|length| (1..=BYTES_MOST).contains(length)) else {
        let announced = dimensions.map(|dimension| dimension.to_string()).join(" x ");
        return Err(DataError::Size { path: path.to_path_buf(), announced: format!("{announced} bytes") });
    };
    let mut bytes = Vec::new();
    (&mut reader).take(length).read_to_end(&mut bytes).map_err(failed)?;
    if (bytes.len() as u64) < length {
        return Err(truncated(header_length + length, header_length + bytes.len() as u64));
    }
    // Reading on to the end also makes the decoder check its checksum.
    match reader.read(&mut [0]).map_err(failed)? {
        0 => Ok((dimensions, bytes)),
        _ => Err(DataError::Trailing { path: path.to_path_buf(), expected: header_length + length }),
    }
}

#[cfg(test)]
mod tests;
