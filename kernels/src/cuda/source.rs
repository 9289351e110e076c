//! Texts of kernels, and what they say of their parameters.
//!
//! Invariant: a launch that [`Source::check`] lets pass gives a kernel as many arguments as it has parameters, a buffer wherever a
//! pointer is expected and nowhere else, and never a constant buffer where the kernel may write.

use super::device::{Argument, DeviceError};

/// What stands before every source.
pub(super) const PRELUDE: (&str, &str) = ("prelude.cu", include_str!("prelude.cu"));
/// What stands before every generated optimizer.
pub(super) const OPTIMIZER: (&str, &str) = ("optimizer.cu", include_str!("optimizer.cu"));

/// A text of CUDA C++ that is compiled by itself.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Source {
    name: String,
    text: String,
    /// Whether [`OPTIMIZER`] stands before it.
    is_generated: bool,
}

impl Source {
    /// Aggregation: sums, divisions, and the check that numbers are finite.
    pub fn aggregate() -> Self {
        Self::shipped("aggregate.cu", include_str!("aggregate.cu"))
    }

    /// Median and trimmed mean.
    pub fn robust() -> Self {
        Self::shipped("robust.cu", include_str!("robust.cu"))
    }

    /// Wire codecs.
    pub fn codec() -> Self {
        Self::shipped("codec.cu", include_str!("codec.cu"))
    }

    /// ReLU, GELU, a bias's gradient, softmax and cross-entropy.
    pub fn layers() -> Self {
        Self::shipped("layers.cu", include_str!("layers.cu"))
    }

    /// Norms, embedding, dropout.
    pub fn sequence() -> Self {
        Self::shipped("sequence.cu", include_str!("sequence.cu"))
    }

    /// Matrix products.
    pub fn linear() -> Self {
        Self::shipped("linear.cu", include_str!("linear.cu"))
    }

    /// Causal self-attention.
    pub fn attention() -> Self {
        Self::shipped("attention.cu", include_str!("attention.cu"))
    }

    /// Convolution and pooling.
    pub fn image() -> Self {
        Self::shipped("image.cu", include_str!("image.cu"))
    }

    /// All that ship as files.
    pub fn all() -> Vec<Self> {
        vec![
            Self::aggregate(),
            Self::robust(),
            Self::codec(),
            Self::layers(),
            Self::linear(),
            Self::sequence(),
            Self::attention(),
            Self::image(),
        ]
    }

    fn shipped(name: &str, text: &str) -> Self {
        Self { name: name.into(), text: text.into(), is_generated: false }
    }

    pub(super) fn generated(name: String, text: String) -> Self {
        Self { name, text, is_generated: true }
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The files that it consists of, in order: name and text.
    pub(super) fn parts(&self) -> Vec<(&str, &str)> {
        let mut parts = vec![PRELUDE];
        if self.is_generated {
            parts.push(OPTIMIZER);
        }
        parts.push((&self.name, &self.text));
        parts
    }

    /// The whole text, as the compiler takes it.
    pub fn text(&self) -> String {
        let parts = self.parts();
        parts.iter().map(|(name, text)| format!("#line 1 \"{name}\"\n{text}\n")).collect()
    }

    /// Names of its kernels.
    pub fn kernels(&self) -> Vec<&str> {
        self.parts().into_iter().flat_map(|(_, text)| kernels(text)).map(|(name, _)| name).collect()
    }

    /// Whether `arguments` fit `kernel`.
    ///
    /// # Errors
    /// [`DeviceError::Arguments`] if the source has no such kernel, or it takes others.
    pub(super) fn check<M>(&self, kernel: &str, arguments: &[Argument<'_, M>]) -> Result<(), DeviceError> {
        let refused = || DeviceError::Arguments { kernel: kernel.into(), source_name: self.name.clone() };
        let parts = self.parts();
        let mut known = parts.iter().flat_map(|(_, text)| kernels(text));
        let (_, parameters) = known.find(|(name, _)| *name == kernel).ok_or_else(refused)?;
        let parameters: Vec<&str> = parameters.split(',').map(str::trim).collect();
        let fits = |(parameter, argument): (&&str, &Argument<'_, M>)| match argument {
            Argument::In(_) => parameter.contains('*') && parameter.starts_with("const "),
            Argument::InOut(_) => parameter.contains('*') && !parameter.starts_with("const "),
            Argument::F32(_) => parameter.starts_with("float ") && !parameter.contains('*'),
            Argument::U32(_) => parameter.starts_with("u32 ") && !parameter.contains('*'),
            Argument::U64(_) => parameter.starts_with("u64 ") && !parameter.contains('*'),
            Argument::Scalars(_) => parameter.starts_with("Scalars "),
        };
        let holds = parameters.len() == arguments.len() && parameters.iter().zip(arguments).all(fits);
        if holds { Ok(()) } else { Err(refused()) }
    }
}

/// A text's kernels: each one's name, and what stands between its parentheses.
fn kernels(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split("__global__ void ").skip(1).filter_map(|rest| {
        let (name, rest) = rest.split_once('(')?;
        Some((name, rest.split_once(')')?.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found() {
        assert_eq!(Source::aggregate().kernels(), ["add", "add_checked", "first_non_finite", "divide"]);
        assert!(Source::all().iter().all(|source| !source.kernels().is_empty()));
    }

    /// The invariant.
    #[test]
    fn arguments_that_do_not_fit_are_refused() {
        let source = Source::aggregate();
        let check = |kernel: &str, arguments: &[Argument<'_, ()>]| source.check(kernel, arguments).is_ok();
        assert!(check("add", &[Argument::InOut(&mut ()), Argument::In(&()), Argument::U64(1)]));
        assert!(!check("add", &[Argument::In(&()), Argument::In(&()), Argument::U64(1)]));
        assert!(!check("add", &[Argument::InOut(&mut ()), Argument::InOut(&mut ()), Argument::U64(1)]));
        assert!(!check("add", &[Argument::InOut(&mut ()), Argument::In(&()), Argument::U32(1)]));
        assert!(!check("add", &[Argument::InOut(&mut ()), Argument::In(&())]));
        assert!(!check("subtract", &[Argument::InOut(&mut ()), Argument::In(&()), Argument::U64(1)]));
        assert!(check("divide", &[Argument::InOut(&mut ()), Argument::F32(1.0), Argument::U64(1)]));
    }
}
