//! Small sets made here, damaged in every way; and the real one, where the repository has it.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

const NAMES: [&str; 4] = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
];

fn idx(dimensions: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut file = (0x0800 | dimensions.len() as u32).to_be_bytes().to_vec();
    dimensions.iter().for_each(|dimension| file.extend(dimension.to_be_bytes()));
    file.extend_from_slice(bytes);
    file
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Five training and three test images of 2x3 pixels with three classes.
fn small() -> [Vec<u8>; 4] {
    let pixels = |count: u32| (0..count * 6).map(|pixel| (pixel * 7) as u8).collect::<Vec<_>>();
    [
        idx(&[5, 2, 3], &pixels(5)),
        idx(&[5], &[0, 1, 2, 1, 0]),
        idx(&[3, 2, 3], &pixels(3)),
        idx(&[3], &[2, 2, 1]),
    ]
}

fn written(files: &[Vec<u8>; 4]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in NAMES.iter().zip(files) {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn load(folder: &Path) -> Result<Mnist, DataError> {
    Mnist::load(folder, 3, Normalisation { mean: 0.5, std: 0.25 })
}

fn error_of(files: &[Vec<u8>; 4]) -> String {
    load(written(files).path()).unwrap_err().to_string()
}

#[test]
fn examples_come_out_as_they_went_in() {
    let set = load(written(&small()).path()).unwrap();
    assert_eq!((set.train.len(), set.test.len()), (5, 3));
    assert_eq!((set.train.input_elements(), set.train.dimensions()), (6, (2, 3)));
    let mut input = [0.0; 6];
    assert_eq!(set.train.fill(2, &mut input), 2);
    for (offset, value) in input.iter().enumerate() {
        let pixel = f64::from((12 + offset as u32) * 7);
        let exact = (pixel / 255.0 - 0.5) / 0.25;
        assert!((f64::from(*value) - exact).abs() < 1e-6, "{value} {exact}");
    }
    assert_eq!(set.test.fill(2, &mut input), 1);
    assert!(!set.test.is_empty());
}

/// Invariant 4: how the files are compressed does not show, everything else does.
#[test]
fn the_hash_is_of_the_content() {
    let plain = load(written(&small()).path()).unwrap().content_hash();
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in NAMES.iter().zip(small()) {
        std::fs::write(folder.path().join(format!("{name}.gz")), gzip(&bytes)).unwrap();
    }
    assert_eq!(load(folder.path()).unwrap().content_hash(), plain);
    let zipped_in_disguise = small().map(|bytes| gzip(&bytes));
    assert_eq!(load(written(&zipped_in_disguise).path()).unwrap().content_hash(), plain);

    for file in 0..4 {
        let mut files = small();
        *files[file].last_mut().unwrap() ^= 1;
        let set = Mnist::load(written(&files).path(), 4, Normalisation { mean: 0.5, std: 0.25 }).unwrap();
        assert_ne!(set.content_hash(), plain, "{}", NAMES[file]);
    }
    let other = Mnist::load(written(&small()).path(), 3, Normalisation::MNIST).unwrap();
    assert_ne!(other.content_hash(), plain);
    let mut turned = small();
    (turned[0], turned[2]) = (idx(&[5, 3, 2], &turned[0][16..]), idx(&[3, 3, 2], &turned[2][16..]));
    assert_ne!(load(written(&turned).path()).unwrap().content_hash(), plain);
}

/// Invariant 2, for every file: missing, empty, truncated anywhere, of the wrong kind, with trailing bytes.
#[test]
fn every_kind_of_damage_names_its_file() {
    for (file, name) in NAMES.iter().enumerate() {
        let folder = written(&small());
        std::fs::remove_file(folder.path().join(name)).unwrap();
        let error = load(folder.path()).unwrap_err();
        assert!(matches!(error, DataError::Missing { .. }) && error.to_string().contains(name), "{error}");

        for zipped in [false, true] {
            let pack = |bytes: &[u8]| if zipped { gzip(bytes) } else { bytes.to_vec() };
            let whole = small()[file].clone();
            let broken = |bytes: Vec<u8>| {
                let mut files = small();
                files[file] = pack(&bytes);
                let error = error_of(&files);
                assert!(error.contains(name), "{error}");
                error
            };
            for length in 0..whole.len() {
                let error = broken(whole[..length].to_vec());
                assert!(error.contains("truncated"), "{length}: {error}");
            }
            let mut longer = whole.clone();
            longer.push(0);
            assert!(broken(longer).contains("bytes follow"));
            let mut other = whole.clone();
            other[3] ^= 2;
            assert!(broken(other).contains("another kind of file"));
            assert!(broken(b"PK\x03\x04 a zip file".to_vec()).contains("0x504b0304"));
        }
    }
}

#[test]
fn damaged_gzip_data_is_refused() {
    let whole = gzip(&small()[0]);
    for length in 2..whole.len() {
        let mut files = small();
        files[0] = whole[..length].to_vec();
        let error = error_of(&files);
        assert!(error.contains(NAMES[0]), "{length}: {error}");
    }
    for index in whole.len() - 8..whole.len() {
        let mut files = small();
        files[0] = whole.clone();
        files[0][index] ^= 0x40;
        let error = error_of(&files);
        assert!(error.contains("damaged gzip"), "{index}: {error}");
    }
    let mut files = small();
    files[0] = [whole, b"more".to_vec()].concat();
    assert!(error_of(&files).contains(NAMES[0]));
}

/// Invariant 1.
#[test]
fn files_that_do_not_belong_together_are_refused() {
    let mut files = small();
    files[1] = idx(&[4], &[0, 1, 2, 1]);
    assert!(error_of(&files).contains("5 images"), "{}", error_of(&files));
    let mut files = small();
    files[3] = idx(&[3], &[2, 3, 1]);
    assert!(error_of(&files).contains("label 3 at index 1"), "{}", error_of(&files));
    let mut files = small();
    files[2] = idx(&[3, 3, 2], &[0; 18]);
    assert!(error_of(&files).contains("test images have 3x2"), "{}", error_of(&files));
}

/// Invariant 3: a header's lie is refused at once, and a bomb is read no further than announced.
#[test]
fn bombs_and_lies_are_cheap() {
    for dimensions in [[0, 2, 3], [5, 0, 3], [u32::MAX; 3], [1 << 16, 1 << 16, 2], [u32::MAX, u32::MAX, 0]] {
        let mut files = small();
        files[0] = idx(&dimensions, &[0; 64]);
        let error = error_of(&files);
        assert!(error.contains("announces"), "{error}");
    }
    let mut files = small();
    files[0] = idx(&[1 << 20, 28, 28], &[0; 64]);
    assert!(error_of(&files).contains("truncated"));
    let mut bomb = idx(&[5, 2, 3], &[]);
    bomb.resize(64 << 20, 0);
    files[0] = gzip(&bomb);
    assert!(files[0].len() < 100_000);
    assert!(error_of(&files).contains("bytes follow the 46"), "{}", error_of(&files));
}

#[test]
fn the_shipped_set_is_mnist() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/mnist");
    let set = Mnist::load(&folder, 10, Normalisation::MNIST).unwrap();
    assert_eq!((set.train.len(), set.test.len(), set.train.dimensions()), (60_000, 10_000, (28, 28)));
    let first: Vec<_> = (0..10).map(|index| set.train.label(index)).collect();
    assert_eq!(first, [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]);
    let first: Vec<_> = (0..10).map(|index| set.test.label(index)).collect();
    assert_eq!(first, [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]);

    let pixels = &set.train.pixels;
    let mean = pixels.iter().map(|pixel| f64::from(*pixel) / 255.0).sum::<f64>() / pixels.len() as f64;
    let square = pixels.iter().map(|pixel| (f64::from(*pixel) / 255.0 - mean).powi(2)).sum::<f64>();
    let std = (square / pixels.len() as f64).sqrt();
    assert!((mean - Normalisation::MNIST.mean).abs() < 5e-5, "{mean}");
    assert!((std - Normalisation::MNIST.std).abs() < 5e-5, "{std}");
}
