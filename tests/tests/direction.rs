//! The shape of the workspace, checked against ARCHITECTURE.md.
//!
//! 1. A crate depends only on workspace crates that stand below it, tests and build scripts included.
//! 2. The crates at the bottom do not know what they must not: no actors, and no network in the arithmetic.
//! 3. `unsafe` stands in CUDA bindings, in files that a `// SIMD` line marks and in `sys` modules, nowhere else.
//!
//! Each check is also run on made-up input that breaks it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

#[path = "common/code.rs"]
mod code;
#[path = "common/sources.rs"]
mod sources;

use std::path::Path;
use std::process::Command;

use code::code;
use serde_json::{Value, json};
use sources::{repository, rust_files};

const BOTTOM: &[&str] = &["testudo-transport", "testudo-kernels", "testudo-observability"];

/// Every crate of the workspace and the workspace crates that it may use: arrows run down.
const MAY_USE: &[(&str, &[&[&str]])] = &[
    ("testudo-transport", &[]),
    ("testudo-kernels", &[]),
    ("testudo-observability", &[]),
    ("testudo-actors", &[BOTTOM]),
    ("testudo", &[&["testudo-actors"], BOTTOM]),
    ("testudo-examples", &[&["testudo", "testudo-actors"], BOTTOM]),
    ("testudo-tests", &[&["testudo", "testudo-actors"], BOTTOM]),
];

/// Crates from elsewhere that would mean a crate knows what it must not.
const MUST_NOT_USE: &[(&str, &[&str])] = &[
    ("testudo-transport", &["actix", "opentelemetry"]),
    ("testudo-kernels", &["actix", "opentelemetry", "quinn", "rustls", "tokio"]),
    ("testudo-observability", &["actix", "quinn"]),
    ("testudo-actors", &["clap", "safetensors", "toml"]),
];

/// What is wrong with the dependencies that `cargo metadata` tells of.
fn wrong_directions(metadata: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let packages = metadata["packages"].as_array().unwrap();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let Some((_, may_use)) = MAY_USE.iter().find(|(known, _)| *known == name) else {
            wrong
                .push(format!("{name} is not in the table of tests/tests/direction.rs: say what it may use"));
            continue;
        };
        let must_not_use =
            MUST_NOT_USE.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, list)| list);
        for dependency in package["dependencies"].as_array().unwrap() {
            let used = dependency["name"].as_str().unwrap();
            let is_ours = packages.iter().any(|other| other["name"] == used);
            if is_ours && !may_use.iter().any(|group| group.contains(&used)) {
                wrong.push(format!("{name} uses {used}, which does not stand below it"));
            }
            if must_not_use.contains(&used) && dependency["kind"].is_null() {
                wrong.push(format!("{name} uses {used}, which it must not know"));
            }
        }
    }
    wrong
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Invariants 1 and 2.
#[test]
fn crates_use_only_what_stands_below_them() {
    let metadata = metadata();
    assert_eq!(wrong_directions(&metadata), Vec::<String>::new());
    let found = metadata["packages"].as_array().unwrap().len();
    assert_eq!(found, MAY_USE.len(), "the table names crates that are gone");
}

