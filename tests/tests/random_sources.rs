//! Two random sources that cannot be confused (threats.md): the training source, seeded, counter-based and anybody's to
//! repeat, and the operating system's, for keys, nonces and whatever else must not be guessed.
//!
//! 1. Code that keeps a secret or decides whom to trust never draws from the training source.
//! 2. Code that computes what is trained, which must give the same bits everywhere, never draws from the system's.
//! 3. There is no third: no general-purpose generator is used, or a dependency, whose default nobody remembers.
//!
//! Each check is also run on made-up sources that break it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

#[path = "common/code.rs"]
mod code;
#[path = "common/sources.rs"]
mod sources;

use std::path::Path;

use code::code;
use sources::{repository, rust_files};

/// Ways to the training source.
const TRAINING: &[&str] = &["Philox", "philox4x32_10", "permutation", "Draws"];
/// Ways to the system's source, keys that are made by it among them.
const SYSTEM: &[&str] =
    &["SystemRandom", "aws_lc_rs::rand", "getrandom", "OsRng", "EcdsaKeyPair", "Identity::generate"];
/// Generators that are neither.
const NEITHER: &[&str] = &[
    "thread_rng",
    "rand::rng",
    "SmallRng",
    "StdRng",
    "ThreadRng",
    "fastrand",
    "rand::random",
    "oorandom",
    "nanorand",
];
/// The same, as dependencies. `rand_core` is an interface.
const NEITHER_CRATES: &[&str] = &[
    "rand",
    "fastrand",
    "oorandom",
    "nanorand",
    "rand_chacha",
    "rand_xoshiro",
    "rand_pcg",
    "mersenne_twister",
];

/// Where training is computed, of which everything else is security's.
const TRAINS: &[&str] = &[
    "kernels/src/",
    "actors/src/worker/",
    "actors/src/server/",
    "actors/src/scheduler/",
    "actors/src/plan.rs",
    "actors/src/tree.rs",
    "actors/src/placement.rs",
    "actors/src/lease.rs",
    "runtime/src/data/",
    "runtime/src/data.rs",
    // What a model is made to say follows from the seed that was given.
    "runtime/src/sample.rs",
];
/// Code of the workspace's crates; tests and examples train and attack, and may do both.
const CRATES: &[&str] =
    &["kernels/src/", "actors/src/", "transport/src/", "observability/src/", "runtime/src/"];

/// What is wrong with the source of the file `path`, from the workspace's folder.
fn wrong(path: &str, source: &str) -> Vec<String> {
    let code = code(source);
    // What stands below is for tests alone, as this workspace writes them: at the end.
    let code = code.split("#[cfg(test)]").next().unwrap_or_default();
    let trains = TRAINS.iter().any(|folder| path.starts_with(folder));
    let forbidden = if trains { SYSTEM } else { TRAINING };
    let source = if trains { "the operating system's" } else { "the training" };
    let used = |names: &[&str], what: &str| {
        let found = names.iter().filter(|name| mentions(code, name));
        found.map(|name| format!("{path} uses {name}: {what}")).collect::<Vec<_>>()
    };
    let mut wrong = used(forbidden, &format!("{source} random source, which is not for it"));
    wrong.extend(used(NEITHER, "a random source that is neither for training nor for secrets"));
    wrong
}

/// Whether `name` stands in `code` as a word, or a path of words.
fn mentions(code: &str, name: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back().is_some_and(part);
        let after = code[at + name.len()..].chars().next().is_some_and(part);
        !before && !after
    })
}

/// Names of crates in the dependency sections of a Cargo.toml that are generators of neither kind.
fn wrong_dependencies(path: &str, manifest: &str) -> Vec<String> {
    let names = manifest.lines().filter_map(|line| line.split(['=', '.', ' ']).next());
    let wrong = names.filter(|name| NEITHER_CRATES.contains(name));
    wrong.map(|name| format!("{path} depends on {name}")).collect()
}

#[test]
fn the_two_random_sources_are_kept_apart() {
    let root = repository();
    let (mut found, mut training, mut system) = (Vec::new(), 0, 0);
    for file in CRATES.iter().flat_map(|folder| rust_files(&root.join(folder))) {
        let path = file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let source = std::fs::read_to_string(&file).unwrap();
        // Files of tests, which are modules of their own.
        if is_of_tests(Path::new(&path)) {
            continue;
        }
        found.extend(wrong(&path, &source));
        let code = code(&source);
        training += usize::from(TRAINING.iter().any(|name| mentions(&code, name)));
        system += usize::from(SYSTEM.iter().any(|name| mentions(&code, name)));
    }
    assert_eq!(found, Vec::<String>::new());
    assert!(training >= 3 && system >= 4, "the names are others by now: {training} and {system} files");
    for manifest in ["", "kernels/", "actors/", "transport/", "observability/", "runtime/"] {
        let path = format!("{manifest}Cargo.toml");
        let text = std::fs::read_to_string(root.join(&path)).unwrap();
        assert_eq!(wrong_dependencies(&path, &text), Vec::<String>::new());
    }
}

fn is_of_tests(path: &Path) -> bool {
    path.components().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "tests.rs")))
}

#[test]
fn a_source_in_the_wrong_place_is_found() {
    for (path, source) in [
        ("transport/src/session/keys.rs", "use testudo_kernels::Philox;"),
        (
            "runtime/src/signing/key.rs",
            "let nonce = testudo_kernels::random::Philox::new(7, p, 0, 0).block(0);",
        ),
        ("actors/src/incarnation.rs", "let order = permutation(seed, 0, 32);"),
        ("kernels/src/model/dropout.rs", "aws_lc_rs::rand::fill(&mut mask)?;"),
        ("actors/src/worker/compute.rs", "let noise = SystemRandom::new();"),
        ("runtime/src/data/shuffle.rs", "getrandom::fill(&mut seed)?;"),
        ("transport/src/endpoint.rs", "let port = rand::rng().random();"),
        ("kernels/src/random.rs", "let mut rng = StdRng::seed_from_u64(seed);"),
    ] {
        assert_eq!(wrong(path, source).len(), 1, "{path}: {source}");
    }
    for (path, source) in [
        (
            "transport/src/session/keys.rs",
            "// unlike Philox, which is seeded\naws_lc_rs::rand::fill(&mut key)?;",
        ),
        ("kernels/src/random.rs", "let stream = Philox::new(seed, purpose, 0, 0);"),
        (
            "kernels/src/random.rs",
            "fn f() {}\n#[cfg(test)]\nmod tests { fn g() { getrandom::fill(&mut x); } }",
        ),
        ("transport/src/tls.rs", "const NOTE: &str = \"Philox\"; let permutations = 3;"),
    ] {
        assert_eq!(wrong(path, source), Vec::<String>::new(), "{path}: {source}");
    }
    assert_eq!(
        wrong_dependencies("Cargo.toml", "[dependencies]\nrand = \"0.9\"\nrand_core = \"0.9\"\n").len(),
        1
    );
    assert_eq!(wrong_dependencies("Cargo.toml", "fastrand.workspace = true\n").len(), 1);
}
