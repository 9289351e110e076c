//! Layers, and a model made of them.

use super::{CASES, assert_bits, finite, hard, hash, lengths, numbers, sizes};
use crate::cuda::{self, Buffer, CrossEntropy, Device, DeviceLinear};
use crate::layers;
use crate::linear::{Linear, Panels, Rows};

/// ReLU, GELU, a bias's gradient, softmax and cross-entropy.
pub(in crate::cuda::tests) fn layers<D: Device>(device: &mut D) {
    for (case, elements) in lengths(5).enumerate() {
        let what = |what: &str| format!("{what} of {elements} (case {case})");
        let (values, gradient) = (hard(elements, 5), hard(elements, 6));
        let mut outputs = Buffer::of(device, "outputs", &values).unwrap();
        cuda::relu(device, &mut outputs).unwrap();
        let mut expected = values;
        layers::relu(&mut expected);
        assert_bits(&outputs.to_vec(device).unwrap(), &expected, &what("relu"));
        let mut through = Buffer::of(device, "gradient", &gradient).unwrap();
        cuda::relu_gradient(device, &mut through, &outputs).unwrap();
        let mut expected_through = gradient;
        layers::relu_gradient(&mut expected_through, &expected);
        assert_bits(&through.to_vec(device).unwrap(), &expected_through, &what("relu_gradient"));

        let (values, gradient) = (hard(elements, 7), hard(elements, 8));
        let inputs = Buffer::of(device, "values", &values).unwrap();
        let mut outputs = Buffer::zeros(device, "outputs", elements).unwrap();
        cuda::gelu(device, &inputs, &mut outputs).unwrap();
        let mut expected = vec![0.0; elements];
        layers::gelu(&values, &mut expected);
        assert_bits(&outputs.to_vec(device).unwrap(), &expected, &what("gelu"));
        let mut through = Buffer::of(device, "gradient", &gradient).unwrap();
        cuda::gelu_gradient(device, &inputs, &mut through).unwrap();
        let mut expected = gradient;
        layers::gelu_gradient(&values, &mut expected);
        assert_bits(&through.to_vec(device).unwrap(), &expected, &what("gelu_gradient"));
    }
    let written = [[1, 1], [15, 31], [16, 32], [37, 33], [100, 300]].into_iter();
    for [examples, features] in written.chain((0..CASES).map(|case| sizes(6, case, [90, 80]))) {
        let rows = numbers(examples * features, 9);
        let gradient = Buffer::of(device, "gradient", &rows).unwrap();
        let mut bias = Buffer::zeros(device, "bias", features).unwrap();
        cuda::sum_examples(device, &gradient, examples, &mut bias).unwrap();
        let panels = Panels::new(examples);
        let mut in_panels = vec![0.0; panels.elements(features)];
        panels.fill(&rows, features, &mut in_panels);
        let mut expected = vec![0.0; features];
        layers::sum_examples(panels, &in_panels, &mut expected);
        assert_bits(
            &bias.to_vec(device).unwrap(),
            &expected,
            &format!("sum_examples, {examples} of {features}"),
        );
    }
    let written = [[1, 1], [3, 2], [9, 10], [17, 127], [5, 128], [4, 129], [2, 1000]].into_iter();
    let random = (0..CASES).map(|case| sizes(7, case, [20, 300]));
    for (seed, [examples, classes]) in written.chain(random).enumerate() {
        for make in [numbers, finite, hard] {
            let mut logits = make(examples * classes, 100 + seed as u64);
            // Ties, of which the first counts.
            logits[classes / 2] = logits[0];
            let labels: Vec<u32> = (0..examples as u64).map(|e| hash(e) as u32 % classes as u32).collect();
            let mut on_device = Buffer::of(device, "logits", &logits).unwrap();
            // Half of the cases smooth labels; there is room for more targets than there are.
            let smoothing = if seed % 2 == 0 { 0.0 } else { 0.1 };
            let mut softmax = CrossEntropy::new(device, classes, examples + 2).unwrap();
            softmax.launch(device, smoothing, &mut on_device, &labels).unwrap();
            let loss = softmax.loss(device).unwrap();
            let panels = Panels::new(examples);
            let mut expected = vec![0.0; panels.elements(classes)];
            panels.fill(&logits, classes, &mut expected);
            let mut scratch = vec![0.0; layers::scratch_elements(panels)];
            let by_cpu = layers::smoothed_cross_entropy(
                smoothing,
                panels,
                classes,
                &mut expected,
                &labels,
                &mut scratch,
            );
            let mut rows = vec![0.0; examples * classes];
            panels.empty(&expected, classes, &mut rows);
            let what = format!("cross-entropy of {examples} examples, {classes} classes (case {seed})");
            assert_bits(&on_device.to_vec(device).unwrap(), &rows, &what);
            assert_eq!((loss.correct, loss.examples), (by_cpu.correct, by_cpu.examples), "{what}");
            let same = loss.loss_sum.to_bits() == by_cpu.loss_sum.to_bits();
            assert!(same || loss.loss_sum.is_nan() && by_cpu.loss_sum.is_nan(), "{what}");
        }
    }
}

