//! TLS as newer clients begin it: post-quantum key exchange, and ECH that we cannot decrypt.

use std::sync::Arc;

use http::Version;
use rustls::client::{EchGreaseConfig, EchMode};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use tidegate_tests::certs::{Authority, Pair};
use tidegate_tests::{Client, Gateway, Origin};

async fn gateway(origin: &Origin, names: &[Pair]) -> Gateway {
    let folder = tempfile::tempdir().expect("a folder");
    let mut pairs = Vec::new();
    for (number, pair) in names.iter().enumerate() {
        pair.write(folder.path(), &number.to_string());
        pairs.push(format!("{{ certificate = \"{number}.pem\", key = \"{number}.key\" }}"));
    }
    let tls = format!("name = \"edge\"\ntls.certificates = [{}]", pairs.join(", "));
    Gateway::start_in(folder, &crate::simple(&[origin.address], "").replacen("name = \"edge\"", &tls, 1)).await
}

/// Conduct "TLS termination": a client may offer X25519MLKEM768 alone (draft-ietf-tls-ecdhe-mlkem), over TCP and QUIC.
/// Its ClientHello does not fit into a packet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn post_quantum_key_exchange_is_taken() {
    let authority = Authority::new();
    let origin = Origin::http1().await;
    let gateway = gateway(&origin, &[authority.issue(&["edge.example"])]).await;
    let only = |version: Version, alpn: &[u8]| {
        let groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
        let provider = CryptoProvider { kx_groups: groups, ..aws_lc_rs::default_provider() };
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("versions")
            .with_root_certificates(authority.roots())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        Client::tls(gateway.edge(), version, config, "edge.example")
    };
    for (version, alpn) in [(Version::HTTP_11, &b"http/1.1"[..]), (Version::HTTP_2, b"h2"), (Version::HTTP_3, b"h3")] {
        assert_eq!(only(version, alpn).get("/").await.expect("an answer").status, 200, "{version:?}");
    }
}

/// Conduct "ECH" (RFC 9849, sections 6.2 and 7.1): a client that greases the extension is served by its outer name, as is one
/// that does not have it; nothing inside is known here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_greases_ech_is_served_by_the_outer_name() {
    let authority = Authority::new();
    let origin = Origin::http1().await;
    let gateway = gateway(&origin, &[authority.issue(&["one.example"]), authority.issue(&["two.example"])]).await;
    let suite = aws_lc_rs::hpke::ALL_SUPPORTED_SUITES[0];
    for name in ["one.example", "two.example"] {
        let (key, _) = suite.generate_key_pair().expect("a key");
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_ech(EchMode::Grease(EchGreaseConfig::new(suite, key)))
            .expect("TLS 1.3")
            .with_root_certificates(authority.roots())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let client = Client::tls(gateway.edge(), Version::HTTP_2, config.clone(), name);
        // The certificate is verified against the name: the wrong one would be an error.
        assert_eq!(client.get("/").await.expect("an answer").status, 200, "{name}");
        config.alpn_protocols = vec![b"h3".to_vec()];
        let client = Client::tls(gateway.edge(), Version::HTTP_3, config, name);
        assert_eq!(client.get("/").await.expect("an answer").status, 200, "{name}");
    }
}
