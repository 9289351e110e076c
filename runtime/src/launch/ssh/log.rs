//! What a host says on standard error, as a log here: text alone, and not more than the disk can bear.
//!
//! 1. A control character, but for the end of a line and a tab, does not reach the log: a terminal that shows it obeys nothing.
//! 2. A start of a node writes at most [`LOG_MOST`] bytes, and a note of what was left out. What comes after is read on, so that
//!    the node does not wait for its log.

use std::fs::File;
use std::io::Write as _;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Bytes of a node's log that are kept for each of its starts. The places that log have rates of their own, so that an honest node
/// says far less.
const LOG_MOST: u64 = 64 << 20;

/// Bytes that are read at once.
const CHUNK: usize = 16 << 10;

/// Copies until the host says no more. A log that cannot be written (a full disk) loses what it lacks, and ends nothing.
pub(super) async fn keep(from: impl AsyncRead + Unpin, log: File) {
    keep_most(from, log, LOG_MOST).await;
}

async fn keep_most(mut from: impl AsyncRead + Unpin, mut log: File, most: u64) {
    let mut left = most;
    let mut left_out = 0_u64;
    let mut chunk = vec![0; CHUNK];
    let mut cut = Vec::new();
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        if left == 0 {
            left_out += count as u64;
            continue;
        }
        cut.extend_from_slice(chunk.get(..count).unwrap_or_default());
        let text = text(&mut cut);
        let mut end = text.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let (kept, rest) = text.split_at(end);
        let _ = log.write_all(kept.as_bytes());
        left -= kept.len() as u64;
        if !rest.is_empty() {
            left = 0;
            left_out += rest.len() as u64;
            let note = format!("\n[the host said more than {most} bytes; the rest is left out]\n");
            let _ = log.write_all(note.as_bytes());
        }
    }
    if !cut.is_empty() && left > 0 {
        let _ = log.write_all("\u{fffd}".as_bytes());
    }
    if left_out > 0 {
        let _ = log.write_all(format!("[{left_out} bytes of the host were left out]\n").as_bytes());
    }
}

/// The text in `bytes`, in which only a character that is not whole yet stays.
fn text(bytes: &mut Vec<u8>) -> String {
    let whole = match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        // A fault further on hides whether the end is whole: its last character is looked for by itself.
        Err(_) => bytes.len() - cut_at_end(bytes),
        Ok(_) => bytes.len(),
    };
    let rest = bytes.split_off(whole);
    let text = String::from_utf8_lossy(bytes).into_owned();
    *bytes = rest;
    text.chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()).collect()
}

/// Bytes at the end that begin a character and do not end it.
fn cut_at_end(bytes: &[u8]) -> usize {
    let tail = bytes.utf8_chunks().last().map(|last| last.invalid()).unwrap_or_default();
    match std::str::from_utf8(tail) {
        Err(error) if error.error_len().is_none() => tail.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn kept(said: &[u8], at_once: usize, most: u64) -> String {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.log");
        let (mut to, from) = tokio::io::duplex(at_once);
        let said = said.to_vec();
        let saying = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut to, &said).await.unwrap();
        });
        keep_most(from, File::create(&path).unwrap(), most).await;
        saying.await.unwrap();
        std::fs::read_to_string(path).unwrap()
    }

    /// Invariant 1, wherever what the host says is cut.
    #[tokio::test]
    async fn a_terminal_that_shows_the_log_is_told_nothing() {
        let said = b"a\tb \x1b[2J\x1b]0;title\x07\r\x00 \xc2\x9b31m \xff \xc3\xa4\xe2\x82\xac\n\xf0\x9f\x98\x80 \xe2\x82";
        for at_once in [1, 2, 3, 5, 1000] {
            let log = kept(said, at_once, 1000).await;
            assert_eq!(log, "a\tb [2J]0;title 31m \u{fffd} ä€\n😀 \u{fffd}", "{at_once}");
        }
    }

    /// Invariant 2: a host that says without end costs a bounded file, and says it to the end.
    #[tokio::test]
    async fn a_host_that_says_without_end_is_cut_and_the_log_says_so() {
        let log = kept("ä".repeat(50_000).as_bytes(), 4096, 1001).await;
        assert!(log.starts_with(&"ä".repeat(500)) && log.len() < 1200, "{log}");
        assert!(log.contains("more than 1001 bytes") && log.contains("99000 bytes of the host"), "{log}");
    }
}
