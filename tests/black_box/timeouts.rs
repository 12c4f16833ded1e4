//! 502, 503 and 504 are told apart, and Proxy-Status names the cause (RFC 9209).

use tidegate_tests::{Client, Gateway, RawOrigin};

async fn outcome(gateway: &Gateway) -> (u16, String) {
    let answer = Client::http1(gateway.edge()).get("/").await.expect("an answer");
    let status = answer.header("proxy-status").unwrap_or_default().to_owned();
    (answer.status.as_u16(), status.trim_start_matches("tidegate; error=").to_owned())
}

fn expect(status: u16, token: &str) -> (u16, String) {
    (status, token.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failure_has_its_status_and_token() {
    let silent = RawOrigin::start(|stream, _| async move {
        let _kept = stream;
        std::future::pending().await
    })
    .await;
    let config = |route: &str| {
        crate::simple(&[silent.address], "").replace("cluster = \"api\"\n", &format!("cluster = \"api\"\n{route}\n"))
    };
    let attempt = Gateway::start(&config("attempt_timeout = \"200ms\"")).await;
    assert_eq!(outcome(&attempt).await, expect(504, "http_response_timeout"));
    let total = Gateway::start(&config("timeout = \"200ms\"")).await;
    assert_eq!(outcome(&total).await, expect(504, "http_response_timeout"));

    let closed = tidegate_tests::gateway::free_address();
    let refused = crate::gateway_to(closed).await;
    assert_eq!(outcome(&refused).await, expect(502, "connection_refused"));

    let hangs_up = RawOrigin::saying(b"").await;
    let reset = crate::gateway_to(hangs_up.address).await;
    assert_eq!(outcome(&reset).await, expect(502, "connection_terminated"));

    let out = crate::simple(&[silent.address], "")
        .replace(&format!("\"{}\"", silent.address), &format!("{{ address = \"{}\", weight = 0 }}", silent.address));
    let nobody = Gateway::start(&out).await;
    assert_eq!(outcome(&nobody).await, expect(503, "destination_unavailable"));

    let full = crate::simple(&[silent.address], "max_connections = 1\nmax_pending = 0\n");
    let full = Gateway::start(&full.replacen("workers = 2", "workers = 1", 1)).await;
    // Always one of them has the only connection, however slow the machine is to ask.
    for _ in 0..4 {
        let client = Client::http1(full.edge());
        tokio::spawn(async move {
            loop {
                let _ = client.get("/").await;
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        });
    }
    tidegate_tests::eventually("the pool is full", async || {
        let asked = tokio::time::timeout(std::time::Duration::from_millis(500), outcome(&full)).await;
        asked.ok().filter(|outcome| *outcome == expect(503, "connection_limit_reached"))
    })
    .await;
}
