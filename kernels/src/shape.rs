//! Shapes and element types of tensors.
//!
//! Invariants:
//! 1. A [`Shape`]'s element count and its size in bytes (for the widest [`DType`]) fit an `isize`, so that no later
//!    product of its dimensions overflows. Dimensions of zero are allowed: the tensor is empty.
//! 2. A shape read by serde obeys the same rules as one built by [`Shape::new`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// Most dimensions that a tensor may have. A shape may come from a peer; eight is what the known layers need, and more.
pub const MAX_DIMENSIONS: usize = 8;

/// The dimensions of a tensor, slowest first (row-major).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "Vec<usize>", into = "Vec<usize>")]
pub struct Shape(Box<[usize]>);

impl Shape {
    /// A shape of the given dimensions, slowest first. No dimensions at all is a scalar.
    ///
    /// # Errors
    /// [`ShapeError`] if there are more than [`MAX_DIMENSIONS`], or if the bytes would not fit an `isize`.
    pub fn new(dims: &[usize]) -> Result<Self, ShapeError> {
        if dims.len() > MAX_DIMENSIONS {
            return Err(ShapeError::TooManyDimensions { dimensions: dims.len() });
        }
        // Zeros are left out of the product: [0, huge, huge] is as suspect as [1, huge, huge].
        let elements =
            dims.iter().filter(|&&dim| dim > 0).try_fold(1usize, |product, &dim| product.checked_mul(dim));
        match elements.and_then(|elements| elements.checked_mul(WIDEST)) {
            Some(bytes) if isize::try_from(bytes).is_ok() => Ok(Self(dims.into())),
            _ => Err(ShapeError::Overflow { shape: join(dims) }),
        }
    }

    /// The dimensions, slowest first.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// The number of elements: the product of the dimensions, 1 for a scalar.
    pub fn elements(&self) -> usize {
        self.0.iter().product()
    }
}

/// Like `784x512`; `scalar` when there are no dimensions.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("scalar") } else { f.write_str(&join(&self.0)) }
    }
}

impl TryFrom<Vec<usize>> for Shape {
    type Error = ShapeError;
    fn try_from(dims: Vec<usize>) -> Result<Self, ShapeError> {
        Self::new(&dims)
    }
}

impl From<Shape> for Vec<usize> {
    fn from(shape: Shape) -> Self {
        shape.0.into_vec()
    }
}

/// The type of a tensor's elements in memory. Wire forms are [`Codec`](crate::Codec)s.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
}

impl DType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
        })
    }
}

/// Why dimensions do not make a [`Shape`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ShapeError {
    /// More dimensions than [`MAX_DIMENSIONS`].
    #[error("a shape of {dimensions} dimensions: at most {MAX_DIMENSIONS} are supported; merge some")]
    TooManyDimensions {
        /// How many there were.
        dimensions: usize,
    },
    /// The product of the dimensions does not fit memory.
    #[error("shape {shape} has more bytes than an address space holds; check its dimensions")]
    Overflow {
        /// The dimensions, like `784x512`.
        shape: String,
    },
}

/// Bytes of the widest [`DType`].
const WIDEST: usize = DType::F32.bytes();

fn join(dims: &[usize]) -> String {
    dims.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displays_and_counts() {
        let shape = Shape::new(&[784, 512]).unwrap();
        assert_eq!((shape.to_string().as_str(), shape.elements()), ("784x512", 401_408));
        let scalar = Shape::new(&[]).unwrap();
        assert_eq!((scalar.to_string().as_str(), scalar.elements()), ("scalar", 1));
        assert_eq!(Shape::new(&[3, 0, 5]).unwrap().elements(), 0);
    }

    /// Invariant 1.
    #[test]
    fn refuses_what_overflows() {
        let half = 1usize << (usize::BITS / 2);
        for dims in
            [&[usize::MAX, 2][..], &[half, half], &[0, usize::MAX, usize::MAX], &[isize::MAX as usize / 2]]
        {
            assert!(matches!(Shape::new(dims), Err(ShapeError::Overflow { .. })), "{dims:?}");
        }
        assert!(Shape::new(&[isize::MAX as usize / 4]).is_ok());
        assert_eq!(Shape::new(&[1; 9]), Err(ShapeError::TooManyDimensions { dimensions: 9 }));
    }

    /// Invariant 2.
    #[test]
    fn serde_checks_too() {
        let shape: Shape = serde_json::from_str("[2,3]").unwrap();
        assert_eq!(serde_json::to_string(&shape).unwrap(), "[2,3]");
        assert!(serde_json::from_str::<Shape>("[4294967296,4294967296,4]").is_err());
        assert_eq!(serde_json::to_string(&DType::F32).unwrap(), "\"f32\"");
    }
}
