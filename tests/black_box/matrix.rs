//! Every version of HTTP on the client's side, HTTP/1.1 and HTTP/2 on the origin's, decided by plugins.

use http::{Method, Version};
use tidegate_tests::certs::Authority;
use tidegate_tests::{Client, Gateway, Origin, eventually};

/// RFC 9110, section 3.7: two independent connections, the protocol may differ on each; a new message is built.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_versions_to_two_kinds_of_origins_decided_by_plugins() {
    let (one, two) = (Origin::http1().await, Origin::http2().await);
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    authority.issue(&["edge.example"]).write(folder.path(), "edge");
    let config = format!(
        r#"
[[listener]]
name = "edge"
address = "127.0.0.1:0"
tls.certificates = [{{ certificate = "edge.pem", key = "edge.key" }}]
[[cluster]]
name = "one"
endpoints = ["{}"]
balance = {{ plugin = "latency" }}
[[cluster]]
name = "two"
endpoints = ["{}"]
protocol = "http2"
balance = {{ plugin = "latency" }}
[[plugin]]
name = "tenants"
source = "builtin:tenant-canary"
settings = {{ tenant_from = [{{ header = "x-tenant" }}], tenants = [{{ name = "a", cluster = "one" }}, {{ name = "b", cluster = "two" }}] }}
[[plugin]]
name = "latency"
source = "builtin:latency-aware"
[[plugin]]
name = "private"
source = "builtin:private-forwarding"
settings = {{ secret = "0123456789abcdef" }}
[[route]]
router = "tenants"
forwarding = {{ plugin = "private" }}
"#,
        one.address, two.address
    );
    let gateway = Gateway::start_in(folder, &config).await;
    let mut asked = 0;
    for (version, alpn) in [(Version::HTTP_11, &b"http/1.1"[..]), (Version::HTTP_2, b"h2"), (Version::HTTP_3, b"h3")] {
        let client = Client::tls(gateway.edge(), version, authority.client(&[alpn], None), "edge.example");
        for (tenant, origin, upstream) in [("a", &one, Version::HTTP_11), ("b", &two, Version::HTTP_2)] {
            let fields = [("x-tenant", tenant), ("x-forwarded-for", "6.6.6.6"), ("x-mine", "kept")];
            let answer = client.send(Method::POST, "/v1/x?y=1", &fields, "a body").await.expect("an answer");
            assert_eq!((answer.status.as_u16(), answer.version, answer.text()), (200, version, "ok".to_owned()));
            assert!(answer.header("via").is_some_and(|via| via.ends_with("tidegate")), "{:?}", answer.headers);
            assert!(answer.header("date").is_some());
            let seen = origin.last();
            assert_eq!((seen.version, seen.path.as_str(), &seen.body[..]), (upstream, "/v1/x?y=1", &b"a body"[..]));
            assert_eq!((seen.authority.as_str(), seen.header("x-mine")), ("edge.example", Some("kept")));
            assert!(seen.header("forwarded").is_some_and(|f| f.starts_with("for=_")), "{:?}", seen.headers);
            assert!(!format!("{:?}", seen.headers).contains("6.6.6.6"), "what a client claims of itself is removed");
            asked += 1;
        }
    }
    assert_eq!(one.record().len() + two.record().len(), asked);
    let log = eventually("all are logged", async || Some(gateway.access_log()).filter(|log| log.len() >= asked)).await;
    assert_eq!(log.len(), asked);
    for line in log {
        let questions: Vec<&str> =
            line["decisions"].as_array().expect("decisions").iter().filter_map(|d| d["question"].as_str()).collect();
        assert_eq!(questions, ["route", "identify", "pick"], "{line}");
    }
}

/// RFC 9113, section 3.3 and RFC 9110, section 6.5: prior knowledge, and trailers through to HTTP/2 clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_by_prior_knowledge_shares_the_port_with_http1() {
    let origin = Origin::http1().await;
    let gateway = crate::gateway_to(origin.address).await;
    for client in [Client::http2(gateway.edge()), Client::http1(gateway.edge())] {
        assert_eq!(client.get("/").await.expect("an answer").text(), "ok");
    }
}

/// RFC 7838: clients on TCP learn of HTTP/3 at the port they came to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alt_svc_announces_http3() {
    let origin = Origin::http1().await;
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    authority.issue(&["edge.example"]).write(folder.path(), "edge");
    let tls = "name = \"edge\"\ntls.certificates = [{ certificate = \"edge.pem\", key = \"edge.key\" }]";
    let config = crate::simple(&[origin.address], "").replacen("name = \"edge\"", tls, 1);
    let gateway = Gateway::start_in(folder, &config).await;
    let port = gateway.edge().port();
    let client =
        |version, alpn: &[u8]| Client::tls(gateway.edge(), version, authority.client(&[alpn], None), "edge.example");
    let over_tcp = client(Version::HTTP_2, b"h2").get("/").await.expect("an answer");
    assert_eq!(over_tcp.header("alt-svc"), Some(format!("h3=\":{port}\"; ma=86400").as_str()));
    let over_quic = client(Version::HTTP_3, b"h3").get("/").await.expect("an answer");
    assert_eq!(over_quic.header("alt-svc"), None);
}

/// A listener speaks what it is told to, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn protocols_that_are_not_listed_are_not_spoken() {
    let origin = Origin::http1().await;
    let only = |protocol: &str| {
        crate::simple(&[origin.address], "").replacen(
            "name = \"edge\"",
            &format!("name = \"edge\"\nprotocols = [\"{protocol}\"]"),
            1,
        )
    };
    let gateway = Gateway::start(&only("http2")).await;
    assert_eq!(Client::http2(gateway.edge()).get("/").await.expect("an answer").status, 200);
    assert!(Client::http1(gateway.edge()).get("/").await.is_err());
    let gateway = Gateway::start(&only("http1")).await;
    assert_eq!(Client::http1(gateway.edge()).get("/").await.expect("an answer").status, 200);
    assert!(Client::http2(gateway.edge()).get("/").await.is_err());
}
