//! Clients whose ClientHello is not whole yet, and what they sent so far: within bounds, for a while. Anybody can begin one
//! from a forged address, so when there is no room the oldest makes it: who is really there sends the rest at once.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use quinn::udp::EcnCodepoint;

use super::Key;
use crate::clock::Lately;
use crate::tunnel::client_hello::{ClientHello, NoHello};
use crate::tunnel::quic::{Hearing, Id, Version};

/// Clients of one worker of a listener.
const MOST: usize = 1024;
/// Datagrams of one client, and their bytes.
const MOST_DATAGRAMS: usize = 16;
const MOST_BYTES: usize = 32 * 1024;

/// Datagrams as they came.
pub(super) type Kept = Vec<(Box<[u8]>, Option<EcnCodepoint>)>;

#[derive(Default)]
pub(super) struct Waiting {
    /// By the client's address and the id that it made up.
    clients: HashMap<(Key, Id), Client>,
    /// In the order of their first datagrams, with some that wait no more.
    order: VecDeque<((Key, Id), Lately)>,
}

struct Client {
    since: Lately,
    hearing: Hearing,
    kept: Kept,
    bytes: usize,
}

/// What one more datagram leads to.
pub(super) enum Pushed {
    More,
    /// No room for it.
    Dropped,
    /// All that was kept, and what it says.
    Heard(Kept, Result<ClientHello, NoHello>),
}

impl Waiting {
    pub(super) fn has(&self, key: &Key, id: Id) -> bool {
        !self.clients.is_empty() && self.clients.contains_key(&(*key, id))
    }

    /// A new client. The datagrams of one that had to make room are given, if there was one.
    pub(super) fn begin(&mut self, key: Key, id: Id, version: Version) -> Option<Kept> {
        let hearing = Hearing::new(version, id)?;
        let mut left = None;
        if self.clients.len() >= MOST {
            left = self.oldest().and_then(|(oldest, _)| self.clients.remove(&oldest)).map(|client| client.kept);
        }
        if self.order.len() >= 2 * MOST {
            let clients = &self.clients;
            self.order.retain(|(name, since)| clients.get(name).is_some_and(|client| client.since == *since));
        }
        let since = Lately::now();
        self.order.push_back(((key, id), since));
        self.clients.insert((key, id), Client { since, hearing, kept: Vec::new(), bytes: 0 });
        left
    }

    pub(super) fn push(&mut self, key: Key, id: Id, datagram: &[u8], ecn: Option<EcnCodepoint>) -> Pushed {
        let Entry::Occupied(mut entry) = self.clients.entry((key, id)) else { return Pushed::Dropped };
        let client = entry.get_mut();
        if client.kept.len() >= MOST_DATAGRAMS || client.bytes + datagram.len() > MOST_BYTES {
            return Pushed::Dropped;
        }
        client.bytes += datagram.len();
        client.kept.push((datagram.into(), ecn));
        let heard = match client.hearing.push(datagram) {
            Ok(None) => return Pushed::More,
            Ok(Some(hello)) => Ok(hello),
            Err(none) => Err(none),
        };
        Pushed::Heard(entry.remove().kept, heard)
    }

    /// Who waits for longest, and for how long.
    fn oldest(&mut self) -> Option<((Key, Id), Duration)> {
        while let Some((name, since)) = self.order.front() {
            if self.clients.get(name).is_some_and(|client| client.since == *since) {
                return Some((*name, since.elapsed()));
            }
            self.order.pop_front();
        }
        None
    }

    /// The time until somebody waited for `longest`.
    pub(super) fn due(&mut self, longest: Duration) -> Option<Duration> {
        self.oldest().map(|(_, waited)| longest.saturating_sub(waited))
    }

    /// Somebody who waited for so long.
    pub(super) fn late(&mut self, longest: Duration) -> Option<(Key, Kept)> {
        let (name, waited) = self.oldest()?;
        if waited < longest {
            return None;
        }
        self.clients.remove(&name).map(|client| (name.0, client.kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> Key {
        Key { peer: ([127, 0, 0, 1], port).into(), local: [127, 0, 0, 1].into(), said: None }
    }

    fn id(number: u64) -> Id {
        Id::new(&number.to_be_bytes()).expect("an id")
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut waiting = Waiting::default();
        for number in 0..3000 {
            let left = waiting.begin(key(number), id(1), Version::V1);
            assert_eq!(left.map(|kept| kept.len()), (usize::from(number) >= MOST).then_some(1));
            assert!(matches!(waiting.push(key(number), id(1), b"datagram", None), Pushed::More));
        }
        assert_eq!(waiting.clients.len(), MOST);
        assert!(waiting.order.len() <= 2 * MOST);
        assert!(!waiting.has(&key(1), id(1)));
        assert!(waiting.has(&key(2999), id(1)));
        assert!(!waiting.has(&key(2999), id(2)), "another connection of the same client");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut waiting = Waiting::default();
        waiting.begin(key(1), id(1), Version::V1);
        for _ in 0..MOST_DATAGRAMS {
            assert!(matches!(waiting.push(key(1), id(1), &[0; 1200], None), Pushed::More));
        }
        assert!(matches!(waiting.push(key(1), id(1), &[0; 1200], None), Pushed::Dropped));
        waiting.begin(key(2), id(1), Version::V1);
        assert!(matches!(waiting.push(key(2), id(1), &[0; 20_000], None), Pushed::More));
        assert!(matches!(waiting.push(key(2), id(1), &[0; 20_000], None), Pushed::Dropped));
    }

    #[test]
    fn who_waits_too_long_leaves() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.due(Duration::ZERO), None);
        waiting.begin(key(1), id(1), Version::V1);
        waiting.begin(key(2), id(1), Version::V1);
        assert!(waiting.late(Duration::from_secs(60)).is_none());
        assert!(waiting.due(Duration::from_secs(60)).is_some_and(|due| due > Duration::from_secs(50)));
        assert_eq!(waiting.late(Duration::ZERO).map(|(key, _)| key.peer.port()), Some(1));
        assert_eq!(waiting.late(Duration::ZERO).map(|(key, _)| key.peer.port()), Some(2));
        assert!(waiting.clients.is_empty());
        assert_eq!(waiting.due(Duration::ZERO), None);
    }
}
