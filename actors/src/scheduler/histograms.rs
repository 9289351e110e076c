//! Histograms of slices, from servers, become those of tensors. Pure.
//!
//! 1. A version is handed on when every tensor that is counted is whole: each value told once. One that never is, because a server
//!    counts none, is forgotten.
//! 2. What servers say is checked before it is added: histograms that cannot be are their sender's fault; values that another
//!    server has told, or of versions that training is not near, change nothing.
//! 3. No more than [`OPEN`] versions are kept, each of at most [`TENSORS`] tensors.

use std::collections::BTreeMap;

use testudo_kernels::{ParameterSpec, Update};

use crate::histogram::{Histogram, TENSORS, Tally};
use crate::message::Histograms;

/// Versions that may be incomplete at a time: servers are a step apart, and their words some more.
const OPEN: usize = 4;

/// Versions that servers may be ahead of, and behind, the steps that are complete.
const NEAR: u64 = 16;

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
    elements: u64,
    learns: bool,
}

#[derive(Debug, Default)]
struct Part {
    gradient: Tally,
    values: Tally,
    told: u64,
}

/// Adds up what servers tell.
#[derive(Debug, Default)]
pub(super) struct Collector {
    counted: Vec<Counted>,
    open: BTreeMap<u64, BTreeMap<u32, Part>>,
}

impl Collector {
    /// For a model of `parameters`.
    pub(super) fn new(parameters: &[ParameterSpec]) -> Collector {
        let counted = parameters.iter().take(TENSORS as usize).map(|parameter| Counted {
            name: parameter.name.clone(),
            elements: parameter.shape.elements() as u64,
            learns: parameter.update == Update::Learn,
        });
        Collector { counted: counted.collect(), open: BTreeMap::new() }
    }

    /// Takes what a server tells when `done` steps are complete. Returns the tensors of the version, in the model's order, if that is
    /// whole now.
    ///
    /// # Errors
    /// What cannot be; the text is for the log.
    pub(super) fn add(&mut self, told: &Histograms, done: u64) -> Result<Option<Vec<TensorSpread>>, String> {
        for tensor in &told.tensors {
            let counted = self.counted.get(tensor.parameter as usize);
            let counted = counted.ok_or_else(|| format!("there is no parameter {}", tensor.parameter))?;
            let fits = match &tensor.gradient {
                Some(gradient) => {
                    counted.learns && gradient.is_possible() && gradient.values() == tensor.values.values()
                }
                None => !counted.learns,
            };
            if !fits || !tensor.values.is_possible() {
                return Err(format!("the histogram of {} is none", counted.name));
            }
        }
        if told.version.abs_diff(done) > NEAR {
            return Ok(None);
        }
        let version = self.open.entry(told.version).or_default();
        for tensor in &told.tensors {
            let Some(counted) = self.counted.get(tensor.parameter as usize) else { continue };
            let part = version.entry(tensor.parameter).or_default();
            let sum = part.told.saturating_add(tensor.values.values());
            if sum > counted.elements {
                continue;
            }
            part.told = sum;
            part.values.add(&tensor.values);
            tensor.gradient.iter().for_each(|gradient| part.gradient.add(gradient));
        }
        let told_of =
            |at: usize| u32::try_from(at).ok().and_then(|at| version.get(&at)).map_or(0, |p| p.told);
        if self.counted.iter().enumerate().any(|(at, counted)| told_of(at) < counted.elements) {
            while self.open.len() > OPEN {
                self.open.pop_first();
            }
            return Ok(None);
        }
        let whole = self.open.remove(&told.version).unwrap_or_default();
        let tensors = whole.into_iter().filter_map(|(at, part)| {
            let counted = self.counted.get(at as usize)?;
            Some(TensorSpread {
                name: counted.name.clone(),
                gradient: counted.learns.then(|| part.gradient.histogram()),
                values: part.values.histogram(),
            })
        });
        Ok(Some(tensors.collect()))
    }
}

