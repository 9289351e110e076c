//! Authenticated nodes that keep to no rule: each is cut off with the code that says why, and the others go
//! on.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/raw.rs"]
mod raw;

use std::time::Duration;

use common::{ACK, BEAT, Job, PUSH, id};
use raw::Hostile;
use testudo_transport::session::{Grant, Prelude};
use testudo_transport::{
    Cause, Class, CloseCode, Connection, CreditConfig, Endpoint, Error, Fault, Grants, Message, Outgoing,
    Refused, Role, TransportConfig, Who, encode,
};

/// What a fault is counted under, by the code that the peer is told.
fn cause(code: CloseCode) -> Cause {
    match code {
        CloseCode::Framing => Cause::Framing,
        CloseCode::Policy => Cause::Policy,
        CloseCode::Identity => Cause::Envelope,
        CloseCode::Credit => Cause::Credit,
        CloseCode::Mac => Cause::Mac,
        CloseCode::Stalled => Cause::Stalled,
        other => panic!("{other:?} is no fault's"),
    }
}

const PLENTY: Grant = Grant { bytes: 1 << 40, messages: 1 << 40 };

struct Scene {
    job: Job,
    endpoint: Endpoint,
    hostile: Hostile,
    connection: Connection,
}

fn patient(config: TransportConfig) -> TransportConfig {
    TransportConfig { handshake_timeout: Duration::from_secs(60), ..config }
}

async fn scene(config: TransportConfig) -> Scene {
    let config = patient(config);
    let job = Job::new();
    let endpoint = job.endpoint(Role::Server, 0, &config);
    let (hostile, connection) =
        tokio::join!(Hostile::dial(&job.ca, endpoint.local_addr()), endpoint.accept());
    Scene { job, endpoint, hostile, connection: connection.unwrap() }
}

impl Scene {
    /// The hostile node is cut off with `code`, for a reason with `words`; an honest one is served.
    async fn cut_off(self, code: CloseCode, words: &str) {
        let (number, reason) = self.hostile.verdict().await;
        assert_eq!(number, u64::from(code.number()), "{reason}");
        assert!(reason.contains(words), "{reason}");
        let error = self.connection.closed().await;
        assert!(matches!(error, Error::Peer { .. }), "{error}");
        assert_eq!(self.connection.stats().refused, 1);
        let refused = self.endpoint.refusals().drain();
        let who = Who::node(self.connection.peer());
        assert_eq!(
            refused,
            [Refused { cause: cause(code), who, count: 1 }],
            "by its cause and by who it was"
        );

        let honest = self.job.endpoint(Role::Worker, 1, &patient(TransportConfig::default()));
        let expect = id(Role::Server, 0);
        let (dialled, accepted) =
            tokio::join!(honest.connect(self.endpoint.local_addr(), &expect), self.endpoint.accept());
        let (mut tx, _rx) = dialled.unwrap().open(Class::Data, 0).await.unwrap();
        tx.send(Outgoing::new(PUSH, 3, Vec::new())).await.unwrap();
        let (_tx, mut rx) = accepted.unwrap().accept().await.unwrap();
        assert_eq!(rx.recv().await.unwrap().unwrap().envelope.request, 3);
    }

    /// Sends bytes on a new stream of messages, which the server then reads.
    async fn say(&self, bytes: &[u8], end: bool) -> Result<Option<Message>, Error> {
        let (mut tx, _rx) = self.hostile.quic.open_bi().await.unwrap();
        tx.write_all(bytes).await.unwrap();
        if end {
            tx.finish().unwrap();
        }
        let (_tx, mut rx) = self.connection.accept().await.unwrap();
        let first = rx.recv().await;
        drop(tx);
        first
    }

    async fn say_sealed(&self, kind: u8, body: &[u8]) -> Result<Option<Message>, Error> {
        let (mut tx, _rx) = self.hostile.quic.open_bi().await.unwrap();
        let bytes = self.hostile.frame(&mut self.hostile.sealer(tx.id()), kind, body, b"");
        tx.write_all(&bytes).await.unwrap();
        let (_tx, mut rx) = self.connection.accept().await.unwrap();
        rx.recv().await
    }
}

#[tokio::test]
async fn a_well_formed_message_from_a_hand_made_peer_is_taken() {
    let scene = scene(TransportConfig::default()).await;
    let message = scene.say_sealed(PUSH, b"body").await.unwrap().unwrap();
    assert_eq!((message.kind, message.body.as_slice()), (PUSH, &b"body"[..]));
}

