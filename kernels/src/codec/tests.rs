use proptest::prelude::*;

use super::*;
use crate::simd::forced;

/// One of each kind.
const ALL: [Codec; 7] = [
    Codec::F32,
    Codec::F16,
    Codec::Bf16,
    Codec::Int8,
    Codec::TwoBit { threshold: 0.5 },
    Codec::OneBit { threshold: 0.0 },
    Codec::TopK { fraction: 0.25 },
];

fn encoded(codec: Codec, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xaa; codec.encoded_len(values.len())];
    codec.encode(values, &mut bytes).unwrap();
    bytes
}

fn fed_back(codec: Codec, values: &[f32], residual: &mut [f32]) -> Vec<u8> {
    let mut bytes = vec![0xaa; codec.encoded_len(values.len())];
    codec.encode_feedback(values, residual, &mut bytes).unwrap();
    bytes
}

fn decoded(codec: Codec, bytes: &[u8], elements: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; elements];
    codec.decode(bytes, &mut values).unwrap();
    values
}

fn refused(codec: Codec, bytes: &[u8], elements: usize) -> CodecError {
    let mut values = vec![7.5; elements];
    let error = codec.decode(bytes, &mut values).unwrap_err();
    assert!(values.iter().all(|value| *value == 7.5), "nothing is written");
    error
}

