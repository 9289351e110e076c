use std::os::unix::fs::PermissionsExt as _;

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

    fn ca(&self) -> PathBuf {
        self.write("ca.pem", &self.certificate, 0o644)
    }
}

fn refused(files: &Files) -> String {
    match Secured::read(files) {
        Ok(_) => panic!("{files:?} is taken"),
        Err(error) => error.to_string(),
    }
}

/// Invariant 2: what cannot be used is an error that names the file, and who named it.
#[test]
fn what_is_no_certificate_ends_the_start() {
    let place = Place::new();
    let good = Files { certificate: Some(place.ca()), ..Files::default() };
    assert!(Secured::read(&good).is_ok());
    let long = "x".repeat(MOST as usize + 1);
    for (path, reason) in [
        (place.folder.path().join("none"), "No such file"),
        (place.folder.path().to_owned(), "no file"),
        (place.write("empty", "", 0o644), "no certificate"),
        (place.write("key", &place.key, 0o644), "no certificate"),
        (place.write("cut", &place.certificate.replace("-----END", "----"), 0o644), ""),
        (place.write("long", &long, 0o644), "MiB"),
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
    assert!(Secured::read(&files(Some(certificate.clone()), Some(key.clone()))).is_ok());
    let alone = refused(&files(Some(certificate.clone()), None));
    assert!(alone.contains("private key") && alone.contains("CLIENT_CERTIFICATE"), "{alone}");
    let alone = refused(&files(None, Some(key)));
    assert!(alone.contains("certificate is not named") && alone.contains("CLIENT_KEY"), "{alone}");
    for (key, reason) in [
        (place.write("open.pem", &place.key, 0o640), "chmod 600"),
        (place.write("other.pem", &place.other, 0o600), "other.pem"),
        (place.write("none.pem", &place.certificate, 0o600), "none.pem"),
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
