//! What the runtime gives a node: its network as the cluster file says, its data, and where results go.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use testudo_actors::audit::{Entry, Head};
use testudo_actors::checkpoint::{Committed, Ledger, PartSource, ServerSetup};
use testudo_actors::message::Evaluated;
use testudo_actors::node::WorkerSetup;
use testudo_actors::scheduler::{Observer, StepSummary, TensorSpread};
use testudo_actors::{CheckpointError, CheckpointSink, FinalModel, JobSpec, Resume, TrainAndTest};
use testudo_kernels::cuda::AnyDevice;
use testudo_kernels::{Model, ModelError};
use testudo_transport::{BindError, CreditConfig, KeyExchange, Role, TransportConfig};

use crate::audit::AuditHandle;
use crate::checkpoint::safetensors::{self, Metadata, Tensor};
use crate::config::{self, ComputeDevice, Config, MatrixProducts};
use crate::data::{Data, DataFiles, LoadError};
use crate::device;
use crate::job;
use crate::report::metrics::{EvaluationRecord, MetricsError, MetricsWriter, StepRecord};
use crate::report::tensorboard::Events;
use crate::telemetry::Progress;

/// Streams that a peer may have open beside its lanes: the one to a scheduler, and some to spare.
const SPARE_STREAMS: u32 = 4;

/// The transport's settings for a node of `config` in that role that binds `listen` and holds `data` bytes of examples. Who has
/// no business being dialled only dials.
#[must_use]
pub fn transport(config: &Config, role: Role, listen: SocketAddr, data: u64) -> TransportConfig {
    let credit = CreditConfig {
        bytes: config.transport.max_in_flight_bytes,
        messages: u64::from(config.transport.max_in_flight_messages),
    };
    let settings = TransportConfig {
        listen,
        accepts: !matches!(role, Role::Worker | Role::Operator),
        mtu: config.network.mtu,
        idle_timeout: Duration::from_millis(config.transport.idle_timeout_ms),
        // Three chances before an idle connection counts as dead.
        keep_alive: Duration::from_millis(config.transport.idle_timeout_ms / 4),
        max_streams: u32::from(config.transport.lanes) + SPARE_STREAMS,
        data_credit: credit,
        key_exchange: match config.transport.key_exchange {
            config::KeyExchange::PqOnly => KeyExchange::PqOnly,
            config::KeyExchange::PqFirst => KeyExchange::PqFirst,
        },
        ..TransportConfig::default()
    };
    config.limit(settings, role, data)
}

/// Finds out whether every address that `config` has the scheduler and the servers bind is free, so that a cluster that
/// cannot start is not started at all.
///
/// # Errors
/// [`BindError`] naming the first that is not.
pub fn check_addresses(config: &Config) -> Result<(), BindError> {
    // Those of servers elsewhere are not this machine's.
    let servers = if config.ssh.is_some() { 0 } else { config.cluster.servers };
    let servers = (0..servers).map(|index| config.network.server_listen(index));
    for address in std::iter::once(config.network.scheduler_listen()).chain(servers) {
        UdpSocket::bind(address).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => BindError::InUse(address),
            _ => BindError::Address { address, what: error.to_string() },
        })?;
    }
    Ok(())
}

/// The files of the data that `config` names, opened.
///
/// # Errors
/// [`LoadError`] saying which file cannot be.
pub fn data_files(config: &Config) -> Result<DataFiles, LoadError> {
    DataFiles::open(&config.data)
}

/// The data that `config` names.
///
/// # Errors
/// [`LoadError`] saying which file is wrong, and how.
pub fn data(config: &Config) -> Result<Data, LoadError> {
    Data::read(config, &data_files(config)?)
}

/// The data that `config` names, if it is what `job` was signed for.
///
/// # Errors
/// The text says what is wrong with it.
pub fn dataset(config: &Config, job: &JobSpec) -> Result<TrainAndTest, String> {
    sets(config, data(config).map_err(|e| e.to_string())?, job)
}

