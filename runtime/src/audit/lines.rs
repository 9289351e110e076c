//! Reading a log line by line, in bounded memory.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;
use testudo_observability::audit::MAX_LINE;

use super::AuditLogError;

/// One line.
pub(super) struct Line {
    /// Which, from 1.
    pub(super) number: u64,
    /// Without its line feed.
    pub(super) bytes: Vec<u8>,
    /// Whether a line feed ends it: a writer's lines all have one.
    pub(super) is_whole: bool,
}

/// The lines of the log at `path`.
pub(super) struct Lines<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    number: u64,
}

impl<'a> Lines<'a> {
    /// A link or a pipe in the log's place is refused.
    pub(super) fn open(path: &'a Path) -> Result<Lines<'a>, AuditLogError> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let unread = |e: std::io::Error| file_error(path, "cannot be read", &e);
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(unread)?;
        if !file.metadata().map_err(unread)?.is_file() {
            return Err(unread(std::io::Error::other("it is no regular file")));
        }
        Ok(Lines { path, reader: BufReader::new(file), number: 0 })
    }
}

impl Iterator for Lines<'_> {
    type Item = Result<Line, AuditLogError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = Vec::new();
        let most = MAX_LINE as u64 + 1;
        match (&mut self.reader).take(most).read_until(b'\n', &mut bytes) {
            Err(error) => Some(Err(file_error(self.path, "cannot be read", &error))),
            Ok(0) => None,
            Ok(_) => {
                self.number += 1;
                let is_whole = bytes.last() == Some(&b'\n');
                bytes.truncate(bytes.len() - usize::from(is_whole));
                Some(Ok(Line { number: self.number, bytes, is_whole }))
            }
        }
    }
}

pub(super) fn file_error(path: &Path, what: &str, error: &std::io::Error) -> AuditLogError {
    AuditLogError::File { path: path.to_owned(), what: format!("{what}: {error}") }
}
