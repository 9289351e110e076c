//! Invariant 4, and what people are told of an update that gives what is not finite.

use testudo_kernels::{Initial, ModelSpec, OptimizerSpec, Schedule, Shape, Update};

use super::*;
use crate::job::{Audit, Checkpoints, DataSpec, Determinism, FORMAT};
use crate::placement::SliceMap;
use crate::tree::Node;

const ELEMENTS: usize = 10;

fn parameters() -> Vec<ParameterSpec> {
    let of = |name: &str| ParameterSpec {
        name: name.into(),
        shape: Shape::new(&[ELEMENTS]).unwrap(),
        initial: Initial::Uniform { bound: 0.5 },
        update: Update::Learn,
    };
    vec![of("a"), of("b")]
}

fn job(optimizer: OptimizerSpec) -> Arc<JobSpec> {
    Arc::new(JobSpec {
        format: FORMAT,
        name: "j".into(),
        trust_domain: "t".into(),
        workers: 1,
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
        learning_rate: 0.1,
        schedule: Schedule::Constant,
        seed: 5,
        epochs: 9,
        batch_size: 8,
        logical_shards: 1,
        aggregation: testudo_kernels::Aggregation::Mean,
        clip_norm: None,
        max_steps: None,
        evaluation: crate::job::Evaluation::default(),
        data: DataSpec { train_examples: 64, test_examples: 1, blake3: [0; 32] },
        slice_bytes: 24,
        codecs: crate::job::Codecs::default(),
        determinism: Determinism::Strict,
        heartbeat_ms: 1,
        heartbeat_timeout_ms: 2,
        export: false,
        checkpoints: Checkpoints::default(),
        audit: Audit { hash_every: 0, countersign_every: 0 },
        witness_rate: 0.0,
        resume: None,
    })
}

/// The arithmetic of the slices that `keeps` takes, of six elements and four each, at version 0.
fn math(optimizer: OptimizerSpec, keeps: impl Fn(&Slice) -> bool) -> Result<SliceMath, MathError> {
    let (job, parameters) = (job(optimizer), parameters());
    let map = SliceMap::of(&job, &parameters).unwrap();
    let slices: Vec<Slice> = map.slices().iter().copied().filter(keeps).collect();
    let mut math = SliceMath::new(0, job, parameters, slices, Arc::default(), SumOrder::Canonical)?;
    math.initialise().unwrap();
    Ok(math)
}

fn id(parameter: u32, index: u32) -> SliceId {
    SliceId { parameter, index }
}

/// A gradient of ones, with `value` at `place` of the slice.
fn contribution(slice: SliceId, step: u64, place: usize, value: f32) -> Contribution {
    let mut values = vec![1.0; if slice.index == 0 { 6 } else { 4 }];
    values[place] = value;
    Contribution { slice, step, node: Node::leaf(0), values }
}

#[test]
fn slices_of_a_whole_tensor_go_on_together() {
    let lars = || OptimizerSpec::shipped("lars").unwrap();
    let mut math = math(lars(), |_| true).unwrap();
    let mut give = |slice, step| math.contribute(contribution(slice, step, 0, 1.0)).unwrap();
    for step in 0..3 {
        assert_eq!(give(id(0, 1), step), None);
        assert_eq!(give(id(1, 0), step), None, "another tensor waits for its own");
        let whole = |parameter| vec![id(parameter, 0), id(parameter, 1)];
        let version = step + 1;
        assert_eq!(give(id(0, 0), step), Some(Updated { version, slices: whole(0) }));
        assert_eq!(give(id(1, 1), step), Some(Updated { version, slices: whole(1) }));
    }
    let part = self::math(lars(), |slice| slice.id != id(1, 1)).map(|_| ());
    assert_eq!(part, Err(MathError::Incomplete(1)));
}

/// Gradients are those that the optimizer was given, means over the step's examples; parameters are those of the version.
#[test]
fn histograms_are_of_what_is_updated() {
    let sgd = OptimizerSpec::shipped("sgd").unwrap();
    let mut math = math(sgd, |_| true).unwrap().with_histograms(2);
    for (step, told) in [(0, true), (1, true), (2, false), (3, true)] {
        for slice in [id(0, 0), id(0, 1), id(1, 0), id(1, 1)] {
            assert_eq!(math.poll_histograms(), None, "a slice is missing");
            math.contribute(contribution(slice, step, 0, 16.0)).unwrap().unwrap();
        }
        let Some(seen) = math.poll_histograms() else {
            assert!(!told, "step {step}");
            continue;
        };
        assert!(told && seen.version == step + 1 && seen.tensors.len() == 2);
        let tensor = &seen.tensors[1];
        let gradient = tensor.gradient.as_ref().unwrap();
        // Of eight examples: two elements of sixteen, and eight of one.
        assert_eq!((gradient.min, gradient.max, gradient.sum), (0.125, 2.0, 2.0 * 2.0 + 8.0 * 0.125));
        let kept = math.kept().unwrap();
        let weights =
            kept.iter().filter(|s| s.slice.id.parameter == 1).flat_map(|s| s.weights.iter().copied());
        let mut tally = crate::histogram::Tally::default();
        tally.count(weights);
        assert_eq!(tensor.values, tally.histogram());
    }
}

#[test]
fn other_slices_go_on_by_themselves() {
    let mut math = math(OptimizerSpec::shipped("nadam").unwrap(), |slice| slice.id != id(0, 0)).unwrap();
    for step in 0..3 {
        let updated = math.contribute(contribution(id(0, 1), step, 0, 1.0)).unwrap();
        assert_eq!(updated, Some(Updated { version: step + 1, slices: vec![id(0, 1)] }));
    }
    let scalars: Vec<f64> = math.kept().unwrap().iter().map(|slice| slice.scalars[0]).collect();
    assert!(scalars[0] < scalars[1] && scalars[1] == 1.0, "each by its own steps: {scalars:?}");
}

/// Parameter, step, element of the parameter, and the line, with its text.
#[test]
fn an_update_that_is_not_finite_is_laid_to_a_line() {
    const PROGRAM: &str = "# squares\nstate s\ns = g * g  # which overflow\nw = w - lr * s\n";
    let squares = || OptimizerSpec::own("squares", PROGRAM);
    let mut math = math(squares(), |_| true).unwrap();
    math.contribute(contribution(id(1, 1), 0, 3, 2.0)).unwrap().unwrap();
    let error = math.contribute(contribution(id(1, 1), 1, 3, 1e30)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the update of b in step 1 gives a value that is not finite (element 9; line 3 of the optimizer: `s = g * g  # which \
         overflow`): training has diverged; a lower optimizer.learning_rate may help"
    );
    let lamb = OptimizerSpec::shipped("lamb").unwrap();
    let mut whole = self::math(lamb, |_| true).unwrap();
    assert_eq!(whole.contribute(contribution(id(0, 0), 0, 0, 1.0)), Ok(None));
    let error = whole.contribute(contribution(id(0, 1), 0, 1, 1e38)).unwrap_err();
    assert!(
        error.to_string().contains("of a in step 0 gives a value that is not finite (element 7; line 9"),
        "{error}"
    );
    let counting = OptimizerSpec::own("c", "scalar n = 1e300\nn = n * n\nw = w - lr * g");
    let error =
        self::math(counting, |_| true).unwrap().contribute(contribution(id(0, 0), 0, 0, 1.0)).unwrap_err();
    assert!(
        error.to_string().contains("(one of the optimizer's numbers; line 2 of the optimizer: `n = n * n`)"),
        "{error}"
    );
}
