//! The role table, enforced: what a role may not say to another is refused from its first 16 bytes, over real QUIC.
//!
//! The attacker holds a valid certificate of its role and speaks QUIC by itself, so nothing on its side holds it back. It
//! sends a prelude and less header than it announces: whatever is refused is refused before there is a header to decode.

use std::sync::Arc;

use testudo_actors::policy;
use testudo_actors::server::SumOrder;
use testudo_tests::cluster::{Cluster, Links, Site, Wiring, unhurried};
use testudo_tests::member::in_time;
use testudo_tests::pace::hold;
use testudo_tests::raw::RawEndpoint;
use testudo_tests::sim::Simulation;
use testudo_tests::toy;
use testudo_transport::session::Prelude;
use testudo_transport::{CloseCode, Connection, Endpoint, Error, Fault, Identity, Role, Rule, Violation};

const ROLES: [Role; 6] = Role::ALL;

/// Bytes of header that are announced.
const HEADER: u32 = 200;

/// A prelude of that kind, and `garbage` bytes that decode as nothing.
fn message(kind: u8, garbage: usize) -> Vec<u8> {
    let prelude = Prelude { kind, header_len: HEADER, payload_len: 0 };
    [&prelude.encode()[..], &vec![0xff; garbage]].concat()
}

fn allows(rule: &Rule, from: Role, to: Role) -> bool {
    rule.from.admits(from) && rule.to.admits(to)
}

/// What a node makes of the only stream of a connection.
async fn verdict(connection: &Connection) -> Fault {
    let (_reply, mut receiver) = in_time("a stream", connection.accept()).await.unwrap();
    match in_time("a verdict", receiver.recv()).await {
        Err(Error::Peer { fault, .. }) => fault,
        Ok(message) => panic!("a message got through: {message:?}"),
        Err(other) => panic!("{other}"),
    }
}

struct Field {
    site: Site,
    attacker: RawEndpoint,
}

impl Field {
    fn new(site: Site) -> Field {
        let _inside = site.runtime.enter();
        let attacker = RawEndpoint::bind();
        drop(_inside);
        Field { site, attacker }
    }

    /// A node of that role under the real table, without an actor: what it receives, the test sees.
    fn victim(&self, role: Role) -> (Endpoint, Arc<Identity>) {
        let identity = self.site.identity(role, "0");
        (Endpoint::bind(&unhurried(), (*identity).clone(), Arc::clone(&self.site.policy)).unwrap(), identity)
    }

    /// Sends `bytes` as `from` to the victim; the victim's fault and the code that the attacker is told, unless that is lost.
    async fn attack(
        &self,
        from: &Identity,
        victim: &(Endpoint, Arc<Identity>),
        bytes: &[u8],
    ) -> (Fault, Option<u64>) {
        let (endpoint, identity) = victim;
        let dialling = self.attacker.connect(from, endpoint.local_addr(), identity.id());
        let (peer, connection) = tokio::join!(dialling, in_time("a connection", endpoint.accept()));
        let connection = connection.unwrap();
        let _stream = peer.stream_with(bytes).await;
        let fault = verdict(&connection).await;
        (fault, peer.closed().await.map(|(code, _)| code))
    }
}

/// Every message of the table, by every role that may not say it, and to every role that may not be told it.
#[test]
fn every_message_from_or_to_a_wrong_role_is_refused_before_its_header() {
    let field = Field::new(Site::new(toy::job(1, 1, 1, 1), Links::Quic));
    let rules = policy::rules(field.site.job.slice_bytes);
    let (mut refused, mut allowed, mut told) = (0, 0, 0);
    field.site.runtime.block_on(async {
        for to in ROLES {
            let victim = field.victim(to);
            for from in ROLES {
                let attacker = field.site.identity(from, "9");
                for rule in &rules {
                    if allows(rule, from, to) {
                        // The same garbage passes the table and fails later: at its MAC, once all of it is there.
                        let whole = message(rule.kind, HEADER as usize + 32);
                        let (fault, code) = field.attack(&attacker, &victim, &whole).await;
                        assert!(
                            matches!(fault, Fault::Mac { sequence: 0 }),
                            "{} {from} to {to}: {fault}",
                            rule.name
                        );
                        assert!(
                            code.is_none_or(|code| code == u64::from(CloseCode::Mac.number())),
                            "{code:?}"
                        );
                        allowed += 1;
                        continue;
                    }
                    let (fault, code) = field.attack(&attacker, &victim, &message(rule.kind, 3)).await;
                    let named = match &fault {
                        Fault::Policy(Violation::From { name, .. }) => {
                            !rule.from.admits(from) && *name == rule.name
                        }
                        Fault::Policy(Violation::To { name, .. }) => {
                            !rule.to.admits(to) && *name == rule.name
                        }
                        _ => false,
                    };
                    assert!(named, "{} from {from} to {to}: {fault}", rule.name);
                    assert!(
                        code.is_none_or(|code| code == u64::from(CloseCode::Policy.number())),
                        "the attacker is told why"
                    );
                    told += usize::from(code.is_some());
                    refused += 1;
                    assert!(told * 2 > refused, "of {refused} attackers, {told} were told why");
                }
            }
        }
    });
    assert_eq!(refused + allowed, rules.len() * ROLES.len() * ROLES.len());
    assert!(allowed >= rules.len() && refused > allowed * 5, "{refused} refused, {allowed} allowed");
}

