//! An operator's line to the scheduler: follow the run, pause, resume and stop it, report a node's end.
//!
//! Every command is answered, under its request number, with what was done or why nothing was. `Line::ask` waits for that
//! answer; [`Commands`] do not, and [`Reports`] pass answers over: who follows a run sees in its reports what became of it.

use testudo_transport::{Class, Connection, Message, Outgoing, Receiver, Sender, SpiffeId};

use crate::link::Network;
use crate::message::{Answer, Body, Ended, Member, Pause, Resume, Revoke, Scale, Status, StatusReport, Stop};

/// Streams of an operator are few and small; any priority does.
const PRIORITY: i32 = 0;

/// What went wrong on the line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// The scheduler cannot be reached, or is not who it should be.
    #[error("the scheduler at {address} cannot be reached: {reason}")]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// Why.
        reason: String,
    },
    /// The line broke.
    #[error("the connection to the scheduler was lost: {0}")]
    Lost(String),
    /// The scheduler said what makes no sense.
    #[error("the scheduler misbehaved: {0}")]
    Scheduler(String),
}

/// A line on which each command waits for its answer.
#[derive(Debug)]
pub struct Line {
    sender: Sender,
    receiver: Receiver,
    connection: Connection,
    requests: u64,
}

/// What became of a command: what was done, or why nothing was.
pub type Answered = Result<String, String>;

impl Line {
    /// Connects to `scheduler` at `address`.
    ///
    /// # Errors
    /// [`OperatorError`] when it cannot be reached or authenticated.
    pub async fn dial(network: &Network, address: &str, scheduler: &SpiffeId) -> Result<Line, OperatorError> {
        let unreachable = |reason| OperatorError::Unreachable { address: address.to_owned(), reason };
        let connection = network.connect(address, scheduler).await.map_err(unreachable)?;
        let (sender, receiver) =
            connection.open(Class::Control, PRIORITY).await.map_err(|e| unreachable(e.to_string()))?;
        Ok(Line { sender, receiver, connection, requests: 0 })
    }

    /// Follows the run, with a report every `every_ms` milliseconds, which lists every node if `nodes` says so.
    ///
    /// # Errors
    /// [`OperatorError::Lost`] when the line broke.
    pub async fn follow(self, every_ms: u32, nodes: bool) -> Result<(Commands, Reports), OperatorError> {
        let Line { sender, receiver, connection, requests } = self;
        let mut commands = Commands { sender, connection, requests };
        commands.say(&Status { every_ms, nodes }).await?;
        Ok((commands, Reports { receiver }))
    }

    /// Lets no step begin until [`resume`](Line::resume).
    ///
    /// # Errors
    /// [`OperatorError`] when the line broke or the scheduler misbehaved.
    pub async fn pause(&mut self) -> Result<Answered, OperatorError> {
        self.ask(&Pause {}).await
    }

    /// Lets steps begin again.
    ///
    /// # Errors
    /// As [`pause`](Line::pause).
    pub async fn resume(&mut self) -> Result<Answered, OperatorError> {
        self.ask(&Resume {}).await
    }

    /// Ends the run in order, with a final model.
    ///
    /// # Errors
    /// As [`pause`](Line::pause).
    pub async fn stop(&mut self) -> Result<Answered, OperatorError> {
        self.ask(&Stop {}).await
    }

    /// Goes on with that many workers.
    ///
    /// # Errors
    /// As [`pause`](Line::pause).
    pub async fn scale(&mut self, workers: u32) -> Result<Answered, OperatorError> {
        self.ask(&Scale { workers }).await
    }

    /// Hands in the certificate authority's list of revoked certificates (DER), for every node of the run.
    ///
    /// # Errors
    /// As [`pause`](Line::pause).
    pub async fn revoke(&mut self, crl: Vec<u8>) -> Result<Answered, OperatorError> {
        self.ask(&Revoke { crl }).await
    }

    async fn ask<B: Body>(&mut self, body: &B) -> Result<Answered, OperatorError> {
        self.requests += 1;
        say(&mut self.sender, self.requests, body).await?;
        let message = heard(&mut self.receiver).await?;
        if (message.kind, message.envelope.request) != (Answer::KIND, self.requests) {
            return Err(OperatorError::Scheduler(format!("kind {} is no answer", message.kind)));
        }
        let answer = Answer::decode(&message.body).map_err(|e| OperatorError::Scheduler(e.to_string()))?;
        Ok(answer.result)
    }

