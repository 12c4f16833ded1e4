//! `connect-udp` (RFC 9298): UDP over HTTP, to a route's cluster, for the targets that the route names; capsules and HTTP
//! Datagrams (RFC 9297) in all versions.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::Reason;
use tidegate_tests::certs::Authority;
use tidegate_tests::quic::{self, QuicClient, varint};
use tidegate_tests::tunnel::{End, Ended, Http2Client, Http3Client, ask_http1};
use tidegate_tests::{Gateway, eventually, peers};
use tokio::net::UdpSocket;

const TARGETS: &str = "connect_udp = [\"dns.example:53\", \"*.internal:443\", \"[2001:db8::1]:443\"]\n";
const PATH: &str = "/.well-known/masque/udp/dns.example/53/";
const MESSAGE_ERROR: u64 = 0x10e;
const CONNECT_ERROR: u64 = 0x10f;
const DATAGRAM_ERROR: u64 = 0x33;

/// Sends back what it gets; for `big N` that many bytes.
async fn echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut piece = vec![0; 1 << 16];
        loop {
            let (count, from) = socket.recv_from(&mut piece).await.expect("a datagram");
            let asked = std::str::from_utf8(&piece[..count]).ok().and_then(|text| text.strip_prefix("big "));
            let answer = match asked {
                Some(size) => vec![b'b'; size.parse().expect("a size")],
                None => piece[..count].to_vec(),
            };
            // A tunnel that has gone is the test's to notice.
            let _ = socket.send_to(&answer, from).await;
        }
    });
    address
}

async fn gateway(origin: SocketAddr, more: &str) -> Gateway {
    Gateway::start(&(crate::simple(&[origin], "") + TARGETS + more)).await
}

/// A gateway with TLS, for HTTP/3.
async fn secure(origin: SocketAddr) -> (Gateway, Authority) {
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    authority.issue(&["edge.example"]).write(folder.path(), "edge");
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).expect("written");
    let tls = "address = \"127.0.0.1:0\"\ntls.certificates = [{ certificate = \"edge.pem\", key = \"edge.key\" }]\n";
    let config = crate::simple(&[origin], "").replace("address = \"127.0.0.1:0\"\n", tls) + TARGETS;
    (Gateway::start_in(folder, &config).await, authority)
}

fn head(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: connect-udp\r\nCapsule-Protocol: ?1\r\n\r\n"
    )
}

/// A capsule (RFC 9297, section 3.2).
fn of_type(kind: u64, content: &[u8]) -> Vec<u8> {
    [varint(kind), varint(content.len() as u64), content.to_vec()].concat()
}

/// A UDP payload in a DATAGRAM capsule.
fn capsule(payload: &[u8]) -> Vec<u8> {
    of_type(0, &[&[0], payload].concat())
}

/// Takes the payloads of DATAGRAM capsules off a stream.
#[derive(Default)]
struct Capsules(BytesMut);

impl Capsules {
    async fn next(&mut self, client: &mut End) -> Bytes {
        loop {
            if let Some(payload) = self.taken() {
                return payload;
            }
            match client.next().await {
                Ok(piece) => self.0.extend_from_slice(&piece),
                Err(ended) => panic!("{ended:?} with {:?} at hand", self.0),
            }
        }
    }

    fn taken(&mut self) -> Option<Bytes> {
        let length = usize::from(*self.0.get(1)?);
        let (length, header) = match length >> 6 {
            0 => (length, 2),
            1 => ((length & 0x3f) << 8 | usize::from(*self.0.get(2)?), 3),
            _ => {
                let rest = self.0.get(2..5)?;
                let length = rest.iter().fold(length & 0x3f, |sum, byte| sum << 8 | usize::from(*byte));
                (length, 5)
            }
        };
        if self.0.len() < header + length {
            return None;
        }
        let mut capsule = self.0.split_to(header + length).freeze();
        assert_eq!((capsule[0], capsule[header]), (0, 0), "a UDP payload in a DATAGRAM capsule");
        Some(capsule.split_off(header + 1))
    }
}

