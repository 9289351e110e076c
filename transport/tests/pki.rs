//! Keys and certificates: what is issued, saved, loaded, signed and refused. Invariants are those of
//! `testudo_transport::pki`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::time::Duration;

use common::{DAY, Job, id};
use testudo_transport::pki::{
    self, CA_FILE, CERT_FILE, Issued, KEY_FILE, NEXT_KEY_FILE, REGISTER_FILE, RENEWAL_FILE, Register,
    describe,
};
use testudo_transport::{Expected, Identity, JobCa, PkiError, Role, SpiffeId, Trust};

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Invariant 1.
#[test]
fn the_ca_issues_for_its_own_job_alone() {
    let job = Job::new();
    let own = id(Role::Worker, 3);
    let issued = job.ca.issue(&own, DAY).unwrap();
    assert_eq!(issued.id(), &own);
    assert_eq!(job.ca.trust().verify(issued.certificate_der(), &Expected::Member), Ok(own));
    for (domain, name) in [("testudo.other", "mnist"), ("testudo.test", "cifar")] {
        let foreign = SpiffeId::new(domain, name, Role::Worker, "3").unwrap();
        assert!(matches!(job.ca.issue(&foreign, DAY), Err(PkiError::NotOurs { .. })));
    }
    assert!(matches!(job.ca.issue(&id(Role::Worker, 0), Duration::ZERO), Err(PkiError::Validity(_))));
    assert!(matches!(job.ca.issue(&id(Role::Worker, 0), Duration::MAX), Err(PkiError::Validity(_))));
    assert!(JobCa::create("Bad Domain", "mnist", DAY).is_err());
    assert!(JobCa::create("testudo.test", "../mnist", DAY).is_err());
}

#[test]
fn an_identity_survives_its_files_and_they_are_private() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("worker-0");
    let identity = Job::new().identity(Role::Worker, 0);
    identity.save(&home).unwrap();
    assert_eq!((mode(&home), mode(&home.join(KEY_FILE))), (0o700, 0o600));
    let loaded = Identity::load(&home).unwrap();
    assert_eq!((loaded.id(), loaded.certificate_der()), (identity.id(), identity.certificate_der()));
    assert!(matches!(identity.save(&home), Err(PkiError::File { .. })), "overwrote a key");
}

/// Invariant 3.
#[test]
fn key_files_that_others_can_read_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("worker-0");
    Job::new().identity(Role::Worker, 0).save(&home).unwrap();
    let key = home.join(KEY_FILE);
    for bad in [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o666, 0o777] {
        fs::set_permissions(&key, Permissions::from_mode(bad)).unwrap();
        let refused = Identity::load(&home).unwrap_err();
        assert!(matches!(&refused, PkiError::NotPrivate { path, .. } if *path == key), "{bad:o}: {refused}");
        assert!(refused.to_string().contains("chmod 600"));
    }
    fs::set_permissions(&key, Permissions::from_mode(0o400)).unwrap();
    assert!(Identity::load(&home).is_ok());
}

/// Who is not root can give no file away.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not checked: this takes root to set up");
    }
    root
}

/// Two users who are not root; nodes run as the first.
const NODES: u32 = 65534;
const SOMEBODY: u32 = 3_141_592;

/// Invariant 3.
#[test]
fn key_files_of_another_user_are_refused() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("worker-0");
    Job::new().identity(Role::Worker, 0).save(&home).unwrap();
    let key = home.join(KEY_FILE);
    chown(&key, Some(SOMEBODY), None).unwrap();
    let refused = Identity::load(&home).unwrap_err();
    assert!(matches!(&refused, PkiError::NotPrivate { path, .. } if *path == key), "{refused}");
    assert!(refused.to_string().contains("another user"), "{refused}");
    chown(&key, Some(0), None).unwrap();
    assert!(Identity::load(&home).is_ok());
}

