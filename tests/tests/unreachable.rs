//! Servers that workers cannot reach, and servers that the scheduler has hung up on: what of the two a job may go on from.

use std::thread::JoinHandle;
use std::time::Duration;

use testudo_actors::message::{Join, MemberRole, NewCertificate, Outcome, Ready, Shutdown};
use testudo_actors::node::{RELEASE, run_worker};
use testudo_actors::operator::Line;
use testudo_actors::{JobSpec, NodeError, NodeOptions};
use testudo_tests::cluster::{Links, Site, ToySetup, VALIDITY};
use testudo_tests::member::{Member, in_time, secret};
use testudo_tests::stage::job;
use testudo_transport::Role;
use testudo_transport::pki::{Revocation, RevocationList, Serial, describe};

/// A site whose scheduler misses nobody while the test lasts.
fn site() -> Site {
    Site::new(JobSpec { heartbeat_timeout_ms: 600_000, ..job(1, 1, 1) }, Links::Quic)
}

/// A worker as it is.
fn worker(site: &Site, scheduler: &str) -> JoinHandle<Result<(), NodeError>> {
    let identity = site.identity(Role::Worker, "0");
    let options = NodeOptions {
        network: site.network(&identity),
        identity,
        scheduler: scheduler.to_owned(),
        advertise: None,
        lanes: 1,
        runtime: site.runtime.handle().clone(),
        codecs: None,
    };
    std::thread::spawn(move || run_worker(options, &mut ToySetup::plain()))
}

/// A server that has installed what it was told.
async fn ready(server: &mut Member) {
    let epoch = server.membership().await.epoch;
    server.tell(&Ready { epoch, version: 0 }).await;
}

/// Why a server was lost to a run whose worker may take part in what goes on.
fn lost(
    running: JoinHandle<Result<Outcome, NodeError>>,
    worker: JoinHandle<Result<(), NodeError>>,
) -> String {
    let Outcome::ServerLost(why) = running.join().unwrap().unwrap() else { panic!("the run failed") };
    let ended = worker.join().unwrap();
    assert!(matches!(ended, Err(NodeError::RunLost(_))), "{ended:?}");
    why
}

/// A server that has just joined may be where nobody finds it yet: it is dialled again and again. Who does that is dismissed all the same
/// when the scheduler loses the server.
#[test]
fn a_server_that_cannot_be_reached_at_first_is_dialled_on() {
    let site = site();
    let (scheduler, running) = site.scheduler();
    let worker = worker(&site, &scheduler);
    site.runtime.block_on(async {
        let network = site.network(&site.identity(Role::Server, "0"));
        // Without a port it is no address, which needs no resolver to find out.
        let join = Join {
            release: RELEASE.into(),
            fingerprint: testudo_kernels::fingerprint(),
            address: Some("nowhere".into()),
            commitment: secret(&network).commitment(),
        };
        let mut server = Member::join_as(&network, &scheduler, &join).await.unwrap();
        ready(&mut server).await;
        // One try would be over at once, and would end the run.
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.connection().close(0, "dies");
    });
    let why = lost(running, worker);
    assert!(why.starts_with("server/0 was lost ("), "{why}");
}

/// A worker that loses its server before the scheduler does, because it has less patience, is not the job's failure.
#[test]
fn a_server_that_the_last_worker_loses_first_is_lost_to_the_run() {
    let site = site();
    let (scheduler, running) = site.scheduler();
    let worker = worker(&site, &scheduler);
    site.runtime.block_on(async {
        let network = site.network(&site.identity(Role::Server, "0"));
        let mut server = Member::join(&network, &scheduler, MemberRole::Server).await.unwrap();
        ready(&mut server).await;
        let connection = in_time("the worker", network.accept()).await.unwrap();
        let lane = in_time("its lane", connection.accept()).await.unwrap();
        connection.close(0, "gone");
        drop(lane);
        server.hear_of::<Shutdown>().await;
    });
    let why = lost(running, worker);
    assert!(why.starts_with("server/0 cannot be reached by worker/0, and no other worker is left"), "{why}");
}

/// A server whose certificate is revoked, or that says what cannot be, ends the run for good: what went on would let it in again.
#[test]
fn a_server_that_is_cut_off_for_cause_ends_the_run_for_good() {
    for revoked in [true, false] {
        let site = site();
        let (scheduler, running) = site.scheduler();
        site.runtime.block_on(async {
            let identity = site.identity(Role::Server, "0");
            let (server, worker) = (site.network(&identity), site.network(&site.identity(Role::Worker, "0")));
            let mut server = Member::join(&server, &scheduler, MemberRole::Server).await.unwrap();
            let mut worker = Member::join(&worker, &scheduler, MemberRole::Worker).await.unwrap();
            ready(&mut server).await;
            worker.membership().await;
            if revoked {
                let operator = site.network(&site.identity(Role::Operator, "1"));
                let id = site.job.member(Role::Scheduler, 0).unwrap();
                let mut line = Line::dial(&operator, &scheduler, &id).await.unwrap();
                let mut list = RevocationList::default();
                let serial = describe(identity.certificate_pem().as_bytes()).unwrap().serial;
                list.revoke(Serial::from_hex(&serial).unwrap(), Revocation { at: 0, compromised: true });
                let list = site.ca.sign_crl(&list, VALIDITY).unwrap();
                line.revoke(list.der().to_vec()).await.unwrap().unwrap();
            } else {
                server.tell(&NewCertificate { certificate: vec![7] }).await;
            }
            let told = worker.hear_of::<Shutdown>().await;
            assert!(!told.may_go_on, "{told:?}");
        });
        let Outcome::Failed(why) = running.join().unwrap().unwrap() else { panic!("it may go on") };
        assert!(why.starts_with("server/0 was cut off ("), "{why}");
        assert_eq!(why.contains("revoked"), revoked, "{why}");
    }
}
