//! Certificate signing requests: keys stay where they were made, and nothing but key and identity reaches a certificate.
//! Invariants are those of `testudo_transport::pki` and of its modules `request` and `enrol`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::{DAY, Job, id};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use testudo_transport::pki::{
    self, CERT_FILE, CRL_FILE, Issued, KEY_FILE, NEXT_KEY_FILE, RENEWAL_FILE, REQUEST_FILE, Register,
    Request, Revocation, RevocationList, Serial, describe,
};
use testudo_transport::{Expected, Identity, JobCa, PkiError, Role};
use x509_parser::prelude::{FromDer, X509Certificate};

struct Place {
    folder: tempfile::TempDir,
    ca: JobCa,
}

impl Place {
    /// A CA with a directory, and so with a register.
    fn new() -> Place {
        let (folder, ca) = common::kept_ca();
        Place { folder, ca }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn register(&self) -> Register {
        Register::of(&self.path("ca"))
    }

    /// Puts a list of revoked certificates beside the CA, which its owner alone may change, whatever the user's mask is.
    fn publish(&self, crl: &pki::Crl) {
        let path = self.path("ca").join(CRL_FILE);
        fs::write(&path, crl.to_pem()).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
    }

    /// A node that asked and got.
    fn node(&self, name: &str, index: u32) -> PathBuf {
        let (home, id) = (self.path(name), id(Role::Worker, index));
        let request = pki::request(&home, &id).unwrap();
        let pem = self.ca.issue_for(&request, Some(&id), DAY).unwrap();
        pki::install(&home, pem.as_bytes(), Some(self.ca.certificate_pem().as_bytes())).unwrap();
        home
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn refused(result: Result<impl std::fmt::Debug, PkiError>, part: &str) {
    let why = result.unwrap_err().to_string();
    assert!(why.contains(part), "expected `{part}` in: {why}");
}

/// A request as another program would make it.
fn foreign(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(id(Role::Worker, 0).as_str())];
    change(&mut params);
    params.serialize_request(key).unwrap().der().to_vec()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// Invariant 1 of `enrol`.
#[test]
fn a_key_is_made_on_the_node_and_never_leaves_it() {
    let place = Place::new();
    let (home, own) = (place.path("worker-3"), id(Role::Worker, 3));
    let made = pki::request(&home, &own).unwrap();
    assert_eq!((mode(&home), mode(&home.join(KEY_FILE))), (0o700, 0o600));
    let sent = fs::read(home.join(REQUEST_FILE)).unwrap();
    let key = fs::read_to_string(home.join(KEY_FILE)).unwrap();
    let secret: String = key.lines().filter(|line| !line.starts_with('-')).collect();
    assert!(
        secret.len() > 100 && !String::from_utf8(sent.clone()).unwrap().replace('\n', "").contains(&secret)
    );
    let read = Request::from_pem(&sent).unwrap();
    assert_eq!((&read, read.id()), (&made, &own));

    let pem = place.ca.issue_for(&read, Some(&own), DAY).unwrap();
    let ca = place.ca.certificate_pem().as_bytes();
    let installed = pki::install(&home, pem.as_bytes(), Some(ca)).unwrap();
    assert_eq!(installed.id(), &own);
    let loaded = Identity::load(&home).unwrap();
    assert_eq!(loaded.certificate_der(), installed.certificate_der());
    let signature = loaded.sign(b"hello").unwrap();
    let trust = place.ca.trust();
    assert!(
        trust.verify_signature(loaded.certificate_der(), &Expected::Member, b"hello", &signature).is_ok()
    );
    let recorded = Issued::of(loaded.certificate_der()).unwrap();
    assert_eq!(
        (place.register().read(), recorded.spki_sha256.clone()),
        (Ok(vec![recorded]), made.key_sha256())
    );
    // A key that is there is never replaced by another.
    assert!(matches!(pki::request(&home, &own), Err(PkiError::File { .. })));
    assert_eq!(fs::read_to_string(home.join(KEY_FILE)).unwrap(), key);
}

/// Invariant 1 of `request`.
#[test]
fn a_request_that_was_touched_proves_nothing() {
    let place = Place::new();
    let request = pki::request(&place.path("worker-0"), &id(Role::Worker, 0)).unwrap();
    let der = request.der();
    assert_eq!(Request::from_der(der).as_ref(), Ok(&request));
    for byte in 0..der.len() {
        for bit in [0x01, 0x80] {
            let mut bad = der.to_vec();
            bad[byte] ^= bit;
            assert!(Request::from_der(&bad).is_err(), "byte {byte}, bit {bit:#x}");
        }
        assert!(Request::from_der(&der[..byte]).is_err(), "cut at {byte}");
    }
    assert!(Request::from_der(&[der, &[0]].concat()).is_err(), "a byte more");
    assert!(Request::from_der(&vec![0x30; 17 << 10]).is_err());
    let pem = request.to_pem();
    refused(Request::from_pem(pem.repeat(2).as_bytes()), "more than one");
    refused(Request::from_pem(b"nothing"), "there is none");
}

/// Invariant 4 of `pki`, and 2 of `request`.
#[test]
fn nothing_but_key_and_identity_is_copied() {
    let place = Place::new();
    let key = KeyPair::generate().unwrap();
    let der = foreign(&key, |params| {
        params.distinguished_name.push(DnType::CommonName, "root of all");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        params.custom_extensions =
            vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99], vec![5, 0])];
    });
    let request = Request::from_der(&der).unwrap();
    let own = id(Role::Worker, 0);
    let pem = place.ca.issue_for(&request, Some(&own), DAY).unwrap();
    let ours = place.ca.issue(&id(Role::Worker, 1), DAY).unwrap();
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let (_, given) = X509Certificate::from_der(&block.contents).unwrap();
    let (_, plain) = X509Certificate::from_der(ours.certificate_der()).unwrap();
    assert_eq!(given.subject(), plain.subject());
    let kinds = |certificate: &X509Certificate<'_>| {
        certificate.extensions().iter().map(|one| (one.oid.to_id_string(), one.critical)).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&given), kinds(&plain));
    assert_eq!(given.key_usage().unwrap().unwrap().value, plain.key_usage().unwrap().unwrap().value);
    assert_eq!(
        given.extended_key_usage().unwrap().unwrap().value,
        plain.extended_key_usage().unwrap().unwrap().value
    );
    assert_eq!(place.ca.trust().verify(&block.contents, &Expected::Node(own.clone())), Ok(own));
    assert_eq!(request.key_sha256().len(), 64);
}

