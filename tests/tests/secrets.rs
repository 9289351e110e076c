//! No secret shows: not in a log at its most talkative, not in arguments or environments, not in what commands print, not in any
//! file but the keys' own.
//!
//! The keys of a real run are read from their files, and looked for in everything else in every form that a careless line
//! would give them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use testudo_tests::files::{self, text};
use testudo_tests::process::{self, assert_nothing_left, nodes, steps};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// Every file under `dir`.
fn all_files(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found
}

fn is_key_file(path: &Path) -> bool {
    path.ends_with("key.pem") || path.ends_with("checkpoint/key.txt")
}

/// Base64 without its errors: what is no digit ends it.
fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0, 0_u32);
    for digit in text.bytes().filter(|b| !b.is_ascii_whitespace()) {
        let Some(value) = DIGITS.iter().position(|d| *d == digit) else { break };
        (held, bits) = (held << 6 | value as u32, bits + 6);
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits & 0xff) as u8);
        }
    }
    bytes
}

fn to_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = bytes.chunks_exact(3).flat_map(|group| {
        let bits = u32::from(group[0]) << 16 | u32::from(group[1]) << 8 | u32::from(group[2]);
        [18, 12, 6, 0].map(|shift| char::from(DIGITS[(bits >> shift & 63) as usize]))
    });
    digits.collect()
}

/// What a key in a file would look like elsewhere: lines of the file, and the 32 secret bytes in hex, base64 and as `Debug` shows
/// bytes.
fn forms(file: &str) -> Vec<Vec<u8>> {
    let mut forms: Vec<String> = Vec::new();
    if let Some(age) = file.lines().find(|line| line.starts_with("AGE-SECRET-KEY-1")) {
        let secret = age.trim_start_matches("AGE-SECRET-KEY-1");
        forms.extend([secret.to_owned(), secret.to_lowercase()]);
        return forms.into_iter().map(String::into_bytes).collect();
    }
    let body: Vec<&str> = file.lines().filter(|line| !line.starts_with("-----")).collect();
    forms.extend(body.iter().filter(|line| line.len() > 16).map(|line| (*line).to_owned()));
    let der = base64(&body.concat());
    // ECPrivateKey (RFC 5915): version 1, then the secret in an OCTET STRING of 32 bytes.
    let at = der.windows(5).position(|w| w == [2, 1, 1, 4, 32]).expect("a P-256 key") + 5;
    let secret = &der[at..at + 32];
    let hex: String = secret.iter().map(|b| format!("{b:02x}")).collect();
    let list = |bytes: &[u8]| bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    forms.extend([hex.to_uppercase(), hex, list(&secret[..8]), list(&secret[24..])]);
    // Base64 depends on where in a group of three the secret begins.
    forms.extend((0..3).map(|skip| to_base64(&secret[skip..skip + 24])));
    let mut forms: Vec<Vec<u8>> = forms.into_iter().map(String::into_bytes).collect();
    forms.push(secret.to_vec());
    forms
}

/// Where any of `secrets` stands.
fn leaks(secrets: &[Vec<u8>], places: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    // Logs are long: what does not begin as a secret does is passed over by one look into a table.
    let start = |bytes: &[u8]| usize::from(bytes[0]) << 8 | usize::from(bytes[1]);
    let mut starts = vec![false; 1 << 16];
    secrets.iter().for_each(|secret| starts[start(secret)] = true);
    let holds = |bytes: &[u8]| {
        let mut candidates = (0..bytes.len().saturating_sub(1)).filter(|at| starts[start(&bytes[*at..])]);
        candidates.any(|at| secrets.iter().any(|secret| bytes[at..].starts_with(secret)))
    };
    places.iter().filter(|(_, bytes)| holds(bytes)).map(|(place, _)| place.clone()).collect()
}

/// Attack class I, secrets in logs.
#[test]
fn no_key_shows_anywhere_but_in_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let (file, dir) = (files::write_job(folder.path()), folder.path().join("run"));
    let run = [PROGRAM, "run", text(&file), "--run-dir", text(&dir), "--json"];
    let arguments = [&["TESTUDO_LOG=trace", "RUST_BACKTRACE=full"][..], &run].concat();
    let mut run = process::start("env", &arguments, &dir);
    run.until("steps", |dir| (steps(dir) >= 3).then_some(()));
    let nodes = run.until("all nodes", |dir| Some(nodes(dir)).filter(|nodes| nodes.len() == 5));
    // What ends with the commands below is not the run.
    let nobody = Path::new("/no/mark");
    // Logs that say everything grow fast; what is looked at now does not change meanwhile.
    let _ = process::run(PROGRAM, &["pause", text(&dir)], nobody).succeeded();

    // The authority's own, which is there only while the run goes on.
    let authority = std::fs::read_to_string(dir.join("ca/ca-key.pem")).unwrap();

    let mut places: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut seen = 0;
    for pid in std::iter::once(run.pid()).chain(nodes.iter().map(|node| node.pid)) {
        for what in ["cmdline", "environ"] {
            let name = format!("/proc/{pid}/{what}");
            // Others than root may not read a hardened process's environment, its own user included.
            if let Ok(bytes) = std::fs::read(&name) {
                seen += usize::from(!bytes.is_empty());
                places.insert(name, bytes);
            }
        }
    }
    assert!(seen >= 6, "only {seen} command lines and environments could be read");
    let identity = dir.join("identities/worker-0");
    for command in
        [&["pki", "show", text(&identity)][..], &["status", text(&dir)], &["doctor", text(&dir), "--verbose"]]
    {
        let ended = process::run("env", &[&["TESTUDO_LOG=trace", PROGRAM][..], command].concat(), nobody);
        places.insert(format!("{command:?}"), format!("{}{}", ended.stdout, ended.stderr).into_bytes());
    }
    let _ = process::run(PROGRAM, &["resume", text(&dir)], nobody).succeeded();
    run.signal(process::Signal::INT);
    let ended = run.wait().succeeded();
    assert_nothing_left(&dir);
    places.insert("what the run printed".into(), format!("{}{}", ended.stdout, ended.stderr).into_bytes());

    let (keys, others): (Vec<_>, Vec<_>) = all_files(&dir).into_iter().partition(|path| is_key_file(path));
    let texts = keys.iter().map(|path| std::fs::read_to_string(path).unwrap()).chain([authority]);
    let secrets: Vec<Vec<u8>> = texts.flat_map(|text| forms(&text)).collect();
    assert_eq!(keys.len(), 8, "six identities', the audit log's and the checkpoints' keys: {keys:?}");
    for path in others {
        let bytes = std::fs::read(&path).unwrap();
        places.insert(path.display().to_string(), bytes);
    }
    let log = &places[text(&dir.join("logs/worker-0.log"))];
    assert!(String::from_utf8_lossy(log).contains("TRACE"), "the log says all that it can");
    assert_eq!(leaks(&secrets, &places), Vec::<String>::new());

    // Every form of every key would have been found.
    for secret in &secrets {
        assert!(secret.len() >= 20, "{secret:?} could be there by chance");
        let line = [b"key=\"".as_slice(), secret, b"\""].concat();
        assert_eq!(leaks(&secrets, &BTreeMap::from([("a log".into(), line)])), ["a log"]);
    }
}
