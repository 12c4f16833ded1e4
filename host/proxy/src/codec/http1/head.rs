//! Heads from bytes and back: httparse for the grammar, and the checks it leaves to its callers.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use tidegate_policy::{HttpVersion, RequestHead, ResponseHead, Scheme, Target};

use super::framing::{self, Ambiguous, Framing};

/// A request that is not one: the status to refuse it with, and why.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) reason: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into() }
    }

    fn bad(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::bad(reason)
    }
}

/// The length of a header section, its empty line included, when `read` has all of it. Lines end with CRLF and nothing
/// else: a bare line feed is where two parsers part ways (RFC 9112, section 2.2).
pub(super) fn fields_end(read: &[u8]) -> Result<Option<usize>, String> {
    let mut start = 0;
    while let Some(at) = memchr::memchr(b'\n', &read[start..]) {
        let end = start + at;
        if end == 0 || read[end - 1] != b'\r' {
            return Err("a line ends with a bare line feed".to_owned());
        }
        if end - 1 == start {
            return Ok(Some(end + 1));
        }
        start = end + 1;
    }
    Ok(None)
}

/// As `fields_end` for a whole head: its first line may not be empty.
fn head_end(read: &[u8]) -> Result<Option<usize>, String> {
    match fields_end(read)? {
        Some(2) => Err("the start line is empty".to_owned()),
        end => Ok(end),
    }
}

/// Header fields, from a section that ends with its empty line.
pub(super) fn parse_fields(section: &Bytes, most: usize) -> Result<HeaderMap, String> {
    let mut parsed = vec![httparse::EMPTY_HEADER; most];
    match httparse::parse_headers(section, &mut parsed) {
        Ok(httparse::Status::Complete((_, fields))) => header_map(section, fields),
        Ok(httparse::Status::Partial) => Err("the fields are incomplete".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Values are slices of the head they came in: no copy.
fn header_map(head: &Bytes, fields: &[httparse::Header<'_>]) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::with_capacity(fields.len() + 2);
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| "a field name is invalid".to_owned())?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
            .map_err(|_| format!("the value of {name:?} is invalid"))?;
        map.append(name, value);
    }
    Ok(map)
}

type Slots<'b> = [MaybeUninit<httparse::Header<'b>>];

/// Runs `parse` with room for `most` fields: on the stack as long as that is a usual number.
fn with_slots<'b, T>(most: usize, parse: impl FnOnce(&mut Slots<'b>) -> T) -> T {
    const USUAL: usize = 128;
    if most <= USUAL {
        let mut slots = [const { MaybeUninit::uninit() }; USUAL];
        parse(&mut slots[..most])
    } else {
        let mut slots: Vec<_> = (0..most).map(|_| MaybeUninit::uninit()).collect();
        parse(&mut slots)
    }
}

/// A request's head, and how its body is framed.
#[derive(Debug)]
pub(super) struct ParsedRequest {
    pub(super) head: RequestHead,
    pub(super) framing: Framing,
    /// The client's side of persistence (RFC 9112, section 9.3).
    pub(super) keep_alive: bool,
}

/// Takes a request head off `read`, once all of it is there.
pub(super) fn take_request(
    read: &mut BytesMut,
    max_bytes: usize,
    max_fields: usize,
    scheme: Scheme,
) -> Result<Option<ParsedRequest>, Refusal> {
    // A robust server skips one empty line before a request (RFC 9112, section 2.2).
    if read.starts_with(b"\r\n") {
        let _ = read.split_to(2);
    }
    let Some(end) = head_end(read)? else {
        if read.len() > max_bytes {
            return Err(too_large(read));
        }
        return Ok(None);
    };
    if end > max_bytes {
        return Err(too_large(read));
    }
    let bytes = read.split_to(end).freeze();
    with_slots(max_fields, |slots| parse_request(&bytes, slots, scheme)).map(Some)
}

/// 414 where the request line alone is too long, else 431 (RFC 6585, section 5).
fn too_large(read: &[u8]) -> Refusal {
    if memchr::memchr(b'\n', read).is_none() {
        Refusal::new(StatusCode::URI_TOO_LONG, "the request line is too long")
    } else {
        Refusal::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the request head is too large")
    }
}

