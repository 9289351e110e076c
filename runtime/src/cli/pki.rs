//! `testudo pki`: the identities of a job.

pub(crate) mod enrol;
pub(crate) mod join;
mod show;

use std::time::Duration;

use serde_json::json;
use testudo_transport::{JobCa, pki};

use crate::cli::args::{PkiArguments, PkiCommand};
use crate::error::Failure;
use crate::say::say;

pub(super) fn pki(arguments: &PkiArguments) -> Result<(), Failure> {
    match &arguments.command {
        PkiCommand::Init { dir, job, trust_domain, days, json } => {
            let validity = Duration::from_secs(u64::from(*days) * 86_400);
            let ca = JobCa::create(trust_domain, job, validity).map_err(Failure::misconfigured)?;
            ca.save(dir).map_err(Failure::failed)?;
            if *json {
                let info = pki::describe(ca.certificate_pem().as_bytes()).map_err(Failure::failed)?;
                let object = json!({
                    "ca": dir, "job": job, "trust_domain": trust_domain, "not_after": info.not_after,
                });
                say!("{object}");
                return Ok(());
            }
            say!("certificate authority of job {job} in {}", dir.display());
            say!(
                "keep its key offline; grant nodes' requests with: testudo pki issue REQUEST --ca {} --as ROLE/INDEX ...",
                dir.display()
            );
            Ok(())
        }
        PkiCommand::Request(arguments) => enrol::request(arguments),
        PkiCommand::Issue(arguments) => enrol::issue(arguments),
        PkiCommand::Install(arguments) => enrol::install(arguments),
        PkiCommand::Renew(arguments) => enrol::renew(arguments),
        PkiCommand::Token(arguments) => join::token(arguments),
        PkiCommand::Serve(arguments) => join::serve(arguments),
        PkiCommand::Join(arguments) => join::join(arguments),
        PkiCommand::Revoke(arguments) => super::revoke::revoke(arguments),
        PkiCommand::Crl(arguments) => super::revoke::crl(arguments),
        PkiCommand::Show { path, json } => show::show(path, *json),
    }
}
