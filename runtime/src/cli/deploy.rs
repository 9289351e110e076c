//! `testudo deploy`: a cluster file written out for another system's scheduler.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;

use crate::checkpoint::storage::{Disk, replace};
use crate::config::Config;
use crate::deploy::{kubernetes, slurm};
use crate::error::Failure;
use crate::say::{note, say};

/// `testudo deploy`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo deploy mnist.toml --to slurm --out /shared/mnist
  testudo deploy mnist.toml --to kubernetes --image registry.example.org/testudo:0.1.0 --print | kubectl apply -f -")]
pub(crate) struct DeployArguments {
    /// The cluster file
    file: PathBuf,
    /// Whose scheduler it is written for
    #[arg(long, value_enum)]
    to: Target,
    /// Print the script, or the manifests, and write nothing
    #[arg(long)]
    print: bool,
    /// The folder to make, with the cluster file and the script or the manifests; for Slurm, one that all machines reach
    #[arg(long, value_name = "DIR", required_unless_present = "print")]
    out: Option<PathBuf>,
    /// The program, as Slurm's machines find it
    #[arg(long, value_name = "PATH", default_value = "testudo")]
    program: String,
    /// The image for Kubernetes, best with its digest
    #[arg(long, value_name = "IMAGE", required_if_eq("to", "kubernetes"))]
    image: Option<String>,
    /// The size of the claim for the run directory, for Kubernetes
    #[arg(long, value_name = "SIZE", default_value = "10Gi", value_parser = quantity)]
    storage: String,
    /// Override a key of the cluster file (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print one JSON object on the last line of standard output: cluster_file, file, submit
    #[arg(long, conflicts_with = "print")]
    json: bool,
}

/// Whose scheduler a job is written out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// A batch script
    Slurm,
    /// Manifests
    Kubernetes,
}

pub(super) fn deploy(arguments: &DeployArguments) -> Result<(), Failure> {
    let config = Config::load(&arguments.file, &arguments.set).map_err(Failure::misconfigured)?;
    let beside = arguments.file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = arguments.out.as_deref().or(beside).unwrap_or(Path::new("."));
    let folder = std::path::absolute(folder).map_err(|e| Failure::file(folder, "has no absolute path", e))?;
    let (name, text, submit) = match arguments.to {
        Target::Slurm => ("job.sbatch", slurm::script(&config, &folder, &arguments.program), "sbatch"),
        Target::Kubernetes => {
            let options = kubernetes::Options {
                image: arguments.image.clone().unwrap_or_default(),
                storage: arguments.storage.clone(),
            };
            let text = kubernetes::manifests(&config, &options).map_err(Failure::misconfigured)?;
            for warning in kubernetes::warnings(&config) {
                note!("warning: {warning}");
            }
            ("job.yaml", text, "kubectl apply -f")
        }
    };
    if arguments.print {
        crate::say::out(format_args!("{text}"));
        return Ok(());
    }
    let made = DirBuilder::new().mode(0o700).create(&folder);
    made.map_err(|e| Failure::misconfigured(format!("{}: cannot be made: {e}", folder.display())))?;
    let cluster_file = config.to_toml().map_err(Failure::misconfigured)?;
    for (name, text) in [("cluster.toml", cluster_file.as_str()), (name, text.as_str())] {
        let path = folder.join(name);
        replace(&Disk, &path, text.as_bytes()).map_err(|e| Failure::file(&path, "cannot be written", e))?;
    }
    let path = folder.join(name);
    if arguments.json {
        let submit = format!("{submit} {}", path.display());
        say!("{}", json!({ "cluster_file": folder.join("cluster.toml"), "file": path, "submit": submit }));
        return Ok(());
    }
    say!(
        "{} has what it needs in its first lines; once that is there: {submit} {}",
        path.display(),
        path.display()
    );
    Ok(())
}

/// A whole number and a binary unit, as Kubernetes writes storage.
fn quantity(text: &str) -> Result<String, String> {
    let digits = ["Mi", "Gi", "Ti"].iter().find_map(|unit| text.strip_suffix(unit));
    match digits.map(str::parse::<u32>) {
        Some(Ok(1..)) => Ok(text.to_owned()),
        _ => Err("a number and Mi, Gi or Ti, such as 10Gi".into()),
    }
}
