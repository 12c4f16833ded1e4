//! TLS on both sides.

use std::sync::Arc;

use http::Version;
use rustls::HandshakeKind;
use rustls::client::ClientSessionStore;
use rustls::pki_types::ServerName;
use tidegate_tests::certs::Authority;
use tidegate_tests::{Client, Gateway, Origin, RawClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// RFC 6066, section 3 and RFC 7301: certificates by SNI, protocols by ALPN, client certificates where they are asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_by_sni_and_clients_by_certificate() {
    let origin = Origin::http1().await;
    let (authority, clients) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().expect("a folder");
    authority.issue(&["a.example"]).write(folder.path(), "a");
    authority.issue(&["*.b.example"]).write(folder.path(), "b");
    std::fs::write(folder.path().join("clients.pem"), clients.pem()).expect("written");
    let pairs = "tls.certificates = [{ certificate = \"a.pem\", key = \"a.key\" }, { certificate = \"b.pem\", key = \"b.key\" }]";
    let mutual = format!(
        "[[listener]]\nname = \"mutual\"\naddress = \"127.0.0.1:0\"\n{pairs}\ntls.client_ca = \"clients.pem\"\n"
    );
    let config =
        crate::simple(&[origin.address], "").replacen("name = \"edge\"", &format!("name = \"edge\"\n{pairs}"), 1);
    let gateway = Gateway::start_in(folder, &format!("{mutual}{config}")).await;
    let ask = async |listener: &str, name: &str, alpn: &[u8], version, identity| {
        let config = authority.client(&[alpn], identity);
        Client::tls(gateway.address(listener), version, config, name)
            .get("/")
            .await
            .map(|answer| answer.status.as_u16())
    };
    for name in ["a.example", "x.b.example"] {
        assert_eq!(ask("edge", name, b"h2", Version::HTTP_2, None).await.expect(name), 200);
        assert_eq!(ask("edge", name, b"http/1.1", Version::HTTP_11, None).await.expect(name), 200);
        assert_eq!(ask("edge", name, b"h3", Version::HTTP_3, None).await.expect(name), 200);
    }
    assert!(ask("edge", "c.example", b"h2", Version::HTTP_2, None).await.is_err(), "no certificate has this name");
    assert!(ask("edge", "a.example", b"spdy/3", Version::HTTP_11, None).await.is_err(), "no_application_protocol");
    let (identity, stranger) = (clients.issue(&["client"]), authority.issue(&["client"]));
    for (version, alpn) in [(Version::HTTP_2, &b"h2"[..]), (Version::HTTP_3, b"h3")] {
        assert_eq!(ask("mutual", "a.example", alpn, version, Some(&identity)).await.expect("let in"), 200);
        assert!(ask("mutual", "a.example", alpn, version, None).await.is_err());
        assert!(ask("mutual", "a.example", alpn, version, Some(&stranger)).await.is_err());
    }
    // Clear text on the port ends, and takes nothing along.
    let mut plain = RawClient::connect(gateway.edge()).await;
    plain.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    plain.rest().await;
    assert!(gateway.metric("tidegate_handshakes_failed_total").await >= 4.0);
}

/// RFC 9110, section 4.3.4: origins are verified by default, by the configured name and roots.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origins_are_verified() {
    let authority = Authority::new();
    let pair = authority.issue(&["origin.example"]);
    let one = Origin::tls(false, pair.server(&[b"http/1.1"], None)).await;
    let two = Origin::tls(true, pair.server(&[b"h2"], None)).await;
    let mutual = Origin::tls(false, pair.server(&[b"http/1.1"], Some(&authority))).await;
    let start = async |address, tls: &str| {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).expect("written");
        authority.issue(&["gateway"]).write(folder.path(), "client");
        let gateway = Gateway::start_in(folder, &crate::simple(&[address], &format!("tls = {{ {tls} }}"))).await;
        let answer = Client::http1(gateway.edge()).get("/").await.expect("an answer");
        (answer.status.as_u16(), answer.header("proxy-status").unwrap_or_default().replace("tidegate; error=", ""))
    };
    let good = "server_name = \"origin.example\", ca = \"ca.pem\"";
    assert_eq!(start(one.address, good).await.0, 200);
    assert_eq!(start(two.address, good).await.0, 200);
    assert_eq!(two.last().version, Version::HTTP_2, "by ALPN");
    let refused = (502, "tls_certificate_error".to_owned());
    assert_eq!(start(one.address, "server_name = \"other.example\", ca = \"ca.pem\"").await, refused);
    assert_eq!(start(one.address, "ca = \"ca.pem\"").await, refused, "the certificate does not name the address");
    assert_eq!(start(one.address, "verify = false").await.0, 200);
    assert_eq!(start(mutual.address, good).await.0, 502);
    let identity = format!("{good}, certificate = \"client.pem\", key = \"client.key\"");
    assert_eq!(start(mutual.address, &identity).await.0, 200);
}

