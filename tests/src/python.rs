//! Python, for what has it check what Rust wrote.
//!
//! `TESTUDO_PYTHON` names an interpreter. Without one that has what a test needs, the test says so and does nothing; with
//! `TESTUDO_REQUIRE_PYTHON=1` that is a failure.

use std::io::{BufReader, Lines, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use serde_json::Value;

/// An interpreter that can import `modules` (with commas between them), if there is one.
///
/// # Panics
/// When there is none and `TESTUDO_REQUIRE_PYTHON=1`.
#[must_use]
pub fn with(modules: &str) -> Option<String> {
    let has_them = |python: &String| {
        let import = format!("import {modules}");
        Command::new(python).args(["-c", &import]).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    };
    let python = std::env::var("TESTUDO_PYTHON").ok().filter(has_them);
    let required = std::env::var("TESTUDO_REQUIRE_PYTHON").is_ok_and(|value| value == "1");
    assert!(
        python.is_some() || !required,
        "TESTUDO_REQUIRE_PYTHON=1, but TESTUDO_PYTHON names no interpreter that can import {modules}"
    );
    if python.is_none() {
        eprintln!("skipped: set TESTUDO_PYTHON to an interpreter that can import {modules}");
    }
    python
}

/// A script of `tests/python` that runs until this is dropped, told and heard through pipes.
#[derive(Debug)]
pub struct Script(pub Child);

impl Script {
    /// Starts it; `None` if there is no interpreter that can import `modules` and none is required.
    #[must_use]
    pub fn start(script: &str, modules: &str) -> Option<Script> {
        Script::start_with(script, modules, &[])
    }

    /// The same, with arguments.
    #[must_use]
    pub fn start_with(script: &str, modules: &str, arguments: &[&str]) -> Option<Script> {
        let child = Command::new(with(modules)?)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(script))
            .args(arguments)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the interpreter starts");
        Some(Script(child))
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a script prints as it goes, a line of JSON each, read on a thread of its own.
#[derive(Debug)]
pub struct Followed(Mutex<(ChildStdin, mpsc::Receiver<()>)>);

impl Followed {
    /// Hands every value of `lines`, which are `script`'s, to `take`; `null` is the script's answer to [`Followed::catch_up`].
    ///
    /// # Panics
    /// When the script's standard input is another's already.
    #[must_use]
    pub fn new(
        script: &mut Script,
        lines: Lines<BufReader<ChildStdout>>,
        mut take: impl FnMut(Value) + Send + 'static,
    ) -> Followed {
        let (caught_up, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                match serde_json::from_str(&line).expect("a line of JSON") {
                    Value::Null => {
                        let _ = caught_up.send(());
                    }
                    value => take(value),
                }
            }
        });
        Followed(Mutex::new((script.0.stdin.take().unwrap(), answers)))
    }

    /// Waits until everything was taken that the script had printed before this was asked: it may be in the pipe still.
    ///
    /// # Panics
    /// When the script does not answer within a minute.
    pub fn catch_up(&self) {
        let mut pipes = self.0.lock().unwrap();
        writeln!(pipes.0).unwrap();
        pipes.1.recv_timeout(Duration::from_secs(60)).expect("the script answers");
    }
}
