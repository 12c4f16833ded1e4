//! Early data (RFC 8470): what may be a replay goes on only where that does no harm, and is told to the origin; and a
//! flight of it that somebody recorded is good for nothing once it was taken. Conduct "Early data".

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Response;
use tidegate_tests::certs::Authority;
use tidegate_tests::origin::full;
use tidegate_tests::quic::{QuicClient, get, post};
use tidegate_tests::{Gateway, Link, Origin, Way, eventually};
use tokio::net::UdpSocket;

/// A gateway that takes early data, and a client that has been there.
struct Edge {
    gateway: Gateway,
    config: String,
    tls: rustls::ClientConfig,
    /// The way to the gateway, which can be barred on the way back: then no handshake comes to its end.
    link: Link,
    barred: Arc<AtomicBool>,
}

impl Edge {
    /// `more` goes into the listener's TLS.
    async fn before(origin: SocketAddr, more: &str) -> Self {
        let authority = Authority::new();
        let folder = tempfile::tempdir().expect("a folder");
        authority.issue(&["edge.example"]).write(folder.path(), "edge");
        let config = format!(
            "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\nhandshake_timeout = \"3s\"\nmax_streams = 50\n\
             [listener.tls]\n{more}certificates = [{{ certificate = \"edge.pem\", key = \"edge.key\" }}]\n\
             [[cluster]]\nname = \"api\"\nendpoints = [\"{origin}\"]\n\
             [[route]]\nname = \"all\"\ncluster = \"api\"\n"
        );
        let gateway = Gateway::start_in(folder, &config).await;
        let mut tls = authority.client(&[b"h3"], None);
        tls.enable_early_data = true;
        let barred = Arc::new(AtomicBool::new(false));
        let bar = barred.clone();
        let link = Link::to(gateway.edge(), move |way, _| match way {
            Way::Back if bar.load(Ordering::SeqCst) => Vec::new(),
            _ => vec![Duration::ZERO],
        })
        .await;
        Self { gateway, config, tls, link, barred }
    }

    /// The first visit, which ends with a ticket in hand.
    async fn visit(&self) {
        let client = QuicClient::connect(self.gateway.edge(), self.tls.clone(), "edge.example").await;
        // The ticket came before the answer.
        let answer = client.ask(&get("/first", &[])).await.expect("an answer");
        assert_eq!(answer.status(), 200);
    }

    fn back(&self, address: SocketAddr) -> Option<(QuicClient, quinn::ZeroRttAccepted)> {
        QuicClient::early(address, self.tls.clone(), "edge.example")
    }

    async fn early(&self, outcome: &str) -> f64 {
        self.gateway.metric(&format!("tidegate_early_requests_total{{outcome=\"{outcome}\"}}")).await
    }
}

/// What the origin saw: targets, each with its `Early-Data`.
fn seen(origin: &Origin) -> Vec<(String, Option<String>)> {
    origin
        .record()
        .iter()
        .filter(|request| request.path != "/first")
        .map(|request| (request.path.clone(), request.header("early-data").map(str::to_owned)))
        .collect()
}

/// RFC 8470, sections 3 to 5.1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn safe_requests_go_on_at_once_and_all_others_after_the_handshake() {
    let origin = Origin::http1().await;
    let edge = Edge::before(origin.address, "early_data = true\n").await;
    edge.visit().await;
    // No request of a first visit is an early one.
    assert_eq!(origin.last().header("early-data"), None);
    edge.barred.store(true, Ordering::SeqCst);
    let (client, accepted) = edge.back(edge.link.address).expect("a ticket for early data");
    let held_answer = client.send(&post(&[("content-length", "0")])).await;
    let fields = [("content-length", "2")];
    let content_answer = client.send(&[get("/content", &fields), vec![0, 2, b'h', b'i']].concat()).await;
    let safe_answer = client.send(&get("/safe", &[])).await;
    eventually("the safe one arrives", async || (seen(&origin).len() == 1).then_some(())).await;
    eventually("the others wait", async || (edge.early("held").await == 2.0).then_some(())).await;
    assert_eq!(seen(&origin), [("/safe".to_owned(), Some("1".to_owned()))]);

    edge.barred.store(false, Ordering::SeqCst);
    for answer in [held_answer, content_answer, safe_answer] {
        assert_eq!(answer.answer().await.expect("an answer").status(), 200);
    }
    assert!(accepted.await);
    let mut seen = seen(&origin);
    seen.sort();
    let wanted = [("/".to_owned(), None), ("/content".to_owned(), None), ("/safe".to_owned(), Some("1".to_owned()))];
    assert_eq!(seen, wanted);
    // After the handshake there is nothing early about the connection.
    origin.forget();
    assert_eq!(client.ask(&get("/late", &[])).await.expect("an answer").status(), 200);
    assert_eq!(origin.last().header("early-data"), None);
    assert_eq!(edge.early("served").await, 1.0);
}

