//! What operators and nodes hand each other: lists of revoked certificates, requests, join tokens, chains of certificates.

use std::sync::LazyLock;
use std::time::Duration;

use testudo_transport::pki::{
    self, Crl, JoinToken, MAX_CHAIN, Request, Revocation, RevocationList, Serial, describe_crl,
};
use testudo_transport::{Expected, JobCa, Role};

use super::{CA, NODE, id};

const HOUR: Duration = Duration::from_secs(3600);

/// Whose papers the seeds are.
static OTHER: LazyLock<JobCa> = LazyLock::new(|| JobCa::create("t", "j", HOUR).unwrap());

/// One that nobody's papers are of.
static THIRD: LazyLock<JobCa> = LazyLock::new(|| JobCa::create("t", "j", HOUR).unwrap());

/// Lists of revoked certificates, in DER and PEM.
///
/// What the CA did not sign is not taken, and changes nothing; what is described has no more entries than bytes.
pub fn crl(input: &[u8]) {
    let trust = CA.trust();
    assert!(trust.install_crl(input).is_err(), "a list that the CA did not sign");
    assert!(trust.crls().is_empty() && NODE.trust().crls().is_empty());
    assert!(Crl::read(input, &trust.ca_der()).is_err() && trust.read_crls(input).is_err());
    let bundle = [trust.ca_der(), THIRD.trust().ca_der()].concat();
    assert!(Crl::read_for(input, &bundle, Some(NODE.certificate_der())).is_err());
    // The input as the CA's certificate, too.
    let _ = Crl::read(input, input);
    for info in describe_crl(input).unwrap_or_default() {
        assert!(info.revoked.len() <= input.len(), "more entries than bytes");
        assert!(!info.to_string().is_empty());
    }
}

/// Requests for certificates, in DER and PEM, renewals included.
///
/// A request that is read means the same when it is written again, and renews nothing that the CA did not certify.
pub fn request(input: &[u8]) {
    if let Ok(request) = Request::from_der(input) {
        assert_eq!(request.der(), input, "a request has two spellings");
        let again = Request::from_pem(request.to_pem().as_bytes()).unwrap();
        assert_eq!((again.id(), again.key_sha256()), (request.id(), request.key_sha256()));
    }
    if let Ok(request) = Request::from_pem(input) {
        assert!(
            request.check_renewal(CA.trust()).is_err(),
            "a certificate that the CA did not issue is renewed"
        );
        assert!(CA.issue_for(&request, None, HOUR).is_err(), "nobody confirmed it");
        let again = Request::from_pem(request.to_pem().as_bytes()).unwrap();
        assert_eq!((again.id(), again.is_renewal()), (request.id(), request.is_renewal()));
    }
}

/// Join tokens.
///
/// One spelling only, but for the white space around it.
pub fn token(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(token) = text.parse::<JoinToken>() else { return };
    assert_eq!(token.to_text().trim(), text.trim(), "a token has two spellings");
    let _ = token.secret().mac(input);
}

/// Chains of certificates, bundles of CAs, and both in PEM.
///
/// Nothing that the CA did not sign is anybody's; a bundle that is read has the bytes that it was read from.
pub fn chain(input: &[u8]) {
    let trust = CA.trust();
    assert!(trust.verify(input, &Expected::Node(id(Role::Worker, "0"))).is_err());
    // Behind a certificate that is good by itself: what follows must be CAs', and few.
    let followed = [NODE.certificate_der(), input].concat();
    if trust.verify(&followed, &Expected::Member).is_ok() {
        assert!(
            input.is_empty() || trust.ca_der().repeat(MAX_CHAIN).starts_with(input),
            "what follows is no CA's"
        );
    }
    if let Ok(bundle) = pki::bundle_der(input) {
        let trust = testudo_transport::Trust::from_der_for(&bundle, "t", "j").unwrap();
        assert_eq!(trust.ca_der(), bundle);
        assert!(trust.verify(NODE.certificate_der(), &Expected::Member).is_err(), "its CA is not in it");
    }
    if let Ok(bundle) = testudo_transport::Trust::from_der_for(input, "t", "j") {
        assert_eq!(bundle.ca_der(), input, "a bundle has two spellings");
    }
    if let Ok(chain) = pki::chain_der(input) {
        assert!(trust.verify(&chain, &Expected::Member).is_err());
    }
    let _ = (pki::describe_all(input), pki::bundle_parts(input));
}

/// What another CA of the same name made: of the right form, and signed by the wrong key.
pub(super) fn crls() -> Vec<super::seeds::Seed> {
    let empty = OTHER.sign_crl(&RevocationList::default(), HOUR).unwrap();
    let mut list = RevocationList::after(&empty).unwrap();
    list.revoke(
        Serial::from_hex("0102030405060708090a0b0c0d0e0f1011121314").unwrap(),
        Revocation { at: 1_700_000_000, compromised: true },
    );
    list.revoke(Serial::from_hex("7f").unwrap(), Revocation { at: 0, compromised: false });
    let two = OTHER.sign_crl(&list, HOUR).unwrap();
    vec![
        ("empty-der", empty.der().to_vec()),
        ("two-der", two.der().to_vec()),
        ("both-der", [empty.der(), two.der()].concat()),
        ("two-pem", two.to_pem().into_bytes()),
        ("ca-der", OTHER.trust().ca_der()),
    ]
}

pub(super) fn requests() -> Vec<super::seeds::Seed> {
    let folder = tempfile::tempdir().unwrap();
    let new = pki::request(&folder.path().join("new"), &id(Role::Worker, "3")).unwrap();
    let held = folder.path().join("held");
    OTHER.issue(&id(Role::Server, "1"), HOUR).unwrap().save(&held).unwrap();
    let renewal = pki::renew(&held, false).unwrap();
    vec![
        ("request-der", new.der().to_vec()),
        ("request-pem", new.to_pem().into_bytes()),
        ("renewal-pem", renewal.to_pem().into_bytes()),
    ]
}

pub(super) fn tokens() -> Vec<super::seeds::Seed> {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("ca");
    OTHER.save(&home).unwrap();
    let ca = JobCa::load(&home).unwrap();
    let tokens = pki::Tokens::of(&home);
    let token = tokens.make(&ca, &id(Role::Worker, "3"), HOUR, None).unwrap();
    let text = token.to_text();
    vec![("token", text.as_bytes().to_vec()), ("cut", text.as_bytes()[..text.len() / 2].to_vec())]
}

pub(super) fn chains() -> Vec<super::seeds::Seed> {
    let node = OTHER.issue(&id(Role::Worker, "0"), HOUR).unwrap();
    let ca = OTHER.trust().ca_der();
    vec![
        ("leaf-and-ca", [node.certificate_der(), &ca].concat()),
        ("five", node.certificate_der().repeat(MAX_CHAIN + 1)),
        ("bundle", ca.repeat(2)),
        ("bundle-pem", node.ca_pem().repeat(2).into_bytes()),
        ("chain-pem", [node.certificate_pem(), node.ca_pem()].concat().into_bytes()),
    ]
}