#[cfg(test)]
mod tests {
    use testudo_kernels::{Initial, Shape};

    use super::*;
    use crate::message::TensorHistograms;

    fn collector() -> Collector {
        let of = |name: &str, elements: usize, update| ParameterSpec {
            name: name.into(),
            shape: Shape::new(&[elements]).unwrap(),
            initial: Initial::Uniform { bound: 0.5 },
            update,
        };
        Collector::new(&[of("w", 4, Update::Learn), of("mean", 1, Update::Average { momentum: 0.1 })])
    }

    fn histogram(values: &[f32]) -> Histogram {
        let mut tally = Tally::default();
        tally.count(values.iter().copied());
        tally.histogram()
    }

    fn told(version: u64, parameter: u32, gradient: &[f32], values: &[f32]) -> Histograms {
        let gradient = (!gradient.is_empty()).then(|| histogram(gradient));
        Histograms {
            version,
            tensors: vec![TensorHistograms { parameter, gradient, values: histogram(values) }],
        }
    }

    /// Invariant 1.
    #[test]
    fn a_version_is_whole_when_every_value_was_told() {
        let mut collector = collector();
        assert_eq!(collector.add(&told(10, 0, &[1.0, 2.0], &[3.0, 4.0]), 9), Ok(None));
        assert_eq!(collector.add(&told(10, 1, &[], &[7.0]), 9), Ok(None));
        let whole = collector.add(&told(10, 0, &[-1.0, 0.0], &[5.0, 6.0]), 10).unwrap().unwrap();
        let seen: Vec<_> = whole.iter().map(|t| (t.name.as_str(), t.values.count, t.values.max)).collect();
        assert_eq!(seen, [("w", 4, 6.0), ("mean", 1, 7.0)]);
        let gradient = whole[0].gradient.as_ref().unwrap();
        assert_eq!((gradient.count, gradient.min, gradient.sum), (4, -1.0, 2.0));
        assert_eq!(whole[1].gradient, None);
        assert!(collector.open.is_empty());
    }

    /// Invariant 2.
    #[test]
    fn what_cannot_be_is_refused_and_what_was_told_changes_nothing() {
        let mut collector = collector();
        let mut wrong = told(3, 0, &[1.0], &[1.0]);
        wrong.tensors[0].values.count = 9;
        for (what, bad) in [
            ("no such tensor", told(3, 2, &[], &[1.0])),
            ("no gradient", told(3, 0, &[], &[1.0])),
            ("a gradient of what has none", told(3, 1, &[1.0], &[1.0])),
            ("a gradient of other values", told(3, 0, &[1.0, 2.0], &[1.0])),
            ("counts that do not fit", wrong),
        ] {
            assert!(collector.add(&bad, 3).is_err(), "{what}");
        }
        assert!(collector.open.is_empty());
        assert_eq!(collector.add(&told(3, 0, &[1.0; 3], &[1.0; 3]), 3), Ok(None));
        assert_eq!(collector.add(&told(3, 0, &[9.0; 2], &[9.0; 2]), 3), Ok(None), "more than there are");
        assert_eq!(collector.add(&told(3, 1, &[], &[2.0]), 3), Ok(None));
        let whole = collector.add(&told(3, 0, &[1.0], &[1.0]), 3).unwrap().unwrap();
        assert_eq!((whole[0].values.count, whole[0].values.max), (4, 1.0));
    }

    /// Invariants 1 and 3.
    #[test]
    fn what_is_never_whole_is_forgotten() {
        let mut collector = collector();
        for version in 0..40 {
            assert_eq!(collector.add(&told(version, 1, &[], &[2.0]), version), Ok(None));
        }
        assert_eq!(collector.open.keys().copied().collect::<Vec<_>>(), [36, 37, 38, 39]);
        assert_eq!(collector.add(&told(u64::MAX, 1, &[], &[2.0]), 39), Ok(None));
        assert_eq!(collector.open.len(), OPEN, "training is not near it");
    }
}
