//! Sums that are exact, whatever the order of their terms.
//!
//! What servers sum over their slices is joined by the scheduler; a floating-point sum would depend on which server
//! keeps which slice. So sums of blocks are added as integers (Kulisch: "Computer Arithmetic and Validity", 2008, chapter 8).
//!
//! Invariant: an [`Exact`] is the sum of what was added, without any rounding, as long as every term is a multiple of 2^-320
//! below 2^272 in size and there are at most 2^40. So it depends on neither order nor grouping. Products of two finite
//! `f32`, and `f64` sums of 2^16 of them, are such terms: they are multiples of 2^-298 up to 2^272.

/// The 64-bit digits of a sum.
const DIGITS: usize = 10;
/// The lowest digit's lowest bit stands for 2^-320.
const LOWEST: i64 = -320;
/// Bits of a significand that `f64` stores.
const STORED: u32 = 52;

/// A sum: an integer in two's complement, lowest digit first, in units of 2^-320.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Exact([u64; DIGITS]);

impl Exact {
    /// Bytes of a sum's text, little-endian.
    pub(super) const BYTES: usize = DIGITS * 8;

    /// Adds a term (see the invariant). One that is not finite is left out; digits below the lowest are dropped.
    pub(super) fn add(&mut self, term: f64) {
        if !term.is_finite() {
            return;
        }
        let bits = term.to_bits();
        let exponent = (bits >> STORED & 0x7ff) as i64;
        let stored = bits & ((1 << STORED) - 1);
        // Subnormal terms have the least exponent, and no leading one.
        let (significand, exponent) =
            if exponent == 0 { (stored, 1) } else { (stored | 1 << STORED, exponent) };
        let lowest = exponent - 1023 - i64::from(STORED) - LOWEST;
        let shifted = match lowest {
            0.. => u128::from(significand) << (lowest % 64),
            -52..0 => u128::from(significand >> -lowest),
            _ => 0,
        };
        let digit = (lowest.max(0) / 64) as usize;
        let mut term = Exact::default();
        for (into, part) in term.0.iter_mut().skip(digit).zip([shifted as u64, (shifted >> 64) as u64]) {
            *into = part;
        }
        if bits >> 63 == 1 {
            term.negate();
        }
        self.merge(&term);
    }

    /// Adds another sum.
    pub(super) fn merge(&mut self, other: &Exact) {
        let mut carry = false;
        for (digit, more) in self.0.iter_mut().zip(other.0) {
            let (sum, first) = digit.overflowing_add(more);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            (*digit, carry) = (sum, first | second);
        }
    }

    fn negate(&mut self) {
        let mut carry = true;
        for digit in &mut self.0 {
            (*digit, carry) = (!*digit).overflowing_add(u64::from(carry));
        }
    }

    /// The nearest `f64`, of two equally near ones the even one. Always finite.
    #[must_use]
    pub(super) fn value(&self) -> f64 {
        let negative = self.0.last().is_some_and(|top| top >> 63 == 1);
        let mut size = *self;
        if negative {
            size.negate();
        }
        let Some(top) = size.0.iter().rposition(|digit| *digit != 0) else { return 0.0 };
        let digit = |at: usize| size.0.get(at).copied().unwrap_or(0);
        // The 128 bits that end with the highest one, then whether anything lies below them.
        let zeros = digit(top).leading_zeros();
        let below = |at: usize| top.checked_sub(at).map_or(0, digit);
        let pair = u128::from(digit(top)) << 64 | u128::from(below(1));
        let pair = pair << zeros | u128::from(below(2)) >> 1 >> (63 - zeros);
        let dropped = below(2) << zeros != 0 || size.0.iter().take(top.saturating_sub(2)).any(|d| *d != 0);
        // 53 bits are kept; what is cut off decides where to.
        let cut = 128 - STORED - 1;
        let (kept, rest) = ((pair >> cut) as u64, pair << (STORED + 1));
        let half = 1_u128 << 127;
        let up = rest > half || rest == half && (dropped || kept & 1 == 1);
        let exponent = top as i64 * 64 + 63 - i64::from(zeros) + LOWEST;
        // The exponent lies from -320 to 319, so the result is normal, and a carry into it is right as it is.
        let bits = ((exponent + 1022) as u64) << STORED;
        let value = f64::from_bits(bits + kept + u64::from(up));
        if negative { -value } else { value }
    }

