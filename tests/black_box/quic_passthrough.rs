//! QUIC that others end: routed by the ClientHello in its first packets (RFC 9001, section 5.2), passed on unchanged, found
//! again by its connection ids (RFC 9000, section 9).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Response, Version};
use tidegate_tests::certs::Authority;
use tidegate_tests::origin::full;
use tidegate_tests::quic::{QuicClient, get};
use tidegate_tests::{Client, Gateway, Link, Origin, eventually, peers};
use tokio::net::UdpSocket;
use tokio::sync::Notify;

/// A listener that leads names to clusters. `more` goes into `tunnel`.
fn config(names: &[(&str, SocketAddr)], more: &str) -> String {
    let routes: Vec<String> =
        names.iter().map(|(name, _)| format!("{{ server_name = \"{name}\", cluster = \"{name}\" }}")).collect();
    let clusters: String = names
        .iter()
        .map(|(name, address)| format!("[[cluster]]\nname = \"{name}\"\nendpoints = [\"{address}\"]\n"))
        .collect();
    format!(
        "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\nprotocols = [\"udp\"]\n\
         tunnel = {{ routes = [{}]{more} }}\n{clusters}",
        routes.join(", ")
    )
}

/// An origin on quinn and h3 for one name.
async fn origin(authority: &Authority, name: &'static str) -> Origin {
    let tls = authority.issue(&[name]).server(&[b"h3"], None);
    Origin::http3(tls, move |_| Response::new(full(name))).await
}

/// A gateway that ends HTTP/3 for these names.
async fn ending(authority: &Authority, names: &[&str], origin: SocketAddr, more: &str) -> Gateway {
    let folder = tempfile::tempdir().expect("a folder");
    authority.issue(names).write(folder.path(), "edge");
    let tls = format!(
        "address = \"127.0.0.1:0\"\ntls.certificates = [{{ certificate = \"edge.pem\", key = \"edge.key\" }}]\n{more}\n"
    );
    let config = crate::simple(&[origin], "").replace("address = \"127.0.0.1:0\"\n", &tls);
    Gateway::start_in(folder, &config).await
}

async fn text(address: SocketAddr, authority: &Authority, name: &str) -> String {
    let client = Client::tls(address, Version::HTTP_3, authority.client(&[b"h3"], None), name);
    client.get("/").await.expect("an answer").text()
}

async fn opened(gateway: &Gateway, kind: &str) -> f64 {
    gateway.metric(&format!("tidegate_tunnels_total{{kind=\"{kind}\"}}")).await
}

/// The first datagrams of a client: its ClientHello and nothing that follows an answer.
async fn first_flight(authority: &Authority, name: &str) -> Vec<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("an address");
    let (tls, name) = (authority.client(&[b"h3"], None), name.to_owned());
    let client = tokio::spawn(async move { Client::tls(address, Version::HTTP_3, tls, &name).get("/").await.is_ok() });
    let mut datagrams = Vec::new();
    let mut piece = [0; 1500];
    while let Ok(received) = tokio::time::timeout(Duration::from_millis(200), socket.recv(&mut piece)).await {
        datagrams.push(piece[..received.expect("a datagram")].to_vec());
    }
    client.abort();
    datagrams
}

/// Two names on two origins of different make; the certificate that a client verifies is the origin's own. The ClientHello
/// has a post-quantum key share, and needs two datagrams for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_lead_to_their_origins() {
    let authority = Authority::new();
    let one = origin(&authority, "one.example").await;
    let behind = Origin::answering(false, |_| Response::new(full("two.example"))).await;
    let two = ending(&authority, &["two.example"], behind.address, "").await;
    let gateway = Gateway::start(&config(&[("one.example", one.address), ("two.example", two.edge())], "")).await;
    assert!(first_flight(&authority, "one.example").await.len() >= 2, "a ClientHello in two datagrams");
    for _ in 0..5 {
        for name in ["one.example", "two.example"] {
            assert_eq!(text(gateway.edge(), &authority, name).await, name);
        }
    }
    assert_eq!(opened(&gateway, "quic").await, 10.0);
    assert_eq!(two.metric("tidegate_connections_total{kind=\"quic\"}").await, 5.0);
    drop(gateway);

    let names = [("one.example", one.address)];
    let gateway = Gateway::start(&config(&names, ", udp_idle_timeout = \"500ms\"")).await;
    assert_eq!(text(gateway.edge(), &authority, "one.example").await, "one.example");
    let line = eventually("a record", async || gateway.access_log().pop()).await;
    assert_eq!((&line["protocol"], &line["server_name"]), (&"quic".into(), &"one.example".into()), "{line}");
    assert_eq!((&line["alpn"], &line["cluster"]), (&"h3".into(), &"one.example".into()), "{line}");
    assert!(line["cause"].is_null() && line["bytes_in"].as_u64() > Some(2400), "{line}");
}

