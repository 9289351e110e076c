//! What a device computes against what the CPU does: on the emulator as on a GPU.

mod attention;
mod codecs;
mod functions;
mod images;
mod layers;
mod losses;
mod models;
mod optimizers;
mod sequence;
mod weighing;

use crate::codec::{Codec, CodecError};
use crate::cuda::{self, Buffer, Device, DeviceError, Votes};
use crate::robust::{self, Aggregation};

pub(super) use attention::attention;
pub(super) use codecs::codecs;
pub(super) use functions::{functions, source as functions_source};
pub(super) use images::images;
pub(super) use layers::{layers, linear};
pub(super) use losses::losses;
pub(super) use models::{models, products, specs, training};
pub(super) use optimizers::{checked, optimizer, refused_updates, totals};
pub(super) use sequence::sequence;
pub(super) use weighing::weighing;

/// SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014): a value for each index.
pub(super) fn hash(index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Ordinary numbers, from -1.5 to 1.5.
pub(super) fn numbers(elements: usize, seed: u64) -> Vec<f32> {
    (0..elements as u64).map(|i| ((hash(seed << 40 | i) >> 40) as f32 / 16_777_216.0 - 0.5) * 3.0).collect()
}

/// Any finite bits: subnormal and huge numbers, either zero.
fn finite(elements: usize, seed: u64) -> Vec<f32> {
    let value = |bits: u64| f32::from_bits(bits as u32 & 0xbfff_ffff);
    (0..elements as u64).map(|i| value(hash(seed << 40 | i))).collect()
}

/// Ordinary numbers, and among them those on which arithmetic breaks.
fn hard(elements: usize, seed: u64) -> Vec<f32> {
    let special =
        [0.0, -0.0, 1e-40, -1e-40, f32::MAX, f32::MIN, 1e-20, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let mut values = numbers(elements, seed);
    for (i, value) in values.iter_mut().enumerate() {
        let choice = hash(seed << 41 | i as u64) as usize % 30;
        *value = special.get(choice).copied().unwrap_or(*value);
    }
    values
}

/// Bits, with one for all NaN.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }).collect()
}

pub(super) fn assert_bits(found: &[f32], expected: &[f32], what: &str) {
    let (found, expected) = (bits(found), bits(expected));
    if let Some(at) = (0..expected.len().max(found.len())).find(|at| found.get(*at) != expected.get(*at)) {
        panic!(
            "{what}: element {at} of {} is {:x?}, not {:x?}",
            expected.len(),
            found.get(at),
            expected.get(at)
        );
    }
}

/// More than the two buffers that a GPU's copies go through hold, from odd places on.
pub(super) fn round_trips<D: Device>(device: &mut D) {
    let elements = (3 << 20) + 5;
    let values = numbers(elements, 1);
    let mut buffer = Buffer::of(device, "values", &values).unwrap();
    assert_bits(&buffer.to_vec(device).unwrap(), &values, "all");
    let new = numbers(elements - 8, 2);
    buffer.write_at(device, 7, &new).unwrap();
    let mut found = vec![0.0; elements - 8];
    buffer.read_at(device, 7, &mut found).unwrap();
    assert_bits(&found, &new, "from element 7");
    let mut last = [0.0; 1];
    buffer.read_at(device, elements - 1, &mut last).unwrap();
    assert_bits(&last, &values[elements - 1..], "the last");
    let bytes: Vec<u8> = (0..12_582_917u32).map(|at| (at * 7 + at / 1000) as u8).collect();
    let mut odd = Buffer::of(device, "bytes", &bytes).unwrap();
    assert!(odd.to_vec(device).unwrap() == bytes);
    odd.write_at(device, 3, &bytes[..bytes.len() - 3]).unwrap();
    let mut found = vec![0; bytes.len() - 3];
    odd.read_at(device, 3, &mut found).unwrap();
    assert!(found == bytes[..bytes.len() - 3], "from byte 3");
}

/// Random shapes beside those that are written down: as many of a family.
const CASES: u64 = 12;

/// The numbers of random case `case` of a family: each from 1 to its bound.
fn sizes<const N: usize>(family: u64, case: u64, bounds: [usize; N]) -> [usize; N] {
    let mut at = 0;
    bounds.map(|bound| {
        at += 1;
        1 + (hash(family << 48 | case << 16 | at) >> 16) as usize % bound
    })
}

/// The written lengths, then random ones.
fn lengths(family: u64) -> impl Iterator<Item = usize> {
    LENGTHS.into_iter().chain((0..CASES).map(move |case| sizes(family, case, [5000])[0]))
}

/// Lengths around what a warp, a block of threads and a round of all blocks take.
const LENGTHS: [usize; 9] = [0, 1, 31, 255, 256, 257, 1791, 1793, 4099];

/// Sums, divisions, and the search for what is not finite.
pub(super) fn aggregation<D: Device>(device: &mut D) {
    for (seed, elements) in lengths(1).enumerate() {
        let what = |what: &str| format!("{what} of {elements} (case {seed})");
        for make in [numbers, finite, hard] {
            let (into, other) = (make(elements, seed as u64), make(elements, 77 + seed as u64));
            let on_device = Buffer::of(device, "other", &other).unwrap();
            let mut sum = Buffer::of(device, "sum", &into).unwrap();
            cuda::add(device, &mut sum, &on_device).unwrap();
            let mut expected = into.clone();
            crate::add(&mut expected, &other);
            assert_bits(&sum.to_vec(device).unwrap(), &expected, &what("add"));

            cuda::divide(device, &mut sum, 37.0).unwrap();
            robust::divide(&mut expected, 37.0);
            assert_bits(&sum.to_vec(device).unwrap(), &expected, &what("divide"));

            let mut expected = into.clone();
            let first = crate::add_checked(&mut expected, &other);
            let mut sum = Buffer::of(device, "sum", &into).unwrap();
            assert_eq!(cuda::add_checked(device, &mut sum, &on_device).unwrap(), first, "{}", what("first"));
            assert_bits(&sum.to_vec(device).unwrap(), &expected, &what("add_checked"));
            let first = crate::first_non_finite(&other);
            assert_eq!(cuda::first_non_finite(device, &on_device).unwrap(), first, "{}", what("first"));
        }
    }
}

/// Median and trimmed mean, from one vote to as many as leave a block few threads.
pub(super) fn robust<D: Device>(device: &mut D, most: usize) {
    let written = [1, 2, 3, 4, 7, 8, 15, 33, 200, 1024].into_iter().enumerate();
    let written = written.map(|(seed, count)| [count, if count > 100 { 40 } else { 700 + seed }]);
    let random = (0..CASES).map(|case| sizes(2, case, [40, 600]));
    for (seed, [count, elements]) in written.chain(random).enumerate() {
        if count > most {
            continue;
        }
        let votes: Vec<Vec<f32>> =
            (0..count).map(|vote| finite(elements, (seed * 1024 + vote) as u64)).collect();
        let rows = Buffer::of(device, "votes", &votes.concat()).unwrap();
        let hostile = ((count - 1) / 2) as u32;
        for rule in [
            Aggregation::Median { hostile: 0 },
            Aggregation::TrimmedMean { hostile: 0 },
            Aggregation::TrimmedMean { hostile: hostile / 2 },
            Aggregation::TrimmedMean { hostile },
        ] {
            let ready = Votes::new(device, rule, count).unwrap();
            let mut out = Buffer::zeros(device, "result", elements).unwrap();
            ready.aggregate(device, &rows, &mut out).unwrap();
            let expected = rule.aggregate(votes.clone()).unwrap();
            let what = format!("{rule:?} of {count} votes of {elements} (case {seed})");
            assert_bits(&out.to_vec(device).unwrap(), &expected, &what);
        }
    }
}

/// What is refused, is refused as on the CPU, and before anything is launched.
pub(super) fn refusals<D: Device>(device: &mut D) {
    for (rule, votes) in [
        (Aggregation::Mean, 3),
        (Aggregation::Krum { hostile: 1 }, 7),
        (Aggregation::TrimmedMean { hostile: 2 }, 4),
        (Aggregation::Median { hostile: 0 }, 0),
    ] {
        let expected = rule.aggregate(vec![vec![1.0]; votes]).unwrap_err();
        assert_eq!(Votes::new(device, rule, votes).err(), Some(expected.into()), "{rule:?}");
    }
    let (three, four) = ([0.0f32; 3], [0.0f32; 4]);
    let other = Buffer::of(device, "other", &three).unwrap();
    let mut into = Buffer::of(device, "sum", &four).unwrap();
    let refused = cuda::add(device, &mut into, &other).unwrap_err();
    assert_eq!(refused, DeviceError::Length { tensor: "other".into(), expected: 4, found: 3 });
    let mut softmax = cuda::CrossEntropy::new(device, 2, 2).unwrap();
    let refused = softmax.launch(device, 0.0, &mut into, &[0, 2]).unwrap_err();
    assert_eq!(refused, DeviceError::Label { label: 2, classes: 2 });
    let mut short = Buffer::of(device, "bytes", &[0u8; 7]).unwrap();
    let refused = cuda::encode(device, Codec::F16, &into, &mut short).unwrap_err();
    assert_eq!(refused, CodecError::Length { elements: 4, expected: 8, found: 7 }.into());
}
