//! Losses of numbers.

use super::{assert_bits, finite, hard, lengths, numbers};
use crate::cuda::{self, Buffer, Device, DeviceError};
use crate::losses::{binary_cross_entropy, squared_error};

/// Sums and gradients of the squared error and of binary cross-entropy.
pub(in crate::cuda::tests) fn losses<D: Device>(device: &mut D) {
    for (seed, elements) in lengths(3).enumerate() {
        for make in [numbers, finite, hard] {
            let (outputs, targets) = (make(elements, 60 + seed as u64), numbers(elements, 90 + seed as u64));
            // Logits far from zero too.
            let outputs: Vec<f32> = outputs.iter().map(|output| output * 20.0).collect();
            let [d_outputs, d_targets] =
                [&outputs, &targets].map(|values| Buffer::of(device, "tensor", values).unwrap());
            let mut gradient = Buffer::of(device, "gradient", &vec![7.0; elements]).unwrap();
            for squared in [true, false] {
                let mut expected = vec![0.0; elements];
                let (sum, found) = if squared {
                    let sum = squared_error(&outputs, &targets, &mut expected).unwrap();
                    (sum, cuda::squared_error(device, &d_outputs, &d_targets, &mut gradient).unwrap())
                } else {
                    let sum = binary_cross_entropy(&outputs, &targets, &mut expected).unwrap();
                    (sum, cuda::binary_cross_entropy(device, &d_outputs, &d_targets, &mut gradient).unwrap())
                };
                let what = format!("loss of {elements} (case {seed}), squared: {squared}");
                assert_bits(&gradient.to_vec(device).unwrap(), &expected, &what);
                assert!(found.to_bits() == sum.to_bits() || found.is_nan() && sum.is_nan(), "{what}");
            }
        }
    }
    let [three, mut four] = [3, 4].map(|elements| Buffer::zeros(device, "tensor", elements).unwrap());
    let refused = cuda::squared_error(device, &three, &three, &mut four).unwrap_err();
    assert_eq!(refused, DeviceError::Length { tensor: "tensor".into(), expected: 3, found: 4 });
    let two = Buffer::zeros(device, "targets", 2).unwrap();
    let refused = cuda::binary_cross_entropy(device, &three, &two, &mut four);
    let length = DeviceError::Length { tensor: "targets".into(), expected: 3, found: 2 };
    assert_eq!(refused.unwrap_err(), length);
}
