//! Against a scripted server: what no well-behaved registry does, and the token server that few have at hand.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::*;
use crate::Kind;

/// A request as it came: what it asks for, its authorization, its body.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Seen {
    line: String,
    authorization: String,
    body: String,
}

type Script = Arc<dyn Fn(&Seen) -> Response<Full<Bytes>> + Send + Sync>;

/// A server that answers as its script says, and what it has seen.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    async fn start(script: impl Fn(&Seen) -> Response<Full<Bytes>> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (script, log): (Script, _) = (Arc::new(script), seen.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, log) = (script.clone(), log.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (script, log) = (script.clone(), log.clone());
                    async move {
                        let (head, body) = request.into_parts();
                        let authorization = head.headers.get(header::AUTHORIZATION);
                        let body = body.collect().await.expect("a body").to_bytes();
                        let seen = Seen {
                            line: format!("{} {}", head.method, head.uri),
                            authorization: authorization.map_or("", |value| value.to_str().expect("text")).to_owned(),
                            body: String::from_utf8_lossy(&body).into_owned(),
                        };
                        log.lock().expect("no panic").push(seen.clone());
                        Ok::<_, Infallible>(script(&seen))
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }

    fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address).parse().expect("a reference")
    }
}

fn answer(status: u16, fields: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    response.body(Full::new(body.into())).expect("a response")
}

fn client(credentials: Credentials) -> Client {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Client::new(Options {
        tls: Arc::new(tls),
        plain_http: PlainHttp::new(vec![PlainHttp::LOOPBACK.to_owned()]).expect("a name"),
        credentials,
        step: Duration::from_millis(500),
        max_component: 1000,
    })
}

fn manifest(component: &[u8]) -> Vec<u8> {
    Manifest::of_component(Layout::Wasm, component).0.to_bytes()
}

#[test]
fn plain_http_is_for_those_it_was_granted() {
    let granted = |names: &[&str]| PlainHttp::new(names.iter().map(|name| (*name).to_owned()).collect());
    let loopback = granted(&["loopback"]).expect("names");
    for host in ["localhost", "127.0.0.1", "127.9.9.9", "[::1]"] {
        assert!(loopback.allows(host, Some(5000)), "{host}");
    }
    for host in ["registry.example", "10.0.0.1", "127.0.0.1.example", "localhost.example", "[::2]"] {
        assert!(!loopback.allows(host, None), "{host}");
    }
    let named = granted(&["mirror.example:5000", "Cache.example"]).expect("names");
    assert!(named.allows("mirror.example", Some(5000)) && !named.allows("mirror.example", None));
    assert!(named.allows("cache.example", Some(1)) && !named.allows("localhost", None));
    assert!(granted(&["http://cache.example"]).is_err());
}

