//! A connection to an origin that is a script of bytes.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use tidegate_policy::native::{RouteTable, received_identity};
use tidegate_policy::{Asked, ConnectionHead, HttpVersion, RequestEdits, RequestHead, Scheme, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::body::{Activity, BodyError, Frame};
use crate::snapshot::Snapshot;
use crate::stream::Transport;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn head(method: Method, headers: HeaderMap) -> OutgoingHead {
    let any = SocketAddr::from(([127, 0, 0, 1], 1));
    let connection = ConnectionHead {
        id: 0,
        peer: any,
        client: any,
        local: any,
        proxy_tlvs: Default::default(),
        listener: "edge".into(),
        tls: false,
        tls_version: None,
        server_name: None,
        alpn: None,
        client_certificate: None,
        client_chain: Box::default(),
    };
    let request = RequestHead {
        version: HttpVersion::Http11,
        method,
        scheme: Scheme::Http,
        authority: "a.example".into(),
        target: Target::new("/x?y".into()),
        headers,
        tunnel: None,
    };
    let (client, received) = received_identity(&request.headers, &connection, &[], Default::default());
    let notes = Default::default();
    let asked = Rc::new(Asked { connection: Rc::new(connection), request, client, received, notes, draw: 0 });
    let snapshot = Snapshot {
        generation: 1,
        listeners: Vec::new(),
        clusters: Vec::new(),
        cluster_by_name: Default::default(),
        table: RouteTable::new(Vec::new()),
        routes: Vec::new(),
        tenants: Vec::new(),
        via: "gw".into(),
        buffers: crate::Buffers::new(0, 0, std::env::temp_dir()),
    };
    OutgoingHead::new(&asked, &RequestEdits::default(), Vec::new(), &snapshot)
}

fn get() -> OutgoingHead {
    head(Method::GET, HeaderMap::new())
}

/// Both ends of a connection; heads of up to 1 KiB.
async fn connected() -> (ClientConnection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let address = listener.local_addr().expect("an address");
    let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
    let stream = Stream::new(Transport::Tcp(ours.expect("connected")));
    (ClientConnection::new(stream, 1024), theirs.expect("accepted").0)
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let limit = Duration::from_secs(20);
    runtime.block_on(async { tokio::time::timeout(limit, test).await.expect("no stand-still") });
}

async fn next(awaiting: &mut Awaiting) -> Result<Arrived, Fault> {
    poll_fn(|cx| awaiting.poll_head(cx)).await
}

async fn final_head(awaiting: &mut Awaiting) -> (u16, Incoming) {
    match next(awaiting).await {
        Ok(Arrived::Final(head, body)) => (head.status.as_u16(), body),
        Ok(Arrived::Interim(head)) => panic!("an interim {}", head.status),
        Ok(Arrived::Tunnel(head, ..)) => panic!("a tunnel: {head:?}"),
        Err(fault) => panic!("{fault:?}"),
    }
}

/// The whole body, its trailers, and how it ended.
async fn read(mut body: Incoming) -> (Vec<u8>, Option<HeaderMap>, Option<BodyError>) {
    let (mut data, mut trailers) = (Vec::new(), None);
    loop {
        match poll_fn(|cx| body.poll_frame(cx)).await {
            Some(Ok(Frame::Data(piece))) => data.extend_from_slice(&piece),
            Some(Ok(Frame::Trailers(fields))) => trailers = Some(fields),
            Some(Err(error)) => return (data, trailers, Some(error)),
            None => return (data, trailers, None),
        }
    }
}

/// Reads from `origin` until what came ends with `end`.
async fn until(origin: &mut TcpStream, end: &str) -> String {
    let mut got = Vec::new();
    while !got.ends_with(end.as_bytes()) {
        assert!(origin.read_buf(&mut got).await.expect("readable") > 0, "{:?}", String::from_utf8_lossy(&got));
    }
    String::from_utf8(got).expect("text")
}

/// The fault that an origin gets which answers with `bytes` and closes.
async fn fault_of(bytes: &[u8]) -> Fault {
    let (connection, mut origin) = connected().await;
    let (_out, mut awaiting) = connection.start(&get(), Length::None).await.expect("started");
    until(&mut origin, "\r\n\r\n").await;
    origin.write_all(bytes).await.expect("written");
    drop(origin);
    loop {
        match next(&mut awaiting).await {
            Ok(Arrived::Interim(_)) => {}
            Ok(Arrived::Final(head, _) | Arrived::Tunnel(head, ..)) => {
                panic!("{:?} was taken: {head:?}", String::from_utf8_lossy(bytes))
            }
            Err(fault) => {
                assert!(!connection.reusable());
                return fault;
            }
        }
    }
}

/// What the origin sees of a request with `length` and `frames`.
async fn seen(head: OutgoingHead, length: Length, frames: Vec<Frame>, end: &str) -> String {
    let (connection, mut origin) = connected().await;
    let (mut out, _awaiting) = connection.start(&head, length).await.expect("started");
    for frame in frames {
        out.send(frame, &Activity::now()).await.expect("sent");
    }
    out.finish(&Activity::now()).await.expect("finished");
    until(&mut origin, end).await
}

/// RFC 9112, sections 3.2, 6.1 and 6.2; RFC 9110, sections 8.6 and 10.1.4.
#[test]
fn requests_are_framed() {
    run(async {
        let none = seen(get(), Length::None, vec![], "\r\n\r\n").await;
        assert_eq!(none, "GET /x?y HTTP/1.1\r\nhost: a.example\r\nvia: 1.1 gw\r\n\r\n");

        let post = || head(Method::POST, HeaderMap::new());
        let empty = seen(post(), Length::None, vec![], "\r\n\r\n").await;
        assert!(empty.contains("\r\ncontent-length: 0\r\n"), "{empty}");

        let known = seen(post(), Length::Known(5), vec![Frame::Data("hello".into())], "hello").await;
        assert!(known.contains("\r\ncontent-length: 5\r\n\r\nhello"), "{known}");

        let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), HeaderValue::from_static("1"))]);
        // An empty frame must not become the last chunk (RFC 9112, section 7.1).
        let frames = vec![Frame::Data("hello".into()), Frame::Data(Bytes::new()), Frame::Trailers(trailers)];
        let unknown = seen(post(), Length::Unknown, frames, "0\r\nx-sum: 1\r\n\r\n").await;
        assert!(
            unknown.ends_with("\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n"),
            "{unknown}"
        );

        let te = HeaderMap::from_iter([(http::header::TE, HeaderValue::from_static("trailers"))]);
        let te = seen(head(Method::GET, te), Length::None, vec![], "\r\n\r\n").await;
        assert!(te.contains("\r\nte: trailers\r\n") && te.contains("\r\nconnection: te\r\n"), "{te}");
    });
}