/// Products of a fully connected layer, of every shape around a tile's.
pub(in crate::cuda::tests) fn linear<D: Device>(device: &mut D) {
    let written =
        [[1, 1, 1], [3, 17, 5], [16, 16, 16], [64, 15, 64], [65, 33, 66], [130, 70, 10]].into_iter();
    let random = (0..CASES).map(|case| sizes(8, case, [80, 80, 80]));
    for (seed, [examples, inputs, outputs]) in written.chain(random).enumerate() {
        let what = |what: &str| format!("{what} of {examples} x {inputs} x {outputs} (case {seed})");
        let seed = seed as u64;
        let (layer, panels) = (Linear { inputs, outputs }, Panels::new(examples));
        let mut weights = numbers(inputs * outputs, seed);
        let (mut x, mut dy) = (numbers(examples * inputs, seed + 10), numbers(examples * outputs, seed + 20));
        let mut bias = numbers(outputs, seed + 30);
        // Sums that must stay -0, and numbers of which a product overflows.
        weights[0] = -0.0;
        x.iter_mut().step_by(3).for_each(|value| *value = if *value > 0.0 { 0.0 } else { -0.0 });
        dy[0] = f32::MAX;
        bias[0] = -0.0;
        let in_panels = |rows: &[f32], features: usize| {
            let mut values = vec![0.0; panels.elements(features)];
            panels.fill(rows, features, &mut values);
            values
        };
        let in_rows = |values: &[f32], features: usize| {
            let mut rows = vec![0.0; examples * features];
            panels.empty(values, features, &mut rows);
            rows
        };
        let on_device = DeviceLinear { inputs, outputs };
        let buffers = [&weights, &bias, &x, &dy].map(|values| Buffer::of(device, "tensor", values).unwrap());
        let [of_weights, of_bias, of_x, of_dy] = &buffers;

        let mut y = Buffer::zeros(device, "y", examples * outputs).unwrap();
        on_device.forward(device, examples, (of_weights, of_bias), of_x, &mut y).unwrap();
        let mut expected = vec![0.0; panels.elements(outputs)];
        layer.forward(&weights, &bias, panels, &in_panels(&x, inputs), &mut expected);
        assert_bits(&y.to_vec(device).unwrap(), &in_rows(&expected, outputs), &what("forward"));

        let mut dx = Buffer::zeros(device, "dx", examples * inputs).unwrap();
        on_device.backward(device, examples, of_weights, of_dy, &mut dx).unwrap();
        let mut expected = vec![0.0; panels.elements(inputs)];
        layer.backward(&weights, panels, &in_panels(&dy, outputs), &mut expected);
        assert_bits(&dx.to_vec(device).unwrap(), &in_rows(&expected, inputs), &what("backward"));

        let mut dw = Buffer::zeros(device, "dw", inputs * outputs).unwrap();
        on_device.weights(device, examples, of_dy, of_x, &mut dw).unwrap();
        let (mut expected, mut packed) =
            (vec![0.0; inputs * outputs], vec![0.0; layer.packed_elements(examples)]);
        layer.weights(panels, &in_panels(&dy, outputs), Rows::Rows(&x), &mut expected, &mut packed);
        assert_bits(&dw.to_vec(device).unwrap(), &expected, &what("weights"));
    }
}
