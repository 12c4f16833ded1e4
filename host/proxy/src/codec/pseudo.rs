//! What HTTP/2 and HTTP/3 requests have in common: pseudo-header fields become the request model, strictly
//! (RFC 9113, section 8; RFC 9114, section 4), so that nothing malformed can become an HTTP/1.1 message upstream.

use h2::ext::Protocol;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode};
use tidegate_policy::{HttpVersion, RequestHead, Scheme, Target, Tunnel, is_token};

use super::http1::{checked_authority, checked_connect, checked_target};
use crate::body::Length;

/// Why a request is not taken.
#[derive(Debug)]
pub(crate) enum Refused {
    /// A stream error: PROTOCOL_ERROR or H3_MESSAGE_ERROR.
    Malformed(&'static str),
    /// Well-formed, but answered with this status.
    Status(StatusCode, &'static str),
}

/// Connection-specific fields make a message malformed (RFC 9113, section 8.2.2; RFC 9114, section 4.2).
pub(crate) fn is_connection_specific(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::TRANSFER_ENCODING
        || *name == header::UPGRADE
        || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

/// Checks a decoded request. The caller's crate has dealt with the order and number of pseudo-header fields; `:protocol`
/// (RFC 8441, section 4; RFC 9220, section 3) is among the extensions, in either version as the `h2` crate's.
pub(crate) fn request_head(
    parts: Parts,
    version: HttpVersion,
    tls: bool,
    max_fields: usize,
) -> Result<RequestHead, Refused> {
    let Parts { mut method, uri, mut headers, extensions, .. } = parts;
    if headers.len() > max_fields {
        return Err(Refused::Status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields"));
    }
    if headers.keys().any(is_connection_specific) {
        return Err(Refused::Malformed("a connection-specific field"));
    }
    if !headers.keys().all(is_token) {
        return Err(Refused::Malformed("a field name"));
    }
    if headers.get_all(header::TE).iter().any(|te| !te.as_bytes().eq_ignore_ascii_case(b"trailers")) {
        return Err(Refused::Malformed("te other than trailers"));
    }
    if headers.values().any(|value| value.as_bytes().iter().any(|b| matches!(b, b'\r' | b'\n' | 0))) {
        return Err(Refused::Malformed("a control character in a field value"));
    }
    let padded = |value: &HeaderValue| value.as_bytes() != value.as_bytes().trim_ascii();
    if headers.values().any(padded) {
        return Err(Refused::Malformed("white space around a field value"));
    }
    let tunnel = match extensions.get::<Protocol>() {
        None if method == Method::CONNECT => return connect(version, method, &uri, headers, tls),
        None => None,
        Some(_) if method != Method::CONNECT => return Err(Refused::Malformed(":protocol without CONNECT")),
        Some(protocol) if protocol.as_str().eq_ignore_ascii_case(Tunnel::WebSocket.name()) => {
            method = Method::GET;
            Some(Tunnel::WebSocket)
        }
        // RFC 9298, section 3.4.
        Some(protocol) if protocol.as_str().eq_ignore_ascii_case(Tunnel::ConnectUdp.name()) => {
            method = Method::GET;
            Some(Tunnel::ConnectUdp)
        }
        Some(_) => return Err(Refused::Status(StatusCode::NOT_IMPLEMENTED, "an unknown :protocol")),
    };
    let scheme = match uri.scheme_str() {
        Some("https") => Scheme::Https,
        Some("http") => Scheme::Http,
        _ => return Err(Refused::Malformed(":scheme is neither http nor https")),
    };
    if (scheme == Scheme::Https) != tls {
        return Err(Refused::Status(StatusCode::MISDIRECTED_REQUEST, ":scheme does not fit the connection"));
    }
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    let star = target == "*";
    if !(target.starts_with('/') || (star && method == Method::OPTIONS)) || !checked_target(target) {
        return Err(Refused::Malformed(":path is not a path"));
    }
    let target = Target::new(target.into());
    let authority = authority(&uri, &mut headers)?;
    join_cookies(&mut headers);
    Ok(RequestHead { version, method, scheme, authority, target, headers, tunnel })
}

/// `CONNECT` has an authority with a port, and neither scheme nor path (RFC 9113, section 8.5; RFC 9114, section 4.4).
fn connect(
    version: HttpVersion,
    method: Method,
    uri: &http::Uri,
    mut headers: HeaderMap,
    tls: bool,
) -> Result<RequestHead, Refused> {
    if uri.scheme().is_some() || uri.path_and_query().is_some_and(|target| !matches!(target.as_str(), "" | "/")) {
        return Err(Refused::Malformed("CONNECT with :scheme or :path"));
    }
    let authority = uri.authority().and_then(|authority| checked_connect(authority.as_str().as_bytes()));
    let Some(authority) = authority else {
        return Err(Refused::Status(StatusCode::BAD_REQUEST, ":authority is no host with a port"));
    };
    headers.remove(header::HOST);
    let scheme = if tls { Scheme::Https } else { Scheme::Http };
    let target = Target::new(bytestring::ByteString::new());
    Ok(RequestHead { version, method, scheme, authority, target, headers, tunnel: Some(Tunnel::Connect) })
}

/// `:authority`, else `Host`; both only if they agree (RFC 9113, section 8.3.1; RFC 9114, section 4.3.1).
fn authority(uri: &http::Uri, headers: &mut HeaderMap) -> Result<bytestring::ByteString, Refused> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().cloned();
    if hosts.next().is_some() {
        return Err(Refused::Malformed("more than one host"));
    }
    let checked = |text: &[u8]| checked_authority(text).filter(|authority| !authority.is_empty());
    let stated = match uri.authority() {
        Some(authority) => {
            Some(checked(authority.as_str().as_bytes()).ok_or(Refused::Malformed(":authority is invalid"))?)
        }
        None => None,
    };
    let host = match host {
        Some(host) => Some(checked(host.as_bytes()).ok_or(Refused::Malformed("host is invalid"))?),
        None => None,
    };
    headers.remove(header::HOST);
    match (stated, host) {
        (Some(stated), Some(host)) if stated != host => Err(Refused::Malformed(":authority and host differ")),
        (Some(authority), _) | (None, Some(authority)) => Ok(authority),
        (None, None) => Err(Refused::Malformed("neither :authority nor host")),
    }
}

/// Crumbs become one field for upstreams that know one only (RFC 9113, section 8.2.3; RFC 9114, section 4.2.1).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let joined = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]));
    if let Ok(joined) = joined {
        headers.insert(header::COOKIE, joined);
    }
}

/// The length a head states; a field that is no number makes the message malformed.
pub(crate) fn stated_length(headers: &HeaderMap, ended: bool) -> Result<Length, Refused> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(value) = values.next() else {
        return Ok(if ended { Length::None } else { Length::Unknown });
    };
    let text = value.as_bytes();
    let number = !text.is_empty() && text.len() <= 19 && text.iter().all(u8::is_ascii_digit);
    if !number || values.any(|other| other != value) {
        return Err(Refused::Malformed("content-length is not one number"));
    }
    let length = text.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    match (length, ended) {
        (0, _) => Ok(Length::None),
        (_, true) => Err(Refused::Malformed("content-length without content")),
        (length, false) => Ok(Length::Known(length)),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(build: impl FnOnce(http::request::Builder) -> http::request::Builder) -> Result<RequestHead, Refused> {
        let request = build(Request::builder().method("GET").uri("https://a.example/x"));
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        request_head(parts, HttpVersion::Http2, true, 10)
    }

    /// Conduct, section 3, "h2/h3 to h1 downgrade".
    #[test]
    fn malformed_requests_never_become_http1() {
        for (name, value) in [
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("keep-alive", "x"),
            ("proxy-connection", "x"),
            ("te", "gzip"),
            ("host", "b.example"),
            ("host", "user@a.example"),
            ("x-pad", " b"),
        ] {
            assert!(matches!(head(|b| b.header(name, value)), Err(Refused::Malformed(_))), "{name}: {value}");
        }
        let quoted = HeaderName::from_lowercase(b"x-\"quoted\"").expect("what HTTP/2 names are read by takes it");
        assert!(matches!(head(|b| b.header(quoted, "b")), Err(Refused::Malformed(_))));
        assert!(matches!(head(|b| b.uri("https://user@a.example/")), Err(Refused::Malformed(_))));
        assert!(matches!(head(|b| b.uri("/x")), Err(Refused::Malformed(_))));
        assert!(matches!(
            head(|b| b.uri("http://a.example/")),
            Err(Refused::Status(StatusCode::MISDIRECTED_REQUEST, _))
        ));
        assert!(matches!(head(|b| b.method("CONNECT")), Err(Refused::Malformed(_))), "it has neither scheme nor path");
        let many = |b: http::request::Builder| (0..11).fold(b, |b, i| b.header(format!("x-{i}"), "y"));
        assert!(matches!(head(many), Err(Refused::Status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, _))));
    }

    /// RFC 9113, section 8.5; RFC 8441, section 4.
    #[test]
    fn connect_is_plain_or_for_a_protocol() {
        let plain = head(|b| b.method("CONNECT").uri("db.example:5432")).expect("fine");
        assert_eq!(
            (&*plain.authority, plain.port(), plain.tunnel),
            ("db.example:5432", Some(5432), Some(Tunnel::Connect))
        );
        assert!(plain.opened_by_success() && plain.target.as_str().is_empty());
        let no_port = head(|b| b.method("CONNECT").uri("db.example"));
        assert!(matches!(no_port, Err(Refused::Status(StatusCode::BAD_REQUEST, _))));

        let protocol = Protocol::from_static;
        let socket = head(|b| b.method("CONNECT").extension(protocol("WebSocket"))).expect("fine");
        assert_eq!((socket.method.as_str(), socket.tunnel), ("GET", Some(Tunnel::WebSocket)));
        assert!(socket.opened_by_success());
        let udp = head(|b| b.method("CONNECT").extension(protocol("connect-udp"))).expect("fine");
        assert_eq!((udp.method.as_str(), udp.tunnel), ("GET", Some(Tunnel::ConnectUdp)));
        assert!(udp.opened_by_success());
        let other = head(|b| b.method("CONNECT").extension(protocol("connect-ip")));
        assert!(matches!(other, Err(Refused::Status(StatusCode::NOT_IMPLEMENTED, _))));
        assert!(matches!(head(|b| b.extension(protocol("websocket"))), Err(Refused::Malformed(_))));
    }

    #[test]
    fn host_goes_into_the_authority_and_cookies_are_joined() {
        let head =
            head(|b| b.header("host", "A.example").header("cookie", "a=1").header("cookie", "b=2")).expect("fine");
        assert_eq!(&*head.authority, "a.example");
        assert_eq!(head.headers["cookie"], "a=1; b=2");
        assert!(!head.headers.contains_key("host"));
    }

    #[test]
    fn content_length_must_be_one_number() {
        let length = |values: &[&'static str], ended| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("content-length", HeaderValue::from_static(value));
            }
            stated_length(&headers, ended).ok()
        };
        assert_eq!(length(&["5"], false), Some(Length::Known(5)));
        assert_eq!(length(&["0"], false), Some(Length::None));
        assert_eq!(length(&[], true), Some(Length::None));
        for bad in [&["5"][..], &["+5"], &["5", "6"], &[""]] {
            assert_eq!(length(bad, true), None, "{bad:?}");
        }
    }
}
