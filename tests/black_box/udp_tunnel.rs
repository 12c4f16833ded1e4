//! UDP below HTTP: sessions by address, one endpoint each, nothing queued and nothing forged.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_tests::{Gateway, Peer, eventually};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::proxy_protocol::{IPV4, version_2};

/// Sends back what it gets, its own name before it if it has one. Closed when dropped.
struct Echo {
    address: SocketAddr,
    /// Who sent something.
    from: Arc<Mutex<HashSet<SocketAddr>>>,
    task: JoinHandle<()>,
}

impl Echo {
    async fn start(name: &'static str) -> Self {
        Self::at("127.0.0.1:0", name).await
    }

    async fn at(address: &str, name: &'static str) -> Self {
        let socket = UdpSocket::bind(address).await.expect("a port");
        let address = socket.local_addr().expect("an address");
        let from: Arc<Mutex<HashSet<SocketAddr>>> = Arc::default();
        let known = from.clone();
        let task = tokio::spawn(async move {
            let mut piece = vec![0; 1 << 16];
            loop {
                let (count, peer) = socket.recv_from(&mut piece).await.expect("a datagram");
                known.lock().expect("no panic").insert(peer);
                // A session that has gone is the test's to notice.
                let _ = socket.send_to(&[name.as_bytes(), &piece[..count]].concat(), peer).await;
            }
        });
        Self { address, from, task }
    }

    fn peers(&self) -> usize {
        self.from.lock().expect("no panic").len()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A listener for datagrams, a cluster of these endpoints.
fn config(endpoints: &[SocketAddr], listener: &str, tunnel: &str, cluster: &str) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|address| format!("\"{address}\"")).collect();
    let address = if listener.contains("address = ") { "" } else { "address = \"127.0.0.1:0\"\n" };
    format!(
        "[[listener]]\nname = \"edge\"\nprotocols = [\"udp\"]\n{address}{listener}\ntunnel = {{ cluster = \"api\"{tunnel} }}\n\
         [[cluster]]\nname = \"api\"\nendpoints = [{}]\n{cluster}\n",
        endpoints.join(", ")
    )
}

/// A client with a port of its own, that takes answers from where it sends to only.
struct Client(UdpSocket);

impl Client {
    async fn to(address: SocketAddr) -> Self {
        Self::from("0.0.0.0:0", address).await
    }

    async fn from(own: &str, address: SocketAddr) -> Self {
        let own: SocketAddr = own.parse().expect("an address");
        let own = if address.is_ipv6() { "[::]:0".parse().expect("an address") } else { own };
        let socket = UdpSocket::bind(own).await.expect("a port");
        socket.connect(address).await.expect("connected");
        Self(socket)
    }

    async fn send(&self, datagram: &[u8]) {
        self.0.send(datagram).await.expect("sent");
    }

    async fn receive(&self, within: Duration) -> Option<Vec<u8>> {
        let mut piece = vec![0; 1 << 16];
        let count = tokio::time::timeout(within, self.0.recv(&mut piece)).await.ok()?.expect("a datagram");
        Some(piece[..count].to_vec())
    }

    /// The answer to a datagram, which is not sent again.
    async fn ask(&self, datagram: impl AsRef<[u8]>) -> Vec<u8> {
        self.send(datagram.as_ref()).await;
        self.receive(Duration::from_secs(20)).await.expect("an answer")
    }

    async fn hears_nothing(&self, datagram: &[u8]) {
        self.send(datagram).await;
        assert_eq!(self.receive(Duration::from_millis(300)).await, None);
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("an address")
    }
}

async fn active(gateway: &Gateway) -> f64 {
    gateway.metric("tidegate_tunnels_active").await
}

async fn all_ended(gateway: &Gateway) {
    eventually("all sessions end", async || (active(gateway).await == 0.0).then_some(())).await;
}

async fn dropped(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric(&format!("tidegate_udp_datagrams_dropped_total{{reason=\"{reason}\"}}")).await
}

