//! Clusters whose certificates another CA issues, as processes of their own: root, intermediate, nodes and lists are OpenSSL's, and
//! no key or certificate of ours takes part. What such a run leaves is judged by our commands and by Python.
//!
//! Without `openssl` the tests say so and do nothing; with `TESTUDO_REQUIRE_OPENSSL=1` that is a failure.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use testudo_tests::files::{publish, text};
use testudo_tests::nodes::{NODES, Nodes, TRUST_DOMAIN};
use testudo_tests::openssl::{self, Ca};
use testudo_tests::process::{self, Ended};
use testudo_tests::python;

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");
const CHECKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/audit.py");

const DAY: Duration = Duration::from_secs(24 * 3600);

/// For how long after its end a list still holds, because clocks differ.
const SKEW: Duration = Duration::from_secs(60);

/// Far more steps than any test waits for.
const MANY: u64 = 10_000_000;

/// Where a node's cluster file says that its files are.
const FILES: &str =
    "[security]\nca = \"anchors.pem\"\ncert = \"node.pem\"\nkey = \"node-key.pem\"\ncrl = \"lists.pem\"\n";

/// A company's root, the CA below it that certifies the nodes, and the cluster.
struct Company {
    root: Ca,
    issuing: Ca,
    nodes: Nodes,
}

impl Company {
    fn new() -> Company {
        let nodes = Nodes::new(PROGRAM, FILES);
        let root = Ca::root(&nodes.at("Company-Root"));
        let issuing = root.below(&nodes.at("Company-Nodes"), None);
        let company = Company { root, issuing, nodes };
        for node in NODES {
            company.certify(node, ["anchors.pem", "node.pem", "node-key.pem"]);
        }
        for other in ["operator/alice", "actor/audit"] {
            company.certify(other, ["ca.pem", "cert.pem", "key.pem"]);
        }
        company.publish(&company.lists(SystemTime::now() + DAY));
        company.nodes.sign_job(MANY);
        company
    }

    /// Has `node` certified, with the CA in between behind its certificate: the root alone is trusted.
    fn certify(&self, node: &str, [anchors, cert, key]: [&str; 3]) {
        let home = self.nodes.home(node);
        let curve = if node.starts_with("server") { "P-384" } else { "P-256" };
        self.issuing.certify(&Nodes::id(node), curve, DAY, &home.join(key), &home.join(cert));
        let leaf = std::fs::read_to_string(home.join(cert)).unwrap();
        publish(&home.join(cert), &(leaf + &self.issuing.pem()));
        publish(&home.join(anchors), &self.root.pem());
    }

    /// The next list of the issuing CA, which ends then, and the root's.
    fn lists(&self, end: SystemTime) -> String {
        self.issuing.list(end) + &self.root.list(SystemTime::now() + DAY)
    }

    /// Puts lists where every node and the operator look for them.
    fn publish(&self, lists: &str) {
        for node in NODES.iter().chain(&["operator/alice"]) {
            self.nodes.put(node, "lists.pem", lists, 0o644);
        }
    }

    /// The operator hands lists in.
    fn hand_in(&self, lists: &str) -> Ended {
        self.nodes.put("operator/alice", "handed-in.pem", lists, 0o644);
        let file = self.nodes.home("operator/alice").join("handed-in.pem");
        self.nodes.operate("revoke", &["--crl", text(&file), "--json"])
    }

    /// What the run has left, judged under the root alone: by our command, and by code that is not ours.
    fn audited(&self) {
        let (run, root) = (self.nodes.run_dir(), self.root.certificate());
        audited(&self.nodes, &run, &root);
    }
}

