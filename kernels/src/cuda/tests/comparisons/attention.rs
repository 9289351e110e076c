//! Attention.

use super::sequence::{in_panels, in_rows};
use super::{CASES, assert_bits, numbers, sizes};
use crate::cuda::{Buffer, Device, DeviceAttention, DeviceDrops};
use crate::layers::{Attention, AttentionScratch, Drops};
use crate::linear::Panels;
use crate::model::Place;
use crate::precision::Precision;

/// Nothing dropped, and some.
pub(in crate::cuda::tests) fn attention<D: Device>(device: &mut D) {
    attend(device, None);
    let place = Place { seed: 1 << 40 | 7, step: 1 << 33 | 2, first: u64::from(u32::MAX) };
    attend(device, Some(DeviceDrops { rate: 0.3, site: 2, place }));
}

/// Sequences shorter than a block of keys, of one, and of several.
fn attend<D: Device>(device: &mut D, drops: Option<DeviceDrops>) {
    let written = [[1, 1, 1, 1], [2, 3, 5, 3], [1, 8, 64, 1], [3, 4, 65, 2], [1, 70, 20, 2], [2, 2, 150, 1]];
    let random = (0..CASES).map(|case| sizes(9, case, [3, 20, 80, 2]));
    for [heads, size, positions, examples] in written.into_iter().chain(random) {
        let what = format!("{heads} heads of {size}, {examples} examples of {positions}, {drops:?}");
        let by_cpu = drops.and_then(|of| Drops::new(of.rate, [heads, positions, of.site], of.place));
        let (tokens, width) = (positions * examples, heads * size);
        let (qkv, dy) = (numbers(tokens * 3 * width, 1), numbers(tokens * width, 2));
        let panels = Panels::new(tokens);
        let on_cpu = Attention { heads, size, precision: Precision::F32 };
        let mut scratch = AttentionScratch::new(on_cpu, positions, 1).unwrap();
        let qkv_panels = in_panels(panels, &qkv, 3 * width);
        let mut out = vec![0.0; panels.elements(width)];
        let mut kept = vec![0.0; tokens * heads];
        on_cpu.forward(panels, positions, by_cpu, &qkv_panels, &mut out, &mut kept, &mut scratch);
        let mut gradient = vec![0.0; panels.elements(3 * width)];
        let dy_panels = in_panels(panels, &dy, width);
        let (given, made) = ((&out[..], &kept[..]), &mut gradient);
        on_cpu.backward(panels, positions, by_cpu, &qkv_panels, given, &dy_panels, made, &mut scratch);

        let on_device = DeviceAttention { heads, size, positions };
        let [d_qkv, d_dy] = [&qkv, &dy].map(|values| Buffer::of(device, "tensor", values).unwrap());
        let mut d_out = Buffer::zeros(device, "out", tokens * width).unwrap();
        let [mut d_kept, mut delta] =
            ["kept", "delta"].map(|name| Buffer::zeros(device, name, tokens * heads).unwrap());
        on_device.forward(device, (tokens, drops), &d_qkv, &mut d_out, &mut d_kept).unwrap();
        assert_bits(&d_out.to_vec(device).unwrap(), &in_rows(panels, &out, width), &what);
        assert_bits(&d_kept.to_vec(device).unwrap(), &kept, &what);
        let mut d_gradient = Buffer::zeros(device, "gradient", 3 * tokens * width).unwrap();
        let given = (&d_qkv, &d_out, &d_kept);
        on_device.backward(device, (tokens, drops), given, &d_dy, &mut d_gradient, &mut delta).unwrap();
        assert_bits(&d_gradient.to_vec(device).unwrap(), &in_rows(panels, &gradient, 3 * width), &what);
    }
}