/// "Token authentication": the challenge names the server, the service and what is wanted; the token is used again.
#[tokio::test]
async fn tokens_are_got_for_what_is_wanted_and_used_again() {
    let tokens = Server::start(|seen| match seen.authorization.as_str() {
        "" if seen.body.contains("refresh_token=id%2Ftoken") => answer(200, &[], "{\"access_token\":\"fresh\"}"),
        // ci:word
        "Basic Y2k6d29yZA==" => answer(200, &[], "{\"token\":\"fresh\"}"),
        _ => answer(401, &[], "{\"errors\":[{\"code\":\"UNAUTHORIZED\",\"message\":\"who\\nare you\"}]}"),
    })
    .await;
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"a registry\"", tokens.address);
    let registry = Server::start(move |seen| match seen.authorization.as_str() {
        "Bearer fresh" => answer(200, &[], manifest(b"x")),
        _ => answer(401, &[("www-authenticate", &realm)], ""),
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let login = |login: serde_json::Value| {
        let auths: HashMap<String, _> = [(registry.address.to_string(), login)].into();
        let file = folder.path().join("auth.json");
        std::fs::write(&file, serde_json::json!({ "auths": auths }).to_string()).expect("written");
        client(Credentials::file(file))
    };
    let reference = registry.reference("team/router:1");
    let client_of_ci = login(serde_json::json!({ "auth": "Y2k6d29yZA==" }));
    let digest = client_of_ci.resolve(&reference).await.expect("a digest");
    assert_eq!(digest, Digest::of(&manifest(b"x")));
    client_of_ci.resolve(&reference).await.expect("again");
    let asked: Vec<String> = tokens.seen().into_iter().map(|seen| seen.line).collect();
    assert_eq!(asked, ["GET /token?service=a%20registry&scope=repository%3Ateam%2Frouter%3Apull"]);
    assert_eq!(registry.seen().len(), 3, "asked without, asked with, asked with the same");
    assert!(
        registry.seen().iter().all(|seen| !seen.authorization.contains("Basic")),
        "it is the token server's to know"
    );

    login(serde_json::json!({ "identitytoken": "id/token" })).resolve(&reference).await.expect("a digest");
    let form = tokens.seen().last().expect("a form").body.clone();
    assert!(
        form.contains("grant_type=refresh_token") && form.contains("scope=repository%3Ateam%2Frouter%3Apull"),
        "{form}"
    );

    let denied = login(serde_json::json!({ "auth": "Y2k6d3Jvbmc=" })).resolve(&reference).await.expect_err("denied");
    assert_eq!(denied.kind(), Kind::Denied);
    assert!(denied.to_string().contains("UNAUTHORIZED: whoare you"), "{denied}");
}

/// Blobs lie elsewhere as often as not; credentials are not for there, and not every place is fit to be led to.
#[tokio::test]
async fn redirects_are_followed_without_credentials_and_not_for_ever() {
    let elsewhere = Server::start(|_| answer(200, &[], "component")).await;
    let blob = format!("http://{}/blob", elsewhere.address);
    let registry = Server::start(move |seen| {
        let round = seen.line.split(' ').nth(1).unwrap_or_default().to_owned();
        match seen.line.as_str() {
            line if line.contains("manifests/round") => answer(302, &[("location", &round)], ""),
            line if line.contains("manifests/away") => answer(302, &[("location", "http://registry.example/x")], ""),
            line if line.contains("manifests") => answer(200, &[], manifest(b"component")),
            _ if seen.authorization.is_empty() => answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
            _ => answer(307, &[("location", &blob)], ""),
        }
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("auth.json");
    let auths: HashMap<String, _> =
        [(registry.address.to_string(), serde_json::json!({ "auth": "Y2k6d29yZA==" }))].into();
    std::fs::write(&file, serde_json::json!({ "auths": auths }).to_string()).expect("written");
    let client = client(Credentials::file(file));
    let reference = registry.reference("router:1");
    let pulled = client.manifest(&reference).await.expect("a manifest");
    assert_eq!(client.component(&reference, &pulled).await.expect("a component"), "component");
    assert!(registry.seen().iter().any(|seen| seen.authorization.starts_with("Basic")));
    assert_eq!(elsewhere.seen().len(), 1);
    assert_eq!(elsewhere.seen()[0].authorization, "");
    let round = client.resolve(&registry.reference("router:round")).await.expect_err("round and round");
    assert!(round.to_string().contains("redirect to redirect"), "{round}");
    let away = client.resolve(&registry.reference("router:away")).await.expect_err("without TLS");
    assert!(away.to_string().contains("plain HTTP"), "{away}");
}

#[tokio::test]
async fn what_is_too_large_damaged_or_never_comes_ends() {
    let registry = Server::start(|seen| match seen.line.as_str() {
        line if line.contains("manifests/huge") => answer(200, &[], vec![b' '; 2 << 20]),
        line if line.contains("manifests/large") => answer(200, &[], manifest(&[0; 1001])),
        line if line.contains("manifests/longer") => answer(200, &[], manifest(b"short")),
        line if line.contains("manifests/other") => answer(200, &[], manifest(b"other!")),
        line if line.contains("manifests/junk") => answer(200, &[], "<html>"),
        line if line.contains("manifests/sha256") => answer(200, &[], manifest(b"x")),
        line if line.contains("blobs/") => answer(200, &[], "shorts"),
        _ => answer(503, &[], "{\"errors\":[{\"code\":\"UNAVAILABLE\",\"message\":\"later\"}]}"),
    })
    .await;
    let client = client(Credentials::none());
    let pull = async |tag: &str| {
        let reference = registry.reference(&format!("router:{tag}"));
        let pulled = client.manifest(&reference).await?;
        client.component(&reference, &pulled).await
    };
    for (tag, said) in [
        ("huge", "larger than 1048576 bytes"),
        ("large", "larger than 1000 bytes"),
        ("longer", "larger than 5 bytes"),
        ("other", "has the digest"),
        ("junk", "is not a manifest"),
    ] {
        let error = pull(tag).await.expect_err(tag);
        assert!(error.kind() == Kind::Damaged && error.to_string().contains(said), "{tag}: {error}");
    }
    let wanted = Digest::of(&manifest(b"y"));
    let error = client.resolve(&registry.reference(&format!("router@{wanted}"))).await.expect_err("another");
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    let error = pull("none").await.expect_err("unavailable");
    assert!(error.kind() == Kind::Unreachable && error.to_string().contains("503 (UNAVAILABLE: later)"), "{error}");

    // Takes the connection and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let reference = format!("{}/router:1", silent.local_addr().expect("an address")).parse().expect("a reference");
    let error = client.resolve(&reference).await.expect_err("silence");
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}