#[test]
fn a_crate_that_reaches_up_is_found() {
    let package = |name: &str, uses: &[(&str, Option<&str>)]| {
        let uses: Vec<_> = uses.iter().map(|(name, kind)| json!({"name": name, "kind": kind})).collect();
        json!({"name": name, "dependencies": uses})
    };
    let good = [
        package("testudo-kernels", &[("serde", None)]),
        package("testudo-transport", &[("actix", Some("dev"))]),
        package("testudo-actors", &[("testudo-kernels", None), ("testudo-transport", None)]),
    ];
    assert_eq!(wrong_directions(&json!({"packages": good})), Vec::<String>::new());
    for (bad, said) in [
        (package("testudo-kernels", &[("testudo-actors", None)]), "testudo-kernels uses testudo-actors"),
        (
            package("testudo-kernels", &[("testudo-transport", None)]),
            "testudo-kernels uses testudo-transport",
        ),
        (
            package("testudo-kernels", &[("testudo-actors", Some("dev"))]),
            "testudo-kernels uses testudo-actors",
        ),
        (
            package("testudo-kernels", &[("testudo-actors", Some("build"))]),
            "testudo-kernels uses testudo-actors",
        ),
        (package("testudo-kernels", &[("tokio", None)]), "testudo-kernels uses tokio"),
        (package("testudo-unheard-of", &[]), "testudo-unheard-of is not in the table"),
    ] {
        let packages = [&good[1..], &[bad]].concat();
        let wrong = wrong_directions(&json!({"packages": packages}));
        assert!(wrong.len() == 1 && wrong[0].starts_with(said), "{wrong:?}");
    }
}

/// Whether `unsafe` may stand in the file at `path` (from the workspace's folder).
fn may_be_unsafe(path: &Path, source: &str) -> bool {
    let is_sys = path.components().any(|part| part.as_os_str() == "sys" || part.as_os_str() == "sys.rs");
    let is_simd = source.lines().any(|line| line.trim_end() == "// SIMD");
    path.starts_with("kernels/src/cuda") || is_sys || is_simd
}

/// Whether the code of `source`, without comments and strings, holds `unsafe` or allows it.
fn is_unsafe(source: &str) -> bool {
    code(source)
        .split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .any(|w| w == "unsafe" || w == "unsafe_code")
}

/// Invariant 3.
#[test]
fn unsafe_stands_only_where_it_may() {
    let repository = repository();
    let mut files = Vec::new();
    for package in metadata()["packages"].as_array().unwrap() {
        files.extend(rust_files(Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap()));
    }
    assert!(files.len() > 100, "only {} files were found", files.len());
    for file in files {
        let source = std::fs::read_to_string(&file).unwrap();
        let path = file.strip_prefix(&repository).unwrap();
        assert!(!is_unsafe(&source) || may_be_unsafe(path, &source), "{} holds unsafe code", path.display());
    }
}

#[test]
fn unsafe_code_is_found_and_words_are_not() {
    for source in [
        "fn f() { unsafe { g() } }",
        "unsafe impl Send for T {}",
        "/* a /* b */ c */ unsafe fn f() {}",
        "let c = '\"'; unsafe { g() } // \"",
        "let c = '\\''; unsafe { g() }",
        "let s = \"\\\\\"; unsafe { g() }",
        "fn f<'a>(x: &'a str) { unsafe { g(x) } }",
        "let s = r#\"\"\"#; unsafe { g() }",
        "#[allow(unsafe_code)] fn f() {}",
    ] {
        assert!(is_unsafe(source), "{source}");
    }
    for source in [
        "// unsafe",
        "/* a /* b */ unsafe */ fn f() {}",
        "let s = \"unsafe \\\" unsafe\";",
        "let s = r##\"unsafe \"# unsafe\"##;",
        "let s = br\"unsafe\";",
        "fn not_unsafe_at_all() {}",
        "let c = '\u{e4}'; // unsafe",
    ] {
        assert!(!is_unsafe(source), "{source}");
    }
    let anywhere = Path::new("actors/src/tree.rs");
    assert!(!may_be_unsafe(anywhere, "// see SIMD\n"));
    assert!(may_be_unsafe(anywhere, "//! Fast.\n// SIMD\n"));
    assert!(may_be_unsafe(Path::new("kernels/src/cuda/stream.rs"), ""));
    assert!(
        may_be_unsafe(Path::new("runtime/src/sys.rs"), "")
            && may_be_unsafe(Path::new("runtime/src/sys/a.rs"), "")
    );
    assert!(!may_be_unsafe(Path::new("kernels/src/system.rs"), ""));
}
