//! HTTP/2 towards origins, driven by an independent implementation (the Python package h2): what an origin that breaks
//! off proves, and what is odd in it but legal. What counts is the origin's own record of what reached it.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate_tests::peers::Script;
use tidegate_tests::{Answer, Client, Gateway, RawClient};

const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// The origin, a gateway before it that keeps short bodies, and one connection to the gateway: all its requests are one
/// worker's, so that they share upstream connections.
struct Bench {
    origin: Script,
    gateway: Gateway,
    client: SendRequest<Full<Bytes>>,
    marks: usize,
}

impl Bench {
    async fn new(oddities: &[&str]) -> Self {
        let mut origin = Script::start("http2_origin.py", oddities);
        let port: u16 = origin.line().await.parse().expect("a port");
        let more = "protocol = \"http2\"\nretry_budget = { percent = \"100%\", min = 1000 }";
        let config = crate::simple(&[SocketAddr::from(([127, 0, 0, 1], port))], more).replace(
            "cluster = \"api\"\n",
            "cluster = \"api\"\nbuffer = { request = \"128KiB\" }\nretry = { attempts = 5 }\n",
        );
        let gateway = Gateway::start(&config).await;
        let stream = tokio::net::TcpStream::connect(gateway.edge()).await.expect("a connection");
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (client, connection) = handshake.await.expect("a connection");
        tokio::spawn(connection);
        Self { origin, gateway, client, marks: 0 }
    }

    /// Sends a request now; its answer comes.
    fn send(&self, method: &Method, path: &str, body: &str) -> impl Future<Output = Answer> + Send + use<> {
        let request = Request::builder().method(method).uri(format!("http://example.com{path}"));
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("a request");
        let (what, mut client) = (format!("{method} {path}"), self.client.clone());
        let asking = tokio::spawn(async move {
            let response = client.send_request(request).await.map_err(|error| error.to_string())?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| error.to_string())?;
            let trailers = body.trailers().cloned();
            let (status, version, headers) = (parts.status, parts.version, parts.headers);
            Ok::<_, String>(Answer { status, version, headers, body: body.to_bytes(), trailers })
        });
        async move {
            let answer = tokio::time::timeout(std::time::Duration::from_secs(60), asking).await;
            let answer = answer.unwrap_or_else(|_| panic!("no answer to {what}"));
            answer.expect("no panic").unwrap_or_else(|error| panic!("{what}: {error}"))
        }
    }

    /// What reached the origin since the last mark: nothing more can come of what was answered before.
    async fn record(&mut self) -> Vec<serde_json::Value> {
        self.marks += 1;
        let mark = format!("/mark/{}", self.marks);
        assert_eq!(self.send(&Method::GET, &mark, "").await.status, 200);
        self.until(&mark).await
    }

    /// The record up to a request for `path`.
    async fn until(&mut self, path: &str) -> Vec<serde_json::Value> {
        let mut lines = Vec::new();
        loop {
            let line: serde_json::Value = serde_json::from_str(&self.origin.line().await).expect("JSON");
            assert!(line.get("violation").is_none(), "the gateway breaks the protocol: {line}");
            if line["path"] == path {
                return lines;
            }
            lines.push(line);
        }
    }
}

/// What came of a request, and how often it reached the origin.
async fn outcome(bench: &mut Bench, method: &Method, path: &str) -> (u16, usize) {
    let answer = bench.send(method, path, "a body").await;
    let seen = bench.record().await;
    assert!(seen.iter().all(|seen| seen["path"] == path && seen["method"] == method.as_str()), "{seen:?}");
    assert!(seen.iter().all(|seen| seen["whole"] == true && seen["content"] == 6), "sent again, it is whole: {seen:?}");
    if answer.status == 200 {
        assert_eq!(answer.text(), "ydob a", "{method} {path}");
    } else {
        assert!(answer.header("proxy-status").is_some(), "{method} {path}: {answer:?}");
    }
    (answer.status.as_u16(), seen.len())
}

/// Conduct, section 2; RFC 9113, section 8.7: what was refused was not processed, whatever its method; any other code
/// proves nothing, and only what may act twice is sent twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_reset_proves() {
    let mut bench = Bench::new(&[]).await;
    for method in [Method::POST, Method::PATCH, Method::GET, Method::PUT, Method::DELETE] {
        let idempotent = !matches!(method, Method::POST | Method::PATCH);
        for code in [REFUSED_STREAM, CANCEL, INTERNAL_ERROR, ENHANCE_YOUR_CALM, NO_ERROR] {
            let expected = if code == REFUSED_STREAM || idempotent { (200, 2) } else { (502, 1) };
            let path = format!("/reset/{code}/{method}");
            assert_eq!(outcome(&mut bench, &method, &path).await, expected, "{path}");
        }
    }
    assert_eq!(bench.gateway.metric("tidegate_retries_total").await, 17.0, "3 methods with 5 codes, 2 with one");
}

