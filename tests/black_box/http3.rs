//! HTTP/3 towards clients: what breaks the protocol is answered as RFC 9114 says, nothing that a client does makes the
//! gateway hold much or wait for ever, and no response is lost when a connection ends.

use std::time::Duration;

use http::Response;
use tidegate_tests::certs::Authority;
use tidegate_tests::origin::{full, read_head};
use tidegate_tests::quic::{self, QuicClient, control, data, frame, get, headers, post, varint};
use tidegate_tests::{Client, Gateway, Origin, RawOrigin, eventually};
use tokio::io::AsyncWriteExt;

/// Codes of RFC 9114, section 8.1 and RFC 9204, section 6.
const NO_ERROR: u64 = 0x100;
const GENERAL_PROTOCOL_ERROR: u64 = 0x101;
const STREAM_CREATION_ERROR: u64 = 0x103;
const CLOSED_CRITICAL_STREAM: u64 = 0x104;
const FRAME_UNEXPECTED: u64 = 0x105;
const FRAME_ERROR: u64 = 0x106;
const EXCESSIVE_LOAD: u64 = 0x107;
const ID_ERROR: u64 = 0x108;
const SETTINGS_ERROR: u64 = 0x109;
const MISSING_SETTINGS: u64 = 0x10a;
const REQUEST_REJECTED: u64 = 0x10b;
const REQUEST_INCOMPLETE: u64 = 0x10d;
const MESSAGE_ERROR: u64 = 0x10e;
const DECOMPRESSION_FAILED: u64 = 0x200;
const ENCODER_STREAM_ERROR: u64 = 0x201;
const DECODER_STREAM_ERROR: u64 = 0x202;

/// A gateway with HTTP/3, before one origin.
struct Edge {
    gateway: Gateway,
    authority: Authority,
    config: String,
}

impl Edge {
    /// `more` goes into the listener.
    async fn before(origin: std::net::SocketAddr, more: &str) -> Self {
        Self::at(std::net::SocketAddr::from(([127, 0, 0, 1], 0)), origin, more).await
    }

    async fn at(address: std::net::SocketAddr, origin: std::net::SocketAddr, more: &str) -> Self {
        let authority = Authority::new();
        let folder = tempfile::tempdir().expect("a folder");
        authority.issue(&["edge.example"]).write(folder.path(), "edge");
        let config = format!(
            "[[listener]]\nname = \"edge\"\naddress = \"{address}\"\n{more}\n\
             tls.certificates = [{{ certificate = \"edge.pem\", key = \"edge.key\" }}]\n\
             [[cluster]]\nname = \"api\"\nendpoints = [\"{origin}\"]\n\
             [[route]]\nname = \"all\"\ncluster = \"api\"\n"
        );
        let gateway = Gateway::start_in(folder, &config).await;
        Self { gateway, authority, config }
    }

    fn tls(&self) -> rustls::ClientConfig {
        self.authority.client(&[b"h3"], None)
    }

    async fn connect(&self) -> QuicClient {
        QuicClient::connect(self.gateway.edge(), self.tls(), "edge.example").await
    }

    fn client(&self) -> Client {
        Client::tls(self.gateway.edge(), http::Version::HTTP_3, self.tls(), "edge.example")
    }
}

