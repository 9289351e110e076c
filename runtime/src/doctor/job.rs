//! A signed job: whether its signature holds, and whether the cluster file beside it still means the same.

use std::path::Path;

use testudo_actors::job::MAX_SIGNED_JOB;
use testudo_actors::{JobError, JobSpec, SignedJob};
use testudo_transport::{Identity, PkiError};

use super::cluster::Read;
use super::{Found, Report, shown};

/// Looks at the signed job in `file`, as one of the nodes found would.
pub(super) fn look(report: &mut Report, file: &Path, clusters: &[Read], identities: &[Found]) {
    let place = shown(file);
    let length = std::fs::metadata(file).map_or(0, |found| found.len());
    if length > u64::from(MAX_SIGNED_JOB) {
        let what = format!("has {length} bytes, a signed job at most {MAX_SIGNED_JOB}");
        return report.problem(place, what, "sign the job anew: testudo job");
    }
    let signed = std::fs::read(file).map_err(|e| e.to_string());
    let signed = signed.and_then(|bytes| SignedJob::from_bytes(&bytes).map_err(|e| e.to_string()));
    let signed = match signed {
        Ok(signed) => signed,
        Err(why) => return report.problem(place, why, "sign the job anew: testudo job"),
    };
    let nodes: Vec<Identity> = identities.iter().filter_map(|found| load(found).ok()).collect();
    let Some(first) = nodes.first() else {
        let what = "its signature cannot be checked: no identity here can be used";
        return report.warning(place, what, "mend an identity first, then look again");
    };
    // Identities of other jobs may lie here too: any that accepts it will do.
    let opened: Result<JobSpec, JobError> =
        nodes.iter().find_map(|node| signed.open(node).ok()).map_or_else(|| signed.open(first), Ok);
    match opened {
        Ok(job) => compare(report, file, &job, clusters),
        Err(why) => report.problem(place, why, "have an operator of this job sign it anew: testudo job"),
    }
}

fn load(found: &Found) -> Result<Identity, PkiError> {
    Identity::load_files(&found.files.ca, &found.files.cert, &found.files.key)
}

fn compare(report: &mut Report, file: &Path, job: &JobSpec, clusters: &[Read]) {
    let beside = clusters.iter().find(|read| {
        let named = read.file.with_extension("job") == file;
        named || read.file.parent() == file.parent() && clusters.len() == 1
    });
    let place = shown(file);
    let Some((read, described)) = beside.and_then(|read| Some((read, read.job()?))) else {
        return report.good(place, format!("signed by an operator of job `{}`", job.name));
    };
    if described.data != job.data {
        let what = format!("was signed for other data than {} names", shown(&read.file));
        report.problem(&place, what, "bring the data that was signed, or sign the job anew: testudo job");
    }
    let same_but_data = JobSpec { data: job.data.clone(), ..described };
    if same_but_data != *job {
        let what = format!("says something else than {} does now", shown(&read.file));
        report.problem(&place, what, "nodes follow the signed job: sign it anew, or undo the change");
    } else if same_but_data.data == job.data {
        report.good(place, "signed by an operator, and the cluster file still says the same");
    }
}
