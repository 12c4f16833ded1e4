//! What the upstream learns of the client, by rule: believe trusted peers only, strip what others claim, say it anew.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytestring::ByteString;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use ipnet::IpNet;
use smallvec::SmallVec;

use super::forwarded::{MAX_ELEMENTS, parse_forwarded, parse_node};
use super::forwarding_fields::{Hop, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, fields};
use crate::{Answered, Asked, ConnectionHead, Decision, Element, Families, Forwarding, Identity, Node};

/// Whether a field claims who the client is, whatever its dialect. The core takes all of them out of what a client sent:
/// an origin may believe any (a name with underscores reads as one with hyphens to CGI and its heirs).
pub fn is_identity_field(name: &HeaderName) -> bool {
    if *name == header::FORWARDED {
        return true;
    }
    let name = name.as_str().as_bytes();
    // Cheap first: all of them begin with one of these letters.
    if !matches!(name.first(), Some(b'x' | b't' | b'c' | b'f' | b'w' | b'h' | b'p' | b's')) {
        return false;
    }
    const NAMES: [&[u8]; 46] = [
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-protocol",
        b"x-forwarded-port",
        b"x-forwarded-by",
        b"x-forwarded-server",
        b"x-forwarded-ssl",
        b"x-forwarded-scheme",
        b"x-forwarded-client-cert",
        b"x-forwarded",
        b"x-forward-for",
        b"x-real-ip",
        b"x-true-client-ip",
        b"x-true-ip",
        b"x-client-ip",
        b"x-clientip",
        b"x-client",
        b"x-cluster-client-ip",
        b"x-proxyuser-ip",
        b"x-originating-ip",
        b"x-original-forwarded-for",
        b"x-original-remote-addr",
        b"x-remote-ip",
        b"x-remote-addr",
        b"x-host-ip",
        b"x-envoy-external-address",
        b"x-azure-clientip",
        b"x-azure-socketip",
        b"x-appengine-user-ip",
        b"true-client-ip",
        b"cf-connecting-ip",
        b"cf-connecting-ipv6",
        b"cf-pseudo-ipv4",
        b"client-ip",
        b"clientip",
        b"forwarded-for",
        b"forwarded-for-ip",
        b"forwarded",
        b"fastly-client-ip",
        b"fly-client-ip",
        b"wl-proxy-client-ip",
        b"http-client-ip",
        b"http-x-forwarded-for",
        b"http-forwarded",
        b"proxy-client-ip",
    ];
    // Whatever begins like these speaks of a client's certificate (RFC 9440, and the habits before it).
    const PREFIXES: [&[u8]; 6] = [
        b"client-cert",
        b"x-client-cert",
        b"ssl-client-",
        b"x-ssl-client-",
        b"x-tls-client-",
        b"x-forwarded-tls-client-",
    ];
    let alike = |name: &[u8], other: &[u8]| name.iter().zip(other).all(|(a, b)| a == b || (*a == b'_' && *b == b'-'));
    NAMES.iter().any(|other| name.len() == other.len() && alike(name, other))
        || PREFIXES.iter().any(|prefix| name.len() >= prefix.len() && alike(name, prefix))
}

/// Which family of fields a listener's trusted peers maintain.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum TrustedFamily {
    /// The one that is there. Where both are, a peer may maintain one and pass the other through as its client wrote it
    /// (RFC 7239, section 7.4): they are believed only as far as they name the same client.
    #[default]
    Auto,
    Forwarded,
    XForwarded,
}

static CONFLICTING_CLAIMS: AtomicU64 = AtomicU64::new(0);

/// Requests so far whose two families named different clients, so that neither was believed.
pub fn conflicting_claims() -> u64 {
    CONFLICTING_CLAIMS.load(Ordering::Relaxed)
}

