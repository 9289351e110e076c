//! Inner products, combinations by weights, and clipping.

use super::{CASES, assert_bits, finite, hash, numbers, sizes};
use crate::cuda::{Buffer, Device, DeviceError, DeviceWeighing};
use crate::robust::Aggregation;
use crate::robust::products::Products;
use crate::robust::weigh::{Weighing, Weights, clip};

/// Slices that begin and end anywhere in a tensor's blocks of 1,024.
pub(in crate::cuda::tests) fn weighing<D: Device>(device: &mut D) {
    let written =
        [[1, 1, 0], [1, 1024, 0], [2, 15, 0], [3, 1025, 1023], [7, 2048, 1], [9, 3000, 5 << 10 | 17]];
    let random = (0..CASES).map(|case| sizes(4, case, [9, 4000, 5000]));
    for (case, [count, elements, first]) in written.into_iter().chain(random).enumerate() {
        let what = format!("{count} vectors of {elements} from {first} (case {case})");
        for make in [numbers, finite] {
            let vectors: Vec<Vec<f32>> =
                (0..count).map(|at| make(elements, (case * 16 + at) as u64)).collect();
            let views: Vec<&[f32]> = vectors.iter().map(Vec::as_slice).collect();
            let rows = Buffer::of(device, "vectors", &vectors.concat()).unwrap();
            for norms_alone in [false, true] {
                let mut expected = Products::new(count, norms_alone);
                let mut found = expected.clone();
                let mut weighing = DeviceWeighing::new(device, &found, elements).unwrap();
                // Twice: sums are added to what is there.
                for first in [first, first + 8] {
                    expected.add(first, &views).unwrap();
                    weighing.add_products(device, &mut found, first, &rows).unwrap();
                }
                assert!(found == expected, "products of {what}");
            }
            combinations(device, &vectors, &rows, case as u64, &what);
        }
    }
    rules(device);
    refused(device);
}

fn combinations<D: Device>(
    device: &mut D,
    vectors: &[Vec<f32>],
    rows: &Buffer<D::Memory, f32>,
    seed: u64,
    what: &str,
) {
    // Some are 0, and what they weigh is left out: 0 times it is not always 0.
    let weight = |at: usize| match hash(seed << 8 | at as u64) {
        hash if hash % 3 == 0 => 0.0,
        hash => (hash >> 11) as f64 / (1u64 << 53) as f64 / vectors.len() as f64,
    };
    let mut of: Vec<f64> = (0..vectors.len()).map(weight).collect();
    if vectors.len() == 1 && seed.is_multiple_of(2) {
        of = vec![1.0];
    }
    let weights = Weights { of, clip: 0.37 };
    let mut expected = weights.combine(vectors.to_vec()).unwrap();
    let mut out = Buffer::zeros(device, "combination", expected.len()).unwrap();
    let products = Products::new(vectors.len(), true);
    let mut weighing = DeviceWeighing::new(device, &products, expected.len()).unwrap();
    weighing.combine(device, &weights, rows, &mut out).unwrap();
    assert_bits(&out.to_vec(device).unwrap(), &expected, &format!("combination of {what}"));
    for factor in [weights.clip, 1.0, 1e-39] {
        clip(&mut expected, factor);
        weighing.clip(device, &mut out, factor).unwrap();
        assert_bits(&out.to_vec(device).unwrap(), &expected, &format!("{factor} times that of {what}"));
    }
}

/// Every rule that weighs whole gradients, from votes to the result: what is on the host between is a function of the products.
fn rules<D: Device>(device: &mut D) {
    let (count, elements) = (7, 2500);
    for rule in [
        Aggregation::Krum { hostile: 2 },
        Aggregation::MultiKrum { hostile: 2 },
        Aggregation::GeometricMedian { hostile: 2 },
        Aggregation::CentredClipping { hostile: 2, radius: 3.0 },
        Aggregation::NormBound { hostile: 2, bound: 20.0 },
    ] {
        let weighing = Weighing::new(rule, Some(11.0), count).unwrap();
        let vectors: Vec<Vec<f32>> =
            (0..weighing.vectors()).map(|at| numbers(elements, 700 + at as u64)).collect();
        let mut products = weighing.products();
        products.add(0, &vectors.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        let weights = weighing.weigh(&products, 1.0).unwrap();
        let rows = Buffer::of(device, "votes", &vectors.concat()).unwrap();
        let mut expected = weights.combine(vectors).unwrap();
        clip(&mut expected, weights.clip);

        let mut products = weighing.products();
        let mut on_device = DeviceWeighing::new(device, &products, elements).unwrap();
        on_device.add_products(device, &mut products, 0, &rows).unwrap();
        let weights = weighing.weigh(&products, 1.0).unwrap();
        let mut out = Buffer::zeros(device, "result", elements).unwrap();
        on_device.combine(device, &weights, &rows, &mut out).unwrap();
        on_device.clip(device, &mut out, weights.clip).unwrap();
        assert_bits(&out.to_vec(device).unwrap(), &expected, &format!("{rule:?}"));
    }
}

fn refused<D: Device>(device: &mut D) {
    let seven = Buffer::zeros(device, "votes", 7).unwrap();
    let length = |expected| DeviceError::Length { tensor: "votes".into(), expected, found: 7 };
    let mut products = Products::new(2, false);
    let mut weighing = DeviceWeighing::new(device, &products, 7).unwrap();
    assert_eq!(weighing.add_products(device, &mut products, 0, &seven), Err(length(6)));
    assert_eq!(products, Products::new(2, false));
    let mut out = Buffer::zeros(device, "result", 3).unwrap();
    let weights = Weights { of: vec![0.5; 3], clip: 1.0 };
    assert_eq!(weighing.combine(device, &weights, &seven, &mut out), Err(length(9)));
    // Other vectors than it was made for, and more elements.
    let of = |tensor: &str, expected, found| DeviceError::Length { tensor: tensor.into(), expected, found };
    let nine = Buffer::zeros(device, "votes", 9).unwrap();
    let refused = Err(of("weights of vectors", 3, 2));
    assert_eq!(weighing.combine(device, &weights, &nine, &mut out), refused);
    let mut norms = Products::new(3, true);
    assert_eq!(
        weighing.add_products(device, &mut Products::new(3, false), 0, &nine),
        Err(of("pairs of vectors", 12, 6))
    );
    let mut weighing = DeviceWeighing::new(device, &norms, 1).unwrap();
    assert_eq!(weighing.add_products(device, &mut norms, 1022, &nine), Err(of("sums of blocks", 6, 3)));
    assert_eq!(norms, Products::new(3, true));
}
