//! What every implementation of a question promises, native or not; and small questions to test with.
//!
//! Behind the feature `contract`: run by this crate over the native answers and by `tidegate-wasm` over components.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::*;

/// A connection from 192.0.2.7 in clear text.
pub fn connection() -> Rc<ConnectionHead> {
    Rc::new(ConnectionHead {
        id: 7,
        peer: SocketAddr::from((Ipv4Addr::new(192, 0, 2, 7), 40_000)),
        client: SocketAddr::from((Ipv4Addr::new(192, 0, 2, 7), 40_000)),
        local: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
        proxy_tlvs: ProxyTlvs::default(),
        listener: "edge".into(),
        tls: false,
        tls_version: None,
        server_name: None,
        alpn: None,
        client_certificate: None,
        client_chain: Box::default(),
    })
}

/// A request for `target` at example.com.
pub fn asked(method: &str, target: &str) -> Rc<Asked> {
    asked_with(method, target, &[])
}

/// A request with header fields.
pub fn asked_with(method: &str, target: &str, fields: &[(&str, &str)]) -> Rc<Asked> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a test's own field name");
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a test's own field value"));
    }
    let connection = connection();
    Rc::new(Asked {
        client: connection.client.ip(),
        connection,
        request: RequestHead {
            version: HttpVersion::Http11,
            method: Method::from_bytes(method.as_bytes()).expect("a test's own method"),
            scheme: Scheme::Http,
            authority: "example.com".into(),
            target: Target::new(target.into()),
            headers,
            tunnel: None,
        },
        received: Vec::new(),
        notes: RefCell::default(),
        draw: 0,
    })
}

/// A cluster with one endpoint of each weight.
pub fn endpoints(weights: &[u32]) -> Arc<EndpointSet> {
    let endpoint = |(index, weight): (usize, &u32)| Endpoint {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 9000 + index as u16)),
        weight: *weight,
        zone: None,
        labels: Arc::new([]),
        max_requests: 1000,
        state: Arc::default(),
    };
    let endpoints = weights.iter().enumerate().map(endpoint).collect();
    Arc::new(EndpointSet { cluster: "api".into(), generation: 1, endpoints, health: SetHealth::default() })
}

/// A failed attempt with time and retries left.
pub fn attempt(number: u32, cause: Cause) -> AttemptFacts {
    AttemptFacts {
        number,
        endpoint: Some(0),
        cause,
        status: None,
        headers: HeaderMap::new(),
        proof: Proof::Idempotent,
        elapsed: Duration::from_millis(5),
        time_left: Duration::from_secs(30),
        retries_left: 3,
    }
}