/// The client of a request, and what trusted hops said of those before them, nearest hop last.
///
/// From the right, past peers that are trusted, to the first that is not: that is the client, and nothing to its left
/// is believed (RFC 7239, section 8.1).
pub fn received_identity(
    headers: &HeaderMap,
    connection: &ConnectionHead,
    trusted: &[IpNet],
    family: TrustedFamily,
) -> (IpAddr, Vec<Element>) {
    let peer = connection.client.ip();
    if trusted.is_empty() || !trusts(trusted, &peer) {
        return (peer, Vec::new());
    }
    let forwarded = || walk(peer, trusted, parse_forwarded(&joined(headers, &header::FORWARDED)));
    let x_forwarded = || walk(peer, trusted, from_x_forwarded(headers));
    match family {
        TrustedFamily::Forwarded => forwarded(),
        TrustedFamily::XForwarded => x_forwarded(),
        TrustedFamily::Auto if !headers.contains_key(header::FORWARDED) => x_forwarded(),
        TrustedFamily::Auto if !headers.contains_key(X_FORWARDED_FOR) => forwarded(),
        TrustedFamily::Auto => {
            let told = forwarded();
            if told.0 == x_forwarded().0 {
                return told;
            }
            CONFLICTING_CLAIMS.fetch_add(1, Ordering::Relaxed);
            (peer, Vec::new())
        }
    }
}

fn trusts(trusted: &[IpNet], ip: &IpAddr) -> bool {
    trusted.iter().any(|net| net.contains(ip))
}

/// From the right to the first hop that is not trusted.
fn walk(peer: IpAddr, trusted: &[IpNet], claimed: Vec<Option<Element>>) -> (IpAddr, Vec<Element>) {
    let mut client = peer;
    let mut kept = Vec::new();
    for element in claimed.into_iter().rev() {
        // What cannot be read ends the walk: it could stand for anything.
        let Some(element) = element else { break };
        let ip = element.r#for.as_ref().and_then(Node::ip);
        kept.push(element);
        match ip {
            Some(ip) => client = ip,
            // A hop that hides its client: nobody before it can be known.
            None => break,
        }
        if !trusts(trusted, &client) {
            break;
        }
    }
    kept.reverse();
    (client, kept)
}

/// All lines of a field as one list (RFC 9110, section 5.3).
fn joined(headers: &HeaderMap, name: &HeaderName) -> Vec<u8> {
    let lines: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    lines.join(&b","[..])
}

