//! Buffers that a model makes once, and the parts of them that a batch uses.

use super::Panels;
use crate::model::ModelError;

/// A buffer of zeros.
///
/// # Errors
/// [`ModelError::TooLarge`], naming `max_examples`, if there is no such memory.
pub(crate) fn buffer(elements: usize, max_examples: usize) -> Result<Vec<f32>, ModelError> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(elements).map_err(|_| ModelError::TooLarge { max_examples })?;
    buffer.resize(elements, 0.0);
    Ok(buffer)
}

/// The part of a buffer that a batch uses.
pub(crate) fn take(buffer: &[f32], panels: Panels, features: usize) -> &[f32] {
    buffer.get(..panels.elements(features)).unwrap_or_default()
}

/// The part of a buffer that a batch uses.
pub(crate) fn take_mut(buffer: &mut [f32], panels: Panels, features: usize) -> &mut [f32] {
    buffer.get_mut(..panels.elements(features)).unwrap_or_default()
}
