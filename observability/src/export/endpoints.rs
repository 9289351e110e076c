//! Which collectors are spoken to over TLS, with which files, and which are told everything in plain text.

use std::net::IpAddr;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::credentials::{Pem, Secured};
use super::environment::{Environment, Signal};
use super::source::{Named, Source, is_mine};
use crate::setup::InitError;

impl Environment {
    /// The same, with the files read that `https://` collectors are spoken to with: for a process that will not be able to. Without it
    /// they are read when exporters are made. `is_ours` says whose private keys count as this process's own.
    ///
    /// # Errors
    /// Files that cannot be used, and what [`Environment::url`] has.
    pub fn open(self, is_ours: impl Fn(u32) -> bool) -> Result<Self, InitError> {
        self.open_with(false, |source| source.read(&is_ours))
    }

    /// The same for a launcher, which keeps what was in them for other processes ([`Opened`](super::Opened)): `read` reads each, with the rights
    /// of whoever names it.
    ///
    /// # Errors
    /// What `read` has, and as [`Environment::open`].
    pub fn open_for_others<E: From<InitError>>(
        self,
        read: impl FnMut(&Source) -> Result<Zeroizing<String>, E>,
    ) -> Result<Self, E> {
        self.open_with(true, read)
    }

    fn open_with<E: From<InitError>>(
        mut self,
        keep: bool,
        mut read: impl FnMut(&Source) -> Result<Zeroizing<String>, E>,
    ) -> Result<Self, E> {
        for signal in Signal::ALL {
            if !self.url(signal)?.is_some_and(|url| is_secured(&url)) {
                continue;
            }
            let named = self.named(signal);
            let earlier = Signal::ALL.into_iter().take(signal as usize);
            let same = earlier.filter(|other| self.named(*other) == named);
            let known = same.filter_map(|other| self.opened.0[other as usize].clone()).next();
            let secured = match known {
                Some(known) => known,
                None => Arc::new(Secured::new(Pem::read(&named, &mut read)?, &named, keep)?),
            };
            self.opened.0[signal as usize] = Some(secured);
        }
        Ok(self)
    }

    /// The same, with what another process has read ([`Opened::to_bytes`](super::Opened::to_bytes)): for one that may not be able to.
    ///
    /// # Errors
    /// What was not made so.
    pub fn handed(mut self, bytes: &[u8]) -> Result<Self, InitError> {
        let all = Pem::all(bytes)
            .ok_or_else(|| InitError::Tls { reason: "what was handed over is no certificates".into() })?;
        for (signal, pem) in Signal::ALL.into_iter().zip(all) {
            let secured = pem.map(|pem| Secured::new(pem, &self.named(signal), false)).transpose()?;
            self.opened.0[signal as usize] = secured.map(Arc::new);
        }
        Ok(self)
    }

    /// A line on each collector on another machine that is told everything in plain text.
    #[must_use]
    pub fn plaintext(&self) -> Vec<String> {
        let mut hosts: Vec<String> = Vec::new();
        for url in Signal::ALL.into_iter().filter_map(|signal| self.url(signal).ok().flatten()) {
            let host = host(&url);
            if !is_secured(&url) && !is_this_machine(host) && !hosts.iter().any(|known| known == host) {
                hosts.push(host.to_owned());
            }
        }
        let line = |host| {
            format!(
                "telemetry goes to {host} in plain text: whoever is on the way can read it, and change it; name the collector by https://"
            )
        };
        hosts.into_iter().map(line).collect()
    }

    /// What a signal's collector is spoken to with; `None` for plain text.
    pub(super) fn secured(&self, signal: Signal, url: &str) -> Result<Option<Arc<Secured>>, InitError> {
        if !is_secured(url) {
            return Ok(None);
        }
        match &self.opened.0[signal as usize] {
            Some(read) => Ok(Some(Arc::clone(read))),
            None => {
                let named = self.named(signal);
                let pem = Pem::read(&named, |source| source.read(is_mine))?;
                Secured::new(pem, &named, false).map(|secured| Some(Arc::new(secured)))
            }
        }
    }

    fn named(&self, signal: Signal) -> Named {
        Named::new(&self.export(signal).files, &self.settings.files)
    }
}

fn is_secured(url: &str) -> bool {
    url.starts_with("https://")
}