/// RFC 9114, sections 5.2, 6.2, 7.2 and RFC 9204, section 4: what a client may not say on its unidirectional streams.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_unidirectional_streams_close_the_connection() {
    let origin = Origin::http1().await;
    let edge = Edge::before(origin.address, "").await;
    let goaway = |id| frame(0x7, &varint(id));
    let max_push_id = |id| frame(0xd, &varint(id));
    let cases: Vec<(&str, Vec<Vec<u8>>, u64)> = vec![
        ("no settings first", vec![[varint(0), goaway(0)].concat()], MISSING_SETTINGS),
        ("unknown frame first", vec![[varint(0), frame(0x21, b"x")].concat()], MISSING_SETTINGS),
        ("settings twice", vec![control(&[], &frame(0x4, &[]))], FRAME_UNEXPECTED),
        ("a setting of HTTP/2", vec![control(&[(0x2, 1)], &[])], SETTINGS_ERROR),
        ("a setting twice", vec![control(&[(0x6, 1000), (0x6, 1000)], &[])], SETTINGS_ERROR),
        ("a switch of 2", vec![control(&[(0x8, 2)], &[])], SETTINGS_ERROR),
        ("half a setting", vec![[varint(0), frame(0x4, &[0x6])].concat()], FRAME_ERROR),
        ("endless settings", vec![[varint(0), varint(0x4), varint(1 << 40)].concat()], EXCESSIVE_LOAD),
        ("headers", vec![control(&[], &headers(&[]))], FRAME_UNEXPECTED),
        ("data", vec![control(&[], &data(b"x"))], FRAME_UNEXPECTED),
        ("a push promise", vec![control(&[], &frame(0x5, b"xxxx"))], FRAME_UNEXPECTED),
        ("a ping of HTTP/2", vec![control(&[], &frame(0x6, &[0; 8]))], FRAME_UNEXPECTED),
        ("a priority of HTTP/2", vec![control(&[], &frame(0x2, &[0; 5]))], FRAME_UNEXPECTED),
        ("a window update of HTTP/2", vec![control(&[], &frame(0x8, &[0; 4]))], FRAME_UNEXPECTED),
        ("goaway grows", vec![control(&[], &[goaway(4), goaway(8)].concat())], ID_ERROR),
        ("goaway with more in it", vec![control(&[], &frame(0x7, &[0, 0]))], FRAME_ERROR),
        ("goaway with nothing in it", vec![control(&[], &frame(0x7, &[]))], FRAME_ERROR),
        ("max push id shrinks", vec![control(&[], &[max_push_id(8), max_push_id(4)].concat())], ID_ERROR),
        ("a push is cancelled", vec![control(&[], &frame(0x3, &varint(0)))], ID_ERROR),
        ("two control streams", vec![control(&[], &[]), control(&[], &[])], STREAM_CREATION_ERROR),
        ("two encoder streams", vec![varint(2), varint(2)], STREAM_CREATION_ERROR),
        ("two decoder streams", vec![varint(3), varint(3)], STREAM_CREATION_ERROR),
        ("a push stream", vec![varint(1)], STREAM_CREATION_ERROR),
        ("an insertion", vec![vec![0x02, 0xc0, 0x01, b'a']], ENCODER_STREAM_ERROR),
        ("a capacity", vec![vec![0x02, 0x3f, 0xe1, 0x1f]], ENCODER_STREAM_ERROR),
        ("an acknowledgement", vec![vec![0x03, 0x84]], DECODER_STREAM_ERROR),
        ("an increment", vec![vec![0x03, 0x01]], DECODER_STREAM_ERROR),
    ];
    for (what, streams, code) in cases {
        let client = edge.connect().await;
        let mut open = Vec::new();
        for bytes in streams {
            open.push(client.uni(&bytes).await);
        }
        assert_eq!(client.closed().await, code, "{what}");
    }
    // Section 6.2.1: the control stream may neither end nor be reset, nor ours be stopped.
    let client = edge.connect().await;
    client.uni(&control(&[], &[])).await.finish().expect("open");
    assert_eq!(client.closed().await, CLOSED_CRITICAL_STREAM);
    let client = edge.connect().await;
    let mut theirs = client.uni(&control(&[], &[])).await;
    assert_eq!(client.ask(&get("/", &[])).await.expect("an answer").status(), 200, "so that SETTINGS are there too");
    theirs.reset(7_u32.into()).expect("open");
    assert_eq!(client.closed().await, CLOSED_CRITICAL_STREAM);
    let client = edge.connect().await;
    client.connection.accept_uni().await.expect("its control stream").stop(7_u32.into()).expect("open");
    assert_eq!(client.closed().await, CLOSED_CRITICAL_STREAM);
    assert!(edge.gateway.metric("tidegate_requests_refused_total{protocol=\"h3\"}").await >= 25.0);
    assert_eq!(edge.client().get("/").await.expect("an answer").status, 200);
}

