//! The sieve as a program for the kernel (classic BPF), which drops in the sender's own time what would be dropped here.
//!
//! It sees a datagram from its UDP header on, and the network's header at [`NETWORK`]. Registers and instructions: the
//! kernel's `Documentation/networking/filter.rst`. A load beyond the datagram's end drops it.

use std::collections::HashMap;

use ipnet::IpNet;

use super::cid::{CID_LEN, CidKey, SHIFTS};
use super::packet::*;

/// Bytes of a UDP header, before the datagram's own.
const UDP: u32 = 8;
/// `SKF_NET_OFF`: offsets from here on are into the network's header.
const NETWORK: u32 = 0xfff0_0000;
/// Where the source address stands in IPv4's header and in IPv6's.
const SOURCE_FOUR: u32 = NETWORK + 12;
const SOURCE_SIX: u32 = NETWORK + 8;
/// `SKF_AD_OFF + SKF_AD_RANDOM`: a random word.
const RANDOM: u32 = 0xffff_f000 + 56;
/// Of a datagram, all.
const WHOLE: u32 = u32::MAX;

/// One instruction: `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Instruction {
    pub(in super::super) code: u16,
    pub(in super::super) if_true: u8,
    pub(in super::super) if_false: u8,
    pub(in super::super) operand: u32,
}

const LOAD_WORD: u16 = 0x20;
const LOAD_BYTE: u16 = 0x30;
const LOAD_LEN: u16 = 0x80;
const AND: u16 = 0x54;
const XOR: u16 = 0xa4;
const XOR_X: u16 = 0xac;
const MULTIPLY: u16 = 0x24;
const SHIFT_RIGHT: u16 = 0x74;
const TO_X: u16 = 0x07;
const ALWAYS: u16 = 0x05;
const EQUAL: u16 = 0x15;
const EQUAL_X: u16 = 0x1d;
const GREATER: u16 = 0x25;
const AT_LEAST: u16 = 0x35;
const ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// A place in a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Label {
    Fixed,
    Short,
    LongHeader,
    Version,
    LongCid,
    OurLong,
    NotOurs,
    NewCid,
    NewLength,
    NewDatagram,
    Lucky,
    Six,
    /// Of an allowed network, by its place in the list: where its words are compared.
    Net(usize, usize),
    Allowed,
    Accept,
    Drop,
}
use Label::*;

#[derive(Debug, Clone, Copy)]
enum Line {
    Do(u16, u32),
    Goto(Label),
    /// Goes to the first place if the comparison holds, or to the second.
    If(u16, u32, Label, Label),
    Mark(Label),
}
use Line::*;

/// The program that lets through packets for connections of ours, newcomers with a probability of two to the minus
/// `halvings`, and nothing else; both from allowed networks alone, where there are any.
pub(in super::super) fn program(key: CidKey, allow: &[IpNet], halvings: u32) -> Vec<Instruction> {
    let mut lines = sources(allow);
    let long_len = UDP + LONG_CID_LEN_AT as u32;
    lines.extend([
        Mark(Allowed),
        Do(LOAD_BYTE, UDP),
        If(ANY_BIT, FIXED.into(), Fixed, Drop),
        Mark(Fixed),
        If(ANY_BIT, LONG.into(), LongHeader, Short),
        Mark(Short),
    ]);
    lines.extend(made(key, UDP + SHORT_CID_AT as u32, Accept, Drop));
    lines.extend([
        Mark(LongHeader),
        Do(LOAD_WORD, UDP + 1),
        If(EQUAL, VERSION, Version, Drop),
        Mark(Version),
        Do(LOAD_BYTE, long_len),
        If(EQUAL, CID_LEN as u32, LongCid, NotOurs),
        Mark(LongCid),
    ]);
    lines.extend(made(key, UDP + LONG_CID_AT as u32, OurLong, NotOurs));
    lines.extend([
        Mark(OurLong),
        Do(LOAD_BYTE, UDP),
        Do(AND, TYPE.into()),
        If(EQUAL, ZERO_RTT.into(), Drop, Accept),
        Mark(NotOurs),
        Do(LOAD_BYTE, UDP),
        Do(AND, TYPE.into()),
        If(EQUAL, INITIAL.into(), NewCid, Drop),
        Mark(NewCid),
        Do(LOAD_BYTE, long_len),
        If(AT_LEAST, LEAST_NEW_CID.into(), NewLength, Drop),
        Mark(NewLength),
        If(GREATER, MOST_CID.into(), Drop, NewDatagram),
        Mark(NewDatagram),
        Do(LOAD_LEN, 0),
        If(AT_LEAST, UDP + LEAST_NEW_DATAGRAM as u32, Lucky, Drop),
        Mark(Lucky),
    ]);
    if halvings > 0 {
        let bits = u32::MAX >> 32_u32.saturating_sub(halvings).min(31);
        lines.extend([Do(LOAD_WORD, RANDOM), If(ANY_BIT, bits, Drop, Accept)]);
    }
    lines.extend([Mark(Accept), Do(RETURN, WHOLE), Mark(Drop), Do(RETURN, 0)]);
    assemble(&lines)
}