fn sets(config: &Config, data: Data, job: &JobSpec) -> Result<TrainAndTest, String> {
    if data.spec() != job.data {
        return Err(format!(
            "the data in {} is not what the job was signed for: every worker needs the operator's files",
            config.data.path().display()
        ));
    }
    Ok(data.sets())
}

/// A worker's data and sink, from the cluster file.
#[derive(Debug)]
pub struct Setup {
    config: Config,
    model: PathBuf,
    files: Option<DataFiles>,
    data: Option<Data>,
    device: Option<AnyDevice>,
}

impl Setup {
    /// For a node of `config` that writes the final model to the file `model`.
    #[must_use]
    pub fn new(config: Config, model: PathBuf) -> Setup {
        Setup { config, model, files: None, data: None, device: None }
    }

    /// With data from `files`, which are open, instead of those that the cluster file names.
    #[must_use]
    pub fn with_files(self, files: DataFiles) -> Setup {
        Setup { files: Some(files), ..self }
    }

    fn read(&mut self) -> Result<Data, String> {
        let files = match self.files.take() {
            Some(files) => files,
            None => data_files(&self.config).map_err(|e| e.to_string())?,
        };
        Data::read(&self.config, &files).map_err(|e| e.to_string())
    }
}

impl WorkerSetup for Setup {
    fn prepare(&mut self) -> Result<(), String> {
        if let Some(why) = device::passed_over(&self.config) {
            tracing::info!("{why}");
        }
        let (device, products) = (self.config.worker_device(), self.config.workers.products);
        self.device = device::open("workers.device", device, products).map_err(|e| e.message)?;
        self.data = Some(self.read()?);
        Ok(())
    }

    fn fingerprint(&self) -> String {
        let exact = testudo_kernels::fingerprint();
        match self.config.workers.products {
            MatrixProducts::Exact => exact,
            products => format!("{exact}, products {}", products.word()),
        }
    }

    fn model(&mut self, job: &JobSpec) -> Result<Box<dyn Model>, ModelError> {
        let config::Workers { device: asked, products } = self.config.workers;
        match self.device.take() {
            // Bits that are a GPU's own were asked for.
            Some(device) if asked == ComputeDevice::Auto && products == MatrixProducts::Exact => {
                job.build_model_on_or_cpu(device)
            }
            Some(device) => job.build_model_on(device),
            None => job.build_model(),
        }
    }

    fn data(&mut self, job: &JobSpec) -> Result<TrainAndTest, String> {
        let data = match self.data.take() {
            Some(data) => data,
            None => self.read()?,
        };
        sets(&self.config, data, job)
    }

    fn sink(&mut self, job: &JobSpec) -> Box<dyn CheckpointSink> {
        Box::new(ModelFile { path: self.model.clone(), model: job::description(&job.model) })
    }
}

/// Writes the final model as safetensors.
struct ModelFile {
    path: PathBuf,
    /// The architecture, for the file's metadata.
    model: Option<String>,
}

impl CheckpointSink for ModelFile {
    fn export(&mut self, model: &FinalModel<'_>) -> Result<u64, CheckpointError> {
        let tensors: Vec<Tensor<'_>> =
            model.tensors.iter().map(|t| Tensor { name: t.name, shape: t.dims, values: t.values }).collect();
        let metadata = Metadata {
            job: model.job.to_owned(),
            step: model.version,
            params_blake3: model.params_blake3,
            model: self.model.clone(),
        };
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|e| CheckpointError(format!("{} cannot be made: {e}", folder.display())))?;
        }
        let bytes = safetensors::write(&self.path, &tensors, &metadata)
            .map_err(|e| CheckpointError(e.to_string()))?;
        tracing::info!(bytes, "the final model is in checkpoint/final/{}", safetensors::MODEL_FILE);
        Ok(bytes)
    }
}

/// Writes one line of metrics.jsonl a step and one of evaluations.jsonl an evaluation, both into an event file for TensorBoard, and has the run's ledger and its audit
/// log.
pub struct Metrics {
    writer: MetricsWriter,
    evaluations: MetricsWriter,
    events: Option<Events>,
    ledger: Option<Box<dyn Ledger>>,
    audit: Option<AuditHandle>,
    source: Option<Box<dyn ServerSetup>>,
    progress: Arc<Progress>,
}