async fn over_http1(gateway: &Gateway) -> End {
    let (answer, client) = ask_http1(gateway.edge(), &head(PATH)).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    client
}

async fn over_http2(gateway: &Gateway) -> End {
    let http2 = Http2Client::connect(gateway.edge()).await;
    let (response, client) = http2.ask(Http2Client::request("connect-udp", PATH)).await.expect("an answer");
    assert_eq!(response.status().as_u16(), 200);
    client
}

async fn over_http3(gateway: &Gateway, authority: &Authority) -> (Http3Client, End) {
    let client = Http3Client::connect(gateway.edge(), authority.client(&[b"h3"], None), "edge.example").await;
    let (opened, end) = client.ask("connect-udp", PATH).await;
    assert!(opened);
    (client, end)
}

/// Payloads of all sizes there and back, in capsules cut in two and several at once; a thousand of them.
async fn talk(client: &mut End) -> u64 {
    let mut capsules = Capsules::default();
    let mut moved = 0;
    for payload in [&b"hello"[..], b"", &[7; 1200], &[8; 20_000]] {
        let capsule = capsule(payload);
        let (first, second) = capsule.split_at(capsule.len() / 2);
        client.send(first).await;
        client.send(second).await;
        assert_eq!(capsules.next(client).await, payload);
        moved += payload.len() as u64;
    }
    let mut lost = 0;
    for batch in 0..40 {
        let payloads: Vec<Bytes> = (0..25).map(|index| format!("{batch} {index}").into()).collect();
        let all: Vec<u8> = payloads.iter().flat_map(|payload| capsule(payload)).collect();
        client.send(&all).await;
        // What comes has not changed, in any order. One that was lost on the way would leave the last of a batch missing.
        let mut left = payloads.clone();
        while !left.is_empty() {
            let wait = tokio::time::timeout(Duration::from_secs(2), capsules.next(client));
            let Ok(came) = wait.await else { break };
            let at = left.iter().position(|payload| *payload == came).expect("one of those that were sent, once");
            left.remove(at);
        }
        lost += left.len();
        moved += payloads.iter().map(|payload| payload.len() as u64).sum::<u64>();
    }
    assert!(lost <= 50, "{lost} of 1000 were lost on a loopback");
    moved
}

/// RFC 9298, sections 3.2 to 3.5 and 5; RFC 9297, sections 3.4 and 3.5: how it is answered, what is on the stream, one
/// line in the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_passes_in_capsules() {
    let gateway = gateway(echo().await, "").await;
    let (answer, mut client) = ask_http1(gateway.edge(), &head(PATH)).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    for field in ["connection: upgrade", "upgrade: connect-udp", "capsule-protocol: ?1"] {
        assert_eq!(answer.matches(&format!("{field}\r\n")).count(), 1, "{answer}");
    }
    for gone in ["content-length", "transfer-encoding", "content-type"] {
        assert!(!answer.contains(gone), "{answer}");
    }
    let first = talk(&mut client).await;
    client.finish().await;
    assert_eq!(client.end().await, Ended::Cleanly);

    let http2 = Http2Client::connect(gateway.edge()).await;
    let (response, mut client) = http2.ask(Http2Client::request("connect-udp", PATH)).await.expect("an answer");
    assert_eq!(
        (response.status().as_u16(), &response.headers()["capsule-protocol"]),
        (200, &"?1".parse().expect("a value"))
    );
    talk(&mut client).await;
    client.finish().await;
    assert_eq!(client.end().await, Ended::Cleanly);

    for target in ["a.b.internal/443", "2001%3Adb8%3A%3A1/443", "DNS.example./53"] {
        let (answer, mut client) =
            ask_http1(gateway.edge(), &head(&format!("/.well-known/masque/udp/{target}/"))).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{target}: {answer}");
        client.send(&capsule(b"x")).await;
        assert_eq!(Capsules::default().next(&mut client).await, &b"x"[..]);
    }
    let log = eventually("all are logged", async || Some(gateway.access_log()).filter(|log| log.len() == 5)).await;
    for (line, status) in log.iter().zip([101, 200]) {
        assert_eq!((line["method"].as_str(), line["status"].as_u64()), (Some("GET"), Some(status)), "{line}");
        assert_eq!((line["tunnel"].as_str(), line["cause"].as_str()), (Some("connect-udp"), None), "{line}");
        assert_eq!(line["bytes_in"].as_u64(), Some(first), "{line}");
    }
    assert_eq!(gateway.metric("tidegate_tunnels_total{kind=\"connect-udp\"}").await, 5.0);
    assert_eq!(gateway.metric("tidegate_udp_datagrams_total{direction=\"in\"}").await, 2011.0);
    eventually("none is open", async || (gateway.metric("tidegate_tunnels_active").await == 0.0).then_some(())).await;
    assert_eq!(gateway.metric("tidegate_upstream_connections_active").await, 0.0);
}

