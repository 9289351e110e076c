//! Who may watch: links, each good once, and the sessions that they open.
//!
//! 1. A link's token and a session's cookie are 32 bytes each of the operating system's random source. What is kept is their BLAKE3
//!    under a context of its own; what is shown is hashed and compared with every entry, each in constant time, without ending at the
//!    first that fits.
//! 2. A token is used up by its first use. There is always one that is good, in a file of the run directory that its owner alone can
//!    read: whoever can read that has the operator's key anyway.
//! 3. Sessions are bounded: beyond [`SESSIONS_MOST`] the oldest is over.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::rand::fill;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::{Choice, ConstantTimeEq as _};
use zeroize::Zeroizing;

use crate::signing::write_whole_as;

/// Separates these hashes from all others.
const CONTEXT: &str = "testudo 2026-11 dashboard secret v1";
const SECRET: usize = 32;
/// Bytes of the part of the path that is the page's own.
const PLACE: usize = 16;
/// Longest text that is hashed to look it up.
pub(super) const TOKEN_MOST: usize = 128;
/// Sessions that are good at once: one a browser.
const SESSIONS_MOST: usize = 16;
/// Links that are remembered as used.
const USED_MOST: usize = 64;

type Hash = [u8; 32];

/// Links and sessions.
pub(super) struct Access {
    address: SocketAddr,
    /// The page's own part of the path: what a cookie is sent to.
    place: String,
    file: PathBuf,
    held: Mutex<Held>,
}

struct Held {
    good: Hash,
    used: VecDeque<Hash>,
    sessions: VecDeque<Hash>,
}

/// What came of a token.
pub(super) enum Exchange {
    /// It was good, and is no longer: the session's cookie.
    Opened(Zeroizing<String>),
    /// It has been used before.
    Used,
    /// It never was a token of this run.
    Unknown,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Access {
    /// Access to the page at `address`, with a first link, which is written to `file` as all later ones are.
    ///
    /// # Errors
    /// There are no random numbers, or the file cannot be written.
    pub(super) fn make(address: SocketAddr, file: PathBuf) -> io::Result<(Access, Zeroizing<String>)> {
        let token = secret()?;
        let mut place = [0_u8; PLACE];
        fill(&mut place).map_err(|_| no_numbers())?;
        let held = Held { good: hash(token.as_bytes()), used: VecDeque::new(), sessions: VecDeque::new() };
        let place = URL_SAFE_NO_PAD.encode(place);
        let access = Access { address, place, file, held: Mutex::new(held) };
        let link = access.leave(&token)?;
        Ok((access, link))
    }

    /// The page's own part of the path.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Uses a token up, if it is good. The next one is then in the file.
    pub(super) fn exchange(&self, token: &[u8]) -> Exchange {
        if token.len() > TOKEN_MOST {
            return Exchange::Unknown;
        }
        let shown = hash(token);
        let mut held = self.held();
        if !bool::from(held.good.ct_eq(&shown)) {
            return if among(&held.used, &shown) { Exchange::Used } else { Exchange::Unknown };
        }
        // Without random numbers the token is used up all the same.
        let made = (secret(), secret());
        push(&mut held.used, shown, USED_MOST);
        held.good = [0; 32];
        let (Ok(cookie), Ok(next)) = made else { return Exchange::Unknown };
        push(&mut held.sessions, hash(cookie.as_bytes()), SESSIONS_MOST);
        held.good = hash(next.as_bytes());
        // A disk that takes no link is no reason to refuse this one.
        let _ = self.leave(&next);
        Exchange::Opened(cookie)
    }

    /// Whether that is the cookie of a session.
    pub(super) fn holds(&self, cookie: &[u8]) -> bool {
        cookie.len() <= TOKEN_MOST && among(&self.held().sessions, &hash(cookie))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the link with `token` to the file. The token is behind a `#`: browsers send nothing of that to anybody.
    fn leave(&self, token: &str) -> io::Result<Zeroizing<String>> {
        let link = Zeroizing::new(format!("http://{}/open#{token}", self.address));
        let line = Zeroizing::new(format!("{}\n", *link));
        write_whole_as(&self.file, line.as_bytes(), 0o600)?;
        Ok(link)
    }
}

fn among(hashes: &VecDeque<Hash>, shown: &Hash) -> bool {
    let found = hashes.iter().fold(Choice::from(0), |found, hash| found | hash.ct_eq(shown));
    bool::from(found)
}

fn push(hashes: &mut VecDeque<Hash>, hash: Hash, most: usize) {
    if hashes.len() == most {
        hashes.pop_front();
    }
    hashes.push_back(hash);
}

fn secret() -> io::Result<Zeroizing<String>> {
    let mut secret = Zeroizing::new([0_u8; SECRET]);
    fill(&mut secret[..]).map_err(|_| no_numbers())?;
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(&secret[..])))
}

