//! What single strings in a cluster file must look like: names, trust domains, addresses.
//!
//! Each function answers `Err` with a phrase that says what is wrong; the caller adds where and what is
//! allowed.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use testudo_kernels::optimizer::MAX_PATTERN;

use super::ssh::Host;

/// Longest name of a user, as `useradd` has it.
const USER_MOST: usize = 32;
/// Longest job name: it is one segment of a path in every identity, and part of a folder's name.
const NAME_MOST: usize = 63;
/// Longest trust domain (SPIFFE ID specification, section 2.1).
const TRUST_DOMAIN_MOST: usize = 255;
/// Longest path on another machine: far below what a command line holds.
const REMOTE_PATH_MOST: usize = 256;
/// Longest host name (RFC 1035, section 2.3.4).
const HOST_MOST: usize = 253;

/// A job's name: a SPIFFE path segment that is also a plain file name.
pub(super) fn name(text: &str) -> Result<(), String> {
    length(text, NAME_MOST)?;
    if text.starts_with('.') {
        return Err("it starts with a dot".into());
    }
    only(text, |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

/// A SPIFFE trust domain.
pub(super) fn trust_domain(text: &str) -> Result<(), String> {
    length(text, TRUST_DOMAIN_MOST)?;
    only(text, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-'))
}

/// An address to bind: IP and port, no name (a name may resolve to an interface nobody meant).
pub(super) fn listen(text: &str) -> Result<(), String> {
    match text.parse::<SocketAddr>() {
        Ok(_) => Ok(()),
        Err(_) if text.parse::<IpAddr>().is_ok() => Err("the port is missing".into()),
        Err(_) => Err("it is no IP address with a port".into()),
    }
}

/// A collector's URL: with a host, and nobody's name or password, which would be in the log.
pub(super) fn collector(text: &str) -> Result<(), String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let authority = rest.and_then(|rest| rest.split(['/', '?', '#']).next());
    if authority.is_some_and(|authority| authority.contains('@')) {
        return Err("it names a user: give what the collector asks for in OTEL_EXPORTER_OTLP_HEADERS".into());
    }
    match rest {
        Some(rest)
            if !rest.is_empty() && !rest.starts_with(['/', ':']) && !text.contains(char::is_whitespace) =>
        {
            Ok(())
        }
        _ => Err("it is no URL that begins with https:// or http:// and names a host".into()),
    }
}

/// An address to dial: an IP address or a host name, and a port.
pub(super) fn dial(text: &str) -> Result<(), String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.ip().is_unspecified() {
            return Err(format!("nobody can dial {}", address.ip()));
        }
        return port(address.port());
    }
    let Some((host, digits)) = text.rsplit_once(':') else { return Err("the port is missing".into()) };
    match digits.parse() {
        Ok(number) if digits.bytes().all(|b| b.is_ascii_digit()) => port(number)?,
        _ => return Err(format!("{digits:?} is no port")),
    }
    host_name(host)
}

/// An age recipient of the classic kind: an X25519 public key.
pub(super) fn recipient(text: &str) -> Result<(), String> {
    text.parse::<age::x25519::Recipient>()
        .map(|_| ())
        .map_err(|why| format!("it is no X25519 recipient ({why})"))
}

/// A user's name as `useradd` takes it, or a number; whether there is such a user is this machine's to say.
pub(super) fn user(text: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let name = text.strip_suffix('$').unwrap_or(text);
    if name.is_empty() || text.len() > USER_MOST || name.starts_with('-') || !name.chars().all(good) {
        return Err(format!("a name of 1 to {USER_MOST} of `a-z A-Z 0-9 _ - .`, or a number, is needed"));
    }
    match text.parse() {
        Ok(0_u64) => Err("that is root".into()),
        _ if text == "root" => Err("that is root".into()),
        _ => Ok(()),
    }
}

/// A host to log in to.
pub(super) fn ssh_host(text: &str) -> Result<(), String> {
    Host::parse(text).map(|_| ())
}

