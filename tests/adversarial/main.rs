//! The attacks, class by class, each against a cluster that trains on. README.md lists them with their attackers.

mod a_handshake;
mod b_authorization;
mod c_framing;
mod d_mac_and_order;
mod f_tensors;
mod frames;
mod hostile;

/// The command line under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");
