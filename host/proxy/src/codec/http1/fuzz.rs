//! Properties of the HTTP/1 parsers that must hold for any input. A broken one is a smuggled message.

use bytes::{Bytes, BytesMut};
use http::Method;
use tidegate_policy::{RequestHead, Scheme, Tunnel};

use super::chunked::{ChunkDecoder, Piece};
use super::framing::Framing;
use super::head::{BadResponse, ParsedRequest, ParsedResponse, Refusal, SectionScan, take_request, take_response};

mod upstream;

pub use upstream::{http2_head, upstream_http1};

const MAX_BYTES: usize = 4096;
const MAX_FIELDS: usize = 40;

/// Gives `take` the input in two pieces, or whole.
fn in_pieces<T>(data: &[u8], split: usize, mut take: impl FnMut(&mut BytesMut) -> Option<T>) -> (Option<T>, BytesMut) {
    let (first, second) = data.split_at(split.min(data.len()));
    let mut read = BytesMut::from(first);
    let mut taken = take(&mut read);
    if taken.is_none() {
        read.extend_from_slice(second);
        taken = take(&mut read);
    } else {
        read.extend_from_slice(second);
    }
    (taken, read)
}

fn request(data: &[u8], split: usize) -> (Option<Result<ParsedRequest, Refusal>>, BytesMut) {
    let mut scan = SectionScan::default();
    in_pieces(data, split, |read| take_request(read, &mut scan, MAX_BYTES, MAX_FIELDS, Scheme::Http).transpose())
}

/// Nothing that could end a line early, in any part of a head.
pub(crate) fn assert_no_line_breaks(head: &RequestHead) {
    let breaks = |bytes: &[u8]| bytes.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0));
    assert!(!breaks(head.target.as_str().as_bytes()) && !head.target.as_str().contains(' '), "{head:?}");
    assert!(!breaks(head.authority.as_bytes()) && !head.authority.contains([' ', '/', '@']), "{head:?}");
    for (name, value) in &head.headers {
        assert!(!breaks(value.as_bytes()), "{name}: {value:?}");
    }
}

