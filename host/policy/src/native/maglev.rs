//! Consistent hashing by Maglev's table (Eisenbud et al., NSDI 2016), with bounded load (Mirrokni et al., 2018).

use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytestring::ByteString;
use http::HeaderName;
use rustc_hash::FxBuildHasher;

use crate::{Answered, Asked, Balancer, Choice, Decision, EndpointSet, EndpointsView};

/// What of a request is hashed.
#[derive(Clone, Debug)]
pub enum HashOn {
    ClientIp,
    Path,
    Header(HeaderName),
    Cookie(String),
}

/// A look-up table from hash to endpoint that changes little when endpoints come and go. Built once per set.
pub struct Maglev {
    table: Box<[u32]>,
    on: HashOn,
}

/// An endpoint over this share of the average load is passed over for the next of the table.
const BOUND: f64 = 1.25;

impl Maglev {
    /// `size` should be a prime, a hundred times the number of endpoints or more; 65,537 is usual.
    pub fn new(set: &Arc<EndpointSet>, size: usize, on: HashOn) -> Self {
        let members: Vec<_> = set.endpoints.iter().map(|endpoint| (endpoint.address, endpoint.weight)).collect();
        Self { table: maglev_table(&members, size), on }
    }

    /// The endpoint for `key`: the table's, or the next one of it that is available and not overloaded.
    pub fn pick_by_hash(&self, view: &EndpointsView, key: u64) -> Option<u32> {
        let size = self.table.len();
        if size == 0 {
            return None;
        }
        let start = (mix(key) % size as u64) as usize;
        let first = self.table[start];
        let load = Load::of(view);
        let free = |index: &u32| {
            view.available(*index) && load.as_ref().is_none_or(|load| view.in_flight(*index) < load.bound(view, *index))
        };
        if free(&first) {
            return Some(first);
        }
        let following = || (1..size).map(|step| self.table[(start + step) % size]);
        // All that were probed are loaded: the first that is available at all.
        following()
            .take(PROBES)
            .find(free)
            .or_else(|| view.available(first).then_some(first))
            .or_else(|| following().take(PROBES).find(|index| view.available(*index)))
            .or_else(|| (0..view.len() as u32).find(|index| view.available(*index)))
    }

    fn key(&self, asked: &Asked) -> u64 {
        let mut hasher = FxBuildHasher.build_hasher();
        match &self.on {
            HashOn::ClientIp => match asked.client {
                std::net::IpAddr::V4(ip) => hasher.write(&ip.octets()),
                std::net::IpAddr::V6(ip) => hasher.write(&ip.octets()),
            },
            HashOn::Path => hasher.write(asked.request.target.path().as_bytes()),
            HashOn::Header(name) => match asked.request.headers.get(name) {
                Some(value) => hasher.write(value.as_bytes()),
                None => return fastrand::u64(..),
            },
            HashOn::Cookie(name) => match asked.cookie(name) {
                Some(value) => hasher.write(&value),
                None => return fastrand::u64(..),
            },
        }
        hasher.finish()
    }
}

/// What the available endpoints have in flight and weigh together.
struct Load {
    in_flight: u64,
    weight: u64,
}

impl Load {
    fn of(view: &EndpointsView) -> Option<Self> {
        // Summing a thousand endpoints would cost more than it gives: then the limit of each endpoint must do.
        if view.len() > 128 {
            return None;
        }
        let mut load = Self { in_flight: 0, weight: 0 };
        for index in (0..view.len() as u32).filter(|index| view.available(*index)) {
            load.in_flight += u64::from(view.in_flight(index));
            load.weight += view.get(index).map_or(0, |endpoint| u64::from(endpoint.weight));
        }
        Some(load)
    }

    /// Most requests in flight for one endpoint: its part by weight of what all have, and a quarter, one at least.
    fn bound(&self, view: &EndpointsView, index: u32) -> u32 {
        let weight = view.get(index).map_or(0, |endpoint| endpoint.weight);
        let part = f64::from(weight) / self.weight.max(1) as f64;
        ((self.in_flight + 1) as f64 * BOUND * part).ceil() as u32
    }
}

/// Entries probed beyond the first: with random neighbours this meets every endpoint of a small cluster many times.
const PROBES: usize = 512;

