//! Files over a stream: what a launcher sends to a node on another machine by its standard input, and what comes back.
//!
//! A parcel is a mark of eight bytes, the version in its last; then, for each file, the length of its name (a byte), the name, the
//! length of its contents (eight bytes, little-endian) and the contents; then a zero byte. Parcels follow each other.
//!
//! 1. A name leads nowhere but below the folder that the receiver puts it in: one to three parts of `a-z 0-9 . - _`, none with a dot
//!    first.
//! 2. What is longer than the receiver takes is refused before a byte of it is read.
//! 3. A stream that ends within a parcel is an error; one that ends between parcels is an end.

use std::io::{self, Read};

/// The first bytes of a parcel.
const MARK: [u8; 8] = *b"testudo\x01";

/// Longest name.
const NAME_MOST: usize = 128;

/// Most parts of a name.
const PARTS_MOST: usize = 3;

/// Most files of a parcel.
const FILES_MOST: usize = 64;

/// Why a parcel was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ParcelError {
    /// It is none, or another release's.
    #[error("what came is no parcel of this release: the two ends must run the same one")]
    Mark,
    /// Invariant 1.
    #[error("a file is called {0:?}")]
    Name(String),
    /// Invariant 2.
    #[error("{name} has {bytes} bytes, and {most} are taken")]
    Large {
        /// Which file.
        name: String,
        /// Its length.
        bytes: u64,
        /// The most.
        most: u64,
    },
    /// There are too many.
    #[error("it has more than {FILES_MOST} files")]
    Many,
    /// The stream, or where files are put.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A parcel of files in memory.
///
/// # Errors
/// [`ParcelError::Name`] for a name that no receiver would take.
pub(crate) fn pack(files: &[(&str, &[u8])]) -> Result<Vec<u8>, ParcelError> {
    let mut parcel = MARK.to_vec();
    for (name, contents) in files {
        parcel.extend(head(name, contents.len() as u64)?);
        parcel.extend_from_slice(contents);
    }
    parcel.push(0);
    Ok(parcel)
}

