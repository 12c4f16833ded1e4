//! The PROXY protocol, versions 1 and 2: a header before a connection's own bytes that says between whom it is.
//!
//! Pure: slices in, values out, by <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>, whose sections the
//! comments here name. `listener/proxy_protocol.rs` reads a header from a socket, `upstream/advertised.rs` makes one.

use std::net::SocketAddr;

use thiserror::Error;
use tidegate_policy::{ProxyTlvs, TlvError};

use crate::snapshot::SendProxyHeader;

mod crc32c;
pub(crate) mod v1;
pub(crate) mod v2;

/// The two ends of the connection that a header stands for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Addresses {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

/// What a header says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Header {
    /// `None`: the connection is the proxy's own, or between ends that have no IP address. The socket's ends count.
    pub(crate) addresses: Option<Addresses>,
    pub(crate) tlvs: ProxyTlvs,
}

/// What the first bytes of a connection are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Parsed {
    /// All of them belong to a header, or to what may become one, and it is no longer than `at_most`.
    NeedsMore { at_most: usize },
    /// No header begins like this.
    Absent,
    /// The first `length` bytes are one.
    Header { length: usize, header: Header },
}

/// Begins like a header and is none: the connection is to be closed (section 2).
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub(crate) enum Invalid {
    #[error("a version 1 line of more than 107 bytes")]
    LongLine,
    #[error("a version 1 line with a stray line break")]
    LineBreak,
    #[error("a version 1 line that is not \"PROXY\", family, two addresses and two ports")]
    Line,
    #[error("version {0}")]
    Version(u8),
    #[error("command {0:#x}")]
    Command(u8),
    #[error("address family and protocol {0:#04x}")]
    Family(u8),
    #[error("a version 2 header of {0} bytes")]
    Length(usize),
    #[error("a version 2 header that is shorter than it says, or than its addresses")]
    Short,
    #[error("the checksum does not match")]
    Checksum,
    #[error(transparent)]
    Tlv(#[from] TlvError),
}

/// Looks for a header at the start of a connection.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed, Invalid> {
    let begins_like = |signature: &[u8]| bytes.starts_with(signature) || signature.starts_with(bytes);
    if begins_like(v2::SIGNATURE) {
        v2::parse(bytes)
    } else if begins_like(v1::SIGNATURE) {
        v1::parse(bytes)
    } else {
        Ok(Parsed::Absent)
    }
}

/// Looks for a header at the start of a datagram, which has all of it: in version 2 only (section 2.1 has no UDP).
pub(crate) fn of_datagram(datagram: &[u8]) -> Result<Option<(Header, &[u8])>, Invalid> {
    if !datagram.starts_with(v2::SIGNATURE) {
        return Ok(None);
    }
    match v2::parse(datagram)? {
        Parsed::Header { length, header } => Ok(Some((header, &datagram[length..]))),
        Parsed::NeedsMore { .. } | Parsed::Absent => Err(Invalid::Short),
    }
}

impl SendProxyHeader {
    /// The header of a connection of this gateway's own, such as a health check: it says LOCAL, so that the receiver takes
    /// the socket's ends and counts no client.
    pub fn of_own_connection(self) -> Vec<u8> {
        match self {
            Self::V1 => v1::emit_local(),
            Self::V2(_) => v2::emit_local(),
        }
    }
}

#[cfg(test)]
mod tests;