/// Large frames go out as they are, in order, whatever the socket takes at a time.
#[test]
fn a_large_body_arrives_whole() {
    run(async {
        let (connection, mut origin) = connected().await;
        let sizes = [1, 1023, 1024, 70_000, 3, 900_000, 2048];
        let total: usize = sizes.iter().sum();
        let post = head(Method::POST, HeaderMap::new());
        let sending = async {
            let (mut out, _) = connection.start(&post, Length::Known(total as u64)).await.expect("started");
            for (index, size) in sizes.into_iter().enumerate() {
                out.send(Frame::Data(vec![index as u8; size].into()), &Activity::now()).await.expect("sent");
            }
            out.finish(&Activity::now()).await.expect("finished");
            drop(connection);
        };
        let mut got = Vec::new();
        let ((), read) = tokio::join!(sending, origin.read_to_end(&mut got));
        read.expect("read to the end");
        let wanted: Vec<u8> = sizes.iter().enumerate().flat_map(|(index, size)| vec![index as u8; *size]).collect();
        let head = got.len() - wanted.len();
        assert!(got[..head].ends_with(b"\r\n\r\n") && got[head..] == wanted);
    });
}

/// RFC 9112, section 6.3: where each kind of body ends, and section 9.3: what the connection is good for then.
#[test]
fn responses_end_and_connections_are_reused_as_the_rfc_says() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n";
    for (answer, method, body, reusable) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Method::GET, "ok", true),
        (chunked, Method::GET, "ok", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", Method::HEAD, "", true),
        ("HTTP/1.1 204 No Content\r\n\r\n", Method::GET, "", true),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", Method::GET, "", true),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", Method::GET, "ok", false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", Method::GET, "ok", false),
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", Method::GET, "ok", true),
        // Nobody asked for what follows: the next response must not be found there.
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n", Method::GET, "ok", false),
        ("HTTP/1.1 204 No Content\r\n\r\nbody", Method::GET, "", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Method::HEAD, "", false),
    ] {
        run(async {
            let (connection, mut origin) = connected().await;
            let (_out, mut awaiting) =
                connection.start(&head(method, HeaderMap::new()), Length::None).await.expect("started");
            until(&mut origin, "\r\n\r\n").await;
            assert!(!connection.reusable(), "nothing has come");
            origin.write_all(answer.as_bytes()).await.expect("written");
            let (data, trailers, error) = read(final_head(&mut awaiting).await.1).await;
            assert!(error.is_none() && data == body.as_bytes(), "{answer:?}");
            assert_eq!(trailers.is_some(), answer.contains("X-Sum"));
            assert_eq!(connection.reusable(), reusable, "{answer:?}");
        });
    }
}

