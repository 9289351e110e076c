//! Logs and traces as a process sees them: the log's form, its filter, and spans at a collector.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read as _, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use testudo_observability::export::Export;
use testudo_observability::setup::{FLUSH_DEADLINE, UNTAKEN};
use testudo_observability::{
    Attribute, Environment, Files, InitError, Instrument, Options, Settings, TraceContextError, TraceParent,
    build, current_traceparent, init, set_remote_parent,
};
use tracing::level_filters::LevelFilter;

/// A writer that a test can read back.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn quiet(role: &str) -> Options {
    Options::new(role).with_stderr(LevelFilter::OFF)
}

/// What a test allows its own machine beyond [`FLUSH_DEADLINE`].
const GRACE: Duration = Duration::from_secs(20);

/// An exporter that would wait far longer than a test allows, if the end waited for it.
fn patient() -> Export {
    Export { timeout: Some("600000".into()), ..Export::default() }
}

const TEST: Instrument = Instrument { name: "testudo.test", unit: "{test}", what: "A test." };

/// Reads one HTTP request and answers 200; returns its first line and its body.
fn serve_one(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let read = request(stream);
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
    read
}

/// Reads one HTTP request; returns its first line and its body.
fn request(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    let (head_end, length) = loop {
        let read = stream.read(&mut chunk).unwrap();
        assert!(read > 0, "the exporter closed early");
        bytes.extend_from_slice(&chunk[..read]);
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            break (end + 4, length.trim().parse::<usize>().unwrap());
        }
    };
    while bytes.len() < head_end + length {
        let read = stream.read(&mut chunk).unwrap();
        bytes.extend_from_slice(&chunk[..read]);
    }
    let line = String::from_utf8_lossy(&bytes).lines().next().unwrap().to_string();
    (line, bytes[head_end..].to_vec())
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn log_lines_have_time_level_spans_target_and_fields() {
    let log = Shared::default();
    let (dispatch, _guard) =
        build(quiet("worker/1").with_log_writer(log.clone()), &Environment::default()).unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        let span = tracing::info_span!("step", step = 7);
        let _entered = span.enter();
        tracing::warn!(server = "server/0", "slow pull");
        tracing::debug!("not at the default level");
    });
    let text = log.text();
    assert_eq!(text.lines().count(), 1, "{text}");
    let (time, rest) = text.split_once(' ').unwrap();
    // RFC 3339 in UTC: 2026-11-23T08:16:13.123456Z
    assert_eq!(time.len(), 27, "{time}");
    assert!(
        time.ends_with('Z') && &time[4..5] == "-" && &time[10..11] == "T" && &time[19..20] == ".",
        "{time}"
    );
    assert_eq!(rest.trim(), r#"WARN step{step=7}: setup: slow pull server="server/0""#);
}

#[test]
fn what_an_event_says_cannot_forge_a_terminal() {
    let log = Shared::default();
    let (dispatch, _guard) = build(quiet("x").with_log_writer(log.clone()), &Environment::default()).unwrap();
    tracing::dispatcher::with_default(&dispatch, || tracing::info!("peer says \u{1b}[2J{}", "\u{1b}]0;x"));
    assert!(!log.text().contains('\u{1b}'), "{:?}", log.text());
}

/// Invariant 4.
#[test]
fn what_an_event_says_cannot_forge_a_line() {
    let log = Shared::default();
    let (dispatch, _guard) = build(quiet("x").with_log_writer(log.clone()), &Environment::default()).unwrap();
    let why = "no\nWARN forged\r\n";
    tracing::dispatcher::with_default(&dispatch, || {
        let span = tracing::info_span!("step", why);
        span.in_scope(|| tracing::info!(%why, "it says {why}\u{2028}"));
    });
    let text = log.text();
    assert_eq!((text.lines().count(), text.contains(['\r', '\u{2028}'])), (1, false), "{text}");
    assert!(text.contains("no\\nWARN forged") && text.ends_with('\n'), "{text}");
}

#[test]
fn filter_comes_from_the_environment_and_is_checked() {
    let log = Shared::default();
    let environment = Environment { log_filter: Some("warn,setup=trace".into()), ..Environment::default() };
    let (dispatch, _guard) = build(quiet("x").with_log_writer(log.clone()), &environment).unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        tracing::trace!("ours");
        tracing::info!(target: "elsewhere", "theirs");
    });
    assert!(log.text().contains("ours") && !log.text().contains("theirs"), "{}", log.text());

    let environment = Environment { log_filter: Some("info,=,x=loud".into()), ..Environment::default() };
    let error = build(quiet("x"), &environment).unwrap_err();
    assert!(matches!(error, InitError::Filter { .. }));
    assert!(error.to_string().contains("TESTUDO_LOG"), "{error}");
}

