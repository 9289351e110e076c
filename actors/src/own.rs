//! Actors of one's own, which exchange typed messages over the transport that training uses: `tell`, `ask`, streams, supervision.
//!
//! An actor has an identity, `spiffe://DOMAIN/job/JOB/actor/NAME`, in a certificate of the job's CA, and is addressed by it; whether
//! its peers are in this process or across a network, [`Network`](crate::link::Network) alone knows. A message is a type
//! ([`Message`]) with a kind on the wire and a limit; who may say it to whom is a row of [`Grants`].
//!
//! 1. **Nothing is said that was not granted**: by roles and sizes the transport refuses a message before its header is read
//!    ([`Grants::rules`]), by names both ends do. Whoever says more is cut off and counted.
//! 2. **Everything is bounded**: messages and answers by their types, mailboxes in letters and bytes, asks under way by number, streams by
//!    the transport's credit. Where there is no room, the sender waits, or is told so.
//! 3. **What cannot be delivered comes back** as a [`SayError`], and the message is still the caller's. A `tell` that returned was
//!    handed to the network, not heard.
//! 4. **Messages of one caller on one lane are heard in order**, one at a time, each once or not at all.
//! 5. **A failure stays an actor's own**: a panic or a [`Trouble::Failed`] is met by its [`Supervision`], within a budget; whoever asked
//!    is told.
//! 6. **What is not whole does not look so**: a stream of items is complete when its actor has said that it is ([`Flow::finish`]). However
//!    else it ends, whoever subscribed gets an error.
//!
//! Messages are trusted no further than their sender's role: a handler is given who said it ([`Context::sender`]).

mod actor;
mod answer;
mod caller;
mod flow;
mod grants;
mod mail;
mod message;
mod serve;
mod supervision;

pub use actor::{Actor, Context, Flows, Handle, OwnActor, RunningActor, StoppedActor, Trouble};
pub use caller::{Caller, Remote, SayError};
pub use flow::{Flow, Inflow, Outflow, Unheard};
pub use grants::{GrantError, Grants, Who, is_reserved};
pub use message::{FIRST_KIND, LAST_KIND, MOST_BYTES, Message};
pub use supervision::{Strategy, Supervision};
