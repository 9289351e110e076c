//! The receiving half of a stream: turns bytes, however they are split, into authenticated messages.

use super::credit::Charge;
use super::gate::Gate;
use super::keys::StreamKey;
use super::prelude::{MAC_LEN, PRELUDE_LEN, Prelude};
use crate::error::Fault;
use crate::message::Message;
use crate::payload::Payload;

/// Most payload memory given to a message before any of it arrived, in bytes. Messages up to this size take
/// one allocation; a liar costs us no more than this.
const FIRST_BUFFER: usize = 64 * 1024;
/// How much larger a payload buffer gets when it is full: memory stays within this multiple of what has
/// arrived, and a message of 1 MiB is moved twice instead of four times.
const GROWTH: usize = 4;

/// Payload bytes gathered before they are hashed: a whole subtree of BLAKE3, wide enough for every SIMD
/// width, small enough to be in the second-level cache still.
const HASH_STEP: usize = 64 * 1024;

/// Most header memory given to a message before any of it arrived, in bytes.
const FIRST_HEADER: usize = 512;

/// Opens the messages of one direction of one stream, in order.
#[derive(Debug)]
pub struct Opener {
    key: StreamKey,
    gate: Gate,
    sequence: u64,
    state: State,
    ready: Option<Message>,
    opened_len: u64,
}

#[derive(Debug)]
enum State {
    Prelude { bytes: [u8; PRELUDE_LEN], filled: usize },
    Header(Frame),
    Payload(Frame),
    Mac { frame: Frame, bytes: [u8; MAC_LEN], filled: usize },
    Refused(Fault),
}

const START: State = State::Prelude { bytes: [0; PRELUDE_LEN], filled: 0 };

impl Opener {
    /// An opener that expects sequence number 0.
    pub fn new(key: StreamKey, gate: Gate) -> Self {
        Opener { key, gate, sequence: 0, state: START, ready: None, opened_len: 0 }
    }

    /// Takes bytes as they arrive and says how many it used: all of them, unless a message became ready,
    /// which [`Opener::poll`] must take first.
    ///
    /// # Errors
    /// The peer's [`Fault`], for ever after the first.
    pub fn handle(&mut self, input: &[u8]) -> Result<usize, Fault> {
        let mut rest = input;
        while self.ready.is_none() && (!rest.is_empty() || self.may_advance()) {
            let state = std::mem::replace(&mut self.state, START);
            self.state = match self.step(state, &mut rest) {
                Ok(next) => next,
                Err(fault) => {
                    self.state = State::Refused(fault.clone());
                    return Err(fault);
                }
            };
        }
        Ok(input.len() - rest.len())
    }

    /// The message that became ready, if one did.
    pub fn poll(&mut self) -> Option<Message> {
        self.ready.take()
    }

    /// Bytes on the wire of the message that became ready last.
    pub fn opened_len(&self) -> u64 {
        self.opened_len
    }

    /// Called when the stream ended.
    ///
    /// # Errors
    /// [`Fault::Truncated`] when it ended inside a message.
    pub fn finish(&self) -> Result<(), Fault> {
        match &self.state {
            State::Prelude { filled: 0, .. } => Ok(()),
            State::Refused(fault) => Err(fault.clone()),
            _ => Err(Fault::Truncated),
        }
    }

    /// Bytes of payload memory held for the message that is arriving.
    pub fn buffered(&self) -> usize {
        match &self.state {
            State::Header(frame) | State::Payload(frame) | State::Mac { frame, .. } => {
                frame.words.capacity() * 4
            }
            State::Prelude { .. } | State::Refused(_) => 0,
        }
    }

    // Whether the current state can complete without further input: an empty header or payload.
    fn may_advance(&self) -> bool {
        match &self.state {
            State::Header(frame) => frame.header_missing() == 0,
            State::Payload(frame) => frame.payload_missing() == 0,
            State::Refused(_) => true,
            State::Prelude { .. } | State::Mac { .. } => false,
        }
    }

    fn step(&mut self, state: State, input: &mut &[u8]) -> Result<State, Fault> {
        match state {
            State::Prelude { mut bytes, mut filled } => {
                filled += fill(&mut bytes, filled, input);
                if filled < PRELUDE_LEN {
                    return Ok(State::Prelude { bytes, filled });
                }
                let prelude = Prelude::decode(&bytes)?;
                let charge = self.gate.admit(&prelude)?;
                Ok(State::Header(Frame::new(prelude, bytes, charge)?))
            }
            State::Header(mut frame) => {
                frame.header.extend_from_slice(take(input, frame.header_missing()));
                let done = frame.header_missing() == 0;
                Ok(if done { State::Payload(frame) } else { State::Header(frame) })
            }
            State::Payload(mut frame) => {
                frame.append(take(input, frame.payload_missing()));
                let done = frame.payload_missing() == 0;
                let mac = |frame| State::Mac { frame, bytes: [0; MAC_LEN], filled: 0 };
                Ok(if done { mac(frame) } else { State::Payload(frame) })
            }
            State::Mac { frame, mut bytes, mut filled } => {
                filled += fill(&mut bytes, filled, input);
                if filled < MAC_LEN {
                    return Ok(State::Mac { frame, bytes, filled });
                }
                self.ready = Some(self.open(frame, bytes)?);
                Ok(START)
            }
            State::Refused(fault) => Err(fault),
        }
    }

