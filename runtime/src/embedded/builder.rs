//! A job from code.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use testudo_actors::job::MAX_LOGICAL_SHARDS;
use testudo_actors::own::Grants;
use testudo_actors::{
    Audit, Checkpoints, Codecs, DataSpec, Dataset, Determinism, Elastic, Evaluation, JobSpec, TrainAndTest,
};
use testudo_kernels::{
    Aggregation, Aggregator, Codec, Model, ModelError, ModelSpec, OptimizerSpec, OwnName, OwnRule, Precision,
    Schedule,
};

use super::cluster::Parts;
use super::{EmbeddedError, Links, RunningJob};
use crate::config::Config;
use crate::data::{Data, DataFiles};

/// A cluster file that says no more than it must: what a builder begins with. Model and data are replaced. Nodes of one process stand
/// still together, after which heartbeats of all are late; that one has ended is known without them.
pub(super) const DEFAULTS: &str = "[job]\nname = \"embedded\"\n[cluster]\nheartbeat_timeout_ms = 60000\n\
                                   [model]\nkind = \"mlp\"\ninputs = 1\nclasses = 2\n\
                                   [data]\nkind = \"mnist\"\npath = \"unused\"\n";

/// Data that are not described yet.
const UNKNOWN: DataSpec = DataSpec { train_examples: 0, test_examples: 0, blake3: [0; 32] };

/// What a model of one's own is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelSetup {
    /// The worker that will compute with it, from 0.
    pub worker: u32,
    /// Examples that it is handed at a time at most.
    pub max_examples: usize,
}

/// Builds a worker's model.
pub(super) type Models = Arc<dyn Fn(ModelSetup) -> Result<Box<dyn Model>, ModelError> + Send + Sync>;

/// Finds a worker's data.
type Sets = Box<dyn Fn(u32) -> TrainAndTest + Send>;

/// A training job, to be run by a cluster in this process.
#[derive(Debug)]
pub struct Job;

impl Job {
    /// A job of which model and data are still to be said. Everything else has the default of the cluster file (`docs/config.md`): one server,
    /// one worker, one epoch, and so on; but a node that is silent counts as dead after a minute, as all may stand still together.
    #[must_use]
    pub fn builder() -> JobBuilder {
        let config = Config::parse::<&str>(DEFAULTS, Path::new("embedded.toml"), &[]);
        match config {
            Ok(config) => JobBuilder::of(&config, UNKNOWN),
            // A test sees that the text is good.
            Err(error) => JobBuilder { wrong: Some(error.into()), ..JobBuilder::default() },
        }
    }

    /// The job that a cluster file describes, on the data that it names, with `overrides`, each `key=value`. What says where nodes run
    /// and what they leave behind (network, checkpoints, audit log, limits, security) means nothing here.
    ///
    /// # Errors
    /// [`EmbeddedError`] when the file is none, or its data cannot be read.
    pub fn from_file<S: AsRef<str>>(path: &Path, overrides: &[S]) -> Result<JobBuilder, EmbeddedError> {
        let config = Config::load(path, overrides)?;
        let data = Data::read(&config, &DataFiles::open(&config.data)?)?;
        let mut builder = JobBuilder::of(&config, data.spec());
        let sets = data.sets();
        builder.model_given = true;
        builder.shards_given = true;
        builder.sets = Some(Box::new(move |_| sets.clone()));
        Ok(builder)
    }
}

/// Says what a job is, and starts it. What is wrong is told by [`start`](JobBuilder::start), the first thing first.
#[derive(Default)]
pub struct JobBuilder {
    spec: Option<JobSpec>,
    links: Links,
    models: Option<Models>,
    sets: Option<Sets>,
    rule: Option<Arc<dyn Aggregator>>,
    grants: Grants,
    events: Option<PathBuf>,
    histogram_every: u64,
    model_given: bool,
    shards_given: bool,
    rate_given: bool,
    wrong: Option<EmbeddedError>,
}

impl std::fmt::Debug for JobBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobBuilder")
            .field("spec", &self.spec)
            .field("links", &self.links)
            .finish_non_exhaustive()
    }
}

impl JobBuilder {
    fn of(config: &Config, data: DataSpec) -> JobBuilder {
        let spec = JobSpec {
            export: true,
            checkpoints: Checkpoints::default(),
            audit: Audit { hash_every: 0, countersign_every: 0 },
            ..crate::job::spec(config, data)
        };
        let histogram_every = config.telemetry.histogram_every;
        JobBuilder { spec: Some(spec), histogram_every, ..JobBuilder::default() }
    }

