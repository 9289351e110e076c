//! Whole clusters whose servers and workers compute on devices, which are launch emulators here: the same bits as on the CPU, and an end in
//! order when memory runs out.

use testudo_actors::checkpoint::{PartSource, PartWriter, ServerSetup};
use testudo_actors::message::Outcome;
use testudo_actors::placement::{Slice, SliceMap};
use testudo_actors::server::SumOrder;
use testudo_actors::{Codecs, JobSpec, Resume};
use testudo_kernels::cuda::emulator::{Emulator, is_there};
use testudo_kernels::cuda::{AnyDevice, Gpu, Source};
use testudo_kernels::{Aggregation, Codec, ModelError, ModelSpec, OptimizerSpec, Precision};
use testudo_tests::cluster::{Cluster, Links, Site, Wiring};
use testudo_tests::place::Place;
use testudo_tests::sim::Simulation;
use testudo_tests::toy;

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// A server's device, and no place for checkpoints; whether the CPU may take the device's place.
struct On(Option<AnyDevice>, bool);

impl ServerSetup for On {
    fn writer(&mut self, _: &JobSpec, _: u32) -> Result<Box<dyn PartWriter>, String> {
        Err("nothing is kept".into())
    }

    fn source(&mut self, _: &JobSpec, _: &Resume) -> Result<Box<dyn PartSource>, String> {
        Err("nothing is resumed".into())
    }

    fn device(&mut self) -> Option<AnyDevice> {
        self.0.take()
    }

    fn or_cpu(&self) -> bool {
        self.1
    }
}

/// Few slices: each is a launch or two in every step, and a launch here is a message to another process.
fn job() -> JobSpec {
    let optimizer = OptimizerSpec::shipped("adamw").unwrap().without_decay(&["*.bias"]);
    JobSpec { optimizer, learning_rate: 0.02, slice_bytes: 1024, ..toy::unhurried(toy::job(2, 2, 4, 6)) }
}

fn any(emulator: &Emulator) -> Option<AnyDevice> {
    Some(AnyDevice::new("emulator", emulator.another()))
}

/// One server and one worker on devices of their own, the others on the CPU: nobody can tell.
#[test]
fn nodes_on_devices_train_to_the_same_bits() {
    if !is_there() {
        return;
    }
    let (server, worker) = (Emulator::without_kernels(), Emulator::without_kernels());
    // Gradients as they are; and encoded before they leave the worker's device, and witnessed.
    let halves = Codecs { push: Codec::Bf16, ..Codecs::default() };
    for job in [job(), JobSpec { codecs: halves, witness_rate: 1.0, max_steps: Some(3), ..job() }] {
        let expected = Simulation::new(job.clone(), 1, SumOrder::Canonical).finish();
        let (server, worker) = (server.another(), worker.another());
        let wiring = Wiring {
            checkpoints: Box::new(move |index| {
                Box::new(On(if index == 0 { any(&server) } else { None }, false))
            }),
            devices: Box::new(move |index| if index == 1 { any(&worker) } else { None }),
            ..Wiring::default()
        };
        let (finished, steps) = Cluster::start_with(Site::new(job.clone(), Links::Memory), wiring).finish();
        assert_eq!(steps.len() as u64, job.max_steps.unwrap());
        assert_eq!(finished.params_blake3, expected.params_blake3);
        assert_eq!(finished.test_loss.to_bits(), expected.test_loss.to_bits());
    }
}

/// Rules that weigh whole gradients, and clipping, over QUIC: servers on devices post their products, and combine by the scheduler's weights,
/// as servers on CPUs do. Where gradients are clipped, one server has a device and the other none.
#[test]
fn whole_gradients_are_weighed_on_devices_to_the_same_bits() {
    if !is_there() {
        return;
    }
    let emulator = Emulator::new(&[Source::aggregate(), Source::robust(), Source::network()]);
    for (aggregation, clip_norm, workers) in [
        (Aggregation::Krum { hostile: 1 }, None, 5),
        (Aggregation::GeometricMedian { hostile: 1 }, Some(0.05), 3),
        (Aggregation::Mean, Some(0.05), 2),
    ] {
        let optimizer = OptimizerSpec::shipped("momentum").unwrap();
        let job = JobSpec {
            optimizer,
            aggregation,
            clip_norm,
            slice_bytes: 1024,
            ..toy::unhurried(toy::job(workers, 2, workers, 4))
        };
        let expected = Simulation::new(job.clone(), 1, SumOrder::Canonical).finish();
        let unclipped = JobSpec { clip_norm: None, ..job.clone() };
        if clip_norm.is_some() {
            let other = Simulation::new(unclipped, 1, SumOrder::Canonical).finish();
            assert_ne!(other.params_blake3, expected.params_blake3, "{aggregation}: nothing is clipped");
        }
        let emulator = emulator.another();
        let wiring = Wiring {
            checkpoints: Box::new(move |index| {
                let is_there = index == 0 || clip_norm.is_none();
                Box::new(On(is_there.then(|| any(&emulator)).flatten(), false))
            }),
            ..Wiring::default()
        };
        let (finished, steps) = Cluster::start_with(Site::new(job, Links::Quic), wiring).finish();
        assert_eq!(steps.len(), 4);
        assert_eq!(finished.params_blake3, expected.params_blake3, "{aggregation}");
        assert_eq!(finished.test_loss.to_bits(), expected.test_loss.to_bits(), "{aggregation}");
    }
}

