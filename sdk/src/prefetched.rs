//! Facts that came along with a question, so that they need not be called for. The form is told in `wit/README.md`; what
//! does not have it, or is not there, is called for.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use crate::{Cause, Element, HttpVersion, Load, Proof, Scheme, chain};

/// Kinds of facts, as `wit/README.md` numbers them.
pub(crate) mod kind {
    pub const CLIENT: u8 = 1;
    pub const VERSION: u8 = 2;
    pub const METHOD: u8 = 3;
    pub const SCHEME: u8 = 4;
    pub const AUTHORITY: u8 = 5;
    pub const PATH: u8 = 6;
    pub const QUERY: u8 = 7;
    pub const HEADER: u8 = 8;
    pub const COOKIE: u8 = 9;
    pub const NOTE: u8 = 10;
    pub const PEER: u8 = 11;
    pub const CONNECTION_CLIENT: u8 = 12;
    pub const LOCAL: u8 = 13;
    pub const LISTENER: u8 = 14;
    pub const SERVER_NAME: u8 = 15;
    pub const ALPN: u8 = 16;
    pub const RECEIVED: u8 = 17;
    pub const PROPOSED: u8 = 18;
    pub const RANDOM: u8 = 19;
    pub const CLUSTER: u8 = 20;
    pub const GENERATION: u8 = 21;
    pub const SIZE: u8 = 22;
    pub const LOADS: u8 = 23;
    pub const ATTEMPT: u8 = 24;
    pub const RESPONSE_HEADER: u8 = 25;
}

/// The facts of a question, one after another.
#[doc(hidden)]
pub enum Facts {
    /// As the plain parameters of a call, each little-endian; zeros follow the last.
    Words([[u8; 8]; 12]),
    Bytes(Vec<u8>),
}

