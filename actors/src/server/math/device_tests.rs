//! Invariant 6: on a device, which is the launch emulator here, every version has the CPU's bits, and so has what checkpoints hold.

use std::collections::BTreeSet;
use std::sync::Mutex;

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

/// One program for what all share: g++ takes longer than anything that runs here.
fn emulator() -> Emulator {
    Emulator::new(&[Source::aggregate(), Source::robust(), Source::network()])
}

fn shipped(name: &str) -> OptimizerSpec {
    OptimizerSpec::shipped(name).unwrap()
}

/// Four steps on the CPU and on devices: every slice with all that a checkpoint holds of it, and how values are spread.
fn compare(emulator: &Emulator, optimizer: OptimizerSpec, aggregation: Aggregation, clip_norm: Option<f64>) {
    let what = format!("{} under {aggregation:?}, clipped to {clip_norm:?}", optimizer.name);
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
            on_device = math(&job, Some(emulator.another())).with_histograms(1);
            on_device.restore(found.into_iter().map(restored).collect()).unwrap();
        }
    }
    // What is no optimizer's stays on the CPU.
    let resident = on_device.resident.as_ref().unwrap();
    let here = |parameter: u32| resident.holds(SliceId { parameter, index: 0 });
    assert_eq!([0, 1, 2].map(here), [true, true, false], "{what}");
}

fn restored(slice: SliceSnapshot) -> RestoredSlice {
    RestoredSlice {
        id: slice.slice.id,
        weights: slice.weights.to_vec(),
        state: slice.state,
        scalars: slice.scalars,
    }
}

#[test]
fn a_device_has_the_bits_of_the_cpu() {
    if !is_there() {
        return;
    }
    let emulator = emulator();
    for (optimizer, aggregation, clip_norm) in [
        // Two programs; a state of two tensors.
        (shipped("adamw").without_decay(&["b"]), Aggregation::Mean, None),
        // Slices that are updated together, and votes.
        (shipped("lamb"), Aggregation::TrimmedMean { hostile: 1 }, None),
        // Numbers beside tensors, and gradients that are clipped.
        (shipped("nadam"), Aggregation::Mean, Some(0.3)),
    ] {
        compare(&emulator, optimizer, aggregation, clip_norm);
    }
}

/// Every rule that weighs whole gradients, and clipping of what every kind of rule makes.
#[test]
fn whole_gradients_are_weighed_on_a_device_to_the_bits_of_the_cpu() {
    if !is_there() {
        return;
    }
    let emulator = emulator();
    for (aggregation, clip_norm) in [
        (Aggregation::Krum { hostile: 1 }, None),
        (Aggregation::MultiKrum { hostile: 1 }, Some(0.7)),
        (Aggregation::GeometricMedian { hostile: 2 }, None),
        // Its aggregate goes from step to step, before it is clipped, and through the checkpoint.
        (Aggregation::CentredClipping { hostile: 1, radius: 0.4 }, Some(0.1)),
        (Aggregation::NormBound { hostile: 1, bound: 0.5 }, None),
        (Aggregation::Median { hostile: 1 }, Some(0.2)),
    ] {
        compare(&emulator, shipped("momentum"), aggregation, clip_norm);
    }
    // Slices of one tensor that wait for each other.
    for (aggregation, clip_norm) in
        [(Aggregation::Krum { hostile: 1 }, Some(0.7)), (Aggregation::Mean, Some(0.2))]
    {
        compare(&emulator, shipped("lamb"), aggregation, clip_norm);
    }
}

