//! `testudo doctor` on a directory with a dozen things wrong: every one is named in one go, each with its mend.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use testudo_tests::process::{Ended, run};
use testudo_transport::pki::{Revocation, RevocationList, Serial, describe};
use testudo_transport::{JobCa, Role, SpiffeId};

const TESTUDO: &str = env!("CARGO_BIN_EXE_testudo-under-test");
const HOUR: Duration = Duration::from_secs(3600);

fn testudo(arguments: &[&str], mark: &Path) -> Ended {
    run(TESTUDO, arguments, mark)
}

fn id(job: &str, role: Role, name: &str) -> SpiffeId {
    SpiffeId::new("testudo.local", job, role, name).unwrap()
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// What the doctor says of `path`: its status, and severity, place, finding and mend of each thing.
fn examined(path: &Path) -> (Option<i32>, Vec<[String; 4]>) {
    let ended = testudo(&["doctor", path.to_str().unwrap(), "--json"], path);
    let line = ended.stdout.lines().last().unwrap_or_else(|| panic!("no JSON: {}", ended.stderr));
    let report: Value = serde_json::from_str(line).unwrap();
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let findings = report["findings"].as_array().unwrap().iter();
    let findings: Vec<[String; 4]> =
        findings.map(|f| ["severity", "place", "what", "fix"].map(|key| text(f, key))).collect();
    let problems = findings.iter().filter(|f| f[0] == "problem").count() as u64;
    assert_eq!(report["problems"].as_u64(), Some(problems));
    (ended.status.code(), findings)
}

/// The findings that are no praise, as lines for a failure's message.
fn complaints(findings: &[[String; 4]]) -> String {
    let bad = findings.iter().filter(|f| f[0] != "good");
    bad.map(|f| format!("{}: {}: {} (fix: {})\n", f[0], f[1], f[2], f[3])).collect()
}

fn cluster_file(data: &Path, more: &str) -> String {
    format!(
        "[job]\nname = \"j\"\n[training]\nepochs = 1\nbatch_size = 64\nlogical_shards = 4\n[model]\nkind = \"mlp\"\n\
         inputs = 784\nhidden = [8]\nclasses = 10\n[optimizer]\nkind = \"sgd\"\n[data]\nkind = \"mnist\"\npath = \
         \"{}\"\n{more}",
        data.display()
    )
}

#[test]
fn a_dozen_faults_are_named_in_one_go() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    let nodes = root.join("identities");
    let ca = JobCa::create("testudo.local", "j", 100 * HOUR).unwrap();
    ca.save(&root.join("ca")).unwrap();
    let save = |ca: &JobCa, id: &SpiffeId, folder: &str, life: Duration| {
        let identity = ca.issue(id, life).unwrap();
        identity.save(&nodes.join(folder)).unwrap();
        identity
    };
    // 1: a key that others can read. 2: that folder, which others can write.
    save(&ca, &id("j", Role::Worker, "0"), "worker-0", HOUR * 2);
    mode(&nodes.join("worker-0/key.pem"), 0o644);
    mode(&nodes.join("worker-0"), 0o777);
    // 3: a key that is a link.
    save(&ca, &id("j", Role::Worker, "1"), "worker-1", HOUR * 2);
    fs::rename(nodes.join("worker-1/key.pem"), root.join("moved.pem")).unwrap();
    symlink(root.join("moved.pem"), nodes.join("worker-1/key.pem")).unwrap();
    // 4: a certificate of another key, and 5: of another CA.
    let other = JobCa::create("testudo.local", "j", 100 * HOUR).unwrap();
    save(&ca, &id("j", Role::Worker, "2"), "worker-2", HOUR * 2);
    let foreign = other.issue(&id("j", Role::Worker, "2"), HOUR * 2).unwrap();
    fs::write(nodes.join("worker-2/cert.pem"), foreign.certificate_pem()).unwrap();
    // 6: one that has ended. 7: one that is missing a file.
    save(&ca, &id("j", Role::Server, "0"), "server-0", Duration::from_nanos(1));
    save(&ca, &id("j", Role::Server, "1"), "server-1", HOUR * 2);
    fs::remove_file(nodes.join("server-1/ca.pem")).unwrap();
    // 8: the same identity twice. 9: one of another job.
    save(&ca, &id("j", Role::Worker, "0"), "worker-0-copy", HOUR * 2);
    let elsewhere = JobCa::create("testudo.local", "k", 100 * HOUR).unwrap();
    save(&elsewhere, &id("k", Role::Worker, "3"), "worker-3", HOUR * 2);
    // 10: an address that is taken. 11: a name that is nobody's. 12: data that are not there.
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let more = format!(
        "[cluster]\nscheduler = \"nobody.invalid:4800\"\n[network.scheduler]\nlisten = \"{}\"\n",
        taken.local_addr().unwrap()
    );
    fs::write(root.join("cluster.toml"), cluster_file(&root.join("no-data"), &more)).unwrap();
    // 13: a job that is none.
    fs::write(root.join("cluster.job"), b"not a job").unwrap();
    // 14 and 15: another cluster file with two wrong keys.
    fs::write(root.join("other.toml"), "[job]\nnam = \"x\"\n[training]\nepochs = -1\n").unwrap();

    let (status, findings) = examined(root);
    let all = complaints(&findings);
    assert_eq!(status, Some(1), "{all}");
    for (severity, place, what) in [
        ("problem", "worker-0/key.pem", "its mode is 644"),
        ("problem", "identities/worker-0", "its mode is 777"),
        ("problem", "worker-1/key.pem", "symbolic link"),
        ("warning", "moved.pem", "private key"),
        ("problem", "worker-2/cert.pem", "not of the private key"),
        ("problem", "worker-2/cert.pem", "does not chain"),
        ("problem", "server-0/cert.pem", "expired"),
        ("problem", "server-1/ca.pem", "cannot be read"),
        ("problem", "worker-0-copy", "is worker/0 too"),
        ("problem", "worker-3", "is not of job `j`"),
        ("problem", "cluster.toml", "is in use"),
        ("problem", "cluster.toml", "nobody.invalid"),
        ("problem", "cluster.toml", "no-data"),
        ("problem", "cluster.job", "cannot be read"),
        ("problem", "other.toml:2:1", "did you mean `job.name`"),
        ("problem", "other.toml:4", "epochs"),
        ("warning", "ca-key.pem", "beside nodes"),
    ] {
        let named = |f: &[String; 4]| f[0] == severity && f[1].contains(place) && f[2].contains(what);
        let finding = findings.iter().find(|f| named(f));
        let finding = finding.unwrap_or_else(|| panic!("nothing of `{what}` at {place}:\n{all}"));
        assert!(!finding[3].is_empty(), "no mend for {finding:?}");
    }
    let said = testudo(&["doctor", root.to_str().unwrap()], root);
    assert!(said.stdout.contains("fix: chmod 600"), "{}", said.stdout);
    assert!(!said.stdout.contains("PRIVATE KEY") && !said.stderr.contains("PRIVATE KEY"));
}

