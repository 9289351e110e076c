//! A job under way in this process, and what comes of it.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use testudo_actors::JobSpec;
use testudo_actors::audit::Hex;
use testudo_actors::message::{Finished, Outcome};
use testudo_actors::node::NodeError;
use testudo_actors::operator::Line;
use testudo_actors::own::Grants;
use testudo_transport::{Role, SpiffeId};

use super::actors::JobActors;
use super::cluster::{self, Nodes, Parts};
use super::reports::{Board, Reports};
use super::site::Site;
use super::{EmbeddedError, Links};
use crate::checkpoint::safetensors::{self, Metadata, Tensor};

/// One parameter of a trained model.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its name, like `fc1.weight`.
    pub name: String,
    /// Its dimensions, outermost first.
    pub dims: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

/// What came of a job that ran to its end.
#[derive(Debug)]
pub struct Trained {
    /// The job as it was signed.
    pub job: JobSpec,
    /// Steps, losses, accuracy, bytes, and the hash of the parameters.
    pub finished: Finished,
    /// The parameters, in the model's order.
    pub parameters: Vec<Parameter>,
    /// Workers that were lost on the way, and why. Their work was taken over.
    pub lost: Vec<(SpiffeId, NodeError)>,
}

impl Trained {
    /// BLAKE3 of the final parameters, in hexadecimal digits: what summary and audit log of a run in processes say.
    #[must_use]
    pub fn params_blake3(&self) -> String {
        Hex(self.finished.params_blake3).into()
    }

    /// Writes the model as safetensors to `path`, whole or not at all; returns its bytes. A model of one's own is described by its name
    /// and parameters alone.
    ///
    /// # Errors
    /// [`EmbeddedError::Save`] when it cannot be written.
    pub fn save(&self, path: &Path) -> Result<u64, EmbeddedError> {
        let tensors: Vec<Tensor<'_>> = self
            .parameters
            .iter()
            .map(|p| Tensor { name: &p.name, shape: &p.dims, values: &p.values })
            .collect();
        let metadata = Metadata {
            job: self.job.name.clone(),
            step: self.finished.steps,
            params_blake3: self.finished.params_blake3,
            model: crate::job::description(&self.job.model),
        };
        Ok(safetensors::write(path, &tensors, &metadata)?)
    }
}

/// A job under way in this process. Dropped, it is stopped in order and waited for.
pub struct RunningJob {
    job: JobSpec,
    site: Arc<Site>,
    board: Board,
    nodes: Option<Nodes>,
}

impl std::fmt::Debug for RunningJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningJob").field("job", &self.job.name).finish_non_exhaustive()
    }
}

impl RunningJob {
    pub(super) fn start(
        job: JobSpec,
        links: Links,
        grants: Grants,
        (parts, events): (&Parts, Option<&Path>),
    ) -> Result<RunningJob, EmbeddedError> {
        let (site, board) = (Arc::new(Site::new(&job, links, grants)?), Board::default());
        let mut running = RunningJob { job, site, board, nodes: None };
        // On an error it is dropped, which stops the nodes that were started.
        cluster::start(&running.site, &running.job, parts, (&running.board, events), &mut running.nodes)?;
        Ok(running)
    }

    /// The job as it was signed.
    #[must_use]
    pub fn job(&self) -> &JobSpec {
        &self.job
    }

    /// The reports of the run as they come: steps, and evaluations between them. The iterator waits for each, and ends with the run.
    #[must_use]
    pub fn reports(&self) -> Reports {
        Reports(self.board.clone())
    }

    /// Where actors of one's own are started beside the job's nodes, on the same links. It outlives the job.
    #[must_use]
    pub fn actors(&self) -> JobActors {
        JobActors(Arc::clone(&self.site))
    }

    /// Whether the run is over, so that [`wait`](RunningJob::wait) does not wait long.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.nodes.as_ref().is_none_or(|nodes| nodes.outcome.is_finished())
    }

    /// Ends the run in order after the steps that are under way, with a final model; [`wait`](RunningJob::wait) has it. Returns what
    /// the scheduler answered.
    ///
    /// # Errors
    /// [`EmbeddedError::NotStopped`] when the scheduler refuses; [`EmbeddedError::Operator`] when it cannot be asked, above all because
    /// the run is over.
    pub fn stop(&self) -> Result<String, EmbeddedError> {
        let Some(nodes) = &self.nodes else { return Ok("the run is over".into()) };
        let network = self.site.network(self.site.identity(Role::Operator, "1")?.as_ref())?;
        let (id, at) = nodes.scheduler.clone();
        let (answer, answered) = std::sync::mpsc::channel();
        // On the connections' threads: this one may be another runtime's.
        self.site.runtime().spawn(async move {
            let said = async {
                let mut line = Line::dial(&network, &at, &id).await?;
                let said = line.stop().await?;
                line.close();
                Ok::<_, EmbeddedError>(said)
            };
            let said = said.await;
            network.close("done").await;
            let _ = answer.send(said);
        });
        match answered.recv() {
            Ok(Ok(Ok(done))) => Ok(done),
            Ok(Ok(Err(why))) => Err(EmbeddedError::NotStopped(why)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(EmbeddedError::NotStopped("the threads for connections have ended".into())),
        }
    }

    /// Waits for the end of the run, and of every node.
    ///
    /// # Errors
    /// [`EmbeddedError`] when the run failed, or a node that it cannot do without did.
    pub fn wait(mut self) -> Result<Trained, EmbeddedError> {
        let Some(nodes) = self.nodes.take() else { return Err(EmbeddedError::NoModel) };
        let (scheduler, _) = nodes.scheduler;
        let outcome = nodes.outcome.join().map_err(|_| EmbeddedError::Panicked(scheduler.clone()))?;
        let outcome = outcome.map_err(|error| EmbeddedError::Node { node: scheduler, error });
        // Every node is waited for, however the run went.
        let mut ended = Vec::new();
        for node in nodes.others {
            ended.push((node.id, node.thread.join()));
        }
        let mut lost = Vec::new();
        for (id, ended) in ended {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => lost.push((id, error)),
                Err(_) => return Err(EmbeddedError::Panicked(id)),
            }
        }
        let finished = match outcome? {
            Outcome::Finished(finished) => finished,
            Outcome::Failed(reason) | Outcome::ServerLost(reason) => {
                return Err(EmbeddedError::Failed(explain(reason, &lost)));
            }
        };
        let exported = nodes.exported.lock().unwrap_or_else(PoisonError::into_inner).take();
        let parameters = exported.ok_or(EmbeddedError::NoModel)?;
        Ok(Trained { job: self.job.clone(), finished, parameters, lost })
    }
}

/// Why a run failed: as the scheduler tells it, and what nodes had to say that it may not have heard.
fn explain(reason: String, lost: &[(SpiffeId, NodeError)]) -> String {
    let heard = |error: &NodeError| matches!(error, NodeError::SchedulerLost(_) | NodeError::RunLost(_));
    let said = lost.iter().filter(|(_, error)| !heard(error));
    said.fold(reason, |all, (id, error)| format!("{all}; {}: {error}", id.short()))
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        if self.nodes.is_none() {
            return;
        }
        // One that is over, or cannot be reached any more, has ended or is about to.
        if let Err(error) = self.stop() {
            tracing::debug!(%error, "a run that nobody waits for was not stopped");
        }
        if let Some(nodes) = self.nodes.take() {
            let _ = nodes.outcome.join();
            nodes.others.into_iter().for_each(|node| drop(node.thread.join()));
        }
    }
}