/// Invariant 1: the numbers are part of the wire format, and names part of cluster files.
#[test]
fn numbers_and_names_are_stable() {
    assert_eq!(ALL.map(Codec::id), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(ALL.map(Codec::name), ["f32", "f16", "bf16", "int8", "2bit", "1bit", "topk"]);
    assert_eq!(serde_json::to_string(&Codec::F32).unwrap(), "\"f32\"");
    for codec in ALL {
        let bytes = postcard::to_allocvec(&codec).unwrap();
        assert_eq!((bytes[0], postcard::from_bytes(&bytes)), (codec.id(), Ok(codec)), "also in a signed job");
    }
}

/// Invariants 2 and 3.
#[test]
fn f32_keeps_every_bit() {
    let values = [1.0f32, -0.0, f32::INFINITY, f32::from_bits(0x7fc0_1234), f32::from_bits(1)];
    let bytes = encoded(Codec::F32, &values);
    assert_eq!(&bytes[..8], &[0, 0, 0x80, 0x3f, 0, 0, 0, 0x80]);
    assert_eq!(values.map(f32::to_bits).to_vec(), bits(&decoded(Codec::F32, &bytes, 5)));
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Invariant 2, by hand.
#[test]
fn lengths_are_functions_of_the_number_of_elements() {
    let lengths = |elements| ALL.map(|codec| codec.encoded_len(elements));
    assert_eq!(lengths(0), [0; 7]);
    assert_eq!(lengths(1), [4, 2, 2, 5, 4, 4, 8]);
    assert_eq!(lengths(16), [64, 32, 32, 20, 4, 4, 32]);
    assert_eq!(lengths(257), [1028, 514, 514, 265, 68, 36, 512]);
    for codec in ALL {
        assert!(
            codec.encoded_len(usize::MAX) > isize::MAX as usize / 64,
            "{codec}: no real buffer is so long"
        );
        assert!((0..2000).all(|n| codec.encoded_len(n) <= codec.encoded_len(n + 1)), "{codec}");
    }
}

#[test]
fn refuses_other_lengths() {
    let error = Codec::F32.decode(&[0; 7], &mut [0.0; 2]).unwrap_err();
    assert_eq!(error.to_string(), "2 elements take 8 bytes in this codec, not 7");
    for codec in ALL {
        let right = codec.encoded_len(40);
        for length in [0, right - 1, right + 1, right + 4, 2 * right] {
            let expected = CodecError::Length { elements: 40, expected: right, found: length };
            assert_eq!(refused(codec, &vec![0; length], 40), expected);
            assert_eq!(codec.encode(&[0.0; 40], &mut vec![0; length]), Err(expected.clone()));
            assert_eq!(
                codec.encode_feedback(&[0.0; 40], &mut [0.0; 40], &mut vec![0; length]),
                Err(expected)
            );
        }
    }
}

#[test]
fn half_precision_by_hand() {
    let values = [1.0, -2.5, 0.1, 65504.0, 1e9, 5.960_464_5e-8, 0.0];
    let f16 = [0x3c00u16, 0xc100, 0x2e66, 0x7bff, 0x7bff, 1, 0].map(u16::to_le_bytes).concat();
    let bf16 = [0x3f80u16, 0xc020, 0x3dcd, 0x4780, 0x4e6e, 0x3380, 0].map(u16::to_le_bytes).concat();
    assert_eq!((encoded(Codec::F16, &values), encoded(Codec::Bf16, &values)), (f16.clone(), bf16.clone()));
    let back = [1.0, -2.5, 0.099_975_586, 65504.0, 65504.0, 5.960_464_5e-8, 0.0];
    assert_eq!(decoded(Codec::F16, &f16, 7), back);
    let back = [1.0, -2.5, 0.100_097_656, 65536.0, 998_244_352.0, 5.960_464_5e-8, 0.0];
    assert_eq!(decoded(Codec::Bf16, &bf16, 7), back);
}

#[test]
fn int8_by_hand() {
    // The largest magnitude is 127 halves, so the scale is one half; 0.25 and 0.75 halves-of-halves are ties, to even.
    let mut values = vec![63.5, -63.5, 0.0, 0.25, 0.75, -0.25, 1.0, -20.3];
    values.resize(256, 0.0);
    values.push(-2.0);
    let bytes = encoded(Codec::Int8, &values);
    let codes = [127i8, -127, 0, 0, 2, 0, 2, -41].map(|code| code as u8);
    assert_eq!(bytes[..8], [0.5f32.to_le_bytes(), (2.0f32 / 127.0).to_le_bytes()].concat());
    assert_eq!((&bytes[8..16], bytes[264]), (&codes[..], -127i8 as u8));
    let back = decoded(Codec::Int8, &bytes, 257);
    assert_eq!(back[..8], [63.5, -63.5, 0.0, 0.0, 1.0, 0.0, 1.0, -20.5]);
    assert_eq!(back[256], -127.0 * (2.0f32 / 127.0));
    let mut residual = vec![0.0; 257];
    assert_eq!(fed_back(Codec::Int8, &values, &mut residual), bytes);
    assert_eq!(residual[..8], [0.0, 0.0, 0.0, 0.25, -0.25, -0.25, 0.0, -20.3f32 + 20.5]);
}

#[test]
fn int8_at_the_ends_of_the_range() {
    for values in [[f32::MAX, -f32::MAX], [f32::MAX, 1.0], [f32::MIN_POSITIVE * 127.0, 0.0]] {
        let back = decoded(Codec::Int8, &encoded(Codec::Int8, &values), 2);
        assert!(back.iter().all(|value| value.is_finite()) && back[0] > values[0] * 0.999, "{back:?}");
    }
    // What is too small for a scale waits.
    let mut residual = [0.0; 2];
    let bytes = fed_back(Codec::Int8, &[1e-37, -1e-44], &mut residual);
    assert_eq!((bytes, residual), (vec![0; 6], [1e-37, -1e-44]));
    for bad in [f32::NAN, f32::INFINITY] {
        let error = Codec::Int8.encode(&[0.0, bad], &mut [0; 6]);
        assert_eq!(error, Err(CodecError::NotFinite(1)));
    }
}

/// A word of sixteen, then three; as MXNet writes them.
#[test]
fn two_bit_by_hand() {
    let codec = Codec::TwoBit { threshold: 0.5 };
    let mut values = vec![0.5, -0.5, 0.4, 0.0, 2.0, 0.25, -3.0, -0.4];
    values.resize(16, 0.0);
    values.extend([-0.5, 0.0, 0.75]);
    let mut residual = vec![0.0; 19];
    let bytes = fed_back(codec, &values, &mut residual);
    assert_eq!(bytes, [0b1110_0000, 0b1100_1000, 0, 0, 0b1000_1100, 0, 0, 0]);
    assert_eq!(residual[..8], [0.0, 0.0, 0.4, 0.0, 1.5, 0.25, -2.5, -0.4]);
    assert_eq!(residual[16..], [0.0, 0.0, 0.25]);
    let back = decoded(codec, &bytes, 19);
    assert_eq!(back[..8], [0.5, -0.5, 0.0, 0.0, 0.5, 0.0, -0.5, 0.0]);
    assert_eq!(back[16..], [-0.5, 0.0, 0.5]);
    // What was left over comes next time.
    let again = fed_back(codec, &[0.25; 19], &mut residual);
    assert_eq!(again[..4], [0b0000_1100, 0b1111_1000, 0, 0]);
    assert_eq!(again[4..], [0b0000_1100, 0, 0, 0]);
}

/// A word of thirty-two, then two; as MXNet writes them.
#[test]
fn one_bit_by_hand() {
    let codec = Codec::OneBit { threshold: 0.25 };
    let mut values = vec![0.5, 0.25, -7.0, 3.0];
    values.resize(32, 0.0);
    values.extend([0.0, 1.0]);
    let mut residual = vec![0.0; 34];
    let bytes = fed_back(codec, &values, &mut residual);
    assert_eq!(bytes, [0b1001_0000, 0, 0, 0, 0b0100_0000, 0, 0, 0]);
    assert_eq!(residual[..5], [-0.5, 1.25, -6.0, 2.0, 1.0]);
    assert_eq!(residual[32..], [1.0, 0.0]);
    let back = decoded(codec, &bytes, 34);
    assert_eq!((&back[..5], &back[32..]), (&[1.0, -1.0, -1.0, 1.0, -1.0][..], &[-1.0, 1.0][..]));
}

/// Of eight, two are sent; of three that are equal, the first.
#[test]
fn top_k_by_hand() {
    let codec = Codec::TopK { fraction: 0.25 };
    let mut residual = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let bytes = fed_back(codec, &[0.5, -2.0, 1.0, 2.0, 0.0, -3.0, 0.25, 0.0], &mut residual);
    let expected = [1u32.to_le_bytes(), 5u32.to_le_bytes(), (-2f32).to_le_bytes(), (-3f32).to_le_bytes()];
    assert_eq!(bytes, expected.concat());
    assert_eq!(residual, [0.5, 0.0, 2.0, 2.0, 0.0, 0.0, 0.25, 0.0]);
    assert_eq!(decoded(codec, &bytes, 8), [0.0, -2.0, 0.0, 0.0, 0.0, -3.0, 0.0, 0.0]);
    // Even where there is nothing to say, as many are sent, so that the length says nothing.
    let nothing = fed_back(codec, &[0.0; 8], &mut [0.0; 8]);
    assert_eq!(nothing, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

/// Invariant 5.
#[test]
fn what_no_encoder_writes_is_refused() {
    let int8 = |scale: f32, code: u8| [&scale.to_le_bytes()[..], &[0, code]].concat();
    for scale in [f32::NAN, f32::INFINITY, -1.0, -0.0, f32::MAX, f32::MAX / 126.0] {
        assert_eq!(refused(Codec::Int8, &int8(scale, 1), 2), CodecError::Scale(0), "{scale}");
    }
    assert_eq!(refused(Codec::Int8, &int8(1.0, 0x80), 2), CodecError::Code(5));
    let (two, one) = (Codec::TwoBit { threshold: 1.0 }, Codec::OneBit { threshold: 0.0 });
    for (byte, at) in [(0b0100_0000, 0), (0b0001_0000, 1), (0b1101_1111, 2), (0b0000_0001, 3)] {
        let mut bytes = [0; 4];
        bytes[at] = byte;
        assert_eq!(refused(two, &bytes, 16), CodecError::Code(at));
    }
    // Five elements take ten bits, and three bits.
    for (codec, elements, good, bad) in
        [(two, 5, [0xff, 0xc0, 0, 0], 0b0000_0011), (one, 11, [0xff, 0xe0, 0, 0], 0b0001_0000)]
    {
        decoded(codec, &good, elements);
        assert_eq!(refused(codec, &[0xff, good[1] | bad, 0, 0], elements), CodecError::Code(1));
        assert_eq!(refused(codec, &[0xff, good[1], 0, 2], elements), CodecError::Code(3));
    }
    let top = Codec::TopK { fraction: 0.25 };
    for (indices, at) in
        [([3u32, 3], 1), ([3, 2], 1), ([0, 8], 1), ([8, 9], 0), ([u32::MAX, 0], 0), ([0, u32::MAX], 1)]
    {
        let bytes = [indices.map(u32::to_le_bytes).concat(), vec![0; 8]].concat();
        assert_eq!(refused(top, &bytes, 8), CodecError::Index(at), "{indices:?}");
    }
}

#[test]
fn feedback_is_asked_for_where_it_is_needed_and_of_the_slice() {
    for codec in ALL {
        let mut bytes = vec![0; codec.encoded_len(8)];
        let alone = codec.encode(&[1.0; 8], &mut bytes);
        assert_eq!(alone, if codec.stands_alone() { Ok(()) } else { Err(CodecError::NeedsFeedback) });
        let other = codec.encode_feedback(&[1.0; 8], &mut [0.0; 7], &mut bytes);
        let expected = CodecError::Residual { elements: 8, found: 7 };
        assert_eq!(other, if codec.feeds_back() { Err(expected) } else { Ok(()) }, "{codec}");
        let infinite = codec.encode_feedback(
            &[1.0, f32::NEG_INFINITY],
            &mut [0.0; 2],
            &mut vec![0; codec.encoded_len(2)],
        );
        assert_eq!(
            infinite,
            if codec.feeds_back() { Err(CodecError::NotFinite(1)) } else { Ok(()) },
            "{codec}"
        );
    }
}

#[test]
fn parameters_that_cannot_work_are_refused() {
    assert!(ALL.iter().all(|codec| codec.validate().is_ok()));
    for threshold in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40] {
        assert!(Codec::TwoBit { threshold }.validate().is_err(), "{threshold}");
    }
    assert!(Codec::OneBit { threshold: f32::NAN }.validate().is_err());
    for fraction in [0.0, -0.1, 0.51, f32::NAN, f32::INFINITY] {
        assert!(Codec::TopK { fraction }.validate().is_err(), "{fraction}");
    }
}

/// Values of all magnitudes, subnormals and zeros among them.
fn finite() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -4.0f32..4.0,
        1 => any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |v| v.is_finite() && v.abs() < 1e38),
        1 => Just(0.0),
    ]
}

