//! What a read gives, as bytes that answers are remembered by.

use smallvec::SmallVec;
use tidegate_policy::{Element, Node};

use super::Read;
use crate::state::Facts;

pub(crate) type Value = SmallVec<[u8; 64]>;

/// Writes what `read` gives for these facts, such that different facts give different bytes.
pub(crate) fn value(read: &Read, facts: &Facts, granted: impl Fn(&str) -> bool, out: &mut Value) {
    out.clear();
    let Some(asked) = &facts.asked else { return };
    let request = &asked.request;
    let option = |out: &mut Value, value: Option<&[u8]>| {
        if let Some(value) = value {
            out.push(1);
            out.extend_from_slice(value);
        }
    };
    let listed = |out: &mut Value, name: &[u8], value: &[u8]| {
        for part in [name, value] {
            out.extend_from_slice(&(part.len() as u32).to_le_bytes());
            out.extend_from_slice(part);
        }
    };
    match read {
        Read::ClientIp => {
            if let Some(ip) = facts.client() {
                put_ip(out, ip);
            }
        }
        Read::Version => out.push(request.version as u8),
        Read::Method => out.extend_from_slice(request.method.as_str().as_bytes()),
        Read::Scheme => out.push(request.scheme as u8),
        Read::Authority => out.extend_from_slice(request.authority.as_bytes()),
        Read::Path => out.extend_from_slice(request.target.path().as_bytes()),
        Read::Query => option(out, request.target.query().map(str::as_bytes)),
        Read::Header(name) => {
            let found = if granted(name.as_str()) { request.headers.get(name) } else { None };
            option(out, found.map(|value| value.as_bytes()));
        }
        Read::HeaderValues(name) => {
            if granted(name) {
                request.headers.get_all(&**name).iter().for_each(|value| listed(out, b"", value.as_bytes()));
            }
        }
        Read::Headers => {
            for (name, value) in request.headers.iter().filter(|(name, _)| granted(name.as_str())) {
                listed(out, name.as_str().as_bytes(), value.as_bytes());
            }
        }
        Read::Cookie(name) => {
            let found = if granted("cookie") { asked.cookie(name) } else { None };
            option(out, found.as_deref());
        }
        Read::Note(name) => option(out, asked.note(name).as_deref().map(str::as_bytes)),
        Read::Peer => put_address(out, asked.connection.peer),
        Read::ConnectionClient => put_address(out, asked.connection.client),
        Read::Local => put_address(out, asked.connection.local),
        Read::Listener => out.extend_from_slice(asked.connection.listener.as_bytes()),
        Read::ServerName => option(out, asked.connection.server_name.as_ref().map(|name| name.as_bytes().as_ref())),
        Read::Alpn => option(out, asked.connection.alpn.as_ref().map(|alpn| alpn.as_bytes().as_ref())),
        Read::ClientCertificate => option(out, asked.connection.client_certificate.as_deref()),
        Read::ProxyTlv(kind) => option(out, asked.connection.proxy_tlvs.get(*kind)),
        Read::Received => facts.received().iter().for_each(|element| put_element(out, element)),
        Read::Proposed => {
            let elements = facts.identity.as_ref().map_or(&[][..], |identity| &identity.elements);
            elements.iter().for_each(|element| put_element(out, element));
        }
    }
}

fn put_ip(out: &mut Value, ip: std::net::IpAddr) {
    match ip {
        std::net::IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
        std::net::IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
    }
}

fn put_address(out: &mut Value, address: std::net::SocketAddr) {
    put_ip(out, address.ip());
    out.extend_from_slice(&address.port().to_le_bytes());
}

/// Each part begins with its kind or its length: no two chains give the same bytes.
fn put_element(out: &mut Value, element: &Element) {
    put_node(out, element.r#for.as_ref());
    put_node(out, element.by.as_ref());
    put_text(out, element.host.as_deref());
    put_text(out, element.proto.as_deref());
}

fn put_node(out: &mut Value, node: Option<&Node>) {
    let address = |out: &mut Value, kind: [u8; 2], ip: std::net::IpAddr| {
        out.push(kind[usize::from(ip.is_ipv6())]);
        put_ip(out, ip);
    };
    match node {
        None => out.push(0),
        Some(Node::Unknown) => out.push(1),
        Some(Node::Ip(ip)) => address(out, [2, 3], *ip),
        Some(Node::Address(socket)) => {
            address(out, [4, 5], socket.ip());
            out.extend_from_slice(&socket.port().to_le_bytes());
        }
        Some(Node::Obfuscated(name)) => {
            out.push(6);
            put_text(out, Some(name));
        }
    }
}

fn put_text(out: &mut Value, text: Option<&str>) {
    // No text is as long as that.
    out.extend_from_slice(&text.map_or(u32::MAX, |text| text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.unwrap_or_default().as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_chains_are_taken_for_one_another() {
        let nodes = [
            None,
            Some(Node::Unknown),
            Some(Node::Ip([1, 2, 3, 4].into())),
            Some(Node::Ip("::1".parse().expect("an address"))),
            Some(Node::Address(([1, 2, 3, 4], 258).into())),
            Some(Node::Address("[::1]:258".parse().expect("an address"))),
            Some(Node::Obfuscated("_".to_owned())),
            Some(Node::Obfuscated("_a".to_owned())),
        ];
        let texts = [None, Some(String::new()), Some("_".to_owned()), Some("a".to_owned())];
        let mut elements = Vec::new();
        for (r#for, by) in nodes.iter().flat_map(|one| nodes.iter().map(move |other| (one, other))) {
            for (host, proto) in texts.iter().flat_map(|one| texts.iter().map(move |other| (one, other))) {
                let (r#for, by, host, proto) = (r#for.clone(), by.clone(), host.clone(), proto.clone());
                elements.push(Element { r#for, by, host, proto });
            }
        }
        let written = |chain: &[&Element]| {
            let mut out = Value::new();
            chain.iter().for_each(|element| put_element(&mut out, element));
            out
        };
        let mut seen = std::collections::HashSet::from([written(&[])]);
        for one in &elements {
            assert!(seen.insert(written(&[one])), "{one:?}");
            // A few of those that may follow; all would be a million.
            for other in elements.iter().step_by(97) {
                assert!(seen.insert(written(&[one, other])), "{one:?} {other:?}");
            }
        }
    }
}
