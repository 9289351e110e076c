//! Bearer tokens: made once, shown once, kept as hashes.
//!
//! 1. A token is 32 bytes of the operating system's random source. The file holds `NAME HASH` lines, the BLAKE3 of the token
//!    under a context of its own; it is the owner's alone, as keys are, and no link.
//! 2. A presented token is hashed and compared with every entry, each in constant time, without ending at the first that fits.
//! 3. A budget belongs to the name: a new token for it does not refill it.

use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::fill;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::{Choice, ConstantTimeEq as _};
use testudo_transport::pki::read_secret_file;
use zeroize::Zeroizing;

use super::ServeError;
use super::client::ClientId;
use crate::signing::write_whole_as;

/// What every token begins with, so that one that leaked is known for what it is.
const PREFIX: &str = "tstd_";
/// Separates these hashes from all others.
const CONTEXT: &str = "testudo 2026-11 serve bearer token v1";
const SECRET: usize = 32;
/// Longest text that is hashed to look it up.
const TOKEN_MOST: usize = 128;
/// Longest name of a client.
const NAME_MOST: usize = 64;
/// Most clients in one file.
const CLIENTS_MOST: usize = 500;

/// The clients of a server by the hashes of their tokens.
#[derive(Default)]
pub struct Tokens(Vec<Entry>);

struct Entry {
    name: String,
    hash: [u8; 32],
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|entry| &entry.name)).finish()
    }
}

impl Tokens {
    /// Reads the file of tokens.
    ///
    /// # Errors
    /// Others can read or write it, it is a link, or not of the form.
    pub fn load(path: &Path) -> Result<Tokens, ServeError> {
        let bytes = read_secret_file(path)?;
        Tokens::parse(&bytes).map_err(|what| ServeError::State { path: path.to_owned(), what })
    }

    fn parse(bytes: &[u8]) -> Result<Tokens, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "is not text".to_owned())?;
        let mut entries: Vec<Entry> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why: &str| format!("line {}: {why}", number + 1);
            let (name, hash) = line.split_once(' ').ok_or_else(|| wrong("is not NAME HASH"))?;
            check_name(name).map_err(|why| wrong(&why))?;
            let hash =
                blake3::Hash::from_hex(hash).map_err(|_| wrong("the hash is not 64 hexadecimal digits"))?;
            if entries.iter().any(|entry| entry.name == name) {
                return Err(wrong("a name stands twice; each client has one token"));
            }
            if entries.len() == CLIENTS_MOST {
                return Err(wrong(&format!("more than {CLIENTS_MOST} clients")));
            }
            entries.push(Entry { name: name.to_owned(), hash: *hash.as_bytes() });
        }
        Ok(Tokens(entries))
    }

    /// How many clients there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose token this is.
    #[must_use]
    pub fn client(&self, token: &[u8]) -> Option<ClientId> {
        if token.len() > TOKEN_MOST {
            return None;
        }
        let hash = hash(token);
        let mut found = None;
        for entry in &self.0 {
            let same: Choice = entry.hash.ct_eq(hash.as_bytes());
            if bool::from(same) {
                found = Some(&entry.name);
            }
        }
        found.map(|name| ClientId::of_token(name))
    }

    /// Makes a token for `name` and adds its hash to the file, which is made if it is not there. A token that the name had is
    /// no longer good. Gives the token: nothing else can ever tell it.
    ///
    /// # Errors
    /// The name is none, or the file cannot be read or written.
    pub fn create(path: &Path, name: &str) -> Result<Zeroizing<String>, ServeError> {
        let mut kept = Zeroizing::new(String::with_capacity(TOKEN_MOST));
        Tokens::create_told(path, name, |token| {
            kept.push_str(token);
            Ok(())
        })?;
        Ok(kept)
    }

    /// The same, with the token given to `tell` before the one that the name had is replaced.
    ///
    /// # Errors
    /// As for [`Tokens::create`]; or `tell` fails, and then the file is as it was.
    pub fn create_told(
        path: &Path,
        name: &str,
        tell: impl FnOnce(&str) -> std::io::Result<()>,
    ) -> Result<(), ServeError> {
        check_name(name).map_err(|why| ServeError::Option(format!("{name:?}: {why}")))?;
        let mut tokens = match path.symlink_metadata() {
            Ok(_) => Tokens::load(path)?,
            Err(_) => Tokens::default(),
        };
        let state = |what: String| ServeError::State { path: path.to_owned(), what };
        let mut secret = Zeroizing::new([0_u8; SECRET]);
        fill(&mut secret[..])
            .map_err(|_| state("the operating system gives no random numbers".to_owned()))?;
        let mut token = Zeroizing::new(String::with_capacity(TOKEN_MOST));
        token.push_str(PREFIX);
        token.push_str(&Zeroizing::new(URL_SAFE_NO_PAD.encode(&secret[..])));
        tokens.0.retain(|entry| entry.name != name);
        if tokens.0.len() == CLIENTS_MOST {
            return Err(state(format!("it has {CLIENTS_MOST} clients already")));
        }
        tokens.0.push(Entry { name: name.to_owned(), hash: *hash(token.as_bytes()).as_bytes() });
        tell(&token).map_err(|why| {
            state(format!("left as it was: the new token could not be told to anybody: {why}"))
        })?;
        write_whole_as(path, tokens.to_text().as_bytes(), 0o600).map_err(|why| state(why.to_string()))
    }

    fn to_text(&self) -> String {
        let lines =
            self.0.iter().map(|e| format!("{} {}\n", e.name, blake3::Hash::from_bytes(e.hash).to_hex()));
        lines.collect()
    }
}