/// Conduct "TLS termination": SNI and authority must agree, or the certificate stand for both (RFC 9110, section 15.5.20;
/// RFC 9113, section 9.1.1): 421 else, on every version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_cannot_be_reached_by_another_names_handshake() {
    let origin = Origin::http1().await;
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    authority.issue(&["a.example", "both.example"]).write(folder.path(), "a");
    authority.issue(&["b.example"]).write(folder.path(), "b");
    let pairs = "tls.certificates = [{ certificate = \"a.pem\", key = \"a.key\" }, { certificate = \"b.pem\", key = \"b.key\" }]";
    let config =
        crate::simple(&[origin.address], "").replacen("name = \"edge\"", &format!("name = \"edge\"\n{pairs}"), 1);
    let gateway = Gateway::start_in(folder, &config).await;
    for (version, alpn) in [(Version::HTTP_11, &b"http/1.1"[..]), (Version::HTTP_2, b"h2"), (Version::HTTP_3, b"h3")] {
        for (host, status) in [
            ("a.example", 200),
            ("A.example:8443", 200),
            ("both.example", 200),
            ("b.example", 421),
            ("elsewhere.example", 421),
        ] {
            let client = Client::tls(gateway.edge(), version, authority.client(&[alpn], None), "a.example");
            let answer = client.authority(host).get("/").await.expect("an answer");
            assert_eq!(answer.status, status, "{version:?} {host}");
        }
    }
    assert!(origin.record().iter().all(|seen| !seen.authority.starts_with("b.")));
}

/// Conduct "TLS termination": a session is resumed on every worker, and after a reload that changes nothing of TLS (RFC
/// 8446, section 4.6.1); a changed certificate is served from the reload on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_outlive_workers_and_reloads_and_certificates_change() {
    let origin = Origin::http1().await;
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    let first = authority.issue(&["a.example"]);
    first.write(folder.path(), "a");
    let tls = "name = \"edge\"\ntls.certificates = [{ certificate = \"a.pem\", key = \"a.key\" }]";
    let config = crate::simple(&[origin.address], "").replacen("name = \"edge\"", tls, 1);
    let gateway = Gateway::start_in(folder, &config).await;
    let client = Arc::new(authority.client(&[b"http/1.1"], None));
    let connect = async || {
        let tcp = TcpStream::connect(gateway.edge()).await.expect("a connection");
        let connector = tokio_rustls::TlsConnector::from(client.clone());
        let name = "a.example".try_into().expect("a name");
        let mut stream = connector.connect(name, tcp).await.expect("a handshake");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n").await.expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer that ends as TLS does");
        let session = stream.get_ref().1;
        let certificate = session.peer_certificates().expect("a certificate")[0].clone();
        (session.handshake_kind().expect("a handshake"), certificate)
    };
    assert_eq!(connect().await.0, HandshakeKind::Full);
    for _ in 0..12 {
        assert_eq!(connect().await.0, HandshakeKind::Resumed, "whichever worker it comes to");
    }
    assert!(gateway.reload(&config).0);
    assert_eq!(connect().await.0, HandshakeKind::Resumed);
    let second = authority.issue(&["a.example"]);
    second.write(gateway.folder.path(), "a");
    assert!(gateway.reload(&config).0);
    // A worker hears of it a moment after the reload was answered.
    tidegate_tests::eventually("the new certificate is served", async || {
        let (kind, certificate) = connect().await;
        (kind == HandshakeKind::Full && certificate == second.chain()[0]).then_some(())
    })
    .await;
}

