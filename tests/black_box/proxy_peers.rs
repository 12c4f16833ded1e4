//! The PROXY protocol with HAProxy and nginx on the other side: what they send is taken, what is sent they take.

use http::Response;
use tidegate_tests::origin::full;
use tidegate_tests::{Client, Gateway, Origin, Peer};

/// Answers with who the proxy in front says the client is.
async fn telling() -> Origin {
    Origin::answering(false, |request| Response::new(full(request.header("x-client").unwrap_or("nobody").to_owned())))
        .await
}

/// A listener that requires a header from loopback.
fn required(origin: &Origin, tls: &str) -> String {
    let accept = format!("proxy_protocol = {{ accept = \"required\", trusted = [\"127.0.0.1\"] }}\n{tls}");
    crate::simple(&[origin.address], "").replacen("[[cluster]]", &format!("{accept}[[cluster]]"), 1)
}

/// Conduct, "PROXY v1" and "PROXY v2 + TLV": HAProxy sends both versions, in front of clear text. Its own checks of the
/// server are LOCAL connections, and are no refused ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_in_front() {
    let origin = Origin::http1().await;
    let gateway = Gateway::start(&required(&origin, "")).await;
    for send in [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2 check inter 50ms",
        "send-proxy-v2 proxy-v2-options unique-id,crc32c",
    ] {
        let sections = |port| {
            let server = gateway.edge();
            let id = "unique-id-format %{+X}o%ci-%cp";
            format!(
                "frontend f\n  bind 127.0.0.1:{port}\n  {id}\n  default_backend b\nbackend b\n  server s {server} {send}\n"
            )
        };
        let Some(peer) = Peer::haproxy(sections).await else { return };
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.2:0".parse().expect("an address")).expect("all of 127/8 is loopback");
        let mut raw = tidegate_tests::RawClient(socket.connect(peer.address).await.expect("a connection"));
        raw.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(raw.rest().await.starts_with("HTTP/1.1 200"), "{send}");
        let seen = origin.last();
        assert!(seen.header("forwarded").is_some_and(|value| value.contains("for=127.0.0.2")), "{:?}", seen.headers);
    }
    assert_eq!(gateway.metric("tidegate_proxy_headers_refused_total{reason=\"invalid\"}").await, 0.0);
}

/// The same with nginx, which writes version 1, before TLS that it does not open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_in_front_of_tls() {
    let origin = Origin::http1().await;
    let authority = tidegate_tests::certs::Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    authority.issue(&["a.example"]).write(folder.path(), "a");
    let tls = "tls.certificates = [{ certificate = \"a.pem\", key = \"a.key\" }]\n";
    let gateway = Gateway::start_in(folder, &required(&origin, tls)).await;
    let blocks = |port| {
        format!(
            "stream {{ server {{ listen 127.0.0.1:{port}; proxy_pass {}; proxy_protocol on; }} }}\n",
            gateway.edge()
        )
    };
    let Some(peer) = Peer::nginx(blocks).await else { return };
    for (version, alpn) in [(http::Version::HTTP_11, &b"http/1.1"[..]), (http::Version::HTTP_2, b"h2")] {
        let client = Client::tls(peer.address, version, authority.client(&[alpn], None), "a.example");
        assert_eq!(client.get("/").await.expect("an answer").status, 200);
    }
    assert_eq!(origin.record().len(), 2);
}

/// Conduct, "emit with CRC and be accepted by another implementation": HAProxy takes both versions, and names the client
/// that was advertised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_behind() {
    let origin = telling().await;
    let sections = |port| {
        let target = origin.address;
        format!(
            "frontend f\n  bind 127.0.0.1:{port} accept-proxy\n  http-request set-header x-client %[src]:%[src_port]\n  default_backend b\n\
             backend b\n  server s {target}\n"
        )
    };
    let Some(peer) = Peer::haproxy(sections).await else { return };
    behind(&peer).await;
}

/// And so does nginx.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_behind() {
    let origin = telling().await;
    let blocks = |port| {
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path temp;\n"))
            .concat();
        format!(
            "http {{\naccess_log off;\n{temporary}server {{ listen 127.0.0.1:{port} proxy_protocol;\n\
             location / {{ proxy_pass http://{}; proxy_set_header x-client $proxy_protocol_addr:$proxy_protocol_port; }} }} }}\n",
            origin.address
        )
    };
    let Some(peer) = Peer::nginx(blocks).await else { return };
    behind(&peer).await;
}

/// Two clients, one after the other on kept connections, in every version.
async fn behind(peer: &Peer) {
    for more in [
        "proxy_protocol = \"v1\"",
        "proxy_protocol = \"v2\"",
        "proxy_protocol = \"v2\"\nproxy_tlvs = [\"alpn\", \"authority\", \"ssl\", \"unique_id\", \"crc32c\"]",
        "proxy_protocol = \"v2\"\nproxy_tlvs = []",
    ] {
        let authority = tidegate_tests::certs::Authority::new();
        let folder = tempfile::tempdir().expect("a folder");
        authority.issue(&["a.example"]).write(folder.path(), "a");
        let secure = "[[listener]]\nname = \"secure\"\naddress = \"127.0.0.1:0\"\ntls.certificates = [{ certificate = \"a.pem\", key = \"a.key\" }]\n";
        let gateway = Gateway::start_in(folder, &format!("{secure}{}", crate::simple(&[peer.address], more))).await;
        let mut clients = Vec::new();
        for _ in 0..2 {
            let tcp = tokio::net::TcpStream::connect(gateway.edge()).await.expect("a connection");
            let name = tcp.local_addr().expect("an address").to_string();
            clients.push((name, tidegate_tests::RawClient(tcp)));
        }
        for _ in 0..3 {
            for (name, client) in &mut clients {
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
                let answer = client.until(name).await;
                assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&*name), "{more}: {answer}");
            }
        }
        let config = authority.client(&[b"h2"], None);
        let answer = Client::tls(gateway.address("secure"), http::Version::HTTP_2, config, "a.example").get("/").await;
        assert!(answer.expect("an answer").text().starts_with("127.0.0.1:"), "{more}");
    }
}
