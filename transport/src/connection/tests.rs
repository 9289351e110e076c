use super::*;
use crate::identity::Role;
use crate::memory::{MemoryOptions, pair};

fn id(role: Role) -> SpiffeId {
    SpiffeId::new("t", "j", role, "0").unwrap()
}

/// Invariant 6: a peer that was cut off blamed this node for streams that were abandoned, and never heard that it was revoked.
#[test]
fn nobody_knows_of_an_end_before_the_link_is_closed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let policy = Arc::new(Policy::new(Vec::new()).unwrap());
    let (ours, theirs) = pair(&id(Role::Server), &id(Role::Worker), policy, MemoryOptions::default());
    let Link::Memory(end) = &ours.inner().link else { unreachable!() };
    let held = end.held_open();
    let closing = std::thread::spawn({
        let ours = ours.clone();
        move || ours.close(CloseCode::Untrusted.number(), "revoked")
    });
    // However long it takes: as long as the link is open, the failure is nobody's.
    std::thread::sleep(Duration::from_millis(50));
    assert!(ours.inner().failure.get().is_none());
    assert!(theirs.inner().failure.get().is_none());
    drop(held);
    // A stream that ends meanwhile waits for the reason.
    let why =
        |told: &Error, peers| matches!(told, Error::Closed { by_peer, code: 9, .. } if *by_peer == peers);
    assert!(why(&runtime.block_on(ours.closed()), false));
    assert!(why(&runtime.block_on(theirs.closed()), true));
    closing.join().unwrap();
}
