//! From a case to the facts that the runtime's traits are asked with.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytestring::ByteString;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tidegate_policy::native::parse_forwarded;
use tidegate_policy::{
    Asked, AttemptFacts, CalloutError, CalloutResponse, Cause, ConnectionHead, Element, Endpoint, EndpointSet,
    EndpointsView, Families, HttpVersion, Identity, Proof, ProxyTlvs, RequestHead, Scheme, SetHealth, Target, Tunnel,
};
use tidegate_wasm::Scripted;

use super::format::{self, CallError, Case, Failure, Family, Respond, Safety, Values};
use crate::words::Question;

pub(super) fn asked(case: &Case, question: Question) -> Result<Rc<Asked>, String> {
    let request = &case.request;
    let scheme = match request.scheme.as_str() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => return Err(format!("request.scheme: {other:?} is neither http nor https")),
    };
    let version = match request.version.as_str() {
        "1.0" => HttpVersion::Http10,
        "1.1" => HttpVersion::Http11,
        "2" => HttpVersion::Http2,
        "3" => HttpVersion::Http3,
        other => return Err(format!("request.version: {other:?} is not 1.0, 1.1, 2 or 3")),
    };
    let visible = |text: &str| text.bytes().all(|b| (0x21..=0x7e).contains(&b) && b != b'#');
    if !visible(&request.path) || request.path.contains('?') {
        return Err(format!("request.path: {:?} is no path; a query has a key of its own", request.path));
    }
    if !request.query.as_deref().is_none_or(visible) {
        return Err(format!("request.query: {:?} is no query", request.query));
    }
    let connection = &case.connection;
    let tls = scheme == Scheme::Https;
    Ok(Rc::new(Asked {
        connection: Rc::new(ConnectionHead {
            id: 1,
            peer: connection.peer,
            client: connection.client.unwrap_or(connection.peer),
            local: connection.local,
            proxy_tlvs: proxy_tlvs(&connection.proxy_tlvs)?,
            listener: connection.listener.as_str().into(),
            tls,
            tls_version: tls.then_some("TLSv1.3"),
            server_name: connection.server_name.as_deref().map(Into::into),
            alpn: connection.alpn.as_deref().map(Into::into),
            client_certificate: None,
            client_chain: Box::default(),
        }),
        request: if question == Question::TunnelRouter {
            connect(connection.server_name.as_deref())
        } else {
            RequestHead {
                version,
                method: Method::from_bytes(request.method.as_bytes())
                    .map_err(|_| format!("request.method: {:?} is no method", request.method))?,
                scheme,
                authority: ByteString::from(request.authority.as_str()),
                target: Target::from_parts(&request.path, request.query.as_deref()),
                headers: headers("request", &request.headers)?,
                tunnel: None,
            }
        },
        client: request.client,
        received: chain("identity.received", &case.identity.received)?,
        draw: 0,
        notes: RefCell::new(request.notes.iter().map(|(name, value)| (name.clone(), value.clone())).collect()),
    }))
}

/// What the gateway makes of a connection that it does not decrypt.
fn connect(server_name: Option<&str>) -> RequestHead {
    RequestHead {
        version: HttpVersion::Http11,
        method: Method::CONNECT,
        scheme: Scheme::Https,
        authority: ByteString::from(server_name.unwrap_or_default()),
        target: Target::new(ByteString::new()),
        headers: HeaderMap::new(),
        tunnel: Some(Tunnel::Connect),
    }
}

/// The block of a PROXY header's fields.
fn proxy_tlvs(values: &BTreeMap<String, String>) -> Result<ProxyTlvs, String> {
    let mut block = Vec::new();
    for (kind, value) in values {
        let number = match kind.strip_prefix("0x") {
            Some(digits) => u8::from_str_radix(digits, 16),
            None => kind.parse(),
        };
        let number = number.map_err(|_| format!("connection.proxy_tlvs: {kind:?} is no type: write 234 or 0xea"))?;
        let length = u16::try_from(value.len())
            .map_err(|_| format!("connection.proxy_tlvs.{kind}: its value is longer than 65535 bytes"))?;
        block.push(number);
        block.extend_from_slice(&length.to_be_bytes());
        block.extend_from_slice(value.as_bytes());
    }
    ProxyTlvs::new(block.into()).map_err(|error| format!("connection.proxy_tlvs: {error}"))
}

fn headers(place: &str, fields: &BTreeMap<String, Values>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, values) in fields {
        let key = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("{place}.headers: {name:?} is no field name"))?;
        for value in values.iter() {
            let value = HeaderValue::from_bytes(value.as_bytes())
                .map_err(|_| format!("{place}.headers.{name}: {value:?} is no field value"))?;
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}

/// A value of `Forwarded`; empty: no hop.
pub(super) fn chain(place: &str, value: &str) -> Result<Vec<Element>, String> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let elements: Option<Vec<_>> = parse_forwarded(value.as_bytes()).into_iter().collect();
    elements.ok_or_else(|| format!("{place}: {value:?} is no value of Forwarded (RFC 7239)"))
}