#[tokio::test]
async fn more_bytes_than_granted() {
    let data_credit = CreditConfig { bytes: 8 << 20, messages: 1000 };
    let scene = scene(TransportConfig { data_credit, ..TransportConfig::default() }).await;
    let (mut tx, _rx) = scene.hostile.quic.open_bi().await.unwrap();
    let mut sealer = scene.hostile.sealer(tx.id());
    let frames: Vec<Vec<u8>> =
        (0..3).map(|_| scene.hostile.frame(&mut sealer, PUSH, b"", &vec![0; 3 << 20])).collect();
    let writing = tokio::spawn(async move {
        for frame in frames {
            // The third is cut off half-way.
            tx.write_all(&frame).await.ok();
        }
    });
    let (_tx, mut rx) = scene.connection.accept().await.unwrap();
    let held = [rx.recv().await.unwrap(), rx.recv().await.unwrap()];
    let error = rx.recv().await.unwrap_err();
    assert!(matches!(error, Error::Peer { fault: Fault::Credit(_), .. }), "{error}");
    drop(held);
    writing.await.unwrap();
    scene.cut_off(CloseCode::Credit, "overrun").await;
}

#[tokio::test]
async fn more_messages_than_granted() {
    let data_credit = CreditConfig { bytes: 8 << 20, messages: 4 };
    let scene = scene(TransportConfig { data_credit, ..TransportConfig::default() }).await;
    let (mut tx, _rx) = scene.hostile.quic.open_bi().await.unwrap();
    let mut sealer = scene.hostile.sealer(tx.id());
    for _ in 0..5 {
        let frame = scene.hostile.frame(&mut sealer, PUSH, b"", b"");
        tx.write_all(&frame).await.unwrap();
    }
    let (_tx, mut rx) = scene.connection.accept().await.unwrap();
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(rx.recv().await.unwrap().unwrap());
    }
    assert!(rx.recv().await.is_err());
    drop(held);
    scene.cut_off(CloseCode::Credit, "overrun").await;
}

#[tokio::test]
async fn kinds_that_are_not_its_own() {
    for kind in [ACK, 0, 99] {
        let scene = scene(TransportConfig::default()).await;
        scene.say_sealed(kind, b"").await.unwrap_err();
        scene.cut_off(CloseCode::Policy, "").await;
    }
}

#[tokio::test]
async fn announced_lengths_of_two_to_the_32_and_64() {
    for payload_len in [1 << 32, u64::MAX] {
        let scene = scene(TransportConfig::default()).await;
        let prelude = Prelude { kind: PUSH, header_len: 100, payload_len }.encode();
        scene.say(&prelude, false).await.unwrap_err();
        scene.cut_off(CloseCode::Policy, "bytes of payload").await;
    }
}

