//! Texts of kernels, and what they say of their parameters.
//!
//! Invariant: a launch that [`Source::check`] lets pass gives a kernel as many arguments as it has parameters, a buffer wherever a
//! pointer is expected and nowhere else, and never a constant buffer where the kernel may write.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock};

use super::device::{Argument, DeviceError};

/// What stands before every source.
const PRELUDE: (&str, &str) = ("prelude.cu", include_str!("prelude.cu"));
/// What stands before every generated optimizer.
const OPTIMIZER: (&str, &str) = ("optimizer.cu", include_str!("optimizer.cu"));

/// A text of CUDA C++ that is compiled by itself. It is read once; a copy is cheap, and so is finding it among others.
#[derive(Clone, Debug)]
pub struct Source(Arc<Text>);

#[derive(Debug)]
struct Text {
    name: String,
    /// The files that it consists of, in order: name and text.
    parts: Vec<(String, String)>,
    kernels: Vec<Kernel>,
    /// Of all parts.
    hash: u64,
}

#[derive(Debug)]
struct Kernel {
    name: String,
    parameters: Vec<Parameter>,
}

/// What a parameter takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Parameter {
    Constant,
    Pointer,
    F32,
    U32,
    U64,
    Scalars,
    /// Nothing that an [`Argument`] is.
    Unknown,
}

/// Sources that ship as files, each by the function of the same name.
macro_rules! shipped {
    ($($(#[$attribute:meta])* $name:ident: $file:literal),* $(,)?) => {
        impl Source {
            $($(#[$attribute])*
            pub fn $name() -> Self {
                static SOURCE: LazyLock<Source> =
                    LazyLock::new(|| Source::new($file, &[PRELUDE, ($file, include_str!($file))]));
                SOURCE.clone()
            })*

            /// All that ship as files.
            pub fn all() -> Vec<Self> {
                vec![$(Self::$name()),*]
            }
        }
    };
}

shipped! {
    /// Aggregation: sums, divisions, and the check that numbers are finite.
    aggregate: "aggregate.cu",
    /// Median and trimmed mean; products, combinations and clipping for rules that weigh whole gradients.
    robust: "robust.cu",
    /// Wire codecs.
    codec: "codec.cu",
    /// ReLU, GELU, a bias's gradient, softmax and cross-entropy.
    layers: "layers.cu",
    /// Squared error and binary cross-entropy.
    losses: "losses.cu",
    /// Matrix products.
    linear: "linear.cu",
    /// Norms, embedding, dropout.
    sequence: "sequence.cu",
    /// Causal self-attention.
    attention: "attention.cu",
    /// Batch normalisation.
    batch_norm: "batch_norm.cu",
    /// Convolution and pooling.
    image: "image.cu",
    /// What networks do between their layers.
    network: "network.cu",
}

impl Source {
    fn new(name: &str, parts: &[(&str, &str)]) -> Self {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(parts);
        Self(Arc::new(Text {
            name: name.into(),
            parts: parts.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect(),
            kernels: parts.iter().flat_map(|(_, text)| kernels(text)).collect(),
            hash,
        }))
    }

    /// A generated optimizer's.
    pub(super) fn generated(name: &str, text: &str) -> Self {
        Self::new(name, &[PRELUDE, OPTIMIZER, (name, text)])
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The files that it consists of, in order: name and text.
    #[cfg(any(test, feature = "emulator"))]
    pub(super) fn parts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.parts.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// The whole text, as the compiler takes it.
    pub fn text(&self) -> String {
        self.0.parts.iter().map(|(name, text)| format!("#line 1 \"{name}\"\n{text}\n")).collect()
    }

    /// Names of its kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.0.kernels.iter().map(|kernel| kernel.name.as_str())
    }

    /// Whether `arguments` fit `kernel`.
    ///
    /// # Errors
    /// [`DeviceError::Arguments`] if the source has no such kernel, or it takes others.
    pub(super) fn check<M>(&self, kernel: &str, arguments: &[Argument<'_, M>]) -> Result<(), DeviceError> {
        let given = arguments.iter().map(|argument| match argument {
            Argument::In(_) => Parameter::Constant,
            Argument::InOut(_) => Parameter::Pointer,
            Argument::F32(_) => Parameter::F32,
            Argument::U32(_) => Parameter::U32,
            Argument::U64(_) => Parameter::U64,
            Argument::Scalars(_) => Parameter::Scalars,
        });
        let known = self.0.kernels.iter().find(|known| known.name == kernel);
        match known {
            Some(known) if given.eq(known.parameters.iter().copied()) => Ok(()),
            _ => Err(DeviceError::Arguments { kernel: kernel.into(), source_name: self.name().into() }),
        }
    }
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        let same_text = || self.0.hash == other.0.hash && self.0.parts == other.0.parts;
        Arc::ptr_eq(&self.0, &other.0) || same_text()
    }
}

impl Eq for Source {}

impl Hash for Source {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

/// A text's kernels.
fn kernels(text: &str) -> impl Iterator<Item = Kernel> {
    text.split("__global__ void ").skip(1).filter_map(|rest| {
        let (name, rest) = rest.split_once('(')?;
        let (parameters, _) = rest.split_once(')')?;
        Some(Kernel { name: name.into(), parameters: parameters.split(',').map(parameter).collect() })
    })
}

fn parameter(text: &str) -> Parameter {
    let text = text.trim();
    match (text.contains('*'), text.split_whitespace().next()) {
        (true, Some("const")) => Parameter::Constant,
        (true, _) => Parameter::Pointer,
        (false, Some("float")) => Parameter::F32,
        (false, Some("u32")) => Parameter::U32,
        (false, Some("u64")) => Parameter::U64,
        (false, Some("Scalars")) => Parameter::Scalars,
        _ => Parameter::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_and_every_parameter_is_known() {
        let names: Vec<String> = Source::aggregate().kernels().map(str::to_owned).collect();
        assert_eq!(names, ["add", "add_checked", "first_non_finite", "divide"]);
        for source in Source::all() {
            assert!(!source.0.kernels.is_empty());
            for kernel in &source.0.kernels {
                assert!(!kernel.parameters.contains(&Parameter::Unknown), "{kernel:?}");
            }
        }
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

    /// What was compiled is found again by its text, whoever made it; one name with two texts is two sources.
    #[test]
    fn a_source_is_its_text() {
        let of = |text: &str| Source::generated("adam.cu", text);
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
        assert_eq!(Source::aggregate(), Source::aggregate());
        assert_ne!(Source::aggregate(), Source::robust());
    }
}
