//! W3C trace context in every message: a run is one trace, whoever sends.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a test is a panic")]

use std::sync::Arc;

use testudo_actors::link::Network;
use testudo_actors::message::{Body, Hello, Join, Membership, Pull, Ready, Welcome};
use testudo_actors::node::{RELEASE, run_worker};
use testudo_actors::{CheckpointSink, Dataset, JobSpec, NodeOptions, node::WorkerSetup};
use testudo_observability::{Options, init};
use testudo_tests::cluster::{Links, Site};
use testudo_tests::toy;
use testudo_transport::{Class, Outgoing, Receiver, Role};

struct Setup;

impl WorkerSetup for Setup {
    fn data(&mut self, _: &JobSpec) -> Result<(Arc<dyn Dataset>, Arc<dyn Dataset>), String> {
        Ok(toy::data())
    }

    fn sink(&mut self, _: &JobSpec) -> Box<dyn CheckpointSink> {
        Box::new(toy::NoSink)
    }
}

async fn trace_of<B: Body>(receiver: &mut Receiver) -> (B, [u8; 16]) {
    let message = receiver.recv().await.unwrap().expect("a message");
    assert_eq!(message.kind, B::KIND);
    let trace = message.envelope.traceparent.expect("every message carries a trace context");
    (B::decode(&message.body).unwrap(), trace[..16].try_into().unwrap())
}

/// The test stands in for the server: it sees what the scheduler and a worker really send.
#[test]
fn scheduler_and_worker_send_in_one_trace() {
    let _guard = init(Options::new("test/0")).unwrap();
    // The server that this plays has no heartbeats.
    let job = JobSpec { heartbeat_timeout_ms: 600_000, ..toy::job(1, 1, 2, 3) };
    let site = Site::new(job, Links::Quic);
    let (address, _running) = site.scheduler();

    let worker = site.identity(Role::Worker, "0");
    let network = site.network(&worker);
    let options = NodeOptions {
        identity: worker,
        network,
        scheduler: address.clone(),
        advertise: None,
        lanes: 1,
        runtime: site.runtime.handle().clone(),
        codecs: None,
    };
    std::thread::spawn(move || run_worker(options, &mut Setup));

    let server = site.identity(Role::Server, "0");
    let network: Network = site.network(&server);
    let scheduler = site.job.member(Role::Scheduler, 0).unwrap();
    let story = async {
        let connection = network.connect(&address, &scheduler).await.unwrap();
        let (mut sender, mut receiver) = connection.open(Class::Control, 0).await.unwrap();
        let join = Join {
            release: RELEASE.into(),
            fingerprint: testudo_kernels::fingerprint(),
            address: Some(network.local_addr().to_string()),
            commitment: [0; 32],
        };
        sender.send(Outgoing::new(Join::KIND, 1, join.encode())).await.unwrap();
        let (_, run) = trace_of::<Welcome>(&mut receiver).await;
        let (membership, same) = trace_of::<Membership>(&mut receiver).await;
        assert_eq!(same, run, "the scheduler's messages are in one trace");
        sender
            .send(Outgoing::new(Ready::KIND, 2, Ready { epoch: membership.epoch, version: 0 }.encode()))
            .await
            .unwrap();
        let from_worker = network.accept().await.unwrap();
        let (_answers, mut requests) = from_worker.accept().await.unwrap();
        let (_, _) = trace_of::<Hello>(&mut requests).await;
        let (_, from) = trace_of::<Pull>(&mut requests).await;
        assert_eq!(from, run, "the worker's requests are in the run's trace");
    };
    let bounded = async { tokio::time::timeout(std::time::Duration::from_secs(60), story).await };
    site.runtime.block_on(bounded).expect("the story ends");
}
