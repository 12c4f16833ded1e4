//! HTTP/3 where datagrams get lost: what one stream misses stalls no other, and everything arrives whole in the end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tidegate_tests::certs::Authority;
use tidegate_tests::origin::{full, read_head};
use tidegate_tests::quic::{QuicClient, data, get, headers};
use tidegate_tests::{Gateway, Link, Origin, RawOrigin, Way, eventually};
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;

/// A gateway that speaks HTTP/3 before one endpoint; `more` goes into the cluster.
async fn edge(authority: &Authority, endpoint: std::net::SocketAddr, more: &str) -> Gateway {
    let folder = tempfile::tempdir().expect("a folder");
    authority.issue(&["edge.example"]).write(folder.path(), "edge");
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).expect("written");
    let tls = "address = \"127.0.0.1:0\"\ntls.certificates = [{ certificate = \"edge.pem\", key = \"edge.key\" }]\n";
    let config = crate::simple(&[endpoint], more).replacen("address = \"127.0.0.1:0\"\n", tls, 1);
    Gateway::start_in(folder, &config).await
}

/// RFC 9000, section 2; conduct "HTTP/3: loss on one stream stalls no other". While stream A alone has something in
/// flight, it is lost, and its repairs are too; what comes on stream B then arrives whole, on the same connection. Over
/// TCP it could not: the test would wait for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loss_on_one_stream_stalls_no_other() {
    // Datagrams with a piece of A are of this size and above; all of B's are below.
    const LARGE: usize = 850;
    let authority = Authority::new();
    let begun = Arc::new(AtomicUsize::new(0));
    let (say_a, say_b) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let piece = |number: u8| vec![b'a' + number; 900];
    let (count, a, b) = (begun.clone(), say_a.clone(), say_b.clone());
    let origin = RawOrigin::start(move |mut stream, _| {
        let (count, a, b) = (count.clone(), a.clone(), b.clone());
        async move {
            let asked = read_head(&mut stream).await;
            if asked.starts_with("GET /a ") {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1800\r\n\r\n").await.expect("sent");
                count.fetch_add(1, Ordering::SeqCst);
                for number in 0..2 {
                    a.notified().await;
                    stream.write_all(&piece(number)).await.expect("sent");
                }
            } else {
                count.fetch_add(1, Ordering::SeqCst);
                b.notified().await;
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nwhole b").await.expect("sent");
            }
            let _ = read_head(&mut stream).await;
        }
    })
    .await;
    let gateway = edge(&authority, origin.address, "").await;
    let losing = Arc::new(AtomicBool::new(false));
    let lost = Arc::new(AtomicUsize::new(0));
    let (switch, count) = (losing.clone(), lost.clone());
    let link = Link::to(gateway.edge(), move |way, length| {
        if way == Way::Back && length >= LARGE && switch.load(Ordering::SeqCst) {
            // Larger ones probe for the path's MTU.
            count.fetch_add(usize::from(length < 1150), Ordering::SeqCst);
            return Vec::new();
        }
        vec![Duration::from_millis(40)]
    })
    .await;
    let client = QuicClient::connect(link.address, authority.client(&[b"h3"], None), "edge.example").await;
    let events = Arc::new(Mutex::new(Vec::new()));
    let (mut send_a, mut answer_a) = client.stream(&get("/a", &[])).await;
    let (mut send_b, answer_b) = client.stream(&get("/b", &[])).await;
    send_a.finish().and_then(|()| send_b.finish()).expect("ended");
    assert_eq!(answer_a.frame().await.expect("a frame").expect("a head").0, 0x1);
    eventually("the origin has both", async || (begun.load(Ordering::SeqCst) == 2).then_some(())).await;

    losing.store(true, Ordering::SeqCst);
    say_a.notify_one();
    eventually("the piece of A is lost", async || (lost.load(Ordering::SeqCst) > 0).then_some(())).await;
    say_b.notify_one();
    let log = events.clone();
    let a = tokio::spawn(async move {
        let mut content = Vec::new();
        while let Some((kind, payload)) = answer_a.frame().await.expect("a frame") {
            if kind == 0x0 {
                log.lock().expect("no panic").push("a");
                content.extend(payload);
            }
        }
        content
    });
    let b = answer_b.answer().await.expect("B is answered");
    assert_eq!((b.status(), &b.body[..]), (200, &b"whole b"[..]));
    events.lock().expect("no panic").push("b");
    losing.store(false, Ordering::SeqCst);
    say_a.notify_one();
    let content = tokio::time::timeout(Duration::from_secs(60), a).await.expect("A ends").expect("no panic");
    assert!(content == [piece(0), piece(1)].concat(), "{} bytes", content.len());
    let events = events.lock().expect("no panic").clone();
    assert_eq!(events[..2], ["b", "a"], "B was whole before A had anything");
}

