use std::os::unix::fs::PermissionsExt as _;

use std::path::PathBuf;

use super::super::source::{Files, MOST};
use super::*;

/// A folder with a certificate, its key, and another key.
struct Place {
    folder: tempfile::TempDir,
    certificate: String,
    key: String,
    other: String,
}

impl Place {
    fn new() -> Place {
        let made = || rcgen::generate_simple_self_signed(["collector".to_owned()]).unwrap();
        let (one, other) = (made(), made());
        Place {
            folder: tempfile::tempdir().unwrap(),
            certificate: one.cert.pem(),
            key: one.signing_key.serialize_pem(),
            other: other.signing_key.serialize_pem(),
        }
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn link(&self, name: &str, to: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::os::unix::fs::symlink(self.folder.path().join(to), &path).unwrap();
        path
    }

    fn ca(&self) -> PathBuf {
        self.write("ca.pem", &self.certificate, 0o644)
    }
}

fn read(files: &Files) -> Result<Secured, InitError> {
    let named = Named::new(files, &Files::default());
    let pem = Pem::read(&named, |source| source.read(is_mine))?;
    Secured::new(pem, &named, true)
}

fn refused(files: &Files) -> String {
    match read(files) {
        Ok(_) => panic!("{files:?} is taken"),
        Err(error) => error.to_string(),
    }
}

/// Invariant 2: what cannot be used is an error that names the file, and who named it.
#[test]
fn what_is_no_certificate_ends_the_start() {
    let place = Place::new();
    let good = Files { certificate: Some(place.ca()), ..Files::default() };
    assert!(read(&good).is_ok());
    let long = "x".repeat(MOST as usize + 1);
    for (path, reason) in [
        (place.folder.path().join("none"), "No such file"),
        (place.folder.path().to_owned(), "no file"),
        (place.write("empty", "", 0o644), "no certificate"),
        (place.write("key", &place.key, 0o644), "no certificate"),
        (place.write("cut", &place.certificate.replace("-----END", "----"), 0o644), ""),
        (place.write("long", &long, 0o644), "MiB"),
        (place.write("anybodys", &place.certificate, 0o646), "chmod go-w"),
    ] {
        let said = refused(&Files { certificate: Some(path.clone()), ..Files::default() });
        assert!(said.contains(reason) && said.contains(path.to_str().unwrap()), "{said}");
        assert!(said.contains("OTEL_EXPORTER_OTLP_CERTIFICATE") && said.contains("telemetry.certificate"));
    }
}

/// Invariants 2 and 3.
#[test]
fn a_certificate_to_show_has_a_key_of_its_own_that_is_nobody_elses() {
    let place = Place::new();
    let (certificate, key) = (place.ca(), place.write("key.pem", &place.key, 0o600));
    let files = |certificate: Option<PathBuf>, key: Option<PathBuf>| Files {
        certificate: Some(place.ca()),
        client_certificate: certificate,
        client_key: key,
    };
    assert!(read(&files(Some(certificate.clone()), Some(key.clone()))).is_ok());
    let alone = refused(&files(Some(certificate.clone()), None));
    assert!(alone.contains("private key") && alone.contains("CLIENT_CERTIFICATE"), "{alone}");
    let alone = refused(&files(None, Some(key)));
    assert!(alone.contains("certificate is not named") && alone.contains("CLIENT_KEY"), "{alone}");
    for (key, reason) in [
        (place.write("open.pem", &place.key, 0o640), "chmod 600"),
        (place.link("link.pem", "key.pem"), "symbolic link"),
        (place.write("other.pem", &place.other, 0o600), "other.pem"),
        (place.write("none.pem", &place.certificate, 0o600), "no private key"),
    ] {
        let said = refused(&files(Some(certificate.clone()), Some(key)));
        assert!(said.contains(reason) && said.contains("CLIENT_KEY"), "{said}");
        assert!(!said.contains("PRIVATE KEY"), "{said}");
    }
}

#[test]
fn the_systems_own_are_trusted_where_none_is_named() {
    let place = Place::new();
    let bundle = place.ca();
    let found = of_the_system(&["/no/such/bundle", bundle.to_str().unwrap()]).unwrap();
    assert_eq!(found.roots.len(), 1);
    let none = of_the_system(&["/no/such/bundle"]).unwrap_err().to_string();
    assert!(none.contains("/no/such/bundle") && none.contains("OTEL_EXPORTER_OTLP_CERTIFICATE"), "{none}");
    let empty = place.write("empty.pem", "", 0o644);
    assert!(of_the_system(&[empty.to_str().unwrap()]).is_err());
}

/// Invariant 3: a parser's words hold the line that it refuses, and that is the whole key where its line breaks were lost.
#[test]
fn no_message_shows_what_is_in_a_file() {
    let place = Place::new();
    let secret = place.key.lines().nth(1).unwrap().get(..24).unwrap();
    let in_numbers = format!("{:?}", secret.as_bytes());
    let in_numbers = in_numbers.trim_matches(['[', ']']);
    // Out of a JSON or YAML file, and out of a shell.
    for breaks in ["\\n", " "] {
        let key = place.write("lost.pem", &place.key.replace('\n', breaks), 0o600);
        let shown = |certificate: PathBuf, key: PathBuf| Files {
            certificate: None,
            client_certificate: Some(certificate),
            client_key: Some(key),
        };
        let good = place.write("good.pem", &place.key, 0o600);
        for files in [
            Files { certificate: Some(place.ca()), ..shown(place.ca(), key.clone()) },
            Files { certificate: Some(place.ca()), ..shown(key.clone(), good) },
            Files { certificate: Some(key.clone()), ..Files::default() },
        ] {
            let said = refused(&files);
            assert!(said.contains("lost.pem") && said.contains("line breaks"), "{said}");
            assert!(!said.contains(secret) && !said.contains(in_numbers), "{said}");
            assert!(!said.contains("45, 45, 45"), "{said}");
        }
    }
}

/// Invariants 1 and 2 of [`super::super::source`].
#[test]
fn a_key_is_its_readers_own_and_nobody_waits_for_a_pipe() {
    let place = Place::new();
    let key = place.write("key.pem", &place.key, 0o600);
    let files = Files { client_key: Some(key), ..Files::default() };
    let source = Named::new(&Files::default(), &files).of(Part::ClientKey);
    assert_eq!(source.read(is_mine).unwrap().as_str(), place.key);
    let theirs = source.read(|_| false).unwrap_err().to_string();
    assert!(theirs.contains("another user's") && theirs.contains("telemetry.client_key"), "{theirs}");
    assert!(theirs.contains("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY"), "{theirs}");
    let ca = place.ca();
    let link = Files { certificate: Some(place.link("link.pem", "ca.pem")), ..Files::default() };
    assert!(ca.exists() && read(&link).is_ok(), "systems' bundles are links");
    let pipe = place.folder.path().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, pipe.as_path(), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    for files in [
        Files { certificate: Some(pipe.clone()), ..Files::default() },
        Files { certificate: Some(ca.clone()), client_certificate: Some(ca), client_key: Some(pipe) },
    ] {
        assert!(refused(&files).contains("no file"));
    }
}