#[tokio::test]
async fn bytes_that_are_no_message() {
    let scene = scene(TransportConfig::default()).await;
    scene.say(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n", true).await.unwrap_err();
    scene.cut_off(CloseCode::Framing, "wire version").await;
}

#[tokio::test]
async fn a_stream_that_ends_inside_a_message() {
    let scene = scene(TransportConfig::default()).await;
    let prelude = Prelude { kind: PUSH, header_len: 100, payload_len: 100 }.encode();
    scene.say(&prelude, true).await.unwrap_err();
    scene.cut_off(CloseCode::Framing, "inside a message").await;
}

#[tokio::test]
async fn a_stream_that_is_reset() {
    let scene = scene(TransportConfig::default()).await;
    let (mut tx, _rx) = scene.hostile.quic.open_bi().await.unwrap();
    let frame = scene.hostile.frame(&mut scene.hostile.sealer(tx.id()), PUSH, b"", b"");
    tx.write_all(&frame).await.unwrap();
    let (_tx, mut rx) = scene.connection.accept().await.unwrap();
    rx.recv().await.unwrap().unwrap();
    tx.reset(9u32.into()).unwrap();
    assert!(matches!(rx.recv().await, Err(Error::Peer { fault: Fault::Abandoned(9), .. })));
    scene.cut_off(CloseCode::Framing, "abandoned").await;
}

#[tokio::test]
async fn a_message_replayed_on_its_stream_and_on_another() {
    for other_stream in [false, true] {
        let scene = scene(TransportConfig::default()).await;
        let (mut tx, _rx) = scene.hostile.quic.open_bi().await.unwrap();
        let frame = scene.hostile.frame(&mut scene.hostile.sealer(tx.id()), PUSH, b"", b"gradient");
        tx.write_all(&frame).await.unwrap();
        let (_tx, mut rx) = scene.connection.accept().await.unwrap();
        rx.recv().await.unwrap().unwrap();
        if other_stream {
            scene.say(&frame, false).await.unwrap_err();
        } else {
            tx.write_all(&frame).await.unwrap();
            rx.recv().await.unwrap_err();
        }
        scene.cut_off(CloseCode::Mac, "fails its MAC").await;
    }
}

/// The keys of one connection are worth nothing on the next.
#[tokio::test]
async fn a_message_replayed_on_another_connection() {
    let scene = scene(TransportConfig::default()).await;
    let (tx, _rx) = scene.hostile.quic.open_bi().await.unwrap();
    let recorded = scene.hostile.frame(&mut scene.hostile.sealer(tx.id()), PUSH, b"", b"gradient");
    let address = scene.endpoint.local_addr();
    let (again, connection) = tokio::join!(Hostile::dial(&scene.job.ca, address), scene.endpoint.accept());
    let scene = Scene { hostile: again, connection: connection.unwrap(), ..scene };
    scene.say(&recorded, false).await.unwrap_err();
    scene.cut_off(CloseCode::Mac, "fails its MAC").await;
}

#[tokio::test]
async fn a_message_in_anothers_name() {
    let mut scene = scene(TransportConfig::default()).await;
    scene.hostile.envelope.from = id(Role::Worker, 1).into();
    scene.say_sealed(PUSH, b"").await.unwrap_err();
    scene.cut_off(CloseCode::Identity, "worker/1").await;
}

#[tokio::test]
async fn two_classes_on_one_stream() {
    let scene = scene(TransportConfig::default()).await;
    let (mut tx, _rx) = scene.hostile.quic.open_bi().await.unwrap();
    let mut sealer = scene.hostile.sealer(tx.id());
    for kind in [BEAT, PUSH] {
        let frame = scene.hostile.frame(&mut sealer, kind, b"", b"");
        tx.write_all(&frame).await.unwrap();
    }
    let (_tx, mut rx) = scene.connection.accept().await.unwrap();
    rx.recv().await.unwrap().unwrap();
    rx.recv().await.unwrap_err();
    scene.cut_off(CloseCode::Policy, "control stream").await;
}

#[tokio::test]
async fn credit_that_is_taken_back() {
    let scene = scene(TransportConfig::default()).await;
    let less = Grants { control: PLENTY, data: Grant { bytes: 1, messages: 1 } };
    let _stream = scene.hostile.grant(&[Grants { control: PLENTY, data: PLENTY }, less]).await;
    scene.cut_off(CloseCode::Credit, "took back").await;
}

#[tokio::test]
async fn a_credit_stream_that_ends() {
    let scene = scene(TransportConfig::default()).await;
    let mut stream = scene.hostile.grant(&[Grants { control: PLENTY, data: PLENTY }]).await;
    stream.finish().unwrap();
    scene.cut_off(CloseCode::Credit, "ended it").await;
}

#[tokio::test]
async fn other_messages_on_the_credit_stream() {
    let scene = scene(TransportConfig::default()).await;
    let mut stream = scene.hostile.quic.open_uni().await.unwrap();
    let frame = scene.hostile.frame(&mut scene.hostile.sealer(stream.id()), PUSH, b"", b"");
    stream.write_all(&frame).await.unwrap();
    scene.cut_off(CloseCode::Credit, "not credit").await;
}

#[tokio::test]
async fn a_grant_with_trailing_bytes() {
    let scene = scene(TransportConfig::default()).await;
    let mut stream = scene.hostile.quic.open_uni().await.unwrap();
    let body = [encode(&Grants { control: PLENTY, data: PLENTY }), vec![0]].concat();
    let frame = scene.hostile.frame(&mut scene.hostile.sealer(stream.id()), 0, &body, b"");
    stream.write_all(&frame).await.unwrap();
    scene.cut_off(CloseCode::Framing, "canonical").await;
}

/// It promises endless credit and then reads nothing: our memory stays bounded, and it is cut off.
#[tokio::test]
async fn endless_credit_and_no_reading() {
    let data_credit = CreditConfig { bytes: 8 << 20, messages: 1000 };
    let stall_timeout = Duration::from_millis(300);
    let scene = scene(TransportConfig { data_credit, stall_timeout, ..TransportConfig::default() }).await;
    let _stream = scene.hostile.grant(&[Grants { control: PLENTY, data: PLENTY }]).await;
    // What it says after that is heard after that: from here on nobody waits for credit.
    let _said = first_of_three(&scene).await;
    // Its transport's window for one stream is quinn's default, 1.25 MB; ours to send is credit and a little.
    let (mut tx, _rx) = scene.connection.open(Class::Data, 0).await.unwrap();
    let mut sent = 0u64;
    let error = loop {
        let ack = Outgoing::new(ACK, sent, Vec::new()).with_payload(vec![0; 60 << 10]);
        match tx.send(ack).await {
            Ok(()) => sent += 60 << 10,
            Err(error) => break error,
        }
    };
    assert!(sent <= 16 << 20, "{sent} bytes taken for a peer that reads nothing");
    assert!(matches!(error, Error::Peer { fault: Fault::Stalled { .. }, .. }), "{error}");
    scene.cut_off(CloseCode::Stalled, "took nothing in").await;
}

#[tokio::test]
async fn no_credit_at_all() {
    let stall_timeout = Duration::from_millis(300);
    let scene = scene(TransportConfig { stall_timeout, ..TransportConfig::default() }).await;
    let (mut tx, _rx) = scene.connection.open(Class::Data, 0).await.unwrap();
    let error = tx.send(Outgoing::new(ACK, 0, Vec::new())).await.unwrap_err();
    assert!(matches!(error, Error::Peer { fault: Fault::Stalled { .. }, .. }), "{error}");
    scene.cut_off(CloseCode::Stalled, "credit").await;
}

/// Before it is admitted, a connection can open no stream of messages; and never more than `max_streams`.
#[tokio::test]
async fn streams_are_bounded() {
    let scene = scene(TransportConfig { max_streams: 3, ..TransportConfig::default() }).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(scene.hostile.quic.open_bi().await.unwrap());
    }
    let fourth = scene.hostile.quic.open_bi();
    tokio::pin!(fourth);
    let blocked =
        std::future::poll_fn(|cx| std::task::Poll::Ready(fourth.as_mut().poll(cx).is_pending())).await;
    assert!(blocked);
    let _credit = scene.hostile.quic.open_uni().await.unwrap();
    let second = scene.hostile.quic.open_uni();
    tokio::pin!(second);
    let blocked =
        std::future::poll_fn(|cx| std::task::Poll::Ready(second.as_mut().poll(cx).is_pending())).await;
    assert!(blocked);
    assert_eq!(scene.hostile.quic.max_datagram_size(), None, "datagrams are off");
}

