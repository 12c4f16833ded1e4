//! A component that says where a connection goes which nobody decrypts: clients and origins speak TLS with each other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tidegate_tests::certs::Authority;
use tidegate_tests::gateway::{root, run};
use tidegate_tests::origin::RawOrigin;
use tidegate_tests::{Gateway, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::proxy_protocol::version_2;

/// Origins that end TLS themselves, and say which they are.
struct Origins {
    authority: Authority,
    origins: Vec<(&'static str, RawOrigin)>,
}

const NAMES: [&str; 5] = ["a", "b", "private", "routed", "rest"];

impl Origins {
    async fn start() -> Self {
        let authority = Authority::new();
        let mut names: Vec<String> = ["a", "b", "c", "other"].iter().map(|name| format!("*.{name}.example")).collect();
        names.extend(["no", "trap", "routed", "other"].iter().map(|name| format!("{name}.example")));
        names.push("127.0.0.1".to_owned());
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let tls = Arc::new(authority.issue(&names).server(&[b"h2", b"http/1.1"], None));
        let mut origins = Vec::new();
        for name in NAMES {
            let acceptor = TlsAcceptor::from(tls.clone());
            let origin = RawOrigin::start(move |tcp, _| {
                let acceptor = acceptor.clone();
                async move {
                    let mut stream = acceptor.accept(tcp).await.expect("a handshake with the client");
                    stream.write_all(name.as_bytes()).await.expect("written");
                    // A client that is gone already has what it came for.
                    let _ = stream.shutdown().await;
                }
            });
            origins.push((name, origin.await));
        }
        Self { authority, origins }
    }

    fn connections(&self) -> usize {
        self.origins.iter().map(|(_, origin)| origin.connections()).sum()
    }

    /// `plugin` are further keys of the plugin, its settings among them; `clusters` come besides.
    fn config(&self, plugin: &str, clusters: &str) -> String {
        let cluster = |(name, origin): &(&str, RawOrigin)| {
            format!("[[cluster]]\nname = \"{name}\"\nendpoints = [\"{}\"]\n", origin.address)
        };
        let known: String = self.origins.iter().map(cluster).collect();
        format!(
            r#"
[[listener]]
name = "edge"
address = "127.0.0.1:0"
proxy_protocol = {{ accept = "optional", trusted = ["127.0.0.1"] }}
tunnel = {{ router = "names", cluster = "rest", routes = [{{ server_name = ["routed.example", "trap.example"], cluster = "routed" }}] }}
[[plugin]]
name = "names"
source = "{}"
{plugin}
{known}{clusters}"#,
            source().display()
        )
    }

    /// The name of the origin that a client comes to which asks for `name`; nothing where it comes nowhere.
    async fn reach(&self, gateway: &Gateway, client: &ClientHello<'_>) -> Option<String> {
        let work = async {
            let config = self.authority.client(client.alpn, None);
            let mut tcp = TcpStream::connect(gateway.edge()).await.ok()?;
            tcp.write_all(&client.header).await.ok()?;
            let name = ServerName::try_from(client.name.to_owned()).expect("a name");
            let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.ok()?;
            let mut said = String::new();
            stream.read_to_string(&mut said).await.expect("a clean end");
            Some(said)
        };
        tokio::time::timeout(Duration::from_secs(30), work).await.expect("it neither comes anywhere nor is closed")
    }

    async fn reach_by_name(&self, gateway: &Gateway, name: &str) -> Option<String> {
        self.reach(gateway, &ClientHello::of(name)).await
    }
}

/// What a client says first.
struct ClientHello<'a> {
    header: Vec<u8>,
    /// An address is in no ClientHello.
    name: &'a str,
    alpn: &'a [&'a [u8]],
}

impl<'a> ClientHello<'a> {
    fn of(name: &'a str) -> Self {
        Self { header: Vec::new(), name, alpn: &[] }
    }
}

fn source() -> std::path::PathBuf {
    root().join("tests/guests/built/by_sni.wasm")
}

