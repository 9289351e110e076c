//! Evaluating and exporting a version: with the parameters that servers keep, to the last bit.
//!
//! 1. What is evaluated and exported are the parameters themselves. Where a lossy codec brought them, they are pulled once more,
//!    exactly, and training's own copy stays as it is.
//! 2. Nothing is pulled that was not ordered, and each slice once.

use super::{Effect, WorkerCore, WorkerError};
use crate::message::{Evaluate, Export, Pull};
use crate::placement::SliceId;

/// What the scheduler wants done with a version.
#[derive(Debug)]
pub(super) enum Order {
    Evaluate(Evaluate),
    Export(Export),
}

impl Order {
    fn version(&self) -> u64 {
        match self {
            Order::Evaluate(order) => order.version,
            Order::Export(order) => order.version,
        }
    }
}

/// The exact parameters of one version, as far as they have come.
#[derive(Debug, Default)]
pub(super) struct Exact {
    version: Option<u64>,
    arrived: Vec<bool>,
}

impl Exact {
    /// The version that was asked for last.
    pub(super) fn version(&self) -> Option<u64> {
        self.version
    }

    fn is_whole(&self, version: u64) -> bool {
        self.version == Some(version) && self.arrived.iter().all(|arrived| *arrived)
    }
}

impl<V> WorkerCore<V> {
    pub(super) fn order(&mut self, order: Order) {
        self.orders.push(order);
        self.carry_out_orders();
    }

    /// Carries out what the adopted version, or its exact parameters, are there for.
    pub(super) fn carry_out_orders(&mut self) {
        let Some(version) = self.version else { return };
        let is_there = self.codecs.pull.is_lossless() || self.exact.is_whole(version);
        for order in std::mem::take(&mut self.orders) {
            if order.version() > version {
                self.orders.push(order);
            } else if is_there {
                self.effects.push_back(match order {
                    Order::Evaluate(order) => Effect::Evaluate(order),
                    Order::Export(order) => Effect::Export(order),
                });
            } else {
                self.orders.push(order);
                self.pull_exact(version);
            }
        }
    }

    fn pull_exact(&mut self, version: u64) {
        if self.exact.version == Some(version) {
            return;
        }
        self.exact = Exact { version: Some(version), arrived: vec![false; self.map.slices().len()] };
        for slice in self.map.slices() {
            let pull = Pull { slice: slice.id, version, exact: true };
            self.effects.push_back(Effect::Pull { server: slice.server, pull });
        }
    }

    pub(super) fn arrive_exact(
        &mut self,
        id: SliceId,
        version: u64,
        codec: u8,
        values: V,
        bytes: u64,
    ) -> Result<(), WorkerError> {
        let at = self.map.position(id);
        let expected = at.and_then(|at| self.map.slices().get(at)).map(|slice| slice.elements as u64 * 4);
        let arrived = at.and_then(|at| self.exact.arrived.get_mut(at));
        match arrived {
            Some(arrived)
                if !*arrived && expected == Some(bytes) && codec == testudo_kernels::Codec::F32.id() =>
            {
                *arrived = true;
            }
            _ => return Err(self.unasked(id, version, codec, bytes)),
        }
        self.effects.push_back(Effect::InstallExact { slice: id, values });
        self.carry_out_orders();
        Ok(())
    }
}
