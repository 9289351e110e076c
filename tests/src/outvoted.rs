//! Training on real data while two of seven workers flip signs and scale by ten: a whole cluster's arithmetic without the cluster.
//! Workers' shards, a server's votes and updates, the scheduler's weights, on one thread, with the bits that a cluster has.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use testudo::config::Config;
use testudo::node::{data, dataset};
use testudo_actors::message::Evaluate;
use testudo_actors::placement::SliceMap;
use testudo_actors::plan::Plan;
use testudo_actors::server::{Contribution, MathError, SliceMath, Store, SumOrder};
use testudo_actors::tree::Node;
use testudo_actors::worker::{Event, ShardCompute};
use testudo_actors::{Audit, JobSpec};

use crate::liar::{Lie, flipped, perhaps};
use crate::toy::NoSink;

/// The shards whose votes are lies.
const LIARS: [u32; 2] = [1, 4];

/// How training ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    /// With that share of the test set classified right.
    Accuracy(f64),
    /// In that step, of numbers that are none.
    Diverged(u64),
}

/// Trains `examples/mnist.toml`, changed by `overrides`, with seven workers. `told` hears of the share of the test set that is classified
/// right after every epoch, and after the last step: of its rule, the steps done and their number.
///
/// # Errors
/// When the cluster file, the data or the job do not hold.
pub fn train(
    overrides: &[&str],
    mut told: impl FnMut(&JobSpec, [u64; 2], f64),
) -> Result<End, Box<dyn Error>> {
    let seven = ["cluster.workers=7", "training.logical_shards=7", "training.batch_size=252"];
    let overrides: Vec<String> = seven.iter().chain(overrides).map(|set| (*set).to_owned()).collect();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/mnist.toml");
    let config = Config::load(&file, &overrides).map_err(|errors| format!("{errors:?}"))?;
    let job = testudo::job::spec(&config, data(&config)?.spec());
    let job = Arc::new(JobSpec { audit: Audit { hash_every: 0, countersign_every: 0 }, ..job });
    job.validate()?;

    let parameters = job.model.parameters()?;
    let map = Arc::new(SliceMap::of(&job, &parameters)?);
    let store = Arc::new(Store::default());
    let slices = map.slices().to_vec();
    let mut math =
        SliceMath::new(0, Arc::clone(&job), parameters, slices, Arc::clone(&store), SumOrder::Canonical)?;
    math.initialise()?;
    let sets = dataset(&config, &job)?;
    let worker = |lie: Option<Lie>| -> Result<ShardCompute, Box<dyn Error>> {
        let model = perhaps(job.build_model()?, lie);
        let (train, test) = (Arc::clone(&sets.0), Arc::clone(&sets.1));
        Ok(ShardCompute::new(Arc::clone(&job), Arc::clone(&map), model, train, test, Box::new(NoSink))?)
    };
    let (mut honest, mut liar) = (worker(None)?, worker(Some(flipped))?);
    let tell = |worker: &mut ShardCompute| {
        for slice in map.slices() {
            if let Some((_, values)) = store.current(slice.id) {
                worker.install(slice.id, &values);
            }
        }
        worker.adopt();
    };
    tell(&mut honest);

    let plan = Plan::new(&job);
    let (lies, votes): (Vec<u32>, Vec<u32>) = (0..7).partition(|shard| LIARS.contains(shard));
    let leaves = |shards: &[u32]| shards.iter().map(|shard| Node::leaf(*shard)).collect::<Vec<Node>>();
    let mut accuracy = 0.0;
    for step in 0..plan.steps() {
        tell(&mut liar);
        for (worker, nodes) in [(&mut honest, leaves(&votes)), (&mut liar, leaves(&lies))] {
            let mut contributed = Ok(());
            worker.compute(step, &nodes, |event| {
                if let Event::Gradient { node, slice, values, .. } = event
                    && contributed.is_ok()
                {
                    let values = bytemuck::pod_collect_to_vec(&values);
                    contributed = math.contribute(Contribution { slice, step, node, values }).map(drop);
                }
            })?;
            // An update that overflows, or a gradient of parameters that have grown too far.
            if let Err(MathError::Diverged { .. } | MathError::NotFinite(_)) = contributed {
                return Ok(End::Diverged(step));
            }
            contributed?;
        }
        if let (Some(weighing), Some((step, products))) = (job.weighing(), math.poll_products()) {
            let weights = weighing.weigh(&products, f64::from(job.divisor(step)))?;
            math.combine(step, &weights)?;
        }
        tell(&mut honest);
        if (step + 1).is_multiple_of(plan.steps_per_epoch()) || step + 1 == plan.steps() {
            let examples = job.data.test_examples;
            let result = honest.evaluate(&Evaluate { version: step + 1, first: 0, examples })?;
            accuracy = result.correct as f64 / examples as f64;
            told(&job, [step + 1, plan.steps()], accuracy);
        }
    }
    Ok(End::Accuracy(accuracy))
}
