//! Headless Chromium, driven by `tests/python/dashboard.py` over the DevTools protocol's pipe: no port, and no package but Python's own.
//!
//! Without Chromium a test says so and does nothing; with `TESTUDO_REQUIRE_CHROMIUM=1` that is a failure.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::python::Script;

/// A page in a browser; both are gone when this is dropped.
#[derive(Debug)]
pub struct Browser {
    script: Script,
    answers: BufReader<ChildStdout>,
}

impl Browser {
    /// Opens `link`; `None` if there is no Chromium or no Python, and none is required.
    ///
    /// # Panics
    /// When there is none and one is required.
    #[must_use]
    pub fn open(link: &str) -> Option<Browser> {
        let works = |program: &&str| {
            Command::new(program)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        };
        let chromium = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(works);
        let required = std::env::var("TESTUDO_REQUIRE_CHROMIUM").is_ok_and(|value| value == "1");
        assert!(chromium.is_some() || !required, "TESTUDO_REQUIRE_CHROMIUM=1: install Chromium");
        let Some(chromium) = chromium else {
            eprintln!("skipped: needs Chromium");
            return None;
        };
        let mut script = Script::start("dashboard.py", "json")?;
        let answers = BufReader::new(script.0.stdout.take().unwrap());
        let root = rustix::process::geteuid().is_root();
        let path = Command::new("sh").args(["-c", "command -v -- \"$0\"", chromium]).output().unwrap().stdout;
        let path = String::from_utf8(path).unwrap().trim().to_owned();
        let told = json!({ "chromium": path, "link": link, "root": root });
        writeln!(script.0.stdin.as_mut().unwrap(), "{told}").unwrap();
        Some(Browser { script, answers })
    }

    /// Has the script do something: its name and what it takes.
    ///
    /// # Panics
    /// When the browser does not answer.
    pub fn ask(&mut self, what: &str, given: impl Into<Value>) -> Value {
        let told = json!({ what: given.into() });
        writeln!(self.script.0.stdin.as_mut().unwrap(), "{told}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|_| panic!("no answer to {told}: see standard error"))
    }

    /// Waits until the script's expression is true of the page.
    ///
    /// # Panics
    /// When it never is.
    pub fn until(&mut self, expression: &str) {
        self.ask("until", expression);
    }

    /// What is in the page.
    ///
    /// # Panics
    /// When the browser does not answer.
    pub fn look(&mut self) -> Value {
        self.ask("look", json!({}))
    }
}
