//! Reading a file from its start, wherever its own position is.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// Reads a file from its start and leaves its position, which all holders of the descriptor share.
#[derive(Debug)]
pub(super) struct Whole<'a> {
    file: &'a File,
    at: u64,
}

impl<'a> Whole<'a> {
    pub(super) fn new(file: &'a File) -> Whole<'a> {
        Whole { file, at: 0 }
    }
}

impl Read for Whole<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