impl Facts {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Words(words) => words.as_flattened(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

const NONE: Facts = Facts::Bytes(Vec::new());

thread_local! {
    static FACTS: RefCell<Facts> = const { RefCell::new(NONE) };
    /// Where the fact begins that was found last. A guest reads in the same order again and again, which is the order they
    /// come in: what it looks for is mostly there, or the next.
    static FOUND: Cell<usize> = const { Cell::new(0) };
    /// The state of the question's own generator, once a number was drawn.
    static DRAWN: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Asks with `facts` in hand.
#[doc(hidden)]
pub fn with<T>(facts: Facts, ask: impl FnOnce() -> T) -> T {
    FACTS.set(facts);
    let answer = ask();
    // What comes next may be asked plainly: nothing of this question is left then.
    FACTS.set(NONE);
    FOUND.set(0);
    DRAWN.set(None);
    answer
}

/// What `read` makes of the fact of this kind and name, if it came along.
fn find<T>(kind: u8, name: &str, read: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
    FACTS.with_borrow(|facts| {
        let (facts, from) = (facts.bytes(), FOUND.get());
        let found = search(facts, from..usize::MAX, kind, name).or_else(|| search(facts, 0..from, kind, name));
        let (at, value) = found?;
        FOUND.set(at);
        read(value)
    })
}

/// Where a fact begins, of those that begin within `range`, and its value.
fn search<'a>(facts: &'a [u8], range: Range<usize>, kind: u8, name: &str) -> Option<(usize, &'a [u8])> {
    let mut rest = Reader(facts.get(range.start..)?);
    loop {
        let at = facts.len() - rest.0.len();
        if at >= range.end {
            return None;
        }
        // Zero, or nothing more, is the end.
        let found = rest.byte().filter(|found| *found != 0)?;
        let length = rest.byte()?.into();
        let named = rest.take(length)?;
        let length = u16::from_le_bytes(rest.array()?).into();
        let value = rest.take(length)?;
        // Names are short: a call to compare them takes longer than that.
        if found == kind && named.len() == name.len() && named.iter().eq(name.as_bytes()) {
            return Some((at, value));
        }
    }
}

pub(crate) fn text(kind: u8) -> Option<String> {
    find(kind, "", |value| String::from_utf8(value.to_vec()).ok())
}

/// A fact that may be absent: it begins with a 1 where it is not.
fn present(value: &[u8]) -> Option<&[u8]> {
    value.split_first().map(|(_, value)| value)
}

pub(crate) fn optional(kind: u8, name: &str) -> Option<Option<Vec<u8>>> {
    find(kind, name, |value| Some(present(value).map(<[u8]>::to_vec)))
}

pub(crate) fn optional_text(kind: u8, name: &str) -> Option<Option<String>> {
    find(kind, name, |value| Some(present(value).and_then(|value| String::from_utf8(value.to_vec()).ok())))
}

pub(crate) fn ip(kind: u8) -> Option<IpAddr> {
    find(kind, "", |value| match value.len() {
        4 => Reader(value).ipv4(),
        16 => Reader(value).ipv6(),
        _ => None,
    })
}

pub(crate) fn socket(kind: u8) -> Option<SocketAddr> {
    find(kind, "", |value| Reader(value).socket(value.len() == 18))
}

pub(crate) fn version() -> Option<HttpVersion> {
    find(kind::VERSION, "", |value| match value {
        [0] => Some(HttpVersion::Http10),
        [1] => Some(HttpVersion::Http11),
        [2] => Some(HttpVersion::Http2),
        [3] => Some(HttpVersion::Http3),
        _ => None,
    })
}

pub(crate) fn scheme() -> Option<Scheme> {
    find(kind::SCHEME, "", |value| match value {
        [0] => Some(Scheme::Http),
        [1] => Some(Scheme::Https),
        _ => None,
    })
}

pub(crate) fn elements(kind: u8) -> Option<Vec<Element>> {
    find(kind, "", chain::decode)
}

pub(crate) fn u64(kind: u8) -> Option<u64> {
    find(kind, "", |value| Reader(value).array().map(u64::from_le_bytes))
}

pub(crate) fn u32(kind: u8) -> Option<u32> {
    find(kind, "", |value| Reader(value).array().map(u32::from_le_bytes))
}

/// The next number of a generator that the question's seed begins: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
pub(crate) fn random() -> Option<u64> {
    let state = match DRAWN.get() {
        Some(state) => state,
        None => u64(kind::RANDOM)?,
    };
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    DRAWN.set(Some(state));
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    Some(mixed ^ (mixed >> 31))
}

/// Bytes of one endpoint among `LOADS`.
const LOAD: usize = 13;

fn load_of(bytes: &[u8]) -> Option<Load> {
    let mut rest = Reader(bytes);
    let available = rest.byte()? == 1;
    let in_flight = u32::from_le_bytes(rest.array()?);
    Some(Load { available, in_flight, latency: rest.duration()? })
}

/// Of one endpoint; one that does not exist has nothing.
pub(crate) fn load(index: u32) -> Option<Load> {
    find(kind::LOADS, "", |value| match value.get(LOAD.saturating_mul(index as usize)..) {
        Some(bytes) if !bytes.is_empty() => load_of(bytes),
        _ => Some(Load::default()),
    })
}

/// Of all, in their order.
pub(crate) fn loads<T>(of: impl Fn(u32, Load) -> Option<T>) -> Option<Vec<T>> {
    find(kind::LOADS, "", |value| {
        let loads = value.chunks_exact(LOAD).zip(0..).filter_map(|(bytes, index)| of(index, load_of(bytes)?));
        Some(loads.collect())
    })
}

/// Where each part of the try that failed begins.
pub(crate) mod part {
    pub const NUMBER: usize = 0;
    pub const ENDPOINT: usize = 4;
    pub const SAFETY: usize = 8;
    pub const ELAPSED: usize = 9;
    pub const TIME_LEFT: usize = 17;
    pub const RETRIES_LEFT: usize = 25;
    pub const FAILURE: usize = 29;
}

fn attempt<const N: usize>(part: usize) -> Option<[u8; N]> {
    find(kind::ATTEMPT, "", |value| Reader(value.get(part..)?).array())
}

pub(crate) fn attempt_u32(part: usize) -> Option<u32> {
    attempt(part).map(u32::from_le_bytes)
}

pub(crate) fn attempt_duration(part: usize) -> Option<Duration> {
    attempt(part).map(u64::from_le_bytes).map(Duration::from_nanos)
}

pub(crate) fn safety() -> Option<Proof> {
    attempt(part::SAFETY).map(|[proof]| match proof {
        0 => Proof::Unprocessed,
        1 => Proof::Idempotent,
        _ => Proof::Unsafe,
    })
}

pub(crate) fn failure() -> Option<Cause> {
    find(kind::ATTEMPT, "", |value| {
        let mut rest = Reader(value.get(part::FAILURE..)?);
        Some(match rest.byte()? {
            0 => Cause::Connect,
            1 => Cause::Tls,
            2 => Cause::Reset,
            3 => Cause::RefusedStream,
            4 => Cause::GoAway,
            5 => Cause::Timeout,
            6 => Cause::Status(u16::from_le_bytes(rest.array()?)),
            7 => Cause::Other(present(rest.0).map(|text| String::from_utf8_lossy(text).into_owned())),
            _ => return None,
        })
    })
}

/// Bytes from front to back. Each method gives `None` when they end before it does.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn duration(&mut self) -> Option<Duration> {
        self.array().map(u64::from_le_bytes).map(Duration::from_nanos)
    }

