//! The ClientHello of a QUIC connection: CRYPTO frames in the client's Initial packets, over as many packets and datagrams
//! and in whatever order they come. The datagrams themselves are kept by whoever passes them on.

#[cfg(fuzzing)]
pub(crate) mod fuzz;

use std::ops::Range;

use rustls::quic::DirectionalKeys;
use rustls::{CipherSuite, Side, quic};

use super::super::client_hello::{ClientHello, NoHello, whole};
use super::{Head, Id, Kind, Version, head};
use crate::codec::http3::varint;
use crate::listener::tls::provider;

/// Most bytes of a handshake before its hello is whole: more than any client sends unanswered, within its congestion window
/// (RFC 9002, section 7.2).
const MOST: usize = 24 * 1024;
/// Most pieces with gaps between them: a client that shuffles them on purpose makes a tenth of it.
const MOST_PIECES: usize = 256;

/// A hello in the making.
pub(crate) struct Hearing {
    destination: Id,
    version: Version,
    keys: DirectionalKeys,
    handshake: Pieces,
}

impl Hearing {
    /// For Initial packets to this id, the one that the client made up.
    pub(crate) fn new(version: Version, destination: Id) -> Option<Self> {
        let keys = keys(version, destination.bytes())?;
        Some(Self { destination, version, keys, handshake: Pieces::default() })
    }

    /// The next datagram of this connection. `None` until the hello is whole. Packets that cannot be read are passed over, as
    /// the server does (RFC 9000, section 12.2).
    pub(crate) fn push(&mut self, mut datagram: &[u8]) -> Result<Option<ClientHello>, NoHello> {
        while let Some(Head::Long { kind, destination, end, .. }) = head(datagram) {
            // Others than Initial packets say their length too, but where one is of no kind we know.
            let token = matches!(kind, Kind::Initial(_));
            if !token && !matches!(kind, Kind::ZeroRtt | Kind::Handshake) {
                break;
            }
            let Some((number_at, length)) = lengths(datagram, end, token) else { break };
            let Some((packet, rest)) = datagram.split_at_checked(number_at + length) else { break };
            if kind == Kind::Initial(self.version) && destination == self.destination.bytes() {
                let mut packet = packet.to_vec();
                if let Some(payload) = decrypt(&self.keys, &mut packet, number_at) {
                    self.frames(payload)?;
                }
            }
            datagram = rest;
        }
        match self.handshake.beginning() {
            [] => Ok(None),
            beginning => whole(beginning),
        }
    }

    /// The frames that Initial packets may have (RFC 9000, table 3).
    fn frames(&mut self, payload: &[u8]) -> Result<(), NoHello> {
        let mut frames = Frames(payload);
        while !frames.0.is_empty() {
            match frames.number().ok_or(NoHello::Malformed)? {
                // PADDING, PING.
                0 | 1 => {}
                kind @ (2 | 3) => frames.ack(kind == 3).ok_or(NoHello::Malformed)?,
                6 => {
                    let (offset, data) = frames.crypto().ok_or(NoHello::Malformed)?;
                    self.handshake.put(offset, data)?;
                }
                // CONNECTION_CLOSE: no more comes. What else there is does not belong here.
                _ => return Err(NoHello::Malformed),
            }
        }
        Ok(())
    }
}

/// The client's: what protects its Initial packets from accidents, and from nobody else.
fn keys(version: Version, destination: &[u8]) -> Option<DirectionalKeys> {
    let version = match version {
        Version::V1 => quic::Version::V1,
        Version::V2 => quic::Version::V2,
    };
    let provider = provider();
    let mut suites = provider.cipher_suites.iter().filter_map(|suite| suite.tls13());
    let suite = suites.find(|suite| suite.common.suite == CipherSuite::TLS13_AES_128_GCM_SHA256)?;
    Some(quic::Keys::initial(version, suite, suite.quic?, destination, Side::Server).remote)
}

