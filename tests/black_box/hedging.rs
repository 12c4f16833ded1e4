//! Hedging: a second try beside the first.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Method;
use tidegate_tests::origin::read_head;
use tidegate_tests::{Client, Gateway, Origin, RawClient, RawOrigin, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An origin that never answers, and how many of its connections were ended by the other side.
async fn silent() -> (RawOrigin, Arc<AtomicUsize>) {
    let left = Arc::new(AtomicUsize::new(0));
    let count = left.clone();
    let origin = RawOrigin::start(move |mut stream, _| {
        let count = count.clone();
        async move {
            read_head(&mut stream).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
            count.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    (origin, left)
}

fn hedged(endpoints: &[std::net::SocketAddr], retry: &str) -> String {
    crate::simple(endpoints, "retry_budget = { percent = \"100%\", min = 1000 }\n")
        .replace("cluster = \"api\"\n", &format!("cluster = \"api\"\nretry = {{ {retry} }}\n"))
}

/// Conduct "Retry truth table", "hedge only for safe methods and cancel losers": whichever endpoint a request goes to first,
/// it is answered by the one that answers, over every version of the client's and to both of the origin's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_answer_is_taken_and_the_loser_cancelled() {
    let (silent, left) = silent().await;
    let good = Origin::http1().await;
    let gateway = Gateway::start(&hedged(&[silent.address, good.address], "hedge_after = \"20ms\"")).await;
    for client in [Client::http1(gateway.edge()), Client::http2(gateway.edge())] {
        for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::GET] {
            assert_eq!(client.send(method, "/", &[], "").await.expect("an answer").status, 200);
        }
    }
    let (hedges, won) =
        (gateway.metric("tidegate_hedges_total").await, gateway.metric("tidegate_hedges_won_total").await);
    assert!(hedges >= 3.0 && hedges == won, "{hedges} {won}");
    assert_eq!(hedges, silent.connections() as f64);
    eventually("the losers are cancelled", async || {
        (left.load(Ordering::SeqCst) == silent.connections()).then_some(())
    })
    .await;
    assert_eq!(good.record().len(), 8, "each request was answered once");
}

/// RFC 9110, section 9.2.1: a method that may act is never sent twice, nor is what has content.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_safe_is_hedged() {
    let (one, _) = silent().await;
    let (other, _) = silent().await;
    let more = "hedge_after = \"1ms\"";
    let config = hedged(&[one.address, other.address], more)
        .replace("cluster = \"api\"\nretry", "cluster = \"api\"\nattempt_timeout = \"150ms\"\nretry");
    let gateway = Gateway::start(&config).await;
    let client = Client::http1(gateway.edge());
    for (method, body) in [(Method::POST, ""), (Method::PUT, ""), (Method::DELETE, ""), (Method::GET, "content")] {
        assert_eq!(client.send(method, "/", &[], body).await.expect("an answer").status, 504);
    }
    assert_eq!(one.connections() + other.connections(), 4);
    assert_eq!(gateway.metric("tidegate_hedges_total").await, 0.0);
    // The same for a request that is safe: two tries, and the time is over for both.
    assert_eq!(client.get("/").await.expect("an answer").status, 504);
    assert_eq!(one.connections() + other.connections(), 6);
}

/// Attempts and budget bound hedges as they do retries, and with one endpoint there is nobody else to ask.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hedges_count_as_tries() {
    let mut endpoints = Vec::new();
    for _ in 0..4 {
        endpoints.push(silent().await.0);
    }
    let addresses: Vec<_> = endpoints.iter().map(|origin| origin.address).collect();
    let asked = || endpoints.iter().map(RawOrigin::connections).sum::<usize>();
    let timeout =
        |config: String| config.replace("cluster = \"api\"\nretry", "cluster = \"api\"\ntimeout = \"200ms\"\nretry");
    let more = "hedge_after = \"5ms\", attempts = 3";
    let gateway = Gateway::start(&timeout(hedged(&addresses, more))).await;
    assert_eq!(Client::http1(gateway.edge()).get("/").await.expect("an answer").status, 504);
    assert_eq!((asked(), gateway.metric("tidegate_hedges_total").await), (3, 2.0));

    let poor = hedged(&addresses, more).replace("percent = \"100%\", min = 1000", "percent = \"0%\", min = 0");
    let gateway = Gateway::start(&timeout(poor)).await;
    assert_eq!(Client::http1(gateway.edge()).get("/").await.expect("an answer").status, 504);
    assert_eq!((asked(), gateway.metric("tidegate_hedges_total").await), (4, 0.0));

    let gateway = Gateway::start(&timeout(hedged(&addresses[..1], more))).await;
    assert_eq!(Client::http1(gateway.edge()).get("/").await.expect("an answer").status, 504);
    assert_eq!((asked(), gateway.metric("tidegate_hedges_total").await), (5, 0.0));
}

/// One that fails while another is under way costs the client nothing; an interim response binds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_fails_leaves_the_other_to_answer() {
    // Each of the two answers its odd requests after a while and drops its even ones: whoever is first, one is left.
    let turns = Arc::new(AtomicUsize::new(0));
    let mut origins = Vec::new();
    for _ in 0..2 {
        let turns = turns.clone();
        let origin = RawOrigin::start(move |mut stream, _| {
            let turns = turns.clone();
            async move {
                read_head(&mut stream).await;
                let turn = turns.fetch_add(1, Ordering::SeqCst);
                // The second of each pair fails at once, the first answers when that is known.
                if turn.is_multiple_of(2) {
                    while turns.load(Ordering::SeqCst) < turn + 2 {
                        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
                    let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
                    let answer = format!("{hint}HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            }
        });
        origins.push(origin.await);
    }
    let addresses: Vec<_> = origins.iter().map(|origin| origin.address).collect();
    let gateway = Gateway::start(&hedged(&addresses, "hedge_after = \"10ms\", on = []")).await;
    for round in 1..=4 {
        let mut client = RawClient::connect(gateway.edge()).await;
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        let all = client.rest().await;
        assert!(all.starts_with("HTTP/1.1 103") && all.contains("HTTP/1.1 200") && all.ends_with("ok"), "{all}");
        assert_eq!(turns.load(Ordering::SeqCst), 2 * round);
    }
    assert_eq!(gateway.metric("tidegate_hedges_won_total").await, 0.0);
}
