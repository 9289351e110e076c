//! What goes through the driver, against one that is made up (driver.cpp): it runs nothing before somebody waits for it, so that what is not
//! waited for is seen. Each case runs in a process of its own, where that driver is found.

#![allow(unsafe_code, reason = "a function of the made-up driver is called")]

use std::process::{Command, Output, Stdio};

use super::comparisons::{assert_bits, numbers};
use super::{comparisons, nvrtc};
use crate::cuda::driver::loaded::DRIVER;
use crate::cuda::emulator::is_there;
use crate::cuda::{self, Buffer, Device, DeviceError, Gpu, Products, Source};

/// Set in the process of a case, to its name.
const CASE: &str = "TESTUDO_MADE_UP_DRIVER";

/// Runs a case, if the compilers are there, with a driver that lacks some functions and takes these settings.
fn case(name: &str, lacks: &[&str], settings: &[(&str, &str)]) {
    if !is_there() || !nvrtc::is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cuda/tests/driver.cpp");
    let mut compiler = Command::new("g++");
    compiler.args(["-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]).arg(source);
    // Under another name it is not found.
    compiler.args(lacks.iter().map(|function| format!("-D{function}=other_{function}")));
    let output = compiler.arg("-o").arg(folder.path().join("libcuda.so")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let others = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let Output { status, stdout, stderr } = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cuda::tests::driver::runs_a_case", "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", format!("{}:{others}", folder.path().display()))
        .env(CASE, name)
        .envs(settings.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = [stdout, stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(status.success() && said.contains("1 passed"), "{name}: {said}");
}

#[test]
#[ignore = "other tests start it, in a process of its own"]
fn runs_a_case() {
    match std::env::var(CASE).unwrap().as_str() {
        "round trips" => comparisons::round_trips(&mut gpu()),
        "race" => a_copy_reads_what_was_there(),
        "freed" => a_copy_outlives_its_memory(),
        "overlap" => kernels_do_not_wait_for_copies(),
        "dropped" => a_copy_that_is_dropped_leaves_its_room(),
        "everything" => everything(),
        "memory" => memory_ends(),
        "refused" => assert!(matches!(gpu().prepared(), Err(DeviceError::Driver { .. }))),
        "lies" => {
            let error = cuda::self_test(&mut gpu()).unwrap_err();
            assert!(matches!(error, DeviceError::Arithmetic { what: "sums", .. }), "{error}");
        }
        "no GPU" => {
            let said = Gpu::open(0).unwrap_err().to_string();
            for part in ["cuda:0 was asked for", "/dev/nvidia*", "0 GPUs", "CUDA_VISIBLE_DEVICES", "is 7)"] {
                assert!(said.contains(part), "{said}");
            }
        }
        lacks => {
            let error = Gpu::open(0).unwrap_err();
            assert!(
                matches!(&error, DeviceError::OldLibrary { function, .. } if function == lacks),
                "{error}"
            );
        }
    }
}

fn gpu() -> Gpu {
    let gpu = Gpu::open(0).unwrap();
    assert_eq!(gpu.name(), "made up");
    gpu
}

fn same(found: &[f32], expected: &[f32]) {
    assert_bits(found, expected, "what comes back");
}

/// Invariant 1 of driver/memory.rs: another read in between does not hide the copy from a writer.
fn a_copy_reads_what_was_there() {
    let mut gpu = gpu();
    let values = numbers(1000, 1);
    let mut buffer = Buffer::of(&mut gpu, "values", &values).unwrap();
    let fetch = buffer.fetch(&mut gpu).unwrap();
    // On the stream of work.
    same(&buffer.to_vec(&mut gpu).unwrap(), &values);
    buffer.write(&mut gpu, &vec![7.0; 1000]).unwrap();
    gpu.synchronize().unwrap();
    same(&collected(&mut gpu, fetch), &values);
    same(&buffer.to_vec(&mut gpu).unwrap(), &[7.0; 1000]);
}

fn a_copy_outlives_its_memory() {
    let mut gpu = gpu();
    let values = numbers(1000, 1);
    let buffer = Buffer::of(&mut gpu, "values", &values).unwrap();
    let fetch = buffer.fetch(&mut gpu).unwrap();
    same(&buffer.to_vec(&mut gpu).unwrap(), &values);
    drop(buffer);
    gpu.synchronize().unwrap();
    same(&collected(&mut gpu, fetch), &values);
}

fn collected(gpu: &mut Gpu, fetch: cuda::Fetch) -> Vec<f32> {
    let mut shown = Vec::new();
    gpu.collect(fetch, &mut |bytes| shown = bytemuck::pod_collect_to_vec(bytes)).unwrap();
    shown
}

fn kernels_run() -> u64 {
    // SAFETY: the function takes nothing, and the driver that this process has was made with it.
    unsafe {
        let driver = cudarc::driver::sys::culib();
        driver.get::<unsafe extern "C" fn() -> u64>(b"made_up_kernels_run").unwrap()()
    }
}

/// A copy is there without what was launched after it, and with what was launched before.
fn kernels_do_not_wait_for_copies() {
    let mut gpu = gpu();
    let (gradient, other) = (numbers(1000, 1), numbers(1000, 2));
    let mut gradient = Buffer::of(&mut gpu, "gradient", &gradient).unwrap();
    let other = Buffer::of(&mut gpu, "other", &other).unwrap();
    cuda::add(&mut gpu, &mut gradient, &other).unwrap();
    let fetch = gradient.fetch(&mut gpu).unwrap();
    let mut next = Buffer::zeros(&mut gpu, "next", 1000).unwrap();
    cuda::add(&mut gpu, &mut next, &gradient).unwrap();
    assert_eq!(kernels_run(), 0);
    collected(&mut gpu, fetch);
    assert_eq!(kernels_run(), 1, "the copy waits for the first kernel and not for the second");
    assert!(!gpu.is_idle());
    gpu.synchronize().unwrap();
    assert_eq!(kernels_run(), 2);
}

/// Nobody collects it, and the next one takes its room.
fn a_copy_that_is_dropped_leaves_its_room() {
    let mut gpu = gpu();
    let buffer = Buffer::of(&mut gpu, "values", &numbers(100, 1)).unwrap();
    let [first, second] = [0, 1].map(|_| buffer.fetch(&mut gpu).unwrap());
    let number = first.number();
    assert_ne!(number, second.number());
    drop(first);
    assert_eq!(buffer.fetch(&mut gpu).unwrap().number(), number);
    assert_eq!(collected(&mut gpu, second), numbers(100, 1));
}

/// Every call that a GPU is asked for: a function that is not in the list of those that must be there ends the process.
fn everything() {
    let mut gpu = gpu().prepared().unwrap();
    let from = Buffer::of(&mut gpu, "from", &[1.0f32; 9]).unwrap();
    let mut to = Buffer::zeros(&mut gpu, "to", 9).unwrap();
    gpu.copy(&from, &mut to).unwrap();
    assert_eq!(to.to_vec(&mut gpu).unwrap(), [1.0; 9]);
    gpu.prepare(&Source::aggregate()).unwrap();
    cuda::add(&mut gpu, &mut to, &from).unwrap();
    let fetch = to.fetch(&mut gpu).unwrap();
    collected(&mut gpu, fetch);
    drop((from, to));
    assert!(matches!(gpu.with_products(Products::F32), Err(DeviceError::NoLibrary { .. })));
}

/// What there is no memory for is named, and what comes after it finds some.
fn memory_ends() {
    let mut gpu = gpu();
    let error = Buffer::<_, u8>::zeros(&mut gpu, "wte.weight", 6000).unwrap_err();
    let full = DeviceError::OutOfMemory { tensor: "wte.weight".into(), bytes: 6000, free: 5000, total: 5000 };
    assert_eq!(error, full);
    Buffer::<_, u8>::zeros(&mut gpu, "wpe.weight", 4000).unwrap();
}

#[test]
fn long_tensors_go_there_and_back() {
    case("round trips", &[], &[]);
}

#[test]
fn a_copy_beside_work_has_what_was_there_when_it_was_begun() {
    case("race", &[], &[]);
    case("freed", &[], &[]);
}

#[test]
fn copies_and_kernels_do_not_wait_for_each_other() {
    case("overlap", &[], &[]);
}

#[test]
fn a_dropped_copy_leaves_its_room() {
    case("dropped", &[], &[]);
}

#[test]
fn memory_that_ends_is_an_error_that_can_be_outlived() {
    case("memory", &[], &[("MADE_UP_BYTES", "5000")]);
}

/// Nothing that is wrong with a driver ends the process, and everything that is shows when a GPU is opened.
#[test]
fn a_driver_is_looked_through_when_a_gpu_is_opened() {
    assert!(DRIVER.contains(&"cuStreamWaitEvent"));
    case("everything", &[], &[]);
    for lacks in ["cuMemAllocAsync", "cuStreamWaitEvent"] {
        case(lacks, &[lacks], &[]);
    }
    case("no GPU", &[], &[("MADE_UP_GPUS", "0"), ("CUDA_VISIBLE_DEVICES", "7")]);
    case("refused", &[], &[("MADE_UP_REFUSES", "1")]);
    // Its kernels do nothing.
    case("lies", &[], &[]);
}
