//! HTTP/3 towards origins: every version to every version, and what an origin that breaks off proves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, Version};
use http_body_util::{BodyExt, Full};
use tidegate_tests::certs::Authority;
use tidegate_tests::origin::full;
use tidegate_tests::quic::{self, Answering, QuicClient, QuicOrigin, control, data, frame, headers, varint};
use tidegate_tests::tunnel::{self, Ended, Http2Client, ask_http1, handshake};
use tidegate_tests::{Client, Gateway, Origin, RawClient, eventually};

const NO_ERROR: u32 = 0x100;
const REQUEST_REJECTED: u32 = 0x10b;
const REQUEST_CANCELLED: u32 = 0x10c;

/// A gateway before one cluster over HTTP/3, whose certificate is `origin.example`'s.
async fn gateway(authority: &Authority, endpoints: &[std::net::SocketAddr], more: &str) -> Gateway {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).expect("written");
    let more = format!("protocol = \"http3\"\ntls = {{ ca = \"ca.pem\", server_name = \"origin.example\" }}\n{more}");
    Gateway::start_in(folder, &crate::simple(endpoints, &more)).await
}

fn origin_tls(authority: &Authority) -> rustls::ServerConfig {
    authority.issue(&["origin.example"]).server(&[b"h3"], None)
}

/// The body that was sent, turned around, and trailers where the client's version had some.
fn echo(seen: &tidegate_tests::Recorded) -> Response<tidegate_tests::origin::Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", seen.body.len().to_string().parse().expect("a value"));
    let body = Full::new(Bytes::from(seen.body.iter().rev().copied().collect::<Vec<u8>>()));
    let body = body.with_trailers(async move { Some(Ok(trailers)) }).map_err(|never| match never {});
    let mut response = Response::new(body.boxed());
    response.headers_mut().insert("trailer", "x-sum".parse().expect("a value"));
    if seen.header("x-wants-hint").is_some() {
        response.headers_mut().insert("x-hint", "1".parse().expect("a value"));
    }
    response
}

/// RFC 9110, sections 3.7 and 6.5: three versions to three versions, with content and trailers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_version_to_every_version() {
    let authority = Authority::new();
    let origins = [
        (Version::HTTP_11, "http1", Origin::answering(false, echo).await),
        (Version::HTTP_2, "http2", Origin::answering(true, echo).await),
        (Version::HTTP_3, "http3", Origin::http3(origin_tls(&authority), echo).await),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    authority.issue(&["edge.example"]).write(folder.path(), "edge");
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).expect("written");
    let mut config = "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\n\
        tls.certificates = [{ certificate = \"edge.pem\", key = \"edge.key\" }]\n"
        .to_owned();
    for (_, protocol, origin) in &origins {
        let tls = match *protocol {
            "http3" => "tls = { ca = \"ca.pem\", server_name = \"origin.example\" }\n",
            _ => "",
        };
        config += &format!(
            "[[cluster]]\nname = \"{protocol}\"\nendpoints = [\"{}\"]\nprotocol = \"{protocol}\"\n{tls}\
             [[route]]\npath = \"/{protocol}\"\ncluster = \"{protocol}\"\n",
            origin.address
        );
    }
    let gateway = Gateway::start_in(folder, &config).await;
    for (version, alpn) in [(Version::HTTP_11, &b"http/1.1"[..]), (Version::HTTP_2, b"h2"), (Version::HTTP_3, b"h3")] {
        let client = Client::tls(gateway.edge(), version, authority.client(&[alpn], None), "edge.example");
        for (upstream, protocol, origin) in &origins {
            let what = format!("{version:?} to {upstream:?}");
            for body in ["", "a body", &"long ".repeat(40_000)] {
                let fields = [("x-mine", "kept"), ("te", "trailers")];
                let path = format!("/{protocol}?y=%2f");
                let answer = client.send(Method::POST, &path, &fields, body.to_owned()).await;
                let answer = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!((answer.status.as_u16(), answer.version), (200, version), "{what}");
                assert_eq!(answer.text(), body.chars().rev().collect::<String>(), "{what}");
                if version != Version::HTTP_11 {
                    let sum = answer.trailers.as_ref().and_then(|trailers| trailers.get("x-sum"));
                    let sum = sum.and_then(|sum| sum.to_str().ok()).map(str::to_owned);
                    // An HTTP/1.1 origin without content has its length before any trailers could come.
                    assert!(sum.is_none_or(|sum| sum == body.len().to_string()), "{what}: {:?}", answer.trailers);
                }
                let seen = origin.last();
                assert_eq!((seen.version, seen.path.as_str()), (*upstream, path.as_str()), "{what}");
                assert_eq!((seen.authority.as_str(), seen.header("x-mine")), ("edge.example", Some("kept")), "{what}");
                assert!(seen.header("via").is_some(), "{what}");
            }
            let answer = client.send(Method::HEAD, &format!("/{protocol}"), &[], "").await.expect("an answer");
            assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0), "{what}");
        }
    }
    let raw = QuicClient::connect(gateway.edge(), authority.client(&[b"h3"], None), "edge.example").await;
    for (upstream, protocol, origin) in &origins {
        let path = format!("/{protocol}");
        let fields = [(":method", "POST"), (":scheme", "https"), (":authority", "edge.example"), (":path", &*path)];
        let more = [("te", "trailers"), ("x-wants-hint", "1"), ("trailer", "x-check")];
        let request = [headers(&[&fields[..], &more].concat()), data(b"abc"), headers(&[("x-check", "1")])].concat();
        let answer = raw.ask(&request).await.expect("an answer");
        assert_eq!((answer.status(), &answer.body[..]), (200, &b"cba"[..]), "{protocol}");
        let seen = origin.last();
        assert_eq!(&seen.body[..], b"abc", "{protocol}");
        let check = seen.trailers.as_ref().and_then(|trailers| trailers.get("x-check"));
        assert!(check.is_some_and(|check| check == "1"), "{protocol}: {:?}", seen.trailers);
        if *upstream == Version::HTTP_3 {
            assert_eq!(answer.statuses, [103, 200], "an interim response on both sides");
        }
        assert!(answer.trailers || *upstream == Version::HTTP_11, "{protocol}");
    }
    let (_, _, http3) = &origins[2];
    assert!(http3.connections() <= 2, "a connection per worker: {}", http3.connections());
}

