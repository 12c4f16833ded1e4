//! WebSocket through the gateway: HTTP/1.1 and HTTP/2 to clients and to origins (RFC 6455, RFC 8441).

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use h2::Reason;
use http::Method;
use tidegate_tests::certs::Authority;
use tidegate_tests::origin::read_head;
use tidegate_tests::tunnel::{
    ACCEPT, Asked, End, Ended, Http2Client, Http3Client, KEY, Speaks, TunnelOrigin, accept, ask_http1, frame, handshake,
};
use tidegate_tests::{Client, Gateway, RawClient, RawOrigin, eventually};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

fn config(origin: SocketAddr, http2: bool, route: &str) -> String {
    let protocol = if http2 { "protocol = \"http2\"" } else { "" };
    crate::simple(&[origin], protocol) + route
}

/// A tunnel through the gateway: the answer's status, what the origin was asked, both ends.
async fn open(gateway: &Gateway, origin: &mut TunnelOrigin, http2: bool) -> (u16, Asked, End, End) {
    let (status, client) = if http2 {
        let (response, client) = Http2Client::connect(gateway.edge())
            .await
            .ask(Http2Client::request("websocket", "/chat"))
            .await
            .expect("an answer");
        for gone in ["connection", "upgrade", "sec-websocket-accept", "content-length"] {
            assert!(!response.headers().contains_key(gone), "{gone}: {response:?}");
        }
        assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
        (response.status().as_u16(), client)
    } else {
        let (head, client) = ask_http1(gateway.edge(), &handshake("/chat")).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        for field in ["connection: upgrade", "upgrade: websocket", "sec-websocket-protocol: chat"] {
            assert!(head.contains(&format!("\r\n{field}\r\n")), "{field}: {head}");
        }
        assert!(head.contains(&format!("sec-websocket-accept: {ACCEPT}\r\n")), "{head}");
        assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
        (101, client)
    };
    let (asked, server) = origin.tunnel().await;
    (status, asked, client, server)
}

async fn last_line(gateway: &Gateway) -> serde_json::Value {
    eventually("the exchange is logged", async || gateway.access_log().pop()).await
}

/// Conduct "WebSocket h1/h2/h3": all four ways. RFC 6455, section 4; RFC 8441, section 5: an HTTP/2 origin gets no key,
/// an HTTP/1.1 one a valid one; what passes then is not touched, a mebibyte each way, and half a close is half a close.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_ways_byte_for_byte() {
    for (from_http2, to_http2) in [(false, false), (true, false), (false, true), (true, true)] {
        let speaks = if to_http2 { Speaks::Http2 } else { Speaks::Http1 };
        let mut origin = TunnelOrigin::start(speaks).await;
        let gateway = Gateway::start(&config(origin.address, to_http2, "")).await;
        let (status, asked, mut client, mut server) = open(&gateway, &mut origin, from_http2).await;
        let way = format!("{from_http2} to {to_http2}: {asked:?}");
        assert_eq!((asked.path.as_str(), asked.protocol.as_deref()), ("/chat", Some("websocket")), "{way}");
        assert_eq!(asked.header("sec-websocket-version"), Some("13"), "{way}");
        assert_eq!(asked.header("sec-websocket-protocol"), Some("chat"), "{way}");
        assert!(asked.header("via").is_some(), "{way}");
        if to_http2 {
            assert_eq!((&asked.method, asked.header("sec-websocket-key")), (&Method::CONNECT, None), "{way}");
        } else {
            assert_eq!((&asked.method, asked.header("connection")), (&Method::GET, Some("upgrade")), "{way}");
            let key = asked.header("sec-websocket-key").expect("a key");
            assert_eq!((key == KEY, key.len()), (!from_http2, 24), "{way}");
        }

        client.send(&frame(b"hello", true)).await;
        assert_eq!(server.exactly(11).await, frame(b"hello", true), "{way}");
        server.send(&frame(b"hello", false)).await;
        assert_eq!(client.exactly(7).await, frame(b"hello", false), "{way}");

        let payload: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let (up, down) = (frame(&payload, true), frame(&payload, false));
        let client_side = async {
            let (sent, got) = both(&mut client, &up, down.len()).await;
            assert!(sent && got == down, "{way}");
        };
        let server_side = async {
            let (sent, got) = both(&mut server, &down, up.len()).await;
            assert!(sent && got == up, "{way}");
        };
        tokio::join!(client_side, server_side);

        client.finish().await;
        assert_eq!(server.end().await, Ended::Cleanly, "{way}");
        server.send(b"last words").await;
        assert_eq!(client.exactly(10).await, b"last words", "{way}");
        assert_eq!(gateway.metric("tidegate_tunnels_active").await, 1.0);
        server.finish().await;
        assert_eq!(client.end().await, Ended::Cleanly, "{way}");

        let line = last_line(&gateway).await;
        assert_eq!(
            (line["status"].as_u64(), line["tunnel"].as_str()),
            (Some(status.into()), Some("websocket")),
            "{line}"
        );
        assert_eq!(status, if from_http2 { 200 } else { 101 });
        assert_eq!(line["bytes_in"].as_u64(), Some(11 + up.len() as u64), "{line}");
        assert_eq!(line["bytes_out"].as_u64(), Some(7 + down.len() as u64 + 10), "{line}");
        assert_eq!((line["cancelled"].as_bool(), line["cause"].as_str()), (Some(false), None), "{line}");
        assert_eq!(gateway.access_log().len(), 1);
        assert_eq!(gateway.metric("tidegate_tunnels_total{kind=\"websocket\"}").await, 1.0);
        assert_eq!(gateway.metric("tidegate_tunnels_active").await, 0.0);
    }
}

