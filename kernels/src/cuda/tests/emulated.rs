//! Kernels on the emulator: the same bits as on the CPU, in whatever order threads run; and what the emulator notices.

use super::{comparisons, programs};
use crate::codec::Codec;
use crate::cuda::emulator::{Emulator, is_there};
use crate::cuda::{Buffer, Device, DeviceError, DeviceModel, Geometry, Source};
use crate::model::{Batch, Gradient, Model, ModelSpec};

/// Invariants 1 and 3, with few blocks and many, and threads in any order.
fn everywhere(mut compare: impl FnMut(&mut Emulator), sources: &[Source]) {
    if !is_there() {
        return;
    }
    let mut emulator = Emulator::new(sources);
    for (seed, blocks) in [(0, 7), (1, 3), (2, u32::MAX)] {
        (emulator.seed, emulator.blocks) = (seed, blocks);
        compare(&mut emulator);
    }
}

#[test]
fn aggregation_has_the_bits_of_the_cpu() {
    everywhere(comparisons::aggregation, &[Source::aggregate()]);
}

#[test]
fn robust_rules_have_the_bits_of_the_cpu() {
    everywhere(|device| comparisons::robust(device, 1024), &[Source::robust()]);
}

#[test]
fn rules_that_weigh_whole_gradients_have_the_bits_of_the_cpu() {
    everywhere(comparisons::weighing, &[Source::robust(), Source::network()]);
}

#[test]
fn losses_have_the_bits_of_the_cpu() {
    everywhere(comparisons::losses, &[Source::losses()]);
}

#[test]
fn codecs_have_the_bits_of_the_cpu() {
    everywhere(comparisons::codecs, &[Source::aggregate(), Source::codec()]);
}

#[test]
fn layers_have_the_bits_of_the_cpu() {
    everywhere(comparisons::layers, &[Source::layers()]);
}

#[test]
fn sequence_layers_have_the_bits_of_the_cpu() {
    everywhere(comparisons::sequence, &[Source::sequence(), Source::layers()]);
}

#[test]
fn attention_has_the_bits_of_the_cpu() {
    everywhere(comparisons::attention, &[Source::attention()]);
}

#[test]
fn image_layers_have_the_bits_of_the_cpu() {
    everywhere(comparisons::images, &[Source::image(), Source::batch_norm(), Source::aggregate()]);
}

#[test]
fn products_have_the_bits_of_the_cpu() {
    everywhere(comparisons::linear, &[Source::linear()]);
}

/// Whole models of a kind: with few blocks and threads in order, and with others in some other.
fn whole(kind: &str, orders: &[(u32, u32)], sources: &[Source]) {
    if !is_there() {
        return;
    }
    let program = Emulator::new(sources);
    for (seed, blocks) in orders.iter().copied() {
        let device = || {
            let mut device = program.another();
            (device.seed, device.blocks) = (seed, blocks);
            device
        };
        comparisons::models(kind, device);
    }
}

/// Gradients that are encoded before they leave are what the CPU makes of the CPU's.
#[test]
fn encoded_gradients_have_the_bytes_of_the_cpu() {
    if !is_there() {
        return;
    }
    let emulator = Emulator::new(&[Source::codec(), Source::layers(), Source::linear(), Source::network()]);
    let spec = ModelSpec::Mlp { inputs: 40, hidden: vec![33], classes: 3 };
    let values: Vec<Vec<f32>> =
        spec.parameters().unwrap().iter().map(|p| comparisons::numbers(p.shape.elements(), 9)).collect();
    let parameters: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
    let inputs = comparisons::numbers(5 * 40, 3);
    let batch = Batch::new(&inputs, &[0, 2, 1, 1, 0]);
    for codec in [Codec::F16, Codec::Bf16] {
        let mut expected = Vec::new();
        let mut encode = |index: usize, values: &[f32]| {
            let mut bytes = vec![0; codec.encoded_len(values.len())];
            codec.encode(values, &mut bytes).unwrap();
            expected.push((index, bytes, values[..values.len().min(1024)].to_vec()));
        };
        let loss = spec.build(5).unwrap().gradients(&parameters, batch, &mut encode).unwrap();
        let model = DeviceModel::new(emulator.another(), &spec, 5).unwrap();
        let mut found = Vec::new();
        let mut ready = |index: usize, gradient: Gradient<'_>| {
            let Gradient::Encoded { bytes, start } = gradient else { panic!("{codec:?}: {gradient:?}") };
            found.push((index, bytes.to_vec(), start.to_vec()));
        };
        let mut model = model.with_codec(codec).unwrap();
        assert_eq!(model.gradients_in(codec, &parameters, batch, &mut ready).unwrap(), loss);
        found.sort_by_key(|(index, ..)| *index);
        expected.sort_by_key(|(index, ..)| *index);
        assert!(found == expected, "{codec:?}");
    }
}