/// Invariant 3 of `pki/enrol.rs`: what root puts into a node's folder belongs to whom that, or what was there, belonged to.
#[test]
fn what_root_renews_belongs_to_the_nodes_user() {
    if !is_root() {
        return;
    }
    pki::trust_owner(NODES);
    let (directory, job) = (tempfile::tempdir().unwrap(), Job::new());
    let home = directory.path().join("worker-0");
    fs::create_dir(&home).unwrap();
    fs::set_permissions(&home, Permissions::from_mode(0o700)).unwrap();
    let give = |path: &Path, user: u32| lchown(path, Some(user), Some(user)).unwrap();
    let owners = || {
        let of = |entry: std::io::Result<fs::DirEntry>| {
            let found = entry.unwrap().metadata().unwrap();
            (found.uid(), found.gid())
        };
        fs::read_dir(&home).unwrap().map(of).collect::<BTreeSet<_>>()
    };
    let nodes = BTreeSet::from([(NODES, NODES)]);
    give(&home, NODES);
    let own = id(Role::Worker, 0);
    let request = pki::request(&home, &own).unwrap();
    let certificate = job.ca.issue_for(&request, Some(&own), DAY).unwrap();
    pki::install(&home, certificate.as_bytes(), Some(job.ca.certificate_pem().as_bytes())).unwrap();
    assert_eq!(owners(), nodes);
    // The folder may be root's and its files the node's.
    give(&home, 0);
    // A link that somebody has made leads nowhere, and has no say.
    let precious = directory.path().join("precious");
    fs::write(&precious, "root's").unwrap();
    for name in [NEXT_KEY_FILE, RENEWAL_FILE] {
        symlink(&precious, home.join(name)).unwrap();
        give(&home.join(name), SOMEBODY);
    }
    let request = pki::renew(&home, false).unwrap();
    assert_eq!(owners(), nodes);
    let certificate = job.ca.issue_for(&request, None, DAY).unwrap();
    pki::install(&home, certificate.as_bytes(), None).unwrap();
    assert_eq!(owners(), nodes);
    assert_eq!(mode(&home.join(KEY_FILE)), 0o600);
    let found = fs::metadata(&precious).unwrap();
    assert_eq!((found.uid(), fs::read_to_string(&precious).unwrap().as_str()), (0, "root's"));
    // So does what the authority records, in a folder that `pki serve` is to have.
    let ca = directory.path().join("ca");
    job.ca.save(&ca).unwrap();
    give(&ca, NODES);
    JobCa::load(&ca).unwrap().issue(&id(Role::Worker, 1), DAY).unwrap();
    assert_eq!(fs::metadata(ca.join(REGISTER_FILE)).unwrap().uid(), NODES);
    // A folder of somebody who runs no node is not written in.
    give(&home, SOMEBODY);
    assert!(matches!(pki::renew(&home, false), Err(PkiError::NotPrivate { .. })));
}

/// Whoever can replace the CA's certificate decides whom this node trusts.
#[test]
fn trust_that_others_can_change_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("worker-0");
    Job::new().identity(Role::Worker, 0).save(&home).unwrap();
    for name in ["ca.pem", "cert.pem"] {
        let file = home.join(name);
        for bad in [0o664, 0o646, 0o622] {
            fs::set_permissions(&file, Permissions::from_mode(bad)).unwrap();
            let refused = Identity::load(&home).unwrap_err();
            assert!(
                matches!(&refused, PkiError::NotPrivate { path, .. } if *path == file),
                "{bad:o}: {refused}"
            );
        }
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        assert!(Identity::load(&home).is_ok());
    }
    let open = directory.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    assert!(
        Job::new().identity(Role::Worker, 1).save(&open).is_err(),
        "keys in a folder that others can write in"
    );
}

