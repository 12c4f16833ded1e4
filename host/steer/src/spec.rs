//! What is steered, and where to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// Packets for a virtual address, and how they reach one of several backends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Steer {
    /// Owns what is installed: letters, digits, `_`, `.` and `-`.
    pub name: String,
    /// The virtual address.
    pub address: IpAddr,
    pub protocols: Vec<Protocol>,
    /// In order, without overlap.
    pub ports: Vec<RangeInclusive<u16>>,
    pub affinity: Affinity,
    /// Entries of Maglev's table: a prime.
    pub table: usize,
    pub mode: Mode,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// As nftables, the configuration and `/status` say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// IANA's number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// What is hashed to find the backend of a new flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Affinity {
    /// The client's address and port.
    Connection,
    /// Its address: all its flows go to one backend, as long as the table stays.
    Client,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Mode {
    Nat(Nat),
    Dsr(Dsr),
}

/// The destination is rewritten, and in replies the source: both ways lead through this host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Nat {
    /// Where packets must come in, if it matters.
    pub interface: Option<String>,
    pub source: Source,
}

/// Whose address the backend sees.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// The client's. The backend's way to the client must lead through this host.
    Keep,
    /// This host's: replies find back by themselves.
    Gateway,
}

/// Only the MAC address is rewritten. The backend has the virtual address too, and answers the client itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Dsr {
    /// Where packets come in.
    pub interface: String,
    /// Where the backends are.
    pub endpoint_interface: String,
    /// Most flows of one backend that are remembered.
    pub flows: u32,
    /// How long a silent flow is remembered, in whole seconds.
    pub flow_timeout: Duration,
    /// Connections of this host to a backend that carry this mark (`SO_MARK`) reach the virtual address there in place of the
    /// backend's own: health checks. `None`: nothing is sent so.
    pub check_mark: Option<u32>,
}

/// One endpoint of the cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Backend {
    pub address: SocketAddr,
    pub role: Role,
    /// Needed for DSR.
    pub mac: Option<Mac>,
    /// This host's own, as the backend sees it. Needed to check the virtual address there.
    pub seen_as: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Gets new flows in proportion to this weight, which is not 0.
    Takes(u32),
    /// Keeps the flows it has.
    Drains,
    /// Its flows go elsewhere.
    Down,
}

impl Role {
    /// As `/status` says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Takes(_) => "takes",
            Self::Drains => "drains",
            Self::Down => "down",
        }
    }

    pub fn serves(self) -> bool {
        self != Self::Down
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What is not six bytes in hexadecimal with colons between them.
#[derive(Debug, thiserror::Error)]
#[error("not a MAC address as in 02:00:5e:00:53:01")]
pub struct NotAMac;

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let digits = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            let part = parts.next().filter(digits).ok_or(NotAMac)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| NotAMac)?;
        }
        if parts.next().is_some() { Err(NotAMac) } else { Ok(Self(bytes)) }
    }
}

impl Steer {
    /// Whether the backend's own port is where packets go: with one port in NAT. Otherwise they keep theirs.
    pub fn translates_ports(&self) -> bool {
        matches!(self.mode, Mode::Nat(_)) && matches!(&*self.ports, [one] if one.start() == one.end())
    }

    pub fn covers(&self, protocol: u8, port: u16) -> bool {
        self.protocols.iter().any(|known| known.number() == protocol)
            && self.ports.iter().any(|ports| ports.contains(&port))
    }
}

#[cfg(test)]
mod tests {
    use super::Mac;

    #[test]
    fn macs_are_read_strictly_and_written_back() {
        let mac: Mac = "02:00:5E:00:53:01".parse().expect("a MAC");
        assert_eq!(mac.to_string(), "02:00:5e:00:53:01");
        for wrong in
            ["", "02:00:5e:00:53", "02:00:5e:00:53:01:02", "2:0:5e:0:53:1", "02-00-5e-00-53-01", "+2:00:5e:00:53:01"]
        {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }
}
