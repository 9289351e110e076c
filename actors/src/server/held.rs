//! What a step contributes to a server's slices, where whole gradients are weighed: held from when a slice has all of it until the
//! scheduler says how to combine it.
//!
//! 1. Products of a step are posted once, when every slice of this server has all that the step contributes.
//! 2. Weights are taken for the step whose products were posted, once, and in the form that the job asks for; nothing changes
//!    with others.
//! 3. Memory: what is held are the votes, or sums, that contributions took before; beside them one set of products. What is on a device is
//!    held there.

use std::collections::BTreeMap;

use testudo_kernels::AggregationError;
use testudo_kernels::cuda::DeviceError;
use testudo_kernels::robust::products::Products;
use testudo_kernels::robust::weigh::{Weighing, Weights};

use crate::placement::{Slice, SliceId};
use crate::server::resident::{Resident, Tensor, Vector};

/// What a step contributes to a slice.
#[derive(Debug)]
pub(super) enum Contributed {
    /// Votes, or the one vector that was made of contributions.
    Host(Vec<Vec<f32>>),
    /// The one vector that was made of contributions, on the device.
    Made(Tensor),
    /// Votes on whole gradients, where the device has put them.
    Cast,
}

impl Contributed {
    /// The one vector, if it is one.
    pub(super) fn alone(self) -> Option<Vector> {
        match self {
            Contributed::Host(mut vectors) => vectors.pop().map(Vector::Host),
            Contributed::Made(tensor) => Some(Vector::Device(tensor)),
            Contributed::Cast => None,
        }
    }
}

impl From<Vector> for Contributed {
    fn from(vector: Vector) -> Contributed {
        match vector {
            Vector::Host(values) => Contributed::Host(vec![values]),
            Vector::Device(tensor) => Contributed::Made(tensor),
        }
    }
}

/// The slices of one server that wait for weights.
#[derive(Debug)]
pub(super) struct Held {
    weighing: Weighing,
    slices: usize,
    products: Products,
    contributed: BTreeMap<SliceId, Contributed>,
    /// The step whose products were posted.
    posted: Option<u64>,
    ready: Option<(u64, Products)>,
}

impl Held {
    /// For a server that keeps so many slices.
    pub(super) fn new(weighing: Weighing, slices: usize) -> Held {
        let products = weighing.products();
        Held { weighing, slices, products, contributed: BTreeMap::new(), posted: None, ready: None }
    }

    /// A slice has all that `step` contributes to it: `vectors`, beside the aggregate before where the rule keeps one.
    pub(super) fn hold(
        &mut self,
        step: u64,
        slice: &Slice,
        vectors: Vec<Vec<f32>>,
        before: Option<&[f32]>,
    ) -> Result<(), AggregationError> {
        let all: Vec<&[f32]> = vectors.iter().map(Vec::as_slice).chain(before).collect();
        self.products.add(slice.first, &all)?;
        self.hold_statistics(step, slice, vectors);
        Ok(())
    }

    /// The same of a slice on a device, where the aggregate before is too.
    pub(super) fn hold_on_device(
        &mut self,
        step: u64,
        slice: &Slice,
        contributed: Contributed,
        resident: &mut Resident,
    ) -> Result<(), DeviceError> {
        resident.add_products(&mut self.products, slice, &contributed)?;
        self.keep(step, slice, contributed);
        Ok(())
    }

    /// The same of a slice that is no part of the gradient, and has no say in how that is weighed.
    pub(super) fn hold_statistics(&mut self, step: u64, slice: &Slice, vectors: Vec<Vec<f32>>) {
        self.keep(step, slice, Contributed::Host(vectors));
    }

    fn keep(&mut self, step: u64, slice: &Slice, contributed: Contributed) {
        self.contributed.insert(slice.id, contributed);
        if self.contributed.len() == self.slices {
            self.posted = Some(step);
            self.ready = Some((step, std::mem::replace(&mut self.products, self.weighing.products())));
        }
    }

    /// The products to be posted, and of which step.
    pub(super) fn poll(&mut self) -> Option<(u64, Products)> {
        self.ready.take()
    }

    /// The slices of `step`, to be combined by `weights`; `None` if these are not what is waited for.
    pub(super) fn release(&mut self, step: u64, weights: &Weights) -> Option<BTreeMap<SliceId, Contributed>> {
        let fits = weights.of.len() == self.weighing.vectors() && weights.are_safe();
        self.posted.take_if(|posted| fits && *posted == step)?;
        Some(std::mem::take(&mut self.contributed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testudo_kernels::Aggregation;

    fn slice(index: u32) -> Slice {
        let id = SliceId { parameter: 0, index };
        Slice { id, first: index as usize * 2, elements: 2, server: 0 }
    }

    /// Invariants 1 and 2.
    #[test]
    fn a_step_is_posted_once_and_taken_once() {
        let rule = Aggregation::NormBound { hostile: 0, bound: 1.0 };
        let mut held = Held::new(Weighing::new(rule, None, 2).unwrap(), 2);
        let weights = |of: &[f64]| Weights { of: of.to_vec(), clip: 1.0 };
        let good = weights(&[0.5, 0.5]);
        for step in [4, 5] {
            held.hold(step, &slice(1), vec![vec![1.0, 2.0], vec![0.0, 1.0]], None).unwrap();
            assert!(held.poll().is_none() && held.release(step, &good).is_none(), "one slice is behind");
            held.hold(step, &slice(0), vec![vec![2.0, 4.0], vec![1.0, 1.0]], None).unwrap();
            let (posted, products) = held.poll().unwrap();
            assert!(held.poll().is_none());
            // Of both slices together: 1 + 4 + 4 + 16, and 0 + 1 + 1 + 1.
            let mut expected = held.weighing.products();
            expected.add(0, &[&[2.0, 4.0, 1.0, 2.0], &[1.0, 1.0, 0.0, 1.0]]).unwrap();
            assert_eq!((posted, products), (step, expected));
            let wrong = [weights(&[0.5]), weights(&[0.5, f64::NAN]), weights(&[0.9, 0.9])];
            assert!(wrong.iter().all(|weights| held.release(step, weights).is_none()));
            assert!(held.release(step + 1, &good).is_none());
            let slices = held.release(step, &good).unwrap();
            assert_eq!(slices.keys().map(|id| id.index).collect::<Vec<_>>(), [0, 1]);
            assert!(held.release(step, &good).is_none(), "twice");
        }
        assert!(held.hold(6, &slice(0), vec![vec![1.0, 1.0]], None).is_err());
    }
}
