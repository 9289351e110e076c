//! What a scheduler hears: from members once they have joined, and from operators.

use std::time::Duration;

use actix::{AsyncContext as _, Context};
use testudo_transport::{Cause, Message, Role};

use super::reporting::{Follows, SHORTEST_REPORT};
use super::{SchedulerActor, member_of};
use crate::audit::Refusal;
use crate::message::{
    Body, CheckpointPart, Ended, EvaluationResult, Exported, Failure, Given, GradientProducts, Heartbeat,
    Histograms, Join, Member, MemberRole, NodeDone, ParameterPieces, Pause, Ready, RefusalReport,
    ResidualPart, Resume, Revoke, Scale, Status, Stop, Testimony, Unreachable,
};
use crate::numbers;
use crate::scheduler::{Command, Input};

impl SchedulerActor {
    pub(super) fn said(
        &mut self,
        context: &mut Context<Self>,
        link: u64,
        message: &Message,
    ) -> Result<(), String> {
        let Some(peer) = self.links.get(&link).map(|l| l.peer.clone()) else { return Ok(()) };
        if peer.role() == Role::Operator {
            return self.commanded(context, link, message);
        }
        let member = member_of(&peer).ok_or("neither server nor worker")?;
        if message.kind != Join::KIND && !self.core.speaks_for(&link, member) {
            return Err(format!("{member} has not joined on this connection"));
        }
        self.cut_off(context, member, message);
        if let Some(taken) = self.audited(link, member, message) {
            return taken;
        }
        let (index, body) = (member.index, message.body.as_slice());
        if message.kind == Histograms::KIND {
            return self.spread(index, body);
        }
        let unreadable = |e: testudo_transport::WireError| e.to_string();
        let input = match message.kind {
            Join::KIND => {
                Input::Join { member, connection: link, join: Join::decode(body).map_err(unreadable)? }
            }
            Ready::KIND => {
                let Ready { epoch, version } = Ready::decode(body).map_err(unreadable)?;
                Input::Ready { server: index, epoch, version }
            }
            NodeDone::KIND => {
                let done = NodeDone::decode(body).map_err(unreadable)?;
                match self.unsigned(link, done.step) {
                    Some(reason) => Input::Gone { member, connection: link, reason },
                    None => Input::NodeDone { worker: index, done },
                }
            }
            Heartbeat::KIND => {
                Input::Heartbeat { member, heartbeat: Heartbeat::decode(body).map_err(unreadable)? }
            }
            EvaluationResult::KIND => Input::Evaluated {
                worker: index,
                result: EvaluationResult::decode(body).map_err(unreadable)?,
            },
            Testimony::KIND => Input::Testimony {
                worker: index,
                testimony: Testimony::decode(body).map_err(unreadable)?,
                values: numbers::view(&message.payload).map_err(|e| e.to_string())?.to_vec(),
            },
            Given::KIND => Input::Given {
                worker: index,
                given: Given::decode(body).map_err(unreadable)?,
                values: numbers::view(&message.payload).map_err(|e| e.to_string())?.to_vec(),
            },
            CheckpointPart::KIND => Input::CheckpointPart {
                server: index,
                part: CheckpointPart::decode(body).map_err(unreadable)?,
            },
            ResidualPart::KIND => {
                Input::ResidualPart { worker: index, part: ResidualPart::decode(body).map_err(unreadable)? }
            }
            ParameterPieces::KIND => {
                Input::Pieces { server: index, told: ParameterPieces::decode(body).map_err(unreadable)? }
            }
            GradientProducts::KIND => Input::Products {
                server: index,
                step: GradientProducts::decode(body).map_err(unreadable)?.step,
                bytes: message.payload.as_bytes().to_vec(),
            },
            Exported::KIND => {
                Input::Exported { worker: index, exported: Exported::decode(body).map_err(unreadable)? }
            }
            Failure::KIND => {
                Input::Failure { member, reason: Failure::decode(body).map_err(unreadable)?.reason }
            }
            Unreachable::KIND => {
                let Unreachable { server, reason } = Unreachable::decode(body).map_err(unreadable)?;
                if server >= self.core.job().servers {
                    return Err(format!("there is no server/{server}"));
                }
                self.expel_server(context, server);
                Input::Unreachable { worker: index, server, reason }
            }
            other => return Err(format!("kind {other} makes no sense to a scheduler")),
        };
        self.drive(context, input);
        Ok(())
    }

    /// A worker that floods a server is not served there any more, so the run cannot go on with it.
    fn cut_off(&mut self, context: &mut Context<Self>, server: Member, message: &Message) {
        if server.role != MemberRole::Server || message.kind != RefusalReport::KIND {
            return;
        }
        // What does not decode is refused where the audit log takes it.
        let Ok(report) = RefusalReport::decode(&message.body) else { return };
        let flood = |refusal: &Refusal| refusal.cause == Cause::Flood.as_str();
        for refusal in report.refused.iter().filter(|refusal| flood(refusal)) {
            let index = refusal.who.strip_prefix("worker/").and_then(|index| index.parse().ok());
            if let Some(worker) = index {
                self.drive(context, Input::Flooded { worker, server: server.index });
            }
        }
    }

    fn commanded(&mut self, context: &mut Context<Self>, link: u64, message: &Message) -> Result<(), String> {
        let unreadable = |e: testudo_transport::WireError| e.to_string();
        let request = message.envelope.request;
        let command = match message.kind {
            Status::KIND => {
                let status = Status::decode(&message.body).map_err(unreadable)?;
                let every = Duration::from_millis(u64::from(status.every_ms)).max(SHORTEST_REPORT);
                let timer = context.run_interval(every, move |actor, _| {
                    actor.run.clone().in_scope(|| actor.report_to(link));
                });
                let follows = Some(Follows { request, nodes: status.nodes, timer });
                match self.links.get_mut(&link).map(|l| std::mem::replace(&mut l.follows, follows)) {
                    Some(Some(former)) => context.cancel_future(former.timer),
                    Some(None) => false,
                    None => context.cancel_future(timer),
                };
                self.report_to(link);
                return Ok(());
            }
            Revoke::KIND => {
                let Revoke { crl } = Revoke::decode(&message.body).map_err(unreadable)?;
                let result = self.revoke(crl);
                self.answer(link, request, result);
                return Ok(());
            }
            Pause::KIND => Pause::decode(&message.body).map(|_| Command::Pause).map_err(unreadable)?,
            Resume::KIND => Resume::decode(&message.body).map(|_| Command::Resume).map_err(unreadable)?,
            Scale::KIND => {
                let Scale { workers } = Scale::decode(&message.body).map_err(unreadable)?;
                Command::Scale { workers }
            }
            Stop::KIND => {
                Stop::decode(&message.body).map_err(unreadable)?;
                tracing::info!("an operator stops the run");
                Command::Stop
            }
            Ended::KIND => {
                let Ended { role, index, exit } = Ended::decode(&message.body).map_err(unreadable)?;
                Command::Ended { member: Member { role, index }, exit }
            }
            other => return Err(format!("kind {other} makes no sense to a scheduler")),
        };
        self.drive(context, Input::Command { connection: link, request, command });
        Ok(())
    }
}
