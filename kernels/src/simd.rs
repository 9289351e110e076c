//! One door to SIMD: code is compiled once per instruction set, and the best set that this processor has is chosen
//! when it runs.
//!
//! Invariants:
//! 1. Nothing outside this module, `linear` and what runs optimizers (`optimizer::run`) knows how wide a vector is, and no result
//!    depends on it: kernels are either elementwise (with `mul_add` written where one rounding is meant) or sum in an order that they state.
//! 2. A processor without fused multiply-add gets the same bits, slowly: `mul_add` is then computed in software.

/// Defines functions whose bodies are compiled for each instruction set and dispatched at run time. Arguments that
/// are references use the lifetime `'a`. The body is plain code over slices that the compiler vectorizes.
macro_rules! vectorized {
    ($($(#[$attribute:meta])* $visibility:vis fn $name:ident<'a>($($argument:ident: $type:ty),* $(,)?) $(-> $output:ty)? $body:block)*) => {$(
        $(#[$attribute])*
        $visibility fn $name<'a>($($argument: $type),*) $(-> $output)? {
            struct Kernel<'a> {
                $($argument: $type,)*
                lifetime: std::marker::PhantomData<&'a ()>,
            }
            impl<'a> pulp::WithSimd for Kernel<'a> {
                type Output = $crate::simd::vectorized!(@output $($output)?);
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) -> Self::Output {
                    let Self { $($argument,)* lifetime: _ } = self;
                    $body
                }
            }
            $crate::simd::dispatch(Kernel { $($argument,)* lifetime: std::marker::PhantomData })
        }
    )*};
    (@output) => { () };
    (@output $output:ty) => { $output };
}
pub(crate) use vectorized;

/// Runs a kernel compiled for the best instruction set that this processor has.
#[inline]
pub(crate) fn dispatch<K: pulp::WithSimd>(kernel: K) -> K::Output {
    #[cfg(test)]
    match forced::level() {
        Some(forced::Level::Scalar) => return pulp::Simd::vectorize(pulp::Scalar, kernel),
        #[cfg(target_arch = "x86_64")]
        Some(forced::Level::V3(simd)) => return pulp::Simd::vectorize(simd, kernel),
        None => {}
    }
    pulp::Arch::new().dispatch(kernel)
}

/// The instruction set that [`dispatch`] chooses here, for people: it changes speed, never bits.
pub(crate) fn name() -> &'static str {
    #[allow(unreachable_patterns)] // which variants there are depends on the architecture
    match pulp::Arch::new() {
        pulp::Arch::Scalar => "scalar",
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V3(_) => "avx2",
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V4(_) => "avx512",
        #[cfg(target_arch = "aarch64")]
        pulp::Arch::Neon(_) => "neon",
        _ => "other",
    }
}

/// Tests run the same kernels under each instruction set that the processor has.
#[cfg(test)]
pub(crate) mod forced {
    use std::cell::Cell;

    #[derive(Clone, Copy)]
    pub(crate) enum Level {
        Scalar,
        #[cfg(target_arch = "x86_64")]
        V3(pulp::x86::V3),
    }

    thread_local!(static LEVEL: Cell<Option<Level>> = const { Cell::new(None) });

    pub(crate) fn level() -> Option<Level> {
        LEVEL.get()
    }

    /// What `f` gives under each instruction set here, the widest first, each with its name.
    pub(crate) fn each<T>(mut f: impl FnMut() -> T) -> Vec<(&'static str, T)> {
        let mut results = vec![(super::name(), f())];
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            LEVEL.set(Some(Level::V3(simd)));
            results.push(("avx2", f()));
        }
        LEVEL.set(Some(Level::Scalar));
        results.push(("scalar", f()));
        LEVEL.set(None);
        results
    }

    /// Asserts that `f` gives equal results under each instruction set here.
    pub(crate) fn assert_same<T: PartialEq + std::fmt::Debug>(f: impl FnMut() -> T) {
        let results = each(f);
        for (name, result) in &results[1..] {
            assert!(*result == results[0].1, "{name} differs from {}", results[0].0);
        }
    }
}