/// A server whose device has too little memory ends, and the run says which tensor it was, by its parameter: weights when the server takes its
/// slices, and what is contributed to one of them in a step.
#[test]
fn a_device_without_memory_ends_the_run_with_the_tensors_name() {
    let job = job();
    let parameters = job.model.parameters().unwrap();
    let map = SliceMap::of(&job, &parameters).unwrap();
    let name = |slice: &Slice| parameters[slice.id.parameter as usize].name.clone();
    let mut kept: Vec<Slice> = map.slices().iter().copied().filter(|slice| slice.server == 0).collect();
    kept.sort_by_key(|slice| slice.id);
    let first = 4 * kept[0].elements;
    // Weights, and Adam's two tensors of each.
    let settled: usize = kept.iter().map(|slice| 3 * 4 * slice.elements).sum();
    let contributed: Vec<String> = kept
        .iter()
        .map(|slice| format!("tensor contribution to {}, slice {}: it takes", name(slice), slice.id.index))
        .collect();
    for (memory, expected) in [
        (first - 4, vec![format!("tensor {}: it takes {first} bytes, and {}", name(&kept[0]), first - 4)]),
        (settled, contributed),
    ] {
        let mut small = Emulator::without_kernels();
        small.memory = memory;
        let mut device = Some(AnyDevice::new("emulator", small));
        let wiring = Wiring {
            checkpoints: Box::new(move |index| {
                Box::new(On(if index == 0 { device.take() } else { None }, false))
            }),
            ..Wiring::default()
        };
        let outcome = Cluster::start_with(Site::new(self::job(), Links::Memory), wiring).outcome();
        let Outcome::Failed(reason) = outcome else { panic!("{outcome:?}") };
        let is_said = |text: &String| reason.contains(&format!("no memory on the GPU for {text}"));
        assert!(expected.iter().any(is_said), "{reason}: none of {expected:?}");
    }
}

/// Where nobody asked for the device by its number, the CPU takes its place: at a server whose parameters it has no memory for, and at a
/// worker whose model it has none for or no kernels.
#[test]
fn the_cpu_takes_the_place_of_a_device_that_nobody_asked_for() {
    let small = || {
        let mut small = Emulator::without_kernels();
        small.memory = 500;
        AnyDevice::new("small", small)
    };
    let expected = Simulation::new(job(), 1, SumOrder::Canonical).finish();
    let wiring = Wiring {
        checkpoints: Box::new(move |index| Box::new(On((index == 0).then(small), true))),
        ..Wiring::default()
    };
    let (finished, _) = Cluster::start_with(Site::new(job(), Links::Memory), wiring).finish();
    assert_eq!(finished.params_blake3, expected.params_blake3);

    let error = job().build_model_on(small()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("no memory on the GPU for tensor"), "{error}");
    assert_eq!(job().build_model_on_or_cpu(small()).unwrap().parameters(), job().model.parameters().unwrap());
    let mixed = JobSpec { precision: Precision::Bf16, ..job() };
    let roomy = || AnyDevice::new("roomy", Emulator::without_kernels());
    assert!(mixed.build_model_on(roomy()).is_err());
    assert!(mixed.build_model_on_or_cpu(roomy()).is_ok());
    // What the CPU cannot compute either is refused.
    let model = ModelSpec::Custom {
        name: "theirs@1".into(),
        inputs: toy::INPUTS,
        classes: toy::CLASSES,
        targets: 1,
        parameters: job().model.parameters().unwrap(),
    };
    let theirs = JobSpec { model, ..job() };
    assert!(matches!(theirs.build_model_on_or_cpu(roomy()), Err(ModelError::NotBuiltIn { .. })));
}

/// A run with `auto` says in a line what computes where there is no GPU, and has the CPU's bits.
#[test]
fn auto_says_in_a_line_that_there_is_no_gpu() {
    let place = Place::small(PROGRAM);
    let steps = ["--set", "training.max_steps=8"];
    let expected = place.run("cpu", &steps).succeeded();
    assert!(!expected.stderr.contains("the CPU computes"), "{}", expected.stderr);
    let auto = ["--set", "servers.device=auto", "--set", "workers.device=auto"];
    if let Err(why) = Gpu::libraries() {
        let ended = place.run("auto", &[&steps[..], &auto].concat()).succeeded();
        let line = format!(
            "servers.device, workers.device = \"auto\": the CPU computes, for there is no GPU: {why}"
        );
        assert_eq!(ended.stderr.matches(&line).count(), 1, "{}", ended.stderr);
        assert_eq!(ended.json()["params_blake3"], expected.json()["params_blake3"]);
    }
    // Mixed precision takes the CPU wherever it runs.
    let mixed = ["--set", "workers.device=auto", "--set", "training.precision=bf16"];
    let ended = place.run("mixed", &[&steps[..], &mixed].concat()).succeeded();
    assert!(ended.stderr.contains("no kernels for training.precision = \"bf16\""), "{}", ended.stderr);
}
