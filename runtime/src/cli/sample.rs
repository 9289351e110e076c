//! `testudo sample`: a text that a signed model of bytes makes of a prompt.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use testudo_kernels::ModelSpec;

use crate::error::Failure;
use crate::sample::{Choice, Continuation, Shown};
use crate::say::note;
use crate::serve::model::{self, Loaded};
use crate::serve::{ServeError, Trust};
use crate::signing::{PublicKey, SIGNATURE_FILE};

/// `testudo sample`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo sample runs/gpt-20261123T081613Z --prompt \"Mr. Darcy\" --tokens 200
  testudo sample model --public-key release.pub.pem --temperature 0")]
#[command(group(ArgGroup::new("trust").args(["public_key", "allow_unsigned"])))]
pub(crate) struct SampleArguments {
    /// A run directory, or a model's folder, as `testudo run` exports it into checkpoint/final
    dir: PathBuf,
    /// The text to continue
    #[arg(long, value_name = "TEXT", default_value = "\n", hide_default_value = true)]
    prompt: String,
    /// Bytes to go on for
    #[arg(long, value_name = "N", default_value_t = 500)]
    tokens: u64,
    /// Below 1 for what is likely, above for surprises; 0 for the likeliest byte each time
    #[arg(long, value_name = "T", default_value_t = 0.8, value_parser = temperature)]
    temperature: f32,
    /// Choose among the K likeliest bytes alone [default: all]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(1..=256))]
    top_k: Option<u16>,
    /// What is drawn: the same seed, the same text
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// The key that the model must be signed with [default: of a run directory, the key that the run left in it]
    #[arg(long, value_name = "PUB.pem")]
    public_key: Option<PathBuf>,
    /// Where the signature is [default: model.sig in the model's folder]
    #[arg(long, value_name = "FILE", conflicts_with = "allow_unsigned")]
    signature: Option<PathBuf>,
    /// Take whatever is in the folder, whoever put it there
    #[arg(long)]
    allow_unsigned: bool,
}

fn temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(number) if (0.0..=100.0).contains(&number) => Ok(number),
        _ => Err("a number from 0 to 100 is needed".to_owned()),
    }
}

/// A run directory's folder of the exported model, and its key.
const OF_RUN: [&str; 2] = ["checkpoint/final", "checkpoint/model.pub.pem"];

pub(super) fn sample(arguments: &SampleArguments) -> Result<(), Failure> {
    let [folder, key] = OF_RUN.map(|name| arguments.dir.join(name));
    let is_run = folder.is_dir();
    let dir = if is_run { folder } else { arguments.dir.clone() };
    let trust = arguments.trust(&dir, is_run.then_some(key))?;
    let Loaded { spec, parameters, signer } = model::load(&dir, &trust).map_err(unusable)?;
    match signer {
        Some(key) => note!("{}: signed with key {key}", dir.display()),
        None => note!("{}: NOBODY'S SIGNATURE IS CHECKED (--allow-unsigned)", dir.display()),
    }
    match &spec {
        ModelSpec::Gpt(size) if size.vocabulary == 256 => {}
        _ => {
            return Err(Failure::misconfigured(format!(
                "{}: this model continues no text: only one of bytes does, `model.kind = \"gpt\"` in its cluster file; `testudo \
                 serve` answers requests of others",
                dir.display()
            )));
        }
    }
    if arguments.prompt.is_empty() {
        return Err(Failure::misconfigured("--prompt is empty: give at least one character to go on from"));
    }
    let mut model = spec.build(1).map_err(Failure::failed)?;
    let parameters: Vec<&[f32]> = parameters.iter().map(Vec::as_slice).collect();
    let choice = Choice {
        temperature: arguments.temperature,
        top_k: arguments.top_k.map(usize::from),
        seed: arguments.seed,
    };
    let prompt = arguments.prompt.as_bytes();
    let mut text = Continuation::new(model.as_mut(), &parameters, prompt, choice);
    let mut out = Out::new();
    let mut goes_on =
        prompt.iter().try_fold(true, |goes_on, byte| Ok::<_, Failure>(goes_on && out.write(*byte)?))?;
    for _ in 0..arguments.tokens {
        if !goes_on {
            break;
        }
        let byte = text.next_byte().map_err(Failure::failed)?;
        goes_on = out.write(byte)?;
    }
    out.end()
}

impl SampleArguments {
    fn trust(&self, dir: &Path, key_of_run: Option<PathBuf>) -> Result<Trust, Failure> {
        if self.allow_unsigned {
            return Ok(Trust::Unsigned);
        }
        let key = self.public_key.clone().or(key_of_run).ok_or_else(|| {
            Failure::misconfigured(
                "whose signature must the model have? Give the signer's public key with --public-key (a run leaves its own in \
                 RUN_DIR/checkpoint/model.pub.pem), or --allow-unsigned to take whatever is in the folder",
            )
        })?;
        Ok(Trust::Signed {
            key: PublicKey::load(&key).map_err(Failure::misconfigured)?,
            signature: self.signature.clone().unwrap_or_else(|| dir.join(SIGNATURE_FILE)),
        })
    }
}

/// What is said of a model that is not served holds here too, but for the word.
fn unusable(error: ServeError) -> Failure {
    Failure::misconfigured(match error {
        ServeError::Signature(why) => format!("the model is not used: {why}"),
        ServeError::File(why) => format!("the model is not used: {why}"),
        ServeError::Model(why) => format!("the model is not used: {why}"),
        other => other.to_string(),
    })
}

/// Standard output: the bytes as they are, or for a terminal the characters that they make.
struct Out {
    terminal: Option<Shown>,
}

impl Out {
    fn new() -> Out {
        Out { terminal: std::io::stdout().is_terminal().then(Shown::default) }
    }

    /// Writes at once; whether anybody still reads.
    fn write(&mut self, byte: u8) -> Result<bool, Failure> {
        match &mut self.terminal {
            Some(shown) => put(shown.push(byte).as_bytes()),
            None => put(&[byte]),
        }
    }

    /// A terminal's next line is the shell's.
    fn end(self) -> Result<(), Failure> {
        if self.terminal.is_some() { put(b"\n").map(|_| ()) } else { Ok(()) }
    }
}

fn put(bytes: &[u8]) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::failed(format!("standard output cannot be written: {error}"))),
    }
}
