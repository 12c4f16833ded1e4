//! `CONNECT`: tunnels to a route's cluster, for the authorities that the route names (RFC 9110, section 9.3.6).

use http::{Method, Request};
use tidegate_tests::tunnel::{End, Ended, Http2Client, ask_http1};
use tidegate_tests::{Client, Gateway, RawClient, RawOrigin, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Sends back what it gets, and after its end a word more.
async fn echo() -> RawOrigin {
    RawOrigin::start(|mut stream, _| async move {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut piece).await {
            if stream.write_all(&piece[..count]).await.is_err() {
                return;
            }
        }
        let _ = stream.write_all(b"bye").await;
    })
    .await
}

async fn gateway(origin: &RawOrigin) -> Gateway {
    let connect = "connect = [\"db.example:5432\", \"*.internal:8443\", \"[::1]:80\"]\n";
    Gateway::start(&(crate::simple(&[origin.address], "") + connect)).await
}

fn head(authority: &str) -> String {
    format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n")
}

fn request(authority: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = authority.parse().expect("an authority");
    request
}

async fn talk(mut client: End) {
    client.send(b"hello").await;
    assert_eq!(client.exactly(5).await, b"hello");
    let payload = vec![b'x'; 1 << 20];
    for piece in payload.chunks(4096) {
        client.send(piece).await;
        assert_eq!(client.exactly(piece.len()).await, piece);
    }
    client.finish().await;
    assert_eq!(client.exactly(3).await, b"bye");
    assert_eq!(client.end().await, Ended::Cleanly);
}

/// Conduct "CONNECT", RFC 9113, section 8.5: a connection of its own for each tunnel, bytes both ways, half a close, no
/// framing on the 200, one line in the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_lead_to_the_routes_cluster() {
    let origin = echo().await;
    let gateway = gateway(&origin).await;
    for authority in ["db.example:5432", "DB.example:5432", "a.b.internal:8443", "[::1]:80"] {
        let (answer, client) = ask_http1(gateway.edge(), &head(authority)).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        for gone in ["content-length", "transfer-encoding", "connection"] {
            assert!(!answer.contains(&format!("{gone}:")), "{gone}: {answer}");
        }
        talk(client).await;
    }
    let http2 = Http2Client::connect(gateway.edge()).await;
    let (response, client) = http2.ask(request("db.example:5432")).await.expect("an answer");
    assert_eq!(response.status().as_u16(), 200);
    assert!(!response.headers().contains_key("content-length"));
    talk(client).await;

    assert_eq!(origin.connections(), 5);
    let log = eventually("all are logged", async || Some(gateway.access_log()).filter(|log| log.len() == 5)).await;
    for line in log {
        assert_eq!((line["method"].as_str(), line["status"].as_u64()), (Some("CONNECT"), Some(200)), "{line}");
        assert_eq!(line["bytes_in"].as_u64(), Some(5 + (1 << 20)), "{line}");
        assert_eq!(line["bytes_out"].as_u64(), Some(5 + (1 << 20) + 3), "{line}");
        assert_eq!((line["tunnel"].as_str(), line["cause"].as_str()), (Some("connect"), None), "{line}");
    }
    assert_eq!(gateway.metric("tidegate_tunnels_total{kind=\"connect\"}").await, 5.0);
    assert_eq!(gateway.metric("tidegate_upstream_connections_active").await, 0.0);
}

/// Deny by default (no open proxy, RFC 9110, section 9.3.6): whatever is not named is 403, and what is no authority with
/// a port 400; nobody is connected to, and what was sent after such a request is not taken for the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_named_is_refused() {
    let origin = echo().await;
    let gateway = gateway(&origin).await;
    let closed = crate::gateway_to(origin.address).await;
    for (gateway, authority, status) in [
        (&gateway, "db.example:22", 403),
        (&gateway, "internal:8443", 403),
        (&gateway, "evilinternal:8443", 403),
        (&gateway, "127.0.0.1:9901", 403),
        (&closed, "db.example:5432", 403),
        (&gateway, "db.example", 400),
        (&gateway, "db.example:", 400),
        (&gateway, "http://db.example:5432/", 400),
    ] {
        let mut client = RawClient::connect(gateway.edge()).await;
        client.send((head(authority) + "GET /next HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await;
        let answer = client.rest().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{authority}: {answer}");
        assert!(
            answer.contains("connection: close") && answer.matches("HTTP/1.1").count() == 1,
            "{authority}: {answer}"
        );
    }
    for (gateway, authority, status) in
        [(&gateway, "db.example:22", 403), (&closed, "db.example:5432", 403), (&gateway, "db.example", 400)]
    {
        let answer = Http2Client::connect(gateway.edge()).await.ask(request(authority)).await;
        assert_eq!(answer.expect("an answer").0.status().as_u16(), status, "{authority}");
    }
    assert_eq!(origin.connections(), 0);
    let body = head("db.example:5432").replace("\r\n\r\n", "\r\nContent-Length: 3\r\n\r\nabc");
    let (answer, _) = ask_http1(gateway.edge(), &body).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(origin.connections(), 0);
}

/// No payload before the 2xx, none lost after it; an endpoint that cannot be reached is 502 as for every request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_bytes_wait_and_failures_have_their_status() {
    let origin = echo().await;
    let gateway = gateway(&origin).await;
    let (answer, mut client) = ask_http1(gateway.edge(), &(head("db.example:5432") + "early")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(client.exactly(5).await, b"early");
    let closed = tidegate_tests::gateway::free_address();
    let nobody = Gateway::start(&(crate::simple(&[closed], "") + "connect = [\"a:1\"]\n")).await;
    let (answer, _) = ask_http1(nobody.edge(), &head("a:1")).await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("error=connection_refused"), "{answer}");
    // Other requests of the route are what they were.
    let plain = tidegate_tests::Origin::http1().await;
    let both = Gateway::start(&(crate::simple(&[plain.address], "") + "connect = [\"a:1\"]\n")).await;
    assert_eq!(Client::http1(both.edge()).get("/").await.expect("an answer").text(), "ok");
}

/// RFC 9113, section 8.5: errors of the connection are errors of the stream, and the other way round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_pass() {
    let (ended, mut how) = tokio::sync::mpsc::unbounded_channel();
    let origin = RawOrigin::start(move |mut stream, _| {
        let ended = ended.clone();
        async move {
            loop {
                match stream.read_u8().await {
                    Ok(b'!') => return stream.set_zero_linger().expect("no linger"),
                    Ok(_) => {}
                    Err(error) => return ended.send(error.kind()).expect("the test waits"),
                }
            }
        }
    })
    .await;
    let gateway = gateway(&origin).await;
    let http2 = Http2Client::connect(gateway.edge()).await;
    let (_, mut client) = http2.ask(request("db.example:5432")).await.expect("an answer");
    client.send(b"!").await;
    assert_eq!(client.end().await, Ended::Reset(Some(h2::Reason::CONNECT_ERROR)));
    let (_, mut client) = ask_http1(gateway.edge(), &head("db.example:5432")).await;
    client.send(b"!").await;
    assert_eq!(client.end().await, Ended::Reset(None));
    let (_, mut client) = http2.ask(request("db.example:5432")).await.expect("an answer");
    client.send(b"?").await;
    client.reset();
    assert_eq!(how.recv().await, Some(std::io::ErrorKind::ConnectionReset));
    eventually("three are logged", async || (gateway.access_log().len() == 3).then_some(())).await;
}