/// Sends and receives at once.
async fn both(end: &mut End, sent: &[u8], count: usize) -> (bool, Vec<u8>) {
    // In pieces, so that neither direction fills up while the other is not looked at.
    let mut got = Vec::with_capacity(count);
    for piece in sent.chunks(16 * 1024) {
        end.send(piece).await;
        if got.len() < count {
            got.extend_from_slice(&end.next().await.expect("bytes"));
        }
    }
    while got.len() < count {
        got.extend_from_slice(&end.next().await.expect("bytes"));
    }
    (true, got)
}

/// CVE-2026-2833's class, RFC 9110, section 7.8: what a client sends after its request stays here until the upstream
/// accepts, and is the next request if it does not. Its bound is the codec's read-ahead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_forwarded_before_the_upstream_accepts() {
    let (seen, mut early) = tokio::sync::mpsc::unbounded_channel();
    let origin = RawOrigin::start(move |mut stream, _| {
        let seen = seen.clone();
        async move {
            let head = read_head(&mut stream).await;
            let mut piece = [0; 64];
            let waited = tokio::time::timeout(Duration::from_millis(300), stream.read(&mut piece)).await;
            seen.send(waited.is_ok()).expect("the test waits");
            let key = head.split("sec-websocket-key: ").nth(1).and_then(|rest| rest.lines().next()).expect("a key");
            let answer = if head.starts_with("GET /chat") {
                format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Accept: {}\r\n\r\nearly too",
                    accept(key)
                )
            } else {
                "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".to_owned()
            };
            stream.write_all(answer.as_bytes()).await.expect("sent");
            // What comes now is sent back.
            while let Ok(count @ 1..) = stream.read(&mut piece).await {
                stream.write_all(&piece[..count]).await.expect("sent");
            }
        }
    })
    .await;
    let gateway = Gateway::start(&config(origin.address, false, "")).await;

    let (_, mut client) = ask_http1(gateway.edge(), &(handshake("/chat") + "early bytes")).await;
    assert_eq!(early.recv().await, Some(false), "bytes before the 101");
    assert_eq!(client.exactly(20).await, b"early tooearly bytes");

    let request = Http2Client::request("websocket", "/chat");
    let (response, mut client) =
        Http2Client::connect(gateway.edge()).await.ask_early(request, b"early bytes").await.expect("an answer");
    assert_eq!((response.status().as_u16(), early.recv().await), (200, Some(false)), "bytes before the 101");
    assert_eq!(client.exactly(20).await, b"early tooearly bytes");

    // Refused: it was a request all along.
    let mut client = RawClient::connect(gateway.edge()).await;
    let next = "GET /next HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade, close\r\nSec-WebSocket-Key: bad\r\n\r\n";
    client.send((handshake("/refuse") + next).as_bytes()).await;
    let all = client.rest().await;
    assert_eq!(early.recv().await, Some(false), "bytes before the answer");
    assert!(all.starts_with("HTTP/1.1 403 ") && all.contains("\r\n\r\nnoHTTP/1.1 400 "), "{all}");
}

