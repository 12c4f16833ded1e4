//! Request bodies that are kept before an upstream is engaged.

use http::Method;
use tidegate_tests::origin::read_head;
use tidegate_tests::{Client, Gateway, Origin, RawClient, RawOrigin};
use tokio::io::AsyncWriteExt;

fn buffering(endpoint: std::net::SocketAddr, more: &str) -> String {
    crate::simple(&[endpoint], "")
        .replace("cluster = \"api\"\n", &format!("cluster = \"api\"\nbuffer = {{ request = \"1KiB\" }}\n{more}"))
}

/// Conduct "Buffering", "Expect: 100-continue ordering": the gateway itself tells a client to go on whose body it wants
/// before it asks anybody (RFC 9110, section 10.1.1), and the origin is not asked to say so again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_for_100_is_told_by_whoever_buffers() {
    let origin = Origin::http1().await;
    let gateway = Gateway::start(&buffering(origin.address, "")).await;
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    assert!(client.until("\r\n\r\n").await.starts_with("HTTP/1.1 100"));
    assert_eq!(origin.connections(), 0, "no upstream is engaged before the body is here");
    client.send(b"hello").await;
    assert!(client.until("ok").await.starts_with("HTTP/1.1 200"));
    assert_eq!((&origin.last().body[..], origin.last().header("expect")), (&b"hello"[..], None));
}

/// Conduct "Idempotent retries": a body is sent again only from a complete buffer, with the same length.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_body_is_sent_again_and_a_longer_one_is_not() {
    let origin = RawOrigin::start(|mut stream, number| async move {
        let head = read_head(&mut stream).await;
        assert!(head.contains("content-length: "), "{head}");
        if number % 2 == 1 {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
            let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut Vec::new()).await;
        }
    })
    .await;
    let more = "retry = { attempts = 3, on = [\"reset\"], backoff = \"1ms\" }\n";
    let gateway = Gateway::start(&buffering(origin.address, more)).await;
    let client = Client::http1(gateway.edge());
    let answer = client.send(Method::PUT, "/", &[], "a small body").await.expect("an answer");
    assert_eq!((answer.status.as_u16(), origin.connections()), (200, 2));
    let answer = client.send(Method::PUT, "/", &[], vec![b'x'; 64 * 1024]).await.expect("an answer");
    assert_eq!((answer.status.as_u16(), origin.connections()), (502, 3), "what streamed is gone");
}
