//! Lines of the log have a rate: each place in the program that logs may write so many, and all places together, whatever makes it.
//!
//! A peer decides how often some lines are written. Each call site (each `tracing` macro in the source, of which there are as many
//! as were written) has a token bucket of its own, so that none can fill the disk. All draw on one more, because there are hundreds: its last
//! quarter is for those that have hardly written of late, so that those that are flooded silence no other. What
//! was left out is counted, and told in one line when the call site may write again, or when the log ends.
//!
//! Invariants:
//!
//! 1. Of one call site, at most [`BURST`] `+` [`PER_SECOND`] `* t` lines are written in any `t` seconds, and a line that tells
//!    what was left out before each.
//! 2. Of all together, at most [`TOTAL_BURST`] `+` [`TOTAL_PER_SECOND`] `* t`, and as many that tell what was left out.
//! 3. Nothing is left out in silence: once the log has ended, the counts that were told add up to what was left out.
//! 4. Memory is bounded by the call sites of the program, which no input adds to.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::Metadata;
use tracing::callsite::Identifier;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};

/// Lines of one call site at once: what a job of a thousand nodes may have to say when all of them join.
pub const BURST: u32 = 1024;
/// Lines of one call site a second, in the long run: some 100 MiB a day, if one is flooded for that long.
pub const PER_SECOND: u32 = 8;

/// Lines of all call sites at once: as many as sixteen have.
pub const TOTAL_BURST: u32 = 16 * BURST;
/// Lines of all call sites a second, in the long run: some 1.5 GiB a day, if all that a peer can provoke is provoked for that long.
pub const TOTAL_PER_SECOND: u32 = 16 * PER_SECOND;

/// Parts of a line that levels are counted in: what one a second gains in a microsecond.
const LINE: u64 = 1_000_000;
const FULL: u64 = BURST as u64 * LINE;
const TOTAL_FULL: u64 = TOTAL_BURST as u64 * LINE;
/// What of the total is kept for call sites that are not flooded: have had no more than [`QUIET`] to write of late.
const KEPT: u64 = TOTAL_FULL / 4;
/// A second's worth: the program has fewer call sites than [`KEPT`] has room for, when each writes so much.
const QUIET: u64 = PER_SECOND as u64 * LINE;

/// What may be written still, and since when that holds.
#[derive(Debug)]
struct Budget {
    level: u64,
    at: Duration,
    full: u64,
    per_second: u32,
}

impl Budget {
    fn full(full: u64, per_second: u32, now: Duration) -> Budget {
        Budget { level: full, at: now, full, per_second }
    }

    /// Whether it has a line, and `besides`.
    fn has(&mut self, now: Duration, besides: u64) -> bool {
        let micros = u64::try_from(now.saturating_sub(self.at).as_micros()).unwrap_or(u64::MAX);
        self.level =
            self.level.saturating_add(micros.saturating_mul(u64::from(self.per_second))).min(self.full);
        self.at = self.at.max(now);
        self.level >= besides.saturating_add(LINE)
    }

    fn take(&mut self) {
        self.level = self.level.saturating_sub(LINE);
    }
}

/// What a call site may write.
#[derive(Debug)]
struct Site {
    /// Where it is, for a person.
    place: String,
    budget: Budget,
    left_out: u64,
}

impl Site {
    fn new(place: String, now: Duration) -> Site {
        Site { place, budget: Budget::full(FULL, PER_SECOND, now), left_out: 0 }
    }

    /// Whether a line is written now, which `total` must allow too: if so, how many before it were not.
    fn write(&mut self, total: &mut Budget, now: Duration) -> Option<u64> {
        let may = self.budget.has(now, 0) && {
            let besides = if self.budget.level + QUIET < FULL { KEPT } else { 0 };
            // Taken whether the total allows it or not: a call site that is flooded does not seem quiet for being left out.
            self.budget.take();
            total.has(now, besides)
        };
        if !may {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        total.take();
        Some(std::mem::take(&mut self.left_out))
    }
}

/// All call sites that have written, and what they may write together.
struct Sites {
    total: Budget,
    by_place: HashMap<Identifier, Site>,
}

impl Sites {
    fn new() -> Sites {
        let total = Budget::full(TOTAL_FULL, TOTAL_PER_SECOND, Duration::ZERO);
        Sites { total, by_place: HashMap::new() }
    }
}

/// A log whose call sites have rates. Clones write to the same one.
#[derive(Clone)]
pub(crate) struct Limited(Arc<Inner>);

struct Inner {
    since: Instant,
    left_out: AtomicU64,
    sites: Mutex<Sites>,
    log: Mutex<Box<dyn Write + Send>>,
}

impl std::fmt::Debug for Limited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Limited")
    }
}

impl Limited {
    pub(crate) fn new(log: Box<dyn Write + Send>) -> Limited {
        let (left_out, sites) = (AtomicU64::new(0), Mutex::new(Sites::new()));
        Limited(Arc::new(Inner { since: Instant::now(), left_out, sites, log: Mutex::new(log) }))
    }