/// RFC 9110, section 15.2: interim responses pass; RFC 9114, section 4.1: any number of them before the final one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_responses_pass_from_http3() {
    let authority = Authority::new();
    let origin = Origin::http3(origin_tls(&authority), echo).await;
    let gateway = gateway(&authority, &[origin.address], "").await;
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Wants-Hint: 1\r\nConnection: close\r\n\r\n").await;
    let all = client.rest().await;
    assert!(all.starts_with("HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n"), "{all}");
    assert!(all.contains("\r\n\r\nHTTP/1.1 200 OK\r\n"), "{all}");
}

/// RFC 9114, section 2: streams share a connection; conduct "Keep-alive / pooling": up to the cap, and beyond it another
/// is opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http3_streams_share_connections_up_to_a_cap() {
    let authority = Authority::new();
    let origin = Origin::http3(origin_tls(&authority), |_| Response::new(full("ok"))).await;
    let gateway = gateway(&authority, &[origin.address], "max_streams_per_connection = 4").await;
    crate::streams_share_connections(&gateway, &origin).await;
}

/// Conduct "HTTP/3 HOL"; RFC 9114, section 2: clients that take nothing do not stall those that share their connection to
/// the origin, and hold little of its responses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_clients_do_not_stall_others() {
    let authority = Authority::new();
    let large = Bytes::from(vec![b'x'; 32 << 20]);
    let origin = Origin::http3(origin_tls(&authority), move |seen| {
        Response::new(if seen.path == "/large" { full(large.clone()) } else { full("ok") })
    })
    .await;
    let gateway = gateway(&authority, &[origin.address], "").await;
    assert_eq!(Client::http1(gateway.edge()).get("/").await.expect("an answer").status, 200);
    let before = gateway.resident();
    let mut stalled = Vec::new();
    for _ in 0..40 {
        let mut client = RawClient::connect(gateway.edge()).await;
        client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.until("\r\n\r\n").await;
        stalled.push(client);
    }
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    for _ in 0..8 {
        assert_eq!(Client::http1(gateway.edge()).get("/").await.expect("an answer").text(), "ok");
    }
    let grown = gateway.resident().saturating_sub(before);
    // A stream holds up to its window, and what quinn keeps of it.
    assert!(grown < 128 << 20, "{grown} bytes for 40 clients that take nothing");
    assert!(origin.connections() <= 2, "{} connections", origin.connections());
}

