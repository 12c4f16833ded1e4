//! Field sections become heads, and heads become field sections (RFC 9114, sections 4.2 and 4.3). What HTTP/2 requests
//! must keep to as well is checked by `codec::pseudo`.

use bytes::{Bytes, BytesMut};
use h2::ext::Protocol;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use tidegate_policy::{Tunnel, is_token};

use super::frame::{self, Violation};
use super::qpack::{self, Field, Fields};
use crate::body::Length;
use crate::codec::pseudo::{Refused, is_connection_specific};
use crate::exchange::OutgoingHead;

/// Why a section is not taken.
#[derive(Debug)]
pub(super) enum Wrong {
    /// An error of the connection.
    Violation(Violation),
    /// An error of the stream: H3_MESSAGE_ERROR.
    Malformed(&'static str),
    TooLarge,
}

impl From<qpack::Error> for Wrong {
    fn from(error: qpack::Error) -> Self {
        match error {
            qpack::Error::Decompression => {
                let reason = "a field section that cannot be decoded";
                Self::Violation(Violation::new(h3::error::Code::QPACK_DECOMPRESSION_FAILED, reason))
            }
            qpack::Error::TooLarge => Self::TooLarge,
        }
    }
}

/// What a section may hold.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// Octets as section 4.2.2 counts them.
    pub(super) size: usize,
    pub(super) fields: usize,
}

#[derive(Default)]
struct Pseudo {
    method: Option<Bytes>,
    scheme: Option<Bytes>,
    authority: Option<Bytes>,
    path: Option<Bytes>,
    protocol: Option<Bytes>,
    status: Option<Bytes>,
}

/// Decodes a section; pseudo-header fields come first, once each, and no others than those of section 4.3.
fn decode(section: Bytes, bounds: Bounds) -> Result<(Pseudo, HeaderMap), Wrong> {
    let mut fields = Fields::new(section, bounds.size)?;
    let mut pseudo = Pseudo::default();
    let mut headers = HeaderMap::new();
    while let Some(field) = fields.next()? {
        let (name, value) = match field {
            Field::Static(name, value) => (name.clone(), value.clone()),
            Field::Named(name, octets, sensitive) => (name.clone(), value(octets, sensitive)?),
            Field::Literal(name, octets, sensitive) => {
                if name.first() == Some(&b':') {
                    if !headers.is_empty() {
                        return Err(Wrong::Malformed("a pseudo-header field after a regular one"));
                    }
                    pseudo.take(&name, octets)?;
                    continue;
                }
                // Section 4.2: a name with an upper-case letter is malformed, and so is one that is no token.
                let name = HeaderName::from_lowercase(&name).ok().filter(is_token);
                let name = name.ok_or(Wrong::Malformed("a field name"))?;
                (name, value(octets, sensitive)?)
            }
        };
        if headers.len() >= bounds.fields || headers.try_append(name, value).is_err() {
            return Err(Wrong::TooLarge);
        }
    }
    if headers.keys().any(is_connection_specific) {
        return Err(Wrong::Malformed("a connection-specific field"));
    }
    Ok((pseudo, headers))
}

fn value(octets: Bytes, sensitive: bool) -> Result<HeaderValue, Wrong> {
    let mut value = HeaderValue::from_maybe_shared(octets).map_err(|_| Wrong::Malformed("a field value"))?;
    value.set_sensitive(sensitive);
    Ok(value)
}

impl Pseudo {
    fn take(&mut self, name: &[u8], value: Bytes) -> Result<(), Wrong> {
        let place = match name {
            b":method" => &mut self.method,
            b":scheme" => &mut self.scheme,
            b":authority" => &mut self.authority,
            b":path" => &mut self.path,
            b":protocol" => &mut self.protocol,
            b":status" => &mut self.status,
            _ => return Err(Wrong::Malformed("an unknown pseudo-header field")),
        };
        match place.replace(value) {
            None => Ok(()),
            Some(_) => Err(Wrong::Malformed("a pseudo-header field occurs twice")),
        }
    }
}

/// The head of a request. `:protocol` (RFC 9220) becomes the extension that the `h2` crate uses, so that both versions
/// look alike.
pub(super) fn request(section: Bytes, bounds: Bounds) -> Result<Parts, Wrong> {
    let (pseudo, headers) = decode(section, bounds)?;
    let Pseudo { method, scheme, authority, path, protocol, status } = pseudo;
    if status.is_some() {
        return Err(Wrong::Malformed(":status in a request"));
    }
    let method = method.ok_or(Wrong::Malformed("no :method"))?;
    let method = Method::from_bytes(&method).map_err(|_| Wrong::Malformed(":method is no token"))?;
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.version = http::Version::HTTP_3;
    let mut uri = http::uri::Parts::default();
    uri.authority = match authority {
        Some(authority) => Some(authority_of(authority)?),
        // Section 4.3.1: Host may stand in for it. An authority is needed to make a URI.
        None => match headers.get(header::HOST) {
            Some(host) => Some(authority_of(Bytes::copy_from_slice(host.as_bytes()))?),
            None => return Err(Wrong::Malformed("neither :authority nor host")),
        },
    };
    if method == Method::CONNECT && protocol.is_none() {
        // Section 4.4.
        if scheme.is_some() || path.is_some() {
            return Err(Wrong::Malformed("CONNECT with :scheme or :path"));
        }
    } else {
        let scheme = scheme.ok_or(Wrong::Malformed("no :scheme"))?;
        uri.scheme = Some(Scheme::try_from(&scheme[..]).map_err(|_| Wrong::Malformed(":scheme is invalid"))?);
        let path = path.filter(|path| !path.is_empty()).ok_or(Wrong::Malformed("no :path"))?;
        let length = path.len();
        let path = PathAndQuery::from_maybe_shared(path).map_err(|_| Wrong::Malformed(":path is invalid"))?;
        // The crate cuts off what follows a `#`.
        if path.as_str().len() != length {
            return Err(Wrong::Malformed(":path is invalid"));
        }
        uri.path_and_query = Some(path);
    }
    if let Some(protocol) = protocol {
        // RFC 9220, section 3; RFC 8441, section 4.
        let protocol = std::str::from_utf8(&protocol).map_err(|_| Wrong::Malformed(":protocol is no token"))?;
        if method != Method::CONNECT {
            return Err(Wrong::Malformed(":protocol without CONNECT"));
        }
        parts.extensions.insert(Protocol::from(protocol));
    }
    parts.uri = Uri::from_parts(uri).map_err(|_| Wrong::Malformed("the request target is invalid"))?;
    parts.method = method;
    parts.headers = headers;
    Ok(parts)
}

