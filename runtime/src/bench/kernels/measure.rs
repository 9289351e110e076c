//! The memory-bound kernels, each launched as nodes launch it, beside a copy of a tensor within the GPU's memory.

use std::time::Instant;

use testudo_kernels::cuda::{
    self, Buffer, Device, DeviceError, DeviceOptimizer, DeviceSlice, DeviceWeighing, Gpu, Votes,
};
use testudo_kernels::optimizer::{Optimizer, StepInputs, shipped};
use testudo_kernels::robust::products::Products;
use testudo_kernels::robust::weigh::Weights;
use testudo_kernels::{Aggregation, Codec};

use super::{COPY, LAUNCHES, Line, REPEAT};
use crate::bench::transport::median;

/// Votes of a robust rule.
const VOTES: usize = 7;
/// Of which so many may be a liar's.
const HOSTILE: u32 = 2;

type Numbers = Buffer<<Gpu as Device>::Memory, f32>;
type Bytes = Buffer<<Gpu as Device>::Memory, u8>;

/// Bytes of so many tensors of `f32`.
fn tensors(count: usize, elements: usize) -> usize {
    count * elements * size_of::<f32>()
}

/// Every kernel's bandwidth, with tensors of so many elements; a copy's first.
pub(super) fn measure(gpu: &mut Gpu, elements: usize) -> Result<Vec<Line>, DeviceError> {
    let mut lines = Vec::new();
    let (from, mut to) = (ones(gpu, elements)?, ones(gpu, elements)?);
    let seconds = time(gpu, |gpu| gpu.copy(&from, &mut to))?;
    lines.push(Line::new(COPY, tensors(2, elements), seconds));
    aggregation(gpu, elements, &mut lines)?;
    rules(gpu, elements, &mut lines)?;
    codecs(gpu, elements, &mut lines)?;
    for name in shipped::names() {
        optimizer(gpu, elements, name, &mut lines)?;
    }
    Ok(lines)
}

fn aggregation(gpu: &mut Gpu, elements: usize, lines: &mut Vec<Line>) -> Result<(), DeviceError> {
    let (mut a, b) = (ones(gpu, elements)?, ones(gpu, elements)?);
    let seconds = time(gpu, |gpu| cuda::add(gpu, &mut a, &b))?;
    lines.push(Line::new("add", tensors(3, elements), seconds));
    let seconds = time(gpu, |gpu| cuda::add_checked(gpu, &mut a, &b).map(drop))?;
    lines.push(Line::new("add, checked", tensors(3, elements), seconds));
    let seconds = time(gpu, |gpu| cuda::first_non_finite(gpu, &b).map(drop))?;
    lines.push(Line::new("first that is not finite", tensors(1, elements), seconds));
    let seconds = time(gpu, |gpu| cuda::divide(gpu, &mut a, 3.0))?;
    lines.push(Line::new("divide", tensors(2, elements), seconds));
    Ok(())
}

/// Rules read each vote once at least, however often they do.
fn rules(gpu: &mut Gpu, elements: usize, lines: &mut Vec<Line>) -> Result<(), DeviceError> {
    let (votes, mut out) = (ones(gpu, VOTES * elements)?, ones(gpu, elements)?);
    for (name, rule) in [
        ("median of 7", Aggregation::Median { hostile: 0 }),
        ("trimmed mean of 7", Aggregation::TrimmedMean { hostile: HOSTILE }),
    ] {
        let rule = Votes::new(gpu, rule, VOTES)?;
        let seconds = time(gpu, |gpu| rule.aggregate(gpu, &votes, &mut out))?;
        lines.push(Line::new(name, tensors(VOTES + 1, elements), seconds));
    }
    for (name, norms_alone) in [("products of 7", false), ("norms of 7", true)] {
        let mut products = Products::new(VOTES, norms_alone);
        let mut weighing = DeviceWeighing::new(gpu, &products, elements)?;
        let seconds = time(gpu, |gpu| weighing.add_products(gpu, &mut products, 0, &votes))?;
        lines.push(Line::new(name, tensors(VOTES, elements), seconds));
    }
    let weights = Weights { of: vec![1.0 / VOTES as f64; VOTES], clip: 0.5 };
    let mut weighing = DeviceWeighing::new(gpu, &Products::new(VOTES, true), elements)?;
    let seconds = time(gpu, |gpu| weighing.combine(gpu, &weights, &votes, &mut out))?;
    lines.push(Line::new("combination of 7", tensors(VOTES + 1, elements), seconds));
    let seconds = time(gpu, |gpu| weighing.clip(gpu, &mut out, weights.clip))?;
    lines.push(Line::new("clip", tensors(2, elements), seconds));
    Ok(())
}

