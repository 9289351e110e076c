//! Credit over three links: QUIC, memory with the whole session, memory without MACs. Invariants are those of
//! the connection.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{BEAT, Settings, on_every_link, push};
use testudo_transport::{Class, CloseCode, CreditConfig, Error, Fault, Message, Outgoing};

/// Credit holds the sender back, and comes back when payloads are dropped.
#[tokio::test]
async fn a_receiver_that_keeps_payloads_holds_the_sender_back() {
    let settings = Settings { data: CreditConfig { bytes: 8 << 20, messages: 8 }, ..Settings::default() };
    on_every_link(settings, async |kind, pair| {
        let (mut tx, _rx) = pair.worker.open(Class::Data, 0).await.unwrap();
        let sending = tokio::spawn(async move {
            for request in 0..20 {
                tx.send(push(request, vec![0; 100])).await.unwrap();
            }
            tx.finish().await.unwrap();
        });
        let (_tx, mut rx) = pair.server.accept().await.unwrap();
        let mut held: Vec<Message> = Vec::new();
        for _ in 0..8 {
            held.push(rx.recv().await.unwrap().unwrap());
        }
        // Nothing more can come while eight are held: the control lane works, and the data lane does not.
        let (mut beat, _replies) = pair.worker.open(Class::Control, 0).await.unwrap();
        beat.send(Outgoing::new(BEAT, 0, Vec::new())).await.unwrap();
        let (_tx, mut beats) = pair.server.accept().await.unwrap();
        assert_eq!(beats.recv().await.unwrap().unwrap().kind, BEAT);
        assert_eq!(pair.worker.stats().messages_sent, 9, "{kind:?}: eight of data, one of control");
        assert!(!sending.is_finished());
        held.clear();
        for request in 8..20 {
            assert_eq!(rx.recv().await.unwrap().unwrap().envelope.request, request, "{kind:?}");
        }
        sending.await.unwrap();
    })
    .await;
}

/// The session's invariant 4 and the stall deadline: memory is bounded, and the peer is cut off.
#[tokio::test]
async fn a_peer_that_never_reads_bounds_the_sender_and_is_cut_off() {
    let data = CreditConfig { bytes: 8 << 20, messages: 1000 };
    let settings = Settings { data, stall: Duration::from_millis(300), ..Settings::default() };
    on_every_link(settings, async |kind, pair| {
        let (mut tx, _rx) = pair.worker.open(Class::Data, 0).await.unwrap();
        let mut sent = 0u64;
        let error = loop {
            match tx.send(push(sent, vec![0; 1 << 20])).await {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert!(sent <= 8, "{kind:?}: {sent} MiB sent to a peer that grants 8");
        assert!(matches!(error, Error::Peer { fault: Fault::Stalled { .. }, .. }), "{kind:?}: {error}");
        let told = pair.server.closed().await;
        let code = CloseCode::Stalled.number();
        assert!(
            matches!(&told, Error::Closed { by_peer: true, code: c, .. } if *c == code),
            "{kind:?}: {told}"
        );
    })
    .await;
}

#[tokio::test]
async fn data_that_nobody_reads_does_not_hold_up_control() {
    let settings = Settings { data: CreditConfig { bytes: 8 << 20, messages: 1000 }, ..Settings::default() };
    on_every_link(settings, async |kind, pair| {
        let mut blocked = Vec::new();
        for _ in 0..3 {
            let (mut tx, _rx) = pair.worker.open(Class::Data, 0).await.unwrap();
            blocked
                .push(tokio::spawn(async move { while tx.send(push(0, vec![0; 1 << 20])).await.is_ok() {} }));
        }
        let (mut tx, mut rx) = pair.worker.open(Class::Control, 0).await.unwrap();
        for request in 0..100 {
            tx.send(Outgoing::new(BEAT, request, Vec::new())).await.unwrap();
        }
        // Streams arrive in any order, some of them before their first message; those of data are left unread.
        let (found, mut find) = tokio::sync::mpsc::channel(1);
        let server = pair.server.clone();
        blocked.push(tokio::spawn(async move {
            while let Ok((reply, mut stream)) = server.accept().await {
                let found = found.clone();
                tokio::spawn(async move {
                    let Ok(Some(first)) = stream.recv().await else { return };
                    if first.kind == BEAT {
                        found.send((reply, stream)).await.unwrap();
                    } else {
                        let _unread = (reply, stream, first);
                        std::future::pending::<()>().await;
                    }
                });
            }
        }));
        let (mut reply, mut beats) = find.recv().await.unwrap();
        for request in 1..100 {
            assert_eq!(beats.recv().await.unwrap().unwrap().envelope.request, request, "{kind:?}");
        }
        reply.send(Outgoing::new(BEAT, 100, Vec::new())).await.unwrap();
        assert_eq!(rx.recv().await.unwrap().unwrap().envelope.request, 100);
        blocked.iter().for_each(tokio::task::JoinHandle::abort);
    })
    .await;
}

/// Invariant 4 of the connection.
#[tokio::test]
async fn a_dropped_receiver_gives_the_credit_back() {
    let settings = Settings { data: CreditConfig { bytes: 8 << 20, messages: 8 }, ..Settings::default() };
    on_every_link(settings, async |kind, pair| {
        let (mut tx, _rx) = pair.worker.open(Class::Data, 0).await.unwrap();
        tx.send(push(0, vec![1; 100])).await.unwrap();
        drop(pair.server.accept().await.unwrap());
        for request in 1..100 {
            tx.send(push(request, vec![1; 100_000])).await.unwrap();
        }
        tx.finish().await.unwrap();
        // And the connection is none the worse for it.
        let (mut tx, _rx) = pair.worker.open(Class::Data, 0).await.unwrap();
        tx.send(push(7, vec![])).await.unwrap();
        let (_tx, mut rx) = pair.server.accept().await.unwrap();
        assert_eq!(rx.recv().await.unwrap().unwrap().envelope.request, 7, "{kind:?}");
    })
    .await;
}
