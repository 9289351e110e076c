//! Data sets: files on disk to examples in memory.
//!
//! Each format is one file here. What a format promises: every error names the file and what is wrong
//! with it, memory is bounded by what the file's own header announces and by a constant, and
//! `content_hash` tells whether two nodes train on the same data.

mod files;
pub mod mnist;
pub mod text;
mod whole;

pub use files::{Data, DataFiles, FILES_MOST, LoadError};
pub use mnist::{DataError, Examples, Mnist, Normalisation};
