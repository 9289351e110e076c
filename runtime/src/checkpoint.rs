//! Models and training state on disk.
//!
//! A run's **checkpoints** lie in `RUN_DIR/checkpoint/`, one folder a step ([`layout`]): a part from each server, encrypted
//! ([`part`]), and a signed manifest that names them all ([`manifest`]). Servers write parts ([`writer`]); the scheduler
//! writes the manifest ([`ledger`]), deletes what is too old ([`retention`]) and moves the chain's head ([`head`]). Whoever
//! goes on from one looks it up and checks it ([`store`]), may it be resumed by this job ([`resume`]), and reads it
//! ([`load`]). Keys are [`keys`]'s, and every write goes through [`storage`], so that tests can fail each one. `final/` holds
//! the exported model, in the clear ([`safetensors`]).
//!
//! Invariants, cited by the tests:
//! 1. **A checkpoint is there when its manifest is**, whole: every part is on disk before the manifest gets its name. A crash
//!    at any write leaves the checkpoint before as it was.
//! 2. **Nothing is used before it is checked**: the manifest against its signature (or against the hash that the signed job
//!    states), a part against the manifest's size and hash and age's own authentication, every tensor against the model.
//! 3. **The latest whole checkpoint is never deleted** by retention, and every deletion is recorded before it is made.
//! 4. **Steps only grow** within a run, each manifest names the one before, and a head that names a manifest which is not
//!    there is seen.

pub mod error;
pub mod head;
pub mod keys;
pub mod layout;
pub mod ledger;
pub mod load;
pub mod manifest;
pub mod part;
pub mod resume;
pub mod retention;
pub mod safetensors;
pub mod storage;
pub mod store;
pub mod writer;

#[cfg(test)]
mod tests;

pub use error::CheckpointError;
pub use layout::Layout;
pub use store::{Checkpoints, Whole};
