//! A client of HTTPS servers that shares nothing with them but the TLS library, and that can misbehave: HTTP is written
//! and read here, byte by byte.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

/// Far beyond what an answer takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a client trusts, and what it shows.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    config: Arc<ClientConfig>,
    token: Option<String>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The head's lines after the first, in lower case.
    pub head: String,
    /// The body.
    pub body: String,
}

/// A certificate and its key, in DER.
pub type Certified = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A connection whose handshake may still be under way.
pub type Connection = StreamOwned<ClientConnection, TcpStream>;

impl Client {
    /// A client of the server at `address` (as `localhost`) that trusts `root` and has nothing to show.
    ///
    /// # Panics
    /// When the root is none.
    #[must_use]
    pub fn new(address: SocketAddr, root: &CertificateDer<'static>) -> Client {
        Client::build(address, root, None, &rustls::version::TLS13)
    }

    /// The same, with a certificate to show, or another version of TLS.
    ///
    /// # Panics
    /// When a certificate is none.
    #[must_use]
    pub fn build(
        address: SocketAddr,
        root: &CertificateDer<'static>,
        shown: Option<Certified>,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let config = match shown {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
            None => config.with_no_client_auth(),
        };
        Client { address, config: Arc::new(config), token: None }
    }

    /// The same, with a bearer token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Client {
        Client { token: Some(token.to_owned()), ..self.clone() }
    }

    /// Connects.
    ///
    /// # Panics
    /// When nobody listens.
    #[must_use]
    pub fn connect(&self) -> Connection {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        StreamOwned::new(ClientConnection::new(Arc::clone(&self.config), name).unwrap(), stream)
    }

    /// The head of a request with a body of `length` bytes.
    #[must_use]
    pub fn head(&self, method: &str, path: &str, length: usize, more: &str) -> String {
        let token = self.token.as_ref().map(|t| format!("Authorization: Bearer {t}\r\n")).unwrap_or_default();
        format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{token}Content-Type: application/json\r\n\
             Content-Length: {length}\r\n{more}\r\n"
        )
    }

    /// Sends these bytes on a connection of their own and reads one answer.
    ///
    /// # Errors
    /// The connection ends first.
    pub fn send(&self, bytes: &[u8]) -> io::Result<Answer> {
        let mut connection = self.connect();
        // A server that has refused the head may have hung up on the body.
        let sent = connection.write_all(bytes).and_then(|()| connection.flush());
        read(&mut connection).or_else(|why| sent.and(Err(why)))
    }

    /// A request with this body.
    ///
    /// # Errors
    /// The connection ends first.
    pub fn request(&self, method: &str, path: &str, body: &str) -> io::Result<Answer> {
        self.send(format!("{}{body}", self.head(method, path, body.len(), "")).as_bytes())
    }

    /// `POST /v1/predict` with this body.
    ///
    /// # Panics
    /// When the connection ends first.
    #[must_use]
    pub fn post(&self, body: &str) -> Answer {
        self.request("POST", "/v1/predict", body).unwrap()
    }

    /// Asks for predictions of these rows.
    ///
    /// # Panics
    /// When the connection ends first.
    #[must_use]
    pub fn predict(&self, rows: &[impl AsRef<[f64]>]) -> Answer {
        let rows: Vec<&[f64]> = rows.iter().map(AsRef::as_ref).collect();
        self.post(&serde_json::json!({ "inputs": rows }).to_string())
    }
}

/// Reads one answer.
///
/// # Errors
/// The connection ends first.
pub fn read(connection: &mut Connection) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 * 1024];
    let ended = || io::Error::from(io::ErrorKind::UnexpectedEof);
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let (first, head) = head.split_once("\r\n").unwrap_or((head, ""));
            let head = head.to_lowercase();
            let length =
                head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
            if body.len() >= length.unwrap_or(0) {
                let status = first.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(ended)?;
                return Ok(Answer { status, head, body: body.to_owned() });
            }
        }
        match connection.read(&mut chunk)? {
            0 => return Err(ended()),
            count => bytes.extend_from_slice(&chunk[..count]),
        }
    }
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|why| panic!("{why}: {self:?}"))
    }

    /// The code of a refusal, or an empty text.
    #[must_use]
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The probabilities of each row.
    ///
    /// # Panics
    /// When it was refused, or says labels alone.
    #[must_use]
    pub fn probabilities(&self) -> Vec<Vec<f64>> {
        let json = self.json();
        let rows = json["predictions"].as_array().unwrap_or_else(|| panic!("{self:?}"));
        rows.iter()
            .map(|row| row["probabilities"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect())
            .collect()
    }

    /// The label of each row.
    ///
    /// # Panics
    /// When it was refused.
    #[must_use]
    pub fn labels(&self) -> Vec<u64> {
        let json = self.json();
        let rows = json["predictions"].as_array().unwrap_or_else(|| panic!("{self:?}"));
        rows.iter().map(|row| row["label"].as_u64().unwrap()).collect()
    }
}