/// From this client, with a field of type 0xEA.
fn header(client: [u8; 4], field: &[u8]) -> Vec<u8> {
    let addresses = [&client[..], &[203, 0, 113, 1, 0x9c, 0x40, 1, 0xbb]].concat();
    version_2(1, 0x11, &addresses, &[(0xEA, field)], Some(true))
}

async fn asked(gateway: &Gateway) -> f64 {
    gateway.metric("tidegate_plugin_decisions_total{plugin=\"names\",question=\"tunnel\"}").await
}

async fn faults(gateway: &Gateway, cause: &str) -> f64 {
    let labels = format!("plugin=\"names\",question=\"tunnel\",cause=\"{cause}\"");
    gateway.metric(&format!("tidegate_plugin_faults_total{{{labels}}}")).await
}

/// The access log, once it has so many lines.
async fn log(gateway: &Gateway, lines: usize) -> Vec<serde_json::Value> {
    eventually("the log is written", async || Some(gateway.access_log()).filter(|log| log.len() == lines)).await
}

const SETTINGS: &str = r#"settings = { tlv = [234, { vpce-1 = "private" }], clients = { "198.51.100.9" = "b" }, suffixes = { "a.example" = "a", "b.example" = "b" }, alpn = { h2 = "b" }, refuse = "no.example", trap = "trap.example" }"#;

/// By a field of the PROXY header, the client's address, the name and the protocol; what it passes is the listener's own, what
/// it refuses comes to no origin. The same with an instance for each question, and memoised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_answer_decides_where_a_connection_goes() {
    let origins = Origins::start().await;
    let one = |name| ClientHello::of(name);
    let cases = [
        (one("x.a.example"), Some("a"), "forward a"),
        (one("deep.b.example"), Some("b"), "forward b"),
        (one("routed.example"), Some("routed"), "pass"),
        (one("other.example"), Some("rest"), "pass"),
        (one("127.0.0.1"), Some("rest"), "pass"),
        (one("no.example"), None, "refuse"),
        (ClientHello { alpn: &[b"h2", b"http/1.1"], ..one("other.example") }, Some("b"), "forward b"),
        (ClientHello { alpn: &[b"http/1.1"], ..one("other.example") }, Some("rest"), "pass"),
        (ClientHello { header: header([198, 51, 100, 9], b"x"), ..one("x.a.example") }, Some("b"), "forward b"),
        (ClientHello { header: header([198, 51, 100, 7], b"x"), ..one("x.a.example") }, Some("a"), "forward a"),
        (
            ClientHello { header: header([198, 51, 100, 9], b"vpce-1"), ..one("no.example") },
            Some("private"),
            "forward private",
        ),
    ];
    for keys in ["", "isolation = \"request\"\n", "memoise = true\n"] {
        let gateway = Gateway::start(&origins.config(&format!("{keys}{SETTINGS}"), "")).await;
        let before = origins.connections();
        for (index, (client, place, answer)) in cases.iter().enumerate() {
            assert_eq!(origins.reach(&gateway, client).await.as_deref(), *place, "{} {keys}", client.name);
            let line = &log(&gateway, index + 1).await[index];
            let decision = &line["decisions"][0];
            assert_eq!((&decision["question"], &decision["by"]), (&"tunnel".into(), &"names".into()), "{line}");
            assert_eq!(decision["answer"], *answer, "{line}");
            assert_eq!(line["cluster"].as_str(), *place, "{line}");
            assert_eq!(line["cause"].as_str(), place.is_none().then_some("tunnel_denied"), "{line}");
            assert_eq!(line["server_name"].as_str(), Some(client.name).filter(|name| *name != "127.0.0.1"));
        }
        assert_eq!(origins.connections() - before, cases.len() - 1, "what is refused comes to no origin");
        assert_eq!(asked(&gateway).await, cases.len() as f64);
    }
}