/// Many clients over both workers: each has an endpoint and keeps it, both endpoints have some, and there is a record for
/// each session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_keeps_its_endpoint() {
    let (one, two) = (Echo::start("one ").await, Echo::start("two ").await);
    let gateway = Gateway::start(&config(&[one.address, two.address], "", ", udp_idle_timeout = \"1s\"", "")).await;
    let mut clients = Vec::new();
    for _ in 0..200 {
        clients.push(Client::to(gateway.edge()).await);
    }
    let asking = clients.into_iter().enumerate().map(|(number, client)| {
        tokio::spawn(async move {
            let first = client.ask(format!("{number}")).await;
            for round in 0..5 {
                let answer = String::from_utf8(client.ask(format!("{number} {round}")).await).expect("text");
                assert_eq!(answer.as_bytes()[..4], first[..4], "another endpoint");
                assert_eq!(answer[4..], format!("{number} {round}"));
            }
        })
    });
    for client in asking.collect::<Vec<_>>() {
        client.await.expect("no panic");
    }
    assert_eq!(one.peers() + two.peers(), 200);
    assert!(one.peers() > 50 && two.peers() > 50, "{} and {}", one.peers(), two.peers());
    assert_eq!(gateway.metric("tidegate_tunnels_total{kind=\"udp\"}").await, 200.0);
    assert_eq!(gateway.metric("tidegate_udp_datagrams_total{direction=\"in\"}").await, 1200.0);
    assert_eq!(gateway.metric("tidegate_udp_datagrams_total{direction=\"out\"}").await, 1200.0);
    all_ended(&gateway).await;
    let log =
        eventually("a line for each session", async || Some(gateway.access_log()).filter(|lines| lines.len() == 200));
    for line in log.await {
        assert_eq!((&line["protocol"], &line["cluster"]), (&"udp".into(), &"api".into()), "{line}");
        assert!(line["cause"].is_null() && line["bytes_in"].as_u64() > Some(15), "{line}");
        assert_eq!(line["bytes_out"].as_u64(), line["bytes_in"].as_u64().map(|bytes| bytes + 24), "{line}");
    }
}

/// An empty datagram is one, and so is the largest; one that fits no link is dropped, not cut in pieces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_of_any_size() {
    let origin = Echo::start("").await;
    let gateway = Gateway::start(&config(&[origin.address], "", "", "")).await;
    let client = Client::to(gateway.edge()).await;
    for size in [0, 1, 1200, 1472, 9000, 65_507, 0] {
        let sent: Vec<u8> = (0..size).map(|at| at as u8).collect();
        assert_eq!(client.ask(&sent).await, sent);
    }
    // With a header before it the largest is too large.
    let gateway = Gateway::start(&config(&[origin.address], "", "", "proxy_protocol = \"v2\"")).await;
    let client = Client::to(gateway.edge()).await;
    client.send(&vec![0; 65_507]).await;
    assert!(client.ask(b"after it").await.ends_with(b"after it"));
    assert_eq!(dropped(&gateway, "too_large").await, 1.0);
}

/// Bursts are taken and passed on in as few calls as the system allows. What is lost is counted, what arrives is whole and in
/// order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bursts_arrive_whole() {
    let origin = Echo::start("").await;
    let gateway = Gateway::start(&config(&[origin.address], "", "", "")).await;
    let client = Client::to(gateway.edge()).await;
    let datagram = |number: u16| [&number.to_be_bytes()[..], &[number as u8; 1000]].concat();
    let mut came = Vec::new();
    for burst in 0..20 {
        for number in burst * 50..burst * 50 + 50 {
            client.send(&datagram(number)).await;
        }
        while let Some(answer) = client.receive(Duration::from_millis(50)).await {
            let number = u16::from_be_bytes([answer[0], answer[1]]);
            assert_eq!(answer, datagram(number));
            came.push(number);
        }
    }
    assert!(came.is_sorted(), "in another order");
    assert!(came.len() > 500, "{} of 1000", came.len());
}

