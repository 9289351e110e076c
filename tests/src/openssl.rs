//! OpenSSL as a company's certificate authority: a root, CAs below it, nodes' certificates, and lists of revoked ones. No code of
//! ours takes part in what is made here.
//!
//! Without `openssl` a test says so and does nothing; with `TESTUDO_REQUIRE_OPENSSL=1` that is a failure.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use testudo::rundir::timestamp;

use crate::files::text;
use crate::process::{self, Ended};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Clocks of one machine: certificates begin a little before they are made.
const BEFORE: Duration = Duration::from_secs(30);

/// Whether there is one.
///
/// # Panics
/// When there is none and `TESTUDO_REQUIRE_OPENSSL=1`.
#[must_use]
pub fn is_there() -> bool {
    let tried = Command::new("openssl").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = tried.is_ok_and(|status| status.success());
    let required = std::env::var("TESTUDO_REQUIRE_OPENSSL").is_ok_and(|value| value == "1");
    assert!(found || !required, "TESTUDO_REQUIRE_OPENSSL=1: install openssl");
    if !found {
        eprintln!("skipped: needs openssl");
    }
    found
}

/// Runs it.
#[must_use]
pub fn openssl(arguments: &[&str]) -> Ended {
    process::run("openssl", arguments, Path::new("/no/mark"))
}

fn make(arguments: &[&str]) {
    let _ = openssl(arguments).succeeded();
}

/// A CA with its database, in a folder of its own.
#[derive(Debug)]
pub struct Ca {
    folder: PathBuf,
}

impl Ca {
    /// One that nobody is above, with a key on P-384.
    #[must_use]
    pub fn root(folder: &Path) -> Ca {
        let ca = Ca::begin(folder, "P-384");
        let (config, key, cert) = (ca.at("openssl.cnf"), ca.at("ca.key"), ca.certificate());
        let subject = format!("/O=Example/CN={}", ca.name());
        let fixed = ["req", "-x509", "-config", text(&config), "-extensions", "root", "-key", text(&key)];
        make(&[&fixed[..], &["-subj", &subject, "-days", "30", "-out", text(&cert)]].concat());
        ca
    }

    /// A CA below this one, with a key on P-256, which certifies nodes and no other CA; `uri` is its name if it is SPIRE's.
    #[must_use]
    pub fn below(&self, folder: &Path, uri: Option<&str>) -> Ca {
        let ca = Ca::begin(folder, "P-256");
        let name = uri.map_or(String::new(), |uri| format!("subjectAltName = URI:{uri}\n"));
        let extensions = format!(
            "basicConstraints = critical,CA:TRUE,pathlen:0\nkeyUsage = critical,keyCertSign,cRLSign\n{name}"
        );
        self.sign(&ca.at("ca.key"), ca.name(), &extensions, 20 * DAY, &ca.certificate());
        ca
    }

    /// Makes a key on `curve` in the file `key`, which its owner alone may read, and certifies it for the node `uri` as `cert`.
    pub fn certify(&self, uri: &str, curve: &str, life: Duration, key: &Path, cert: &Path) {
        new_key(curve, key);
        // As SPIRE writes them.
        let extensions = format!(
            "basicConstraints = critical,CA:FALSE\nkeyUsage = critical,digitalSignature,keyEncipherment,keyAgreement\n\
             extendedKeyUsage = serverAuth,clientAuth\nsubjectAltName = URI:{uri}\n"
        );
        self.sign(key, "node", &extensions, life, cert);
    }

    /// Takes a certificate of this CA's back: it is in every list from now on.
    pub fn revoke(&self, cert: &Path) {
        let config = self.at("openssl.cnf");
        make(&["ca", "-batch", "-config", text(&config), "-revoke", text(cert)]);
    }

    /// The next list of this CA, in PEM, that ends at `end`.
    #[must_use]
    pub fn list(&self, end: SystemTime) -> String {
        let (config, out) = (self.at("openssl.cnf"), self.at("list.pem"));
        let (begun, end) = (date(end.min(SystemTime::now()) - DAY), date(end));
        let times = ["-crl_lastupdate", &begun, "-crl_nextupdate", &end];
        let fixed = ["ca", "-batch", "-config", text(&config), "-gencrl", "-out", text(&out)];
        make(&[&fixed[..], &times].concat());
        std::fs::read_to_string(out).unwrap()
    }

    /// Its certificate's file.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.at("ca.pem")
    }

    /// Its certificate, in PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        std::fs::read_to_string(self.certificate()).unwrap()
    }

    /// Its name, as its certificates have it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.folder.file_name().and_then(|name| name.to_str()).unwrap()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn begin(folder: &Path, curve: &str) -> Ca {
        std::fs::create_dir_all(folder.join("certs")).unwrap();
        let ca = Ca { folder: folder.to_owned() };
        let config = format!(
            "[ca]\ndefault_ca = d\n[d]\ndatabase = {0}/index.txt\nnew_certs_dir = {0}/certs\nrand_serial = yes\n\
             crlnumber = {0}/number\ncertificate = {0}/ca.pem\nprivate_key = {0}/ca.key\ndefault_md = sha256\n\
             unique_subject = no\npolicy = p\ncrl_extensions = e\n[p]\norganizationName = optional\n\
             commonName = supplied\n[e]\nauthorityKeyIdentifier = keyid\n[req]\ndistinguished_name = n\n[n]\n\
             [root]\nbasicConstraints = critical,CA:TRUE\nkeyUsage = critical,keyCertSign,cRLSign\n\
             subjectKeyIdentifier = hash\n",
            text(folder)
        );
        for (name, content) in [("openssl.cnf", config.as_str()), ("index.txt", ""), ("number", "01\n")] {
            std::fs::write(ca.at(name), content).unwrap();
        }
        new_key(curve, &ca.at("ca.key"));
        ca
    }

    fn sign(&self, key: &Path, name: &str, extensions: &str, life: Duration, out: &Path) {
        let [config, request, file] = ["openssl.cnf", "request.pem", "extensions"].map(|name| self.at(name));
        let subject = format!("/O=Example/CN={name}");
        let asked = ["req", "-new", "-config", text(&config), "-key", text(key), "-subj", &subject];
        make(&[&asked[..], &["-out", text(&request)]].concat());
        let extensions = format!("subjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n{extensions}");
        std::fs::write(&file, extensions).unwrap();
        let now = SystemTime::now();
        let (begun, end) = (date(now - BEFORE), date(now + life));
        let times = ["-startdate", &begun, "-enddate", &end];
        let fixed = ["ca", "-batch", "-notext", "-config", text(&config), "-in", text(&request)];
        make(&[&fixed[..], &["-extfile", text(&file), "-out", text(out)], &times].concat());
    }
}

fn new_key(curve: &str, file: &Path) {
    let curve = format!("ec_paramgen_curve:{curve}");
    make(&["genpkey", "-algorithm", "EC", "-pkeyopt", &curve, "-out", text(file)]);
    std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

/// As OpenSSL takes a time: `20261123081613Z`.
fn date(time: SystemTime) -> String {
    timestamp(time).replace('T', "")
}
