//! What reaches an HTTP/1.1 origin, whatever the client spoke: as many requests as the client made, each with its own body,
//! to our strict parser and to an origin that is as lax as they come. Anything else is a smuggled request.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use h2::ext::Protocol;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use tidegate_policy::native::{RouteTable, is_hop_by_hop, is_identity_field};
use tidegate_policy::{Asked, HttpVersion, RequestEdits, RequestHead, Scheme, Tunnel};

use super::{MAX_BYTES, MAX_FIELDS};
use crate::body::{Length, strip_trailers};
use crate::codec::http1::body::{put_field, put_size};
use crate::codec::http1::chunked::{ChunkDecoder, Piece};
use crate::codec::http1::client::put_head;
use crate::codec::http1::framing::Framing;
use crate::codec::http1::head::{ParsedRequest, SectionScan, take_request};
use crate::codec::pseudo::{request_head, stated_length};
use crate::exchange::OutgoingHead;
use crate::fuzz::header_map;
use crate::snapshot::Snapshot;

/// A request with all of its body.
struct Whole {
    head: RequestHead,
    framing: Framing,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

/// The next request of a connection, if all of it is there.
fn take(read: &mut BytesMut, max: (usize, usize), scheme: Scheme) -> Option<Whole> {
    let parsed = take_request(read, &mut SectionScan::default(), max.0, max.1, scheme).ok()??;
    let ParsedRequest { head, framing, .. } = parsed;
    let (mut body, mut trailers) = (Vec::new(), None);
    match framing {
        Framing::Length(length) => {
            let length = usize::try_from(length).ok().filter(|length| *length <= read.len())?;
            body.extend_from_slice(&read.split_to(length));
        }
        Framing::Chunked => {
            let mut decoder = ChunkDecoder::new(max.0, max.1);
            loop {
                match decoder.decode(read).ok()? {
                    Piece::Data(data) => body.extend_from_slice(&data),
                    Piece::End(end) => break trailers = end,
                    Piece::More => return None,
                }
            }
        }
        Framing::None | Framing::UntilClose | Framing::Tunnel => {}
    }
    Some(Whole { head, framing, body, trailers })
}

fn snapshot() -> Snapshot {
    Snapshot {
        generation: 1,
        listeners: Vec::new(),
        clusters: Vec::new(),
        cluster_by_name: Default::default(),
        table: RouteTable::new(Vec::new()),
        routes: Vec::new(),
        tenants: Vec::new(),
        via: "gw".into(),
        buffers: crate::Buffers::new(0, 0, std::env::temp_dir()),
    }
}

/// Writes a request as the client's side of the codec does, in one piece, and gives what was meant.
fn forward(out: &mut BytesMut, request: Whole, edits: &RequestEdits, snapshot: &Snapshot) -> (OutgoingHead, Vec<u8>) {
    let connection = Rc::new(tidegate_policy::fuzz::connection());
    let (client, received) = (connection.client.ip(), Vec::new());
    let asked =
        Rc::new(Asked { connection, request: request.head, client, received, notes: RefCell::default(), draw: 0 });
    let mut edits = edits.clone();
    edits.fit(&asked.request.target);
    let mut head = OutgoingHead::new(&asked, &edits, Vec::new(), snapshot);
    if asked.request.tunnel == Some(Tunnel::WebSocket) && request.framing == Framing::None {
        head.upgrade = Some(HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
    }
    put_head(out, &head, request.framing);
    if request.framing == Framing::Chunked {
        if !request.body.is_empty() {
            put_size(out, request.body.len());
            out.extend_from_slice(&request.body);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"0\r\n");
        let mut trailers = request.trailers.unwrap_or_default();
        strip_trailers(&mut trailers);
        for (name, value) in &trailers {
            put_field(out, name.as_str().as_bytes(), value.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    } else {
        out.extend_from_slice(&request.body);
    }
    (head, request.body)
}

/// What an origin makes of the connection that takes every liberty which servers were seen to take: bare line feeds, white
/// space around names, any spelling of `chunked`, the last length that it finds.
fn laxly(mut text: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    fn line<'a>(text: &mut &'a [u8]) -> &'a [u8] {
        let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
        let line = &text[..end];
        *text = text.get(end + 1..).unwrap_or_default();
        line.strip_suffix(b"\r").unwrap_or(line)
    }
    fn digits(text: &[u8], radix: u32) -> usize {
        let end = text.iter().position(|byte| !char::from(*byte).is_digit(radix)).unwrap_or(text.len());
        let text = std::str::from_utf8(&text[..end]).unwrap_or_default();
        usize::from_str_radix(text, radix).unwrap_or(0)
    }
    fn some<'a>(text: &mut &'a [u8], length: usize) -> &'a [u8] {
        let (some, rest) = text.split_at(length.min(text.len()));
        *text = rest;
        some
    }
    let mut requests = Vec::new();
    while !text.is_empty() {
        let first = line(&mut text).to_vec();
        let (mut length, mut chunked) = (0, false);
        loop {
            let field = line(&mut text);
            if field.is_empty() {
                break;
            }
            let colon = field.iter().position(|byte| *byte == b':').unwrap_or(field.len());
            let (name, value) = (field[..colon].trim_ascii(), field.get(colon + 1..).unwrap_or_default().trim_ascii());
            if name.eq_ignore_ascii_case(b"content-length") {
                length = digits(value, 10);
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                chunked = value.to_ascii_lowercase().windows(7).any(|part| part == b"chunked");
            }
        }
        let mut body = Vec::new();
        if chunked {
            loop {
                let size = digits(line(&mut text), 16);
                if size == 0 {
                    break;
                }
                body.extend_from_slice(some(&mut text, size));
                line(&mut text);
            }
            while !line(&mut text).is_empty() {}
        } else {
            body.extend_from_slice(some(&mut text, length));
        }
        requests.push((first, body));
    }
    requests
}