/// Invariant 3.
#[test]
fn links_pipes_and_directories_in_place_of_a_key_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("worker-0");
    Job::new().identity(Role::Worker, 0).save(&home).unwrap();
    let (key, moved) = (home.join(KEY_FILE), home.join("moved.pem"));
    fs::rename(&key, &moved).unwrap();
    assert!(matches!(Identity::load(&home), Err(PkiError::File { .. })), "missing");
    symlink(&moved, &key).unwrap();
    assert!(matches!(Identity::load(&home), Err(PkiError::NotPrivate { .. })), "link");
    fs::remove_file(&key).unwrap();
    fs::create_dir(&key).unwrap();
    assert!(matches!(Identity::load(&home), Err(PkiError::NotPrivate { .. })), "directory");
    fs::remove_dir(&key).unwrap();
    let made = std::process::Command::new("mkfifo").arg("-m").arg("600").arg(&key).status();
    assert!(made.unwrap().success());
    assert!(matches!(Identity::load(&home), Err(PkiError::NotPrivate { .. })), "pipe");
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let save = |name: &str, identity: Identity| {
        let home = directory.path().join(name);
        identity.save(&home).unwrap();
        home
    };
    let (job, other) = (Job::new(), Job::new());
    let home = save("a", job.identity(Role::Worker, 0));
    let same_job = save("b", job.identity(Role::Worker, 1));
    let other_job = save("c", other.identity(Role::Worker, 0));

    fs::copy(same_job.join(CERT_FILE), home.join(CERT_FILE)).unwrap();
    assert!(matches!(Identity::load(&home), Err(PkiError::OtherKey)), "another node's certificate");
    let home = save("d", job.identity(Role::Worker, 0));
    fs::copy(other_job.join(CA_FILE), home.join(CA_FILE)).unwrap();
    assert!(matches!(Identity::load(&home), Err(PkiError::Chain(_))), "another job's CA");
    let home = save("e", job.identity(Role::Worker, 0));
    fs::write(home.join(CERT_FILE), b"not a certificate").unwrap();
    assert!(matches!(Identity::load(&home), Err(PkiError::Pem { .. })));
    fs::write(home.join(CERT_FILE), vec![b'A'; 65 << 10]).unwrap();
    assert!(matches!(Identity::load(&home), Err(PkiError::File { .. })), "too long");
}

#[test]
fn a_ca_survives_its_files() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("ca");
    let job = Job::new();
    job.ca.save(&home).unwrap();
    let loaded = JobCa::load(&home).unwrap();
    let issued = loaded.issue(&id(Role::Server, 0), DAY).unwrap();
    assert!(job.ca.trust().verify(issued.certificate_der(), &Expected::Member).is_ok());
    fs::set_permissions(home.join("ca-key.pem"), Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(JobCa::load(&home), Err(PkiError::NotPrivate { .. })));
}

/// Invariant 5.
#[test]
fn what_a_ca_issues_from_its_directory_is_on_record() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("ca");
    Job::new().ca.save(&home).unwrap();
    let register = Register::of(&home);
    assert_eq!(register.read(), Ok(vec![]));
    let ca = JobCa::load(&home).unwrap();
    let first = ca.issue(&id(Role::Worker, 0), DAY).unwrap();
    // Another process, on the same directory.
    let again = JobCa::load(&home).unwrap();
    let second = again.issue(&id(Role::Worker, 0), DAY * 2).unwrap();
    let other = again.issue(&id(Role::Server, 0), DAY).unwrap();
    let of = |identity: &Identity| Issued::of(identity.certificate_der()).unwrap();
    assert_eq!(register.read(), Ok(vec![of(&first), of(&second), of(&other)]));
    let described = describe(first.certificate_pem().as_bytes()).unwrap();
    assert_eq!(of(&first).serial, described.serial.replace(':', ""));
    assert_eq!((of(&first).not_after, &of(&first).id), (described.not_after, first.id()));
    assert_ne!(of(&first).spki_sha256, of(&second).spki_sha256, "each has its own key");
    let now = std::time::SystemTime::now();
    assert_eq!(register.live(first.id(), now), Ok(vec![of(&first), of(&second)]));
    assert_eq!(register.live(first.id(), now + DAY + DAY / 2), Ok(vec![of(&second)]), "one has ended");
    // What cannot be recorded is not issued.
    fs::set_permissions(home.join(REGISTER_FILE), Permissions::from_mode(0o666)).unwrap();
    assert!(matches!(ca.issue(&id(Role::Worker, 0), DAY), Err(PkiError::NotPrivate { .. })));
}

