//! The command line as shells, programs and people meet it: completion, manual pages, exit statuses, JSON, colours.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testudo_tests::files::text;
use testudo_tests::process::{Ended, run, start_in};

const TESTUDO: &str = env!("CARGO_BIN_EXE_testudo-under-test");

fn testudo(arguments: &[&str]) -> Ended {
    run(TESTUDO, arguments, Path::new("/no/mark"))
}

/// Whether that program is here; says so if it is not, which with `TESTUDO_REQUIRE_SHELLS=1` is a failure.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let required = std::env::var("TESTUDO_REQUIRE_SHELLS").is_ok_and(|value| value == "1");
    assert!(found.is_ok() || !required, "TESTUDO_REQUIRE_SHELLS=1: install {program}");
    if found.is_err() {
        eprintln!("not checked: {program} is not installed");
    }
    found.is_ok()
}

/// The script for a shell, in a file.
fn script(folder: &Path, shell: &str) -> PathBuf {
    let file = folder.join(shell);
    std::fs::write(&file, testudo(&["completions", shell]).succeeded().stdout).unwrap();
    file
}

/// What bash offers for the last of these words, by the function that the script gives it.
fn offered(script: &Path, words: &[&str]) -> Vec<String> {
    const ASK: &str = r#"
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
        registered=$(complete -p testudo) && function=${registered#*-F } && function=${function%% *}
        "$function" testudo "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let first = ["--norc", "-c", ASK, "bash", text(script)];
    let said = run("bash", &[&first[..], words].concat(), Path::new("/no/mark")).succeeded();
    assert_eq!(said.stderr, "", "{words:?}");
    said.stdout.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_and_values_and_nothing_hidden() {
    let place = tempfile::tempdir().unwrap();
    let script = script(place.path(), "bash");
    let _ = run("bash", &["-n", text(&script)], Path::new("/no/mark")).succeeded();
    assert_eq!(offered(&script, &["testudo", "pki", "in"]), ["init", "install"]);
    assert_eq!(offered(&script, &["testudo", "init", "--da"]), ["--data"]);
    assert_eq!(offered(&script, &["testudo", "init", "--data", ""]), ["mnist", "text"]);
    assert_eq!(offered(&script, &["testudo", "completions", "z"]), ["zsh"]);
    // What processes of ours say to each other.
    assert!(offered(&script, &["testudo", "hos"]).is_empty());
    assert!(offered(&script, &["testudo", "node", "--with"]).is_empty());
}

#[test]
fn other_shells_can_read_their_scripts() {
    let place = tempfile::tempdir().unwrap();
    for (shell, check) in [("zsh", "-n"), ("fish", "--no-execute")] {
        let script = script(place.path(), shell);
        let said = std::fs::read_to_string(&script).unwrap();
        assert!(
            said.contains("install") && !said.contains("hosted") && !said.contains("with-parent"),
            "{said}"
        );
        if has(shell) {
            let checked = run(shell, &[check, text(&script)], Path::new("/no/mark")).succeeded();
            assert_eq!(checked.stderr, "", "{shell}");
        }
    }
}

#[test]
fn manual_pages_are_those_of_the_commands_and_groff_has_nothing_to_say_of_them() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("man1");
    let said = testudo(&["man", text(&folder), "--json"]).succeeded().json();
    let pages: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(said["pages"].as_array().unwrap().len(), pages.len());
    for name in ["testudo.1", "testudo-pki-init.1", "testudo-man.1"] {
        assert!(pages.contains(&folder.join(name)), "{name}");
    }
    assert!(!pages.contains(&folder.join("testudo-hosted.1")));
    let again = testudo(&["man", text(&folder)]).succeeded();
    assert!(again.stdout.contains(&format!("man {}/testudo.1", folder.display())), "{again:?}");
    if !has("groff") {
        return;
    }
    for page in &pages {
        let said = run("groff", &["-man", "-Tascii", "-ww", "-P-cbou", text(page)], Path::new("/no/mark"));
        let said = said.succeeded();
        assert_eq!(said.stderr, "", "{}", page.display());
        assert!(said.stdout.contains("EXIT STATUS"), "{}", page.display());
        if page.ends_with("testudo-pki-init.1") {
            let lines: Vec<&str> = said.stdout.lines().map(str::trim).collect();
            assert!(lines.contains(&"testudo pki init ca --job mnist"), "{}", said.stdout);
            assert!(lines.contains(&"testudo pki init [OPTIONS] <DIR>"), "{}", said.stdout);
        }
    }
}

/// 3 and 130 need a run: `operators.rs` and `processes.rs` have them.
#[test]
fn exit_statuses_are_those_that_are_documented() {
    let place = tempfile::tempdir().unwrap();
    let empty = text(place.path());
    for (arguments, status) in [
        (&["--version"][..], 0),
        (&["help", "pki", "init"], 0),
        (&["doctor", empty], 1),
        (&["--no-such-option"], 2),
        (&["no-such-command"], 2),
        (&["run", "/no/such/file.toml"], 2),
        (&["init", empty, "--model", "cnn", "--data", "text"], 2),
        (&["status", empty], 4),
        (&["pause", empty, "--json"], 4),
    ] {
        let ended = testudo(arguments);
        assert_eq!(ended.code(), Some(status), "{arguments:?}: {ended:#?}");
        assert!(status == 0 || !ended.stderr.is_empty(), "{arguments:?} fails without a word");
    }
    let page = include_str!("../../docs/commands.md");
    for status in [0, 1, 2, 3, 4, 130] {
        assert!(page.contains(&format!("\n| {status} | ")), "{status}");
    }
}

/// Each step of a node's enrolment, for a program that does the copying.
#[test]
fn what_pki_job_and_deploy_did_is_told_to_programs() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&place.path().join(name)).to_owned();
    let json = |arguments: &[&str]| testudo(&[arguments, &["--json"]].concat()).succeeded().json();
    let [ca, node, operator, cert] = ["ca", "worker-0", "operator-0", "cert.pem"].map(at);
    let made = json(&["pki", "init", &ca, "--job", "gpt"]);
    assert!(made["job"] == "gpt" && made["not_after"].as_i64().unwrap() > 0, "{made}");
    let asked = json(&["pki", "request", "--job", "gpt", "--role", "worker/0", "--out", &node]);
    assert_eq!(asked["id"], "spiffe://testudo.local/job/gpt/worker/0");
    let request = asked["request"].as_str().unwrap();
    let granted = json(&["pki", "issue", request, "--ca", &ca, "--as", "worker/0", "--out", &cert]);
    assert_eq!(granted["key_sha256"], asked["key_sha256"]);
    let ca_pem = format!("{ca}/ca.pem");
    let installed = json(&["pki", "install", &node, "--cert", &cert, "--ca", &ca_pem]);
    assert_eq!((&installed["serial"], &installed["id"]), (&granted["serial"], &asked["id"]));
    let renewal = json(&["pki", "renew", &node]);
    assert!(renewal["id"] == asked["id"] && renewal["key_sha256"] != asked["key_sha256"], "{renewal}");

    let token = json(&["pki", "token", "--ca", &ca, "--role", "worker/1"]);
    assert!(token["token"].as_str().unwrap().starts_with("testudo-join-"), "{token}");
    let file = at("worker-2.token");
    let token = json(&["pki", "token", "--ca", &ca, "--role", "worker/2", "--out", &file]);
    assert!(token["token"].is_null() && token["out"] == file.as_str(), "{token}");
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("testudo-join-"));

    let _ = json(&["pki", "issue", "--ca", &ca, "--role", "operator", "--out", &operator]);
    let _ = json(&["init", &at("job")]);
    let cluster_file = at("job/cluster.toml");
    let signed = json(&["job", &cluster_file, "--identity", &operator]);
    let written = std::fs::read(signed["out"].as_str().unwrap()).unwrap();
    assert_eq!(signed["blake3"], blake3::hash(&written).to_hex().as_str());
    let deployed = json(&["deploy", &cluster_file, "--to", "slurm", "--out", &at("shared")]);
    assert!(Path::new(deployed["file"].as_str().unwrap()).is_file(), "{deployed}");
    assert_eq!(deployed["submit"], format!("sbatch {}", at("shared/job.sbatch")));
}

