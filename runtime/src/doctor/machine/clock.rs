//! Whether the clock can be right: certificates are good for hours, by the clock.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use testudo_transport::pki::CLOCK_SKEW;

use super::PLACE;
use crate::doctor::Report;
use crate::doctor::identity::span;
use crate::rundir::timestamp;

/// 2026-01-01: before it there was no Testudo.
const FIRST: Duration = Duration::from_secs(1_767_225_600);
/// How far in the future this program's file may be: builds in another time zone, clocks that were set since.
const WRITTEN_AHEAD: Duration = Duration::from_secs(24 * 3600);
/// Where systemd's client of time servers says that one has set the clock.
const SYSTEMD: &str = "/run/systemd/timesync";

/// What was found out.
#[derive(Debug)]
pub(super) struct Readings {
    now: SystemTime,
    /// When this program's file was written.
    written: Option<SystemTime>,
    /// Whether a time server has set the clock; `None` if nobody says.
    is_set: Option<bool>,
}

pub(super) fn read() -> Readings {
    let program = std::env::current_exe().and_then(std::fs::metadata).and_then(|found| found.modified());
    let systemd = Path::new(SYSTEMD);
    let is_set = systemd.is_dir().then(|| systemd.join("synchronized").exists());
    Readings { now: SystemTime::now(), written: program.ok(), is_set }
}

pub(super) fn judge(report: &mut Report, readings: &Readings) {
    let fix =
        "set the clock (`date -s`), and have a time server keep it: timedatectl set-ntp true, or chrony";
    let Readings { now, written, is_set } = readings;
    let says = timestamp(*now);
    if *now < UNIX_EPOCH + FIRST {
        let what =
            format!("the clock says {says}, which was before this program: no certificate is good yet");
        return report.problem(PLACE, what, fix);
    }
    let ahead = written.and_then(|written| written.duration_since(*now).ok()).unwrap_or_default();
    if ahead > WRITTEN_AHEAD {
        let ahead = span(i64::try_from(ahead.as_secs()).unwrap_or(i64::MAX));
        let what =
            format!("the clock says {says}, and this program was written {ahead} later: the clock is behind");
        return report.warning(PLACE, what, fix);
    }
    let allowed = span(i64::try_from(CLOCK_SKEW.as_secs()).unwrap_or(i64::MAX));
    match is_set {
        Some(false) => {
            let what = format!(
                "the clock says {says}, and no time server has set it: nodes refuse certificates by a clock that is more than {allowed} off"
            );
            report.warning(PLACE, what, "timedatectl timesync-status says why; a time server must be reached");
        }
        Some(true) => report.good(PLACE, format!("the clock says {says}, as a time server set it")),
        None => report.good(
            PLACE,
            format!(
                "the clock says {says}; whether a time server keeps it cannot be seen here (it may be {allowed} off: compare with date -u \
                 elsewhere)"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Finding, Severity};

    fn found(now: u64, written: Option<u64>, is_set: Option<bool>) -> Finding {
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        let mut report = Report::default();
        judge(&mut report, &Readings { now: at(now), written: written.map(at), is_set });
        report.findings.remove(0)
    }

    #[test]
    fn a_clock_that_cannot_be_right_is_told() {
        let day = 24 * 3600;
        let now = FIRST.as_secs() + 300 * day;
        let old = found(0, None, None);
        assert!(old.severity == Severity::Problem && old.what.contains("19700101T000000Z"), "{old:?}");
        let behind = found(now, Some(now + 3 * day), Some(true));
        assert!(behind.severity == Severity::Warning && behind.what.contains("3 days later"), "{behind:?}");
        assert_eq!(found(now, Some(now + day), Some(true)).severity, Severity::Good, "another time zone");
        let unset = found(now, Some(now - day), Some(false));
        assert!(unset.severity == Severity::Warning && unset.what.contains("no time server"), "{unset:?}");
        assert!(found(now, None, None).what.contains("cannot be seen"));
    }
}
