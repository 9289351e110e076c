//! Actors of one's own: what they say, over secured memory and over QUIC alike. Numbers are those of `actors/src/own.rs`.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use testudo_actors::link::{MemoryHub, Network};
use testudo_actors::own::{
    Actor, Caller, Context, Flow, Flows, Grants, Handle, Message, OwnActor, Remote, RunningActor, SayError,
    StoppedActor, Strategy, Supervision, Trouble, Who,
};
use testudo_actors::policy;
use testudo_kernels::Codec;
use testudo_tests::cluster::{Links, Site, wait_for};
use testudo_tests::live::until;
use testudo_tests::toy;
use testudo_transport::{CreditConfig, MemoryOptions, Role, SpiffeId};

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(60);

macro_rules! messages {
    ($($kind:literal $name:ident($($field:ty),*) -> $answer:ty;)*) => {$(
        #[derive(Clone, Debug, Serialize, Deserialize)]
        struct $name($($field),*);
        impl Message for $name {
            const KIND: u8 = $kind;
            const NAME: &'static str = stringify!($name);
            const MOST: u32 = 64;
            type Answer = $answer;
        }
    )*};
}
messages! {
    128 Add(u64) -> u64;
    129 Order(u64, String) -> String;
    130 Count(u64) -> u64;
    131 Unheard() -> ();
    132 Give(String) -> u64;
}

/// Sums what it is told; does as it is told otherwise.
#[derive(Default)]
struct Sum {
    total: u64,
    /// Waits for this before it goes on, when it is ordered to.
    gate: Option<Arc<Mutex<mpsc::Receiver<()>>>>,
    flows: Option<mpsc::Sender<bool>>,
    kept: Option<Flow<Give>>,
}

impl Actor for Sum {}

impl Handle<Add> for Sum {
    fn handle(&mut self, Add(number): Add, _: &Context<'_>) -> Result<u64, Trouble> {
        self.total += number;
        Ok(self.total)
    }
}

impl Handle<Order> for Sum {
    fn handle(&mut self, Order(_, what): Order, context: &Context<'_>) -> Result<String, Trouble> {
        match what.as_str() {
            "who" => return Ok(context.sender().short().to_owned()),
            "refuse" => return Err(Trouble::Refused("not today".into())),
            "fail" => return Err(Trouble::Failed("out of ideas".into())),
            "panic" => panic!("ordered to"),
            "stop" => context.stop(),
            "long" => return Ok("x".repeat(2000)),
            "wait" => self.gate.as_ref().unwrap().lock().unwrap().recv_timeout(PATIENCE).unwrap(),
            _ => {}
        }
        Ok(what)
    }
}

impl Flows<Count> for Sum {
    fn open(&mut self, Count(to): Count, mut flow: Flow<Count>, _: &Context<'_>) -> Result<(), Trouble> {
        if to == 0 {
            flow.refuse("nothing to count");
            return Ok(());
        }
        let done = self.flows.clone();
        std::thread::spawn(move || {
            let all = (1..=to).all(|number| flow.send_blocking(number).is_ok());
            flow.finish();
            done.map(|done| done.send(all));
        });
        Ok(())
    }
}

impl Flows<Give> for Sum {
    fn open(&mut self, Give(what): Give, mut flow: Flow<Give>, _: &Context<'_>) -> Result<(), Trouble> {
        match what.as_str() {
            "refused" => return Err(Trouble::Refused("not today".into())),
            "failed" => return Err(Trouble::Failed("out of ideas".into())),
            "panic" => panic!("ordered to"),
            "nothing" => flow.finish(),
            _ => {
                flow.send_blocking(1).unwrap();
                self.kept = (what == "kept").then_some(flow);
            }
        }
        Ok(())
    }
}

fn grants() -> Grants {
    let (callers, sum) =
        ([Who::actor("ada"), Who::actor("bob"), Who::Role(Role::Worker)], [Who::actor("sum")]);
    let grants = Grants::none().allow::<Add>(&callers, &sum).unwrap();
    let grants = grants.allow::<Order>(&callers[..1], &sum).unwrap();
    let grants = grants.allow::<Give>(&callers, &sum).unwrap();
    grants.allow::<Count>(&callers, &sum).unwrap().allow::<Unheard>(&callers, &sum).unwrap()
}

/// An actor `sum` and whoever calls it.
struct Place {
    site: Site,
    actor: RunningActor,
}

impl Place {
    fn new(links: Links, actor: OwnActor<Sum>) -> Place {
        let mut site = Site::new(toy::job(1, 1, 1, 1), links);
        site.policy = Arc::new(policy::policy_with_own(1 << 20, Codec::F32, &grants()).unwrap());
        let network = site.network(&site.identity(Role::Actor, "sum"));
        let actor = actor.hears::<Add>().hears::<Order>().flows::<Count>().flows::<Give>();
        let actor = actor.start(network, grants(), site.runtime.handle().clone()).unwrap();
        Place { site, actor }
    }

