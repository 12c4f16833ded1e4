//! Bodies that wait in the gateway: requests kept before an upstream is engaged, responses read ahead of their client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Method;
use tidegate_tests::origin::read_head;
use tidegate_tests::{Client, Gateway, Origin, RawClient, RawOrigin, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

fn buffering(endpoint: SocketAddr, more: &str) -> String {
    with_buffer(endpoint, "request = \"1KiB\"", more)
}

/// `more` goes into the route.
fn with_buffer(endpoint: SocketAddr, buffer: &str, more: &str) -> String {
    crate::simple(&[endpoint], "")
        .replace("cluster = \"api\"\n", &format!("cluster = \"api\"\nbuffer = {{ {buffer} }}\n{more}"))
}

/// Bytes that tell where they belong.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 251 * 31 + at) as u8).collect()
}

async fn held(gateway: &Gateway, place: &str) -> f64 {
    gateway.metric(&format!("tidegate_buffered_bytes{{place=\"{place}\"}}")).await
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

/// Conduct "Slow-client absorption": a thousand uploads that trickle engage no upstream and little memory, and each is
/// forwarded once it is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_slow_uploads_engage_no_upstream() {
    const CLIENTS: usize = 1000;
    let origin = Origin::http1().await;
    let gateway = Gateway::start(&with_buffer(origin.address, "request = \"64KiB\"", "")).await;
    let before = gateway.resident();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = RawClient::connect(gateway.edge()).await;
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\nConnection: close\r\n\r\n").await;
        clients.push(client);
    }
    for sent in 1..8 {
        for client in &mut clients {
            client.send(b"x").await;
        }
        let all = (sent * CLIENTS) as f64;
        eventually("all that was sent is held", async || (held(&gateway, "memory").await == all).then_some(())).await;
    }
    assert_eq!((origin.connections(), origin.record().len()), (0, 0));
    let grown = gateway.resident().saturating_sub(before);
    assert!(grown < 80 << 20, "{grown} bytes for {CLIENTS} clients");
    // Another client is served meanwhile.
    assert_eq!(Client::http1(gateway.edge()).get("/").await.expect("an answer").status, 200);
    for client in &mut clients {
        client.send(b"x").await;
    }
    for client in &mut clients {
        assert!(client.rest().await.starts_with("HTTP/1.1 200"));
    }
    assert_eq!(origin.record().iter().filter(|request| &request.body[..] == b"xxxxxxxx").count(), CLIENTS);
    assert_eq!(held(&gateway, "memory").await, 0.0);
}

/// More than the kernel's buffers take.
const LARGE: usize = 8 << 20;

