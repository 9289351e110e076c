//! Invariant 6: on a device, which is the launch emulator here, every version has the CPU's bits, and so has what checkpoints hold.

use testudo_kernels::cuda::emulator::{Emulator, is_there};
use testudo_kernels::cuda::{AnyDevice, Source};
use testudo_kernels::{Aggregation, Initial, ModelSpec, OptimizerSpec, Schedule, Shape};

use super::*;
use crate::job::{Audit, Checkpoints, DataSpec, Determinism};
use crate::placement::SliceMap;
use crate::tree::Node;

fn parameters() -> Vec<ParameterSpec> {
    let of = |name: &str, elements: usize, update| ParameterSpec {
        name: name.into(),
        shape: Shape::new(&[elements]).unwrap(),
        initial: Initial::Uniform { bound: 0.5 },
        update,
    };
    vec![
        of("w", 70, Update::Learn),
        of("b", 5, Update::Learn),
        of("mean", 5, Update::Average { momentum: 0.1 }),
    ]
}

/// Slices of 16 elements: the first parameter has five of them.
fn job(optimizer: OptimizerSpec, aggregation: Aggregation, clip_norm: Option<f64>) -> Arc<JobSpec> {
    Arc::new(JobSpec {
        format: crate::job::FORMAT,
        name: "job".into(),
        trust_domain: "test".into(),
        workers: SHARDS,
        servers: 1,
        elastic: Default::default(),
        model: ModelSpec::Custom {
            name: "m@1".into(),
            inputs: 1,
            classes: 2,
            targets: 1,
            parameters: parameters(),
        },
        precision: testudo_kernels::Precision::F32,
        optimizer,
        learning_rate: 0.05,
        schedule: Schedule::Constant,
        seed: 1,
        epochs: 9,
        batch_size: 2 * SHARDS,
        logical_shards: SHARDS,
        aggregation,
        clip_norm,
        max_steps: None,
        evaluation: crate::job::Evaluation::default(),
        data: DataSpec { train_examples: 100, test_examples: 10, blake3: [0; 32] },
        slice_bytes: 64,
        codecs: crate::job::Codecs::default(),
        determinism: Determinism::Strict,
        heartbeat_ms: 100,
        heartbeat_timeout_ms: 1_000,
        export: false,
        checkpoints: Checkpoints::default(),
        audit: Audit { hash_every: 0, countersign_every: 0 },
        witness_rate: 0.0,
        resume: None,
    })
}

const SHARDS: u32 = 5;

fn math(job: &Arc<JobSpec>, device: Option<Emulator>) -> SliceMath {
    let map = SliceMap::of(job, &parameters()).unwrap();
    let (slices, order) = (map.slices().to_vec(), SumOrder::Canonical);
    let math = SliceMath::new(0, Arc::clone(job), parameters(), slices, Arc::default(), order).unwrap();
    match device {
        Some(device) => math.with_device(AnyDevice::new("emulator", device)).unwrap(),
        None => math,
    }
}

