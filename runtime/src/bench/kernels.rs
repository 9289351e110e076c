//! Bandwidth of kernels on a GPU: the bytes that each must read and write over its time, as a share of what a copy within the
//! GPU's memory reaches. And models' gradient steps there, parameters in and gradients out included.

use std::time::Instant;

use testudo_kernels::cuda::{
    self, Buffer, Device, DeviceError, DeviceModel, DeviceOptimizer, DeviceSlice, Gpu, Votes,
};
use testudo_kernels::optimizer::{Optimizer, StepInputs, shipped};
use testudo_kernels::{Aggregation, Batch, Codec, GptSpec, Model, ModelError, ModelSpec, Norm};

use crate::bench::transport::median;
use crate::error::Failure;
use crate::say::say;

/// Measurements of each kernel, of which the median counts; one more comes first, which compiles.
const REPEAT: usize = 5;
/// Launches of a measurement: what a launch costs the host hides behind them.
const LAUNCHES: u32 = 20;
/// Votes of the robust rule.
const VOTES: usize = 7;

type Numbers = Buffer<<Gpu as Device>::Memory, f32>;

/// One line of the result.
struct Line {
    name: String,
    /// Bytes read and written, 10^9 a second.
    gb_per_second: f64,
}

/// Measures on GPU `number`, with tensors of `mib` MiB, and prints each kernel's share of a copy's bandwidth.
///
/// # Errors
/// When there is no such GPU, with what was looked for and where, or its memory does not suffice.
pub fn run(number: u32, mib: u32, json: bool) -> Result<(), Failure> {
    if !(1..=4096).contains(&mib) {
        return Err(Failure::misconfigured("--mib must be 1 to 4096"));
    }
    let mut gpu = Gpu::open(number).map_err(Failure::misconfigured)?;
    let lines = measure(&mut gpu, mib as usize * (1 << 18)).map_err(Failure::failed)?;
    let copy = lines.first().map_or(f64::NAN, |line| line.gb_per_second);
    say!("{}, tensors of {mib} MiB, bytes read and written:", gpu.name());
    for line in &lines {
        let share = line.gb_per_second / copy;
        say!("{:<24} {:>8.0} GB/s {:>5.0} % of a copy", line.name, line.gb_per_second, 100.0 * share);
    }
    let steps = models(number).map_err(Failure::failed)?;
    say!("gradient steps:");
    for step in &steps {
        say!("{:<24} {:>8} examples {:>10.3} ms", step.name, step.examples, step.milliseconds);
    }
    if json {
        let models: serde_json::Map<String, serde_json::Value> = steps
            .iter()
            .map(|step| {
                (
                    step.name.to_owned(),
                    serde_json::json!({ "examples": step.examples, "milliseconds": step.milliseconds }),
                )
            })
            .collect();
        let kernels: serde_json::Map<String, serde_json::Value> = lines
            .iter()
            .map(|line| (line.name.clone(), serde_json::json!({ "gb_per_second": line.gb_per_second, "share_of_copy": line.gb_per_second / copy })))
            .collect();
        say!(
            "{}",
            serde_json::json!({ "gpu": gpu.name(), "mib": mib, "kernels": kernels, "models": models })
        );
    }
    Ok(())
}

fn measure(gpu: &mut Gpu, elements: usize) -> Result<Vec<Line>, DeviceError> {
    let mut lines = Vec::new();
    let tensor = (elements * size_of::<f32>()) as f64;
    let (mut a, b) = (ones(gpu, elements)?, ones(gpu, elements)?);
    let mut line = |name: &str, tensors: f64, seconds: f64| {
        lines.push(Line { name: name.into(), gb_per_second: tensors * tensor / seconds / 1e9 });
    };
    line("copy", 2.0, time(gpu, |gpu| gpu.copy(&b, &mut a))?);
    line("add", 3.0, time(gpu, |gpu| cuda::add(gpu, &mut a, &b))?);
    line("divide", 2.0, time(gpu, |gpu| cuda::divide(gpu, &mut a, 3.0))?);
    let mut halves = Buffer::<_, u8>::zeros(gpu, "halves", 2 * elements)?;
    line("bf16 encode", 1.5, time(gpu, |gpu| cuda::encode(gpu, Codec::Bf16, &b, &mut halves))?);
    line("bf16 decode", 1.5, time(gpu, |gpu| cuda::decode(gpu, Codec::Bf16, &halves, &mut a))?);
    line("f16 encode", 1.5, time(gpu, |gpu| cuda::encode(gpu, Codec::F16, &b, &mut halves))?);
    line("f16 decode", 1.5, time(gpu, |gpu| cuda::decode(gpu, Codec::F16, &halves, &mut a))?);
    for name in ["sgd", "momentum", "adam", "lion"] {
        let Some(Ok(program)) = shipped::program(name) else { continue };
        let states = program.state_tensors().len();
        let mut state = Vec::new();
        for _ in 0..states {
            state.push(Buffer::zeros(gpu, "state", elements)?);
        }
        let mut optimizer = DeviceOptimizer::new(name, Optimizer::new(&program, &[])?)?;
        let inputs = StepInputs { step: 1, learning_rate: 0.01, divisor: 1.0 };
        let seconds = time(gpu, |gpu| {
            let slice = DeviceSlice { weights: &b, gradient_to_weights: &mut a, state: &mut state };
            optimizer.update(gpu, inputs, slice, &mut [])
        })?;
        // Weights read; gradient read and weights written; each state read and written.
        line(name, 3.0 + 2.0 * states as f64, seconds);
    }
    let votes = ones(gpu, VOTES * elements)?;
    let median = Votes::new(gpu, Aggregation::Median { hostile: 0 }, VOTES)?;
    line("median of 7", 8.0, time(gpu, |gpu| median.aggregate(gpu, &votes, &mut a))?);
    Ok(lines)
}