/// Conduct "Re-encryption": the origin's certificate is verified, also over QUIC.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_is_verified_over_quic() {
    let (authority, other) = (Authority::new(), Authority::new());
    let origin = Origin::http3(origin_tls(&other), |_| Response::new(full("ok"))).await;
    let misnamed = authority.issue(&["elsewhere.example"]).server(&[b"h3"], None);
    let misnamed = Origin::http3(misnamed, |_| Response::new(full("ok"))).await;
    for address in [origin.address, misnamed.address] {
        let gateway = gateway(&authority, &[address], "").await;
        let answer = Client::http1(gateway.edge()).get("/").await.expect("an answer");
        assert_eq!(answer.status, 502);
        let said = answer.header("proxy-status").unwrap_or_default().to_owned();
        assert!(said.contains("tls_certificate_error"), "{said}");
    }
    assert!(origin.record().is_empty() && misnamed.record().is_empty());
}

/// An origin on aioquic and a gateway before it.
async fn before_aioquic(authority: &Authority) -> (tidegate_tests::peers::Script, Gateway) {
    let folder = tempfile::tempdir().expect("a folder");
    authority.issue(&["origin.example"]).write(folder.path(), "origin");
    let folder_name = folder.path().display().to_string();
    let mut origin = tidegate_tests::peers::Script::start("http3_origin.py", &[&folder_name]);
    let port: u16 = origin.line().await.parse().expect("a port");
    (origin, gateway(authority, &[std::net::SocketAddr::from(([127, 0, 0, 1], port))], "").await)
}

/// An implementation that is neither ours nor `h3`: content, trailers and many streams at once reach it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_on_aioquic() {
    let (_origin, gateway) = before_aioquic(&Authority::new()).await;
    let clients = (0..30).map(|index| {
        let client = if index % 2 == 0 { Client::http1(gateway.edge()) } else { Client::http2(gateway.edge()) };
        tokio::spawn(async move {
            let body = format!("{index}").repeat(20_000);
            let fields = [("x-long", "a value that is sent again and again"), ("te", "trailers")];
            let answer = client.send(Method::POST, "/echo", &fields, body.clone()).await.map_err(|e| e.to_string())?;
            let whole = answer.status == 200 && answer.text() == body;
            let trailers = answer.trailers.as_ref().and_then(|trailers| trailers.get("x-sum"));
            Ok::<_, String>((whole, index % 2 == 0 || trailers.is_some_and(|sum| sum == &*body.len().to_string())))
        })
    });
    for client in clients.collect::<Vec<_>>() {
        assert_eq!(client.await.expect("no panic"), Ok((true, true)));
    }
}

/// Conduct "WebSocket h1/h2/h3": an HTTP/3 origin by extended CONNECT (RFC 9220), from clients of all versions; a refusal is an
/// ordinary response, and an origin whose SETTINGS do not allow it is not asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websocket_to_an_origin_of_http3() {
    let authority = Authority::new();
    let (_origin, gateway) = before_aioquic(&authority).await;
    let (head, one) = ask_http1(gateway.edge(), &handshake("/chat")).await;
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("sec-websocket-protocol: chat"), "{head}");
    let two = Http2Client::connect(gateway.edge()).await;
    let (response, two) = two.ask(Http2Client::request("websocket", "/chat")).await.expect("an answer");
    assert_eq!(response.status(), 200);
    for mut client in [one, two] {
        let sent = tunnel::frame(&[b'x'; 100_000], true);
        client.send(&sent).await;
        assert!(client.exactly(sent.len()).await == sent);
        client.finish().await;
        assert_eq!(client.end().await, Ended::Cleanly);
    }
    assert_eq!(gateway.metric("tidegate_tunnels_total{kind=\"websocket\"}").await, 2.0);
    let (head, mut refused) = ask_http1(gateway.edge(), &handshake("/refuse")).await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert_eq!(refused.exactly(12).await, b"2\r\nno\r\n0\r\n\r\n");
    assert_eq!(Client::http1(gateway.edge()).send(Method::POST, "/", &[], "x").await.expect("an answer").text(), "x");

    // An origin on `h3` does not say that it takes it.
    let plain = Origin::http3(origin_tls(&authority), |_| Response::new(full("ok"))).await;
    let gateway = self::gateway(&authority, &[plain.address], "").await;
    let (head, _) = ask_http1(gateway.edge(), &handshake("/chat")).await;
    assert!(head.starts_with("HTTP/1.1 502 ") && head.contains("http_upgrade_failed"), "{head}");
    assert!(plain.record().is_empty());
}

/// Serves each request of a connection with `answer`, after SETTINGS.
async fn raw<F>(
    tls: rustls::ServerConfig,
    settings: Vec<u8>,
    answer: impl Fn(quinn::Connection, quinn::SendStream, Answering, usize) -> F + Send + Sync + 'static,
) -> QuicOrigin
where
    F: Future<Output = ()> + Send + 'static,
{
    let (answer, count) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
    QuicOrigin::start(tls, move |connection, _| {
        let (answer, count, settings) = (answer.clone(), count.clone(), settings.clone());
        async move {
            let mut control = connection.open_uni().await.expect("a stream");
            control.write_all(&settings).await.expect("sent");
            while let Ok((send, recv)) = connection.accept_bi().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(answer(connection.clone(), send, Answering::new(recv), number));
            }
            drop(control);
        }
    })
    .await
}