/// A client may have all its connections on one socket: each goes where its own name leads, at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_share_a_socket_go_different_ways() {
    let authority = Authority::new();
    let (one, two) = (origin(&authority, "one.example").await, origin(&authority, "two.example").await);
    let gateway = Gateway::start(&config(&[("one.example", one.address), ("two.example", two.address)], "")).await;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(authority.client(&[b"h3"], None)).expect("TLS 1.3");
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a socket");
    let names = ["one.example", "two.example", "one.example", "two.example"];
    let connecting = names.map(|name| endpoint.connect_with(config.clone(), gateway.edge(), name).expect("a start"));
    let mut connections = Vec::new();
    for connecting in connecting {
        connections.push(connecting.await.expect("a connection"));
    }
    for _ in 0..20 {
        for (connection, name) in connections.iter().zip(names) {
            let (mut send, recv) = connection.open_bi().await.expect("a stream");
            send.write_all(&get("/", &[])).await.expect("sent");
            send.finish().expect("once");
            let answer = tidegate_tests::quic::Answering::new(recv).answer().await.expect("an answer");
            assert_eq!((answer.status(), &answer.body[..]), (200, name.as_bytes()));
        }
    }
    assert_eq!((one.connections(), two.connections()), (2, 2));
    assert_eq!(opened(&gateway, "quic").await, 4.0);
}

/// Stands between one client and the gateway, as a NAT does: the client's address out there changes, and it knows nothing of
/// it.
struct Nat {
    address: SocketAddr,
    change: Arc<Notify>,
}

impl Nat {
    async fn to(target: SocketAddr) -> Self {
        let inside = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let (address, change) = (inside.local_addr().expect("an address"), Arc::new(Notify::new()));
        let changed = change.clone();
        tokio::spawn(async move {
            let (mut there, mut back) = ([0; 1 << 16], [0; 1 << 16]);
            let (mut outside, mut client) = (Self::outside(target).await, None);
            loop {
                tokio::select! {
                    biased;
                    () = changed.notified() => outside = Self::outside(target).await,
                    received = inside.recv_from(&mut there) => {
                        let (count, from) = received.expect("a datagram");
                        client = Some(from);
                        // What is lost is sent again.
                        let _ = outside.send(&there[..count]).await;
                    }
                    Ok(count) = outside.recv(&mut back) => {
                        let _ = inside.send_to(&back[..count], client.expect("it sent something")).await;
                    }
                }
            }
        });
        Self { address, change }
    }

    async fn outside(target: SocketAddr) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        socket.connect(target).await.expect("connected");
        socket
    }

    fn change(&self) {
        self.change.notify_one();
    }
}

/// RFC 9000, section 9: a client whose address changes, as by a NAT, stays with its server, whichever worker hears of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_moves_is_still_served() {
    let authority = Authority::new();
    let behind = Origin::http1().await;
    let (one, two) = (
        ending(&authority, &["edge.example"], behind.address, "").await,
        ending(&authority, &["edge.example"], behind.address, "").await,
    );
    let mut config = config(&[("edge.example", one.edge())], "");
    config = config.replace(&format!("[\"{}\"]", one.edge()), &format!("[\"{}\", \"{}\"]", one.edge(), two.edge()));
    let gateway = Gateway::start(&config).await;
    for _ in 0..4 {
        let nat = Nat::to(gateway.edge()).await;
        let client = QuicClient::connect(nat.address, authority.client(&[b"h3"], None), "edge.example").await;
        for _ in 0..4 {
            assert_eq!(client.ask(&get("/", &[])).await.expect("an answer").status(), 200);
            nat.change();
        }
        assert_eq!(client.ask(&get("/", &[])).await.expect("an answer").status(), 200);
    }
    assert_eq!(opened(&gateway, "quic").await, 20.0, "a session for each address");
    let connections = "tidegate_connections_total{kind=\"quic\"}";
    assert_eq!(one.metric(connections).await + two.metric(connections).await, 4.0);
}

