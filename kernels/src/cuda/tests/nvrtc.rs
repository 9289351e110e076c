//! Every kernel compiles, for every kind of GPU that is promised.

use super::programs;
use crate::cuda::driver::loaded;
use crate::cuda::nvrtc::compile;
use crate::cuda::{DeviceError, Gpu, Source};

/// A100, H100, B200.
const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90", "sm_100"];

/// Skips a test where NVRTC is not there, unless the environment says that it must be.
pub(super) fn is_there() -> bool {
    match loaded::compiler() {
        Ok(()) => true,
        Err(error) => {
            assert!(std::env::var_os("TESTUDO_REQUIRE_NVRTC").is_none(), "{error}");
            println!("skipped: {error}");
            false
        }
    }
}

#[test]
fn every_kernel_compiles() {
    if !is_there() {
        return;
    }
    let generated = programs::shipped().into_iter().chain(programs::random(12));
    let generated: Vec<Source> = generated.map(|pair| pair.device.kernels().source().clone()).collect();
    for source in Source::all().iter().chain(&generated) {
        for architecture in ARCHITECTURES {
            let ptx = compile(source, architecture).unwrap().to_src();
            assert!(ptx.contains(&format!(".target {architecture}")), "{}", source.name());
            for kernel in source.kernels() {
                assert!(ptx.contains(&format!(".entry {kernel}(")), "{kernel} of {}", source.name());
            }
        }
    }
}

/// Invariant 1: the compiler fuses nothing by itself, flushes nothing, and divides and takes roots with correct rounding.
#[test]
fn arithmetic_is_compiled_as_it_is_written() {
    if !is_there() {
        return;
    }
    let generated = programs::shipped().into_iter().chain(programs::random(12));
    let generated = generated.map(|pair| pair.device.kernels().source().clone());
    for source in Source::all().into_iter().chain(generated) {
        let ptx = compile(&source, "sm_90").unwrap().to_src();
        let count = |word: &str| ptx.matches(word).count();
        assert_eq!(count(".ftz") + count(".approx") + count("fma.rn.f64"), 0, "{}", source.name());
        assert_eq!(count("div.full") + count("sqrt.approx"), 0, "{}", source.name());
    }
    let adam = programs::named("adam");
    let ptx = compile(adam.device.kernels().source(), "sm_90").unwrap().to_src();
    let count = |word: &str| ptx.matches(word).count();
    // What adam.opt says: the decayed gradient, two averages, the step.
    assert_eq!((adam.text.as_str(), count("fma.rn.f32"), count("sqrt.rn.f32")), ("adam", 4, 1));
    assert_eq!(count("div.rn.f32"), 3);
}

/// What is wrong with a source is said, with its place.
#[test]
fn errors_of_the_compiler_are_said() {
    if !is_there() {
        return;
    }
    let source = Source::generated("bad.cu", "\nextern \"C\" __global__ void bad() { nothing(); }");
    let error = compile(&source, "sm_90").unwrap_err();
    let DeviceError::Compile { log, .. } = &error else { panic!("{error}") };
    assert!(log.contains("bad.cu(2)") && log.contains("nothing"), "{log}");
}

/// Without a driver, the error says what was looked for and where; with one, how many GPUs there are.
#[test]
fn a_missing_gpu_is_an_error_that_says_what_was_looked_for() {
    let error = Gpu::open(u32::MAX).unwrap_err();
    let said = error.to_string();
    match error {
        DeviceError::NoLibrary { library: "the NVIDIA driver", .. } => {
            assert!(said.contains("libcuda.so") && said.contains("LD_LIBRARY_PATH"), "{said}");
        }
        DeviceError::NoLibrary { .. } => assert!(said.contains("libnvrtc.so"), "{said}"),
        DeviceError::NoDevice { wanted: u32::MAX, .. } | DeviceError::Driver { .. } => {}
        other => panic!("{other}"),
    }
}
