//! The PROXY protocol: who may say who the client is, and that what goes upstream says it of the right one. Section
//! numbers are those of the protocol's specification.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate_tests::certs::Authority;
use tidegate_tests::origin::{full, read_head};
use tidegate_tests::{Client, Gateway, Origin, RawClient, RawOrigin, eventually};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

const REQUEST: &[u8] = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const LINE: &[u8] = b"PROXY TCP4 198.51.100.7 203.0.113.1 40000 443\r\n";

/// One listener with these keys, one cluster with those.
fn config(origin: std::net::SocketAddr, listener: &str, cluster: &str) -> String {
    crate::simple(&[origin], cluster).replacen("[[cluster]]", &format!("{listener}\n[[cluster]]"), 1)
}

fn accept(accept: &str) -> String {
    format!("proxy_protocol = {{ accept = \"{accept}\", trusted = [\"127.0.0.1\"], timeout = \"3s\" }}")
}

/// CRC-32C bit by bit, apart from the gateway's own.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// A version 2 header, its checksum right or wrong.
fn version_2(command: u8, family: u8, addresses: &[u8], fields: &[(u8, &[u8])], checksum: Option<bool>) -> Vec<u8> {
    let mut block = addresses.to_vec();
    let mut put = |kind: u8, value: &[u8]| {
        block.push(kind);
        block.extend_from_slice(&(value.len() as u16).to_be_bytes());
        block.extend_from_slice(value);
    };
    fields.iter().for_each(|(kind, value)| put(*kind, value));
    if checksum.is_some() {
        put(0x03, &[0; 4]);
    }
    let length = (block.len() as u16).to_be_bytes();
    let mut header = [b"\r\n\r\n\0\r\nQUIT\n", &[0x20 | command, family][..], &length, &block].concat();
    if let Some(right) = checksum {
        let at = header.len() - 4;
        let value = if right { crc32c(&header) } else { !crc32c(&header) };
        header[at..].copy_from_slice(&value.to_be_bytes());
    }
    header
}

const IPV4: &[u8] = &[198, 51, 100, 7, 203, 0, 113, 1, 0x9c, 0x40, 1, 0xbb];

/// Sends bytes, and gives everything that comes back.
async fn said(gateway: &Gateway, bytes: &[u8]) -> String {
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(bytes).await;
    client.rest().await
}

