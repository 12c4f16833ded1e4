//! HTTP/1.1 and 1.0 as a client and an origin see them.

use http::Method;
use tidegate_tests::origin::{full, read_head};
use tidegate_tests::{Client, Origin, RawClient, RawOrigin, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// RFC 9110, section 7.6.1 and CVE-2026-105299's class: hop-by-hop fields and those named in Connection stop here, what
/// the gateway adds and what matters to the origin does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hop_by_hop_fields_end_here() {
    let origin = Origin::answering(false, |_| {
        let mut response = http::Response::new(full("ok"));
        response.headers_mut().insert("connection", "x-private".parse().expect("a value"));
        response.headers_mut().insert("x-private", "1".parse().expect("a value"));
        response.headers_mut().insert("keep-alive", "timeout=5".parse().expect("a value"));
        response
    })
    .await;
    let gateway = crate::gateway_to(origin.address).await;
    let fields = [
        ("connection", "close, x-secret, x-forwarded-for, authorization"),
        ("x-secret", "1"),
        ("authorization", "Basic x"),
        ("proxy-connection", "keep-alive"),
        ("keep-alive", "300"),
        ("te", "gzip"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABkAAQAAP__"),
        ("x_forwarded_for", "6.6.6.6"),
        ("true-client-ip", "6.6.6.6"),
    ];
    let answer = Client::http1(gateway.edge()).send(Method::GET, "/", &fields, "").await.expect("an answer");
    assert!(answer.header("x-private").is_none() && answer.header("keep-alive").is_none(), "{:?}", answer.headers);
    let seen = origin.last();
    for gone in [
        "x-secret",
        "proxy-connection",
        "keep-alive",
        "te",
        "upgrade",
        "http2-settings",
        "x_forwarded_for",
        "true-client-ip",
    ] {
        assert!(seen.header(gone).is_none(), "{gone}: {:?}", seen.headers);
    }
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("authorization"), Some("Basic x"));
    assert_eq!(seen.header("via"), Some("1.1 tidegate"));
}

/// RFC 9112, section 9.3.2: pipelined requests are answered in order, on one connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::answering(false, |request| http::Response::new(full(request.path.clone()))).await;
    let gateway = crate::gateway_to(origin.address).await;
    let mut client = RawClient::connect(gateway.edge()).await;
    let one = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    client
        .send(
            format!("{}{}{}", one("/1"), one("/2"), one("/3").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"))
                .as_bytes(),
        )
        .await;
    let all = client.rest().await;
    let places: Vec<usize> =
        ["\r\n\r\n/1", "\r\n\r\n/2", "\r\n\r\n/3"].iter().map(|end| all.find(end).expect("an answer")).collect();
    assert!(places.is_sorted(), "{all}");
    assert_eq!(all.matches("HTTP/1.1 200 OK").count(), 3);
}

/// RFC 9112, sections 3.2.2 and 9.3: absolute-form overrides Host; HTTP/1.0 without keep-alive is closed and gets no
/// chunked coding; RFC 9110, section 9.3.2 and 15.4.5: HEAD and 304 have no body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_and_bodiless_messages() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        loop {
            let head = read_head(&mut stream).await;
            let answer: &[u8] = match head.split(' ').nth(1) {
                Some("/chunked") => {
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"
                }
                Some("/304") => b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
                Some("/head") => b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n",
                Some("/host") => b"HTTP/1.1 204 No Content\r\n\r\n",
                _ => return,
            };
            if head.contains("/host") {
                assert!(head.contains("host: b.example\r\n"), "{head}");
            }
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    })
    .await;
    let gateway = crate::gateway_to(origin.address).await;
    let ask = async |text: &str| {
        let mut client = RawClient::connect(gateway.edge()).await;
        client.send(text.as_bytes()).await;
        client.rest().await
    };
    let old = ask("GET /chunked HTTP/1.0\r\n\r\n").await;
    assert!(old.ends_with("\r\n\r\nhello") && !old.contains("chunked") && old.contains("connection: close"), "{old}");
    let new = ask("GET /chunked HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(new.ends_with("5\r\nhello\r\n0\r\nx-t: 1\r\n\r\n"), "{new}");
    let head = ask("HEAD /head HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(head.contains("content-length: 7") && head.ends_with("\r\n\r\n"), "{head}");
    let not_modified = ask("GET /304 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(not_modified.starts_with("HTTP/1.1 304") && not_modified.ends_with("\r\n\r\n"), "{not_modified}");
    let host = ask("GET http://B.example/host HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(host.starts_with("HTTP/1.1 204") && !host.contains("content-length"), "{host}");
}

/// RFC 9110, sections 10.1.1 and 15.2: interim responses are the origin's and pass through; 100 is not ours to invent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_responses_pass_through() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        let head = read_head(&mut stream).await;
        assert!(head.contains("expect: 100-continue"), "{head}");
        stream
            .write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
            .await
            .expect("sent");
        let mut body = [0; 5];
        stream.read_exact(&mut body).await.expect("the body");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("sent");
    })
    .await;
    let gateway = crate::gateway_to(origin.address).await;
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    let hints = client.until("\r\n\r\n").await;
    assert!(hints.starts_with("HTTP/1.1 103") && hints.contains("link: </a>"), "{hints}");
    assert!(client.until("\r\n\r\n").await.starts_with("HTTP/1.1 100"));
    client.send(b"hello").await;
    assert!(client.until("ok").await.starts_with("HTTP/1.1 200"));
}