/// The host in a URL, without port, brackets, or a user's name.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    match place.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => place.split(':').next().unwrap_or_default(),
    }
}

fn is_this_machine(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::super::source::Part;
    use super::super::{Export, Files};
    use super::*;

    fn with_endpoint(url: &str) -> Environment {
        Environment { endpoint: Some(url.to_owned()), ..Environment::default() }
    }

    #[test]
    fn a_host_is_found_in_any_url() {
        for (url, expected) in [
            ("http://c:4318/v1/traces", "c"),
            ("http://c", "c"),
            ("http://me:secret@c.example:1?x@y", "c.example"),
            ("https://[2001:db8::1]:4317", "2001:db8::1"),
            ("http://127.0.0.1#@c", "127.0.0.1"),
        ] {
            assert_eq!(host(url), expected, "{url}");
        }
    }

    /// Invariant 3 of [`super::super`]: said once a host, and not of this machine or over TLS.
    #[test]
    fn plain_text_to_another_machine_is_said() {
        for quiet in ["http://127.0.0.1:4318", "http://localhost:1", "http://[::1]:1", "https://c:4318"] {
            assert_eq!(with_endpoint(quiet).plaintext(), Vec::<String>::new(), "{quiet}");
        }
        assert_eq!(Environment::default().plaintext(), Vec::<String>::new());
        let own = Export { endpoint: Some("http://10.0.0.9:1/x".into()), ..Export::default() };
        let said = Environment { logs: own, ..with_endpoint("http://me:secret@c:4318") }.plaintext();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains(" c ") && said[1].contains(" 10.0.0.9 "), "{said:?}");
        assert!(said.iter().all(|line| line.contains("https://") && !line.contains("secret")), "{said:?}");
    }

    /// A signal's own file comes first; what is not needed is not read, and what was handed over is not looked for.
    #[test]
    fn files_are_those_of_secured_collectors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let ca = rcgen::generate_simple_self_signed(["c".to_owned()]).unwrap().cert.pem();
        std::fs::write(&path, &ca).unwrap();
        let files = |path: &std::path::Path| Files { certificate: Some(path.into()), ..Files::default() };
        let settings = super::super::Settings { files: files(&path), ..Default::default() };
        let own = Export { files: files("/own".as_ref()), ..Export::default() };
        let told = |url: &str| {
            Environment { traces: own.clone(), ..with_endpoint(url) }.with_settings(settings.clone())
        };
        assert!(told("https://c").open(is_mine).unwrap_err().to_string().contains("/own"));
        let for_others = |told: Environment| told.open_for_others(|source| source.read(is_mine));
        let plain = for_others(told("http://c")).unwrap().opened.to_bytes();
        assert!(plain.is_none(), "plain text needs none");
        let good = for_others(with_endpoint("https://c").with_settings(settings.clone())).unwrap();
        assert_eq!(good.opened.pem().unwrap().certificate.as_ref().unwrap().as_str(), ca);
        let bytes = good.opened.to_bytes().unwrap();
        std::fs::remove_file(&path).unwrap();
        let other = with_endpoint("https://c").with_settings(settings);
        let there = other.clone().handed(&bytes).unwrap();
        for signal in Signal::ALL {
            assert!(there.secured(signal, "https://c").unwrap().is_some(), "from memory");
        }
        assert!(there.opened.pem().is_none(), "whoever hands nothing on keeps no key's text");
        assert!(other.clone().open(is_mine).is_err() && other.clone().handed(b"[]").is_err());
        for end in [0, 1, 4, 5, bytes.len() - 1] {
            assert!(other.clone().handed(&bytes[..end]).is_err(), "cut after {end}");
        }
        assert!(other.handed(&[&bytes[..], b"\0"].concat()).is_err(), "more than there is");
        let both = Named::new(
            &files("/a".as_ref()),
            &Files { client_key: Some("/k".into()), ..files("/b".as_ref()) },
        );
        let (own, key) = (both.get(Part::Certificate).unwrap(), both.get(Part::ClientKey).unwrap());
        assert_eq!((own.path(), own.key()), ("/a".as_ref(), None));
        assert_eq!((key.path(), key.key()), ("/k".as_ref(), Some("telemetry.client_key")));
    }
}
