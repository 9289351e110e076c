//! Lists of revoked certificates, from an operator through the scheduler to every node.
//!
//! 1. Nobody takes a list because of who brings it: each node checks the certificate authority's signature, the number and the
//!    time, and what it cannot take changes nothing.
//! 2. A node that joins later gets the lists that are in force; those that are there get each that the scheduler takes, from an
//!    operator or from the file that it follows.
//!
//! A revoked node's connections are closed by the transport; what it held is lost as a dead node's is.

use crate::link::Network;
use crate::message::{Body, Revocations};

/// What a server or worker does with a list that the scheduler passes on.
///
/// # Errors
/// The scheduler said what is no such message.
pub(crate) fn passed_on(network: &Network, body: &[u8]) -> Result<(), String> {
    let Revocations { crl } = Revocations::decode(body).map_err(|e| e.to_string())?;
    if let Err(why) = network.install_crl(&crl) {
        tracing::warn!(why, "a list of revoked certificates is not taken");
    }
    Ok(())
}
