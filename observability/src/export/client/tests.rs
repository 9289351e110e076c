use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;

use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::trace::SpanExporter as _;

use super::super::Export;
use super::super::source::Files;
use super::*;

/// Far longer than what is tested takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Each connection to a listener of its own is given to `answer`, on a thread; its address, and a word of each connection.
fn listener(answer: impl Fn(TcpStream) + Clone + Send + 'static) -> (SocketAddr, mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let (sender, taken) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = sender.send(());
            let answer = answer.clone();
            std::thread::spawn(move || answer(stream));
        }
    });
    (at, taken)
}

/// What an export over gRPC to `url` comes to, and what the next does.
fn two_exports(url: &str, files: Files) -> [OTelSdkResult; 2] {
    let traces = Export {
        endpoint: Some(url.to_owned()),
        protocol: Some("grpc".into()),
        timeout: Some("200".into()),
        files,
        ..Export::default()
    };
    let environment = Environment { traces, ..Environment::default() };
    let (sender, ended) = mpsc::channel();
    let url = url.to_owned();
    std::thread::spawn(move || {
        let exporter = Clients::default()
            .exporter(
                &environment,
                (Signal::Traces, &url),
                (SpanExporter::builder().with_http(), |builder| builder.build()),
                (SpanExporter::builder().with_tonic(), |builder| builder.build()),
            )
            .unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        for _ in 0..2 {
            let _ = sender.send(runtime.block_on(exporter.inside(exporter.inner.export(Vec::new()))));
        }
    });
    [(); 2].map(|()| ended.recv_timeout(PATIENCE).expect("an export has no end"))
}

/// Invariant 1: a port that takes the connection and never shakes hands.
#[test]
fn a_collector_that_never_shakes_hands_holds_up_no_export() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, rcgen::generate_simple_self_signed(["c".to_owned()]).unwrap().cert.pem()).unwrap();
    let (at, taken) = listener(|mut stream| {
        // Until the other end has enough of it.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let files = Files { certificate: Some(ca), ..Files::default() };
    // An export whose time is over before this machine has come to connecting is no try: then with others.
    let each_is_a_try = (0..5).any(|_| {
        taken.try_iter().for_each(drop);
        for ended in two_exports(&format!("https://{at}"), files.clone()) {
            assert!(ended.is_err(), "nobody answered");
        }
        (0..2).all(|_| taken.recv_timeout(PATIENCE / 10).is_ok())
    });
    assert!(each_is_a_try, "the second does not connect anew");
}

/// Invariant 1: an answer that begins, and neither goes on nor ends (HTTP/2, RFC 9113).
#[test]
fn an_answer_without_an_end_holds_up_no_export() {
    const HEADERS: u8 = 1;
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // RFC 7541: `:status: 200`, and `content-type: application/grpc`.
    let fields = [&[0x88_u8, 0x5f, 16][..], &b"application/grpc"[..]].concat();
    let (at, _taken) = listener(move |mut stream| {
        let mut preface = [0; 24];
        if stream.read_exact(&mut preface).and_then(|()| stream.write_all(&SETTINGS)).is_err() {
            return;
        }
        loop {
            let mut frame = [0; 9];
            if stream.read_exact(&mut frame).is_err() {
                return;
            }
            let [high, middle, low, kind, _, id @ ..] = frame;
            let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
            if stream.read_exact(&mut payload).is_err() {
                return;
            }
            if kind == HEADERS {
                let begun = [&[0, 0, fields.len() as u8, HEADERS, 4][..], &id[..], &fields[..]].concat();
                let _ = stream.write_all(&begun);
            }
        }
    });
    for ended in two_exports(&format!("http://{at}"), Files::default()) {
        assert!(ended.is_err(), "nobody has answered");
    }
}

/// What a request failed of is said of that request alone.
#[test]
fn a_later_answer_is_not_laid_to_an_earlier_failure() {
    let (at, _taken) = listener(|mut stream| {
        let mut seen = Vec::new();
        while !seen.ends_with(b"numbers") {
            let mut some = [0; 1024];
            match stream.read(&mut some) {
                Ok(count) if count > 0 => seen.extend(&some[..count]),
                _ => return,
            }
        }
        let refused = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let _ = stream.write_all(refused);
    });
    // The system gives this port to nobody: one that was bound and left might be another test's by now.
    let nobody = SocketAddr::from(([127, 0, 0, 1], 9));
    let why = Why::default();
    let client = Http::new(None, PATIENCE, why.clone());
    let posted = Posted { why, ..Posted::alone(()) };
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let send = |to: SocketAddr| {
        let request = Request::post(format!("http://{to}/v1/metrics")).body("numbers".into()).unwrap();
        runtime.block_on(client.send_bytes(request)).map(|answer| answer.status().as_u16())
    };
    assert!(send(nobody).is_err());
    assert!(posted.why().is_some_and(|why| why.contains("refused")), "its own failure");
    assert!(send(nobody).is_err());
    assert_eq!(send(at).unwrap(), 401);
    assert_eq!(posted.why(), None, "it was answered");
}
