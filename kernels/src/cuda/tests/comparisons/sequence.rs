//! Norms, embedding and dropout.

use super::{CASES, assert_bits, hash, numbers, sizes};
use crate::cuda::{self, Buffer, Device, DeviceError, DeviceNorm, Tokens};
use crate::layers::{self, Dropout, Norm, Normalize};
use crate::linear::Panels;
use crate::model::Place;

/// Rows of `features` features in panels, and back.
pub(super) fn in_panels(panels: Panels, rows: &[f32], features: usize) -> Vec<f32> {
    let mut values = vec![0.0; panels.elements(features)];
    panels.fill(rows, features, &mut values);
    values
}

pub(super) fn in_rows(panels: Panels, values: &[f32], features: usize) -> Vec<f32> {
    let mut rows = vec![0.0; panels.examples() * features];
    panels.empty(values, features, &mut rows);
    rows
}

pub(in crate::cuda::tests) fn sequence<D: Device>(device: &mut D) {
    for norm in [Norm::Layer, Norm::Rms] {
        let written = [[1, 1], [3, 7], [31, 32], [33, 33], [70, 100]].into_iter();
        for [rows, features] in written.chain((0..CASES).map(|case| sizes(11, case, [70, 70]))) {
            norms(device, norm, rows, features);
        }
    }
    embedding(device, [5, 11, 13, 9]);
    (0..CASES).for_each(|case| embedding(device, sizes(12, case, [5, 20, 40, 30])));
    let written = [([1, 1, 1], 0.5), ([3, 5, 7], 0.25), ([2, 9, 64], 0.1), ([2, 2, 2], 0.0)].into_iter();
    let random = (0..CASES).map(|case| (sizes(13, case, [4, 20, 40]), case as f32 / CASES as f32));
    for ([examples, positions, features], rate) in written.chain(random) {
        let place = Place { seed: 3 << 40 | 5, step: 1 << 33 | 7, first: 20 };
        let values = numbers(examples * positions * features, 1);
        let mut on_device = Buffer::of(device, "values", &values).unwrap();
        cuda::dropout(device, rate, (positions, features), place, 2, &mut on_device).unwrap();
        let panels = Panels::new(examples * positions);
        let mut expected = in_panels(panels, &values, features);
        Dropout::new(rate, positions).apply(panels, features, place, 2, &mut expected);
        let expected = in_rows(panels, &expected, features);
        assert_bits(
            &on_device.to_vec(device).unwrap(),
            &expected,
            &format!("dropout of {examples} x {positions} x {features}"),
        );
    }
}

