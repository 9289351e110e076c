//! What a step contributes to slices on a device until it is weighed, where whole gradients are: votes stay where they were cast.
//!
//! 1. All the memory that the phase needs beside a step's contributions is taken with the slices ([`Resident::reserve`]): of a rule that
//!    weighs votes, a row for each vote, one more for the aggregate before where the rule keeps it, and what the combination is written to; for
//!    clipping alone, what each slice holds. A device that cannot bear a step of such a rule says so before the first; what is left out is
//!    the 8 bytes of each look for what is not finite.
//! 2. Votes stand in the order of shards, whatever the order in which they come.

use std::collections::BTreeMap;

use testudo_kernels::cuda::{self, AnyDevice, AnyMemory, DeviceError, DeviceWeighing};
use testudo_kernels::robust::divide;
use testudo_kernels::robust::products::Products;
use testudo_kernels::robust::weigh::{Weighing, Weights};

use super::{Resident, Tensor, Vector};
use crate::placement::{Slice, SliceId};
use crate::server::held::Contributed;

/// The phase of a server's slices.
#[derive(Debug)]
pub(super) struct Weighed {
    tools: DeviceWeighing<AnyMemory>,
    /// Of each slice, where a rule weighs votes.
    ballots: BTreeMap<SliceId, Ballot>,
}

/// The votes on a slice, row by row, and how many were cast.
#[derive(Debug)]
struct Ballot {
    rows: Tensor,
    votes: usize,
    cast: usize,
    /// Whether a row behind the votes has the aggregate before.
    keeps: bool,
}

impl Weighed {
    /// The aggregate before of a slice, if the rule keeps it.
    pub(super) fn aggregate(
        &self,
        device: &mut AnyDevice,
        slice: &Slice,
    ) -> Result<Option<Vec<f32>>, DeviceError> {
        let Some(ballot) = self.ballots.get(&slice.id).filter(|ballot| ballot.keeps) else { return Ok(None) };
        let mut values = vec![0.0; slice.elements];
        ballot.rows.read_at(device, ballot.votes * slice.elements, &mut values)?;
        Ok(Some(values))
    }
}

