//! `Forwarded` (RFC 7239): the whole grammar, parsed from a slice. It is written by `forwarding_fields`.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::{Element, Node, is_tchar};

/// Most elements that are read, those nearest to this hop: a chain longer than this is an attack, not a path. What is
/// beyond stands on the left, where a client writes and trusted hops do not.
pub(super) const MAX_ELEMENTS: usize = 32;

/// Parses the last `MAX_ELEMENTS` of a field value (all its lines joined by commas). An element that breaks the grammar
/// is `None`, at its place: whoever walks the chain must stop there.
pub fn parse_forwarded(value: &[u8]) -> Vec<Option<Element>> {
    let mut texts: VecDeque<Option<&[u8]>> = VecDeque::with_capacity(MAX_ELEMENTS);
    let mut rest = Some(value);
    while let Some(text) = rest {
        let (element, more) = split_element(text);
        rest = more;
        // The list rule lets a sender leave elements empty (RFC 9110, section 5.6.1).
        if element.is_some_and(|text| text.trim_ascii().is_empty()) {
            continue;
        }
        if texts.len() == MAX_ELEMENTS {
            texts.pop_front();
        }
        texts.push_back(element);
    }
    texts.into_iter().map(|text| text.and_then(parse_element)).collect()
}

/// Up to the next comma outside quotes; `None` for a quote that never ends.
fn split_element(text: &[u8]) -> (Option<&[u8]>, Option<&[u8]>) {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return (Some(&text[..at]), Some(&text[at + 1..])),
            _ => {}
        }
    }
    ((!quoted).then_some(text), None)
}

/// `[ pair ] *( ";" [ pair ] )`, each parameter once (section 4).
fn parse_element(text: &[u8]) -> Option<Element> {
    let mut element = Element::default();
    let mut seen: Vec<String> = Vec::new();
    let mut rest = text.trim_ascii();
    loop {
        if let Some(more) = rest.strip_prefix(b";") {
            rest = more;
            continue;
        }
        if rest.is_empty() {
            return Some(element);
        }
        let equals = rest.iter().position(|b| *b == b'=')?;
        let name = &rest[..equals];
        if name.is_empty() || !name.iter().all(|b| is_tchar(*b)) {
            return None;
        }
        let name = String::from_utf8(name.to_ascii_lowercase()).ok()?;
        let (value, more) = parse_value(&rest[equals + 1..])?;
        if seen.contains(&name) {
            return None;
        }
        match name.as_str() {
            "for" => element.r#for = Some(parse_node(&value)?),
            "by" => element.by = Some(parse_node(&value)?),
            "host" => element.host = Some(value),
            "proto" => element.proto = Some(value),
            // Extensions are allowed, and nobody's business here.
            _ => {}
        }
        seen.push(name);
        rest = match more.first() {
            None => more,
            Some(b';') => &more[1..],
            Some(_) => return None,
        };
    }
}

/// A token or a quoted-string, unescaped, and what follows.
fn parse_value(text: &[u8]) -> Option<(String, &[u8])> {
    if text.first() != Some(&b'"') {
        let end = text.iter().position(|b| !is_tchar(*b)).unwrap_or(text.len());
        let value = std::str::from_utf8(&text[..end]).ok().filter(|value| !value.is_empty())?;
        return Some((value.to_owned(), &text[end..]));
    }
    let mut value = Vec::new();
    let mut at = 1;
    loop {
        match *text.get(at)? {
            b'"' => break,
            b'\\' => {
                at += 1;
                value.push(*text.get(at)?);
            }
            byte if byte == b'\t' || byte >= b' ' && byte != 0x7f => value.push(byte),
            _ => return None,
        }
        at += 1;
    }
    Some((String::from_utf8(value).ok()?, &text[at + 1..]))
}

/// `node = nodename [ ":" node-port ]` (section 6).
pub(crate) fn parse_node(text: &str) -> Option<Node> {
    if let Some(inner) = text.strip_prefix('[') {
        let (ip, port) = inner.split_once(']')?;
        let ip: Ipv6Addr = ip.parse().ok()?;
        return with_port(IpAddr::V6(ip), port.strip_prefix(':'), port.is_empty());
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    if name.eq_ignore_ascii_case("unknown") {
        return Some(Node::Unknown);
    }
    if name.starts_with('_') {
        return is_obfuscated(name).then(|| Node::Obfuscated(name.to_owned()));
    }
    let ip = name.parse().ok()?;
    with_port(IpAddr::V4(ip), port, port.is_none())
}

/// An obfuscated port says nothing about the address beside it.
fn with_port(ip: IpAddr, port: Option<&str>, absent: bool) -> Option<Node> {
    match port {
        Some(port) if port.starts_with('_') => is_obfuscated(port).then_some(Node::Ip(ip)),
        Some(port) if port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()) => {
            Some(Node::Address(SocketAddr::new(ip, port.parse().ok()?)))
        }
        None if absent => Some(Node::Ip(ip)),
        _ => None,
    }
}

