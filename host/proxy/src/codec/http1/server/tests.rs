//! Clients that write bytes, a gateway of one worker, and an origin that is a script: the whole way of a request.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};
use tidegate_policy::native::{
    ForwardingMode, HashOn, Maglev, PathPattern, RetryBudget, RetryOn, RetryRules, RoundRobin, RouteRule, RouteTable,
    StandardForwarding,
};
use tidegate_policy::{Breaker, DirectResponse, Endpoint, EndpointSet, Families, SetHealth};

use crate::Buffers;
use crate::snapshot::{
    Cluster, Limits, Listener, PoolSettings, Protocols, Route, RouteAction, RouteBuffer, Snapshot, UpstreamProtocol,
};
use crate::worker::{Gateway, GatewayOptions};

const PATIENCE: Duration = Duration::from_secs(10);

fn limits() -> Limits {
    Limits {
        max_connections: 100,
        max_header_bytes: 2048,
        max_headers: 20,
        max_streams: 10,
        header_timeout: Duration::from_millis(300),
        idle_timeout: Duration::from_millis(600),
        body_idle_timeout: Duration::from_secs(5),
        handshake_timeout: Duration::from_secs(5),
        max_requests_per_connection: 1000,
        upload_rate: None,
        download_rate: None,
    }
}

/// A gateway that answers `/own*` itself and forwards the rest, and what its origin is asked.
struct Running {
    gateway: Gateway,
    address: SocketAddr,
    asked: Receiver<Vec<u8>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.gateway.drain();
        for thread in self.gateway.take_threads() {
            let _ = thread.join();
        }
    }
}

/// An origin that, on every connection, waits for `after` bytes' end, answers `answer` and closes.
fn origin(after: &'static str, answer: Vec<u8>) -> (SocketAddr, Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = listener.local_addr().expect("an address");
    let (sender, asked) = mpsc::channel();
    let sender = Mutex::new(sender);
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let got = until(&mut client, after);
            let _ = client.write_all(&answer);
            let _ = client.shutdown(Shutdown::Write);
            let rest = rest(&mut client);
            // The test may be over.
            let _ = sender.lock().map(|sender| sender.send([got, rest].concat()));
        }
    });
    (address, asked)
}

/// Reads until what came ends with `end`, or nothing more comes.
fn until(stream: &mut TcpStream, end: &str) -> Vec<u8> {
    let (mut got, mut byte) = (Vec::new(), [0]);
    while !got.ends_with(end.as_bytes()) && stream.read(&mut byte).is_ok_and(|count| count == 1) {
        got.push(byte[0]);
    }
    got
}

/// All that comes up to the close, orderly or not.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut got = Vec::new();
    match stream.read_to_end(&mut got) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => got.extend_from_slice(b"<reset>"),
        Err(error) => panic!("{error}: {:?}", String::from_utf8_lossy(&got)),
    }
    got
}

