//! The heads of connections, requests and responses: what the codecs produce and policies read.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use http::{HeaderMap, HeaderName, Method, StatusCode};

use crate::ProxyTlvs;

/// Whether a byte may be part of a token: `tchar` (RFC 9110, section 5.6.2).
pub fn is_tchar(byte: u8) -> bool {
    const TCHAR: [bool; 256] = {
        let mut table = [false; 256];
        let marks = b"!#$%&'*+-.^_`|~";
        let mut at = 0;
        while at < 256 {
            table[at] = (at as u8).is_ascii_alphanumeric();
            at += 1;
        }
        at = 0;
        while at < marks.len() {
            table[marks[at] as usize] = true;
            at += 1;
        }
        table
    };
    TCHAR[usize::from(byte)]
}

/// Whether a field's name is a token (RFC 9110, section 5.6.2). `HeaderName::from_lowercase`, by which names of HTTP/2 and HTTP/3
/// are read, takes a double quote for part of one; HTTP/1 does not, so it must not come in by another version.
pub fn is_token(name: &HeaderName) -> bool {
    !name.as_str().as_bytes().contains(&b'"')
}

/// The version of HTTP a message came in, or goes out with.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum HttpVersion {
    Http10,
    Http11,
    Http2,
    Http3,
}

impl HttpVersion {
    /// The name in `Via` and in logs: `1.0`, `1.1`, `2`, `3` (RFC 9110, section 7.6.3).
    pub fn name(self) -> &'static str {
        match self {
            Self::Http10 => "1.0",
            Self::Http11 => "1.1",
            Self::Http2 => "2",
            Self::Http3 => "3",
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Path and query exactly as received: never decoded, never normalised, so that what is matched is what is forwarded.
///
/// Codecs hand over visible ASCII only (0x21 to 0x7e, no `#`), starting with `/`, or the lone `*` of `OPTIONS *`,
/// or nothing for `CONNECT`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Target {
    text: ByteString,
    query_at: Option<u32>,
}

impl Target {
    /// Splits at the first `?`. The caller has checked the characters.
    pub fn new(text: ByteString) -> Self {
        let query_at = text.as_bytes().iter().position(|b| *b == b'?').map(|at| at as u32);
        Self { text, query_at }
    }

    /// `path`, or `path?query`.
    pub fn from_parts(path: &str, query: Option<&str>) -> Self {
        match query {
            Some(query) => Self::new(format!("{path}?{query}").into()),
            None => Self::new(path.into()),
        }
    }

    /// Path and query as on the wire.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn path(&self) -> &str {
        match self.query_at {
            Some(at) => &self.text[..at as usize],
            None => &self.text,
        }
    }

    /// Without the `?`; `Some("")` for a bare `?`.
    pub fn query(&self) -> Option<&str> {
        self.query_at.map(|at| &self.text[at as usize + 1..])
    }
}

/// What is known of a downstream connection once it is accepted, and its TLS handshake done.
#[derive(Clone, Debug)]
pub struct ConnectionHead {
    /// Names this connection among all of all gateways: random.
    pub id: u128,
    /// The other end of the socket.
    pub peer: SocketAddr,
    /// Whom the core takes for the client of this connection: the source in a trusted peer's PROXY header, else the peer.
    pub client: SocketAddr,
    /// Where the client connected to: the destination in that header, else this end of the socket.
    pub local: SocketAddr,
    /// The fields of that header.
    pub proxy_tlvs: ProxyTlvs,
    pub listener: Arc<str>,
    /// Whether the client speaks TLS (or QUIC) to us.
    pub tls: bool,
    /// As OpenSSL writes it: `TLSv1.3`.
    pub tls_version: Option<&'static str>,
    /// The name in the TLS ClientHello, lower case.
    pub server_name: Option<ByteString>,
    pub alpn: Option<ByteString>,
    /// DER of the client certificate that was verified.
    pub client_certificate: Option<Bytes>,
    /// DER of those that came with it.
    pub client_chain: Box<[Bytes]>,
}

/// What a request asks its connection or stream to become, once an upstream accepts: bytes both ways, no messages.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Tunnel {
    /// RFC 6455; `:protocol` in HTTP/2 and HTTP/3 (RFC 8441, RFC 9220). Its method is `GET` in every version, so that
    /// routes and policies see one kind of request.
    WebSocket,
    /// `CONNECT` without a protocol (RFC 9110, section 9.3.6): a target of no path, an authority with a port.
    Connect,
    /// `connect-udp` (RFC 9298), by `Upgrade` or `:protocol`; its method is `GET` in HTTP/2 and HTTP/3 too. What comes and
    /// goes are capsules and datagrams (RFC 9297) that carry UDP payloads.
    ConnectUdp,
}

impl Tunnel {
    /// The name in logs and metric labels; an upgrade token too, but for `CONNECT`, which has none.
    pub fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Connect => "connect",
            Self::ConnectUdp => "connect-udp",
        }
    }
}

/// A request's head, the same for every version of HTTP. `headers` never holds `Host` (it is in `authority`).
#[derive(Clone, Debug)]
pub struct RequestHead {
    pub version: HttpVersion,
    pub method: Method,
    pub scheme: Scheme,
    /// Host and optional port, lower case, without userinfo. Empty only for an HTTP/1.0 request without `Host`.
    pub authority: ByteString,
    pub target: Target,
    /// Names lower case, framing already taken out: `content-length` stays, `transfer-encoding` is gone.
    pub headers: HeaderMap,
    /// What the client asks for; the route may know better.
    pub tunnel: Option<Tunnel>,
}

impl RequestHead {
    /// The host without port and IPv6 brackets kept, for route matching.
    pub fn host(&self) -> &str {
        let authority: &str = &self.authority;
        if let Some(end) = authority.strip_prefix('[').and_then(|rest| rest.find(']')) {
            return &authority[..end + 2];
        }
        authority.split(':').next().unwrap_or_default()
    }

    /// The port, where the authority has one.
    pub fn port(&self) -> Option<u16> {
        self.authority.get(self.host().len()..)?.strip_prefix(':')?.parse().ok()
    }

    /// Whether a 2xx would open a tunnel: for every `CONNECT`, and every request for a protocol but those of HTTP/1.1,
    /// which has 101 for that (RFC 9110, section 9.3.6; RFC 8441, section 4).
    pub fn opened_by_success(&self) -> bool {
        match self.tunnel {
            None => false,
            Some(Tunnel::Connect) => true,
            Some(Tunnel::WebSocket | Tunnel::ConnectUdp) => {
                matches!(self.version, HttpVersion::Http2 | HttpVersion::Http3)
            }
        }
    }
}

/// A response's head, interim or final.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    pub version: HttpVersion,
    pub status: StatusCode,
    pub headers: HeaderMap,
}