/// RFC 9113, section 8.1: an origin may answer before it has the whole request, and then want no more of it. The answer is
/// whole, so whatever code the reset has (NO_ERROR is the one it should have) takes nothing from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_response_stands_whatever_reset_follows() {
    let mut bench = Bench::new(&[]).await;
    for code in [NO_ERROR, CANCEL] {
        for _ in 0..2 {
            let mut client = RawClient::connect(bench.gateway.edge()).await;
            // Beyond what is kept, and never sent whole.
            let head =
                format!("POST /early/{code}/{} HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n", bench.marks);
            client.send(head.as_bytes()).await;
            client.send(&[b'x'; 150_000]).await;
            let answer = client.until("early\r\n").await;
            let rest = client.until("\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200") && rest.ends_with("0\r\n\r\n"), "{code}: {answer}{rest}");
            let seen = bench.record().await;
            assert_eq!(seen.len(), 1, "{seen:?}");
            assert_eq!(seen[0]["whole"], false);
        }
    }
}

/// Conduct, section 2; RFC 9113, sections 6.8 and 8.7: a request above the stream that GOAWAY names was not processed,
/// whatever the error; one that it names goes on, and is not sent again unless it fails and may act twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_goaway_proves() {
    let mut bench = Bench::new(&[]).await;
    for code in [NO_ERROR, INTERNAL_ERROR, ENHANCE_YOUR_CALM] {
        for (what, method, expected) in [
            ("below", Method::POST, (200, 2)),
            ("below", Method::GET, (200, 2)),
            ("above", Method::POST, (200, 1)),
            ("above", Method::GET, (200, 1)),
            ("two", Method::POST, (200, 1)),
            ("lost", Method::POST, (502, 1)),
            ("lost", Method::GET, (200, 2)),
        ] {
            let path = format!("/goaway/{what}/{code}/{method}");
            assert_eq!(outcome(&mut bench, &method, &path).await, expected, "{path}");
        }
    }
}

/// RFC 9113, section 6.8: streams up to the one that GOAWAY names go on and finish, while those above it, and new ones,
/// are another connection's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_a_goaway_covers_finish() {
    let mut bench = Bench::new(&[]).await;
    for code in [NO_ERROR, INTERNAL_ERROR] {
        let hold = format!("/hold/{code}");
        let held = bench.send(&Method::POST, &hold, "held");
        assert!(bench.until(&hold).await.is_empty());
        let path = format!("/goaway/below/{code}");
        assert_eq!(bench.send(&Method::POST, &path, "above").await.text(), "evoba");
        let seen = bench.record().await;
        let connections: Vec<_> = seen.iter().map(|seen| &seen["connection"]).collect();
        assert!(seen.len() == 2 && connections[0] != connections[1], "{seen:?}");
        assert_eq!(bench.send(&Method::GET, "/release", "").await.status, 200);
        assert_eq!(held.await.text(), "dleh", "{code}");
        let seen = bench.record().await;
        assert_eq!(seen.len(), 1, "the held one is not sent again: {seen:?}");
    }
}

/// RFC 9112, section 8; RFC 9110, section 9.2.2: a connection that ends proves nothing; within a response it ends the
/// client's message as an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_end_of_a_connection_proves() {
    let mut bench = Bench::new(&[]).await;
    assert_eq!(outcome(&mut bench, &Method::POST, "/close/before/1").await, (502, 1));
    assert_eq!(outcome(&mut bench, &Method::PUT, "/close/before/2").await, (200, 2));
    let mut client = RawClient::connect(bench.gateway.edge()).await;
    client.send(b"GET /close/within/1 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let all = client.rest().await;
    assert!(all.contains("half of") && !all.contains("0\r\n\r\n"), "{all}");
    let answer = Client::http2(bench.gateway.edge()).get("/close/within/2").await;
    assert!(answer.is_err(), "cut off, and told so: {answer:?}");
    assert_eq!(bench.record().await.len(), 2, "nothing is repeated once a response began");
}

/// RFC 9113, sections 5.5, 6.2, 6.5.2, 6.7, 6.9.2 and 6.10: what an origin may do, however odd, changes nothing for its
/// clients; and its own strict reading finds nothing wrong with what the gateway sends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_origins_are_served_like_others() {
    for oddity in ["windows", "one", "changing", "table", "pieces", "chatter"] {
        let mut bench = Bench::new(&[oddity]).await;
        for round in 0..3 {
            let asked: Vec<_> = (0..12)
                .map(|index| {
                    // Seven bytes at a time are slow; other windows are to be filled more than once.
                    let length = if oddity == "windows" { 500 + index } else { 9_000 * index + round };
                    let body: String = (0..length).map(|at| char::from(b'a' + ((at + index) % 26) as u8)).collect();
                    let path = format!("/{oddity}/{round}/{index}");
                    (bench.send(&Method::POST, &path, &body), body)
                })
                .collect();
            for (answer, body) in asked {
                let answer = answer.await;
                assert_eq!(answer.status, 200, "{oddity}");
                assert!(answer.text() == body.chars().rev().collect::<String>(), "{oddity}: {} bytes", body.len());
                let sum = answer.trailers.as_ref().and_then(|trailers| trailers.get("x-sum"));
                assert!(sum.is_some_and(|sum| sum == &*body.len().to_string()), "{oddity}: {:?}", answer.trailers);
            }
        }
        // Streams beyond the limit are refused, if some were on their way as it shrank, and not counted here.
        let seen = bench.record().await;
        assert_eq!(seen.len(), 36, "{oddity}: each once");
    }
}