#[test]
fn the_log_file_is_private_and_appended_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("worker-1.log");
    for round in 0..2 {
        let (dispatch, _guard) =
            build(quiet("worker/1").with_log_file(&path), &Environment::default()).unwrap();
        tracing::dispatcher::with_default(&dispatch, || tracing::info!(round, "started"));
    }
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("round=0") && text.contains("round=1"), "{text}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let missing = folder.path().join("no/such/folder.log");
    let error = build(quiet("x").with_log_file(&missing), &Environment::default()).unwrap_err();
    assert!(error.to_string().contains("folder.log"), "{error}");
}

#[test]
fn spans_reach_the_collector_when_the_guard_drops() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, requests) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            sender.send(serve_one(&mut stream)).unwrap();
        }
    });
    let environment = Environment { endpoint: Some(endpoint), ..Environment::default() };
    let (dispatch, guard) = build(quiet("worker/1"), &environment).unwrap();
    let parent = TraceParent::from_parts([0xab; 16], [0xcd; 8], 1).unwrap();
    let sent = tracing::dispatcher::with_default(&dispatch, || {
        let span = tracing::debug_span!(target: "testudo_actors::worker", "push_slice", slice = 3);
        set_remote_parent(&span, parent.to_bytes()).unwrap();
        tracing::info_span!(target: "hyper::client", "the_exporters_own").in_scope(|| {});
        span.in_scope(|| current_traceparent().unwrap())
    });
    let sent = TraceParent::from_bytes(sent).unwrap();
    assert_eq!(sent.trace_id(), [0xab; 16], "the trace goes on across processes");
    assert_ne!(sent.parent_id(), [0xcd; 8], "the span is its own");
    assert!(sent.is_sampled());
    drop(dispatch);
    drop(guard);
    // The process's own metrics go to the same collector, at the same time: either may be the first.
    let asked = || requests.recv_timeout(Duration::from_secs(60)).unwrap();
    let (_, body) =
        std::iter::repeat_with(asked).find(|(line, _)| line == "POST /v1/traces HTTP/1.1").unwrap();
    for expected in
        [&b"push_slice"[..], b"worker/1", b"testudo", &[0xab; 16], &[0xcd; 8], &sent.parent_id(), b"slice"]
    {
        assert!(contains(&body, expected), "{expected:?} is missing");
    }
    assert!(!contains(&body, b"the_exporters_own"), "invariant 5 of setup");
}

/// What is handed over is exported when the guard drops, under its name, and nothing else is.
#[test]
fn metrics_reach_the_collector_when_the_guard_drops() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/own/path", listener.local_addr().unwrap());
    let (sender, requests) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        sender.send(serve_one(&mut stream)).unwrap();
    });
    let metrics = Export { endpoint: Some(endpoint), ..Export::default() };
    let environment = Environment { metrics, ..Environment::default() };
    let log = Shared::default();
    let (dispatch, guard) = build(quiet("worker/1").with_log_writer(log.clone()), &environment).unwrap();
    const WAY: Attribute<bool> = Attribute::new("way", &[false, true], |way| if way { "up" } else { "down" });
    guard.meter().counter_by(&TEST, WAY, || [(true, 7), (false, 8)]);
    drop(dispatch);
    drop(guard);
    let (line, body) = requests.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(line, "POST /own/path HTTP/1.1");
    for expected in ["testudo.test", "{test}", "way", "up", "down", "worker/1", "testudo.log.left_out"] {
        assert!(contains(&body, expected.as_bytes()), "{expected} is missing");
    }
    // A machine that stood still may say that the end came first.
    assert!(log.text().lines().all(|line| line.ends_with(UNTAKEN)), "nothing went wrong: {}", log.text());
}

/// Invariant 1 of `setup`.
#[test]
fn a_collector_that_never_answers_does_not_hold_up_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, rcgen::generate_simple_self_signed(["c".to_owned()]).unwrap().cert.pem()).unwrap();
    let files = Files { certificate: Some(ca), ..Files::default() };
    // Over TLS it never shakes hands.
    let ways = [("http", "http/protobuf"), ("https", "http/protobuf"), ("https", "grpc")];
    std::thread::scope(|scope| {
        for (scheme, protocol) in ways {
            let protocol = Some(protocol.to_owned());
            let settings = Settings { protocol, files: files.clone(), ..Settings::default() };
            scope.spawn(move || never_answered(scheme, settings));
        }
    });
}

