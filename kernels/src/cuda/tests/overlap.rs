//! What a device is asked for, in order: how gradients leave it beside the kernels of the layers before theirs, and that an update that is looked
//! at is one pass.

use std::sync::{Arc, Mutex};

use super::programs;
use crate::codec::Codec;
use crate::cuda::{Argument, Buffer, Device, DeviceError, DeviceModel, DeviceSlice, Fetch, Geometry, Source};
use crate::model::{Batch, Gradient, Model, ModelSpec};
use crate::optimizer::StepInputs;

/// Computes nothing, and takes note of what it is asked for, in order.
struct Recorder(Arc<Mutex<Vec<String>>>);

impl Recorder {
    fn note(&self, what: impl Into<String>) -> usize {
        let mut log = self.0.lock().unwrap();
        log.push(what.into());
        log.len()
    }
}

impl Device for Recorder {
    type Memory = Vec<u8>;

    fn allocate(&mut self, _: &str, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        Ok(vec![0; bytes])
    }

    fn write(&mut self, _: &mut Vec<u8>, _: usize, _: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn read(&mut self, _: &Vec<u8>, _: usize, _: &mut [u8]) -> Result<(), DeviceError> {
        self.note("read");
        Ok(())
    }

    fn fetch(&mut self, _: &Vec<u8>, bytes: usize) -> Result<Fetch, DeviceError> {
        self.note(format!("fetch {}", bytes / 4));
        Ok(Fetch::holding(bytes, &Arc::default()))
    }

    fn collect(&mut self, fetch: Fetch, show: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError> {
        let bytes = fetch.number();
        self.note(format!("collect {}", bytes / 4));
        show(&vec![0; bytes]);
        Ok(())
    }

    fn blocks(&self) -> u32 {
        1
    }

    fn launch(
        &mut self,
        source: &Source,
        kernel: &str,
        _: Geometry,
        arguments: &mut [Argument<'_, Vec<u8>>],
    ) -> Result<(), DeviceError> {
        source.check(kernel, arguments)?;
        self.note(kernel);
        Ok(())
    }
}

/// A gradient's copy begins before the next kernel is launched, and nobody waits for it until two more layers are under way. Nothing
/// waits for the device before: the loss is read last.
#[test]
fn gradients_leave_while_layers_before_theirs_are_at_work() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let spec = ModelSpec::Mlp { inputs: 2, hidden: vec![3, 5, 7], classes: 11 };
    let mut model = DeviceModel::new(Recorder(Arc::clone(&log)), &spec, 1).unwrap();
    let owned: Vec<Vec<f32>> =
        model.parameters().iter().map(|parameter| vec![0.0; parameter.shape.elements()]).collect();
    let parameters: Vec<&[f32]> = owned.iter().map(Vec::as_slice).collect();
    let mut order = Vec::new();
    model
        .gradients(&parameters, Batch::new(&[0.0; 2], &[0]), &mut |index, sum| {
            order.push(index);
            assert_eq!(sum.len(), parameters[index].len());
        })
        .unwrap();
    assert_eq!(order, [6, 7, 4, 5, 2, 3, 0, 1]);
    let log = log.lock().unwrap();
    let at = |what: &str| log.iter().position(|noted| noted == what).unwrap();
    let backward = &log[at("cross_entropy") + 1..];
    assert_eq!(
        backward,
        [
            "linear_weights",
            "fetch 77",
            "sum_examples",
            "fetch 11",
            "linear_backward",
            "relu_gradient",
            "linear_weights",
            "fetch 35",
            "sum_examples",
            "fetch 7",
            "linear_backward",
            "relu_gradient",
            "linear_weights",
            "fetch 15",
            "collect 77",
            "sum_examples",
            "fetch 5",
            "collect 11",
            "linear_backward",
            "relu_gradient",
            "linear_weights",
            "fetch 6",
            "collect 35",
            "sum_examples",
            "fetch 3",
            "collect 7",
            "collect 15",
            "collect 5",
            "collect 6",
            "collect 3",
            "read",
            "read"
        ]
    );
}

/// In a codec that takes each number by itself, a gradient is encoded before it leaves: half as many bytes, and the first numbers beside. In
/// others it leaves as it is.
#[test]
fn halves_are_what_leaves() {
    let spec = ModelSpec::Mlp { inputs: 3000, hidden: vec![], classes: 2 };
    let fetched = |built: Codec, asked: Codec| {
        let log = Arc::new(Mutex::new(Vec::new()));
        let model = DeviceModel::new(Recorder(Arc::clone(&log)), &spec, 1).unwrap();
        let mut model = model.with_codec(built).unwrap();
        let (weights, inputs) = (vec![0.0; 6000], vec![0.0; 3000]);
        let mut encoded = 0;
        let batch = Batch::new(&inputs, &[0]);
        let mut ready = |_: usize, gradient: Gradient<'_>| {
            if let Gradient::Encoded { bytes, start } = gradient {
                assert_eq!(start.len(), (bytes.len() / 2).min(1024));
                encoded += bytes.len();
            }
        };
        model.gradients_in(asked, &[&weights, &[0.0; 2]], batch, &mut ready).unwrap();
        let log = log.lock().unwrap();
        let leaves = |noted: &&String| noted.starts_with("fetch") || noted.ends_with("_encode");
        (log.iter().filter(leaves).cloned().collect::<Vec<_>>(), encoded)
    };
    let (left, bytes) = fetched(Codec::Bf16, Codec::Bf16);
    assert_eq!(left, ["bf16_encode", "fetch 1024", "fetch 3000", "bf16_encode", "fetch 2", "fetch 1"]);
    assert_eq!(bytes, 2 * 6002);
    for (built, asked) in [(Codec::Bf16, Codec::F32), (Codec::Int8, Codec::Int8), (Codec::F32, Codec::F16)] {
        let (left, bytes) = fetched(built, asked);
        assert_eq!((&left[..], bytes), (&["fetch 6000".to_owned(), "fetch 2".to_owned()][..], 0));
    }
}

/// Invariant 3 of generate.rs: the values are not read again to see whether they are finite; the host reads one index.
#[test]
fn a_checked_update_is_one_pass() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let device = &mut Recorder(Arc::clone(&log));
    let mut adam = programs::named("adam");
    let weights = Buffer::zeros(device, "weights", 9).unwrap();
    let [mut out, first, second] = ["gradient", "m", "v"].map(|name| Buffer::zeros(device, name, 9).unwrap());
    let slice = DeviceSlice { weights: &weights, gradient_to_weights: &mut out, state: &mut [first, second] };
    let inputs = StepInputs { step: 1, learning_rate: 0.1, divisor: 1.0 };
    adam.device.update_checked(device, inputs, slice, &mut []).unwrap();
    assert_eq!(*log.lock().unwrap(), ["adam_update", "read"]);
}
