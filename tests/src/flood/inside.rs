//! Floods by a worker that takes part: honest code computes its share and keeps its lease, and beside it somebody with the same
//! key and the same secret says and asks what they allow, as fast as it goes.
//!
//! What is flooded with is never false, so that a run's parameters are what they would have been: pushes are duplicates.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use testudo_actors::TrainAndTest;
use testudo_actors::checkpoint::CheckpointSink;
use testudo_actors::incarnation::Secret;
use testudo_actors::job::JobSpec;
use testudo_actors::link::Network;
use testudo_actors::message::{Body, EvaluationResult, Heartbeat, Hello, Load, Pull, Push};
use testudo_actors::node::WorkerSetup;
use testudo_actors::outbox::Outbox;
use testudo_actors::placement::Slice;
use testudo_actors::tree::Node;
use testudo_actors::worker::ShardCompute;
use testudo_kernels::{Model, ModelError};
use testudo_transport::identity::Address;
use testudo_transport::session::{EMPTY_PAYLOAD_HASH, Prelude};
use testudo_transport::{Class, Connection, Envelope, Outgoing, Receiver, Sender, encode};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Attack, Attacker, Done, Target};
use crate::member::placement;
use crate::raw::RawEndpoint;
use crate::through::Through;

/// Between two tries.
const AGAIN: Duration = Duration::from_millis(20);
/// How long something that may be held up for ever is tried.
const TRY: Duration = Duration::from_millis(100);
/// Messages under way to the scheduler.
const UNDER_WAY: usize = 32;
/// The epoch in which everybody has joined and nobody is lost.
const EPOCH: u64 = 1;

/// What is known of the honest worker: filled in by it, as it goes on.
#[derive(Clone, Default)]
pub struct Inside(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    joined: Option<(Secret, Outbox)>,
    job: Option<JobSpec>,
    /// Gradients of its first slice that it has computed, and the last of them.
    gradients: u64,
    last: Bytes,
}

impl Inside {
    /// The honest worker's `setup`, watched.
    #[must_use]
    pub fn watch(&self, setup: Box<dyn WorkerSetup>) -> Watched {
        Watched { setup, inside: self.clone() }
    }

    /// What the worker's process shows servers, once it takes part.
    #[must_use]
    pub fn secret(&self) -> Option<Vec<u8>> {
        self.0.lock().unwrap().joined.as_ref().map(|(secret, _)| secret.hello().encode())
    }

    /// Its first slice, and the step and the gradient that it has computed of it last.
    fn latest(&self) -> Option<(Slice, u64, Bytes)> {
        let known = self.0.lock().unwrap();
        let slice = *placement(known.job.as_ref()?).of_parameter(0).first()?;
        Some((slice, known.gradients.checked_sub(1)?, known.last.clone()))
    }

    /// Floods, once the worker takes part, until told to stop.
    ///
    /// # Panics
    /// When there is no server among `targets`.
    pub async fn flood(
        &self,
        attack: Attack,
        (attacker, network): (&Attacker, &Network),
        server: &Target,
        done: &Done,
    ) {
        while done.goes_on() {
            let once = async {
                match attack {
                    Attack::Heartbeats | Attack::Reports => self.tell(attack, done).await,
                    Attack::HalfPushes => self.halves(attacker, server, done).await,
                    _ => self.ask(attack, network, server, done).await,
                }
            };
            tokio::select! {
                _ = once => tokio::time::sleep(AGAIN).await,
                () = done.stopped() => return,
            }
        }
    }

    /// Says to the scheduler what its worker might say.
    async fn tell(&self, attack: Attack, done: &Done) -> Option<()> {
        let outbox = self.0.lock().unwrap().joined.as_ref()?.1.clone();
        let room = Arc::new(Semaphore::new(UNDER_WAY));
        let (kind, body) = match attack {
            Attack::Heartbeats => (
                Heartbeat::KIND,
                Heartbeat { step: 0, waiting: None, load: Load::default(), served: None }.encode(),
            ),
            _ => {
                let nothing =
                    EvaluationResult { version: 0, first: 0, examples: 1, loss_sum: 1.0, correct: 1 };
                (EvaluationResult::KIND, nothing.encode())
            }
        };
        for _ in 0..UNDER_WAY {
            let permit = Arc::clone(&room).acquire_owned().await.ok()?;
            outbox.post_holding(Outgoing::new(kind, 0, body.clone()), Some(Box::new(permit)));
            done.add(1);
        }
        // All of them have gone, or the connection has.
        let all = u32::try_from(UNDER_WAY).ok()?;
        drop(room.acquire_many(all).await.ok()?);
        Some(())
    }