fn mix(key: u64) -> u64 {
    let mut z = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Maglev's table by itself: `size` entries, each the index of one of `members`, which are addresses and weights. Every
/// member has its own permutation of the entries and takes turns, as often as it weighs, at claiming its next. Empty where
/// none has a weight. The same for the same members, in whatever process.
pub fn maglev_table(members: &[(SocketAddr, u32)], size: usize) -> Box<[u32]> {
    const FREE: u32 = u32::MAX;
    let size = size.max(1);
    let heaviest = members.iter().map(|(_, weight)| *weight).max().unwrap_or(0);
    if heaviest == 0 {
        return Box::new([]);
    }
    struct Claim {
        index: u32,
        at: u64,
        skip: u64,
        /// Turns, in shares of the heaviest one's.
        credit: f64,
        share: f64,
    }
    let mut claims: Vec<Claim> = members
        .iter()
        .enumerate()
        .filter(|(_, (_, weight))| *weight > 0)
        .map(|(index, (address, weight))| {
            // By address, not by index: an endpoint keeps its entries when others come and go.
            let name = FxBuildHasher.hash_one(address);
            let skip = if size > 1 { mix(name ^ 0x5bd1_e995) % (size as u64 - 1) + 1 } else { 0 };
            let share = f64::from(*weight) / f64::from(heaviest);
            Claim { index: index as u32, at: mix(name) % size as u64, skip, credit: 0.0, share }
        })
        .collect();
    let mut table = vec![FREE; size];
    let mut filled = 0;
    while filled < size {
        for claim in &mut claims {
            claim.credit += claim.share;
            if claim.credit < 1.0 {
                continue;
            }
            claim.credit -= 1.0;
            // Finds a free entry within one permutation when `size` is prime; a size that is not falls back to a scan.
            let mut steps = 0;
            while table[claim.at as usize] != FREE && steps < size {
                claim.at = (claim.at + claim.skip) % size as u64;
                steps += 1;
            }
            let place = if table[claim.at as usize] == FREE {
                claim.at as usize
            } else {
                table.iter().position(|entry| *entry == FREE).unwrap_or(0)
            };
            table[place] = claim.index;
            filled += 1;
            if filled == size {
                break;
            }
        }
    }
    table.into()
}

impl Balancer for Maglev {
    fn name(&self) -> ByteString {
        ByteString::from_static("maglev")
    }

    fn pick(&self, asked: &Rc<Asked>, view: &EndpointsView) -> Decision<Choice> {
        let picked = self.pick_by_hash(view, self.key(asked));
        Ok(Answered::native(picked.map_or(Choice::None, Choice::Endpoint)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::contract::endpoints;

    fn shares(maglev: &Maglev, size: usize) -> Vec<usize> {
        let mut shares = vec![0; size];
        for entry in &maglev.table {
            shares[*entry as usize] += 1;
        }
        shares
    }

    #[test]
    fn entries_follow_the_weights() {
        let maglev = Maglev::new(&endpoints(&[1, 2, 1]), 65_537, HashOn::ClientIp);
        let shares = shares(&maglev, 3);
        assert!((16_000..17_000).contains(&shares[0]), "{shares:?}");
        assert!((32_000..34_000).contains(&shares[1]), "{shares:?}");
    }

    /// NSDI 2016, section 5.3: losing one of n endpoints moves little but what it had.
    #[test]
    fn losing_an_endpoint_moves_few_others() {
        let before = Maglev::new(&endpoints(&[1; 10]), 65_537, HashOn::ClientIp);
        let mut weights = [1; 10];
        weights[3] = 0;
        let after = Maglev::new(&endpoints(&weights), 65_537, HashOn::ClientIp);
        let moved = before.table.iter().zip(&after.table).filter(|(b, a)| **b != 3 && b != a).count();
        assert!(moved < 65_537 / 20, "{moved} entries moved");
    }

    #[test]
    fn a_key_stays_with_its_endpoint_and_moves_on_when_that_is_gone_or_full() {
        let set = endpoints(&[1; 5]);
        let maglev = Maglev::new(&set, 251, HashOn::ClientIp);
        let mut view = EndpointsView::new(set.clone(), Duration::ZERO);
        let home = maglev.pick_by_hash(&view, 7).expect("all are available");
        assert!((0..50).all(|_| maglev.pick_by_hash(&view, 7) == Some(home)));
        set.endpoints[home as usize].state.begin();
        set.endpoints[home as usize].state.begin();
        assert_ne!(maglev.pick_by_hash(&view, 7), Some(home), "two of two requests are over the bound");
        view.tried.push(home);
        assert_ne!(maglev.pick_by_hash(&view, 7), Some(home));
        view.tried = (0..5).collect();
        assert_eq!(maglev.pick_by_hash(&view, 7), None);
    }

    #[test]
    fn the_bound_follows_weights_and_what_is_available() {
        let set = endpoints(&[6, 3, 1]);
        let view = EndpointsView::new(set.clone(), Duration::ZERO);
        let maglev = Maglev::new(&set, 4099, HashOn::ClientIp);
        for key in 0..1000 {
            let picked = maglev.pick_by_hash(&view, key).expect("all are available");
            set.endpoints[picked as usize].state.begin();
        }
        let busy = [0, 1, 2].map(|index| view.in_flight(index));
        assert!((540..660).contains(&busy[0]) && (250..350).contains(&busy[1]), "{busy:?}");
        // With the heavy one gone, its requests no longer raise what the others may take.
        set.endpoints[0].state.set_healthy(false);
        let load = Load::of(&view).expect("a small set");
        assert_eq!(load.weight, 4);
        assert_eq!(load.bound(&view, 1), ((f64::from(busy[1] + busy[2]) + 1.0) * 1.25 * 0.75).ceil() as u32);
    }
}
