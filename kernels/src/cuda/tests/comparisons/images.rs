//! Convolution, pooling and batch norm.

use super::sequence::{in_panels, in_rows};
use super::{CASES, assert_bits, numbers, sizes};
use crate::cuda::{
    Buffer, Device, DeviceBatchNorm, DeviceConvolution, DevicePool, DeviceStatistics, ImageSize,
};
use crate::layers::{BatchNorm, Convolution, Ends, Image, Pool, Statistics};
use crate::linear::Panels;

pub(in crate::cuda::tests) fn images<D: Device>(device: &mut D) {
    let written = [
        (1, [1, 1, 1], 1, 1, 1, 0),
        (3, [2, 5, 7], 3, 3, 1, 1),
        (2, [3, 8, 6], 5, 3, 2, 1),
        (5, [1, 9, 9], 4, 2, 3, 1),
        (17, [4, 6, 5], 2, 5, 2, 2),
    ];
    // The kernel fits the image, and padding is less than the kernel.
    let random = (0..CASES).map(|case| {
        let [examples, channels, height, width, outputs, kernel, stride, padding] =
            sizes(14, case, [9, 5, 9, 9, 6, 4, 3, 9]);
        let kernel = kernel.min(height).min(width);
        (examples, [channels, height, width], outputs, kernel, stride, padding % kernel)
    });
    for (seed, (examples, [channels, height, width], outputs, kernel, stride, padding)) in
        written.into_iter().chain(random).enumerate()
    {
        let image = Image { channels, height, width };
        let on_cpu = Convolution::new(image, outputs, kernel, stride, padding).unwrap();
        let size = ImageSize { channels, height, width };
        let on_device = DeviceConvolution::new(size, outputs, kernel, stride, padding).unwrap();
        convolution(device, (examples, seed as u64), (image, on_cpu), on_device);
    }
    let written = [
        (1, [1, 1, 1], 1, 1),
        (3, [2, 6, 4], 2, 2),
        (2, [3, 7, 8], 3, 2),
        (4, [1, 5, 5], 2, 1),
        (2, [2, 6, 6], 2, 3),
    ];
    let random = (0..CASES).map(|case| {
        let [examples, channels, height, width, size, stride] = sizes(15, case, [9, 5, 9, 9, 4, 4]);
        (examples, [channels, height, width], size.min(height).min(width), stride)
    });
    for (examples, [channels, height, width], size, stride) in written.into_iter().chain(random) {
        let (image, sizes) = (Image { channels, height, width }, ImageSize { channels, height, width });
        let pools = [
            (Pool::new(image, size, stride).unwrap(), DevicePool::new(sizes, size, stride).unwrap()),
            (Pool::global(image), DevicePool::global(sizes).unwrap()),
        ];
        for (on_cpu, on_device) in pools {
            pool(device, examples, image, on_cpu, on_device);
        }
    }
    let written = [[1, 1, 1, 1], [1, 3, 2, 2], [17, 5, 3, 2], [33, 40, 1, 2]].into_iter();
    let random = (0..CASES).map(|case| sizes(16, case, [30, 40, 4, 4]));
    for [examples, channels, height, width] in written.chain(random) {
        batch_norm(device, examples, Image { channels, height, width });
    }
    let image = ImageSize { channels: 1, height: 4, width: 4 };
    assert_eq!((DevicePool::new(image, 5, 1), DevicePool::new(image, 2, 0)), (None, None));
    let of = |kernel, stride, padding| DeviceConvolution::new(image, 1, kernel, stride, padding);
    assert_eq!((of(7, 1, 1), of(3, 0, 1), of(3, 1, 3)), (None, None, None));
}

