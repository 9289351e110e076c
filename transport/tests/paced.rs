//! What comes faster than its kind needs is heard late, and loses nothing; so it is with streams.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::Job;
use testudo_transport::{
    Cause, Class, CloseCode, Endpoint, Error, MemoryOptions, Outgoing, Policy, Rate, Role, RoleSet, Rule,
    SpiffeId, TransportConfig, memory,
};

const BEAT: u8 = 7;
const RATE: Rate = Rate { per_second: 20, burst: 4 };

fn policy(rate: Option<Rate>) -> Arc<Policy> {
    let (from, to) = (RoleSet::of(&[Role::Worker]), RoleSet::of(&[Role::Server]));
    let (class, max_header, max_payload) = (Class::Control, 1024, 0);
    let rule = Rule { kind: BEAT, name: "beat", from, to, class, max_header, max_payload, rate };
    Arc::new(Policy::new(vec![rule]).unwrap())
}

/// Sends twelve beats at once; how long it took until the last was heard.
async fn hear_twelve(rate: Option<Rate>, secured: bool) -> Duration {
    let id = |role| SpiffeId::new("t", "j", role, "0").unwrap();
    let options = MemoryOptions { secured, ..MemoryOptions::default() };
    let (a, b) = memory::pair(&id(Role::Worker), &id(Role::Server), policy(rate), options);
    let (mut say, _answers) = a.open(Class::Control, 0).await.unwrap();
    let began = Instant::now();
    for nth in 0..12 {
        say.send(Outgoing::new(BEAT, nth, Vec::new())).await.unwrap();
    }
    let (_reply, mut hear) = b.accept().await.unwrap();
    for nth in 0..12 {
        // Waiting is given up and taken up again: nothing is lost by that.
        let message = loop {
            match tokio::time::timeout(Duration::from_millis(7), hear.recv()).await {
                Ok(message) => break message.unwrap().unwrap(),
                Err(_) => continue,
            }
        };
        assert_eq!(message.envelope.request, nth, "all are heard, in order");
    }
    began.elapsed()
}

#[tokio::test]
async fn messages_beyond_their_rate_are_heard_late_and_all_of_them() {
    for secured in [false, true] {
        // Four at once, then one every 50 ms.
        let took = hear_twelve(Some(RATE), secured).await;
        assert!(took >= Duration::from_millis(390), "{took:?}");
    }
}

#[tokio::test]
async fn kinds_without_a_rate_wait_for_nothing() {
    for secured in [false, true] {
        hear_twelve(None, secured).await;
    }
}

/// A peer that is cut off while a message of it waits to be heard: that message is not heard any more.
#[tokio::test]
async fn what_waits_of_a_peer_that_is_cut_off_is_not_heard() {
    for secured in [false, true] {
        let id = |role| SpiffeId::new("t", "j", role, "0").unwrap();
        let options = MemoryOptions { secured, ..MemoryOptions::default() };
        let rate = Some(Rate { per_second: 1, burst: 1 });
        let (a, b) = memory::pair(&id(Role::Worker), &id(Role::Server), policy(rate), options);
        let (mut say, _answers) = a.open(Class::Control, 0).await.unwrap();
        for nth in 0..64 {
            say.send(Outgoing::new(BEAT, nth, Vec::new())).await.unwrap();
        }
        let (_reply, mut hear) = b.accept().await.unwrap();
        // Until one waits: how many are heard before that is the machine's affair.
        while let Ok(heard) = tokio::time::timeout(Duration::from_millis(20), hear.recv()).await {
            heard.unwrap().unwrap();
        }
        b.blame(Cause::Flood, CloseCode::Credit, "too much");
        let heard = hear.recv().await;
        assert!(matches!(heard, Err(Error::Peer { .. })), "{heard:?}");
    }
}

/// A burst, a close, a new connection: no second burst. What was used up stays so here, so this does not depend on how long it takes.
#[tokio::test]
async fn who_closes_and_dials_again_has_no_new_burst() {
    let job = Job::new();
    let policy = policy(Some(Rate { per_second: 0, burst: 4 }));
    let config = TransportConfig { handshake_timeout: Duration::from_secs(60), ..TransportConfig::default() };
    let bind = |role| Endpoint::bind(&config, job.identity(role, 0), Arc::clone(&policy)).unwrap();
    let (server, worker) = (bind(Role::Server), bind(Role::Worker));
    let address = server.local_addr();
    let hear = async |beats: u64| {
        let (dialled, accepted) = tokio::join!(worker.connect(address, server.id()), server.accept());
        let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
        let (mut say, _answers) = dialled.open(Class::Control, 0).await.unwrap();
        let began = Instant::now();
        for nth in 0..beats {
            say.send(Outgoing::new(BEAT, nth, Vec::new())).await.unwrap();
        }
        let (_reply, mut heard) = accepted.accept().await.unwrap();
        for _ in 0..beats {
            heard.recv().await.unwrap().unwrap();
        }
        began.elapsed()
    };
    hear(4).await;
    let gone = async {
        while server.stats().open > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("the connection to end");
    let took = hear(1).await;
    assert!(took >= Duration::from_secs(1), "a fifth message was heard after {took:?}");
}
