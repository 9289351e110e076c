//! What the integration tests share: a job, a policy, and connected pairs over every kind of link.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use testudo_transport::{
    Class, Connection, CreditConfig, Endpoint, Identity, JobCa, MemoryOptions, Outgoing, Policy, Role,
    RoleSet, Rule, SpiffeId, TransportConfig, memory,
};

pub const DAY: Duration = Duration::from_secs(24 * 3600);
pub const PUSH: u8 = 1;
pub const ACK: u8 = 2;
pub const BEAT: u8 = 3;
pub const PUSH_LIMIT: u64 = 4 << 20;

pub fn id(role: Role, index: u32) -> SpiffeId {
    SpiffeId::new("testudo.test", "mnist", role, &index.to_string()).unwrap()
}

/// A CA that is kept in the folder `ca` of this one, and so has a register.
pub fn kept_ca() -> (tempfile::TempDir, JobCa) {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("ca");
    Job::new().ca.save(&home).unwrap();
    let ca = JobCa::load(&home).unwrap();
    (folder, ca)
}

/// Workers push to servers; servers acknowledge; both say that they live.
pub fn policy() -> Arc<Policy> {
    let rule = |kind, name, from: &[Role], to: &[Role], class, max_payload| Rule {
        kind,
        name,
        from: RoleSet::of(from),
        to: RoleSet::of(to),
        class,
        max_header: 1024,
        max_payload,
        rate: None,
    };
    let both = [Role::Server, Role::Worker];
    Arc::new(
        Policy::new(vec![
            rule(PUSH, "push", &[Role::Worker], &[Role::Server], Class::Data, PUSH_LIMIT),
            rule(ACK, "ack", &[Role::Server], &[Role::Worker], Class::Data, 64 << 10),
            rule(BEAT, "beat", &both, &both, Class::Control, 0),
        ])
        .unwrap(),
    )
}

pub struct Job {
    pub ca: JobCa,
}

impl Job {
    pub fn new() -> Self {
        Job { ca: JobCa::create("testudo.test", "mnist", 30 * DAY).unwrap() }
    }

    pub fn identity(&self, role: Role, index: u32) -> Identity {
        self.ca.issue(&id(role, index), DAY).unwrap()
    }

    pub fn endpoint(&self, role: Role, index: u32, config: &TransportConfig) -> Endpoint {
        Endpoint::bind(config, self.identity(role, index), policy()).unwrap()
    }
}

/// The three kinds of link that one suite runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Quic,
    Secured,
    Direct,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Quic, Kind::Secured, Kind::Direct];
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub control: CreditConfig,
    pub data: CreditConfig,
    pub stall: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            control: TransportConfig::DEFAULT_CONTROL_CREDIT,
            data: TransportConfig::DEFAULT_DATA_CREDIT,
            stall: Duration::from_secs(60),
        }
    }
}

/// A worker's and a server's connection with each other, and what must live as long as they do.
pub struct Pair {
    pub worker: Connection,
    pub server: Connection,
    pub endpoints: Vec<Endpoint>,
}

pub async fn pair(kind: Kind, settings: &Settings) -> Pair {
    let (worker, server) = (id(Role::Worker, 0), id(Role::Server, 0));
    if kind == Kind::Quic {
        let job = Job::new();
        let config = TransportConfig {
            control_credit: settings.control,
            data_credit: settings.data,
            stall_timeout: settings.stall,
            handshake_timeout: Duration::from_secs(60),
            // The same suite runs over memory, where what is sent first waits for nobody to hear it.
            unheard: u32::MAX,
            ..TransportConfig::default()
        };
        let listening = job.endpoint(Role::Server, 0, &config);
        let dialling = job.endpoint(Role::Worker, 0, &config);
        let address = listening.local_addr();
        let (dialled, accepted) = tokio::join!(dialling.connect(address, &server), listening.accept());
        return Pair {
            worker: dialled.unwrap(),
            server: accepted.unwrap(),
            endpoints: vec![listening, dialling],
        };
    }
    let options = MemoryOptions {
        secured: kind == Kind::Secured,
        secret: [7; 32],
        control_credit: settings.control,
        data_credit: settings.data,
        stall_timeout: settings.stall,
        ..MemoryOptions::default()
    };
    let (worker, server) = memory::pair(&worker, &server, policy(), options);
    Pair { worker, server, endpoints: Vec::new() }
}

pub fn push(request: u64, payload: impl Into<Bytes>) -> Outgoing {
    Outgoing::new(PUSH, request, Vec::new()).with_payload(payload)
}

pub async fn on_every_link(settings: Settings, test: impl AsyncFn(Kind, Pair)) {
    for kind in Kind::ALL {
        let pair = pair(kind, &settings).await;
        test(kind, pair).await;
    }
}
