//! Heads from bytes and back: httparse for the grammar, and the checks it leaves to its callers.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use tidegate_policy::{HttpVersion, RequestHead, ResponseHead, Scheme, Tunnel, is_tchar};

use super::framing::{self, Ambiguous, Framing};
use super::target::{effective_target, take_host};

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

    pub(super) fn bad(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::bad(reason)
    }
}

/// Where a header section ends, looked for in what has come of it so far. Goes on at the line where it stopped: a head
/// that drips in is not read again from its first byte for every packet.
#[derive(Debug, Default)]
pub(super) struct SectionScan {
    /// Where the line begins whose end has not come.
    line: usize,
}

#[derive(Debug, Eq, PartialEq)]
pub(super) enum Section {
    /// Of this length, its empty line included.
    Whole(usize),
    More,
    /// No end within the bound.
    TooLarge,
}

impl SectionScan {
    /// Looks at no more than `most` bytes, so that the answer is the same for every way the bytes may arrive. Lines end
    /// with CRLF and nothing else: a bare line feed is where two parsers part ways (RFC 9112, section 2.2).
    pub(super) fn find(&mut self, read: &[u8], most: usize) -> Result<Section, String> {
        let seen = &read[..read.len().min(most)];
        while let Some(length) = seen.get(self.line..).and_then(|rest| memchr::memchr(b'\n', rest)) {
            let end = self.line + length;
            if length == 0 || seen[end - 1] != b'\r' {
                return Err("a line ends with a bare line feed".to_owned());
            }
            if length == 1 {
                self.line = 0;
                return Ok(Section::Whole(end + 1));
            }
            self.line = end + 1;
        }
        Ok(if read.len() >= most { Section::TooLarge } else { Section::More })
    }

