//! `testudo init`: a cluster file to begin with.
//!
//! 1. It can be run as it stands: it is read back before it is written, and its data are there. Where none are named and none lie near, the
//!    text is one that the program carries with it, the description of its own command line.
//! 2. Nothing that is there is written over.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::reference;
use crate::config::{Config, template};
use crate::doctor::quoted;
use crate::error::Failure;
use crate::node;
use crate::say::say;

/// What is written.
const CLUSTER_FILE: &str = "cluster.toml";
/// The text that comes along, where no other is named.
const TEXT_FILE: &str = "text.txt";
/// Where MNIST lies in a clone of the repository, and where people put it.
const MNIST: [&str; 2] = ["examples/data/mnist", "data/mnist"];

/// `testudo init`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo init first
  testudo init images --model cnn --path examples/data/mnist
  testudo init novel --path novel.txt --all")]
pub(crate) struct InitArguments {
    /// The folder to write cluster.toml to, which is made if it is not there
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// What to train on, as data.kind [default: what the model takes; text if none is named]
    #[arg(long, value_enum)]
    data: Option<DataKind>,
    /// What to train, as model.kind [default: mlp on mnist, gpt on text]
    #[arg(long, value_enum)]
    model: Option<ModelKind>,
    /// The data, as data.path: MNIST's folder, or a file of text [default: a folder data/mnist nearby, or a text that is written
    /// beside the cluster file]
    #[arg(long, value_name = "PATH")]
    path: Option<PathBuf>,
    /// Write every key that means something to this job, each as a comment with its default
    #[arg(long)]
    all: bool,
    /// Print one JSON object on the last line of standard output: cluster_file, data, next
    #[arg(long)]
    json: bool,
}

/// `data.kind`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DataKind {
    /// MNIST's four files
    Mnist,
    /// A file of bytes
    Text,
}

/// `model.kind`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModelKind {
    /// Fully connected layers
    Mlp,
    /// A small convolutional network
    Cnn,
    /// ResNet-18 for small images
    #[value(name = "resnet18")]
    ResNet18,
    /// GPT-2 on bytes
    Gpt,
}

impl ModelKind {
    fn data(self) -> DataKind {
        match self {
            ModelKind::Gpt => DataKind::Text,
            ModelKind::Mlp | ModelKind::Cnn | ModelKind::ResNet18 => DataKind::Mnist,
        }
    }

    /// What is set beside the data, in TOML: what the examples of the repository train with, on a smaller scale.
    fn values(self) -> &'static [(&'static str, &'static str)] {
        match self {
            ModelKind::Mlp => &[
                ("cluster.workers", "2"),
                ("cluster.servers", "2"),
                ("training.epochs", "5"),
                ("training.batch_size", "256"),
                ("training.logical_shards", "4"),
                ("model.inputs", "784"),
                ("model.hidden", "[512, 512]"),
                ("model.classes", "10"),
                ("optimizer.kind", "\"nesterov\""),
                ("optimizer.learning_rate", "0.1"),
                ("schedule.kind", "\"cosine\""),
                ("schedule.warmup_steps", "100"),
            ],
            ModelKind::Cnn | ModelKind::ResNet18 => &[
                ("cluster.workers", "2"),
                ("training.epochs", "3"),
                ("training.batch_size", "128"),
                ("training.logical_shards", "2"),
                ("model.image", "[1, 28, 28]"),
                ("model.classes", "10"),
                ("optimizer.kind", "\"nesterov\""),
                ("optimizer.learning_rate", "0.05"),
                ("schedule.kind", "\"onecycle\""),
            ],
            ModelKind::Gpt => &[
                ("cluster.workers", "2"),
                ("training.epochs", "8"),
                ("training.batch_size", "16"),
                ("training.logical_shards", "2"),
                ("model.context", "64"),
                ("model.layers", "2"),
                ("model.heads", "4"),
                ("model.width", "64"),
                ("optimizer.kind", "\"adamw\""),
                ("optimizer.learning_rate", "3e-3"),
                ("schedule.kind", "\"cosine\""),
                ("schedule.warmup_steps", "20"),
            ],
        }
    }

    fn name(self) -> &'static str {
        match self {
            ModelKind::Mlp => "mlp",
            ModelKind::Cnn => "cnn",
            ModelKind::ResNet18 => "resnet18",
            ModelKind::Gpt => "gpt",
        }
    }
}