fn convolution<D: Device>(
    device: &mut D,
    (examples, seed): (usize, u64),
    (image, on_cpu): (Image, Convolution),
    on_device: DeviceConvolution,
) {
    let out = on_cpu.output();
    let what = |what: &str| format!("convolution, {what}, {examples} x {image:?}, {on_cpu:?}");
    let (features, results) = (image.features(), out.features());
    let (x, dy) = (numbers(examples * features, seed), numbers(examples * results, seed + 10));
    let (weights, bias) = (numbers(on_cpu.weight_elements(), seed + 20), numbers(out.channels, seed + 30));
    let panels = Panels::new(examples);
    let (x_panels, dy_panels) = (in_panels(panels, &x, features), in_panels(panels, &dy, results));
    let [d_x, d_dy, d_weights, d_bias] =
        [&x, &dy, &weights, &bias].map(|values| Buffer::of(device, "tensor", values).unwrap());
    let mut scratch = vec![0.0; weights.len()];
    for (has_bias, rectify) in [(true, true), (false, false)] {
        let mut y = vec![0.0; panels.elements(results)];
        let ends = Ends { bias: has_bias.then_some(&bias[..]), rectify };
        on_cpu.forward(&weights, ends, panels, &x_panels, &mut y, &mut scratch);
        let mut d_y = Buffer::zeros(device, "y", examples * results).unwrap();
        let parameters = (&d_weights, has_bias.then_some(&d_bias), rectify);
        on_device.forward(device, examples, parameters, &d_x, &mut d_y).unwrap();
        assert_bits(&d_y.to_vec(device).unwrap(), &in_rows(panels, &y, results), &what("forward"));
    }
    let mut dx = vec![0.0; panels.elements(features)];
    on_cpu.backward(&weights, panels, &dy_panels, &mut dx, &mut scratch);
    let mut d_dx = Buffer::zeros(device, "dx", examples * features).unwrap();
    on_device.backward(device, examples, &d_weights, &d_dy, &mut d_dx).unwrap();
    assert_bits(&d_dx.to_vec(device).unwrap(), &in_rows(panels, &dx, features), &what("backward"));
    let (mut dw, mut packed) = (vec![0.0; weights.len()], vec![0.0; on_cpu.packed_elements(examples)]);
    on_cpu.weights(panels, &dy_panels, &x_panels, &mut dw, &mut scratch, &mut packed);
    let mut d_dw = Buffer::zeros(device, "dw", weights.len()).unwrap();
    on_device.weights(device, examples, &d_dy, &d_x, &mut d_dw).unwrap();
    assert_bits(&d_dw.to_vec(device).unwrap(), &dw, &what("weights"));
}

fn pool<D: Device>(device: &mut D, examples: usize, image: Image, on_cpu: Pool, on_device: DevicePool) {
    let out = on_cpu.output();
    let what = |what: &str| format!("{what} of {examples} x {image:?}, {on_cpu:?}");
    let (features, results) = (image.features(), out.features());
    // Few distinct values, of which some are not positive, so that ties are common; and a NaN.
    let mut x: Vec<f32> = numbers(examples * features, 1).iter().map(|value| (value * 2.0).round()).collect();
    x[features / 2] = f32::NAN;
    let dy = numbers(examples * results, 2);
    let panels = Panels::new(examples);
    let (x_panels, dy_panels) = (in_panels(panels, &x, features), in_panels(panels, &dy, results));
    let [d_x, d_dy] = [&x, &dy].map(|values| Buffer::of(device, "tensor", values).unwrap());
    let mut y = vec![0.0; panels.elements(results)];
    let mut dx = vec![0.0; panels.elements(features)];
    let mut d_y = Buffer::zeros(device, "y", examples * results).unwrap();
    let mut d_dx = Buffer::zeros(device, "dx", examples * features).unwrap();
    on_cpu.greatest(panels, &x_panels, &mut y);
    on_device.greatest(device, examples, &d_x, &mut d_y).unwrap();
    assert_bits(&d_y.to_vec(device).unwrap(), &in_rows(panels, &y, results), &what("greatest"));
    for rectified in [false, true] {
        on_cpu.greatest_gradient(rectified, panels, &x_panels, &dy_panels, &mut dx);
        on_device.greatest_gradient(device, examples, rectified, (&d_x, &d_dy), &mut d_dx).unwrap();
        assert_bits(
            &d_dx.to_vec(device).unwrap(),
            &in_rows(panels, &dx, features),
            &what("greatest_gradient"),
        );
    }
    on_cpu.mean(panels, &x_panels, &mut y);
    on_device.mean(device, examples, &d_x, &mut d_y).unwrap();
    assert_bits(&d_y.to_vec(device).unwrap(), &in_rows(panels, &y, results), &what("mean"));
    on_cpu.mean_gradient(panels, &dy_panels, &mut dx);
    on_device.mean_gradient(device, examples, &d_dy, &mut d_dx).unwrap();
    assert_bits(&d_dx.to_vec(device).unwrap(), &in_rows(panels, &dx, features), &what("mean_gradient"));
}

