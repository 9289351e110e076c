//! Places: how many handshakes and connections each address and each identity has, and how fast each identity is heard.
//!
//! An address may take half of the places that there are for handshakes, and half of those for connections: whatever it does, as
//! many are left for all others. That is room for the largest job behind one address, of whose nodes each has one. So an identity that has no
//! connection is let in whatever else comes from its address: neighbours do not keep it out, and the CA says how many there are.
//!
//! Invariants:
//!
//! 1. One address (in IPv6, one /64) has at most half of the handshakes, counted once it has proved itself; before that, newcomers
//!    have the door's few places in all. Of connections that were accepted it has at most half, and one more for each identity.
//! 2. One identity has at most `per_peer` connections that it opened.
//! 3. The pace of an identity is one over all its connections, whoever dialled, and over those that have ended: who closes and comes
//!    back is heard as if it had stayed.
//! 4. Memory is bounded by what is open and by [`IDENTITIES`] names of who is gone, of which the one that left longest ago makes
//!    room. To be forgotten an identity needs as many others that leave after it: a new rate costs more than waiting for it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::door::{IDENTITIES, Source};
use super::table::Table;
use crate::budget::Rate;
use crate::config::TransportConfig;
use crate::connection::Paced;
use crate::identity::SpiffeId;
use crate::promises::Promise;

/// What one address may have of what there is for all: one in so many.
const ADDRESS_SHARE: usize = 2;

/// The counts of an endpoint. Clones are handles to the same ones.
#[derive(Debug, Clone)]
pub(super) struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Handshakes in progress.
    handshakes: AtomicUsize,
    /// Connections in both directions, those included whose handshake is in progress.
    connections: AtomicUsize,
    most: Most,
    counts: Mutex<Counts>,
}

/// What there is, for all and for each.
#[derive(Debug, Clone, Copy)]
struct Most {
    handshakes: usize,
    connections: usize,
    per_peer: usize,
    streams: Rate,
}

#[derive(Debug)]
struct Counts {
    handshakes: HashMap<Source, usize>,
    connections: HashMap<Source, usize>,
    peers: HashMap<SpiffeId, Peer>,
    /// The paces of those who have no connection any more.
    gone: Table<SpiffeId, Arc<Paced>>,
}

/// An identity that has a connection.
#[derive(Debug)]
struct Peer {
    accepted: usize,
    dialled: usize,
    pace: Arc<Paced>,
}

/// Why there is no place for a peer's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// It has as many as one peer may have.
    Peer,
    /// Its address has as many as one address may have, and the peer has one of them.
    Address,
}

impl Places {
    pub(super) fn new(config: &TransportConfig) -> Places {
        let most = Most {
            handshakes: config.max_handshakes,
            connections: config.max_connections,
            per_peer: config.max_connections_per_peer,
            streams: config.streams,
        };
        let (handshakes, connections, peers) = Default::default();
        let counts = Counts { handshakes, connections, peers, gone: Table::new(IDENTITIES) };
        let (handshakes, connections) = Default::default();
        Places(Arc::new(Shared { handshakes, connections, most, counts: Mutex::new(counts) }))
    }

    /// Handshakes in progress.
    pub(super) fn handshakes(&self) -> usize {
        self.0.handshakes.load(Ordering::Relaxed)
    }

    /// Connections open, those included whose handshake is in progress.
    pub(super) fn connections(&self) -> usize {
        self.0.connections.load(Ordering::Relaxed)
    }

    /// A place for a handshake, if there is one for whom it is with: an address, if it is proved.
    pub(super) fn handshake(&self, proved: Option<IpAddr>) -> Option<Handshake> {
        if !one_more(&self.0.handshakes, self.0.most.handshakes) {
            return None;
        }
        let mut place = Handshake { places: self.clone(), source: None };
        if let Some(address) = proved {
            let (source, most) = (Source::of(address), share(self.0.most.handshakes));
            if !take(&mut self.0.counts().handshakes, &source, |held| held < most) {
                return None;
            }
            place.source = Some(source);
        }
        Some(place)
    }

    /// A place for a connection, if there is one.
    pub(super) fn slot(&self) -> Option<Slot> {
        one_more(&self.0.connections, self.0.most.connections).then(|| Slot {
            places: self.clone(),
            holder: None,
            _promise: None,
        })
    }
}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// At least one, or nobody could come in.
fn share(all: usize) -> usize {
    (all / ADDRESS_SHARE).max(1)
}