/// Implementations that are none of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_on_python_h2() {
    let gateway = gateway(echo().await, "").await;
    let said = peers::python("connect_udp_http2.py", &[&gateway.edge().to_string()]).await.expect("all is well");
    assert_eq!(said, "settings: 1\nopened: 200 ?1\na thousand: True\nrefused: 403\nmalformed: 400\n");
}

/// RFC 9297, section 2.1; RFC 9298, sections 3.4 to 6.1: QUIC datagrams, and capsules beside them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_on_aioquic() {
    let (gateway, _) = secure(echo().await).await;
    let ca = gateway.folder.path().join("ca.pem").display().to_string();
    let port = gateway.edge().port().to_string();
    let mut client = peers::Script::start("connect_udp_http3.py", &[&port, &ca]);
    for expected in [
        "settings: 1",
        "opened: 200 ?1",
        "a datagram: b'hello'",
        "a thousand: True",
        "a capsule: b'in a capsule'",
        "an unknown context: b'after it'",
        "what fits no packet: b'after it'",
        "before its request: b'early'",
        "after the end: 200",
        "with a get: reset 51",
        "cut off within a capsule: reset 270",
        "a stream that cannot be: closed 51",
    ] {
        assert_eq!(client.line().await, expected);
    }
    let dropped = async |reason: &str| {
        gateway.metric(&format!("tidegate_udp_datagrams_dropped_total{{reason=\"{reason}\"}}")).await
    };
    assert_eq!(dropped("unknown_context").await, 1.0);
    assert_eq!(dropped("too_large").await, 1.0);
}

/// RFC 9297, section 2.1.1: a client that has not said that it takes QUIC datagrams gets none, but capsules.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http3_without_datagrams_has_capsules() {
    let (gateway, authority) = secure(echo().await).await;
    let (_connection, mut client) = over_http3(&gateway, &authority).await;
    talk(&mut client).await;
    client.finish().await;
    assert_eq!(client.end().await, Ended::Cleanly);
}

