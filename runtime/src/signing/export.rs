//! Signing a run's final model.
//!
//! The file was written by a worker, and a worker is trusted with its gradients, not with what an operator's key signs. So
//! nothing in the file is believed: its header must be, byte for byte, the one that this job, step and hash call for, and
//! its values must hash to the `params_blake3` that the scheduler reported. Both are found in the same pass that hashes
//! the file for the signature, so that what was checked is what is signed.

use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};
use testudo_kernels::{ModelError, ModelSpec};

use super::statement::sha256;
use super::tree::Tree;
use super::{IGNORED, Manifest, SIGNATURE_FILE, SigningError, SigningKey, write_signed};
use crate::checkpoint::safetensors::{self, CheckpointError, MODEL_FILE, Metadata};

/// Why a run's model was not signed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The folder or the key.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The job's model has no description that could be checked.
    #[error("the job's model cannot be described: {0}")]
    Model(#[from] ModelError),
    /// As above.
    #[error("the job's model cannot be described: {0}")]
    Description(#[from] CheckpointError),
    /// The folder holds more than the one file.
    #[error("{folder}: holds {found:?}, where {MODEL_FILE} alone was expected; nothing was signed")]
    Files {
        /// The folder.
        folder: String,
        /// Its files.
        found: Vec<String>,
    },
    /// The file is not what the scheduler reported.
    #[error(
        "{folder}/{MODEL_FILE} is not the model that the scheduler reported ({what}): the worker that wrote it is faulty or \
         lies; nothing was signed"
    )]
    NotReported {
        /// The folder.
        folder: String,
        /// What is not.
        what: &'static str,
    },
}

/// Signs the one file of `folder`, if it holds the parameters of `model` that `metadata` describes, and writes
/// `model.sig` beside it.
///
/// # Errors
/// [`ExportError`]; then nothing is written.
pub fn sign(
    folder: &Path,
    model: &ModelSpec,
    metadata: &Metadata,
    key: &SigningKey,
) -> Result<Manifest, ExportError> {
    let shown = folder.display().to_string();
    let tree = Tree::open(folder)?;
    let mut ignored = vec![SIGNATURE_FILE.to_owned()];
    ignored.extend(IGNORED.map(str::to_owned));
    let found = tree.files(&ignored)?;
    if found != [MODEL_FILE] {
        return Err(ExportError::Files { folder: shown, found });
    }
    let refused = |what| ExportError::NotReported { folder: shown.clone(), what };
    let mut reported = Reported::new(model, metadata)?;
    let mut whole = Context::new(&SHA256);
    tree.read(MODEL_FILE, &mut |chunk| {
        whole.update(chunk);
        reported.update(chunk);
    })?;
    reported.finish().map_err(refused)?;
    let manifest =
        Manifest { name: tree.model_name()?, files: vec![(MODEL_FILE.to_owned(), sha256(whole))], ignored };
    write_signed(&manifest, &folder.join(SIGNATURE_FILE), key)?;
    Ok(manifest)
}

/// A file, as it is read, beside the model that the scheduler reported.
pub(crate) struct Reported {
    /// The head that is expected, how much of it has come, and whether that was the same.
    head: Vec<u8>,
    at: usize,
    same_head: bool,
    /// Bytes of values that are expected, and that were found.
    values: u64,
    found: u64,
    content: blake3::Hasher,
    params_blake3: [u8; 32],
}

impl Reported {
    /// The parameters of `model` that `metadata` describes.
    ///
    /// # Errors
    /// [`ExportError`] when they cannot be described.
    pub(crate) fn new(model: &ModelSpec, metadata: &Metadata) -> Result<Reported, ExportError> {
        let parameters = model.parameters()?;
        let shapes: Vec<(&str, &[usize])> =
            parameters.iter().map(|spec| (spec.name.as_str(), spec.shape.dims())).collect();
        Ok(Reported {
            head: safetensors::head(&shapes, metadata)?,
            at: 0,
            same_head: true,
            values: parameters.iter().map(|spec| 4 * spec.shape.elements() as u64).sum(),
            found: 0,
            content: blake3::Hasher::new(),
            params_blake3: metadata.params_blake3,
        })
    }