    /// Asks a server, on a connection of its own.
    async fn ask(&self, attack: Attack, network: &Network, server: &Target, done: &Done) -> Option<()> {
        let hello = self.0.lock().unwrap().joined.as_ref()?.0.hello();
        let connection = network.connect(&server.address.to_string(), &server.id).await.ok()?;
        let (mut say, mut hear) = connection.open(Class::Data, 0).await.ok()?;
        say.send(Outgoing::new(Hello::KIND, 0, hello.encode())).await.ok()?;
        if attack == Attack::NeverReads {
            return self.silent(&connection, vec![(say, hear)], done).await;
        }
        let asks = async {
            for request in 1.. {
                let Some((slice, step, values)) = self.latest() else {
                    tokio::time::sleep(AGAIN).await;
                    continue;
                };
                let message = match attack {
                    Attack::Duplicates => {
                        let push =
                            Push { epoch: EPOCH, step, slice: slice.id, node: Node::leaf(1), codec: 0 };
                        Outgoing::new(Push::KIND, request, push.encode()).with_payload(values)
                    }
                    _ => Outgoing::new(
                        Pull::KIND,
                        request,
                        Pull { slice: slice.id, version: step, exact: false }.encode(),
                    ),
                };
                if say.send(message).await.is_err() {
                    return;
                }
                done.add(1);
            }
        };
        tokio::select! {
            () = asks => {}
            () = async { while let Ok(Some(_)) = hear.recv().await {} } => {}
        }
        None
    }

    /// Pulls on every stream that it may have, and reads no answer.
    async fn silent(
        &self,
        connection: &Connection,
        mut kept: Vec<(Sender, Receiver)>,
        done: &Done,
    ) -> Option<()> {
        loop {
            match timeout(AGAIN, connection.open(Class::Data, 0)).await {
                Ok(stream) => kept.push(stream.ok()?),
                Err(_) => kept.rotate_left(1),
            }
            let (say, _unread) = kept.last_mut()?;
            while let Some((slice, step, _)) = self.latest() {
                let pull = Pull { slice: slice.id, version: step, exact: false };
                match timeout(TRY, say.send(Outgoing::new(Pull::KIND, 0, pull.encode()))).await {
                    Ok(sent) => sent.ok()?,
                    Err(_) => break,
                }
                done.add(1);
            }
        }
    }

    /// Keeps streams open with half a push each.
    async fn halves(&self, attacker: &Attacker, server: &Target, done: &Done) -> Option<()> {
        let hello = self.0.lock().unwrap().joined.as_ref()?.0.hello().encode();
        let (slice, ..) = self.latest()?;
        let endpoint = RawEndpoint::bind_to(attacker.from);
        let peer = endpoint.try_connect(&attacker.identity, server.address, &server.id).await?;
        let (mut first, _answers) = peer.stream_with(&[]).await?;
        let (from, to) = (Address::from(attacker.identity.id().clone()), Address::from(server.id.clone()));
        let envelope = encode(&Envelope { from, to, request: 0, traceparent: None });
        let header = [envelope, hello].concat();
        let header_len = u32::try_from(header.len()).ok()?;
        let prelude = Prelude { kind: Hello::KIND, header_len, payload_len: 0 }.encode();
        let mac = peer.sealer(&first).seal(&prelude, &header, &EMPTY_PAYLOAD_HASH);
        first.write_all(&[&prelude[..], &header, &mac].concat()).await.ok()?;
        let payload_len = slice.elements as u64 * 4;
        let prelude = Prelude { kind: Push::KIND, header_len: 300, payload_len }.encode();
        let half = [&prelude[..], &vec![0; 300 + slice.elements * 2]].concat();
        let mut kept = Vec::new();
        tokio::select! {
            why = peer.connection().closed() => drop(why),
            // Streams that it may not have are waited for until then.
            _ = async {
                loop {
                    let Some(stream) = peer.stream_with(&half).await else { break };
                    kept.push(stream);
                    done.add(1);
                }
                std::future::pending::<()>().await;
            } => {}
        }
        None
    }
}

/// An honest worker's set-up, through which a flood learns what it may say.
pub struct Watched {
    setup: Box<dyn WorkerSetup>,
    inside: Inside,
}

impl WorkerSetup for Watched {
    fn prepare(&mut self) -> Result<(), String> {
        self.setup.prepare()
    }

    fn data(&mut self, job: &JobSpec) -> Result<TrainAndTest, String> {
        self.setup.data(job)
    }

    fn model(&mut self, job: &JobSpec) -> Result<Box<dyn Model>, ModelError> {
        self.inside.0.lock().unwrap().job = Some(job.clone());
        let elements = placement(job).of_parameter(0).first().map_or(0, |slice| slice.elements);
        let inside = self.inside.clone();
        // The gradient of the first slice is written down.
        let record = move |index, gradient: &[f32], ready: &mut dyn FnMut(usize, &[f32])| {
            if let (0, Some(first)) = (index, gradient.get(..elements)) {
                let mut known = inside.0.lock().unwrap();
                known.last = Bytes::copy_from_slice(bytemuck::cast_slice(first));
                known.gradients += 1;
            }
            ready(index, gradient);
        };
        Ok(Box::new(Through::new(self.setup.model(job)?, record)))
    }

    fn sink(&mut self, job: &JobSpec) -> Box<dyn CheckpointSink> {
        self.setup.sink(job)
    }

    fn joined(&mut self, secret: &Secret, scheduler: &Outbox) {
        self.inside.0.lock().unwrap().joined = Some((secret.clone(), scheduler.clone()));
    }

    fn adapt(&mut self, compute: ShardCompute) -> ShardCompute {
        self.setup.adapt(compute)
    }
}
