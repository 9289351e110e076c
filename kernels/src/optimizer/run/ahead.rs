//! Asks memory for what later chunks need, so that it is there when they come.
//!
//! A chunk's instructions fill the processor's window, so that the next chunk's loads are seen only when this one is nearly over, and
//! what the processor fetches unasked ends where loads pause. What is asked for is a hint: nothing is read, and an address beyond a
//! tensor's end does no harm.

use super::vectors::Chunk;
use pulp::Simd;

/// How far ahead, in bytes: what a few chunks take of time is then about what memory takes to answer.
#[cfg(target_arch = "x86_64")]
const DISTANCE: usize = 4096;
/// Bytes of a cache line.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// The instruction that asks, where there is one.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    #[cfg(target_arch = "x86_64")]
    sse: Option<pulp::core_arch::x86::Sse>,
}

impl Ahead {
    pub(super) fn new() -> Self {
        Self {
            #[cfg(target_arch = "x86_64")]
            sse: pulp::core_arch::x86::Sse::try_new(),
        }
    }

    /// Asks for the chunk that comes some chunks after this one.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub(super) fn ask<S: Simd>(self, chunk: *const Chunk<S>) {
        #[cfg(target_arch = "x86_64")]
        if let Some(sse) = self.sse {
            let first = chunk.cast::<i8>().wrapping_add(DISTANCE);
            for line in (0..size_of::<Chunk<S>>()).step_by(LINE) {
                // Into all caches.
                sse._mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(first.wrapping_add(line));
            }
        }
    }
}
