use super::*;
use crate::codec::pseudo::request_head;

fn section(fields: &[(&str, &str)]) -> Bytes {
    let mut out = BytesMut::new();
    qpack::begin(&mut out);
    for (name, value) in fields {
        qpack::encode(&mut out, name, value.as_bytes(), false);
    }
    out.freeze()
}

const BOUNDS: Bounds = Bounds { size: 4096, fields: 10 };
const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":authority", "a.example"), (":path", "/x?y=1")];

fn with(more: &[(&'static str, &'static str)]) -> Bytes {
    section(&[&GET[..], more].concat())
}

fn malformed(section: Bytes) -> Option<&'static str> {
    match request(section, BOUNDS) {
        Err(Wrong::Malformed(reason)) => Some(reason),
        _ => None,
    }
}

#[test]
fn a_request_becomes_parts() {
    let parts = request(with(&[("x-a", "1"), ("x-a", "2"), ("cookie", "c")]), BOUNDS).expect("fine");
    assert_eq!(parts.method, Method::GET);
    assert_eq!(parts.uri, "https://a.example/x?y=1");
    assert_eq!(parts.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
    let head = request_head(parts, tidegate_policy::HttpVersion::Http3, true, 10).expect("fine");
    assert_eq!((&*head.authority, head.target.as_str()), ("a.example", "/x?y=1"));
}

/// RFC 9114, section 4.3.1: Host may stand in for `:authority`; both must agree.
#[test]
fn host_stands_in_for_the_authority() {
    let fields = [(":method", "GET"), (":scheme", "https"), (":path", "/"), ("host", "A.example:8443")];
    let parts = request(section(&fields), BOUNDS).expect("fine");
    let head = request_head(parts, tidegate_policy::HttpVersion::Http3, true, 10).expect("fine");
    assert_eq!(&*head.authority, "a.example:8443");
    let parts = request(with(&[("host", "b.example")]), BOUNDS).expect("a section");
    assert!(request_head(parts, tidegate_policy::HttpVersion::Http3, true, 10).is_err());
}

#[test]
fn the_star_of_options_passes() {
    let fields = [(":method", "OPTIONS"), (":scheme", "https"), (":authority", "a.example"), (":path", "*")];
    let parts = request(section(&fields), BOUNDS).expect("fine");
    let head = request_head(parts, tidegate_policy::HttpVersion::Http3, true, 10).expect("fine");
    assert_eq!(head.target.as_str(), "*");
}

/// RFC 9114, sections 4.1.2, 4.2, 4.3 and 4.3.1.
#[test]
fn malformed_requests_are_refused() {
    for (fields, about) in [
        (&[("x-a", "1"), (":path", "/y")][..], "after a regular"),
        (&[(":path", "/y")], "twice"),
        (&[(":method", "GET")], "twice"),
        (&[(":unknown", "x")], "unknown"),
        (&[(":status", "200")], ":status"),
        (&[("X-A", "1")], "name"),
        (&[("x a", "1")], "name"),
        (&[("", "1")], "name"),
        (&[("x-a", "1\r\nx-b: 2")], "value"),
        (&[("x-a", "\0")], "value"),
        (&[("connection", "close")], "connection"),
        (&[("transfer-encoding", "chunked")], "connection"),
        (&[("upgrade", "h2c")], "connection"),
        (&[("keep-alive", "1")], "connection"),
        (&[("proxy-connection", "close")], "connection"),
        (&[(":protocol", "websocket")], ":protocol without"),
    ] {
        let reason = malformed(with(fields)).unwrap_or_else(|| panic!("{fields:?} was taken"));
        assert!(reason.contains(about), "{fields:?}: {reason}");
    }
    for missing in [":method", ":scheme", ":authority", ":path"] {
        let fields: Vec<_> = GET.into_iter().filter(|(name, _)| *name != missing).collect();
        assert!(malformed(section(&fields)).is_some(), "without {missing}");
    }
    for (name, wrong) in [
        (":method", "G T"),
        (":method", ""),
        (":scheme", ""),
        (":authority", ""),
        (":authority", "a b"),
        (":path", ""),
        (":path", "/a#b"),
        (":path", "/a b"),
    ] {
        let fields: Vec<_> = GET.into_iter().map(|(n, v)| (n, if n == name { wrong } else { v })).collect();
        let taken = request(section(&fields), BOUNDS).map_err(|wrong| format!("{wrong:?}"));
        let head = taken.map(|parts| request_head(parts, tidegate_policy::HttpVersion::Http3, true, 10));
        assert!(!matches!(head, Ok(Ok(_))), "{name}: {wrong:?}");
    }
}

/// RFC 9114, section 4.4; RFC 9220, section 3.
#[test]
fn connect_is_told_from_extended_connect() {
    let plain = request(section(&[(":method", "CONNECT"), (":authority", "a.example:443")]), BOUNDS).expect("fine");
    assert!(plain.extensions.get::<Protocol>().is_none());
    assert!(malformed(section(&[(":method", "CONNECT"), (":authority", "a:1"), (":path", "/")])).is_some());
    let mut fields = GET;
    fields[0].1 = "CONNECT";
    assert!(malformed(section(&fields)).is_some(), "with :scheme and :path only when it is extended");
    let extended = [&fields[..], &[(":protocol", "websocket")]].concat();
    let parts = request(section(&extended), BOUNDS).expect("fine");
    assert_eq!(parts.extensions.get::<Protocol>().map(Protocol::as_str), Some("websocket"));
    let head = request_head(parts, tidegate_policy::HttpVersion::Http3, true, 10);
    assert!(matches!(head, Ok(head) if head.tunnel == Some(tidegate_policy::Tunnel::WebSocket)));
}

/// RFC 9114, section 4.2.2, and our own limit on the number of fields.
#[test]
fn large_heads_are_told_from_malformed_ones() {
    let many: Vec<_> = (0..11).map(|_| ("x-a", "1")).collect();
    assert!(matches!(request(with(&many), BOUNDS), Err(Wrong::TooLarge)));
    let long = "x".repeat(4096);
    assert!(matches!(request(section(&[("x-a", &long)]), BOUNDS), Err(Wrong::TooLarge)));
    assert!(matches!(request(Bytes::from_static(b"\x00"), BOUNDS), Err(Wrong::Violation(_))));
    let endless = "/".to_owned() + &"x".repeat(70_000);
    let fields = [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", &endless)];
    let bounds = Bounds { size: 1 << 20, fields: 10 };
    assert!(matches!(request(section(&fields), bounds), Err(Wrong::Malformed(_) | Wrong::TooLarge)));
}

#[test]
fn responses_and_trailers() {
    let (status, headers) = response(section(&[(":status", "204"), ("x-a", "1")]), BOUNDS).expect("fine");
    assert_eq!((status, headers.len()), (StatusCode::NO_CONTENT, 1));
    for fields in [
        &[("x-a", "1")][..],
        &[(":status", "20")],
        &[(":status", "abc")],
        &[(":status", "200"), (":path", "/")],
        &[(":status", "200"), ("connection", "close")],
        &[("x-a", "1"), (":status", "200")],
    ] {
        assert!(matches!(response(section(fields), BOUNDS), Err(Wrong::Malformed(_))), "{fields:?}");
    }
    assert_eq!(trailers(section(&[("x-sum", "1")]), BOUNDS).expect("fine").len(), 1);
    assert!(matches!(trailers(section(&[(":status", "200")]), BOUNDS), Err(Wrong::Malformed(_))));
}

/// RFC 9114, section 4.2.2: what a peer does not want is not sent.
#[test]
fn a_frame_is_written_whole_or_not_at_all() {
    let mut headers = HeaderMap::new();
    headers.insert("x-a", HeaderValue::from_static("1"));
    let size = 7 + 3 + 32 + 3 + 1 + 32;
    assert!(response_frame(StatusCode::OK, &headers, Some(size - 1)).is_none());
    let frame = response_frame(StatusCode::OK, &headers, Some(size)).expect("it fits");
    let (kind, length, used) = frame::header(&frame).expect("a frame");
    assert_eq!((kind, length as usize), (frame::Kind::Headers, frame.len() - used));
    let (status, read) = response(frame.slice(used..), BOUNDS).expect("fine");
    assert_eq!((status, &read["x-a"]), (StatusCode::OK, &HeaderValue::from_static("1")));
}
