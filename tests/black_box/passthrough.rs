//! TLS that is passed through: by the names in its ClientHello, and without any key.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Response, Version};
use tidegate_tests::certs::Authority;
use tidegate_tests::origin::full;
use tidegate_tests::{Client, Gateway, Origin, Peer, RawClient, RawOrigin, Tap, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Clusters of one endpoint each, by name.
fn clusters(clusters: &[(&str, SocketAddr)], more: &str) -> String {
    clusters
        .iter()
        .map(|(name, address)| format!("[[cluster]]\nname = \"{name}\"\nendpoints = [\"{address}\"]\n{more}\n"))
        .collect()
}

fn listener(tunnel: &str) -> String {
    format!("[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\n[listener.tunnel]\n{tunnel}\n")
}

/// An origin that has the key, and answers with its name.
async fn secure(authority: &Authority, name: &'static str, http2: bool) -> Origin {
    let alpn: &[&[u8]] = if http2 { &[b"h2"] } else { &[b"http/1.1"] };
    let server = authority.issue(&[name]).server(alpn, None);
    Origin::tls(http2, server).await
}

async fn get(authority: &Authority, address: SocketAddr, name: &str, http2: bool) -> Option<u16> {
    let (version, alpn) = if http2 { (Version::HTTP_2, &b"h2"[..]) } else { (Version::HTTP_11, &b"http/1.1"[..]) };
    let answer = Client::tls(address, version, authority.client(&[alpn], None), name).get("/").await;
    answer.ok().map(|answer| answer.status.as_u16())
}

/// How a connection ends on which these bytes were sent.
async fn fate(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>, ErrorKind> {
    let mut client = RawClient::connect(address).await.0;
    client.write_all(bytes).await.expect("sent");
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), client.read_to_end(&mut rest)).await.expect("in time");
    read.map(|_| rest).map_err(|error| error.kind())
}

/// An origin that has the key, and sends back what it got once that has ended.
async fn echo(authority: &Authority, names: &[&str]) -> RawOrigin {
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(authority.issue(names).server(&[b"h2", b"echo"], None)));
    RawOrigin::start(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
            let _ = stream.write_all(&all).await;
            let _ = stream.shutdown().await;
        }
    })
    .await
}

/// A whole exchange, to an orderly end: only then have both sides seen all there was.
async fn exchange(address: SocketAddr, config: rustls::ClientConfig, name: &str) {
    let tcp = RawClient::connect(address).await.0;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = name.to_owned().try_into().expect("a name");
    let mut stream = connector.connect(name, tcp).await.expect("a handshake");
    let payload: Vec<u8> = (0..300_000_u32).map(|at| at as u8).collect();
    stream.write_all(&payload).await.expect("sent");
    stream.shutdown().await.expect("closed");
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.expect("a clean end");
    assert!(back == payload, "{} bytes came back", back.len());
}

/// Conduct "Passthrough + SNI": every byte of both directions is the same on both sides; TLS 1.2 and 1.3, names in
/// another case, a hello that is longer than a segment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_see_the_same_bytes() {
    let authority = Authority::new();
    let (a, b) = (echo(&authority, &["a.example"]).await, echo(&authority, &["x.b.example"]).await);
    let behind = [Tap::before(a.address).await, Tap::before(b.address).await];
    let config = listener(
        "routes = [{ server_name = \"a.example\", cluster = \"a\" }, { server_name = \"*.b.example\", cluster = \"b\" }]",
    ) + &clusters(&[("a", behind[0].address), ("b", behind[1].address)], "");
    let gateway = Gateway::start(&config).await;
    let before = Tap::before(gateway.edge()).await;
    exchange(before.address, authority.client(&[b"h2", b"echo"], None), "a.example").await;
    exchange(before.address, authority.client(&[b"echo"], None), "x.b.example").await;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls12 = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("a version")
        .with_root_certificates(authority.roots())
        .with_no_client_auth();
    exchange(before.address, tls12, "A.example").await;
    assert_eq!((a.connections(), b.connections()), (2, 1));
    let wires = eventually("both sides see all of it", async || {
        let (front, [a, b]) = (before.seen(), behind.each_ref().map(Tap::seen));
        let back = [&a[0], &b[0], &a[1]];
        front.iter().zip(back).all(|(front, back)| front.up == back.up && front.down == back.down).then_some(front)
    })
    .await;
    assert!(wires.iter().all(|wire| wire.up.len() > 300_000 && wire.down.len() > 300_000));
    let lines = eventually("three lines", async || {
        let lines = gateway.access_log();
        (lines.len() == 3).then_some(lines)
    })
    .await;
    let names: Vec<_> = lines.iter().map(|line| (line["server_name"].as_str(), line["alpn"].as_str())).collect();
    for named in [(Some("a.example"), Some("h2")), (Some("x.b.example"), Some("echo")), (Some("a.example"), None)] {
        assert!(names.contains(&named), "{names:?}");
    }
}

