//! Models on disk.

pub mod safetensors;
