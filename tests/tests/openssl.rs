//! OpenSSL as the judge of our certificates and lists of revoked ones, and we as the judge of its lists.

use std::path::{Path, PathBuf};
use std::time::Duration;

use testudo_tests::files::text;
use testudo_tests::openssl;
use testudo_tests::process::{self, Ended};
use testudo_transport::pki::{describe, read_crl};
use testudo_transport::{Expected, Identity, JobCa, PkiError, Role, SpiffeId};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A CA's folder and some identities under it.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        JobCa::create("testudo.test", "small", 10 * DAY).unwrap().save(&place.ca()).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn ca(&self) -> PathBuf {
        self.path("ca")
    }

    fn issue(&self, role: Role, name: &str, dir: &str) -> Identity {
        let id = SpiffeId::new("testudo.test", "small", role, name).unwrap();
        let identity = JobCa::load(&self.ca()).unwrap().issue(&id, DAY).unwrap();
        identity.save(&self.path(dir)).unwrap();
        identity
    }

    fn testudo(&self, arguments: &[&str]) -> Ended {
        process::run(PROGRAM, arguments, Path::new("/no/mark"))
    }

    fn openssl(&self, arguments: &[&str]) -> Ended {
        openssl::openssl(arguments)
    }
}

fn serial(identity: &Identity) -> String {
    describe(identity.certificate_pem().as_bytes()).unwrap().serial.replace(':', "").to_uppercase()
}

#[test]
fn openssl_judges_our_lists() {
    if !openssl::is_there() {
        return;
    }
    let place = Place::new();
    let lost = place.issue(Role::Worker, "0", "lost");
    let named = [place.issue(Role::Worker, "1", "first"), place.issue(Role::Worker, "1", "second")];
    let kept = place.issue(Role::Worker, "2", "kept");
    let authority = place.ca();
    let (ca, crl) = (authority.join("ca.pem"), authority.join("crl.pem"));
    let verify = |name: &str| {
        let cert = place.path(name).join("cert.pem");
        let arguments = ["verify", "-crl_check", "-CAfile", text(&ca), "-CRLfile", text(&crl), text(&cert)];
        place.openssl(&arguments)
    };
    let is_good = || {
        let judged = place.openssl(&["crl", "-in", text(&crl), "-CAfile", text(&ca), "-verify", "-noout"]);
        assert!(judged.status.success() && judged.stderr.contains("verify OK"), "{judged:#?}");
    };

    // An empty list first.
    let made = place.testudo(&["pki", "crl", "--ca", text(&place.ca())]).succeeded();
    assert!(made.stdout.contains("list 1 in") && made.stdout.contains("0 revoked"), "{made:#?}");
    is_good();
    assert!(verify("lost").status.success());

    // By the folder of the identity, then by the node's name: every certificate that it has.
    let folder = place.path("lost");
    let done = place
        .testudo(&["pki", "revoke", "--compromised", text(&folder), "--ca", text(&place.ca())])
        .succeeded();
    assert!(done.stdout.contains("revoked worker/0") && done.stdout.contains("list 2"), "{done:#?}");
    let done = place.testudo(&["pki", "revoke", "worker/1", "--ca", text(&place.ca())]).succeeded();
    assert_eq!(done.stdout.matches("revoked worker/1").count(), 2, "{done:#?}");
    is_good();
    for name in ["lost", "first", "second"] {
        let judged = verify(name);
        assert!(!judged.status.success() && judged.stderr.contains("revoked"), "{name}: {judged:#?}");
    }
    assert!(verify("kept").status.success());
    let shown = place.openssl(&["crl", "-in", text(&crl), "-text", "-noout"]).succeeded().stdout;
    assert!(
        shown.contains(&serial(&lost)) && named.iter().all(|one| shown.contains(&serial(one))),
        "{shown}"
    );
    assert!(!shown.contains(&serial(&kept)) && shown.matches("Key Compromise").count() == 1, "{shown}");
    assert!(shown.contains("X509v3 CRL Number"), "{shown}");

    let shown = place.testudo(&["pki", "show", text(&crl)]).succeeded().stdout;
    assert!(shown.contains("number       3") && shown.contains(&serial(&lost).to_lowercase()), "{shown}");

    // What is revoked renews nothing; what is not does.
    for (name, is_granted) in [("second", false), ("kept", true)] {
        let home = place.path(name);
        let _ = place.testudo(&["pki", "renew", text(&home)]).succeeded();
        let (request, out) = (home.join("renewal.pem"), place.path(&format!("{name}.pem")));
        let arguments = ["pki", "issue", text(&request), "--ca", text(&authority), "--out", text(&out)];
        let granted = place.testudo(&arguments);
        assert_eq!(granted.status.success(), is_granted, "{granted:#?}");
        assert!(is_granted || granted.stderr.contains("is revoked"), "{granted:#?}");
    }

    // The list is the record: nothing is taken back, and what was revoked once is not twice.
    let done = place.testudo(&["pki", "revoke", &serial(&lost), "--ca", text(&place.ca())]).succeeded();
    assert!(done.stdout.contains("revoked before: 1") && done.stdout.contains("3 revoked"), "{done:#?}");
    let trust = JobCa::load(&place.ca()).unwrap();
    let installed = trust.trust().install_crl(&read_crl(&crl).unwrap()).unwrap();
    assert_eq!((installed.number.to_string().as_str(), installed.revoked), ("4", 3));
}

