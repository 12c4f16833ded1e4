//! Ethernet addresses, of this host's interfaces and of its neighbours, by the kernel's tables (rtnetlink(7)).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use crate::netlink::{Netlink, attribute};
use crate::spec::Mac;

const GET_LINK: u16 = 18;
const NEW_NEIGHBOUR: u16 = 28;
const GET_NEIGHBOUR: u16 = 30;
/// Reachable, stale, delay, probe, permanent: states whose address is worth something.
const KNOWN: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x80;

/// An interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Link {
    /// Another, if it was made anew under its name.
    pub index: i32,
    pub mac: Mac,
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("there is no interface {0:?} here")]
    Unknown(String),
    #[error("the interface {0:?} is not an Ethernet one: it has no MAC address")]
    NotEthernet(String),
    #[error("cannot read the interfaces")]
    Failed(#[from] io::Error),
}

/// Looks an interface up by its name.
pub fn link(name: &str) -> Result<Link, LinkError> {
    let mut found = None;
    Netlink::open(None)?.dump(GET_LINK, &[0; 16], |_, message| {
        found = found.take().or_else(|| link_named(message, name));
    })?;
    let (index, mac) = found.ok_or_else(|| LinkError::Unknown(name.to_owned()))?;
    let mac = mac.filter(|mac| *mac != Mac([0; 6])).ok_or_else(|| LinkError::NotEthernet(name.to_owned()))?;
    Ok(Link { index, mac })
}

/// Of a `struct ifinfomsg` and its attributes.
fn link_named(message: &[u8], name: &str) -> Option<(i32, Option<Mac>)> {
    const HEAD: usize = 16;
    let attributes = message.get(HEAD..)?;
    if attribute(attributes, 3)?.strip_suffix(&[0])? != name.as_bytes() {
        return None;
    }
    let index = i32::from_ne_bytes(message.get(4..8)?.try_into().ok()?);
    Some((index, attribute(attributes, 1).and_then(mac)))
}

/// The neighbours on an interface.
fn neighbours(link: Link) -> io::Result<HashMap<IpAddr, Mac>> {
    let mut known = HashMap::new();
    Netlink::open(None)?.dump(GET_NEIGHBOUR, &[0; 12], |kind, message| {
        if kind == NEW_NEIGHBOUR {
            known.extend(neighbour(message, link.index));
        }
    })?;
    Ok(known)
}

/// Of a `struct ndmsg` and its attributes.
fn neighbour(message: &[u8], index: i32) -> Option<(IpAddr, Mac)> {
    const HEAD: usize = 12;
    let attributes = message.get(HEAD..)?;
    let on: i32 = i32::from_ne_bytes(message.get(4..8)?.try_into().ok()?);
    let state = u16::from_ne_bytes(message.get(8..10)?.try_into().ok()?);
    if on != index || state & KNOWN == 0 {
        return None;
    }
    let address = attribute(attributes, 1)?;
    let address = match (<[u8; 4]>::try_from(address), <[u8; 16]>::try_from(address)) {
        (Ok(four), _) => IpAddr::from(Ipv4Addr::from(four)),
        (_, Ok(six)) => IpAddr::from(Ipv6Addr::from(six)),
        _ => return None,
    };
    Some((address, attribute(attributes, 2).and_then(mac)?))
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}

/// How long neighbours that are asked after are waited for, in looks.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// The MAC addresses of the neighbours on this interface. Those of `wanted` that the kernel does not know yet are asked after
/// (ARP, neighbour discovery), for half a second at most.
pub fn resolve(link: Link, wanted: &[IpAddr]) -> io::Result<HashMap<IpAddr, Mac>> {
    let mut known = neighbours(link)?;
    let missing: Vec<IpAddr> = wanted.iter().filter(|address| !known.contains_key(*address)).copied().collect();
    for address in &missing {
        // Any packet does: the kernel has to ask before it can send it.
        let _ = towards(*address).and_then(|socket| socket.send(&[]));
    }
    for _ in 0..LOOKS {
        if missing.iter().all(|address| known.contains_key(address)) {
            break;
        }
        std::thread::sleep(BETWEEN_LOOKS);
        known = neighbours(link)?;
    }
    Ok(known)
}

/// This host's address on the way to another, as its routes are now. Nothing is sent.
pub fn own_address(to: IpAddr) -> io::Result<IpAddr> {
    Ok(towards(to)?.local_addr()?.ip())
}

/// Port 9 discards (RFC 863).
fn towards(address: IpAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((address, 9))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::put;

    #[test]
    fn a_neighbour_counts_on_its_interface_while_its_address_is_known() {
        let message = |index: i32, state: u16| {
            let mut message = vec![2, 0, 0, 0];
            message.extend(index.to_ne_bytes());
            message.extend(state.to_ne_bytes());
            message.extend([0, 1]);
            put(&mut message, 1, &[10, 0, 0, 7]);
            put(&mut message, 2, &[2, 0, 0, 0, 0, 7]);
            message
        };
        let known = Some((IpAddr::from([10, 0, 0, 7]), Mac([2, 0, 0, 0, 0, 7])));
        assert_eq!(neighbour(&message(3, 0x04), 3), known);
        assert_eq!(neighbour(&message(4, 0x04), 3), None, "on another interface");
        assert_eq!(neighbour(&message(3, 0x20), 3), None, "nobody answered");
    }

    #[test]
    fn an_interface_is_known_by_its_whole_name() {
        let mut message = vec![0; 16];
        message[4..8].copy_from_slice(&7_i32.to_ne_bytes());
        put(&mut message, 3, b"eth0\0");
        put(&mut message, 1, &[2, 0, 0, 0, 0, 1]);
        assert_eq!(link_named(&message, "eth0"), Some((7, Some(Mac([2, 0, 0, 0, 0, 1])))));
        assert_eq!(link_named(&message, "eth"), None);
        assert!(matches!(link("no-such-interface"), Err(LinkError::Unknown(_))));
        assert!(matches!(link("lo"), Err(LinkError::NotEthernet(_))));
    }

    #[test]
    fn the_way_to_oneself_begins_at_oneself() {
        for own in [IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 9])] {
            assert!(own_address(own).expect("a way").is_loopback());
        }
    }
}
