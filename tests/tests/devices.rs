//! Whole clusters whose servers and workers compute on devices, which are launch emulators here: the same bits as on the CPU, and an end in
//! order when memory runs out.

use testudo_actors::checkpoint::{PartSource, PartWriter, ServerSetup};
use testudo_actors::message::Outcome;
use testudo_actors::server::SumOrder;
use testudo_actors::{JobSpec, Resume};
use testudo_kernels::OptimizerSpec;
use testudo_kernels::cuda::AnyDevice;
use testudo_kernels::cuda::emulator::{Emulator, is_there};
use testudo_tests::cluster::{Cluster, Links, Site, Wiring};
use testudo_tests::sim::Simulation;
use testudo_tests::toy;

/// A server's device, and no place for checkpoints.
struct On(Option<AnyDevice>);

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
}

/// Few slices: each is a launch or two in every step, and a launch here is a message to another process.
fn job() -> JobSpec {
    let optimizer = OptimizerSpec::shipped("adamw").unwrap().without_decay(&["*.bias"]);
    JobSpec { optimizer, learning_rate: 0.02, slice_bytes: 1024, ..toy::job(2, 2, 4, 6) }
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
    let expected = Simulation::new(job(), 1, SumOrder::Canonical).finish();
    let (server, worker) = (Emulator::without_kernels(), Emulator::without_kernels());
    let wiring = Wiring {
        checkpoints: Box::new(move |index| Box::new(On(if index == 0 { any(&server) } else { None }))),
        devices: Box::new(move |index| if index == 1 { any(&worker) } else { None }),
        ..Wiring::default()
    };
    let (finished, steps) = Cluster::start_with(Site::new(job(), Links::Memory), wiring).finish();
    assert_eq!(steps.len(), 6);
    assert_eq!(finished.params_blake3, expected.params_blake3);
    assert_eq!(finished.test_loss.to_bits(), expected.test_loss.to_bits());
}

/// A server whose device has too little memory ends, and the run says which tensor it was.
#[test]
fn a_device_without_memory_ends_the_run_with_the_tensors_name() {
    let mut small = Emulator::without_kernels();
    small.memory = 500;
    let mut device = Some(AnyDevice::new("emulator", small));
    let wiring = Wiring {
        checkpoints: Box::new(move |index| Box::new(On(if index == 0 { device.take() } else { None }))),
        ..Wiring::default()
    };
    let outcome = Cluster::start_with(Site::new(job(), Links::Memory), wiring).outcome();
    let Outcome::Failed(reason) = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("no memory on the GPU for tensor"), "{reason}");
}