fn audited(nodes: &Nodes, run: &Path, root: &Path) {
    let verify = ["audit", "verify", text(run), "--ca", text(root), "--json"];
    let good = nodes.testudo(&verify).succeeded().json();
    assert_eq!((&good["good"], &good["ended"]), (&true.into(), &true.into()), "{good}");
    assert!(good["countersigned"].is_u64(), "servers and workers sign under the chain, too: {good}");
    if let Some(python) = python::with("blake3, cryptography.x509") {
        let (log, head) = (run.join("audit.log"), good["head"].as_str().unwrap());
        let check =
            |ca: &Path| process::run(&python, &[CHECKER, text(&log), head, text(ca)], Path::new("/no/mark"));
        let said = check(root).succeeded();
        assert!(said.stdout.contains(head), "{said:?}");
        let another = Ca::root(&nodes.at("Another"));
        let refused = check(&another.certificate());
        assert!(!refused.status.success() && refused.stderr.contains("another CA's log"), "{refused:?}");
    }
}

fn members(status: &Value) -> Vec<&str> {
    status["nodes"].as_array().unwrap().iter().map(|node| node["node"].as_str().unwrap()).collect()
}

/// The bits of as many steps by the same cluster under the CA of `testudo pki`, undisturbed.
fn under_our_ca(steps: u64) -> Value {
    let mut nodes = Nodes::new(PROGRAM, "");
    let ca = nodes.at("ca");
    let init = ["pki", "init", text(&ca), "--job", "small", "--trust-domain", TRUST_DOMAIN];
    let _ = nodes.testudo(&init).succeeded();
    for node in NODES.iter().chain(&["operator/alice", "actor/audit"]) {
        let (role, name) = node.split_once('/').unwrap();
        let made = nodes.at(&format!("made-{role}-{name}"));
        let issue = ["pki", "issue", "--ca", text(&ca), "--role", role, "--name", name, "--out", text(&made)];
        let told = nodes.testudo(&[&issue[..], &["--json"]].concat()).succeeded().json();
        assert_eq!(told["id"], Nodes::id(node), "{told}");
        for file in ["ca.pem", "cert.pem", "key.pem"] {
            let mode = if file == "key.pem" { 0o600 } else { 0o644 };
            nodes.put(node, file, &std::fs::read_to_string(made.join(file)).unwrap(), mode);
        }
    }
    nodes.sign_job(steps);
    nodes.start(true);
    for (node, ended) in nodes.ended() {
        assert_eq!(ended.code(), Some(0), "{node}: {ended:?}\n{}", nodes.log(node));
    }
    nodes.end()
}