    /// Whether the first line has come.
    fn past_start_line(&self) -> bool {
        self.line > 0
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

/// Takes a request head off `read`, once all of it is there. `scan` goes with `read` from call to call.
pub(super) fn take_request(
    read: &mut BytesMut,
    scan: &mut SectionScan,
    max_bytes: usize,
    max_fields: usize,
    scheme: Scheme,
) -> Result<Option<ParsedRequest>, Refusal> {
    let blank = leading_blank(read);
    let section = &read[blank..];
    match section {
        [] => return Ok(None),
        [b'\r'] if blank == 0 => return Ok(None),
        [0x16, ..] => return Err(Refusal::bad("a TLS hello on a listener without tls")),
        // Whoever does not begin with a method speaks something else: no need to wait for more of it.
        [first, ..] if !is_tchar(*first) => return Err(Refusal::bad("what came does not begin with a method")),
        _ => {}
    }
    let end = match scan.find(section, max_bytes)? {
        Section::Whole(end) => end,
        Section::More => return Ok(None),
        Section::TooLarge if scan.past_start_line() => {
            // RFC 6585, section 5.
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return Err(Refusal::new(status, "the request head is too large"));
        }
        Section::TooLarge => return Err(Refusal::new(StatusCode::URI_TOO_LONG, "the request line is too long")),
    };
    read.advance(blank);
    let bytes = read.split_to(end).freeze();
    with_slots(max_fields, |slots| parse_request(&bytes, slots, scheme)).map(Some)
}

/// The length of one empty line before a request, which a robust server skips (RFC 9112, section 2.2): some clients end
/// a body with it.
fn leading_blank(read: &[u8]) -> usize {
    if read.starts_with(b"\r\n") { 2 } else { 0 }
}

/// Whether `read` has nothing of a request yet.
pub(super) fn is_blank(read: &[u8]) -> bool {
    b"\r\n".starts_with(read)
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
    if !request.headers.iter().all(|field| is_plain(bytes, field)) {
        return Err(Refusal::bad("transfer-encoding with odd white space"));
    }
    let mut headers = header_map(bytes, request.headers)?;
    let host = take_host(&mut headers, http10)?;
    let (scheme, authority, target) = effective_target(&method, target, host, scheme)?;
    let framing = framing::of_request(&mut headers, http10).map_err(|ambiguous| match ambiguous {
        Ambiguous::Invalid(reason) => Refusal::bad(reason),
        Ambiguous::Unsupported => Refusal::new(StatusCode::NOT_IMPLEMENTED, "an unknown transfer coding"),
    })?;
    let tunnel = asked_tunnel(&method, http10, &headers);
    // What a client sends after a CONNECT, or capsules that it did not wait with, if it is refused was meant for someone
    // else: it must not be taken for a request.
    let keep_alive = persists(&headers, http10) && !matches!(tunnel, Some(Tunnel::Connect | Tunnel::ConnectUdp));
    let version = if http10 { HttpVersion::Http10 } else { HttpVersion::Http11 };
    let head = RequestHead { version, method, scheme, authority, target, headers, tunnel };
    Ok(ParsedRequest { head, framing, keep_alive })
}

/// Whether `field`, if it is `transfer-encoding`, is written as everybody writes it. White space around a value means
/// nothing (RFC 9110, section 5.5), but there are servers that then miss the field, and smugglers who know them.
fn is_plain(head: &[u8], field: &httparse::Header<'_>) -> bool {
    if !field.name.eq_ignore_ascii_case("transfer-encoding") {
        return true;
    }
    let start = field.value.as_ptr().addr().wrapping_sub(head.as_ptr().addr());
    let (Some(before), Some(after)) = (head.get(..start), head.get(start + field.value.len()..)) else { return false };
    matches!(before, [.., b':'] | [.., b':', b' ']) && after.starts_with(b"\r\n")
}

fn names_a_version(head: &[u8]) -> bool {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|b| *b == b' ');
    words.nth(2).is_some_and(|version| version.starts_with(b"HTTP/")) && words.next().is_none()
}

/// RFC 9112, section 9.3.
fn persists(headers: &HeaderMap, http10: bool) -> bool {
    !lists(headers, &header::CONNECTION, "close") && (!http10 || lists(headers, &header::CONNECTION, "keep-alive"))
}

/// Whether a field that is a list of tokens has this one, in any spelling.
pub(super) fn lists(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    let mut tokens = headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
}

/// What the request asks this connection to become. Of the protocols in `Upgrade` WebSocket and connect-udp are those for
/// a gateway; `h2c` and others are left out like every hop-by-hop field, and the request goes on without them (RFC 9110,
/// section 7.8). HTTP/1.0 has none.
fn asked_tunnel(method: &Method, http10: bool, headers: &HeaderMap) -> Option<Tunnel> {
    if method == Method::CONNECT {
        return Some(Tunnel::Connect);
    }
    let upgrades = !http10 && headers.contains_key(header::UPGRADE) && lists(headers, &header::CONNECTION, "upgrade");
    if !upgrades {
        return None;
    }
    let asks = |tunnel: &Tunnel| lists(headers, &header::UPGRADE, tunnel.name());
    // With another method connect-udp is malformed (RFC 9298, section 3.2), which the exchange answers for.
    Some(Tunnel::WebSocket)
        .filter(|websocket| method == Method::GET && asks(websocket))
        .or(Some(Tunnel::ConnectUdp).filter(asks))
}

/// A response's head; `framing` of an interim one is `None`.
#[derive(Debug)]
pub(super) struct ParsedResponse {
    pub(super) head: ResponseHead,
    pub(super) framing: Framing,
    pub(super) keep_alive: bool,
}

/// Why a response head cannot be used; the words are for the log.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum BadResponse {
    TooLarge,
    Invalid(String),
}

impl From<String> for BadResponse {
    fn from(reason: String) -> Self {
        Self::Invalid(reason)
    }
}

/// Takes a response head off `read`, once all of it is there. `scan` goes with `read` from call to call.
pub(super) fn take_response(
    read: &mut BytesMut,
    scan: &mut SectionScan,
    max_bytes: usize,
    max_fields: usize,
    method: &Method,
) -> Result<Option<ParsedResponse>, BadResponse> {
    // An origin that speaks something else is found out at once, not when its time is over.
    const BEGINNING: &[u8] = b"HTTP/1.";
    if !read.iter().zip(BEGINNING).all(|(came, wanted)| came == wanted) {
        return Err(BadResponse::Invalid("what came does not begin with HTTP/1".to_owned()));
    }
    let end = match scan.find(read, max_bytes)? {
        Section::Whole(end) => end,
        Section::More => return Ok(None),
        Section::TooLarge => return Err(BadResponse::TooLarge),
    };
    let bytes = read.split_to(end).freeze();
    Ok(with_slots(max_fields, |slots| parse_response(&bytes, slots, method)).map(Some)?)
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
mod tests;