/// RFC 9114, sections 4.1, 7.1 and 7.2: what closes the connection when a request stream says it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_frames_of_requests_close_the_connection() {
    let origin = Origin::http1().await;
    let edge = Edge::before(origin.address, "").await;
    let trailers = headers(&[("x-sum", "1")]);
    let cases: Vec<(&str, Vec<u8>, u64)> = vec![
        ("data first", data(b"x"), FRAME_UNEXPECTED),
        ("settings", [get("/", &[]), frame(0x4, &[])].concat(), FRAME_UNEXPECTED),
        ("goaway", [get("/", &[]), frame(0x7, &[0])].concat(), FRAME_UNEXPECTED),
        ("max push id", frame(0xd, &[0]), FRAME_UNEXPECTED),
        ("a push promise", [get("/", &[]), frame(0x5, b"xxxx")].concat(), FRAME_UNEXPECTED),
        ("a priority of HTTP/2", frame(0x2, &[0; 5]), FRAME_UNEXPECTED),
        ("a continuation of HTTP/2", [get("/", &[]), frame(0x9, b"x")].concat(), FRAME_UNEXPECTED),
        ("trailers twice", [post(&[]), data(b"x"), trailers.clone(), trailers.clone()].concat(), FRAME_UNEXPECTED),
        ("data after trailers", [post(&[]), trailers.clone(), data(b"x")].concat(), FRAME_UNEXPECTED),
        ("data cut off", [post(&[]), vec![0x00, 0x05], b"ab".to_vec()].concat(), FRAME_ERROR),
        ("a head cut off", get("/", &[])[..10].to_vec(), FRAME_ERROR),
        ("a frame's header cut off", [post(&[]), vec![0x00]].concat(), FRAME_ERROR),
        ("an unknown frame cut off", [get("/", &[]), vec![0x21, 0x05, 0x00]].concat(), FRAME_ERROR),
        ("no section", frame(0x1, &[]), DECOMPRESSION_FAILED),
        ("a dynamic reference", frame(0x1, &[0x00, 0x00, 0x80]), DECOMPRESSION_FAILED),
        ("a required insertion", frame(0x1, &[0x02, 0x00, 0x80]), DECOMPRESSION_FAILED),
        ("an index that is none", frame(0x1, &[0x00, 0x00, 0xff, 0x24]), DECOMPRESSION_FAILED),
    ];
    for (what, bytes, code) in cases {
        let client = edge.connect().await;
        let (mut send, _answering) = client.stream(&bytes).await;
        let _ = send.finish();
        assert_eq!(client.closed().await, code, "{what}");
    }
    assert_eq!(edge.client().get("/").await.expect("an answer").status, 200);
}

