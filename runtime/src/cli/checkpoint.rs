//! `testudo checkpoint`: a run's training checkpoints, listed, checked, opened, exported, deleted.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use testudo_actors::checkpoint::{NamedTensor, params_blake3};

use self::prune::{PruneArguments, prune};
use crate::checkpoint::keys::Identities;
use crate::checkpoint::part::{Frame, Plaintext};
use crate::checkpoint::safetensors::{self, Metadata, Tensor};
use crate::checkpoint::storage::{Disk, Storage as _};
use crate::checkpoint::{CheckpointError, Checkpoints, Whole, load};
use crate::error::Failure;
use crate::job;
use crate::rundir::RunDir;
use crate::say::say;

mod prune;

/// `testudo checkpoint`
#[derive(Debug, Args)]
pub(crate) struct CheckpointArguments {
    /// What to do.
    #[command(subcommand)]
    command: CheckpointCommand,
}

/// The commands of `testudo checkpoint`.
#[derive(Debug, Subcommand)]
enum CheckpointCommand {
    /// List the checkpoints of a run
    #[command(after_help = "Examples:
  testudo checkpoint list runs/mnist-20261123T081613Z")]
    List {
        /// The run directory
        run_dir: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Check every checkpoint: signatures, hashes, the chain from one to the next; with a key, the content too
    #[command(after_help = "Examples:
  testudo checkpoint verify runs/mnist-20261123T081613Z
  testudo checkpoint verify runs/mnist-20261123T081613Z --identity-file key.txt --json")]
    Verify {
        /// The run directory
        run_dir: PathBuf,
        /// Trust the CAs in this PEM file instead of those that the run directory lists
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
        /// Open and check the content too, with this age identity
        #[arg(long, value_name = "FILE")]
        identity_file: Option<PathBuf>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write the parts of a checkpoint, decrypted, as safetensors files
    #[command(after_help = "Examples:
  testudo checkpoint decrypt runs/mnist-20261123T081613Z --out parts")]
    Decrypt {
        /// What to open, and how
        #[command(flatten)]
        source: SourceArguments,
        /// The folder to write them to
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Print one JSON object: step, files
        #[arg(long)]
        json: bool,
    },
    /// Write the model of a checkpoint, decrypted, as one safetensors file
    #[command(after_help = "Examples:
  testudo checkpoint export runs/mnist-20261123T081613Z --step 200 --out model.safetensors")]
    Export {
        /// What to open, and how
        #[command(flatten)]
        source: SourceArguments,
        /// The file to write it to
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Print one JSON object: file, step, params_blake3
        #[arg(long)]
        json: bool,
    },
    /// Delete old checkpoints, and, if asked, the run's key, so that nothing opens those that are left
    Prune(PruneArguments),
}

/// Which checkpoint to open, and with what.
#[derive(Debug, Args)]
struct SourceArguments {
    /// The run directory
    run_dir: PathBuf,
    /// The checkpoint at this step [default: the newest]
    #[arg(long, value_name = "N")]
    step: Option<u64>,
    /// The age identity that opens it [default: the run's own key]
    #[arg(long, value_name = "FILE")]
    identity_file: Option<PathBuf>,
}

pub(super) fn checkpoint(arguments: &CheckpointArguments) -> Result<(), Failure> {
    match &arguments.command {
        CheckpointCommand::List { run_dir, json } => list(run_dir, *json),
        CheckpointCommand::Verify { run_dir, ca, identity_file, json } => {
            verify(run_dir, ca.as_deref(), identity_file.as_deref(), *json)
        }
        CheckpointCommand::Decrypt { source, out, json } => decrypt(source, out, *json),
        CheckpointCommand::Export { source, out, json } => export(source, out, *json),
        CheckpointCommand::Prune(arguments) => prune(arguments),
    }
}

fn open(run_dir: &Path) -> Result<(RunDir, Checkpoints), Failure> {
    let run_dir = RunDir::open(run_dir).map_err(Failure::misconfigured)?;
    let checkpoints = Checkpoints::open(&run_dir.checkpoints()).map_err(Failure::misconfigured)?;
    Ok((run_dir, checkpoints))
}

fn list(run_dir: &Path, as_json: bool) -> Result<(), Failure> {
    let (run_dir, checkpoints) = open(run_dir)?;
    let steps = checkpoints.steps().map_err(Failure::failed)?;
    let all: Vec<Result<Whole, CheckpointError>> = steps.iter().map(|step| checkpoints.read(*step)).collect();
    let unfinished = checkpoints.unfinished().map_err(Failure::failed)?;
    if as_json {
        let rows: Vec<Value> = steps.iter().zip(&all).map(|(step, whole)| row(*step, whole)).collect();
        say!("{}", json!({ "run_dir": run_dir.path(), "checkpoints": rows, "unfinished": unfinished }));
        return Ok(());
    }
    if all.is_empty() {
        say!("no checkpoint in {}", run_dir.path().display());
    }
    for (step, whole) in steps.iter().zip(&all) {
        match whole {
            Ok(whole) => say!(
                "step {step}  {}  {} part{}, {}  manifest {}",
                crate::rundir::timestamp(whole.manifest.created_at()),
                whole.manifest.files().count(),
                if whole.manifest.files().count() == 1 { "" } else { "s" },
                crate::report::human::bytes(bytes(whole)),
                whole.manifest_blake3
            ),
            Err(error) => say!("step {step}  {error}"),
        }
    }
    for folder in unfinished {
        say!("unfinished: {}", folder.display());
    }
    Ok(())
}

fn bytes(whole: &Whole) -> u64 {
    whole.manifest.files().fold(0, |sum, (_, part)| sum.saturating_add(part.bytes))
}

fn row(step: u64, whole: &Result<Whole, CheckpointError>) -> Value {
    match whole {
        Ok(whole) => json!({
            "step": step,
            "manifest_blake3": whole.manifest_blake3,
            "parent": whole.manifest.parent,
            "created": whole.manifest.created,
            "parts": whole.manifest.files().count(),
            "bytes": bytes(whole),
            "recipients": whole.manifest.recipients,
        }),
        Err(error) => json!({ "step": step, "problem": error.to_string() }),
    }
}

fn verify(
    run_dir: &Path,
    ca: Option<&Path>,
    identity_file: Option<&Path>,
    as_json: bool,
) -> Result<(), Failure> {
    let (run_dir, mut checkpoints) = open(run_dir)?;
    if let Some(ca) = ca {
        checkpoints = checkpoints.trusting(ca).map_err(Failure::misconfigured)?;
    }
    let identities = match identity_file {
        Some(file) => Some(Identities::load(file).map_err(Failure::misconfigured)?),
        None => None,
    };
    let mut checked = Vec::new();
    let mut problems = checkpoints.verify(&mut checked).map_err(Failure::failed)?;
    if let Some(identities) = &identities {
        for whole in &checked {
            let read = open_all(&checkpoints, whole, identities);
            problems.extend(read.err().map(|error| error.to_string()));
        }
    }
    if checked.is_empty() && problems.is_empty() {
        return Err(Failure::failed(format!("{} holds no checkpoint", run_dir.path().display())));
    }
    if as_json {
        let steps: Vec<u64> = checked.iter().map(Whole::step).collect();
        let object = json!({ "run_dir": run_dir.path(), "good": steps, "problems": problems });
        say!("{object}");
    } else {
        for whole in &checked {
            say!("step {}: good (manifest {})", whole.step(), whole.manifest_blake3);
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Failure::failed(problems.join("\n"))),
    }
}

/// Reads everything that a checkpoint holds.
fn open_all(
    checkpoints: &Checkpoints,
    whole: &Whole,
    identities: &Identities,
) -> Result<(), CheckpointError> {
    let (layout, manifest) = (checkpoints.layout(), &whole.manifest);
    let frame = Frame::of(manifest)?;
    load::load_all(layout, manifest, identities, &frame)?;
    for entry in &manifest.residuals {
        load::read_residuals(layout, manifest, identities, &frame, entry, &mut |_, _, _| {})?;
    }
    Ok(())
}

/// The checkpoint that was asked for, checked, and what opens it.
fn source(arguments: &SourceArguments) -> Result<(Checkpoints, Whole, Identities), Failure> {
    let (_, checkpoints) = open(&arguments.run_dir)?;
    let whole = match arguments.step {
        Some(step) => checkpoints.read(step),
        None => checkpoints.newest(None),
    }
    .map_err(Failure::failed)?;
    let key = arguments.identity_file.clone().unwrap_or_else(|| checkpoints.layout().key());
    let identities = Identities::load(&key).map_err(Failure::misconfigured)?;
    Ok((checkpoints, whole, identities))
}

fn decrypt(arguments: &SourceArguments, out: &Path, as_json: bool) -> Result<(), Failure> {
    let (checkpoints, whole, identities) = source(arguments)?;
    Disk.create_dir(out).map_err(|e| Failure::file(out, "cannot be made", e))?;
    let folder = checkpoints.layout().step(whole.step());
    let mut written = Vec::new();
    for (name, receipt) in whole.manifest.files() {
        let target = out.join(name.replace(".part.age", ".safetensors"));
        let temporary = target.with_extension("safetensors.tmp");
        let copied = copy(&folder.join(name), receipt, &identities, &temporary);
        if let Err(failure) = copied {
            let _ = Disk.remove_file(&temporary);
            return Err(failure);
        }
        Disk.rename(&temporary, &target).map_err(|e| Failure::file(&target, "cannot be written", e))?;
        if !as_json {
            say!("{}", target.display());
        }
        written.push(target);
    }
    if as_json {
        say!("{}", json!({ "step": whole.step(), "files": written }));
    }
    Ok(())
}

fn copy(
    path: &Path,
    expected: testudo_actors::checkpoint::PartReceipt,
    identities: &Identities,
    to: &Path,
) -> Result<(), Failure> {
    let mut plaintext = Plaintext::open(path, expected, identities).map_err(Failure::failed)?;
    let failed = |e: std::io::Error| Failure::file(to, "cannot be written", e);
    let mut output = Disk.create(to).map_err(failed)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = plaintext.read(&mut buffer).map_err(|e| Failure::file(path, "cannot be decrypted", e))?;
        if read == 0 {
            break;
        }
        output.write_all(buffer.get(..read).unwrap_or(&[])).map_err(failed)?;
    }
    plaintext.finish().map_err(Failure::failed)?;
    output.sync().map_err(failed)
}

fn export(arguments: &SourceArguments, out: &Path, as_json: bool) -> Result<(), Failure> {
    let (checkpoints, whole, identities) = source(arguments)?;
    let manifest = &whole.manifest;
    let frame = Frame::of(manifest).map_err(Failure::failed)?;
    let loaded =
        load::load_all(checkpoints.layout(), manifest, &identities, &frame).map_err(Failure::failed)?;
    let model = Frame::model(manifest).map_err(Failure::failed)?;
    let specs = model.parameters().map_err(|error| CheckpointError::OtherJob(error.to_string()));
    let specs = specs.map_err(Failure::failed)?;
    let named: Vec<NamedTensor<'_>> = specs
        .iter()
        .zip(&loaded)
        .map(|(spec, parameter)| NamedTensor {
            name: &spec.name,
            dims: spec.shape.dims(),
            values: &parameter.weights,
        })
        .collect();
    let hash = params_blake3(&named);
    let tensors: Vec<Tensor<'_>> =
        named.iter().map(|t| Tensor { name: t.name, shape: t.dims, values: t.values }).collect();
    let metadata = Metadata {
        job: manifest.job.clone(),
        step: manifest.step,
        params_blake3: hash,
        model: job::description(&model),
    };
    safetensors::write(out, &tensors, &metadata).map_err(Failure::failed)?;
    let hash = blake3::Hash::from_bytes(hash).to_hex();
    match as_json {
        true => {
            let hash = hash.as_str();
            say!("{}", json!({ "file": out, "step": manifest.step, "params_blake3": hash }));
        }
        false => say!("{}  step {}  blake3 {hash}", out.display(), manifest.step),
    }
    Ok(())
}