/// Deny by default: 403 for what no route names, 400 for what is no request of the kind, and no socket for either. What
/// was sent after such a request is not taken for the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_named_or_malformed_is_refused() {
    let origin = echo().await;
    let open = gateway(origin, "").await;
    let closed = crate::gateway_to(origin).await;
    let nowhere = gateway(origin, "path = \"/.well-known/masque/udp/dns.example/*\"\n").await;
    for (gateway, target, status) in [
        (&open, "dns.example/54/", 403),
        (&open, "internal/443/", 403),
        (&open, "127.0.0.1/9901/", 403),
        (&open, "2001%3Adb8%3A%3A2/443/", 403),
        (&closed, "dns.example/53/", 403),
        (&nowhere, "a.internal/443/", 403),
        (&open, "dns.example/53", 400),
        (&open, "dns.example/0/", 400),
        (&open, "dns.example/65536/", 400),
        (&open, "2001:db8::1/443/", 400),
        (&open, "fe80%3A%3A1%25eth0/443/", 400),
        (&open, "dns.example/53/?a=b", 400),
        (&closed, "dns.example//", 400),
    ] {
        let path = format!("/.well-known/masque/udp/{target}");
        let mut client = tidegate_tests::RawClient::connect(gateway.edge()).await;
        client.send((head(&path) + "GET /next HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await;
        let answer = client.rest().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{target}: {answer}");
        assert!(answer.contains("proxy-status: ") && answer.matches("HTTP/1.1").count() == 1, "{target}: {answer}");
        let http2 = Http2Client::connect(gateway.edge()).await;
        let (response, _) = http2.ask(Http2Client::request("connect-udp", &path)).await.expect("an answer");
        assert_eq!(response.status().as_u16(), status, "{target}");
        assert!(
            response.headers().contains_key("proxy-status") && !response.headers().contains_key("capsule-protocol")
        );
    }
    for wrong in [
        head(PATH).replace("GET", "POST"),
        head(PATH).replace("Host: a", "Host: a\r\nContent-Type: text/plain"),
        head(PATH).replace("Host: a", "Host: a\r\nContent-Length: 0"),
        head("/"),
    ] {
        let (answer, _) = ask_http1(open.edge(), &wrong).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{wrong}: {answer}");
    }
    for gateway in [&open, &closed, &nowhere] {
        assert_eq!(gateway.metric("tidegate_upstream_connections_total").await, 0.0);
    }
}

/// RFC 9297, section 3.3, and RFC 9298, section 5: a capsule that is malformed or cut off ends the tunnel as an error, for
/// each version in its own way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_capsules_abort_the_stream() {
    let origin = echo().await;
    let gateway = gateway(origin, "").await;
    let (tls, authority) = secure(origin).await;
    let longest = of_type(0, &[&[0][..], &vec![0; 65_528]].concat());
    let cases: [(&[u8], bool); 5] = [
        // No context id.
        (&[0, 0], false),
        (&[0, 1, 0x40], false),
        // Longer than any payload, by its length alone.
        (&[0, 0x80, 1, 0, 0], false),
        (&longest, false),
        // Ends within a capsule.
        (&[0, 5, 0, 1], true),
    ];
    let malformed = cases.len() as u64;
    for (bytes, ends) in cases {
        for (mut client, expected) in [
            (over_http1(&gateway).await, Ended::Reset(None)),
            (over_http2(&gateway).await, Ended::Reset(Some(Reason::PROTOCOL_ERROR))),
        ] {
            client.send(bytes).await;
            if ends {
                client.finish().await;
            }
            assert_eq!(client.end().await, expected, "{:?}", &bytes[..2]);
        }
        let (_connection, mut client) = over_http3(&tls, &authority).await;
        client.send(bytes).await;
        if ends {
            client.finish().await;
        }
        assert_eq!(client.end().await, Ended::QuicReset(MESSAGE_ERROR), "{:?}", &bytes[..2]);
    }
    eventually("all are counted", async || {
        let sample = "tidegate_faults_total{cause=\"request_invalid\"}";
        let count = gateway.metric(sample).await + tls.metric(sample).await;
        (count == (malformed * 3) as f64).then_some(())
    })
    .await;
}

/// RFC 9297, section 3.2, and RFC 9298, section 4: unknown capsules and contexts are passed over, and cost no memory; what
/// no link takes is lost, never cut into pieces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_unknown_or_too_large_is_dropped() {
    let gateway = gateway(echo().await, "").await;
    for mut client in [over_http1(&gateway).await, over_http2(&gateway).await] {
        let mut capsules = Capsules::default();
        client.send(&of_type(0x17, &vec![1; 300_000])).await;
        client.send(&of_type(0x29, b"")).await;
        client.send(&of_type(0, &[2, 9, 9])).await;
        client.send(&of_type(0, &[0xc0, 0, 0, 0, 0, 0, 0, 3])).await;
        // With the headers of IP and UDP more than the 65536 bytes of a loopback.
        client.send(&capsule(&vec![2; 65_527])).await;
        client.send(&capsule(&vec![3; 60_000])).await;
        assert_eq!(capsules.next(&mut client).await, vec![3; 60_000]);
    }
    let dropped = async |reason: &str| {
        gateway.metric(&format!("tidegate_udp_datagrams_dropped_total{{reason=\"{reason}\"}}")).await
    };
    assert_eq!(dropped("unknown_context").await, 4.0);
    assert_eq!(dropped("too_large").await, 2.0);
}

