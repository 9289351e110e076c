//! Loading a model to serve: what was signed, and nothing that contradicts itself.
//!
//! 1. The file is read once, and hashed as it is read: the bytes that are parsed are the bytes that were signed.
//! 2. The architecture is the one in the file's metadata, which the signature covers; every parameter that it calls for is
//!    there with its shape, no other is, and every value is finite.

use std::collections::BTreeMap;
use std::path::Path;

use testudo_kernels::ModelSpec;

use super::{ServeError, Trust};
use crate::checkpoint::safetensors::{self, BYTES_MOST, Checkpoint, MODEL_FILE, OwnedTensor};
use crate::signing::{self, tree::Tree, verify};

/// A model that can be served.
#[derive(Debug)]
pub struct Loaded {
    /// Its architecture.
    pub spec: ModelSpec,
    /// Its parameters, in the architecture's order.
    pub parameters: Vec<Vec<f32>>,
    /// The key that signed it, or `None` if nobody's signature was asked for.
    pub signer: Option<String>,
}

/// Loads the model in `dir`.
///
/// # Errors
/// It is not as `trust` demands, or contradicts itself.
pub fn load(dir: &Path, trust: &Trust) -> Result<Loaded, ServeError> {
    let (bytes, signer) = match trust {
        Trust::Signed { key, signature } => {
            let verified = verify(dir, signature, key)?;
            (verified.read(MODEL_FILE, BYTES_MOST)?, Some(key.hint()))
        }
        Trust::Unsigned => (signing::read_file(&Tree::open(dir)?, MODEL_FILE, BYTES_MOST)?, None),
    };
    let Checkpoint { metadata, tensors } = safetensors::parse(&dir.join(MODEL_FILE), &bytes)?;
    drop(bytes);
    let wrong = |what: String| ServeError::Model(format!("{}: {what}", dir.join(MODEL_FILE).display()));
    let model = metadata.get("model").ok_or_else(|| {
        wrong("its metadata says no architecture; only models that Testudo exports say one".to_owned())
    })?;
    let spec: ModelSpec = serde_json::from_str(model)
        .map_err(|why| wrong(format!("its architecture cannot be read: {why}")))?;
    if let Some(said) = metadata.get("params_blake3")
        && *said != blake3_of(&tensors)
    {
        return Err(wrong("its values are not those of its params_blake3".to_owned()));
    }
    let parameters = in_order(&spec, tensors).map_err(wrong)?;
    Ok(Loaded { spec, parameters, signer })
}

/// As jobs compute `params_blake3`: over the values, in order of the tensors' names.
fn blake3_of(tensors: &[OwnedTensor]) -> String {
    let mut hasher = blake3::Hasher::new();
    for tensor in tensors {
        for value in &tensor.values {
            hasher.update(&value.to_le_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

fn in_order(spec: &ModelSpec, tensors: Vec<OwnedTensor>) -> Result<Vec<Vec<f32>>, String> {
    let wanted = spec.parameters().map_err(|why| why.to_string())?;
    let mut found: BTreeMap<String, OwnedTensor> =
        tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    let mut parameters = Vec::new();
    for want in wanted {
        let name = &want.name;
        let tensor = found.remove(name).ok_or_else(|| format!("{name:?} is missing"))?;
        if tensor.shape != want.shape.dims() {
            return Err(format!("{name:?} has the shape {:?}, not {}", tensor.shape, want.shape));
        }
        if tensor.values.iter().any(|value| !value.is_finite()) {
            return Err(format!("{name:?} holds a value that is not finite"));
        }
        parameters.push(tensor.values);
    }
    match found.keys().next() {
        None => Ok(parameters),
        Some(name) => Err(format!("{name:?} is no parameter of its architecture")),
    }
}