fn assert_read_as_meant(out: &[u8], sent: &[(OutgoingHead, Vec<u8>)], scheme: Scheme) {
    let shown = || String::from_utf8_lossy(out);
    let mut read = BytesMut::from(out);
    for (head, body) in sent {
        // The host of an HTTP/1.0 request may be missing: an origin refuses what went on without one.
        if head.authority.is_empty() {
            return;
        }
        // Edits are not bounded by what a client may send.
        let got = take(&mut read, (1 << 20, 1000), scheme).unwrap_or_else(|| panic!("refused: {}", shown()));
        assert_eq!((&got.head.method, got.head.target.as_str()), (&head.method, &head.target[..]), "{}", shown());
        assert_eq!((&got.head.authority, &got.body), (&head.authority, body), "{}", shown());
        assert_eq!(got.head.tunnel.is_some(), head.upgrade.is_some(), "{}", shown());
        for name in got.head.headers.keys() {
            let ours = ["connection", "upgrade"].contains(&name.as_str());
            assert!(ours || !is_hop_by_hop(name), "{name} in {}", shown());
            assert!(!is_identity_field(name), "{name} in {}", shown());
        }
        if let Some(trailers) = &got.trailers {
            assert!(!trailers.keys().any(|name| is_hop_by_hop(name) || is_identity_field(name)), "{}", shown());
            assert!(!trailers.contains_key("host") && !trailers.contains_key("content-length"), "{}", shown());
        }
    }
    assert!(read.is_empty(), "more than was asked: {}", shown());
    let meant = sent.iter().map(|(head, body)| (format!("{} {} HTTP/1.1", head.method, head.target), body));
    let lax = laxly(out);
    assert!(
        meant.eq(lax.iter().map(|(line, body)| (String::from_utf8_lossy(line).into_owned(), body))),
        "to a lax origin: {}",
        shown()
    );
}

/// Bytes up to a 0xff are what a router asks to change, see `tidegate_policy::fuzz::request_edits`.
fn edits<'a>(data: &mut &'a [u8]) -> RequestEdits {
    let end = data.iter().position(|byte| *byte == 0xff).filter(|end| *end < 256);
    let (edits, rest): (&'a [u8], &'a [u8]) = match end {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (&[], data),
    };
    *data = rest;
    tidegate_policy::fuzz::request_edits(edits)
}

/// Pipelined requests of an HTTP/1 client.
pub fn upstream_http1(mut data: &[u8]) {
    let edits = edits(&mut data);
    let snapshot = snapshot();
    let (mut read, mut out, mut sent) = (BytesMut::from(data), BytesMut::new(), Vec::new());
    while let Some(request) = take(&mut read, (MAX_BYTES, MAX_FIELDS), Scheme::Http) {
        if request.head.tunnel == Some(Tunnel::Connect) || sent.len() == 16 {
            break;
        }
        sent.push(forward(&mut out, request, &edits, &snapshot));
    }
    assert_read_as_meant(&out, &sent, Scheme::Http);
}

/// The parts of a request as the `h2` crate hands them over: it sees to the order of pseudo-header fields and that their
/// values can be a URI, and little else. Five lines of them, fields, an empty line, content.
fn parts(data: &[u8]) -> Option<(http::request::Parts, Vec<u8>)> {
    let end = data.windows(2).position(|pair| pair == b"\n\n").unwrap_or(data.len());
    let body = data.get(end + 2..).unwrap_or_default().to_vec();
    let mut lines = data[..end].splitn(6, |byte| *byte == b'\n');
    let mut pseudo = || lines.next().filter(|line| !line.is_empty()).map(Bytes::copy_from_slice);
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = Method::from_bytes(&pseudo()?).ok()?;
    let mut uri = http::uri::Parts::default();
    uri.scheme = pseudo().map(|scheme| http::uri::Scheme::try_from(&scheme[..])).transpose().ok()?;
    uri.authority = pseudo().map(Authority::from_maybe_shared).transpose().ok()?;
    uri.path_and_query = pseudo().map(PathAndQuery::from_maybe_shared).transpose().ok()?;
    if let Some(protocol) = pseudo() {
        parts.extensions.insert(Protocol::from(std::str::from_utf8(&protocol).ok()?));
    }
    if uri.authority.is_none() {
        uri.scheme = None;
    }
    parts.uri = Uri::from_parts(uri).ok()?;
    parts.headers = header_map(lines.next().unwrap_or_default());
    Some((parts, body))
}

/// A request of an HTTP/2 client, on its way to an HTTP/1.1 origin.
pub fn http2_head(mut data: &[u8]) {
    let edits = edits(&mut data);
    let Some((parts, body)) = parts(data) else { return };
    let Ok(head) = request_head(parts, HttpVersion::Http2, true, MAX_FIELDS) else { return };
    super::assert_no_line_breaks(&head);
    if head.tunnel == Some(Tunnel::Connect) {
        return;
    }
    let framing = match stated_length(&head.headers, body.is_empty()) {
        Ok(Length::None) if body.is_empty() => Framing::None,
        // The crate sees to it that content is as long as was stated.
        Ok(Length::Known(length)) if length == body.len() as u64 => Framing::Length(length),
        Ok(Length::Unknown) => Framing::Chunked,
        _ => return,
    };
    let mut out = BytesMut::new();
    let request = Whole { head, framing, body, trailers: None };
    let sent = forward(&mut out, request, &edits, &snapshot());
    assert_read_as_meant(&out, &[sent], Scheme::Https);
}
