//! An operator's line to the scheduler: follow the run, stop it, report a node's end.

use testudo_transport::{Class, Connection, Outgoing, Receiver, Sender, SpiffeId};

use crate::link::Network;
use crate::message::{Body, Ended, Member, Status, StatusReport, Stop};

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

/// Sends an operator's commands.
#[derive(Debug)]
pub struct Commands {
    sender: Sender,
    connection: Connection,
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
    let unreachable = |reason| OperatorError::Unreachable { address: address.to_owned(), reason };
    let connection = network.connect(address, scheduler).await.map_err(unreachable)?;
    let (sender, receiver) =
        connection.open(Class::Control, PRIORITY).await.map_err(|e| unreachable(e.to_string()))?;
    let mut commands = Commands { sender, connection };
    commands.say(&Status { every_ms }).await?;
    Ok((commands, Reports { receiver }))
}

impl Commands {
    async fn say<B: Body>(&mut self, body: &B) -> Result<(), OperatorError> {
        let trace = tracing::info_span!("operate").in_scope(testudo_observability::current_traceparent);
        let message = Outgoing::new(B::KIND, 1, body.encode()).with_traceparent(trace);
        self.sender.send(message).await.map_err(|e| OperatorError::Lost(e.to_string()))
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
    /// The next report.
    ///
    /// # Errors
    /// [`OperatorError`] when the line broke or the scheduler misbehaved.
    pub async fn next(&mut self) -> Result<StatusReport, OperatorError> {
        match self.receiver.recv().await {
            Ok(Some(message)) if message.kind == StatusReport::KIND => {
                StatusReport::decode(&message.body).map_err(|e| OperatorError::Scheduler(e.to_string()))
            }
            Ok(Some(message)) => Err(OperatorError::Scheduler(format!("kind {} is no report", message.kind))),
            Ok(None) => Err(OperatorError::Lost("it closed the stream".into())),
            Err(error) => Err(OperatorError::Lost(error.to_string())),
        }
    }
}