/// RFC 9114, sections 4.1.2, 4.2 and 4.3: malformed messages are errors of their stream, and reach no origin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_reset_their_stream() {
    let origin = Origin::http1().await;
    let edge = Edge::before(origin.address, "").await;
    let client = edge.connect().await;
    let trailers = |fields: &[(&str, &str)]| [post(&[]), data(b"x"), headers(fields)].concat();
    let cases: Vec<(&str, Vec<u8>, u64)> = vec![
        ("upper case", get("/", &[("X-A", "1")]), MESSAGE_ERROR),
        ("connection", get("/", &[("connection", "close")]), MESSAGE_ERROR),
        ("transfer-encoding", post(&[("transfer-encoding", "chunked")]), MESSAGE_ERROR),
        ("te", get("/", &[("te", "gzip")]), MESSAGE_ERROR),
        ("pseudo after regular", get("/", &[("x-a", "1"), (":path", "/")]), MESSAGE_ERROR),
        ("pseudo twice", get("/", &[(":path", "/")]), MESSAGE_ERROR),
        ("unknown pseudo", get("/", &[(":what", "x")]), MESSAGE_ERROR),
        ("authority and host differ", get("/", &[("host", "other.example")]), MESSAGE_ERROR),
        ("a line break", get("/", &[("x-a", "1\r\nx-b: 2")]), MESSAGE_ERROR),
        ("no path", headers(&[(":method", "GET"), (":scheme", "https"), (":authority", "a")]), MESSAGE_ERROR),
        ("a space in the path", get("/ HTTP/1.1", &[]), MESSAGE_ERROR),
        ("less than content-length", [post(&[("content-length", "5")]), data(b"abc")].concat(), MESSAGE_ERROR),
        ("none of content-length", post(&[("content-length", "5")]), MESSAGE_ERROR),
        ("more than content-length", [post(&[("content-length", "0")]), data(b"abc")].concat(), MESSAGE_ERROR),
        ("content-length twice", post(&[("content-length", "5"), ("content-length", "6")]), MESSAGE_ERROR),
        ("nothing at all", Vec::new(), REQUEST_INCOMPLETE),
        ("unknown frames only", frame(0x21, b"x"), REQUEST_INCOMPLETE),
    ];
    for (what, bytes, code) in cases {
        match client.ask(&bytes).await {
            Err(reset) => assert_eq!(reset, code, "{what}"),
            // One that was sent on before its end was seen to be wrong is answered.
            Ok(answer) => assert_eq!(answer.status(), 400, "{what}"),
        }
    }
    for (what, bytes) in
        [("pseudo in trailers", trailers(&[(":path", "/")])), ("upper case in trailers", trailers(&[("X", "1")]))]
    {
        let answer = client.ask(&bytes).await;
        assert!(answer.as_ref().map_or(true, |answer| answer.status() == 400), "{what}: {answer:?}");
    }
    assert_eq!(client.ask(&get("/fine", &[])).await.expect("an answer").status(), 200);
    assert!(origin.record().iter().all(|seen| seen.path == "/fine"), "{:?}", origin.record());
}

/// RFC 9114, sections 4.2.2, 4.4 and 9, RFC 9220: heads that are too large, CONNECT, and what is to be ignored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_answered_and_the_unknown_is_ignored() {
    let origin = Origin::http1().await;
    let edge = Edge::before(origin.address, "max_header_bytes = \"4KiB\"\nheader_timeout = \"300ms\"").await;
    let client = edge.connect().await;
    let _control = client.uni(&control(&[(0x21, 7), (0x33, 0), (0x6, 65_536)], &frame(0x40, b"ignored"))).await;
    let _unknown = client.uni(&[varint(0x21), vec![1, 2, 3]].concat()).await;
    let _encoder = client.uni(&[0x02, 0x20]).await;
    let _decoder = client.uni(&[0x03, 0x44]).await;
    let status = async |bytes: &[u8]| client.ask(bytes).await.map(|answer| answer.status());

    let grown = [frame(0x21, b"grease"), get("/", &[]), frame(0x40, b""), data(b""), frame(0x21, b"more")].concat();
    assert_eq!(status(&grown).await, Ok(200));
    let pieces = [post(&[]), data(b"on"), data(b""), data(b"e"), frame(0x21, b"x"), data(b"!")].concat();
    assert_eq!(status(&pieces).await, Ok(200));
    assert_eq!(&origin.last().body[..], b"one!");

    let (_send, answering) = client.stream(&[varint(0x1), varint(1 << 40), vec![0; 100]].concat()).await;
    assert_eq!(answering.answer().await.map(|answer| answer.status()), Ok(431));
    let large = "x".repeat(5000);
    assert_eq!(status(&get("/", &[("x-a", &large)])).await, Ok(431));
    // Its 36 bytes on the wire count 33 more for each of its fields.
    let many: Vec<_> = (0..120).map(|_| ("a", "")).collect();
    assert_eq!(status(&get("/", &many)).await, Ok(431));
    assert_eq!(status(&headers(&[(":method", "CONNECT"), (":authority", "a.example:443")])).await, Ok(403));
    let extended = [
        (":method", "CONNECT"),
        (":protocol", "unheard-of"),
        (":scheme", "https"),
        (":authority", "edge.example"),
        (":path", "/chat"),
    ];
    assert_eq!(status(&headers(&extended)).await, Ok(501));

    // Half a head, and nothing more: answered, not ended as if it were a message.
    let (_send, answering) = client.stream(&get("/", &[])[..12]).await;
    assert_eq!(answering.answer().await.map(|answer| answer.status()), Ok(408));
    assert_eq!(status(&get("/", &[])).await, Ok(200));
}

