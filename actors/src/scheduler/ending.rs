//! The end of a run: the last version is evaluated in parts, and exported by one worker.
//!
//! 1. Every test example is evaluated exactly once, by whoever lives; counts are integers, so the accuracy has the same
//!    bits for any number of workers.
//! 2. A worker that dies leaves its parts, and the export, to the others.

use std::collections::BTreeSet;

use crate::job::JobSpec;
use crate::message::{Evaluate, EvaluationResult, Export, Exported};

/// Test examples in one part: fixed, so that the sum of losses has the same bits for any number of workers (whose
/// evaluation blocks are counted from a part's start), and for a classifier a whole number of such blocks.
const PART: u64 = 1024;

/// Tasks that a worker holds at a time: one to work at and one to go on with.
const AT_A_TIME: usize = 2;

/// An order to one worker.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Order {
    Evaluate(Evaluate),
    Export(Export),
}

#[derive(Debug)]
struct Task {
    order: Order,
    holder: Option<u32>,
    result: Option<(f64, u64)>,
}

/// What is left to do once the last step is complete.
#[derive(Debug)]
pub(super) struct Ending {
    version: u64,
    /// Targets of one test example.
    targets: u64,
    tasks: Vec<Task>,
    exported: Option<Exported>,
}

impl Ending {
    pub(super) fn new(version: u64, job: &JobSpec) -> Ending {
        let (test_examples, write) = (job.data.test_examples, job.export);
        let mut tasks =
            vec![Task { order: Order::Export(Export { version, write }), holder: None, result: None }];
        let mut first = 0;
        while first < test_examples {
            let examples = PART.min(test_examples - first);
            let order = Order::Evaluate(Evaluate { version, first, examples });
            tasks.push(Task { order, holder: None, result: None });
            first += examples;
        }
        Ending { version, targets: job.model.targets() as u64, tasks, exported: None }
    }

    /// The next task that nobody holds, given to the worker among `live` that has the fewest to do; `None` when each has
    /// enough to go on with.
    pub(super) fn hand_out(&mut self, live: &[u32]) -> Option<(u32, Order)> {
        let at = self.tasks.iter().position(|t| t.holder.is_none())?;
        let exported = self.exported.is_some();
        let to_do =
            |w: u32| self.tasks.iter().filter(|t| t.holder == Some(w) && !t.is_done(exported)).count();
        let (busy, worker) = live.iter().map(|w| (to_do(*w), *w)).min()?;
        if busy >= AT_A_TIME {
            return None;
        }
        let task = self.tasks.get_mut(at)?;
        task.holder = Some(worker);
        Some((worker, task.order.clone()))
    }

    /// What `dead` held is anybody's again, unless it is done.
    pub(super) fn give_back(&mut self, dead: u32) {
        for task in
            self.tasks.iter_mut().filter(|t| t.holder == Some(dead) && !t.is_done(self.exported.is_some()))
        {
            task.holder = None;
        }
    }

    /// The workers that have something to do.
    pub(super) fn holders(&self) -> BTreeSet<u32> {
        let exported = self.exported.is_some();
        self.tasks.iter().filter(|t| !t.is_done(exported)).filter_map(|t| t.holder).collect()
    }

    /// Takes a result that is owed; whether it was.
    pub(super) fn evaluated(&mut self, worker: u32, result: &EvaluationResult) -> bool {
        let wanted = Order::Evaluate(Evaluate {
            version: result.version,
            first: result.first,
            examples: result.examples,
        });
        let owed = |t: &&mut Task| t.holder == Some(worker) && t.result.is_none() && t.order == wanted;
        let most = result.examples.saturating_mul(self.targets);
        let task = self.tasks.iter_mut().find(owed).filter(|_| result.correct <= most);
        task.map(|task| task.result = Some((result.loss_sum, result.correct))).is_some()
    }

    /// Takes the export, if it is owed; whether it was.
    pub(super) fn exported(&mut self, worker: u32, exported: Exported) -> bool {
        let held = self.tasks.iter().any(|t| t.holder == Some(worker) && matches!(t.order, Order::Export(_)));
        let owed = held && self.exported.is_none() && exported.version == self.version;
        if owed {
            self.exported = Some(exported);
        }
        owed
    }

    /// Sum of test losses, number of targets classified right, and the export, once all is done.
    pub(super) fn result(&self) -> Option<(f64, u64, &Exported)> {
        let exported = self.exported.as_ref()?;
        let mut sums = (0.0, 0);
        for task in &self.tasks {
            if let Order::Evaluate(_) = task.order {
                let (loss, correct) = task.result?;
                sums = (sums.0 + loss, sums.1 + correct);
            }
        }
        Some((sums.0, sums.1, exported))
    }
}

impl Task {
    fn is_done(&self, exported: bool) -> bool {
        match self.order {
            Order::Evaluate(_) => self.result.is_some(),
            Order::Export(_) => exported,
        }
    }
}