/// A session that was silent for too long is gone; the connection is not, and goes on with the same server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_outlives_a_silent_session() {
    let authority = Authority::new();
    let one = origin(&authority, "edge.example").await;
    let gateway = Gateway::start(&config(&[("edge.example", one.address)], ", udp_idle_timeout = \"300ms\"")).await;
    let client = QuicClient::connect(gateway.edge(), authority.client(&[b"h3"], None), "edge.example").await;
    for _ in 0..3 {
        assert_eq!(client.ask(&get("/", &[])).await.expect("an answer").status(), 200);
        eventually("the session ends", async || (gateway.metric("tidegate_tunnels_active").await == 0.0).then_some(()))
            .await;
    }
    assert_eq!(one.connections(), 1);
}

/// Another implementation, through a Retry too (RFC 9000, section 8.1.2): the second ClientHello has another id and other keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_on_aioquic() {
    let authority = Authority::new();
    let behind = Origin::answering(false, |seen| Response::new(full(seen.body.clone()))).await;
    let server = ending(&authority, &["edge.example"], behind.address, "max_connections = 8").await;
    let gateway = Gateway::start(&config(&[("edge.example", server.edge())], "")).await;
    let ca = gateway.folder.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).expect("written");
    let (port, ca) = (gateway.edge().port().to_string(), ca.display().to_string());
    let mut client = peers::Script::start("http3_client.py", &[&port, &ca]);
    for expected in [
        "a get: 200",
        "fifty posts: 50 whole",
        "after a key update: 200",
        "a malformed request: reset 270",
        "retries: 0 of the first, 1 of the last",
        "the last: 200",
    ] {
        assert_eq!(client.line().await, expected);
    }
    assert_eq!(server.metric("tidegate_handshakes_failed_total").await, 0.0);
}

/// Over a path that loses, doubles and reorders, the first datagrams among them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_path_leads_to_the_right_origin_too() {
    let authority = Authority::new();
    let (one, two) = (origin(&authority, "one.example").await, origin(&authority, "two.example").await);
    let gateway = Gateway::start(&config(&[("one.example", one.address), ("two.example", two.address)], "")).await;
    for seed in 1..6 {
        let link = Link::bad(gateway.edge(), seed, 100, 50, Duration::from_millis(20)).await;
        for name in ["one.example", "two.example"] {
            assert_eq!(text(link.address, &authority, name).await, name);
        }
    }
}

/// What the client sent arrives as it was sent, in its order, however the hello is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_changed() {
    let authority = Authority::new();
    let flight = first_flight(&authority, "one.example").await;
    let origin = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let names = [("one.example", origin.local_addr().expect("an address"))];
    let gateway = Gateway::start(&config(&names, "")).await;
    for turned in [false, true] {
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        client.connect(gateway.edge()).await.expect("connected");
        // In any order, each twice.
        let mut sent: Vec<_> = flight[..2].iter().flat_map(|datagram| [datagram, datagram]).cloned().collect();
        if turned {
            sent.reverse();
        }
        for datagram in &sent {
            client.send(datagram).await.expect("sent");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut piece = [0; 1500];
        for datagram in &sent {
            let (count, peer) = origin.recv_from(&mut piece).await.expect("a datagram");
            assert_eq!(piece[..count], datagram[..]);
            origin.send_to(b"not QUIC at all", peer).await.expect("sent");
        }
        let count = client.recv(&mut piece).await.expect("a datagram");
        assert_eq!(&piece[..count], b"not QUIC at all");
    }
}

