//! Whether a response is compressed, and what that changes in its head.
//!
//! A gateway that encodes what it was not asked to breaks ranges, validators, digests and caches; the rules here are those of
//! RFC 9110 (sections 7.7, 8.4, 8.8.3, 12.5.3) and RFC 9111 (section 5.2). A response that could have been compressed says so in `Vary` to
//! every client, or a cache would give one client's coding to another.

use http::header::{self, HeaderMap, HeaderValue};
use http::{HeaderName, StatusCode};
use tidegate_policy::RequestHead;

use crate::body::{Coding, Length};
use crate::snapshot::Compression;

/// Fields that speak of the exact bytes of the content (RFC 9530, and what was before it).
const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// The coding to apply, if any; the head says so then. `length` is that of the content as it came.
pub(super) fn negotiate(
    compression: &Compression,
    request: &RequestHead,
    status: StatusCode,
    headers: &mut HeaderMap,
    length: Length,
) -> Option<Coding> {
    let secret = !compression.credentials && bears_credentials(request);
    if secret || no_transform(&request.headers) || no_transform(headers) {
        return None;
    }
    let accepted = || accepted(&request.headers, &compression.codings);
    if status == StatusCode::NOT_MODIFIED {
        // What it refreshes was weak if it was compressed.
        if accepted().is_some() {
            weaken(headers);
        }
        return None;
    }
    if !eligible(compression, status, headers, length) {
        return None;
    }
    vary(headers);
    let coding = accepted()?;
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    headers.remove(header::CONTENT_LENGTH);
    // Ranges would be of the content as it was.
    headers.remove(header::ACCEPT_RANGES);
    weaken(headers);
    Some(coding)
}

/// Secrets beside what an attacker may choose can be guessed from compressed lengths (BREACH, 2013).
fn bears_credentials(request: &RequestHead) -> bool {
    request.headers.contains_key(header::COOKIE) || request.headers.contains_key(header::AUTHORIZATION)
}

fn eligible(compression: &Compression, status: StatusCode, headers: &HeaderMap, length: Length) -> bool {
    let whole = status.is_success() && status != StatusCode::PARTIAL_CONTENT || status.is_client_error();
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let size = match length {
        Length::Known(length) => Some(length),
        // `HEAD`: the fields are those of a `GET`.
        Length::None => declared,
        Length::Unknown => None,
    };
    whole
        && size.is_none_or(|size| size >= compression.min_size && size > 0)
        && !headers.contains_key(header::CONTENT_ENCODING)
        && !headers.contains_key(header::CONTENT_RANGE)
        && !DIGESTS.iter().any(|name| headers.contains_key(name))
        && headers.get(header::CONTENT_TYPE).is_some_and(|value| compression.takes_type(value.as_bytes()))
}

/// RFC 9111, sections 5.2.1.6 and 5.2.2.6.
fn no_transform(headers: &HeaderMap) -> bool {
    members(headers, header::CACHE_CONTROL).any(|directive| directive.eq_ignore_ascii_case(b"no-transform"))
}

