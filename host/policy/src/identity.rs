//! Who the client is, in the words of RFC 7239.

use std::net::{IpAddr, SocketAddr};

/// A node of the chain (RFC 7239, section 6).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Node {
    Address(SocketAddr),
    Ip(IpAddr),
    Unknown,
    /// `_` and `[A-Za-z0-9._-]*`, the underscore included (section 6.3).
    Obfuscated(String),
}

impl Node {
    /// The address, where it tells one: IPv4 mapped into IPv6 is IPv4.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(ip) => Some(ip.to_canonical()),
            Self::Address(address) => Some(address.ip().to_canonical()),
            Self::Unknown | Self::Obfuscated(_) => None,
        }
    }
}

/// One hop (RFC 7239, section 4).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Element {
    pub r#for: Option<Node>,
    pub by: Option<Node>,
    pub host: Option<String>,
    pub proto: Option<String>,
}

/// Which families of fields carry the chain upstream.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Families {
    pub forwarded: bool,
    pub x_forwarded: bool,
    pub x_real_ip: bool,
}

/// The identity fields to send: the whole chain, nearest hop last, and the families that carry it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Identity {
    pub elements: Vec<Element>,
    pub families: Families,
}