#[test]
fn requests_for_anything_but_one_identity_are_refused() {
    let key = KeyPair::generate().unwrap();
    let own = id(Role::Worker, 0);
    let names = |names: Vec<SanType>| Request::from_der(&foreign(&key, |p| p.subject_alt_names = names));
    assert!(names(vec![uri(own.as_str())]).is_ok());
    refused(names(vec![]), "asks for no identity");
    refused(names(vec![uri(own.as_str()), uri(own.as_str())]), "other names");
    refused(names(vec![uri(own.as_str()), SanType::DnsName("a.example".try_into().unwrap())]), "other names");
    refused(names(vec![SanType::DnsName("a.example".try_into().unwrap())]), "other names");
    for bad in [
        "https://a.example",
        "spiffe://testudo.test/job/mnist/worker/00",
        "spiffe://testudo.test/job/%6d/worker/0",
    ] {
        assert!(matches!(names(vec![uri(bad)]), Err(PkiError::Identity(_))), "{bad}");
    }
    let ca = foreign(&key, |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    refused(Request::from_der(&ca), "a CA's");
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let other = KeyPair::generate_for(algorithm).unwrap();
        refused(Request::from_der(&foreign(&other, |_| {})), "P-256");
    }
}

/// Invariant 4 of `pki`.
#[test]
fn the_operator_says_whose_a_key_is() {
    let place = Place::new();
    let own = id(Role::Worker, 0);
    let request = pki::request(&place.path("worker-0"), &own).unwrap();
    refused(place.ca.issue_for(&request, None, DAY), "nobody confirmed");
    refused(
        place.ca.issue_for(&request, Some(&id(Role::Worker, 1)), DAY),
        "asks for worker/0, and not for worker/1",
    );
    refused(place.ca.issue_for(&request, Some(&id(Role::Server, 0)), DAY), "asks for worker/0");
    // Another job's, whoever confirms it.
    for (domain, job) in [("testudo.test", "cifar"), ("testudo.other", "mnist")] {
        let foreign = testudo_transport::SpiffeId::new(domain, job, Role::Worker, "0").unwrap();
        let request = pki::request(&place.path(&format!("{domain}-{job}")), &foreign).unwrap();
        assert!(matches!(place.ca.issue_for(&request, Some(&foreign), DAY), Err(PkiError::NotOurs { .. })));
    }
    assert_eq!(place.register().read(), Ok(vec![]), "nothing was issued");
    place.ca.issue_for(&request, Some(&own), DAY).unwrap();
    // One key is one node.
    let key = KeyPair::from_pem(&fs::read_to_string(place.path("worker-0").join(KEY_FILE)).unwrap()).unwrap();
    let other = id(Role::Operator, 0);
    let twice =
        Request::from_der(&foreign(&key, |p| p.subject_alt_names = vec![uri(other.as_str())])).unwrap();
    assert_eq!(twice.key_sha256(), request.key_sha256());
    refused(place.ca.issue_for(&twice, Some(&other), DAY), "its key is that of worker/0");
}

