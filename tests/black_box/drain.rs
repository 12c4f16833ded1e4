//! The graceful stop: no new work, work in flight finishes.

use tidegate_tests::origin::read_head;
use tidegate_tests::{Client, RawClient, RawOrigin, eventually};
use tokio::io::AsyncWriteExt;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_lets_work_in_flight_finish() {
    let (go, wait) = tokio::sync::watch::channel(false);
    let origin = RawOrigin::start(move |mut stream, _| {
        let mut wait = wait.clone();
        async move {
            if read_head(&mut stream).await.starts_with("GET /probe") {
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("sent");
                return;
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi").await.expect("sent");
            wait.wait_for(|go| *go).await.expect("the test goes on");
            stream.write_all(b"ne").await.expect("sent");
        }
    })
    .await;
    let mut gateway = crate::gateway_to(origin.address).await;
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.until("fi").await;
    let idle = RawClient::connect(gateway.edge()).await;
    gateway.signal(libc::SIGTERM);
    let edge = gateway.edge();
    eventually("new connections are refused", async || Client::http1(edge).get("/probe").await.err()).await;
    assert_eq!(gateway.admin_get("/readyz").await.status, 503);
    go.send(true).expect("the origin waits");
    assert_eq!(client.rest().await, "ne");
    drop(idle);
    assert!(gateway.ended().await.success());
    let log = gateway.access_log();
    assert!(
        log.iter().any(|line| line["path"] == "/" && line["status"] == 200 && line["cancelled"] == false),
        "{log:?}"
    );
}

/// Whoever asks twice does not want to wait for work in flight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_at_once() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi").await.expect("sent");
        std::future::pending::<()>().await;
    })
    .await;
    let mut gateway = crate::gateway_to(origin.address).await;
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.until("fi").await;
    gateway.signal(libc::SIGTERM);
    eventually("it drains", async || (gateway.admin_get("/readyz").await.status == 503).then_some(())).await;
    // No new configuration is taken now, and the answer says so.
    let (taken, said) = gateway.reload(&crate::simple(&[origin.address], ""));
    assert!(!taken && said.contains("draining"), "{said}");
    let begun = std::time::Instant::now();
    gateway.signal(libc::SIGINT);
    assert_eq!(gateway.ended().await.code(), Some(1));
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "the drain timeout is ten seconds");
}
