//! The facts a guest can read, and what each of them gives as bytes: answers are remembered by them, and they come along
//! with questions (`wit/README.md`, "Facts that come along").

use http::HeaderName;
use tidegate_policy::{Asked, AttemptFacts, EndpointsView, Proof};

use crate::chain::{put_address, put_element, put_ip};
use crate::host::nanos;
use crate::state::Facts;
use crate::types::Cause;

/// A fact a guest can read.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Read {
    ClientIp,
    Version,
    Method,
    Scheme,
    Authority,
    Path,
    Query,
    Header(HeaderName),
    HeaderValues(Box<str>),
    Headers,
    Cookie(Box<str>),
    Note(Box<str>),
    Peer,
    ConnectionClient,
    Local,
    Listener,
    ServerName,
    Alpn,
    ClientCertificate,
    ProxyTlv(u8),
    Received,
    Proposed,
    /// A number of the instance's generator.
    Random,
    Cluster,
    Generation,
    Size,
    /// Whether each endpoint is available, what is in flight at it, and its latency.
    Loads,
    /// The try that failed, but for its response's fields.
    Attempt,
    ResponseHeader(HeaderName),
}

/// Endpoints whose loads come along; of more, those that are looked at are fewer than those that are not.
const MAX_LOADS: usize = 8;

impl Read {
    /// Whether it stays as it is while the question is at hand and says the same when it is asked again, so that an answer
    /// can be remembered by it.
    pub(crate) fn is_stable(&self) -> bool {
        !matches!(
            self,
            Self::Random
                | Self::Cluster
                | Self::Generation
                | Self::Size
                | Self::Loads
                | Self::Attempt
                | Self::ResponseHeader(_)
        )
    }

    /// Its kind among the facts that come along, and its name there; `None` for one that does not.
    pub(crate) fn kind(&self) -> Option<(u8, &str)> {
        Some(match self {
            Self::ClientIp => (1, ""),
            Self::Version => (2, ""),
            Self::Method => (3, ""),
            Self::Scheme => (4, ""),
            Self::Authority => (5, ""),
            Self::Path => (6, ""),
            Self::Query => (7, ""),
            Self::Header(name) => (8, name.as_str()),
            Self::Cookie(name) => (9, name),
            Self::Note(name) => (10, name),
            Self::Peer => (11, ""),
            Self::ConnectionClient => (12, ""),
            Self::Local => (13, ""),
            Self::Listener => (14, ""),
            Self::ServerName => (15, ""),
            Self::Alpn => (16, ""),
            Self::Received => (17, ""),
            Self::Proposed => (18, ""),
            Self::Random => (19, ""),
            Self::Cluster => (20, ""),
            Self::Generation => (21, ""),
            Self::Size => (22, ""),
            Self::Loads => (23, ""),
            Self::Attempt => (24, ""),
            Self::ResponseHeader(name) => (25, name.as_str()),
            Self::HeaderValues(_) | Self::Headers | Self::ClientCertificate | Self::ProxyTlv(_) => return None,
        })
    }
}

/// Appends what `read` gives for these facts, such that different facts give different bytes.
///
/// # Returns
/// Whether it is a fact, present or absent, of this question. Chance is none.
pub(crate) fn value(read: &Read, facts: &Facts, granted: impl Fn(&str) -> bool, out: &mut Vec<u8>) -> bool {
    match read {
        Read::Random => false,
        Read::Cluster | Read::Generation | Read::Size | Read::Loads => {
            facts.endpoints.as_ref().is_some_and(|endpoints| put_endpoints(out, read, endpoints))
        }
        Read::Attempt => facts.attempt.as_ref().map(|attempt| put_attempt(out, attempt)).is_some(),
        Read::ResponseHeader(name) => {
            let headers = facts.attempt.as_ref().map(|attempt| &attempt.headers);
            let found = headers.filter(|_| granted(name.as_str())).and_then(|headers| headers.get(name));
            put_option(out, found.map(|value| value.as_bytes()));
            headers.is_some()
        }
        Read::Proposed => {
            let elements = facts.identity.as_ref().map(|identity| &identity.elements);
            elements.map(|elements| elements.iter().for_each(|element| put_element(out, element))).is_some()
        }
        of_request => facts.asked.as_ref().is_some_and(|asked| put_asked(out, of_request, asked, granted)),
    }
}

