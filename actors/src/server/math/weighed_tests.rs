//! Invariant 4: slices that wait for weights.

use testudo_kernels::{Aggregation, Initial, ModelSpec, OptimizerSpec, Schedule, Shape};

use super::*;
use crate::job::{Audit, Checkpoints, DataSpec, Determinism};
use crate::tree::Node;

/// Batches of 8 examples, cut into as many shards as there are votes; a rate of 1.
fn job(aggregation: Aggregation, shards: u32) -> Arc<JobSpec> {
    Arc::new(JobSpec {
        format: crate::job::FORMAT,
        name: "job".into(),
        trust_domain: "test".into(),
        workers: shards,
        servers: 1,
        elastic: Default::default(),
        model: ModelSpec::Mlp { inputs: 2, hidden: vec![], classes: 2 },
        precision: testudo_kernels::Precision::F32,
        optimizer: OptimizerSpec::shipped("sgd").unwrap(),
        learning_rate: 1.0,
        schedule: Schedule::Constant,
        seed: 1,
        epochs: 1,
        batch_size: 8,
        logical_shards: shards,
        aggregation,
        clip_norm: Some(1.0),
        max_steps: None,
        evaluation: crate::job::Evaluation::default(),
        data: DataSpec { train_examples: 80, test_examples: 10, blake3: [0; 32] },
        slice_bytes: 8,
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

fn slice(parameter: u32, index: u32) -> Slice {
    let id = SliceId { parameter, index };
    Slice { id, first: index as usize * 2, elements: 2, server: 0 }
}

/// A weight of four elements in two slices, and a running mean of two, all 0 at first.
fn math(job: &Arc<JobSpec>) -> (SliceMath, Arc<Store>) {
    let of = |name: &str, elements: usize, update| ParameterSpec {
        name: name.into(),
        shape: Shape::new(&[elements]).unwrap(),
        initial: Initial::Zeros,
        update,
    };
    let parameters = vec![of("w", 4, Update::Learn), of("mean", 2, Update::Average { momentum: 1.0 })];
    let store = Arc::new(Store::default());
    let slices = [slice(0, 0), slice(0, 1), slice(1, 0)];
    let order = SumOrder::Canonical;
    let mut math = SliceMath::new(0, Arc::clone(job), parameters, slices, Arc::clone(&store), order).unwrap();
    math.initialise().unwrap();
    (math, store)
}

fn contribute(math: &mut SliceMath, slice: Slice, shard: u32, values: [f32; 2]) {
    let contribution =
        Contribution { slice: slice.id, step: 0, node: Node::leaf(shard), values: values.to_vec() };
    assert_eq!(math.contribute(contribution), Ok(None), "nothing is updated before it is weighed");
}

fn now(store: &Store, slice: Slice) -> (u64, Vec<f32>) {
    let (version, values) = store.current(slice.id).unwrap();
    (version, values.to_vec())
}

/// Invariant 4, and that statistics are no part of a norm: the gradient (3, 4, 0, 12) over all slices has a norm of 13, and the
/// means are blended as they are.
#[test]
fn a_gradient_is_clipped_and_statistics_are_not() {
    let job = job(Aggregation::Mean, 1);
    let (mut math, store) = math(&job);
    contribute(&mut math, slice(0, 1), 0, [0.0, 12.0 * 8.0]);
    contribute(&mut math, slice(0, 0), 0, [3.0 * 8.0, 4.0 * 8.0]);
    assert_eq!(math.poll_products(), None, "a slice is behind");
    contribute(&mut math, slice(1, 0), 0, [500.0 * 8.0, -7.0 * 8.0]);
    let (step, products) = math.poll_products().unwrap();
    let weights = job.weighing().unwrap().weigh(&products, f64::from(job.divisor(step))).unwrap();
    assert_eq!((step, &weights.of, weights.clip), (0, &vec![1.0], 1.0 / 13.0));
    assert_eq!(math.combine(1, &weights), Err(MathError::Weights(1)));
    let updated = math.combine(0, &weights).unwrap();
    let slices: Vec<SliceId> = updated.iter().flat_map(|updated| updated.slices.clone()).collect();
    assert_eq!(slices, [slice(0, 0).id, slice(0, 1).id, slice(1, 0).id]);
    assert_eq!(math.combine(0, &weights), Err(MathError::Weights(0)), "once");
    let (_, first) = now(&store, slice(0, 0));
    assert!((first[0] + 3.0 / 13.0).abs() < 1e-6 && (first[1] + 4.0 / 13.0).abs() < 1e-6, "{first:?}");
    assert_eq!(now(&store, slice(1, 0)), (1, vec![500.0, -7.0]));
}

/// Where whole gradients are voted on, statistics have the median of each number, whatever weighs the gradients.
#[test]
fn statistics_are_voted_on_by_the_median() {
    for rule in [
        Aggregation::GeometricMedian { hostile: 1 },
        Aggregation::CentredClipping { hostile: 1, radius: 0.1 },
        Aggregation::NormBound { hostile: 1, bound: 0.1 },
    ] {
        let job = job(rule, 4);
        let (mut math, store) = math(&job);
        // Each of four shards has two examples.
        for shard in [2, 0, 3, 1] {
            let part = shard as f32;
            contribute(&mut math, slice(1, 0), shard, [2.0 * part * part, -2e30]);
            contribute(&mut math, slice(0, 0), shard, [2.0, 2.0]);
            contribute(&mut math, slice(0, 1), shard, [2.0, 2.0]);
        }
        let (step, products) = math.poll_products().unwrap();
        let weights = job.weighing().unwrap().weigh(&products, f64::from(job.divisor(step))).unwrap();
        math.combine(step, &weights).unwrap();
        // 0, 1, 4 and 9 were said.
        assert_eq!(now(&store, slice(1, 0)), (1, vec![2.5, -1e30]), "{rule}");
        let (_, weights) = now(&store, slice(0, 0));
        assert!(weights.iter().all(|value| *value < 0.0), "{rule}: {weights:?}");
    }
}

/// A sum that is not finite ends the run with its name, and no product is made of it.
#[test]
fn a_sum_that_overflows_has_diverged() {
    let (mut math, _) = math(&job(Aggregation::Mean, 2));
    contribute(&mut math, slice(0, 1), 0, [0.0, f32::MAX]);
    let values = vec![0.0, f32::MAX];
    let last = Contribution { slice: slice(0, 1).id, step: 0, node: Node::leaf(1), values };
    let place = "element 3 of the gradients' sum".into();
    assert_eq!(math.contribute(last), Err(MathError::Diverged { parameter: "w".into(), step: 0, place }));
}
