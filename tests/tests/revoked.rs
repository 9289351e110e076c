//! `testudo revoke` in a run that goes on: the revoked node is cut off everywhere, and training ends with the bits that it would
//! have had.

#[path = "common/steered.rs"]
mod steered;

use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use steered::{PROGRAM, Place, STEPS, operate};
use testudo_actors::link::Network;
use testudo_actors::operator::Line;
use testudo_tests::files::{publish, text};
use testudo_tests::process::{self, assert_nothing_left, steps};
use testudo_transport::pki::RevocationList;
use testudo_transport::{ConnectError, Crl, Endpoint, Identity, JobCa, Role, SpiffeId, TransportConfig};

const HOUR: Duration = Duration::from_secs(3600);
/// Between two connections of one identity: nodes shut out who connects again and again.
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

fn nodes(status: &Value) -> Vec<&str> {
    status["nodes"].as_array().unwrap().iter().map(|n| n["node"].as_str().unwrap()).collect()
}

/// A run that root starts is another user's.
fn read_as_its_user(dir: &Path) {
    testudo_transport::pki::trust_owner(std::fs::metadata(dir).unwrap().uid());
}

/// Where a node of the run in `dir` is bound, from its log.
fn address(dir: &Path, node: &str) -> SocketAddr {
    let log = std::fs::read_to_string(dir.join("logs").join(format!("{node}.log"))).unwrap();
    let after =
        log.split_once("address=").unwrap_or_else(|| panic!("no address in the log of {node}: {log}")).1;
    after.split_whitespace().next().unwrap().parse().unwrap()
}

fn endpoint(identity: Identity) -> Endpoint {
    let policy = testudo_actors::policy::policy(1 << 20).unwrap();
    let config = TransportConfig { handshake_timeout: Duration::from_secs(60), ..TransportConfig::default() };
    Endpoint::bind(&config, identity, Arc::new(policy)).unwrap()
}

#[test]
fn a_revoked_worker_is_cut_off_everywhere_and_training_goes_on_to_the_same_bits() {
    let place = Place::new();
    let (mut run, dir) = place.start("run", &["--workers", "3", "--set", STEPS]);
    run.until("steps", |dir| (steps(dir) >= 5).then_some(()));
    read_as_its_user(&dir);
    let key = dir.join("ca/ca-key.pem");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);

    let said = operate("revoke", &dir, &["worker/1", "--compromised"]).succeeded().stdout;
    assert!(said.contains("revoked worker/1 (serial number "), "{said}");
    assert!(said.contains("list 1 is in force, with 1 revoked, and was passed on to "), "{said}");
    let left = run.until("the worker to be lost", |dir| {
        std::thread::sleep(BETWEEN_TRIES);
        let status = operate("status", dir, &["--json"]).succeeded().json();
        (!nodes(&status).contains(&"worker/1")).then_some(status)
    });
    assert_eq!(nodes(&left), ["server/0", "server/1", "worker/0", "worker/2"], "{left}");
    // Who holds its key gets in nowhere: not at the scheduler, and not at a server.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let stolen = endpoint(Identity::load(&dir.join("identities/worker-1")).unwrap());
    let honest = endpoint(Identity::load(&dir.join("identities/worker-0")).unwrap());
    for (node, role) in
        [("scheduler-0", Role::Scheduler), ("server-0", Role::Server), ("server-1", Role::Server)]
    {
        let (_, index) = node.split_once('-').unwrap();
        let id = SpiffeId::new(honest.id().trust_domain(), honest.id().job(), role, index).unwrap();
        let at = address(&dir, node);
        // A server may be about to hear of the list.
        run.until("the refusal", |_| {
            let refused = runtime.block_on(stolen.connect(at, &id));
            let is_it = matches!(refused, Err(ConnectError::Refused { why, .. }) if why.contains("error 44"));
            if !is_it {
                // Who tries faster than that shuts its address out.
                std::thread::sleep(BETWEEN_TRIES);
            }
            is_it.then_some(())
        });
        assert!(runtime.block_on(honest.connect(at, &id)).is_ok(), "others come in");
    }
    let lost = run.until("the worker's end", |dir| {
        let log = std::fs::read_to_string(dir.join("logs/worker-1.log")).unwrap_or_default();
        log.contains("certificate of worker/1 is revoked").then_some(log)
    });
    assert!(!lost.contains("panicked"), "{lost}");

    let from = steps(&dir);
    run.until("more steps", |dir| (steps(dir) > from + 5).then_some(()));
    operate("stop", &dir, &[]).succeeded().stdout.clear();
    let result = run.wait().succeeded().json();
    assert_nothing_left(&dir);
    assert!(!key.exists(), "the CA's key is gone with the run");
    let log = std::fs::read_to_string(dir.join("audit.log")).unwrap();
    assert!(log.contains("\"kind\":\"revocation\"") && log.contains("\"list\":\"1\""), "{log}");
    assert!(log.contains("\"cause\":\"revoked\""), "whoever shows it is counted");
    let _ = process::run(PROGRAM, &["audit", "verify", text(&dir)], &dir).succeeded();
    let late = operate("revoke", &dir, &["worker/0"]);
    assert!(late.code() == Some(4) && late.stderr.contains("is over"), "{late:#?}");

    let taken = format!("training.max_steps={}", result["steps"]);
    let again = place.start("again", &["--set", &taken]).0.wait().succeeded().json();
    assert_eq!(again["params_blake3"], result["params_blake3"], "a revocation changed bits");
}