/// Conduct "bytes are held back, bounded": a client that does not wait is stopped, and the gateway's memory with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_back_is_bounded() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        // Neither accepts nor refuses.
        let _ = stream.read_u8().await;
    })
    .await;
    let gateway = Gateway::start(&config(origin.address, false, "")).await;
    let before = gateway.resident();
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(handshake("/").as_bytes()).await;
    let piece = vec![0; 1 << 20];
    let mut sent = 0;
    while tokio::time::timeout(Duration::from_secs(1), client.0.write_all(&piece)).await.is_ok_and(|sent| sent.is_ok())
    {
        sent += piece.len();
        assert!(sent < 64 << 20, "the gateway takes all of it");
    }
    let grown = gateway.resident().saturating_sub(before);
    assert!(grown < 16 << 20, "memory grew by {grown} bytes");
}

/// RFC 6455, section 4.1, RFC 8441, section 5: a refusal is a response like any other, the connection stays usable on
/// both sides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_ordinary_responses() {
    for to_http2 in [false, true] {
        let speaks = if to_http2 { Speaks::Http2 } else { Speaks::Http1 };
        let mut origin = TunnelOrigin::start(speaks).await;
        let gateway =
            Gateway::start(&config(origin.address, to_http2, "").replacen("workers = 2", "workers = 1", 1)).await;
        let mut client = RawClient::connect(gateway.edge()).await;
        for _ in 0..2 {
            client.send(handshake("/refuse").as_bytes()).await;
            let answer = client.until("\r\n\r\nno").await;
            assert!(answer.starts_with("HTTP/1.1 403 ") && !answer.contains("connection: close"), "{answer}");
            client.send(b"GET /plain HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert!(client.until("\r\n\r\nok").await.starts_with("HTTP/1.1 200 "));
        }
        let http2 = Http2Client::connect(gateway.edge()).await;
        for _ in 0..2 {
            let (response, mut stream) =
                http2.ask(Http2Client::request("websocket", "/refuse")).await.expect("an answer");
            assert_eq!((response.status().as_u16(), stream.exactly(2).await), (403, b"no".to_vec()));
            assert_eq!(stream.end().await, Ended::Cleanly);
        }
        for _ in 0..6 {
            assert!(origin.next().await.1.is_none());
        }
        // One of each worker.
        assert!(origin.connections() <= 2, "{} connections", origin.connections());
    }
}

