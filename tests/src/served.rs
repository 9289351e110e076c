//! A signed model on disk, the certificates for serving it, and a server for it in this process.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
};
use rcgen::{DnType, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use testudo::checkpoint::safetensors::{self, MODEL_FILE, Metadata, Tensor};
use testudo::serve::token::Tokens;
use testudo::serve::{Budget, Limits, Options, Output, ServeError, Trust, prepare};
use testudo::signing::{PublicKey, SIGNATURE_FILE, SigningKey, sign};
use testudo_kernels::ModelSpec;
use testudo_transport::pki::{write_public, write_secret};
use tokio::sync::oneshot;

use crate::https::{Certified, Client};

/// A folder with `model/`, signed with `key.pem`; `ca.pem`, `cert.pem` and `server.pem`; `state/`.
#[derive(Debug)]
pub struct Site {
    folder: tempfile::TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

/// A server in this process, which ends in order when this is dropped.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// What its clients trust.
    root: CertificateDer<'static>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
    state: PathBuf,
}

/// Two inputs, three classes, no hidden layer: probabilities can be computed by hand.
#[must_use]
pub fn regression() -> (ModelSpec, Vec<Vec<f32>>) {
    let spec = ModelSpec::Mlp { inputs: 2, hidden: vec![], classes: 3 };
    (spec, vec![vec![1.0, 0.0, 0.0, 1.0, -1.0, -1.0], vec![0.0, 0.5, -0.5]])
}

/// A site for [`regression`].
#[must_use]
pub fn site() -> Site {
    let (spec, parameters) = regression();
    Site::new(&spec, &parameters)
}

/// [`Site::options`] with a budget and a rate that do not end a test.
#[must_use]
pub fn roomy(site: &Site) -> Options {
    let mut options = site.options();
    options.limits.budget = Some(Budget::Rows(100_000));
    options.limits.rate = 100_000;
    options
}

/// A server, and a client that it knows.
///
/// # Panics
/// When the server does not start.
#[must_use]
pub fn start(site: &Site, options: &Options) -> (Running, Client) {
    let token = site.token("alice");
    let running = site.serve(options).unwrap();
    let client = running.client().with_token(&token);
    (running, client)
}

impl Site {
    /// A site for a model with these parameters, in its own order.
    ///
    /// # Panics
    /// When the parameters are not the model's.
    #[must_use]
    pub fn new(spec: &ModelSpec, parameters: &[Vec<f32>]) -> Site {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("model")).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // OpenSSL takes a certificate whose issuer has its own name for one that signed itself.
        params.distinguished_name.push(DnType::CommonName, "the CA of a test");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let site = Site { folder, ca };
        site.write_model(spec, parameters);
        SigningKey::create(&site.at("key.pem")).unwrap();
        site.sign();
        write_public(&site.at("ca.pem"), site.ca.pem().as_bytes()).unwrap();
        let _ = site.renew();
        std::fs::DirBuilder::new().mode(0o700).create(site.at("state")).unwrap();
        site
    }

    /// A path in its folder.
    #[must_use]
    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Puts another model in the place of the one that is there; the signature stays as it is.
    ///
    /// # Panics
    /// When the parameters are not the model's.
    pub fn write_model(&self, spec: &ModelSpec, parameters: &[Vec<f32>]) {
        self.write_model_as(spec, spec, parameters);
    }

    /// The same, but the file says that the model is `said`.
    ///
    /// # Panics
    /// When the parameters are not those of `spec`.
    pub fn write_model_as(&self, said: &ModelSpec, spec: &ModelSpec, parameters: &[Vec<f32>]) {
        let specs = spec.parameters().unwrap();
        let mut named: Vec<_> = specs.iter().zip(parameters).collect();
        named.sort_by_key(|(spec, _)| &spec.name);
        let mut hasher = blake3::Hasher::new();
        for (_, values) in &named {
            hasher.update(bytemuck::cast_slice(values));
        }
        let tensors: Vec<Tensor<'_>> = named
            .iter()
            .map(|(spec, values)| Tensor { name: &spec.name, shape: spec.shape.dims(), values })
            .collect();
        let metadata = Metadata {
            job: "served".into(),
            step: 1,
            params_blake3: *hasher.finalize().as_bytes(),
            model: Some(serde_json::to_string(said).unwrap()),
        };
        safetensors::write(&self.at("model").join(MODEL_FILE), &tensors, &metadata).unwrap();
    }

    /// Puts a new certificate and key of the server in the place of what is there. Gives the certificate.
    ///
    /// # Panics
    /// When they cannot be written.
    #[must_use]
    pub fn renew(&self) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.ca).unwrap();
        write_public(&self.at("cert.new"), cert.pem().as_bytes()).unwrap();
        write_secret(&self.at("server.new"), key.serialize_pem().as_bytes()).unwrap();
        for (new, old) in [("cert.new", "cert.pem"), ("server.new", "server.pem")] {
            std::fs::rename(self.at(new), self.at(old)).unwrap();
        }
        cert.der().clone()
    }

    /// Signs what is there.
    ///
    /// # Panics
    /// When it cannot be signed.
    pub fn sign(&self) {
        let key = SigningKey::load(&self.at("key.pem")).unwrap();
        sign(&self.at("model"), &self.at("model").join(SIGNATURE_FILE), &key).unwrap();
    }

    /// Makes a token.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn token(&self, name: &str) -> String {
        Tokens::create(&self.at("state/tokens"), name).unwrap().to_string()
    }

    /// A certificate for a client, of the site's CA, with these URIs in it.
    ///
    /// # Panics
    /// When a URI is none.
    #[must_use]
    pub fn certified(&self, uris: &[&str]) -> Certified {
        let (cert, key) = self.certificate(uris, None);
        (vec![cert.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    /// A certificate for a client under this serial number.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn certified_as(&self, serial: u64) -> Certified {
        let (cert, key) = self.certificate(&[], Some(serial));
        (vec![cert.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    /// The CA's list of revoked certificates, in PEM, good until the beginning of the year `until`.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn revoked(&self, serials: &[u64], until: i32) -> String {
        let then = rcgen::date_time_ymd(2020, 1, 1);
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: then,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: then,
            next_update: rcgen::date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.ca).unwrap().pem().unwrap()
    }

    /// The same, certificate and key each in PEM.
    ///
    /// # Panics
    /// When a URI is none.
    #[must_use]
    pub fn certified_pem(&self, uris: &[&str]) -> (String, String) {
        let (cert, key) = self.certificate(uris, None);
        (cert.pem(), key.serialize_pem())
    }

    fn certificate(&self, uris: &[&str], serial: Option<u64>) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.use_authority_key_identifier_extension = true;
        params.serial_number = serial.map(SerialNumber::from);
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        (params.signed_by(&key, &self.ca).unwrap(), key)
    }

    /// What a server is told unless a test says otherwise: tokens, the defaults, any free port.
    ///
    /// # Panics
    /// When the public key is gone.
    #[must_use]
    pub fn options(&self) -> Options {
        let key = PublicKey::load(&self.at("key.pub.pem")).unwrap();
        Options {
            dir: self.at("model"),
            trust: Trust::Signed { key, signature: self.at("model").join(SIGNATURE_FILE) },
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            cert: self.at("cert.pem"),
            key: self.at("server.pem"),
            tokens: Some(self.at("state/tokens")),
            client_ca: None,
            client_crl: None,
            state: self.at("state"),
            user: None,
            output: Output::default(),
            limits: Limits::default(),
        }
    }

    /// Serves.
    ///
    /// # Errors
    /// The server does not start.
    pub fn serve(&self, options: &Options) -> Result<Running, ServeError> {
        let prepared = prepare(options)?;
        let (stop, stopped) = oneshot::channel();
        let address = prepared.address();
        let thread = std::thread::spawn(move || {
            prepared.run(async {
                let _ = stopped.await;
            })
        });
        Ok(Running {
            address,
            root: self.root(),
            stop: Some(stop),
            thread: Some(thread),
            state: options.state.clone(),
        })
    }

    /// The certificate that clients trust.
    #[must_use]
    pub fn root(&self) -> CertificateDer<'static> {
        self.ca.der().clone()
    }
}

impl Running {
    /// A client without anything to show.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.address, &self.root)
    }

    /// Ends it in order.
    ///
    /// # Panics
    /// When it fails.
    pub fn stop(mut self) {
        self.end().unwrap();
    }

    fn end(&mut self) -> Result<(), ServeError> {
        drop(self.stop.take());
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let ended = thread.join().expect("the server does not panic");
        // A thread that answered last may still hold what they share; a process that ends holds nothing.
        if let Ok(lock) = std::fs::File::open(self.state.join("lock")) {
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
                .expect("the state can be locked");
            // A child that another test starts at this moment may have the file still when it is closed here.
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).expect("the state can be unlocked");
        }
        ended
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