async fn ok(mut send: quinn::SendStream) {
    let _ = send.write_all(&[headers(&[(":status", "200"), ("content-length", "2")]), data(b"ok")].concat()).await;
    let _ = send.finish();
}

/// Conduct, section 2; RFC 9114, section 4.1.1: a request that was rejected may be sent again whatever its method, one
/// that was cancelled only if it is idempotent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_reset_proves() {
    let authority = Authority::new();
    for (code, method, status) in [
        (REQUEST_REJECTED, Method::POST, 200),
        (REQUEST_REJECTED, Method::GET, 200),
        (REQUEST_CANCELLED, Method::POST, 502),
        (REQUEST_CANCELLED, Method::GET, 200),
    ] {
        let origin =
            raw(origin_tls(&authority), control(&[], &[]), move |_, mut send, _answering, number| async move {
                if number == 0 {
                    let _ = send.reset(code.into());
                } else {
                    ok(send).await;
                }
            })
            .await;
        let gateway = gateway(&authority, &[origin.address], "").await;
        let answer = Client::http1(gateway.edge()).send(method.clone(), "/", &[], "").await.expect("an answer");
        assert_eq!(answer.status.as_u16(), status, "{code:#x} {method}");
    }
}

/// Conduct, section 2; RFC 9114, section 5.2: GOAWAY names what was not processed; the rest goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goaway_names_what_was_not_processed() {
    let authority = Authority::new();
    let connections = Arc::new(AtomicUsize::new(0));
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, requests) = (connections.clone(), asked.clone());
    let origin = QuicOrigin::start(origin_tls(&authority), move |connection, _| {
        let (number, requests) = (count.fetch_add(1, Ordering::SeqCst), requests.clone());
        async move {
            let mut control = connection.open_uni().await.expect("a stream");
            control.write_all(&quic::control(&[], &[])).await.expect("sent");
            let mut held = Vec::new();
            while let Ok((send, recv)) = connection.accept_bi().await {
                requests.fetch_add(1, Ordering::SeqCst);
                if number > 0 {
                    ok(send).await;
                    continue;
                }
                held.push((send, recv));
                if held.len() == 2 {
                    // The first is served, the second is not, and is neither reset nor answered.
                    control.write_all(&frame(0x7, &varint(4))).await.expect("sent");
                    let (send, _recv) = held.remove(0);
                    ok(send).await;
                }
            }
        }
    })
    .await;
    let gateway = gateway(&authority, &[origin.address], "max_streams_per_connection = 10").await;
    let (one, two) = loop_until_shared(&Client::http2(gateway.edge()), &asked, &connections).await;
    assert_eq!((one, two), (200, 200), "a POST that was not processed is sent again");
}

/// Sends POSTs until two were answered; each has a connection of its own, so they may land on either worker.
async fn loop_until_shared(client: &Client, asked: &AtomicUsize, connections: &AtomicUsize) -> (u16, u16) {
    let send = || {
        let client = client.clone();
        tokio::spawn(async move {
            let answer = client.send(Method::POST, "/", &[], "").await;
            answer.map(|answer| answer.status.as_u16()).map_err(|error| error.to_string())
        })
    };
    let one = send();
    eventually("the origin is asked", async || (asked.load(Ordering::SeqCst) > 0).then_some(())).await;
    let mut last = 0;
    let mut tries = 0;
    while !one.is_finished() {
        last = send().await.expect("no panic").expect("an answer");
        tries += 1;
        assert!(tries < 100 && connections.load(Ordering::SeqCst) <= 3);
    }
    (one.await.expect("no panic").expect("an answer"), last)
}