fn gateway_with(limits: Limits, after: &'static str, answer: impl Into<Vec<u8>>) -> Running {
    let (origin, asked) = origin(after, answer.into());
    let endpoint = Endpoint {
        address: origin,
        weight: 1,
        zone: None,
        labels: Arc::new([]),
        max_requests: 100,
        state: Arc::default(),
    };
    let endpoints = Box::new([endpoint]);
    let set = Arc::new(EndpointSet { cluster: "o".into(), generation: 1, endpoints, health: SetHealth::default() });
    let second = Duration::from_secs(1);
    let pool = PoolSettings {
        protocol: UpstreamProtocol::Http1,
        connect_timeout: second,
        idle_timeout: second,
        max_connection_age: second,
        max_requests_per_connection: 100,
        max_connections: 10,
        max_streams_per_connection: 10,
        max_pending: 10,
        pending_timeout: second,
        proxy_protocol: None,
    };
    let cluster = Arc::new(Cluster {
        name: "o".into(),
        owner: crate::Owner::Gateway,
        balancer: Arc::new(RoundRobin::new(&set)),
        plugin: None,
        maglev: Arc::new(Maglev::new(&set, 7, HashOn::Path)),
        budget: Arc::new(RetryBudget::new(0.0, 0)),
        set,
        pool,
        tls: None,
        origin: None,
        check: None,
        breaker: Breaker::default(),
    });
    let route = |name: &str, action| {
        let rules = RetryRules { on: RetryOn::default(), backoff: second, max_backoff: second };
        let families = Families { forwarded: false, x_forwarded: false, x_real_ip: false };
        Arc::new(Route {
            name: name.into(),
            tenant: None,
            action,
            router: None,
            forwarding: StandardForwarding { mode: ForwardingMode::Replace, families, by: None },
            forwarding_plugin: None,
            client_certificate: Default::default(),
            retry: rules,
            retry_plugin: None,
            attempts: 1,
            hedge_after: None,
            timeout: Some(PATIENCE),
            attempt_timeout: None,
            idle_timeout: None,
            max_request_body: None,
            buffer: RouteBuffer::default(),
            compression: None,
            websocket: true,
            connect: Box::new([]),
            connect_udp: Box::new([]),
            udp_idle_timeout: None,
        })
    };
    let rule = |path| RouteRule { hosts: vec![], path, methods: vec![], headers: vec![], cluster: None };
    let own = DirectResponse { status: StatusCode::OK, headers: HeaderMap::new(), body: "own".into() };
    let listener = Listener {
        name: "edge".into(),
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        protocols: Protocols { http1: true, http2: false, http3: false },
        limits,
        trusted_proxies: Box::new([]),
        proxy_protocol: None,
        trusted_family: Default::default(),
        tls: None,
        tunnel: None,
        alt_svc: false,
        buffer_memory: None,
    };
    let snapshot = Snapshot {
        generation: 1,
        listeners: vec![Arc::new(listener)],
        clusters: vec![cluster.clone()],
        cluster_by_name: std::iter::once(("o".into(), 0)).collect(),
        table: RouteTable::new(vec![rule(PathPattern::Prefix("/own".to_owned())), rule(PathPattern::Any)]),
        routes: vec![route("own", RouteAction::Respond(own)), route("o", RouteAction::Cluster(cluster))],
        tenants: Vec::new(),
        via: "gw".into(),
        buffers: Buffers::new(0, 0, std::env::temp_dir()),
    };
    let drain_timeout = Duration::from_secs(3);
    let options = GatewayOptions { workers: 1, sinks: Vec::new(), drain_timeout, on_apply: None };
    let gateway = Gateway::start(Arc::new(snapshot), options).expect("a gateway");
    let address = gateway.addresses()[0].1;
    Running { gateway, address, asked }
}

fn gateway() -> Running {
    gateway_with(limits(), "\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
}

impl Running {
    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).expect("connected");
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        client
    }

    /// All that answers `request` until the gateway closes.
    fn answer(&self, request: impl AsRef<[u8]>) -> String {
        let mut client = self.connect();
        client.write_all(request.as_ref()).expect("written");
        String::from_utf8(rest(&mut client)).expect("text")
    }

    /// What the origin was sent, once its connection ended.
    fn asked(&self) -> String {
        let asked = self.asked.recv_timeout(PATIENCE).expect("the origin was asked");
        String::from_utf8_lossy(&asked).into_owned()
    }
}

fn has(answer: &str, status: u16, fields: &[&str]) -> bool {
    let lower = answer.to_ascii_lowercase();
    answer.starts_with(&format!("HTTP/1.1 {status} ")) && fields.iter().all(|f| lower.contains(&format!("\r\n{f}\r\n")))
}

/// Conduct, section 3: every refusal is a whole response, then the close; nothing reaches the origin.
#[test]
fn refusals_are_answered_and_close() {
    let running = gateway();
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(3000));
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(3000));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(21));
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: a\n\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /own", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 403),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("\x16\x03\x01\x02\x00\x01\x00\x01", 400),
        (&large, 431),
        (&long, 414),
        (&many, 431),
    ] {
        let answer = running.answer(request);
        assert!(has(&answer, status, &["connection: close"]), "{request:?}: {answer:?}");
        assert!(answer.contains("\r\ndate: ") && answer.matches("HTTP/1.1").count() == 1, "{request:?}: {answer:?}");
    }
    assert!(running.asked.try_recv().is_err());
}

/// RFC 9112, section 9.6: the refusal is read by a client that is still sending.
#[test]
fn a_refusal_survives_what_the_client_still_sends() {
    let running = gateway();
    let mut client = running.connect();
    let mut request = b"POST / HTTP/1.1\r\n\r\n".to_vec();
    request.resize(100_000, b'x');
    client.write_all(&request).expect("written");
    thread::sleep(Duration::from_millis(50));
    let _ = client.write_all(&[b'x'; 10_000]);
    let answer = String::from_utf8(until(&mut client, "Bad Request\n")).expect("text");
    assert!(has(&answer, 400, &["connection: close"]), "{answer:?}");
}