#[test]
fn a_good_cluster_has_no_problem_until_its_file_changes() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
    let made = |arguments: &[&str]| {
        let ended = testudo(arguments, root);
        assert!(ended.status.success(), "{arguments:?}: {}", ended.stderr);
    };
    made(&["pki", "init", &path("ca"), "--job", "j"]);
    for (role, out) in [("operator", "operator-0"), ("worker", "worker-0")] {
        let (ca, out) = (path("ca"), path(out));
        made(&["pki", "issue", "--ca", &ca, "--role", role, "--name", "0", "--out", &out]);
    }
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/mnist");
    fs::write(root.join("cluster.toml"), cluster_file(&data, "")).unwrap();
    made(&["job", &path("cluster.toml"), "--identity", &path("operator-0")]);

    let (status, findings) = examined(root);
    assert_eq!(status, Some(0), "{}", complaints(&findings));
    let praised = |what: &str| findings.iter().any(|f| f[0] == "good" && f[2].contains(what));
    assert!(praised("the cluster file still says the same") && praised("worker/0"), "{findings:?}");

    let text = fs::read_to_string(root.join("cluster.toml")).unwrap();
    fs::write(root.join("cluster.toml"), text.replace("batch_size = 64", "batch_size = 128")).unwrap();
    let (status, findings) = examined(root);
    assert_eq!(status, Some(1));
    assert!(complaints(&findings).contains("says something else"), "{}", complaints(&findings));
}

