//! Elementary functions.

use super::bits;
use crate::cuda::{Argument, Buffer, Device, Geometry, Source};
use crate::math;

/// Kernels of the test's own.
pub(in crate::cuda::tests) fn source() -> Source {
    let text = r#"
extern "C" __global__ void functions(const float *x, float *exps, float *lns, float *tanhs, u64 elements)
{
    EACH(i, elements) {
        exps[i] = t_exp(x[i]);
        lns[i] = t_ln(x[i]);
        tanhs[i] = t_tanh(x[i]);
    }
}
"#;
    Source::generated("functions.cu", text)
}

/// `exp`, `ln` and `tanh`, over every so many of a sweep of all bit patterns.
pub(in crate::cuda::tests) fn functions<D: Device>(device: &mut D, every: usize) {
    let inputs: Vec<f32> = math::tests::sweep().into_iter().step_by(every).collect();
    let elements = inputs.len();
    assert!(elements > 100_000);
    let x = Buffer::of(device, "x", &inputs).unwrap();
    let mut outputs: Vec<Buffer<_, f32>> =
        (0..3).map(|_| Buffer::zeros(device, "out", elements).unwrap()).collect();
    let mut arguments = vec![x.input()];
    arguments.extend(outputs.iter_mut().map(Buffer::output));
    arguments.push(Argument::U64(elements as u64));
    let geometry = Geometry { blocks: 7, threads: 256, shared_bytes: 0 };
    device.launch(&source(), "functions", geometry, &mut arguments).unwrap();
    for (output, function) in outputs.iter().zip([math::exp, math::ln, math::tanh]) {
        for (x, found) in inputs.iter().zip(output.to_vec(device).unwrap()) {
            assert_eq!(bits(&[found]), bits(&[function(*x)]), "at {x:e}");
        }
    }
}