/// RFC 9112, section 8: a response cut short upstream is cut short downstream, never ended cleanly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_response_is_not_a_whole_one() {
    for cut in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let origin = RawOrigin::saying(cut).await;
        let gateway = crate::gateway_to(origin.address).await;
        let mut client = RawClient::connect(gateway.edge()).await;
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let got = client.rest().await;
        assert!(got.contains("half") && !got.contains("\r\n0\r\n"), "{got}");
        assert!(Client::http2(gateway.edge()).get("/").await.is_err(), "HTTP/2 resets the stream");
        let line = eventually("it is logged", async || gateway.access_log().into_iter().next()).await;
        assert_eq!(line["cause"], "response_truncated", "{line}");
    }
}

/// RFC 9112, section 9.5: a client that leaves cancels the upstream request, and is logged as cancelled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_cancels_the_upstream_request() {
    let (gone, mut left) = tokio::sync::mpsc::unbounded_channel();
    let origin = RawOrigin::start(move |mut stream, _| {
        let gone = gone.clone();
        async move {
            read_head(&mut stream).await;
            let mut rest = [0; 1];
            // Answers nothing; ends when the gateway hangs up.
            let _ = stream.read(&mut rest).await;
            gone.send(()).expect("the test waits");
        }
    })
    .await;
    let gateway = crate::gateway_to(origin.address).await;
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
    eventually("the origin is asked", async || (origin.connections() == 1).then_some(())).await;
    drop(client);
    left.recv().await.expect("the upstream request is given up");
    let line = eventually("the line is written", async || gateway.access_log().pop()).await;
    assert_eq!((line["cancelled"].as_bool(), line["cause"].as_str()), (Some(true), Some("client_gone")));
}

/// RFC 6585, section 5; RFC 9110, section 15.5.9: limits and times of a head.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_are_limited_in_size_number_and_time() {
    let origin = Origin::http1().await;
    let limits = "header_timeout = \"300ms\"\nmax_header_bytes = \"2KiB\"\nmax_headers = 10\nname = \"edge\"";
    let config = crate::simple(&[origin.address], "").replacen("name = \"edge\"", limits, 1);
    let gateway = tidegate_tests::Gateway::start(&config).await;
    let ask = async |text: String| {
        let mut client = RawClient::connect(gateway.edge()).await;
        client.send(text.as_bytes()).await;
        client.rest().await
    };
    let big = ask(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(4000))).await;
    assert!(big.starts_with("HTTP/1.1 431"), "{big}");
    let long = ask(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(4000))).await;
    assert!(long.starts_with("HTTP/1.1 414") || long.starts_with("HTTP/1.1 431"), "{long}");
    let many = ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(20))).await;
    assert!(many.starts_with("HTTP/1.1 431"), "{many}");
    let slow = ask("GET / HTTP/1.1\r\nHost:".to_owned()).await;
    assert!(slow.is_empty() || slow.starts_with("HTTP/1.1 408"), "{slow}");
    assert!(origin.record().is_empty());
}

/// Conduct "L7 terminating proxy": a request that comes round again and again is stopped (RFC 9110, section 7.6.3; RFC
/// 9209, `proxy_loop_detected`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loops_end() {
    let origin = Origin::http1().await;
    let gateway = crate::gateway_to(origin.address).await;
    let client = Client::http1(gateway.edge());
    let via = |times: usize| vec!["1.1 tidegate"; times].join(", ");
    let passed = client.send(Method::GET, "/", &[("via", &via(10))], "").await.expect("an answer");
    assert_eq!(passed.status, 200);
    let vias: Vec<_> = origin.last().headers.get_all("via").iter().cloned().collect();
    assert_eq!(vias.last().and_then(|via| via.to_str().ok()), Some("1.1 tidegate"), "{vias:?}");
    let stopped = client.send(Method::GET, "/", &[("via", &via(11))], "").await.expect("an answer");
    assert_eq!(stopped.status, 508);
    assert_eq!(stopped.header("proxy-status"), Some("tidegate; error=proxy_loop_detected"));
}

/// Conduct "TRACE/OPTIONS Max-Forwards": counted down, and answered here at nought (RFC 9110, section 7.6.2).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn max_forwards_counts_down() {
    let origin = Origin::http1().await;
    let gateway = crate::gateway_to(origin.address).await;
    let client = Client::http1(gateway.edge());
    let ask = async |method: Method, hops: &str| {
        client.send(method, "/x", &[("max-forwards", hops), ("cookie", "secret=1")], "").await.expect("an answer")
    };
    assert_eq!(ask(Method::OPTIONS, "3").await.status, 200);
    assert_eq!(origin.last().header("max-forwards"), Some("2"));
    assert_eq!(ask(Method::GET, "0").await.status, 200);
    assert_eq!(origin.last().header("max-forwards"), Some("0"), "it means nothing to a GET");
    let asked = origin.record().len();
    assert_eq!(ask(Method::OPTIONS, "0").await.status, 200);
    let trace = ask(Method::TRACE, "0").await;
    assert_eq!(trace.header("content-type"), Some("message/http"));
    assert!(trace.text().starts_with("TRACE /x HTTP/1.1") && !trace.text().contains("secret"), "{}", trace.text());
    assert_eq!(origin.record().len(), asked, "nobody else was asked");
}
