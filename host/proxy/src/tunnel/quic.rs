//! QUIC as far as one can read it who has no part in the connection: the head of a datagram's first packet, connection ids,
//! and the ClientHello in Initial packets, whose keys follow from what everybody sees (RFC 9001, section 5.2).
//!
//! Pure: bytes in, names out. Nothing here is proof of anything, as whoever sees an Initial packet can make one.

mod ids;
mod initial;

pub(crate) use ids::{Id, Ids, Known};
pub(crate) use initial::Hearing;
#[cfg(fuzzing)]
pub(crate) use initial::fuzz;

/// A client sends Initial packets in datagrams of at least so many bytes (RFC 9000, section 14.1).
pub(crate) const LEAST_INITIAL: usize = 1200;
/// The id that a client makes up for its first packets has at least so many bytes (section 7.2).
pub(crate) const LEAST_FIRST_ID: usize = 8;

/// The versions whose Initial packets can be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Version {
    /// RFC 9000.
    V1,
    /// RFC 9369.
    V2,
}

/// What a packet with a long header is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Initial(Version),
    ZeroRtt,
    Handshake,
    Retry,
    /// Version 0: a list of versions (section 17.2.1).
    Versions,
    /// Of a version that is none of ours: ids can be read (RFC 8999), all else not.
    Unknown,
}

/// The beginning of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Head<'a> {
    Long {
        kind: Kind,
        destination: &'a [u8],
        source: &'a [u8],
        /// Where it ends, and what depends on the version begins.
        end: usize,
    },
    /// Begins with the destination's id, of a length that only the destination knows.
    Short(&'a [u8]),
}

/// RFC 8999, section 5.1. `None` where the bytes are no packet.
pub(crate) fn head(packet: &[u8]) -> Option<Head<'_>> {
    let (first, rest) = packet.split_first()?;
    if !is_long(*first) {
        return Some(Head::Short(rest));
    }
    let (version, rest) = rest.split_first_chunk::<4>()?;
    let (destination, rest) = id(rest)?;
    let (source, rest) = id(rest)?;
    let kind = kind(u32::from_be_bytes(*version), *first);
    Some(Head::Long { kind, destination, source, end: packet.len() - rest.len() })
}

pub(crate) fn is_long(first: u8) -> bool {
    first & 0x80 != 0
}

fn kind(version: u32, first: u8) -> Kind {
    let (version, type_of) = match version {
        0 => return Kind::Versions,
        1 => (Version::V1, first >> 4 & 3),
        // RFC 9369, section 3.2: each is one further.
        0x6b33_43cf => (Version::V2, (first >> 4 & 3).wrapping_sub(1) & 3),
        _ => return Kind::Unknown,
    };
    match type_of {
        0 => Kind::Initial(version),
        1 => Kind::ZeroRtt,
        2 => Kind::Handshake,
        _ => Kind::Retry,
    }
}

/// An id with its length before it. Those of versions 1 and 2 have 20 bytes at most; no version of today has longer ones.
fn id(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    if usize::from(*length) > ids::LONGEST {
        return None;
    }
    rest.split_at_checked((*length).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_all_kinds() {
        let long = |first: u8, version: u32| [&[first][..], &version.to_be_bytes(), &[2, 7, 8, 1, 9, 5, 5]].concat();
        for (first, version, kind) in [
            (0xc0, 1, Kind::Initial(Version::V1)),
            (0xd3, 1, Kind::ZeroRtt),
            (0xe0, 1, Kind::Handshake),
            (0xf0, 1, Kind::Retry),
            (0xd0, 0x6b33_43cf, Kind::Initial(Version::V2)),
            (0xe0, 0x6b33_43cf, Kind::ZeroRtt),
            (0xf0, 0x6b33_43cf, Kind::Handshake),
            (0xc0, 0x6b33_43cf, Kind::Retry),
            (0xc0, 0, Kind::Versions),
            (0xc0, 0x0a0a_0a0a, Kind::Unknown),
        ] {
            let packet = long(first, version);
            let head = Head::Long { kind, destination: &[7, 8], source: &[9], end: 10 };
            assert_eq!(super::head(&packet), Some(head), "{first:x} {version:x}");
        }
        assert_eq!(head(&[0x40, 1, 2]), Some(Head::Short(&[1, 2])));
        assert_eq!(head(&[]), None);
        let packet = long(0xc0, 1);
        for end in 1..10 {
            assert_eq!(head(&packet[..end]), None, "cut off");
        }
        assert_eq!(head(&[&[0xc0, 0, 0, 0, 1, 21][..], &[0; 40]].concat()), None, "too long an id");
    }
}