/// Where it traps, the listener's routes decide, or the connection is closed where it is to deny; others notice nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trap_falls_back_or_denies() {
    let origins = Origins::start().await;
    for (keys, place, cause) in [("", Some("routed"), None), ("on_failure = \"deny\"\n", None, Some("policy_denied"))] {
        let gateway = Gateway::start(&origins.config(&format!("{keys}{SETTINGS}"), "")).await;
        assert_eq!(origins.reach_by_name(&gateway, "trap.example").await.as_deref(), place);
        let line = &log(&gateway, 1).await[0];
        assert_eq!(line["decisions"][0]["answer"], "failed: trap", "{line}");
        assert_eq!(line["cause"].as_str(), cause, "{line}");
        assert_eq!(origins.reach_by_name(&gateway, "x.a.example").await.as_deref(), Some("a"));
        assert_eq!(faults(&gateway, "trap").await, 1.0);
        // Whoever traps again and again is not asked for a while: then it is as if it had trapped for everybody.
        for _ in 0..4 {
            assert_eq!(origins.reach_by_name(&gateway, "trap.example").await.as_deref(), place);
        }
        assert_eq!(gateway.metric("tidegate_plugin_quarantined{plugin=\"names\"}").await, 1.0);
        let rest = place.map(|_| "rest");
        assert_eq!(origins.reach_by_name(&gateway, "x.a.example").await.as_deref(), rest);
        assert!(faults(&gateway, "quarantined").await >= 1.0);
    }
}

/// An answer that names no cluster, or one that speaks TLS itself, is counted and not used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_cannot_take_it_is_counted() {
    let origins = Origins::start().await;
    let tls = "[[cluster]]\nname = \"speaks\"\nendpoints = [\"127.0.0.1:9\"]\ntls = {}\n";
    let settings =
        r#"settings = { suffixes = { "a.example" = "nowhere", "b.example" = "speaks", "c.example" = "b" } }"#;
    for (keys, place) in [("", Some("rest")), ("on_failure = \"deny\"\n", None)] {
        let gateway = Gateway::start(&origins.config(&format!("{keys}{settings}"), tls)).await;
        for name in ["x.a.example", "x.b.example"] {
            assert_eq!(origins.reach_by_name(&gateway, name).await.as_deref(), place, "{name}");
        }
        assert_eq!(origins.reach_by_name(&gateway, "x.c.example").await.as_deref(), Some("b"));
        assert_eq!((faults(&gateway, "invalid").await, asked(&gateway).await), (2.0, 3.0));
        assert_eq!(gateway.metric("tidegate_plugin_quarantined{plugin=\"names\"}").await, 0.0);
    }
}

/// What it read decides whether its answer is known: the name and the protocol here, and no address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_remembered_by_what_was_read() {
    let origins = Origins::start().await;
    let settings = r#"memoise = true
settings = { suffixes = { "a.example" = "a", "b.example" = "b" }, refuse = "no.example" }"#;
    let gateway = Gateway::start(&format!("workers = 1\n{}", origins.config(settings, ""))).await;
    for round in 0..4 {
        let header = header([198, 51, 100, round], b"x");
        for (name, place) in [("x.a.example", Some("a")), ("x.b.example", Some("b")), ("no.example", None)] {
            let client = ClientHello { header: header.clone(), ..ClientHello::of(name) };
            assert_eq!(origins.reach(&gateway, &client).await.as_deref(), place);
        }
    }
    let memoised = "tidegate_plugin_memo_hits_total{plugin=\"names\",question=\"tunnel\"}";
    assert_eq!((gateway.metric(memoised).await, asked(&gateway).await), (9.0, 12.0));
}

