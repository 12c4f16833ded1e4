//! Which exchanges are part of a share: by a hash of the subject they stick to, so that a larger share only adds subjects.

use std::net::IpAddr;

use http::HeaderName;
use tidegate_policy::Asked;

/// What an exchange is told apart by. Where a field or cookie is absent, by the client's address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StickyBy {
    ClientIp,
    Header(HeaderName),
    Cookie(String),
    /// Each exchange by chance; all its questions alike.
    Random,
}

/// Where on the circle of all subjects an exchange is. `salt` keeps shares of different plugins from meeting the same
/// subjects.
///
/// The same in every process and release: a gateway that restarts, and others beside it, agree on who gets what.
pub(crate) fn place(salt: &str, by: &StickyBy, asked: &Asked) -> u32 {
    let hash = Hash::default().bytes(salt.as_bytes()).bytes(&[0]);
    let client = |hash: Hash| match asked.client {
        IpAddr::V4(ip) => hash.bytes(&ip.octets()),
        IpAddr::V6(ip) => hash.bytes(&ip.octets()),
    };
    let subject = match by {
        StickyBy::ClientIp => None,
        StickyBy::Header(name) => asked.request.headers.get(name).map(|value| value.as_bytes()),
        StickyBy::Cookie(name) => asked.cookie_bytes(name),
        StickyBy::Random => return hash.bytes(&asked.draw.to_le_bytes()).finish(),
    };
    match subject {
        Some(subject) => hash.bytes(subject),
        None => client(hash),
    }
    .finish()
}

/// The end of a share's part of the circle: places below are in it. `share` is from 0 to 1.
pub(crate) fn end(share: f64) -> u64 {
    (share.clamp(0.0, 1.0) * (1_u64 << 32) as f64).round() as u64
}

/// FNV-1a over the bytes, then mixed, because FNV's high bits hardly depend on the last bytes.
struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    fn bytes(self, bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(self.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
    }

    fn finish(self) -> u32 {
        let mut hash = self.0;
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((hash ^ (hash >> 31)) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tidegate_policy::contract::asked_with;

    use super::*;

    fn of(user: &str, fields: &[(&str, &str)]) -> Rc<Asked> {
        let fields = [&[("x-user", user)], fields].concat();
        asked_with("GET", "/", &fields)
    }

    fn by_user() -> StickyBy {
        StickyBy::Header(HeaderName::from_static("x-user"))
    }

    #[test]
    fn places_are_the_same_for_ever() {
        let places = ["a", "b", "user-17", ""].map(|user| place("tenants", &by_user(), &of(user, &[])));
        assert_eq!(places, PINNED, "whoever changes this moves every user of every rollout");
    }

    const PINNED: [u32; 4] = [1_207_920_135, 2_938_166_933, 2_140_547_003, 2_758_768_146];

    #[test]
    fn a_larger_share_only_adds_subjects() {
        let users: Vec<String> = (0..20_000).map(|user| format!("user-{user}")).collect();
        let places: Vec<u32> = users.iter().map(|user| place("p", &by_user(), &of(user, &[]))).collect();
        let mut before: Vec<bool> = vec![false; places.len()];
        for share in [0.0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.99, 1.0] {
            let within: Vec<bool> = places.iter().map(|place| u64::from(*place) < end(share)).collect();
            assert!(before.iter().zip(&within).all(|(before, now)| !before || *now), "{share}: somebody is left out");
            let part = within.iter().filter(|within| **within).count() as f64 / places.len() as f64;
            assert!((part - share).abs() < 0.01, "{share} came to {part}");
            before = within;
        }
        assert!(before.iter().all(|within| *within));
    }

    #[test]
    fn plugins_meet_different_subjects() {
        let half = end(0.5);
        let both = (0..10_000).filter(|user| {
            let asked = of(&user.to_string(), &[]);
            ["a", "b"].iter().all(|salt| u64::from(place(salt, &by_user(), &asked)) < half)
        });
        let both = both.count();
        assert!((2_300..2_700).contains(&both), "{both} of 10,000 in both halves");
    }

    #[test]
    fn each_way_of_sticking_reads_its_own_subject() {
        let cookie = StickyBy::Cookie("sid".to_owned());
        let with = |value: &str| of("u", &[("cookie", value)]);
        assert_eq!(place("p", &cookie, &with("sid=1; a=b")), place("p", &cookie, &with("a=c; sid=1")));
        assert_ne!(place("p", &cookie, &with("sid=1")), place("p", &cookie, &with("sid=2")));
        // Absent: by address, as the one that goes by address does.
        assert_eq!(place("p", &cookie, &with("a=b")), place("p", &StickyBy::ClientIp, &with("sid=9")));
        let drawn = |draw| {
            let mut asked = Rc::try_unwrap(of("u", &[])).expect("nobody else has it");
            asked.draw = draw;
            place("p", &StickyBy::Random, &asked)
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
    }
}