/// A ClientHello of one byte in each segment, and in records of a few bytes each (RFC 8446, section 5.1).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_in_pieces() {
    let heard = RawOrigin::start(|mut stream, _| async move {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        let _ = stream.write_all(&all).await;
    })
    .await;
    let config = listener("routes = [{ server_name = \"a.example\", alpn = \"h2\", cluster = \"a\" }]")
        + &clusters(&[("a", heard.address)], "");
    let gateway = Gateway::start(&config).await;
    let hello = hello(&Authority::new(), "a.example", &[b"h2"]);
    let records: Vec<u8> =
        hello[5..].chunks(7).flat_map(|part| [&[22, 3, 1, 0, part.len() as u8][..], part].concat()).collect();
    for (bytes, size) in [(&hello, 100), (&records, 41), (&records, records.len())] {
        let mut client = RawClient::connect(gateway.edge()).await.0;
        client.set_nodelay(true).expect("a socket option");
        for piece in bytes.chunks(size) {
            client.write_all(piece).await.expect("sent");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        client.write_all(b"and more").await.expect("sent");
        client.shutdown().await.expect("closed");
        let mut back = Vec::new();
        client.read_to_end(&mut back).await.expect("a clean end");
        assert!(back == [bytes, &b"and more"[..]].concat(), "changed on its way");
    }
}

