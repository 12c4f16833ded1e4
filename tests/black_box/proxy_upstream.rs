//! PROXY headers to origins: whom they name, what they tell of TLS, and that no connection is used for another client than
//! the one it was advertised for. Section numbers are those of the protocol's specification.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate_tests::certs::Authority;
use tidegate_tests::origin::{full, read_head};
use tidegate_tests::{Client, Gateway, RawClient, RawOrigin, eventually};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::proxy_protocol::{IPV4, LINE, REQUEST, accept, config, crc32c, said, version_2};

/// A connection whose first write carries something before it, in the same segment.
struct Prefixed {
    tcp: TcpStream,
    before: Vec<u8>,
}

impl AsyncRead for Prefixed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let before = std::mem::take(&mut self.before);
        if before.is_empty() {
            return Pin::new(&mut self.tcp).poll_write(cx, buf);
        }
        let all = [&before, buf].concat();
        let written = std::task::ready!(Pin::new(&mut self.tcp).poll_write(cx, &all))?;
        assert_eq!(written, all.len(), "a fresh connection takes a few kilobytes at once");
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// What an origin was told: the header of each connection, and the paths that were asked for on it.
type Told = Arc<Mutex<Vec<(Vec<u8>, Vec<String>)>>>;

async fn read_header(stream: &mut TcpStream) -> Vec<u8> {
    let mut header = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        header.push(byte);
        let length = match header.get(14..16) {
            Some(length) if header[0] == b'\r' => 16 + usize::from(length[0]) * 256 + usize::from(length[1]),
            _ => usize::MAX,
        };
        if header.len() == length || (header[0] == b'P' && header.ends_with(b"\r\n")) {
            break;
        }
    }
    header
}

/// An origin that takes a header and then speaks HTTP/1.1, or HTTP/2 by prior knowledge.
async fn origin_with_headers(http2: bool) -> (RawOrigin, Told) {
    let told = Told::default();
    let record = told.clone();
    let origin = RawOrigin::start(move |mut stream, _| {
        let record = record.clone();
        async move {
            let header = read_header(&mut stream).await;
            let index = {
                let mut record = record.lock().expect("no panic");
                record.push((header, Vec::new()));
                record.len() - 1
            };
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                record.lock().expect("no panic")[index].1.push(request.uri().path().to_owned());
                async { Ok::<_, io::Error>(http::Response::new(full("ok"))) }
            });
            // A connection that its peer gives up is part of the test.
            if http2 {
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            } else {
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            }
        }
    })
    .await;
    (origin, told)
}

/// The fields of a version 2 header over IPv4.
fn fields(header: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut fields = Vec::new();
    let mut rest = &header[28..];
    while let [kind, high, low, after @ ..] = rest {
        let (value, after) = after.split_at(usize::from(*high) * 256 + usize::from(*low));
        fields.push((*kind, value.to_vec()));
        rest = after;
    }
    fields
}

/// Sections 2.2.1 to 2.2.7, conduct "leftover bytes go to TLS/HTTP intact": header and ClientHello in one segment; the
/// origin hears of both ends, ALPN, name, TLS version, unique id, and the checksum is right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_before_tls_and_its_fields_upstream() {
    let (origin, told) = origin_with_headers(false).await;
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    authority.issue(&["a.example"]).write(folder.path(), "a");
    let tls = "tls.certificates = [{ certificate = \"a.pem\", key = \"a.key\" }]";
    let cluster = "proxy_protocol = \"v2\"\nproxy_tlvs = [\"alpn\", \"authority\", \"ssl\", \"unique_id\", \"crc32c\"]";
    let config = config(origin.address, &format!("{}\n{tls}", accept("required")), cluster);
    let open = format!("[[listener]]\nname = \"open\"\naddress = \"127.0.0.1:0\"\n{}\n{tls}\n", accept("optional"));
    let gateway = Gateway::start_in(folder, &format!("{open}{config}")).await;
    // Where it is optional, TLS alone is told apart by its first byte.
    for version in [http::Version::HTTP_11, http::Version::HTTP_2, http::Version::HTTP_3] {
        let alpn = [(http::Version::HTTP_2, &b"h2"[..]), (http::Version::HTTP_3, b"h3")];
        let alpn = alpn.iter().find(|(of, _)| *of == version).map_or(&b"http/1.1"[..], |(_, name)| name);
        let client = Client::tls(gateway.address("open"), version, authority.client(&[alpn], None), "a.example");
        assert_eq!(client.get("/").await.expect("an answer").status, 200);
        let said = told.lock().expect("no panic").last().expect("a connection").0.clone();
        assert_eq!(fields(&said).iter().find(|(kind, _)| *kind == 1).map(|(_, value)| value.as_slice()), Some(alpn));
    }
    let received =
        version_2(1, 0x11, IPV4, &[(2, b"not.example"), (5, b"an id"), (0x20, &[1, 0, 0, 0, 0])], Some(true));
    for header in [LINE, &received] {
        let tcp = TcpStream::connect(gateway.edge()).await.expect("a connection");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(authority.client(&[b"http/1.1"], None)));
        let name = "a.example".try_into().expect("a name");
        let io = Prefixed { tcp, before: header.to_vec() };
        let mut stream = connector.connect(name, io).await.expect("a handshake");
        stream.write_all(REQUEST).await.expect("sent");
        let mut answer = Vec::new();
        // The gateway may close without TLS's farewell.
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&answer));
        let said = told.lock().expect("no panic").last().expect("a connection").0.clone();
        assert_eq!(&said[12..14], &[0x21, 0x11]);
        assert_eq!(&said[16..28], IPV4, "both ends are those of the client's own connection");
        let found = fields(&said);
        let get = |kind: u8| found.iter().find(|(k, _)| *k == kind).map(|(_, value)| value.as_slice());
        assert_eq!((get(1), get(2)), (Some(&b"http/1.1"[..]), Some(&b"a.example"[..])), "of the handshake here");
        assert_eq!(get(0x20), Some(&b"\x01\0\0\0\x01\x21\0\x07TLSv1.3"[..]));
        let id = get(5).expect("an id");
        assert!(if header == LINE { id.len() == 32 } else { id == b"an id" }, "{id:?}");
        let at = said.len() - 4;
        assert_eq!(crc32c(&[&said[..at], &[0; 4]].concat()).to_be_bytes(), said[at..]);
    }
    // Neither a header nor TLS.
    assert_eq!(said(&gateway, REQUEST).await, "");
}

