//! A worker that ends before the run does: the scheduler is told, as a launcher tells it of a process.

use std::sync::Arc;

use testudo_actors::message::{Member, MemberRole};
use testudo_actors::operator;
use testudo_transport::{Role, SpiffeId};

use super::EmbeddedError;
use super::site::Site;

/// Between two reports, which nobody reads.
const REPORT_EVERY_MS: u32 = 1000;

/// Tells the scheduler of a worker's end when it is dropped, unless that was in order.
pub(super) struct Ending {
    pub(super) site: Arc<Site>,
    pub(super) scheduler: (SpiffeId, String),
    pub(super) worker: u32,
    /// Why it ended; `None` for one that ended in order.
    pub(super) why: Option<String>,
}

impl Ending {
    /// For a worker whose thread, if it says nothing else, has panicked.
    pub(super) fn new(site: &Arc<Site>, scheduler: &(SpiffeId, String), worker: u32) -> Ending {
        let why = Some("its thread panicked".to_owned());
        Ending { site: Arc::clone(site), scheduler: scheduler.clone(), worker, why }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let Some(why) = self.why.take() else { return };
        if let Err(error) = tell(&self.site, self.scheduler.clone(), self.worker, why) {
            tracing::warn!(%error, "the scheduler could not be told of a worker's end");
        }
    }
}

fn tell(site: &Site, (id, at): (SpiffeId, String), worker: u32, why: String) -> Result<(), EmbeddedError> {
    let network = site.network(site.identity(Role::Operator, &format!("of-worker-{worker}"))?.as_ref())?;
    site.runtime().spawn(async move {
        // One that cannot be reached is over.
        let Ok((mut commands, mut reports)) = operator::follow(&network, &at, &id, REPORT_EVERY_MS).await
        else {
            return;
        };
        let member = Member { role: MemberRole::Worker, index: worker };
        if commands.ended(member, why).await.is_ok() {
            // Until the scheduler hangs up: the word has come by then.
            while reports.next().await.is_ok() {}
        }
    });
    Ok(())
}
