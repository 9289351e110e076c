//! Wire codecs on a device: the twins of [`crate::codec`], same bytes and same residuals.

use super::buffer::Buffer;
use super::device::{Argument, Device, DeviceError, Geometry};
use super::operations::{NONE, add_checked, first_non_finite};
use super::source::Source;
use crate::codec::{BLOCK, Codec, CodecError};

type Numbers<D> = Buffer<<D as Device>::Memory, f32>;
type Bytes<D> = Buffer<<D as Device>::Memory, u8>;

/// As [`Codec::encode`].
///
/// # Errors
/// As there, and what a launch may meet.
pub fn encode<D: Device>(
    device: &mut D,
    codec: Codec,
    values: &Numbers<D>,
    bytes: &mut Bytes<D>,
) -> Result<(), DeviceError> {
    let elements = values.elements();
    check_length(codec, elements, bytes.elements())?;
    let kernel = match codec {
        Codec::F32 => "f32_copy",
        Codec::F16 => "f16_encode",
        Codec::Bf16 => "bf16_encode",
        Codec::Int8 => {
            if let Some(at) = first_non_finite(device, values)? {
                return Err(CodecError::NotFinite(at).into());
            }
            "int8_encode"
        }
        Codec::TwoBit { .. } | Codec::OneBit { .. } | Codec::TopK { .. } => {
            return Err(CodecError::NeedsFeedback.into());
        }
    };
    launch(device, kernel, elements, &mut [values.input(), bytes.output(), Argument::U64(elements as u64)])
}

/// As [`Codec::encode_feedback`].
///
/// # Errors
/// As there, and what a launch may meet.
pub fn encode_feedback<D: Device>(
    device: &mut D,
    codec: Codec,
    values: &Numbers<D>,
    residual: &mut Numbers<D>,
    bytes: &mut Bytes<D>,
) -> Result<(), DeviceError> {
    if !codec.feeds_back() {
        return encode(device, codec, values, bytes);
    }
    let (elements, count) = (values.elements(), bytes.elements());
    check_length(codec, elements, count)?;
    if residual.elements() != elements {
        return Err(CodecError::Residual { elements, found: residual.elements() }.into());
    }
    if let Some(at) = add_checked(device, residual, values)? {
        return Err(CodecError::NotFinite(at).into());
    }
    let all = Argument::U64(elements as u64);
    match codec {
        Codec::Int8 => {
            let arguments = &mut [residual.output(), bytes.output(), all];
            launch(device, "int8_encode_feedback", elements, arguments)
        }
        Codec::TwoBit { threshold } => {
            let count = Argument::U64(count as u64);
            let arguments = &mut [residual.output(), bytes.output(), Argument::F32(threshold), all, count];
            launch(device, "two_bit_encode", elements, arguments)
        }
        Codec::OneBit { threshold } => {
            let arguments = &mut [residual.output(), bytes.output(), Argument::F32(threshold), all];
            launch(device, "one_bit_encode", elements, arguments)
        }
        Codec::TopK { .. } => top_k(device, residual, bytes),
        Codec::F32 | Codec::F16 | Codec::Bf16 => Ok(()),
    }
}

/// As [`Codec::decode`].
///
/// # Errors
/// As there, and what a launch may meet; nothing is written if the bytes are refused.
pub fn decode<D: Device>(
    device: &mut D,
    codec: Codec,
    bytes: &Bytes<D>,
    values: &mut Numbers<D>,
) -> Result<(), DeviceError> {
    let (elements, count) = (values.elements(), bytes.elements());
    check_length(codec, elements, count)?;
    check_content(device, codec, bytes, elements)?;
    let all = Argument::U64(elements as u64);
    let kernel = match codec {
        Codec::F32 => "f32_copy",
        Codec::F16 => "f16_decode",
        Codec::Bf16 => "bf16_decode",
        Codec::Int8 => "int8_decode",
        Codec::TwoBit { threshold } => {
            let arguments = &mut [bytes.input(), values.output(), Argument::F32(threshold), all];
            return launch(device, "two_bit_decode", elements, arguments);
        }
        Codec::OneBit { .. } => "one_bit_decode",
        Codec::TopK { .. } => {
            let k = count / 8;
            launch(device, "top_k_zero", elements, &mut [values.output(), all])?;
            let arguments = &mut [bytes.input(), values.output(), Argument::U64(k as u64)];
            return launch(device, "top_k_scatter", k, arguments);
        }
    };
    launch(device, kernel, elements, &mut [bytes.input(), values.output(), all])
}