/// `"_" 1*( ALPHA / DIGIT / "." / "_" / "-")` (section 6.3).
pub(crate) fn is_obfuscated(text: &str) -> bool {
    text.strip_prefix('_').is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::native::render_forwarded;

    fn one(text: &str) -> Option<Element> {
        parse_forwarded(text.as_bytes()).into_iter().next().flatten()
    }

    /// The examples of RFC 7239, sections 4 and 6.
    #[test]
    fn the_rfcs_examples_parse() {
        assert_eq!(one("for=\"_gazonk\"").and_then(|e| e.r#for), Some(Node::Obfuscated("_gazonk".into())));
        let address: SocketAddr = "[2001:db8:cafe::17]:4711".parse().expect("an address");
        assert_eq!(one("For=\"[2001:db8:cafe::17]:4711\"").and_then(|e| e.r#for), Some(Node::Address(address)));
        let element = one("for=192.0.2.60;proto=http;by=203.0.113.43").expect("an element");
        assert_eq!(element.proto.as_deref(), Some("http"));
        assert_eq!(element.by, Some(Node::Ip([203, 0, 113, 43].into())));
        assert_eq!(parse_forwarded(b"for=192.0.2.43, for=198.51.100.17").len(), 2);
        assert_eq!(one("for=unknown").and_then(|e| e.r#for), Some(Node::Unknown));
        assert_eq!(one("for=\"192.0.2.43:_p\"").and_then(|e| e.r#for), Some(Node::Ip([192, 0, 2, 43].into())));
    }

    #[test]
    fn commas_and_semicolons_inside_quotes_are_text() {
        let elements = parse_forwarded(b"for=\"_a\";host=\"x,y;\\\"z\", for=_b");
        assert_eq!(elements.len(), 2);
        assert_eq!(elements[0].as_ref().and_then(|e| e.host.as_deref()), Some("x,y;\"z"));
    }

    #[test]
    fn what_breaks_the_grammar_is_none_at_its_place() {
        for junk in [
            "for",
            "for=",
            "=x",
            "for=1.2.3.4;for=1.2.3.5",
            "for=1.2.3.4.5",
            "for=2001:db8::1",
            "for=[::1",
            "for=\"a",
            "for=1.2.3.4 by=x",
            "for=_",
            "for=_a b",
            "for=1.2.3.4:99999",
            "for=\"1.2.3.4:\"",
            "f r=x",
        ] {
            assert_eq!(one(junk), None, "{junk}");
        }
        let mixed = parse_forwarded(b"for=1.2.3.4, junk, for=5.6.7.8");
        assert!(mixed[0].is_some() && mixed[1].is_none() && mixed[2].is_some());
        assert_eq!(parse_forwarded(&b"for=_a,".repeat(100)).len(), MAX_ELEMENTS);
        // The nearest ones are kept.
        let long: Vec<String> = (0..40).map(|hop| format!("for=_{hop}")).collect();
        let read = parse_forwarded(long.join(",").as_bytes());
        let node = |at: usize| read[at].as_ref().and_then(|element| element.r#for.clone());
        assert_eq!((node(0), node(31)), (Some(Node::Obfuscated("_8".into())), Some(Node::Obfuscated("_39".into()))));
    }

    fn node() -> impl Strategy<Value = Node> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(|ip| Node::Ip(ip.into())),
            any::<[u8; 16]>().prop_map(|ip| Node::Ip(IpAddr::V6(ip.into()))),
            (any::<[u8; 16]>(), any::<u16>())
                .prop_map(|(ip, port)| Node::Address(SocketAddr::new(IpAddr::V6(ip.into()), port))),
            (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| Node::Address((ip, port).into())),
            Just(Node::Unknown),
            "_[A-Za-z0-9._-]{1,20}".prop_map(Node::Obfuscated),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(nodes in proptest::collection::vec((node(), proptest::option::of(node()), proptest::option::of("[ -~]{1,30}")), 1..6)) {
            let chain: Vec<Element> = nodes
                .into_iter()
                .map(|(r#for, by, host)| Element { r#for: Some(r#for), by, host, proto: Some("https".into()) })
                .collect();
            let read: Option<Vec<Element>> = parse_forwarded(render_forwarded(&chain).as_bytes()).into_iter().collect();
            prop_assert_eq!(read, Some(chain));
        }

        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse_forwarded(&bytes);
        }
    }
}