/// Whether it is a fact of the request or its connection.
fn put_asked(out: &mut Vec<u8>, read: &Read, asked: &Asked, granted: impl Fn(&str) -> bool) -> bool {
    let request = &asked.request;
    let listed = |out: &mut Vec<u8>, name: &[u8], value: &[u8]| {
        for part in [name, value] {
            out.extend_from_slice(&(part.len() as u32).to_le_bytes());
            out.extend_from_slice(part);
        }
    };
    match read {
        Read::ClientIp => put_ip(out, asked.client),
        Read::Version => out.push(request.version as u8),
        Read::Method => out.extend_from_slice(request.method.as_str().as_bytes()),
        Read::Scheme => out.push(request.scheme as u8),
        Read::Authority => out.extend_from_slice(request.authority.as_bytes()),
        Read::Path => out.extend_from_slice(request.target.path().as_bytes()),
        Read::Query => put_option(out, request.target.query().map(str::as_bytes)),
        Read::Header(name) => {
            let found = if granted(name.as_str()) { request.headers.get(name) } else { None };
            put_option(out, found.map(|value| value.as_bytes()));
        }
        Read::HeaderValues(name) => {
            if granted(name) {
                request.headers.get_all(&**name).iter().for_each(|value| listed(out, b"", value.as_bytes()));
            }
        }
        Read::Headers => {
            for (name, value) in request.headers.iter().filter(|(name, _)| granted(name.as_str())) {
                listed(out, name.as_str().as_bytes(), value.as_bytes());
            }
        }
        Read::Cookie(name) => {
            let found = if granted("cookie") { asked.cookie(name) } else { None };
            put_option(out, found.as_deref());
        }
        Read::Note(name) => put_option(out, asked.note(name).as_deref().map(str::as_bytes)),
        Read::Peer => put_address(out, asked.connection.peer),
        Read::ConnectionClient => put_address(out, asked.connection.client),
        Read::Local => put_address(out, asked.connection.local),
        Read::Listener => out.extend_from_slice(asked.connection.listener.as_bytes()),
        Read::ServerName => put_option(out, asked.connection.server_name.as_ref().map(|name| name.as_bytes().as_ref())),
        Read::Alpn => put_option(out, asked.connection.alpn.as_ref().map(|alpn| alpn.as_bytes().as_ref())),
        Read::ClientCertificate => put_option(out, asked.connection.client_certificate.as_deref()),
        Read::ProxyTlv(kind) => put_option(out, asked.connection.proxy_tlvs.get(*kind)),
        Read::Received => asked.received.iter().for_each(|element| put_element(out, element)),
        Read::Proposed
        | Read::Random
        | Read::Cluster
        | Read::Generation
        | Read::Size
        | Read::Loads
        | Read::Attempt
        | Read::ResponseHeader(_) => return false,
    }
    true
}

fn put_option(out: &mut Vec<u8>, value: Option<&[u8]>) {
    if let Some(value) = value {
        out.push(1);
        out.extend_from_slice(value);
    }
}

/// Whether it is among what comes along.
fn put_endpoints(out: &mut Vec<u8>, read: &Read, endpoints: &EndpointsView) -> bool {
    match read {
        Read::Cluster => out.extend_from_slice(endpoints.set.cluster.as_bytes()),
        Read::Generation => out.extend_from_slice(&endpoints.set.current_generation().to_le_bytes()),
        Read::Size => out.extend_from_slice(&(endpoints.len() as u32).to_le_bytes()),
        _ if endpoints.len() > MAX_LOADS => return false,
        _ => {
            for index in 0..endpoints.len() as u32 {
                out.push(endpoints.available(index).into());
                out.extend_from_slice(&endpoints.in_flight(index).to_le_bytes());
                out.extend_from_slice(&nanos(endpoints.latency(index)).to_le_bytes());
            }
        }
    }
    true
}

fn put_attempt(out: &mut Vec<u8>, attempt: &AttemptFacts) {
    out.extend_from_slice(&attempt.number.to_le_bytes());
    out.extend_from_slice(&attempt.endpoint.unwrap_or(u32::MAX).to_le_bytes());
    out.push(match attempt.proof {
        Proof::Unprocessed => 0,
        Proof::Idempotent => 1,
        Proof::Unsafe => 2,
    });
    out.extend_from_slice(&nanos(attempt.elapsed).to_le_bytes());
    out.extend_from_slice(&nanos(attempt.time_left).to_le_bytes());
    out.extend_from_slice(&attempt.retries_left.to_le_bytes());
    match Cause::of(attempt) {
        Cause::Connect => out.push(0),
        Cause::Tls => out.push(1),
        Cause::Reset => out.push(2),
        Cause::RefusedStream => out.push(3),
        Cause::GoAway => out.push(4),
        Cause::Timeout => out.push(5),
        Cause::Status(status) => {
            out.push(6);
            out.extend_from_slice(&status.to_le_bytes());
        }
        Cause::Other(text) => {
            out.push(7);
            put_option(out, text.as_deref().map(str::as_bytes));
        }
    }
}