/// RFC 6455, section 4.1: what accepts must prove that it read the request. Nothing wrong is passed on, or tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acceptances_that_do_not_hold_are_502() {
    let all = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    for (status, fields) in [
        ("101 Switching Protocols", format!("{all}Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n")),
        ("101 Switching Protocols", all.to_owned()),
        (
            "101 Switching Protocols",
            format!("{all}Sec-WebSocket-Accept: {ACCEPT}\r\nSec-WebSocket-Accept: {ACCEPT}\r\n"),
        ),
        (
            "101 Switching Protocols",
            format!("Connection: upgrade\r\nUpgrade: h2c\r\nSec-WebSocket-Accept: {ACCEPT}\r\n"),
        ),
        ("101 Switching Protocols", format!("Upgrade: websocket\r\nSec-WebSocket-Accept: {ACCEPT}\r\n")),
        // To HTTP/2 a success would say that the tunnel is open.
        ("200 OK", "Content-Length: 2\r\n".to_owned()),
    ] {
        let answer: &'static str = Box::leak(format!("HTTP/1.1 {status}\r\n{fields}\r\nok").into_boxed_str());
        let origin = RawOrigin::saying(answer.as_bytes()).await;
        let retry = "retry = { attempts = 3, on = [\"reset\", \"gateway\", \"5xx\"] }\n";
        let gateway = Gateway::start(&config(origin.address, false, retry)).await;
        let (response, _) = Http2Client::connect(gateway.edge())
            .await
            .ask(Http2Client::request("websocket", "/"))
            .await
            .expect("an answer");
        assert_eq!(response.status().as_u16(), 502, "{answer}");
        assert_eq!(response.headers()["proxy-status"], "tidegate; error=http_upgrade_failed");
        let (head, _) = ask_http1(gateway.edge(), &handshake("/")).await;
        let expected = if status.starts_with("200") { "HTTP/1.1 200 " } else { "HTTP/1.1 502 " };
        assert!(head.starts_with(expected), "{answer}: {head}");
        assert_eq!(origin.connections(), 2, "{answer}");
    }
}

/// Conduct "upgrade + body", RFC 6455, section 4.2.1: a handshake has no content and a key; what is none is refused here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_with_content_or_without_a_key_are_400() {
    let mut origin = TunnelOrigin::start(Speaks::Http1).await;
    let gateway = Gateway::start(&config(origin.address, false, "")).await;
    let good = handshake("/");
    for bad in [
        good.replace("\r\n\r\n", "\r\nContent-Length: 3\r\n\r\nabc"),
        good.replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        good.replace(&format!("Sec-WebSocket-Key: {KEY}\r\n"), ""),
        good.replace(KEY, "short"),
        good.replace("\r\n\r\n", &format!("\r\nSec-WebSocket-Key: {KEY}\r\n\r\n")),
    ] {
        let (head, _) = ask_http1(gateway.edge(), &bad).await;
        assert!(head.starts_with("HTTP/1.1 400 "), "{bad}: {head}");
    }
    let mut request = Http2Client::request("websocket", "/");
    request.headers_mut().insert("content-length", "3".parse().expect("a value"));
    let (response, _) = Http2Client::connect(gateway.edge()).await.ask_early(request, b"abc").await.expect("an answer");
    assert_eq!(response.status().as_u16(), 400);
    assert!(origin.unasked() && origin.connections() == 0);
}

/// RFC 9110, section 7.8: an upgrade to h2c, to what we do not know, or in HTTP/1.0 ends here and the request goes on;
/// RFC 8441, section 4: in HTTP/2 there is nothing to go on with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_protocols_are_left_out() {
    let mut origin = TunnelOrigin::start(Speaks::Http1).await;
    let gateway = Gateway::start(&config(origin.address, false, "")).await;
    let closed = Gateway::start(&config(origin.address, false, "upgrade = []\n")).await;
    let head = |upgrade: &str, version: &str| {
        format!(
            "GET / HTTP/{version}\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        )
    };
    for (gateway, request) in [
        (&gateway, head("h2c", "1.1")),
        (&gateway, head("tls/1.0, irc", "1.1")),
        (&gateway, head("websocket", "1.0")),
        (&gateway, head("websocket", "1.1").replace("Connection: Upgrade, ", "Connection: ")),
        (&gateway, head("websocket", "1.1").replace("GET", "POST")),
        (&closed, head("websocket", "1.1")),
    ] {
        let (answer, _) = ask_http1(gateway.edge(), &request).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("upgrade"), "{request}: {answer}");
        let (asked, tunnel) = origin.next().await;
        assert!(tunnel.is_none());
        for gone in ["upgrade", "connection", "http2-settings"] {
            assert_eq!(asked.header(gone), None, "{request}");
        }
    }
    for (gateway, protocol) in [(&gateway, "connect-ip"), (&gateway, "h2c"), (&closed, "websocket")] {
        let (response, _) = Http2Client::connect(gateway.edge())
            .await
            .ask(Http2Client::request(protocol, "/"))
            .await
            .expect("an answer");
        assert_eq!(response.status().as_u16(), 501, "{protocol}");
    }
    assert!(origin.unasked());
}

