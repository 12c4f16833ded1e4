//! Conduct, section 3: messages that could be read in two ways are refused, and the connection ends.

use http::Method;
use tidegate_tests::{Client, Origin, RawClient, RawOrigin};

/// RFC 9112, sections 2.2, 3.2, 5, 6.1, 6.3 and 7.1: nothing of it reaches the origin, and what follows is not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ambiguous_requests_are_refused_and_the_connection_closed() {
    let origin = Origin::http1().await;
    let gateway = crate::gateway_to(origin.address).await;
    let after = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let post = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{after}");
    let corpus = [
        post("Content-Length: 5\r\nTransfer-Encoding: chunked"),
        post("Transfer-Encoding: chunked\r\nContent-Length: 5"),
        post("Transfer-Encoding: xchunked"),
        post("Transfer-Encoding: chunked, identity"),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        post("Transfer-Encoding:\x0bchunked"),
        post("Content-Length: 5\r\nContent-Length: 6"),
        post("Content-Length: +5"),
        post("Content-Length: 5,5"),
        post("Content-Length: 0x5"),
        post("Content-Length: 18446744073709551616"),
        post("Content-Length : 5"),
        post("X: a\r\n b"),
        post("X: a\0b"),
        post("Host: b"),
        format!("GET / HTTP/1.1\n\n{after}"),
        format!("GET / HTTP/1.1\r\n\r\n{after}"),
        format!("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n{after}"),
        format!("GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n{after}"),
        format!("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{after}"),
    ];
    for text in corpus {
        let mut client = RawClient::connect(gateway.edge()).await;
        client.send(text.as_bytes()).await;
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{text:?} gave {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{text:?} gave {answer:?}");
    }
    assert!(origin.record().is_empty(), "{:?}", origin.record());
    assert!(gateway.metric("tidegate_requests_refused_total{protocol=\"h1\"}").await >= 20.0);
}

/// RFC 9112, section 7.1: a body whose coding breaks never arrives as a whole one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_chunks_do_not_reach_the_origin_as_a_request() {
    let origin = Origin::answering(false, |request| {
        http::Response::new(tidegate_tests::origin::full(format!("{} bytes", request.body.len())))
    })
    .await;
    let gateway = crate::gateway_to(origin.address).await;
    for chunks in ["5\r\nhelloXX0\r\n\r\n", "5\nhello\r\n0\r\n\r\n", "fffffffffffffffff\r\n", "zz\r\n"] {
        let mut client = RawClient::connect(gateway.edge()).await;
        client
            .send(format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}").as_bytes())
            .await;
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{chunks:?} gave {answer:?}");
    }
}

/// RFC 9112, section 6.3, and RFC 9110, section 15: responses are held to the same rules.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ambiguous_responses_are_502() {
    for bytes in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 999999 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n",
    ] {
        let origin = RawOrigin::saying(bytes).await;
        let gateway = crate::gateway_to(origin.address).await;
        let answer = Client::http1(gateway.edge()).send(Method::POST, "/", &[], "x").await.expect("an answer");
        assert_eq!(answer.status, 502, "{:?}", String::from_utf8_lossy(bytes));
        let status = answer.header("proxy-status").unwrap_or_default();
        assert!(status.starts_with("tidegate; error=http_protocol_error"), "{status}");
    }
}
