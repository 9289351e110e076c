//! What the accumulator holds, and the operations on one vector that instruction sets do not have.

use crate::math;
use pulp::Simd;
use std::cell::Cell;

/// Vectors of a chunk: so many that choosing what to do costs less than doing it, so few that the processor's window spans
/// several instructions, whose quotients and roots then overlap.
pub(super) const V: usize = 16;

/// A chunk of a tensor.
pub(super) type Chunk<S> = [<S as Simd>::f32s; V];

/// The vectors of a chunk in memory.
#[inline(always)]
pub(super) fn each<F>(chunk: &Cell<[F; V]>) -> &[Cell<F>] {
    let chunk: &Cell<[F]> = chunk;
    chunk.as_slice_of_cells()
}

/// What the accumulator holds: vectors by name, not by index, so that each is in a register.
macro_rules! accumulator {
    ($($v:tt $name:ident $type:ident)*) => {
        #[derive(Clone, Copy)]
        pub(super) struct Vectors<F>($(pub(super) $type),*);

        impl<F: Copy> Vectors<F> {
            #[inline(always)]
            pub(super) fn load(chunk: &Cell<[F; V]>) -> Self {
                let chunk = each(chunk);
                Self($(chunk[$v].get()),*)
            }

            #[inline(always)]
            pub(super) fn store(self, chunk: &Cell<[F; V]>) {
                let (chunk, Self($($name),*)) = (each(chunk), self);
                $(chunk[$v].set($name);)*
            }

            #[inline(always)]
            fn whole(self) -> [F; V] {
                let Self($($name),*) = self;
                [$($name),*]
            }
        }
    };
}
accumulator!(0 a F 1 b F 2 c F 3 d F 4 e F 5 f F 6 g F 7 h F 8 i F 9 j F 10 k F 11 l F 12 m F 13 n F 14 o F 15 p F);

/// What stands beside the accumulator: vectors in memory.
#[derive(Clone, Copy)]
pub(super) struct Whole<'a, F>(pub(super) &'a [Cell<F>]);

/// The same of a scalar, whose vectors are all equal: read once.
#[derive(Clone, Copy)]
pub(super) struct Splat<F>(pub(super) F);

impl<F: Copy> Whole<'_, F> {
    #[inline(always)]
    pub(super) fn vector(&self, index: usize) -> F {
        self.0[index].get()
    }
}

impl<F: Copy> Splat<F> {
    #[inline(always)]
    pub(super) fn vector(&self, _: usize) -> F {
        self.0
    }
}

/// What is made of each of the accumulator's vectors, and of those of an instruction's operands. One that is announced as a scalar is
/// read once if it is one.
macro_rules! map {
    ($a:ident => $value:expr) => { map!(@each $a, ($a), $value) };
    ($a:ident, $x:ident => $value:expr) => {{
        let $x = Whole($x.vectors());
        map!(@each $a, ($a, $x), $value)
    }};
    ($a:ident, $x:ident, $y:ident => $value:expr) => {{
        let ($x, $y) = (Whole($x.vectors()), Whole($y.vectors()));
        map!(@each $a, ($a, $x, $y), $value)
    }};
    ($a:ident, scalar $x:ident $(, $y:ident)? => $value:expr) => {{
        $(let $y = Whole($y.vectors());)?
        if $x.is_scalar {
            let $x = Splat($x.vectors()[0].get());
            map!(@each $a, ($a, $x $(, $y)?), $value)
        } else {
            let $x = Whole($x.vectors());
            map!(@each $a, ($a, $x $(, $y)?), $value)
        }
    }};
    (@each $all:ident, $names:tt, $value:expr) => {
        map!(@all $all, $names, $value; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@all $all:ident, $names:tt, $value:expr; $($v:tt)*) => {
        Vectors($(map!(@one $all, $names, $value, $v)),*)
    };
    (@one $all:ident, ($a:ident $(, $x:ident)*), $value:expr, $v:tt) => {{
        let ($a, $($x),*) = ($all.$v, $($x.vector($v)),*);
        $value
    }};
}
pub(super) use map;

/// 1, -1, or `x` itself if that is a zero or NaN.
#[inline(always)]
pub(super) fn sign<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let zero = simd.splat_f32s(0.0);
    let negative = select(simd, simd.less_than_f32s(x, zero), simd.splat_f32s(-1.0), x);
    select(simd, simd.less_than_f32s(zero, x), simd.splat_f32s(1.0), negative)
}

/// A truth as 1 or 0.
#[inline(always)]
pub(super) fn truth<S: Simd>(simd: S, mask: S::m32s) -> S::f32s {
    select(simd, mask, simd.splat_f32s(1.0), simd.splat_f32s(0.0))
}

/// `x` if it is less than `y` or NaN, else `y`.
#[inline(always)]
pub(super) fn least<S: Simd>(simd: S, x: S::f32s, y: S::f32s) -> S::f32s {
    let or_nan = select(simd, simd.equal_f32s(x, x), y, x);
    select(simd, simd.less_than_f32s(x, y), x, or_nan)
}

/// `x` if it is greater than `y` or NaN, else `y`.
#[inline(always)]
pub(super) fn greatest<S: Simd>(simd: S, x: S::f32s, y: S::f32s) -> S::f32s {
    let or_nan = select(simd, simd.equal_f32s(x, x), y, x);
    select(simd, simd.less_than_f32s(y, x), x, or_nan)
}

/// A difference from the zero that is below all others: its sign is the opposite for zeros, too.
#[inline(always)]
pub(super) fn minus<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    simd.sub_f32s(simd.splat_f32s(-0.0), x)
}

/// `then` where `condition` is true, which it is unless it is a zero.
#[inline(always)]
pub(super) fn choose<S: Simd>(simd: S, condition: S::f32s, then: S::f32s, otherwise: S::f32s) -> S::f32s {
    select(simd, simd.equal_f32s(condition, simd.splat_f32s(0.0)), otherwise, then)
}

// The same methods of `pulp` are not inlined into code for one instruction set, and take their operands through memory.

#[inline(always)]
pub(super) fn magnitude<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    pulp::cast(simd.and_u32s(pulp::cast(x), simd.splat_u32s(!(1 << 31))))
}

/// `then` where the mask is set.
#[inline(always)]
fn select<S: Simd>(simd: S, mask: S::m32s, then: S::f32s, otherwise: S::f32s) -> S::f32s {
    pulp::cast(simd.select_u32s(mask, pulp::cast(then), pulp::cast(otherwise)))
}

/// By a function that vectors have no instruction for: out of the registers, and back. It is a function of its own, so that it takes
/// no registers from the others.
#[inline(always)]
pub(super) fn elementwise<S: Simd>(simd: S, a: Vectors<S::f32s>, function: Function) -> Vectors<S::f32s> {
    let mut spare = a.whole();
    simd.vectorize(Elementwise { elements: bytemuck::cast_slice_mut(&mut spare), function });
    Vectors::load(&Cell::new(spare))
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Exp,
    Ln,
}

struct Elementwise<'a> {
    elements: &'a mut [f32],
    function: Function,
}

impl pulp::WithSimd for Elementwise<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { elements, function } = self;
        match function {
            Function::Exp => elements.iter_mut().for_each(|element| *element = math::exp(*element)),
            Function::Ln => elements.iter_mut().for_each(|element| *element = math::ln(*element)),
        }
    }
}