    /// What comes next in the file.
    pub(crate) fn update(&mut self, chunk: &[u8]) {
        let expected = self.head.get(self.at..).unwrap_or_default();
        let (start, rest) = chunk.split_at(chunk.len().min(expected.len()));
        self.same_head &= expected.starts_with(start);
        self.at += start.len();
        self.content.update(rest);
        self.found += rest.len() as u64;
    }

    /// # Errors
    /// What is not as it was reported.
    pub(crate) fn finish(self) -> Result<(), &'static str> {
        if !self.same_head || self.at < self.head.len() {
            return Err("its header is another");
        }
        // Values stand in the file in the order in which params_blake3 takes them.
        if self.found != self.values || *self.content.finalize().as_bytes() != self.params_blake3 {
            return Err("its values are others");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::safetensors::Tensor;

    /// What a worker does to the folder.
    type Lie<'a> = &'a dyn Fn(&Path);

    const SPEC: fn() -> ModelSpec = || ModelSpec::Mlp { inputs: 3, hidden: vec![], classes: 2 };

    fn metadata(values: &[f32]) -> Metadata {
        let mut hasher = blake3::Hasher::new();
        // In order of the names: the bias, then the weights.
        hasher.update(bytemuck::cast_slice(&values[6..]));
        hasher.update(bytemuck::cast_slice(&values[..6]));
        Metadata {
            job: "job".into(),
            step: 7,
            params_blake3: *hasher.finalize().as_bytes(),
            model: Some(serde_json::to_string(&SPEC()).unwrap()),
        }
    }

    fn write(folder: &Path, values: &[f32], metadata: &Metadata) {
        let tensors = [
            Tensor { name: "fc1.weight", shape: &[2, 3], values: &values[..6] },
            Tensor { name: "fc1.bias", shape: &[2], values: &values[6..] },
        ];
        safetensors::write(&folder.join(MODEL_FILE), &tensors, metadata).unwrap();
    }

    fn values() -> Vec<f32> {
        (0..8).map(|i| i as f32 - 2.5).collect()
    }

    #[test]
    fn what_the_scheduler_reported_is_signed() {
        let folder = tempfile::tempdir().unwrap();
        let (values, key) = (values(), SigningKey::generate().unwrap());
        write(folder.path(), &values, &metadata(&values));
        sign(folder.path(), &SPEC(), &metadata(&values), &key).unwrap();
        let signature = folder.path().join(SIGNATURE_FILE);
        let verified = super::super::verify(folder.path(), &signature, &key.public()).unwrap();
        assert_eq!(verified.manifest().files.len(), 1);
    }

    #[test]
    fn a_worker_that_writes_anything_else_gets_no_signature() {
        let key = SigningKey::generate().unwrap();
        let values = values();
        let honest = metadata(&values);
        let mut other = values.clone();
        other[3] += 1.0;
        let lies: [(&str, Lie<'_>); 6] = [
            ("its values are others", &|folder| write(folder, &other, &honest)),
            ("its header is another", &|folder| write(folder, &other, &metadata(&other))),
            ("its header is another", &|folder| {
                write(folder, &values, &Metadata { job: "another".into(), ..honest.clone() });
            }),
            ("its header is another", &|folder| std::fs::write(folder.join(MODEL_FILE), b"").unwrap()),
            ("its values are others", &|folder| {
                write(folder, &values, &honest);
                let mut file = std::fs::read(folder.join(MODEL_FILE)).unwrap();
                file.extend([0; 4]);
                std::fs::write(folder.join(MODEL_FILE), file).unwrap();
            }),
            ("alone was expected", &|folder| {
                write(folder, &values, &honest);
                std::fs::write(folder.join("run_me.py"), b"print()").unwrap();
            }),
        ];
        for (why, lie) in lies {
            let folder = tempfile::tempdir().unwrap();
            lie(folder.path());
            let error = sign(folder.path(), &SPEC(), &honest, &key).unwrap_err();
            assert!(error.to_string().contains(why), "{why}: {error}");
            assert!(!folder.path().join(SIGNATURE_FILE).exists(), "{why}");
        }
    }
}