/// A ClientHello that does not become whole is waited for within bounds; a name without a route goes nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_nowhere_is_dropped_and_counted() {
    let authority = Authority::new();
    let one = origin(&authority, "one.example").await;
    let gateway = Gateway::start(&config(&[("one.example", one.address)], ", hello_timeout = \"300ms\"")).await;
    let flight = first_flight(&authority, "one.example").await;
    let client = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    client.connect(gateway.edge()).await.expect("connected");
    let unheard = async |reason: &str| {
        gateway.metric(&format!("tidegate_client_hellos_unheard_total{{reason=\"{reason}\"}}")).await
    };
    client.send(&flight[0]).await.expect("sent");
    eventually("it is late", async || (unheard("late").await == 1.0).then_some(())).await;
    assert_eq!(opened(&gateway, "quic").await, 0.0);

    let none = "tidegate_udp_datagrams_dropped_total{reason=\"no_session\"}";
    let before = gateway.metric(none).await;
    // Not QUIC; a version that nobody knows; an Initial packet in too short a datagram; one that cannot be decrypted.
    let mut unknown = flight[0].clone();
    unknown[1..5].copy_from_slice(&[0x1a, 0x2a, 0x3a, 0x4a]);
    let short = flight[0][..1100].to_vec();
    for datagram in [b"not QUIC".to_vec(), vec![], unknown, short] {
        client.send(&datagram).await.expect("sent");
    }
    eventually("all are counted", async || (gateway.metric(none).await == before + 4.0).then_some(())).await;
    let mut broken = flight[0].clone();
    broken[600] ^= 1;
    client.send(&broken).await.expect("sent");
    eventually("it is late", async || (unheard("late").await == 2.0).then_some(())).await;

    for datagram in first_flight(&authority, "other.example").await {
        client.send(&datagram).await.expect("sent");
    }
    let line = eventually("a record", async || gateway.access_log().pop()).await;
    assert_eq!((&line["cause"], &line["server_name"]), (&"no_route".into(), &"other.example".into()), "{line}");
    assert_eq!(one.connections(), 0);
    assert_eq!(text(gateway.edge(), &authority, "one.example").await, "one.example");
}

/// With a cluster for the rest, that is where all of this goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_has_a_cluster() {
    let authority = Authority::new();
    let one = origin(&authority, "one.example").await;
    let rest = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let seen = Arc::new(AtomicUsize::new(0));
    let cluster =
        format!("[[cluster]]\nname = \"rest\"\nendpoints = [\"{}\"]\n", rest.local_addr().expect("an address"));
    let count = seen.clone();
    tokio::spawn(async move {
        let mut piece = [0; 1500];
        loop {
            let (length, peer) = rest.recv_from(&mut piece).await.expect("a datagram");
            count.fetch_add(1, Ordering::SeqCst);
            let _ = rest.send_to(&piece[..length], peer).await;
        }
    });
    let gateway = Gateway::start(&(config(&[("one.example", one.address)], ", cluster = \"rest\"") + &cluster)).await;
    let client = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    client.connect(gateway.edge()).await.expect("connected");
    let mut piece = [0; 1500];
    client.send(b"not QUIC").await.expect("sent");
    let count = client.recv(&mut piece).await.expect("a datagram");
    assert_eq!(&piece[..count], b"not QUIC");
    // The same port, and QUIC after all: a connection of its own.
    let flight = first_flight(&authority, "one.example").await;
    for datagram in &flight[..2] {
        client.send(datagram).await.expect("sent");
    }
    let count = client.recv(&mut piece).await.expect("a datagram");
    assert!(piece[0] & 0x80 != 0 && &piece[..count] != b"not QUIC", "a packet with a long header");
    let others = first_flight(&authority, "other.example").await;
    for datagram in &others[..2] {
        client.send(datagram).await.expect("sent");
    }
    eventually("the others are passed on", async || (seen.load(Ordering::SeqCst) == 3).then_some(())).await;
    assert_eq!(text(gateway.edge(), &authority, "one.example").await, "one.example");
}