impl Resident {
    /// Takes memory for what slices that are here hold until they are weighed: votes, if `votes`, with the aggregate before where the rule keeps
    /// one, as `before` has it.
    pub(in crate::server) fn reserve<'a>(
        &mut self,
        weighing: &Weighing,
        votes: bool,
        before: impl Fn(SliceId) -> Option<&'a [f32]>,
    ) -> Result<(), DeviceError> {
        let products = weighing.products();
        let slices: Vec<Slice> = self.units.values().flat_map(|unit| unit.slices.iter().copied()).collect();
        let most = slices.iter().map(|slice| slice.elements).max().unwrap_or(0);
        let tools = DeviceWeighing::new(self.device.get_mut(), &products, most)?;
        let mut ballots = BTreeMap::new();
        for slice in slices.iter().filter(|_| votes) {
            let name = self.named("votes on", slice.id);
            let elements = products.vectors().saturating_mul(slice.elements);
            let mut rows = Tensor::zeros(self.device.get_mut(), &name, elements)?;
            let before = before(slice.id);
            let votes = products.vectors() - usize::from(before.is_some());
            if let Some(before) = before {
                rows.write_at(self.device.get_mut(), votes * slice.elements, before)?;
            }
            ballots.insert(slice.id, Ballot { rows, votes, cast: 0, keeps: before.is_some() });
        }
        self.weighed = Some(Weighed { tools, ballots });
        self.make_room(votes)
    }

    /// Memory for the vectors that are made of contributions: where votes wait, of the slices of one unit at a time; else of all of them. Beside
    /// it, for the whole of those that are updated together.
    fn make_room(&mut self, votes: bool) -> Result<(), DeviceError> {
        let (mut at_a_time, mut whole) = (BTreeMap::new(), BTreeMap::new());
        for (id, unit) in &self.units {
            let mut of_unit: BTreeMap<usize, (usize, SliceId)> = BTreeMap::new();
            unit.slices.iter().for_each(|slice| of_unit.entry(slice.elements).or_insert((0, *id)).0 += 1);
            for (elements, (count, id)) in of_unit {
                let (most, _) = at_a_time.entry(elements).or_insert((0, id));
                *most = if votes { count.max(*most) } else { *most + count };
            }
            if unit.slices.len() > 1 {
                whole.insert(unit.weights.elements(), (1, *id));
            }
        }
        for (elements, (count, id)) in at_a_time.into_iter().chain(whole) {
            for _ in 0..count {
                let name = self.named("gradient of", id);
                let tensor = Tensor::zeros(self.device.get_mut(), &name, elements)?;
                self.leave(tensor);
            }
        }
        Ok(())
    }

    /// Whether the aggregate before is kept here with the votes.
    pub(in crate::server) fn keeps_aggregates(&self) -> bool {
        self.weighed.as_ref().is_some_and(|weighed| weighed.ballots.values().any(|ballot| ballot.keeps))
    }

    /// Casts the vote of `shard` on a slice: the mean over `examples` examples, whose gradients sum to `sum`. Whether it was the last.
    pub(in crate::server) fn cast(
        &mut self,
        id: SliceId,
        shard: u32,
        examples: usize,
        mut sum: Vec<f32>,
    ) -> Result<bool, DeviceError> {
        let ballot = self.weighed.as_mut().and_then(|weighed| weighed.ballots.get_mut(&id));
        let ballot = ballot.ok_or(DeviceError::Foreign)?;
        divide(&mut sum, examples.max(1) as f32);
        let first = (shard as usize).saturating_mul(sum.len());
        ballot.rows.write_at(self.device.get_mut(), first, &sum)?;
        ballot.cast += 1;
        let is_last = ballot.cast == ballot.votes;
        if is_last {
            ballot.cast = 0;
        }
        Ok(is_last)
    }

    /// Adds the inner products of what was contributed to a slice.
    pub(in crate::server) fn add_products(
        &mut self,
        products: &mut Products,
        slice: &Slice,
        contributed: &Contributed,
    ) -> Result<(), DeviceError> {
        let Weighed { tools, ballots } = self.weighed.as_mut().ok_or(DeviceError::Foreign)?;
        let vectors = match contributed {
            Contributed::Made(tensor) => Some(tensor),
            Contributed::Cast => ballots.get(&slice.id).map(|ballot| &ballot.rows),
            Contributed::Host(_) => None,
        };
        let vectors = vectors.ok_or(DeviceError::Foreign)?;
        tools.add_products(self.device.get_mut(), products, slice.first, vectors)
    }

    /// A slice's part of the whole gradient, combined and clipped; the aggregate before becomes what it was before it was clipped.
    pub(in crate::server) fn combine(
        &mut self,
        id: SliceId,
        contributed: Contributed,
        weights: &Weights,
    ) -> Result<Vector, DeviceError> {
        let votes = match &contributed {
            Contributed::Made(tensor) => Some(tensor.elements()),
            _ => self.weighed.as_ref().and_then(|weighed| weighed.ballots.get(&id)).map(Ballot::elements),
        };
        let elements = votes.ok_or(DeviceError::Foreign)?;
        let mut out = match (contributed, &weights.of[..]) {
            (Contributed::Made(tensor), [1.0]) => tensor,
            (contributed, _) => {
                let mut out = self.room(elements, self.named("gradient of", id))?;
                let Weighed { tools, ballots } = self.weighed.as_mut().ok_or(DeviceError::Foreign)?;
                let device = self.device.get_mut();
                match (contributed, ballots.get_mut(&id)) {
                    (Contributed::Made(tensor), _) => {
                        tools.combine(device, weights, &tensor, &mut out)?;
                        self.leave(tensor);
                    }
                    (Contributed::Cast, Some(ballot)) => {
                        tools.combine(device, weights, &ballot.rows, &mut out)?;
                        if ballot.keeps {
                            cuda::copy_to(device, &out, ballot.votes * elements, &mut ballot.rows)?;
                        }
                    }
                    _ => return Err(DeviceError::Foreign),
                }
                out
            }
        };
        let Weighed { tools, .. } = self.weighed.as_mut().ok_or(DeviceError::Foreign)?;
        tools.clip(self.device.get_mut(), &mut out, weights.clip)?;
        Ok(Vector::Device(out))
    }
}

impl Ballot {
    /// Numbers of a vote.
    fn elements(&self) -> usize {
        self.rows.elements() / (self.votes + usize::from(self.keeps)).max(1)
    }
}