/// Kinds that are not in the table, the transport's own included.
#[test]
fn every_kind_that_is_not_in_the_table_is_refused() {
    let field = Field::new(Site::new(toy::job(1, 1, 1, 1), Links::Quic));
    let rules = policy::rules(field.site.job.slice_bytes);
    field.site.runtime.block_on(async {
        let victim = field.victim(Role::Server);
        let attacker = field.site.identity(Role::Worker, "9");
        for kind in (0..=u8::MAX).filter(|kind| rules.iter().all(|rule| rule.kind != *kind)) {
            let (fault, _) = field.attack(&attacker, &victim, &message(kind, 3)).await;
            assert_eq!(fault, Fault::Policy(Violation::UnknownKind(kind)));
        }
    });
}

/// More header or payload than a row allows.
#[test]
fn every_row_bounds_its_message() {
    let field = Field::new(Site::new(toy::job(1, 1, 1, 1), Links::Quic));
    field.site.runtime.block_on(async {
        for rule in policy::rules(field.site.job.slice_bytes) {
            let role = |set: testudo_transport::RoleSet| *ROLES.iter().find(|r| set.admits(**r)).unwrap();
            let victim = field.victim(role(rule.to));
            let attacker = field.site.identity(role(rule.from), "9");
            for (header_len, payload_len) in
                [(rule.max_header + 1, 0), (u32::MAX, u64::MAX), (64, rule.max_payload + 1), (64, u64::MAX)]
            {
                let prelude = Prelude { kind: rule.kind, header_len, payload_len }.encode();
                let (fault, _) = field.attack(&attacker, &victim, &prelude).await;
                let bounded = match &fault {
                    Fault::Policy(Violation::Header { name, .. }) => {
                        header_len > rule.max_header && *name == rule.name
                    }
                    Fault::Policy(Violation::Payload { name, .. }) => *name == rule.name,
                    _ => false,
                };
                assert!(bounded, "{} with {header_len} and {payload_len}: {fault}", rule.name);
            }
        }
    });
}

/// A scheduler and a server in the middle of a run: their actors see nothing of what wrong roles send, and the run ends with
/// the bits that it would have had.
#[test]
fn a_run_under_attack_by_every_wrong_role_is_none_the_worse() {
    let job = || testudo_actors::JobSpec { heartbeat_timeout_ms: 600_000, ..toy::job(2, 1, 4, 5) };
    let expected = Simulation::new(job(), 0, SumOrder::Canonical).finish();
    let (held, adapt) = hold(0);
    let cluster = Cluster::start_with(Site::new(job(), Links::Quic), Wiring { adapt, ..Wiring::default() });
    let _ = held.reached();
    let (scheduler, server) = (cluster.scheduler, cluster.servers[0]);
    let site = &cluster.site;
    let mut attacks = 0;
    site.runtime.block_on(async {
        let attacker = RawEndpoint::bind();
        for (to, address) in [(Role::Scheduler, scheduler), (Role::Server, server)] {
            let victim = site.job.member(to, 0).unwrap();
            for from in ROLES {
                let identity = site.identity(from, "9");
                for rule in policy::rules(site.job.slice_bytes).iter().filter(|rule| !allows(rule, from, to))
                {
                    let peer = attacker.connect(&identity, address, &victim).await;
                    let _stream = peer.stream_with(&message(rule.kind, 3)).await;
                    if let Some((code, reason)) = peer.closed().await {
                        let policy = u64::from(CloseCode::Policy.number());
                        assert_eq!(code, policy, "{} from {from}: {reason}", rule.name);
                    }
                    attacks += 1;
                }
            }
        }
    });
    assert!(attacks > 150, "{attacks} are not every wrong role");
    held.release();
    let (finished, _) = cluster.finish();
    assert_eq!(finished.params_blake3, expected.params_blake3);
    assert_eq!(finished.workers_lost, 0);
}