fn norms<D: Device>(device: &mut D, norm: Norm, rows: usize, features: usize) {
    let what = format!("{norm:?} norm of {rows} rows, {features} features");
    let elements = rows * features;
    let (x, dy, before) = (numbers(elements, 1), numbers(elements, 2), numbers(elements, 3));
    let weight = numbers(features, 4);
    let bias = if norm == Norm::Layer { numbers(features, 5) } else { Vec::new() };
    let panels = Panels::new(rows);
    let on_cpu = Normalize { norm, features };
    let (mut y, mut kept) =
        (vec![0.0; panels.elements(features)], vec![0.0; Normalize::kept_elements(panels)]);
    let x_panels = in_panels(panels, &x, features);
    on_cpu.forward(panels, (&weight, &bias), &x_panels, &mut y, &mut kept);
    let mut dx = in_panels(panels, &before, features);
    let (mut normal, mut scratch) =
        (vec![0.0; panels.elements(features)], vec![0.0; Normalize::scratch_elements(panels)]);
    let (mut of_weight, mut of_bias) = (vec![0.0; features], bias.clone());
    on_cpu.backward(
        panels,
        &weight,
        (&x_panels, &kept),
        (&in_panels(panels, &dy, features), &mut dx),
        (&mut normal, &mut scratch),
        (&mut of_weight, &mut of_bias),
    );

    let on_device = DeviceNorm { norm, features };
    let buffers = [&x, &dy, &weight, &bias].map(|values| Buffer::of(device, "tensor", values).unwrap());
    let [d_x, d_dy, d_weight, d_bias] = &buffers;
    let mut d_y = Buffer::zeros(device, "y", elements).unwrap();
    let mut d_kept = Buffer::zeros(device, "kept", 2 * rows).unwrap();
    on_device.forward(device, rows, (d_weight, d_bias), d_x, (&mut d_y, &mut d_kept)).unwrap();
    assert_bits(&d_y.to_vec(device).unwrap(), &in_rows(panels, &y, features), &what);
    let mut d_dx = Buffer::of(device, "dx", &before).unwrap();
    let mut d_normal = Buffer::zeros(device, "normal", elements).unwrap();
    let mut d_of_weight = Buffer::zeros(device, "weight's gradient", features).unwrap();
    let mut d_of_bias = Buffer::zeros(device, "bias's gradient", bias.len()).unwrap();
    let given = (d_dy, &mut d_dx, &mut d_normal);
    let has_bias = norm == Norm::Layer;
    let made = (&mut d_of_weight, has_bias.then_some(&mut d_of_bias));
    on_device.backward(device, rows, d_weight, (d_x, &d_kept), given, made).unwrap();
    assert_bits(&d_dx.to_vec(device).unwrap(), &in_rows(panels, &dx, features), &what);
    assert_bits(&d_of_weight.to_vec(device).unwrap(), &of_weight, &what);
    assert_bits(&d_of_bias.to_vec(device).unwrap(), &of_bias, &what);
}

fn embedding<D: Device>(device: &mut D, [examples, positions, width, vocabulary]: [usize; 4]) {
    let what = |what: &str| format!("{what} of {examples} x {positions} x {width}, {vocabulary} tokens");
    // Some tokens do not come.
    let token = |at: usize| hash(at as u64) as u32 % (vocabulary as u32).saturating_sub(2).max(1);
    let tokens: Vec<u32> = (0..examples * positions).map(token).collect();
    let (table, places) = (numbers(vocabulary * width, 1), numbers(positions * width, 2));
    let as_numbers: Vec<f32> = tokens.iter().map(|token| *token as f32).collect();
    let elements = tokens.len() * width;
    let mut expected = vec![0.0; elements];
    layers::embed(&as_numbers, &table, &places, width, &mut expected);
    let on_device = Tokens::new(device, &tokens, vocabulary).unwrap();
    let [d_table, d_places] = [&table, &places].map(|values| Buffer::of(device, "tensor", values).unwrap());
    let mut rows = Buffer::zeros(device, "rows", elements).unwrap();
    on_device.embed(device, width, (&d_table, &d_places), &mut rows).unwrap();
    assert_bits(&rows.to_vec(device).unwrap(), &expected, &what("embed"));

    let gradient = numbers(elements, 3);
    let d_gradient = Buffer::of(device, "gradient", &gradient).unwrap();
    let (mut expected, mut d_table) = (table.clone(), d_table);
    layers::add_to_table(&as_numbers, &gradient, width, &mut expected);
    on_device.add_to_table(device, width, &d_gradient, &mut d_table).unwrap();
    assert_bits(&d_table.to_vec(device).unwrap(), &expected, &what("add_to_table"));
    let (mut expected, mut d_places) = (places, d_places);
    layers::positions_gradient(&gradient, &mut expected);
    cuda::positions_gradient(device, &d_gradient, &mut d_places).unwrap();
    assert_bits(&d_places.to_vec(device).unwrap(), &expected, &what("positions_gradient"));
    let refused = Tokens::new(device, &[0, vocabulary as u32], vocabulary).err();
    let (label, classes) = (vocabulary as u32, vocabulary);
    assert_eq!(refused, Some(DeviceError::Label { label, classes }));
}
