//! The steps of a cluster under attack, granted one by one.

use std::sync::{Arc, Condvar, Mutex};

use testudo_actors::worker::Pace;

use super::LIFE;

/// Steps that workers may take.
#[derive(Debug, Default)]
pub(super) struct Gate {
    granted: Mutex<u64>,
    changed: Condvar,
}

impl Gate {
    pub(super) fn grant(&self, steps: u64) {
        let mut granted = self.granted.lock().unwrap();
        *granted = granted.saturating_add(steps);
        self.changed.notify_all();
    }

    pub(super) fn open(&self) {
        self.grant(u64::MAX);
    }
}

/// A worker that ends a step's backward pass only when the step has been granted.
pub(super) struct Paced {
    pub(super) gate: Arc<Gate>,
    pub(super) taken: u64,
    /// Nodes of the tree that it computes a step: its own, and one of each worker that was lost.
    pub(super) a_step: u64,
}

impl Pace for Paced {
    fn handed_over(&mut self, _: usize, last: bool) {
        if !last {
            return;
        }
        self.taken += 1;
        let granted = self.gate.granted.lock().unwrap();
        let waits = |granted: &mut u64| granted.saturating_mul(self.a_step) < self.taken;
        let _ = self.gate.changed.wait_timeout_while(granted, LIFE, waits).unwrap();
    }
}
