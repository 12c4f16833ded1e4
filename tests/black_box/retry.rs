//! When a request is tried again, and when not: conduct, section 2.

use http::{Method, Response};
use tidegate_tests::origin::full;
use tidegate_tests::{Client, Gateway, Origin};

/// A port that refuses connections.
fn nobody() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address")
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