/// RFC 8470, section 5.2: the gateway, which took it early, waits and sends it again; one that says itself that it came
/// early is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_early_for_the_origin_is_sent_again_after_the_handshake() {
    let origin = Origin::answering(false, |request| {
        let status = if request.header("early-data").is_some() { 425 } else { 200 };
        Response::builder().status(status).body(full("")).expect("a response")
    })
    .await;
    let edge = Edge::before(origin.address, "early_data = true\n").await;
    edge.visit().await;
    edge.barred.store(true, Ordering::SeqCst);
    let (client, _accepted) = edge.back(edge.link.address).expect("a ticket for early data");
    let our_answer = client.send(&get("/ours", &[])).await;
    let their_answer = client.send(&get("/theirs", &[("early-data", "1")])).await;
    eventually("both arrive", async || (seen(&origin).len() == 2).then_some(())).await;
    edge.barred.store(false, Ordering::SeqCst);
    assert_eq!(our_answer.answer().await.expect("an answer").status(), 200);
    assert_eq!(their_answer.answer().await.expect("an answer").status(), 425);
    let again: Vec<_> = seen(&origin).into_iter().skip(2).collect();
    assert_eq!(again, [("/ours".to_owned(), None)]);
    assert_eq!(edge.early("refused").await, 1.0);
}

/// RFC 8446, section 8; RFC 9001, section 9.2. A recorded flight opens early data once; what
/// is not safe never happens at all, for whoever replays it cannot complete the handshake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flight_that_is_replayed_has_one_effect() {
    let origin = Origin::http1().await;
    let edge = Edge::before(origin.address, "early_data = true\n").await;
    edge.visit().await;
    let trap = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let (client, _accepted) = edge.back(trap.local_addr().expect("an address")).expect("a ticket for early data");
    let mut answers = Vec::new();
    for request in [get("/safe", &[]), post(&[("content-length", "0")])] {
        answers.push(client.send(&request).await);
    }
    let mut flight = Vec::new();
    let mut datagram = vec![0; 2048];
    while let Ok(Ok(length)) = tokio::time::timeout(Duration::from_millis(300), trap.recv(&mut datagram)).await {
        flight.push(datagram[..length].to_vec());
    }
    assert!(!flight.is_empty());
    for round in [1.0, 2.0] {
        // While its connection stands, or is remembered, a flight is that connection's, wherever it comes from.
        eventually("a handshake fails", async || {
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
            for datagram in &flight {
                socket.send_to(datagram, edge.gateway.edge()).await.expect("sent");
            }
            (edge.gateway.metric("tidegate_handshakes_failed_total").await >= round).then_some(())
        })
        .await;
        assert_eq!(seen(&origin), [("/safe".to_owned(), Some("1".to_owned()))], "round {round}");
    }
    assert_eq!(edge.early("served").await, 1.0);
    assert_eq!(edge.early("held").await, 1.0);
}

/// Without the key there is no ticket for early data, and with other limits than those that a client remembers none is
/// taken: it would hold itself to the old ones (RFC 9000, section 7.4.1).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_data_is_off_by_default_and_refused_after_a_change_of_limits() {
    let origin = Origin::http1().await;
    let edge = Edge::before(origin.address, "").await;
    edge.visit().await;
    assert!(edge.back(edge.gateway.edge()).is_none());

    let edge = Edge::before(origin.address, "early_data = true\n").await;
    edge.visit().await;
    let fewer = edge.config.replace("max_streams = 50", "max_streams = 40");
    let (taken, words) = edge.gateway.reload(&fewer);
    assert!(taken, "{words}");
    let (client, accepted) = edge.back(edge.gateway.edge()).expect("a ticket for early data");
    assert!(!accepted.await);
    assert_eq!(client.ask(&get("/after", &[])).await.expect("an answer").status(), 200);
    assert_eq!(origin.last().header("early-data"), None);
}
