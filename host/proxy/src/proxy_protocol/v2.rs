//! Version 2: binary, with fields after the addresses (section 2.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use tidegate_policy::{ProxyTlvs, tlv, walk_tlvs};

use super::crc32c::checksum;
use super::{Addresses, Header, Invalid, Parsed};

pub(super) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and protocol, length.
pub(super) const FIXED: usize = 16;
/// Two paths of 108 bytes.
const UNIX: usize = 216;
/// Of a header that is taken: the length field could ask for 64 KiB of memory per connection.
pub(super) const MAX: usize = FIXED + UNIX + 4096;

const VERSION: u8 = 0x20;
const LOCAL: u8 = 0x0;
const PROXY: u8 = 0x1;
const IPV4: u8 = 0x10;
const IPV6: u8 = 0x20;
const STREAM: u8 = 0x1;
const DATAGRAMS: u8 = 0x2;
const TCP4: u8 = IPV4 | STREAM;
const TCP6: u8 = IPV6 | STREAM;
const UDP4: u8 = IPV4 | DATAGRAMS;
const UDP6: u8 = IPV6 | DATAGRAMS;
const CHECKSUM: usize = 4;

/// `bytes` begin like the signature.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, Invalid> {
    let (version, command) = match bytes.get(12) {
        None => return Ok(Parsed::NeedsMore { at_most: MAX }),
        Some(byte) => (byte & 0xf0, byte & 0x0f),
    };
    if version != VERSION {
        return Err(Invalid::Version(version >> 4));
    }
    if command > PROXY {
        return Err(Invalid::Command(command));
    }
    let Some([family, high, low]) = bytes.get(13..FIXED) else { return Ok(Parsed::NeedsMore { at_most: MAX }) };
    let length = FIXED + usize::from(u16::from_be_bytes([*high, *low]));
    if length > MAX {
        return Err(Invalid::Length(length));
    }
    // "For LOCAL the receiver must discard the protocol block including the family which is ignored."
    let size = if command == LOCAL { 0 } else { size_of_addresses(*family).ok_or(Invalid::Family(*family))? };
    if length < FIXED + size {
        return Err(Invalid::Short);
    }
    let Some(whole) = bytes.get(..length) else { return Ok(Parsed::NeedsMore { at_most: length }) };
    if command == LOCAL {
        return Ok(Parsed::Header { length, header: Header::default() });
    }
    let (addresses, fields) = whole[FIXED..].split_at(size);
    verify_checksum(whole, FIXED + size)?;
    let tlvs = ProxyTlvs::new(Bytes::copy_from_slice(fields))?;
    Ok(Parsed::Header { length, header: Header { addresses: ip_addresses(addresses), tlvs } })
}

/// By family (high half) and protocol (low half). Other pairs "must be rejected as invalid by receivers".
fn size_of_addresses(family: u8) -> Option<usize> {
    match family {
        // Unspecified: no addresses, the fields follow at once.
        0x00 => Some(0),
        TCP4 | UDP4 => Some(12),
        TCP6 | UDP6 => Some(36),
        0x31 | 0x32 => Some(UNIX),
        _ => None,
    }
}

/// Told apart by their size; UNIX paths are of no use to a gateway.
fn ip_addresses(block: &[u8]) -> Option<Addresses> {
    let (ips, ports) = block.split_at_checked(block.len().checked_sub(4)?)?;
    let (source, destination) = ips.split_at(ips.len() / 2);
    let (source, destination): (IpAddr, IpAddr) = match (source.len(), source, destination) {
        (4, source, destination) => (octets::<4>(source)?.into(), octets::<4>(destination)?.into()),
        (16, source, destination) => (octets::<16>(source)?.into(), octets::<16>(destination)?.into()),
        _ => return None,
    };
    let [a, b, c, d] = octets(ports)?;
    Some(Addresses {
        source: SocketAddr::new(source, u16::from_be_bytes([a, b])),
        destination: SocketAddr::new(destination, u16::from_be_bytes([c, d])),
    })
}

fn octets<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

/// The checksum is that of the whole header with its own four bytes zero (section 2.2.3).
fn verify_checksum(whole: &[u8], fields: usize) -> Result<(), Invalid> {
    let found = walk_tlvs(&whole[fields..]).find_map(|field| field.ok().filter(|field| field.kind == tlv::CRC32C));
    let Some(field) = found.filter(|field| field.value.len() == CHECKSUM) else { return Ok(()) };
    let (before, rest) = whole.split_at(fields + field.at);
    let computed = checksum(&[before, &[0; CHECKSUM], &rest[CHECKSUM..]]);
    if computed.to_be_bytes() == *field.value { Ok(()) } else { Err(Invalid::Checksum) }
}

/// A header in the making.
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    /// For a connection between these. Always a stream: what is forwarded over this connection is one, whatever the
    /// client spoke.
    pub(crate) fn new(addresses: &Addresses) -> Self {
        Self::between(addresses, STREAM)
    }

    /// For a datagram between these.
    pub(crate) fn of_datagram(addresses: &Addresses) -> Self {
        Self::between(addresses, DATAGRAMS)
    }

    fn between(addresses: &Addresses, transport: u8) -> Self {
        let (source, destination) = (addresses.source, addresses.destination);
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(SIGNATURE);
        bytes.push(VERSION | PROXY);
        match (source.ip(), destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                bytes.extend_from_slice(&[IPV4 | transport, 0, 0]);
                bytes.extend([from, to].iter().flat_map(Ipv4Addr::octets));
            }
            (from, to) => {
                bytes.extend_from_slice(&[IPV6 | transport, 0, 0]);
                bytes.extend([from, to].map(as_ipv6).iter().flat_map(Ipv6Addr::octets));
            }
        }
        bytes.extend([source.port(), destination.port()].into_iter().flat_map(u16::to_be_bytes));
        Self(bytes)
    }

    /// Adds a field whose value is these pieces; left out where the header would become longer than we would take.
    pub(crate) fn field(&mut self, kind: u8, pieces: &[&[u8]]) {
        let length = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let room = MAX - 3 - CHECKSUM;
        if let Ok(size) = u16::try_from(length)
            && self.0.len() + 3 + length <= room
        {
            self.0.push(kind);
            self.0.extend_from_slice(&size.to_be_bytes());
            pieces.iter().for_each(|piece| self.0.extend_from_slice(piece));
        }
    }

    pub(crate) fn finish(mut self, with_checksum: bool) -> Vec<u8> {
        if with_checksum {
            self.0.extend_from_slice(&[tlv::CRC32C, 0, CHECKSUM as u8, 0, 0, 0, 0]);
        }
        let length = (self.0.len() - FIXED) as u16;
        self.0[FIXED - 2..FIXED].copy_from_slice(&length.to_be_bytes());
        if with_checksum {
            let at = self.0.len() - CHECKSUM;
            let checksum = checksum(&[&self.0]);
            self.0[at..].copy_from_slice(&checksum.to_be_bytes());
        }
        self.0
    }
}

fn as_ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// For a connection of this gateway's own: the receiver takes the socket's ends.
pub(super) fn emit_local() -> Vec<u8> {
    [SIGNATURE, &[VERSION | LOCAL, 0, 0, 0]].concat()
}
