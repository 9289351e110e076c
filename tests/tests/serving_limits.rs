//! `testudo serve` from outside: what nobody, and what one client, can hold or have done for nothing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

use std::fs::File;
use std::io::{self, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use testudo_tests::https::{self, Answer, Client, Connection};
use testudo_tests::process;
use testudo_tests::served::{roomy, site, start};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");
const BODY: &str = "{\"inputs\":[[0,0]]}";

/// One more request on a connection that may have been kept.
fn again(
    connection: &mut Connection,
    client: &Client,
    method: &str,
    path: &str,
    body: &str,
) -> io::Result<Answer> {
    connection.write_all(format!("{}{body}", client.head(method, path, body.len(), "")).as_bytes())?;
    connection.flush()?;
    https::read(connection)
}

/// Connections that are kept are for clients: strangers who poll, however many, keep nobody out.
#[test]
fn strangers_who_ask_for_health_keep_no_connection() {
    let site = site();
    let mut options = roomy(&site);
    options.limits.connections = 2;
    let (running, alice) = start(&site, &options);
    let nobody = running.client();
    let mut polling: Vec<Connection> = Vec::new();
    for path in ["/healthz", "/readyz"] {
        let mut connection = nobody.connect();
        let answer = again(&mut connection, &nobody, "GET", path, "").unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.head.contains("connection: close"), "{answer:?}");
        assert!(
            again(&mut connection, &nobody, "GET", path, "").is_err(),
            "a second answer on one connection"
        );
        polling.push(connection);
    }
    assert_eq!(alice.predict(&[[0.0, 0.0]]).status, 200);
    // A client's connection is kept.
    let mut kept = alice.connect();
    for path in ["/healthz", "/readyz", "/healthz"] {
        assert_eq!(again(&mut kept, &alice, "GET", path, "").unwrap().status, 200);
    }
}

/// What one address holds without being known is a few connections; one that a client has asked on is not of them.
#[test]
fn an_address_has_few_connections_of_nobody() {
    let site = site();
    let mut options = roomy(&site);
    options.limits.connections_per_address = 1;
    options.limits.patience = 2 * process::DEADLINE;
    let (running, alice) = start(&site, &options);
    let nobody = running.client();
    let deadline = Instant::now() + process::DEADLINE;
    let in_time = || assert!(Instant::now() < deadline, "it never came to that");
    let mut kept = loop {
        let mut held = nobody.connect();
        while held.conn.is_handshaking() {
            held.conn.complete_io(&mut held.sock).unwrap();
        }
        // Which of two connections comes too late is seen by which of them is answered.
        if nobody.request("GET", "/healthz", "").is_err()
            && again(&mut held, &alice, "POST", "/v1/predict", BODY).is_ok_and(|answer| answer.status == 200)
        {
            break held;
        }
        in_time();
    };
    while nobody.request("GET", "/healthz", "").is_err() {
        in_time();
    }
    assert_eq!(again(&mut kept, &alice, "POST", "/v1/predict", BODY).unwrap().status, 200);
}

/// A client whose rows are used up is told so before its body is read, or has come at all.
#[test]
fn a_body_beyond_the_rate_is_not_read() {
    let site = site();
    let mut options = roomy(&site);
    (options.limits.rate, options.limits.rows) = (1, 64);
    options.limits.patience = Duration::from_secs(3);
    let (_running, alice) = start(&site, &options);
    // A row comes back each second, so a slow machine may need another try: all that has come back is taken again. Whoever stands still
    // for longer than the server waits has no answer.
    let refused = (0..10).any(|_| {
        for rows in [64, 32, 16, 8, 4, 2, 1] {
            let body = serde_json::json!({ "inputs": vec![[0.0, 0.0]; rows] }).to_string();
            let _ = alice.request("POST", "/v1/predict", &body);
        }
        let asked = alice.send(alice.head("POST", "/v1/predict", BODY.len(), "").as_bytes());
        asked.is_ok_and(|answer| {
            answer.status == 429 && answer.code() == "rate" && answer.head.contains("retry-after: 1")
        })
    });
    assert!(refused, "a body was waited for that could not have been answered");
}

/// The exit status says that nothing was listened on.
#[test]
fn an_address_in_use_is_something_given_that_is_wrong() {
    let site = site();
    let _ = site.token("alice");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let at = |name: &str| site.at(name).to_str().unwrap().to_owned();
    let (dir, cert, key, public, state) =
        (at("model"), at("cert.pem"), at("server.pem"), at("key.pub.pem"), at("state"));
    let serve = ["serve", &dir, "--listen", &address, "--cert", &cert, "--key", &key];
    let serve = [&serve[..], &["--public-key", &public, "--state", &state]].concat();
    let ended = process::run(PROGRAM, &serve, site.path());
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    assert!(ended.stderr.contains(&address), "{ended:#?}");
}

/// A token is told before the one that the client had is replaced: who cannot be told loses nothing.
#[test]
fn a_token_that_nobody_was_told_replaces_none() {
    let site = site();
    let (tokens, dir) = (site.at("model.serve/tokens"), site.at("model"));
    let new_token = || {
        let mut command = Command::new(PROGRAM);
        command.arg("serve").arg(&dir).args(["--new-token", "alice"]);
        command
    };
    let untold = || {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let ended = new_token().stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{said}");
        assert!(said.contains("left as it was"), "{said}");
    };
    untold();
    assert!(!tokens.exists());
    assert!(new_token().output().unwrap().status.success());
    let before = std::fs::read(&tokens).unwrap();
    untold();
    assert_eq!(std::fs::read(&tokens).unwrap(), before);
}
