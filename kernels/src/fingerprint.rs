//! The arithmetic fingerprint: what a node says of its arithmetic when it joins, so that only nodes whose results must
//! agree bit for bit are compared.
//!
//! Invariants:
//! 1. Two nodes of equal fingerprint give equal bits for equal inputs.
//! 2. It is printable ASCII, at most [`MAX_BYTES`] long, and the same in every process on a machine.
//!
//! A matrix library chooses code by instruction set and cache size, and its bits follow. Here every product is defined
//! as one chain of fused multiply-adds in ascending order (see `linear`), so neither belongs in the fingerprint, and
//! processors of different kinds may train together.

/// Most bytes that a fingerprint has.
pub const MAX_BYTES: usize = 256;

/// Number of the written arithmetic: raised whenever the definition of any result changes.
const ARITHMETIC: u32 = 1;

/// The arithmetic fingerprint of this build on this device: definition number, order of sums, device.
pub fn fingerprint() -> String {
    format!("testudo-arithmetic {ARITHMETIC}; f32 fma ascending; cpu")
}

/// The instruction set that kernels use on this processor, for logs. It decides speed, never bits.
pub fn instruction_set() -> &'static str {
    crate::simd::name()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 2.
    #[test]
    fn is_short_stable_and_printable() {
        let text = fingerprint();
        assert!(text.len() <= MAX_BYTES && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text}");
        assert_eq!(text, fingerprint());
        assert!(!instruction_set().is_empty());
    }
}