/// A user to log in as, root too: nothing serves as root even there.
pub(super) fn login(text: &str) -> Result<(), String> {
    length(text, USER_MOST)?;
    if text.starts_with('-') {
        return Err("a user's name does not begin with a dash".into());
    }
    only(text, |c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

/// A path on another machine: of characters that mean nothing to any shell.
pub(super) fn remote_path(text: &str) -> Result<(), String> {
    length(text, REMOTE_PATH_MOST)?;
    if text.starts_with('-') || text.split('/').any(|part| part == "..") {
        return Err("it begins with a dash, or leads upwards".into());
    }
    only(text, |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/'))
}

/// A pattern of parameters' names.
pub(super) fn pattern(text: &str) -> Result<(), String> {
    length(text, MAX_PATTERN)
}

fn port(number: u16) -> Result<(), String> {
    if number == 0 { Err("port 0 cannot be dialed".into()) } else { Ok(()) }
}

/// A network in CIDR notation, with no bit set beyond its length.
pub(super) fn network(text: &str) -> Result<(), String> {
    let net: IpNet = text.parse().map_err(|_| "it is no network in CIDR notation".to_string())?;
    match net.trunc() == net {
        true => Ok(()),
        false => Err(format!("it has bits beyond its length: {} is meant", net.trunc())),
    }
}

/// A host name by RFC 1123, section 2.1.
pub(super) fn host_name(host: &str) -> Result<(), String> {
    length(host, HOST_MOST)?;
    for label in host.split('.') {
        let edges_hold = !label.starts_with('-') && !label.ends_with('-');
        let letters_hold = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if label.is_empty() || label.len() > 63 || !edges_hold || !letters_hold {
            return Err(format!("{host:?} is no host name"));
        }
    }
    // Four numbers that did not parse as an address are a mistyped address, not a name.
    if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(format!("{host:?} is no IP address"));
    }
    Ok(())
}

fn length(text: &str, most: usize) -> Result<(), String> {
    match text.len() {
        0 => Err("it is empty".into()),
        found if found > most => Err(format!("it has {found} characters")),
        _ => Ok(()),
    }
}

fn only(text: &str, allowed: impl Fn(char) -> bool) -> Result<(), String> {
    match text.chars().find(|&c| !allowed(c)) {
        Some(c) => Err(format!("{c:?} is not allowed in it")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_path_segments() {
        for good in ["job", "mnist-1", "A_b.c", "x"] {
            assert_eq!(name(good), Ok(()), "{good}");
        }
        let long = "x".repeat(64);
        for bad in ["", ".", "..", ".git", "a/b", "a b", "ä", "a%2f", "a\n", long.as_str()] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn trust_domains_are_lower_case() {
        assert_eq!(trust_domain("testudo.local"), Ok(()));
        for bad in ["", "Testudo.local", "a/b", "a:1", "a b"] {
            assert!(trust_domain(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn users_are_names_and_numbers_but_not_roots() {
        for good in ["nobody", "www-data", "_testudo", "machine$", "65534", "a.b"] {
            assert_eq!(user(good), Ok(()), "{good}");
        }
        for bad in ["", "root", "0", "00", "-1", "a b", "$", "a:b", "../x", &"a".repeat(33)] {
            assert!(user(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn remote_paths_mean_nothing_to_a_shell() {
        for good in [".testudo", "/srv/testudo/bin", "a-b_c.d"] {
            assert_eq!(remote_path(good), Ok(()), "{good}");
        }
        for bad in ["", "..", "a/../b", "-rf", "a b", "$HOME", "~", "a;b", "a'b", "a\nb"] {
            assert!(remote_path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn recipients_are_public_keys() {
        let identity = age::x25519::Identity::generate();
        assert_eq!(recipient(&identity.to_public().to_string()), Ok(()));
        let secret = identity.to_string();
        let bad = ["", "age1", "ssh-ed25519 AAAA", age::secrecy::ExposeSecret::expose_secret(&secret)];
        for bad in bad {
            assert!(recipient(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn listen_takes_addresses_only() {
        for good in ["127.0.0.1:0", "0.0.0.0:7000", "[::1]:7000", "[fe80::1]:0"] {
            assert_eq!(listen(good), Ok(()), "{good}");
        }
        for bad in
            ["", "127.0.0.1", "localhost:7000", "127.0.0.1:70000", "127.0.0.256:1", "::1:7000x", ":7000"]
        {
            assert!(listen(bad).is_err(), "{bad:?}");
        }
        assert_eq!(listen("127.0.0.1"), Err("the port is missing".into()));
    }

    #[test]
    fn networks_are_whole() {
        for good in ["10.0.0.0/8", "127.0.0.1/32", "2001:db8::/32", "0.0.0.0/0"] {
            assert_eq!(network(good), Ok(()), "{good}");
        }
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.1/8", "example.org/8", "::/129"] {
            assert!(network(bad).is_err(), "{bad:?}");
        }
        assert!(network("10.2.3.4/8").is_err_and(|why| why.contains("10.0.0.0/8")));
    }

    #[test]
    fn collectors_are_urls_of_hosts() {
        for good in ["http://127.0.0.1:4318", "http://collector/otel", "https://c:4317", "https://c/otel"] {
            assert_eq!(collector(good), Ok(()), "{good}");
        }
        for bad in
            ["ftp://c", "127.0.0.1:4318", "http://", "https://", "https:///x", "http://:1", "https://a b"]
        {
            assert!(collector(bad).is_err(), "{bad}");
        }
        for named in ["http://me:secret@c:4318", "https://me:secret@c", "http://@c/otel"] {
            let said = collector(named).unwrap_err();
            assert!(said.contains("names a user") && !said.contains("secret"), "{said}");
        }
        assert_eq!(collector("http://c/a@b"), Ok(()), "a path may have one");
    }

    #[test]
    fn dial_takes_names_and_addresses_with_a_real_port() {
        for good in ["10.0.0.1:7000", "[2001:db8::1]:7000", "scheduler:7000", "a.b-c.example:1"] {
            assert_eq!(dial(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "10.0.0.1:0",
            "scheduler:0",
            "scheduler",
            "scheduler:",
            "scheduler:+7",
            ":7000",
            "0.0.0.0:7000",
            "[::]:7000",
            "a..b:1",
            "-a:1",
            "a_b:1",
            "10.0.0.256:7000",
            "a b:1",
            "scheduler:70000",
        ] {
            assert!(dial(bad).is_err(), "{bad:?}");
        }
    }
}