    fn plain(links: Links) -> Place {
        Place::new(links, OwnActor::new(Sum::default))
    }

    fn network(&self, role: Role, name: &str) -> Network {
        self.site.network(&self.site.identity(role, name))
    }

    fn remote(&self, name: &str) -> Remote {
        self.remote_of(Role::Actor, name, grants())
    }

    fn remote_of(&self, role: Role, name: &str, grants: Grants) -> Remote {
        let caller = Caller::new(self.network(role, name), grants, self.site.runtime.handle().clone());
        caller.to(self.actor.id(), self.actor.address())
    }
}

fn order(remote: &Remote, what: &str) -> Result<String, SayError> {
    remote.ask_blocking(&Order(0, what.into()), PATIENCE)
}

fn add(remote: &Remote, number: u64) -> Result<u64, SayError> {
    remote.ask_blocking(&Add(number), PATIENCE)
}

/// Invariant 4; and roles other than actors may be granted.
fn told_and_asked(links: Links) {
    let place = Place::plain(links);
    let (ada, worker) = (place.remote("ada"), place.remote_of(Role::Worker, "0", grants()));
    for number in 1..=100 {
        ada.tell_blocking(&Add(number)).unwrap();
    }
    assert_eq!(add(&ada, 0), Ok(5050), "what was told before is heard before");
    assert_eq!(add(&worker, 1), Ok(5051));
    assert_eq!(order(&ada, "who").unwrap(), "actor/ada");
    assert_eq!(
        order(&ada, "refuse"),
        Err(SayError::Refused { to: "actor/sum".into(), reason: "not today".into() })
    );
    let long = order(&ada, "long").unwrap_err().to_string();
    assert!(long.contains("larger than the 1024 bytes"), "{long}");
    assert_eq!(order(&ada, "stop").unwrap(), "stop", "and is answered still");
    place.actor.wait().unwrap();
}

#[test]
fn actors_are_told_and_asked_in_memory() {
    told_and_asked(Links::SecuredMemory);
    told_and_asked(Links::Memory);
}

#[test]
fn actors_are_told_and_asked_over_quic() {
    told_and_asked(Links::Quic);
}

/// Invariant 3: an ask has its time, and what comes late is nobody's.
#[test]
fn an_ask_has_its_time() {
    let (open, gate) = mpsc::channel();
    let gate = Arc::new(Mutex::new(gate));
    let place = Place::new(
        Links::SecuredMemory,
        OwnActor::new(move || Sum { gate: Some(Arc::clone(&gate)), ..Sum::default() }),
    );
    let ada = place.remote("ada");
    let late = ada.ask_blocking(&Order(0, "wait".into()), Duration::from_millis(20));
    assert!(matches!(late, Err(SayError::TimedOut { .. })), "{late:?}");
    open.send(()).unwrap();
    assert_eq!(add(&ada, 7), Ok(7), "the late answer came before this one");
    place.actor.stop().unwrap();
    let gone = add(&ada, 1).unwrap_err();
    assert!(!matches!(gone, SayError::TimedOut { .. }), "it is known at once: {gone}");
}

/// Invariant 5.
#[test]
fn failures_are_met_within_a_budget() {
    let how = Supervision { strategy: Strategy::Resume, budget: 3, within: PATIENCE * 60 };
    let place = Place::new(Links::SecuredMemory, OwnActor::new(Sum::default).supervised(how));
    let ada = place.remote("ada");
    assert_eq!(add(&ada, 5), Ok(5));
    let failed = order(&ada, "fail").unwrap_err().to_string();
    assert!(failed.contains("out of ideas"), "{failed}");
    assert_eq!(add(&ada, 5), Ok(10), "resumed as it was");
    let failed = order(&ada, "panic").unwrap_err().to_string();
    assert!(failed.contains("failed or stopped before it answered"), "{failed}");
    assert_eq!(add(&ada, 5), Ok(5), "what has panicked is made anew");
    assert!(order(&ada, "fail").is_err());
    assert!(order(&ada, "fail").is_err());
    let Err(StoppedActor::Failed { reason, .. }) = place.actor.wait() else {
        panic!("it has no budget left")
    };
    assert_eq!(reason, "out of ideas");
    assert!(add(&ada, 1).is_err());
}