/// An answer of the gateway's own never opens a tunnel (RFC 8441, section 4: any 2xx would).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_answers_open_no_tunnel() {
    let config = "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\n[[route]]\nrespond = { status = 200, body = \"own\" }\n";
    let gateway = Gateway::start(config).await;
    let (response, _) = Http2Client::connect(gateway.edge())
        .await
        .ask(Http2Client::request("websocket", "/"))
        .await
        .expect("an answer");
    assert_eq!(response.status().as_u16(), 501);
    let (head, _) = ask_http1(gateway.edge(), &handshake("/")).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
}

/// RFC 8441, section 5: RST_STREAM with CANCEL is what a TCP reset is; neither is taken for an end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_pass_both_ways() {
    for (from_http2, to_http2) in [(false, false), (true, false), (false, true), (true, true)] {
        let speaks = if to_http2 { Speaks::Http2 } else { Speaks::Http1 };
        let mut origin = TunnelOrigin::start(speaks).await;
        let gateway = Gateway::start(&config(origin.address, to_http2, "")).await;
        let reset = |http2: bool| Ended::Reset(http2.then_some(Reason::CANCEL));
        let way = format!("{from_http2} to {to_http2}");

        let (_, _, mut client, server) = open(&gateway, &mut origin, from_http2).await;
        server.reset();
        assert_eq!(client.end().await, reset(from_http2), "{way}: the origin's");
        let line = last_line(&gateway).await;
        assert_eq!(line["cause"], "reset", "{line}");

        let (_, _, client, mut server) = open(&gateway, &mut origin, from_http2).await;
        client.reset();
        assert_eq!(server.end().await, reset(to_http2), "{way}: the client's");
        let line = eventually("both are logged", async || gateway.access_log().get(1).cloned()).await;
        assert_eq!(line["cancelled"], true, "{line}");
    }
}

/// Conduct "Keep-alive / pooling": a connection that became a tunnel is never another request's; of HTTP/2 only the
/// stream is used up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_never_returns_to_the_pool() {
    for to_http2 in [false, true] {
        let speaks = if to_http2 { Speaks::Http2 } else { Speaks::Http1 };
        let mut origin = TunnelOrigin::start(speaks).await;
        let gateway = Gateway::start(&config(origin.address, to_http2, "")).await;
        let http2 = Http2Client::connect(gateway.edge()).await;
        for round in 1..=3 {
            let (_, mut client) = http2.ask(Http2Client::request("websocket", "/")).await.expect("an answer");
            let (asked, mut server) = origin.tunnel().await;
            assert_eq!(asked.connection, if to_http2 { 0 } else { round - 1 });
            server.finish().await;
            assert_eq!(client.end().await, Ended::Cleanly);
            client.finish().await;
            assert_eq!(server.end().await, Ended::Cleanly);
            eventually("it is over", async || (gateway.access_log().len() == round).then_some(())).await;
        }
        assert_eq!(gateway.metric("tidegate_upstream_connections_active").await, if to_http2 { 1.0 } else { 0.0 });
    }
}