    fn set(mut self, set: impl FnMut(&mut JobSpec)) -> JobBuilder {
        self.spec.iter_mut().for_each(set);
        self
    }

    fn wrong(mut self, error: EmbeddedError) -> JobBuilder {
        self.wrong.get_or_insert(error);
        self
    }

    /// The job's name, as in its nodes' identities: lower-case letters, digits and `-`.
    #[must_use]
    pub fn name(self, name: &str) -> JobBuilder {
        self.set(|spec| spec.name = name.to_owned())
    }

    /// A model that ships.
    #[must_use]
    pub fn model(mut self, model: ModelSpec) -> JobBuilder {
        (self.models, self.model_given) = (None, true);
        self.set(|spec| spec.model = model.clone())
    }

    /// A model of one's own, by the name and version that the job will name it by. `build` is called once for each worker, and once before,
    /// for a worker 0 of one example, to learn its parameters; these must not depend on what it is called with.
    #[must_use]
    pub fn own_model<F>(mut self, name: &str, build: F) -> JobBuilder
    where
        F: Fn(ModelSetup) -> Result<Box<dyn Model>, ModelError> + Send + Sync + 'static,
    {
        let name = match OwnName::new(name) {
            Ok(name) => name.to_string(),
            Err(error) => return self.wrong(error.into()),
        };
        let model = match build(ModelSetup { worker: 0, max_examples: 1 }) {
            Ok(model) => model,
            Err(error) => return self.wrong(error.into()),
        };
        self.models = Some(Arc::new(build));
        self.model_given = true;
        self.set(|spec| {
            spec.model = ModelSpec::Custom {
                name: name.clone(),
                inputs: model.input_elements(),
                classes: model.classes(),
                targets: model.targets(),
                parameters: model.parameters().to_vec(),
            };
        })
    }

    /// What every worker trains and evaluates on. Each is read once for its hash ([`Dataset::blake3`]), which the job is signed with.
    #[must_use]
    pub fn data(self, train: impl Dataset + 'static, test: impl Dataset + 'static) -> JobBuilder {
        let (train, test): TrainAndTest = (Arc::new(train), Arc::new(test));
        self.data_of(move |_| (Arc::clone(&train), Arc::clone(&test)))
    }

    /// What each worker trains and evaluates on, by its index: data of several owners that never leave them. All have as many
    /// examples, the n-th of each stands for the n-th of the job, and workers of a job whose owners differ get other bits if
    /// their number changes or one is lost.
    #[must_use]
    pub fn data_of<F>(mut self, sets: F) -> JobBuilder
    where
        F: Fn(u32) -> TrainAndTest + Send + 'static,
    {
        self.sets = Some(Box::new(sets));
        // What a cluster file's data were known by says nothing of these.
        self.set(|spec| spec.data = UNKNOWN)
    }

    /// An optimizer by the name of one that ships (`sgd`, `adamw`, ...), with its default learning rate unless one is given; or the text of
    /// a program (`docs/optimizers.md`), which has more than one line.
    #[must_use]
    pub fn optimizer(self, name_or_program: &str) -> JobBuilder {
        if name_or_program.contains('\n') {
            return self.set(|spec| spec.optimizer = OptimizerSpec::own("own", name_or_program));
        }
        let kind = format!("optimizer.kind={name_or_program}");
        let config = OptimizerSpec::shipped(name_or_program)
            .and_then(|_| Config::parse(DEFAULTS, Path::new("embedded.toml"), &[kind]).ok());
        let Some(config) = config else {
            return self.wrong(EmbeddedError::Optimizer(name_or_program.to_owned()));
        };
        let given = self.rate_given;
        self.set(|spec| {
            spec.optimizer = config.optimizer.spec();
            if !given {
                spec.learning_rate = config.optimizer.learning_rate;
            }
        })
    }

    /// Sets a constant of the optimizer's program, like `weight_decay`.
    #[must_use]
    pub fn constant(self, name: &str, value: f64) -> JobBuilder {
        self.set(|spec| spec.optimizer = spec.optimizer.clone().with(name, value))
    }