fn parse_request<'b>(bytes: &'b Bytes, slots: &mut Slots<'b>, scheme: Scheme) -> Result<ParsedRequest, Refusal> {
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, slots) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Refusal::bad("the head is incomplete")),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields"));
        }
        // Three words of which the last is a version we do not speak; else it is no request line at all.
        Err(httparse::Error::Version) if names_a_version(bytes) => {
            return Err(Refusal::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "not HTTP/1.0 or HTTP/1.1"));
        }
        Err(error) => return Err(Refusal::bad(error.to_string())),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(Refusal::bad("the request line is incomplete"));
    };
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| Refusal::bad("the method is invalid"))?;
    let http10 = version == 0;
    let mut headers = header_map(bytes, request.headers)?;
    let host = take_host(&mut headers, http10)?;
    let (scheme, authority, target) = effective_target(&method, target, host, scheme)?;
    let framing = framing::of_request(&mut headers, http10).map_err(|ambiguous| match ambiguous {
        Ambiguous::Invalid(reason) => Refusal::bad(reason),
        Ambiguous::Unsupported => Refusal::new(StatusCode::NOT_IMPLEMENTED, "an unknown transfer coding"),
    })?;
    let keep_alive = persists(&headers, http10);
    let version = if http10 { HttpVersion::Http10 } else { HttpVersion::Http11 };
    let head = RequestHead { version, method, scheme, authority, target, headers };
    Ok(ParsedRequest { head, framing, keep_alive })
}

fn names_a_version(head: &[u8]) -> bool {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|b| *b == b' ');
    words.nth(2).is_some_and(|version| version.starts_with(b"HTTP/")) && words.next().is_none()
}

/// Exactly one `Host`, which HTTP/1.0 may leave out (RFC 9112, section 3.2).
fn take_host(headers: &mut HeaderMap, http10: bool) -> Result<Option<ByteString>, Refusal> {
    let mut values = headers.get_all(header::HOST).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(Refusal::bad("more than one host"));
    }
    let Some(value) = first else {
        return if http10 { Ok(None) } else { Err(Refusal::bad("no host")) };
    };
    let authority = checked_authority(value.as_bytes()).ok_or_else(|| Refusal::bad("host is invalid"))?;
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

fn port_fits(digits: &[u8]) -> bool {
    digits.iter().fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0')) <= u32::from(u16::MAX)
}

/// Visible ASCII without a fragment: what any parser downstream reads the same way (RFC 9112, section 3.2).
pub(crate) fn checked_target(text: &str) -> bool {
    text.bytes().all(|b| (0x21..=0x7e).contains(&b) && b != b'#')
}

/// The four forms of a target (RFC 9112, section 3.2), and the authority that counts: absolute-form overrides `Host`.
fn effective_target(
    method: &Method,
    target: &str,
    host: Option<ByteString>,
    scheme: Scheme,
) -> Result<(Scheme, ByteString, Target), Refusal> {
    if method == Method::CONNECT {
        return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "CONNECT is not configured"));
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