/// Invariant 3 of `request`: who holds the identity renews it, and nobody else.
#[test]
fn a_certificate_is_renewed_by_its_holder() {
    let place = Place::new();
    let (home, other) = (place.node("worker-0", 0), place.node("worker-1", 1));
    let before = Identity::load(&home).unwrap();
    for same_key in [false, true] {
        let held = Identity::load(&home).unwrap();
        let request = pki::renew(&home, same_key).unwrap();
        assert_eq!(Identity::load(&home).unwrap().certificate_der(), held.certificate_der(), "still the one");
        let read = Request::from_pem(&fs::read(home.join(RENEWAL_FILE)).unwrap()).unwrap();
        assert_eq!(read, request);
        let pem = place.ca.issue_for(&read, None, DAY).unwrap();
        let now = pki::install(&home, pem.as_bytes(), None).unwrap();
        assert_eq!(now.id(), before.id());
        let key = |identity: &Identity| Issued::of(identity.certificate_der()).unwrap().spki_sha256;
        assert_eq!(key(&now) == key(&held), same_key);
        assert_ne!(now.certificate_der(), held.certificate_der());
        assert!(!home.join(NEXT_KEY_FILE).exists());
        assert_eq!(mode(&home.join(KEY_FILE)), 0o600);
    }
    assert_eq!(place.register().read().unwrap().len(), 4);

    // Its proof under a request of somebody else's, or of the same name but another key.
    let renewal = pki::renew(&home, false).unwrap().to_pem();
    let begins = renewal.find("-----BEGIN CERTIFICATE-----").unwrap();
    let proof = &renewal[begins..];
    let with_proof = |name: &str, index| {
        let request = pki::request(&place.path(name), &id(Role::Worker, index)).unwrap();
        Request::from_pem((request.to_pem() + proof).as_bytes()).unwrap()
    };
    let moved = place.ca.issue_for(&with_proof("thief", 0), None, DAY);
    assert!(matches!(moved, Err(PkiError::Signature(_))), "{moved:?}");
    let taken = place.ca.issue_for(&with_proof("climber", 7), None, DAY);
    assert!(matches!(taken, Err(PkiError::Unexpected { .. })), "{taken:?}");
    // Another node's certificate and signature.
    let foreign = pki::renew(&other, false).unwrap().to_pem();
    let proof = &foreign[foreign.find("-----BEGIN CERTIFICATE-----").unwrap()..];
    let mixed = Request::from_pem((renewal[..begins].to_owned() + proof).as_bytes()).unwrap();
    assert!(matches!(place.ca.issue_for(&mixed, None, DAY), Err(PkiError::Unexpected { .. })));
    // Half a proof.
    let cut = &renewal[..renewal.find("-----END TESTUDO").unwrap()];
    assert!(matches!(Request::from_pem(cut.as_bytes()), Err(PkiError::Pem { .. })));
    let garbled = renewal.replace("PROOF-----\n", "PROOF-----\n*");
    refused(Request::from_pem(garbled.as_bytes()), "");
    let alone = renewal[..begins].to_owned() + &renewal[renewal.find("-----BEGIN TESTUDO").unwrap()..];
    refused(Request::from_pem(alone.as_bytes()), "without the certificate");
    // Another CA's.
    let elsewhere = Place::new();
    let request = Request::from_pem(renewal.as_bytes()).unwrap();
    assert!(matches!(elsewhere.ca.issue_for(&request, None, DAY), Err(PkiError::Chain(_))));
}