/// Invariant 1: what is not granted is not said; and who says it all the same is cut off, counted, and harms nobody else.
fn granted(links: Links) {
    let place = Place::plain(links);
    let (ada, bob) = (place.remote("ada"), place.remote("bob"));
    assert_eq!(add(&bob, 0), Ok(0));
    let refused = order(&bob, "who").unwrap_err();
    assert!(matches!(refused, SayError::NotGranted { name: "Order", .. }), "{refused}");
    let large = ada.tell_blocking(&Order(0, "x".repeat(65))).unwrap_err();
    assert_eq!(large, SayError::TooLarge { name: "Order", bytes: 67, most: 64 });
    // One who has granted itself more than the actor has, by name.
    let all = [Who::Role(Role::Actor)];
    let own = Grants::none().allow::<Order>(&all, &all).unwrap().allow::<Unheard>(&all, &all).unwrap();
    for (name, what) in [("eve", "by name"), ("ada", "no handler")] {
        let eve = place.remote_of(Role::Actor, name, own.clone());
        let cut = match name {
            "eve" => order(&eve, "panic").unwrap_err(),
            _ => eve.ask_blocking(&Unheard(), PATIENCE).unwrap_err(),
        };
        assert!(matches!(cut, SayError::Lost { .. }), "{what}: {cut}");
    }
    assert_eq!(add(&bob, 1), Ok(1), "others are heard, and the order was not");
    // By role, the transport refuses before it is sent, or where it comes.
    let wide = own.allow::<Add>(&[Who::Role(Role::Server)], &all).unwrap();
    let server = place.remote_of(Role::Server, "0", wide);
    assert!(add(&server, 1).is_err());
    assert_eq!(add(&bob, 1), Ok(2));
}

#[test]
fn what_is_not_granted_is_not_heard_in_memory() {
    granted(Links::SecuredMemory);
}

#[test]
fn what_is_not_granted_is_not_heard_over_quic() {
    granted(Links::Quic);
}

/// Streams both ways: in order, whole, and ended by whoever leaves.
fn streamed(links: Links) {
    let (done, ended) = mpsc::channel();
    let place = Place::new(links, OwnActor::new(move || Sum { flows: Some(done.clone()), ..Sum::default() }));
    let ada = place.remote("ada");
    place.site.runtime.block_on(async {
        let mut flow = ada.flow::<Add>().await.unwrap();
        for number in 1..=3000 {
            flow.send(&Add(number)).await.unwrap();
        }
        flow.finish().await.unwrap();
        let mut items = ada.subscribe(&Count(3000)).await.unwrap();
        for number in 1..=3000 {
            assert_eq!(items.next().await.unwrap(), Some(number));
        }
        assert_eq!(items.next().await.unwrap(), None);
        let refused = ada.subscribe(&Count(0)).await.unwrap().next().await.unwrap_err();
        assert!(refused.to_string().contains("nothing to count"), "{refused}");
    });
    assert!(wait_for(&ended), "all were taken");
    // An endless one, of which nobody takes more than a few: the actor learns that its listener has left.
    let mut items = place.site.runtime.block_on(ada.subscribe(&Count(u64::MAX))).unwrap();
    assert_eq!(items.next_blocking().unwrap(), Some(1));
    drop(items);
    assert!(!wait_for(&ended), "the listener has left");
    // What was streamed was heard, if not before the stream's end then before long.
    until("all that was streamed to be heard", || (add(&ada, 0) == Ok(4_501_500)).then_some(()));
}

#[test]
fn streams_are_in_order_and_end_with_whoever_leaves_in_memory() {
    streamed(Links::SecuredMemory);
}

#[test]
fn streams_are_in_order_and_end_with_whoever_leaves_over_quic() {
    streamed(Links::Quic);
}

/// Invariant 6: what ends before it was finished does not look whole.
fn given(links: Links) {
    let how = Supervision { strategy: Strategy::Restart, budget: 10, within: PATIENCE * 60 };
    let place = Place::new(links, OwnActor::new(Sum::default).supervised(how));
    let ada = place.remote("ada");
    let give = |what: &str| ada.subscribe_blocking(&Give(what.into())).unwrap();
    assert_eq!(give("nothing").next_blocking(), Ok(None), "none, and that is all");
    let unfinished = "before it was finished";
    for (what, reason) in [("refused", "not today"), ("failed", "out of ideas"), ("panic", unfinished)] {
        let said = give(what).next_blocking().unwrap_err();
        assert!(matches!(&said, SayError::Refused { reason: why, .. } if why.contains(reason)), "{said}");
    }
    let mut items = give("dropped");
    assert_eq!(items.next_blocking(), Ok(Some(1)));
    assert!(items.next_blocking().unwrap_err().to_string().contains(unfinished));
    // A failure elsewhere, once it is open: by a restart, and by the actor's end.
    let mut items = give("kept");
    assert_eq!(items.next_blocking(), Ok(Some(1)), "streams have no order among them: it is open");
    let mut other = give("kept");
    assert_eq!(other.next_blocking(), Ok(Some(1)));
    assert!(items.next_blocking().unwrap_err().to_string().contains(unfinished), "another is kept");
    assert!(order(&ada, "fail").is_err());
    assert!(other.next_blocking().unwrap_err().to_string().contains(unfinished));
    let mut last = give("kept");
    assert_eq!(last.next_blocking(), Ok(Some(1)));
    place.actor.stop().unwrap();
    assert!(last.next_blocking().is_err());
}