/// RFC 9112, section 9.3.
fn persists(headers: &HeaderMap, http10: bool) -> bool {
    let (mut close, mut keep) = (false, false);
    for value in headers.get_all(header::CONNECTION) {
        for token in value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            close |= token.eq_ignore_ascii_case(b"close");
            keep |= token.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    !close && (!http10 || keep)
}

/// A response's head; `framing` of an interim one is `None`.
#[derive(Debug)]
pub(super) struct ParsedResponse {
    pub(super) head: ResponseHead,
    pub(super) framing: Framing,
    pub(super) keep_alive: bool,
}

/// Takes a response head off `read`, once all of it is there. `Err` is a reason for the log.
pub(super) fn take_response(
    read: &mut BytesMut,
    max_fields: usize,
    method: &Method,
) -> Result<Option<ParsedResponse>, String> {
    let Some(end) = head_end(read)? else { return Ok(None) };
    let bytes = read.split_to(end).freeze();
    with_slots(max_fields, |slots| parse_response(&bytes, slots, method)).map(Some)
}

fn parse_response<'b>(bytes: &'b Bytes, slots: &mut Slots<'b>, method: &Method) -> Result<ParsedResponse, String> {
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut response, bytes, slots) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err("the head is incomplete".to_owned()),
        Err(error) => return Err(error.to_string()),
    }
    let (Some(code), Some(version)) = (response.code, response.version) else {
        return Err("the status line is incomplete".to_owned());
    };
    let status = StatusCode::from_u16(code).map_err(|_| format!("{code} is no status"))?;
    let http10 = version == 0;
    let mut headers = header_map(bytes, response.headers)?;
    let framing = if status.is_informational() {
        // RFC 9110, section 8.6 and RFC 9112, section 6.1: no framing fields in 1xx.
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::TRANSFER_ENCODING);
        Framing::None
    } else {
        framing::of_response(&mut headers, http10, method, status).map_err(|ambiguous| match ambiguous {
            Ambiguous::Invalid(reason) => reason.to_owned(),
            Ambiguous::Unsupported => "an unknown transfer coding".to_owned(),
        })?
    };
    let keep_alive = persists(&headers, http10) && framing != Framing::UntilClose;
    let version = if http10 { HttpVersion::Http10 } else { HttpVersion::Http11 };
    Ok(ParsedResponse { head: ResponseHead { version, status, headers }, framing, keep_alive })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Option<ParsedRequest>, Refusal> {
        take_request(&mut BytesMut::from(text), 8192, 20, Scheme::Http)
    }

    fn status(text: &str) -> u16 {
        match parse(text) {
            Err(refusal) => refusal.status.as_u16(),
            other => panic!("{text:?} gave {other:?}"),
        }
    }

    /// Conduct, section 3: RFC 9112, sections 2.2, 3, 3.2, 5.1 and 5.2.
    #[test]
    fn the_desync_corpus_is_refused() {
        for text in [
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "G@T / HTTP/1.1\r\nHost: a\r\n\r\n ",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert!(matches!(status(text), 400), "{text:?}");
        }
        assert_eq!(status("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), 505);
        assert_eq!(status("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n"), 501);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(30))), 431);
        assert_eq!(status(&format!("GET /{} HTTP/1.1\r\n", "a".repeat(9000))), 414);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "a".repeat(9000))), 431);
    }

    #[test]
    fn forms_of_the_target() {
        let head = |text: &str| match parse(text) {
            Ok(Some(parsed)) => (parsed.head.authority.to_string(), parsed.head.target.as_str().to_owned()),
            other => panic!("{text:?} gave {other:?}"),
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(head("\r\nGET /a?b HTTP/1.1\r\nHost: A.example:80\r\n\r\n"), pair("a.example:80", "/a?b"));
        assert_eq!(head("GET http://B.example/x?y HTTP/1.1\r\nHost: a\r\n\r\n"), pair("b.example", "/x?y"));
        assert_eq!(head("GET http://b?y HTTP/1.1\r\nHost: a\r\n\r\n"), pair("b", "/?y"));
        assert_eq!(head("OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n"), pair("b", "*"));
        assert_eq!(head("OPTIONS * HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n"), pair("[::1]:8080", "*"));
        assert_eq!(head("GET / HTTP/1.0\r\n\r\n"), pair("", "/"));
        assert_eq!(head("GET /%2e%2e//a;b\\c HTTP/1.1\r\nHost: a\r\n\r\n"), pair("a", "/%2e%2e//a;b\\c"));
    }

    #[test]
    fn persistence() {
        let keeps = |text: &str| parse(text).ok().flatten().map(|parsed| parsed.keep_alive);
        assert_eq!(keeps("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Some(true));
        assert_eq!(keeps("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n"), Some(false));
        assert_eq!(keeps("GET / HTTP/1.0\r\n\r\n"), Some(false));
        assert_eq!(keeps("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"), Some(true));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = take_request(&mut BytesMut::from(&bytes[..]), 300, 10, Scheme::Http);
            let _ = take_response(&mut BytesMut::from(&bytes[..]), 10, &Method::GET);
            checked_authority(&bytes);
        }

        #[test]
        fn odd_fields_never_panic(name in "[ -~]{0,12}", value in "[\\x00-\\x7f]{0,30}") {
            let _ = parse(&format!("GET / HTTP/1.1\r\nHost: a\r\n{name}: {value}\r\n\r\n"));
        }
    }
}