/// What has kernels is done by them, and not on the CPU.
#[test]
fn products_combinations_and_clipping_are_launched() {
    if !is_there() {
        return;
    }
    let emulator = emulator();
    for (aggregation, clip_norm, expected) in [
        (Aggregation::MultiKrum { hostile: 1 }, None, &["combine", "inner_products"][..]),
        (Aggregation::Mean, Some(0.1), &["add", "clip", "first_non_finite", "inner_products"]),
        (
            Aggregation::Median { hostile: 1 },
            Some(0.1),
            &["clip", "first_non_finite", "inner_products", "trimmed_mean"],
        ),
    ] {
        let job = job(shipped("momentum"), aggregation, clip_norm);
        let ran: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let log = Arc::clone(&ran);
        let noting = emulator.another().watched(move |kernel, _| {
            log.lock().unwrap().insert(kernel.into());
        });
        let mut math = math(&job, None).with_device(AnyDevice::new("noting", noting)).unwrap();
        math.initialise().unwrap();
        step(&mut math, &job, 0, false);
        let mut ran = std::mem::take(&mut *ran.lock().unwrap());
        ran.retain(|kernel| !kernel.starts_with("optimizer_"));
        assert!(ran.iter().map(String::as_str).eq(expected.iter().copied()), "{aggregation}: {ran:?}");
    }
}

/// Votes have their memory before the first step: a device that has as much as is counted here, and not a byte more, bears any number of
/// steps, and one that has less names the tensor at once, or leaves the work to the CPU.
#[test]
fn memory_for_votes_is_taken_with_the_slices() {
    if !is_there() {
        return;
    }
    let emulator = emulator();
    let job = job(shipped("momentum"), Aggregation::Krum { hostile: 1 }, None);
    let with = |memory: usize| {
        let mut device = emulator.another();
        device.memory = memory;
        device
    };
    let mut on_cpu = math(&job, None);
    on_cpu.initialise().unwrap();
    let learnt = 4 * 75;
    let (kept, votes) = (2 * learnt, SHARDS as usize * learnt);
    // Fifteen pairs; each has two blocks at most in sixteen elements.
    let tools = 15 * 2 * 4 + 15 * 2 * 8 + SHARDS as usize * 8 + 8;
    // A gradient of each length.
    let made = 4 * (16 + 6 + 5);
    // Of each update, where it looks for the first number that is not finite. The emulator takes nothing back.
    let (steps, looks) = (3, 6 * 8);
    let mut enough = math(&job, Some(with(kept + votes + tools + made + steps * looks)));
    enough.initialise().unwrap();
    let mut yielding = math(&job, None).with_device_or_cpu(AnyDevice::new("small", with(kept + votes)));
    yielding.initialise().unwrap();
    assert!(yielding.resident.is_none());
    for at in 0..steps as u64 {
        step(&mut on_cpu, &job, at, false);
        step(&mut enough, &job, at, true);
        step(&mut yielding, &job, at, true);
    }
    assert_eq!(enough.kept().unwrap(), on_cpu.kept().unwrap());
    assert_eq!(yielding.kept().unwrap(), on_cpu.kept().unwrap());

    let missing = |memory: usize| math(&job, Some(with(memory))).initialise().unwrap_err().to_string();
    let said = missing(kept + tools + votes - 4);
    assert!(
        said.contains("no memory on the GPU for tensor votes on b, slice 0: it takes 100 bytes, and 96"),
        "{said}"
    );
    let said = missing(kept + tools + votes + made - 4);
    assert!(
        said.contains("no memory on the GPU for tensor gradient of w, slice 0: it takes 64 bytes"),
        "{said}"
    );
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

    // A sum that overflows before it is clipped.
    let clipped = self::job(OptimizerSpec::own("squares", PROGRAM), Aggregation::Mean, Some(1.0));
    let overflow = |device: Option<Emulator>| {
        let mut math = math(&clipped, device);
        math.initialise().unwrap();
        let mut values = vec![1.0; slice.elements];
        values[7] = f32::MAX / 4.0;
        let mut give = |shard: u32| {
            let (node, values) = (Node::leaf(shard), values.clone());
            math.contribute(Contribution { slice: slice.id, step: 0, node, values })
        };
        (0..SHARDS - 1).for_each(|shard| assert_eq!(give(shard), Ok(None)));
        give(SHARDS - 1).unwrap_err()
    };
    let expected = overflow(None);
    assert!(expected.to_string().contains("element 23 of the gradients' sum"), "{expected}");
    assert_eq!(overflow(Some(emulator.another())), expected);

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
