//! Lists of revoked certificates: whether they are there, whose they are, how long they last, and who is in them.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use testudo_transport::pki::{
    CA_FILE, CLOCK_SKEW, CRL_FILE, CertificateInfo, Crl, CrlError, CrlInfo, Serial, bundle_der, chain_der,
    describe_all, describe_crl, read_crl,
};

use super::identity::{self, Kind, span};
use super::{Found, Report, shown};
use crate::config::Revocation;

/// The list that a cluster file names, for the identities that were found.
pub(super) fn look(
    report: &mut Report,
    list: &Path,
    policy: Revocation,
    identities: &[Found],
    now: SystemTime,
) {
    if std::fs::symlink_metadata(list).is_err() {
        let what = "is not there, so no node starts: `security.crl` names it";
        return report.problem(
            shown(list),
            what,
            "copy the CA's there (`testudo pki crl --ca CA` writes it)",
        );
    }
    identity::privacy(report, list, Kind::Public);
    // Without permission to read it there is no more to say.
    let Ok(bytes) = read_crl(list) else { return };
    let judged: Vec<_> = identities
        .iter()
        .map(|found| &found.files)
        .filter_map(|files| Some((&files.ca, of(&bytes, &files.ca, Some(&files.cert))?)))
        .collect();
    // Identities of other jobs are told of elsewhere: one CA must know it.
    let read = judged.iter().find_map(|(_, judged)| judged.as_ref().ok());
    match (describe_crl(&bytes), judged.first()) {
        (Err(why), _) => return malformed(report, list, &why),
        (Ok(_), Some((ca, Err(why)))) if read.is_none() => return foreign(report, list, ca, why),
        (Ok(lists), _) => lists.iter().for_each(|info| time(report, list, info, now)),
    }
    let Some(lists) = read else { return };
    if policy == Revocation::Required {
        bare(report, list, lists, identities);
    }
    for found in identities {
        let pem = std::fs::read(&found.files.cert).unwrap_or_default();
        let certificates = describe_all(&pem).unwrap_or_default();
        let is_revoked = certificates.iter().any(|info| {
            let serial = Serial::from_hex(&info.serial).ok();
            serial.is_some_and(|serial| {
                lists.iter().any(|crl| crl.issuer_name() == info.issuer && crl.has(&serial))
            })
        });
        if is_revoked {
            let what = format!("{} is revoked by {}", found.id.short(), shown(list));
            let fix = "have the operator issue a new identity, if this node is to take part again";
            report.problem(shown(&found.files.cert), what, fix);
        }
    }
}

/// CAs that have no list in the file: where lists are required, whom they certified is refused.
fn bare(report: &mut Report, list: &Path, lists: &[Crl], identities: &[Found]) {
    let read = |file: &Path| {
        let pem = std::fs::read(file).unwrap_or_default();
        describe_all(&pem).unwrap_or_default()
    };
    let mut named: BTreeSet<String> = lists.iter().map(Crl::issuer_name).collect();
    let read: Vec<_> =
        identities.iter().map(|found| (found, read(&found.files.cert), read(&found.files.ca))).collect();
    for (found, certificates, anchors) in &read {
        // A trusted CA that comes with the node's certificate, too, needs no signature, and so no list of who signed it.
        let is_between =
            |info: &&CertificateInfo| anchors.iter().all(|ca| ca.fingerprint != info.fingerprint);
        for issuer in certificates.iter().filter(is_between).map(|info| &info.issuer) {
            if named.insert(issuer.clone()) {
                let what = format!(
                    "has no list of the CA {issuer}, which the certificate of {} is of: with security.revocation = \
                     \"required\" the node takes none of its lists, and does not start",
                    found.id.short()
                );
                let fix = "add that CA's list to the file (PEM, one after the other), or set security.revocation = \
                           \"short-lived\" if it publishes none";
                report.problem(shown(list), what, fix);
            }
        }
    }
    for (found, _, anchors) in &read {
        for ca in anchors {
            if named.insert(ca.subject.clone()) {
                let what = format!(
                    "has no list of the CA {}, which is trusted by {}: with security.revocation = \"required\" every node \
                     that it certified is refused",
                    ca.subject,
                    shown(&found.files.ca)
                );
                let fix = "add that CA's list to the file (PEM, one after the other), take the CA out of the bundle, or set \
                           security.revocation = \"short-lived\" if it publishes none";
                report.warning(shown(list), what, fix);
            }
        }
    }
}

/// The list in a CA's own folder, if it has one.
pub(super) fn authority(report: &mut Report, folder: &Path, now: SystemTime) {
    let (list, ca) = (folder.join(CRL_FILE), folder.join(CA_FILE));
    if std::fs::symlink_metadata(&list).is_err() {
        return;
    }
    identity::privacy(report, &list, Kind::Public);
    let Ok(bytes) = read_crl(&list) else { return };
    match (describe_crl(&bytes), of(&bytes, &ca, None)) {
        (Err(why), _) => malformed(report, &list, &why),
        (Ok(_), Some(Err(why))) => foreign(report, &list, &ca, &why),
        (Ok(lists), _) => lists.iter().for_each(|info| time(report, &list, info, now)),
    }
}

/// `None` if the CAs' certificates cannot be read, which is told elsewhere. `cert` is of a node: the CAs that it comes through may
/// have lists, too.
fn of(bytes: &[u8], ca: &Path, cert: Option<&Path>) -> Option<Result<Vec<Crl>, CrlError>> {
    let ca = std::fs::read(ca).ok().and_then(|pem| bundle_der(&pem).ok())?;
    let chain = cert.and_then(|cert| std::fs::read(cert).ok()).and_then(|pem| chain_der(&pem).ok());
    Some(Crl::read_for(bytes, &ca, chain.as_deref()))
}

const RESTORE: &str =
    "copy the CA's crl.pem there; restore a lost one from a node, so that its numbers go on";

fn malformed(report: &mut Report, list: &Path, why: &CrlError) {
    report.problem(shown(list), format!("is no list of revoked certificates: {why}"), RESTORE);
}

fn foreign(report: &mut Report, list: &Path, ca: &Path, why: &CrlError) {
    report.problem(shown(list), format!("is not for {}: {why}", shown(ca)), RESTORE);
}

fn time(report: &mut Report, list: &Path, crl: &CrlInfo, now: SystemTime) {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().cast_signed();
    let left = crl.next_update.saturating_sub(now);
    let life = crl.next_update.saturating_sub(crl.this_update);
    let next = "write the next one with `testudo pki crl --ca CA`, and put it here";
    if left <= 0 {
        let what = format!("ended {} ago: nodes trust nobody", span(-left));
        report.problem(shown(list), what, next);
    } else if crl.this_update > now.saturating_add(CLOCK_SKEW.as_secs().cast_signed()) {
        let what = format!("begins only in {}", span(crl.this_update - now));
        let fix = "set this machine's clock (`timedatectl`): it is behind the operator's";
        report.problem(shown(list), what, fix);
    } else if left < life / 4 {
        let what = format!("ends in {}; then nodes trust nobody", span(left));
        report.warning(shown(list), what, next);
    } else {
        let what = format!("list {}: {} revoked, for {} more", crl.number, crl.revoked.len(), span(left));
        report.good(shown(list), what);
    }
}