fn no_numbers() -> io::Error {
    io::Error::other("the operating system gives no random numbers")
}

fn hash(secret: &[u8]) -> Hash {
    blake3::derive_key(CONTEXT, secret)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;

    use super::*;

    fn access(folder: &Path) -> (Access, String) {
        let file = folder.join("dashboard.url");
        let (access, link) = Access::make("127.0.0.1:4433".parse().unwrap(), file).unwrap();
        (access, link.to_string())
    }

    fn token(link: &str) -> &str {
        let token = link.trim_end().strip_prefix("http://127.0.0.1:4433/open#").unwrap();
        assert_eq!(token.len(), 43);
        token
    }

    /// Invariants 1 and 2; invariants 2 and 3 of the module above.
    #[test]
    fn a_link_opens_one_session_and_the_next_is_in_a_private_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dashboard.url");
        let (access, link) = access(folder.path());
        assert_eq!(std::fs::read_to_string(&file).unwrap().trim_end(), link, "the one that is printed");
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        for wrong in ["", "x", &token(&link)[1..], &link, &"a".repeat(1 << 20)] {
            assert!(matches!(access.exchange(wrong.as_bytes()), Exchange::Unknown), "{wrong:.60}");
        }
        let Exchange::Opened(cookie) = access.exchange(token(&link).as_bytes()) else { panic!("it is good") };
        assert!(access.holds(cookie.as_bytes()) && !access.holds(token(&link).as_bytes()));
        assert!(!access.holds(b"") && !access.holds(&cookie.as_bytes()[1..]));
        assert!(matches!(access.exchange(token(&link).as_bytes()), Exchange::Used));
        assert!(matches!(access.exchange(cookie.as_bytes()), Exchange::Unknown), "a cookie is no link");

        let next = std::fs::read_to_string(&file).unwrap();
        assert!(next.trim_end() != link);
        let Exchange::Opened(second) = access.exchange(token(&next).as_bytes()) else { panic!("it is good") };
        assert!(access.holds(cookie.as_bytes()) && access.holds(second.as_bytes()), "both browsers");
        let shown = format!("{access:?}");
        assert!(!shown.contains(&*second) && !shown.contains(access.place()), "{shown}");
    }

    /// Invariant 3.
    #[test]
    fn the_oldest_session_is_over_when_there_are_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let (access, mut link) = access(folder.path());
        let mut cookies = Vec::new();
        for _ in 0..=SESSIONS_MOST {
            let Exchange::Opened(cookie) = access.exchange(token(&link).as_bytes()) else { panic!("good") };
            cookies.push(cookie);
            link = std::fs::read_to_string(folder.path().join("dashboard.url")).unwrap();
        }
        let good: Vec<bool> = cookies.iter().map(|cookie| access.holds(cookie.as_bytes())).collect();
        assert!(!good[0] && good[1..].iter().all(|good| *good), "{good:?}");
    }

    #[test]
    fn a_disk_that_takes_no_link_ends_no_session() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("gone");
        std::fs::create_dir(&inner).unwrap();
        let (access, link) = access(&inner);
        std::fs::remove_dir_all(&inner).unwrap();
        assert!(matches!(access.exchange(token(&link).as_bytes()), Exchange::Opened(_)));
        assert!(Access::make("127.0.0.1:1".parse().unwrap(), inner.join("dashboard.url")).is_err());
    }
}
