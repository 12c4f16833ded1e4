//! Connection ids: as values, and as what tells where a client is served that comes back from another address.
//!
//! A server chooses the ids it is reached by and puts the first into its handshake, where everybody can read it (RFC 9000,
//! section 5.1). When a NAT gives a client another port, which may lead to another worker, the id is all that says whose
//! datagrams these are. Later ids are encrypted: who moves on purpose takes one of those, and is known to nobody but the server.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::client_hello::ClientHello;

/// Bytes of an id (RFC 9000, section 17.2).
pub(super) const LONGEST: usize = 20;
/// Shorter ones say too little to be told from one another.
const SHORTEST: usize = 4;
const SHARDS: usize = 16;
/// Ids of a shard and of a generation: there are two, so 64 Ki at most are known of a listener.
const MOST: usize = 2048;

/// A connection id.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub(crate) struct Id {
    length: u8,
    bytes: [u8; LONGEST],
}

impl Id {
    /// `None` for what is longer than an id can be.
    pub(crate) fn new(id: &[u8]) -> Option<Self> {
        let mut bytes = [0; LONGEST];
        bytes.get_mut(..id.len())?.copy_from_slice(id);
        Some(Self { length: id.len() as u8, bytes })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length.into()]
    }

    /// Whether it tells one connection from others.
    pub(crate) fn tells(&self) -> bool {
        usize::from(self.length) >= SHORTEST
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Where a connection is served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Known {
    pub(crate) cluster: Arc<str>,
    pub(crate) endpoint: SocketAddr,
    pub(crate) hello: ClientHello,
}

/// The ids that the servers behind a listener chose, for all workers. A lock is taken when a connection begins and when a
/// datagram comes from an address that is not known, never for any other.
#[derive(Default)]
pub(crate) struct Ids {
    hashes: RandomState,
    shards: [Mutex<Generations>; SHARDS],
    /// A bit for each length there is.
    lengths: AtomicU32,
}

/// What was not asked for while the younger filled up is forgotten.
#[derive(Default)]
struct Generations {
    young: HashMap<Id, Arc<Known>>,
    old: HashMap<Id, Arc<Known>>,
}

impl Ids {
    /// The first to name an id keeps it: no server takes over another's connections.
    pub(crate) fn learn(&self, id: Id, known: &Arc<Known>) {
        if !id.tells() {
            return;
        }
        self.lengths.fetch_or(1 << id.length, Ordering::Relaxed);
        self.with(&id, |shard| {
            if shard.find(&id).is_none() {
                shard.put(id, known.clone());
            }
        });
    }

    pub(crate) fn find(&self, id: &[u8]) -> Option<Arc<Known>> {
        let id = Id::new(id).filter(Id::tells)?;
        let lengths = self.lengths.load(Ordering::Relaxed);
        if lengths & 1 << id.length == 0 { None } else { self.with(&id, |shard| shard.find(&id)) }
    }

    /// By what begins with an id of a length that is not said.
    pub(crate) fn find_in(&self, bytes: &[u8]) -> Option<(Id, Arc<Known>)> {
        let found = |length| Some((Id::new(&bytes[..length])?, self.find(&bytes[..length])?));
        (SHORTEST..=LONGEST.min(bytes.len())).rev().find_map(found)
    }

    fn with<T>(&self, id: &Id, look: impl FnOnce(&mut Generations) -> T) -> T {
        let shard = self.hashes.hash_one(id) as usize % SHARDS;
        // Nothing that could panic happens under the lock.
        look(&mut self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Generations {
    fn find(&mut self, id: &Id) -> Option<Arc<Known>> {
        if let Some(known) = self.young.get(id) {
            return Some(known.clone());
        }
        let known = self.old.remove(id)?;
        self.put(*id, known.clone());
        Some(known)
    }

    fn put(&mut self, id: Id, known: Arc<Known>) {
        if self.young.len() >= MOST {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(id, known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(port: u16) -> Arc<Known> {
        let endpoint = ([127, 0, 0, 1], port).into();
        Arc::new(Known { cluster: "a".into(), endpoint, hello: ClientHello::default() })
    }

    #[test]
    fn ids_are_found_by_themselves_and_at_the_head_of_a_packet() {
        let ids = Ids::default();
        let id = |bytes: &[u8]| Id::new(bytes).expect("no longer than an id");
        ids.learn(id(&[1; 8]), &known(1));
        ids.learn(id(&[2; 20]), &known(2));
        ids.learn(id(&[3; 3]), &known(3));
        assert_eq!(ids.find(&[1; 8]).map(|known| known.endpoint.port()), Some(1));
        assert_eq!(ids.find(&[1; 9]), None);
        assert_eq!(ids.find_in(&[1; 40]).map(|(_, known)| known.endpoint.port()), Some(1));
        assert_eq!(ids.find_in(&[2; 40]).map(|(id, known)| (id.bytes().len(), known.endpoint.port())), Some((20, 2)));
        assert_eq!(ids.find_in(&[3; 40]), None, "too short to tell anything");
        assert_eq!(ids.find_in(&[1; 3]), None);
        ids.learn(id(&[1; 8]), &known(4));
        assert_eq!(ids.find(&[1; 8]).map(|known| known.endpoint.port()), Some(1), "it is taken");
        assert_eq!(Id::new(&[0; 21]), None);
    }

    #[test]
    fn there_are_never_more_than_the_bound_and_what_is_used_stays() {
        let ids = Ids::default();
        let used = Id::new(&[9; 8]).expect("an id");
        ids.learn(used, &known(9));
        for number in 0..200_000_u64 {
            ids.learn(Id::new(&number.to_be_bytes()).expect("an id"), &known(1));
            if number % 1000 == 0 {
                assert!(ids.find(used.bytes()).is_some());
            }
        }
        let held = |shard: &Mutex<Generations>| {
            let shard = shard.lock().expect("no panic");
            shard.young.len() + shard.old.len()
        };
        assert!(ids.shards.iter().map(held).sum::<usize>() <= 2 * SHARDS * MOST);
        assert!(ids.find(&0_u64.to_be_bytes()).is_none());
    }
}
