//! Every folder of `examples/` serves as its README says.

use std::path::Path;

use http::{Method, Response, Version};
use tidegate_tests::certs::Authority;
use tidegate_tests::gateway::{root, run};
use tidegate_tests::lab::{Lab, PORT, Wiring};
use tidegate_tests::origin::full;
use tidegate_tests::{Client, Gateway, Origin};

const EXAMPLES: [&str; 10] = [
    "dsr",
    "edge-function",
    "edge-tls",
    "ext-authz",
    "first-steps",
    "l4-proxy",
    "nat",
    "rust-policy",
    "sni-passthrough",
    "tenants",
];

/// Which their readers make.
const NEED_CERTIFICATES: [&str; 2] = ["edge-tls", "sni-passthrough"];

/// No example without a test, and no test without its example.
#[test]
fn every_example_is_tested() {
    let mut found: Vec<String> = std::fs::read_dir(root().join("examples"))
        .expect("the folder")
        .map(|entry| entry.expect("an entry"))
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().expect("a name"))
        .collect();
    found.sort();
    assert_eq!(found, EXAMPLES);
    for name in EXAMPLES {
        let readme = std::fs::read_to_string(root().join("examples").join(name).join("README.md"));
        assert!(readme.is_ok_and(|text| text.len() > 300), "{name} has no README");
    }
}

/// The example's file with free ports, and `origins` in place of the endpoints it names, in their order.
fn example(name: &str, origins: &[&Origin]) -> (tempfile::TempDir, String) {
    let from = root().join("examples").join(name);
    let mut text = std::fs::read_to_string(from.join("gateway.toml")).expect("a configuration");
    for port in ["8080", "8443"] {
        text = text.replace(&format!("address = \"127.0.0.1:{port}\""), "address = \"127.0.0.1:0\"");
    }
    let ports = if text.contains(":9443") { vec![9443] } else { vec![9001, 9002, 9003] };
    for (port, origin) in ports.iter().zip(origins) {
        text = text.replace(&format!("127.0.0.1:{port}"), &origin.address.to_string());
    }
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(&from).expect("the example").flatten() {
        if entry.path().extension() == Some(Path::new("wasm").as_os_str()) {
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("copied");
        }
    }
    (folder, text)
}

async fn named(name: &'static str) -> Origin {
    Origin::answering(false, move |_| Response::new(full(name))).await
}

