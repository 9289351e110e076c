//! Where the time of a traced step's arithmetic goes: the forward pass, the backward pass by parameter, the encoding of slices.
//!
//! The watch belongs to the compute thread and stands beside the arithmetic: without it nothing is timed, and no bit depends on it.

use std::cell::Cell;
use std::time::Instant;

use testudo_observability::Place;

use crate::placement::SliceId;
use crate::worker::actor::NODE;

/// Watches one step.
#[derive(Debug)]
pub(super) struct Watch {
    place: Place,
    /// Since when what is under way is.
    since: Cell<Instant>,
}

impl Watch {
    /// Shows what it sees at `place`.
    pub(super) fn new(place: Place) -> Watch {
        Watch { place, since: Cell::new(Instant::now()) }
    }

    /// What is under way begins now: what came before was none of it.
    pub(super) fn resume(&self) {
        self.since.set(Instant::now());
    }

    /// A shard's forward pass begins.
    pub(super) fn begin(&self) {
        // What an earlier call has left.
        let _ = testudo_kernels::stage::take();
        self.resume();
    }

    /// A gradient is there, of the parameter `name`: before the first of a shard, the forward pass was.
    pub(super) fn gradient(&self, name: &str) {
        let (now, mut began) = (Instant::now(), self.since.get());
        if let Some(over) = testudo_kernels::stage::take() {
            self.place.record(NODE, "forward", (began, over));
            began = over;
        }
        let span = self.place.begin_at(NODE, "backward", testudo_observability::steps::moment(began));
        span.with("testudo.parameter", name.to_owned()).end_at(testudo_observability::steps::moment(now));
        self.resume();
    }

    /// A slice is encoded.
    pub(super) fn encoded(&self, slice: SliceId) {
        let span =
            self.place.begin_at(NODE, "encode", testudo_observability::steps::moment(self.since.get()));
        drop(span.with("testudo.slice", slice.to_string()));
    }
}
