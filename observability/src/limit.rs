//! Lines of the log have a rate: each place in the program that logs may write so many, whatever makes it.
//!
//! A peer decides how often some lines are written. Each call site (each `tracing` macro in the source, of which there are as many
//! as were written) has a token bucket of its own, so that none can fill the disk, and one that is flooded silences no other. What
//! was left out is counted, and told in one line when the call site may write again, or when the log ends.
//!
//! Invariants:
//!
//! 1. Of one call site, at most [`BURST`] `+` [`PER_SECOND`] `* t` lines are written in any `t` seconds, and a line that tells
//!    what was left out before each.
//! 2. Nothing is left out in silence: once the log has ended, the counts that were told add up to what was left out.
//! 3. Memory is bounded by the call sites of the program, which no input adds to.

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

/// Parts of a line that levels are counted in: what one a second gains in a microsecond.
const LINE: u64 = 1_000_000;
const FULL: u64 = BURST as u64 * LINE;

/// What a call site may write.
#[derive(Debug)]
struct Site {
    /// Where it is, for a person.
    place: String,
    level: u64,
    at: Duration,
    left_out: u64,
}

impl Site {
    fn new(place: String, now: Duration) -> Site {
        Site { place, level: FULL, at: now, left_out: 0 }
    }

    /// Whether a line is written now: if so, how many before it were not.
    fn write(&mut self, now: Duration) -> Option<u64> {
        let micros = u64::try_from(now.saturating_sub(self.at).as_micros()).unwrap_or(u64::MAX);
        self.level = self.level.saturating_add(micros.saturating_mul(u64::from(PER_SECOND))).min(FULL);
        self.at = self.at.max(now);
        let Some(level) = self.level.checked_sub(LINE) else {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        };
        self.level = level;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// A log whose call sites have rates. Clones write to the same one.
#[derive(Clone)]
pub(crate) struct Limited(Arc<Inner>);

struct Inner {
    since: Instant,
    left_out: AtomicU64,
    sites: Mutex<HashMap<Identifier, Site>>,
    log: Mutex<Box<dyn Write + Send>>,
}

impl std::fmt::Debug for Limited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Limited")
    }
}

impl Limited {
    pub(crate) fn new(log: Box<dyn Write + Send>) -> Limited {
        let (left_out, sites) = Default::default();
        Limited(Arc::new(Inner { since: Instant::now(), left_out, sites, log: Mutex::new(log) }))
    }

    /// How many lines were left out so far, told or not.
    pub(crate) fn left_out(&self) -> u64 {
        self.0.left_out.load(Ordering::Relaxed)
    }

    /// Tells what was left out and not told yet: the log ends.
    pub(crate) fn end(&self) {
        let mut log = self.log();
        for site in self.sites().values_mut().filter(|site| site.left_out > 0) {
            tell(&mut **log, &site.place, std::mem::take(&mut site.left_out));
        }
    }

    fn sites(&self) -> MutexGuard<'_, HashMap<Identifier, Site>> {
        self.0.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, Box<dyn Write + Send>> {
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line about lines that are not there. A log that cannot be written is nothing that a log could tell.
fn tell(log: &mut dyn Write, place: &str, left_out: u64) {
    let mut time = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    let line = format!(
        "{time}  WARN testudo_observability::limit: lines were left out place={place} left_out={left_out}\n"
    );
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
        let site = sites.entry(metadata.callsite()).or_insert_with(|| {
            let (file, line) = (metadata.file().unwrap_or("?"), metadata.line().unwrap_or(0));
            Site::new(format!("{file}:{line}"), now)
        });
        let Some(left_out) = site.write(now) else {
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

    /// Invariants 1 and 2.
    #[test]
    fn a_call_site_writes_a_burst_and_then_its_rate() {
        let mut site = Site::new(String::new(), Duration::ZERO);
        let written = |site: &mut Site, seconds| {
            let told: Vec<u64> = (0..5000).filter_map(|_| site.write(Duration::from_secs(seconds))).collect();
            (told.len(), told.iter().sum::<u64>())
        };
        assert_eq!(written(&mut site, 0), (BURST as usize, 0));
        assert_eq!(site.left_out, 5000 - u64::from(BURST));
        assert_eq!(written(&mut site, 1), (PER_SECOND as usize, 5000 - u64::from(BURST)));
        assert_eq!(written(&mut site, 1_000_000), (BURST as usize, 5000 - u64::from(PER_SECOND)));
    }
}