/// RFC 9112, section 8: what is cut short says so. Without a length only the close ends a body.
#[test]
fn a_truncated_body_is_an_error() {
    for (answer, whole) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", false),
        ("HTTP/1.1 200 OK\r\n\r\nok", true),
    ] {
        run(async {
            let (connection, mut origin) = connected().await;
            let (_out, mut awaiting) = connection.start(&get(), Length::None).await.expect("started");
            until(&mut origin, "\r\n\r\n").await;
            origin.write_all(answer.as_bytes()).await.expect("written");
            drop(origin);
            let (data, _, error) = read(final_head(&mut awaiting).await.1).await;
            assert_eq!(data, b"ok");
            match error {
                None => assert!(whole, "{answer:?}"),
                Some(error) => assert!(matches!(error, BodyError::Truncated(_)) && !whole, "{answer:?}: {error}"),
            }
            assert!(!connection.reusable());
        });
    }
}

/// A body that the close ends is not ended by a reset.
#[test]
fn a_reset_is_no_end() {
    run(async {
        let (connection, mut origin) = connected().await;
        let (_out, mut awaiting) = connection.start(&get(), Length::None).await.expect("started");
        until(&mut origin, "\r\n\r\n").await;
        origin.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("written");
        let (_, body) = final_head(&mut awaiting).await;
        socket2::SockRef::from(&origin).set_linger(Some(Duration::ZERO)).expect("linger");
        drop(origin);
        assert!(matches!(read(body).await.2, Some(BodyError::Reset(_))));
    });
}

/// Conduct, sections 1 ("Keep-alive") and 3 ("responses"); RFC 9110, section 15.2.
#[test]
fn bad_responses_have_their_cause() {
    run(async {
        let early = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(MAX_INTERIM + 1);
        for invalid in ["HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "220 smtp ready", &early] {
            let fault = fault_of(invalid.as_bytes()).await;
            assert!(fault.cause == Cause::ResponseInvalid && !fault.unprocessed, "{invalid:?}: {fault:?}");
        }
        let large = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(2000));
        assert_eq!(fault_of(large.as_bytes()).await.cause, Cause::ResponseHeadTooLarge);
        for cut in ["", "HTTP/1.1 20", "HTTP/1.1 103 Early Hints\r\n\r\n"] {
            let fault = fault_of(cut.as_bytes()).await;
            assert!(fault.cause == Cause::Reset && !fault.unprocessed, "bytes were written: {cut:?}: {fault:?}");
        }
    });
}

#[test]
fn interim_heads_come_one_by_one() {
    run(async {
        let (connection, mut origin) = connected().await;
        let (_out, mut awaiting) = connection.start(&get(), Length::None).await.expect("started");
        until(&mut origin, "\r\n\r\n").await;
        let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        origin.write_all(&[interim, OK].concat()).await.expect("written");
        for status in [100, 103] {
            assert!(matches!(next(&mut awaiting).await, Ok(Arrived::Interim(head)) if head.status == status));
        }
        assert_eq!(read(final_head(&mut awaiting).await.1).await.0, b"ok");
        assert!(connection.reusable());
    });
}

/// RFC 9112, section 9.5: an answer that comes before the request is complete is read, and the connection is not for
/// another request.
#[test]
fn an_early_answer_is_read_and_the_connection_given_up() {
    run(async {
        let (connection, mut origin) = connected().await;
        let post = head(Method::POST, HeaderMap::new());
        let (mut out, mut awaiting) = connection.start(&post, Length::Known(10)).await.expect("started");
        out.send(Frame::Data("hello".into()), &Activity::now()).await.expect("sent");
        out.flush(&Activity::now()).await.expect("flushed");
        until(&mut origin, "hello").await;
        origin.write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n").await.expect("written");
        let (status, body) = final_head(&mut awaiting).await;
        assert_eq!(status, 413);
        assert!(read(body).await.2.is_none() && !connection.reusable());
        drop(out);
        assert!(!connection.reusable());
    });
}

