//! A client's identity as bytes: the form in which it comes along with a question, and goes back. `wit/README.md` tells it.

use std::net::IpAddr;

use crate::prefetched::Reader;
use crate::{Element, Node};

/// `None` for what does not have the form.
pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<Element>> {
    let mut rest = Reader(bytes);
    let mut elements = Vec::with_capacity(2);
    while !rest.0.is_empty() {
        let (r#for, by) = (node(&mut rest)?, node(&mut rest)?);
        elements.push(Element { r#for, by, host: text(&mut rest)?, proto: text(&mut rest)? });
    }
    Some(elements)
}

fn text(rest: &mut Reader<'_>) -> Option<Option<String>> {
    match u32::from_le_bytes(rest.array()?) {
        u32::MAX => Some(None),
        length => String::from_utf8(rest.take(length as usize)?.to_vec()).ok().map(Some),
    }
}

fn node(rest: &mut Reader<'_>) -> Option<Option<Node>> {
    Some(match rest.byte()? {
        0 => None,
        1 => Some(Node::Unknown),
        2 => Some(Node::Ip(rest.ipv4()?)),
        3 => Some(Node::Ip(rest.ipv6()?)),
        4 => Some(Node::Address(rest.socket(false)?)),
        5 => Some(Node::Address(rest.socket(true)?)),
        6 => Some(Node::Obfuscated(text(rest)??)),
        _ => return None,
    })
}

/// Room for an element of the usual kind: an address or a name, a host and a scheme.
const USUAL: usize = 96;

pub(crate) fn encode(elements: &[Element]) -> Vec<u8> {
    let mut out = Vec::with_capacity(USUAL * elements.len());
    for Element { r#for, by, host, proto } in elements {
        for node in [r#for, by] {
            put_node(&mut out, node.as_ref());
        }
        for text in [host, proto] {
            put_text(&mut out, text.as_deref());
        }
    }
    out
}

fn put_text(out: &mut Vec<u8>, text: Option<&str>) {
    // No text is as long as what stands for none.
    out.extend_from_slice(&text.map_or(u32::MAX, |text| text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.unwrap_or_default().as_bytes());
}

fn put_node(out: &mut Vec<u8>, node: Option<&Node>) {
    match node {
        None => out.push(0),
        Some(Node::Unknown) => out.push(1),
        Some(Node::Ip(ip)) => put_ip(out, [2, 3], *ip),
        Some(Node::Address(address)) => {
            put_ip(out, [4, 5], address.ip());
            out.extend_from_slice(&address.port().to_le_bytes());
        }
        Some(Node::Obfuscated(name)) => {
            out.push(6);
            put_text(out, Some(name));
        }
    }
}

fn put_ip(out: &mut Vec<u8>, kinds: [u8; 2], ip: IpAddr) {
    out.push(kinds[usize::from(ip.is_ipv6())]);
    match ip {
        IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let nodes = [
            None,
            Some(Node::Unknown),
            Some(Node::Ip([1, 2, 3, 4].into())),
            Some(Node::Ip("2001:db8::1".parse().expect("an address"))),
            Some(Node::Address(([1, 2, 3, 4], 258).into())),
            Some(Node::Address("[2001:db8::1]:258".parse().expect("an address"))),
            Some(Node::Obfuscated("_a".to_owned())),
        ];
        let texts = [None, Some(String::new()), Some("h\u{e9}".to_owned())];
        let mut chain = Vec::new();
        for (r#for, by) in nodes.iter().flat_map(|one| nodes.iter().map(move |other| (one, other))) {
            for (host, proto) in texts.iter().flat_map(|one| texts.iter().map(move |other| (one, other))) {
                let (r#for, by, host, proto) = (r#for.clone(), by.clone(), host.clone(), proto.clone());
                chain.push(Element { r#for, by, host, proto });
            }
        }
        assert_eq!(decode(&encode(&chain)).as_ref(), Some(&chain));
        for element in chain {
            let written = encode(std::slice::from_ref(&element));
            for end in 1..written.len() {
                assert_eq!(decode(&written[..end]), None, "{element:?} without its end");
            }
        }
        assert_eq!(decode(b""), Some(Vec::new()));
    }
}