/// A next version has its connections and steps back where it traps; a shadow is compared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_and_shadows_are_asked_as_for_a_request() {
    let origins = Origins::start().await;
    let to = |cluster: &str| format!("{{ suffixes = {{ \"a.example\" = \"{cluster}\" }}, trap = \"trap.example\" }}");
    let file = source();
    let other = |settings: &str| format!("{{ source = \"{}\", settings = {settings}", file.display());
    let plugin = format!(
        "settings = {}\nrollout = {}, share = \"100%\" }}\nshadow = {} }}",
        to("a"),
        other(&to("b")),
        other(&to("private"))
    );
    let gateway = Gateway::start(&origins.config(&plugin, "")).await;
    assert_eq!(origins.reach_by_name(&gateway, "x.a.example").await.as_deref(), Some("b"));
    assert_eq!(origins.reach_by_name(&gateway, "other.example").await.as_deref(), Some("rest"));
    let decisions = "tidegate_plugin_rollout_decisions_total{plugin=\"names\",version=\"next\"}";
    assert_eq!((gateway.metric(decisions).await, asked(&gateway).await), (2.0, 0.0));
    let shadow = |name: &str| format!("tidegate_plugin_shadow_{name}_total{{plugin=\"names\",question=\"tunnel\"}}");
    let seen = (gateway.metric(&shadow("compared")).await, gateway.metric(&shadow("differences")).await);
    assert_eq!(seen, (2.0, 1.0));
    let report: serde_json::Value = serde_json::from_str(&gateway.admin_get("/shadow").await.text()).expect("JSON");
    let group = &report["shadows"][0]["groups"][0];
    assert_eq!((&group["stood"], &group["shadow"]), (&"forward b".into(), &"forward private".into()), "{report}");
    let example = &group["examples"][0];
    assert_eq!((&example["method"], &example["host"]), (&"CONNECT".into(), &"x.a.example".into()), "{report}");
    log(&gateway, 2).await;
    // The current version is asked where the next traps, and traps too: the listener's routes decide.
    assert_eq!(origins.reach_by_name(&gateway, "trap.example").await.as_deref(), Some("routed"));
    let line = &log(&gateway, 3).await[2];
    let by: Vec<_> = line["decisions"].as_array().expect("decisions").iter().map(|one| &one["by"]).collect();
    assert_eq!(by, ["names@next", "names"], "{line}");
}

/// Another version's settings hold for the next connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_changes_where_the_next_goes() {
    let origins = Origins::start().await;
    let to =
        |cluster: &str| origins.config(&format!("settings = {{ suffixes = {{ \"a.example\" = \"{cluster}\" }} }}"), "");
    let gateway = Gateway::start(&to("a")).await;
    assert_eq!(origins.reach_by_name(&gateway, "x.a.example").await.as_deref(), Some("a"));
    let (taken, said) = gateway.reload(&to("b"));
    assert!(taken, "{said}");
    assert_eq!(origins.reach_by_name(&gateway, "x.a.example").await.as_deref(), Some("b"));
}

/// A plugin that does not answer the question is no router of tunnels, and one that does is no router of requests.
#[test]
fn the_question_is_the_plugins_own() {
    let check = |source: &std::path::Path, settings: &str, rest: &str| {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("gateway.toml");
        let address: SocketAddr = ([127, 0, 0, 1], 0).into();
        let config = format!(
            "[[plugin]]\nname = \"p\"\nsource = \"{}\"\nsettings = {settings}\n\
             [[cluster]]\nname = \"c\"\nendpoints = [\"127.0.0.1:9\"]\n\
             [[listener]]\nname = \"edge\"\naddress = \"{address}\"\n{rest}",
            source.display()
        );
        std::fs::write(&file, config).expect("written");
        let output = run(&["check", &file.to_string_lossy()]);
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let requests = root().join("tests/guests/built/reader.wasm");
    let tunnel = "tunnel = { router = \"p\", cluster = \"c\" }\n";
    let (code, said) = check(&requests, "{}", tunnel);
    assert!(code == Some(2) && said.contains("plugin \"p\" does not answer \"tunnel\""), "{code:?} {said}");
    let (code, said) = check(&source(), "{}", "[[route]]\nrouter = \"p\"\ncluster = \"c\"\n");
    assert!(code == Some(2) && said.contains("plugin \"p\" does not answer \"route\""), "{code:?} {said}");
    let (code, said) = check(&source(), "{}", tunnel);
    assert_eq!(code, Some(0), "{said}");
}