/// The members of a list, trimmed.
fn members(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(name).into_iter();
    values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

/// The coding that the client likes best, of equals the one that stands first in `ours` (RFC 9110, section 12.5.3).
fn accepted(headers: &HeaderMap, ours: &[Coding]) -> Option<Coding> {
    let weight = |wanted: &[u8]| {
        let of = |name: &[u8]| {
            members(headers, header::ACCEPT_ENCODING).find_map(|member| {
                let (coding, q) = weighted(member);
                coding.eq_ignore_ascii_case(name).then_some(q)
            })
        };
        of(wanted)
    };
    let any = weight(b"*");
    // Not better than what the client would rather have as it is.
    let identity = weight(b"identity").unwrap_or(0);
    let mut best: Option<(Coding, u16)> = None;
    for coding in ours {
        // RFC 9110, section 8.4.1.3: x-gzip is gzip.
        let alias = || if *coding == Coding::Gzip { weight(b"x-gzip") } else { None };
        let q = weight(coding.name().as_bytes()).or_else(alias).or(any).unwrap_or(0);
        if q > 0 && q >= identity && best.is_none_or(|(_, other)| q > other) {
            best = Some((*coding, q));
        }
    }
    best.map(|(coding, _)| coding)
}

/// A member and its weight in thousandths (RFC 9110, section 12.4.2); one that cannot be read is 0.
fn weighted(member: &[u8]) -> (&[u8], u16) {
    let mut parts = member.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let coding = parts.next().unwrap_or_default();
    let Some(parameter) = parts.next() else { return (coding, 1000) };
    let q = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="));
    (coding, q.and_then(qvalue).unwrap_or(0))
}

fn qvalue(text: &[u8]) -> Option<u16> {
    let (whole, fraction) = match text {
        [whole] => (whole, &[][..]),
        [whole, b'.', fraction @ ..] if fraction.len() <= 3 => (whole, fraction),
        _ => return None,
    };
    let mut value = u16::from(whole.checked_sub(b'0').filter(|digit| *digit <= 1)?);
    for at in 0..3 {
        let digit = fraction.get(at).copied().unwrap_or(b'0');
        value = value * 10 + u16::from(digit.checked_sub(b'0').filter(|digit| *digit <= 9)?);
    }
    Some(value.min(1000))
}

/// RFC 9110, section 12.5.5.
fn vary(headers: &mut HeaderMap) {
    let named =
        members(headers, header::VARY).any(|name| name == b"*" || name.eq_ignore_ascii_case(b"accept-encoding"));
    if !named {
        headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
}

/// The content is the same in meaning, not byte for byte (RFC 9110, section 8.8.1).
fn weaken(headers: &mut HeaderMap) {
    if let Some(tag) = headers.get(header::ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")) {
        let weak = [b"W/", tag.as_bytes()].concat();
        if let Ok(weak) = HeaderValue::from_bytes(&weak) {
            headers.insert(header::ETAG, weak);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))
        };
        let mut headers = HeaderMap::new();
        for (name, value) in fields.iter().map(field) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn the_best_liked_coding_is_taken_ours_first_among_equals() {
        let ours = [Coding::Zstd, Coding::Brotli, Coding::Gzip];
        for (accept, expected) in [
            ("gzip, br", Some("br")),
            ("gzip;q=1.0, br;q=0.9", Some("gzip")),
            ("GZIP", Some("gzip")),
            ("x-gzip", Some("gzip")),
            ("*", Some("zstd")),
            ("*;q=0.5, zstd;q=0", Some("br")),
            ("*;q=0", None),
            ("identity", None),
            ("identity, gzip;q=0.5", None),
            ("identity;q=0.5, gzip;q=0.5", Some("gzip")),
            ("gzip;q=0", None),
            ("gzip;q=0.000", None),
            ("gzip ; q=0.001", Some("gzip")),
            ("gzip;q=2", None),
            ("gzip;q=nan", None),
            ("gzip;q=0.1234", None),
            ("deflate, sdch", None),
            ("", None),
        ] {
            let taken = accepted(&headers(&[("accept-encoding", accept)]), &ours).map(Coding::name);
            assert_eq!(taken, expected, "{accept}");
        }
        let lines = headers(&[("accept-encoding", "deflate"), ("accept-encoding", "gzip")]);
        assert_eq!(accepted(&lines, &ours), Some(Coding::Gzip));
        assert_eq!(accepted(&HeaderMap::new(), &ours), None, "who says nothing gets it as it is");
    }

    #[test]
    fn tags_are_weakened_and_vary_named_once() {
        let mut some = headers(&[("etag", "\"a\""), ("vary", "origin, Accept-Encoding")]);
        weaken(&mut some);
        weaken(&mut some);
        vary(&mut some);
        assert_eq!((&some["etag"], some.get_all("vary").iter().count()), (&HeaderValue::from_static("W/\"a\""), 1));
        let mut none = headers(&[("vary", "origin")]);
        vary(&mut none);
        assert_eq!(none.get_all("vary").iter().count(), 2);
    }
}