#[test]
fn the_operators_signature_is_checked_with_its_certificate() {
    let (job, other) = (Job::new(), Job::new());
    let operator = job.identity(Role::Operator, 0);
    let signature = operator.sign(b"job spec").unwrap();
    let check = |trust: &Trust, cert: &[u8], expected: &Expected, message: &[u8], signature: &[u8]| {
        trust.verify_signature(cert, expected, message, signature)
    };
    let (trust, cert) = (job.ca.trust(), operator.certificate_der());
    let role = Expected::Role(Role::Operator);
    assert_eq!(check(trust, cert, &role, b"job spec", &signature), Ok(operator.id().clone()));
    assert!(check(trust, cert, &Expected::Node(operator.id().clone()), b"job spec", &signature).is_ok());
    assert!(matches!(check(trust, cert, &role, b"job Spec", &signature), Err(PkiError::Signature(_))));
    assert!(matches!(check(trust, cert, &role, b"job spec", b""), Err(PkiError::Signature(_))));
    for byte in 0..signature.len() {
        let mut bad = signature.clone();
        bad[byte] ^= 1;
        assert!(check(trust, cert, &role, b"job spec", &bad).is_err(), "byte {byte}");
    }
    let chain = check(other.ca.trust(), cert, &role, b"job spec", &signature);
    assert!(matches!(chain, Err(PkiError::Chain(_))));
    let worker = job.identity(Role::Worker, 0);
    let forged = worker.sign(b"job spec").unwrap();
    let unexpected = check(trust, worker.certificate_der(), &role, b"job spec", &forged);
    assert!(matches!(unexpected, Err(PkiError::Unexpected { .. })));
    assert!(matches!(check(trust, cert, &role, b"job spec", &forged), Err(PkiError::Signature(_))));
}

#[test]
fn a_certificate_describes_itself() {
    let job = Job::new();
    let identity = job.identity(Role::Worker, 7);
    let leaf = describe(identity.certificate_pem().as_bytes()).unwrap();
    assert_eq!((leaf.id.as_str(), leaf.is_ca), (identity.id().as_str(), false));
    assert_eq!(leaf.key_type, "ECDSA P-256");
    // The tolerance for clocks lies before, the validity after the moment of issue.
    assert_eq!(leaf.not_after - leaf.not_before, 24 * 3600 + 60);
    assert!(leaf.issuer.contains("mnist") && leaf.serial.len() == 59, "{leaf}");
    assert!(leaf.to_string().contains("spiffe://testudo.test/job/mnist/worker/7"));
    let ca = describe(identity.ca_pem().as_bytes()).unwrap();
    assert_eq!((ca.id.as_str(), ca.is_ca), ("spiffe://testudo.test", true));
    assert!(describe(b"nothing").is_err());
    let again = job.identity(Role::Worker, 7);
    assert_ne!(describe(again.certificate_pem().as_bytes()).unwrap().serial, leaf.serial);
}

#[test]
fn trust_reads_its_scope_from_the_ca() {
    let job = Job::new();
    let trust = Trust::from_pem(job.ca.certificate_pem().as_bytes()).unwrap();
    assert_eq!((trust.trust_domain(), trust.job()), ("testudo.test", "mnist"));
    let leaf = job.identity(Role::Worker, 0);
    assert!(matches!(Trust::from_pem(leaf.certificate_pem().as_bytes()), Err(PkiError::Certificate(_))));
}

/// Invariant 3.
#[test]
fn debug_output_has_no_secret() {
    let identity = Job::new().identity(Role::Worker, 0);
    assert_eq!(format!("{identity:?}"), "Identity(spiffe://testudo.test/job/mnist/worker/0)");
    assert_eq!(format!("{:?}", Job::new().ca), "JobCa(Trust(job mnist in testudo.test))");
}