/// A listener on all addresses answers from the one that the client sent to, in both families.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_leave_from_where_the_client_sent_to() {
    let (origin, origin6) = (Echo::start("").await, Echo::at("[::1]:0", "").await);
    for (listener, hosts) in [("[::]:0", &["127.0.0.1", "127.0.0.2", "::1"][..]), ("0.0.0.0:0", &["127.0.0.3"])] {
        for endpoint in [origin.address, origin6.address] {
            let gateway = Gateway::start(&config(&[endpoint], &format!("address = \"{listener}\""), "", "")).await;
            for host in hosts {
                let ip: IpAddr = host.parse().expect("an address");
                let client = Client::to(SocketAddr::new(ip, gateway.edge().port())).await;
                assert_eq!(client.ask(b"hello").await, b"hello", "{host}");
            }
        }
    }
    // One port, sent to at two addresses: two sessions.
    let gateway = Gateway::start(&config(&[origin.address], "address = \"0.0.0.0:0\"", "", "")).await;
    let client = UdpSocket::bind("127.0.0.9:0").await.expect("a port");
    for host in ["127.0.0.1", "127.0.0.2"] {
        let to = SocketAddr::new(host.parse().expect("an address"), gateway.edge().port());
        client.send_to(b"hello", to).await.expect("sent");
        let mut answer = [0; 9];
        let (count, from) = client.recv_from(&mut answer).await.expect("an answer");
        assert_eq!((&answer[..count], from), (&b"hello"[..], to));
    }
    assert_eq!(active(&gateway).await, 2.0);
}

/// A silent session ends and leaves nothing behind; the client's next datagram begins another. A busy one has a longest life.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_end() {
    let origin = Echo::start("").await;
    let tunnel = ", udp_idle_timeout = \"400ms\", max_lifetime = \"1500ms\"";
    let gateway = Gateway::start(&config(&[origin.address], "", tunnel, "")).await;
    // Those who look at its metrics have descriptors too, for a moment.
    active(&gateway).await;
    let before = gateway.descriptors();
    let client = Client::to(gateway.edge()).await;
    client.ask(b"one").await;
    all_ended(&gateway).await;
    eventually("the session's socket is closed", async || (gateway.descriptors() <= before + 2).then_some(())).await;
    client.ask(b"two").await;
    assert_eq!(origin.peers(), 2);
    let begun = std::time::Instant::now();
    while origin.peers() == 2 {
        client.ask(b"busy").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(begun.elapsed() < Duration::from_secs(20), "it never ends");
    }
    let line = eventually("its record", async || {
        gateway.access_log().into_iter().find(|line| line["cause"] == "total_timeout")
    });
    assert!(line.await["duration_us"].as_u64() >= Some(1_400_000));
}

/// An endpoint that nobody listens at is left for another before it said anything, and its health hears of it; one that
/// dies later ends the session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_are_not_there() {
    let (gone, there) = (Echo::start("").await, Echo::start("").await);
    let closed = gone.address;
    drop(gone);
    let gateway = Gateway::start(&config(&[closed, there.address], "", "", "")).await;
    for _ in 0..8 {
        let client = Client::to(gateway.edge()).await;
        let answer = eventually("an answer by the second datagram", async || {
            client.send(b"x").await;
            client.receive(Duration::from_millis(500)).await
        });
        assert_eq!(answer.await, b"x");
    }
    let failures = format!("tidegate_endpoint_failures_total{{cluster=\"api\",endpoint=\"{closed}\"}}");
    assert!(gateway.metric(&failures).await >= 1.0, "{}", gateway.admin_get("/metrics").await.text());

    let dies = Echo::start("").await;
    let gateway = Gateway::start(&config(&[dies.address], "", "", "")).await;
    let client = Client::to(gateway.edge()).await;
    client.ask(b"x").await;
    drop(dies);
    let line = eventually("the session ends", async || {
        client.send(b"x").await;
        gateway.access_log().into_iter().find(|line| line["cause"] == "reset")
    });
    assert_eq!(line.await["attempts"], 1);
}