/// Sends a parcel of one file, or of none, from a reader of exactly as many bytes.
///
/// # Errors
/// [`ParcelError`], and then the stream is of no more use.
pub(crate) fn send(
    to: &mut impl io::Write,
    file: Option<(&str, u64, &mut dyn Read)>,
) -> Result<(), ParcelError> {
    to.write_all(&MARK)?;
    if let Some((name, bytes, from)) = file {
        to.write_all(&head(name, bytes)?)?;
        let sent = io::copy(&mut from.take(bytes), to)?;
        if sent != bytes {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
    to.write_all(&[0])?;
    Ok(to.flush()?)
}

/// Takes one parcel; `put` is handed each name and its contents, at most `most` bytes, and what it leaves of them is passed over.
/// `false` where the stream ended before it.
///
/// # Errors
/// [`ParcelError`]; files before the fault have been put.
pub(crate) fn take(
    from: &mut impl Read,
    most: u64,
    put: &mut dyn FnMut(&str, &mut dyn Read) -> io::Result<()>,
) -> Result<bool, ParcelError> {
    let mut mark = [0; MARK.len()];
    let mut found = 0;
    while let Some(rest) = mark.get_mut(found..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) if found == 0 => return Ok(false),
            Ok(0) => return Err(ParcelError::Mark),
            Ok(count) => found += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    if mark != MARK {
        return Err(ParcelError::Mark);
    }
    for _ in 0..=FILES_MOST {
        let mut length = [0];
        from.read_exact(&mut length)?;
        if length == [0] {
            return Ok(true);
        }
        let mut name = vec![0; usize::from(length[0])];
        from.read_exact(&mut name)?;
        let name = String::from_utf8_lossy(&name).into_owned();
        check(&name)?;
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)?;
        let bytes = u64::from_le_bytes(bytes);
        if bytes > most {
            return Err(ParcelError::Large { name, bytes, most });
        }
        let mut contents = from.by_ref().take(bytes);
        put(&name, &mut contents)?;
        io::copy(&mut contents, &mut io::sink())?;
        if contents.limit() != 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
    Err(ParcelError::Many)
}

fn head(name: &str, bytes: u64) -> Result<Vec<u8>, ParcelError> {
    check(name)?;
    let mut head = vec![u8::try_from(name.len()).map_err(|_| ParcelError::Name(name.to_owned()))?];
    head.extend_from_slice(name.as_bytes());
    head.extend_from_slice(&bytes.to_le_bytes());
    Ok(head)
}

fn check(name: &str) -> Result<(), ParcelError> {
    let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'-' | b'_');
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(good);
    let holds = name.len() <= NAME_MOST && name.split('/').count() <= PARTS_MOST && name.split('/').all(part);
    if holds { Ok(()) } else { Err(ParcelError::Name(name.chars().take(NAME_MOST).collect())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Files = Vec<(String, Vec<u8>)>;

    fn all(bytes: &[u8], most: u64) -> Result<(bool, Files, usize), ParcelError> {
        let (mut from, mut files) = (bytes, Files::new());
        let whole = take(&mut from, most, &mut |name, contents| {
            let mut bytes = Vec::new();
            contents.read_to_end(&mut bytes)?;
            files.push((name.to_owned(), bytes));
            Ok(())
        })?;
        Ok((whole, files, from.len()))
    }

    #[test]
    fn files_arrive_one_parcel_after_the_other() {
        let mut both = pack(&[("cluster.toml", b"a = 1"), ("identity/key.pem", b"")]).unwrap();
        let first = both.len();
        send(&mut both, Some(("checkpoint/final/model", 3, &mut &b"xyz"[..]))).unwrap();
        let (whole, files, rest) = all(&both, 5).unwrap();
        let expected = [("cluster.toml", &b"a = 1"[..]), ("identity/key.pem", b"")];
        assert!(whole && files.iter().map(|(n, c)| (n.as_str(), c.as_slice())).eq(expected));
        assert_eq!(rest, both.len() - first);
        let (_, files, rest) = all(&both[first..], 5).unwrap();
        assert_eq!((files, rest), (vec![("checkpoint/final/model".to_owned(), b"xyz".to_vec())], 0));
        assert!(!all(b"", 5).unwrap().0, "an end between two");
        // What the receiver leaves is passed over.
        assert!(take(&mut both.as_slice(), 5, &mut |_, _| Ok(())).unwrap());
        assert!(send(&mut Vec::new(), Some(("a", 4, &mut &b"xyz"[..]))).is_err(), "fewer bytes than said");
    }

    /// Invariants 1 to 3.
    #[test]
    fn anything_else_is_refused() {
        for name in
            ["", "/etc/passwd", "..", "a/../b", ".ssh", "a//b", "a/", "a/b/c/d", "A", "a b", "a\0", "ä"]
        {
            assert!(matches!(pack(&[(name, b"")]), Err(ParcelError::Name(_))), "{name:?}");
            let mut forged = MARK.to_vec();
            forged.push(name.len().max(1) as u8);
            forged.extend(if name.is_empty() { b"/" } else { name.as_bytes() });
            forged.extend([0; 9]);
            assert!(matches!(all(&forged, 9), Err(ParcelError::Name(_))), "{name:?}");
        }
        let good = pack(&[("a", b"12345")]).unwrap();
        for cut in 1..good.len() {
            assert!(all(&good[..cut], 9).is_err(), "{cut}");
        }
        assert!(matches!(all(&good, 4), Err(ParcelError::Large { bytes: 5, .. })));
        assert!(matches!(all(b"Welcome to host", 4), Err(ParcelError::Mark)));
        let many = pack(&vec![("a", &b""[..]); FILES_MOST + 1]).unwrap();
        assert!(matches!(all(&many, 4), Err(ParcelError::Many)));
    }
}
