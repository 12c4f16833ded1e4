//! A client's identity as bytes: the form in which it comes along with questions, is remembered by, and comes back from guests
//! (`wit/README.md`, "Facts that come along").

use std::net::{IpAddr, SocketAddr};

use tidegate_policy::{Element, Node};

pub(crate) fn put_ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
    }
}

pub(crate) fn put_address(out: &mut Vec<u8>, address: SocketAddr) {
    put_ip(out, address.ip());
    out.extend_from_slice(&address.port().to_le_bytes());
}

/// Each part begins with its kind or its length: no two chains give the same bytes.
pub(crate) fn put_element(out: &mut Vec<u8>, element: &Element) {
    put_node(out, element.r#for.as_ref());
    put_node(out, element.by.as_ref());
    put_text(out, element.host.as_deref());
    put_text(out, element.proto.as_deref());
}

fn put_node(out: &mut Vec<u8>, node: Option<&Node>) {
    match node {
        None => out.push(0),
        Some(Node::Unknown) => out.push(1),
        Some(Node::Ip(ip)) => {
            out.push(2 + u8::from(ip.is_ipv6()));
            put_ip(out, *ip);
        }
        Some(Node::Address(address)) => {
            out.push(4 + u8::from(address.is_ipv6()));
            put_address(out, *address);
        }
        Some(Node::Obfuscated(name)) => {
            out.push(6);
            put_text(out, Some(name));
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: Option<&str>) {
    // No text is as long as that.
    out.extend_from_slice(&text.map_or(u32::MAX, |text| text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.unwrap_or_default().as_bytes());
}

/// What was written by a guest, up to one element more than `most`.
///
/// # Returns
/// `None` for what does not have the form.
pub(crate) fn elements_of(bytes: &[u8], most: usize) -> Option<Vec<Element>> {
    let mut rest = Reader(bytes);
    let mut elements = Vec::with_capacity(1);
    while !rest.0.is_empty() && elements.len() <= most {
        let (r#for, by) = (rest.node()?, rest.node()?);
        elements.push(Element { r#for, by, host: rest.text()?, proto: rest.text()? });
    }
    Some(elements)
}

/// Bytes from front to back. Each method gives `None` when they end before it does.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn ip(&mut self, ipv6: bool) -> Option<IpAddr> {
        if ipv6 { self.array::<16>().map(IpAddr::from) } else { self.array::<4>().map(IpAddr::from) }
    }

    fn text(&mut self) -> Option<Option<String>> {
        let length = match u32::from_le_bytes(self.array()?) {
            u32::MAX => return Some(None),
            length => length as usize,
        };
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        str::from_utf8(text).ok().map(|text| Some(text.to_owned()))
    }

    fn node(&mut self) -> Option<Option<Node>> {
        let [kind] = self.array()?;
        Some(match kind {
            0 => None,
            1 => Some(Node::Unknown),
            2 | 3 => Some(Node::Ip(self.ip(kind == 3)?)),
            4 | 5 => {
                let ip = self.ip(kind == 5)?;
                Some(Node::Address(SocketAddr::new(ip, u16::from_le_bytes(self.array()?))))
            }
            6 => Some(Node::Obfuscated(self.text()??)),
            _ => return None,
        })
    }
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
            let mut out = Vec::new();
            chain.iter().for_each(|element| put_element(&mut out, element));
            out
        };
        let read = |bytes: &[u8]| elements_of(bytes, 32);
        let mut seen = std::collections::HashSet::from([written(&[])]);
        for one in &elements {
            let bytes = written(&[one]);
            assert_eq!(read(&bytes).as_deref(), Some(std::slice::from_ref(one)));
            for end in 1..bytes.len() {
                assert_eq!(read(&bytes[..end]), None, "{one:?} without its end");
            }
            assert!(seen.insert(bytes), "{one:?}");
            // A few of those that may follow; all would be a million.
            for other in elements.iter().step_by(97) {
                let bytes = written(&[one, other]);
                assert_eq!(read(&bytes), Some(vec![one.clone(), other.clone()]));
                assert!(seen.insert(bytes), "{one:?} {other:?}");
            }
        }
    }

    /// Whatever a guest writes is refused, or is what would be written of what was read: a chain has one form.
    #[test]
    fn what_is_read_has_one_form() {
        let mut random = fastrand::Rng::with_seed(7);
        let element = Element {
            r#for: Some(Node::Obfuscated("_client".to_owned())),
            by: Some(Node::Address(([192, 0, 2, 1], 443).into())),
            host: Some("h\u{e9}.example".to_owned()),
            proto: None,
        };
        let mut good = Vec::new();
        (0..3).for_each(|_| put_element(&mut good, &element));
        let mut read = 0;
        for _ in 0..100_000 {
            let mut bytes = good.clone();
            for _ in 0..random.usize(1..4) {
                let index = random.usize(..bytes.len());
                bytes[index] = if random.bool() { random.u8(..8) } else { random.u8(..) };
            }
            bytes.truncate(random.usize(..=bytes.len()).max(bytes.len() / 2));
            if let Some(chain) = elements_of(&bytes, 32) {
                let mut written = Vec::new();
                chain.iter().for_each(|element| put_element(&mut written, element));
                assert_eq!(written, bytes);
                read += 1;
            }
        }
        assert!(read > 100, "{read} of them were read");
    }

    /// It comes from a guest.
    #[test]
    fn what_has_not_the_form_is_refused() {
        for bad in
            [&[7][..], &[6], &[0, 0, 1, 0, 0, 0], b"\0\0\xff\xff\xff\x7fa", b"\0\0\x01\0\0\0\xff\xff\xff\xff\xff"]
        {
            assert_eq!(elements_of(bad, 32), None, "{bad:?}");
        }
        let nameless = [&[6][..], &[0xff; 4], &[0], &[0xff; 8]].concat();
        assert_eq!(elements_of(&nameless, 32), None, "an obfuscated name is no option");
        let none = [&[0, 0][..], &[0xff; 8]].concat();
        assert_eq!(elements_of(&none.repeat(3), 3).map(|chain| chain.len()), Some(3));
        assert_eq!(
            elements_of(&none.repeat(4), 3).map(|chain| chain.len()),
            Some(4),
            "one more tells that there are more"
        );
        assert_eq!(elements_of(&none.repeat(1000), 3).map(|chain| chain.len()), Some(4));
    }
}