/// What a command prints on a terminal that can show colours; `script` makes one.
fn on_a_terminal(arguments: &str, environment: &[(&str, &str)]) -> String {
    let terminal = ("TERM", "xterm".to_owned());
    let environment = environment.iter().map(|(name, value)| (*name, (*value).to_owned()));
    let environment: Vec<(&str, String)> = environment.chain([terminal]).collect();
    let command = format!("{TESTUDO} {arguments}");
    let said = start_in("script", &["-qec", &command, "/dev/null"], Path::new("/no/mark"), &environment);
    said.wait().stdout
}

#[test]
fn colours_are_for_terminals_and_not_with_no_color() {
    for arguments in
        [&["--help"][..], &["pki", "init", "--help"], &["doctor", "--verbose"], &["no-such-command"]]
    {
        let said = testudo(arguments);
        assert!(!said.stdout.contains('\x1b') && !said.stderr.contains('\x1b'), "{arguments:?}: {said:?}");
    }
    if !has("script") {
        return;
    }
    for arguments in ["--help", "no-such-command"] {
        assert!(on_a_terminal(arguments, &[]).contains("\x1b["), "{arguments} has colours on a terminal");
        let said = on_a_terminal(arguments, &[("NO_COLOR", "1")]);
        assert!(said.contains("testudo") && !said.contains('\x1b'), "{arguments}: {said:?}");
    }
}
