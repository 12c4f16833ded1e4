//! Bodies stream both ways under back-pressure, and nothing is buffered on the way.

use tidegate_tests::origin::read_head;
use tidegate_tests::{Origin, RawClient, RawOrigin, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const GIB: u64 = 1 << 30;
const PIECE: usize = 1 << 20;

/// 1 GiB down and 1 GiB up, with the gateway's memory growing by less than 16 MiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gibibyte_each_way_takes_little_memory() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        let head = read_head(&mut stream).await;
        let piece = vec![b'x'; PIECE];
        if head.starts_with("GET") {
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {GIB}\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
            for _ in 0..GIB / PIECE as u64 {
                if stream.write_all(&piece).await.is_err() {
                    return;
                }
            }
        } else {
            let (mut left, mut piece) = (GIB, piece);
            while left > 0 {
                match stream.read(&mut piece).await {
                    Ok(count @ 1..) => left -= count as u64,
                    _ => return,
                }
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwhole").await;
        }
        let _ = stream.read_u8().await;
    })
    .await;
    let gateway = crate::gateway_to(origin.address).await;
    let mut client = RawClient::connect(gateway.edge()).await;
    // One exchange first: what every connection costs is not what streaming costs.
    client.send(b"GET /missing HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
    let head = client.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut piece = vec![0; PIECE];
    client.0.read_exact(&mut piece).await.expect("the beginning");
    let before = gateway.resident();
    let (mut left, mut highest) = (GIB - PIECE as u64, before);
    while left > 0 {
        let count = client.0.read(&mut piece).await.expect("a piece");
        assert!(count > 0, "{left} bytes are missing");
        left -= count as u64;
        if left % (64 << 20) < PIECE as u64 {
            highest = highest.max(gateway.resident());
        }
    }
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(format!("PUT /up HTTP/1.1\r\nHost: a\r\nContent-Length: {GIB}\r\n\r\n").as_bytes()).await;
    for index in 0..GIB / PIECE as u64 {
        client.send(&piece).await;
        if index % 64 == 0 {
            highest = highest.max(gateway.resident());
        }
    }
    assert!(client.until("whol").await.starts_with("HTTP/1.1 200"));
    let grown = highest.saturating_sub(before);
    println!("grew by {} KiB", grown / 1024);
    assert!(grown < 16 << 20, "memory grew by {grown} bytes");
}

/// A client that does not read stops the origin, not the gateway's memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stalls_stops_the_origin() {
    let (sent, mut count) = tokio::sync::watch::channel(0_u64);
    let origin = RawOrigin::start(move |mut stream, _| {
        let sent = sent.clone();
        async move {
            read_head(&mut stream).await;
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {GIB}\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
            let piece = vec![b'x'; PIECE];
            while stream.write_all(&piece).await.is_ok() {
                sent.send_modify(|sent| *sent += PIECE as u64);
            }
        }
    })
    .await;
    let gateway = crate::gateway_to(origin.address).await;
    let before = gateway.resident();
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    // The origin comes to a stop: nothing more is sent for a while.
    eventually("the origin stops", async || {
        let seen = *count.borrow_and_update();
        let more = tokio::time::timeout(std::time::Duration::from_millis(700), count.changed()).await;
        (more.is_err() && seen > 0).then_some(())
    })
    .await;
    assert!(*count.borrow() < 256 << 20, "the origin sent {} bytes to nobody", *count.borrow());
    assert!(gateway.resident().saturating_sub(before) < 32 << 20);
}

/// RFC 9112, section 7.1: an event reaches the client when the origin sends it, on every version; and a client that
/// leaves a quiet stream ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_arrive_at_once() {
    let (go, wait) = tokio::sync::watch::channel(0);
    let (gone, mut left) = tokio::sync::mpsc::unbounded_channel();
    let origin = RawOrigin::start(move |mut stream, _| {
        let (mut wait, gone) = (wait.clone(), gone.clone());
        async move {
            read_head(&mut stream).await;
            let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nd\r\ndata: first\n\n\r\n";
            stream.write_all(head).await.expect("sent");
            // The second comes only when the test has seen the first.
            wait.wait_for(|go| *go == 1).await.expect("the test goes on");
            stream.write_all(b"e\r\ndata: second\n\n\r\n").await.expect("sent");
            let mut byte = [0; 1];
            let _ = stream.read(&mut byte).await;
            gone.send(()).expect("the test waits");
        }
    })
    .await;
    let gateway = crate::gateway_to(origin.address).await;
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.until("data: first\n\n").await;
    go.send(1).expect("the origin waits");
    client.until("data: second\n\n").await;
    drop(client);
    left.recv().await.expect("the origin learns that nobody listens");
}

/// RFC 9110, section 6.5: trailers go both ways, without what a trailer may not be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_pass_filtered() {
    let origin = Origin::http2().await;
    let more = "protocol = \"http2\"";
    let gateway = tidegate_tests::Gateway::start(&crate::simple(&[origin.address], more)).await;
    let mut client = RawClient::connect(gateway.edge()).await;
    client
        .send(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\ncontent_length: 9\r\nX-Forwarded-For: 192.0.2.1\r\nConnection: x\r\nCookie: a=b\r\n\r\n")
        .await;
    assert!(client.rest().await.starts_with("HTTP/1.1 200"));
    assert_eq!(&origin.last().body[..], b"hi");
    let trailers = origin.last().trailers.expect("trailers");
    assert_eq!(trailers.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["x-sum"]);
}