/// The request as any strict sender would write it.
pub(crate) fn render(head: &RequestHead, framing: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let connect = head.tunnel == Some(Tunnel::Connect);
    let target = if connect { &head.authority[..] } else { head.target.as_str() };
    // Only a client of HTTP/1.0 need not name a host.
    let version = if head.authority.is_empty() { "HTTP/1.0" } else { "HTTP/1.1" };
    out.extend_from_slice(format!("{} {target} {version}\r\n", head.method).as_bytes());
    if !head.authority.is_empty() {
        out.extend_from_slice(format!("host: {}\r\n", head.authority).as_bytes());
    }
    for (name, value) in head.headers.iter().filter(|(name, _)| *name != http::header::CONTENT_LENGTH) {
        out.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    out.extend_from_slice(framing);
    out.extend_from_slice(b"\r\n");
    out
}

/// A request head: the same judgement however it arrives, and what is accepted reads the same when it is written again.
pub fn http1_request(data: &[u8]) {
    let [split, data @ ..] = data else { return };
    let (whole, rest) = request(data, data.len());
    let (pieces, other_rest) = request(data, usize::from(*split));
    match (&whole, &pieces) {
        (None, None) => {}
        (Some(Err(one)), Some(Err(other))) => assert_eq!(one.status, other.status),
        (Some(Ok(one)), Some(Ok(other))) => {
            assert_eq!((&one.head.headers, one.framing), (&other.head.headers, other.framing));
            assert_eq!(
                (one.head.target.as_str(), &one.head.authority),
                (other.head.target.as_str(), &other.head.authority)
            );
            assert_eq!(rest, other_rest);
        }
        (one, other) => panic!("whole: {one:?}, in pieces: {other:?}"),
    }
    let Some(Ok(parsed)) = whole else { return };
    assert_no_line_breaks(&parsed.head);
    let framing = match parsed.framing {
        Framing::None => String::new(),
        Framing::Length(length) => format!("content-length: {length}\r\n"),
        Framing::Chunked => "transfer-encoding: chunked\r\n".to_owned(),
        Framing::UntilClose | Framing::Tunnel => panic!("a request that ends with its connection: {parsed:?}"),
    };
    let mut again = BytesMut::from(&render(&parsed.head, framing.as_bytes())[..]);
    let mut scan = SectionScan::default();
    // It may have grown: absolute-form becomes a host, values are padded with a space.
    let taken = take_request(&mut again, &mut scan, 4 * MAX_BYTES, MAX_FIELDS + 2, parsed.head.scheme);
    let taken = taken.expect("accepted again").expect("whole");
    assert!(again.is_empty(), "one request became two");
    let length = |parsed: &ParsedRequest| {
        let mut headers = parsed.head.headers.clone();
        headers.remove(http::header::CONTENT_LENGTH);
        headers
    };
    assert_eq!(length(&taken), length(&parsed));
    assert_eq!((&taken.head.method, taken.framing), (&parsed.head.method, parsed.framing));
    assert_eq!(taken.head.target.as_str(), parsed.head.target.as_str());
    assert_eq!(taken.head.authority, parsed.head.authority);
}

/// A response head: the same judgement however it arrives; one without a body never has a framing that waits for one.
pub fn http1_response(data: &[u8]) {
    let [split, method, data @ ..] = data else { return };
    let method = [Method::GET, Method::HEAD, Method::POST, Method::CONNECT][usize::from(*method) % 4].clone();
    type Taken = Option<Result<ParsedResponse, BadResponse>>;
    let parse = |split: usize| -> (Taken, BytesMut) {
        let mut scan = SectionScan::default();
        in_pieces(data, split, |read| take_response(read, &mut scan, MAX_BYTES, MAX_FIELDS, &method).transpose())
    };
    let ((whole, rest), (pieces, other_rest)) = (parse(data.len()), parse(usize::from(*split)));
    match (&whole, &pieces) {
        (None, None) | (Some(Err(_)), Some(Err(_))) => {}
        (Some(Ok(one)), Some(Ok(other))) => {
            assert_eq!((&one.head.headers, one.framing), (&other.head.headers, other.framing));
            assert_eq!(rest, other_rest);
        }
        (one, other) => panic!("whole: {one:?}, in pieces: {other:?}"),
    }
    let Some(Ok(parsed)) = whole else { return };
    let status = parsed.head.status.as_u16();
    if status < 200 || matches!(status, 204 | 304) || method == Method::HEAD {
        assert_eq!(parsed.framing, Framing::None, "{status}");
    }
    if parsed.framing == Framing::UntilClose {
        assert!(!parsed.keep_alive);
    }
}

/// Content and trailer names and values, or why not.
fn decode(data: &[u8], piece: usize) -> (Result<Option<(Vec<u8>, usize)>, String>, usize) {
    let mut decoder = ChunkDecoder::new(1024, 20);
    let (mut read, mut body, mut used) = (BytesMut::new(), Vec::new(), 0);
    loop {
        match decoder.decode(&mut read) {
            Err(reason) => return (Err(reason), used),
            Ok(Piece::Data(data)) => body.extend_from_slice(&data),
            Ok(Piece::End(trailers)) => {
                let trailers = trailers.map_or(0, |trailers| trailers.len());
                return (Ok(Some((body, trailers))), used - read.len());
            }
            Ok(Piece::More) if used == data.len() => return (Ok(None), used),
            Ok(Piece::More) => {
                let end = (used + piece.max(1)).min(data.len());
                read.extend_from_slice(&data[used..end]);
                used = end;
            }
        }
    }
}

/// A chunked body: the same content and end however it arrives, and the plain form of it reads the same.
pub fn http1_chunked(data: &[u8]) {
    let [piece, data @ ..] = data else { return };
    let (whole, end) = decode(data, data.len());
    let (pieces, other_end) = decode(data, usize::from(*piece));
    match (&whole, &pieces) {
        (Ok(one), Ok(other)) => assert_eq!(one, other),
        (Err(_), Err(_)) => {}
        (one, other) => panic!("whole: {one:?}, in pieces: {other:?}"),
    }
    let Ok(Some((body, _))) = whole else { return };
    assert_eq!(end, other_end);
    assert!(body.len() < data.len());
    let plain = match body.len() {
        0 => b"0\r\n\r\n".to_vec(),
        length => [format!("{length:x}\r\n").as_bytes(), &body, b"\r\n0\r\n\r\n"].concat(),
    };
    let (again, used) = decode(&plain, plain.len());
    assert_eq!((again, used), (Ok(Some((body, 0))), plain.len()));
}

/// What another version's request becomes upstream: one HTTP/1.1 request with this method, target and authority.
pub(crate) fn becomes_one_request(head: &RequestHead) {
    assert_no_line_breaks(head);
    let text = Bytes::from(render(head, b""));
    let mut read = BytesMut::from(&text[..]);
    let mut scan = SectionScan::default();
    let taken = take_request(&mut read, &mut scan, 1 << 20, 1000, head.scheme);
    let taken = taken.unwrap_or_else(|refusal| panic!("{refusal:?}: {text:?}")).expect("whole");
    assert!(read.is_empty(), "one request became two: {text:?}");
    assert_eq!(taken.framing, Framing::None, "{text:?}");
    assert_eq!((&taken.head.method, &taken.head.authority), (&head.method, &head.authority));
    assert_eq!(taken.head.target.as_str(), head.target.as_str());
}
