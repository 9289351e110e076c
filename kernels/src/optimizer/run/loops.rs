//! The loops that instructions are made of: over values side by side, each a tensor's elements, one scalar, or what
//! the target held before.
//!
//! Everything here is inlined into the function of `blocks.rs` that is compiled for each instruction set.

/// A source of values.
#[derive(Clone, Copy)]
pub(super) enum Source<'b> {
    /// As many elements as the target has, or more.
    Slice(&'b [f32]),
    Scalar(f32),
    /// The target's own elements.
    Own,
}

use Source::{Own, Scalar, Slice};

// Each loop goes over slices alone, zipped, so that it has one end, which the compiler knows before it begins: indexing would
// leave it a second one, and it would do the last elements of every block one by one.

#[inline(always)]
fn over_none(target: &mut [f32], f: impl Fn(f32) -> f32) {
    for own in target {
        *own = f(*own);
    }
}

#[inline(always)]
fn over_one(target: &mut [f32], a: &[f32], f: impl Fn(f32, f32) -> f32) {
    for (own, &a) in target.iter_mut().zip(a) {
        *own = f(*own, a);
    }
}

#[inline(always)]
fn over_two(target: &mut [f32], a: &[f32], b: &[f32], f: impl Fn(f32, f32, f32) -> f32) {
    for ((own, &a), &b) in target.iter_mut().zip(a).zip(b) {
        *own = f(*own, a, b);
    }
}

#[inline(always)]
pub(super) fn over_three(target: &mut [f32], [a, b, c]: [&[f32]; 3], f: impl Fn(f32, f32, f32) -> f32) {
    for (((own, &a), &b), &c) in target.iter_mut().zip(a).zip(b).zip(c) {
        *own = f(a, b, c);
    }
}

#[inline(always)]
pub(super) fn copy(target: &mut [f32], from: Source<'_>) {
    match from {
        Slice(from) => target.copy_from_slice(&from[..target.len()]),
        Scalar(value) => target.fill(value),
        Own => {}
    }
}

#[inline(always)]
pub(super) fn unary(target: &mut [f32], a: Source<'_>, f: impl Fn(f32) -> f32) {
    match a {
        Slice(a) => over_one(target, a, |_, a| f(a)),
        Own => over_none(target, f),
        Scalar(a) => target.fill(f(a)),
    }
}

/// Of two tensors or a tensor and a scalar, in place or not.
#[inline(always)]
pub(super) fn binary(target: &mut [f32], [a, b]: [Source<'_>; 2], f: impl Fn(f32, f32) -> f32) {
    match (a, b) {
        (Slice(a), Slice(b)) => over_two(target, a, b, |_, a, b| f(a, b)),
        (Slice(a), Scalar(b)) => over_one(target, a, |_, a| f(a, b)),
        (Scalar(a), Slice(b)) => over_one(target, b, |_, b| f(a, b)),
        (Own, Slice(b)) => over_one(target, b, &f),
        (Slice(a), Own) => over_one(target, a, |own, a| f(a, own)),
        (Own, Scalar(b)) => over_none(target, |own| f(own, b)),
        (Scalar(a), Own) => over_none(target, |own| f(a, own)),
        (Scalar(a), Scalar(b)) => target.fill(f(a, b)),
        (Own, Own) => over_none(target, |own| f(own, own)),
    }
}

/// Of two tensors, the second in place or not.
#[inline(always)]
pub(super) fn pair(target: &mut [f32], [a, b]: [Source<'_>; 2], f: impl Fn(f32, f32) -> f32) {
    match (a, b) {
        (Slice(a), Slice(b)) => over_two(target, a, b, |_, a, b| f(a, b)),
        (Slice(a), Own) => over_one(target, a, |own, a| f(a, own)),
        _ => {}
    }
}

/// Of three tensors, the second in place or not.
#[inline(always)]
pub(super) fn triple(target: &mut [f32], [a, b, c]: [Source<'_>; 3], f: impl Fn(f32, f32, f32) -> f32) {
    match (a, b, c) {
        (Slice(a), Slice(b), Slice(c)) => over_three(target, [a, b, c], f),
        (Slice(a), Own, Slice(c)) => over_two(target, a, c, |own, a, c| f(a, own, c)),
        _ => {}
    }
}

/// As [`binary`], for operations that never work in place.
#[inline(always)]
pub(super) fn compare(target: &mut [f32], [a, b]: [Source<'_>; 2], f: impl Fn(f32, f32) -> bool) {
    let f = |a, b| if f(a, b) { 1.0 } else { 0.0 };
    match (a, b) {
        (Slice(a), Slice(b)) => over_two(target, a, b, |_, a, b| f(a, b)),
        (Slice(a), Scalar(b)) => over_one(target, a, |_, a| f(a, b)),
        (Scalar(a), Slice(b)) => over_one(target, b, |_, b| f(a, b)),
        _ => {}
    }
}

/// Factor, factor, addend: the first may be a scalar, the second is a tensor.
#[inline(always)]
pub(super) fn ternary(target: &mut [f32], [a, b, c]: [Source<'_>; 3], f: impl Fn(f32, f32, f32) -> f32) {
    match (a, b, c) {
        (Slice(a), Slice(b), Slice(c)) => over_three(target, [a, b, c], f),
        (Slice(a), Slice(b), Scalar(c)) => over_two(target, a, b, |_, a, b| f(a, b, c)),
        (Slice(a), Slice(b), Own) => over_two(target, a, b, |own, a, b| f(a, b, own)),
        (Scalar(a), Slice(b), Slice(c)) => over_two(target, b, c, |_, b, c| f(a, b, c)),
        (Scalar(a), Slice(b), Scalar(c)) => over_one(target, b, |_, b| f(a, b, c)),
        (Scalar(a), Slice(b), Own) => over_one(target, b, |own, b| f(a, b, own)),
        // The factors of a product may change places: its rounding is the same.
        (Own, Slice(b), Slice(c)) | (Slice(b), Own, Slice(c)) => {
            over_two(target, b, c, |own, b, c| f(b, own, c));
        }
        (Own, Slice(b), Scalar(c)) | (Slice(b), Own, Scalar(c)) => over_one(target, b, |own, b| f(b, own, c)),
        (Scalar(a), Own, Slice(c)) => over_one(target, c, |own, c| f(a, own, c)),
        (Scalar(a), Own, Scalar(c)) => over_none(target, |own| f(a, own, c)),
        _ => {}
    }
}

/// Condition, then, otherwise; never in place.
#[inline(always)]
pub(super) fn choose(target: &mut [f32], [condition, then, otherwise]: [Source<'_>; 3]) {
    let f = |condition, then, otherwise| if condition != 0.0 { then } else { otherwise };
    match (condition, then, otherwise) {
        (Scalar(condition), then, otherwise) => copy(target, if condition != 0.0 { then } else { otherwise }),
        (Slice(a), Slice(b), Slice(c)) => over_three(target, [a, b, c], f),
        (Slice(a), Slice(b), Scalar(c)) => over_two(target, a, b, |_, a, b| f(a, b, c)),
        (Slice(a), Scalar(b), Slice(c)) => over_two(target, a, c, |_, a, c| f(a, b, c)),
        (Slice(a), Scalar(b), Scalar(c)) => over_one(target, a, |_, a| f(a, b, c)),
        _ => {}
    }
}