/// Three good messages are there on a stream of their own, of which the first has been heard: both ends of it.
async fn first_of_three(
    scene: &Scene,
) -> ((quinn::SendStream, quinn::RecvStream), (testudo_transport::Sender, testudo_transport::Receiver)) {
    let (mut tx, rx) = scene.hostile.quic.open_bi().await.unwrap();
    let mut sealer = scene.hostile.sealer(tx.id());
    let good: Vec<u8> = (0..3).flat_map(|_| scene.hostile.frame(&mut sealer, PUSH, b"", b"")).collect();
    tx.write_all(&good).await.unwrap();
    let mut ours = scene.connection.accept().await.unwrap();
    assert!(ours.1.recv().await.unwrap().is_some(), "the first of three");
    ((tx, rx), ours)
}

/// Invariant 5 of `connection.rs`: what was good before the fault, on another stream and there already, is not heard.
#[tokio::test]
async fn nothing_of_a_peer_that_was_cut_off_is_heard() {
    let scene = scene(TransportConfig::default()).await;
    let (_theirs, (_tx, mut rx)) = first_of_three(&scene).await;
    assert!(scene.say(&[0xff; 64], false).await.is_err());
    let error = rx.recv().await.unwrap_err();
    assert!(matches!(error, Error::Peer { .. }), "{error}");
    assert!(rx.recv().await.unwrap().is_none(), "and that is its end");
}

/// The same for one that is cut off by what the application finds, or a list of revoked certificates.
#[tokio::test]
async fn nothing_of_a_peer_that_was_closed_for_cause_is_heard() {
    let scene = scene(TransportConfig::default()).await;
    let (_theirs, (_tx, mut rx)) = first_of_three(&scene).await;
    scene.connection.close(CloseCode::Untrusted.number(), "revoked");
    assert!(matches!(rx.recv().await, Err(Error::Closed { by_peer: false, .. })));
}
