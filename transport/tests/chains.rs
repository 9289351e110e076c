//! Nodes of other CAs than a job's own: bundles of CAs, chains of certificates, and lists of several CAs. Everything here is made by
//! rcgen and read from files, as SPIRE and companies' CAs write them. Invariants are those of `testudo_transport::pki`.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs::{OpenOptions, write};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{BEAT, DAY, id, policy};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, SignatureAlgorithm,
};
use testudo_transport::pki::{CrlError, RevocationPolicy, describe};
use testudo_transport::{
    Class, CloseCode, Connection, Endpoint, Error, Expected, Identity, Outgoing, PkiError, Role,
    TransportConfig, Trust,
};

const PATIENCE: Duration = Duration::from_secs(60);
const WORKER: &str = "spiffe://testudo.test/job/mnist/worker/0";
const SERVER: &str = "spiffe://testudo.test/job/mnist/server/0";

/// A CA that no job made.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn ca_params(name: &str, below: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(below.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn new_key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap()
}

impl Authority {
    fn root(name: &str, below: Option<u8>) -> Authority {
        let (params, key) = (ca_params(name, below), new_key(&rcgen::PKCS_ECDSA_P384_SHA384));
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// A CA below this one, whose certificate `spoil` may spoil.
    fn below_with(&self, name: &str, spoil: impl FnOnce(&mut CertificateParams)) -> Authority {
        let (mut params, key) = (ca_params(name, None), new_key(&rcgen::PKCS_ECDSA_P256_SHA256));
        spoil(&mut params);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        // What it then signs as, whatever its certificate lets it.
        Authority { pem, issuer: Issuer::new(ca_params(name, None), key) }
    }

    fn below(&self, name: &str) -> Authority {
        self.below_with(name, |_| {})
    }

    /// A node's certificate and key.
    fn node_with(&self, uri: &str, algorithm: &'static SignatureAlgorithm) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        // As SPIRE has it.
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyAgreement,
        ];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + now.saturating_sub(Duration::from_secs(60));
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + DAY;
        let key = new_key(algorithm);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn node(&self, uri: &str) -> (String, String) {
        self.node_with(uri, &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    /// The list of this CA's certificates that are revoked, in PEM.
    fn list(&self, number: u64, revoked: &[&str]) -> String {
        let now = rcgen::date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let entry = |pem: &&str| {
            let serial = describe(pem.as_bytes()).unwrap().serial;
            let bytes: Vec<u8> =
                serial.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
            RevokedCertParams {
                serial_number: SerialNumber::from_slice(&bytes),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            }
        };
        let params = CertificateRevocationListParams {
            this_update: now,
            next_update: now + DAY,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// The three files of a node, under SPIRE's names, read as the cluster file's paths are.
fn load(folder: &Path, bundle: &[&Authority], chain: &[&str], key: &str) -> Result<Identity, PkiError> {
    let [ca, cert, secret] = ["svid_bundle.pem", "svid.pem", "svid_key.pem"].map(|name| folder.join(name));
    for (path, text) in
        [(&ca, bundle.iter().map(|ca| ca.pem.as_str()).collect::<String>()), (&cert, chain.concat())]
    {
        write(path, text).unwrap();
        // Whatever the user's mask is.
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
    }
    std::fs::remove_file(&secret).ok();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&secret).unwrap();
    file.write_all(key.as_bytes()).unwrap();
    Identity::load_files(&ca, &cert, &secret)
}

fn bind(identity: &Identity) -> Endpoint {
    let config = TransportConfig { handshake_timeout: PATIENCE, ..TransportConfig::default() };
    Endpoint::bind(&config, identity.clone(), policy()).unwrap()
}

async fn connected(from: &Endpoint, to: &Endpoint) -> (Connection, Connection) {
    let (dialled, accepted) = tokio::join!(from.connect(to.local_addr(), to.id()), to.accept());
    (dialled.unwrap(), accepted.unwrap())
}

async fn pulse(from: &Connection, to: &Connection) {
    let (mut tx, _rx) = from.open(Class::Control, 0).await.unwrap();
    tx.send(Outgoing::new(BEAT, 7, Vec::new())).await.unwrap();
    let (_tx, mut rx) = to.accept().await.unwrap();
    assert_eq!(rx.recv().await.unwrap().unwrap().envelope.request, 7);
}

#[tokio::test]
async fn nodes_under_two_cas_of_one_bundle_hold_a_session_and_renew_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::root("old", None), Authority::root("new", Some(1)));
    let between = new.below("new, for nodes");
    let (cert, key) = between.node_with(WORKER, &rcgen::PKCS_ECDSA_P384_SHA384);
    let worker = load(folder.path(), &[&old, &new], &[&cert, &between.pem], &key).unwrap();
    let (cert, key) = old.node(SERVER);
    let server = load(folder.path(), &[&old, &new], &[&cert], &key).unwrap();
    let (dialling, listening) = (bind(&worker), bind(&server));
    let (dialled, accepted) = connected(&dialling, &listening).await;
    pulse(&dialled, &accepted).await;
    pulse(&accepted, &dialled).await;
    // What is signed under a chain is checked under it, whatever the curve.
    let message = b"a step's contributions";
    let signed = worker.sign(message).unwrap();
    let shown = accepted.peer_certificate().unwrap();
    assert_eq!(shown, worker.certificate_der());
    let of = Expected::Node(id(Role::Worker, 0));
    assert_eq!(server.trust().verify_signature(shown, &of, message, &signed), Ok(id(Role::Worker, 0)));
    assert!(Trust::verify_with(shown, message, &signed).is_ok());
    assert!(Trust::verify_with(shown, b"another", &signed).is_err());

    // Under another CA of the bundle, with another in between: shown on the connection that lives.
    let other = old.below("old, for nodes");
    let (cert, key) = other.node(WORKER);
    let next = load(folder.path(), &[&old, &new], &[&cert, &other.pem], &key).unwrap();
    assert_eq!(worker.succeed(&next), Ok(true));
    tokio::time::timeout(PATIENCE, async {
        while accepted.stats().renewals == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    pulse(&dialled, &accepted).await;
    // And in new handshakes.
    let (_again, also) = connected(&dialling, &listening).await;
    assert_eq!(also.peer_certificate().unwrap(), next.certificate_der());
}

/// SPIRE's bundle changes while nodes run: the next CA comes beside the last, which then goes.
#[tokio::test]
async fn one_ca_follows_another_and_the_last_ones_nodes_are_out() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new, foreign) =
        (Authority::root("old", None), Authority::root("new", None), Authority::root("foreign", None));
    let (cert, key) = old.node(SERVER);
    let server = load(folder.path(), &[&old], &[&cert], &key).unwrap();
    let (cert, key) = old.node(WORKER);
    let worker = load(folder.path(), &[&old, &new], &[&cert], &key).unwrap();
    let (dialling, listening) = (bind(&worker), bind(&server));
    let (dialled, accepted) = connected(&dialling, &listening).await;

    let (cert, key) = new.node(SERVER);
    let jump = load(folder.path(), &[&new], &[&cert], &key).unwrap();
    assert!(matches!(server.succeed(&jump), Err(PkiError::Chain(_))), "no CA of both");
    let next = load(folder.path(), &[&old, &new], &[&cert], &key).unwrap();
    assert_eq!((server.succeed(&next), server.succeed(&next)), (Ok(true), Ok(false)));
    assert_eq!((listening.recheck(), dialling.recheck()), (0, 0));
    pulse(&dialled, &accepted).await;
    let (cert, key) = foreign.node(SERVER);
    let stranger = load(folder.path(), &[&foreign], &[&cert], &key).unwrap();
    assert!(server.succeed(&stranger).is_err());

    // The old one goes; the worker still shows its certificate.
    assert_eq!(server.succeed(&jump), Ok(true));
    listening.recheck();
    let ended = tokio::time::timeout(PATIENCE, accepted.closed()).await.unwrap();
    let Error::Closed { by_peer: false, code, .. } = &ended else { panic!("{ended}") };
    assert_eq!(*code, CloseCode::Untrusted.number());
    assert!(dialling.connect(listening.local_addr(), listening.id()).await.is_err());
    let (cert, key) = new.node(WORKER);
    let renewed = load(folder.path(), &[&new], &[&cert], &key).unwrap();
    assert_eq!(worker.succeed(&renewed), Ok(true));
    let (dialled, accepted) = connected(&dialling, &listening).await;
    pulse(&dialled, &accepted).await;
}

/// Invariant 2 of `pki`, 1 and 2 of `anchors`, 1 of `chain`.
#[test]
fn what_is_wrong_with_a_chain_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let (root, other) = (Authority::root("root", None), Authority::root("other", None));
    let (strict, short) = (
        Authority::root("strict", Some(0)),
        root.below_with("short", |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        }),
    );
    let (a, under_strict, under_short) = (root.below("a"), strict.below("s"), short.below("t"));
    let no_ca = root.below_with("no CA", |params| params.is_ca = IsCa::ExplicitNoCa);
    let no_usage = root.below_with("no usage", |params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
    let over = root.below_with("over", |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let federated = root.below_with("federated", |params| {
        params.subject_alt_names = vec![SanType::URI("spiffe://other.test".try_into().unwrap())];
    });
    let (b, c) = (a.below("b"), a.below("b").below("c"));
    let deep = b.below("c").below("d");
    let all = [&root, &strict];
    let trust = |bundle: &[&Authority]| {
        let pem: String = bundle.iter().map(|ca| ca.pem.as_str()).collect();
        Trust::from_pem_for(pem.as_bytes(), "testudo.test", "mnist").unwrap()
    };
    let chain = |by: &Authority, uri: &str, rest: &[&Authority]| {
        let rest = rest.iter().map(|ca| ca.pem.as_str());
        let pem: String = std::iter::once(by.node(uri).0.as_str()).chain(rest).collect();
        testudo_transport::pki::chain_der(pem.as_bytes())
    };
    let p521 = root.node_with(WORKER, &rcgen::PKCS_ECDSA_P521_SHA512).0;
    let foreign = "spiffe://evil.test/job/mnist/worker/0";
    type Case<'a> = (&'a str, &'a [&'a Authority], Result<Vec<u8>, PkiError>, &'a str);
    let cases: [Case<'_>; 15] = [
        ("another trust domain", &all, chain(&a, foreign, &[&a]), "in `testudo.test`"),
        ("another job", &all, chain(&a, &WORKER.replace("mnist", "cifar"), &[&a]), "a node of job `mnist`"),
        ("no anchor", &[&other], chain(&a, WORKER, &[&a]), "UnknownIssuer"),
        ("what is in between is missing", &all, chain(&b, WORKER, &[&a]), "UnknownIssuer"),
        ("what is in between is no CA's", &all, chain(&no_ca, WORKER, &[&no_ca]), "is not a CA's"),
        ("it may not sign", &all, chain(&no_usage, WORKER, &[&no_usage]), "does not allow signing"),
        ("it has ended", &all, chain(&over, WORKER, &[&over]), "expired"),
        (
            "it is of another domain",
            &all,
            chain(&federated, WORKER, &[&federated]),
            "its CA is of `other.test`",
        ),
        (
            "the CA allows none",
            &all[1..],
            chain(&under_strict, WORKER, &[&under_strict]),
            "more than the CA allows",
        ),
        // Another CA of the bundle allows it; this one's signature is still no use.
        ("the signer allows none", &all, chain(&under_strict, WORKER, &[&under_strict]), "UnknownIssuer"),
        (
            "what is in between allows none",
            &all,
            chain(&under_short, WORKER, &[&under_short, &short]),
            "PathLenConstraintViolated",
        ),
        ("five", &all, chain(&deep, WORKER, &[&deep, &c, &b, &a]), "more than 4 certificates"),
        ("a node's key on P-521", &all, testudo_transport::pki::chain_der(p521.as_bytes()), "P-256 or P-384"),
        (
            "garbage behind it",
            &all,
            chain(&root, WORKER, &[]).map(|der| [der, vec![0x30, 9]].concat()),
            "malformed",
        ),
        ("nothing", &all, Ok(Vec::new()), "malformed"),
    ];
    for (what, bundle, chain, words) in cases {
        let refused = chain.and_then(|der| trust(bundle).verify(&der, &Expected::Member)).unwrap_err();
        assert!(refused.to_string().contains(words), "{what}: {refused}");
    }
    // A chain as long as may be, and one with the CA itself behind it.
    let (long, whole) = (chain(&b, WORKER, &[&b, &a, &root]), chain(&a, WORKER, &[&root, &a]));
    for good in [long, whole] {
        assert!(trust(&all).verify(&good.unwrap(), &Expected::Member).is_ok());
    }
    assert!(
        trust(&[&strict]).verify(&chain(&strict, WORKER, &[&strict]).unwrap(), &Expected::Member).is_ok()
    );

    // Files that are no such thing.
    let (cert, key) = root.node(WORKER);
    let node = Authority { pem: cert.clone(), issuer: Authority::root("x", None).issuer };
    let no_ca = load(folder.path(), &[&root, &node], &[&cert], &key).unwrap_err();
    assert!(no_ca.to_string().contains("is not a CA's"), "{no_ca}");
    let many: Vec<&Authority> = std::iter::repeat_n(&root, 17).collect();
    let many = load(folder.path(), &many, &[&cert], &key).unwrap_err();
    assert!(many.to_string().contains("more than 16"), "{many}");
    let empty = load(folder.path(), &[], &[&cert], &key).unwrap_err();
    assert!(matches!(empty, PkiError::Pem { .. }), "{empty}");
}

/// Invariants 1 to 3 of `revocation`.
#[test]
fn each_ca_has_its_own_list_and_one_without_is_what_the_policy_says() {
    let folder = tempfile::tempdir().unwrap();
    let root = Authority::root("root", None);
    let (a, b) = (root.below("a"), root.below("b"));
    let (cert, key) = a.node(SERVER);
    let server = load(folder.path(), &[&root], &[&cert, &a.pem], &key).unwrap();
    let trust = server.trust();
    let shown = |pem: &[&str]| testudo_transport::pki::chain_der(pem.concat().as_bytes()).unwrap();
    let (lost, kept, others) = (a.node(WORKER).0, a.node(WORKER).0, b.node(WORKER).0);
    let [lost_chain, kept_chain] = [&lost, &kept].map(|leaf| shown(&[leaf, &a.pem]));
    let others_chain = shown(&[&others, &b.pem]);
    let check = |chain: &[u8]| trust.verify(chain, &Expected::Member).map(|_| ());
    for chain in [&lost_chain, &kept_chain, &others_chain] {
        assert_eq!(check(chain), Ok(()), "there is no list yet");
    }
    // One of two is not enough for this node itself.
    let bare = trust.install_crl(root.list(1, &[]).as_bytes());
    assert!(matches!(bare, Err(PkiError::Crl(CrlError::Bare(_)))), "{bare:?}");
    assert!(trust.crls().is_empty());
    // Together they are: of the CA, and of the one that this node's certificate came through.
    let both = root.list(1, &[]) + &a.list(1, &[&lost]);
    let installed = trust.install_crl(both.as_bytes()).unwrap();
    assert_eq!((installed.revoked, installed.is_new, trust.crls().len()), (1, true, 2));
    assert!(!trust.install_crl(both.as_bytes()).unwrap().is_new);
    assert!(matches!(check(&lost_chain), Err(PkiError::Revoked { .. })));
    assert_eq!(check(&kept_chain), Ok(()));
    let without = check(&others_chain);
    assert!(matches!(&without, Err(PkiError::NoList { issuer, .. }) if issuer.contains('b')), "{without:?}");
    trust.set_revocation(RevocationPolicy::ShortLived);
    assert_eq!(check(&others_chain), Ok(()));
    assert!(check(&lost_chain).is_err(), "lists that are there count");
    // Of a CA that nobody here knows; one that is older than what is in force takes nothing with it.
    assert!(matches!(trust.install_crl(b.list(1, &[]).as_bytes()), Err(PkiError::Crl(CrlError::Foreign(_)))));
    let mixed = root.list(0, &[]) + &a.list(2, &[]);
    assert!(matches!(trust.install_crl(mixed.as_bytes()), Err(PkiError::Crl(CrlError::Older { .. }))));
    assert!(check(&lost_chain).is_err());
    // A CA that is taken back takes all that it signed with it.
    trust.install_crl(root.list(2, &[&a.pem]).as_bytes()).unwrap();
    assert!(matches!(check(&kept_chain), Err(PkiError::Revoked { .. })));
    assert_eq!(check(&others_chain), Ok(()));
}