/// What can be wrong with the list of revoked certificates that a cluster file names, one after the other.
#[test]
fn a_list_of_revoked_certificates_is_looked_at() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    let ca = JobCa::create("testudo.local", "j", 100 * HOUR).unwrap();
    let stranger = JobCa::create("testudo.local", "j", 100 * HOUR).unwrap();
    let worker = ca.issue(&id("j", Role::Worker, "0"), HOUR * 9).unwrap();
    worker.save(&root.join("worker-0")).unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/mnist");
    fs::write(root.join("cluster.toml"), cluster_file(&data, "[security]\ncrl = \"crl.pem\"\n")).unwrap();
    let list = root.join("crl.pem");
    let says = |text: Option<String>, severity: &str, file: &str, what: &str| {
        if let Some(text) = text {
            fs::write(&list, text).unwrap();
            mode(&list, 0o644);
        }
        let (status, findings) = examined(root);
        let found = findings.iter().find(|f| f[0] == severity && f[1].ends_with(file) && f[2].contains(what));
        assert!(found.is_some(), "nothing of `{what}` at {file}:\n{}", complaints(&findings));
        assert_eq!(status, Some(i32::from(severity == "problem")), "{}", complaints(&findings));
    };
    let empty = RevocationList::default();
    // Each by the time of its own: what has ended is told in minutes.
    let from = |ca: &JobCa, begun: Duration| {
        Some(ca.sign_crl_at(&empty, HOUR, SystemTime::now() - begun).unwrap().to_pem())
    };
    says(None, "problem", "crl.pem", "is not there");
    says(Some("nonsense".into()), "problem", "crl.pem", "is no list of revoked certificates");
    says(from(&stranger, Duration::ZERO), "problem", "crl.pem", "its signature is not the CA's");
    says(from(&ca, 2 * HOUR), "problem", "crl.pem", "ended 60 min ago: nodes trust nobody");
    says(from(&ca, HOUR * 9 / 10), "warning", "crl.pem", "then nodes trust nobody");
    says(from(&ca, Duration::ZERO), "good", "crl.pem", "list 1: 0 revoked");
    mode(&list, 0o666);
    says(None, "problem", "crl.pem", "others than its owner can change it");
    let mut revoked = RevocationList::default();
    let serial = describe(worker.certificate_pem().as_bytes()).unwrap().serial;
    revoked.revoke(Serial::from_hex(&serial).unwrap(), Revocation { at: 0, compromised: false });
    let crl = ca.sign_crl(&revoked, HOUR).unwrap();
    says(Some(crl.to_pem()), "problem", "worker-0/cert.pem", "worker/0 is revoked");
}

/// Lists are required unless the cluster file says otherwise: a CA without one shuts out whom it certified.
#[test]
fn a_trusted_ca_without_a_list_is_named() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    let [ours, next] =
        ["testudo.local", "next.local"].map(|domain| JobCa::create(domain, domain, 100 * HOUR).unwrap());
    let node = SpiffeId::new("testudo.local", "testudo.local", Role::Worker, "0").unwrap();
    ours.issue(&node, HOUR * 9).unwrap().save(&root.join("worker-0")).unwrap();
    let bundle = format!("{}{}", ours.certificate_pem(), next.certificate_pem());
    fs::write(root.join("worker-0/ca.pem"), bundle).unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/mnist");
    let list = |ca: &JobCa| ca.sign_crl(&RevocationList::default(), HOUR).unwrap().to_pem();
    let name = |ca: &JobCa| describe(ca.certificate_pem().as_bytes()).unwrap().subject;
    let found = |lists: String, policy: &str| {
        let security = format!("[security]\ncrl = \"crl.pem\"\nrevocation = \"{policy}\"\n");
        fs::write(root.join("cluster.toml"), cluster_file(&data, &security)).unwrap();
        fs::write(root.join("crl.pem"), lists).unwrap();
        let (_, findings) = examined(root);
        findings.into_iter().filter(|f| f[2].contains("has no list of the CA ")).collect::<Vec<_>>()
    };
    assert_ne!(name(&ours), name(&next));
    assert!(found(list(&ours) + &list(&next), "required").is_empty());
    let bare = found(list(&ours), "required");
    assert!(bare.len() == 1 && bare[0][0] == "warning" && bare[0][2].contains(&name(&next)), "{bare:?}");
    assert!(bare[0][3].contains("add that CA's list") && bare[0][3].contains("short-lived"), "{bare:?}");
    let bare = found(list(&next), "required");
    assert!(bare.len() == 1 && bare[0][0] == "problem" && bare[0][2].contains(&name(&ours)), "{bare:?}");
    assert!(bare[0][2].contains("worker/0") && bare[0][3].contains("short-lived"), "{bare:?}");
    assert!(found(list(&ours), "short-lived").is_empty());
}

#[test]
fn a_directory_of_nothing_is_told_so_and_a_machine_can_be_looked_at_alone() {
    let place = tempfile::tempdir().unwrap();
    let (status, findings) = examined(place.path());
    assert_eq!(status, Some(1));
    assert!(complaints(&findings).contains("holds no cluster file"), "{findings:?}");
    let alone = testudo(&["doctor", "--verbose"], place.path());
    assert!(
        alone.status.success() && alone.stdout.contains("arithmetic"),
        "{} {}",
        alone.stdout,
        alone.stderr
    );
}