fn never_answered(scheme: &str, settings: Settings) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("{scheme}://{}", listener.local_addr().unwrap());
    let (sender, accepted) = mpsc::channel();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for connection in listener.incoming() {
            held.push(connection.unwrap());
            sender.send(()).unwrap();
        }
    });
    let (traces, metrics, endpoint) = (patient(), patient(), Some(endpoint));
    let environment = Environment { endpoint, traces, metrics, settings, ..Environment::default() };
    let log = Shared::default();
    let (dispatch, guard) = build(quiet("worker/1").with_log_writer(log.clone()), &environment).unwrap();
    guard.meter().level(&TEST, || Some(1));
    tracing::dispatcher::with_default(&dispatch, || {
        tracing::info_span!(target: "testudo", "step").in_scope(|| {});
    });
    drop(dispatch);
    let before = Instant::now();
    drop(guard);
    let took = before.elapsed();
    for _signal in ["spans", "metrics"] {
        accepted.recv_timeout(Duration::from_secs(60)).expect("the exporter did connect");
    }
    assert!(took < FLUSH_DEADLINE + GRACE, "{took:?}");
    let text = log.text();
    assert!(text.lines().last().is_some_and(|line| line.ends_with(UNTAKEN)), "and that is said: {text}");
}

/// Invariant 1 of `setup`: nor one that is busy, and asks for patience.
#[test]
fn a_collector_that_refuses_does_not_hold_up_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, asked) = mpsc::channel();
    std::thread::spawn(move || {
        let busy =
            b"HTTP/1.1 503 Busy\r\nretry-after: 3600\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        for mut stream in listener.incoming().flatten() {
            let asked = request(&mut stream);
            stream.write_all(busy).unwrap();
            sender.send(asked.0).unwrap();
        }
    });
    let environment = Environment { endpoint: Some(endpoint), metrics: patient(), ..Environment::default() };
    let (_, guard) = build(quiet("worker/1"), &environment).unwrap();
    guard.meter().level(&TEST, || Some(1));
    let before = Instant::now();
    drop(guard);
    let took = before.elapsed();
    assert_eq!(asked.recv_timeout(Duration::from_secs(60)).unwrap(), "POST /v1/metrics HTTP/1.1");
    assert!(took < FLUSH_DEADLINE + GRACE, "{took:?}");
}

/// Without a collector trace ids still travel, marked as not sampled; switched off, nothing does.
#[test]
fn trace_context_without_a_collector() {
    let (dispatch, _guard) = build(quiet("worker/0"), &Environment::default()).unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        assert_eq!(current_traceparent(), None, "outside any span");
        let outer = tracing::info_span!(target: "testudo_actors", "step");
        let (outer_id, inner_id) = outer.in_scope(|| {
            let outer_id = TraceParent::from_bytes(current_traceparent().unwrap()).unwrap();
            let inner = tracing::info_span!(target: "testudo_actors", "push");
            let inner_id =
                inner.in_scope(|| TraceParent::from_bytes(current_traceparent().unwrap()).unwrap());
            (outer_id, inner_id)
        });
        assert_eq!(outer_id.trace_id(), inner_id.trace_id());
        assert!(!outer_id.is_sampled());
        let late = set_remote_parent(&outer, inner_id.to_bytes());
        assert_eq!(late, Err(TraceContextError::SpanStarted));

        let followed = tracing::info_span!(target: "testudo_actors", "pull");
        let parent = TraceParent::from_parts([1; 16], [2; 8], 1).unwrap();
        set_remote_parent(&followed, parent.to_bytes()).unwrap();
        let context = followed.in_scope(|| TraceParent::from_bytes(current_traceparent().unwrap()).unwrap());
        assert_eq!(context.trace_id(), [1; 16]);
    });

    let off = Environment { sdk_disabled: Some("true".into()), ..Environment::default() };
    let (dispatch, _guard) = build(quiet("worker/0"), &off).unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        let span = tracing::info_span!(target: "testudo_actors", "step");
        span.in_scope(|| assert_eq!(current_traceparent(), None));
    });
}

/// The only test of this binary that touches the process's subscriber.
#[test]
fn init_is_for_once() {
    let log = Shared::default();
    let _guard = init(quiet("scheduler/0").with_log_writer(log.clone())).unwrap();
    tracing::info!("hello");
    assert!(log.text().contains("hello"));
    assert!(matches!(init(quiet("scheduler/0")), Err(InitError::AlreadySet)));
}

/// However often a line is made, the log stays small, says what it left out, and other lines come through.
#[test]
fn a_flooded_log_stays_small_and_says_what_it_left_out() {
    let shared = Shared::default();
    let (dispatch, guard) =
        build(quiet("worker/1").with_log_writer(shared.clone()), &Environment::default()).unwrap();
    const FLOOD: u64 = 100_000;
    tracing::dispatcher::with_default(&dispatch, || {
        for nth in 0..FLOOD {
            tracing::warn!(nth, "what a peer provokes");
        }
        tracing::info!("what somebody needs to read");
    });
    drop(guard);
    let text = shared.text();
    let written = text.matches("what a peer provokes").count() as u64;
    let told: u64 = text
        .lines()
        .filter_map(|line| line.split_once("left_out=").filter(|_| line.contains("lines were left out")))
        .map(|(_, count)| count.parse::<u64>().unwrap())
        .sum();
    assert_eq!(written + told, FLOOD);
    assert!(written < 10_000, "{written} lines");
    assert!(text.contains("what somebody needs to read"));
}