impl DataKind {
    fn name(self) -> &'static str {
        match self {
            DataKind::Mnist => "mnist",
            DataKind::Text => "text",
        }
    }
}

/// Where the data are.
#[derive(Debug)]
enum Source {
    /// There already.
    There(PathBuf),
    /// Written beside the cluster file.
    Carried,
}

pub(super) fn init(arguments: &InitArguments) -> Result<(), Failure> {
    let (data, model) = kinds(arguments.data, arguments.model)?;
    let source = source(data, arguments.path.as_deref())?;
    let file = arguments.dir.join(CLUSTER_FILE);
    let beside = arguments.dir.join(TEXT_FILE);
    let is_carried = matches!(source, Source::Carried);
    refuse_to_replace(&file, "remove it, or name another folder")?;
    if is_carried {
        let advice = format!("train on it with --path {}, or name another folder", quoted(&beside));
        refuse_to_replace(&beside, &advice)?;
    }
    let text = cluster_file(data, model, &source, arguments.all)?;
    let config = Config::parse::<&str>(&text, &file, &[]).map_err(Failure::misconfigured)?;
    if !is_carried {
        node::data_files(&config).map_err(Failure::misconfigured)?;
    }
    let dir = &arguments.dir;
    std::fs::create_dir_all(dir)
        .map_err(|e| Failure::misconfigured(format!("{}: cannot be made: {e}", dir.display())))?;
    if is_carried {
        write(&beside, &reference::page())?;
    }
    write(&file, &text)?;
    let next = [format!("testudo run {}", quoted(&file)), format!("testudo doctor {}", quoted(&file))];
    if arguments.json {
        say!("{}", json!({ "cluster_file": file, "data": config.data.path(), "next": next }));
        return Ok(());
    }
    let (workers, servers) = (config.cluster.workers, config.cluster.servers);
    say!(
        "{}: {workers} workers and {servers} server{} train a {} on {}",
        file.display(),
        plural(servers),
        model.name(),
        config.data.path().display()
    );
    if is_carried {
        say!("  the text is this program's own description; --path takes another");
    }
    let [run, doctor] = next;
    say!("next: {run}\n      {doctor}   # if it does not run, what is wrong, and what to do about it");
    Ok(())
}

fn plural(count: u32) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Which data and which model: what is not named follows from what is.
fn kinds(data: Option<DataKind>, model: Option<ModelKind>) -> Result<(DataKind, ModelKind), Failure> {
    let model = match (data, model) {
        (_, Some(model)) => model,
        (Some(DataKind::Mnist), None) => ModelKind::Mlp,
        (Some(DataKind::Text) | None, None) => ModelKind::Gpt,
    };
    match data {
        Some(data) if data != model.data() => Err(Failure::misconfigured(format!(
            "--model {} trains on {}, not on {}: leave --data out, or name another model",
            model.name(),
            model.data().name(),
            data.name()
        ))),
        _ => Ok((model.data(), model)),
    }
}

fn source(data: DataKind, named: Option<&Path>) -> Result<Source, Failure> {
    let absolute = |path: &Path| {
        let found = std::path::absolute(path);
        found.map_err(|e| Failure::misconfigured(format!("{}: has no absolute path: {e}", path.display())))
    };
    match (named, data) {
        (Some(path), _) => Ok(Source::There(absolute(path)?)),
        (None, DataKind::Text) => Ok(Source::Carried),
        (None, DataKind::Mnist) => match MNIST.map(Path::new).into_iter().find(|path| path.is_dir()) {
            Some(path) => Ok(Source::There(absolute(path)?)),
            None => Err(Failure::misconfigured(format!(
                "where is MNIST? Name the folder with its four files (train-images-idx3-ubyte and so on, gzipped or not) with --path; \
                 neither {} nor {} is here, and a clone of Testudo's repository has them in the first. --data text needs no files",
                MNIST[0], MNIST[1]
            ))),
        },
    }
}

