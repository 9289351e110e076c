//! Serving a signed model over HTTPS: who may ask, how often, and how much an answer says.
//!
//! Invariants:
//! 0. The process is confined before it reads the model ([`confine`]): it opens what serving takes, starts no program, and listens on
//!    one TCP port.
//! 1. Nothing is listened on before the model's signature has been verified; what is served are the bytes that were hashed
//!    ([`model`]). An unsigned model is served only if that is asked for in so many words.
//! 2. TLS 1.3 alone ([`tls`]). Nothing is predicted for a client that is not authenticated ([`token`], [`client`]).
//! 3. Rows are charged to a client's rate and budget before they are computed, and never given back. A budget outlives the
//!    process: after a crash a client may have lost up to a block of it, and has never gained any ([`budget`]).
//! 4. An answer is a function of the probabilities rounded one by one, or of the label alone ([`answer`]).
//! 5. Bytes, rows, numbers, connections, requests under way and the time that each may take are bounded before anything is
//!    allocated for them ([`request`], `http`); connections of nobody that is known, for each address (`stranger`).
//! 6. Every refusal has one code, one status and one line of JSON ([`refusal`]).
//!
//! Rounding and budgets make copying a model through its answers dearer, not impossible: `docs/serving.md` has figures.

pub mod answer;
pub mod budget;
pub mod certificate;
pub mod client;
pub mod counts;
mod http;
pub mod model;
pub mod options;
mod predict;
pub mod refusal;
pub mod request;
mod revocation;
mod state;
mod stranger;
pub mod tls;
pub mod token;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use testudo_kernels::ModelError;
use testudo_observability as observability;
use testudo_transport::PkiError;

pub use options::{Budget, Digits, Limits, Options, Output, Trust};

use crate::checkpoint::safetensors::CheckpointError;
use crate::process::{
    self, calls,
    paths::{Needs, Place},
};
use crate::signing::SigningError;
use crate::telemetry;
use http::Shared;
pub(crate) use state::make as make_state;

/// Why serving did not begin, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The model is not what was signed, or by another key.
    #[error("the model is not served: {0}")]
    Signature(#[from] SigningError),
    /// The model's file.
    #[error("the model is not served: {0}")]
    File(#[from] CheckpointError),
    /// The model's description, or its values.
    #[error("the model is not served: {0}")]
    Model(String),
    /// The model cannot be built.
    #[error("the model is not served: {0}")]
    Build(#[from] ModelError),
    /// A key, certificate or file of tokens.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The certificate and key do not make a server.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// An option that means nothing.
    #[error("{0}")]
    Option(String),
    /// What is kept between runs.
    #[error("{}: {what}", path.display())]
    State {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// The address cannot be listened on, or the server's threads failed.
    #[error("cannot serve on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// A server that holds everything that it needs, and has answered nobody yet: every file is open or read, root's rights are
/// given up, the address is bound.
pub struct Prepared {
    listener: TcpListener,
    address: SocketAddr,
    tls: rustls::ServerConfig,
    shared: Shared,
}

/// Confines this process to what serving `options` takes, before anything of a client or of the model is read: the model's folder, the
/// folders of certificate and key, the file of tokens, the state's folder, which is made if it is not there, and one TCP port. To be called by the only thread.
///
/// # Errors
/// The state's folder cannot be made.
pub fn confine(options: &Options) -> Result<(), ServeError> {
    state::make(&options.state)?;
    let mut read = vec![options.dir.clone()];
    if let Trust::Signed { signature, .. } = &options.trust {
        read.push(signature.clone());
    }
    read.extend(options.tokens.clone());
    read.extend(options.client_ca.clone());
    // Certificate, key and lists of revoked ones are replaced while it serves: so their folders are what is read, and those that
    // their names lead to.
    for file in [&options.cert, &options.key].into_iter().chain(&options.client_crl) {
        read.push(folder_of(file));
        read.extend(file.canonicalize().map(|file| folder_of(&file)));
    }
    let needs = Needs {
        read: read.into_iter().map(Place::Path).collect(),
        write: vec![options.state.as_path().into()],
        tcp: observability::exports(),
        listen: vec![options.listen.port()],
        ..Needs::default()
    };
    process::confine(calls::Role::Node, needs);
    Ok(())
}

fn folder_of(file: &Path) -> PathBuf {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// Verifies and loads the model, reads keys and tokens, opens the state, goes on as [`Options::user`], binds the address.
///
/// # Errors
/// [`ServeError`]; then nothing is listened on.
pub fn prepare(options: &Options) -> Result<Prepared, ServeError> {
    options.check()?;
    let model = model::load(&options.dir, &options.trust)?;
    let clients = options.client_ca.as_deref().map(|ca| tls::ClientCa {
        ca,
        revoked: options.client_crl.as_deref(),
        required: options.tokens.is_none(),
    });
    let certificate = Arc::new(certificate::Certificate::load(&options.cert, &options.key)?);
    let tls = tls::server_config(&certificate, clients)?;
    let state = state::StateDir::open(&options.state)?;
    let shared = Shared::new(options, model, state, certificate)?;
    if let Some(user) = &options.user {
        shared.hand_over(user)?;
        user.take_over().map_err(|why| ServeError::Option(why.to_string()))?;
    }
    let failed = |source| ServeError::Listen { address: options.listen, source };
    let listener = TcpListener::bind(options.listen).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Prepared { listener, address, tls, shared })
}

impl Prepared {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Has `meter` asked what is counted of clients.
    pub fn observe(&self, meter: &observability::Meter) {
        telemetry::serve(meter, self.shared.counts());
    }

    /// A line for a person: what is served, to whom, within which limits.
    #[must_use]
    pub fn describe(&self) -> String {
        self.shared.describe()
    }

    /// Serves until `stop` is ready; then requests under way are answered, within ten seconds, and budgets written.
    ///
    /// # Errors
    /// The server's threads fail, or budgets cannot be written.
    pub fn run(self, stop: impl Future<Output = ()> + 'static) -> Result<(), ServeError> {
        let Prepared { listener, address, tls, shared } = self;
        let ended = http::run(listener, tls, shared.clone(), stop)
            .map_err(|source| ServeError::Listen { address, source });
        let settled = shared.settle();
        ended.and(settled)
    }
}
