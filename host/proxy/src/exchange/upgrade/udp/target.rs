//! Whom connect-udp asks for: the default template of RFC 9298, sections 2 and 3, taken apart.

/// The template's path before its variables.
const PREFIX: &str = "/.well-known/masque/udp/";
/// Longest name there is (RFC 1035, section 2.3.4), and its dot.
const MAX_NAME: usize = 254;

/// A host in lower case, an IPv6 address in brackets as RFC 5952 writes it; and a port.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct UdpTarget {
    pub(super) host: String,
    pub(super) port: u16,
}

/// Takes `path?query` apart; `None` for what is no expansion of the template.
pub(super) fn parse(target: &str) -> Option<UdpTarget> {
    let rest = target.strip_prefix(PREFIX)?.strip_suffix('/')?;
    let (host, port) = rest.split_once('/')?;
    let (host, port) = (decode(host)?, decode(port)?);
    let digits = !port.is_empty() && !port.starts_with('0') && port.bytes().all(|b| b.is_ascii_digit());
    let port = port.parse().ok().filter(|_| digits)?;
    Some(UdpTarget { host: checked_host(host)?, port })
}

/// Undoes the simple expansion of RFC 6570, section 3.2.2: all but unreserved characters are percent-encoded.
fn decode(text: &str) -> Option<String> {
    let mut decoded = String::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            b'-' | b'.' | b'_' | b'~' => byte,
            _ if byte.is_ascii_alphanumeric() => byte,
            _ => return None,
        };
        decoded.push(char::from(byte));
    }
    Some(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// A name or an address without a zone (RFC 9298, section 2).
fn checked_host(mut host: String) -> Option<String> {
    if host.contains(':') {
        return host.parse::<std::net::Ipv6Addr>().ok().map(|address| format!("[{address}]"));
    }
    let name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    let labels = host.strip_suffix('.').unwrap_or(&host).split('.');
    let fine = host.len() <= MAX_NAME && host.bytes().all(name) && labels.into_iter().all(|label| !label.is_empty());
    host.make_ascii_lowercase();
    fine.then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(host: &str, port: u16) -> Option<UdpTarget> {
        Some(UdpTarget { host: host.to_owned(), port })
    }

    /// RFC 9298, section 2.
    #[test]
    fn the_template_and_nothing_else() {
        let parse = |rest: &str| parse(&format!("/.well-known/masque/udp/{rest}"));
        assert_eq!(parse("192.0.2.6/443/"), target("192.0.2.6", 443));
        assert_eq!(parse("DNS.example.com/53/"), target("dns.example.com", 53));
        assert_eq!(parse("dns.example./65535/"), target("dns.example.", 65_535));
        assert_eq!(parse("2001%3Adb8%3A%3A42/443/"), target("[2001:db8::42]", 443));
        assert_eq!(parse("2001%3adb8%3a0%3A0%3A0%3A0%3A0%3a42/443/"), target("[2001:db8::42]", 443));
        assert_eq!(parse("%61.%62/%34%34%33/"), target("a.b", 443));
        for wrong in [
            "",
            "/",
            "//",
            "a/",
            "a/53",
            "a/53/x",
            "a/53//",
            "/53/",
            "a//",
            "a/0/",
            "a/65536/",
            "a/053/",
            "a/+53/",
            "a/-1/",
            "a/5a/",
            "a/53/?x",
            "a/53?x/",
            "2001:db8::42/443/",
            "%5B2001%3Adb8%3A%3A42%5D/443/",
            "fe80%3A%3A1%25eth0/443/",
            "a%/53/",
            "a%3/53/",
            "a%3g/53/",
            "a%00/53/",
            "a%2Fb/53/",
            "a%C3%A4/53/",
            "a%2520/53/",
            "a..b/53/",
            ".a/53/",
            "./53/",
            "a*b/53/",
        ] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
        assert_eq!(parse(&format!("{}/53/", "a.".repeat(128))), None);
        for wrong in ["", "/", "*", "/masque/udp/a/53/", "/.well-known/masque/ip/a/53/", "/.well-known/masque/udp"] {
            assert_eq!(super::parse(wrong), None, "{wrong:?}");
        }
    }
}
