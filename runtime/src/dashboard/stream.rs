//! Server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>) to one page.
//!
//! 1. An event is made up when there is room for it, of what is newest then: a page that reads slowly has fewer events, and no older
//!    ones than the one under way.
//! 2. One that reads nothing for [`PATIENCE`] is cut off.
//! 3. Once the run is over, one more event is sent, and the stream ends.

use std::convert::Infallible;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, MessageBody};
use actix_web::rt::time::{sleep, timeout};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::feed::{Feed, Seen};

/// Between two events.
const EVERY: Duration = Duration::from_millis(500);
/// How long a page may read nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// Milliseconds after which a browser that lost the stream asks again.
const RETRY: &str = "retry: 1000\n\n";

/// The stream as a response's body; it has its place among streams until it is dropped.
pub(super) struct Events {
    events: mpsc::Receiver<Bytes>,
    _place: OwnedSemaphorePermit,
}

impl Events {
    /// A stream of `feed` over the connection `socket`.
    pub(super) fn of(feed: Arc<Feed>, socket: Option<Arc<OwnedFd>>, place: OwnedSemaphorePermit) -> Events {
        let (to, events) = mpsc::channel(1);
        actix_web::rt::spawn(tell(feed, to, socket));
        Events { events, _place: place }
    }
}

impl MessageBody for Events {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        self.get_mut().events.poll_recv(context).map(|event| event.map(Ok))
    }
}

async fn tell(feed: Arc<Feed>, to: mpsc::Sender<Bytes>, socket: Option<Arc<OwnedFd>>) {
    let mut ended = feed.ended();
    let mut seen = Seen::default();
    let mut head = RETRY;
    loop {
        let room = match timeout(PATIENCE, to.reserve()).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) => return,
            Err(_) => {
                if let Some(socket) = socket {
                    let _ = rustix::net::shutdown(socket.as_fd(), rustix::net::Shutdown::Both);
                }
                return;
            }
        };
        let over = *ended.borrow_and_update();
        // JSON has no line feeds of its own.
        room.send(Bytes::from(format!("{head}data: {}\n\n", feed.event(&mut seen))));
        head = "";
        if over {
            return;
        }
        tokio::select! {
            () = sleep(EVERY) => {}
            _ = ended.changed() => {}
            () = to.closed() => return,
        }
    }
}
