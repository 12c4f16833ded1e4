//! What a request must pass before anybody is asked about it: the right connection, not too many hops.

use bytes::BytesMut;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use tidegate_policy::{Cause, DirectResponse, Fault, RequestHead, Tunnel};

use crate::codec::Served;
use crate::snapshot::Snapshot;

/// How often a request may have come through a gateway of our name. Several tiers may share one; a loop has no end.
const MOST_PASSES: usize = 10;

/// Whether the request may go on.
pub(super) fn admit(served: &Served, request: &RequestHead, snapshot: &Snapshot) -> Result<(), Fault> {
    if let Some(tls) = served.listener.tls.as_ref().filter(|_| served.connection.tls)
        && !match request.tunnel {
            // The authority of a CONNECT is where the tunnel leads, not whom the client believes to speak to; but neither
            // is it a way round the client certificate of a name that is served here.
            Some(Tunnel::Connect) => tls.asked_as(served.connection.server_name.as_deref(), request.host()),
            _ => tls.covers(served.connection.server_name.as_deref(), request.host()),
        }
    {
        // RFC 9110, section 7.4 and 15.5.20: else a client could reach one name with the handshake for another, past
        // what that name's handshake would have asked of it.
        let detail = format!("{:?} on a connection for {:?}", request.authority, served.connection.server_name);
        return Err(Fault::new(Cause::Misdirected, detail));
    }
    if passes(&request.headers, snapshot.via.pseudonym()) > MOST_PASSES {
        return Err(Fault::new(Cause::Loop, "Via names this gateway too often"));
    }
    Ok(())
}

/// How many members of `Via` are ours (RFC 9110, section 7.6.3).
pub(super) fn passes(headers: &HeaderMap, pseudonym: &str) -> usize {
    let ours = |member: &&[u8]| {
        let mut words = member.split(|b| b.is_ascii_whitespace()).filter(|word| !word.is_empty());
        words.nth(1).is_some_and(|by| by.eq_ignore_ascii_case(pseudonym.as_bytes()))
    };
    let values = headers.get_all(header::VIA).iter();
    values.map(|value| value.as_bytes().split(|b| *b == b',').filter(ours).count()).sum()
}

/// What `Max-Forwards` asks of a TRACE or OPTIONS (RFC 9110, section 7.6.2).
#[derive(Debug)]
pub(super) enum Hops {
    /// Nothing: another method, no such field, or none that counts.
    Any,
    /// Goes on with this value.
    Left(u64),
    /// Ends here, with this answer.
    Ended(DirectResponse),
}

pub(super) fn max_forwards(request: &RequestHead) -> Hops {
    if request.method != Method::TRACE && request.method != Method::OPTIONS {
        return Hops::Any;
    }
    let Some(value) = request.headers.get(header::MAX_FORWARDS) else { return Hops::Any };
    let text = value.as_bytes();
    if text.is_empty() || text.len() > 18 || !text.iter().all(u8::is_ascii_digit) {
        return Hops::Any;
    }
    match text.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0')) {
        0 => Hops::Ended(last_hop(request)),
        hops => Hops::Left(hops - 1),
    }
}

/// The answer of the last hop: for TRACE what was received, without what could be a secret (RFC 9110, section 9.3.8).
fn last_hop(request: &RequestHead) -> DirectResponse {
    let mut headers = HeaderMap::new();
    let mut body = BytesMut::new();
    if request.method == Method::TRACE {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("message/http"));
        body.extend_from_slice(
            format!("TRACE {} HTTP/{}\r\n", request.target.as_str(), request.version.name()).as_bytes(),
        );
        body.extend_from_slice(format!("host: {}\r\n", request.authority).as_bytes());
        const SECRET: [header::HeaderName; 3] = [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION];
        for (name, value) in request.headers.iter().filter(|(name, _)| !SECRET.contains(name)) {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                body.extend_from_slice(part);
            }
        }
        body.extend_from_slice(b"\r\n");
    }
    DirectResponse { status: StatusCode::OK, headers, body: body.freeze() }
}

#[cfg(test)]
mod tests {
    use tidegate_policy::contract::asked_with;

    use super::*;

    #[test]
    fn our_own_passes_are_counted_in_every_form_of_via() {
        let mut headers = HeaderMap::new();
        for value in ["1.1 tidegate, HTTP/2 TideGate (x, y)", "2 other", "tidegate", "3  tidegate"] {
            headers.append("via", HeaderValue::from_static(value));
        }
        assert_eq!(passes(&headers, "tidegate"), 3);
    }

    /// RFC 9110, section 7.6.2.
    #[test]
    fn max_forwards_counts_for_two_methods() {
        let hops =
            |method: &str, value: &str| max_forwards(&asked_with(method, "/x", &[("max-forwards", value)]).request);
        assert!(matches!(hops("GET", "0"), Hops::Any));
        assert!(matches!(hops("OPTIONS", "junk"), Hops::Any));
        assert!(matches!(hops("OPTIONS", "3"), Hops::Left(2)));
        assert!(matches!(hops("OPTIONS", "0"), Hops::Ended(answer) if answer.body.is_empty()));
        let request = asked_with("TRACE", "/x", &[("max-forwards", "0"), ("x-a", "b"), ("cookie", "secret=1")]);
        let Hops::Ended(answer) = max_forwards(&request.request) else { panic!("it ends here") };
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(text.starts_with("TRACE /x HTTP/1.1\r\nhost: ") && text.contains("x-a: b\r\n"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}
