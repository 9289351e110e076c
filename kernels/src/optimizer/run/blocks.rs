//! Runs a pass over a slice: chunk by chunk, instruction by instruction.
//!
//! Invariants:
//! 1. A chunk's elements are [`V`] vectors, which the accumulator holds in registers from one instruction to the next.
//!    What else a chunk touches stays in the nearest cache meanwhile.
//! 2. Elementwise: what an element becomes depends on its own values and on scalars, never on its place in a chunk
//!    (`execute.rs`). The elements that do not fill a chunk are copied to a room where they do.

use super::Slice;
use super::ahead::Ahead;
use super::execute::{Table, execute};
use super::instruction::{Feed, Pass, SEATS, Seat};
use super::reduce::Accumulator;
use super::vectors::{Chunk, V};
use crate::aggregate::has_non_finite;
use crate::linear::tiles::{vectors, vectors_mut};
use crate::optimizer::language::MAX_STATES;
use crate::simd;
use pulp::Simd;
use std::cell::Cell;
use std::ops::Range;

/// Elements of the longest chunk.
pub(super) const LONGEST: usize = 256;
/// Elements of a cache line.
const LINE: usize = 16;
/// The fewest chunks of a slice whose first elements are worth a round of their own, so that the others' chunks begin where
/// lines do.
const MANY: usize = 16;

/// Room for what a pass needs beside the tensors.
#[derive(Clone, Debug)]
pub(super) struct Room {
    /// With [`LINE`] elements more, so that slots can begin where a cache line does; the first one is for the weights.
    slots: Vec<f32>,
    /// Elements that do not fill a chunk.
    weights: Vec<f32>,
    out: Vec<f32>,
    state: Vec<Vec<f32>>,
}

impl Room {
    pub(super) fn new(slots: usize, states: usize) -> Self {
        let chunk = vec![0.0; LONGEST];
        let slots = vec![0.0; (1 + slots) * LONGEST + LINE];
        Self { slots, weights: chunk.clone(), out: chunk.clone(), state: vec![chunk; states] }
    }
}

/// Runs `pass` over a slice of a tensor; `sums` are those of the pass's feeds. If it `looks` at new values, the answer is
/// where the chunk begins in which one is not finite, at the end of which it has stopped.
pub(super) fn run(
    pass: &mut Pass,
    rounded: &[f32],
    divisor: f32,
    slice: Slice<'_>,
    room: &mut Room,
    sums: &mut [Accumulator],
    looks: bool,
) -> Option<usize> {
    simd::dispatch(Run { pass, rounded, divisor, slice, room, sums, looks })
}

struct Run<'a> {
    pass: &'a mut Pass,
    rounded: &'a [f32],
    divisor: f32,
    slice: Slice<'a>,
    room: &'a mut Room,
    sums: &'a mut [Accumulator],
    looks: bool,
}

