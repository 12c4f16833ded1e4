//! The chain as header fields: `Forwarded` (RFC 7239), `X-Forwarded-*` and `X-Real-IP`, written into one buffer that their
//! values share. On the way of every request, so nothing is put together twice and no address goes through a formatter.

use std::fmt::Write;
use std::net::IpAddr;

use bytes::{BufMut, BytesMut};
use http::{HeaderName, HeaderValue, header};

use crate::{Element, Families, Node, is_tchar};

pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(super) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
pub(super) const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// An element as it is written.
#[derive(Clone, Copy)]
pub(super) struct Hop<'a> {
    pub(super) r#for: Option<&'a Node>,
    pub(super) by: Option<&'a Node>,
    pub(super) host: Option<&'a str>,
    pub(super) proto: Option<&'a str>,
}

impl<'a> From<&'a Element> for Hop<'a> {
    fn from(element: &'a Element) -> Self {
        Self {
            r#for: element.r#for.as_ref(),
            by: element.by.as_ref(),
            host: element.host.as_deref(),
            proto: element.proto.as_deref(),
        }
    }
}

/// The fields of the families that carry `hops`. Values that no field can carry are left out.
pub(super) fn fields(hops: &[Hop<'_>], families: Families, port: u16) -> Vec<(HeaderName, HeaderValue)> {
    let mut fields = Vec::with_capacity(8);
    let mut out = BytesMut::with_capacity(64 + 128 * hops.len());
    let mut add = |name: HeaderName, out: &mut BytesMut| {
        if let Ok(value) = HeaderValue::from_maybe_shared(out.split().freeze()) {
            fields.push((name, value));
        }
    };
    if families.forwarded && !hops.is_empty() {
        put_forwarded(&mut out, hops);
        add(header::FORWARDED, &mut out);
    }
    if families.x_forwarded && !hops.is_empty() {
        for node in hops.iter().filter_map(|hop| hop.r#for) {
            if !out.is_empty() {
                out.put_slice(b", ");
            }
            put_bare(&mut out, node);
        }
        add(X_FORWARDED_FOR, &mut out);
        // The client's own view: that of the first hop which told.
        if let Some(proto) = hops.iter().find_map(|hop| hop.proto) {
            out.put_slice(proto.as_bytes());
            add(X_FORWARDED_PROTO, &mut out);
        }
        if let Some(host) = hops.iter().find_map(|hop| hop.host) {
            out.put_slice(host.as_bytes());
            add(X_FORWARDED_HOST, &mut out);
        }
        put_number(&mut out, port);
        add(X_FORWARDED_PORT, &mut out);
    }
    // Only an address belongs there, and only the chain's own: one that hides the client hides it here too.
    let first = hops.first().and_then(|hop| hop.r#for).and_then(Node::ip);
    if let Some(ip) = first.filter(|_| families.x_real_ip) {
        put_ip(&mut out, ip);
        add(X_REAL_IP, &mut out);
    }
    fields
}

/// Writes a chain as one value of `Forwarded`.
pub fn render_forwarded(elements: &[Element]) -> String {
    let mut out = BytesMut::with_capacity(elements.len() * 64);
    put_forwarded(&mut out, &elements.iter().map(Hop::from).collect::<Vec<_>>());
    // Made of texts.
    String::from_utf8_lossy(&out).into_owned()
}

fn put_forwarded(out: &mut BytesMut, hops: &[Hop<'_>]) {
    let start = out.len();
    for hop in hops {
        let element = out.len();
        let begin = |out: &mut BytesMut, name: &[u8]| {
            if out.len() > element {
                out.put_u8(b';');
            } else if element > start {
                out.put_slice(b", ");
            }
            out.put_slice(name);
        };
        if let Some(node) = hop.r#for {
            begin(out, b"for=");
            put_node(out, node);
        }
        if let Some(node) = hop.by {
            begin(out, b"by=");
            put_node(out, node);
        }
        if let Some(host) = hop.host {
            begin(out, b"host=");
            put_quoted(out, host);
        }
        if let Some(proto) = hop.proto {
            begin(out, b"proto=");
            put_quoted(out, proto);
        }
    }
}

/// Section 6: with a colon it is no token, so it is quoted; IPv6 has brackets.
fn put_node(out: &mut BytesMut, node: &Node) {
    match node {
        Node::Ip(ip @ IpAddr::V4(_)) => put_ip(out, *ip),
        // Writing to memory cannot fail.
        Node::Ip(IpAddr::V6(ip)) => drop(write!(out, "\"[{ip}]\"")),
        Node::Address(address) => drop(write!(out, "\"{address}\"")),
        Node::Unknown => out.put_slice(b"unknown"),
        Node::Obfuscated(name) => put_quoted(out, name),
    }
}

/// As `X-Forwarded-For` writes a node: no port, no brackets.
fn put_bare(out: &mut BytesMut, node: &Node) {
    match node {
        Node::Address(address) => put_ip(out, address.ip()),
        Node::Ip(ip) => put_ip(out, *ip),
        Node::Unknown => out.put_slice(b"unknown"),
        Node::Obfuscated(name) => out.put_slice(name.as_bytes()),
    }
}

fn put_ip(out: &mut BytesMut, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            for (place, octet) in ip.octets().into_iter().enumerate() {
                if place > 0 {
                    out.put_u8(b'.');
                }
                put_number(out, octet.into());
            }
        }
        IpAddr::V6(ip) => drop(write!(out, "{ip}")),
    }
}

fn put_number(out: &mut BytesMut, number: u16) {
    let mut digits = [0; 5];
    let mut at = digits.len();
    let mut left = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}

/// Bare where it is a token; a colon or bracket is not, so hosts with either are quoted.
fn put_quoted(out: &mut BytesMut, value: &str) {
    if !value.is_empty() && value.bytes().all(is_tchar) {
        return out.put_slice(value.as_bytes());
    }
    out.put_u8(b'"');
    for byte in value.bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.put_u8(b'\\');
        }
        out.put_u8(byte);
    }
    out.put_u8(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_addresses_are_written_as_the_library_does() {
        let written = |ip: IpAddr| {
            let mut out = BytesMut::new();
            put_ip(&mut out, ip);
            String::from_utf8(out.to_vec()).expect("text")
        };
        for ip in ["0.0.0.0", "9.10.99.100", "255.199.200.1", "::", "2001:db8::1", "::ffff:1.2.3.4"] {
            let ip: IpAddr = ip.parse().expect("an address");
            assert_eq!(written(ip), ip.to_string());
        }
        for number in [0, 9, 10, 80, 443, 9999, 10_000, 65_535] {
            let mut out = BytesMut::new();
            put_number(&mut out, number);
            assert_eq!(out, number.to_string().as_bytes());
        }
    }
}
