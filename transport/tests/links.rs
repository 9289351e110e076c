//! One suite over three links: QUIC, memory with the whole session, memory without MACs. Invariants are
//! those of the connection.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::{ACK, BEAT, Kind, PUSH, Pair, Settings, on_every_link, pair, push};
use testudo_transport::{Class, CloseCode, Error, Fault, Misuse, Outgoing, Role};

#[tokio::test]
async fn a_request_and_its_reply_travel_on_one_stream() {
    on_every_link(Settings::default(), async |kind, pair| {
        let (mut tx, mut rx) = pair.worker.open(Class::Data, 0).await.unwrap();
        let payload: Vec<u8> = (0..300_001u32).map(|n| n.to_le_bytes()[0]).collect();
        let trace = Some([3; 25]);
        let request = Outgoing::new(PUSH, 7, vec![1, 2, 3]).with_payload(payload.clone());
        tx.send(request.with_traceparent(trace)).await.unwrap();

        let (mut reply_tx, mut request_rx) = pair.server.accept().await.unwrap();
        let push = request_rx.recv().await.unwrap().unwrap();
        assert_eq!((push.kind, push.envelope.request, push.body.as_slice()), (PUSH, 7, &[1, 2, 3][..]));
        assert_eq!((push.envelope.traceparent, push.envelope.from.part), (trace, None));
        assert_eq!(push.envelope.from.id, *pair.worker.local());
        assert_eq!(push.envelope.to.id, *pair.server.local());
        assert_eq!(push.payload.as_bytes(), payload, "{kind:?}");
        assert_eq!(push.payload_hash, *blake3::hash(&payload).as_bytes());
        reply_tx.send(Outgoing::new(ACK, 7, Vec::new())).await.unwrap();
        let reply = rx.recv().await.unwrap().unwrap();
        assert_eq!((reply.kind, reply.envelope.request, reply.payload.len()), (ACK, 7, 0));

        tx.finish().await.unwrap();
        assert!(request_rx.recv().await.unwrap().is_none(), "{kind:?}: a clean end");
        assert!(request_rx.recv().await.unwrap().is_none(), "{kind:?}: and it stays ended");
        tx.finish().await.unwrap();
        assert_eq!(
            tx.send(Outgoing::new(PUSH, 0, Vec::new())).await.unwrap_err(),
            misuse(&pair, Misuse::Finished)
        );
    })
    .await;
}

fn misuse(pair: &Pair, misuse: Misuse) -> Error {
    Error::Misuse { peer: pair.worker.peer().clone(), misuse }
}

#[tokio::test]
async fn each_end_knows_the_other_and_counts_the_same_bytes() {
    on_every_link(Settings::default(), async |kind, pair| {
        assert_eq!(pair.worker.peer(), pair.server.local());
        assert_eq!(pair.server.peer(), pair.worker.local());
        let (mut tx, _rx) = pair.worker.open(Class::Data, 0).await.unwrap();
        for request in 0..10 {
            tx.send(push(request, vec![1; 1000])).await.unwrap();
        }
        let (_tx, mut rx) = pair.server.accept().await.unwrap();
        for request in 0..10 {
            assert_eq!(rx.recv().await.unwrap().unwrap().envelope.request, request);
        }
        let (sent, received) = (pair.worker.stats(), pair.server.stats());
        assert_eq!((sent.messages_sent, received.messages_received), (10, 10), "{kind:?}");
        assert_eq!(sent.bytes_sent, received.bytes_received, "{kind:?}");
        assert!(sent.bytes_sent > 10 * 1048 && sent.bytes_sent < 10 * 1300);
    })
    .await;
}