impl pulp::WithSimd for Run<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Option<usize> {
        let Self { pass, rounded, divisor, slice, room, sums, looks } = self;
        let Slice { weights, gradient_to_weights: out, state } = slice;
        const { assert!(S::F32_LANES * V <= LONGEST) };
        let chunk = S::F32_LANES * V;
        let line = room.slots.as_ptr().align_offset(4 * LINE).min(LINE);
        let slots = cells::<S>(&mut room.slots[line..]);
        let (weights_seat, slots) = slots.split_first()?;
        pass.prepare(rounded, divisor, |slot, value| {
            if let Some(slot) = slots.get(usize::from(slot)) {
                slot.set([simd.splat_f32s(value); V]);
            }
        });
        let pass = &*pass;
        let mut table: Table<'_, S> = [weights_seat; SEATS];
        for (seat, slot) in table[Seat::BEFORE_STATES + state.len()..].iter_mut().zip(slots) {
            *seat = slot;
        }
        let (ahead, tensors) = (Ahead::new(), state.len());
        for (part, in_room) in parts(out, chunk, pass.feeds.is_empty()) {
            let count = part.len();
            if in_room {
                room.weights[..count].copy_from_slice(&weights[part.clone()]);
                room.out[..count].copy_from_slice(&out[part.clone()]);
                for (room, state) in room.state.iter_mut().zip(&*state) {
                    room[..count].copy_from_slice(&state[part.clone()]);
                }
            }
            let found = {
                let mut states: [&[Cell<Chunk<S>>]; MAX_STATES] = [&[]; MAX_STATES];
                let (weights, out, elements, chunks) = match in_room {
                    true => {
                        states
                            .iter_mut()
                            .zip(&mut room.state)
                            .for_each(|(to, state)| *to = cells::<S>(state));
                        (&room.weights[..], &mut room.out[..], count, 1)
                    }
                    false => {
                        for (to, state) in states.iter_mut().zip(state.iter_mut()) {
                            *to = cells::<S>(&mut state[part.clone()]);
                        }
                        (&weights[part.clone()], &mut out[part.clone()], chunk, count / chunk)
                    }
                };
                let (weights, out) = (vectors::<S, V>(weights), cells::<S>(out));
                let states = &states[..tensors];
                let mut table = table;
                let mut found = None;
                for (at, (weights, out)) in weights.iter().zip(out).enumerate().take(chunks) {
                    if pass.reads_weights {
                        ahead.ask::<S>(weights);
                        weights_seat.set(*weights);
                    }
                    table[usize::from(Seat::OUT.0)] = out;
                    for (seat, state) in table[Seat::BEFORE_STATES..].iter_mut().zip(states) {
                        *seat = &state[at];
                    }
                    execute(simd, &pass.instructions, &table, ahead);
                    for (Feed { reduction, from, .. }, sum) in pass.feeds.iter().zip(sums.iter_mut()) {
                        let values = table[usize::from(from.0)].get();
                        sum.add(*reduction, &bytemuck::cast_slice(&values)[..elements]);
                    }
                    let is_not_finite = |tensor: &Cell<Chunk<S>>| {
                        has_non_finite(&bytemuck::cast_slice(&tensor.get())[..elements])
                    };
                    if looks && (is_not_finite(out) || states.iter().any(|state| is_not_finite(&state[at]))) {
                        found = Some(at * chunk);
                        break;
                    }
                }
                found
            };
            if in_room {
                out[part.clone()].copy_from_slice(&room.out[..count]);
                for (room, state) in room.state.iter().zip(&mut *state) {
                    state[part.clone()].copy_from_slice(&room[..count]);
                }
            }
            if let Some(found) = found {
                return Some(part.start + found);
            }
        }
        None
    }
}

/// Cuts a slice into what does not fill a cache line, whole chunks, and what is left; those that are run in the room say so. A sum's
/// lanes begin with the slice: then chunks do, too.
fn parts(out: &[f32], chunk: usize, aligned: bool) -> impl Iterator<Item = (Range<usize>, bool)> + use<> {
    let head = match aligned && out.len() >= MANY * chunk {
        true => out.as_ptr().align_offset(4 * LINE).min(LINE),
        false => 0,
    };
    let end = out.len() - (out.len() - head) % chunk;
    let parts = [(0..head, true), (head..end, false), (end..out.len(), true)];
    parts.into_iter().filter(|(part, _)| !part.is_empty())
}

/// A tensor's whole chunks.
#[inline(always)]
fn cells<S: Simd>(tensor: &mut [f32]) -> &[Cell<Chunk<S>>] {
    Cell::from_mut(vectors_mut::<S, V>(tensor)).as_slice_of_cells()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wherever a slice begins, its parts are the slice, in order, and chunks are whole and begin with a line.
    #[test]
    fn parts_are_the_slice() {
        let room = vec![0.0; 40 * LONGEST];
        for (start, length) in
            (0..=LINE).flat_map(|start| [0, 1, 255, 256, 4095, 4096, 9001].map(|length| (start, length)))
        {
            let slice = &room[start..start + length];
            for (chunk, aligned) in [(LONGEST, true), (LONGEST, false), (16, true)] {
                let mut end = 0;
                for (part, in_room) in parts(slice, chunk, aligned) {
                    assert_eq!(part.start, end);
                    end = part.end;
                    assert!(if in_room { part.len() < chunk.max(LINE) } else { part.len() % chunk == 0 });
                    let at = slice[part.start..].as_ptr().align_offset(4 * LINE);
                    assert!(in_room || at == 0 || !aligned || length < MANY * chunk, "{start} {length}");
                }
                assert_eq!(end, length);
            }
        }
    }
}