/// A certificate that was taken back renews nothing, also when the list that says so has ended.
#[test]
fn a_revoked_certificate_renews_nothing() {
    let place = Place::new();
    let (home, other) = (place.node("worker-0", 0), place.node("worker-1", 1));
    let mut list = RevocationList::default();
    let held = Issued::of(Identity::load(&home).unwrap().certificate_der()).unwrap();
    list.revoke(Serial::from_hex(&held.serial).unwrap(), Revocation { at: 1_700_000_000, compromised: true });
    let long_ago = SystemTime::now() - 2 * DAY;
    let crl = place.ca.sign_crl_at(&list, DAY, long_ago).unwrap();
    place.publish(&crl);
    let request = pki::renew(&home, false).unwrap();
    let refused = place.ca.issue_for(&request, None, DAY);
    assert!(matches!(refused, Err(PkiError::Revoked { .. })), "{refused:?}");
    assert!(place.ca.issue_for(&pki::renew(&other, false).unwrap(), None, DAY).is_ok(), "others do");
    // The operator may still say whose the new key is.
    assert!(place.ca.issue_for(&request, Some(&held.id), DAY).is_ok());
}

/// What has a key that was taken back may have it still: the request that it came with gets nothing more, whoever confirms it.
#[test]
fn a_revoked_key_is_not_certified_again() {
    let place = Place::new();
    let (home, own) = (place.node("worker-0", 0), id(Role::Worker, 0));
    let old = Request::from_pem(&fs::read(home.join(REQUEST_FILE)).unwrap()).unwrap();
    assert!(place.ca.issue_for(&old, Some(&own), DAY).is_ok(), "until then it is");
    let held = Issued::of(Identity::load(&home).unwrap().certificate_der()).unwrap();
    let mut list = RevocationList::default();
    list.revoke(Serial::from_hex(&held.serial).unwrap(), Revocation { at: 1_700_000_000, compromised: true });
    let crl = place.ca.sign_crl(&list, DAY).unwrap();
    place.publish(&crl);
    refused(place.ca.issue_for(&old, Some(&own), DAY), "make a new key with `testudo pki request`");
    let new = pki::request(&place.path("again"), &own).unwrap();
    assert!(place.ca.issue_for(&new, Some(&own), DAY).is_ok(), "another key of the same node is");
}

/// Nothing is certified while somebody revokes.
#[test]
fn whoever_certifies_waits_for_whoever_revokes() {
    let place = Place::new();
    let (home, other) = (place.node("worker-0", 0), place.node("worker-1", 1));
    let renewal = pki::renew(&home, false).unwrap();
    let held = Issued::of(Identity::load(&home).unwrap().certificate_der()).unwrap();
    let alone = fs::File::open(place.path("ca")).unwrap();
    rustix::fs::flock(&alone, rustix::fs::FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let (begun, begins) = std::sync::mpsc::channel();
        let ca = &place.ca;
        let waiting = scope.spawn(move || {
            begun.send(()).unwrap();
            ca.issue_for(&renewal, None, DAY)
        });
        begins.recv().unwrap();
        let mut list = RevocationList::default();
        let revocation = Revocation { at: 1_700_000_000, compromised: true };
        list.revoke(Serial::from_hex(&held.serial).unwrap(), revocation);
        let crl = ca.sign_crl(&list, DAY).unwrap();
        // Time for a renewal that does not wait to show itself; one that does is refused however long this is.
        std::thread::sleep(Duration::from_millis(50));
        let issued = place.register().read().unwrap().len();
        place.publish(&crl);
        drop(alone);
        let refused = waiting.join().unwrap();
        assert!(matches!(refused, Err(PkiError::Revoked { .. })), "{refused:?}");
        assert_eq!(issued, 2, "nothing was certified meanwhile");
    });
    assert!(place.ca.issue_for(&pki::renew(&other, false).unwrap(), None, DAY).is_ok());
}

/// An end that has come: a certificate renews nothing, and a CA issues nothing.
#[test]
fn what_has_ended_gives_nothing() {
    let place = Place::new();
    let home = place.path("worker-0");
    let own = id(Role::Worker, 0);
    let request = pki::request(&home, &own).unwrap();
    // It ends with the second that it was issued in.
    let pem = place.ca.issue_for(&request, Some(&own), Duration::from_millis(1)).unwrap();
    let installed = pki::install(&home, pem.as_bytes(), Some(place.ca.certificate_pem().as_bytes()));
    let over = installed.err().or_else(|| {
        std::thread::sleep(Duration::from_secs(1));
        pki::renew(&home, false).err()
    });
    assert!(matches!(over, Some(PkiError::Chain(_))), "{over:?}");
    let ended = JobCa::create("testudo.test", "mnist", Duration::from_millis(1)).unwrap();
    // Its end may be the beginning of the next second.
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(ended.issue(&own, DAY).unwrap_err(), PkiError::CaEnded);
    let short = JobCa::create("testudo.test", "mnist", DAY).unwrap();
    let identity = short.issue(&own, 10 * DAY).unwrap();
    let end = |pem: &str| describe(pem.as_bytes()).unwrap().not_after;
    assert_eq!(end(identity.certificate_pem()), end(identity.ca_pem()), "it would outlive its CA");
}

