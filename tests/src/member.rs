//! A worker that a test plays by hand, over real connections: it says what the test wants it to say.
//!
//! Every wait has a bound that only a hang reaches.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use testudo_actors::JobSpec;
use testudo_actors::incarnation::Secret;
use testudo_actors::link::Network;
use testudo_actors::message::{
    Body, Failure, Hello, Join, JoinRefused, MemberRole, Membership, Pull, PullRefusal, PullRefused, Push,
    PushAccepted, PushRefusal, PushRefused, Shutdown, SliceVersion, Welcome,
};
use testudo_actors::node::RELEASE;
use testudo_actors::placement::SliceMap;
use testudo_transport::{Class, Connection, Message, Outgoing, Receiver, Sender, SpiffeId};

/// Far beyond what any answer takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The answer to `what`, in time.
///
/// # Panics
/// When it does not come within a minute.
pub async fn in_time<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited for {what} in vain"),
    }
}

/// How `job`'s parameters lie on its servers.
#[must_use]
pub fn placement(job: &JobSpec) -> SliceMap {
    SliceMap::of(job, &job.model.parameters().unwrap()).unwrap()
}

/// What the node of `network` shows servers: the same whenever a test plays it.
#[must_use]
pub fn secret(network: &Network) -> Secret {
    Secret::known(*blake3::hash(network.id().as_str().as_bytes()).as_bytes())
}

/// A node's line to the scheduler.
#[derive(Debug)]
pub struct Member {
    connection: Connection,
    say: Sender,
    hear: Receiver,
}

impl Member {
    /// Dials the scheduler and asks to take part; the reason if it says no.
    ///
    /// # Errors
    /// Why the scheduler refuses.
    pub async fn join(network: &Network, scheduler: &str, role: MemberRole) -> Result<Member, String> {
        let address = (role == MemberRole::Server).then(|| network.local_addr().to_string());
        let commitment = secret(network).commitment();
        let fingerprint = testudo_kernels::fingerprint();
        let join = Join { release: RELEASE.into(), fingerprint, address, commitment };
        Member::join_as(network, scheduler, &join).await
    }

    /// As [`join`](Member::join), saying this of itself.
    ///
    /// # Errors
    /// As [`join`](Member::join).
    pub async fn join_as(network: &Network, scheduler: &str, join: &Join) -> Result<Member, String> {
        let own = network.id();
        let id =
            SpiffeId::new(own.trust_domain(), own.job(), testudo_transport::Role::Scheduler, "0").unwrap();
        let connection = in_time("the scheduler", network.connect(scheduler, &id)).await.unwrap();
        let (say, hear) = connection.open(Class::Control, 0).await.unwrap();
        let mut member = Member { connection, say, hear };
        member.tell(join).await;
        let answer = member.hear().await;
        match answer.kind {
            Welcome::KIND => Ok(member),
            JoinRefused::KIND => Err(JoinRefused::decode(&answer.body).unwrap().reason),
            other => panic!("kind {other} is no answer to a join"),
        }
    }

    /// Says something to the scheduler.
    pub async fn tell<B: Body>(&mut self, body: &B) {
        in_time("room for a message", self.say.send(Outgoing::new(B::KIND, 0, body.encode()))).await.unwrap();
    }

    /// What the scheduler says next.
    pub async fn hear(&mut self) -> Message {
        in_time("the scheduler's word", self.hear.recv()).await.unwrap().expect("the scheduler says more")
    }

    /// The next message of that kind; others are passed over.
    pub async fn hear_of<B: Body>(&mut self) -> B {
        loop {
            let message = self.hear().await;
            if message.kind == B::KIND {
                return B::decode(&message.body).unwrap();
            }
        }
    }

    /// The next membership.
    pub async fn membership(&mut self) -> Membership {
        self.hear_of::<Membership>().await
    }

    /// The connection.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

/// Ends the run whose workers these all are: each says that it cannot go on. All but the first are lost, one after the other;
/// then the run fails with [`GIVEN_UP`].
pub async fn give_up<'a>(members: impl DoubleEndedIterator<Item = &'a mut Member>) {
    let mut members: Vec<&mut Member> = members.rev().collect();
    let first = members.pop();
    for member in members {
        member.tell(&Failure { reason: "seen enough".into() }).await;
        in_time("the scheduler to hang up", member.connection.closed()).await;
    }
    if let Some(first) = first {
        first.tell(&Failure { reason: "seen enough".into() }).await;
        let told = first.hear_of::<Shutdown>().await;
        assert!(!told.may_go_on, "what goes wrong once would go wrong again: {told:?}");
    }
}