/// Conduct of the listener's and the cluster's bounds: a session beyond them does not begin, and those that are there go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_bounded() {
    let origin = Echo::start("").await;
    let idle = ", udp_idle_timeout = \"1s\"";
    let gateway = Gateway::start(&config(&[origin.address], "max_connections = 2", idle, "")).await;
    let (one, two) = (Client::to(gateway.edge()).await, Client::to(gateway.edge()).await);
    one.ask(b"x").await;
    two.ask(b"x").await;
    let three = Client::to(gateway.edge()).await;
    three.hears_nothing(b"x").await;
    one.ask(b"x").await;
    assert_eq!(gateway.metric("tidegate_connections_refused_total").await, 1.0);
    assert_eq!(dropped(&gateway, "no_session").await, 1.0);
    all_ended(&gateway).await;
    three.ask(b"x").await;

    let limited = "circuit_breaker = { max_requests = 1 }";
    let gateway = Gateway::start(&config(&[origin.address], "", "", limited)).await;
    Client::to(gateway.edge()).await.ask(b"x").await;
    Client::to(gateway.edge()).await.hears_nothing(b"x").await;
    assert_eq!(gateway.metric("tidegate_faults_total{cause=\"cluster_full\"}").await, 1.0);
}

/// TCP and UDP on one port, as DNS has them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_protocols_on_one_port() {
    let address = tidegate_tests::gateway::free_address();
    let udp = Echo::at(&address.to_string(), "").await;
    let tcp = tokio::net::TcpListener::bind(address).await.expect("the same port");
    tokio::spawn(async move {
        let (mut stream, _) = tcp.accept().await.expect("a connection");
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    });
    let both = config(&[udp.address], "", "", "").replace("[\"udp\"]", "[\"tcp\", \"udp\"]");
    let gateway = Gateway::start(&both).await;
    assert_eq!(Client::to(gateway.edge()).await.ask(b"over UDP").await, b"over UDP");
    let mut raw = tidegate_tests::RawClient::connect(gateway.edge()).await;
    raw.send(b"over TCP").await;
    raw.until("over TCP").await;
    // Only TCP from now on.
    let (taken, said) = gateway.reload(&both.replace("[\"tcp\", \"udp\"]", "[\"tcp\"]"));
    assert!(taken, "{said}");
}

/// Sessions under way keep their endpoint over a reload, and outlive their listener; new ones go where the new file says. A
/// listener with another name takes over the address with its sessions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_do_not_touch_sessions() {
    let (one, two) = (Echo::start("one ").await, Echo::start("two ").await);
    let address = format!("address = \"{}\"", tidegate_tests::gateway::free_address());
    let gateway = Gateway::start(&config(&[one.address], &address, "", "")).await;
    let edge = gateway.edge();
    let before = Client::to(edge).await;
    assert_eq!(before.ask(b"x").await, b"one x");
    let next = config(&[two.address], &address, "", "");
    let (taken, said) = gateway.reload(&next);
    assert!(taken, "{said}");
    assert_eq!(before.ask(b"x").await, b"one x");
    eventually("a new client goes to the new endpoint", async || {
        (Client::to(edge).await.ask(b"x").await == b"two x").then_some(())
    })
    .await;
    let (taken, said) = gateway.reload(&next.replace("name = \"edge\"", "name = \"renamed\""));
    assert!(taken, "{said}");
    for _ in 0..20 {
        assert_eq!(Client::to(edge).await.ask(b"x").await, b"two x");
        assert_eq!(before.ask(b"x").await, b"one x");
    }
    let elsewhere = next.replace(&address, "address = \"127.0.0.1:0\"");
    let (taken, said) = gateway.reload(&elsewhere);
    assert!(taken, "{said}");
    eventually("no session begins", async || {
        let client = Client::to(edge).await;
        client.send(b"x").await;
        // Where nothing is bound any more the socket hears of it: one worker's may be closed already.
        let mut piece = [0; 9];
        let heard = tokio::time::timeout(Duration::from_millis(300), client.0.recv(&mut piece)).await;
        (!matches!(heard, Ok(Ok(_)))).then_some(())
    })
    .await;
    assert_eq!(before.ask(b"x").await, b"one x");
}