/// RFC 9114, section 10.5; CVE-2023-44487: cancelled requests and frames that carry nothing have a budget.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_and_empty_frames_close_the_connection() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        read_head(&mut stream).await;
    })
    .await;
    let edge = Edge::before(origin.address, "").await;
    let client = edge.connect().await;
    let mut opened = 0;
    while client.connection.close_reason().is_none() && opened < 5000 {
        let Ok((mut send, mut recv)) = client.connection.open_bi().await else { break };
        let _ = send.write_all(&get("/", &[])).await;
        let _ = send.reset(0x10c_u32.into());
        let _ = recv.stop(0x10c_u32.into());
        opened += 1;
    }
    assert_eq!(client.closed().await, EXCESSIVE_LOAD);
    assert!((100..5000).contains(&opened), "{opened}");

    let client = edge.connect().await;
    let _control = client.uni(&control(&[], &frame(0x21, b"").repeat(2000))).await;
    assert_eq!(client.closed().await, EXCESSIVE_LOAD);
    let client = edge.connect().await;
    let _stream = client.stream(&[post(&[]), data(b"").repeat(2000)].concat()).await;
    assert_eq!(client.closed().await, EXCESSIVE_LOAD);
}

/// RFC 9000, section 4.6: no more requests at once than `max_streams`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_at_once_are_limited() {
    let origin = Origin::http1().await;
    let edge = Edge::before(origin.address, "max_streams = 2").await;
    let client = edge.connect().await;
    let (mut one, answering) = client.stream(&post(&[])).await;
    let (_two, _) = client.stream(&post(&[])).await;
    let third = tokio::time::timeout(Duration::from_millis(200), client.connection.open_bi()).await;
    assert!(third.is_err(), "a third stream was allowed");
    one.finish().expect("open");
    assert_eq!(answering.answer().await.expect("an answer").status(), 200);
    let third = tokio::time::timeout(Duration::from_secs(20), client.connection.open_bi()).await;
    assert!(third.is_ok(), "the place came free");
}

/// A client that gives no room for a control stream, and one that gives none for a response.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wait_for_a_client_is_without_an_end() {
    let origin = Origin::http1().await;
    let edge = Edge::before(origin.address, "handshake_timeout = \"500ms\"\nbody_idle_timeout = \"500ms\"").await;
    let mut narrow = quinn::TransportConfig::default();
    narrow.max_concurrent_uni_streams(0_u32.into());
    let client = QuicClient::with(edge.gateway.edge(), edge.tls(), "edge.example", narrow).await.expect("a handshake");
    assert_eq!(client.closed().await, GENERAL_PROTOCOL_ERROR);

    let mut narrow = quinn::TransportConfig::default();
    narrow.stream_receive_window(12_u32.into());
    let client = QuicClient::with(edge.gateway.edge(), edge.tls(), "edge.example", narrow).await.expect("a handshake");
    let (mut send, _answering) = client.stream(&get("/", &[])).await;
    send.finish().expect("open");
    eventually("the exchange is over", async || {
        let over = edge.gateway.access_log().iter().any(|line| line["path"] == "/");
        over.then_some(())
    })
    .await;
}