pub(super) fn endpoints(case: &Case) -> EndpointsView {
    let now = case.clock.monotonic;
    let endpoint = |of: &format::Endpoint| {
        let state: Arc<tidegate_policy::EndpointState> = Arc::default();
        (0..of.in_flight).for_each(|_| state.begin());
        state.sample_latency(now, of.latency);
        let label = |(name, value): (&String, &String)| (name.as_str().into(), value.as_str().into());
        Endpoint {
            address: of.address,
            weight: of.weight,
            zone: of.zone.as_deref().map(Into::into),
            labels: of.labels.iter().map(label).collect(),
            max_requests: u32::MAX,
            state,
        }
    };
    let set = EndpointSet {
        cluster: case.cluster.as_str().into(),
        generation: 1,
        endpoints: case.endpoints.iter().map(endpoint).collect(),
        health: SetHealth::default(),
    };
    let mut view = EndpointsView::new(Arc::new(set), now);
    // One that was tried is one that is not available.
    let unavailable = case.endpoints.iter().enumerate().filter(|(_, of)| !of.available).map(|(index, _)| index as u32);
    view.tried = unavailable.collect();
    view
}

pub(super) fn identity(case: &Case) -> Result<Identity, String> {
    let elements = chain("identity.proposed", &case.identity.proposed)?;
    Ok(Identity { elements, families: families(&case.identity.families) })
}

pub(super) fn families(named: &[Family]) -> Families {
    Families {
        forwarded: named.contains(&Family::Forwarded),
        x_forwarded: named.contains(&Family::XForwarded),
        x_real_ip: named.contains(&Family::XRealIp),
    }
}

pub(super) fn attempt(case: &Case) -> Result<Rc<AttemptFacts>, String> {
    let attempt = &case.attempt;
    let status = attempt
        .status
        .map(|status| StatusCode::from_u16(status).map_err(|_| format!("attempt.status: {status} is no status")));
    Ok(Rc::new(AttemptFacts {
        number: attempt.number,
        endpoint: attempt.endpoint,
        cause: match attempt.failure {
            Failure::Connect => Cause::ConnectRefused,
            Failure::Tls => Cause::TlsFailed,
            Failure::Reset => Cause::Reset,
            Failure::RefusedStream => Cause::RefusedStream,
            Failure::GoAway => Cause::GoAway,
            Failure::Timeout => Cause::AttemptTimeout,
            Failure::Status => Cause::Status,
            Failure::Other => Cause::ResponseInvalid,
        },
        status: status.transpose()?,
        headers: headers("attempt", &attempt.headers)?,
        proof: match attempt.safety {
            Safety::Unprocessed => Proof::Unprocessed,
            Safety::Idempotent => Proof::Idempotent,
            Safety::Unsafe => Proof::Unsafe,
        },
        elapsed: attempt.elapsed,
        time_left: attempt.time_left,
        retries_left: attempt.retries_left,
    }))
}

pub(super) fn callouts(case: &Case) -> Result<Vec<Scripted>, String> {
    case.callouts.iter().map(callout).collect()
}

fn callout(callout: &format::Callout) -> Result<Scripted, String> {
    let response = match (&callout.respond, callout.error) {
        (Some(Respond { status, headers: fields, body }), _) => Ok(CalloutResponse {
            status: StatusCode::from_u16(*status).map_err(|_| format!("callouts: {status} is no status"))?,
            headers: headers("callouts.respond", fields)?,
            body: body.clone().into(),
        }),
        (None, Some(CallError::TimedOut)) => Err(CalloutError::TimedOut),
        (None, Some(CallError::TooLarge)) => Err(CalloutError::TooLarge),
        (None, Some(CallError::Failed)) => Err(CalloutError::Failed("the case says so".to_owned())),
        (None, Some(CallError::Other) | None) => Err(CalloutError::Refused("the case says so".to_owned())),
    };
    let format::Callout { cluster, method, path, .. } = callout;
    Ok(Scripted { cluster: cluster.clone(), method: method.clone(), target: path.clone(), response })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::CaseFile;

    fn tunnel(connection: &str) -> Result<Rc<Asked>, String> {
        let text = format!(
            "question = \"tunnel-router\"\n[[case]]\nname = \"a\"\nconnection = {connection}\nexpect = {{ pass = true }}\n"
        );
        let file: CaseFile = toml::from_str(&text).expect("a case");
        asked(&file.cases[0], file.question)
    }

    #[test]
    fn a_tunnel_router_is_asked_of_a_connection_with_its_fields() {
        let fields = "{ server_name = \"a.example\", proxy_tlvs = { 0xea = \"vpce-1\", 5 = \"id\" } }";
        let asked = tunnel(fields).expect("a connection");
        assert_eq!((asked.request.method.as_str(), &*asked.request.authority), ("CONNECT", "a.example"));
        let fields = &asked.connection.proxy_tlvs;
        assert_eq!((fields.get(0xea), fields.get(5), fields.get(6)), (Some(&b"vpce-1"[..]), Some(&b"id"[..]), None));
        for (wrong, part) in
            [("256", "no type"), ("0xyz", "no type"), ("3", "checksum"), ("5 = \"\", 0x05", "more than one")]
        {
            let error = tunnel(&format!("{{ proxy_tlvs = {{ {wrong} = \"x\" }} }}")).expect_err(wrong);
            assert!(error.contains("connection.proxy_tlvs") && error.contains(part), "{error}");
        }
    }
}