/// A cluster under a root and a CA below it is watched, paused, resumed and stopped by its operator; a node that the lower CA's
/// list takes back while it trains is cut off, and stays out; and the bits are those of an undisturbed run under our own CA.
#[test]
fn a_cluster_under_openssls_root_and_intermediate_trains_and_is_operated() {
    if !openssl::is_there() {
        return;
    }
    let mut company = Company::new();
    company.nodes.start(false);
    company.nodes.train(5);
    let all = &NODES[1..];
    assert_eq!(members(&company.nodes.status()), all);

    let paused = company.nodes.operate("pause", &[]).succeeded().stdout;
    assert!(paused.starts_with("paused"), "{paused}");
    let paused = company.nodes.status_when("a paused run", |seen| seen["step"] == seen["until"]);
    assert_eq!(paused["state"], "paused", "{paused}");

    // Another CA's list, and the lower CA's without the root's: nothing changes.
    let stranger = Ca::root(&company.nodes.at("Company-Nodes-2"));
    let foreign = company.hand_in(&stranger.list(SystemTime::now() + DAY));
    assert!(foreign.code() == Some(2) && foreign.stderr.contains("not of the job's CA"), "{foreign:#?}");
    assert_eq!(members(&company.nodes.status()), all);

    company.issuing.revoke(&company.nodes.home("worker/2").join("node.pem"));
    let lists = company.lists(SystemTime::now() + DAY);
    let told = company.hand_in(&lists).succeeded().json();
    assert!(told["scheduler"].as_str().unwrap().contains("is in force, with 1 revoked"), "{told}");
    let left =
        company.nodes.status_when("the worker to be lost", |seen| !members(seen).contains(&"worker/2"));
    assert_eq!(members(&left), &all[..4], "{left}");
    let lost = company.nodes.take("worker/2").wait();
    assert!(lost.code() != Some(0), "{lost:?}");
    let log = company.nodes.log("worker/2");
    assert!(log.contains("certificate of worker/2 is revoked"), "{log}");

    // From here on every node's file has it, too. One that comes again is refused in the handshake: alert 44, certificate_revoked.
    company.publish(&lists);
    let (log, before) = (company.nodes.home("worker/2").join("log"), log.len());
    let mut again = company.nodes.begin("worker/2", false);
    again.until("the refusal", |_| {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.get(before..).is_some_and(|new| new.contains("error 44")).then_some(())
    });
    drop(again);
    let resumed = company.nodes.operate("resume", &[]).succeeded().stdout;
    assert!(resumed.starts_with("resumed after step "), "{resumed}");
    company.nodes.train(5);
    let stopped = company.nodes.operate("stop", &[]).succeeded().stdout;
    assert!(stopped.starts_with("stopping after step "), "{stopped}");
    for (node, ended) in company.nodes.ended() {
        assert_eq!(ended.code(), Some(0), "{node}: {ended:?}\n{}", company.nodes.log(node));
    }
    let end = company.nodes.end();
    company.audited();
    let kinds = |kind: &str| {
        let run = company.nodes.run_dir();
        company.nodes.testudo(&["audit", "show", text(&run), "--kind", kind]).succeeded().stdout
    };
    assert_eq!(kinds("revocation").lines().count(), 1);
    let other = under_our_ca(end["steps"].as_u64().unwrap());
    assert_eq!(end["params_blake3"], other["params_blake3"], "{end} {other}");
}

/// A list that ends while the cluster trains: nobody is trusted any more, by nodes or by the operator, and no node starts.
#[test]
fn a_cluster_whose_list_has_ended_trusts_nobody() {
    if !openssl::is_there() {
        return;
    }
    let mut company = Company::new();
    company.nodes.start(false);
    company.nodes.train(3);
    // It still holds for some seconds when it is put there; on a busy machine, nodes may see it later than that.
    let mut rest = Duration::from_secs(6);
    loop {
        company.publish(&company.lists(SystemTime::now() - SKEW + rest));
        let log = company.nodes.home(NODES[0]).join("log");
        let read = || std::fs::read_to_string(&log).unwrap_or_default();
        let before = read().len();
        let is_late = company.nodes.node(NODES[0]).until("the list to end", |_| {
            let new = read().split_off(before);
            let [late, over] = ["it ended ", "so nobody is trusted"].map(|words| new.contains(words));
            (late || over).then_some(!over)
        });
        if !is_late {
            break;
        }
        rest *= 2;
    }
    for (node, ended) in company.nodes.ended() {
        // Whom the scheduler could still tell that the run has failed leaves in order.
        assert!(matches!(ended.code(), Some(1 | 2 | 5)) || node != NODES[0], "{node}: {ended:?}");
        assert!(ended.code().is_some() && !ended.stderr.contains("panicked"), "{node}: {ended:?}");
    }
    let steps = company.nodes.steps();
    let again = company.nodes.begin("worker/0", false).wait();
    assert_eq!(again.code(), Some(2), "{again:?}");
    assert!(again.stderr.contains("it ended "), "{again:?}");
    let refused = company.nodes.operate("status", &[]);
    assert!(refused.code() == Some(2) && refused.stderr.contains("it ended "), "{refused:?}");
    assert_eq!(company.nodes.steps(), steps, "nothing was trained since");
}

/// What is between SPIRE's server and a company's root is short-lived, too: each generation of nodes has another.
struct Spire {
    upstream: Ca,
    nodes: Nodes,
}

/// Under the names that `spire-agent api fetch x509 -write` has for the first identity.
const SVID: &str = "[security]\nca = \"bundle.0.pem\"\ncert = \"svid.0.pem\"\nkey = \"svid.0.key\"\n";

