//! Wire codecs.

use super::{CASES, assert_bits, bits, finite, hard, hash, numbers, sizes};
use crate::codec::Codec;
use crate::cuda::{self, Buffer, Device, DeviceError};

/// What a device says to bytes.
type Decoded = Result<Vec<u32>, DeviceError>;

fn decoded<D: Device>(device: &mut D, codec: Codec, bytes: &[u8], elements: usize) -> Decoded {
    let on_device = Buffer::of(device, "bytes", bytes).unwrap();
    let mut values = Buffer::of(device, "values", &vec![7.5; elements]).unwrap();
    let result = cuda::decode(device, codec, &on_device, &mut values);
    let values = values.to_vec(device).unwrap();
    assert!(result.is_ok() || values.iter().all(|value| *value == 7.5), "nothing is written");
    result.map(|()| bits(&values))
}

/// Every codec: bytes, residuals over several steps, what comes back, and what is refused of bytes that are not an encoder's.
pub(in crate::cuda::tests) fn codecs<D: Device>(device: &mut D) {
    for codec in [
        Codec::F32,
        Codec::F16,
        Codec::Bf16,
        Codec::Int8,
        Codec::TwoBit { threshold: 0.4 },
        Codec::OneBit { threshold: -0.1 },
        Codec::TopK { fraction: 0.01 },
        Codec::TopK { fraction: 0.5 },
    ] {
        let written = [0, 1, 15, 31, 33, 255, 257, 1000, 9001].into_iter();
        for elements in written.chain((0..CASES / 3).map(|case| sizes(10, case, [3000])[0])) {
            let what = format!("{codec:?} of {elements}");
            for make in [numbers, finite, hard] {
                // Sums of any two of these are finite, and ties are frequent.
                let values: Vec<f32> = make(elements, 3).iter().map(|value| value * 0.25).collect();
                let mut residual: Vec<f32> = make(elements, 4).iter().map(|value| value * 0.25).collect();
                for (i, value) in residual.iter_mut().enumerate().filter(|(i, _)| i % 5 == 0) {
                    *value = 0.5 - values[i];
                }
                compare_encoding(device, codec, &values, &mut residual, &what);
            }
            // Bytes from anywhere: alike refused, or alike decoded.
            for fault in 0..6 {
                let mut bytes = vec![0; codec.encoded_len(elements)];
                codec.encode_feedback(&numbers(elements, 5), &mut vec![0.0; elements], &mut bytes).unwrap();
                for change in 0..fault {
                    let at = hash(fault << 8 | change) as usize % bytes.len().max(1);
                    bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = (hash(at as u64) >> 9) as u8);
                }
                let mut values = vec![7.5; elements];
                let expected = codec.decode(&bytes, &mut values).map(|()| bits(&values));
                assert_eq!(decoded(device, codec, &bytes, elements), expected.map_err(Into::into), "{what}");
            }
        }
    }
}

fn compare_encoding<D: Device>(
    device: &mut D,
    codec: Codec,
    values: &[f32],
    residual: &mut [f32],
    what: &str,
) {
    let elements = values.len();
    let on_device = Buffer::of(device, "values", values).unwrap();
    let mut on_device_residual = Buffer::of(device, "residual", residual).unwrap();
    for _ in 0..3 {
        let mut expected = vec![0; codec.encoded_len(elements)];
        let result = codec.encode_feedback(values, residual, &mut expected);
        let mut bytes = Buffer::zeros(device, "bytes", expected.len()).unwrap();
        let found = cuda::encode_feedback(device, codec, &on_device, &mut on_device_residual, &mut bytes);
        assert_eq!(found, result.clone().map_err(Into::into), "{what}");
        if result.is_err() {
            return;
        }
        let bytes = bytes.to_vec(device).unwrap();
        if let Some(at) =
            (0..bytes.len()).find(|at| bytes[*at] != expected[*at] && !is_nan(codec, values, *at))
        {
            panic!("{what}: byte {at} is {:#x}, not {:#x}", bytes[at], expected[at]);
        }
        assert_bits(&on_device_residual.to_vec(device).unwrap(), residual, what);
        let mut back = vec![0.0; elements];
        codec.decode(&expected, &mut back).unwrap();
        assert_eq!(decoded(device, codec, &expected, elements), Ok(bits(&back)), "{what}");
    }
    if codec.stands_alone() {
        let mut expected = vec![0; codec.encoded_len(elements)];
        codec.encode(values, &mut expected).unwrap();
        let mut bytes = Buffer::zeros(device, "bytes", expected.len()).unwrap();
        cuda::encode(device, codec, &on_device, &mut bytes).unwrap();
        let mut back = vec![0.0; elements];
        codec.decode(&expected, &mut back).unwrap();
        let bytes = bytes.to_vec(device).unwrap();
        assert_eq!(decoded(device, codec, &bytes, elements), Ok(bits(&back)), "{what}");
    }
}

/// Whether a byte belongs to a NaN, whose payload is unspecified. Codecs that take NaN have a fixed number of bytes each.
fn is_nan(codec: Codec, values: &[f32], byte: usize) -> bool {
    let width = codec.encoded_len(1);
    matches!(codec, Codec::F32 | Codec::F16 | Codec::Bf16) && values[byte / width].is_nan()
}