/// Sections 2.1 and 2.2, conduct "PROXY v1" and "PROXY v2 + TLV": the source is the client; LOCAL, UNKNOWN and families
/// without IP addresses leave the socket's. The request in the same segment is served as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_name_the_client() {
    let origin = Origin::http1().await;
    let gateway = Gateway::start(&config(origin.address, &accept("required"), "")).await;
    let mut ipv6 = [0; 36];
    (ipv6[0], ipv6[1], ipv6[15], ipv6[31]) = (0x20, 1, 7, 1);
    let mut mapped = [0; 36];
    mapped[10..16].copy_from_slice(&[0xff, 0xff, 198, 51, 100, 7]);
    let cases = [
        (LINE.to_vec(), "198.51.100.7"),
        (b"PROXY TCP6 2001:DB8::7 2001:db8::1 1 65535\r\n".to_vec(), "2001:db8::7"),
        (b"PROXY UNKNOWN 198.51.100.7 whatever\r\n".to_vec(), "127.0.0.1"),
        (version_2(1, 0x11, IPV4, &[], None), "198.51.100.7"),
        (version_2(1, 0x11, IPV4, &[(1, b"h2"), (4, b"pad"), (0xE9, b"x")], Some(true)), "198.51.100.7"),
        (version_2(1, 0x12, IPV4, &[], Some(true)), "198.51.100.7"),
        (version_2(1, 0x21, &ipv6, &[], Some(true)), "2001::7"),
        (version_2(1, 0x21, &mapped, &[], None), "198.51.100.7"),
        (version_2(0, 0x00, &[], &[], None), "127.0.0.1"),
        (version_2(0, 0x11, b"what LOCAL has is skipped", &[], None), "127.0.0.1"),
        (version_2(1, 0x00, &[], &[], Some(true)), "127.0.0.1"),
        (version_2(1, 0x31, &[b'/'; 216], &[], None), "127.0.0.1"),
    ];
    for (header, client) in &cases {
        let answer = said(&gateway, &[header, REQUEST].concat()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{client}: {answer:?}");
        assert_eq!(origin.last().header("x-forwarded-for"), Some(*client));
    }
    let log = eventually("the log is written", async || {
        let log = gateway.access_log();
        (log.len() == cases.len()).then_some(log)
    })
    .await;
    for (line, (_, client)) in log.iter().zip(&cases) {
        assert_eq!(line["client"], *client);
        assert!(line["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{line}");
    }
    // HTTP/2 by prior knowledge after a header.
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(&[LINE, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"].concat()).await;
    let mut frame = [0; 9];
    client.0.read_exact(&mut frame).await.expect("a frame");
    assert_eq!(frame[3], 4, "the server's SETTINGS");
}

/// Sections 2.1 and 2.2, conduct "mismatch → close": no answer, no request, a count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_headers_end_the_connection() {
    let origin = Origin::http1().await;
    let gateway = Gateway::start(&config(origin.address, &accept("required"), "")).await;
    let wrong_length = {
        let mut header = version_2(1, 0x11, IPV4, &[], None);
        header[14] = 0xff;
        header
    };
    let cases = [
        b"".to_vec(),
        b"PROXY TCP4 198.51.100.7 203.0.113.1 040000 443\r\n".to_vec(),
        b"PROXY  TCP4 198.51.100.7 203.0.113.1 40000 443\r\n".to_vec(),
        b"PROXY TCP4 198.51.100.7 203.0.113.1 40000 65536\r\n".to_vec(),
        b"PROXY TCP4 198.51.100.7 203.0.113.1 40000 443\n".to_vec(),
        [b"PROXY UNKNOWN ", &[b'x'; 100][..], b"\r\n"].concat(),
        b"\r\n".to_vec(),
        version_2(1, 0x11, IPV4, &[(1, b"h2")], Some(false)),
        version_2(2, 0x11, IPV4, &[], None),
        version_2(1, 0x13, IPV4, &[], None),
        version_2(1, 0x11, &IPV4[..11], &[], None),
        version_2(1, 0x11, &[IPV4, &[1, 0, 9, b'h']].concat(), &[], None),
        version_2(1, 0x11, IPV4, &[(0x20, &[1, 0, 0, 0, 0, 0x21, 0, 200, b'T'])], Some(true)),
        version_2(1, 0x11, IPV4, &[(0x05, &[0; 129])], Some(true)),
        wrong_length,
    ];
    for header in &cases {
        let answer = said(&gateway, &[header, REQUEST].concat()).await;
        assert_eq!(answer, "", "{:?}", String::from_utf8_lossy(header));
    }
    assert!(origin.record().is_empty());
    let refused = "tidegate_proxy_headers_refused_total{reason=\"invalid\"}";
    assert_eq!(gateway.metric(refused).await, cases.len() as f64);
    assert!(gateway.log().contains("the checksum does not match"));
}

/// Section 2, conduct "partial header → reject/timeouts": a header that does not come in time, or breaks off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_cut_off_headers() {
    let origin = Origin::http1().await;
    let listener = accept("required").replace("3s", "300ms");
    let gateway = Gateway::start(&config(origin.address, &listener, "")).await;
    let whole = version_2(1, 0x11, IPV4, &[], Some(true));
    for begin in [&b""[..], &LINE[..20], &whole[..5], &whole[..15], &whole[..whole.len() - 1]] {
        assert_eq!(said(&gateway, begin).await, "");
    }
    // A byte now and then does not buy more time.
    let mut client = RawClient::connect(gateway.edge()).await;
    let begun = std::time::Instant::now();
    for byte in LINE {
        if client.0.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    assert_eq!(client.rest().await, "");
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(gateway.metric("tidegate_proxy_headers_refused_total{reason=\"late\"}").await, 6.0);
    // In pieces, but in time.
    let mut client = RawClient::connect(gateway.edge()).await;
    for piece in [&whole[..7], &whole[7..20], &[&whole[20..], REQUEST].concat()] {
        client.send(piece).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(client.rest().await.starts_with("HTTP/1.1 200"));
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(&whole[..9]).await;
    client.0.shutdown().await.expect("closed");
    assert_eq!(client.rest().await, "");
    assert_eq!(gateway.metric("tidegate_proxy_headers_refused_total{reason=\"cut_off\"}").await, 1.0);
    assert_eq!(origin.record().len(), 1);
}

/// Section 2, conduct "trusting from any peer": only named peers are believed, and `trusted_proxies` starts where they
/// say the client is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_trusted_peers_are_believed() {
    let origin = Origin::http1().await;
    let with_header = [LINE, REQUEST].concat();
    let elsewhere = |word: &str| accept(word).replace("127.0.0.1", "192.0.2.0/24");
    // Required from others: nobody is served.
    let gateway = Gateway::start(&config(origin.address, &elsewhere("required"), "")).await;
    assert_eq!((said(&gateway, &with_header).await, said(&gateway, REQUEST).await), (String::new(), String::new()));
    assert_eq!(gateway.metric("tidegate_proxy_headers_refused_total{reason=\"untrusted\"}").await, 2.0);
    // Optional from others, or off: a header is bytes that are no request.
    for listener in [elsewhere("optional"), String::new()] {
        let gateway = Gateway::start(&config(origin.address, &listener, "")).await;
        assert!(said(&gateway, &with_header).await.starts_with("HTTP/1.1 400"));
        assert!(
            said(&gateway, &[&version_2(1, 0x11, IPV4, &[], None), REQUEST].concat()).await.starts_with("HTTP/1.1 400")
        );
        assert!(said(&gateway, REQUEST).await.starts_with("HTTP/1.1 200"));
    }
    // Optional from this one: with and without, whatever the first letters are.
    let trust = "trusted_proxies = [\"198.51.100.0/24\"]";
    let gateway = Gateway::start(&config(origin.address, &format!("{}\n{trust}", accept("optional")), "")).await;
    for method in ["GET", "PUT", "PROPFIND", "P", "PROXIES"] {
        let request =
            format!("{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: 192.0.2.9\r\n\r\n");
        let mut client = RawClient::connect(gateway.edge()).await;
        for piece in request.as_bytes().chunks(2) {
            client.send(piece).await;
        }
        assert!(client.rest().await.starts_with("HTTP/1.1 200"), "{method}");
        assert_eq!(origin.last().header("x-forwarded-for"), Some("127.0.0.1"));
        assert!(said(&gateway, &[LINE, request.as_bytes()].concat()).await.starts_with("HTTP/1.1 200"), "{method}");
        assert_eq!(origin.last().header("x-forwarded-for"), Some("192.0.2.9, 198.51.100.7"));
    }
    assert!(
        said(&gateway, b"\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.starts_with("HTTP/1.1 200")
    );
}

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

/// Section 2.2.8, conduct "TLV": plugins read the fields, those within the ssl field too, and a memo tells them apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_read_the_fields() {
    let origin = Origin::http1().await;
    let reader = tidegate_tests::gateway::root().join("tests/guests/built/reader.wasm");
    let plugin = format!("[[plugin]]\nname = \"reader\"\nsource = {reader:?}\nmemoise = true\n");
    let config = config(origin.address, &accept("required"), "")
        .replace("cluster = \"api\"\n", "cluster = \"api\"\nrouter = \"reader\"\n");
    let gateway = Gateway::start(&format!("{plugin}{config}")).await;
    for name in ["one", "two", "one"] {
        let ssl = [&[1, 0, 0, 0, 0, 0x22, 0, 3], name.as_bytes()].concat();
        let header = version_2(1, 0x11, IPV4, &[(0xEA, name.as_bytes()), (0x20, &ssl)], Some(true));
        for (kind, value) in [(0xEA, name), (0x22, name), (0x21, "none"), (0xEB, "none")] {
            let request = format!("GET /tlv/{kind} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            assert!(said(&gateway, &[&header, request.as_bytes()].concat()).await.starts_with("HTTP/1.1 200"));
            assert_eq!(origin.last().header("x-tlv"), Some(value), "{kind:#x}");
        }
    }
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
