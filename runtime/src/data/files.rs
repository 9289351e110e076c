//! The files of whatever data a cluster file names: opened once, handed to other processes as descriptors, read there.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use testudo_actors::{DataSpec, Dataset, TrainAndTest};
use testudo_transport::Role;

use super::mnist::{self, DataError, Examples, Mnist, Normalisation};
use super::text::{Cut, Text, TextError, TextFile};
use crate::config::{self, Config};

/// Most files of any data set.
pub const FILES_MOST: usize = mnist::Files::COUNT;

/// What is wrong with the data that a cluster file names.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// With MNIST's files.
    #[error(transparent)]
    Mnist(#[from] DataError),
    /// With a text.
    #[error(transparent)]
    Text(#[from] TextError),
}

/// The files of a data set, open.
#[derive(Debug)]
pub enum DataFiles {
    /// Those of MNIST.
    Mnist(mnist::Files),
    /// That of a text.
    Text(TextFile),
}

impl From<mnist::Files> for DataFiles {
    fn from(files: mnist::Files) -> DataFiles {
        DataFiles::Mnist(files)
    }
}

impl DataFiles {
    /// Opens those that `data` names.
    ///
    /// # Errors
    /// [`LoadError`] saying which cannot be.
    pub fn open(data: &config::Data) -> Result<DataFiles, LoadError> {
        Ok(match data {
            config::Data::Mnist { path, .. } => DataFiles::Mnist(mnist::Files::open(path)?),
            config::Data::Text { path, .. } => DataFiles::Text(TextFile::open(path)?),
        })
    }

    /// Those of `data` that another process has opened, in their order; `None` if they are not as many as such data has.
    #[must_use]
    pub fn of_descriptors(data: &config::Data, descriptors: Vec<OwnedFd>) -> Option<DataFiles> {
        match data {
            config::Data::Mnist { path, .. } => {
                let descriptors = descriptors.try_into().ok()?;
                Some(DataFiles::Mnist(mnist::Files::of_descriptors(path, descriptors)))
            }
            config::Data::Text { path, .. } => {
                let [descriptor] = descriptors.try_into().ok()?;
                Some(DataFiles::Text(TextFile::of_descriptor(path, descriptor)))
            }
        }
    }

    /// Their descriptors, in order.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            DataFiles::Mnist(files) => files.descriptors().to_vec(),
            DataFiles::Text(file) => vec![file.descriptor()],
        }
    }

    /// Bytes of examples that they announce.
    #[must_use]
    pub fn announced_bytes(&self) -> u64 {
        match self {
            DataFiles::Mnist(files) => files.announced_bytes(),
            DataFiles::Text(file) => file.announced_bytes(),
        }
    }
}

/// A data set in memory.
#[derive(Debug, Clone)]
pub enum Data {
    /// Images.
    Mnist(Mnist),
    /// Windows of a text.
    Text(Text),
}

impl Data {
    /// Reads what `config` names from `files`.
    ///
    /// # Errors
    /// [`LoadError`] saying which file is wrong, and how.
    pub fn read(config: &Config, files: &DataFiles) -> Result<Data, LoadError> {
        if let Some(why) = config.too_little_memory(Role::Worker, files.announced_bytes()) {
            return Err(DataError::Memory(why).into());
        }
        let model = crate::job::model(&config.model);
        match (files, &config.data) {
            (DataFiles::Mnist(files), config::Data::Mnist { path, mean, std }) => {
                let data = Mnist::read(files, model.classes(), Normalisation { mean: *mean, std: *std })?;
                if let config::Model::Cnn { image, .. } | config::Model::ResNet18 { image, .. } = config.model
                {
                    let [height, width] = data.train.size();
                    if image != [1, height, width] {
                        let folder = path.clone();
                        return Err(DataError::Image { folder, height, width, expected: image }.into());
                    }
                }
                let (found, expected) = (data.train.input_elements(), model.input_elements());
                if found != expected {
                    return Err(DataError::Inputs { folder: path.clone(), found, expected }.into());
                }
                Ok(Data::Mnist(data))
            }
            (DataFiles::Text(file), config::Data::Text { stride, test_fraction, .. }) => {
                let context = model.input_elements();
                let stride = stride.unwrap_or(context);
                Ok(Data::Text(Text::read(file, Cut { context, stride, test_fraction: *test_fraction })?))
            }
            (DataFiles::Mnist(_), config::Data::Text { path, .. })
            | (DataFiles::Text(_), config::Data::Mnist { path, .. }) => {
                let source = std::io::Error::other("the files are those of another kind of data");
                Err(TextError::Unreadable { path: path.clone(), source }.into())
            }
        }
    }

    /// What the signed job says of it.
    #[must_use]
    pub fn spec(&self) -> DataSpec {
        let (train, test, blake3) = match self {
            Data::Mnist(data) => (data.train.len(), data.test.len(), data.content_hash()),
            Data::Text(data) => (data.train.len(), data.test.len(), data.content_hash()),
        };
        DataSpec { train_examples: train as u64, test_examples: test as u64, blake3 }
    }

    /// Its training and its test set, for a worker.
    #[must_use]
    pub fn sets(self) -> TrainAndTest {
        match self {
            Data::Mnist(data) => (Arc::new(data.train), Arc::new(data.test)),
            Data::Text(data) => (Arc::new(data.train), Arc::new(data.test)),
        }
    }
}

impl Dataset for Examples {
    fn len(&self) -> usize {
        Examples::len(self)
    }

    fn input_elements(&self) -> usize {
        Examples::input_elements(self)
    }

    fn fill(&self, index: usize, input: &mut [f32], labels: &mut [u32]) {
        labels.fill(Examples::fill(self, index, input));
    }
}
