//! When a request is tried again, and when not: conduct, section 2.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Method, Response};
use tidegate_tests::origin::{full, read_head};
use tidegate_tests::{Client, Gateway, Origin, RawClient, RawOrigin};
use tokio::io::AsyncWriteExt;

/// A port that refuses connections.
fn nobody() -> std::net::SocketAddr {
    tidegate_tests::gateway::free_address()
}

/// RFC 9110, section 9.2.2: nothing was sent, so any method goes elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_connection_is_retried_elsewhere_for_any_method() {
    let origin = Origin::http1().await;
    let gateway = Gateway::start(&crate::simple(&[nobody(), origin.address], "")).await;
    let client = Client::http1(gateway.edge());
    for _ in 0..10 {
        let answer = client.send(Method::POST, "/", &[], "a body").await.expect("an answer");
        assert_eq!(answer.status, 200);
    }
    assert!(origin.record().iter().all(|seen| &seen.body[..] == b"a body"));
    assert!(gateway.metric("tidegate_retries_total").await >= 4.0);
}

/// A status is retried where the route says so, for idempotent methods, within the attempts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_are_retried_by_rule() {
    let failing = Origin::answering(false, |_| {
        let mut response = Response::new(full("no"));
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        response
    })
    .await;
    let config = crate::simple(&[failing.address], "").replace(
        "cluster = \"api\"\n",
        "cluster = \"api\"\nretry = { on = [\"gateway\"], attempts = 3, backoff = \"1ms\" }\n",
    );
    let gateway = Gateway::start(&config).await;
    let client = Client::http1(gateway.edge());
    let answer = client.get("/").await.expect("an answer");
    assert_eq!((answer.status.as_u16(), answer.text(), failing.record().len()), (503, "no".to_owned(), 3));
    client.send(Method::POST, "/", &[], "x").await.expect("an answer");
    assert_eq!(failing.record().len(), 4, "a POST that was answered is not repeated");
}

/// A budget bounds retries whatever the route allows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_keep_to_their_budget() {
    let more = "retry_budget = { percent = \"0%\", min = 0 }";
    let gateway = Gateway::start(&crate::simple(&[nobody(), nobody()], more)).await;
    let answer = Client::http1(gateway.edge()).get("/").await.expect("an answer");
    assert_eq!(answer.status, 502);
    assert_eq!(gateway.metric("tidegate_retries_total").await, 0.0);
    assert!(gateway.metric("tidegate_retries_refused_total{reason=\"budget\"}").await >= 1.0);
}

/// An origin that answers its first request with `first`, and others with 200.
async fn once(first: &'static str) -> RawOrigin {
    let asked = Arc::new(AtomicUsize::new(0));
    RawOrigin::start(move |mut stream, _| {
        let asked = asked.clone();
        async move {
            while read_head(&mut stream).await.ends_with("\r\n\r\n") {
                let again = asked.fetch_add(1, Ordering::SeqCst) > 0;
                let answer = if again { "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" } else { first };
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

async fn retrying(origin: &RawOrigin, on: &str) -> Gateway {
    let retry = format!("cluster = \"api\"\nretry = {{ on = [{on}], attempts = 2, backoff = \"1ms\" }}\n");
    Gateway::start(&crate::simple(&[origin.address], "").replace("cluster = \"api\"\n", &retry)).await
}

/// Conduct, section 2, "421": not processed here, so any method may go to a new connection (RFC 9110, section 15.5.20).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn misdirected_requests_are_tried_on_another_connection() {
    let origin = once("HTTP/1.1 421 Misdirected Request\r\nContent-Length: 0\r\n\r\n").await;
    let gateway = retrying(&origin, "\"refused\"").await;
    let answer = Client::http1(gateway.edge()).send(Method::POST, "/", &[], "").await.expect("an answer");
    assert_eq!((answer.status.as_u16(), origin.connections()), (200, 2));
}

/// Conduct, section 2, "425": not processed, but who sent the request early is who has to hear of it (RFC 8470, 5.2).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_early_is_retried_only_for_those_who_did_not_ask_early() {
    const EARLY: &str = "HTTP/1.1 425 Too Early\r\nContent-Length: 0\r\n\r\n";
    let origin = once(EARLY).await;
    let gateway = retrying(&origin, "\"425\"").await;
    let answer = Client::http1(gateway.edge()).send(Method::POST, "/", &[], "").await.expect("an answer");
    assert_eq!(answer.status, 200);
    let origin = once(EARLY).await;
    let gateway = retrying(&origin, "\"425\"").await;
    let fields = [("early-data", "1")];
    let answer = Client::http1(gateway.edge()).send(Method::GET, "/", &fields, "").await.expect("an answer");
    assert_eq!(answer.status, 425);
}

/// Conduct, section 2, "408 on idle reuse race" (RFC 9110, section 15.5.9): idempotent requests are tried again, others
/// are not, and a 408 on a fresh connection is an answer like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_408_that_crosses_a_request_is_not_its_answer() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        read_head(&mut stream).await;
        let _ =
            stream.write_all(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    })
    .await;
    let gateway = retrying(&origin, "\"reset\"").await;
    let mut client = RawClient::connect(gateway.edge()).await;
    for count in [1, 2, 3] {
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let answer = client.until("\r\n\r\nok").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{count}: {answer}");
        assert_eq!(origin.connections(), count);
    }
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
    let answer = client.until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}