impl Spire {
    /// As the agent writes them: certificate, key, bundle, each by a rename of its own.
    fn write(&self, server: &Ca, node: &str, life: Duration) {
        let [key, cert] = ["key", "cert"].map(|name| self.nodes.at(name));
        server.certify(&Nodes::id(node), "P-256", life, &key, &cert);
        let read = |path| std::fs::read_to_string(path).unwrap();
        self.nodes.put(node, "svid.0.pem", &(read(cert) + &server.pem()), 0o644);
        self.nodes.put(node, "svid.0.key", &read(key), 0o600);
        self.nodes.put(node, "bundle.0.pem", &self.upstream.pem(), 0o644);
    }

    fn everybody() -> impl Iterator<Item = &'static str> {
        NODES.into_iter().chain(["operator/alice", "actor/audit"])
    }
}

/// SPIRE's files, replaced while nodes run: the run goes on beyond the end of every certificate that it began with, and of the CA
/// that issued them; the log of it can be checked, by who has the root alone.
#[test]
fn a_run_under_spires_files_outlives_its_first_certificates() {
    if !openssl::is_there() {
        return;
    }
    /// Much longer than a cluster takes to start.
    const FIRST: Duration = Duration::from_secs(45);
    let nodes = Nodes::new(PROGRAM, SVID);
    let upstream = Ca::root(&nodes.at("Upstream"));
    let domain = format!("spiffe://{TRUST_DOMAIN}");
    let [first, second] =
        ["Spire-1", "Spire-2"].map(|name| upstream.below(&nodes.at(name), Some(domain.as_str())));
    let mut spire = Spire { upstream, nodes };
    for node in Spire::everybody() {
        spire.write(&first, node, FIRST);
    }
    let ends = SystemTime::now() + FIRST;
    spire.nodes.sign_job(MANY);
    spire.nodes.start(false);
    spire.nodes.train(3);
    for node in Spire::everybody() {
        spire.write(&second, node, DAY);
    }
    for node in NODES {
        spire.nodes.logged(node, "the certificate has been renewed");
    }
    // Nothing is gained by many steps until then; connections live on.
    spire.nodes.operate("pause", &[]).succeeded().stdout.clear();
    let is_over = |_: &Path| (SystemTime::now() > ends + Duration::from_secs(3)).then_some(());
    spire.nodes.node(NODES[0]).until("the first certificates' end", is_over);
    spire.nodes.operate("resume", &[]).succeeded().stdout.clear();
    spire.nodes.train(10);
    let status = spire.nodes.status();
    assert_eq!((members(&status), &status["workers_lost"]), (NODES[1..].to_vec(), &0.into()), "{status}");
    spire.nodes.operate("stop", &[]).succeeded().stdout.clear();
    for (node, ended) in spire.nodes.ended() {
        assert_eq!(ended.code(), Some(0), "{node}: {ended:?}\n{}", spire.nodes.log(node));
    }
    let (run, end) = (spire.nodes.run_dir(), spire.nodes.end());
    audited(&spire.nodes, &run, &spire.upstream.certificate());
    let renewed = spire.nodes.testudo(&["audit", "show", text(&run), "--kind", "renewed"]).succeeded().stdout;
    // Every node that signs, and the key that signs the log.
    assert_eq!(renewed.lines().count(), NODES.len(), "{renewed}");
    let other = under_our_ca(end["steps"].as_u64().unwrap());
    assert_eq!(end["params_blake3"], other["params_blake3"], "{end} {other}");
    // The folder is an identity's to the doctor, as well.
    let home = spire.nodes.home("worker/0");
    let seen = spire.nodes.testudo(&["doctor", text(&home), "--json", "--verbose"]).json();
    let finds = |what: &str| {
        seen["findings"].as_array().unwrap().iter().any(|f| f["what"].as_str().unwrap().contains(what))
    };
    assert!(finds("worker/0, for ") && !finds("private key"), "{seen}");
}
