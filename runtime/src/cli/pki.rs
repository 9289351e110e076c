//! `testudo pki`: the identities of a job.

use std::path::{Path, PathBuf};
use std::time::Duration;

use testudo_transport::{JobCa, Role, SpiffeId};

use crate::cli::args::{PkiArguments, PkiCommand};
use crate::error::Failure;

pub(super) fn pki(arguments: &PkiArguments) -> Result<(), Failure> {
    match &arguments.command {
        PkiCommand::Init { dir, job, trust_domain, days } => {
            let validity = Duration::from_secs(u64::from(*days) * 86_400);
            let ca = JobCa::create(trust_domain, job, validity).map_err(Failure::misconfigured)?;
            ca.save(dir).map_err(Failure::failed)?;
            println!("certificate authority of job {job} in {}", dir.display());
            println!(
                "keep its key offline; issue identities with: testudo pki issue --ca {} ...",
                dir.display()
            );
            Ok(())
        }
        PkiCommand::Issue { ca, role, name, out, hours } => {
            let ca = JobCa::load(ca).map_err(Failure::misconfigured)?;
            let role: Role = role.parse().map_err(Failure::misconfigured)?;
            let trust = ca.trust();
            let id = SpiffeId::new(trust.trust_domain(), trust.job(), role, name)
                .map_err(Failure::misconfigured)?;
            let validity = Duration::from_secs(u64::from(*hours) * 3600);
            let identity = ca.issue(&id, validity).map_err(Failure::failed)?;
            identity.save(out).map_err(Failure::failed)?;
            println!("{id} in {}", out.display());
            Ok(())
        }
        PkiCommand::Show { path, json } => show(path, *json),
    }
}

fn show(path: &Path, json: bool) -> Result<(), Failure> {
    let files = if path.is_dir() { certificates_in(path)? } else { vec![path.to_owned()] };
    let mut shown = Vec::new();
    for file in &files {
        let pem = std::fs::read(file).map_err(|e| Failure::file(file, "cannot be read", e))?;
        let info = testudo_transport::pki::describe(&pem)
            .map_err(|e| Failure::misconfigured(format!("{}: {e}", file.display())))?;
        if json {
            shown.push(serde_json::json!({
                "file": file,
                "id": info.id,
                "ca": info.is_ca,
                "serial": info.serial,
                "issuer": info.issuer,
                "not_before": info.not_before,
                "not_after": info.not_after,
                "key": info.key_type,
                "fingerprint": info.fingerprint,
            }));
        } else {
            println!("{}\n{info}\n", file.display());
        }
    }
    if json {
        println!("{}", serde_json::Value::Array(shown));
    }
    Ok(())
}

fn certificates_in(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let unreadable = |e| Failure::file(dir, "cannot be read", e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let is_pem = path.extension().is_some_and(|e| e == "pem");
        if is_pem && path.file_stem().is_none_or(|stem| stem != "key") {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Failure::misconfigured(format!("{}: no certificate (.pem) in it", dir.display())));
    }
    Ok(files)
}