    /// Its bytes.
    #[must_use]
    pub(super) fn to_bytes(self) -> [u8; Exact::BYTES] {
        let mut bytes = [0; Exact::BYTES];
        for (into, digit) in bytes.chunks_exact_mut(8).zip(self.0) {
            into.copy_from_slice(&digit.to_le_bytes());
        }
        bytes
    }

    /// The sum that has those bytes: every text is one.
    #[must_use]
    pub(super) fn from_bytes(bytes: &[u8; Exact::BYTES]) -> Exact {
        let mut sum = Exact::default();
        for (digit, part) in sum.0.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *digit = u64::from_le_bytes(*part);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(terms: &[f64]) -> Exact {
        let mut sum = Exact::default();
        terms.iter().for_each(|term| sum.add(*term));
        sum
    }

    fn power(exponent: i32) -> f64 {
        2_f64.powi(exponent)
    }

    #[test]
    fn one_term_is_itself() {
        for term in
            [0.0, 1.0, -1.0, 1.5, power(-298), -power(-298), 3.0 * power(-298), power(271), f64::MIN_POSITIVE]
        {
            let expected = if term == f64::MIN_POSITIVE { 0.0 } else { term };
            assert_eq!(sum(&[term]).value().to_bits(), f64::to_bits(expected), "{term:e}");
        }
        for term in [f64::NAN, f64::INFINITY, 5e-324, power(-330)] {
            assert_eq!(sum(&[term]), Exact::default(), "{term:e}");
        }
    }

    /// What no order of `f64` additions gives.
    #[test]
    fn nothing_is_lost() {
        let terms = [power(271), 1.0, power(-298), -power(271), -1.0];
        assert_eq!(sum(&terms).value(), power(-298));
        // Half way is rounded to even; the least bit far below decides otherwise.
        let half = power(-53);
        assert_eq!(sum(&[1.0, half]).value(), 1.0);
        assert_eq!(sum(&[1.0, half, power(-298)]).value(), 1.0 + 2.0 * half);
        assert_eq!(sum(&[1.0, half, -power(-298)]).value(), 1.0);
        assert_eq!(sum(&[1.0, 3.0 * half]).value(), 1.0 + 4.0 * half);
        assert_eq!(sum(&[-1.0, -half, -power(-298)]).value(), -1.0 - 2.0 * half);
        // A carry out of the significand.
        assert_eq!(sum(&[2.0, -power(-60)]).value(), 2.0);
        assert_eq!(sum(&[power(64), -power(-298)]).value(), power(64));
    }

    /// Any bytes have a finite value: a peer may send what it likes.
    #[test]
    fn the_farthest_sums_are_finite() {
        for byte in [0xff, 0x7f, 0x80] {
            let mut bytes = [0xff; Exact::BYTES];
            bytes[Exact::BYTES - 1] = byte;
            assert!(Exact::from_bytes(&bytes).value().is_finite());
        }
        let mut least = [0; Exact::BYTES];
        least[Exact::BYTES - 1] = 0x80;
        assert_eq!(Exact::from_bytes(&least).value(), -power(319));
        assert_eq!(Exact::from_bytes(&[0xff; Exact::BYTES]).value(), -power(-320));
    }

    /// Products of any two finite `f32`.
    fn product() -> impl Strategy<Value = f64> {
        let finite =
            || any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |value| value.is_finite());
        (finite(), finite()).prop_map(|(a, b)| f64::from(a) * f64::from(b))
    }

    proptest! {
        #[test]
        fn neither_order_nor_grouping_matters(terms in prop::collection::vec(product(), 1..40), cut in any::<prop::sample::Index>()) {
            let whole = sum(&terms);
            let (left, right) = terms.split_at(cut.index(terms.len()));
            let (mut joined, mut turned) = (sum(right), terms.clone());
            joined.merge(&sum(left));
            turned.reverse();
            prop_assert_eq!(joined, whole);
            prop_assert_eq!(sum(&turned), whole);
            prop_assert_eq!(Exact::from_bytes(&whole.to_bytes()), whole);
            let negated: Vec<f64> = terms.iter().map(|term| -term).collect();
            let mut none = sum(&negated);
            prop_assert_eq!(-none.value(), whole.value());
            none.merge(&whole);
            prop_assert_eq!(none, Exact::default());
        }

        /// Two terms have one rounding, which is that of `f64` addition.
        #[test]
        fn two_terms_are_rounded_as_ieee_says(a in product(), b in product()) {
            prop_assert_eq!(sum(&[a, b]).value().to_bits(), (a + b + 0.0).to_bits());
            prop_assert_eq!(sum(&[a]).value().to_bits(), (a + 0.0).to_bits());
        }
    }
}