/// Section 2.2.6: a client certificate is told of by its common name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_origin_hears_of_the_clients_certificate() {
    let (origin, told) = origin_with_headers(false).await;
    let (authority, clients) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().expect("a folder");
    authority.issue(&["a.example"]).write(folder.path(), "a");
    std::fs::write(folder.path().join("clients.pem"), clients.pem()).expect("written");
    let tls = "tls.certificates = [{ certificate = \"a.pem\", key = \"a.key\" }]\ntls.client_ca = \"clients.pem\"";
    let config = config(origin.address, tls, "proxy_protocol = \"v2\"");
    let gateway = Gateway::start_in(folder, &config).await;
    let identity = clients.issue(&["client.example"]);
    let client = authority.client(&[b"http/1.1"], Some(&identity));
    let client = Client::tls(gateway.edge(), http::Version::HTTP_11, client, "a.example");
    assert_eq!(client.get("/").await.expect("an answer").status, 200);
    let said = told.lock().expect("no panic").last().expect("a connection").0.clone();
    let fields = fields(&said);
    let ssl = fields.iter().find(|(kind, _)| *kind == 0x20).map(|(_, value)| value.as_slice()).expect("ssl");
    // What rcgen names a subject that was given no name.
    let name = b"rcgen self signed cert";
    assert_eq!(ssl, [b"\x05\0\0\0\0\x21\0\x07TLSv1.3\x22\0", &[name.len() as u8][..], name].concat());
    assert!(!fields.iter().any(|(kind, _)| *kind == 5), "no unique id unless it is asked for");
}

/// A reload changes who is asked for a header, and what is sent, from the next connection on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_changes_both_ways() {
    let (origin, told) = origin_with_headers(false).await;
    let gateway = Gateway::start(&config(origin.address, "", "proxy_protocol = \"v1\"")).await;
    assert!(said(&gateway, REQUEST).await.starts_with("HTTP/1.1 200"));
    let (taken, words) = gateway.reload(&config(origin.address, &accept("required"), "proxy_protocol = \"v2\""));
    assert!(taken, "{words}");
    eventually("the listener wants a header", async || said(&gateway, REQUEST).await.is_empty().then_some(())).await;
    assert!(said(&gateway, &[LINE, REQUEST].concat()).await.starts_with("HTTP/1.1 200"));
    let told = told.lock().expect("no panic").clone();
    assert!(told[0].0.starts_with(b"PROXY TCP4 127.0.0.1 127.0.0.1 "));
    assert_eq!(&told.last().expect("a connection").0[16..28], IPV4);
}

