//! What comes to the worker's actor.

use bytes::Bytes;
use testudo_transport::{Connection, Message, Payload};
use tokio::sync::OwnedSemaphorePermit;

use crate::hear::Heard;
use crate::message::{Exported, ResidualPart};
use crate::outbox::Outbox;
use crate::tree::Node;
use crate::worker::Input;

/// A slice's values on their way out or in.
#[derive(Debug)]
pub enum Values {
    /// A gradient to push, with its place among the slices under way.
    Gradient(Bytes, OwnedSemaphorePermit),
    /// A version that arrived, charged to the server's credit until it is installed.
    Arrived(Payload),
}

/// What comes to the actor.
#[derive(Debug)]
pub enum Mail {
    /// For the core.
    Input(Input<Values>),
    /// A server is connected: one outbox for each lane.
    Connected {
        /// Its index.
        server: u32,
        /// The connection.
        connection: Connection,
        /// Its lanes.
        lanes: Vec<Outbox>,
    },
    /// A server's answer.
    Answer {
        /// Its index.
        server: u32,
        /// The message.
        message: Message,
    },
    /// A server cannot be reached any more.
    ServerGone {
        /// Its index.
        server: u32,
        /// Why.
        why: String,
    },
    /// From the scheduler.
    Scheduler(Message),
    /// The connection to the scheduler has ended.
    SchedulerGone(String),
    /// The final model is hashed, and stored if it was to be.
    Exported(Exported),
    /// What the scheduler witnesses of a contribution.
    Testimony {
        /// The step.
        step: u64,
        /// The node.
        node: Node,
        /// The values.
        values: Vec<f32>,
    },
    /// What the scheduler witnesses of a version as servers gave it.
    Given {
        /// The version.
        version: u64,
        /// The values.
        values: Vec<f32>,
    },
    /// What has become of this worker's part of a checkpoint.
    Residuals(ResidualPart),
    /// The arithmetic cannot go on.
    Fatal(String),
}

/// What was heard on the scheduler's stream.
pub(super) fn from_scheduler(heard: Heard) -> Mail {
    match heard {
        Ok(message) => Mail::Scheduler(message),
        Err(why) => Mail::SchedulerGone(why),
    }
}