/// Conduct, section 2: before an acceptance a handshake is tried again like any request that was not processed, and what
/// the client sent meanwhile is still there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_are_tried_again_with_nothing_lost() {
    let closed = tidegate_tests::gateway::free_address();
    let mut origin = TunnelOrigin::start(Speaks::Http1).await;
    let retry = "retry = { attempts = 3, on = [\"connect\"] }\nconnect = [\"a:1\"]\n";
    let gateway = Gateway::start(&(crate::simple(&[closed, origin.address], "") + retry)).await;
    let http2 = Http2Client::connect(gateway.edge()).await;
    for _ in 0..4 {
        let (head, mut client) = ask_http1(gateway.edge(), &(handshake("/") + "early")).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let (_, mut server) = origin.tunnel().await;
        assert_eq!(server.exactly(5).await, b"early");
        server.send(b"late").await;
        assert_eq!(client.exactly(4).await, b"late");

        let request = Http2Client::request("websocket", "/");
        let (response, _client) = http2.ask_early(request, b"early").await.expect("an answer");
        assert_eq!(response.status().as_u16(), 200);
        let (_, mut server) = origin.tunnel().await;
        assert_eq!(server.exactly(5).await, b"early");

        // The origin takes what comes through the tunnel for a request to itself.
        let connect = "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n";
        let (head, mut client) = ask_http1(gateway.edge(), &format!("{connect}{}", handshake("/within"))).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let (asked, mut server) = origin.tunnel().await;
        assert_eq!((asked.path.as_str(), asked.header("via")), ("/within", None));
        assert!(client.next().await.expect("bytes").starts_with(b"HTTP/1.1 101 "));
        client.finish().await;
        assert_eq!(server.end().await, Ended::Cleanly);
    }
    assert!(gateway.metric("tidegate_retries_total").await > 0.0);
}

/// The route's idle time is that of both directions together, and a reset ends what it cuts off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_tunnel_is_cut_off() {
    let mut origin = TunnelOrigin::start(Speaks::Http1).await;
    let gateway = Gateway::start(&config(origin.address, false, "idle_timeout = \"1500ms\"\n")).await;
    for from_http2 in [false, true] {
        let (_, _, mut client, mut server) = open(&gateway, &mut origin, from_http2).await;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            // One direction is silent all the time.
            server.send(b".").await;
            assert_eq!(client.exactly(1).await, b".");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(matches!(client.end().await, Ended::Reset(_)));
        assert!(matches!(server.end().await, Ended::Reset(_)));
    }
    let log = eventually("both are logged", async || Some(gateway.access_log()).filter(|log| log.len() == 2)).await;
    assert!(log.iter().all(|line| line["cause"] == "idle_timeout"), "{log:?}");
}

/// Conduct "GOAWAY/drain": tunnels go on while the gateway drains; it ends with the last of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_live_on_while_the_gateway_drains() {
    for from_http2 in [false, true] {
        let mut origin = TunnelOrigin::start(Speaks::Http1).await;
        let mut gateway = Gateway::start(&config(origin.address, false, "")).await;
        let (_, _, mut client, mut server) = open(&gateway, &mut origin, from_http2).await;
        gateway.signal(libc::SIGTERM);
        let edge = gateway.edge();
        eventually("new connections are refused", async || Client::http1(edge).get("/probe").await.err()).await;
        client.send(b"still there?").await;
        assert_eq!(server.exactly(12).await, b"still there?");
        server.send(b"yes").await;
        assert_eq!(client.exactly(3).await, b"yes");
        client.finish().await;
        assert_eq!(server.end().await, Ended::Cleanly);
        server.finish().await;
        assert_eq!(client.end().await, Ended::Cleanly);
        drop(client);
        assert!(gateway.ended().await.success());
        assert!(gateway.access_log().iter().any(|line| line["tunnel"] == "websocket" && line["bytes_in"] == 12));
    }
}

/// And at the drain timeout they end, with their line in the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_end_at_the_drain_timeout() {
    let mut origin = TunnelOrigin::start(Speaks::Http1).await;
    let mut gateway = Gateway::start(&config(origin.address, false, "idle_timeout = \"off\"\n")).await;
    let (_, _, mut client, mut server) = open(&gateway, &mut origin, false).await;
    client.send(b"hello").await;
    assert_eq!(server.exactly(5).await, b"hello");
    gateway.signal(libc::SIGTERM);
    gateway.ended().await;
    assert!(client.next().await.is_err() && server.next().await.is_err());
    assert!(gateway.access_log().iter().any(|line| line["tunnel"] == "websocket" && line["bytes_in"] == 5));
}

