//! Upstream connections: reused, shared, discarded when they should be.

use http::Method;
use tidegate_tests::origin::read_head;
use tidegate_tests::{Client, Gateway, Origin, RawClient, RawOrigin};
use tokio::io::AsyncWriteExt;

/// RFC 9112, section 9.3: 1,000 sequential requests use one upstream connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequential_requests_share_one_connection() {
    let origin = Origin::http1().await;
    let gateway = crate::gateway_to(origin.address).await;
    let mut client = RawClient::connect(gateway.edge()).await;
    for _ in 0..1000 {
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(client.until("\r\n\r\nok").await.starts_with("HTTP/1.1 200"));
    }
    assert_eq!((origin.record().len(), origin.connections()), (1000, 1));
    assert_eq!(gateway.metric("tidegate_upstream_connections_total").await, 1.0);
    assert_eq!(gateway.metric("tidegate_upstream_connections_reused_total").await, 999.0);
}

/// RFC 9112, section 9.3.1: an origin that closes idle connections at once loses no GET, and no POST is sent twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_closes_idle_connections_loses_nothing() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        if read_head(&mut stream).await.ends_with("\r\n\r\n") {
            // Keep-alive as far as its words go.
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let gateway = crate::gateway_to(origin.address).await;
    let mut client = RawClient::connect(gateway.edge()).await;
    for _ in 0..1000 {
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let answer = client.until("\r\n\r\nok").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

/// RFC 9110, section 9.2.2: a POST of which bytes were sent is never repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_that_was_sent_is_never_repeated() {
    // Reads the request and hangs up without a word.
    let origin = RawOrigin::start(|mut stream, _| async move {
        read_head(&mut stream).await;
    })
    .await;
    let config = crate::simple(&[origin.address], "").replace(
        "cluster = \"api\"\n",
        "cluster = \"api\"\nretry = { attempts = 5, on = [\"reset\", \"connect\"] }\nbuffer = { request = \"1KiB\" }\n",
    );
    let gateway = Gateway::start(&config).await;
    let client = Client::http1(gateway.edge());
    for count in 1..=20 {
        let answer = client.send(Method::POST, "/", &[], "once").await.expect("an answer");
        assert_eq!((answer.status.as_u16(), origin.connections()), (502, count));
    }
    let before = origin.connections();
    let answer = client.get("/").await.expect("an answer");
    assert_eq!((answer.status.as_u16(), origin.connections() - before), (502, 5), "a GET is tried as often as allowed");
    assert!(gateway.metric("tidegate_retries_refused_total{reason=\"unsafe\"}").await >= 20.0);
}

/// RFC 9112, section 9.3 and "response queue poisoning": bytes nobody asked for spoil a connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsolicited_bytes_never_answer_the_next_request() {
    let origin = RawOrigin::start(|mut stream, number| async move {
        while read_head(&mut stream).await.ends_with("\r\n\r\n") {
            let text = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
            );
            if stream.write_all(text.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await;
    let gateway = crate::gateway_to(origin.address).await;
    let client = Client::http1(gateway.edge());
    for number in 0..5 {
        assert_eq!(client.get("/").await.expect("an answer").text(), number.to_string());
    }
}

/// RFC 9113, section 5.1.2: streams share a connection up to the cap, and another is opened beyond it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_streams_share_connections_up_to_a_cap() {
    let origin = Origin::http2().await;
    let more = "protocol = \"http2\"\nmax_streams_per_connection = 4";
    let gateway = Gateway::start(&crate::simple(&[origin.address], more)).await;
    crate::streams_share_connections(&gateway, &origin).await;
}

/// Conduct "HTTP/2 HOL", RFC 9113, section 5.2: readers that stall hold up nobody else on the shared upstream connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_readers_do_not_block_a_shared_connection() {
    let origin = Origin::answering(true, |request| {
        let size = if request.path == "/large" { 8 << 20 } else { 2 };
        http::Response::new(tidegate_tests::origin::full(vec![b'x'; size]))
    })
    .await;
    let gateway = Gateway::start(&crate::simple(&[origin.address], "protocol = \"http2\"")).await;
    let mut stalled = Vec::new();
    for _ in 0..24 {
        let mut client = RawClient::connect(gateway.edge()).await;
        client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n").await;
        // The head, and no byte more.
        assert!(client.until("\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        stalled.push(client);
    }
    for _ in 0..8 {
        assert_eq!(Client::http1(gateway.edge()).get("/small").await.expect("an answer").text(), "xx");
    }
    assert!(origin.connections() <= 2, "a connection a worker: {}", origin.connections());
}

/// RFC 9110, section 10.1.4: `TE` is passed on in the one form that HTTP/2 takes, and costs no connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn te_trailers_passes_in_any_spelling() {
    let origin = Origin::http2().await;
    let gateway = Gateway::start(&crate::simple(&[origin.address], "protocol = \"http2\"")).await;
    let client = Client::http1(gateway.edge());
    for value in ["Trailers", "trailers", "gzip"] {
        let answer = client.send(Method::GET, "/", &[("te", value)], "").await.expect("an answer");
        assert_eq!(answer.status, 200);
        assert_eq!(origin.last().header("te"), (value != "gzip").then_some("trailers"));
    }
    assert!(origin.connections() <= 2, "a connection a worker: {}", origin.connections());
}

/// RFC 3986 knows no such path, HTTP/1 senders do: HTTP/2's `:path` cannot carry it, which is the client's to learn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn targets_that_http2_cannot_carry_are_400() {
    let origin = Origin::http2().await;
    let gateway = Gateway::start(&crate::simple(&[origin.address], "protocol = \"http2\"")).await;
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(b"GET /?q=<a> HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let mut old = RawClient::connect(gateway.edge()).await;
    old.send(b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(old.rest().await.starts_with("HTTP/1.1 200"), "no authority to name is no reason to refuse");
}
