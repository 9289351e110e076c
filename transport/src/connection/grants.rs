//! The task beside every connection: it sends our grants and renewed certificates, and takes in the peer's.

use std::sync::Arc;

use bytes::Bytes;

use super::receiver::Intake;
use super::renewal::{self, Ours};
use super::{Inner, Tx};
use crate::codec::{decode_canonical, encode};
use crate::error::{Error, Fault};
use crate::identity::Address;
use crate::memory::Frame;
use crate::message::Envelope;
use crate::session::{
    CREDIT_KIND, EMPTY_PAYLOAD_HASH, Grants, PRELUDE_LEN, Prelude, RENEWAL_KIND, Sealer, Stream,
};

/// Above every other stream: a grant that waits behind the data it would release is a deadlock.
const CREDIT_PRIORITY: i32 = i32::MAX;

/// Runs until the connection ends; `guard` is dropped then.
pub(super) async fn run(inner: Arc<Inner>, guard: impl Send) {
    let ended = tokio::select! {
        ended = give(&inner) => ended,
        ended = take(&inner) => ended,
    };
    if let Err(why) = ended {
        tracing::debug!(peer = %inner.peer, %why, "credit ended");
    }
    // One direction can end first, by a failure that the other has yet to report.
    inner.link.closed().await;
    drop(guard);
}

async fn give(inner: &Arc<Inner>) -> Result<(), Error> {
    let mut tx = inner.link.open_credit().await.map_err(|why| inner.lost(why))?;
    tx.set_priority(CREDIT_PRIORITY);
    let mut sealer = inner.sealer(tx.id());
    let mut certificates = Ours::of(inner);
    loop {
        while let Some(grants) = inner.inbound.take_due() {
            write(inner, &mut tx, sealer.as_mut(), CREDIT_KIND, encode(&grants)).await?;
        }
        tokio::select! {
            () = inner.inbound.due() => {}
            () = certificates.changed() => {
                if let Some(renewed) = certificates.message(inner) {
                    write(inner, &mut tx, sealer.as_mut(), RENEWAL_KIND, renewed).await?;
                }
            }
        }
    }
}

async fn write(
    inner: &Arc<Inner>,
    tx: &mut Tx,
    sealer: Option<&mut Sealer>,
    kind: u8,
    body: Vec<u8>,
) -> Result<(), Error> {
    let (from, to) = (Address::from(inner.local.clone()), Address::from(inner.peer.clone()));
    let envelope = Envelope { from, to, request: 0, traceparent: None };
    let header = encode(&envelope);
    let header_len = u32::try_from(header.len() + body.len()).unwrap_or(u32::MAX);
    let prelude = Prelude { kind, header_len, payload_len: 0 };
    let Some(sealer) = sealer else {
        let payload = Bytes::new();
        let frame = Frame { prelude, envelope, body, payload, payload_hash: EMPTY_PAYLOAD_HASH };
        let Tx::Memory(stream) = tx else { return Ok(()) };
        return stream.send_frame(frame).map_err(|why| inner.broken(why));
    };
    let prelude: [u8; PRELUDE_LEN] = prelude.encode();
    let header = [header, body].concat();
    let mac = sealer.seal(&prelude, &header, &EMPTY_PAYLOAD_HASH);
    let mut chunks = [Bytes::from([&prelude[..], &header, &mac].concat())];
    while !chunks.iter().all(Bytes::is_empty) {
        let written = tokio::time::timeout(inner.stall_timeout, tx.write(&mut chunks)).await;
        let written = written.map_err(|_| inner.stalled("took in no credit"))?;
        written.map_err(|why| inner.broken(why))?;
    }
    Ok(())
}

async fn take(inner: &Arc<Inner>) -> Result<(), Error> {
    let rx = inner.link.accept_credit().await.map_err(|why| inner.lost(why))?;
    let mut intake = Intake::new(Arc::clone(inner), rx, Stream::Credit);
    while let Some(message) = intake.next().await? {
        if message.kind == RENEWAL_KIND {
            renewal::theirs(inner, &message.body)?;
            continue;
        }
        let grants = decode_canonical::<Grants>(&message.body).map_err(|why| inner.fail(why.into()))?;
        if !inner.outbound.apply(grants) {
            return Err(inner.fail(Fault::CreditStream("took back credit that it had granted")));
        }
    }
    Err(inner.fail(Fault::CreditStream("ended it")))
}