/// RFC 8441, section 3: an origin that does not announce extended CONNECT is not asked; where ALPN leaves the choice, it
/// is spoken to in HTTP/1.1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_http2_origins_are_asked_over_http1_or_not_at_all() {
    let mut origin = TunnelOrigin::start(Speaks::OldHttp2).await;
    let gateway = Gateway::start(&config(origin.address, true, "")).await;
    let (head, _) = ask_http1(gateway.edge(), &handshake("/")).await;
    assert!(head.starts_with("HTTP/1.1 502 ") && head.contains("error=http_upgrade_failed"), "{head}");
    assert!(origin.unasked());

    let authority = Authority::new();
    let server = authority.issue(&["origin.example"]).server(&[b"h2", b"http/1.1"], None);
    let mut origin = TunnelOrigin::start(Speaks::Tls(std::sync::Arc::new(server))).await;
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).expect("written");
    let tls = "tls = { server_name = \"origin.example\", ca = \"ca.pem\" }";
    let gateway = Gateway::start_in(folder, &crate::simple(&[origin.address], tls)).await;
    for from_http2 in [false, true] {
        let (_, asked, mut client, mut server) = open(&gateway, &mut origin, from_http2).await;
        assert_eq!(asked.method, Method::GET);
        client.send(b"hello").await;
        assert_eq!(server.exactly(5).await, b"hello");
        server.send(b"hello").await;
        server.finish().await;
        assert_eq!(client.exactly(5).await, b"hello");
        assert_eq!(client.end().await, Ended::Cleanly);
    }
}

/// Over TLS on both sides: half a close is a close_notify, and what is missing one is cut off (RFC 8446, section 6.1).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_halves_close_one_by_one() {
    let authority = Authority::new();
    let server = authority.issue(&["origin.example"]).server(&[b"http/1.1"], None);
    let mut origin = TunnelOrigin::start(Speaks::Tls(std::sync::Arc::new(server))).await;
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).expect("written");
    authority.issue(&["edge.example"]).write(folder.path(), "edge");
    let tls = "name = \"edge\"\ntls.certificates = [{ certificate = \"edge.pem\", key = \"edge.key\" }]";
    let config = crate::simple(&[origin.address], "tls = { server_name = \"origin.example\", ca = \"ca.pem\" }");
    let gateway = Gateway::start_in(folder, &config.replacen("name = \"edge\"", tls, 1)).await;
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(authority.client(&[b"http/1.1"], None)));
    for cut in [false, true] {
        let tcp = tokio::net::TcpStream::connect(gateway.edge()).await.expect("a connection");
        let name = rustls::pki_types::ServerName::try_from("edge.example").expect("a name");
        let mut tls = connector.connect(name, tcp).await.expect("a handshake");
        let request = handshake("/chat").replace("Host: a", "Host: edge.example");
        tls.write_all(request.as_bytes()).await.expect("sent");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tls.read_u8().await.expect("a head"));
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        let (_, mut server) = origin.tunnel().await;
        if cut {
            // TCP's own end, which anybody on the way could have made.
            tls.get_mut().0.shutdown().await.expect("shut down");
            assert_eq!(server.end().await, Ended::Reset(None));
            continue;
        }
        let mut client = End::Tls(Box::new(tls));
        client.send(b"hello").await;
        client.finish().await;
        assert_eq!(server.exactly(5).await, b"hello");
        assert_eq!(server.end().await, Ended::Cleanly);
        server.send(b"late").await;
        server.finish().await;
        assert_eq!(client.exactly(4).await, b"late");
        assert_eq!(client.end().await, Ended::Cleanly);
    }
}

/// Thousands of silent WebSockets need no buffers, whatever went through them before: one that stayed would be 256 KiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_tunnels_hold_no_buffers() {
    let mut origin = TunnelOrigin::start(Speaks::Http1).await;
    let gateway = Gateway::start(&config(origin.address, false, "")).await;
    let piece = vec![b'x'; 1 << 20];
    let mut open_ones = Vec::new();
    let mut before = 0;
    for index in 0..150 {
        let (_, _, mut client, mut server) = open(&gateway, &mut origin, false).await;
        tokio::join!(client.send(&piece), async { assert_eq!(server.exactly(piece.len()).await.len(), piece.len()) });
        tokio::join!(server.send(&piece), async { assert_eq!(client.exactly(piece.len()).await.len(), piece.len()) });
        open_ones.push((client, server));
        if index == 49 {
            before = gateway.resident();
        }
    }
    let each = gateway.resident().saturating_sub(before) / 100;
    println!("{} KiB each", each / 1024);
    assert!(each < 192 << 10, "{each} bytes each");
}