/// Refuses what no encoder writes.
fn check_content<D: Device>(
    device: &mut D,
    codec: Codec,
    bytes: &Bytes<D>,
    elements: usize,
) -> Result<(), DeviceError> {
    let count = bytes.elements();
    let (kernel, units) = match codec {
        Codec::F32 | Codec::F16 | Codec::Bf16 => return Ok(()),
        Codec::Int8 => ("int8_check", elements),
        Codec::TwoBit { .. } => ("two_bit_check", count),
        Codec::OneBit { .. } => ("one_bit_check", count),
        Codec::TopK { .. } => ("top_k_check", count / 8),
    };
    let mut first = Buffer::of(device, "first", &[NONE])?;
    let (all, count) = (Argument::U64(elements as u64), Argument::U64(count as u64));
    let mut arguments = match codec {
        Codec::Int8 => vec![bytes.input(), all, first.output()],
        Codec::TopK { .. } => {
            vec![bytes.input(), Argument::U64(units as u64), all, first.output()]
        }
        _ => vec![bytes.input(), all, count, first.output()],
    };
    launch(device, kernel, units, &mut arguments)?;
    let mut fault = [NONE];
    first.read(device, &mut fault)?;
    let (blocks, count) = (elements.div_ceil(BLOCK), bytes.elements());
    let at = fault[0] as usize;
    Err(match codec {
        _ if fault == [NONE] => return Ok(()),
        Codec::Int8 if at < blocks => CodecError::Scale(at),
        Codec::TopK { .. } => CodecError::Index(at),
        Codec::TwoBit { .. } if at >= count => CodecError::Code(at - count),
        _ => CodecError::Code(at),
    }
    .into())
}

/// A digit of a magnitude: so many bits, from that bit on; as the CPU has them.
const DIGITS: [(u32, u32); 3] = [(11, 20), (11, 9), (9, 0)];
/// Values of a digit at most.
const DIGIT: usize = 1 << 11;
/// Elements that a block of threads emits in turn, as codec.cu has them.
const CHUNK: usize = 4096;

/// Emits the largest magnitudes of `residual`, as many as `bytes` have room for.
fn top_k<D: Device>(
    device: &mut D,
    residual: &mut Numbers<D>,
    bytes: &mut Bytes<D>,
) -> Result<(), DeviceError> {
    let (elements, k) = (residual.elements(), bytes.elements() / 8);
    let all = || Argument::U64(elements as u64);
    let (mut found, mut settled, mut left) = (0u32, 0u32, k as u64);
    for (bits, shift) in DIGITS {
        let mask = (1u32 << bits) - 1;
        let mut counts = Buffer::<_, u64>::zeros(device, "counts", DIGIT)?;
        let arguments = &mut [
            residual.input(),
            counts.output(),
            Argument::U32(settled),
            Argument::U32(found),
            Argument::U32(shift),
            Argument::U32(mask),
            all(),
        ];
        launch(device, "top_k_digits", elements, arguments)?;
        for (digit, count) in counts.to_vec(device)?.into_iter().enumerate().rev() {
            if count >= left {
                found |= (digit as u32) << shift;
                break;
            }
            left -= count;
        }
        settled |= mask << shift;
    }
    let chunks = elements.div_ceil(CHUNK);
    let mut before = Buffer::<_, u64>::zeros(device, "places", chunks.saturating_mul(2))?;
    let arguments = &mut [residual.input(), before.output(), Argument::U32(found), all()];
    launch(device, "top_k_count", elements, arguments)?;
    let rows = Geometry { blocks: 2, threads: Geometry::THREADS, shared_bytes: 0 };
    let arguments = &mut [before.output(), Argument::U64(chunks as u64)];
    device.launch(&Source::codec(), "top_k_before", rows, arguments)?;
    let arguments = &mut [
        residual.output(),
        bytes.output(),
        before.input(),
        Argument::U32(found),
        Argument::U64(left),
        Argument::U64(k as u64),
        all(),
    ];
    launch(device, "top_k_emit", elements, arguments)
}

fn launch<D: Device>(
    device: &mut D,
    kernel: &str,
    units: usize,
    arguments: &mut [Argument<'_, D::Memory>],
) -> Result<(), DeviceError> {
    let geometry = Geometry::each(units, device.blocks());
    device.launch(&Source::codec(), kernel, geometry, arguments)
}

fn check_length(codec: Codec, elements: usize, found: usize) -> Result<(), CodecError> {
    let expected = codec.encoded_len(elements);
    if found == expected { Ok(()) } else { Err(CodecError::Length { elements, expected, found }) }
}