/// Where tokens are if nothing else is said.
#[must_use]
pub fn default_path(state: &Path) -> PathBuf {
    state.join("tokens")
}

fn hash(token: &[u8]) -> blake3::Hash {
    blake3::Hash::from_bytes(blake3::derive_key(CONTEXT, token))
}

fn check_name(name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    match !name.is_empty() && name.len() <= NAME_MOST && name.chars().all(good) {
        true => Ok(()),
        false => Err(format!("a client's name is of a-z, 0-9, '-', '_' and '.', up to {NAME_MOST} of them")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};

    use super::*;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        (folder, path)
    }

    /// Invariants 1 to 3.
    #[test]
    fn a_token_is_shown_once_and_kept_as_a_hash() {
        let (_folder, path) = file();
        let alice = Tokens::create(&path, "alice").unwrap();
        let bob = Tokens::create(&path, "bob").unwrap();
        let kept = std::fs::read_to_string(&path).unwrap();
        assert!(!kept.contains(&alice[PREFIX.len()..]) && alice.len() == PREFIX.len() + 43);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let tokens = Tokens::load(&path).unwrap();
        let name = |tokens: &Tokens, token: &str| tokens.client(token.as_bytes()).map(|id| id.to_string());
        assert_eq!(name(&tokens, &alice).as_deref(), Some("token:alice"));
        assert_eq!(name(&tokens, &bob).as_deref(), Some("token:bob"));
        for wrong in ["", "alice", &alice[1..], &format!("{}x", *alice), &"a".repeat(1 << 20)] {
            assert_eq!(name(&tokens, wrong), None);
        }
        assert!(!format!("{tokens:?}").contains(&kept[6..20]), "no hash in Debug");
        let again = Tokens::create(&path, "alice").unwrap();
        let tokens = Tokens::load(&path).unwrap();
        assert_eq!((name(&tokens, &alice), tokens.len()), (None, 2));
        assert_eq!(name(&tokens, &again).as_deref(), Some("token:alice"), "the same client");
    }

    #[test]
    fn a_file_that_others_can_read_or_that_is_a_link_is_refused() {
        let (folder, path) = file();
        Tokens::create(&path, "alice").unwrap();
        let link = folder.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(Tokens::load(&link).is_err() && Tokens::create(&link, "bob").is_err());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(Tokens::load(&path).is_err() && Tokens::create(&path, "bob").is_err());
    }

    #[test]
    fn what_is_no_list_of_tokens_is_refused() {
        let hash = "0".repeat(64);
        assert_eq!(Tokens::parse(format!("# of June\n\na {hash}\nb {hash}\n").as_bytes()).unwrap().len(), 2);
        for (text, why) in [
            (format!("a {hash}\na {hash}\n"), "twice"),
            (format!("A {hash}\n"), "a-z"),
            (format!(" {hash}\n"), "a-z"),
            ("a 00\n".to_owned(), "64"),
            ("a\n".to_owned(), "NAME HASH"),
            ((0..=CLIENTS_MOST).map(|n| format!("n{n} {hash}\n")).collect(), "more than"),
        ] {
            assert!(Tokens::parse(text.as_bytes()).unwrap_err().contains(why), "{text}");
        }
        assert!(Tokens::parse(&[0xff]).is_err());
        let (_folder, path) = file();
        assert!(matches!(Tokens::create(&path, "../x"), Err(ServeError::Option(_))));
    }
}