/// RFC 9114, section 5.2; conduct "GOAWAY/drain": what was accepted is answered whole, its ids decrease, and what comes
/// after is rejected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_loses_no_response() {
    const SIZE: usize = 300_000;
    let (go, wait) = tokio::sync::watch::channel(false);
    let origin = RawOrigin::start(move |mut stream, _| {
        let mut wait = wait.clone();
        async move {
            read_head(&mut stream).await;
            wait.wait_for(|go| *go).await.expect("the test goes on");
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.expect("sent");
            stream.write_all(&vec![b'x'; SIZE]).await.expect("sent");
            read_head(&mut stream).await;
        }
    })
    .await;
    let mut edge = Edge::before(origin.address, "").await;
    let client = edge.connect().await;
    let (mut send, answering) = client.stream(&get("/slow", &[])).await;
    send.finish().expect("open");
    let mut theirs = quic::Answering::new(client.connection.accept_uni().await.expect("a control stream"));
    eventually("the origin is asked", async || (origin.connections() > 0).then_some(())).await;
    edge.gateway.signal(libc::SIGTERM);
    let mut ids = Vec::new();
    assert_eq!(theirs.kind().await, Ok(0), "a control stream");
    while ids.len() < 2 {
        let (kind, payload) = theirs.frame().await.expect("open").expect("a frame");
        if kind == 0x7 {
            ids.push(number(&payload));
        }
    }
    assert_eq!(ids, [(1 << 62) - 4, 4], "first that an end is near, then the next request's id");
    let (mut send, late) = client.stream(&get("/late", &[])).await;
    let _ = send.finish();
    assert_eq!(late.answer().await.map(|answer| answer.status()), Err(REQUEST_REJECTED));
    go.send(true).expect("the origin waits");
    let answer = answering.answer().await.expect("all of it");
    assert_eq!((answer.status(), answer.body.len()), (200, SIZE));
    assert_eq!(client.closed().await, NO_ERROR);
    assert!(edge.gateway.ended().await.success());
}

fn number(bytes: &[u8]) -> u64 {
    let first = u64::from(bytes[0] & 0x3f);
    bytes[1..].iter().fold(first, |value, byte| value << 8 | u64::from(*byte))
}

/// The limit on requests of a connection: the last of them is answered whole too, with the client's next one rejected or
/// not begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_on_requests_loses_no_response() {
    const SIZE: usize = 200_000;
    let origin = Origin::answering(false, |_| Response::new(full(vec![b'x'; SIZE]))).await;
    let edge = Edge::before(origin.address, "max_requests_per_connection = 3").await;
    for _ in 0..5 {
        let client = edge.connect().await;
        for _ in 0..3 {
            let answer = client.ask(&get("/", &[])).await.expect("all of it");
            assert_eq!((answer.status(), answer.body.len()), (200, SIZE));
        }
        assert_eq!(client.closed().await, NO_ERROR);
    }
}

/// RFC 9114, section 4.1; RFC 9110, section 8.6: the end of a request without content may come after its head; what goes
/// upstream has no framing all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_get_whose_end_comes_late_has_no_content() {
    let origin = Origin::http1().await;
    let edge = Edge::before(origin.address, "").await;
    let client = edge.connect().await;
    for pause in [0, 0, 1, 5, 50] {
        let (mut send, answering) = client.stream(&get("/", &[])).await;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        send.finish().expect("open");
        assert_eq!(answering.answer().await.expect("an answer").status(), 200);
        let seen = origin.last();
        assert_eq!((seen.header("transfer-encoding"), seen.body.len()), (None, 0), "after {pause} ms");
    }
    // With content it is a stream like any other.
    let (mut send, answering) = client.stream(&get("/", &[])).await;
    send.write_all(&data(b"odd")).await.expect("open");
    send.finish().expect("open");
    assert_eq!(answering.answer().await.expect("an answer").status(), 200);
    assert_eq!(&origin.last().body[..], b"odd");
    let answer = edge.client().get("/").await.expect("an answer");
    assert_eq!(answer.status, 200);
    assert_eq!(origin.last().header("transfer-encoding"), None);
    let port = edge.gateway.edge().port().to_string();
    assert_eq!(origin.last().header("x-forwarded-port"), Some(port.as_str()));
}

