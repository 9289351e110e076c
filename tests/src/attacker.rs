//! Attackers in Python, in a process of their own: see `tests/python/attacks`.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout};
use std::sync::Mutex;

use serde_json::Value;

use crate::python::Script;

/// What attackers need to import.
const MODULES: &str = "aioquic, blake3, cryptography";

/// One Python process that attacks as it is told. Safe to be told from several threads; it does one thing at a time.
#[derive(Debug)]
pub struct Attacker {
    _script: Script,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Attacker {
    /// Starts one; `None` if there is no interpreter for it and none is required.
    #[must_use]
    pub fn start() -> Option<Attacker> {
        let mut script = Script::start("attacks/attack.py", MODULES)?;
        let pipes = (script.0.stdin.take().unwrap(), BufReader::new(script.0.stdout.take().unwrap()));
        Some(Attacker { _script: script, pipes: Mutex::new(pipes) })
    }

    /// Has it do `attack` (module.function) with these arguments; what came of it.
    ///
    /// # Panics
    /// When the attack itself fails, with Python's traceback.
    pub fn attack(&self, attack: &str, mut arguments: Value) -> Value {
        arguments["attack"] = attack.into();
        let mut pipes = self.pipes.lock().unwrap();
        writeln!(pipes.0, "{arguments}").unwrap();
        let mut answer = String::new();
        pipes.1.read_line(&mut answer).unwrap();
        let mut answer: Value = serde_json::from_str(&answer).expect("the attacker answers");
        drop(pipes);
        assert!(answer["failed"].is_null(), "{attack}: {}", answer["failed"].as_str().unwrap_or_default());
        answer["done"].take()
    }
}