    pub(crate) fn ipv4(&mut self) -> Option<IpAddr> {
        self.array::<4>().map(IpAddr::from)
    }

    pub(crate) fn ipv6(&mut self) -> Option<IpAddr> {
        self.array::<16>().map(IpAddr::from)
    }

    pub(crate) fn socket(&mut self, ipv6: bool) -> Option<SocketAddr> {
        let ip = if ipv6 { self.ipv6() } else { self.ipv4() }?;
        Some(SocketAddr::new(ip, u16::from_le_bytes(self.array()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Node;

    fn fact(kind: u8, name: &str, value: &[u8]) -> Vec<u8> {
        let mut fact = vec![kind, name.len() as u8];
        fact.extend(name.as_bytes());
        fact.extend((value.len() as u16).to_le_bytes());
        fact.extend(value);
        fact
    }

    #[test]
    fn a_fact_is_found_by_kind_and_name() {
        let facts = [
            fact(kind::HEADER, "x-tenant", b"\x01t42"),
            fact(200, "of a later gateway", b"?"),
            fact(kind::HEADER, "x-absent", b""),
            fact(kind::PATH, "", b"/"),
            fact(kind::CLIENT, "", &[192, 0, 2, 7]),
        ];
        with(Facts::Bytes(facts.concat()), || {
            assert_eq!(ip(kind::CLIENT), Some([192, 0, 2, 7].into()));
            assert_eq!(optional(kind::HEADER, "x-tenant"), Some(Some(b"t42".to_vec())), "before what was found last");
            assert_eq!(optional(kind::HEADER, "x-tenant"), Some(Some(b"t42".to_vec())), "once more");
            assert_eq!(optional_text(kind::HEADER, "x-absent"), Some(None), "that it is absent came along");
            assert_eq!(optional(kind::HEADER, "x-other"), None, "it is to be called for");
            assert_eq!(optional(kind::COOKIE, "x-tenant"), None);
            assert_eq!(text(kind::PATH).as_deref(), Some("/"));
            assert_eq!(ip(kind::CLIENT), Some([192, 0, 2, 7].into()));
        });
        assert_eq!(text(kind::PATH), None, "the question is over");
    }

    /// A gateway that writes nonsense is called instead; nothing here panics, whatever comes.
    #[test]
    fn what_has_not_the_form_is_called_for() {
        let whole = [
            fact(kind::PROPOSED, "", &[&[2, 192, 0, 2, 7, 0][..], &[0xff; 4], &2_u32.to_le_bytes(), b"h2"].concat()),
            fact(kind::ATTEMPT, "", &[&[1; 29][..], &[6, 247, 1]].concat()),
            fact(kind::LOADS, "", &[1; 26]),
            fact(kind::PEER, "", &[1; 18]),
            fact(kind::RANDOM, "", &[1; 8]),
        ]
        .concat();
        let read =
            || (elements(kind::PROPOSED), failure(), attempt_u32(part::NUMBER), load(1), socket(kind::PEER), random());
        let (chain, failure, number, load, peer, drawn) = with(Facts::Bytes(whole.clone()), read);
        let hop = Element {
            r#for: Some(Node::Ip([192, 0, 2, 7].into())),
            proto: Some("h2".to_owned()),
            ..Element::default()
        };
        assert_eq!((chain, failure), (Some(vec![hop]), Some(Cause::Status(503))));
        assert_eq!((number, load.map(|load| load.in_flight)), (Some(0x0101_0101), Some(0x0101_0101)));
        assert!(peer.is_some_and(|peer| peer.is_ipv6()) && drawn.is_some());
        for cut in 0..whole.len() {
            with(Facts::Bytes(whole[..cut].to_vec()), read);
            for byte in [0, 0x7f, 0xff] {
                let mut bent = whole.clone();
                bent[cut] = byte;
                with(Facts::Bytes(bent), read);
            }
        }
    }

    #[test]
    fn words_end_where_the_facts_do() {
        let facts = [fact(kind::PATH, "", b"/a"), fact(kind::HEADER, "x-tenant", b"\x01t42")].concat();
        let mut words = [[0; 8]; 12];
        words.as_flattened_mut()[..facts.len()].copy_from_slice(&facts);
        with(Facts::Words(words), || {
            assert_eq!(text(kind::PATH).as_deref(), Some("/a"));
            assert_eq!(optional(kind::HEADER, "x-tenant"), Some(Some(b"t42".to_vec())));
            assert_eq!(optional(kind::HEADER, ""), None);
            assert_eq!(optional(0, ""), None, "the zeros are no facts");
        });
        let mut whole = [[b'/'; 8]; 12];
        whole[0][..4].copy_from_slice(&[kind::PATH, 0, 92, 0]);
        with(Facts::Words(whole), || {
            assert_eq!(text(kind::PATH).map(|path| path.len()), Some(92), "up to the last byte");
        });
        assert_eq!(text(kind::PATH), None);
    }

    #[test]
    fn numbers_of_one_seed_differ() {
        let facts = fact(kind::RANDOM, "", &7_u64.to_le_bytes());
        let three = || [random(), random(), random()];
        let [one, two, three_of_it] = with(Facts::Bytes(facts.clone()), three);
        assert!(one.is_some() && one != two && two != three_of_it);
        assert_eq!(with(Facts::Bytes(facts), three), [one, two, three_of_it]);
        assert_eq!(random(), None);
    }

    #[test]
    fn everything_else_is_read_too() {
        let facts = [
            fact(kind::VERSION, "", &[3]),
            fact(kind::SCHEME, "", &[1]),
            fact(kind::GENERATION, "", &9_u64.to_le_bytes()),
            fact(kind::SIZE, "", &2_u32.to_le_bytes()),
            fact(kind::LOADS, "", &[&[1; 13][..], &[0; 13]].concat()),
        ];
        with(Facts::Bytes(facts.concat()), || {
            assert_eq!((version(), scheme()), (Some(HttpVersion::Http3), Some(Scheme::Https)));
            assert_eq!((u64(kind::GENERATION), u32(kind::SIZE)), (Some(9), Some(2)));
            assert_eq!(loads(|index, load| load.available.then_some(index)), Some(vec![0]));
            assert_eq!(load(7), Some(Load::default()), "there is none");
        });
    }
}
