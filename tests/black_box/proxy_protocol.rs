//! PROXY headers from clients: who may say who the client is, and what is no header. Section numbers are those of the
//! protocol's specification.

use std::time::Duration;

use tidegate_tests::{Gateway, Origin, RawClient, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) const REQUEST: &[u8] = b"GET /x HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
pub(crate) const LINE: &[u8] = b"PROXY TCP4 198.51.100.7 203.0.113.1 40000 443\r\n";

/// One listener with these keys, one cluster with those.
pub(crate) fn config(origin: std::net::SocketAddr, listener: &str, cluster: &str) -> String {
    crate::simple(&[origin], cluster).replacen("[[cluster]]", &format!("{listener}\n[[cluster]]"), 1)
}

pub(crate) fn accept(accept: &str) -> String {
    format!("proxy_protocol = {{ accept = \"{accept}\", trusted = [\"127.0.0.1\"], timeout = \"3s\" }}")
}

/// CRC-32C bit by bit, apart from the gateway's own.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// A version 2 header, its checksum right or wrong.
pub(crate) fn version_2(
    command: u8,
    family: u8,
    addresses: &[u8],
    fields: &[(u8, &[u8])],
    checksum: Option<bool>,
) -> Vec<u8> {
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

pub(crate) const IPV4: &[u8] = &[198, 51, 100, 7, 203, 0, 113, 1, 0x9c, 0x40, 1, 0xbb];

/// Sends bytes, and gives everything that comes back.
pub(crate) async fn said(gateway: &Gateway, bytes: &[u8]) -> String {
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
    gateway.says("the checksum does not match").await;
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
