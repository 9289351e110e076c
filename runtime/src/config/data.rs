//! What follows from the data that a cluster file names.

use std::path::Path;

use super::Data;

impl Data {
    /// What a loss in nats for each target comes to in bits for each byte; `None` for data that is no text.
    #[must_use]
    pub fn bits_per_byte(&self, nats: f64) -> Option<f64> {
        matches!(self, Data::Text { .. }).then(|| nats * std::f64::consts::LOG2_E)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Data::Mnist { path, .. } | Data::Text { path, .. } => path,
        }
    }
}
