//! Lists of revoked certificates: whether they are there, whose they are, how long they last, and who is in them.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use testudo_transport::pki::{
    CA_FILE, CLOCK_SKEW, CRL_FILE, Crl, CrlError, CrlInfo, Serial, certificate_der, describe, describe_crl,
    read_crl,
};

use super::identity::{self, Kind, span};
use super::{Found, Report, shown};

/// The list that a cluster file names, for the identities that were found.
pub(super) fn look(report: &mut Report, list: &Path, identities: &[Found], now: SystemTime) {
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
    let mut authorities: Vec<&PathBuf> = identities.iter().map(|found| &found.files.ca).collect();
    authorities.sort();
    authorities.dedup_by_key(|ca| std::fs::read(ca).ok());
    let judged: Vec<_> = authorities.into_iter().filter_map(|ca| Some((ca, of(&bytes, ca)?))).collect();
    // Identities of other jobs are told of elsewhere: one CA must know it.
    let read = judged.iter().find_map(|(_, judged)| judged.as_ref().ok());
    match (describe_crl(&bytes), judged.first()) {
        (Err(why), _) => return malformed(report, list, &why),
        (Ok(_), Some((ca, Err(why)))) if read.is_none() => return foreign(report, list, ca, why),
        (Ok(info), _) => time(report, list, &info, now),
    }
    let Some(crl) = read else { return };
    for found in identities {
        let serial = std::fs::read(&found.files.cert).ok().and_then(|pem| describe(&pem).ok());
        let serial = serial.and_then(|info| Serial::from_hex(&info.serial).ok());
        if serial.is_some_and(|serial| crl.has(&serial)) {
            let what = format!("{} is revoked by {}", found.id.short(), shown(list));
            let fix = "have the operator issue a new identity, if this node is to take part again";
            report.problem(shown(&found.files.cert), what, fix);
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
    match (describe_crl(&bytes), of(&bytes, &ca)) {
        (Err(why), _) => malformed(report, &list, &why),
        (Ok(_), Some(Err(why))) => foreign(report, &list, &ca, &why),
        (Ok(info), _) => time(report, &list, &info, now),
    }
}

/// `None` if the CA's certificate cannot be read, which is told elsewhere.
fn of(bytes: &[u8], ca: &Path) -> Option<Result<Crl, CrlError>> {
    let ca = std::fs::read(ca).ok().and_then(|pem| certificate_der(&pem).ok())?;
    Some(Crl::read(bytes, &ca))
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