#[tokio::test]
async fn messages_larger_than_any_buffer_arrive_whole_and_in_order() {
    on_every_link(Settings::default(), async |kind, pair| {
        let (mut tx, _rx) = pair.worker.open(Class::Data, 0).await.unwrap();
        let sending = tokio::spawn(async move {
            for request in 0..40u8 {
                let payload = vec![request; (1 << 20) + usize::from(request)];
                tx.send(push(request.into(), payload)).await.unwrap();
            }
            tx.finish().await.unwrap();
        });
        let (_tx, mut rx) = pair.server.accept().await.unwrap();
        let mut next = 0u8;
        while let Some(message) = rx.recv().await.unwrap() {
            assert_eq!(message.payload.len(), (1 << 20) + usize::from(next), "{kind:?}");
            assert!(message.payload.as_bytes().iter().all(|byte| *byte == next));
            next += 1;
        }
        assert_eq!(next, 40, "{kind:?}");
        sending.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_known_payload_hash_is_used_and_reported() {
    on_every_link(Settings::default(), async |_, pair| {
        let (mut tx, _rx) = pair.worker.open(Class::Data, 0).await.unwrap();
        let payload = Bytes::from(vec![9; 200_000]);
        let hash = Some(*blake3::hash(&payload).as_bytes());
        let message = Outgoing { payload_hash: hash, ..push(0, payload.clone()) };
        tx.send(message.clone()).await.unwrap();
        tx.send(message).await.unwrap();
        let (_tx, mut rx) = pair.server.accept().await.unwrap();
        for _ in 0..2 {
            let message = rx.recv().await.unwrap().unwrap();
            assert_eq!((Some(message.payload_hash), message.payload.as_bytes()), (hash, &payload[..]));
        }
    })
    .await;
}

#[tokio::test]
async fn a_wrong_payload_hash_is_the_senders_fault() {
    for kind in [Kind::Quic, Kind::Secured] {
        let pair = pair(kind, &Settings::default()).await;
        let (mut tx, _rx) = pair.worker.open(Class::Data, 0).await.unwrap();
        let message = Outgoing { payload_hash: Some([0; 32]), ..push(0, vec![1; 10]) };
        tx.send(message).await.unwrap();
        let (_tx, mut rx) = pair.server.accept().await.unwrap();
        let error = rx.recv().await.unwrap_err();
        assert!(matches!(error, Error::Peer { fault: Fault::Mac { sequence: 0 }, .. }), "{kind:?}: {error}");
        assert_eq!(pair.server.stats().refused, 1);
        // Invariant 1: everything on the connection now says the same, and the other end is told why.
        assert_eq!(pair.server.open(Class::Data, 0).await.unwrap_err(), error);
        assert_eq!(pair.server.closed().await, error);
        let told = pair.worker.closed().await;
        assert!(
            matches!(&told, Error::Closed { by_peer: true, code, .. } if *code == CloseCode::Mac.number()),
            "{kind:?}: {told}"
        );
    }
}

#[tokio::test]
async fn what_this_node_may_not_send_is_refused_here_and_the_connection_goes_on() {
    on_every_link(Settings::default(), async |kind, pair| {
        let (mut tx, _rx) = pair.worker.open(Class::Data, 0).await.unwrap();
        let too_long = vec![0; usize::try_from(common::PUSH_LIMIT).unwrap() + 1];
        for wrong in [
            Outgoing::new(ACK, 0, Vec::new()),
            Outgoing::new(77, 0, Vec::new()),
            Outgoing::new(0, 0, Vec::new()),
            Outgoing::new(PUSH, 0, vec![0; 2000]),
            push(0, too_long),
            push(0, vec![]).between(Some(Role::Worker), None),
            push(0, vec![]).between(None, Some(Role::Server)),
            Outgoing::new(BEAT, 0, Vec::new()),
        ] {
            let error = tx.send(wrong.clone()).await.unwrap_err();
            assert!(matches!(error, Error::Misuse { .. }), "{kind:?}: kind {}: {error}", wrong.kind);
        }
        tx.send(push(5, vec![1])).await.unwrap();
        let (_tx, mut rx) = pair.server.accept().await.unwrap();
        assert_eq!(rx.recv().await.unwrap().unwrap().envelope.request, 5, "{kind:?}");
    })
    .await;
}

/// Invariant 3 of the connection.
#[tokio::test]
async fn a_send_that_is_dropped_half_way_leaves_no_half_message() {
    on_every_link(Settings::default(), async |kind, pair| {
        let (mut tx, _rx) = pair.worker.open(Class::Data, 0).await.unwrap();
        let mut completed = 0;
        for request in 0..30 {
            let mut sending = Box::pin(tx.send(push(request, vec![request as u8; 3 << 20])));
            // Polled a few times and then dropped, wherever it is.
            for _ in 0..request % 4 {
                if std::future::poll_fn(|cx| std::task::Poll::Ready(sending.as_mut().poll(cx).is_ready()))
                    .await
                {
                    completed += 1;
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        drop(tx);
        let (_tx, mut rx) = pair.server.accept().await.unwrap();
        let (mut received, mut last) = (0, None);
        while let Some(message) = rx.recv().await.unwrap() {
            let request = message.envelope.request;
            assert!(last.is_none_or(|last| last < request), "{kind:?}: order");
            assert_eq!(message.payload.len(), 3 << 20);
            assert!(message.payload.as_bytes().iter().all(|byte| *byte == request as u8), "{kind:?}");
            (received, last) = (received + 1, Some(request));
        }
        assert!(received >= completed, "{kind:?}: {completed} completed, {received} received");
    })
    .await;
}

/// Invariant 2 of the connection.
#[tokio::test]
async fn dropping_every_handle_closes_the_connection() {
    on_every_link(Settings::default(), async |kind, pair| {
        let Pair { worker, server, endpoints } = pair;
        let streams = worker.open(Class::Data, 0).await.unwrap();
        let clone = worker.clone();
        drop((worker, clone));
        // The streams still hold it open.
        let (mut tx, rx) = streams;
        tx.send(push(1, vec![])).await.unwrap();
        let (_tx, mut server_rx) = server.accept().await.unwrap();
        assert_eq!(server_rx.recv().await.unwrap().unwrap().envelope.request, 1);
        drop((tx, rx));
        let closed = server.closed().await;
        assert!(matches!(closed, Error::Closed { by_peer: true, code: 0, .. }), "{kind:?}: {closed}");
        drop(endpoints);
    })
    .await;
}

#[tokio::test]
async fn a_close_tells_the_other_end_code_and_reason() {
    on_every_link(Settings::default(), async |kind, pair| {
        let (mut tx, mut rx) = pair.worker.open(Class::Data, 0).await.unwrap();
        pair.server.close(CloseCode::FIRST_APPLICATION + 7, "the job is done");
        let told = pair.worker.closed().await;
        let Error::Closed { by_peer: true, code: 263, reason, .. } = &told else {
            panic!("{kind:?}: {told}")
        };
        assert_eq!(&**reason, "the job is done");
        assert_eq!(rx.recv().await.unwrap_err(), told, "{kind:?}");
        assert_eq!(tx.send(push(0, vec![1])).await.unwrap_err(), told, "{kind:?}");
        let ours = pair.server.accept().await.unwrap_err();
        assert!(matches!(ours, Error::Closed { by_peer: false, code: 263, .. }), "{kind:?}: {ours}");
        pair.server.close(1, "a second close changes nothing");
        assert_eq!(pair.server.closed().await, ours);
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_ends_with_its_connection_is_no_clean_end() {
    on_every_link(Settings::default(), async |kind, pair| {
        let (mut tx, _rx) = pair.worker.open(Class::Data, 0).await.unwrap();
        tx.send(push(0, vec![])).await.unwrap();
        let (_tx, mut rx) = pair.server.accept().await.unwrap();
        rx.recv().await.unwrap().unwrap();
        pair.worker.close(300, "gone");
        drop(tx);
        assert!(rx.recv().await.is_err(), "{kind:?}");
    })
    .await;
}

#[tokio::test]
async fn many_streams_side_by_side_do_not_mix() {
    on_every_link(Settings::default(), async |kind, pair| {
        let server = pair.server.clone();
        let echo = tokio::spawn(async move {
            let mut tasks = Vec::new();
            for _ in 0..50 {
                let (mut tx, mut rx) = server.accept().await.unwrap();
                tasks.push(tokio::spawn(async move {
                    while let Some(message) = rx.recv().await.unwrap() {
                        let bytes = Bytes::copy_from_slice(message.payload.as_bytes());
                        let reply = Outgoing::new(ACK, message.envelope.request, Vec::new());
                        tx.send(reply.with_payload(bytes)).await.unwrap();
                    }
                    tx.finish().await.unwrap();
                }));
            }
            for task in tasks {
                task.await.unwrap();
            }
        });
        let mut clients = Vec::new();
        for stream in 0..50u64 {
            let worker = pair.worker.clone();
            clients.push(tokio::spawn(async move {
                let (mut tx, mut rx) = worker.open(Class::Data, 0).await.unwrap();
                for round in 0..5 {
                    let payload = vec![stream as u8; 1000 * round];
                    tx.send(push(stream, payload.clone())).await.unwrap();
                    let reply = rx.recv().await.unwrap().unwrap();
                    assert_eq!((reply.envelope.request, reply.payload.as_bytes()), (stream, &payload[..]));
                }
                tx.finish().await.unwrap();
            }));
        }
        for client in clients {
            client.await.unwrap();
        }
        echo.await.unwrap();
        assert_eq!(pair.server.stats().messages_received, 250, "{kind:?}");
    })
    .await;
}
