//! Where the final model goes: a trait, because files and formats are the runtime's business.

/// One parameter tensor, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct NamedTensor<'a> {
    /// The parameter's name, unique in the model.
    pub name: &'a str,
    /// Its dimensions, outermost first.
    pub dims: &'a [usize],
    /// Its values, row-major, as many as the product of `dims`.
    pub values: &'a [f32],
}

/// A whole model at one version.
#[derive(Clone, Debug)]
pub struct FinalModel<'a> {
    /// The job's name.
    pub job: &'a str,
    /// Updates applied since initialisation.
    pub version: u64,
    /// BLAKE3 over the values' little-endian bytes, tensors in order of their names.
    pub params_blake3: [u8; 32],
    /// The tensors, in the model's order.
    pub tensors: Vec<NamedTensor<'a>>,
}

/// Why a model could not be stored; the text is for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CheckpointError(pub String);

/// Takes the final model. Called on the compute thread of the worker that exports it.
pub trait CheckpointSink: Send {
    /// Stores `model` whole or not at all, and returns how many bytes it took.
    ///
    /// # Errors
    /// When it could not be stored; nothing half-written may be left in its place.
    fn export(&mut self, model: &FinalModel<'_>) -> Result<u64, CheckpointError>;
}

/// BLAKE3 over the parameters' f32 values, little-endian, tensors in order of their names: the same for any slicing,
/// placement or order of the tensors in the model.
#[must_use]
pub fn params_blake3(tensors: &[NamedTensor<'_>]) -> [u8; 32] {
    let mut sorted: Vec<&NamedTensor<'_>> = tensors.iter().collect();
    sorted.sort_by_key(|t| t.name);
    let mut hasher = blake3::Hasher::new();
    for tensor in sorted {
        hasher.update(bytemuck::cast_slice(tensor.values));
    }
    *hasher.finalize().as_bytes()
}
