//! `testudo top` on a real terminal (Python's `pty`), of a real run.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

#[path = "common/steered.rs"]
mod steered;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use steered::{FOR_STRANGERS, PROGRAM, Place, STEPS, operate, strangers};
use testudo_tests::attacker::Attacker;
use testudo_tests::files::text;
use testudo_tests::process::{self, steps};
use testudo_tests::python;

const ALTERNATE: [&str; 2] = ["\u{1b}[?1049h", "\u{1b}[?1049l"];

/// Plays `script` on `testudo top`.
fn play(python: &str, dir: &Path, (columns, rows): (u16, u16), environment: &Value, script: &Value) -> Value {
    let order = json!({
        "command": [PROGRAM, "top", text(dir), "--every", "0.1"],
        "environment": environment,
        "rows": rows,
        "columns": columns,
        "script": script,
    });
    let mut child = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python/terminal.py"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env_remove("NO_COLOR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(order.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What holds after every ending.
fn gave_the_terminal_back(shown: &Value) {
    let written = shown["written"].as_str().unwrap();
    let at = ALTERNATE.map(|what| written.rfind(what).unwrap_or_else(|| panic!("{shown:#}")));
    assert!(at[0] < at[1], "{shown:#}");
    assert!(written.rfind("\u{1b}[?25l").unwrap() < written.rfind("\u{1b}[?25h").unwrap(), "the cursor");
    assert_eq!(shown["restored"], true, "{shown:#}");
}

/// Looks at a run on the smallest usual terminal, pauses it and lets it go on, and leaves; then on a larger one without colours,
/// ended by a signal; then until the run ends.
#[test]
fn a_run_is_watched_and_steered_on_a_terminal() {
    let Some(python) = python::with("pty, termios, fcntl") else { return };
    let place = Place::new();
    let (mut run, dir) = place.start("run", &["--set", STEPS]);
    run.until("steps", |dir| (steps(dir) >= 5).then_some(()));
    let script = json!([
        { "until": ["small", "training", "samples/s", "scheduler/0", "server/1", "worker/1"], "keys": "s" },
        { "until": ["sort: step"], "keys": "?" },
        { "until": ["leave; the run goes on"], "keys": "?" },
        { "until": ["sort: step", "worker/1"], "keys": "p" },
        { "until": ["pause the run? p again"], "keys": "p" },
        { "until": ["paused: what is under way ends with step", "p resume"], "keys": "p" },
        { "until": ["let the run go on? p again"], "keys": "p" },
        { "until": ["resumed after step", "p pause"], "keys": "q" },
    ]);
    let shown = play(&python, &dir, (80, 24), &json!({}), &script);
    assert_eq!(shown["status"], 0, "{shown:#}");
    gave_the_terminal_back(&shown);
    let written = shown["written"].as_str().unwrap();
    assert!(written.contains("\u{1b}[38;5;6"), "the curve has a colour: {written:?}");
    let screen = shown["screens"][0].as_str().unwrap();
    assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");

    let script = json!([{ "until": ["training", "worker/1"], "signal": 15 }]);
    let shown = play(&python, &dir, (120, 40), &json!({ "NO_COLOR": "1" }), &script);
    assert_eq!(shown["status"], 0, "{shown:#}");
    gave_the_terminal_back(&shown);
    let written = shown["written"].as_str().unwrap();
    let colours = ["\u{1b}[3", "\u{1b}[4", "\u{1b}[9"].map(|start| {
        written.match_indices(start).any(|(at, _)| {
            let rest = &written[at + 2..];
            let code: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == ';').collect();
            // 39 and 49 are the terminal's own.
            rest[code.len()..].starts_with('m')
                && code.len() > 1
                && !["39", "49", "39;49"].contains(&code.as_str())
        })
    });
    assert_eq!(colours, [false; 3], "NO_COLOR: {written:?}");

    // Not on a terminal.
    let piped = process::run(PROGRAM, &["top", text(&dir)], Path::new("/no/mark"));
    assert_eq!(piped.code(), Some(2), "{piped:#?}");
    assert!(piped.stderr.contains("`testudo status --json`") && piped.stdout.is_empty(), "{piped:#?}");
    let dumb = play(&python, &dir, (80, 24), &json!({ "TERM": "dumb" }), &json!([]));
    assert_eq!(dumb["status"], 2, "{dumb:#}");

    operate("stop", &dir, &[]).succeeded().stdout.clear();
    let ended = run.wait().succeeded();
    assert_eq!(ended.json()["stopped_early"], true);
    let late = play(&python, &dir, (80, 24), &json!({}), &json!([]));
    assert_eq!(late["status"], 0, "what is over is told from its summary: {late:#}");
    assert!(late["screen"].as_str().unwrap().contains("the run is over"), "{late:#}");
}

/// How a run ended stays on the screen until one leaves.
#[test]
fn the_end_of_a_run_is_shown_until_one_leaves() {
    let Some(python) = python::with("pty, termios, fcntl") else { return };
    let place = Place::new();
    let (mut run, dir) = place.start("run", &["--set", STEPS]);
    run.until("steps", |dir| (steps(dir) >= 5).then_some(()));
    let watched = {
        let dir = dir.clone();
        let script = json!([
            { "until": ["training", "worker/1"], "keys": "p" },
            { "until": ["pause the run? p again"], "keys": "p" },
            { "until": ["paused: what is under way"], "file": dir.join("seen") },
            { "until": ["the run has stopped after step", "finished"], "keys": "p" },
            { "until": ["there is nothing to pause"], "keys": "q" },
        ]);
        std::thread::spawn(move || play(&python, &dir, (80, 24), &json!({}), &script))
    };
    // What is stopped before that is shown is never shown as paused.
    run.until("a pause that is seen", |dir| dir.join("seen").exists().then_some(()));
    assert_eq!(operate("status", &dir, &["--json"]).succeeded().json()["paused"], true);
    operate("stop", &dir, &[]).succeeded().stdout.clear();
    let shown = watched.join().unwrap();
    assert_eq!(shown["status"], 0, "{shown:#}");
    gave_the_terminal_back(&shown);
    let _ = run.wait().succeeded();
}

/// Whom the scheduler turns away while one looks is counted: by reason, as what is new, and in the node's row.
#[test]
fn who_is_refused_is_seen() {
    let (Some(python), Some(attacker)) = (python::with("pty, termios, fcntl"), Attacker::start()) else {
        return;
    };
    let place = Place::new();
    let (mut run, dir) = place.start("run", &[&["--set", STEPS][..], &FOR_STRANGERS].concat());
    run.until("steps", |dir| (steps(dir) >= 5).then_some(()));
    strangers(&attacker, &dir, 1);
    // The scheduler tells a stranger to go before it counts him.
    run.until("the first to be counted", |dir| {
        let status = operate("status", dir, &["--json"]).succeeded().json();
        (status["load"]["refused"]["strangers"] == 1).then_some(())
    });
    let watched = {
        let dir = dir.clone();
        let script = json!([
            { "until": ["worker/1", " refused: strangers 1"], "keys": "?" },
            { "until": ["leave; the run goes on"], "file": dir.join("looked") },
            { "until": ["leave; the run goes on"], "keys": "?" },
            { "until": [" refused: strangers 3  (2 since you look)"], "keys": "q" },
        ]);
        std::thread::spawn(move || play(&python, &dir, (80, 24), &json!({}), &script))
    };
    run.until("a look", |dir| dir.join("looked").exists().then_some(()));
    strangers(&attacker, &dir, 2);
    let shown = watched.join().unwrap();
    assert_eq!(shown["status"], 0, "{shown:#}");
    let screens: Vec<&str> =
        shown["screens"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    assert!(!screens[0].contains("since you look"), "{}", screens[0]);
    let row = screens[3].lines().find(|line| line.contains("scheduler/0")).unwrap();
    assert!(row.ends_with(" 3"), "{}", screens[3]);
    operate("stop", &dir, &[]).succeeded().stdout.clear();
    run.wait().succeeded().stdout.clear();
}
