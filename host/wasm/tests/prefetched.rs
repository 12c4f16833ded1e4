//! Facts that come along with a question (`wit/README.md`): what is read is the same with and without them.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::json;
use tidegate_policy::contract::{self, asked, asked_with, attempt, endpoints};
use tidegate_policy::{
    Asked, AttemptFacts, Cause, ConnectionHead, Element, EndpointsView, Families, HttpVersion, Identity, Node, Proof,
    RequestEdits, Scheme,
};
use tidegate_wasm::{Grants, Isolation, Limits, Plugin, PluginSpec, Runtime, RuntimeOptions, Share};

fn spec(bytes: &[u8], settings: serde_json::Value) -> PluginSpec {
    PluginSpec {
        name: "p".into(),
        bytes: bytes.into(),
        settings,
        deny: false,
        limits: Limits { time: Duration::from_secs(5), memory: 8 << 20 },
        grants: Grants { headers: None, wasi: false },
        isolation: Isolation::Worker,
        memoise: false,
        share: Share::default(),
    }
}

fn runtime() -> Arc<Runtime> {
    Runtime::new(RuntimeOptions { cache: None, max_instances: 50 }).expect("an engine")
}

/// `tests/guests/teller` for one question.
fn teller(question: &str) -> Vec<u8> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/guests/built/teller_{question}.wasm"));
    std::fs::read(file).expect("a committed component")
}

/// Asks a plugin that calls for all facts, since it learns what to remember, and one that has them come along, beginning
/// with each fact in turn, since only so many do. `of` gives the answer.
fn alike<T: PartialEq + std::fmt::Debug>(question: &str, of: impl Fn(&Plugin, &Rc<Asked>) -> T) {
    let bytes = teller(question);
    let runtime = runtime();
    for first in (0..40).step_by(5) {
        let mut calls = spec(&bytes, json!({ "first": first }));
        calls.memoise = true;
        let calls = runtime.load(&calls, None).expect("it loads");
        for isolation in [Isolation::Worker, Isolation::Request] {
            let mut along = spec(&bytes, json!({ "first": first }));
            along.isolation = isolation;
            let along = runtime.load(&along, None).expect("it loads");
            // Every one of them once, then what was called for comes along.
            for asked in questions().iter().chain(&questions()) {
                assert_eq!(of(&along, asked), of(&calls, asked), "{first} {:?}", asked.request.target);
            }
        }
    }
}

