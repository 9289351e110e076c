//! From the cluster file to the signed job.

use testudo_actors::{
    Audit, Checkpoints, Codecs, DataSpec, Determinism, EarlyStopping, Elastic, Evaluation, JobSpec,
};
use testudo_kernels::{Aggregation, Codec, GptSpec, ModelSpec, Schedule};

use crate::config::{self, Config};

/// The job that `config` describes, on that data.
#[must_use]
pub fn spec(config: &Config, data: DataSpec) -> JobSpec {
    JobSpec {
        format: testudo_actors::job::FORMAT,
        name: config.job.name.clone(),
        trust_domain: config.job.trust_domain.clone(),
        workers: config.cluster.workers,
        servers: config.cluster.servers,
        elastic: Elastic {
            extra_workers: config.cluster.most_workers() - config.cluster.workers,
            // A peer is never started again: nobody waits for its worker.
            return_ms: match config.cluster.placement {
                config::Placement::Dedicated => config.cluster.supervision.worker_return_ms,
                config::Placement::Colocated => 0,
            },
        },
        model: model(&config.model),
        precision: config.training.precision,
        optimizer: config.optimizer.spec(),
        learning_rate: config.optimizer.learning_rate,
        schedule: schedule(&config.schedule),
        seed: config.training.seed,
        epochs: config.training.epochs,
        batch_size: config.training.step_examples(),
        logical_shards: config.training.step_shards(),
        aggregation: aggregation(&config.training),
        clip_norm: config.training.clip_norm,
        max_steps: config.training.max_steps,
        evaluation: Evaluation {
            every_steps: config.training.evaluate_every,
            early_stopping: config
                .training
                .patience
                .map(|patience| EarlyStopping { patience, min_improvement: config.training.min_improvement }),
        },
        data,
        slice_bytes: config.transport.slice_bytes,
        codecs: codecs(&config.transport),
        determinism: match config.training.determinism {
            config::Determinism::Strict => Determinism::Strict,
            config::Determinism::Relaxed => Determinism::Relaxed,
        },
        heartbeat_ms: config.cluster.heartbeat_ms,
        heartbeat_timeout_ms: config.cluster.heartbeat_timeout_ms,
        export: config.checkpoint.export,
        checkpoints: Checkpoints {
            every_steps: config.checkpoint.every_steps,
            at_end: config.checkpoint.at_end,
        },
        audit: Audit {
            hash_every: config.audit.hash_every,
            countersign_every: config.audit.countersign_every,
        },
        witness_rate: config.audit.witness_rate,
        resume: None,
    }
}

/// The architecture as JSON, as an exported model's file says it.
#[must_use]
pub fn description(model: &ModelSpec) -> Option<String> {
    serde_json::to_string(model).ok()
}

pub(crate) fn model(model: &config::Model) -> ModelSpec {
    match model {
        config::Model::Mlp { inputs, hidden, classes } => {
            ModelSpec::Mlp { inputs: *inputs, hidden: hidden.clone(), classes: *classes }
        }
        config::Model::Cnn { image, classes, label_smoothing } => {
            ModelSpec::Cnn { image: *image, classes: *classes, label_smoothing: *label_smoothing as f32 }
        }
        config::Model::ResNet18 { image, classes, label_smoothing } => {
            ModelSpec::ResNet18 { image: *image, classes: *classes, label_smoothing: *label_smoothing as f32 }
        }
        config::Model::Gpt { context, layers, heads, width, dropout, attention_dropout, norm } => {
            ModelSpec::Gpt(GptSpec {
                vocabulary: config::Model::BYTES,
                context: *context,
                layers: *layers,
                heads: *heads,
                width: *width,
                dropout: *dropout as f32,
                attention_dropout: *attention_dropout as f32,
                norm: *norm,
            })
        }
    }
}

pub(crate) fn aggregation(training: &config::Training) -> Aggregation {
    match training.aggregation {
        config::Aggregation::Mean => Aggregation::Mean,
        config::Aggregation::Median { hostile_workers: hostile } => Aggregation::Median { hostile },
        config::Aggregation::TrimmedMean { hostile_workers: hostile } => Aggregation::TrimmedMean { hostile },
        config::Aggregation::Krum { hostile_workers: hostile } => Aggregation::Krum { hostile },
        config::Aggregation::MultiKrum { hostile_workers: hostile } => Aggregation::MultiKrum { hostile },
        config::Aggregation::GeometricMedian { hostile_workers: hostile } => {
            Aggregation::GeometricMedian { hostile }
        }
        config::Aggregation::CentredClipping { hostile_workers: hostile, clip_radius: radius } => {
            Aggregation::CentredClipping { hostile, radius }
        }
        config::Aggregation::NormBound { hostile_workers: hostile, norm_bound: bound } => {
            Aggregation::NormBound { hostile, bound }
        }
    }
}

pub(crate) fn codecs(transport: &config::Transport) -> Codecs {
    let push = match transport.push {
        config::PushCodec::F32 => Codec::F32,
        config::PushCodec::F16 => Codec::F16,
        config::PushCodec::Bf16 => Codec::Bf16,
        config::PushCodec::Int8 => Codec::Int8,
        config::PushCodec::TwoBit { push_threshold } => Codec::TwoBit { threshold: push_threshold as f32 },
        config::PushCodec::OneBit { push_threshold } => Codec::OneBit { threshold: push_threshold as f32 },
        config::PushCodec::TopK { push_fraction } => Codec::TopK { fraction: push_fraction as f32 },
    };
    let pull = match transport.pull_codec {
        config::PullCodec::F32 => Codec::F32,
        config::PullCodec::F16 => Codec::F16,
        config::PullCodec::Bf16 => Codec::Bf16,
        config::PullCodec::Int8 => Codec::Int8,
    };
    Codecs { push, pull }
}

/// Bytes of all slices of `job` in its push codec and in its pull codec, over their bytes as `f32`.
#[must_use]
pub fn codec_ratios(job: &JobSpec) -> (f64, f64) {
    let most = (job.slice_bytes as usize / 4).max(1);
    let ratio = |codec: Codec| {
        let (mut encoded, mut plain) = (0, 0);
        for parameter in job.model.parameters().unwrap_or_default() {
            let (whole, last) = (parameter.shape.elements() / most, parameter.shape.elements() % most);
            encoded += whole * codec.encoded_len(most) + codec.encoded_len(last);
            plain += parameter.shape.elements() * 4;
        }
        encoded as f64 / plain.max(1) as f64
    };
    (ratio(job.codecs.push), ratio(job.codecs.pull))
}

fn schedule(schedule: &config::Schedule) -> Schedule {
    match *schedule {
        config::Schedule::Constant => Schedule::Constant,
        config::Schedule::Cosine { warmup_steps, final_fraction } => {
            Schedule::Cosine { warmup_steps, final_fraction }
        }
        config::Schedule::Linear { warmup_steps, final_fraction } => {
            Schedule::Linear { warmup_steps, final_fraction }
        }
        config::Schedule::Step { warmup_steps, every_steps, gamma } => {
            Schedule::Step { warmup_steps, every_steps, gamma }
        }
        config::Schedule::OneCycle { rise_fraction, start_fraction, final_fraction } => {
            Schedule::OneCycle { rise_fraction, start_fraction, final_fraction }
        }
    }
}
