//! The client's certificate told to upstreams (RFC 9440).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Version};
use tidegate_tests::certs::{Authority, Pair};
use tidegate_tests::{Client, Gateway, Origin};

/// RFC 9440, sections 2 and 3.1: over every version the certificate of the handshake and no other; what a client says of one
/// is gone, in any spelling, nominated or not, with a certificate or without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_handshakes_certificate_is_told() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let origin = Origin::http1().await;
    let folder = tempfile::tempdir().expect("a folder");
    authority.issue(&["edge.example"]).write(folder.path(), "edge");
    std::fs::write(folder.path().join("clients.pem"), clients.pem()).expect("written");
    let tls = "name = \"edge\"\ntls.certificates = [{ certificate = \"edge.pem\", key = \"edge.key\" }]\n\
               tls.client_ca = \"clients.pem\"\ntls.client_auth = \"optional\"";
    let routes = "[[route]]\npath = \"/leaf\"\ncluster = \"api\"\nforwarding = { client_certificate = \"leaf\" }\n\
                  [[route]]\npath = \"/chain\"\ncluster = \"api\"\nforwarding = { client_certificate = \"chain\" }\n";
    let config = crate::simple(&[origin.address], "").replacen("name = \"edge\"", tls, 1) + routes;
    let gateway = Gateway::start_in(folder, &config).await;
    let client = |version: Version, alpn: &[u8], identity: Option<&Pair>| {
        Client::tls(gateway.edge(), version, authority.client(&[alpn], identity), "edge.example")
    };
    let identity = clients.issue(&["client.example"]);
    let told = format!(":{}:", STANDARD.encode(&identity.chain()[0]));
    let forged = [
        ("client-cert", ":Zm9yZ2Vk:"),
        ("client_cert", ":Zm9yZ2Vk:"),
        ("client-cert-chain", ":Zm9yZ2Vk:"),
        ("x-forwarded-client-cert", "Hash=1"),
        ("x-ssl-client-verify", "SUCCESS"),
    ];
    for (version, alpn) in [(Version::HTTP_11, &b"http/1.1"[..]), (Version::HTTP_2, b"h2"), (Version::HTTP_3, b"h3")] {
        for (path, leaf) in [("/leaf", true), ("/chain", true), ("/off", false)] {
            let mut fields = forged.to_vec();
            if version == Version::HTTP_11 {
                fields.push(("connection", "client-cert, client-cert-chain"));
            }
            for with in [Some(&identity), None] {
                let answer = client(version, alpn, with).send(Method::GET, path, &fields, "").await;
                assert_eq!(answer.expect("an answer").status, 200);
                let seen = origin.last();
                let wanted = with.filter(|_| leaf).map(|_| told.as_str());
                assert_eq!(seen.header("client-cert"), wanted, "{version:?} {path}");
                assert_eq!(seen.headers.get_all("client-cert").iter().count(), usize::from(wanted.is_some()));
                // The identity came without its authority's certificate.
                assert_eq!(seen.header("client-cert-chain"), None);
                for (name, _) in &forged[1..] {
                    assert!(!seen.headers.contains_key(*name), "{version:?} {path} {name}");
                }
            }
        }
    }
    // With the rest of its chain.
    let mut config = authority.client(&[b"h2"], Some(&identity));
    let chain = [identity.chain(), clients.chain()].concat();
    config.client_auth_cert_resolver =
        rustls::ClientConfig::builder_with_provider(std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(authority.roots())
            .with_client_auth_cert(chain, identity.private_key())
            .expect("an identity")
            .client_auth_cert_resolver;
    let client = Client::tls(gateway.edge(), Version::HTTP_2, config, "edge.example");
    for (path, with_chain) in [("/chain", true), ("/leaf", false)] {
        assert_eq!(client.get(path).await.expect("an answer").status, 200);
        let rest = format!(":{}:", STANDARD.encode(&clients.chain()[0]));
        assert_eq!(origin.last().header("client-cert"), Some(told.as_str()));
        assert_eq!(origin.last().header("client-cert-chain"), Some(rest.as_str()).filter(|_| with_chain), "{path}");
    }
}