    /// The learning rate before the schedule's factor; above 0.
    #[must_use]
    pub fn learning_rate(mut self, rate: f64) -> JobBuilder {
        self.rate_given = true;
        self.set(|spec| spec.learning_rate = rate)
    }

    /// How the learning rate changes over the planned steps.
    #[must_use]
    pub fn schedule(self, schedule: Schedule) -> JobBuilder {
        self.set(|spec| spec.schedule = schedule)
    }

    /// A rule of aggregation that ships. Under a rule over votes there are as many logical shards as workers.
    #[must_use]
    pub fn aggregation(mut self, rule: Aggregation) -> JobBuilder {
        self.rule = None;
        self.set(|spec| spec.aggregation = rule)
    }

    /// A rule of aggregation of one's own. One that is not deterministic makes the job `determinism = "relaxed"`, and the scheduler
    /// witnesses no update.
    #[must_use]
    pub fn own_aggregation(mut self, rule: impl Aggregator + 'static) -> JobBuilder {
        let stated = OwnRule::of(&rule);
        self.rule = Some(Arc::new(rule));
        self.set(|spec| spec.aggregation = Aggregation::Own(stated))
    }

    /// How many workers compute gradients, from 1.
    #[must_use]
    pub fn workers(self, workers: u32) -> JobBuilder {
        self.set(|spec| spec.workers = workers)
    }

    /// How many servers keep parameters, from 1.
    #[must_use]
    pub fn servers(self, servers: u32) -> JobBuilder {
        self.set(|spec| spec.servers = servers)
    }

    /// Passes over the training set.
    #[must_use]
    pub fn epochs(self, epochs: u64) -> JobBuilder {
        self.set(|spec| spec.epochs = epochs)
    }

    /// Steps at most, whatever the epochs.
    #[must_use]
    pub fn max_steps(self, steps: u64) -> JobBuilder {
        self.set(|spec| spec.max_steps = Some(steps))
    }

    /// What a model that ships computes in; servers keep `f32` whatever it is.
    #[must_use]
    pub fn precision(self, precision: Precision) -> JobBuilder {
        self.set(|spec| spec.precision = precision)
    }

    /// Examples in a step's batch, over all workers.
    #[must_use]
    pub fn batch_size(self, examples: u32) -> JobBuilder {
        self.set(|spec| spec.batch_size = examples)
    }

    /// Parts that a batch is cut into: at least as many as workers. Bits depend on it, and not on the number of workers.
    #[must_use]
    pub fn logical_shards(mut self, shards: u32) -> JobBuilder {
        self.shards_given = true;
        self.set(|spec| spec.logical_shards = shards)
    }

    /// The norm that a step's whole gradient is clipped to.
    #[must_use]
    pub fn clip_norm(self, norm: f64) -> JobBuilder {
        self.set(|spec| spec.clip_norm = Some(norm))
    }

    /// Evaluates the test set after every so many steps, and not at the end alone.
    #[must_use]
    pub fn evaluate_every(self, steps: u64) -> JobBuilder {
        self.set(|spec| spec.evaluation = Evaluation { every_steps: steps, ..spec.evaluation })
    }

    /// The seed of all training randomness: initial parameters, order of examples, dropout.
    #[must_use]
    pub fn seed(self, seed: u64) -> JobBuilder {
        self.set(|spec| spec.seed = seed)
    }

    /// How gradients travel to servers, and parameters to workers.
    #[must_use]
    pub fn codecs(self, push: Codec, pull: Codec) -> JobBuilder {
        self.set(|spec| spec.codecs = Codecs { push, pull })
    }

    /// Bytes of `f32` in a slice at most: what a message carries, and what servers share out.
    #[must_use]
    pub fn slice_bytes(self, bytes: u32) -> JobBuilder {
        self.set(|spec| spec.slice_bytes = bytes)
    }

    /// What actors of one's own beside the job may say to whom: see [`RunningJob::actors`].
    #[must_use]
    pub fn grants(mut self, grants: Grants) -> JobBuilder {
        self.grants = grants;
        self
    }

    /// Writes what TensorBoard shows into a file of its own in `folder`, as `testudo run` does in its run directory (`docs/watching.md`): every
    /// step's numbers, evaluations, and histograms. The folder is made, for its owner alone, if it is not there; its parent must be. What the
    /// disk does not take is left out of the file, and nothing else.
    ///
    /// [`start`](JobBuilder::start) fails with [`EmbeddedError::Events`] where no file can be begun.
    #[must_use]
    pub fn events(mut self, folder: impl Into<PathBuf>) -> JobBuilder {
        self.events = Some(folder.into());
        self
    }