/// `tidegate check` takes the files as they are.
#[test]
fn the_files_pass_the_check() {
    for name in EXAMPLES.into_iter().filter(|name| !NEED_CERTIFICATES.contains(name)) {
        let file = root().join("examples").join(name).join("gateway.toml");
        let output = run(&["check", &file.to_string_lossy()]);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edge_function() {
    let site = named("site").await;
    let (folder, config) = example("edge-function", &[&site]);
    let gateway = Gateway::start_in(folder, &config).await;
    for client in [Client::http1(gateway.edge()), Client::http2(gateway.edge())] {
        let answer = client.get("/fn/hello").await.expect("an answer");
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "hello from the edge\n"));
        let answer = client.send(Method::POST, "/fn/shout", &[], "quietly").await.expect("an answer");
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "QUIETLY"));
        assert_eq!(client.get("/fn/other").await.expect("an answer").status, 404);
        assert_eq!(client.get("/").await.expect("an answer").text(), "site");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_steps() {
    let (one, two, site) = (named("api").await, named("api").await, named("site").await);
    let (folder, config) = example("first-steps", &[&one, &two, &site]);
    let gateway = Gateway::start_in(folder, &config).await;
    let client = Client::http1(gateway.edge());
    for (path, expected) in [("/", "site"), ("/api/x", "api"), ("/ping", "pong\n")] {
        let answer = client.get(path).await.expect("an answer");
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, expected), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edge_tls() {
    let authority = Authority::new();
    let origin = Origin::tls(true, authority.issue(&["origin.internal"]).server(&[b"h2"], None)).await;
    let (folder, config) = example("edge-tls", &[&origin]);
    authority.issue(&["edge.example"]).write(folder.path(), "edge");
    authority.issue(&["other.example"]).write(folder.path(), "other");
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).expect("written");
    let gateway = Gateway::start_in(folder, &config).await;
    for name in ["edge.example", "other.example"] {
        for (version, alpn) in
            [(Version::HTTP_11, &b"http/1.1"[..]), (Version::HTTP_2, b"h2"), (Version::HTTP_3, b"h3")]
        {
            let client = Client::tls(gateway.edge(), version, authority.client(&[alpn], None), name);
            let answer = client.get("/").await.expect("an answer");
            assert_eq!((answer.status.as_u16(), answer.version), (200, version), "{name}");
            let seen = origin.last();
            assert_eq!(seen.version, Version::HTTP_2);
            let forwarded = format!("for=127.0.0.1;by=_edge;host={name};proto=https");
            assert_eq!(seen.header("forwarded"), Some(forwarded.as_str()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants() {
    let (one, two, next) = (named("stable").await, named("stable").await, named("next").await);
    let (folder, config) = example("tenants", &[&one, &two, &next]);
    let gateway = Gateway::start_in(folder, &config).await;
    let client = Client::http1(gateway.edge());
    let ask =
        async |fields: &[(&str, &str)]| client.send(Method::GET, "/", fields, "").await.expect("an answer").text();
    assert_eq!(ask(&[]).await, "stable");
    assert_eq!(ask(&[("x-tenant", "blue"), ("x-canary", "always")]).await, "next");
    let session = [("x-tenant", "blue"), ("cookie", "sid=7")];
    let first = ask(&session).await;
    assert_eq!(ask(&session).await, first, "a session stays where it is");
    assert!(next.last().header("forwarded").is_some_and(|value| value.starts_with("for=_")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ext_authz() {
    let api = named("api").await;
    let auth = Origin::answering(false, |request| {
        let good = request.header("authorization") == Some("Bearer good");
        let (status, name, value) =
            if good { (200, "x-user", "somebody") } else { (401, "www-authenticate", "Bearer") };
        Response::builder().status(status).header(name, value).body(full("")).expect("a response")
    })
    .await;
    let (folder, config) = example("ext-authz", &[&api, &auth]);
    let gateway = Gateway::start_in(folder, &config).await;
    let client = Client::http1(gateway.edge());
    let refused = client.send(Method::GET, "/a", &[("x-user", "forged")], "").await.expect("an answer");
    assert_eq!((refused.status.as_u16(), refused.header("www-authenticate")), (401, Some("Bearer")));
    let fields = [("authorization", "Bearer good"), ("x-user", "forged")];
    let passed = client.send(Method::POST, "/a?b=c", &fields, "body").await.expect("an answer");
    assert_eq!((passed.text().as_str(), api.last().header("x-user")), ("api", Some("somebody")));
    assert_eq!(auth.last().header("x-original-method"), Some("POST"));
    assert_eq!(auth.last().header("x-original-target"), Some("/a?b=c"));
    assert_eq!(client.get("/health").await.expect("an answer").text(), "api");
    assert_eq!(auth.record().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rust_policy() {
    let (stable, beta) = (named("stable").await, named("beta").await);
    let (folder, config) = example("rust-policy", &[&stable, &beta]);
    let gateway = Gateway::start_in(folder, &config).await;
    let client = Client::http1(gateway.edge());
    assert_eq!(client.get("/").await.expect("an answer").text(), "stable");
    let answer = client.send(Method::GET, "/", &[("cookie", "beta=yes")], "").await.expect("an answer");
    assert_eq!((answer.text().as_str(), beta.last().header("x-beta")), ("beta", Some("yes")));
}

/// Both in a lab that has the addresses they name: the endpoints see the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nat_and_dsr() {
    for (name, wiring, port) in [("nat", Wiring::Routed, 8080), ("dsr", Wiring::Bridged, PORT)] {
        let Some(lab) = Lab::new(wiring, false) else { return };
        let _services = lab.serve(port);
        let (folder, config) = example(name, &[]);
        let config = config.replace("\"eth0\"", "\"e0\"");
        let _gateway = Gateway::start_under(&["ip", "netns", "exec", &lab.gateway.name], folder, &config).await;
        for udp in [false, true] {
            let mut flow = lab.flow(udp, PORT).expect("a flow");
            assert_eq!(flow.ask().expect("an answer").1, lab.client_address(), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l4_proxy() {
    let (one, two) = (named("one").await, named("two").await);
    let (folder, config) = example("l4-proxy", &[&one, &two]);
    let gateway = Gateway::start_in(folder, &config).await;
    let mut seen = Vec::new();
    for _ in 0..8 {
        let answer = Client::http1(gateway.address("database")).get("/").await.expect("an answer");
        assert_eq!(answer.header("via"), None, "nothing is read of it");
        seen.push(answer.text());
    }
    assert!(seen.contains(&"one".to_owned()) && seen.contains(&"two".to_owned()), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sni_passthrough() {
    let authority = Authority::new();
    let secure = async |name: &str| Origin::tls(true, authority.issue(&[name]).server(&[b"h2"], None)).await;
    let (mail, customer) = (secure("mail.example").await, secure("a.customer.example").await);
    let site = named("site").await;
    let (folder, config) = example("sni-passthrough", &[&mail, &customer, &site]);
    authority.issue(&["edge.example"]).write(folder.path(), "edge");
    let gateway = Gateway::start_in(folder, &config).await;
    let get = async |name: &str| {
        let config = authority.client(&[b"h2"], None);
        Client::tls(gateway.edge(), Version::HTTP_2, config, name).get("/").await
    };
    assert_eq!(get("a.customer.example").await.expect("an answer").status, 200);
    assert_eq!((customer.connections(), get("edge.example").await.expect("an answer").text()), (1, "site".to_owned()));
    // It waits for no PROXY header, and takes it for a broken hello.
    assert!(get("mail.example").await.is_err());
}
