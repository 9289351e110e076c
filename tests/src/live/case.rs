//! The cases of a cluster under attack.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::{BETWEEN_STEPS, Live, PER_CASE, told};

impl Live {
    /// Runs one case: `attack` panics if the attack did not end as it should.
    pub fn case(&mut self, name: &str, attack: impl FnOnce(&Live)) {
        let began = Instant::now();
        self.grant(1);
        let (over, gate) = (AtomicBool::new(false), Arc::clone(&self.gate));
        let ended = std::thread::scope(|scope| {
            let during = scope.spawn(|| {
                let mut given = 1;
                while given < PER_CASE - 1 && !over.load(Ordering::SeqCst) {
                    std::thread::sleep(BETWEEN_STEPS);
                    gate.grant(1);
                    given += 1;
                }
                given
            });
            let ended = catch_unwind(AssertUnwindSafe(|| attack(self)));
            over.store(true, Ordering::SeqCst);
            (ended, during.join().unwrap())
        });
        self.granted += ended.1 - 1;
        self.grant(PER_CASE - ended.1);
        self.ended(name, ended.0);
        println!("{name}: {} ms", began.elapsed().as_millis());
    }

    /// Runs one case between two steps: `attack` is told the version that the next step begins with, to which no worker
    /// contributes until it has ended. Then that step is taken.
    pub fn between(&mut self, name: &str, attack: impl FnOnce(&Live, u64)) {
        // Every worker has pushed the step after those that were granted, and waits before it reports it.
        let version = self.granted + 1;
        let ended = catch_unwind(AssertUnwindSafe(|| attack(self, version)));
        self.grant(1);
        self.ended(name, ended);
    }

    /// Notes what went wrong with a case, if anything did.
    fn ended(&mut self, name: &str, ended: std::thread::Result<()>) {
        if let Err(why) = ended {
            self.failed.push(format!("{name}: {}", told(&*why)));
        } else if let Err(why) = catch_unwind(AssertUnwindSafe(|| self.trained("steps after the attack"))) {
            self.failed.push(format!("{name}: training did not go on: {}", told(&*why)));
        }
    }
}
