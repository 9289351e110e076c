//! Whether a job may go on from a checkpoint.
//!
//! What decides the values of training must be equal: model, optimizer, learning rate, schedule, seed, batch, logical shards,
//! data. What decides only who computes them, and how far, may differ: workers, servers, slices, `max_steps`, and epochs
//! under a schedule that does not read them.

use std::collections::BTreeMap;

use serde::Serialize;
use testudo_actors::plan::Plan;
use testudo_actors::{Codecs, JobSpec, Resume};
use testudo_kernels::robust::products;
use testudo_kernels::{Aggregation, Codec, Precision};

use super::store::Whole;
use super::{CheckpointError, manifest::Hex};

/// The setting that holds the text of the optimizer's program.
pub(super) const PROGRAM: &str = "optimizer.program";
/// The setting that holds the rule of aggregation; without it, the mean.
pub(super) const AGGREGATION: &str = "training.aggregation";
/// Bytes of a setting that a message repeats.
const SHOWN_MOST: usize = 200;

/// What two jobs must agree in, each setting as a text that is equal if and only if the setting is. Numbers are written so
/// that reading gives the same bits.
#[must_use]
pub fn settings(job: &JobSpec) -> BTreeMap<String, String> {
    let planned = job
        .schedule
        .reads_total()
        .then(|| ("training.epochs".to_owned(), text(&Plan::new(job).planned_steps())));
    // A checkpoint of before there were rules says nothing of them, and was trained by the mean.
    let rule =
        (job.aggregation != Aggregation::Mean).then(|| (AGGREGATION.to_owned(), text(&job.aggregation)));
    let clip = job.clip_norm.map(|most| ("training.clip_norm".to_owned(), text(&most)));
    // Nor of precision, before there was any but one.
    let precision = (job.precision != Precision::default())
        .then(|| ("training.precision".to_owned(), text(&job.precision)));
    let decay = (!job.optimizer.no_decay.is_empty())
        .then(|| ("optimizer.no_decay".to_owned(), text(&job.optimizer.no_decay)));
    let all = [
        ("model", text(&job.model)),
        ("optimizer", text(&job.optimizer.name)),
        (PROGRAM, text(&job.optimizer.program)),
        ("optimizer.constants", text(&job.optimizer.constants)),
        ("optimizer.learning_rate", text(&job.learning_rate)),
        ("schedule", text(&job.schedule)),
        ("training.seed", text(&job.seed)),
        ("training.batch_size", text(&job.batch_size)),
        ("training.logical_shards", text(&job.logical_shards)),
        ("data (training examples)", text(&job.data.train_examples)),
        ("data (test examples)", text(&job.data.test_examples)),
        ("data (content)", Hex(job.data.blake3).to_string()),
    ];
    let named = all.into_iter().map(|(name, value)| (name.to_owned(), value));
    named.chain(planned).chain(rule).chain(clip).chain(precision).chain(decay).chain(codecs(job)).collect()
}

/// How values travelled, where they lost something on the way; a checkpoint of before there were codecs says nothing of them. A block
/// of `int8` begins where a slice does.
fn codecs(job: &JobSpec) -> impl Iterator<Item = (String, String)> {
    let Codecs { push, pull } = job.codecs;
    let of = |name: &str, codec: Codec| (!codec.is_lossless()).then(|| (name.to_owned(), text(&codec)));
    // Products of whole gradients are summed by blocks, too: slices of whole blocks all give the same bits.
    let elements = job.slice_bytes as usize / 4;
    let weighed = job.weighing().is_some() && !elements.is_multiple_of(products::BLOCK);
    let slices = weighed || [push, pull].into_iter().any(|codec| codec.block() > 1);
    [
        of("transport.push_codec", push),
        of("transport.pull_codec", pull),
        slices.then(|| ("transport.slice_bytes".to_owned(), text(&job.slice_bytes))),
    ]
    .into_iter()
    .flatten()
}

fn text(value: &impl Serialize) -> String {
    // Nothing here has keys that are no strings, which is all that JSON could refuse.
    serde_json::to_string(value).unwrap_or_default()
}

/// A setting for a message: a long text by its hash.
fn shown(value: &str) -> String {
    if value.len() <= SHOWN_MOST {
        return value.to_owned();
    }
    format!("a text of {} bytes with BLAKE3 {}", value.len(), Hex(*blake3::hash(value.as_bytes()).as_bytes()))
}

/// How `job` goes on from `whole`.
///
/// # Errors
/// [`CheckpointError::OtherJob`] that names every setting that must be equal and is not.
pub fn resume(job: &JobSpec, whole: &Whole) -> Result<Resume, CheckpointError> {
    let manifest = &whole.manifest;
    let mut differ = Vec::new();
    for (name, found, wanted) in [
        ("job.name", &manifest.job, &job.name),
        ("job.trust_domain", &manifest.trust_domain, &job.trust_domain),
    ] {
        if found != wanted {
            differ.push(format!("{name} is {wanted}, was {found}"));
        }
    }
    let (now, then) = (settings(job), &manifest.settings);
    for name in now.keys().chain(then.keys().filter(|name| !now.contains_key(*name))) {
        let value =
            |all: &BTreeMap<String, String>| all.get(name).map_or("not set".into(), |value| shown(value));
        if now.get(name) != then.get(name) {
            differ.push(format!("{name} is {}, was {}", value(&now), value(then)));
        }
    }
    if !differ.is_empty() {
        return Err(CheckpointError::OtherJob(format!(
            "{}; a run is resumed with the settings that it was trained with (workers, servers, training.max_steps and \
             the like may change)",
            differ.join("; ")
        )));
    }
    Ok(Resume {
        step: manifest.step,
        manifest_blake3: whole.manifest_blake3.0,
        samples: manifest.samples,
        last_loss: manifest.last_loss,
        best: manifest.best,
    })
}