/// Requests of many shapes: odd bytes, no fields, many fields, long paths.
pub fn questions() -> Vec<Rc<Asked>> {
    let long = format!("/{}", "a/".repeat(500));
    let mut all = vec![
        asked("GET", "/"),
        asked("OPTIONS", "*"),
        asked("PATCH", "/a?b=c&d"),
        asked("GET", "/?"),
        asked("GET", &long),
        asked_with("POST", "/v1/x", &[("x-tenant", "a"), ("cookie", "sid=1; canary=always")]),
        asked_with("GET", "/", &[("x-tenant", ""), ("x-tenant", "b"), ("cookie", "=;;==; a")]),
    ];
    let mut odd = asked("GET", "/").request.clone();
    odd.headers.append("x-tenant", HeaderValue::from_bytes(b"\xff\xfe\t caf\xe9").expect("obs-text is a value"));
    odd.headers.append("cookie", HeaderValue::from_bytes(b"sid=\xff").expect("obs-text is a value"));
    odd.authority = "".into();
    let template = asked("GET", "/");
    all.push(Rc::new(Asked {
        connection: template.connection.clone(),
        request: odd,
        client: "2001:db8::9".parse().expect("an address"),
        received: vec![Element { r#for: Some(Node::Unknown), ..Element::default() }],
        notes: RefCell::default(),
        draw: 0,
    }));
    all
}

/// A connection that is not decrypted and whose ClientHello names this.
pub fn tunnel_to(server_name: Option<&str>) -> Rc<Asked> {
    let mut head = ConnectionHead::clone(&connection());
    head.server_name = server_name.map(Into::into);
    let template = asked("CONNECT", "");
    let mut request = template.request.clone();
    request.scheme = Scheme::Https;
    request.authority = server_name.unwrap_or_default().into();
    request.tunnel = Some(Tunnel::Connect);
    Rc::new(Asked {
        connection: Rc::new(head),
        request,
        client: template.client,
        received: Vec::new(),
        notes: RefCell::default(),
        draw: 0,
    })
}

/// A router answers every request; what it forwards to is one of `clusters`; the same question gets the same answer.
pub fn router(router: &dyn Router, clusters: &[&str]) {
    assert!(!router.name().is_empty());
    for asked in questions() {
        let answer = || {
            let mut edits = RequestEdits::default();
            let answer = router.route(&asked, &mut edits).expect("a healthy router answers").value;
            (format!("{answer:?}"), answer, edits)
        };
        let (first, value, edits) = answer();
        match value {
            RouteAnswer::Pass => {}
            RouteAnswer::Forward(cluster) => assert!(clusters.contains(&&*cluster), "{cluster} is not a cluster"),
            RouteAnswer::Respond(response) => assert!(response.status.as_u16() >= 200),
        }
        let (second, _, same) = answer();
        assert_eq!((first, edits), (second, same), "the answer changed for {:?}", asked.request.target);
    }
}

/// A tunnel router answers every connection, as [`router`] does requests.
pub fn tunnel_router(router: &dyn TunnelRouter, clusters: &[&str]) {
    assert!(!router.name().is_empty());
    let long = "a.".repeat(120);
    for name in [None, Some("example.com"), Some("a.example.com"), Some("localhost"), Some(&*long)] {
        let asked = tunnel_to(name);
        let answer = || router.tunnel(&asked).expect("a healthy router answers").value;
        let first = answer();
        if let TunnelAnswer::Forward(cluster) = &first {
            assert!(clusters.contains(&&**cluster), "{cluster} is not a cluster");
        }
        assert_eq!(first, answer(), "the answer changed for {name:?}");
    }
}

/// A balancer picks what is available: never one that is out of range, tried, unhealthy, full or without weight; and
/// none only where none is to be had.
pub fn balancer(make: &dyn Fn(&Arc<EndpointSet>) -> Arc<dyn Balancer>) {
    for weights in [&[][..], &[1], &[0], &[1, 1], &[3, 0, 1], &[1; 40]] {
        let set = endpoints(weights);
        let balancer = make(&set);
        let size = weights.len() as u32;
        for round in 0..60_u32 {
            let mut view = EndpointsView::new(set.clone(), Duration::from_millis(round.into()));
            if size > 0 {
                view.tried.extend((0..round % 3).map(|step| (round + step) % size));
                let state = &set.endpoints[(round % size) as usize].state;
                state.set_healthy(round % 7 != 0);
                state.sample_latency(view.now, Duration::from_micros(u64::from(round) * 37));
            }
            for asked in questions() {
                let choice = balancer.pick(&asked, &view).expect("a healthy balancer answers").value;
                let any = (0..size).any(|index| view.available(index));
                match choice {
                    Choice::Endpoint(index) => {
                        assert!(view.available(index), "{index} of {weights:?} is not available")
                    }
                    Choice::None => assert!(!any, "one of {weights:?} was available"),
                    Choice::Pass | Choice::Hash(_) => {}
                }
            }
        }
    }
}

/// A forwarding policy leaves a chain that can be written and read back.
pub fn forwarding(forwarding: &dyn Forwarding) {
    for asked in questions() {
        let proposed = native::StandardForwarding {
            mode: native::ForwardingMode::Append,
            families: Families { forwarded: true, x_forwarded: true, x_real_ip: false },
            by: None,
        };
        let mut identity = proposed.identity(&asked);
        forwarding.identify(&asked, &mut identity).expect("a healthy forwarding policy answers");
        assert!(identity.elements.len() <= 33);
        let written = native::render_forwarded(&identity.elements);
        let read = native::parse_forwarded(written.as_bytes());
        assert!(read.iter().all(Option::is_some), "{written:?} does not read back");
    }
}

/// A retry policy decides every failure, and asks for pauses a request can live with.
pub fn retry(retry: &dyn Retry) {
    let causes = [
        Cause::ConnectRefused,
        Cause::Reset,
        Cause::RefusedStream,
        Cause::GoAway,
        Cause::AttemptTimeout,
        Cause::Status,
    ];
    for size in [&[][..], &[1], &[1, 1]] {
        let view = EndpointsView::new(endpoints(size), Duration::ZERO);
        for cause in causes {
            for number in [1, 2, 100] {
                for status in [None, StatusCode::from_u16(503).ok(), StatusCode::from_u16(599).ok()] {
                    for proof in [Proof::Unprocessed, Proof::Idempotent, Proof::Unsafe] {
                        let mut facts = attempt(number, cause);
                        facts.status = status.filter(|_| cause == Cause::Status);
                        facts.proof = proof;
                        let verdict = retry.decide(&asked("GET", "/"), &Rc::new(facts), &view);
                        match verdict.expect("a healthy retry policy answers").value {
                            Verdict::Stop => {}
                            Verdict::Again(pause) | Verdict::Elsewhere(pause) => {
                                assert!(pause <= Duration::from_secs(60), "{pause:?} is no pause");
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::native::*;
    use super::*;

    #[test]
    fn native_routers_keep_the_contract() {
        let rule = |path: &str, cluster: &str| RouteRule {
            hosts: vec![],
            path: PathPattern::Prefix(path.to_owned()),
            methods: vec![],
            headers: vec![],
            cluster: Some(cluster.into()),
        };
        router(&RouteTable::new(vec![rule("/v1", "a"), rule("", "b")]), &["a", "b"]);
        router(&RouteTable::new(vec![]), &[]);
    }

    #[test]
    fn native_balancers_keep_the_contract() {
        balancer(&|set| Arc::new(RoundRobin::new(set)));
        balancer(&|set| Arc::new(LeastRequest::new(set)));
        balancer(&|set| Arc::new(PeakEwma::new(set)));
        balancer(&|set| Arc::new(Maglev::new(set, 251, HashOn::Cookie("sid".into()))));
        balancer(&|set| Arc::new(Maglev::new(set, 251, HashOn::Header(HeaderName::from_static("x-tenant")))));
    }

    #[test]
    fn native_forwarding_keeps_the_contract() {
        for mode in [ForwardingMode::Append, ForwardingMode::Replace] {
            let families = Families { forwarded: true, x_forwarded: true, x_real_ip: true };
            forwarding(&StandardForwarding { mode, families, by: Some(Node::Obfuscated("_edge".into())) });
        }
    }

    #[test]
    fn native_retry_rules_keep_the_contract() {
        let on =
            RetryOn { connect: true, reset: true, refused: true, timeout: true, gateway: true, ..RetryOn::default() };
        retry(&RetryRules { on, backoff: Duration::from_millis(25), max_backoff: Duration::from_millis(250) });
    }
}