/// Only the CA's own lists, and only newer ones, whoever hands them in.
#[test]
fn lists_that_cannot_be_taken_are_refused_and_change_nothing() {
    let place = Place::new();
    let (mut run, dir) = place.start("run", &["--set", STEPS]);
    run.until("steps", |dir| (steps(dir) >= 3).then_some(()));
    read_as_its_user(&dir);
    let own = Identity::load(&dir.join("identities/operator-0")).unwrap();
    let stranger = JobCa::create(own.id().trust_domain(), own.id().job(), HOUR).unwrap();
    let foreign = stranger.sign_crl(&RevocationList::default(), HOUR).unwrap();
    let file = place.folder.path().join("foreign.pem");
    publish(&file, &foreign.to_pem());
    let refused = operate("revoke", &dir, &["--crl", text(&file)]);
    assert!(refused.code() == Some(2) && refused.stderr.contains("not of the job's CA"), "{refused:#?}");
    let nobody = operate("revoke", &dir, &["worker/9"]);
    assert!(nobody.code() == Some(2) && nobody.stderr.contains("no record"), "{nobody:#?}");

    // An operator's program that does not look: the scheduler does.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let answer = runtime.block_on(async {
        let scheduler = SpiffeId::new(own.id().trust_domain(), own.id().job(), Role::Scheduler, "0").unwrap();
        let network = Network::Quic(endpoint(own.clone()));
        let at = address(&dir, "scheduler-0").to_string();
        let mut line = Line::dial(&network, &at, &scheduler).await.unwrap();
        line.revoke(foreign.der().to_vec()).await.unwrap()
    });
    assert!(answer.clone().unwrap_err().contains("not of the job's CA"), "{answer:?}");

    // The run's own CA signs two lists; the first one again is refused.
    let ca = JobCa::load(&dir.join("ca")).unwrap();
    let first = ca.sign_crl(&RevocationList::default(), HOUR).unwrap();
    let second = ca.sign_crl(&RevocationList::after(&first).unwrap(), HOUR).unwrap();
    let hand_in = |crl: &Crl| {
        publish(&file, &crl.to_pem());
        operate("revoke", &dir, &["--crl", text(&file)])
    };
    let taken = hand_in(&first).succeeded();
    assert!(taken.stdout.contains("list 1 is in force, with 0 revoked"), "{taken:#?}");
    let _ = hand_in(&second).succeeded();
    let refused = hand_in(&first);
    assert_eq!(refused.code(), Some(3), "{refused:#?}");
    assert!(refused.stderr.contains("its number is 1, and number 2 is in force"), "{refused:#?}");

    operate("stop", &dir, &[]).succeeded().stdout.clear();
    assert_eq!(run.wait().succeeded().json()["stopped_early"], true);
}