/// A library's products are the same ones in another order of additions: a perceptron's gradients are close to the CPU's, and not equal.
#[test]
fn products_of_a_library_are_the_same_products() {
    if !is_there() {
        return;
    }
    let mut device = Emulator::new(&[Source::layers(), Source::network()]);
    device.library = true;
    comparisons::products(device, 1e-5, true);
}

const ORDERS: [(u32, u32); 2] = [(0, 7), (1, 3)];

#[test]
fn perceptrons_have_the_bits_of_the_cpu() {
    whole("mlp", &ORDERS, &[Source::linear(), Source::layers()]);
}

#[test]
fn convolutional_networks_have_the_bits_of_the_cpu() {
    let images = [Source::image(), Source::network(), Source::batch_norm()];
    whole("cnn", &ORDERS, &[&[Source::linear(), Source::layers()][..], &images].concat());
}

#[test]
fn gpts_have_the_bits_of_the_cpu() {
    let sequences = [Source::sequence(), Source::attention(), Source::network()];
    whole("gpt", &ORDERS, &[&[Source::linear(), Source::layers()][..], &sequences].concat());
}

#[test]
fn residual_networks_have_the_bits_of_the_cpu() {
    let images = [Source::image(), Source::network(), Source::batch_norm(), Source::aggregate()];
    // One order: it has eleven million parameters.
    whole("resnet18", &ORDERS[1..], &[&[Source::linear(), Source::layers()][..], &images].concat());
}

#[test]
fn training_a_perceptron_has_the_bits_of_the_cpu() {
    if !is_there() {
        return;
    }
    let mut adam = programs::named("adam");
    let optimizer = adam.device.kernels().source().clone();
    let program = Emulator::new(&[Source::linear(), Source::layers(), optimizer]);
    comparisons::training(|| program.another(), &mut adam);
}

/// Invariant 4, of a whole model: what there was no memory for is named, and a smaller one is built.
#[test]
fn a_model_that_does_not_fit_names_the_tensor() {
    let spec = crate::ModelSpec::Mlp { inputs: 30, hidden: vec![20], classes: 4 };
    let of_memory = |memory| {
        let mut device = Emulator::without_kernels();
        device.memory = memory;
        DeviceModel::new(device, &spec, 2).map(|_| ()).map_err(|error| error.to_string())
    };
    let said = of_memory(2_000).unwrap_err();
    assert!(said.contains("tensor fc1.weight: it takes 2400 bytes, and 1"), "{said}");
    let said = of_memory(5_000).unwrap_err();
    assert!(said.contains("tensor gradient of fc1.weight"), "{said}");
    assert_eq!(of_memory(8_000), Ok(()));
}

