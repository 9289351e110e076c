//! What the documents cite exists: a page that names a test or links a file that is gone fails here.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

#[path = "common/cited.rs"]
mod cited;
#[path = "common/sources.rs"]
mod sources;

use cited::{Commands, Keys};
use sources::{repository, rust_files};

/// Every page of the repository but those of other people's.
const PAGES: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/actors.md",
    "docs/aggregation.md",
    "docs/audit.md",
    "docs/checkpoints.md",
    "docs/codecs.md",
    "docs/commands.md",
    "docs/config.md",
    "docs/deploying.md",
    "docs/from-mxnet.md",
    "docs/from-pytorch.md",
    "docs/gpu.md",
    "docs/hardening.md",
    "docs/identities.md",
    "docs/metrics.md",
    "docs/models.md",
    "docs/networks.md",
    "docs/optimizers.md",
    "docs/performance.md",
    "docs/processes.md",
    "docs/recovery.md",
    "docs/replay.md",
    "docs/serving.md",
    "docs/tutorial.md",
    "docs/watching.md",
    "examples/data/austen/README.md",
    "examples/data/mnist/README.md",
];

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// What stands in backquotes in `page`, code blocks left out.
fn quoted(page: &str) -> Vec<&str> {
    let parts = page.split("```").step_by(2);
    parts.flat_map(|text| text.split('`').skip(1).step_by(2)).collect()
}

/// The targets of the links in `page`, those to other sites left out.
fn links(page: &str) -> Vec<&str> {
    let targets = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).collect()
}

/// Whether `source` holds a test of that name.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let Some(at) = lines.iter().position(|line| line.contains(&format!("fn {name}("))) else { return false };
    let mut above = lines[..at].iter().rev().take_while(|line| !line.is_empty() && **line != "}");
    above.any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
}

/// No page is forgotten here.
#[test]
fn every_page_of_docs_is_looked_at() {
    for page in std::fs::read_dir(repository().join("docs")).unwrap() {
        let name = page.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            assert!(PAGES.contains(&format!("docs/{name}").as_str()), "docs/{name} is not in PAGES");
        }
    }
}

#[test]
fn every_cited_test_exists() {
    let mut cited = 0;
    for page in PAGES {
        let text = read(page);
        for (file, test) in quoted(&text).into_iter().filter_map(|quote| quote.split_once(".rs::")) {
            let file = format!("{file}.rs");
            assert!(has_test(&read(&file), test), "{page} cites {file}::{test}, which is not there");
            cited += 1;
        }
    }
    assert!(cited > 20, "only {cited} citations were found");
}

/// A source file may be cited by the end of its path.
#[test]
fn every_cited_source_file_exists() {
    let files = rust_files(&repository());
    let mut cited = 0;
    for page in PAGES {
        let text = read(page);
        for quote in quoted(&text).into_iter().filter(|quote| quote.ends_with(".rs")) {
            let is_there = files.iter().any(|file| file.ends_with(quote));
            assert!(is_there, "{page} cites {quote}, which is not there");
            cited += 1;
        }
    }
    assert!(cited > 20, "only {cited} citations were found");
}

#[test]
fn every_link_leads_somewhere() {
    let mut found = 0;
    for page in PAGES {
        let folder = repository().join(page).parent().unwrap().to_path_buf();
        for link in links(&read(page)) {
            let (file, section) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { repository().join(page) } else { folder.join(file) };
            assert!(target.exists(), "{page} links {link}, which is not there");
            if !section.is_empty() {
                let headings = std::fs::read_to_string(&target).unwrap();
                let anchor =
                    |line: &str| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
                let is_there = headings.lines().filter(|l| l.starts_with('#')).any(|l| anchor(l) == section);
                assert!(is_there, "{page} links {link}, a section that is not there");
            }
            found += 1;
        }
    }
    assert!(found > 10, "only {found} links were found");
}

/// Pages for newcomers, who cannot know better.
const TAUGHT: &[&str] = &["README.md", "docs/tutorial.md", "docs/from-mxnet.md", "docs/from-pytorch.md"];

/// `docs/config.md` has all keys: it is written from the table that the program reads by.
#[test]
fn every_key_that_is_taught_exists() {
    let keys = Keys::of(&read("docs/config.md"));
    let mut cited = 0;
    for page in TAUGHT {
        let text = read(page);
        for quote in quoted(&text) {
            let missing = keys.missing(quote);
            assert!(missing.is_empty(), "{page} cites {missing:?}, of which no cluster file has a key");
            cited += keys.cited(quote);
        }
    }
    assert!(cited > 50, "only {cited} citations were found");
}

/// With the options that are given to it.
#[test]
fn every_command_that_is_taught_exists() {
    let commands = Commands::of(env!("CARGO_BIN_EXE_testudo-under-test"));
    let mut cited = 0;
    for page in TAUGHT {
        let text = read(page);
        let code = text.split("```").skip(1).step_by(2).flat_map(str::lines);
        for line in quoted(&text).into_iter().chain(code) {
            let missing = commands.missing(line);
            assert!(missing.is_none(), "{page}: `{line}`: {}", missing.unwrap_or_default());
            cited += usize::from(commands.is_cited(line));
        }
        // Of a table, the last column is Testudo's.
        for line in text.lines() {
            let ours = line.trim_end_matches('|').rsplit(" | ").next().unwrap_or_default();
            for option in quoted(ours).into_iter().filter(|quote| quote.starts_with("--")) {
                assert!(commands.have(option), "{page}: no command has {option}");
            }
        }
    }
    assert!(cited > 50, "only {cited} citations were found");
}

#[test]
fn what_is_taught_wrongly_is_noticed() {
    let keys = Keys::of(
        "## `[job]`\n| `name` | x |\n## `[optimizer]`\n| `kind` | x |\n## `[optimizer.constants]`\n",
    );
    assert_eq!(keys.missing("job.nam = \"x\""), ["job.nam"]);
    for good in [
        "job.name",
        "--set optimizer.kind=sgd",
        "optimizer.step()",
        "job.toml",
        "other.key",
        "optimizer.constants",
    ] {
        assert!(keys.missing(good).is_empty(), "{good}");
    }
    let commands = Commands::of(env!("CARGO_BIN_EXE_testudo-under-test"));
    for good in [
        "testudo run FILE --workers 4 --set training.epochs=1",
        "$ testudo pki issue --ca ca --role operator",
        "testudo",
        "cargo run -- nothing",
        "OTEL_SDK_DISABLED=true testudo run x.toml --json | tail -1",
    ] {
        assert!(commands.missing(good).is_none(), "{good}");
    }
    for wrong in
        ["testudo rum FILE", "testudo run --worker 4", "testudo pki isue x", "testudo pki issue --cb ca"]
    {
        assert!(commands.missing(wrong).is_some(), "{wrong}");
    }
    assert!(commands.have("--listen-by-scheduler") && !commands.have("--listen-by-schedule"));
}

#[test]
fn what_is_not_there_is_noticed() {
    assert_eq!(quoted("a `b.rs::c` ```\n`d.rs::e`\n``` `f`"), ["b.rs::c", "f"]);
    assert_eq!(links("[a](b.md) [c](https://d.example) [e](#f)"), ["b.md", "#f"]);
    let source = "/// Why.\n#[test]\nfn good() {\n    helper();\n}\n\nfn helper() {}\n";
    assert!(has_test(source, "good"));
    assert!(!has_test(source, "helper") && !has_test(source, "goo") && !has_test(source, "bad"));
}