/// Conduct "TLS": certificate files that change are read again without a signal, by whatever way they are replaced; a key that
/// does not fit changes nothing, and the rest of the configuration stays as it was loaded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewed_certificates_are_taken_without_a_reload() {
    let origin = Origin::http1().await;
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    let place = |name: &str| folder.path().join(name);
    let (first, second) = (authority.issue(&["a.example"]), authority.issue(&["a.example"]));
    for (version, pair) in [("one", &first), ("two", &second)] {
        std::fs::create_dir(place(version)).expect("a folder");
        pair.write(&place(version), "a");
    }
    std::os::unix::fs::symlink("one", place("now")).expect("a link");
    let tls = "name = \"edge\"\ntls.certificates = [{ certificate = \"now/a.pem\", key = \"now/a.key\" }]";
    let config = crate::simple(&[origin.address], "").replacen("name = \"edge\"", tls, 1);
    let gateway = Gateway::start_in(folder, &format!("tls_files_check = \"50ms\"\n{config}")).await;
    let place = |name: &str| gateway.folder.path().join(name);
    let served = async |alpn: &'static [u8]| {
        let config = authority.client(&[alpn], None);
        if alpn == b"h3" {
            let quic = tidegate_tests::quic::QuicClient::connect(gateway.edge(), config, "a.example").await;
            let identity = quic.connection.peer_identity().expect("a certificate");
            let chain = identity.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().expect("certificates");
            return chain[0].clone();
        }
        let tcp = TcpStream::connect(gateway.edge()).await.expect("a connection");
        let name = "a.example".try_into().expect("a name");
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("a handshake");
        stream.get_ref().1.peer_certificates().expect("a certificate")[0].clone()
    };
    let until = async |pair: &tidegate_tests::certs::Pair| {
        for alpn in [&b"http/1.1"[..], b"h3"] {
            tidegate_tests::eventually("the certificate is served", async || {
                (served(alpn).await == pair.chain()[0]).then_some(())
            })
            .await;
        }
    };
    until(&first).await;
    let page = gateway.admin_get("/metrics").await.text();
    assert!(page.contains("tidegate_certificate_not_after_seconds{listener=\"edge\",name=\"a.example\"} "), "{page}");
    // Somebody is in the middle of editing the configuration: that is not what is looked at.
    std::fs::write(place("gateway.toml"), "[[listener").expect("written");
    std::os::unix::fs::symlink("two", place("next")).expect("a link");
    std::fs::rename(place("next"), place("now")).expect("renamed");
    until(&second).await;
    let renewals = async |outcome: &str| {
        gateway.metric(&format!("tidegate_certificate_renewals_total{{outcome=\"{outcome}\"}}")).await
    };
    assert_eq!((renewals("ok").await, renewals("refused").await), (1.0, 0.0));
    assert_eq!(gateway.metric("tidegate_reloads_total{outcome=\"ok\"}").await, 0.0);

    // Half of a replacement: refused once, said so, the old served; and taken when the other half is there.
    let third = authority.issue(&["a.example"]);
    third.write(&place("one"), "a");
    std::fs::copy(place("one/a.key"), place("two/a.key")).expect("copied");
    tidegate_tests::eventually("it is refused", async || (renewals("refused").await == 1.0).then_some(())).await;
    assert_eq!(served(b"http/1.1").await, second.chain()[0]);
    gateway.says("the key does not belong to the certificate").await;
    std::fs::copy(place("one/a.pem"), place("two/a.pem")).expect("copied");
    until(&third).await;
    assert_eq!((renewals("ok").await, renewals("refused").await), (2.0, 1.0));
    assert_eq!(
        Client::tls(gateway.edge(), Version::HTTP_2, authority.client(&[b"h2"], None), "a.example")
            .get("/")
            .await
            .expect("an answer")
            .status,
        200
    );
}

