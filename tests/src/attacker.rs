//! Attackers in Python, in a process of their own: see `tests/python/attacks`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use serde_json::Value;

use crate::python;

/// What attackers need to import.
const MODULES: &str = "aioquic, blake3, cryptography";

/// One Python process that attacks as it is told. Safe to be told from several threads; it does one thing at a time.
#[derive(Debug)]
pub struct Attacker {
    child: Child,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Attacker {
    /// Starts one; `None` if there is no interpreter for it and none is required.
    #[must_use]
    pub fn start() -> Option<Attacker> {
        let python = python::with(MODULES)?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/attacks/attack.py");
        let mut child = Command::new(python)
            .arg(script)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the interpreter starts");
        let pipes = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Some(Attacker { child, pipes: Mutex::new(pipes) })
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

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
