//! gRPC through the gateway: trailers, deadlines, failures as gRPC tells them.

use http::{Method, Response};
use tidegate_tests::origin::full;
use tidegate_tests::{Client, Gateway, Origin, RawOrigin, eventually, peers};
use tokio::io::AsyncReadExt;

const CALL: [(&str, &str); 2] = [("content-type", "application/grpc"), ("te", "trailers")];

/// Conduct "gRPC": a failure of the gateway is told in `grpc-status`, trailers-only; a call that says how long it waits is
/// not made to wait longer, and the origin hears of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_and_deadlines_are_told_in_grpc_status() {
    let (gone, mut left) = tokio::sync::mpsc::unbounded_channel();
    let silent = RawOrigin::start(move |mut stream, _| {
        let gone = gone.clone();
        async move {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
            let _ = gone.send(());
        }
    })
    .await;
    let gateway = crate::gateway_to(silent.address).await;
    let late = [CALL[0], CALL[1], ("grpc-timeout", "200m")];
    let answer = Client::http2(gateway.edge()).send(Method::POST, "/s/m", &late, "x").await.expect("an answer");
    assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, Some("4")));
    left.recv().await.expect("the upstream call is given up");
    let nobody = tidegate_tests::gateway::free_address();
    let gateway = crate::gateway_to(nobody).await;
    let answer = Client::http2(gateway.edge()).send(Method::POST, "/s/m", &CALL, "x").await.expect("an answer");
    assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, Some("14")));
    assert_eq!(answer.header("content-type"), Some("application/grpc"));
}

/// Conduct "gRPC": trailers-only answers and `te: trailers` pass through (RFC 9110, section 6.5 and 10.1.4).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_only_answers_pass() {
    let origin = Origin::answering(true, |_| {
        let mut response = Response::new(full(""));
        response.headers_mut().insert("content-type", "application/grpc".parse().expect("a value"));
        response.headers_mut().insert("grpc-status", "5".parse().expect("a value"));
        response
    })
    .await;
    let gateway = Gateway::start(&crate::simple(&[origin.address], "protocol = \"http2\"")).await;
    let answer = Client::http2(gateway.edge()).send(Method::POST, "/s/m", &CALL, "x").await.expect("an answer");
    assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, Some("5")));
    assert_eq!(origin.last().header("te"), Some("trailers"));
    eventually("the call is logged", async || gateway.access_log().pop()).await;
}

/// Conduct "gRPC": unary and streaming calls, both ways at once, trailers and statuses between somebody else's client and
/// server (the Python package `grpcio`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_independent_client_and_server_agree() {
    let mut server = peers::Script::start("grpc_server.py", &[]);
    let port: u16 = server.line().await.parse().expect("a port");
    let origin = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let gateway = Gateway::start(&crate::simple(&[origin], "protocol = \"http2\"")).await;
    let said = peers::python("grpc_client.py", &[&gateway.edge().to_string()]).await;
    assert_eq!(said.as_deref().map(str::trim), Ok("fine"));
    let calls =
        eventually("every call is logged", async || Some(gateway.access_log()).filter(|log| log.len() >= 7)).await;
    assert!(calls.iter().all(|call| call["protocol"] == "h2" && call["method"] == "POST"), "{calls:?}");
}
