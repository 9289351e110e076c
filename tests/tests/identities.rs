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

/// A token goes to the node by a file, and everything else by the enrolment service.
#[test]
fn a_node_joins_by_a_token_once() {
    let place = Place::new();
    place.good("pki token --ca @ca --role worker/3 --valid-for 10m --out @token");
    let text = read(&place.path("token"));
    let mode = std::fs::metadata(place.path("token")).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode, text.lines().count()), (0o600, 1));
    let arguments = ["pki", "serve", "--ca", place.path("ca").to_str().unwrap(), "--listen", "127.0.0.1:0"]
        .map(str::to_owned);
    let mut service =
        Command::new(PROGRAM).args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(service.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.strip_prefix("listening ").unwrap().trim().to_owned();
    place.good(&format!("pki join @token --address {address} --out @node"));
    assert!(place.good("pki show @node").contains("job/small/worker/3"));
    place.bad(&format!("pki join @token --address {address} --out @thief"), "used by another key");
    place.bad(&format!("pki join @cert --address {address} --out @other"), "No such file");
    std::fs::set_permissions(place.path("token"), std::fs::Permissions::from_mode(0o644)).unwrap();
    place.bad(&format!("pki join @token --address {address} --out @other"), "chmod 600");
    service.kill().unwrap();
    service.wait().unwrap();
    // The key in the certificate is the one on the node, by a judge of its own.
    let of = |line: &str| place.openssl(line).said;
    let (certified, held) =
        (of("x509 -in node/cert.pem -noout -pubkey"), of("pkey -in node/key.pem -pubout"));
    assert_eq!(certified, held);
}