/// RFC 9002: 5 % lost, 2 % doubled, the rest overtaking one another, both ways, before and behind the gateway: hundreds
/// of requests with content both ways are all answered, and right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_arrives_over_bad_links() {
    const CONNECTIONS: usize = 6;
    const REQUESTS: usize = 40;
    let authority = Authority::new();
    let tls = authority.issue(&["origin.example"]).server(&[b"h3"], None);
    let origin = Origin::http3(tls, |seen| {
        Response::new(full(Bytes::from(seen.body.iter().rev().copied().collect::<Vec<u8>>())))
    })
    .await;
    let behind = Link::bad(origin.address, 0x5eed, 50, 20, Duration::from_millis(8)).await;
    let more = "protocol = \"http3\"\ntls = { ca = \"ca.pem\", server_name = \"origin.example\" }";
    let gateway = edge(&authority, behind.address, more).await;
    let before = Link::bad(gateway.edge(), 0xcafe, 50, 20, Duration::from_millis(8)).await;
    let mut clients = Vec::new();
    for connection in 0..CONNECTIONS {
        let tls = authority.client(&[b"h3"], None);
        let client = Arc::new(QuicClient::connect(before.address, tls, "edge.example").await);
        // Eight at once on each connection.
        for first in 0..8 {
            let client = client.clone();
            clients.push(tokio::spawn(async move {
                for number in (first..REQUESTS).step_by(8) {
                    let length = (number * 7919 + connection * 104_729) % 40_000;
                    let body: Vec<u8> = (0..length).map(|at| ((at * 31 + number) % 251) as u8).collect();
                    let path = format!("/{connection}/{number}");
                    let head = headers(&[
                        (":method", "POST"),
                        (":scheme", "https"),
                        (":authority", "edge.example"),
                        (":path", &path),
                    ]);
                    let answer = client.ask(&[head, data(&body)].concat()).await;
                    let answer = answer.unwrap_or_else(|code| panic!("{path}: reset with {code:#x}"));
                    assert_eq!(answer.status(), 200, "{path}");
                    assert!(answer.body.iter().rev().eq(body.iter()), "{path}: {length} bytes");
                }
            }));
        }
    }
    for client in clients {
        client.await.expect("every answer is right");
    }
    let mut paths: Vec<String> = origin.record().into_iter().map(|seen| seen.path).collect();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), CONNECTIONS * REQUESTS);
    assert_eq!(origin.record().len(), paths.len(), "a POST reaches the origin once");
    assert!(before.lost() > 50 && behind.lost() > 50, "{} and {}", before.lost(), behind.lost());
}

/// RFC 9000, section 8.1; conduct "QUIC amplification": to an address that has not answered yet go three times the bytes that
/// came from it and no more, however often the handshake's packets are sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_does_not_answer_gets_three_times_its_bytes() {
    let authority = Authority::new();
    let origin = Origin::http1().await;
    let folder = tempfile::tempdir().expect("a folder");
    // Many names make a certificate that needs more packets than may be sent.
    let names: Vec<String> = (0..120).map(|number| format!("name-{number}.edge.example")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    authority.issue(&names).write(folder.path(), "edge");
    let tls = "address = \"127.0.0.1:0\"\nhandshake_timeout = \"2s\"\n\
               tls.certificates = [{ certificate = \"edge.pem\", key = \"edge.key\" }]\n";
    let config = crate::simple(&[origin.address], "").replacen("address = \"127.0.0.1:0\"\n", tls, 1);
    let gateway = Gateway::start_in(folder, &config).await;
    let (came, went) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (there, back) = (came.clone(), went.clone());
    let link = Link::to(gateway.edge(), move |way, bytes| match way {
        // The first datagram arrives, and nothing after it; of what is sent back nothing does.
        Way::There if there.load(Ordering::SeqCst) == 0 => {
            there.fetch_add(bytes, Ordering::SeqCst);
            vec![Duration::ZERO]
        }
        Way::There => Vec::new(),
        Way::Back => {
            back.fetch_add(bytes, Ordering::SeqCst);
            Vec::new()
        }
    })
    .await;
    // A ClientHello that fits into one datagram.
    let groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let provider =
        rustls::crypto::CryptoProvider { kx_groups: groups, ..rustls::crypto::aws_lc_rs::default_provider() };
    let mut client = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .with_root_certificates(authority.roots())
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h3".to_vec()];
    let connecting = tokio::spawn(QuicClient::connect(link.address, client, "name-1.edge.example"));
    eventually("the handshake is given up", async || {
        (gateway.metric("tidegate_handshakes_failed_total").await == 1.0).then_some(())
    })
    .await;
    connecting.abort();
    let (came, went) = (came.load(Ordering::SeqCst), went.load(Ordering::SeqCst));
    assert!(went > 2 * came, "there was more to send: {went} for {came}");
    assert!(went <= 3 * came, "{went} for {came}");
}