/// RFC 9112, section 9.3.2: pipelined requests are answered in order; section 9.6: `close` ends the connection.
#[test]
fn pipelined_requests_are_answered_in_order() {
    let running = gateway();
    let answer = running.answer(
        "GET /own HTTP/1.1\r\nHost: a\r\n\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n\
         HEAD /own HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /never HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    let statuses: Vec<_> = answer.split("HTTP/1.1 200 OK\r\n").collect();
    assert_eq!(statuses.len(), 4, "{answer}");
    assert!(statuses[1].ends_with("\r\n\r\nown") && statuses[2].ends_with("\r\n\r\nok"), "{answer}");
    let head = statuses[3];
    assert!(head.contains("content-length: 3\r\n") && head.contains("connection: close\r\n"), "{answer}");
    assert!(head.ends_with("\r\n\r\n"), "{answer}");
    assert!(running.asked().starts_with("GET /x HTTP/1.1\r\n"));
}

/// RFC 9112, section 9.3: who keeps a connection, and who is told so.
#[test]
fn old_clients_keep_connections_only_when_they_ask() {
    let running = gateway();
    let closed = running.answer("GET /own HTTP/1.0\r\n\r\n");
    assert!(has(&closed, 200, &["connection: close"]), "{closed}");
    let mut client = running.connect();
    client.write_all(b"GET /own HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").expect("written");
    let kept = String::from_utf8(until(&mut client, "own")).expect("text");
    assert!(has(&kept, 200, &["connection: keep-alive"]), "{kept}");
    client.write_all(b"GET /own HTTP/1.0\r\n\r\n").expect("written");
    assert!(has(&String::from_utf8(rest(&mut client)).expect("text"), 200, &["connection: close"]));
}

/// RFC 9112, section 6.3: a body of unknown length is chunked, and for HTTP/1.0 ends with the connection; interim
/// responses are not for HTTP/1.0 (RFC 9110, section 15.2).
#[test]
fn unknown_lengths_and_interim_responses() {
    let chunked = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
                   HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n";
    let running = gateway_with(limits(), "\r\n\r\n", chunked);
    let new = running.answer("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(has(&new, 103, &["link: </a>", "transfer-encoding: chunked", "connection: close"]), "{new}");
    assert!(new.ends_with("\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n"), "{new}");
    let old = running.answer("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert!(has(&old, 200, &["connection: close"]) && old.ends_with("\r\n\r\nok"), "{old}");
    assert!(!old.contains("103") && !old.contains("transfer-encoding"), "{old}");
}

/// RFC 9112, section 8: an origin that dies within a body never makes a whole message.
#[test]
fn a_broken_response_is_never_a_clean_end() {
    for (answer, request, end) in [
        ("Content-Length: 5\r\n\r\nok", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "ok"),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "2\r\nok\r\n"),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "GET / HTTP/1.0\r\n\r\n", "<reset>"),
    ] {
        let running = gateway_with(limits(), "\r\n\r\n", format!("HTTP/1.1 200 OK\r\n{answer}"));
        let got = running.answer(request);
        // The reset may overtake what was sent before it.
        assert!(got.ends_with(end) && (end == "<reset>" || has(&got, 200, &[])), "{request:?}: {got:?}");
    }
}

/// The body goes on chunked, trailers and all; the connection is for more after it.
#[test]
fn request_bodies_stream_to_the_origin() {
    let running = gateway_with(limits(), "x-sum: 1\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let mut client = running.connect();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for piece in [head, "2;ext\r\nh", "i\r\n3\r\n!!!\r", "\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\n"] {
        client.write_all(piece.as_bytes()).expect("written");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(until(&mut client, "ok").starts_with(b"HTTP/1.1 200 OK\r\n"));
    client.write_all(b"GET /own HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("written");
    assert!(rest(&mut client).ends_with(b"own"));
    let asked = running.asked();
    assert!(asked.contains("\r\ntransfer-encoding: chunked\r\n") && !asked.contains("ext"), "{asked}");
    assert!(asked.ends_with("0\r\nx-sum: 1\r\n\r\n") && !asked.to_lowercase().contains("content-length"), "{asked}");
}

/// RFC 9112, section 7.1: what breaks within a body is answered, and the connection ends; the origin's copy is no whole
/// message.
#[test]
fn a_broken_request_body_is_refused_and_closes() {
    let running = gateway_with(limits(), "no such end", "");
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let answer = running.answer(format!("{head}2\r\nhi\r\nzz\r\n\r\nGET /own HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert!(has(&answer, 400, &["connection: close"]) && answer.matches("HTTP/1.1").count() == 1, "{answer}");
    assert!(!running.asked().contains("0\r\n\r\n"));
}

/// RFC 9110, section 10.1.1: a final answer to a client that waits for 100 leaves the body unsent, so what follows on
/// the connection could be either; it closes. So does one whose body nobody read.
#[test]
fn an_unread_body_ends_the_connection() {
    let running = gateway();
    let head = "POST /own HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n";
    for (expect, body) in [("Expect: 100-continue\r\n", ""), ("", "GET /own HTTP/1.1\r\nHost: a\r\n\r\n")] {
        let answer = running.answer(format!("{head}{expect}\r\n{body}"));
        assert!(has(&answer, 200, &["connection: close"]), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    }
}

/// RFC 9112, section 3.2.2: absolute-form overrides `Host`.
#[test]
fn the_target_names_the_origin() {
    let running = gateway();
    let request = "GET http://b.example/x HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
    assert!(has(&running.answer(request), 200, &[]));
    let asked = running.asked();
    assert!(asked.starts_with("GET /x HTTP/1.1\r\nhost: b.example\r\n") && !asked.contains("a.example"), "{asked}");
}

/// A head must come in time from its first byte on (408), idling is no fault (RFC 9112, section 9.5).
#[test]
fn silence_is_bounded() {
    let running = gateway();
    for (before, status) in [("", None), ("GET / HT", Some(408)), ("\r\n", None)] {
        let begun = Instant::now();
        let answer = running.answer(before);
        match status {
            Some(status) => assert!(has(&answer, status, &["connection: close"]), "{answer:?}"),
            None => assert_eq!(answer, "", "{before:?}"),
        }
        assert!(begun.elapsed() >= limits().header_timeout, "{before:?}");
    }
    let mut client = running.connect();
    client.write_all(b"GET /own HTTP/1.1\r\nHost: a\r\n\r\n").expect("written");
    until(&mut client, "own");
    let begun = Instant::now();
    assert_eq!(rest(&mut client), b"");
    assert!(begun.elapsed() >= limits().idle_timeout - Duration::from_millis(50));
}

#[test]
fn the_request_cap_is_announced() {
    let running = gateway_with(Limits { max_requests_per_connection: 2, ..limits() }, "\r\n\r\n", "");
    let answer = running.answer("GET /own HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3));
    let (first, second) = answer.split_once("own").expect("two answers");
    assert!(has(first, 200, &[]) && !first.contains("connection:"), "{answer}");
    assert!(has(second, 200, &["connection: close"]) && second.ends_with("own"), "{answer}");
}

/// Conduct, section 1: a client that leaves cancels the upstream's request.
#[test]
fn a_client_that_leaves_cancels_the_request() {
    let running = gateway_with(limits(), "no such end", "");
    let mut client = running.connect();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("written");
    thread::sleep(Duration::from_millis(100));
    drop(client);
    assert!(running.asked().starts_with("GET / HTTP/1.1\r\n"), "the origin's connection ended");
}

/// Conduct, section 4: while draining an idle connection ends at once, and one with a request after its answer.
#[test]
fn draining_ends_connections_after_their_work() {
    let running = gateway();
    let mut idle = running.connect();
    idle.write_all(b"GET /own HTTP/1.1\r\nHost: a\r\n\r\n").expect("written");
    until(&mut idle, "own");
    let mut busy = running.connect();
    busy.write_all(b"GET /own HTTP/1.1\r\nHo").expect("written");
    thread::sleep(Duration::from_millis(100));
    running.gateway.drain();
    assert_eq!(rest(&mut idle), b"");
    busy.write_all(b"st: a\r\n\r\n").expect("written");
    let answer = String::from_utf8(rest(&mut busy)).expect("text");
    assert!(has(&answer, 200, &["connection: close"]) && answer.ends_with("own"), "{answer}");
}