/// Goes to [`Allowed`] from an allowed source, and to [`Drop`] from any other.
fn sources(allow: &[IpNet]) -> Vec<Line> {
    if allow.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![Do(LOAD_BYTE, NETWORK), Do(SHIFT_RIGHT, 4), If(EQUAL, 6, Six, Net(0, 0))];
    let masked = |mask: u32, value: u32| [mask, value & mask];
    let fours = allow.iter().filter_map(|net| match net {
        IpNet::V4(net) => Some(vec![masked(u32::from(net.netmask()), u32::from(net.network()))]),
        IpNet::V6(_) => None,
    });
    let four_count = fours.clone().count();
    lines.extend(fours.enumerate().flat_map(|(net, words)| compare(SOURCE_FOUR, net, words)));
    lines.extend([Mark(Net(four_count, 0)), Goto(Drop), Mark(Six)]);
    let sixes = allow.iter().filter_map(|net| match net {
        IpNet::V6(net) => {
            let (mask, value) = (u128::from(net.netmask()), u128::from(net.network()));
            let word = |shift: u32| masked((mask >> shift) as u32, (value >> shift) as u32);
            Some([96, 64, 32, 0].map(word).to_vec())
        }
        IpNet::V4(_) => None,
    });
    let six_count = sixes.clone().count();
    let first = four_count + 1;
    lines.extend(sixes.enumerate().flat_map(|(net, words)| compare(SOURCE_SIX, first + net, words)));
    lines.extend([Mark(Net(first + six_count, 0)), Goto(Drop)]);
    lines
}

/// Goes to [`Allowed`] if the words from `at` on, masked, are the values; to the next network if not.
fn compare(at: u32, net: usize, words: Vec<[u32; 2]>) -> Vec<Line> {
    let count = words.len();
    let line = |(word, [mask, value]): (usize, [u32; 2])| {
        let next = if word + 1 == count { Allowed } else { Net(net, word + 1) };
        let load = Do(LOAD_WORD, at + 4 * word as u32);
        [Mark(Net(net, word)), load, Do(AND, mask), If(EQUAL, value, next, Net(net + 1, 0))]
    };
    words.into_iter().enumerate().flat_map(line).collect()
}

/// Goes to `yes` if the id at `at` is ours, and to `no` if not.
fn made(key: CidKey, at: u32, yes: Label, no: Label) -> [Line; 13] {
    let [middle, last] = SHIFTS;
    [
        Do(LOAD_WORD, at),
        Do(XOR, key.mask),
        Do(MULTIPLY, key.first),
        Do(TO_X, 0),
        Do(SHIFT_RIGHT, middle),
        Do(XOR_X, 0),
        Do(MULTIPLY, key.second),
        Do(TO_X, 0),
        Do(SHIFT_RIGHT, last),
        Do(XOR_X, 0),
        Do(TO_X, 0),
        Do(LOAD_WORD, at + 4),
        If(EQUAL_X, 0, yes, no),
    ]
}

/// A comparison's own jumps reach 255 instructions; so each is followed by two that reach anywhere.
fn assemble(lines: &[Line]) -> Vec<Instruction> {
    let len = |line: &Line| match line {
        Mark(_) => 0_u32,
        Do(..) | Goto(_) => 1,
        If(..) => 3,
    };
    let (mut places, mut at) = (HashMap::new(), 0);
    for line in lines {
        if let Mark(label) = line {
            places.insert(*label, at);
        }
        at += len(line);
    }
    let mut code = Vec::new();
    // Every label that is gone to is marked; programs only go forwards.
    let goto = |from: usize, label: Label| {
        let to = places.get(&label).copied().unwrap_or(at);
        let operand = to.saturating_sub(from as u32 + 1);
        Instruction { code: ALWAYS, if_true: 0, if_false: 0, operand }
    };
    for line in lines {
        let here = code.len();
        match *line {
            Mark(_) => {}
            Do(op, operand) => code.push(Instruction { code: op, if_true: 0, if_false: 0, operand }),
            Goto(label) => code.push(goto(here, label)),
            If(op, operand, yes, no) => {
                code.push(Instruction { code: op, if_true: 0, if_false: 1, operand });
                code.extend([goto(here + 1, yes), goto(here + 2, no)]);
            }
        }
    }
    code
}