    /// Hangs up.
    pub fn close(&self) {
        self.connection.close(testudo_transport::CloseCode::Done.number(), "done");
    }
}

async fn say<B: Body>(sender: &mut Sender, request: u64, body: &B) -> Result<(), OperatorError> {
    let trace = tracing::info_span!("operate").in_scope(testudo_observability::current_traceparent);
    let message = Outgoing::new(B::KIND, request, body.encode()).with_traceparent(trace);
    sender.send(message).await.map_err(|e| OperatorError::Lost(e.to_string()))
}

async fn heard(receiver: &mut Receiver) -> Result<Message, OperatorError> {
    match receiver.recv().await {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(OperatorError::Lost("it closed the stream".into())),
        Err(error) => Err(OperatorError::Lost(error.to_string())),
    }
}

/// Sends commands beside [`Reports`].
#[derive(Debug)]
pub struct Commands {
    sender: Sender,
    connection: Connection,
    requests: u64,
}

/// What a scheduler says to who follows its run.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// How the run is doing.
    Report(Box<StatusReport>),
    /// What became of a command.
    Answer(Answered),
}

/// Yields the scheduler's reports.
#[derive(Debug)]
pub struct Reports {
    receiver: Receiver,
}

/// Connects to `scheduler` at `address` and follows the run, with a report every `every_ms` milliseconds.
///
/// # Errors
/// [`OperatorError`] when it cannot be reached or authenticated.
pub async fn follow(
    network: &Network,
    address: &str,
    scheduler: &SpiffeId,
    every_ms: u32,
) -> Result<(Commands, Reports), OperatorError> {
    Line::dial(network, address, scheduler).await?.follow(every_ms, false).await
}

impl Commands {
    async fn say<B: Body>(&mut self, body: &B) -> Result<(), OperatorError> {
        self.requests += 1;
        say(&mut self.sender, self.requests, body).await
    }

    /// Lets no step begin until [`resume`](Commands::resume).
    ///
    /// # Errors
    /// [`OperatorError::Lost`] when the line broke.
    pub async fn pause(&mut self) -> Result<(), OperatorError> {
        self.say(&Pause {}).await
    }

    /// Lets steps begin again.
    ///
    /// # Errors
    /// [`OperatorError::Lost`] when the line broke.
    pub async fn resume(&mut self) -> Result<(), OperatorError> {
        self.say(&Resume {}).await
    }

    /// Ends the run in order, with a final model.
    ///
    /// # Errors
    /// [`OperatorError::Lost`] when the line broke.
    pub async fn stop(&mut self) -> Result<(), OperatorError> {
        self.say(&Stop {}).await
    }

    /// Reports that a member's process has ended.
    ///
    /// # Errors
    /// [`OperatorError::Lost`] when the line broke.
    pub async fn ended(&mut self, member: Member, exit: String) -> Result<(), OperatorError> {
        self.say(&Ended { role: member.role, index: member.index, exit }).await
    }

    /// Hangs up.
    pub fn close(&self) {
        self.connection.close(testudo_transport::CloseCode::Done.number(), "done");
    }
}

impl Reports {
    /// The next report; answers on the way are logged.
    ///
    /// # Errors
    /// [`OperatorError`] when the line broke or the scheduler misbehaved.
    pub async fn next(&mut self) -> Result<StatusReport, OperatorError> {
        loop {
            match self.hear().await? {
                Said::Report(report) => return Ok(*report),
                Said::Answer(answer) => tracing::info!(?answer, "the scheduler answered"),
            }
        }
    }

    /// The next report or answer.
    ///
    /// # Errors
    /// [`OperatorError`] when the line broke or the scheduler misbehaved.
    pub async fn hear(&mut self) -> Result<Said, OperatorError> {
        let message = heard(&mut self.receiver).await?;
        let misbehaved = |e: testudo_transport::WireError| OperatorError::Scheduler(e.to_string());
        match message.kind {
            StatusReport::KIND => {
                StatusReport::decode(&message.body).map(|r| Said::Report(Box::new(r))).map_err(misbehaved)
            }
            Answer::KIND => Answer::decode(&message.body).map(|a| Said::Answer(a.result)).map_err(misbehaved),
            other => Err(OperatorError::Scheduler(format!("kind {other} is no report"))),
        }
    }
}