#[test]
fn a_stream_that_was_not_finished_fails_in_memory() {
    given(Links::SecuredMemory);
    given(Links::Memory);
}

#[test]
fn a_stream_that_was_not_finished_fails_over_quic() {
    given(Links::Quic);
}

/// Runs `what`, which is to end.
fn ends(what: impl FnOnce() + Send + 'static) {
    let (over, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        what();
        let _ = over.send(());
    });
    let timed_out = Err(mpsc::RecvTimeoutError::Timeout);
    assert_ne!(ended.recv_timeout(PATIENCE), timed_out, "it hangs");
    thread.join().unwrap();
}

/// Starts an actor without peers on `runtime`.
fn alone(runtime: &tokio::runtime::Handle) -> RunningActor {
    let id = SpiffeId::new("test.local", "toy", Role::Actor, "sum").unwrap();
    let network =
        MemoryHub::default().join(id, Arc::new(grants().policy().unwrap()), MemoryOptions::default());
    OwnActor::new(Sum::default).hears::<Add>().start(network, grants(), runtime.clone()).unwrap()
}

/// An actor is stopped, or ends, without the runtime of its connections: when that is gone, and when whoever waits blocks it.
#[test]
fn an_actor_is_stopped_without_its_runtime() {
    let current = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    ends(move || {
        let runtime = current();
        let actors = [(); 3].map(|()| alone(runtime.handle()));
        drop(runtime);
        let [stopped, waited, dropped] = actors;
        stopped.stop().unwrap();
        waited.wait().unwrap();
        drop(dropped);
    });
    ends(move || {
        current().block_on(async {
            let runtime = tokio::runtime::Handle::current();
            alone(&runtime).stop().unwrap();
            drop(alone(&runtime));
        });
    });
}

/// Invariant 2: an actor that does not come to its mail has callers wait, whatever they send.
#[test]
fn mail_that_is_not_read_is_bounded() {
    let (open, gate) = mpsc::channel();
    let gate = Arc::new(Mutex::new(gate));
    let site = Site::new(toy::job(1, 1, 1, 1), Links::Memory);
    let (hub, policy) = (MemoryHub::default(), Arc::new(grants().policy().unwrap()));
    let credit = CreditConfig { bytes: 1 << 20, messages: 16 };
    let options = MemoryOptions { secured: true, data_credit: credit, ..MemoryOptions::default() };
    let network = |name| {
        let id = SpiffeId::new("test.local", "toy", Role::Actor, name).unwrap();
        hub.join(id, Arc::clone(&policy), options.clone())
    };
    let actor = OwnActor::new(move || Sum { gate: Some(Arc::clone(&gate)), ..Sum::default() });
    let runtime = site.runtime.handle().clone();
    let actor =
        actor.hears::<Add>().hears::<Order>().start(network("sum"), grants(), runtime.clone()).unwrap();
    let ada = Caller::new(network("ada"), grants(), runtime.clone()).to(actor.id(), "");
    ada.tell_blocking(&Order(0, "wait".into())).unwrap();
    // 256 letters in the mailbox, one on its way there, 16 in credit: from then on a tell waits. One before may wait for this machine.
    let (mut told, mut given_up) = (0_u64, 0);
    runtime.block_on(async {
        loop {
            let before = given_up;
            match tokio::time::timeout(Duration::from_millis(300), ada.tell(&Add(1))).await {
                Ok(_) => told += 1,
                Err(_) => given_up += 1,
            }
            if told >= 16 && given_up > before {
                break;
            }
            assert!(told <= 256 + 2 * 16 + 2 && given_up <= 200, "{told} told, {given_up} given up");
        }
    });
    open.send(()).unwrap();
    // Those that were given up may have been sent.
    let total = add(&ada, 0).unwrap();
    assert!((told..=told + given_up).contains(&total), "{told} told, {given_up} given up, {total} heard");
}

/// The name of the audit log's key is nobody else's, and other roles are no actors.
#[test]
fn an_actor_has_an_actors_identity() {
    let site = Site::new(toy::job(1, 1, 1, 1), Links::Memory);
    for (role, name) in [(Role::Actor, "audit"), (Role::Worker, "0"), (Role::Scheduler, "0")] {
        let network = site.network(&site.identity(role, name));
        let started = OwnActor::new(Sum::default).start(network, grants(), site.runtime.handle().clone());
        assert!(matches!(started, Err(StoppedActor::Identity(_))), "{role}/{name}");
    }
}