/// Invariant 2 of `enrol`.
#[test]
fn an_installation_that_a_crash_cuts_off_leaves_a_whole_identity() {
    let place = Place::new();
    let home = place.node("worker-0", 0);
    let (old_cert, old_key) = (home.join("old-cert"), home.join("old-key"));
    fs::copy(home.join(CERT_FILE), &old_cert).unwrap();
    fs::copy(home.join(KEY_FILE), &old_key).unwrap();
    let before = Identity::load(&home).unwrap();
    let request = pki::renew(&home, false).unwrap();
    let next = fs::read(home.join(NEXT_KEY_FILE)).unwrap();
    let pem = place.ca.issue_for(&request, None, DAY).unwrap();
    // A crash before anything was named.
    fs::write(home.join("cert.pem.new"), &pem[..pem.len() / 2]).unwrap();
    assert_eq!(Identity::load(&home).unwrap().certificate_der(), before.certificate_der());
    let after = pki::install(&home, pem.as_bytes(), None).unwrap();
    // A crash between the certificate and its key.
    fs::rename(home.join(KEY_FILE), home.join(NEXT_KEY_FILE)).unwrap();
    fs::copy(&old_key, home.join(KEY_FILE)).unwrap();
    let between = Identity::load(&home).unwrap();
    assert_eq!(between.certificate_der(), after.certificate_der());
    assert!(between.sign(b"x").is_ok() && fs::read(home.join(NEXT_KEY_FILE)).unwrap() == next);
    // The same installation, again.
    pki::install(&home, pem.as_bytes(), None).unwrap();
    assert!(!home.join(NEXT_KEY_FILE).exists());
    assert_eq!(Identity::load(&home).unwrap().certificate_der(), after.certificate_der());
}

#[test]
fn what_does_not_fit_is_not_installed() {
    let place = Place::new();
    let home = place.node("worker-0", 0);
    let files = || [CERT_FILE, KEY_FILE, "ca.pem"].map(|name| fs::read(home.join(name)).unwrap());
    let before = files();
    let ca = place.ca.certificate_pem().as_bytes();
    let others = place.ca.issue(&id(Role::Worker, 0), DAY).unwrap();
    assert_eq!(
        pki::install(&home, others.certificate_pem().as_bytes(), Some(ca)).unwrap_err(),
        PkiError::OtherKey
    );
    // Of the right key, but of another identity, or of another CA.
    let key = KeyPair::from_pem(&fs::read_to_string(home.join(KEY_FILE)).unwrap()).unwrap();
    let sister = Job::new().ca;
    let asked = |index: u32| {
        let der = foreign(&key, |p| p.subject_alt_names = vec![uri(id(Role::Worker, index).as_str())]);
        Request::from_der(&der).unwrap()
    };
    let issued =
        |ca: &JobCa, index| ca.issue_for(&asked(index), Some(&id(Role::Worker, index)), DAY).unwrap();
    let foreign = issued(&sister, 0);
    assert!(matches!(pki::install(&home, foreign.as_bytes(), None), Err(PkiError::Chain(_))));
    let swapped = pki::install(&home, foreign.as_bytes(), Some(sister.certificate_pem().as_bytes()));
    refused(swapped, "another CA is trusted here");
    // The register would stop this; another process's CA would not.
    let unrecorded = place.path("copy");
    fs::create_dir(&unrecorded).unwrap();
    for name in ["ca.pem", "ca-key.pem"] {
        fs::copy(place.path("ca").join(name), unrecorded.join(name)).unwrap();
    }
    let renamed = issued(&JobCa::load(&unrecorded).unwrap(), 5);
    assert!(matches!(pki::install(&home, renamed.as_bytes(), None), Err(PkiError::Unexpected { .. })));
    assert_eq!(files(), before);
    let empty = place.path("worker-9");
    pki::request(&empty, &id(Role::Worker, 9)).unwrap();
    assert_eq!(pki::install(&empty, foreign.as_bytes(), None).unwrap_err(), PkiError::OtherKey);
}