/// A model's gradient step.
struct Step {
    name: &'static str,
    examples: usize,
    milliseconds: f64,
}

/// The models that are measured, with batches as they are trained with.
fn measured() -> [(&'static str, ModelSpec, usize); 4] {
    let gpt = GptSpec {
        vocabulary: 256,
        context: 256,
        layers: 6,
        heads: 6,
        width: 384,
        dropout: 0.0,
        attention_dropout: 0.0,
        norm: Norm::Layer,
    };
    let label_smoothing = 0.0;
    [
        ("mlp", ModelSpec::Mlp { inputs: 784, hidden: vec![512, 256], classes: 10 }, 1024),
        ("cnn", ModelSpec::Cnn { image: [1, 28, 28], classes: 10, label_smoothing }, 256),
        ("resnet18", ModelSpec::ResNet18 { image: [3, 32, 32], classes: 10, label_smoothing }, 128),
        ("gpt", ModelSpec::Gpt(gpt), 16),
    ]
}

fn models(number: u32) -> Result<Vec<Step>, ModelError> {
    let mut steps = Vec::new();
    for (name, spec, examples) in measured() {
        let mut model = DeviceModel::new(Gpu::open(number)?, &spec, examples)?;
        let owned: Vec<Vec<f32>> = model
            .parameters()
            .iter()
            .map(|parameter| {
                let mut values = vec![0.0; parameter.shape.elements()];
                parameter.initialize(1, 0, &mut values);
                values
            })
            .collect();
        let parameters: Vec<&[f32]> = owned.iter().map(Vec::as_slice).collect();
        // Tokens are classes; for images, any numbers will do.
        let input = |at: usize| (at % spec.classes()) as f32;
        let inputs: Vec<f32> = (0..examples * spec.input_elements()).map(input).collect();
        let label = |at: usize| (at % spec.classes()) as u32;
        let labels: Vec<u32> = (0..examples * spec.targets()).map(label).collect();
        let mut milliseconds = Vec::new();
        for _ in 0..=REPEAT {
            let start = Instant::now();
            model.gradients(&parameters, Batch::new(&inputs, &labels), &mut |_, _| {})?;
            milliseconds.push(start.elapsed().as_secs_f64() * 1e3);
        }
        steps.push(Step { name, examples, milliseconds: median(milliseconds.into_iter().skip(1)) });
    }
    Ok(steps)
}

/// Seconds of one launch.
fn time(
    gpu: &mut Gpu,
    mut launch: impl FnMut(&mut Gpu) -> Result<(), DeviceError>,
) -> Result<f64, DeviceError> {
    let mut seconds = Vec::new();
    for _ in 0..=REPEAT {
        gpu.synchronize()?;
        let start = Instant::now();
        for _ in 0..LAUNCHES {
            launch(gpu)?;
        }
        gpu.synchronize()?;
        seconds.push(start.elapsed().as_secs_f64() / f64::from(LAUNCHES));
    }
    Ok(median(seconds.into_iter().skip(1)))
}

fn ones(gpu: &mut Gpu, elements: usize) -> Result<Numbers, DeviceError> {
    Buffer::of(gpu, "ones", &vec![1.0; elements])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    /// Where there is no GPU of that number: what was looked for is said, whether a library is missing or the GPU.
    #[test]
    fn a_missing_gpu_is_said() {
        let failure = run(u32::MAX, 1, false).unwrap_err();
        assert_eq!(failure.status, Status::Misconfigured);
        let said = &failure.message;
        assert!(["libcuda", "libnvrtc", "GPU"].iter().any(|word| said.contains(word)), "{said}");
        assert!(run(0, 0, false).unwrap_err().message.contains("--mib"));
    }
}