    fn open(&mut self, mut frame: Frame, mac: [u8; MAC_LEN]) -> Result<Message, Fault> {
        let payload_hash = frame.finish_hash();
        let expected = self.key.mac(self.sequence, &frame.prelude_bytes, &frame.header, &payload_hash);
        // `blake3::Hash` compares in constant time.
        if expected != blake3::Hash::from_bytes(mac) {
            return Err(Fault::Mac { sequence: self.sequence });
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.opened_len = frame.wire_len;
        let kind = frame.kind;
        let (envelope, body) = self.gate.read_header(kind, &frame.header)?;
        let payload = Payload::from_parts(frame.words, frame.filled, frame.charge);
        // Who has a clock says when.
        Ok(Message { kind, envelope, body, payload, payload_hash, began: None })
    }
}

/// A message that is arriving.
#[derive(Debug)]
struct Frame {
    kind: u8,
    wire_len: u64,
    header_len: usize,
    payload_len: usize,
    prelude_bytes: [u8; PRELUDE_LEN],
    charge: Option<Charge>,
    header: Vec<u8>,
    words: Vec<u32>,
    filled: usize,
    hashed: usize,
    hasher: Option<Box<blake3::Hasher>>,
}

impl Frame {
    fn new(prelude: Prelude, bytes: [u8; PRELUDE_LEN], charge: Option<Charge>) -> Result<Frame, Fault> {
        // The policy has limited both; on a 32-bit machine its limit may still not fit.
        let fits = |len: u64| usize::try_from(len).ok().filter(|len| *len <= isize::MAX as usize - 4);
        let (Some(header_len), Some(payload_len)) =
            (fits(prelude.header_len.into()), fits(prelude.payload_len))
        else {
            return Err(Fault::TooLargeHere { bytes: prelude.frame_len() });
        };
        Ok(Frame {
            kind: prelude.kind,
            wire_len: prelude.frame_len(),
            header_len,
            payload_len,
            prelude_bytes: bytes,
            charge,
            header: Vec::with_capacity(header_len.min(FIRST_HEADER)),
            words: Vec::with_capacity(payload_len.min(FIRST_BUFFER).div_ceil(4)),
            filled: 0,
            hashed: 0,
            hasher: None,
        })
    }

    fn header_missing(&self) -> usize {
        self.header_len - self.header.len()
    }

    fn payload_missing(&self) -> usize {
        self.payload_len - self.filled
    }

    fn append(&mut self, bytes: &[u8]) {
        let end = self.filled + bytes.len();
        if end.div_ceil(4) > self.words.capacity() {
            let goal =
                (self.words.capacity() * GROWTH).max(end.div_ceil(4)).min(self.payload_len.div_ceil(4));
            self.words.reserve_exact(goal - self.words.len());
        }
        let mut rest = bytes;
        // Bytes left of the word that the last chunk broke off in.
        let room = bytemuck::cast_slice_mut::<u32, u8>(&mut self.words).get_mut(self.filled..);
        for (slot, byte) in
            room.unwrap_or_default().iter_mut().zip(take(&mut rest, missing_of_word(self.filled)))
        {
            *slot = *byte;
        }
        // Whole words are copied into fresh memory, which would otherwise have to be cleared first.
        let (whole, tail) = rest.as_chunks::<4>();
        self.words.extend(whole.iter().map(|bytes| u32::from_ne_bytes(*bytes)));
        if !tail.is_empty() {
            let mut word = [0; 4];
            fill(&mut word, 0, &mut &*tail);
            self.words.push(u32::from_ne_bytes(word));
        }
        self.filled = end;
        let whole = (self.filled - self.hashed) / HASH_STEP * HASH_STEP;
        if whole > 0 {
            self.hash_to(self.hashed + whole);
        }
    }

    fn hash_to(&mut self, end: usize) {
        let bytes = bytemuck::cast_slice::<u32, u8>(&self.words).get(self.hashed..end).unwrap_or_default();
        self.hasher.get_or_insert_default().update(bytes);
        self.hashed = end;
    }

    fn finish_hash(&mut self) -> [u8; 32] {
        if self.payload_len == 0 {
            return super::seal::EMPTY_PAYLOAD_HASH;
        }
        self.hash_to(self.filled);
        self.hasher.get_or_insert_default().finalize().into()
    }
}

// How many bytes the last word of `filled` bytes lacks.
fn missing_of_word(filled: usize) -> usize {
    filled.next_multiple_of(4) - filled
}

// Copies from the front of `input` into `bytes[filled..]`; says how many.
fn fill(bytes: &mut [u8], filled: usize, input: &mut &[u8]) -> usize {
    let room = bytes.get_mut(filled..).unwrap_or_default();
    let part = take(input, room.len());
    for (slot, byte) in room.iter_mut().zip(part) {
        *slot = *byte;
    }
    part.len()
}

// Splits at most `most` bytes off the front of `input`.
fn take<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (front, rest) = input.split_at(most.min(input.len()));
    *input = rest;
    front
}