proptest! {
    /// Invariants 4 and 6: the same bytes and residuals at every width, and finite numbers back.
    #[test]
    fn no_width_changes_a_bit(values in prop::collection::vec(finite(), 0..700)) {
        for codec in ALL {
            forced::assert_same(|| {
                let mut residual = vec![0.125; values.len()];
                let bytes = fed_back(codec, &values, &mut residual);
                let back = decoded(codec, &bytes, values.len());
                assert!(back.iter().all(|value| value.is_finite()), "{codec}");
                (bytes, bits(&residual), bits(&back))
            });
        }
    }

    /// Invariant 7: what is decoded and what is left are what went in. Exact where nothing is rounded: numbers with few bits.
    #[test]
    fn nothing_is_lost(steps in prop::collection::vec(prop::collection::vec(-64i16..64, 70), 1..6)) {
        for codec in ALL.into_iter().filter(|codec| codec.feeds_back() && *codec != Codec::Int8) {
            let (mut residual, mut sent, mut meant) = (vec![0.0; 70], vec![0.0; 70], vec![0.0; 70]);
            for step in &steps {
                let values: Vec<f32> = step.iter().map(|v| f32::from(*v) / 16.0).collect();
                let bytes = fed_back(codec, &values, &mut residual);
                crate::add(&mut sent, &decoded(codec, &bytes, 70));
                crate::add(&mut meant, &values);
            }
            crate::add(&mut sent, &residual);
            prop_assert_eq!(&sent, &meant, "{}", codec);
        }
    }

    /// What is lost of a value is bounded, and for `int8` stays in the residual.
    #[test]
    fn errors_are_bounded(values in prop::collection::vec(-4.0f32..4.0, 1..600)) {
        // Half a place, and the least that there is.
        for (codec, share, least) in [(Codec::F16, 2f32.powi(-11), 2f32.powi(-25)), (Codec::Bf16, 2f32.powi(-8), 0.0)] {
            for (back, value) in decoded(codec, &encoded(codec, &values), values.len()).iter().zip(&values) {
                prop_assert!((back - value).abs() <= (value.abs() * share).max(least), "{}: {} is {}", codec, value, back);
            }
        }
        let mut residual = vec![0.0; values.len()];
        let bytes = fed_back(Codec::Int8, &values, &mut residual);
        let back = decoded(Codec::Int8, &bytes, values.len());
        for (at, (back, value)) in back.iter().zip(&values).enumerate() {
            let block = at / BLOCK * BLOCK..(at / BLOCK * BLOCK + BLOCK).min(values.len());
            let largest = values[block].iter().fold(0f32, |largest, value| largest.max(value.abs()));
            prop_assert!((back - value).abs() <= largest / 254.0 * 1.0001, "{} is {}", value, back);
            prop_assert_eq!(residual[at], value - back);
        }
    }

    /// `topk` against sorting.
    #[test]
    fn the_largest_are_sent(values in prop::collection::vec(prop_oneof![finite(), (-3i8..3).prop_map(f32::from)], 1..300), fraction in 0.01f32..0.5) {
        let codec = Codec::TopK { fraction };
        let mut residual = vec![0.0; values.len()];
        let back = decoded(codec, &fed_back(codec, &values, &mut residual), values.len());
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by_key(|at| (std::cmp::Reverse(values[*at].abs().to_bits()), *at));
        let (sent, kept) = order.split_at(codec.encoded_len(values.len()) / 8);
        for at in sent {
            prop_assert_eq!((back[*at], residual[*at]), (values[*at], 0.0));
        }
        for at in kept {
            prop_assert_eq!((back[*at], residual[*at]), (0.0, values[*at]));
        }
    }

    /// Invariant 5: whatever bytes come, nothing panics.
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), elements in 0usize..400) {
        for codec in ALL {
            let mut values = vec![0.0; elements];
            let _ = codec.decode(&bytes, &mut values);
            let mut fitting = bytes.clone();
            fitting.resize(codec.encoded_len(elements), 1);
            let _ = codec.decode(&fitting, &mut values);
        }
    }
}
