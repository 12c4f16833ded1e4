//! HTTP/2 as a client sees it, driven by an independent implementation (the Python packages hyperframe and hpack).

use std::time::Duration;

use http::{Method, Response};
use tidegate_tests::origin::full;
use tidegate_tests::{Client, Gateway, Origin, RawClient, peers};

/// Conduct, section 3, "h2/h3 to h1 downgrade", and section 4, "DoS caps": what RFC 9113 has a server refuse, frame by
/// frame and field by field; floods end with a reason, and nobody else waits for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_rfc_refuses_is_refused() {
    let origin = Origin::http1().await;
    let gateway = crate::gateway_to(origin.address).await;
    let before = gateway.resident();
    let address = gateway.edge().to_string();
    let said = peers::python("http2_strict.py", &[&address]).await.expect("every case ends as it should");
    assert!(said.contains(" 0 wrong"), "{said}");
    let grown = gateway.resident().saturating_sub(before);
    assert!(grown < 64 << 20, "memory grew by {grown} bytes");
    assert!(
        origin.record().iter().all(|seen| seen.path == "/" && seen.authority == "a.example"),
        "nothing odd got through"
    );
    assert_eq!(Client::http1(gateway.edge()).get("/").await.expect("an answer").status, 200);
}

/// The shortest HTTP/2 client: a preface, settings, one request. `settings` are pairs of six bytes.
fn request_with(settings: &[u8]) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, settings.len() as u8, 4, 0, 0, 0, 0, 0]);
    bytes.extend(settings);
    // :method GET, :scheme http, :path /, and :authority a as a literal: all from HPACK's static table.
    let block = [0x82, 0x86, 0x84, 0x41, 1, b'a'];
    bytes.extend([0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1]);
    bytes.extend(block);
    bytes
}

/// Conduct, section 4, "window-stall": a client that grants no window does not keep its stream for ever, whoever answers
/// it (RFC 9113, section 10.5).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_a_window_is_given_up() {
    let origin = Origin::answering(false, |_| Response::new(full(vec![b'x'; 1 << 20]))).await;
    for route in ["cluster = \"api\"", "respond = { status = 200, body = \"no window for this\" }"] {
        let config = crate::simple(&[origin.address], "")
            .replace("name = \"edge\"", "name = \"edge\"\nbody_idle_timeout = \"300ms\"")
            .replace("name = \"all\"\ncluster = \"api\"", &format!("name = \"all\"\n{route}"));
        let gateway = Gateway::start(&config).await;
        let mut client = RawClient::connect(gateway.edge()).await;
        client.send(&request_with(&[0, 4, 0, 0, 0, 0])).await;
        tidegate_tests::eventually("the exchange is over", async || {
            let log = gateway.access_log();
            log.first().map(|line| assert_eq!(line["cause"], "client_gone", "{line}"))
        })
        .await;
        assert_eq!(gateway.metric("tidegate_exchanges_active").await, 0.0);
    }
}

/// Conduct, section 4, "GOAWAY/drain": streams under way finish after SIGTERM, new ones are refused (RFC 9113, section
/// 6.8).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_under_way_finish_when_the_gateway_drains() {
    let origin = Origin::answering(false, |_| {
        std::thread::sleep(Duration::from_millis(600));
        Response::new(full("late"))
    })
    .await;
    let mut gateway = crate::gateway_to(origin.address).await;
    let client = Client::http2(gateway.edge());
    let under_way = tokio::spawn(async move {
        client.send(Method::GET, "/", &[], "").await.map(|answer| answer.text()).map_err(|error| error.to_string())
    });
    tidegate_tests::eventually("the origin is asked", async || (origin.connections() == 1).then_some(())).await;
    gateway.signal(libc::SIGTERM);
    assert_eq!(under_way.await.expect("no panic"), Ok("late".to_owned()));
    assert!(gateway.ended().await.success());
}