fn one_more(count: &AtomicUsize, limit: usize) -> bool {
    let next = |held: usize| (held < limit).then_some(held + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
}

/// One more for `key`, if what it holds allows it.
fn take<K: Clone + Eq + Hash>(
    counts: &mut HashMap<K, usize>,
    key: &K,
    may: impl FnOnce(usize) -> bool,
) -> bool {
    let held = counts.get(key).copied().unwrap_or(0);
    let may = may(held);
    if may {
        counts.insert(key.clone(), held + 1);
    }
    may
}

fn give_back<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(held) = counts.get_mut(key) {
        *held = held.saturating_sub(1);
        if *held == 0 {
            counts.remove(key);
        }
    }
}

impl Counts {
    fn peer(&mut self, id: &SpiffeId, streams: Rate) -> &mut Peer {
        match self.peers.entry(id.clone()) {
            Entry::Occupied(here) => here.into_mut(),
            Entry::Vacant(free) => {
                let pace = self.gone.remove(id).unwrap_or_else(|| Arc::new(Paced::new(streams)));
                free.insert(Peer { accepted: 0, dialled: 0, pace })
            }
        }
    }

    fn accept(&mut self, most: &Most, id: &SpiffeId, source: Source) -> Result<Arc<Paced>, NoPlace> {
        let held = self.peers.get(id).map_or(0, |peer| peer.accepted);
        if held >= most.per_peer {
            return Err(NoPlace::Peer);
        }
        let share = share(most.connections);
        if !take(&mut self.connections, &source, |of_address| held == 0 || of_address < share) {
            return Err(NoPlace::Address);
        }
        let peer = self.peer(id, most.streams);
        peer.accepted += 1;
        Ok(Arc::clone(&peer.pace))
    }

    fn dial(&mut self, most: &Most, id: &SpiffeId) -> Arc<Paced> {
        let peer = self.peer(id, most.streams);
        peer.dialled += 1;
        Arc::clone(&peer.pace)
    }

    fn leave(&mut self, id: &SpiffeId, source: Option<Source>) {
        let Entry::Occupied(mut here) = self.peers.entry(id.clone()) else { return };
        let peer = here.get_mut();
        match source {
            Some(source) => {
                peer.accepted = peer.accepted.saturating_sub(1);
                give_back(&mut self.connections, &source);
            }
            None => peer.dialled = peer.dialled.saturating_sub(1),
        }
        if peer.accepted + peer.dialled == 0 {
            let Peer { pace, .. } = here.remove();
            self.gone.entry(id, || pace);
        }
    }
}

/// A handshake's place, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Handshake {
    places: Places,
    source: Option<Source>,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let Places(shared) = &self.places;
        shared.handshakes.fetch_sub(1, Ordering::Relaxed);
        if let Some(source) = &self.source {
            give_back(&mut shared.counts().handshakes, source);
        }
    }
}

/// A connection's place, free again when this is dropped.
pub(super) struct Slot {
    places: Places,
    /// Whose it is, and from where; from nowhere if this node has dialled.
    holder: Option<(SpiffeId, Option<Source>)>,
    _promise: Option<Promise>,
}

impl Slot {
    /// The same place, with memory.
    pub(super) fn with(mut self, promise: Promise) -> Slot {
        self._promise = Some(promise);
        self
    }

    /// The same place for a peer that dialled from `address`, and its pace.
    pub(super) fn accepted(
        mut self,
        peer: &SpiffeId,
        address: IpAddr,
    ) -> Result<(Slot, Arc<Paced>), NoPlace> {
        let (shared, source) = (Arc::clone(&self.places.0), Source::of(address));
        let pace = shared.counts().accept(&shared.most, peer, source)?;
        self.holder = Some((peer.clone(), Some(source)));
        Ok((self, pace))
    }

    /// The same place for a peer that this node has dialled, and its pace.
    pub(super) fn dialled(mut self, peer: &SpiffeId) -> (Slot, Arc<Paced>) {
        let shared = Arc::clone(&self.places.0);
        let pace = shared.counts().dial(&shared.most, peer);
        self.holder = Some((peer.clone(), None));
        (self, pace)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Places(shared) = &self.places;
        shared.connections.fetch_sub(1, Ordering::Relaxed);
        if let Some((peer, source)) = self.holder.take() {
            shared.counts().leave(&peer, source);
        }
    }
}

#[cfg(test)]
mod tests;