/// An origin whose responses have this many bytes, and how many of them it could send to their end.
async fn generous(size: usize) -> (RawOrigin, Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let origin = RawOrigin::start(move |mut stream, _| {
        let count = count.clone();
        async move {
            while !read_head(&mut stream).await.is_empty() {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n");
                if stream.write_all(head.as_bytes()).await.is_err() || stream.write_all(&pattern(size)).await.is_err() {
                    return;
                }
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    (origin, sent)
}

/// A client that asks and does not read, with a small receive buffer.
async fn reluctant(gateway: &Gateway) -> RawClient {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(16 * 1024).expect("a size");
    let mut client = RawClient(socket.connect(gateway.edge()).await.expect("a connection"));
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    client
}

/// Conduct "Slow-client absorption", "Buffering": the upstream is free when the response fits, its connection serves the
/// next request, and nothing of it is lost to whoever reads late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_is_read_ahead_of_a_slow_client() {
    let (origin, sent) = generous(LARGE).await;
    let buffer = "response = \"256KiB\", spool = \"16MiB\"";
    let gateway = Gateway::start(&with_buffer(origin.address, buffer, "")).await;
    let mut clients = Vec::new();
    for number in 1..=5 {
        clients.push(reluctant(&gateway).await);
        eventually("the origin has sent all", async || (sent.load(Ordering::SeqCst) == number).then_some(())).await;
        let free = "tidegate_endpoint_requests_active";
        let label = format!("{free}{{cluster=\"api\",endpoint=\"{}\"}}", origin.address);
        eventually("its endpoint is free", async || (gateway.metric(&label).await == 0.0).then_some(())).await;
    }
    assert!(origin.connections() <= 2, "each request found its worker's connection free");
    assert!(held(&gateway, "disk").await > LARGE as f64, "much of it is on disk");
    assert!(held(&gateway, "memory").await < 2e6);
    for client in &mut clients {
        let mut all = Vec::new();
        client.0.read_to_end(&mut all).await.expect("a whole response");
        let at = all.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
        assert!(all[at..] == pattern(LARGE)[..]);
    }
    eventually("all is given back", async || {
        (held(&gateway, "disk").await + held(&gateway, "memory").await == 0.0).then_some(())
    })
    .await;
}

/// Without room the origin waits, as it would without a buffer, and the response is whole all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_read_ahead_is_bounded() {
    const HUGE: usize = 6 * LARGE;
    let (origin, sent) = generous(HUGE).await;
    let config = with_buffer(origin.address, "response = \"64KiB\", spool = \"1MiB\"", "");
    let config = format!("buffer_memory = \"100KiB\"\nspool_limit = \"1500KiB\"\n{config}");
    let gateway = Gateway::start(&config).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(reluctant(&gateway).await);
    }
    eventually("memory is taken", async || (held(&gateway, "memory").await > 64e3).then_some(())).await;
    eventually("the disk is taken", async || (held(&gateway, "disk").await > 1400e3).then_some(())).await;
    assert_eq!(sent.load(Ordering::SeqCst), 0);
    // Each worker may go beyond the bound by a frame of 256 KiB.
    let (memory, disk) = (held(&gateway, "memory").await, held(&gateway, "disk").await);
    assert!(memory < 100e3 + 2.0 * 263e3 && disk < 1536e3 + 2.0 * 263e3, "{memory} {disk}");
    let reading = clients.into_iter().map(|mut client| {
        tokio::spawn(async move {
            let mut all = Vec::new();
            client.0.read_to_end(&mut all).await.expect("a whole response");
            let at = all.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
            assert!(all[at..] == pattern(HUGE)[..]);
        })
    });
    for reading in reading.collect::<Vec<_>>() {
        reading.await.expect("right");
    }
    assert_eq!(sent.load(Ordering::SeqCst), 4);
}

/// RFC 9112, section 8: a response that breaks off is never a whole one, wherever it waited.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buffered_response_that_breaks_off_is_not_a_whole_one() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    })
    .await;
    let gateway = Gateway::start(&with_buffer(origin.address, "response = \"64KiB\"", "")).await;
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let all = client.rest().await;
    assert!(all.contains("hello") && !all.ends_with("0\r\n\r\n"), "{all}");
}

/// Trailers wait behind the data, and events do not wait at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_ahead_delays_nothing_and_keeps_trailers() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n";
        let _ = stream.write_all(head).await;
        for _ in 0..3 {
            let _ = stream.write_all(b"5\r\nevent\r\n").await;
            let mut answer = [0; 1];
            // Nothing comes on this connection until the response is over: a wait for as long as the test takes.
            let _ = tokio::time::timeout(std::time::Duration::from_millis(50), stream.read(&mut answer)).await;
        }
        let _ = stream.write_all(b"0\r\nx-sum: 3\r\n\r\n").await;
        let _ = read_head(&mut stream).await;
    })
    .await;
    let gateway = Gateway::start(&with_buffer(origin.address, "response = \"64KiB\"", "")).await;
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n").await;
    assert!(client.until("event\r\n").await.contains("\r\n\r\n5\r\nevent"), "the first event is alone");
    let rest = client.until("x-sum: 3\r\n\r\n").await;
    assert_eq!(rest, "5\r\nevent\r\n5\r\nevent\r\n0\r\nx-sum: 3\r\n\r\n");
}