/// RFC 9000, section 9: a client that moves to another address stays with its worker, by its connection id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_moves_is_still_served() {
    let origin = Origin::http1().await;
    let edge = Edge::before(origin.address, "").await;
    for _ in 0..3 {
        let client = edge.connect().await;
        for _ in 0..4 {
            assert_eq!(client.ask(&get("/", &[])).await.expect("an answer").status(), 200);
            client.moves();
        }
    }
}

/// An implementation that is neither ours nor `h3`. RFC 9000, section 8.1.2: where many connections are open, an address
/// must be shown to be a client's before it takes another place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_on_aioquic() {
    let origin = Origin::answering(false, |seen| Response::new(full(seen.body.clone()))).await;
    let edge = Edge::before(origin.address, "max_connections = 8").await;
    let ca = edge.gateway.folder.path().join("ca.pem");
    std::fs::write(&ca, edge.authority.pem()).expect("written");
    let (port, ca) = (edge.gateway.edge().port().to_string(), ca.display().to_string());
    let mut client = tidegate_tests::peers::Script::start("http3_client.py", &[&port, &ca]);
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
}

/// RFC 9114, section 5.1: an idle connection is closed in HTTP/3, also one that gives no credit for a GOAWAY.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_closed() {
    let origin = Origin::http1().await;
    let edge = Edge::before(origin.address, "idle_timeout = \"600ms\"").await;
    let client = edge.connect().await;
    assert_eq!(client.ask(&get("/", &[])).await.expect("an answer").status(), 200);
    assert_eq!(client.closed().await, NO_ERROR);
    let mut narrow = quinn::TransportConfig::default();
    // The control stream's type and SETTINGS fit in, and nothing after them.
    narrow.stream_receive_window(12_u32.into());
    let client = QuicClient::with(edge.gateway.edge(), edge.tls(), "edge.example", narrow).await.expect("a handshake");
    assert_eq!(client.closed().await, NO_ERROR);
}

/// A listener that is removed takes no more, lets its clients finish and gives its socket back; one that is renamed goes
/// on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_come_and_go_without_losing_datagrams() {
    let (go, wait) = tokio::sync::watch::channel(false);
    let origin = RawOrigin::start(move |mut stream, _| {
        let mut wait = wait.clone();
        async move {
            if read_head(&mut stream).await.contains("/slow") {
                wait.wait_for(|go| *go).await.expect("the test goes on");
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            read_head(&mut stream).await;
        }
    })
    .await;
    let edge = Edge::at(tidegate_tests::gateway::free_address(), origin.address, "").await;
    let client = edge.connect().await;
    let (mut send, slow) = client.stream(&get("/slow", &[])).await;
    send.finish().expect("open");
    eventually("the origin is asked", async || (origin.connections() > 0).then_some(())).await;

    // Renamed, then without HTTP/3, then with it: new clients are served by all workers, the old one finishes.
    let renamed = edge.config.replace("name = \"edge\"", "name = \"other\"");
    assert!(edge.gateway.reload(&renamed).0);
    for _ in 0..8 {
        assert_eq!(edge.client().get("/").await.expect("an answer").status, 200);
    }
    let without = edge.config.replace("name = \"edge\"", "name = \"edge\"\nprotocols = [\"http1\", \"http2\"]");
    assert!(edge.gateway.reload(&without).0);
    let refused = QuicClient::with(edge.gateway.edge(), edge.tls(), "edge.example", impatient()).await;
    assert!(refused.is_err(), "no HTTP/3 is served");
    assert!(edge.gateway.reload(&edge.config).0);
    for _ in 0..8 {
        assert_eq!(edge.client().get("/").await.expect("an answer").status, 200);
    }
    assert!(edge.gateway.reload(&without).0);
    go.send(true).expect("the origin waits");
    assert_eq!(slow.answer().await.expect("all of it").status(), 200);
    assert_eq!(client.closed().await, NO_ERROR);
    let address = edge.gateway.edge();
    eventually("the socket is free", async || std::net::UdpSocket::bind(address).ok()).await;
}

fn impatient() -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport.max_idle_timeout(Some(Duration::from_millis(700).try_into().expect("it fits")));
    transport
}
