//! What another framework took for the same gradient steps on the same card: a file of JSON, as `tests/peers/torch_eager.py` writes it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::Step;
use crate::error::Failure;

/// The file.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Peer {
    /// Which framework it was, with its version.
    pub(super) framework: String,
    /// What the driver calls the card.
    pub(super) gpu: String,
    /// By model.
    models: BTreeMap<String, Measured>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Measured {
    examples: usize,
    /// Numbers that the model learns.
    parameters: u64,
    milliseconds: f64,
}

impl Peer {
    /// Reads it.
    ///
    /// # Errors
    /// When it is not such a file, with its name.
    pub(super) fn read(path: &Path) -> Result<Peer, Failure> {
        let refused = |why: String| Failure::misconfigured(format!("--peer {}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
        Peer::parse(&text).map_err(refused)
    }

    pub(super) fn parse(text: &str) -> Result<Peer, String> {
        let peer: Peer = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match peer.models.iter().find(|(_, of)| !of.milliseconds.is_finite() || of.milliseconds <= 0.0) {
            Some((name, of)) => Err(format!("{name} takes {} milliseconds", of.milliseconds)),
            None => Ok(peer),
        }
    }

    /// Whether it can be compared with what was measured on `gpu`.
    ///
    /// # Errors
    /// When it is of another card, or of other models.
    pub(super) fn check(&self, gpu: &str, steps: &[Step]) -> Result<(), String> {
        if self.gpu != gpu {
            return Err(format!("it was measured on {}, and this is {gpu}", self.gpu));
        }
        for step in steps {
            let of = self.models.get(step.name).ok_or_else(|| format!("it has no {}", step.name))?;
            if (of.examples, of.parameters) != (step.examples, step.parameters) {
                return Err(format!(
                    "its {} has {} parameters and {} examples, and not {} and {}",
                    step.name, of.parameters, of.examples, step.parameters, step.examples
                ));
            }
        }
        Ok(())
    }

    /// How long a model's step took.
    pub(super) fn milliseconds(&self, name: &str) -> Option<f64> {
        self.models.get(name).map(|of| of.milliseconds)
    }
}