/// Conduct "Buffering": spooled bodies are sent again from disk, what does not fit is 413 where the route says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn larger_bodies_are_spooled_and_beyond_that_refused() {
    let origin = RawOrigin::start(|mut stream, number| async move {
        let head = read_head(&mut stream).await;
        let length = 300_000;
        assert!(head.contains(&format!("content-length: {length}")), "{head}");
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.expect("a body");
        assert!(body == pattern(length));
        if number % 2 == 1 {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    })
    .await;
    let more = "retry = { attempts = 3, on = [\"reset\"], backoff = \"1ms\" }\n";
    let buffer = "request = \"32KiB\", spool = \"400KiB\", refuse_larger = true";
    let gateway = Gateway::start(&with_buffer(origin.address, buffer, more)).await;
    let client = Client::http1(gateway.edge());
    let answer = client.send(Method::PUT, "/", &[], pattern(300_000)).await.expect("an answer");
    assert_eq!((answer.status.as_u16(), origin.connections()), (200, 2), "the second try had it from the disk");
    eventually("the disk is given back", async || (held(&gateway, "disk").await == 0.0).then_some(())).await;

    // A length that is told is refused at once; a chunked body when it has become too long. No upstream hears of it.
    let answer = client.send(Method::PUT, "/", &[], pattern(500_000)).await.expect("an answer");
    assert_eq!(answer.status, 413);
    let mut raw = RawClient::connect(gateway.edge()).await;
    raw.send(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    for _ in 0..8 {
        raw.send(b"10000\r\n").await;
        raw.send(&[b'x'; 0x10000]).await;
        let _ = raw.0.write_all(b"\r\n").await;
    }
    let answer = raw.until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer:?}");
    assert_eq!(origin.connections(), 2);
    eventually("the disk is given back", async || (held(&gateway, "disk").await == 0.0).then_some(())).await;
}

/// When the memory for all is taken, a body streams; one that must be whole is turned away, and told to come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_memory_a_body_streams_or_is_503() {
    let origin = Origin::http1().await;
    let config = with_buffer(origin.address, "request = \"64KiB\"", "path = \"/a\"\n");
    let strict = "[[route]]\ncluster = \"api\"\nbuffer = { request = \"64KiB\", refuse_larger = true }\n";
    let config =
        config.replace("address = \"127.0.0.1:0\"\n", "address = \"127.0.0.1:0\"\nbuffer_memory = \"40KiB\"\n");
    let gateway = Gateway::start(&format!("{config}{strict}")).await;
    let mut first = RawClient::connect(gateway.edge()).await;
    first.send(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n").await;
    first.send(&[b'x'; 45_000]).await;
    eventually("the memory is taken", async || (held(&gateway, "memory").await >= 40.0 * 1024.0).then_some(())).await;
    let client = Client::http1(gateway.edge());
    assert_eq!(client.send(Method::POST, "/a", &[], "streams").await.expect("an answer").status, 200);
    let refused = client.send(Method::POST, "/b", &[], "must be whole").await.expect("an answer");
    assert_eq!((refused.status.as_u16(), refused.header("retry-after")), (503, Some("1")));
    first.send(&[b'x'; 15_000]).await;
    assert!(first.until("ok").await.starts_with("HTTP/1.1 200"));
    assert_eq!(client.send(Method::POST, "/b", &[], "must be whole").await.expect("an answer").status, 200);
}

/// Conduct "Slow-client absorption": a least rate, over all that was sent; time that the upstream takes does not count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_slower_than_allowed_is_given_up() {
    let (origin, (generous, _)) = (Origin::http1().await, generous(LARGE).await);
    let rates = "min_upload_rate = \"10KiB\"\nmin_download_rate = \"10MiB\"\nrate_grace = \"300ms\"\n";
    let large = format!("[[cluster]]\nname = \"large\"\nendpoints = [\"{}\"]\n", generous.address);
    let config = crate::simple(&[origin.address], &large)
        .replace("address = \"127.0.0.1:0\"\n", &format!("address = \"127.0.0.1:0\"\n{rates}"));
    let config = config.replace("cluster = \"api\"\n", "cluster = \"api\"\npath = \"/stream\"\n");
    let kept = "[[route]]\npath = \"/kept\"\ncluster = \"api\"\nbuffer = { request = \"64KiB\" }\n\
                [[route]]\ncluster = \"large\"\n";
    let gateway = Gateway::start(&format!("{config}{kept}")).await;
    for path in ["/stream", "/kept"] {
        let mut slow = RawClient::connect(gateway.edge()).await;
        slow.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n").as_bytes()).await;
        let (mut read, mut write) = slow.0.into_split();
        // Never silent for long, and too slow.
        let trickle = tokio::spawn(async move {
            while write.write_all(b"x").await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        let mut answer = [0; 12];
        read.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 408", "{path}");
        trickle.abort();
    }
    // A reader that takes a little now and then is cut off within the body.
    let mut slow = reluctant(&gateway).await;
    let log = "tidegate_faults_total{cause=\"client_gone\"}";
    let mut piece = [0; 1024];
    eventually("it is given up", async || {
        let taken = slow.0.read(&mut piece).await.expect("what was sent before") > 0;
        assert!(taken, "the response is not over for a long time");
        (gateway.metric(log).await >= 1.0).then_some(())
    })
    .await;
}
