//! Version 1: a line of text (section 2.1).

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use tidegate_policy::ProxyTlvs;

use super::{Addresses, Header, Invalid, Parsed};

pub(super) const SIGNATURE: &[u8] = b"PROXY ";
/// Of the longest line, its end included.
pub(super) const MAX: usize = 107;
/// What a proxy says of a connection of its own: version 1 has no other word for it.
const LOCAL: &[u8] = b"PROXY UNKNOWN\r\n";

/// `bytes` begin like the signature.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, Invalid> {
    let window = &bytes[..bytes.len().min(MAX)];
    let Some(at) = window.iter().position(|b| matches!(b, b'\r' | b'\n')) else {
        return if window.len() == MAX { Err(Invalid::LongLine) } else { Ok(Parsed::NeedsMore { at_most: MAX }) };
    };
    match window[at..] {
        [b'\r', b'\n', ..] => {}
        [b'\r'] if bytes.len() < MAX => return Ok(Parsed::NeedsMore { at_most: MAX }),
        [b'\r'] => return Err(Invalid::LongLine),
        _ => return Err(Invalid::LineBreak),
    }
    // Shorter than the signature it is a line break within that.
    let line = window[..at].strip_prefix(SIGNATURE).ok_or(Invalid::Line)?;
    let addresses = if line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ") {
        // "The receiver must ignore anything presented before the CRLF is found."
        None
    } else {
        Some(addresses(line).ok_or(Invalid::Line)?)
    };
    Ok(Parsed::Header { length: at + 2, header: Header { addresses, tlvs: ProxyTlvs::default() } })
}

/// Single spaces, one family for both addresses.
fn addresses(line: &[u8]) -> Option<Addresses> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split(' ');
    let family = words.next()?;
    let (source, destination) = (words.next()?, words.next()?);
    let (source_port, destination_port) = (port(words.next()?)?, port(words.next()?)?);
    if words.next().is_some() {
        return None;
    }
    let (source, destination) = match family {
        "TCP4" => both::<Ipv4Addr>(source, destination)?,
        "TCP6" => both::<Ipv6Addr>(source, destination)?,
        _ => return None,
    };
    let source = SocketAddr::new(source, source_port);
    Some(Addresses { source, destination: SocketAddr::new(destination, destination_port) })
}

/// The library's readers take no zero before an octet, no scope and no brackets.
fn both<T: FromStr + Into<IpAddr>>(one: &str, other: &str) -> Option<(IpAddr, IpAddr)> {
    Some((one.parse::<T>().ok()?.into(), other.parse::<T>().ok()?.into()))
}

/// Digits only, no zero before others.
fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    if digits && (text == "0" || !text.starts_with('0')) { text.parse().ok() } else { None }
}

/// The line for a connection.
pub(crate) fn emit(addresses: &Addresses) -> Vec<u8> {
    let (source, destination) = (addresses.source, addresses.destination);
    let mut line = String::with_capacity(MAX);
    // Writing to a String cannot fail.
    let _ = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => write!(line, "PROXY TCP4 {from} {to}"),
        (from, to) => write!(line, "PROXY TCP6 {} {}", Hexadecimal(from), Hexadecimal(to)),
    };
    let _ = write!(line, " {} {}\r\n", source.port(), destination.port());
    line.into_bytes()
}

/// For a connection of this gateway's own.
pub(super) fn emit_local() -> Vec<u8> {
    LOCAL.to_vec()
}

/// An IPv6 address without the dotted form of those that stand for IPv4: the grammar has only digits and colons.
struct Hexadecimal(IpAddr);

impl std::fmt::Display for Hexadecimal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ip = match self.0 {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        match ip.to_ipv4_mapped() {
            Some(_) => {
                let segments = ip.segments();
                write!(f, "::ffff:{:x}:{:x}", segments[6], segments[7])
            }
            None => write!(f, "{ip}"),
        }
    }
}
