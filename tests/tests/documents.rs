//! What the documents cite exists: a page that names a test or links a file that is gone fails here.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

#[path = "common/sources.rs"]
mod sources;

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
    "docs/codecs.md",
    "docs/config.md",
    "docs/deploying.md",
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

#[test]
fn what_is_not_there_is_noticed() {
    assert_eq!(quoted("a `b.rs::c` ```\n`d.rs::e`\n``` `f`"), ["b.rs::c", "f"]);
    assert_eq!(links("[a](b.md) [c](https://d.example) [e](#f)"), ["b.md", "#f"]);
    let source = "/// Why.\n#[test]\nfn good() {\n    helper();\n}\n\nfn helper() {}\n";
    assert!(has_test(source, "good"));
    assert!(!has_test(source, "helper") && !has_test(source, "goo") && !has_test(source, "bad"));
}
