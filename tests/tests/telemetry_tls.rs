//! What nodes tell a collector over TLS, judged by PyPI's `grpcio` and Python's own `ssl`; and that one which does not prove who it is
//! is told nothing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use testudo_tests::files::{self, text};
use testudo_tests::live::until;
use testudo_tests::process::{self, Signal};
use testudo_tests::receiver::{Receiver, told_in_time};
use testudo_transport::pki::{write_public, write_secret};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// No node counts as dead that is only slow.
const UNHURRIED: [&str; 2] = ["--set", "cluster.heartbeat_timeout_ms=60000"];

const NODES: [&str; 5] = ["scheduler/0", "server/0", "server/1", "worker/0", "worker/1"];

/// A folder with a CA, a certificate of the collector for 127.0.0.1, one of nodes, and another CA's.
struct Site(tempfile::TempDir);

impl Site {
    fn new() -> Site {
        let site = Site(tempfile::tempdir().unwrap());
        let ca = authority("collectors");
        site.public("ca.pem", &ca.pem());
        site.public("other-ca.pem", &authority("others").pem());
        for (name, host) in [("collector", "127.0.0.1"), ("node", "node")] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new([host.to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.use_authority_key_identifier_extension = true;
            site.public(&format!("{name}.pem"), &params.signed_by(&key, &ca).unwrap().pem());
            write_secret(&site.at(&format!("{name}.key")), key.serialize_pem().as_bytes()).unwrap();
        }
        site
    }

    fn public(&self, name: &str, pem: &str) {
        write_public(&self.at(name), pem.as_bytes()).unwrap();
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        text(&self.at(name)).to_owned()
    }

    fn receiver(&self) -> Option<Receiver> {
        Receiver::secured(&self.name("collector.pem"), &self.name("collector.key"), &self.name("ca.pem"))
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Stands between nodes and a collector, passes everything on both ways, and keeps what nodes say.
struct Relay {
    at: SocketAddr,
    /// By connection.
    said: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Relay {
    fn to(url: &str) -> Relay {
        let collector = url.strip_prefix("https://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay { at: listener.local_addr().unwrap(), said: Arc::default() };
        let said = Arc::clone(&relay.said);
        std::thread::spawn(move || {
            for node in listener.incoming().flatten() {
                let Ok(other) = TcpStream::connect(&collector) else { return };
                let (mut from, mut to) = (other.try_clone().unwrap(), node.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
                let said = Arc::clone(&said);
                std::thread::spawn(move || Relay::pass(node, other, &said));
            }
        });
        relay
    }

    fn pass(mut node: TcpStream, mut collector: TcpStream, said: &Mutex<Vec<Vec<u8>>>) {
        let connection = {
            let mut said = said.lock().unwrap();
            said.push(Vec::new());
            said.len() - 1
        };
        let mut some = [0; 4096];
        while let Ok(count) = node.read(&mut some) {
            said.lock().unwrap()[connection].extend(&some[..count]);
            if count == 0 || collector.write_all(&some[..count]).is_err() {
                break;
            }
        }
        let _ = collector.shutdown(Shutdown::Write);
    }

    fn url(&self, host: &str) -> String {
        format!("https://{host}:{}", self.at.port())
    }

    /// Each connection began with a TLS handshake, and nothing came of it: all that was said under its keys is an alert.
    fn heard_only_of_refusals(&self) {
        const HANDSHAKE: u8 = 22;
        const CLIENT_HELLO: u8 = 1;
        const APPLICATION: u8 = 23;
        const ALERT: usize = 2 + 1 + 16;
        let said = self.said.lock().unwrap();
        assert!(said.iter().any(|said| !said.is_empty()), "nobody came");
        for said in said.iter().filter(|said| !said.is_empty()) {
            assert!(matches!(said[..], [HANDSHAKE, 3, _, _, _, CLIENT_HELLO, ..]), "{said:?}");
            for (kind, length) in records(said) {
                // What is encrypted shows this type, whatever it is: a request, or the end of a handshake, is longer.
                assert!(kind != APPLICATION || length <= ALERT, "{length} bytes");
            }
        }
    }
}

/// Type and length of each TLS record (RFC 8446, section 5.1); whoever was ended may have cut the last.
fn records(mut said: &[u8]) -> Vec<(u8, usize)> {
    let mut all = Vec::new();
    while let [kind, 3, _, high, low, rest @ ..] = said {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        all.push((*kind, length));
        said = rest.get(length..).unwrap_or_default();
    }
    assert!(said.len() < 5, "this is no TLS: {said:?}");
    all
}

/// The arguments of a run in `dir`.
fn arguments(file: &Path, dir: &Path, set: &[String]) -> Vec<String> {
    let fixed = ["run", text(file), "--run-dir", text(dir), "--json", "--quiet"];
    fixed
        .into_iter()
        .chain(UNHURRIED)
        .map(str::to_owned)
        .chain(set.iter().flat_map(|set| ["--set".to_owned(), set.clone()]))
        .collect()
}

/// Runs twelve steps, every fourth traced; the hash of the parameters.
fn run(folder: &Path, name: &str, set: &[String], environment: &[(&str, String)]) -> String {
    let (file, dir) = (files::write_job(folder), folder.join(name));
    let fixed = ["training.max_steps=12", "telemetry.sample_every=4"].map(str::to_owned);
    let arguments = arguments(&file, &dir, &[&fixed[..], set].concat());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ended = process::start_in(PROGRAM, &arguments, &dir, environment).wait().succeeded();
    ended.json()["params_blake3"].as_str().unwrap().to_owned()
}

/// Every node has told all signals, over `protocol` alone.
fn judge(receiver: &Receiver, protocol: &str) {
    // What a collector is told is told when a process ends, and its end is waited for.
    receiver.catch_up();
    assert!(receiver.spans().iter().any(|span| span.text("name") == "run"));
    for signal in ["traces", "metrics", "logs"] {
        let all = receiver.of(signal);
        assert_eq!(all.keys().collect::<Vec<_>>(), NODES, "{signal}");
        for (node, (protocols, found)) in &all {
            assert_eq!(protocols.iter().collect::<Vec<_>>(), [protocol], "{node}'s {signal}");
            assert!(!found.is_empty(), "{node}'s {signal}");
        }
    }
}

/// The cluster file names the files; over gRPC. The collector takes nobody without a certificate of its CA.
#[test]
fn a_collector_is_told_over_tls_by_grpc() {
    let site = Site::new();
    let told = told_in_time(
        || site.receiver(),
        |receiver, folder| {
            let set = [
                format!("telemetry.endpoint={}", receiver.grpc),
                "telemetry.protocol=grpc".into(),
                format!("telemetry.certificate={}", site.name("ca.pem")),
                format!("telemetry.client_certificate={}", site.name("node.pem")),
                format!("telemetry.client_key={}", site.name("node.key")),
            ];
            run(folder, "told", &set, &[])
        },
    );
    let Some((receiver, told)) = told else { return };
    judge(&receiver, "grpc");
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(told, run(folder.path(), "untold", &[], &[]), "no bit depends on who is told");
}

/// The standard variables name them, one signal's own before the others'; over HTTP.
#[test]
fn a_collector_is_told_over_tls_by_http() {
    let site = Site::new();
    let told = told_in_time(
        || site.receiver(),
        |receiver, folder| {
            let environment = [
                ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http.clone()),
                ("OTEL_EXPORTER_OTLP_CERTIFICATE", site.name("other-ca.pem")),
                ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", site.name("ca.pem")),
                ("OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE", site.name("ca.pem")),
                ("OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE", site.name("ca.pem")),
                ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", site.name("node.pem")),
                ("OTEL_EXPORTER_OTLP_CLIENT_KEY", site.name("node.key")),
            ];
            run(folder, "told", &[], &environment)
        },
    );
    let Some((receiver, _)) = told else { return };
    judge(&receiver, "http");
}

/// Runs a job until its log says all of `said` of a collector that takes nothing, or something else of two signals, and until steps after
/// that: what it said else. An answer of the collector may take so many milliseconds: what fails is tried again for so long, and said then.
fn refusal(set: &[String], said: [&str; 2], milliseconds: &str) -> Result<(), Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let (file, dir) = (files::write_job(folder.path()), folder.path().join("run"));
    let arguments = arguments(&file, &dir, set);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let soon = [("OTEL_EXPORTER_OTLP_TIMEOUT", milliseconds.to_owned())];
    let started = process::start_in(PROGRAM, &arguments, &dir, &soon);
    let steps = || std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap_or_default().lines().count();
    let refused = until("the refusal in the log", || {
        let log = std::fs::read_to_string(dir.join("logs/scheduler-0.log")).ok()?;
        // A line that is being written has no end yet.
        let lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let refused: Vec<String> =
            lines.filter(|line| line.contains("takes no")).map(str::to_owned).collect();
        let is_said = refused.iter().any(|line| said.iter().all(|said| line.contains(said)));
        if is_said { Some(Ok(())) } else { (refused.len() > 1).then_some(Err(refused)) }
    });
    let then = steps();
    until("steps after it", || (steps() > then).then_some(()));
    started.signal(Signal::INT);
    let _ = started.wait().succeeded();
    refused
}

/// Another CA's certificate, another host's, and no certificate of the node's: training goes on, nothing is sent, and the log says what to do.
#[test]
fn a_collector_that_is_another_hears_nothing() {
    let site = Site::new();
    let Some(receiver) = site.receiver() else { return };
    let (grpc, http) = (Relay::to(&receiver.grpc), Relay::to(&receiver.http));
    let (here, another) = ("127.0.0.1", "localhost");
    // What is refused, in rustls's words, and what to do.
    let (issuer, host, alert) = ("UnknownIssuer", "not valid for name", "received fatal alert");
    let (named, url, shown) = ("telemetry.certificate", "the URL a host", "CLIENT_CERTIFICATE");
    for (name, endpoint, protocol, ca, shows, said) in [
        ("ca-grpc", grpc.url(here), "grpc", "other-ca.pem", true, [issuer, named]),
        ("ca-http", http.url(here), "http/protobuf", "other-ca.pem", true, [issuer, named]),
        ("host", http.url(another), "http/protobuf", "ca.pem", true, [host, url]),
        // Who is known has proved who it is: what it refuses, it may have been told already.
        ("nobody", receiver.http.clone(), "http/protobuf", "ca.pem", false, [alert, shown]),
    ] {
        let mut set = vec![
            format!("telemetry.endpoint={endpoint}"),
            format!("telemetry.protocol={protocol}"),
            format!("telemetry.certificate={}", site.name(ca)),
            "telemetry.metrics_interval_ms=100".into(),
        ];
        if shows {
            set.push(format!("telemetry.client_certificate={}", site.name("node.pem")));
            set.push(format!("telemetry.client_key={}", site.name("node.key")));
        }
        // Where a machine stands still for as long as an answer may take, what is said is that: then with more time. And whoever is
        // hung up on may notice that first, and the alert not at all.
        let mut found = Vec::new();
        let is_said = ["500", "10000", "20000"].iter().any(|milliseconds| {
            refusal(&set, said, milliseconds).map_err(|else_said| found.push(else_said)).is_ok()
        });
        assert!(is_said, "{name}: {found:?}");
        assert!(receiver.heard_nothing(), "{name}");
    }
    for relay in [grpc, http] {
        relay.heard_only_of_refusals();
    }
}

/// What cannot be read or used is said before anything is started.
#[test]
fn files_that_cannot_be_used_end_the_start() {
    let site = Site::new();
    let folder = tempfile::tempdir().unwrap();
    let (file, dir) = (files::write_job(folder.path()), folder.path().join("run"));
    let https = "telemetry.endpoint=https://127.0.0.1:9".to_owned();
    let (ca, key) = (site.name("ca.pem"), site.name("node.key"));
    for (set, expected) in [
        (vec!["telemetry.certificate=/no/such.pem".to_owned()], "/no/such.pem"),
        (vec![format!("telemetry.certificate={key}")], "no certificate"),
        (vec![format!("telemetry.client_key={key}"), format!("telemetry.certificate={ca}")], "go together"),
    ] {
        let arguments = arguments(&file, &dir, &[std::slice::from_ref(&https), &set[..]].concat());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ended = process::run(PROGRAM, &arguments, &dir);
        assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(expected), "{}", ended.stderr);
        assert!(!dir.exists(), "nothing is begun");
    }
}

/// Whoever sends telemetry over the network as it is, is told so: on the terminal, and in the log of each node.
#[test]
fn plain_text_to_another_machine_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let (file, dir) = (files::write_job(folder.path()), folder.path().join("run"));
    // A name that nobody has (RFC 6761).
    let endpoint = "telemetry.endpoint=http://collector.invalid:4318";
    let arguments =
        ["run", text(&file), "--run-dir", text(&dir), "--set", "training.max_steps=3", "--set", endpoint];
    let ended = process::start(PROGRAM, &[&arguments[..], &UNHURRIED].concat(), &dir).wait().succeeded();
    let said = "telemetry goes to collector.invalid in plain text";
    assert!(ended.stderr.contains(said), "{}", ended.stderr);
    for node in NODES {
        let log = dir.join("logs").join(format!("{}.log", node.replace('/', "-")));
        assert!(std::fs::read_to_string(log).unwrap().contains(said), "{node}");
    }
}