/// What cannot be revoked is refused with why, and leaves the list alone.
#[test]
fn what_is_not_this_cas_is_not_revoked() {
    let (place, other) = (Place::new(), Place::new());
    other.issue(Role::Worker, "0", "stranger");
    let _ = place.testudo(&["pki", "crl", "--ca", text(&place.ca())]).succeeded();
    let before = std::fs::read(place.ca().join("crl.pem")).unwrap();
    let stranger = other.path("stranger");
    for (target, why) in [
        (text(&stranger), "does not chain to the job's CA"),
        ("worker/7", "no record of a certificate"),
        ("nonsense", "no folder of an identity"),
    ] {
        let refused = place.testudo(&["pki", "revoke", target, "--ca", text(&place.ca())]);
        assert_eq!(refused.code(), Some(2), "{refused:#?}");
        assert!(refused.stderr.contains(why), "{target}: {refused:#?}");
    }
    let refused = place.testudo(&["pki", "crl", "--ca", text(&place.ca()), "--valid-for", "0d"]);
    assert_eq!(refused.code(), Some(2), "{refused:#?}");
    assert_eq!(std::fs::read(place.ca().join("crl.pem")).unwrap(), before);
    std::fs::write(place.ca().join("crl.pem"), "cut").unwrap();
    let refused = place.testudo(&["pki", "crl", "--ca", text(&place.ca())]);
    assert!(refused.code() == Some(2) && refused.stderr.contains("crl.pem"), "{refused:#?}");
}

/// A list that OpenSSL makes with the CA's key is as good as ours.
#[test]
fn we_judge_openssls_lists() {
    if !openssl::is_there() {
        return;
    }
    let place = Place::new();
    let (lost, kept) = (place.issue(Role::Server, "0", "lost"), place.issue(Role::Server, "1", "kept"));
    let config = format!(
        "[ca]\ndefault_ca = d\n[d]\ndatabase = {0}/index.txt\ncrlnumber = {0}/number\ndefault_md = sha256\n\
         default_crl_days = 2\ncrl_extensions = e\n[e]\nauthorityKeyIdentifier = keyid\n",
        text(place.folder.path())
    );
    std::fs::write(place.path("openssl.cnf"), config).unwrap();
    std::fs::write(place.path("number"), "0A\n").unwrap();
    let row =
        format!("R\t400101000000Z\t250101000000Z,keyCompromise\t{}\tunknown\t/O=Testudo\n", serial(&lost));
    std::fs::write(place.path("index.txt"), row).unwrap();
    let out = place.path("theirs.pem");
    let (key, cert) = (place.ca().join("ca-key.pem"), place.ca().join("ca.pem"));
    let arguments = [
        "ca",
        "-gencrl",
        "-config",
        text(&place.path("openssl.cnf")),
        "-keyfile",
        text(&key),
        "-cert",
        text(&cert),
        "-out",
        text(&out),
    ]
    .map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let _ = place.openssl(&arguments).succeeded();
    let trust = kept.trust();
    let installed = trust.install_crl(&std::fs::read(&out).unwrap()).unwrap();
    assert_eq!((installed.number.to_string().as_str(), installed.revoked), ("10", 1));
    let refused = trust.verify(lost.certificate_der(), &Expected::Member);
    assert!(matches!(refused, Err(PkiError::Revoked { .. })), "{refused:?}");
    assert!(trust.verify(kept.certificate_der(), &Expected::Member).is_ok());
}
