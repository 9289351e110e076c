//! Identities of a cluster whose keys never travel, by the command line and with OpenSSL as the judge.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testudo_tests::process::{self, Ended};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// With the CA of the job `small`.
    fn new() -> Place {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        place.good("pki init ca --job small");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command; what names a file of this place stands after `@`.
    fn testudo(&self, line: &str) -> Ended {
        let arguments: Vec<String> = line
            .replace("pki init ca", "pki init @ca")
            .split(' ')
            .map(|word| match word.strip_prefix('@') {
                Some(name) => self.path(name).to_str().unwrap().to_owned(),
                None => word.to_owned(),
            })
            .collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        process::run(PROGRAM, &arguments, self.folder.path())
    }

    fn good(&self, line: &str) -> String {
        self.testudo(line).succeeded().stdout
    }

    fn bad(&self, line: &str, part: &str) {
        let ended = self.testudo(line);
        assert_eq!(ended.code(), Some(2), "{ended:#?}");
        assert!(ended.stderr.contains(part), "expected `{part}`: {ended:#?}");
    }

    fn openssl(&self, line: &str) -> Said {
        let output = Command::new("openssl")
            .args(line.split(' '))
            .current_dir(self.folder.path())
            .output()
            .expect("openssl is on the PATH; install it (Debian: apt-get install openssl)");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { good: output.status.success(), said: text(&output.stdout) + &text(&output.stderr) }
    }
}

struct Said {
    good: bool,
    said: String,
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Request, confirm, issue, install, show, renew: by commands alone, and nothing but public files is carried about.
#[test]
fn a_node_is_enrolled_and_renewed_by_request() {
    let place = Place::new();
    let told = place.good("pki request --job small --role worker/0 --out @node");
    let key = told.lines().find_map(|line| line.strip_prefix("key sha256 ")).unwrap().to_owned();
    place.bad("pki issue @node/request.pem --ca @ca --out @cert.pem", &key);
    place.bad("pki issue @node/request.pem --ca @ca --as worker/1 --out @cert.pem", "asks for worker/0");
    place.bad("pki issue @node/request.pem --ca @ca --as worker --out @cert.pem", "ROLE/INDEX");
    assert!(!place.path("cert.pem").exists() && !place.path("ca/issued.jsonl").exists());
    place.good("pki issue @node/request.pem --ca @ca --as worker/0 --out @cert.pem --valid-for 90m");
    place.bad("pki install @node --cert @cert.pem", "give it too");
    place.good("pki install @node --cert @cert.pem --ca @ca/ca.pem");
    let shown = place.good("pki show @node");
    assert!(shown.contains("job/small/worker/0") && shown.contains(&key), "{shown}");
    let issued = place.good("pki show @ca");
    assert!(issued.contains("worker/0") && issued.contains(" min left"), "{issued}");
    let record = read(&place.path("ca/issued.jsonl"));
    assert!(record.contains(&key) && record.lines().count() == 1, "{record}");

    place.good("pki renew @node");
    // The holder of the identity asks, so nobody has to confirm.
    place.good("pki issue @node/renewal.pem --ca @ca --out @next.pem");
    place.good("pki install @node --cert @next.pem");
    assert_eq!(read(&place.path("node/cert.pem")), read(&place.path("next.pem")));
    place.bad("pki install @node --cert @cert.pem", "not of the private key");
}

/// What OpenSSL makes is granted, and what is granted OpenSSL verifies.
#[test]
fn openssl_reads_our_requests_and_we_grant_its_own() {
    let place = Place::new();
    place.good("pki request --job small --role server/1 --out @node");
    let seen = place.openssl("req -in node/request.pem -verify -noout -text");
    assert!(seen.good && seen.said.contains("verify OK"), "{}", seen.said);
    assert!(seen.said.contains("URI:spiffe://testudo.local/job/small/server/1"), "{}", seen.said);
    let made = place.openssl(
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout theirs.key -out theirs.pem \
         -subj /CN=whatever -addext subjectAltName=URI:spiffe://testudo.local/job/small/worker/2",
    );
    assert!(made.good, "{}", made.said);
    place.good("pki issue @theirs.pem --ca @ca --as worker/2 --out @worker-2.pem");
    place.good("pki issue @node/request.pem --ca @ca --as server/1 --out @server-1.pem");
    for cert in ["worker-2.pem", "server-1.pem"] {
        let checked =
            place.openssl(&format!("verify -x509_strict -purpose sslclient -CAfile ca/ca.pem {cert}"));
        assert!(checked.good, "{}", checked.said);
    }
    let text = place.openssl("x509 -in worker-2.pem -noout -text").said;
    assert!(!text.contains("whatever") && text.contains("CA:FALSE"), "{text}");
}

/// `--json`, for scripts: the serial number that `issue` tells is the one that `revoke` and the list tell.
#[test]
fn scripts_read_what_was_issued_and_revoked() {
    let place = Place::new();
    let json = |line: &str| {
        let ended = place.testudo(line).succeeded();
        assert_eq!(ended.stdout.lines().count(), 1, "{ended:?}");
        serde_json::from_str::<serde_json::Value>(&ended.stdout).unwrap()
    };
    place.good("pki request --job small --role worker/0 --out @node");
    let issued = json("pki issue @node/request.pem --ca @ca --as worker/0 --out @cert.pem --json");
    assert_eq!(issued["id"], "spiffe://testudo.local/job/small/worker/0", "{issued}");
    assert!(issued["key_sha256"].as_str().is_some_and(|key| key.len() == 64), "{issued}");
    let shown = &json("pki show @cert.pem --json")[0];
    assert_eq!((&shown["serial"], &shown["not_after"]), (&issued["serial"], &issued["not_after"]), "{shown}");
    let revoked = json("pki revoke worker/0 --ca @ca --json");
    let serial = issued["serial"].as_str().unwrap().replace(':', "");
    assert_eq!(revoked["revoked"][0]["whose"], "worker/0", "{revoked}");
    assert_eq!(revoked["revoked"][0]["serial"].as_str().unwrap().replace(':', ""), serial, "{revoked}");
    assert_eq!((&revoked["number"], &revoked["revoked_in_all"]), (&"1".into(), &1.into()), "{revoked}");
    let next = json("pki crl --ca @ca --json");
    assert_eq!((&next["number"], &next["revoked"]), (&"2".into(), &serde_json::json!([])), "{next}");
    assert_eq!(json("pki show @ca/crl.pem --json")[0]["revoked"].as_array().unwrap().len(), 1);
}

/// The enrolment service, in a process of its own.
struct Service {
    process: std::process::Child,
    address: String,
}

impl Service {
    fn of(place: &Place) -> Service {
        // For the case that the tests run as root: the authority's folder is root's then.
        let fixed = ["pki", "serve", "--listen", "127.0.0.1:0", "--allow-root", "--ca"];
        let mut command = Command::new(PROGRAM);
        command.args(fixed).arg(place.path("ca")).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.strip_prefix("listening ").unwrap().trim().to_owned();
        Service { process, address }
    }