/// Those of the contract's suite, and what they have not: IPv6, TLS, notes, a chain, values at the bound of what comes along.
fn questions() -> Vec<Rc<Asked>> {
    let template = asked_with("PURGE", "/v1/x?y", &[("x-tenant", "a"), ("cookie", "sid=1")]);
    let ipv6 = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let connection = ConnectionHead {
        peer: ipv6("[2001:db8::1]:4"),
        client: ipv6("[2001:db8::2]:5"),
        local: ipv6("[2001:db8::3]:443"),
        server_name: Some("shop.example".into()),
        alpn: Some("h2".into()),
        ..ConnectionHead::clone(&template.connection)
    };
    let mut request = template.request.clone();
    (request.version, request.scheme) = (HttpVersion::Http3, Scheme::Https);
    let chain = vec![
        Element { r#for: Some(Node::Ip([192, 0, 2, 1].into())), by: Some(Node::Unknown), ..Element::default() },
        Element {
            r#for: Some(Node::Address(ipv6("[::1]:9"))),
            by: Some(Node::Obfuscated("_x".to_owned())),
            host: Some("h".to_owned()),
            proto: Some(String::new()),
        },
    ];
    let mut all = contract::questions();
    all.push(Rc::new(Asked {
        connection: Rc::new(connection),
        request,
        client: "2001:db8::9".parse().expect("an address"),
        received: chain,
        notes: RefCell::new(vec![("seen".to_owned(), "it".to_owned())]),
        draw: 0,
    }));
    for length in [1022, 1023, 1024, 1025, 70_000] {
        all.push(asked_with("GET", &format!("/{}", "p".repeat(length)), &[("x-tenant", &"t".repeat(length))]));
    }
    all
}

#[test]
fn a_router_reads_the_same() {
    alike("router", |plugin, asked| {
        let answer = plugin.router().expect("it routes").route(asked, &mut RequestEdits::default());
        format!("{:?}", answer.expect("it answers").value)
    });
}

#[test]
fn a_balancer_reads_the_same() {
    for weights in [&[][..], &[1, 2], &[1; 8], &[1; 9], &[1; 200]] {
        let set = endpoints(weights);
        for (endpoint, index) in set.endpoints.iter().zip(0..) {
            endpoint.state.sample_latency(Duration::from_secs(1), Duration::from_micros(index * 77));
            (0..index % 3).for_each(|_| endpoint.state.begin());
        }
        let mut view = EndpointsView::new(set, Duration::from_secs(2));
        view.tried.push(1);
        alike("balancer", |plugin, asked| {
            let choice = plugin.balancer().expect("it picks").pick(asked, &view);
            format!("{:?}", choice.expect("it answers").value)
        });
    }
}

#[test]
fn a_forwarding_policy_reads_the_same() {
    alike("forwarding", |plugin, asked| {
        let mut identity = Identity {
            elements: asked
                .received
                .iter()
                .cloned()
                .chain([Element { host: Some("own".into()), ..Element::default() }])
                .collect(),
            families: Families::default(),
        };
        plugin.forwarding().expect("it identifies").identify(asked, &mut identity).expect("it answers");
        identity.elements
    });
}

#[test]
fn a_retry_policy_reads_the_same() {
    let view = EndpointsView::new(endpoints(&[1, 1]), Duration::from_secs(2));
    let mut status = attempt(2, Cause::Status);
    (status.status, status.endpoint) = (Some(StatusCode::BAD_GATEWAY), None);
    status.headers = HeaderMap::from_iter([(http::header::RETRY_AFTER, HeaderValue::from_static("7"))]);
    let mut other = attempt(1, Cause::ClientGone);
    other.proof = Proof::Unprocessed;
    let causes = [
        Cause::ConnectRefused,
        Cause::TlsFailed,
        Cause::Reset,
        Cause::RefusedStream,
        Cause::GoAway,
        Cause::AttemptTimeout,
    ];
    let attempts: Vec<AttemptFacts> =
        causes.map(|cause| attempt(1, cause)).into_iter().chain([status, other]).collect();
    for attempt in attempts.into_iter().map(Rc::new) {
        alike("retry", |plugin, asked| {
            let verdict = plugin.retry().expect("it decides").decide(asked, &attempt, &view);
            format!("{:?}", verdict.expect("it answers").value)
        });
    }
}

/// What is not granted stays absent, however it is read.
#[test]
fn ungranted_fields_do_not_come_along() {
    let mut limited = spec(&teller("router"), json!({ "first": 0 }));
    limited.grants.headers = Some(Vec::new());
    let plugin = runtime().load(&limited, None).expect("it loads");
    let question = asked_with("GET", "/", &[("x-tenant", "secret"), ("cookie", "sid=secret")]);
    for _ in 0..3 {
        let answer = plugin.router().expect("it routes").route(&question, &mut RequestEdits::default());
        let tidegate_policy::RouteAnswer::Respond(response) = answer.expect("it answers").value else {
            panic!("it responds")
        };
        let told = String::from_utf8_lossy(&response.body).into_owned();
        assert!(told.contains("tenant: None") && told.contains("sid: None"), "{told}");
    }
}

/// A seed comes along with each question, and the numbers within one differ too.
#[test]
fn chance_stays_chance() {
    let plugin = runtime().load(&spec(&teller("router"), json!({ "first": 0 })), None).expect("it loads");
    let router = plugin.router().expect("it routes");
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1000 {
        let answer = router.route(&asked("GET", "/chance"), &mut RequestEdits::default()).expect("it answers");
        let tidegate_policy::RouteAnswer::Respond(response) = answer.value else { panic!("it responds") };
        let drawn = String::from_utf8_lossy(&response.body).into_owned();
        for number in drawn.split(' ') {
            assert!(seen.insert(number.to_owned()), "{number} was drawn twice");
        }
    }
}

/// Shows which of its functions was asked: plainly it reads the path and edits nothing, with facts it sets the families
/// whose bits are the last three of the length of the first fact's value.
fn which() -> Vec<u8> {
    let text = r#"(component
      (type $facts (variant (case "words" (tuple u64 u64 u64 u64 u64 u64 u64 u64 u64 u64 u64 u64))
        (case "bytes" (list u8))))
      (import "tidegate:policy/types@0.1.0" (instance $types (export "facts" (type (eq $facts)))))
      (alias export $types "facts" (type $facts'))
      (import "tidegate:policy/request@0.1.0" (instance $request (export "path" (func (result string)))))
      (import "tidegate:policy/identity@0.1.0" (instance $identity
        (type $families (flags "forwarded" "x-forwarded" "x-real-ip"))
        (export "field-families" (type $families' (eq $families)))
        (export "set-families" (func (param "families" $families')))))
      (core module $libc
        (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096)))
      (core instance $libc (instantiate $libc))
      (core func $path (canon lower (func $request "path")
        (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
      (core func $families (canon lower (func $identity "set-families")))
      (core module $policy
        (import "host" "path" (func $path (param i32)))
        (import "host" "families" (func $families (param i32)))
        (import "host" "memory" (memory 1))
        (func (export "plain") (call $path (i32.const 512)))
        (func $set (param $length i32) (call $families (i32.and (local.get $length) (i32.const 7))))
        (func (export "facts") (param $bytes i32) (param $first i64) (param i64 i64 i64 i64 i64 i64 i64 i64 i64 i64 i64)
          (if (local.get $bytes)
            (then (call $set (i32.load16_u offset=2 (i32.wrap_i64 (local.get $first)))))
            (else (call $set (i32.wrap_i64 (i64.shr_u (local.get $first) (i64.const 16))))))))
      (core instance $policy (instantiate $policy (with "host" (instance
        (export "path" (func $path)) (export "families" (func $families)) (export "memory" (memory $libc "memory"))))))
      (func $plain (canon lift (core func $policy "plain")))
      (func $facts (param "facts" $facts') (canon lift (core func $policy "facts")
        (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
      (instance $forwarding (export "identify" (func $plain)))
      (instance $prefetched (export "identify" (func $facts)))
      (export "tidegate:policy/forwarding@0.1.0" (instance $forwarding))
      (export "tidegate:policy/prefetched-forwarding@0.1.0" (instance $prefetched)))"#;
    wat::parse_str(text).expect("a component")
}

/// What a guest called for comes along the next time, as plain parameters while it fits into them, and not where its reads
/// are to be seen.
#[test]
fn what_was_called_for_comes_along() {
    let families = |bits: u32| Families { forwarded: bits & 1 > 0, x_forwarded: bits & 2 > 0, x_real_ip: bits & 4 > 0 };
    let answers = |memoise: bool| {
        let mut spec = spec(&which(), json!({}));
        spec.memoise = memoise;
        let plugin = runtime().load(&spec, None).expect("it loads");
        let forwarding = plugin.forwarding().expect("it identifies");
        // 92 bytes are the most that fit beside what comes before them.
        let long = |length: usize| format!("/{}", "l".repeat(length - 1));
        [String::from("/"), "/two".into(), "/three?q".into(), long(92), long(93), long(1023), long(1025)].map(|path| {
            let mut identity = Identity::default();
            forwarding.identify(&asked("GET", &path), &mut identity).expect("it answers");
            identity.families
        })
    };
    // What is too long does not come along: a word of nothing.
    assert_eq!(answers(false), [0, 4, 6, 4, 5, 7, 0].map(families));
    assert_eq!(answers(true), [0; 7].map(families));
}
