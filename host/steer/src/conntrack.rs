//! The kernel's table of connections, as far as NAT needs it: forgetting flows that lead to backends which are down.
//!
//! What is forgotten begins anew with its next packet and gets another backend: a UDP flow goes on there, a TCP connection is
//! reset by it, so that the client learns at once what it would have waited for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::netlink;

use crate::netlink::{Netlink, attribute, put};
use crate::spec::Steer;

// Of linux/netfilter/nfnetlink_conntrack.h.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const NESTED: u16 = 0x8000;
/// Family, version and resource go before the attributes.
const HEAD: usize = 4;
const ENOENT: i32 = 2;

/// Forgets the flows of `steer` that lead to one of `backends`.
///
/// # Returns
/// How many there were.
///
/// # Errors
/// Without CAP_NET_ADMIN, or where the kernel has no interface to it (CONFIG_NF_CT_NETLINK).
pub fn forget(steer: &Steer, backends: &[SocketAddr]) -> io::Result<u64> {
    let mut netlink = Netlink::open(Some(netlink::NETFILTER))?;
    let family: u8 = if steer.address.is_ipv4() { 2 } else { 10 };
    let mut doomed: Vec<Vec<u8>> = Vec::new();
    netlink.dump(GET, &[family, 0, 0, 0], |_, entry| {
        if let Some(attributes) = entry.get(HEAD..)
            && leads_to(attributes, steer, backends)
        {
            doomed.push(deletion(family, attributes));
        }
    })?;
    let mut forgotten = 0;
    for entry in doomed {
        match netlink.request(DELETE, &entry) {
            Ok(()) => forgotten += 1,
            // It ended by itself.
            Err(error) if error.raw_os_error() == Some(ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(forgotten)
}

/// What tells this entry from all others.
fn deletion(family: u8, attributes: &[u8]) -> Vec<u8> {
    let mut message = vec![family, 0, 0, 0];
    for (kind, flag) in [(TUPLE_ORIG, NESTED), (ZONE, 0), (ID, 0)] {
        if let Some(content) = attribute(attributes, kind) {
            put(&mut message, kind | flag, content);
        }
    }
    message
}

fn leads_to(attributes: &[u8], steer: &Steer, backends: &[SocketAddr]) -> bool {
    let tuple = |kind| attribute(attributes, kind).and_then(Tuple::read);
    let (Some(original), Some(reply)) = (tuple(TUPLE_ORIG), tuple(TUPLE_REPLY)) else { return false };
    original.destination.ip() == steer.address
        && steer.covers(original.protocol, original.destination.port())
        && backends.iter().any(|backend| match steer.translates_ports() {
            true => *backend == reply.source,
            false => backend.ip() == reply.source.ip(),
        })
}

#[derive(Debug, Eq, PartialEq)]
struct Tuple {
    source: SocketAddr,
    destination: SocketAddr,
    protocol: u8,
}

impl Tuple {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (addresses, protocol) = (attribute(bytes, 1)?, attribute(bytes, 2)?);
        let address = |four: u16, six: u16| {
            let ip = |kind| attribute(addresses, kind);
            let four = ip(four).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
            let six = || ip(six).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
            four.map(|bytes| IpAddr::from(Ipv4Addr::from(bytes)))
                .or_else(|| six().map(|bytes| IpAddr::from(Ipv6Addr::from(bytes))))
        };
        let port = |kind| attribute(protocol, kind)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
        Some(Self {
            source: SocketAddr::new(address(1, 3)?, port(2)?),
            destination: SocketAddr::new(address(2, 4)?, port(3)?),
            protocol: *attribute(protocol, 1)?.first()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Affinity, Mode, Nat, Protocol, Source};

    fn tuple(source: &str, destination: &str, protocol: u8) -> Vec<u8> {
        let (source, destination): (SocketAddr, SocketAddr) =
            (source.parse().expect("an address"), destination.parse().expect("an address"));
        let octets = |address: IpAddr| match address {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let first = if source.is_ipv4() { 1 } else { 3 };
        let (mut addresses, mut ports, mut tuple) = (Vec::new(), Vec::new(), Vec::new());
        put(&mut addresses, first, &octets(source.ip()));
        put(&mut addresses, first + 1, &octets(destination.ip()));
        put(&mut ports, 1, &[protocol]);
        put(&mut ports, 2, &source.port().to_be_bytes());
        put(&mut ports, 3, &destination.port().to_be_bytes());
        put(&mut tuple, 1 | NESTED, &addresses);
        put(&mut tuple, 2 | NESTED, &ports);
        tuple
    }

    fn entry(original: [&str; 2], reply: [&str; 2], protocol: u8) -> Vec<u8> {
        let mut entry = Vec::new();
        put(&mut entry, TUPLE_ORIG | NESTED, &tuple(original[0], original[1], protocol));
        put(&mut entry, TUPLE_REPLY | NESTED, &tuple(reply[0], reply[1], protocol));
        put(&mut entry, ID, &[1, 2, 3, 4]);
        entry
    }

    fn steer(address: &str, ports: std::ops::RangeInclusive<u16>) -> Steer {
        Steer {
            name: "web".to_owned(),
            address: address.parse().expect("an address"),
            protocols: vec![Protocol::Tcp],
            ports: vec![ports],
            affinity: Affinity::Connection,
            table: 251,
            mode: Mode::Nat(Nat { interface: None, source: Source::Keep }),
        }
    }

    #[test]
    fn only_flows_of_the_steer_to_these_backends_are_meant() {
        let web = steer("192.0.2.1", 80..=80);
        let dead: Vec<SocketAddr> = vec!["10.0.0.1:8080".parse().expect("an address")];
        let client = "203.0.113.9:40000";
        let meant = |original: &str, backend: &str, protocol: u8| {
            leads_to(&entry([client, original], [backend, client], protocol), &web, &dead)
        };
        assert!(meant("192.0.2.1:80", "10.0.0.1:8080", 6));
        assert!(!meant("192.0.2.1:80", "10.0.0.2:8080", 6), "another backend");
        assert!(!meant("192.0.2.1:80", "10.0.0.1:8081", 6), "another backend on its host");
        assert!(!meant("192.0.2.1:81", "10.0.0.1:8080", 6), "another port");
        assert!(!meant("192.0.2.1:80", "10.0.0.1:8080", 17), "another protocol");
        assert!(!meant("192.0.2.2:80", "10.0.0.1:8080", 6), "another address");
        let range = steer("2001:db8::1", 80..=90);
        let six = entry(["[2001:db8::9]:40000", "[2001:db8::1]:85"], ["[fd00::1]:85", "[2001:db8::9]:40000"], 6);
        assert!(leads_to(&six, &range, &["[fd00::1]:80".parse().expect("an address")]));
    }

    #[test]
    fn a_deletion_names_the_entry() {
        let entry = entry(["203.0.113.9:40000", "192.0.2.1:80"], ["10.0.0.1:8080", "203.0.113.9:40000"], 6);
        let message = deletion(2, &entry);
        assert_eq!(attribute(&message[HEAD..], TUPLE_ORIG), attribute(&entry, TUPLE_ORIG));
        assert_eq!(attribute(&message[HEAD..], ID), Some(&[1, 2, 3, 4][..]));
        assert_eq!(attribute(&message[HEAD..], TUPLE_REPLY), None);
    }
}
