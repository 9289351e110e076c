//! A page that is followed: its fenced blocks in order, and whether what was printed is what it shows.
//!
//! A fence's first word is the language; those after it say what a test does with the block, and no reader sees them:
//!
//! - `sh machine=M`: given on machine M, to its end; `terminal=T` leaves it running in a terminal of that name.
//! - `text`: what the commands above it print, all of it; `text terminal=T`: what that terminal shows by now or soon, among other
//!   lines; with `ends`, after which what runs in it ends by itself.
//! - `LANGUAGE file=F machine=M`: a file that the reader writes there; with `below=LINE`, what is added to it below that line.
//!
//! What stands as `...` may be anything: in a line any characters, as a line of its own any lines, none included.

/// One fenced block that is for a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The line of the page on which it begins.
    pub line: usize,
    /// What it is.
    pub kind: Kind,
    /// What it holds.
    pub text: String,
}

/// What a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Commands.
    Commands {
        /// Where they are given.
        machine: String,
        /// The terminal in which they go on, if they do.
        terminal: Option<String>,
    },
    /// What commands print.
    Shown {
        /// By what runs in this terminal; else by the commands above.
        terminal: Option<String>,
        /// Whether it ends then.
        ends: bool,
    },
    /// A file.
    File {
        /// Where it is written.
        machine: String,
        /// Its name.
        name: String,
        /// The line below which this is added; else it is the whole file.
        below: Option<String>,
    },
}

/// The blocks of `page` that are for a test.
///
/// # Errors
/// A fence that says what no test understands, or shell commands that no machine is named for.
pub fn blocks(page: &str) -> Result<Vec<Block>, String> {
    let mut found = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let mut text = String::new();
        loop {
            match lines.next() {
                Some((_, "```")) => break,
                Some((_, line)) => text += &format!("{line}\n"),
                None => return Err(format!("line {}: the block does not end", at + 1)),
            }
        }
        let kind = kind(info).map_err(|why| format!("line {}: {why}", at + 1))?;
        found.extend(kind.map(|kind| Block { line: at + 1, kind, text }));
    }
    Ok(found)
}

fn kind(info: &str) -> Result<Option<Kind>, String> {
    let mut words = info.split_whitespace();
    let language = words.next().unwrap_or_default();
    let (mut machine, mut terminal, mut file, mut below, mut ends) = (None, None, None, None, false);
    for word in words {
        match word.split_once('=') {
            Some(("machine", name)) => machine = Some(name.to_owned()),
            Some(("terminal", name)) => terminal = Some(name.to_owned()),
            Some(("file", name)) => file = Some(name.to_owned()),
            Some(("below", line)) => below = Some(line.to_owned()),
            None if word == "ends" => ends = true,
            _ => return Err(format!("`{word}` says nothing to a test")),
        }
    }
    if below.is_some() && file.is_none() {
        return Err("below a line of which file?".into());
    }
    match (language, machine, terminal, file) {
        ("sh", Some(machine), terminal, None) if !ends => Ok(Some(Kind::Commands { machine, terminal })),
        ("text", None, terminal, None) if terminal.is_some() || !ends => {
            Ok(Some(Kind::Shown { terminal, ends }))
        }
        (_, Some(machine), None, Some(name)) if !ends => Ok(Some(Kind::File { machine, name, below })),
        ("sh" | "text", ..) => Err(format!("`{info}`: on which machine?")),
        (_, None, None, None) if !ends => Ok(None),
        _ => Err(format!("`{info}` says nothing to a test")),
    }
}

/// Whether `printed` is `shown`, from its first line to its last that is not empty.
#[must_use]
pub fn is_shown(shown: &str, printed: &str) -> bool {
    let lines: Vec<&str> = shown.trim_end().lines().map(str::trim_end).collect();
    let segments: Vec<&[&str]> = lines.split(|line| *line == "...").collect();
    let printed: Vec<&str> = printed.trim_end().lines().map(str::trim_end).collect();
    let is_line = |pattern: &str, line: &str| {
        let pieces: Vec<&str> = pattern.split("...").collect();
        let line: Vec<char> = line.chars().collect();
        let pieces: Vec<Vec<char>> = pieces.iter().map(|piece| piece.chars().collect()).collect();
        let pieces: Vec<&[char]> = pieces.iter().map(Vec::as_slice).collect();
        are_there(&pieces, &line, |a, b| a == b)
    };
    are_there(&segments, &printed, |pattern, line| is_line(pattern, line))
}

/// Whether `items` are `pieces`, with any others between one piece and the next: the first piece at the beginning, the last at the
/// end. Between them the earliest place is as good as any.
fn are_there<P, I>(pieces: &[&[P]], items: &[I], same: impl Fn(&P, &I) -> bool) -> bool {
    let is_at = |piece: &[P], items: &[I]| {
        items.len() >= piece.len() && piece.iter().zip(items).all(|(piece, item)| same(piece, item))
    };
    let [first, middle @ .., last] = pieces else {
        return pieces.first().is_some_and(|only| only.len() == items.len() && is_at(only, items));
    };
    if !is_at(first, items) {
        return false;
    }
    let mut at = first.len();
    for piece in middle {
        let Some(found) = (at..=items.len()).find(|from| is_at(piece, &items[*from..])) else { return false };
        at = found + piece.len();
    }
    items.len() >= at + last.len() && is_at(last, &items[items.len() - last.len()..])
}