/// The same, of every tensor of every kind of model: as memory grows by what was missing, what is missing next is another one.
#[test]
fn every_tensor_of_a_model_has_a_name_of_its_own() {
    for spec in comparisons::specs() {
        let (mut memory, mut names) = (0, Vec::new());
        loop {
            let mut device = Emulator::without_kernels();
            device.memory = memory;
            let Err(error) = DeviceModel::new(device, &spec, 2) else { break };
            let said = error.to_string();
            let (_, rest) = said.split_once("no memory on the GPU for tensor ").unwrap();
            let (tensor, rest) = rest.split_once(": it takes ").unwrap();
            assert!(!names.contains(&tensor.to_owned()), "{tensor} of {spec:?}");
            names.push(tensor.to_owned());
            let numbers = rest.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
            let [bytes, free, total] = numbers.collect::<Vec<usize>>()[..3] else { panic!("{said}") };
            memory = total - free + bytes;
        }
        let parameters = spec.parameters().unwrap();
        for name in parameters.iter().map(|parameter| parameter.name.as_str()) {
            let gradient = format!("gradient of {name}");
            assert!(names.contains(&name.to_owned()) && names.contains(&gradient), "{names:?}");
        }
        assert!(names.len() > 2 * parameters.len() + 4, "activations too: {names:?}");
    }
}

#[test]
fn shipped_optimizers_have_the_bits_of_the_cpu() {
    let mut pairs = programs::shipped();
    pairs.push(programs::sums());
    let mut sources: Vec<Source> = pairs.iter().map(|pair| pair.device.kernels().source().clone()).collect();
    sources.push(Source::aggregate());
    everywhere(
        |device| {
            comparisons::totals(device, &pairs[0]);
            for pair in &mut pairs {
                for (elements, rate) in [(0, 0.01), (1, 0.01), (613, 0.0), (2 * 4096 + 203, 0.01)] {
                    comparisons::optimizer(device, pair, elements, rate);
                }
                comparisons::checked(device, pair, 613);
            }
        },
        &sources,
    );
}

#[test]
fn random_optimizers_have_the_bits_of_the_cpu() {
    let mut pairs = programs::random(60);
    let mut sources: Vec<Source> = pairs.iter().map(|pair| pair.device.kernels().source().clone()).collect();
    sources.push(Source::aggregate());
    everywhere(
        |device| {
            for pair in &mut pairs {
                comparisons::optimizer(device, pair, 300, 0.1);
                comparisons::checked(device, pair, 300);
            }
        },
        &sources,
    );
}

/// What is refused launches nothing: there is nothing here that could run.
#[test]
fn what_does_not_fit_is_refused() {
    let mut device = Emulator::without_kernels();
    comparisons::refusals(&mut device);
    let (mut adam, mut lamb) = (programs::named("adam"), programs::named("lamb"));
    comparisons::refused_updates(&mut device, &mut adam, &mut lamb);
}

/// A source of the test's own.
fn source(text: &str) -> Source {
    Source::generated("test.cu", text)
}

/// `exp`, `ln` and `tanh` are the CPU's, over a sweep of all bit patterns.
#[test]
fn elementary_functions_have_the_bits_of_the_cpu() {
    if !is_there() {
        return;
    }
    let mut device = Emulator::new(&[comparisons::functions_source()]);
    comparisons::functions(&mut device, 37);
}

/// What becomes of kernels with these bodies: what `x` then is, or why not. Each has two arrays of 8 numbers, 256 bytes of shared
/// memory and 64 threads.
fn outcomes<'a>(bodies: impl Iterator<Item = &'a str>) -> Vec<String> {
    let kernels = bodies.enumerate().map(|(case, body)| {
        format!("#line 1 \"case.cu\"\nextern \"C\" __global__ void case_{case}(float *x, const float *y)\n{{\n{body}\n}}\n")
    });
    let source = source(&kernels.collect::<String>());
    let mut device = Emulator::new(std::slice::from_ref(&source));
    let y = Buffer::of(&mut device, "y", &[0.0f32; 8]).unwrap();
    let geometry = Geometry { blocks: 1, threads: 64, shared_bytes: 256 };
    let cases = source.kernels().filter(|kernel| kernel.starts_with("case_"));
    cases
        .map(|case| {
            let mut x = Buffer::of(&mut device, "x", &[0.0f32; 8]).unwrap();
            match device.launch(&source, case, geometry, &mut [x.output(), y.input()]) {
                Ok(()) => format!("{:?}", x.to_vec(&mut device).unwrap()),
                Err(DeviceError::Driver { message, .. }) => message,
                Err(other) => other.to_string(),
            }
        })
        .collect()
}

