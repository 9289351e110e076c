//! The simulator's links: what a message does where it arrives.

use testudo_actors::message::{Member, MemberRole, ResidualOrder, Witnessed};
use testudo_actors::scheduler::{Input as SchedulerInput, ToMember};
use testudo_actors::server::{Input as ServerInput, PushInput};
use testudo_actors::worker::Input as WorkerInput;

use super::lives::name;
use super::worker::Work;
use super::{Reply, Simulation, Wire};

impl Simulation {
    pub(super) fn deliver(&mut self, wire: Wire) {
        match wire {
            Wire::ToScheduler(input) => {
                self.scheduler.handle(self.clock, input);
                self.drain_scheduler();
            }
            Wire::FromWorker(connection, input) => {
                // What a former life still says is nobody's word any more.
                if self.scheduler.speaks_for(&connection, connection.0) {
                    self.scheduler.handle(self.clock, input);
                    self.drain_scheduler();
                }
            }
            Wire::ToServer(i, input) => {
                // The shell serves no other incarnation than the one that takes part; pushes come to the core all the same.
                if let ServerInput::Pull { worker, reply, .. } = &input
                    && self.servers[i as usize].live.get(worker).is_some_and(|life| *life != reply.life)
                {
                    return;
                }
                let again = match (&input, self.duplicate) {
                    (ServerInput::Push(p), true) => Some(PushInput {
                        worker: p.worker,
                        reply: Reply { worker: u32::MAX, ..p.reply.clone() },
                        push: p.push.clone(),
                        values: p.values.clone(),
                        bytes: p.bytes,
                        digest: p.digest,
                    }),
                    _ => None,
                };
                self.servers[i as usize].core.handle(self.clock, input);
                if let Some(again) = again {
                    self.servers[i as usize].core.handle(self.clock, ServerInput::Push(again));
                }
                self.drain_server(i as usize);
            }
            Wire::ToServerMember(i, message) => match message {
                ToMember::Membership(membership) => {
                    let live = membership.workers.iter().map(|w| (w.index, u64::from(w.commitment[0])));
                    self.servers[i as usize].live = live.collect();
                    self.servers[i as usize].core.handle(self.clock, ServerInput::Membership(membership));
                    self.drain_server(i as usize);
                }
                ToMember::Checkpoint(order) => self.servers[i as usize].orders.push_back(order.version),
                ToMember::Hash(order) => self.servers[i as usize].hash_orders.push_back(order.version),
                ToMember::Weights(weights) => self.servers[i as usize].weights.push_back(weights),
                _ => {}
            },
            Wire::ToWorker((i, life), _) | Wire::ToWorkerMember((i, life), _)
                if self.workers[i as usize].life != life => {}
            Wire::ToWorker((i, _), input) => self.worker_input(i as usize, input),
            Wire::ToWorkerMember((i, life), message) => {
                let input = match message {
                    ToMember::Membership(m) => WorkerInput::Membership(m),
                    ToMember::Extended(e) => WorkerInput::Extended { epoch: e.epoch, until: e.until },
                    ToMember::Evaluate(e) => WorkerInput::Evaluate(e),
                    ToMember::Export(e) => WorkerInput::Export(e),
                    ToMember::Witnessed(Witnessed { key }) => {
                        self.workers[i as usize].work.push_back(Work::Witness(key));
                        return;
                    }
                    ToMember::Residuals(ResidualOrder { version, shards }) => {
                        self.workers[i as usize].work.push_back(Work::Residuals(version, shards));
                        return;
                    }
                    ToMember::Checkpoint(order) => panic!("a worker is ordered to write {order:?}"),
                    ToMember::Hash(order) => panic!("a worker is ordered to hash {order:?}"),
                    ToMember::Weights(weights) => panic!("a worker is ordered to combine {weights:?}"),
                    ToMember::Shutdown(_) => {
                        let member = Member { role: MemberRole::Worker, index: i };
                        self.workers[i as usize].alive = false;
                        let connection = (member, life);
                        let gone = SchedulerInput::Gone { member, connection, reason: "left".into() };
                        self.post(format!("{}>scheduler", name(member, life)), Wire::ToScheduler(gone));
                        return;
                    }
                };
                self.worker_input(i as usize, input);
            }
        }
    }
}