/// RFC 9298, section 3.1: whoever closes the socket after a time without traffic closes the stream; drain ends a tunnel
/// cleanly, since its client finds a way without us.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_end_when_idle_and_with_the_gateway() {
    let origin = echo().await;
    let quiet = gateway(origin, "idle_timeout = \"700ms\"\n").await;
    for (http2, expected) in [(false, Ended::Reset(None)), (true, Ended::Reset(Some(Reason::CONNECT_ERROR)))] {
        let mut client = if http2 { over_http2(&quiet).await } else { over_http1(&quiet).await };
        client.send(&capsule(b"x")).await;
        assert_eq!(Capsules::default().next(&mut client).await, &b"x"[..]);
        assert_eq!(client.end().await, expected);
    }
    let log = eventually("both are logged", async || Some(quiet.access_log()).filter(|log| log.len() == 2)).await;
    assert!(log.iter().all(|line| line["cause"] == "idle_timeout"), "{log:?}");

    let mut busy = gateway(origin, "").await;
    let mut clients = [over_http1(&busy).await, over_http2(&busy).await];
    busy.signal(libc::SIGTERM);
    for client in &mut clients {
        assert_eq!(client.end().await, Ended::Cleanly);
    }
    drop(clients);
    assert!(busy.ended().await.success());
    assert!(busy.access_log().iter().all(|line| line["cause"].is_null()), "{:?}", busy.access_log());
}

/// RFC 9298, section 3.1: where nobody listens the tunnel is aborted, and the endpoint has failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_port_aborts_the_tunnel() {
    let closed = tidegate_tests::gateway::free_address();
    let gateway = gateway(closed, "").await;
    for (mut client, expected) in [
        (over_http1(&gateway).await, Ended::Reset(None)),
        (over_http2(&gateway).await, Ended::Reset(Some(Reason::CONNECT_ERROR))),
    ] {
        client.send(&capsule(b"anybody?")).await;
        assert_eq!(client.end().await, expected);
    }
    let log = eventually("both are logged", async || Some(gateway.access_log()).filter(|log| log.len() == 2)).await;
    assert!(log.iter().all(|line| line["cause"] == "connect_refused"), "{log:?}");
    let sample = format!("tidegate_endpoint_failures_total{{cluster=\"api\",endpoint=\"{closed}\"}}");
    assert_eq!(gateway.metric(&sample).await, 2.0);
    let (tls, authority) = secure(closed).await;
    let (_connection, mut client) = over_http3(&tls, &authority).await;
    client.send(&capsule(b"anybody?")).await;
    assert_eq!(client.end().await, Ended::QuicReset(CONNECT_ERROR));
}

/// RFC 9297, section 2.1: a datagram must name a stream that can be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_quic_datagrams_close_the_connection() {
    let (gateway, authority) = secure(echo().await).await;
    for wrong in [&[][..], &[0xc0, 0], &[0xd0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        let client = QuicClient::connect(gateway.edge(), authority.client(&[b"h3"], None), "edge.example").await;
        let _control = client.uni(&quic::control(&[(0x33, 1)], &[])).await;
        // Of streams that are not there: lost, without harm.
        for quarter in [0_u64, 7, 1 << 40] {
            client.connection.send_datagram([varint(quarter), vec![0, 1]].concat().into()).expect("sent");
        }
        client.connection.send_datagram(Bytes::copy_from_slice(wrong)).expect("sent");
        assert_eq!(client.closed().await, DATAGRAM_ERROR, "{wrong:?}");
    }
}