/// Conduct "TLS termination": names of one listener, and even of one certificate, differ in what they ask of clients (RFC
/// 8446, section 4.3.2). Neither another name's handshake, nor none, nor another name's ticket gets past it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_certificates_are_asked_for_by_name() {
    let origin = Origin::http1().await;
    let (authority, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let folder = tempfile::tempdir().expect("a folder");
    authority.issue(&["*.w.example"]).write(folder.path(), "w");
    std::fs::write(folder.path().join("clients.pem"), clients.pem()).expect("written");
    std::fs::write(folder.path().join("others.pem"), others.pem()).expect("written");
    let entry = |more: &str| format!("{{ certificate = \"w.pem\", key = \"w.key\"{more} }}");
    let entries = [
        entry(", client_auth = \"off\""),
        entry(", names = [\"secret.w.example\"]"),
        entry(", names = [\"other.w.example\"], client_ca = \"others.pem\""),
        entry(", names = [\"maybe.w.example\"], client_auth = \"optional\""),
    ];
    let tls = format!("name = \"edge\"\ntls.client_ca = \"clients.pem\"\ntls.certificates = [{}]", entries.join(", "));
    let config = crate::simple(&[origin.address], "").replacen("name = \"edge\"", &tls, 1);
    let gateway = Gateway::start_in(folder, &config).await;
    let (ours, theirs) = (clients.issue(&["client"]), others.issue(&["client"]));
    for (version, alpn) in [(Version::HTTP_11, &b"http/1.1"[..]), (Version::HTTP_2, b"h2"), (Version::HTTP_3, b"h3")] {
        // `None`: no handshake.
        let ask = async |name: &str, host: &str, identity, sni| {
            let mut config = authority.client(&[alpn], identity);
            config.enable_sni = sni;
            let client = Client::tls(gateway.edge(), version, config, name).authority(host);
            client.get("/").await.ok().map(|answer| answer.status.as_u16())
        };
        for (name, identity, status) in [
            ("open", None, Some(200)),
            ("secret", None, None),
            ("secret", Some(&ours), Some(200)),
            ("secret", Some(&theirs), None),
            ("other", None, None),
            ("other", Some(&ours), None),
            ("other", Some(&theirs), Some(200)),
            ("maybe", None, Some(200)),
            ("maybe", Some(&ours), Some(200)),
            ("maybe", Some(&theirs), None),
        ] {
            let name = format!("{name}.w.example");
            assert_eq!(ask(&name, &name, identity, true).await, status, "{version:?} {name} {}", identity.is_some());
        }
        for from in ["open", "maybe", "other", "secret"] {
            for to in ["open", "maybe", "other", "secret"].into_iter().filter(|to| *to != from) {
                let (from, to) = (format!("{from}.w.example"), format!("{to}.w.example"));
                let identity = if from.starts_with("other") { &theirs } else { &ours };
                assert_eq!(ask(&from, &to, Some(identity), true).await, Some(421), "{version:?} {from} {to}");
            }
        }
        // A client that names nothing is served as by the first.
        for (host, status) in [("open", 200), ("maybe", 421), ("other", 421), ("secret", 421)] {
            let host = format!("{host}.w.example");
            assert_eq!(ask("open.w.example", &host, None, false).await, Some(status), "{version:?} {host}");
        }
        // A client that offers whatever ticket it has, to whomever.
        let mut config = authority.client(&[alpn], None);
        config.resumption = rustls::client::Resumption::store(Arc::new(AnyTicket::default()));
        let client = |name: &str| Client::tls(gateway.edge(), version, config.clone(), name);
        for _ in 0..2 {
            assert_eq!(client("open.w.example").get("/").await.expect("an answer").status, 200);
            assert!(client("secret.w.example").get("/").await.is_err(), "{version:?}");
        }
    }
    let (ok, said) = gateway.reload(&config.replacen("names = [\"secret.w.example\"]", "names = [\"*.w.example\"]", 1));
    assert!(!ok && said.contains("differ in client_ca or client_auth"), "{said}");
}

/// Tickets of all names under one.
#[derive(Debug)]
struct AnyTicket(rustls::client::ClientSessionMemoryCache);

impl Default for AnyTicket {
    fn default() -> Self {
        Self(rustls::client::ClientSessionMemoryCache::new(16))
    }
}

fn any() -> ServerName<'static> {
    "any.example".try_into().expect("a name")
}

impl ClientSessionStore for AnyTicket {
    fn set_kx_hint(&self, _: ServerName<'static>, group: rustls::NamedGroup) {
        self.0.set_kx_hint(any(), group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<rustls::NamedGroup> {
        self.0.kx_hint(&any())
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: rustls::client::Tls12ClientSessionValue) {
        self.0.set_tls12_session(any(), value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<rustls::client::Tls12ClientSessionValue> {
        self.0.tls12_session(&any())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&any());
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: rustls::client::Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(any(), value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<rustls::client::Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&any())
    }
}