/// RFC 9220, section 3: from HTTP/3 as from HTTP/2, to origins of both kinds; H3_REQUEST_CANCELLED is its reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_http3_have_it_too() {
    for to_http2 in [false, true] {
        let mut origin = TunnelOrigin::start(if to_http2 { Speaks::Http2 } else { Speaks::Http1 }).await;
        let authority = Authority::new();
        let folder = tempfile::tempdir().expect("a folder");
        authority.issue(&["edge.example"]).write(folder.path(), "edge");
        let tls = "name = \"edge\"\ntls.certificates = [{ certificate = \"edge.pem\", key = \"edge.key\" }]";
        let config = config(origin.address, to_http2, "").replacen("name = \"edge\"", tls, 1);
        let gateway = Gateway::start_in(folder, &config).await;
        let http3 = Http3Client::connect(gateway.edge(), authority.client(&[b"h3"], None), "edge.example").await;

        let (opened, mut client) = http3.ask("websocket", "/chat").await;
        assert!(opened);
        let (asked, mut server) = origin.tunnel().await;
        assert_eq!((asked.path.as_str(), asked.protocol.as_deref()), ("/chat", Some("websocket")), "{asked:?}");
        let (up, down) = (vec![b'u'; 1 << 20], vec![b'd'; 1 << 20]);
        let (from_client, from_server) =
            tokio::join!(both(&mut client, &up, down.len()), both(&mut server, &down, up.len()));
        assert!(from_client.1 == down && from_server.1 == up);
        client.finish().await;
        assert_eq!(server.end().await, Ended::Cleanly);
        server.send(b"last words").await;
        server.finish().await;
        assert_eq!(client.exactly(10).await, b"last words");
        assert_eq!(client.end().await, Ended::Cleanly);
        let line = last_line(&gateway).await;
        assert_eq!((line["protocol"].as_str(), line["status"].as_u64()), (Some("h3"), Some(200)), "{line}");
        assert_eq!((line["bytes_in"].as_u64(), line["bytes_out"].as_u64()), (Some(1 << 20), Some((1 << 20) + 10)));

        let (opened, mut client) = http3.ask("websocket", "/chat").await;
        assert!(opened);
        origin.tunnel().await.1.reset();
        assert_eq!(client.end().await, Ended::QuicReset(0x10c));
        let (opened, client) = http3.ask("websocket", "/chat").await;
        assert!(opened);
        let (_, mut server) = origin.tunnel().await;
        client.reset();
        assert_eq!(server.end().await, Ended::Reset(to_http2.then_some(Reason::CANCEL)));
        assert!(!http3.ask("websocket", "/refuse").await.0 && !http3.ask("webtransport", "/").await.0);
    }
}

/// Somebody else's client and server (the Python package `websockets`), with compression and a close code end to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_independent_client_and_server_agree() {
    let python = |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(tidegate_tests::peers::interpreter());
        command.args(arguments).stdout(Stdio::piped()).kill_on_drop(true);
        command
    };
    let peer = |name: &str| tidegate_tests::gateway::root().join("tests/peers").join(name).display().to_string();
    let mut server = python(&[&peer("websocket_server.py")]).spawn().expect("a server");
    let mut lines = BufReader::new(server.stdout.take().expect("its output")).lines();
    let port: u16 = lines.next_line().await.expect("a line").expect("a port").parse().expect("a number");
    let gateway = Gateway::start(&config(SocketAddr::from(([127, 0, 0, 1], port)), false, "")).await;
    let url = format!("ws://{}/", gateway.edge());
    let output = python(&[&peer("websocket_client.py"), &url]).output().await.expect("a client");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "fine");
    let line = last_line(&gateway).await;
    assert_eq!((line["status"].as_u64(), line["cause"].as_str()), (Some(101), None), "{line}");
}