/// What runs over a buffer is stopped, and named; threads that wait for what cannot come are an error that names both.
#[test]
fn the_emulator_notices_faults() {
    if !is_there() {
        return;
    }
    let cases = [
        (
            "x[threadIdx.x] = 1.0f;",
            "thread 8 of block 0 reached 0 bytes past the end of argument 0, which has 32 bytes",
        ),
        (
            "if (threadIdx.x == 9) x[0] = y[8 + threadIdx.x];",
            "thread 9 of block 0 reached 36 bytes past the end of argument 1",
        ),
        ("if (threadIdx.x == 0) x[-1] = 1.0f;", "a thread wrote before the start of argument 0"),
        ("const_cast<float *>(y)[threadIdx.x % 8] = 1.0f;", "to write to byte 0 of the constant argument 1"),
        (
            "DYNAMIC_SHARED(float, s); s[threadIdx.x + 1] = 1.0f;",
            "thread 63 of block 0 reached 0 bytes past the end of dynamic shared memory",
        ),
        ("*(volatile float *)16 = y[0] + x[0];", "an address that is in no argument"),
        (
            "if (threadIdx.x < 32) __syncthreads();",
            "thread 0 waits at case.cu:3 for thread 32, which has ended",
        ),
        (
            "if (threadIdx.x == 5)\n__syncthreads();\nelse\n__syncthreads();",
            "thread 0 waits at case.cu:6 for thread 5, which waits at case.cu:4",
        ),
        (
            "if (threadIdx.x != 3) x[0] = __shfl_down_sync(0xffffffffu, 1.0f, 1);",
            "thread 0 waits at case.cu:3 for thread 3, which has ended",
        ),
        (
            "if (threadIdx.x < 4) x[0] = __shfl_sync(0x0fu, 1.0f, 9);",
            "lane 9 is read, but is not in the mask",
        ),
        ("x[0] = __ballot_sync(0x0fu, true);", "thread 4 is not in its own mask"),
    ];
    let found = outcomes(cases.iter().map(|(body, _)| *body));
    assert_eq!(found.len(), cases.len());
    for ((body, said), found) in cases.iter().zip(found) {
        assert!(found.contains(said), "{body}: {found}");
    }
}

/// Barriers, shuffles, ballots and atomics do what they must; and what a missing barrier changes is seen.
#[test]
fn the_emulator_runs_blocks_as_a_gpu_does() {
    if !is_there() {
        return;
    }
    let sum = "const float sum = threadIdx.x;\n__shared__ float all[64];\nall[threadIdx.x] = sum;\n__syncthreads();\n\
        if (threadIdx.x == 0) { x[0] = all[1] + all[63]; }\n\
        if (threadIdx.x < 32) { const unsigned even = __ballot_sync(0xffffffffu, threadIdx.x % 2 == 0); \
        const float up = __shfl_up_sync(0xffffffffu, sum, 1); const float other = __shfl_xor_sync(0xffffffffu, sum, 16); \
        if (threadIdx.x == 7) { x[1] = even == 0x55555555u ? 1.0f : 0.0f; x[2] = up; x[3] = other; } }\n\
        atomicAdd(&x[4], 1.0f); atomicMax(&x[5], sum); if (threadIdx.x == 0) { x[6] = y[0] + blockDim.x + gridDim.x; }";
    let racy = sum.replace("__syncthreads();", "");
    let found = outcomes([sum, &racy].into_iter());
    assert_eq!(found[0], "[64.0, 1.0, 6.0, 23.0, 64.0, 63.0, 65.0, 0.0]");
    // Without the barrier, thread 0 reads what nobody has written: NaN, put there for this.
    assert!(found[1].starts_with("[NaN"), "{}", found[1]);
}