/// How a run fails whose workers have [given up](give_up), if worker 0 is the first of them.
pub const GIVEN_UP: &str = "worker/0: seen enough";

/// A server's answer to a push or a pull.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// A push is stored; whether it had been there already.
    Accepted(bool),
    /// A push is not taken.
    Refused(PushRefusal),
    /// A version of a slice.
    Values(Vec<f32>),
    /// A pull is not served.
    NotServed(PullRefusal),
}

/// A stream to a server.
#[derive(Debug)]
pub struct Lane {
    connection: Connection,
    say: Sender,
    hear: Receiver,
    requests: u64,
    /// Answers that came while another was waited for.
    early: HashMap<u64, Answer>,
}

impl Lane {
    /// Dials `server` at `address`.
    pub async fn dial(network: &Network, address: &str, server: &SpiffeId) -> Lane {
        Lane::dial_as(network, address, server, &secret(network)).await
    }

    /// As [`dial`](Lane::dial), showing that secret.
    pub async fn dial_as(network: &Network, address: &str, server: &SpiffeId, secret: &Secret) -> Lane {
        let connection = in_time("a server", network.connect(address, server)).await.unwrap();
        let mut lane = Lane::open(&connection).await;
        let hello = Outgoing::new(Hello::KIND, 0, secret.hello().encode());
        in_time("room for a hello", lane.say.send(hello)).await.unwrap();
        lane
    }

    /// Opens a stream on that connection.
    pub async fn open(connection: &Connection) -> Lane {
        let (say, hear) = connection.open(Class::Data, 0).await.unwrap();
        Lane { connection: connection.clone(), say, hear, requests: 0, early: HashMap::new() }
    }

    /// The connection.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Sends a push; the request's number.
    pub async fn push(&mut self, push: &Push, values: &[f32]) -> u64 {
        self.push_bytes(push, Bytes::copy_from_slice(bytemuck::cast_slice(values))).await
    }

    /// Sends a push to a server that may have hung up by now.
    pub async fn try_push(&mut self, push: &Push, values: &[f32]) {
        self.requests += 1;
        let payload = Bytes::copy_from_slice(bytemuck::cast_slice(values));
        let message = Outgoing::new(Push::KIND, self.requests, push.encode()).with_payload(payload);
        let _ = in_time("room for a push", self.say.send(message)).await;
    }

    /// Sends a push of any bytes; the request's number.
    pub async fn push_bytes(&mut self, push: &Push, payload: Bytes) -> u64 {
        self.requests += 1;
        let message = Outgoing::new(Push::KIND, self.requests, push.encode()).with_payload(payload);
        in_time("room for a push", self.say.send(message)).await.unwrap();
        self.requests
    }

    /// Sends a pull; the request's number.
    pub async fn pull(&mut self, pull: &Pull) -> u64 {
        self.requests += 1;
        let message = Outgoing::new(Pull::KIND, self.requests, pull.encode());
        in_time("room for a pull", self.say.send(message)).await.unwrap();
        self.requests
    }

    /// The answer to that request.
    pub async fn answer(&mut self, request: u64) -> Answer {
        loop {
            if let Some(answer) = self.early.remove(&request) {
                return answer;
            }
            let message = in_time("an answer", self.hear.recv()).await.unwrap().expect("a server answers");
            self.early.insert(message.envelope.request, read(&message));
        }
    }

    /// Whether the answer to that request has come; what has come by now is taken in.
    pub fn answered(&mut self, request: u64) -> bool {
        self.early.contains_key(&request)
    }

    /// Pushes and waits for the answer.
    pub async fn pushed(&mut self, push: &Push, values: &[f32]) -> Answer {
        let request = self.push(push, values).await;
        self.answer(request).await
    }

    /// Pulls and waits for the answer.
    pub async fn pulled(&mut self, pull: &Pull) -> Answer {
        let request = self.pull(pull).await;
        self.answer(request).await
    }
}

fn read(message: &Message) -> Answer {
    let body = message.body.as_slice();
    match message.kind {
        PushAccepted::KIND => Answer::Accepted(PushAccepted::decode(body).unwrap().duplicate),
        PushRefused::KIND => Answer::Refused(PushRefused::decode(body).unwrap().reason),
        SliceVersion::KIND => {
            SliceVersion::decode(body).unwrap();
            Answer::Values(bytemuck::pod_collect_to_vec(message.payload.as_bytes()))
        }
        PullRefused::KIND => Answer::NotServed(PullRefused::decode(body).unwrap().reason),
        other => panic!("kind {other} is no answer of a server"),
    }
}
