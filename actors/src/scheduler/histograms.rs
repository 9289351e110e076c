//! Histograms of slices, from servers, become those of tensors. Pure.
//!
//! 1. A version is handed on when every server has told of all that it keeps of the tensors that are counted. One of which some server
//!    does not tell is forgotten; so is what comes of a version after it, or a later one, was handed on.
//! 2. A server tells of its own slices, of all that it keeps of a tensor at once, and once: what says otherwise, or cannot be, is its
//!    fault. What comes again, or of versions that training is not near, changes nothing.
//! 3. No more than [`OPEN`] versions are kept of a server, those that are nearest to training, each of at most [`TENSORS`] tensors. What
//!    one server says takes no room from what another does, so none is forgotten for it.
//! 4. What is kept takes no more than [`histogram_bytes`].

use std::collections::BTreeMap;

use testudo_kernels::{ParameterSpec, Update};

use crate::histogram::{Histogram, TALLY, TENSORS, Tally, told_bytes};
use crate::message::{Histograms, TensorHistograms};
use crate::placement::Slice;

/// Versions of a server that may be incomplete at a time: servers are a step apart, and their words some more.
const OPEN: usize = 4;

/// Versions that servers may be ahead of, and behind, the steps that are complete.
const NEAR: u64 = 16;

/// Bytes that a scheduler keeps of histograms at most, where the model has tensors of so many elements, each in slices on so many
/// servers: those that are open, and the whole ones that are handed on.
pub fn histogram_bytes(tensors: impl IntoIterator<Item = (u64, u64)>) -> u64 {
    let counted = tensors.into_iter().take(TENSORS as usize);
    let told = counted.map(|(elements, servers)| told_bytes(elements, servers));
    let told = told.fold(0, |sum: u64, bytes| sum.saturating_add(bytes));
    told.saturating_mul(OPEN as u64 + 1).saturating_add(2 * TALLY)
}

/// How one tensor is spread after a step.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpread {
    /// The parameter's name.
    pub name: String,
    /// Of the gradient that the optimizer was given, a mean over the step's targets; `None` of running statistics, which have none.
    pub gradient: Option<Histogram>,
    /// Of the values after the step.
    pub values: Histogram,
}

#[derive(Debug)]
struct Counted {
    name: String,
    learns: bool,
}

/// What one server tells of a version, by parameter.
type Told = BTreeMap<u32, TensorHistograms>;

/// Adds up what servers tell.
#[derive(Debug, Default)]
pub(super) struct Collector {
    counted: Vec<Counted>,
    /// How many elements each server keeps of each parameter that is counted, of those of which it keeps some.
    shares: BTreeMap<u32, BTreeMap<u32, u64>>,
    /// By server, and by version.
    told: BTreeMap<u32, BTreeMap<u64, Told>>,
    /// The last version that was handed on; 0 before there is one.
    handed_on: u64,
}

impl Collector {
    /// For a model of `parameters`, which are cut into `slices`.
    pub(super) fn new(parameters: &[ParameterSpec], slices: &[Slice]) -> Collector {
        let counted = parameters.iter().take(TENSORS as usize).map(|parameter| Counted {
            name: parameter.name.clone(),
            learns: parameter.update == Update::Learn,
        });
        let mut shares: BTreeMap<u32, BTreeMap<u32, u64>> = BTreeMap::new();
        for slice in slices.iter().filter(|slice| slice.id.parameter < TENSORS) {
            *shares.entry(slice.server).or_default().entry(slice.id.parameter).or_default() +=
                slice.elements as u64;
        }
        Collector { counted: counted.collect(), shares, ..Collector::default() }
    }

    /// Takes what `server` tells when `done` steps are complete. Returns the tensors of the version, in the model's order, if that is
    /// whole now.
    ///
    /// # Errors
    /// What cannot be; the text is for the log.
    pub(super) fn add(
        &mut self,
        server: u32,
        told: Histograms,
        done: u64,
    ) -> Result<Option<Vec<TensorSpread>>, String> {
        let Some(share) = self.shares.get(&server) else {
            return Err(format!("server/{server} keeps nothing that is counted"));
        };
        for tensor in &told.tensors {
            check(&self.counted, share, tensor)?;
        }
        if told.version <= self.handed_on || told.version.abs_diff(done) > NEAR {
            return Ok(None);
        }
        let versions = self.told.entry(server).or_default();
        let version = versions.entry(told.version).or_default();
        for tensor in told.tensors {
            version.entry(tensor.parameter).or_insert(tensor);
        }
        while versions.len() > OPEN {
            let apart = |end: Option<(&u64, &Told)>| end.map_or(0, |(version, _)| version.abs_diff(done));
            let is_last_farther = apart(versions.last_key_value()) > apart(versions.first_key_value());
            if is_last_farther {
                versions.pop_last()
            } else {
                versions.pop_first()
            };
        }
        Ok(self.is_whole(told.version).then(|| self.hand_on(told.version)))
    }

    fn is_whole(&self, version: u64) -> bool {
        self.shares.iter().all(|(server, share)| {
            let told = self.told.get(server).and_then(|versions| versions.get(&version));
            told.is_some_and(|told| told.len() == share.len())
        })
    }

    /// Adds up what servers told of a version, and forgets it and those before it.
    fn hand_on(&mut self, version: u64) -> Vec<TensorSpread> {
        self.handed_on = version;
        let mut parts: Vec<Told> = Vec::new();
        for versions in self.told.values_mut() {
            let mut later = versions.split_off(&version);
            parts.extend(later.remove(&version));
            *versions = later;
        }
        let tensors = (0_u32..).zip(&self.counted).filter_map(|(parameter, counted)| {
            let told: Vec<&TensorHistograms> = parts.iter().filter_map(|part| part.get(&parameter)).collect();
            if told.is_empty() {
                // A tensor without elements is in no slice.
                return None;
            }
            let gradients = told.iter().filter_map(|tensor| tensor.gradient.as_ref());
            Some(TensorSpread {
                name: counted.name.clone(),
                gradient: counted.learns.then(|| added(gradients)),
                values: added(told.iter().map(|tensor| &tensor.values)),
            })
        });
        tensors.collect()
    }
}

/// Whether `tensor` is what a server may tell that keeps `share`.
fn check(counted: &[Counted], share: &BTreeMap<u32, u64>, tensor: &TensorHistograms) -> Result<(), String> {
    let (Some(counted), Some(elements)) =
        (counted.get(tensor.parameter as usize), share.get(&tensor.parameter))
    else {
        return Err(format!("it keeps nothing of parameter {}", tensor.parameter));
    };
    let is_whole = |histogram: &Histogram| histogram.is_possible() && histogram.values() == *elements;
    let fits = match &tensor.gradient {
        Some(gradient) => counted.learns && is_whole(gradient),
        None => !counted.learns,
    };
    if fits && is_whole(&tensor.values) {
        return Ok(());
    }
    Err(format!("the histogram of {} is none of the {elements} values that it keeps", counted.name))
}

fn added<'a>(parts: impl Iterator<Item = &'a Histogram>) -> Histogram {
    let mut tally = Tally::default();
    parts.for_each(|part| tally.add(part));
    tally.histogram()
}

#[cfg(test)]
mod tests;