/// Drain: sessions go on within the drain timeout, none begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_outlive_the_begin_of_drain() {
    let origin = Echo::start("").await;
    let idle = ", udp_idle_timeout = \"1s\"";
    let mut gateway = Gateway::start(&config(&[origin.address], "", idle, "")).await;
    let client = Client::to(gateway.edge()).await;
    client.ask(b"x").await;
    gateway.signal(libc::SIGTERM);
    eventually("no session begins", async || {
        let new = Client::to(gateway.edge()).await;
        new.send(b"x").await;
        client.ask(b"x").await;
        new.receive(Duration::from_millis(100)).await.is_none().then_some(())
    })
    .await;
    client.ask(b"x").await;
    assert!(gateway.ended().await.success(), "it ends once the session is silent");
}

/// PROXY protocol, section 2.2: header and payload in one datagram, in every one. Whoever is named is the client, and told
/// from others of the same peer; answers go to the peer without a header.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_headers_name_the_client_of_a_datagram() {
    let origin = Echo::start("").await;
    let accept = |what| format!("proxy_protocol = {{ accept = \"{what}\", trusted = [\"127.0.0.1\"] }}");
    let idle = ", udp_idle_timeout = \"500ms\"";
    let gateway = Gateway::start(&config(&[origin.address], &accept("required"), idle, "")).await;
    let peer = Client::from("127.0.0.1:0", gateway.edge()).await;
    let header = |port: u8| {
        let addresses = [&IPV4[..9], &[port], &IPV4[10..]].concat();
        version_2(1, 0x12, &addresses, &[(0x02, b"name.example")], Some(true))
    };
    for round in 0..3 {
        for port in [1, 2] {
            let payload = format!("{round} of {port}").into_bytes();
            assert_eq!(peer.ask([header(port), payload.clone()].concat()).await, payload);
        }
    }
    assert_eq!(peer.ask(header(1)).await, b"", "an empty payload");
    assert_eq!(origin.peers(), 2, "a session for each client");
    let local = version_2(0, 0, &[], &[], None);
    assert_eq!(peer.ask([&local[..], b"LOCAL"].concat()).await, b"LOCAL");
    all_ended(&gateway).await;
    let log = eventually("three records", async || Some(gateway.access_log()).filter(|lines| lines.len() == 3)).await;
    let mut clients: Vec<_> = log.iter().map(|line| line["client"].as_str().expect("text").to_owned()).collect();
    clients.sort();
    let own = peer.address().to_string();
    assert_eq!(clients, [own.as_str(), "198.51.100.7:39937", "198.51.100.7:39938"]);
    assert!(log.iter().all(|line| line["peer"] == own.as_str()));

    let refused = async |gateway: &Gateway, reason: &str| {
        gateway.metric(&format!("tidegate_proxy_headers_refused_total{{reason=\"{reason}\"}}")).await
    };
    let wrong = [
        b"no header".to_vec(),
        b"PROXY UDP4 198.51.100.7 203.0.113.1 1 2\r\nx".to_vec(),
        header(1)[..20].to_vec(),
        version_2(1, 0x12, IPV4, &[], Some(false)),
        version_2(1, 0x13, IPV4, &[], None),
    ];
    for datagram in &wrong {
        peer.hears_nothing(datagram).await;
    }
    assert_eq!(refused(&gateway, "invalid").await, wrong.len() as f64);
    let stranger = Client::from("127.0.0.2:0", gateway.edge()).await;
    stranger.hears_nothing(&[&header(1)[..], b"x"].concat()).await;
    assert_eq!(refused(&gateway, "untrusted").await, 1.0);

    let gateway = Gateway::start(&config(&[origin.address], &accept("optional"), "", "")).await;
    let peer = Client::from("127.0.0.1:0", gateway.edge()).await;
    assert_eq!(peer.ask(b"no header").await, b"no header");
    assert_eq!(peer.ask([&header(1)[..], b"x"].concat()).await, b"x");
    peer.hears_nothing(&wrong[3]).await;
    let stranger = Client::from("127.0.0.2:0", gateway.edge()).await;
    let untouched = [&header(1)[..], b"x"].concat();
    assert_eq!(stranger.ask(&untouched).await, untouched, "bytes like any others");
}