/// Both directions of every codec. With error feedback the residual is read and written beside.
fn codecs(gpu: &mut Gpu, elements: usize, lines: &mut Vec<Line>) -> Result<(), DeviceError> {
    let (values, mut out) = (ones(gpu, elements)?, ones(gpu, elements)?);
    for (name, codec) in [
        ("f32", Codec::F32),
        ("f16", Codec::F16),
        ("bf16", Codec::Bf16),
        ("int8", Codec::Int8),
        ("2bit", Codec::TwoBit { threshold: 0.5 }),
        ("1bit", Codec::OneBit { threshold: 0.0 }),
        ("topk", Codec::TopK { fraction: 0.01 }),
    ] {
        let encoded = codec.encoded_len(elements);
        let mut bytes = Bytes::zeros(gpu, "bytes", encoded)?;
        let (seconds, read) = if codec.feeds_back() {
            let mut residual = Buffer::zeros(gpu, "residual", elements)?;
            let encode =
                |gpu: &mut Gpu| cuda::encode_feedback(gpu, codec, &values, &mut residual, &mut bytes);
            (time(gpu, encode)?, tensors(3, elements))
        } else {
            (time(gpu, |gpu| cuda::encode(gpu, codec, &values, &mut bytes))?, tensors(1, elements))
        };
        lines.push(Line::new(format!("{name} encode"), read + encoded, seconds));
        let seconds = time(gpu, |gpu| cuda::decode(gpu, codec, &bytes, &mut out))?;
        lines.push(Line::new(format!("{name} decode"), encoded + tensors(1, elements), seconds));
    }
    Ok(())
}

/// By the call that servers make, which looks at what it makes.
fn optimizer(
    gpu: &mut Gpu,
    elements: usize,
    name: &'static str,
    lines: &mut Vec<Line>,
) -> Result<(), DeviceError> {
    let Some(Ok(program)) = shipped::program(name) else { return Ok(()) };
    let mut state = Vec::new();
    for _ in program.state_tensors() {
        state.push(Buffer::zeros(gpu, &format!("state of {name}"), elements)?);
    }
    let mut scalars: Vec<f64> = program.scalar_states().iter().map(|scalar| scalar.initial).collect();
    let mut optimizer = DeviceOptimizer::new(name, Optimizer::new(&program, &[])?)?;
    let (weights, mut gradient) = (ones(gpu, elements)?, ones(gpu, elements)?);
    let inputs = StepInputs { step: 1, learning_rate: 0.01, divisor: 1.0 };
    let seconds = time(gpu, |gpu| {
        let slice = DeviceSlice { weights: &weights, gradient_to_weights: &mut gradient, state: &mut state };
        optimizer.update_checked(gpu, inputs, slice, &mut scalars)
    })?;
    // Weights read; gradient read and weights written; each state read and written. A reduction reads once more, which is its own cost.
    lines.push(Line::new(name, tensors(3 + 2 * state.len(), elements), seconds));
    Ok(())
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
    use std::process::{Command, Stdio};

    use testudo_kernels::cuda::DeviceError;

    use super::*;

    /// Set in the process that measures.
    const MADE_UP: &str = "TESTUDO_MADE_UP_DRIVER";

    /// The driver that kernels' tests make up: whatever is launched must be taken, and takes no time.
    #[test]
    fn every_kernel_is_measured() {
        let compiler = || Command::new("g++");
        if compiler().arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            assert!(std::env::var_os("TESTUDO_REQUIRE_GXX").is_none(), "g++ is required here");
            println!("skipped: no g++");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernels/src/cuda/tests/driver.cpp");
        let library = folder.path().join("libcuda.so");
        let made = compiler().args(["-std=c++17", "-shared", "-fPIC", source, "-o"]).arg(library).status();
        assert!(made.unwrap().success());
        let others = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "bench::kernels::measure::tests::measures", "--ignored", "--nocapture"])
            .env("LD_LIBRARY_PATH", format!("{}:{others}", folder.path().display()))
            .env(MADE_UP, "1")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    #[ignore = "another test starts it, in a process of its own"]
    fn measures() {
        let mut gpu = match Gpu::open(0) {
            Err(DeviceError::NoLibrary { .. }) if std::env::var_os("TESTUDO_REQUIRE_NVRTC").is_none() => {
                println!("skipped: no NVRTC");
                return;
            }
            opened => opened.unwrap(),
        };
        assert!(std::env::var_os(MADE_UP).is_some() && gpu.name() == "made up");
        let lines = measure(&mut gpu, 5000).unwrap();
        assert!(lines.iter().all(|line| line.gb_per_second.is_finite() && line.gb_per_second > 0.0));
        let mut names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
        assert_eq!(names[0], COPY);
        for name in shipped::names().chain(["add, checked", "products of 7", "topk encode", "1bit decode"]) {
            assert!(names.contains(&name), "{name}");
        }
        // A copy, four sums and checks, six rules, seven codecs both ways, thirteen optimizers.
        assert_eq!(names.len(), 1 + 4 + 6 + 2 * 7 + 13);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), lines.len(), "each has a name of its own");
    }
}
