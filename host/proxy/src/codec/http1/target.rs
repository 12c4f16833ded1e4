//! Whom a request is for: its target's four forms and `Host` (RFC 9112, sections 3.2 and 3.3).

use bytestring::ByteString;
use http::header::{self, HeaderMap};
use http::{Method, StatusCode};
use tidegate_policy::{Scheme, Target};

use super::head::Refusal;

/// Exactly one `Host`, which HTTP/1.0 may leave out (RFC 9112, section 3.2). An empty one names no origin of an http URI
/// (RFC 9110, section 4.2.1).
pub(super) fn take_host(headers: &mut HeaderMap, http10: bool) -> Result<Option<ByteString>, Refusal> {
    let mut values = headers.get_all(header::HOST).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(Refusal::bad("more than one host"));
    }
    let Some(value) = first else {
        return if http10 { Ok(None) } else { Err(Refusal::bad("no host")) };
    };
    let authority = checked_authority(value.as_bytes()).ok_or_else(|| Refusal::bad("host is invalid"))?;
    if authority.is_empty() && !http10 {
        return Err(Refusal::bad("host is empty"));
    }
    headers.remove(header::HOST);
    Ok(Some(authority))
}

/// `uri-host [ ":" port ]`, lower case; userinfo has no place in HTTP (RFC 9110, section 4.2.4).
pub(crate) fn checked_authority(text: &[u8]) -> Option<ByteString> {
    if text.is_empty() {
        return Some(ByteString::new());
    }
    let (host, port) = if text.first() == Some(&b'[') {
        let end = text.iter().position(|b| *b == b']')?;
        let literal = std::str::from_utf8(&text[1..end]).ok()?;
        literal.parse::<std::net::Ipv6Addr>().ok()?;
        (&text[..=end], &text[end + 1..])
    } else {
        let end = text.iter().position(|b| *b == b':').unwrap_or(text.len());
        let reg_name = |b: &u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(b);
        if end == 0 || !text[..end].iter().all(reg_name) {
            return None;
        }
        text.split_at(end)
    };
    let fine = match port.strip_prefix(b":") {
        None => port.is_empty(),
        Some(digits) => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit) && port_fits(digits),
    };
    if !fine || host.is_empty() {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    Some(if text.bytes().any(|b| b.is_ascii_uppercase()) { text.to_ascii_lowercase().into() } else { text.into() })
}

/// What `CONNECT` names: a host and a port, neither left out.
pub(crate) fn checked_connect(text: &[u8]) -> Option<ByteString> {
    let authority = checked_authority(text)?;
    let (host, port) = authority.rsplit_once(':')?;
    let whole = !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0);
    // The colon may be one of a literal's own.
    (whole && (!host.starts_with('[') || host.ends_with(']'))).then_some(authority.clone())
}

fn port_fits(digits: &[u8]) -> bool {
    digits.iter().fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0')) <= u32::from(u16::MAX)
}

/// Visible ASCII without a fragment: what any parser downstream reads the same way (RFC 9112, section 3.2).
pub(crate) fn checked_target(text: &str) -> bool {
    text.bytes().all(|b| (0x21..=0x7e).contains(&b) && b != b'#')
}

/// The four forms of a target (RFC 9112, section 3.2), and the authority that counts: absolute-form overrides `Host`.
pub(super) fn effective_target(
    method: &Method,
    target: &str,
    host: Option<ByteString>,
    scheme: Scheme,
) -> Result<(Scheme, ByteString, Target), Refusal> {
    if method == Method::CONNECT {
        // Authority-form, with a port, and nothing else (RFC 9112, section 3.2.3; RFC 9110, section 9.3.6).
        let authority =
            checked_connect(target.as_bytes()).ok_or_else(|| Refusal::bad("the target is no host with a port"))?;
        return Ok((scheme, authority, Target::new(ByteString::new())));
    }
    if !checked_target(target) {
        return Err(Refusal::bad("the target has characters that no URI has"));
    }
    if target.starts_with('/') {
        return Ok((scheme, host.unwrap_or_default(), Target::new(target.into())));
    }
    if target == "*" {
        if method != Method::OPTIONS {
            return Err(Refusal::bad("the target * is for OPTIONS"));
        }
        return Ok((scheme, host.unwrap_or_default(), Target::new(target.into())));
    }
    let lower = target.get(..8).unwrap_or(target).to_ascii_lowercase();
    let (stated, rest) = if lower.starts_with("http://") {
        (Scheme::Http, &target[7..])
    } else if lower.starts_with("https://") {
        (Scheme::Https, &target[8..])
    } else {
        return Err(Refusal::bad("the target is neither a path nor an http URI"));
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let authority = checked_authority(authority.as_bytes())
        .filter(|authority| !authority.is_empty())
        .ok_or_else(|| Refusal::bad("the target's authority is invalid"))?;
    // An https URI on a connection in clear would have us vouch for security that was not there (RFC 9110, 7.4).
    if stated == Scheme::Https && scheme == Scheme::Http {
        return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, "an https URI on a connection without tls"));
    }
    let path: ByteString = match path.chars().next() {
        None if method == Method::OPTIONS => "*".into(),
        None => "/".into(),
        Some('/') => path.into(),
        Some(_) => format!("/{path}").into(),
    };
    Ok((scheme, authority, Target::new(path)))
}
