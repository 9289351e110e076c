//! `testudo man`: the command line as manual pages.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use serde_json::json;

use super::reference::{Entry, entries};
use crate::error::{EXIT_STATUSES, Failure};
use crate::say::say;

/// `testudo man`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo man ~/.local/share/man/man1")]
pub(crate) struct ManArguments {
    /// The folder to write them to, which is made if it is not there; pages of the same names are replaced
    dir: PathBuf,
    /// Print one JSON object on the last line of standard output: dir, pages
    #[arg(long)]
    json: bool,
}

pub(super) fn man(arguments: &ManArguments) -> Result<(), Failure> {
    let dir = &arguments.dir;
    std::fs::create_dir_all(dir).map_err(|e| Failure::file(dir, "cannot be made", e))?;
    let entries = entries();
    for entry in &entries {
        let path = dir.join(file_name(entry));
        let page = page(entry).map_err(Failure::failed)?;
        std::fs::write(&path, page).map_err(|e| Failure::file(&path, "cannot be written", e))?;
    }
    match (arguments.json, entries.first()) {
        (true, _) => {
            let pages: Vec<PathBuf> = entries.iter().map(|entry| dir.join(file_name(entry))).collect();
            say!("{}", json!({ "dir": dir, "pages": pages }));
        }
        (false, first) => {
            let first = first.map(|first| dir.join(file_name(first))).unwrap_or_default();
            say!("{} pages in {}; to read the first: man {}", entries.len(), dir.display(), here(&first));
        }
    }
    Ok(())
}

/// A path that `man` takes for one: with a slash in it.
fn here(path: &Path) -> String {
    match path.components().count() {
        1 => format!("./{}", path.display()),
        _ => path.display().to_string(),
    }
}

fn file_name(entry: &Entry) -> String {
    format!("{}.1", entry.path.replace(' ', "-"))
}

/// One page, in roff.
fn page(entry: &Entry) -> io::Result<Vec<u8>> {
    let source = concat!("Testudo ", env!("CARGO_PKG_VERSION"));
    let name = entry.path.replace(' ', "-");
    let man = Man::new(entry.command.clone()).title(name.to_uppercase()).source(source).manual("Testudo");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([roman(entry.usage())]);
    roff.to_writer(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if !entry.acts() {
        man.render_subcommands_section(&mut page)?;
    }
    let ending = entry.ending();
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    match &ending.exit {
        Some(exit) if entry.acts() => {
            roff.text([roman(exit.as_str())]);
        }
        _ => {
            for (number, meaning) in EXIT_STATUSES {
                roff.control("TP", []);
                roff.text([bold(number.to_string())]);
                roff.text([roman(meaning)]);
            }
        }
    }
    if !ending.examples.is_empty() {
        roff.control("SH", ["EXAMPLES"]);
        // Lines stay lines.
        roff.control("nf", []);
        for example in &ending.examples {
            roff.text([roman(example.as_str())]);
        }
        roff.control("fi", []);
    }
    roff.to_writer(&mut page)?;
    Ok(page)
}
