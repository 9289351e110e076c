//! The attacks, class by class, each against a cluster that trains on. README.md lists them with their attackers.

mod a_handshake;
mod a_revocation;
mod artefacts;
mod b_authorization;
mod c_framing;
mod counted;
mod crowd;
mod d_mac_and_order;
mod e_flood;
mod e_full_disk;
mod f_liars;
mod f_tensors;
mod frames;
mod g_checkpoints;
mod g_headers;
mod h_signatures;
mod hostile;
mod i_process;
mod j_serving;

/// The command line under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");
