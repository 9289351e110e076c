//! A small data set and its cluster file on disk, for tests that start real processes.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::toy::{CLASSES, Toy};
use testudo_actors::Dataset;

/// Pixels on each side of an image.
const SIDE: usize = 4;

/// Images in the training set.
pub const TRAIN: usize = 512;
/// Images in the test set.
pub const TEST: usize = 128;

/// A path as a command line takes it.
///
/// # Panics
/// When it is no text; those of tests are.
#[must_use]
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a test's path is text")
}

/// Writes a file that everybody may read and its owner alone may change, as nodes want it of what they trust, whatever the user's mask.
pub fn publish(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
}

/// Made-up images of four classes, in the four files of MNIST's format; quick to load and to learn.
pub fn write_data(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    for (name, seed, count) in [("train", 1, TRAIN), ("t10k", 2, TEST)] {
        let (images, labels) = draw(seed, count);
        std::fs::write(dir.join(format!("{name}-images-idx3-ubyte")), images).unwrap();
        std::fs::write(dir.join(format!("{name}-labels-idx1-ubyte")), labels).unwrap();
    }
}

fn draw(seed: u64, count: usize) -> (Vec<u8>, Vec<u8>) {
    let set = Toy::new(seed, count);
    let number = |n: usize| u32::try_from(n).unwrap().to_be_bytes();
    let mut images = [[0, 0, 8, 3], number(count), number(SIDE), number(SIDE)].concat();
    let mut labels = [[0, 0, 8, 1], number(count)].concat();
    let mut values = vec![0.0; set.input_elements()];
    for index in 0..count {
        let mut label = [0];
        set.fill(index, &mut values, &mut label);
        labels.push(u8::try_from(label[0]).unwrap());
        // From -0.5..1.5 to a byte; what the toy set has less than an image's pixels stays black.
        let pixels = values.iter().map(|v| ((v + 0.5) * 127.0) as u8);
        images.extend(pixels.chain(std::iter::repeat(0)).take(SIDE * SIDE));
    }
    (images, labels)
}

/// Writes the data and a cluster file for it into `dir`; returns the cluster file. The run it describes is far longer than
/// any test waits for: `training.max_steps` ends it.
#[must_use]
pub fn write_job(dir: &Path) -> PathBuf {
    write_data(&dir.join("data"));
    let file = dir.join("small.toml");
    let text = format!(
        "[job]\nname = \"small\"\n\n[cluster]\nworkers = 2\nservers = 2\n\n[training]\nseed = 3\nepochs = 100000\n\
         batch_size = 64\nlogical_shards = 4\n\n[model]\nkind = \"mlp\"\ninputs = {}\nhidden = [32, 16]\n\
         classes = {CLASSES}\n\n[optimizer]\nkind = \"momentum\"\nlearning_rate = 0.01\n\n[data]\nkind = \"mnist\"\n\
         path = \"data\"\n\n[transport]\nslice_bytes = 1024\n",
        SIDE * SIDE
    );
    std::fs::write(&file, text).unwrap();
    file
}