/// `X-Forwarded-For` is only a list of addresses; host and scheme are taken where they are unambiguous: one value.
fn from_x_forwarded(headers: &HeaderMap) -> Vec<Option<Element>> {
    let list = joined(headers, &X_FORWARDED_FOR);
    // The nearest ones: what is beyond stands on the left, where a client writes.
    let mut elements: Vec<Option<Element>> = list
        .rsplit(|b| *b == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|item| !item.is_empty())
        .take(MAX_ELEMENTS)
        .map(|item| {
            let text = std::str::from_utf8(item).ok()?;
            // Bare IPv6 is usual here, unlike in Forwarded.
            let node = match text.parse::<IpAddr>() {
                Ok(ip) => Node::Ip(ip),
                Err(_) => parse_node(text)?,
            };
            Some(Element { r#for: Some(node), ..Element::default() })
        })
        .collect();
    elements.reverse();
    if let [Some(only)] = elements.as_mut_slice() {
        let single = |name| {
            let mut values = headers.get_all(name).iter();
            let value = values.next().filter(|_| values.next().is_none())?.to_str().ok()?;
            (!value.contains(',') && !value.is_empty()).then(|| value.to_owned())
        };
        only.proto = single(X_FORWARDED_PROTO).filter(|proto| matches!(proto.as_str(), "http" | "https"));
        only.host = single(X_FORWARDED_HOST);
    }
    elements
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ForwardingMode {
    /// Trusted hops' elements stay, this hop adds its own.
    Append,
    /// Only what this gateway knows.
    Replace,
}

/// The configured rule of a route.
#[derive(Clone, Debug)]
pub struct StandardForwarding {
    pub mode: ForwardingMode,
    pub families: Families,
    /// Who we are, in `by`.
    pub by: Option<Node>,
}

impl StandardForwarding {
    /// The chain to send, this hop's element last.
    pub fn identity(&self, asked: &Asked) -> Identity {
        let own = Element {
            r#for: Some(Node::Ip(self.client(asked))),
            by: self.by.clone(),
            host: Some(asked.request.authority.to_string()).filter(|host| !host.is_empty()),
            proto: Some(asked.request.scheme.as_str().to_owned()),
        };
        let mut elements = match self.mode {
            ForwardingMode::Append => asked.received.clone(),
            ForwardingMode::Replace => Vec::new(),
        };
        elements.push(own);
        Identity { elements, families: self.families }
    }

    /// The fields that carry `identity`. Values that no field can carry are left out.
    pub fn render(&self, identity: &Identity, asked: &Asked) -> Vec<(HeaderName, HeaderValue)> {
        let hops: SmallVec<[Hop<'_>; 4]> = identity.elements.iter().map(Hop::from).collect();
        fields(&hops, identity.families, asked.connection.local.port())
    }

    /// What [`render`](Self::render) makes of [`identity`](Self::identity), where nobody is to look at that.
    pub fn fields(&self, asked: &Asked) -> Vec<(HeaderName, HeaderValue)> {
        let client = Node::Ip(self.client(asked));
        let own = Hop {
            r#for: Some(&client),
            by: self.by.as_ref(),
            host: Some(&*asked.request.authority).filter(|host| !host.is_empty()),
            proto: Some(asked.request.scheme.as_str()),
        };
        let received = match self.mode {
            ForwardingMode::Append => &asked.received[..],
            ForwardingMode::Replace => &[],
        };
        let hops: SmallVec<[Hop<'_>; 4]> = received.iter().map(Hop::from).chain([own]).collect();
        fields(&hops, self.families, asked.connection.local.port())
    }

    /// Whom this hop's element names.
    fn client(&self, asked: &Asked) -> IpAddr {
        match self.mode {
            ForwardingMode::Append => asked.connection.client.ip(),
            ForwardingMode::Replace => asked.client,
        }
    }
}

impl Forwarding for StandardForwarding {
    fn name(&self) -> ByteString {
        ByteString::from_static("standard")
    }

    fn identify(&self, asked: &Rc<Asked>, identity: &mut Identity) -> Decision<()> {
        *identity = self.identity(asked);
        Ok(Answered::native(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{asked, connection};

    fn walk(peer: &str, fields: &[(&'static str, &str)]) -> (String, usize) {
        walk_by(TrustedFamily::Auto, peer, fields)
    }

    fn walk_by(family: TrustedFamily, peer: &str, fields: &[(&'static str, &str)]) -> (String, usize) {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        let mut connection = (*connection()).clone();
        connection.client = format!("{peer}:1000").parse().expect("an address");
        let trusted = ["10.0.0.0/8".parse().expect("a net"), "fd00::/8".parse().expect("a net")];
        let (client, kept) = received_identity(&headers, &connection, &trusted, family);
        (client.to_string(), kept.len())
    }

    /// Conduct "X-Forwarded-For": right to left past trusted CIDRs, all lines in order, junk ends the walk.
    #[test]
    fn the_first_untrusted_hop_from_the_right_is_the_client() {
        let xff = "x-forwarded-for";
        assert_eq!(walk("192.0.2.1", &[(xff, "1.1.1.1")]), ("192.0.2.1".into(), 0), "an untrusted peer says nothing");
        assert_eq!(walk("10.0.0.1", &[(xff, "6.6.6.6, 1.1.1.1, 10.2.2.2")]), ("1.1.1.1".into(), 2));
        assert_eq!(walk("10.0.0.1", &[(xff, "6.6.6.6"), (xff, "1.1.1.1")]), ("1.1.1.1".into(), 1));
        assert_eq!(walk("10.0.0.1", &[(xff, "6.6.6.6, junk, 10.2.2.2")]), ("10.2.2.2".into(), 1));
        assert_eq!(walk("10.0.0.1", &[(xff, "1.1.1.1, unknown, 10.2.2.2")]), ("10.2.2.2".into(), 2));
        assert_eq!(walk("10.0.0.1", &[(xff, "2001:db8::1")]), ("2001:db8::1".into(), 1));
        assert_eq!(walk("10.0.0.1", &[(xff, "1.1.1.1:99, [fd00::2]:80")]), ("1.1.1.1".into(), 2));
        assert_eq!(walk("10.0.0.1", &[]), ("10.0.0.1".into(), 0));
    }

    /// A client that fills the list up must not push the hop that its own proxy added out of sight.
    #[test]
    fn a_long_list_is_read_from_its_end() {
        let spoofed = "10.9.9.9, ".repeat(39);
        assert_eq!(walk("10.0.0.1", &[("x-forwarded-for", &format!("{spoofed}1.1.1.1"))]), ("1.1.1.1".into(), 1));
        let spoofed = "for=10.9.9.9, ".repeat(39);
        assert_eq!(walk("10.0.0.1", &[("forwarded", &format!("{spoofed}for=1.1.1.1"))]), ("1.1.1.1".into(), 1));
        // With trusted hops only, the walk ends at the limit.
        let trusted = format!("6.6.6.6, {}10.9.9.9", "10.9.9.9, ".repeat(38));
        assert_eq!(walk("10.0.0.1", &[("x-forwarded-for", &trusted)]), ("10.9.9.9".into(), MAX_ELEMENTS));
    }

    /// RFC 7239, section 7.4: a peer may maintain one family and pass the other through.
    #[test]
    fn families_that_disagree_are_both_disbelieved() {
        let xff = "x-forwarded-for";
        let both = [("forwarded", "for=6.6.6.6"), (xff, "1.1.1.1")];
        let before = conflicting_claims();
        assert_eq!(walk("10.0.0.1", &both), ("10.0.0.1".into(), 0));
        assert!(conflicting_claims() > before);
        assert_eq!(walk_by(TrustedFamily::Forwarded, "10.0.0.1", &both), ("6.6.6.6".into(), 1));
        assert_eq!(walk_by(TrustedFamily::XForwarded, "10.0.0.1", &both), ("1.1.1.1".into(), 1));
        assert_eq!(walk_by(TrustedFamily::XForwarded, "10.0.0.1", &both[..1]), ("10.0.0.1".into(), 0));
        let same = [("forwarded", "for=\"1.1.1.1:80\";proto=https"), (xff, "1.1.1.1")];
        assert_eq!(walk("10.0.0.1", &same), ("1.1.1.1".into(), 1));
    }

    #[test]
    fn look_alikes_are_identity_fields() {
        for name in [
            "forwarded",
            "x-forwarded-for",
            "x_forwarded_for",
            "x-forwarded_for",
            "true-client-ip",
            "x-real-ip",
            "client_ip",
            "wl-proxy-client-ip",
            "http_client_ip",
            "proxy-client-ip",
            "client-cert",
            "client_cert_chain",
            "ssl-client-verify",
            "x-ssl-client_s-dn",
            "x-forwarded-client-cert",
        ] {
            assert!(is_identity_field(&HeaderName::from_bytes(name.as_bytes()).expect("a name")), "{name}");
        }
        for name in ["host", "x-forwarded-email", "x-request-id", "cookie", "via", "client", "set-cookie", "x-ssl"] {
            assert!(!is_identity_field(&HeaderName::from_static(name)), "{name}");
        }
    }

    #[test]
    fn all_families_say_the_same() {
        let rule = StandardForwarding {
            mode: ForwardingMode::Append,
            families: Families { forwarded: true, x_forwarded: true, x_real_ip: true },
            by: Some(Node::Obfuscated("_edge".into())),
        };
        let asked = asked("GET", "/");
        let fields = rule.render(&rule.identity(&asked), &asked);
        assert_eq!(fields, rule.fields(&asked));
        let field = |name: &str| fields.iter().find(|(n, _)| n == name).and_then(|(_, v)| v.to_str().ok());
        assert_eq!(field("forwarded"), Some("for=192.0.2.7;by=_edge;host=example.com;proto=http"));
        assert_eq!(field("x-forwarded-for"), Some("192.0.2.7"));
        assert_eq!(field("x-forwarded-proto"), Some("http"));
        assert_eq!(field("x-forwarded-host"), Some("example.com"));
        assert_eq!(field("x-real-ip"), Some("192.0.2.7"));
    }

    #[test]
    fn a_hidden_client_is_hidden_in_every_family() {
        let rule = StandardForwarding {
            mode: ForwardingMode::Replace,
            families: Families { forwarded: true, x_forwarded: true, x_real_ip: true },
            by: None,
        };
        let asked = asked("GET", "/");
        let mut identity = rule.identity(&asked);
        identity.elements[0].r#for = Some(Node::Obfuscated("_k3".into()));
        for (name, value) in rule.render(&identity, &asked) {
            assert!(!value.to_str().expect("text").contains("192.0.2.7"), "{name}: {value:?}");
        }
    }

    #[test]
    fn x_real_ip_is_the_first_of_the_chain() {
        let rule = StandardForwarding {
            mode: ForwardingMode::Replace,
            families: Families { x_real_ip: true, ..Families::default() },
            by: None,
        };
        let asked = asked("GET", "/");
        let mut identity = rule.identity(&asked);
        identity.elements[0].r#for = Some(Node::Ip([192, 0, 2, 0].into()));
        let fields = rule.render(&identity, &asked);
        assert_eq!(fields, [(super::super::forwarding_fields::X_REAL_IP, HeaderValue::from_static("192.0.2.0"))]);
    }
}
