//! Congestion control: CUBIC (RFC 9438, as quinn has it), with a bound on what may be in flight.
//!
//! Without a bound, slow start on a fast path ends only when the receiver's kernel buffer overflows: hundreds
//! of packets lost at once, and a window that takes seconds to recover.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn_proto::RttEstimator;

/// Makes bounded controllers.
#[derive(Debug, Clone)]
pub(super) struct CappedCubic {
    cubic: Arc<CubicConfig>,
    cap: u64,
}

impl CappedCubic {
    /// Controllers that begin with `initial_window` bytes in flight and never allow more than `cap`.
    pub(super) fn new(initial_window: u64, cap: u64) -> Self {
        let mut cubic = CubicConfig::default();
        cubic.initial_window(initial_window.min(cap));
        CappedCubic { cubic: Arc::new(cubic), cap }
    }
}

impl ControllerFactory for CappedCubic {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = Arc::clone(&self.cubic).build(now, current_mtu);
        Box::new(Capped { inner, cap: self.cap })
    }
}

struct Capped {
    inner: Box<dyn Controller>,
    cap: u64,
}

impl Controller for Capped {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        // At the bound the window has nowhere to grow: it would only hide the next loss from us.
        let is_limited = app_limited || self.inner.window() >= self.cap;
        self.inner.on_ack(now, sent, bytes, is_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, is_persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window().min(self.cap)
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Capped { inner: self.inner.clone_box(), cap: self.cap })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window().min(self.cap)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
