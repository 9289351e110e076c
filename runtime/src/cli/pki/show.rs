//! `testudo pki show`: certificates, requests, and what a CA issued.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};
use testudo_transport::pki::{self, Issued, REGISTER_FILE, Register, Request};

use crate::error::Failure;
use crate::say::say;

pub(super) fn show(path: &Path, json: bool) -> Result<(), Failure> {
    let files = if path.is_dir() { shown_in(path)? } else { vec![path.to_owned()] };
    let mut all = Vec::new();
    for file in &files {
        let (text, values) = one(file)?;
        if !json {
            say!("{}\n{text}\n", file.display());
        }
        all.extend(values);
    }
    if path.join(REGISTER_FILE).is_file() {
        let now = SystemTime::now();
        for issued in Register::of(path).read().map_err(Failure::misconfigured)? {
            if !json {
                say!("{}", line(&issued, now));
            }
            all.push(json!({
                "file": path.join(REGISTER_FILE),
                "id": issued.id,
                "serial": issued.serial,
                "not_after": issued.not_after,
                "key_sha256": issued.spki_sha256,
                "live": issued.is_live(now),
            }));
        }
    }
    if json {
        say!("{}", Value::Array(all));
    }
    Ok(())
}

/// One file, for a person and for a program.
fn one(file: &Path) -> Result<(String, Vec<Value>), Failure> {
    let pem = std::fs::read(file).map_err(|e| Failure::file(file, "cannot be read", e))?;
    let at = |why: pki::PkiError| Failure::misconfigured(format!("{}: {why}", file.display()));
    if String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE REQUEST-----") {
        let request = Request::from_pem(&pem).map_err(at)?;
        let kind = if request.is_renewal() { "request to renew" } else { "request" };
        let (id, key) = (request.id(), request.key_sha256());
        let text = format!("identity     {id}\nkind         {kind}\nkey sha256   {key}");
        let value = json!({ "file": file, "id": id, "request": true, "renewal": request.is_renewal(), "key_sha256": key });
        return Ok((text, vec![value]));
    }
    if String::from_utf8_lossy(&pem).contains("-----BEGIN X509 CRL-----") {
        let lists = pki::describe_crl(&pem).map_err(|why| at(why.into()))?;
        let values = lists.iter().map(|info| {
            json!({
                "file": file,
                "crl": true,
                "issuer": info.issuer,
                "number": info.number.to_string(),
                "this_update": info.this_update,
                "next_update": info.next_update,
                "revoked": info.revoked.iter().map(ToString::to_string).collect::<Vec<_>>(),
            })
        });
        return Ok((joined(&lists), values.collect()));
    }
    let shown = pki::describe_all(&pem).map_err(at)?;
    let value = shown.iter().map(|info| {
        json!({
            "file": file,
            "id": info.id,
            "ca": info.is_ca,
            "serial": info.serial,
            "issuer": info.issuer,
            "not_before": info.not_before,
            "not_after": info.not_after,
            "key": info.key_type,
            "fingerprint": info.fingerprint,
        })
    });
    Ok((joined(&shown), value.collect()))
}

/// Each as it describes itself, one below the other.
fn joined(all: &[impl Display]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n")
}

fn line(issued: &Issued, now: SystemTime) -> String {
    let left = i64::try_from(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs())
        .map_or(0, |now| issued.not_after.saturating_sub(now));
    let state = if left > 0 { format!("{} min left", left / 60) } else { "ended".to_owned() };
    format!("issued  {:<16}  serial {}  {state}", issued.id.short(), issued.serial)
}

/// The certificates and requests in a folder.
fn shown_in(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let unreadable = |e| Failure::file(dir, "cannot be read", e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let is_pem = path.extension().is_some_and(|e| e == "pem");
        let is_key = path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("key"));
        if is_pem && !is_key {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Failure::misconfigured(format!("{}: no certificate (.pem) in it", dir.display())));
    }
    Ok(files)
}