/// The first bytes of a client.
fn hello(authority: &Authority, name: &str, alpn: &[&[u8]]) -> Vec<u8> {
    let config = Arc::new(authority.client(alpn, None));
    let name = name.to_owned().try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(config, name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("written");
    bytes
}

/// Conduct "Passthrough + SNI": no name, an unknown one, no TLS at all, a hello that never ends: the default or a close,
/// each counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_route_names() {
    let authority = Authority::new();
    let a = secure(&authority, "a.example", false).await;
    let rest = RawOrigin::start(|mut stream, _| async move {
        let mut first = [0; 4096];
        let _ = stream.read(&mut first).await;
        let _ = stream.write_all(&[b"the rest: ", &first[..1]].concat()).await;
        let _ = stream.shutdown().await;
        // A close with something unread would be a reset.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let routes = "routes = [{ server_name = \"a.example\", cluster = \"a\" }]\nhello_timeout = \"300ms\"\n";
    let both = clusters(&[("a", a.address), ("rest", rest.address)], "");
    let gateway = Gateway::start(&(listener(routes) + &both)).await;
    let other = hello(&authority, "other.example", &[]);
    let nameless = hello(&authority, "192.0.2.1", &[]);
    for bytes in [&other[..], &nameless, b"GET / HTTP/1.1\r\n\r\n", b"\x80\x2e\x01\x03\x01", b"\x16\x03\x01\0\0"] {
        assert_eq!(fate(gateway.edge(), bytes).await, Err(ErrorKind::ConnectionReset), "{bytes:?}");
    }
    let begun = Instant::now();
    // Closed, since there is nobody to say it to.
    for bytes in [&b""[..], &other[..40]] {
        assert_eq!(fate(gateway.edge(), bytes).await.unwrap_or_default(), b"");
    }
    assert!(begun.elapsed() >= Duration::from_millis(500), "they had their time");
    let mut cut_off = RawClient::connect(gateway.edge()).await.0;
    cut_off.write_all(&other[..40]).await.expect("sent");
    cut_off.shutdown().await.expect("closed");
    for (reason, count) in [("late", 2.0), ("none", 3.0), ("cut_off", 1.0)] {
        let sample = format!("tidegate_client_hellos_unheard_total{{reason=\"{reason}\"}}");
        eventually(reason, async || (gateway.metric(&sample).await == count).then_some(())).await;
    }
    let log = eventually("five lines", async || Some(gateway.access_log()).filter(|log| log.len() == 5)).await;
    assert!(log.iter().all(|line| line["cause"] == "no_route"), "{log:?}");

    assert!(gateway.reload(&(listener(&format!("{routes}cluster = \"rest\"")) + &both)).0);
    for bytes in [&other[..], &nameless, b"GET / HTTP/1.1\r\n\r\n", b"\x80\x2e\x01\x03\x01"] {
        assert_eq!(fate(gateway.edge(), bytes).await.expect("an answer"), [b"the rest: ", &bytes[..1]].concat());
    }
    assert_eq!(get(&authority, gateway.edge(), "a.example", false).await, Some(200));
}

/// Names that are passed through and names that end here share a port; client certificates are asked for as they are
/// without a tunnel, and clear text ends as it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_for_names_that_end_here_and_names_that_do_not() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let through = secure(&authority, "through.example", true).await;
    let here = Origin::answering(false, |_| Response::new(full("ended here"))).await;
    let folder = tempfile::tempdir().expect("a folder");
    for (file, name) in [("here", "here.example"), ("mutual", "mutual.example")] {
        authority.issue(&[name]).write(folder.path(), file);
    }
    std::fs::write(folder.path().join("clients.pem"), clients.pem()).expect("written");
    let config = "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\n\
         tunnel = { routes = [{ server_name = \"through.example\", cluster = \"through\" }] }\n\
         tls.certificates = [{ certificate = \"here.pem\", key = \"here.key\" },\n\
         { certificate = \"mutual.pem\", key = \"mutual.key\", client_ca = \"clients.pem\" }]\n\
         [[route]]\nname = \"all\"\ncluster = \"here\"\n"
        .to_owned()
        + &clusters(&[("through", through.address), ("here", here.address)], "");
    let gateway = Gateway::start_in(folder, &config).await;
    for http2 in [true, false] {
        assert_eq!(get(&authority, gateway.edge(), "here.example", http2).await, Some(200));
    }
    assert_eq!(get(&authority, gateway.edge(), "through.example", true).await, Some(200));
    assert_eq!((through.connections(), here.record().len()), (1, 2));
    // HTTP/3 ends here, whatever its name.
    let config = authority.client(&[b"h3"], None);
    let over_quic = Client::tls(gateway.edge(), Version::HTTP_3, config, "here.example").get("/").await;
    assert_eq!(over_quic.expect("an answer").text(), "ended here");
    assert_eq!(get(&authority, gateway.edge(), "mutual.example", true).await, None, "it asks for a certificate");
    let identity = clients.issue(&["client"]);
    let config = authority.client(&[b"h2"], Some(&identity));
    let known = Client::tls(gateway.edge(), Version::HTTP_2, config, "mutual.example").get("/").await;
    assert_eq!(known.expect("an answer").status, 200);
    let alert = fate(gateway.edge(), b"GET / HTTP/1.1\r\n\r\n").await;
    assert!(alert.is_err() || alert.is_ok_and(|alert| alert.first() == Some(&21)), "an alert, or a reset");
    eventually("it is counted", async || {
        (gateway.metric("tidegate_handshakes_failed_total").await >= 2.0).then_some(())
    })
    .await;
    assert_eq!(gateway.metric("tidegate_tunnels_total{kind=\"tcp\"}").await, 1.0);
}

/// Configuration that could not do what it says is refused, with why.
#[test]
fn what_a_tunnel_cannot_do_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gateway.toml");
    std::fs::write(
        &file,
        listener("cluster = \"secure\"\nroutes = [{ server_name = \"a.example\", cluster = \"nowhere\" }]")
            + &clusters(&[("secure", "127.0.0.1:1".parse().expect("an address"))], "tls = {}"),
    )
    .expect("written");
    let output = tidegate_tests::gateway::run(&["check", &file.display().to_string()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    for why in ["names cluster \"nowhere\", which is not defined", "has tls: a tunnel passes on the client's own"] {
        assert!(said.contains(why), "{said}");
    }
}

/// The PROXY header, version 2, with the name and the protocol of the ClientHello, and the TLS after it, at HAProxy and
/// nginx, which end it; both name the client that was advertised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_and_nginx_behind() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    let pair = authority.issue(&["a.example"]);
    pair.write(folder.path(), "a");
    let both = folder.path().join("both.pem");
    std::fs::write(&both, format!("{}{}", pair.certificate, pair.key)).expect("written");
    let sections = |port| {
        format!(
            "frontend f\n  bind 127.0.0.1:{port} accept-proxy ssl crt {} alpn h2,http/1.1\n  \
             http-request return status 200 content-type text/plain lf-string \"%[src]:%[src_port] %[fc_pp_authority] %[ssl_fc_sni]\"\n",
            both.display()
        )
    };
    let blocks = |port| {
        let path = |file: &str| folder.path().join(file).display().to_string();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path temp;\n"))
            .concat();
        format!(
            "http {{\naccess_log off;\n{temporary}server {{ listen 127.0.0.1:{port} ssl http2 proxy_protocol;\n\
             ssl_certificate {}; ssl_certificate_key {};\n\
             location / {{ return 200 \"$proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_tlv_authority $ssl_server_name\"; }} }} }}\n",
            path("a.pem"),
            path("a.key"),
        )
    };
    let blocks = |port| blocks(port).replace(" $proxy_protocol_tlv_authority", " a.example");
    let (Some(haproxy), Some(nginx)) = (Peer::haproxy(sections).await, Peer::nginx(blocks).await) else { return };
    for peer in [&haproxy, &nginx] {
        let config = listener("routes = [{ server_name = \"a.example\", cluster = \"a\" }]")
            + &clusters(&[("a", peer.address)], "proxy_protocol = \"v2\"");
        let gateway = Gateway::start(&config).await;
        for (version, alpn) in [(Version::HTTP_11, &b"http/1.1"[..]), (Version::HTTP_2, b"h2")] {
            let client = Client::tls(gateway.edge(), version, authority.client(&[alpn], None), "a.example");
            let answer = client.get("/").await.expect("an answer");
            let said = answer.text();
            assert!(said.starts_with("127.0.0.1:") && said.ends_with(" a.example a.example"), "{said}");
            let advertised = said.split(' ').next().expect("an address");
            eventually("its line", async || gateway.access_log().into_iter().find(|line| line["client"] == advertised))
                .await;
        }
    }
}

/// HAProxy, with version 2, and nginx, with version 1, in front: the client they name is the one that goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_and_nginx_in_front() {
    let authority = Authority::new();
    let origin = echo(&authority, &["a.example"]).await;
    let tap = Tap::before(origin.address).await;
    let accept = "proxy_protocol = { accept = \"required\", trusted = [\"127.0.0.1\"] }\n[listener.tunnel]";
    let config = listener("routes = [{ server_name = \"a.example\", cluster = \"a\" }]").replacen(
        "[listener.tunnel]",
        accept,
        1,
    ) + &clusters(&[("a", tap.address)], "");
    let gateway = Gateway::start(&config).await;
    let server = gateway.edge();
    let sections = |port| {
        format!(
            "listen f\n  mode tcp\n  bind 127.0.0.1:{port}\n  server s {server} send-proxy-v2 proxy-v2-options crc32c\n"
        )
    };
    let blocks = |port| {
        format!(
            "stream {{ server {{ listen 127.0.0.1:{port}; proxy_pass {server}; proxy_protocol on; proxy_half_close on; }} }}\n"
        )
    };
    let (Some(haproxy), Some(nginx)) = (Peer::haproxy(sections).await, Peer::nginx(blocks).await) else { return };
    for (index, peer) in [&haproxy, &nginx].into_iter().enumerate() {
        let before = Tap::before(peer.address).await;
        exchange(before.address, authority.client(&[b"echo"], None), "a.example").await;
        eventually("both sides see the same", async || {
            let (front, back) = (before.seen(), tap.seen());
            let (front, back) = (front.first()?, back.get(index)?);
            (front.up == back.up && front.down == back.down).then_some(())
        })
        .await;
    }
    let lines = eventually("two lines", async || {
        let lines = gateway.access_log();
        (lines.len() == 2).then_some(lines)
    })
    .await;
    assert!(lines.iter().all(|line| line["client"] != line["peer"]), "{lines:?}");
}