    fn end(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A token for the key that a node has made already is no use to whoever steals it.
#[test]
fn a_token_for_one_key_is_no_use_to_a_thief() {
    let place = Place::new();
    let told = place.good("pki request --job small --role worker/3 --out @node");
    let key = told.lines().find_map(|line| line.strip_prefix("key sha256 ")).unwrap();
    place.bad("pki token --ca @ca --role worker/3 --key-hash 12ab --out @short", "64");
    place.good(&format!("pki token --ca @ca --role worker/3 --key-hash {key} --out @token"));
    let service = Service::of(&place);
    let join = |who: &str| format!("pki join @token --address {} --out @{who}", service.address);
    place.bad(&join("thief"), "for another key");
    assert!(!place.path("thief/cert.pem").exists());
    place.good(&join("node"));
    let shown = place.good("pki show @node");
    assert!(shown.contains("job/small/worker/3") && shown.contains(key), "{shown}");
}

/// A key that is made at the authority has to travel: that is said, beside what is printed for scripts.
#[test]
fn a_key_that_has_to_travel_is_told_of() {
    let place = Place::new();
    for (role, travels) in [
        ("scheduler", true),
        ("server", true),
        ("worker", true),
        ("peer", true),
        ("actor", true),
        ("operator", false),
    ] {
        let ended =
            place.testudo(&format!("pki issue --ca @ca --role {role} --out @{role} --json")).succeeded();
        assert_eq!(ended.json()["out"], place.path(role).to_str().unwrap(), "{ended:?}");
        assert_eq!(ended.stdout.lines().count(), 1, "{ended:?}");
        let avoided = format!("testudo pki request --job small --role {role}/0");
        assert_eq!(ended.stderr.contains("has to travel"), travels, "{ended:?}");
        assert_eq!(ended.stderr.contains(&avoided), travels, "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), usize::from(travels), "{ended:?}");
    }
}

/// docs/audit.md: the key of the audit log is made where the scheduler runs, and stays there.
#[test]
fn the_audit_logs_key_is_made_where_it_is_used() {
    let place = Place::new();
    place.good("pki request --job small --role actor/audit --out @audit");
    place.good("pki issue @audit/request.pem --ca @ca --as actor/audit --out @audit.pem");
    place.good("pki install @audit --cert @audit.pem --ca @ca/ca.pem");
    assert!(place.good("pki show @audit").contains("job/small/actor/audit"));
}

/// A token goes to the node by a file, and everything else by the enrolment service.
#[test]
fn a_node_joins_by_a_token_once() {
    let place = Place::new();
    place.good("pki token --ca @ca --role worker/3 --valid-for 10m --out @token");
    let text = read(&place.path("token"));
    let mode = std::fs::metadata(place.path("token")).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode, text.lines().count()), (0o600, 1));
    let mut service = Service::of(&place);
    let address = service.address.clone();
    place.good(&format!("pki join @token --address {address} --out @node"));
    assert!(place.good("pki show @node").contains("job/small/worker/3"));
    place.bad(&format!("pki join @token --address {address} --out @thief"), "used by another key");
    place.bad(&format!("pki join @cert --address {address} --out @other"), "No such file");
    std::fs::set_permissions(place.path("token"), std::fs::Permissions::from_mode(0o644)).unwrap();
    place.bad(&format!("pki join @token --address {address} --out @other"), "chmod 600");
    service.end();
    // The key in the certificate is the one on the node, by a judge of its own.
    let of = |line: &str| place.openssl(line).said;
    let (certified, held) =
        (of("x509 -in node/cert.pem -noout -pubkey"), of("pkey -in node/key.pem -pubout"));
    assert_eq!(certified, held);
}
