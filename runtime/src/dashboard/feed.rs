//! What there is to watch: the newest report, the curves, what a person should know, and how the run ended.
//!
//! 1. Whoever brings something replaces what is there and goes on; nothing is queued for anybody.
//! 2. A reader asks for what it does not have ([`Feed::event`]); how much that is does not grow with the time that it was away.
//! 3. Notices are bounded in number and length: of more, the oldest are left out.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value, json};
use testudo_actors::message::StatusReport;
use tokio::sync::watch;

use super::history::{History, Read};
use crate::report::status;

/// Notices that are kept.
const NOTICES_MOST: usize = 100;
/// Characters of one.
const NOTICE_MOST: usize = 1_000;

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct Ending {
    /// In a word: `finished`, `stopped`, `interrupted`, `failed`.
    pub how: &'static str,
    /// In a sentence, for a person.
    pub text: String,
    /// The result, as `summary.json` has it.
    pub summary: Option<Value>,
}

/// What there is to watch.
#[derive(Debug)]
pub(super) struct Feed {
    job: String,
    run_dir: String,
    slot: Mutex<Slot>,
    history: Mutex<History>,
    ended: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Slot {
    report: Option<Arc<StatusReport>>,
    notices: VecDeque<Notice>,
    told: u64,
    ending: Option<Ending>,
}

#[derive(Clone, Debug, Serialize)]
struct Notice {
    number: u64,
    /// Milliseconds since 1970.
    at: u64,
    text: String,
}

/// How much of it a reader has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    curves: Read,
    notices: u64,
}

impl Feed {
    pub(super) fn new(job: &str, run_dir: &Path) -> Feed {
        Feed {
            job: job.to_owned(),
            run_dir: run_dir.display().to_string(),
            slot: Mutex::default(),
            history: Mutex::default(),
            ended: watch::Sender::new(false),
        }
    }

    pub(super) fn report(&self, report: StatusReport) {
        self.slot().report = Some(Arc::new(report));
    }

    pub(super) fn notice(&self, text: &str) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let mut slot = self.slot();
        slot.told += 1;
        if slot.notices.len() == NOTICES_MOST {
            slot.notices.pop_front();
        }
        let number = slot.told;
        slot.notices.push_back(Notice { number, at, text: text.chars().take(NOTICE_MOST).collect() });
    }

    /// The run is over: the next event of every reader is its last.
    pub(super) fn end(&self, ending: Ending) {
        self.slot().ending = Some(ending);
        self.ended.send_replace(true);
    }

    /// Is told when the run is over.
    pub(super) fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a reader does not have yet, and now has.
    pub(super) fn event(&self, seen: &mut Seen) -> Value {
        let (report, notices, ending) = {
            let slot = self.slot();
            let had = std::mem::replace(&mut seen.notices, slot.told);
            let news = slot.notices.iter().filter(|notice| notice.number > had);
            (slot.report.clone(), news.cloned().collect::<Vec<_>>(), slot.ending.clone())
        };
        let curves = self.history().event(&mut seen.curves);
        json!({
            "job": self.job,
            "run_dir": self.run_dir,
            "status": report.as_ref().map(|report| status::json(&self.job, report)),
            "timeline": report.as_ref().and_then(|report| timeline(report)),
            "curves": curves,
            "notices": notices,
            "ending": ending,
        })
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When one of the last steps was worked on, steps counted from 1.
fn timeline(report: &StatusReport) -> Option<Value> {
    let timeline = report.timeline.as_ref()?;
    let workers = timeline.workers.iter().map(|span| {
        json!({
            "node": format!("worker/{}", span.worker),
            "wait_us": span.wait_us,
            "compute_us": span.compute_us,
            "send_us": span.send_us,
            "ready_at_us": span.ready_at_us,
            "began_at_us": span.began_at_us,
            "ended_at_us": span.ended_at_us,
        })
    });
    let servers = timeline.servers.iter().map(|span| {
        json!({
            "node": format!("server/{}", span.server),
            "first_at_us": span.first_at_us,
            "last_at_us": span.last_at_us,
            "done_at_us": span.done_at_us,
        })
    });
    Some(json!({
        "step": timeline.step + 1,
        "duration_us": timeline.duration_us,
        "workers": workers.collect::<Vec<_>>(),
        "servers": servers.collect::<Vec<_>>(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariants 2 and 3.
    #[test]
    fn a_reader_who_was_away_is_told_what_is_left_and_each_notice_once() {
        let feed = Feed::new("mnist", Path::new("/runs/mnist"));
        let (mut slow, mut quick) = (Seen::default(), Seen::default());
        let texts = |event: &Value| {
            event["notices"].as_array().unwrap().iter().map(|n| n["text"].to_string()).collect::<Vec<_>>()
        };
        assert_eq!(feed.event(&mut quick)["status"], Value::Null, "nothing yet");
        for number in 0..NOTICES_MOST + 50 {
            feed.notice(&number.to_string());
            assert_eq!(texts(&feed.event(&mut quick)), [format!("\"{number}\"")]);
            assert!(texts(&feed.event(&mut quick)).is_empty());
        }
        feed.notice(&"x".repeat(1 << 20));
        let left = texts(&feed.event(&mut slow));
        assert_eq!((left.len(), left[0].as_str()), (NOTICES_MOST, "\"51\""));
        assert_eq!(left.last().unwrap().len(), NOTICE_MOST + 2);
        let mut ended = feed.ended();
        assert!(!*ended.borrow_and_update());
        feed.end(Ending { how: "finished", text: "done".into(), summary: None });
        assert!(*ended.borrow_and_update() && feed.event(&mut quick)["ending"]["how"] == "finished");
    }
}