/// And the other way: before each datagram to the endpoint, with the fields that are asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_headers_go_before_each_datagram() {
    let origin = Echo::start("").await;
    for (address, family) in [("127.0.0.1:0", 0x12), ("[::1]:0", 0x22)] {
        let cluster = "proxy_protocol = \"v2\"\nproxy_tlvs = [\"unique_id\", \"crc32c\"]";
        let listener = format!("address = \"{address}\"");
        let gateway = Gateway::start(&config(&[origin.address], &listener, "", cluster)).await;
        let client = Client::to(gateway.edge()).await;
        let mut headers = HashSet::new();
        for payload in [&b"one"[..], b"", b"three"] {
            let got = client.ask(payload).await;
            assert_eq!(got[..14], [b"\r\n\r\n\0\r\nQUIT\n", &[0x21, family][..]].concat());
            let (header, rest) = got.split_at(16 + usize::from(u16::from_be_bytes([got[14], got[15]])));
            assert_eq!(rest, payload);
            let ports = if family == 0x12 { 24 } else { 48 };
            let both = [client.address().port(), gateway.edge().port()].map(u16::to_be_bytes).concat();
            assert_eq!(header[ports..ports + 4], both);
            let (said, sum) = header.split_at(header.len() - 4);
            let computed = crate::proxy_protocol::crc32c(&[said, &[0; 4]].concat());
            assert_eq!(sum, computed.to_be_bytes());
            headers.insert(header.to_vec());
        }
        assert_eq!(headers.len(), 1, "one client, one header");
    }
    let refused = tempfile::tempdir().expect("a folder");
    let file = refused.path().join("gateway.toml");
    std::fs::write(&file, config(&[origin.address], "", "", "proxy_protocol = \"v1\"")).expect("written");
    let checked = tidegate_tests::gateway::run(&["check", &file.display().to_string()]);
    assert_eq!(checked.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&checked.stderr).contains("know no UDP"));
}

/// A question for an address of `a.example`.
const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\x07example\0\0\x01\0\x01";

/// dnsdist sends a header before each of its clients' questions, and LOCAL ones in its health checks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnsdist_in_front() {
    let origin = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
    let address = origin.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut piece = [0; 1500];
        loop {
            let (count, from) = origin.recv_from(&mut piece).await.expect("a datagram");
            // An answer without answers.
            piece[2] |= 0x80;
            let _ = origin.send_to(&piece[..count], from).await;
        }
    });
    let accept = "proxy_protocol = { accept = \"required\", trusted = [\"127.0.0.1\"] }";
    let gateway = Gateway::start(&config(&[address], accept, ", udp_idle_timeout = \"1s\"", "")).await;
    let edge = gateway.edge();
    let lines = |_| format!("newServer({{address=\"{edge}\", useProxyProtocol=true, checkInterval=1}})\n");
    let Some(peer) = Peer::dnsdist(lines).await else { return };
    let client = Client::from("127.0.0.7:0", peer.address).await;
    let answer = eventually("an answer", async || {
        client.send(QUESTION).await;
        client.receive(Duration::from_millis(500)).await
    });
    assert_eq!(answer.await[..2], QUESTION[..2]);
    let own = client.address().to_string();
    eventually("its record", async || gateway.access_log().into_iter().find(|line| line["client"] == own.as_str()))
        .await;
    assert_eq!(gateway.metric("tidegate_proxy_headers_refused_total{reason=\"invalid\"}").await, 0.0);
}

/// And it takes ours: what it knows of the client is what we told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnsdist_behind() {
    let lines = |_| {
        "setProxyProtocolACL({\"127.0.0.1/32\"})\n\
         addAction(AllRule(), LuaAction(function(dq) return DNSAction.Spoof, dq.remoteaddr:toString() end))\n"
            .to_owned()
    };
    let Some(peer) = Peer::dnsdist(lines).await else { return };
    for cluster in ["proxy_protocol = \"v2\"", "proxy_protocol = \"v2\"\nproxy_tlvs = [\"unique_id\", \"crc32c\"]"] {
        let gateway = Gateway::start(&config(&[peer.address], "", "", cluster)).await;
        for host in [5, 6] {
            let client = Client::from(&format!("127.0.0.{host}:0"), gateway.edge()).await;
            for _ in 0..3 {
                assert!(client.ask(QUESTION).await.ends_with(&[127, 0, 0, host]));
            }
        }
    }
}
