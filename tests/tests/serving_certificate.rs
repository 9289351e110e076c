//! `testudo serve` from outside: the certificate that it shows, while its files change.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

use std::io::Write as _;

use rustls::pki_types::CertificateDer;
use testudo_tests::https::{self, Client};
use testudo_tests::served::{roomy, site, start};

/// What a new connection is shown, and what `/readyz` says on it.
fn shown(client: &Client) -> (CertificateDer<'static>, u16) {
    let mut connection = client.connect();
    connection.write_all(client.head("GET", "/readyz", 0, "").as_bytes()).unwrap();
    connection.flush().unwrap();
    let answer = https::read(&mut connection).unwrap();
    (connection.conn.peer_certificates().unwrap()[0].clone().into_owned(), answer.status)
}

/// Renewed files count from the next handshake on, without a restart; files that are none change nothing.
#[test]
fn a_renewed_certificate_is_shown_in_the_next_handshake() {
    let site = site();
    let first = site.renew();
    let (running, alice) = start(&site, &roomy(&site));
    assert_eq!(shown(&alice), (first.clone(), 200));
    let second = site.renew();
    assert_ne!(first, second);
    assert_eq!(shown(&alice), (second.clone(), 200));
    std::fs::write(site.at("cert.pem"), "").unwrap();
    assert_eq!(shown(&alice), (second, 200), "the one in use stays");
    let third = site.renew();
    assert_eq!(shown(&alice), (third, 200));
    assert_eq!(alice.predict(&[[0.0, 0.0]]).status, 200);
    running.stop();
}
