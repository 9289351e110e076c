//! The comparisons on a GPU: `cargo test -p testudo-kernels --features gpu-tests cuda`. They fail where there is none.

use super::{comparisons, programs};
use crate::cuda::{Buffer, DeviceError, Gpu};

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

#[test]
fn optimizers_have_the_bits_of_the_cpu_on_a_gpu() {
    let mut gpu = gpu();
    let mut own = [programs::sums()];
    comparisons::totals(&mut gpu, &own[0]);
    for pair in programs::shipped().iter_mut().chain(&mut own).chain(&mut programs::random(60)) {
        for (elements, rate) in [(0, 0.01), (1, 0.01), (613, 0.0), (1 << 20, 0.01)] {
            comparisons::optimizer(&mut gpu, pair, elements, rate);
        }
        comparisons::checked(&mut gpu, pair, 70_000);
    }
}

/// Invariant 4: the error names the tensor, and the process goes on.
#[test]
fn out_of_memory_names_the_tensor_and_can_be_outlived() {
    let mut gpu = gpu();
    let error = Buffer::<_, f32>::zeros(&mut gpu, "wte.weight", 1 << 48).unwrap_err();
    assert!(matches!(&error, DeviceError::OutOfMemory { tensor, .. } if tensor == "wte.weight"), "{error}");
    comparisons::aggregation(&mut gpu);
}