/// RFC 9114, sections 4.1.2, 4.2 and 4.3.2; conduct "L7 terminating proxy": a response that is not whole is never
/// delivered as one, and one that is malformed not at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_responses_are_errors() {
    let authority = Authority::new();
    let status = |fields: &[(&str, &str)]| headers(&[&[(":status", "200")], fields].concat());
    let heads: Vec<(&str, Vec<u8>)> = vec![
        ("no status", headers(&[("x-a", "1")])),
        ("status twice", status(&[(":status", "200")])),
        ("a request's pseudo-header field", status(&[(":path", "/")])),
        ("upper case", status(&[("X-A", "1")])),
        ("connection", status(&[("connection", "close")])),
        ("content-length twice", status(&[("content-length", "1"), ("content-length", "2")])),
        ("less than content-length", [status(&[("content-length", "9")]), data(b"abc")].concat()),
        ("101", headers(&[(":status", "101")])),
        ("interim only", headers(&[(":status", "103")])),
        ("nothing", Vec::new()),
        ("data first", data(b"x")),
        ("a push promise", frame(0x5, b"xxxx")),
        ("settings", frame(0x4, b"")),
        ("a broken section", frame(0x1, &[0, 0, 0x80])),
        ("an endless head", [varint(0x1), varint(1 << 40), vec![0; 1000]].concat()),
        ("interim without an end", headers(&[(":status", "103")]).repeat(40)),
    ];
    for (what, bytes) in heads {
        let origin = raw(origin_tls(&authority), control(&[], &[]), move |_, mut send, answering, _| {
            let bytes = bytes.clone();
            async move {
                let _ = send.write_all(&bytes).await;
                let _ = send.finish();
                let _ = answering.answer().await;
            }
        })
        .await;
        let gateway = gateway(&authority, &[origin.address], "").await;
        let mut client = RawClient::connect(gateway.edge()).await;
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx").await;
        let all = client.rest().await;
        let last = all.rfind("HTTP/1.1 ").map(|at| &all[at..]).unwrap_or_default();
        let cut_off = what.starts_with("less") && !all.contains("content-length: 3");
        assert!(last.starts_with("HTTP/1.1 502") || cut_off, "{what}: {all}");
    }
    // Cut off in its content: the client sees that too.
    let origin = raw(origin_tls(&authority), control(&[], &[]), |_, mut send, _answering, _| async move {
        let _ = send.write_all(&[headers(&[(":status", "200")]), data(b"abc")].concat()).await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let _ = send.reset(REQUEST_CANCELLED.into());
    })
    .await;
    let gateway = gateway(&authority, &[origin.address], "").await;
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let all = client.rest().await;
    assert!(all.contains("3\r\nabc\r\n") && !all.contains("0\r\n\r\n"), "{all}");
}

/// RFC 9000, section 4.6: an origin's limit on streams is waited for, and other connections take what is beyond it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_limits_its_streams() {
    let authority = Authority::new();
    let origin = QuicOrigin::limited(origin_tls(&authority), 2, |connection, _| async move {
        let mut control = connection.open_uni().await.expect("a stream");
        control.write_all(&quic::control(&[], &[])).await.expect("sent");
        while let Ok((send, _recv)) = connection.accept_bi().await {
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                ok(send).await;
            });
        }
        drop(control);
    })
    .await;
    let gateway = gateway(&authority, &[origin.address], "").await;
    let clients = (0..30).map(|_| {
        let client = Client::http1(gateway.edge());
        tokio::spawn(async move {
            client.get("/").await.map(|answer| answer.status.as_u16()).map_err(|error| error.to_string())
        })
    });
    for client in clients.collect::<Vec<_>>() {
        assert_eq!(client.await.expect("no panic"), Ok(200));
    }
}

/// RFC 9114, section 4.1: an origin may answer before it has the whole request, and stop reading it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_response_passes() {
    let authority = Authority::new();
    let origin = raw(origin_tls(&authority), control(&[], &[]), |_, send, mut answering, _| async move {
        let _ = answering.frame().await;
        answering.stop(NO_ERROR);
        ok(send).await;
    })
    .await;
    let gateway = gateway(&authority, &[origin.address], "").await;
    let client = Client::http2(gateway.edge());
    let answer = client.send(Method::POST, "/", &[], vec![b'x'; 3_000_000]).await.expect("an answer");
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "ok".to_owned()));
}

/// RFC 9114, sections 6.2.1, 7.2.4.1 and 7.2.5: an origin that breaks the protocol loses its connection, and a GET is
/// tried on another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_breaks_the_protocol_loses_its_connection() {
    let authority = Authority::new();
    for settings in [
        control(&[(0x2, 0)], &[]),
        control(&[], &frame(0xd, &varint(1))),
        control(&[], &frame(0x7, &varint(3))),
        [varint(0), frame(0x21, b"")].concat(),
    ] {
        let origin = raw(origin_tls(&authority), settings, |_, send, _answering, _| async move {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            ok(send).await;
        })
        .await;
        let gateway = gateway(&authority, &[origin.address], "").await;
        let answer = Client::http1(gateway.edge()).get("/").await.expect("an answer");
        assert_eq!(answer.status, 502);
        assert!(origin.connections() >= 1);
    }
}