impl Metrics {
    /// Into the files `steps` and `evaluations`.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn open(steps: &Path, evaluations: &Path) -> Result<Metrics, MetricsError> {
        let (writer, evaluations) = (MetricsWriter::open(steps)?, MetricsWriter::open(evaluations)?);
        let (events, ledger, audit, source, progress) = Default::default();
        Ok(Metrics { writer, evaluations, events, ledger, audit, source, progress })
    }

    /// How far the run is, for a collector.
    #[must_use]
    pub(crate) fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// With an event file for TensorBoard.
    #[must_use]
    pub fn with_events(mut self, events: Events) -> Metrics {
        self.events = Some(events);
        self
    }

    /// With an audit log.
    #[must_use]
    pub fn with_audit(mut self, audit: AuditHandle) -> Metrics {
        self.audit = Some(audit);
        self
    }

    /// With what makes checkpoints whole.
    #[must_use]
    pub fn with_ledger(mut self, ledger: Box<dyn Ledger>) -> Metrics {
        self.ledger = Some(ledger);
        self
    }
}

impl Metrics {
    /// With where a resumed run's checkpoint is read.
    #[must_use]
    pub fn with_source(mut self, source: Box<dyn ServerSetup>) -> Metrics {
        self.source = Some(source);
        self
    }
}

impl Drop for Metrics {
    /// What waits for room is tried once more when the run is over.
    fn drop(&mut self) {
        if self.writer.is_behind() {
            let written = self.writer.flush();
            let left_out = self.writer.take_left_out();
            match written {
                Ok(()) => tracing::info!(left_out, "metrics.jsonl is written again"),
                Err(error) => tracing::warn!(%error, left_out, "the last steps are not in metrics.jsonl"),
            }
        }
        if self.evaluations.is_behind()
            && let Err(error) = self.evaluations.flush()
        {
            tracing::warn!(%error, "the last evaluations are not in evaluations.jsonl");
        }
    }
}

impl Observer for Metrics {
    fn audit_head(&mut self) -> Option<Head> {
        self.audit.as_ref()?.head()
    }

    fn audit(&mut self, entry: Entry) {
        if let Some(audit) = &self.audit {
            audit.tell(entry);
        }
    }

    fn source(&mut self, job: &JobSpec, resume: &Resume) -> Result<Box<dyn PartSource>, String> {
        match &mut self.source {
            Some(source) => source.source(job, resume),
            None => Err("the scheduler has no checkpoints to begin with".into()),
        }
    }

    fn ledger(&mut self) -> Option<Box<dyn Ledger>> {
        self.ledger.take()
    }

    fn checkpoint(&mut self, _: &Committed) {
        self.progress.checkpoint();
    }

    fn evaluated(&mut self, found: &Evaluated) {
        self.progress.evaluated(found);
        if let Some(events) = &mut self.events {
            events.evaluated(SystemTime::now(), found);
        }
        let Evaluated { step, loss: test_loss, accuracy: test_accuracy } = *found;
        if let Err(error) = self.evaluations.append(&EvaluationRecord { step, test_loss, test_accuracy }) {
            tracing::warn!(%error, "evaluations.jsonl cannot be written; what is new waits for that");
        }
    }

    fn histograms(&mut self, version: u64, tensors: &[TensorSpread]) {
        if let Some(events) = &mut self.events {
            events.spread(SystemTime::now(), version, tensors);
        }
    }

    fn step(&mut self, summary: &StepSummary) {
        self.progress.step(summary);
        let record = StepRecord::from(summary);
        if let Some(events) = &mut self.events {
            events.step(SystemTime::now(), &record);
        }
        let was_behind = self.writer.is_behind();
        match (self.writer.append(&record), was_behind) {
            (Ok(()), false) | (Err(_), true) => {}
            (Ok(()), true) => {
                tracing::info!(left_out = self.writer.take_left_out(), "metrics.jsonl is written again");
            }
            (Err(error), false) => {
                tracing::warn!(%error, "metrics.jsonl cannot be written; what is new waits for that");
            }
        }
    }
}