/// Where the packet number is, and how long it and the payload are (RFC 9000, section 17.2.2).
fn lengths(packet: &[u8], end: usize, token: bool) -> Option<(usize, usize)> {
    let mut rest = Frames(packet.get(end..)?);
    if token {
        let length = rest.number()?;
        rest.take(length)?;
    }
    let length = rest.number()?;
    Some((packet.len() - rest.0.len(), usize::try_from(length).ok()?))
}

/// Takes off header protection, then the rest (RFC 9001, section 5.4). `None` if it was not made with these keys.
fn decrypt<'a>(keys: &DirectionalKeys, packet: &'a mut [u8], number_at: usize) -> Option<&'a [u8]> {
    const LONGEST_NUMBER: usize = 4;
    let (header, payload) = packet.split_at_mut_checked(number_at + LONGEST_NUMBER)?;
    let sample = payload.get(..keys.header.sample_len())?;
    let (first, rest) = header.split_first_mut()?;
    keys.header.decrypt_in_place(sample, first, &mut rest[number_at - 1..]).ok()?;
    let number = usize::from(*first & 3) + 1;
    let (header, payload) = packet.split_at_mut(number_at + number);
    // With nothing acknowledged yet the number is written so that its end is all of it (RFC 9000, section 17.1).
    let full = header[number_at..].iter().fold(0, |full, byte| full << 8 | u64::from(*byte));
    keys.packet.decrypt_in_place(full, header, payload).ok()
}

/// What is left of a payload. `None` past its end.
struct Frames<'a>(&'a [u8]);

impl<'a> Frames<'a> {
    fn number(&mut self) -> Option<u64> {
        let (number, length) = varint::read(self.0)?;
        self.0 = &self.0[length..];
        Some(number)
    }

    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    /// Section 19.3.
    fn ack(&mut self, ecn: bool) -> Option<()> {
        self.number()?;
        self.number()?;
        let ranges = self.number()?;
        self.number()?;
        // Each takes bytes: a count that lies ends with them.
        for _ in 0..ranges {
            self.number()?;
            self.number()?;
        }
        for _ in 0..if ecn { 3 } else { 0 } {
            self.number()?;
        }
        Some(())
    }

    /// Section 19.6.
    fn crypto(&mut self) -> Option<(u64, &'a [u8])> {
        let offset = self.number()?;
        let length = self.number()?;
        Some((offset, self.take(length)?))
    }
}

/// The handshake's bytes, as far as they came.
#[derive(Default)]
struct Pieces {
    bytes: Vec<u8>,
    /// In order, apart from one another.
    there: Vec<Range<usize>>,
}

impl Pieces {
    /// What comes twice must be the same: else the server could read another name than we do.
    fn put(&mut self, offset: u64, data: &[u8]) -> Result<(), NoHello> {
        let start = usize::try_from(offset).unwrap_or(MOST);
        let end = start.saturating_add(data.len());
        if end > MOST {
            return Err(NoHello::TooLong);
        }
        if data.is_empty() {
            return Ok(());
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        let first = self.there.partition_point(|range| range.end < start);
        let mut merged = start..end;
        let mut last = first;
        while let Some(range) = self.there.get(last).filter(|range| range.start <= end) {
            let both = range.start.max(start)..range.end.min(end);
            if both.start < both.end && self.bytes[both.clone()] != data[both.start - start..both.end - start] {
                return Err(NoHello::Malformed);
            }
            merged = merged.start.min(range.start)..merged.end.max(range.end);
            last += 1;
        }
        self.bytes[start..end].copy_from_slice(data);
        self.there.splice(first..last, [merged]);
        if self.there.len() > MOST_PIECES { Err(NoHello::Malformed) } else { Ok(()) }
    }

    /// Without a gap.
    fn beginning(&self) -> &[u8] {
        match self.there.first() {
            Some(range) if range.start == 0 => &self.bytes[range.clone()],
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests;