fn authority_of(text: Bytes) -> Result<Authority, Wrong> {
    Authority::from_maybe_shared(text).map_err(|_| Wrong::Malformed(":authority is invalid"))
}

/// The head of a response, interim or final.
pub(super) fn response(section: Bytes, bounds: Bounds) -> Result<(StatusCode, HeaderMap), Wrong> {
    let (pseudo, headers) = decode(section, bounds)?;
    match pseudo {
        Pseudo { status: Some(status), method: None, scheme: None, authority: None, path: None, protocol: None } => {
            let status = StatusCode::from_bytes(&status).map_err(|_| Wrong::Malformed(":status is no status"))?;
            Ok((status, headers))
        }
        _ => Err(Wrong::Malformed("a response without :status, or with more than it")),
    }
}

/// Section 4.3: trailers have no pseudo-header fields.
pub(super) fn trailers(section: Bytes, bounds: Bounds) -> Result<HeaderMap, Wrong> {
    match decode(section, bounds)? {
        (Pseudo { method: None, scheme: None, authority: None, path: None, protocol: None, status: None }, headers) => {
            Ok(headers)
        }
        _ => Err(Wrong::Malformed("a pseudo-header field in trailers")),
    }
}

/// How a request that is not taken is answered.
pub(super) fn refused(wrong: &Wrong) -> Option<Refused> {
    match wrong {
        Wrong::Violation(_) => None,
        Wrong::Malformed(reason) => Some(Refused::Malformed(reason)),
        Wrong::TooLarge => Some(Refused::Status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too large")),
    }
}

/// A HEADERS frame being written: the section behind room for the frame's header, which tells its length.
struct Encoding {
    out: BytesMut,
    size: usize,
}

impl Encoding {
    fn new() -> Self {
        let mut out = BytesMut::with_capacity(512);
        out.resize(frame::LONGEST_HEADER, 0);
        qpack::begin(&mut out);
        Self { out, size: 0 }
    }

    fn field(&mut self, name: &str, value: &[u8], sensitive: bool) {
        self.size += qpack::encode(&mut self.out, name, value, sensitive);
    }

    fn header(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.field(name.as_str(), value.as_bytes(), value.is_sensitive());
    }

    /// The frame; `None` when the peer does not want one of its size (section 4.2.2).
    fn frame(mut self, wanted: Option<u64>) -> Option<Bytes> {
        if wanted.is_some_and(|wanted| self.size as u64 > wanted) {
            return None;
        }
        let mut header = BytesMut::with_capacity(frame::LONGEST_HEADER);
        frame::write_header(&mut header, frame::HEADERS, self.out.len() - frame::LONGEST_HEADER);
        let begin = frame::LONGEST_HEADER - header.len();
        self.out[begin..frame::LONGEST_HEADER].copy_from_slice(&header);
        Some(self.out.split_off(begin).freeze())
    }
}

/// The HEADERS frame of a response. `None`: it is larger than the peer wants.
pub(super) fn response_frame(status: StatusCode, headers: &HeaderMap, wanted: Option<u64>) -> Option<Bytes> {
    let mut encoding = Encoding::new();
    encoding.field(":status", status.as_str().as_bytes(), false);
    for (name, value) in headers {
        encoding.header(name, value);
    }
    encoding.frame(wanted)
}

/// The HEADERS frame of trailers.
pub(super) fn trailers_frame(trailers: &HeaderMap, wanted: Option<u64>) -> Option<Bytes> {
    let mut encoding = Encoding::new();
    for (name, value) in trailers {
        encoding.header(name, value);
    }
    encoding.frame(wanted)
}

/// The HEADERS frame of a request to an origin.
pub(super) fn request_frame(head: &OutgoingHead, length: Length, wanted: Option<u64>) -> Option<Bytes> {
    let mut encoding = Encoding::new();
    if head.upgrade.is_some() {
        // RFC 9220, section 3: no key, no Connection, no Upgrade.
        encoding.field(":method", Method::CONNECT.as_str().as_bytes(), false);
        encoding.field(":protocol", Tunnel::WebSocket.name().as_bytes(), false);
    } else {
        encoding.field(":method", head.method.as_str().as_bytes(), false);
    }
    encoding.field(":scheme", head.scheme.as_str().as_bytes(), false);
    encoding.field(":authority", head.authority.as_bytes(), false);
    encoding.field(":path", head.target.as_bytes(), false);
    head.for_each(|name, value| encoding.header(name, value));
    if let Length::Known(length) = length {
        encoding.header(&header::CONTENT_LENGTH, &HeaderValue::from(length));
    }
    encoding.frame(wanted)
}

#[cfg(test)]
mod tests;