fn batch_norm<D: Device>(device: &mut D, examples: usize, image: Image) {
    let (norm, features) = (BatchNorm { image }, image.features());
    let panels = Panels::new(examples);
    let (x, dy) = (numbers(examples * features, 1), numbers(examples * features, 2));
    let (weight, bias) = (numbers(image.channels, 3), numbers(image.channels, 4));
    let x_panels = in_panels(panels, &x, features);
    let room = || vec![0.0; image.channels];
    let (mut mean, mut variance, mut inverse) = (room(), room(), room());
    let mut by = Statistics { mean: &mut mean, variance: &mut variance, inverse: &mut inverse };
    norm.measure(panels, &x_panels, &mut by);
    let (mut y, mut gradient) = (vec![0.0; x_panels.len()], in_panels(panels, &dy, features));
    norm.forward([&weight, &bias], panels, &by, &x_panels, &mut y);
    let (mut of_weight, mut of_bias, mut of_mean, mut of_variance) = (room(), room(), room(), room());
    norm.backward(&weight, panels, &by, &x_panels, &mut gradient, [&mut of_weight, &mut of_bias]);
    norm.mean_part(panels, by.mean, &mut of_mean);
    norm.variance_part(panels, by.variance, &mut of_variance);

    let Image { channels, height, width } = image;
    let on_device = DeviceBatchNorm { image: ImageSize { channels, height, width } };
    let [d_x, mut d_dy, d_weight, d_bias] =
        [&x, &dy, &weight, &bias].map(|values| Buffer::of(device, "tensor", values).unwrap());
    let [mut d_of_weight, mut d_of_bias, mut d_of_mean, mut d_of_variance] =
        ["weight", "bias", "mean", "variance"].map(|name| Buffer::zeros(device, name, channels).unwrap());
    let mut d_by = DeviceStatistics::new(device, "bn", channels).unwrap();
    on_device.measure(device, examples, &d_x, &mut d_by).unwrap();
    let mut d_y = Buffer::zeros(device, "y", x.len()).unwrap();
    on_device.forward(device, examples, (&d_weight, &d_bias), &d_by, &d_x, &mut d_y).unwrap();
    let made = (&mut d_of_weight, &mut d_of_bias);
    on_device.backward(device, examples, &d_weight, &d_by, (&d_x, &mut d_dy), made).unwrap();
    on_device.parts(device, examples, &d_by, (&mut d_of_mean, &mut d_of_variance)).unwrap();
    for (found, expected, what) in [
        (&d_y, &in_rows(panels, &y, features), "y"),
        (&d_dy, &in_rows(panels, &gradient, features), "dx"),
        (&d_by.mean, &mean, "mean"),
        (&d_by.variance, &variance, "variance"),
        (&d_by.inverse, &inverse, "inverse"),
        (&d_of_weight, &of_weight, "weight"),
        (&d_of_bias, &of_bias, "bias"),
        (&d_of_mean, &of_mean, "running mean"),
        (&d_of_variance, &of_variance, "running variance"),
    ] {
        assert_bits(
            &found.to_vec(device).unwrap(),
            expected,
            &format!("batch norm, {what}, {examples} x {image:?}"),
        );
    }
}