    /// Steps between two histograms of gradients and parameters in the event file, of each tensor; of the first step there is one, too. 0
    /// for none; 100, or what the cluster file says, unless it is said. Without [`events`](JobBuilder::events) none is counted.
    #[must_use]
    pub fn histogram_every(mut self, steps: u64) -> JobBuilder {
        self.histogram_every = steps;
        self
    }

    /// How nodes are connected; [`Links::Secured`] unless it is said. No bit depends on it.
    #[must_use]
    pub fn links(mut self, links: Links) -> JobBuilder {
        self.links = links;
        self
    }

    /// Signs the job with an operator's key made for it, and starts its nodes.
    ///
    /// # Errors
    /// [`EmbeddedError`]: the first thing that was said wrong, what is missing, or why a node cannot be started. What is wrong with a node
    /// later, [`RunningJob::wait`] tells.
    pub fn start(self) -> Result<RunningJob, EmbeddedError> {
        let (grants, folder) = (self.grants.clone(), self.events.clone());
        let (spec, links, parts) = self.finish()?;
        RunningJob::start(spec, links, grants, (&parts, folder.as_deref()))
    }

    /// As [`start`](JobBuilder::start) and [`RunningJob::wait`] together.
    ///
    /// # Errors
    /// As they have.
    pub fn run(self) -> Result<super::Trained, EmbeddedError> {
        self.start()?.wait()
    }

    /// The job as it will be signed.
    ///
    /// # Errors
    /// As [`start`](JobBuilder::start) has, as far as no node is needed to know.
    pub fn spec(self) -> Result<JobSpec, EmbeddedError> {
        let (spec, ..) = self.finish()?;
        Ok(spec)
    }

    fn finish(self) -> Result<(JobSpec, Links, Parts), EmbeddedError> {
        if let Some(error) = self.wrong {
            return Err(error);
        }
        let mut spec = self.spec.filter(|_| self.model_given).ok_or(EmbeddedError::Missing("model"))?;
        let sets = self.sets.ok_or(EmbeddedError::Missing("data"))?;
        if spec.aggregation.hostile().is_some() && !self.shards_given {
            spec.logical_shards = spec.workers;
        }
        // Nobody starts a worker of this process again: when the last is lost, the run ends at once.
        spec.elastic = Elastic::default();
        // At the end, so that a rule that another has replaced leaves nothing behind.
        if let Aggregation::Own(stated) = &spec.aggregation {
            spec.witness_rate = 0.0;
            if !stated.deterministic {
                spec.determinism = Determinism::Relaxed;
            }
        }
        // What a job of more workers lacks, its validation says.
        let sets: Vec<TrainAndTest> = (0..spec.workers.min(MAX_LOGICAL_SHARDS)).map(sets).collect();
        if spec.data.train_examples == 0 {
            spec.data = describe(&sets)?;
        }
        spec.validate()?;
        // Nobody counts what nobody writes down.
        let histogram_every = self.events.map_or(0, |_| self.histogram_every);
        Ok((spec, self.links, Parts { models: self.models, sets, rule: self.rule, histogram_every }))
    }
}

/// What a job says of its workers' data: of the sets that all have, their hash; of several owners', the hash of all.
fn describe(sets: &[TrainAndTest]) -> Result<DataSpec, EmbeddedError> {
    let counts = |(train, test): &TrainAndTest| (train.len(), test.len());
    let expected = sets.first().map_or((0, 0), counts);
    let (mut hasher, mut before) = (blake3::Hasher::new(), None::<&TrainAndTest>);
    for (worker, own) in sets.iter().enumerate() {
        if counts(own) != expected {
            return Err(EmbeddedError::Owners { worker, expected, found: counts(own) });
        }
        // What all have is read once.
        if !before.is_some_and(|(train, test)| Arc::ptr_eq(train, &own.0) && Arc::ptr_eq(test, &own.1)) {
            hasher.update(&own.0.blake3()).update(&own.1.blake3());
            before = Some(own);
        }
    }
    let (train_examples, test_examples) = (expected.0 as u64, expected.1 as u64);
    Ok(DataSpec { train_examples, test_examples, blake3: *hasher.finalize().as_bytes() })
}
