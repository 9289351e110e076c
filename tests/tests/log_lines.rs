//! What a node of the job can make others write into their logs, in bytes. The logs of all nodes in this process are one.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use testudo_actors::JobSpec;
use testudo_actors::message::{Body as _, Join, JoinRefused};
use testudo_actors::node::RELEASE;
use testudo_observability::{Options, init};
use testudo_tests::cluster::{Cluster, Links, Site, Wiring};
use testudo_tests::member::in_time;
use testudo_tests::pace::hold;
use testudo_tests::toy;
use testudo_transport::{Class, Outgoing, Role};
use tracing_subscriber::filter::LevelFilter;

/// More than anybody's refusals are worth.
const MOST: u64 = 64 << 10;
/// A line each would be megabytes.
const JOINS: u64 = 20_000;

/// Counts what is written.
#[derive(Clone, Default)]
struct Counted(Arc<AtomicU64>);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A certificate of the job and one connection: whoever is turned away is told why once, and cannot fill a log.
#[test]
fn a_node_that_asks_to_join_for_ever_writes_a_few_lines() {
    let log = Counted::default();
    let _guard =
        init(Options::new("all").with_stderr(LevelFilter::OFF).with_log_writer(log.clone())).unwrap();
    let (held, adapt) = hold(0);
    let job = JobSpec { heartbeat_timeout_ms: 600_000, ..toy::job(1, 1, 2, 2) };
    let cluster = Cluster::start_with(Site::new(job, Links::Quic), Wiring { adapt, ..Wiring::default() });
    let _ = held.reached();
    let before = log.0.load(Ordering::Relaxed);
    assert!(before > 0, "the run is logged");

    let stranger = cluster.site.network(&cluster.site.identity(Role::Worker, "77"));
    let scheduler = cluster.site.job.member(Role::Scheduler, 0).unwrap();
    let join = Join {
        release: RELEASE.into(),
        fingerprint: testudo_kernels::fingerprint(),
        address: None,
        commitment: [0; 32],
    };
    cluster.site.runtime.block_on(async {
        let address = cluster.scheduler.to_string();
        let connection = in_time("the scheduler", stranger.connect(&address, &scheduler)).await.unwrap();
        let (mut say, mut hear) = connection.open(Class::Control, 0).await.unwrap();
        say.send(Outgoing::new(Join::KIND, 1, join.encode())).await.unwrap();
        let answer = in_time("an answer", hear.recv()).await.unwrap().unwrap();
        assert_eq!(answer.kind, JoinRefused::KIND);
        // Whoever answers is not to be stopped by answers that nobody reads.
        tokio::spawn(async move { while let Ok(Some(_)) = hear.recv().await {} });
        let again = async {
            for _ in 0..JOINS {
                if say.send(Outgoing::new(Join::KIND, 1, join.encode())).await.is_err() {
                    break;
                }
            }
        };
        in_time("its joins", again).await;
        in_time("the connection's end", connection.closed()).await;
    });
    let written = log.0.load(Ordering::Relaxed) - before;
    assert!(written < MOST, "{written} bytes");
    held.release();
    cluster.finish();
}
