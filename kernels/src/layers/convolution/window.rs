//! Where a kernel's taps lie along one axis of an image.

/// Taps `tap`, `tap + step` ... `count` of them, lie on positions `position`, `position + 1` and so on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Window {
    pub(super) tap: usize,
    pub(super) step: usize,
    pub(super) position: usize,
    pub(super) count: usize,
}

/// The taps of each of `outputs` positions of the output that lie within `inputs` positions of the input.
pub(super) fn forward(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Vec<Window> {
    let window = |output: usize| {
        let tap = padding.saturating_sub(output * stride).min(kernel);
        let position = (output * stride + tap).saturating_sub(padding);
        Window { tap, step: 1, position, count: (kernel - tap).min(inputs.saturating_sub(position)) }
    };
    (0..outputs).map(window).collect()
}

/// For each of `inputs` positions of the input, the positions of the output that have a tap on it. Taps are counted from
/// the kernel's end, so that both ascend.
pub(super) fn backward(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Vec<Window> {
    let window = |input: usize| {
        // Output q has tap input + padding - q stride, counted from the start.
        let last = ((input + padding) / stride).min(outputs.saturating_sub(1));
        let first = (input + padding + 1).saturating_sub(kernel).div_ceil(stride);
        let tap = (kernel + first * stride).saturating_sub(input + padding + 1);
        Window { tap, step: stride, position: first, count: (last + 1).saturating_sub(first) }
    };
    (0..inputs).map(window).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_every_pair_that_meets() {
        for (inputs, kernel, stride, padding) in (1usize..9).flat_map(|i| {
            (1..5).flat_map(move |k| (1..4).flat_map(move |s| (0..k).map(move |p| (i, k, s, p))))
        }) {
            let Some(outputs) = (inputs + 2 * padding).checked_sub(kernel).map(|free| free / stride + 1)
            else {
                continue;
            };
            let meet = |output: usize, tap: usize, input: usize| output * stride + tap == input + padding;
            for (output, window) in forward(inputs, outputs, kernel, stride, padding).into_iter().enumerate()
            {
                let found: Vec<_> =
                    (0..window.count).map(|i| (window.tap + i, window.position + i)).collect();
                let expected: Vec<_> = (0..kernel)
                    .flat_map(|tap| (0..inputs).map(move |input| (tap, input)))
                    .filter(|&(tap, input)| meet(output, tap, input))
                    .collect();
                assert_eq!(found, expected, "{inputs} {kernel} {stride} {padding} {output}");
            }
            for (input, window) in backward(inputs, outputs, kernel, stride, padding).into_iter().enumerate()
            {
                let found: Vec<_> =
                    (0..window.count).map(|i| (window.tap + i * stride, window.position + i)).collect();
                let expected: Vec<_> = (0..kernel)
                    .flat_map(|tap| (0..outputs).map(move |output| (tap, output)))
                    .filter(|&(tap, output)| meet(output, kernel - 1 - tap, input))
                    .collect();
                assert_eq!(found, expected, "{inputs} {kernel} {stride} {padding} {input}");
            }
        }
    }
}