fn refuse_to_replace(path: &Path, advice: &str) -> Result<(), Failure> {
    match path.symlink_metadata() {
        Ok(_) => Err(Failure::misconfigured(format!(
            "{} is there, and is not written over: {advice}",
            path.display()
        ))),
        Err(_) => Ok(()),
    }
}

fn cluster_file(data: DataKind, model: ModelKind, source: &Source, all: bool) -> Result<String, Failure> {
    let path = match source {
        Source::There(path) => path.to_str().ok_or_else(|| {
            Failure::misconfigured(format!(
                "{}: a cluster file is UTF-8, and this path is not",
                path.display()
            ))
        })?,
        Source::Carried => TEXT_FILE,
    };
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let mut given: Vec<(&str, String)> =
        model.values().iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    given.extend([
        ("job.name", quoted(model.name())),
        ("model.kind", quoted(model.name())),
        ("data.kind", quoted(data.name())),
        ("data.path", quoted(path)),
    ]);
    let heading = format!(
        "A {} on {}, by `testudo init`. It can be run as it stands:\n\n  testudo run {CLUSTER_FILE}\n\nWhat is set comes first in each \
         section. #key = value is a key that is not set, with the value that it has; remove the # to\nchange it. docs/config.md has \
         every key, and `testudo doctor {CLUSTER_FILE}` says what is wrong, if anything is.",
        model.name(),
        data.name()
    );
    Ok(template::text(&heading, &given, all))
}

/// Writes a new file: one that came to be there since is no more written over than one that was.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|e| Failure::misconfigured(format!("{}: cannot be written: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::{self, Rule};

    /// What the cluster file knows can be begun with.
    #[test]
    fn every_kind_of_model_and_data_is_offered_and_no_other() {
        let choices = |path: &str| match &keys::find(path).unwrap().rule {
            Rule::Choice(choices) => choices.to_vec(),
            other => panic!("{other:?}"),
        };
        let models: Vec<&str> = ModelKind::value_variants().iter().map(|model| model.name()).collect();
        let data: Vec<&str> = DataKind::value_variants().iter().map(|data| data.name()).collect();
        assert_eq!((models, data), (choices("model.kind"), choices("data.kind")));
        for model in ModelKind::value_variants() {
            assert_eq!(model.to_possible_value().unwrap().get_name(), model.name());
        }
    }

    /// Invariant 1, but for the data.
    #[test]
    fn every_model_makes_a_cluster_file_that_is_read() {
        for model in ModelKind::value_variants() {
            for all in [false, true] {
                let source = Source::There("/some/\"where\"".into());
                let text = cluster_file(model.data(), *model, &source, all).unwrap();
                let config = Config::parse::<&str>(&text, Path::new("/x/cluster.toml"), &[]);
                let config = config.unwrap_or_else(|e| panic!("{e}\n{text}"));
                assert_eq!(config.job.name, model.name());
                assert_eq!(config.data.path(), Path::new("/some/\"where\""));
            }
        }
    }

    #[test]
    fn what_is_not_named_follows_from_what_is() {
        let kinds = |data, model| kinds(data, model).map_err(|failure| failure.message);
        assert_eq!(kinds(None, None), Ok((DataKind::Text, ModelKind::Gpt)));
        assert_eq!(kinds(Some(DataKind::Mnist), None), Ok((DataKind::Mnist, ModelKind::Mlp)));
        assert_eq!(kinds(None, Some(ModelKind::Cnn)), Ok((DataKind::Mnist, ModelKind::Cnn)));
        let wrong = kinds(Some(DataKind::Text), Some(ModelKind::Mlp)).unwrap_err();
        assert!(wrong.contains("mlp trains on mnist, not on text"), "{wrong}");
    }
}
