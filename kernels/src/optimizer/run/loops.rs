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

/// What a loop reads an element from. One loop is compiled for each combination, so that none asks in its body.
trait Lane: Copy {
    fn cut(self, length: usize) -> Self;
    fn at(self, own: f32, index: usize) -> f32;
}

impl Lane for &[f32] {
    #[inline(always)]
    fn cut(self, length: usize) -> Self {
        &self[..length]
    }
    #[inline(always)]
    fn at(self, _: f32, index: usize) -> f32 {
        self[index]
    }
}

impl Lane for f32 {
    #[inline(always)]
    fn cut(self, _: usize) -> Self {
        self
    }
    #[inline(always)]
    fn at(self, _: f32, _: usize) -> f32 {
        self
    }
}

#[derive(Clone, Copy)]
struct Itself;

impl Lane for Itself {
    #[inline(always)]
    fn cut(self, _: usize) -> Self {
        self
    }
    #[inline(always)]
    fn at(self, own: f32, _: usize) -> f32 {
        own
    }
}

#[inline(always)]
fn each<A: Lane, B: Lane, C: Lane>(
    target: &mut [f32],
    (a, b, c): (A, B, C),
    f: impl Fn(f32, f32, f32) -> f32,
) {
    let length = target.len();
    let (a, b, c) = (a.cut(length), b.cut(length), c.cut(length));
    for (index, target) in target.iter_mut().enumerate() {
        *target = f(a.at(*target, index), b.at(*target, index), c.at(*target, index));
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
        Slice(a) => each(target, (a, 0.0, 0.0), |a, _, _| f(a)),
        Own => each(target, (Itself, 0.0, 0.0), |a, _, _| f(a)),
        Scalar(a) => target.fill(f(a)),
    }
}

/// Of two tensors or a tensor and a scalar, in place or not.
#[inline(always)]
pub(super) fn binary(target: &mut [f32], [a, b]: [Source<'_>; 2], f: impl Fn(f32, f32) -> f32) {
    let f = |a, b, _| f(a, b);
    match (a, b) {
        (Slice(a), Slice(b)) => each(target, (a, b, 0.0), f),
        (Slice(a), Scalar(b)) => each(target, (a, b, 0.0), f),
        (Scalar(a), Slice(b)) => each(target, (a, b, 0.0), f),
        (Own, Slice(b)) => each(target, (Itself, b, 0.0), f),
        (Slice(a), Own) => each(target, (a, Itself, 0.0), f),
        (Own, Scalar(b)) => each(target, (Itself, b, 0.0), f),
        (Scalar(a), Own) => each(target, (a, Itself, 0.0), f),
        (Scalar(a), Scalar(b)) => target.fill(f(a, b, 0.0)),
        (Own, Own) => each(target, (Itself, Itself, 0.0), f),
    }
}

/// As [`binary`], for operations that never work in place.
#[inline(always)]
pub(super) fn compare(target: &mut [f32], [a, b]: [Source<'_>; 2], f: impl Fn(f32, f32) -> bool) {
    let f = |a, b, _| if f(a, b) { 1.0 } else { 0.0 };
    match (a, b) {
        (Slice(a), Slice(b)) => each(target, (a, b, 0.0), f),
        (Slice(a), Scalar(b)) => each(target, (a, b, 0.0), f),
        (Scalar(a), Slice(b)) => each(target, (a, b, 0.0), f),
        _ => {}
    }
}

/// Factor, factor, addend: the first may be a scalar, the second is a tensor.
#[inline(always)]
pub(super) fn ternary(target: &mut [f32], [a, b, c]: [Source<'_>; 3], f: impl Fn(f32, f32, f32) -> f32) {
    match (a, b, c) {
        (Slice(a), Slice(b), Slice(c)) => each(target, (a, b, c), f),
        (Slice(a), Slice(b), Scalar(c)) => each(target, (a, b, c), f),
        (Slice(a), Slice(b), Own) => each(target, (a, b, Itself), f),
        (Scalar(a), Slice(b), Slice(c)) => each(target, (a, b, c), f),
        (Scalar(a), Slice(b), Scalar(c)) => each(target, (a, b, c), f),
        (Scalar(a), Slice(b), Own) => each(target, (a, b, Itself), f),
        // The factors of a product may change places: its rounding is the same.
        (Own, Slice(b), Slice(c)) | (Slice(b), Own, Slice(c)) => each(target, (b, Itself, c), f),
        (Own, Slice(b), Scalar(c)) | (Slice(b), Own, Scalar(c)) => each(target, (b, Itself, c), f),
        (Scalar(a), Own, Slice(c)) => each(target, (a, Itself, c), f),
        (Scalar(a), Own, Scalar(c)) => each(target, (a, Itself, c), f),
        _ => {}
    }
}

/// Condition, then, otherwise; never in place.
#[inline(always)]
pub(super) fn choose(target: &mut [f32], [condition, then, otherwise]: [Source<'_>; 3]) {
    let f = |condition, then, otherwise| if condition != 0.0 { then } else { otherwise };
    match (condition, then, otherwise) {
        (Scalar(condition), then, otherwise) => copy(target, if condition != 0.0 { then } else { otherwise }),
        (Slice(a), Slice(b), Slice(c)) => each(target, (a, b, c), f),
        (Slice(a), Slice(b), Scalar(c)) => each(target, (a, b, c), f),
        (Slice(a), Scalar(b), Slice(c)) => each(target, (a, b, c), f),
        (Slice(a), Scalar(b), Scalar(c)) => each(target, (a, b, c), f),
        _ => {}
    }
}
