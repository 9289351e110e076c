//! The comparisons on a GPU: `cargo test -p testudo-kernels --features gpu-tests cuda`. They fail where there is none, and the one of cuBLAS where
//! that is not there.

use super::{comparisons, programs};
use crate::cuda::{Argument, Buffer, Device, DeviceError, Geometry, Gpu, Products, Source, self_test};

fn gpu() -> Gpu {
    let gpu = Gpu::open(0).unwrap();
    println!("on {}", gpu.name());
    gpu
}

#[test]
fn aggregation_has_the_bits_of_the_cpu_on_a_gpu() {
    comparisons::aggregation(&mut gpu());
}

#[test]
fn robust_rules_have_the_bits_of_the_cpu_on_a_gpu() {
    comparisons::robust(&mut gpu(), 1024);
    comparisons::weighing(&mut gpu());
}

#[test]
fn losses_have_the_bits_of_the_cpu_on_a_gpu() {
    comparisons::losses(&mut gpu());
}

#[test]
fn codecs_have_the_bits_of_the_cpu_on_a_gpu() {
    comparisons::codecs(&mut gpu());
}

#[test]
fn layers_have_the_bits_of_the_cpu_on_a_gpu() {
    comparisons::layers(&mut gpu());
}

#[test]
fn sequence_layers_have_the_bits_of_the_cpu_on_a_gpu() {
    comparisons::sequence(&mut gpu());
}

#[test]
fn attention_has_the_bits_of_the_cpu_on_a_gpu() {
    comparisons::attention(&mut gpu());
}

#[test]
fn image_layers_have_the_bits_of_the_cpu_on_a_gpu() {
    comparisons::images(&mut gpu());
}

#[test]
fn products_have_the_bits_of_the_cpu_on_a_gpu() {
    comparisons::linear(&mut gpu());
}

/// cuBLAS multiplies the right matrices, as exactly as it was asked to. Which kernel it takes for small ones is its own affair: bits may happen to be
/// ours.
#[test]
fn products_of_cublas_are_the_same_products_on_a_gpu() {
    for (products, most) in [(Products::F32, 1e-5), (Products::Tf32, 4e-3), (Products::Bf16, 3e-2)] {
        comparisons::products(gpu().with_products(products).unwrap(), most, false);
    }
}

#[test]
fn elementary_functions_have_the_bits_of_the_cpu_on_a_gpu() {
    comparisons::functions(&mut gpu(), 1);
}

#[test]
fn training_a_perceptron_has_the_bits_of_the_cpu_on_a_gpu() {
    comparisons::training(gpu, &mut programs::named("adam"));
}

#[test]
fn models_have_the_bits_of_the_cpu_on_a_gpu() {
    for kind in ["mlp", "cnn", "gpt", "resnet18"] {
        comparisons::models(kind, gpu);
    }
}

/// Of those that ship, with a tensor longer than the two buffers that copies go through hold.
#[test]
fn optimizers_have_the_bits_of_the_cpu_on_a_gpu() {
    let mut gpu = gpu();
    let mut own = [programs::sums()];
    comparisons::totals(&mut gpu, &own[0]);
    for (long, pairs) in [((2 << 20) + 3, programs::shipped()), (1 << 20, programs::random(60))] {
        for mut pair in pairs {
            for (elements, rate) in [(0, 0.01), (1, 0.01), (613, 0.0), (long, 0.01)] {
                comparisons::optimizer(&mut gpu, &mut pair, elements, rate);
            }
            comparisons::checked(&mut gpu, &mut pair, 70_000);
        }
    }
    comparisons::optimizer(&mut gpu, &mut own[0], (2 << 20) + 3, 0.01);
}

#[test]
fn what_does_not_fit_is_refused_on_a_gpu() {
    let mut gpu = gpu();
    comparisons::refusals(&mut gpu);
    let (mut adam, mut lamb) = (programs::named("adam"), programs::named("lamb"));
    comparisons::refused_updates(&mut gpu, &mut adam, &mut lamb);
}

#[test]
fn a_gpu_passes_its_own_test() {
    assert_eq!(self_test(&mut gpu().prepared().unwrap()), Ok(()));
}

#[test]
fn long_tensors_go_to_a_gpu_and_back() {
    comparisons::round_trips(&mut gpu());
}

/// A copy of 256 MiB is over while a kernel that was launched after it is still at work.
#[test]
fn copies_run_beside_kernels_on_a_gpu() {
    let text = r#"
extern "C" __global__ void spin(float *x, u64 rounds)
{
    float value = x[0];
    for (u64 i = 0; i < rounds; i++) {
        value = fmaf(value, 0.5f, 1.0f);
    }
    x[0] = value;
}
"#;
    let source = Source::generated("spin.cu", text);
    let mut gpu = gpu();
    let values: Vec<f32> = (0..64 << 20).map(|at| at as f32).collect();
    let gradient = Buffer::of(&mut gpu, "gradient", &values).unwrap();
    let mut x = Buffer::of(&mut gpu, "x", &[1.0f32]).unwrap();
    let geometry = Geometry { blocks: 1, threads: 1, shared_bytes: 0 };
    // Once for nothing: it compiles, and room for copies is made.
    for rounds in [1, 200_000_000] {
        gpu.synchronize().unwrap();
        let fetch = gradient.fetch(&mut gpu).unwrap();
        gpu.launch(&source, "spin", geometry, &mut [x.output(), Argument::U64(rounds)]).unwrap();
        let mut same = false;
        gpu.collect(fetch, &mut |bytes| same = bytes == bytemuck::cast_slice::<f32, u8>(&values)).unwrap();
        assert!(same);
        assert!(rounds == 1 || !gpu.is_idle(), "the copy waited for the kernel, or the kernel is too short");
    }
    assert_eq!(x.to_vec(&mut gpu).unwrap(), [2.0]);
}

/// Invariant 4: the error names the tensor, and the process goes on.
#[test]
fn out_of_memory_names_the_tensor_and_can_be_outlived() {
    let mut gpu = gpu();
    let error = Buffer::<_, f32>::zeros(&mut gpu, "wte.weight", 1 << 48).unwrap_err();
    assert!(matches!(&error, DeviceError::OutOfMemory { tensor, .. } if tensor == "wte.weight"), "{error}");
    comparisons::aggregation(&mut gpu);
}
