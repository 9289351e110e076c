//! What tests see of a simulation.

use testudo_actors::scheduler::Input as SchedulerInput;
use testudo_actors::server::Input as ServerInput;

use super::{Simulation, Wire};

impl Simulation {
    /// Whether a worker has pushes under way that no server has seen.
    #[must_use]
    pub fn pushes_under_way(&self, worker: u32) -> usize {
        self.links
            .iter()
            .filter(|(name, _)| name.starts_with(&format!("worker/{worker}>server")))
            .flat_map(|(_, queue)| queue)
            .filter(|wire| matches!(wire, Wire::ToServer(_, ServerInput::Push(_))))
            .count()
    }

    /// Whether a server has posted products that the scheduler has not seen.
    #[must_use]
    pub fn products_under_way(&self, server: u32) -> bool {
        let link = self.links.get(&format!("server/{server}>scheduler"));
        link.is_some_and(|queue| {
            queue.iter().any(|wire| matches!(wire, Wire::ToScheduler(SchedulerInput::Products { .. })))
        })
    }

    /// The membership's epoch.
    #[must_use]
    pub fn membership_epoch(&self) -> u64 {
        self.scheduler.membership_epoch()
    }

    /// Whether a worker lives.
    #[must_use]
    pub fn lives(&self, worker: u32) -> bool {
        self.workers.get(worker as usize).is_some_and(|w| w.alive)
    }
}
