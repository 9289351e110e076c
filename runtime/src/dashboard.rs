//! `testudo run --dashboard`: a page on loopback that shows how the run is doing, to whoever has its link.
//!
//! Invariants, cited by the tests:
//! 1. It is served on loopback alone, and to nobody who calls this machine by another name than its own (`guard`).
//! 2. Without a session nothing of the run is told. A session is had for a link's token, once; it is a cookie that scripts cannot read,
//!    that no other site's page sends, and that is sent to one unguessable path alone, so that no other port of this machine gets it
//!    (`access`).
//! 3. Tokens stand where they are printed and in the run directory's `dashboard.url`, its owner's alone as the operator's key beside it
//!    is. No log, summary or argument has one, and what is kept of them here is hashes.
//! 4. No request changes anything of the run: all there is to do is to watch.
//! 5. Training waits for nobody: the launcher replaces its newest report and goes on; readers make up their own next event from what is
//!    there when they have room for one (`stream`). The records of steps are read from the run directory's files, on a thread of its own
//!    (`follow`).
//! 6. Connections, streams, bodies, curves and notices are bounded (`http`, `history`, `feed`).
//! 7. What nodes say is data, never markup: JSON here, and text in the page.
//!
//! It lives as long as the run does. When that ends, pages are told how, which they go on showing, and the process ends as it does
//! without a page.

mod access;
mod feed;
mod follow;
mod guard;
mod history;
mod http;
mod stream;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use testudo_actors::message::StatusReport;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

pub use feed::Ending;

use crate::rundir::RunDir;
use access::Access;
use feed::Feed;
use follow::Follower;
use http::Shared;

/// How long pages are given, at the run's end, to take note of it.
const LAST_WORD: Duration = Duration::from_secs(2);

/// A socket for the page, bound and not served yet: a process may give away its right to bind in between.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    address: SocketAddr,
}

impl Door {
    /// Binds a port of 127.0.0.1, or with 0 one that the system chooses (invariant 1).
    ///
    /// # Errors
    /// What the operating system said.
    pub fn open(port: u16) -> io::Result<Door> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let address = listener.local_addr()?;
        Ok(Door { listener, address })
    }
}

/// A page that is served.
pub struct Dashboard {
    feed: Arc<Feed>,
    shared: Shared,
    follower: Follower,
    link: Zeroizing<String>,
    file: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Dashboard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dashboard").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Dashboard {
    /// Serves the page of the run of `job` in `run_dir`, from threads of its own, and leaves a link in the run directory.
    ///
    /// # Errors
    /// When no thread can be started, the link cannot be written, or there are no random numbers.
    pub fn start(door: Door, job: &str, run_dir: &RunDir) -> io::Result<Dashboard> {
        let Door { listener, address } = door;
        let feed = Arc::new(Feed::new(job, run_dir.path()));
        let (access, link) = Access::make(address, run_dir.dashboard())?;
        let shared = Shared::new(address, access, Arc::clone(&feed));
        let follower = Follower::start(run_dir, Arc::clone(&feed))?;
        let (stop, stopped) = oneshot::channel();
        let serve = {
            let shared = shared.clone();
            // What it cannot serve, nobody sees; the run goes on.
            move || drop(http::run(listener, shared, stopped))
        };
        let server = std::thread::Builder::new().name("dashboard".into()).spawn(serve)?;
        let (stop, server) = (Some(stop), Some(server));
        Ok(Dashboard { feed, shared, follower, link, file: run_dir.dashboard(), stop, server })
    }

    /// The link that opens the page, once.
    #[must_use]
    pub fn link(&self) -> &str {
        &self.link
    }

    /// Takes note of the scheduler's latest report.
    pub fn report(&self, report: &StatusReport) {
        self.feed.report(report.clone());
    }

    /// Takes note of something that a person should know.
    pub fn notice(&self, text: &str) {
        self.feed.notice(text);
    }

    /// Tells all who watch how the run ended, and ends.
    pub fn end(mut self, ending: Ending) {
        self.follower.finish();
        self.feed.end(ending);
        let until = Instant::now() + LAST_WORD;
        while self.shared.is_watched() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        // The next process to bind the port is given no link of this one.
        let _ = std::fs::remove_file(&self.file);
        drop(self.stop.take());
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}
