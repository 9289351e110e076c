//! What workers do with a version beside training: it is evaluated in parts, and the last one is exported by one of them.
//!
//! 1. Every test example is evaluated exactly once, by whoever lives; counts are integers, so the accuracy has the same
//!    bits for any number of workers.
//! 2. A worker that dies leaves its parts, and the export, to the others.

use std::collections::BTreeSet;

use crate::job::JobSpec;
use crate::message::{Evaluate, Evaluated, EvaluationResult, Export, Exported};

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

/// What is left to do with one version.
#[derive(Debug)]
pub(super) struct Tasks {
    version: u64,
    /// Targets of one test example.
    targets: u64,
    /// Examples of the test set.
    test_examples: u64,
    tasks: Vec<Task>,
    exported: Option<Exported>,
}

impl Tasks {
    /// Evaluation alone.
    pub(super) fn evaluation(version: u64, job: &JobSpec) -> Tasks {
        let test_examples = job.data.test_examples;
        let mut tasks = Vec::new();
        let mut first = 0;
        while first < test_examples {
            let examples = PART.min(test_examples - first);
            let order = Order::Evaluate(Evaluate { version, first, examples });
            tasks.push(Task { order, holder: None, result: None });
            first += examples;
        }
        Tasks { version, targets: job.model.targets() as u64, test_examples, tasks, exported: None }
    }

    /// Evaluation and export, once the last step is complete.
    pub(super) fn ending(version: u64, job: &JobSpec) -> Tasks {
        let mut ending = Tasks::evaluation(version, job);
        let order = Order::Export(Export { version, write: job.export });
        ending.tasks.insert(0, Task { order, holder: None, result: None });
        ending
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

    /// The export, once it is done.
    pub(super) fn export(&self) -> Option<&Exported> {
        self.exported.as_ref()
    }

    /// What the evaluation found, once every part of the test set is evaluated.
    pub(super) fn evaluation_result(&self) -> Option<Evaluated> {
        let mut sums = (0.0, 0);
        for task in &self.tasks {
            if let Order::Evaluate(_) = task.order {
                let (loss, correct) = task.result?;
                sums = (sums.0 + loss, sums.1 + correct);
            }
        }
        let targets = self.test_examples as f64 * self.targets as f64;
        Some(Evaluated { step: self.version, loss: sums.0 / targets, accuracy: sums.1 as f64 / targets })
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
