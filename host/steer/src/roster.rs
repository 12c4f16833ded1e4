//! Who takes flows: from what a cluster says of its endpoints to backends and their roles. Pure.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::spec::{Backend, Mac, Role};

/// An endpoint as its cluster sees it now.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    pub address: SocketAddr,
    /// 0: it is to keep what it has.
    pub weight: u32,
    /// Its checks pass, or nobody asks, or health is not looked at.
    pub well: bool,
    pub mac: Option<Mac>,
    /// This host's address on the way to it, where that matters.
    pub seen_as: Option<IpAddr>,
}

/// The backends of a steer over time. One that leaves the configuration drains: its flows stay with it until they have been
/// silent for long.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    backends: Vec<Backend>,
    leaving: Vec<Leaving>,
}

#[derive(Clone, Copy, Debug)]
struct Leaving {
    address: SocketAddr,
    packets: u64,
    silent_since: Instant,
}

impl Roster {
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// Whether any backend only waits for its flows to end.
    pub fn anyone_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Takes what the cluster says now. `needs_mac`: without one nothing can be sent to it.
    pub fn follow(&mut self, members: &[Member], needs_mac: bool, now: Instant) {
        let mut backends: Vec<Backend> = Vec::with_capacity(members.len());
        for member in members {
            // A MAC that is not to be found out at the moment is most likely still what it was.
            let known = self.backend(member.address);
            let mac = member.mac.or_else(|| known.and_then(|known| known.mac));
            let seen_as = member.seen_as.or_else(|| known.and_then(|known| known.seen_as));
            let role = match member.weight {
                _ if !member.well || (needs_mac && mac.is_none()) => Role::Down,
                0 => Role::Drains,
                weight => Role::Takes(weight),
            };
            backends.push(Backend { address: member.address, role, mac, seen_as });
        }
        let listed = |address: SocketAddr| members.iter().any(|member| member.address == address);
        for gone in self.backends.iter().filter(|known| !listed(known.address) && known.role.serves()) {
            backends.push(Backend { role: Role::Drains, ..*gone });
            if !self.leaving.iter().any(|leaving| leaving.address == gone.address) {
                self.leaving.push(Leaving { address: gone.address, packets: 0, silent_since: now });
            }
        }
        self.leaving.retain(|leaving| !listed(leaving.address));
        self.backends = backends;
    }

    /// Lets go of those that left and were silent for `timeout`. `packets` counts what each received so far.
    ///
    /// # Returns
    /// Whether anybody went.
    pub fn expire(&mut self, packets: impl Fn(SocketAddr) -> u64, timeout: Duration, now: Instant) -> bool {
        let mut gone = Vec::new();
        self.leaving.retain_mut(|leaving| {
            let counted = packets(leaving.address);
            if counted != leaving.packets {
                (leaving.packets, leaving.silent_since) = (counted, now);
            }
            let silent = now.duration_since(leaving.silent_since) >= timeout;
            if silent {
                gone.push(leaving.address);
            }
            !silent
        });
        self.backends.retain(|backend| !gone.contains(&backend.address));
        !gone.is_empty()
    }

    fn backend(&self, address: SocketAddr) -> Option<&Backend> {
        self.backends.iter().find(|backend| backend.address == address)
    }
}

/// Backends whose flows cannot go on: they served in `before` and are down in `after`.
pub(crate) fn fallen(before: &[Backend], after: &[Backend]) -> Vec<SocketAddr> {
    let served = |address: SocketAddr| before.iter().any(|known| known.address == address && known.role.serves());
    let down = after.iter().filter(|backend| !backend.role.serves() && served(backend.address));
    down.map(|backend| backend.address).collect()
}

impl crate::Plan {
    /// Backends whose flows cannot go on, now that this plan is in force after `before`.
    pub fn fallen_since(&self, before: &Self) -> Vec<SocketAddr> {
        fallen(&before.backends, &self.backends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn member(last: u8, weight: u32, well: bool, mac: Option<Mac>) -> Member {
        Member { address: SocketAddr::from(([10, 0, 0, last], 80)), weight, well, mac, seen_as: None }
    }

    fn roles(roster: &Roster) -> Vec<Role> {
        roster.backends().iter().map(|backend| backend.role).collect()
    }

    #[test]
    fn roles_follow_weight_and_health() {
        let mut roster = Roster::default();
        let members =
            [member(1, 3, true, None), member(2, 0, true, None), member(3, 1, false, None), member(4, 0, false, None)];
        roster.follow(&members, false, Instant::now());
        assert_eq!(roles(&roster), [Role::Takes(3), Role::Drains, Role::Down, Role::Down]);
        let before = roster.clone();
        roster.follow(&members.map(|member| Member { well: !member.well, ..member }), false, Instant::now());
        assert_eq!(fallen(before.backends(), roster.backends()), [members[0].address, members[1].address]);
    }

    #[test]
    fn a_mac_is_needed_once_and_then_remembered() {
        let mut roster = Roster::default();
        roster.follow(&[member(1, 1, true, None)], true, Instant::now());
        assert_eq!(roles(&roster), [Role::Down]);
        roster.follow(&[member(1, 1, true, Some(MAC))], true, Instant::now());
        roster.follow(&[member(1, 1, true, None)], true, Instant::now());
        assert_eq!((roles(&roster), roster.backends()[0].mac), (vec![Role::Takes(1)], Some(MAC)));
    }

    #[test]
    fn who_leaves_keeps_its_flows_until_they_are_silent() {
        let begun = Instant::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        let minute = Duration::from_secs(60);
        let (one, two) = (member(1, 1, true, None), member(2, 1, true, None));
        let mut roster = Roster::default();
        roster.follow(&[one, two], false, begun);
        roster.follow(&[two], false, at(1));
        assert_eq!(roles(&roster), [Role::Takes(1), Role::Drains]);
        assert!(roster.anyone_leaving());
        assert!(!roster.expire(|_| 5, minute, at(50)), "its count rose");
        roster.follow(&[two], false, at(70));
        assert!(!roster.expire(|_| 5, minute, at(100)), "fifty seconds of silence");
        assert!(roster.expire(|_| 5, minute, at(110)));
        assert_eq!(roles(&roster), [Role::Takes(1)]);
        // Coming back ends it, and who was down has no flows to keep.
        roster.follow(&[one], false, at(111));
        roster.follow(&[one, two], false, at(112));
        assert!(!roster.anyone_leaving());
        assert_eq!(roles(&roster), [Role::Takes(1), Role::Takes(1)]);
        roster.follow(&[Member { well: false, ..one }, two], false, at(113));
        roster.follow(&[two], false, at(114));
        assert_eq!(roles(&roster), [Role::Takes(1)]);
    }
}