/// A shard's gradient of a slice: a function of all that it is of.
fn gradient(slice: &Slice, step: u64, shard: u32) -> Vec<f32> {
    let element = |at: usize| {
        let seed = (slice.first + at) as u64 * 7919 + step * 104_729 + u64::from(shard) * 15_485_863;
        (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 16_777_216.0 - 0.4
    };
    (0..slice.elements).map(element).collect()
}

/// One step, of whose contributions the order is turned.
fn step(math: &mut SliceMath, job: &JobSpec, step: u64, turned: bool) {
    let mut all: Vec<(Slice, u32)> =
        math.slices().into_iter().flat_map(|slice| (0..SHARDS).map(move |shard| (slice, shard))).collect();
    if turned {
        all.reverse();
    }
    for (slice, shard) in all {
        let values = gradient(&slice, step, shard);
        let node = Node::leaf(shard);
        math.contribute(Contribution { slice: slice.id, step, node, values }).unwrap();
    }
    if let Some(weighing) = job.weighing() {
        let (step, products) = math.poll_products().unwrap();
        let weights = weighing.weigh(&products, f64::from(job.divisor(step))).unwrap();
        math.combine(step, &weights).unwrap();
    }
}

#[test]
fn a_device_has_the_bits_of_the_cpu() {
    if !is_there() {
        return;
    }
    // One program for what all share: g++ takes longer than anything that runs here.
    let emulator = Emulator::new(&[Source::aggregate(), Source::robust(), Source::network()]);
    let shipped = |name: &str| OptimizerSpec::shipped(name).unwrap();
    for (optimizer, aggregation, clip_norm) in [
        // Two programs; a state of two tensors.
        (shipped("adamw").without_decay(&["b"]), Aggregation::Mean, None),
        // Slices that are updated together, and votes.
        (shipped("lamb"), Aggregation::TrimmedMean { hostile: 1 }, None),
        // Numbers beside tensors, and gradients that are weighed on the CPU.
        (shipped("nadam"), Aggregation::Mean, Some(0.3)),
    ] {
        let what = format!("{} under {aggregation:?}", optimizer.name);
        let job = job(optimizer, aggregation, clip_norm);
        let (mut on_cpu, mut on_device) = (math(&job, None), math(&job, Some(emulator.another())));
        on_cpu = on_cpu.with_histograms(1);
        on_device = on_device.with_histograms(1);
        on_cpu.initialise().unwrap();
        on_device.initialise().unwrap();
        for at in 0..4 {
            step(&mut on_cpu, &job, at, false);
            step(&mut on_device, &job, at, true);
            let (expected, found) = (on_cpu.kept().unwrap(), on_device.kept().unwrap());
            assert_eq!(found, expected, "{what}, step {at}");
            let spread = |math: &mut SliceMath| {
                let told = math.poll_histograms().unwrap();
                told.tensors
                    .into_iter()
                    .map(|t| (t.parameter, t.values.buckets, t.gradient.map(|g| g.buckets)))
                    .collect::<Vec<_>>()
            };
            assert_eq!(spread(&mut on_device), spread(&mut on_cpu), "{what}, step {at}");
            assert!(found.iter().any(|slice| slice.weights.iter().any(|weight| weight.abs() > 1e-3)));
            // It goes on from what was kept, on another device.
            if at == 1 {
                let restored = |slice: SliceSnapshot| RestoredSlice {
                    id: slice.slice.id,
                    weights: slice.weights.to_vec(),
                    state: slice.state,
                    scalars: slice.scalars,
                };
                on_device = math(&job, Some(emulator.another())).with_histograms(1);
                on_device.restore(found.into_iter().map(restored).collect()).unwrap();
            }
        }
        // What is no optimizer's stays on the CPU.
        let resident = on_device.resident.as_ref().unwrap();
        let here = |parameter: u32| resident.holds(SliceId { parameter, index: 0 });
        assert_eq!([0, 1, 2].map(here), [true, true, false], "{what}");
    }
}

/// An update that is not finite is laid to the same line; a tensor that there is no memory for is named, and a contribution that is not
/// finite changes nothing.
#[test]
fn what_fails_is_said_as_on_the_cpu() {
    if !is_there() {
        return;
    }
    const PROGRAM: &str = "state s\ns = g * g\nw = w - lr * s\n";
    let job = job(OptimizerSpec::own("squares", PROGRAM), Aggregation::Mean, None);
    let slice = SliceMap::of(&job, &parameters()).unwrap().slices()[1];
    let run = |device: Option<Emulator>| {
        let mut math = math(&job, device);
        math.initialise().unwrap();
        let mut give = |shard: u32, value: f32| {
            let mut values = vec![1.0; slice.elements];
            values[3] = value;
            let node = Node::leaf(shard);
            math.contribute(Contribution { slice: slice.id, step: 0, node, values })
        };
        assert_eq!(give(0, f32::NAN), Err(MathError::NotFinite(3)));
        for shard in 0..SHARDS - 1 {
            assert_eq!(give(shard, 1e30), Ok(None));
        }
        give(SHARDS - 1, 1e30).unwrap_err()
    };
    let emulator = Emulator::without_kernels();
    let expected = run(None);
    assert!(expected.to_string().contains("element 19; line 2"), "{expected}");
    assert_eq!(run(Some(emulator.another())), expected);

    let mut small = emulator.another();
    small.memory = 400;
    let error = math(&job, Some(small)).initialise().unwrap_err();
    assert!(error.to_string().contains("tensor w: it takes 64 bytes, and 16 of 400"), "{error}");
    // What the weights and the state need, and one gradient beside.
    let mut small = emulator.another();
    small.memory = 2 * 4 * 75 + 100;
    let mut math = math(&job, Some(small));
    math.initialise().unwrap();
    let mut give = |shard: u32| {
        let values = vec![1.0; slice.elements];
        math.contribute(Contribution { slice: slice.id, step: 0, node: Node::leaf(shard), values })
    };
    assert_eq!(give(0), Ok(None));
    let error = give(2).unwrap_err();
    let expected =
        "no memory on the GPU for tensor contribution to w, slice 1: it takes 64 bytes, and 36 of 700";
    assert!(error.to_string().contains(expected), "{error}");
}