/// RFC 9112, section 8: a request must be as long as its head said, or not be taken for whole.
#[test]
fn a_body_of_another_length_than_announced_never_ends_well() {
    run(async {
        for (sent, fails_on_send) in [("hell", false), ("hello!", true)] {
            let (connection, mut origin) = connected().await;
            let post = head(Method::POST, HeaderMap::new());
            let (mut out, awaiting) = connection.start(&post, Length::Known(5)).await.expect("started");
            let outcome = out.send(Frame::Data(sent.into()), &Activity::now()).await;
            assert_eq!(outcome.is_err(), fails_on_send);
            assert!(fails_on_send || out.finish(&Activity::now()).await.is_err());
            drop((out, awaiting));
            assert!(!connection.reusable());
            drop(connection);
            let mut got = Vec::new();
            origin.read_to_end(&mut got).await.expect("closed");
            assert!(!got.ends_with(b"hello"), "{:?}", String::from_utf8_lossy(&got));
        }
    });
}

/// RFC 9112, section 9.3.1: what closes while idle, or speaks unasked, is not used again. A request on it left no byte.
#[test]
fn stale_connections_are_noticed() {
    run(async {
        for unasked in [&b""[..], OK] {
            let (connection, mut origin) = connected().await;
            let (_, mut awaiting) = connection.start(&get(), Length::None).await.expect("started");
            until(&mut origin, "\r\n\r\n").await;
            origin.write_all(OK).await.expect("written");
            assert!(read(final_head(&mut awaiting).await.1).await.2.is_none() && connection.reusable());
            let quiet = poll_fn(|cx| Poll::Ready(connection.poll_stale(cx))).await;
            assert!(quiet.is_pending(), "nothing happened yet");
            assert_eq!(connection.conn.wire.borrow().read.capacity(), 0, "an idle connection holds no buffer");
            origin.write_all(unasked).await.expect("written");
            drop(origin);
            poll_fn(|cx| connection.poll_stale(cx)).await;
            assert!(!connection.reusable());
        }
    });
}

/// RFC 9110, section 9.2.2: a request of which no byte left may be sent elsewhere, whatever its method.
#[test]
fn a_close_before_any_byte_proves_that_nothing_was_processed() {
    run(async {
        let (connection, origin) = connected().await;
        drop(origin);
        let post = head(Method::POST, HeaderMap::new());
        // The head waits for the body that goes with it.
        let (_out, mut awaiting) = connection.start(&post, Length::Known(5)).await.expect("started");
        let Err(fault) = next(&mut awaiting).await else { panic!("there is no answer") };
        assert!(fault.cause == Cause::Reset && fault.unprocessed && !connection.written());
    });
}

fn websocket() -> OutgoingHead {
    let mut fields = HeaderMap::new();
    fields.insert("sec-websocket-key", HeaderValue::from_static("the client's"));
    fields.insert("te", HeaderValue::from_static("trailers"));
    let mut head = head(Method::GET, fields);
    head.upgrade = Some(HeaderValue::from_static("the key"));
    head
}

/// RFC 9110, section 7.8, RFC 6455, section 4.1: the fields of this hop are the gateway's; from the 101 on bytes are
/// bytes, those that came with it too, and the connection is nobody else's.
#[test]
fn an_upgrade_takes_the_connection() {
    run(async {
        let (connection, mut origin) = connected().await;
        let (mut none, mut awaiting) = connection.start(&websocket(), Length::None).await.expect("started");
        none.finish(&Activity::now()).await.expect("nothing to send");
        let asked = until(&mut origin, "\r\n\r\n").await;
        for field in
            ["connection: upgrade, te", "upgrade: websocket", "sec-websocket-key: the key", "sec-websocket-version: 13"]
        {
            assert!(asked.contains(&format!("\r\n{field}\r\n")), "{asked}");
        }
        assert!(!asked.contains("the client's"), "{asked}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
        origin.write_all(answer).await.expect("written");
        let Ok(Arrived::Tunnel(_, incoming, mut outgoing)) = next(&mut awaiting).await else { panic!("no tunnel") };
        let activity = Activity::now();
        outgoing.send(Frame::Data(b"bytes"[..].into()), &activity).await.expect("sent");
        outgoing.finish(&activity).await.expect("half closed");
        let mut got = Vec::new();
        origin.read_to_end(&mut got).await.expect("the end of our half");
        assert_eq!(got, b"bytes");
        drop(origin);
        assert_eq!(read(incoming).await.0, b"HTTP/1.1 200 OK\r\n\r\n");
        assert!(!connection.reusable());
    });
}

/// Conduct "WebSocket": a refusal is a response, and the connection goes on.
#[test]
fn a_refused_upgrade_keeps_the_connection() {
    run(async {
        let (connection, mut origin) = connected().await;
        let (_out, mut awaiting) = connection.start(&websocket(), Length::None).await.expect("started");
        until(&mut origin, "\r\n\r\n").await;
        origin.write_all(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n").await.expect("written");
        assert_eq!(final_head(&mut awaiting).await.0, 426);
        assert!(connection.reusable());
    });
}