    /// How many lines were left out so far, told or not.
    pub(crate) fn left_out(&self) -> u64 {
        self.0.left_out.load(Ordering::Relaxed)
    }

    /// Whether a line of that place may be written now; if not, it is counted.
    pub(crate) fn allows(&self, metadata: &Metadata<'_>) -> bool {
        self.make_writer_for(metadata).0.is_some()
    }

    /// Tells what was left out and not told yet: the log ends.
    pub(crate) fn end(&self) {
        let mut log = self.log();
        for site in self.sites().by_place.values_mut().filter(|site| site.left_out > 0) {
            tell(&mut **log, &site.place, std::mem::take(&mut site.left_out));
        }
    }

    /// Writes a line that is no call site's, and is said once.
    pub(crate) fn say(&self, target: &str, what: &str) {
        warn(&mut **self.log(), target, what);
    }

    fn sites(&self) -> MutexGuard<'_, Sites> {
        self.0.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, Box<dyn Write + Send>> {
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line about lines that are not there.
fn tell(log: &mut dyn Write, place: &str, left_out: u64) {
    let what = format!("lines were left out place={place} left_out={left_out}");
    warn(log, "testudo_observability::limit", &what);
}

/// One line. A log that cannot be written is nothing that a log could tell.
fn warn(log: &mut dyn Write, target: &str, what: &str) {
    let mut time = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    let line = format!("{time}  WARN {target}: {what}\n");
    let _ = log.write_all(line.as_bytes());
}

impl<'a> MakeWriter<'a> for Limited {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(Some(self.log()))
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        let now = self.0.since.elapsed();
        let mut sites = self.sites();
        let Sites { total, by_place } = &mut *sites;
        let site = by_place.entry(metadata.callsite()).or_insert_with(|| {
            let (file, line) = (metadata.file().unwrap_or("?"), metadata.line().unwrap_or(0));
            Site::new(format!("{file}:{line}"), now)
        });
        let Some(left_out) = site.write(total, now) else {
            self.0.left_out.fetch_add(1, Ordering::Relaxed);
            return Line(None);
        };
        let place = (left_out > 0).then(|| site.place.clone());
        drop(sites);
        let mut log = self.log();
        if let Some(place) = place {
            tell(&mut **log, &place, left_out);
        }
        Line(Some(log))
    }
}

/// One line of the log, or one that is left out.
pub(crate) struct Line<'a>(Option<MutexGuard<'a, Box<dyn Write + Send>>>);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.as_mut().map_or(Ok(bytes.len()), |log| log.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.as_mut().map_or(Ok(()), |log| log.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total() -> Budget {
        Sites::new().total
    }

    /// How many of 5000 lines are written in that second, and how many they say were left out before.
    fn written(site: &mut Site, total: &mut Budget, second: u64) -> (usize, u64) {
        let now = Duration::from_secs(second);
        let told: Vec<u64> = (0..5000).filter_map(|_| site.write(total, now)).collect();
        (told.len(), told.iter().sum::<u64>())
    }

    /// Invariants 1 and 3.
    #[test]
    fn a_call_site_writes_a_burst_and_then_its_rate() {
        let (mut site, mut total) = (Site::new(String::new(), Duration::ZERO), total());
        assert_eq!(written(&mut site, &mut total, 0), (BURST as usize, 0));
        assert_eq!(site.left_out, 5000 - u64::from(BURST));
        assert_eq!(written(&mut site, &mut total, 1), (PER_SECOND as usize, 5000 - u64::from(BURST)));
        let later = written(&mut site, &mut total, 1_000_000);
        assert_eq!(later, (BURST as usize, 5000 - u64::from(PER_SECOND)));
    }

    /// Invariants 2 and 3: a hundred call sites are flooded, and another one is heard all the same.
    #[test]
    fn all_call_sites_together_have_a_burst_and_a_rate_and_leave_room_for_one_that_is_quiet() {
        let mut total = total();
        let mut flooded: Vec<Site> = (0..100).map(|_| Site::new(String::new(), Duration::ZERO)).collect();
        let (mut lines, mut told) = (0, 0);
        for second in 0..10 {
            for site in &mut flooded {
                let (more, before) = written(site, &mut total, second);
                (lines, told) = (lines + more, told + before);
            }
        }
        let most = (TOTAL_BURST + 9 * TOTAL_PER_SECOND) as usize;
        assert!(lines <= most, "{lines} lines of {most}");
        assert_eq!(
            lines as u64 + told + flooded.iter().map(|site| site.left_out).sum::<u64>(),
            100 * 10 * 5000
        );
        let mut quiet = Site::new(String::new(), Duration::ZERO);
        let heard = (0..PER_SECOND).filter(|_| quiet.write(&mut total, Duration::from_secs(9)).is_some());
        assert_eq!(heard.count(), PER_SECOND as usize);
    }
}