/// Section 2, conduct "reusing a pooled connection whose PROXY header names another client": it never happens, on either
/// version of HTTP; one client's requests do share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pooled_connections_are_one_clients_only() {
    for http2 in [false, true] {
        for version in ["v1", "v2"] {
            let (origin, told) = origin_with_headers(http2).await;
            let protocol = if http2 { "http2" } else { "http1" };
            let cluster = format!("protocol = \"{protocol}\"\nproxy_protocol = \"{version}\"\nidle_timeout = \"60s\"");
            let gateway = Gateway::start(&config(origin.address, "", &cluster)).await;
            let mut clients = Vec::new();
            for _ in 0..4 {
                let tcp = TcpStream::connect(gateway.edge()).await.expect("a connection");
                let port = tcp.local_addr().expect("an address").port();
                clients.push((port, RawClient(tcp)));
            }
            for _ in 0..5 {
                for (port, client) in &mut clients {
                    client.send(format!("GET /{port} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await;
                    assert!(client.until("\r\n\r\nok").await.starts_with("HTTP/1.1 200"));
                }
            }
            let told_so_far = told.lock().expect("no panic").clone();
            assert_eq!(told_so_far.len(), clients.len(), "each client's requests share one connection");
            for (header, paths) in &told_so_far {
                let named = if version == "v1" {
                    let line = String::from_utf8(header.clone()).expect("text");
                    line.split(' ').nth(4).and_then(|port| port.parse().ok()).expect("a port")
                } else {
                    u16::from_be_bytes([header[24], header[25]])
                };
                assert_eq!(*paths, vec![format!("/{named}"); 5]);
            }
            assert_eq!(gateway.metric("tidegate_upstream_connections_active").await, 4.0);
            // Connections of clients that are gone are no use to anybody.
            drop(clients);
            eventually("they are closed", async || {
                (gateway.metric("tidegate_upstream_connections_active").await == 0.0).then_some(())
            })
            .await;
        }
    }
}

/// RFC 9113, section 5.1.2: streams of one client share a connection from its first dial on, though others dial too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_one_client_share_a_connection() {
    let (origin, told) = origin_with_headers(true).await;
    let gateway = Gateway::start(&config(origin.address, "", "protocol = \"http2\"\nproxy_protocol = \"v2\"")).await;
    let mut requests = Vec::new();
    for name in ["a", "b", "c"] {
        let tcp = TcpStream::connect(gateway.edge()).await.expect("a connection");
        let io = TokioIo::new(tcp);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.expect("a handshake");
        tokio::spawn(connection);
        for _ in 0..20 {
            let mut sender = sender.clone();
            let request = http::Request::get(format!("http://a/{name}")).body(full("")).expect("a request");
            requests.push(tokio::spawn(async move { sender.send_request(request).await.map(|r| r.status().as_u16()) }));
        }
    }
    for request in requests {
        assert_eq!(request.await.expect("no panic").expect("an answer"), 200);
    }
    let told = told.lock().expect("no panic").clone();
    assert_eq!(told.len(), 3);
    for (_, paths) in told {
        assert_eq!(paths, vec![paths[0].clone(); 20]);
    }
}

/// Conduct "pool key must include the advertised client": many clients share the one limit, at which the idle connection
/// of another gives its place up, and a busy one is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_share_the_limit_but_no_connection() {
    for http2 in [false, true] {
        let (origin, told) = origin_with_headers(http2).await;
        let protocol = if http2 { "http2" } else { "http1" };
        let cluster = format!("protocol = \"{protocol}\"\nproxy_protocol = \"v2\"\nmax_connections = 1");
        let gateway = Gateway::start(&config(origin.address, "", &cluster)).await;
        let mut clients = Vec::new();
        for _ in 0..6 {
            let tcp = TcpStream::connect(gateway.edge()).await.expect("a connection");
            let port = tcp.local_addr().expect("an address").port();
            clients.push(tokio::spawn(async move {
                let mut client = RawClient(tcp);
                for _ in 0..20 {
                    client.send(format!("GET /{port} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await;
                    let answer = client.until("\r\n\r\nok").await;
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                }
                client
            }));
        }
        let mut open = Vec::new();
        for client in clients {
            open.push(client.await.expect("no panic"));
        }
        for (header, paths) in told.lock().expect("no panic").iter() {
            let port = u16::from_be_bytes([header[24], header[25]]);
            assert!(paths.iter().all(|path| *path == format!("/{port}")), "{port}: {paths:?}");
        }
        // One per worker, of which there are two.
        assert!(gateway.metric("tidegate_upstream_connections_active").await <= 2.0);
    }
}

/// Conduct "Keep-alive / pooling": an origin that wants a header and is sent none, or is sent one and wants none, is a
/// failure of that origin, and nothing is mixed up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_refuses_the_header() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        let head = read_head(&mut stream).await;
        let status = if head.starts_with("GET") { "200 OK" } else { "400 Bad Request" };
        let _ = stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await;
    })
    .await;
    for (cluster, status) in [("", 200), ("proxy_protocol = \"v1\"", 400)] {
        let gateway = Gateway::start(&config(origin.address, "", cluster)).await;
        assert_eq!(Client::http1(gateway.edge()).get("/").await.expect("an answer").status.as_u16(), status);
    }
}
