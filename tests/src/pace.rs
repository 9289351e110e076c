//! Holding a worker in the middle of a backward pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use testudo_actors::worker::{Pace, ShardCompute};

use crate::cluster::Adapt;

/// A worker waits no longer than this, whatever becomes of the test.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a test sees and does of a worker that is held after the first parameter of its first backward pass.
#[derive(Debug)]
pub struct Held {
    reached: mpsc::Receiver<usize>,
    go: mpsc::Sender<()>,
    ended: Arc<AtomicBool>,
}

struct Hold {
    reached: Option<mpsc::Sender<usize>>,
    go: mpsc::Receiver<()>,
    ended: Arc<AtomicBool>,
}

/// Holds worker `index`: for [`Wiring::adapt`](crate::cluster::Wiring::adapt).
#[must_use]
pub fn hold(index: u32) -> (Held, Box<dyn FnMut(u32) -> Option<Adapt>>) {
    let ((reached_at, reached), (go, may_go)) = (mpsc::channel(), mpsc::channel());
    let ended = Arc::new(AtomicBool::new(false));
    let mut hold = Some(Hold { reached: Some(reached_at), go: may_go, ended: Arc::clone(&ended) });
    let adapt = move |worker| {
        let mut mine = hold.take_if(|_| worker == index);
        mine.is_some().then(|| {
            Box::new(move |compute: ShardCompute| match mine.take() {
                Some(hold) => compute.with_pace(Box::new(hold)),
                None => compute,
            }) as Adapt
        })
    };
    (Held { reached, go, ended }, Box::new(adapt))
}

impl Held {
    /// Waits until the worker is held; the parameter that it has handed over.
    ///
    /// # Panics
    /// When it is not within a minute.
    #[must_use]
    pub fn reached(&self) -> usize {
        self.reached.recv_timeout(PATIENCE / 2).expect("the worker begins its backward pass")
    }

    /// Whether a backward pass has ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Lets it go on.
    pub fn release(&self) {
        let _ = self.go.send(());
    }
}

impl Pace for Hold {
    fn handed_over(&mut self, parameter: usize, last: bool) {
        if let Some(reached) = self.reached.take() {
            let _ = reached.send(parameter);
            let _ = self.go.recv_timeout(PATIENCE);
        }
        self.ended.fetch_or(last, Ordering::SeqCst);
    }
}
