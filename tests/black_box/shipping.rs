//! Plugins by way of a registry that is not of our making: pushed, signed, pulled, run; and whatever can be wrong with a
//! version, which is refused while the last good one goes on.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{Method, Response};
use tidegate_tests::gateway::{program, root, run};
use tidegate_tests::origin::full;
use tidegate_tests::{Client, Gateway, Origin, Registry, eventually};

/// Says of its settings what the tests below give it is fine.
const CANARY: &str = "plugins/tenant-canary/tenant_canary.wasm";
/// Answers the same question and refuses those settings.
const MISBEHAVE: &str = "tests/guests/built/misbehave_router.wasm";
/// A component that answers nothing.
const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

/// A registry with keys, and origins behind a gateway whose router comes from it.
pub(crate) struct Scene {
    pub(crate) registry: Registry,
    folder: tempfile::TempDir,
    pub(crate) native: Origin,
    pub(crate) blue: Origin,
}

impl Scene {
    pub(crate) async fn new() -> Option<Self> {
        Self::with(Registry::open().await?).await.into()
    }

    async fn with(registry: Registry) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let native = Origin::answering(false, |_| Response::new(full("native"))).await;
        let blue = Origin::answering(false, |_| Response::new(full("blue"))).await;
        let scene = Self { registry, folder, native, blue };
        scene.tool(&["keygen", &scene.file("team")]).expect("keys");
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// `tidegate plugin ..`: what it says, or complains of.
    pub(crate) fn tool(&self, arguments: &[&str]) -> Result<String, String> {
        self.tool_with(&[], arguments)
    }

    fn tool_with(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(program())
            .arg("plugin")
            .args(arguments)
            .env_remove("REGISTRY_AUTH_FILE")
            .env("DOCKER_CONFIG", self.folder.path())
            .envs(environment.iter().copied())
            .output()
            .expect("the program runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// A version of the canary that differs from others in nothing but its digest: a custom section says which it is.
    fn version(&self, name: &str) -> String {
        self.version_of(CANARY, name)
    }

    /// The same of another component.
    pub(crate) fn version_of(&self, component: &str, name: &str) -> String {
        let mut bytes = std::fs::read(root().join(component)).expect("a component");
        let size = 1 + name.len();
        bytes.extend([0, size as u8, name.len() as u8]);
        bytes.extend(name.as_bytes());
        self.write(name, &bytes)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.path(name), bytes).expect("written");
        self.file(name)
    }

    /// Pushes a component under the tag that the gateway looks at; its manifest's digest.
    fn push(&self, file: &str) -> String {
        self.push_as(file, &self.reference())
    }

    pub(crate) fn push_as(&self, file: &str, reference: &str) -> String {
        let said = self.tool(&["push", file, reference]).expect("pushed");
        said.trim().split_once('@').expect("a digest").1.to_owned()
    }

    fn push_signed(&self, file: &str) -> String {
        self.push_signed_as(file, &self.reference())
    }

    pub(crate) fn push_signed_as(&self, file: &str, reference: &str) -> String {
        // Signed first, under another tag: what the gateway looks at is never unsigned for a moment.
        let staged = self.registry.reference("team/router:staged");
        self.tool(&["push", file, &staged]).expect("pushed");
        self.tool(&["sign", &staged, "--key", &self.file("team.key")]).expect("signed");
        self.push_as(file, reference)
    }

    fn reference(&self) -> String {
        self.registry.reference("team/router:1")
    }

    /// The gateway's file; `plugin` goes into `[[plugin]]`, `registry` into `[registry]`.
    fn config(&self, plugin: &str, registry: &str) -> String {
        let source = format!("source = \"{}\"", self.reference());
        let settings = r#"settings = { tenant_from = [{ header = "x-tenant" }], tenants = [{ name = "blue", cluster = "blue" }] }"#;
        self.config_of(&format!("{source}\n{settings}\n{plugin}"), registry, "native")
    }

    /// With all of `[[plugin]]` but its name, and where requests go that it leaves to the route.
    pub(crate) fn config_of(&self, plugin: &str, registry: &str, otherwise: &str) -> String {
        format!(
            r#"
plugin_store = "{store}"
[registry]
credentials = "off"
{registry}
[[plugin]]
name = "router"
{plugin}
[[listener]]
name = "edge"
address = "127.0.0.1:0"
[[cluster]]
name = "native"
endpoints = ["{native}"]
[[cluster]]
name = "blue"
endpoints = ["{blue}"]
[[route]]
router = "router"
cluster = "{otherwise}"
"#,
            store = self.file("store"),
            native = self.native.address,
            blue = self.blue.address,
        )
    }

    fn signed(&self, more: &str) -> String {
        self.config(&format!("signed_by = [\"{}\"]\n{more}", self.file("team.pub")), "")
    }

    /// A version is remembered a moment after it serves.
    pub(crate) async fn kept(&self, manifest: &str) {
        eventually("the store remembers it", async || {
            let records = std::fs::read_dir(self.path("store/served")).expect("records").flatten();
            // Not the parts of one that is being written.
            let whole = records.filter(|record| record.file_name().len() == 64);
            let mut texts = whole.filter_map(|record| std::fs::read_to_string(record.path()).ok());
            texts.any(|text| text.contains(manifest)).then_some(())
        })
        .await;
    }

    /// `tidegate check`: its code, and what it says.
    pub(crate) fn check(&self, config: &str) -> (Option<i32>, String) {
        let file = self.write("check.toml", format!("[gateway]\n{config}").as_bytes());
        let output = run(&["check", &file]);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).expect("text");
        (output.status.code(), said)
    }
}

/// Where a request of the tenant goes: to `blue` where the plugin is asked, to `native` where it is not.
async fn routed(gateway: &Gateway) -> String {
    let answer = Client::http1(gateway.edge()).send(Method::GET, "/", &[("x-tenant", "blue")], "").await;
    answer.expect("an answer").text()
}

async fn serves(gateway: &Gateway, manifest: &str) -> bool {
    let page = gateway.admin_get("/metrics").await.text();
    page.lines()
        .any(|line| line.starts_with("tidegate_plugin_version_info{plugin=\"router\"") && line.contains(manifest))
}

async fn comes_to_serve(gateway: &Gateway, manifest: &str) {
    eventually("the version serves", async || serves(gateway, manifest).await.then_some(())).await;
}

async fn refusals(gateway: &Gateway, stage: &str) -> f64 {
    gateway.metric(&format!("tidegate_plugin_version_refusals_total{{plugin=\"router\",stage=\"{stage}\"}}")).await
}

async fn fetches(gateway: &Gateway, outcome: &str) -> f64 {
    gateway.metric(&format!("tidegate_plugin_fetches_total{{plugin=\"router\",outcome=\"{outcome}\"}}")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_is_pushed_signed_verified_pulled_and_decides() {
    let Some(scene) = Scene::new().await else { return };
    let component = scene.version("v1");
    for layout in ["wasm", "older", "artifact"] {
        let reference = scene.registry.reference(&format!("layouts/{layout}:1"));
        let pushed = scene.tool(&["push", &component, &reference, "--layout", layout]).expect("pushed");
        let said = scene.tool(&["inspect", &reference]).expect("inspected");
        assert!(said.contains("\nanswers   route\n"), "{said}");
        let output = scene.file("pulled.wasm");
        for reference in [reference.as_str(), pushed.trim()] {
            let said = scene.tool(&["pull", reference, "-o", &output]).expect("pulled");
            assert!(pushed.contains(said.trim()), "{pushed} {said}");
            assert_eq!(std::fs::read(&output).expect("a file"), std::fs::read(&component).expect("a file"));
        }
    }
    let (public, reference) = (scene.file("team.pub"), scene.reference());
    let pushed = scene.push(&component);
    let unsigned = scene.tool(&["verify", &reference, "--key", &public]).expect_err("unsigned");
    assert!(unsigned.contains("is not signed"), "{unsigned}");
    let said = scene.tool(&["sign", &reference, "--key", &scene.file("team.key")]).expect("signed");
    assert!(said.contains(&pushed), "{said}");
    let said = scene.tool(&["verify", &reference, "--key", &public]).expect("verified");
    assert!(said.contains(&pushed) && said.contains("team.pub"), "{said}");
    scene.tool(&["keygen", &scene.file("stranger")]).expect("keys");
    let other = scene.file("stranger.pub");
    assert!(scene.tool(&["verify", &reference, "--key", &other]).expect_err("a stranger").contains("not signed by"));
    scene.tool(&["verify", &reference, "--key", &other, "--key", &public]).expect("any of them");
    scene.tool(&["verify", &reference, "--key", &other, "--key", &public, "--all"]).expect_err("not all of them");
    scene.tool(&["sign", &reference, "--key", &scene.file("stranger.key")]).expect("signed");
    scene.tool(&["verify", &reference, "--key", &other, "--key", &public, "--all"]).expect("all of them");
    let output = scene.file("signed.wasm");
    scene.tool(&["pull", &reference, "-o", &output, "--key", &public]).expect("pulled");

    let (code, said) = scene.check(&scene.signed(""));
    assert_eq!(code, Some(0), "{said}");
    let gateway = Gateway::start(&scene.signed("")).await;
    assert!(serves(&gateway, &pushed).await);
    assert_eq!(routed(&gateway).await, "blue");
    let nobody = Client::http1(gateway.edge()).get("/").await.expect("an answer").text();
    assert!(nobody.contains("unknown tenant"), "the plugin turns it away: {nobody}");
    assert_eq!(fetches(&gateway, "fetched").await, 1.0);
    let status: serde_json::Value = serde_json::from_str(&gateway.admin_get("/status").await.text()).expect("JSON");
    assert_eq!(status["plugins"][0]["manifest"], pushed);
}

/// The signature as it lies in the registry, read without our code and checked by OpenSSL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_verifies_what_was_signed_and_its_keys_sign() {
    let Some(scene) = Scene::new().await else { return };
    let openssl = |arguments: &[&str]| Command::new("openssl").args(arguments).output().expect("openssl runs");
    let made = openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &scene.file("own.key")]);
    assert!(made.status.success());
    assert!(
        openssl(&["ec", "-in", &scene.file("own.key"), "-pubout", "-out", &scene.file("own.pub")]).status.success()
    );
    let pushed = scene.push(&scene.version("v1"));
    for name in ["team", "own"] {
        scene.tool(&["sign", &scene.reference(), "--key", &scene.file(&format!("{name}.key"))]).expect("signed");
    }
    let client = Client::http1(scene.registry.address);
    let tag = format!("{}.sig", pushed.replace(':', "-"));
    let accept = [("accept", "application/vnd.oci.image.manifest.v1+json")];
    let path = format!("/v2/team/router/manifests/{tag}");
    let manifest = client.send(Method::GET, &path, &accept, "").await.expect("an answer").text();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).expect("JSON");
    let layers = manifest["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 2);
    for (layer, name) in layers.iter().zip(["team", "own"]) {
        let digest = layer["digest"].as_str().expect("a digest");
        let payload = std::fs::read(scene.registry.blob(digest)).expect("a payload");
        let claims: serde_json::Value = serde_json::from_slice(&payload).expect("JSON");
        assert_eq!(claims["critical"]["image"]["docker-manifest-digest"], pushed);
        let text = layer["annotations"]["dev.cosignproject.cosign/signature"].as_str().expect("a signature");
        let signature = scene.write("signature", &BASE64.decode(text).expect("base64"));
        let payload = scene.write("payload", &payload);
        let key = scene.file(&format!("{name}.pub"));
        let verified = openssl(&["dgst", "-sha256", "-verify", &key, "-signature", &signature, &payload]);
        assert!(verified.status.success(), "{verified:?}");
    }
    scene.tool(&["verify", &scene.reference(), "--key", &scene.file("own.pub")]).expect("verified");
}

/// Each bad version is told apart, counted once and not taken; requests never notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_versions_are_refused_while_the_good_one_goes_on() {
    let Some(mut scene) = Scene::new().await else { return };
    let first = scene.push_signed(&scene.version("v1"));
    let config = scene.signed("refresh = \"200ms\"");
    let gateway = Gateway::start(&config).await;
    comes_to_serve(&gateway, &first).await;
    let good = scene.push_signed(&scene.version("v2"));
    comes_to_serve(&gateway, &good).await;
    assert_eq!(routed(&gateway).await, "blue");
    let generation = gateway.metric("tidegate_config_generation").await;

    let unsigned = scene.push(&scene.version("v3"));
    eventually("it is refused", async || (fetches(&gateway, "unsigned").await >= 1.0).then_some(())).await;
    gateway.says(&format!("{unsigned} is not signed")).await;
    assert_eq!(routed(&gateway).await, "blue");

    scene.tool(&["keygen", &scene.file("stranger")]).expect("keys");
    scene.tool(&["sign", &scene.reference(), "--key", &scene.file("stranger.key")]).expect("signed");
    eventually("a stranger's is refused", async || gateway.log().contains("is not signed by").then_some(())).await;

    let empty = scene.write("empty", EMPTY);
    let bad = scene.push_signed(&empty);
    eventually("it does not compile", async || (refusals(&gateway, "compile").await >= 1.0).then_some(())).await;
    gateway.says("it answers no question").await;
    // It is looked at again and again, and compiled no more.
    eventually("it is known", async || (fetches(&gateway, "refused").await >= 3.0).then_some(())).await;
    assert_eq!(refusals(&gateway, "compile").await, 1.0);
    assert_ne!(bad, good);
    assert_eq!(routed(&gateway).await, "blue");

    scene.push_signed(&root().join(MISBEHAVE).display().to_string());
    eventually("it refuses its settings", async || (refusals(&gateway, "configure").await >= 1.0).then_some(())).await;
    gateway.says("settings are refused").await;
    assert_eq!(routed(&gateway).await, "blue");

    // Damaged where it lies, before anybody has it: as long, and with another byte.
    let tampered = scene.version("v4");
    let digest = sha256(Path::new(&tampered));
    let staged = scene.registry.reference("team/router:staged");
    scene.tool(&["push", &tampered, &staged]).expect("pushed");
    scene.tool(&["sign", &staged, "--key", &scene.file("team.key")]).expect("signed");
    let blob = scene.registry.blob(&digest);
    let mut bytes = std::fs::read(&blob).expect("a blob");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(&blob, bytes).expect("written");
    scene.push(&tampered);
    eventually("it is damaged", async || (fetches(&gateway, "damaged").await >= 1.0).then_some(())).await;
    gateway.says(&format!("the blob {digest}")).await;
    assert!(serves(&gateway, &good).await);
    assert_eq!(routed(&gateway).await, "blue");

    scene.registry.down();
    // A registry that is busy may have said 500 before, which counts alike.
    gateway.says("cannot connect").await;
    assert!(fetches(&gateway, "unreachable").await >= 1.0);
    assert!(serves(&gateway, &good).await);
    assert_eq!(routed(&gateway).await, "blue");
    assert_eq!(gateway.metric("tidegate_config_generation").await, generation, "what is refused changes nothing");
    assert!(gateway.reload(&config).0, "a reload takes the version that served");
    drop(gateway);

    // The registry is gone, and the program new.
    let gateway = Gateway::start(&config).await;
    assert!(serves(&gateway, &good).await);
    assert_eq!(routed(&gateway).await, "blue");
    gateway.says("which served last").await;
    assert!(fetches(&gateway, "unreachable").await >= 1.0);
    let (taken, said) = gateway.reload(&scene.signed("on_fetch_failure = \"refuse\""));
    assert!(!taken && said.contains("cannot connect") && said.contains("gateway.toml:"), "{said}");
    assert_eq!(routed(&gateway).await, "blue");

    scene.registry.up().await;
    let newest = scene.push_signed(&scene.version("v5"));
    comes_to_serve(&gateway, &newest).await;
}

/// A start has nothing to go on with where no version has served: each reason is told, with its code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_a_good_version_is_refused() {
    let Some(mut scene) = Scene::new().await else { return };
    let refused = |config: &str, said_of_it: &[&str]| {
        let (code, said) = scene.check(config);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("check.toml:"), "{said}");
        said_of_it.iter().for_each(|text| assert!(said.contains(text), "{said}"));
    };
    refused(&scene.signed(""), &["there is no oci://", "no version has served yet"]);
    scene.push(&scene.version("v1"));
    refused(&scene.signed(""), &["is not signed"]);
    let elsewhere = scene.registry.reference("team/other:1");
    scene.tool(&["push", &scene.version("v1"), &elsewhere]).expect("pushed");
    let key = scene.file("team.key");
    scene.tool(&["sign", &elsewhere, "--key", &key]).expect("signed");
    // The signature of one plugin, laid beside another of the same bytes.
    let digest = scene.push(&scene.version("v1")).replace(':', "-");
    let copy = copy_tag(&scene.registry, "team/other", "team/router", &format!("{digest}.sig")).await;
    assert_eq!(copy, 201);
    refused(&scene.signed(""), &["is signed by", "team/other", "signed_as"]);
    let name = format!("signed_as = \"{}/team/other\"", scene.registry.address);
    let (code, said) = scene.check(&scene.signed(&name));
    assert_eq!(code, Some(0), "{said}");
    scene.push_signed(&scene.write("empty", EMPTY));
    refused(&scene.signed(""), &["it answers no question"]);
    refused(&scene.signed("on_compile_failure = \"refuse\""), &["it answers no question"]);
    let reference = scene.reference();
    let wrong = scene.signed("").replace(&reference, &reference.replace("router:1", "Router:1"));
    refused(&wrong, &["is not a repository"]);
    refused(&scene.signed("").replace("team.pub", "none.pub"), &["cannot read", "none.pub"]);
    refused(&scene.signed("").replace("team.pub", "team.key"), &["no PUBLIC KEY"]);
    let plain = scene.config("", "plain_http = []\ntimeout = \"5s\"");
    refused(&plain, &["speaks no TLS that can be trusted"]);
    refused(&scene.config("", "max_component = \"1KiB\""), &["no question"]);
    scene.push(&scene.version("v6"));
    refused(&scene.config("", "max_component = \"1KiB\""), &["larger than 1024 bytes"]);
    scene.registry.down();
    let (code, said) = scene.check(&scene.signed(""));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("cannot connect") && said.contains("no version has served yet"), "{said}");
}

/// What is on the list runs nowhere: not from the registry, not from the store, and not where it ran.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_version_is_asked_no_more() {
    let Some(mut scene) = Scene::new().await else { return };
    let first = scene.push_signed(&scene.version("v1"));
    scene.write("revoked", b"# none yet\n");
    let list = format!("revoked = \"{}\"", scene.file("revoked"));
    let config = scene.config(&format!("signed_by = [\"{}\"]\nrefresh = \"200ms\"", scene.file("team.pub")), &list);
    let gateway = Gateway::start(&config).await;
    comes_to_serve(&gateway, &first).await;
    let component = scene.version("v2");
    let second = scene.push_signed(&component);
    comes_to_serve(&gateway, &second).await;

    // The one before it serves again, though the registry still offers the other.
    scene.write("revoked", format!("{second} # leaks\n").as_bytes());
    comes_to_serve(&gateway, &first).await;
    assert_eq!(routed(&gateway).await, "blue");
    assert!(fetches(&gateway, "revoked").await >= 1.0);
    gateway.says(&format!("{second} is revoked")).await;

    // With that one gone too there is nothing left, and the native answer stands.
    scene.write("revoked", format!("{second}\n{first}\n").as_bytes());
    eventually("it is asked no more", async || (routed(&gateway).await == "native").then_some(())).await;
    assert_eq!(gateway.metric("tidegate_plugin_withdrawn{plugin=\"router\"}").await, 1.0);
    gateway.says("it is asked no more").await;
    let (taken, said) = gateway.reload(&config);
    assert!(!taken && said.contains("is revoked"), "{said}");

    // By the digest of the component too, whatever manifest leads to it.
    scene.write("revoked", format!("{}\n", sha256(Path::new(&component))).as_bytes());
    let (code, said) = scene.check(&config.replace("team/router:1\"", &format!("team/router@{second}\"")));
    assert!(code == Some(2) && said.contains("is revoked"), "{said}");

    // A list that cannot be read is no empty list.
    scene.write("revoked", b"sha256:junk\n");
    let (code, said) = scene.check(&config);
    assert!(code == Some(2) && said.contains("revoked: line 1:"), "{said}");

    scene.write("revoked", format!("{second}\n{first}\n").as_bytes());
    let third = scene.push_signed(&scene.version("v3"));
    comes_to_serve(&gateway, &third).await;
    assert_eq!(routed(&gateway).await, "blue", "a new version is asked again");
    scene.kept(&third).await;
    drop(gateway);
    scene.registry.down();
    scene.write("revoked", format!("{second}\n{first}\n{third}\n").as_bytes());
    let (code, said) = scene.check(&config);
    assert!(code == Some(2) && said.contains(&format!("{third} is revoked")), "{said}");
}

/// The list is looked at where nothing else is: a digest never means anything new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_of_what_is_revoked_is_looked_at_by_itself() {
    let Some(scene) = Scene::new().await else { return };
    let first = scene.push(&scene.version("v1"));
    scene.write("revoked.toml", b"revoked = []\n");
    let config = scene.config("on_failure = \"deny\"", &format!("revoked = \"{}\"", scene.file("revoked.toml")));
    let gateway = Gateway::start(&config.replace("team/router:1\"", &format!("team/router@{first}\""))).await;
    assert_eq!(routed(&gateway).await, "blue");
    scene.write("revoked.toml", format!("revoked = [\"{first}\"]\n").as_bytes());
    let withdrawn = "tidegate_plugin_withdrawn{plugin=\"router\"}";
    eventually("it is withdrawn", async || (gateway.metric(withdrawn).await == 1.0).then_some(())).await;
    let answer = Client::http1(gateway.edge()).get("/").await.expect("an answer");
    assert_eq!(answer.status, 503);
    assert_ne!(routed(&gateway).await, "blue");
}

/// A digest, and a tag with `pull = "if_absent"`, ask no registry once a version has served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_served_is_not_asked_for_again_where_nobody_wants_it() {
    let Some(mut scene) = Scene::new().await else { return };
    let first = scene.push_signed(&scene.version("v1"));
    let by_tag = scene.signed("pull = \"if_absent\"\non_fetch_failure = \"refuse\"");
    let by_digest =
        by_tag.replace("team/router:1\"", &format!("team/router:1@{first}\"")).replace("if_absent", "always");
    for config in [&by_tag, &by_digest] {
        let gateway = Gateway::start(config).await;
        assert!(serves(&gateway, &first).await);
        assert_eq!(fetches(&gateway, "fetched").await, 1.0);
    }
    scene.push_signed(&scene.version("v2"));
    let gateway = Gateway::start(&by_tag).await;
    assert!(serves(&gateway, &first).await, "the tag's meaning of then");
    drop(gateway);
    scene.registry.down();
    for config in [&by_tag, &by_digest] {
        let gateway = Gateway::start(config).await;
        assert!(serves(&gateway, &first).await);
        assert_eq!(routed(&gateway).await, "blue");
    }
    // Keys may have changed since: what is kept is checked like what comes.
    scene.tool(&["keygen", &scene.file("next")]).expect("keys");
    let (code, said) = scene.check(&by_digest.replace("team.pub", "next.pub"));
    assert!(code == Some(2) && said.contains("cannot connect"), "{said}");
    // A damaged store is as good as none.
    let blobs = std::fs::read_dir(scene.path("store/blobs")).expect("blobs");
    blobs.for_each(|blob| std::fs::write(blob.expect("a blob").path(), "damaged").expect("written"));
    let (code, said) = scene.check(&by_digest);
    assert!(code == Some(2) && said.contains("cannot connect"), "{said}");
}

/// `a secret`, as bcrypt.
const HTPASSWD: &str = "ci:$2b$04$qEoG30XZrKPcdbU/aRrVZ.G/l.i9GaHN4RMdQ4xBGdCWbF8I82kqe\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_open_what_they_are_for_and_tls_is_verified() {
    let authority = tidegate_tests::certs::Authority::new();
    let pair = authority.issue(&["127.0.0.1"]);
    let files = [("htpasswd", HTPASSWD), ("tls.pem", &pair.certificate), ("tls.key", &pair.key)];
    let tls = "  tls: {certificate: tls.pem, key: tls.key}\n";
    let auth = "auth: {htpasswd: {realm: tests, path: htpasswd}}\n";
    let Some(registry) = Registry::start(tls, auth, &files).await else { return };
    let scene = Scene::with(registry).await;
    let (component, reference) = (scene.version("v1"), scene.reference());
    scene.write("ca.pem", authority.pem().as_bytes());
    let ca = scene.file("ca.pem");
    let push = |environment: &[(&str, &str)]| {
        scene.tool_with(environment, &["push", &component, &reference, "--ca", &ca, "--plain-http", "nowhere"])
    };
    let login = |name: &str, text: &str| {
        let auth = BASE64.encode(text);
        let auths = serde_json::json!({ "auths": { scene.registry.address.to_string(): { "auth": auth } } });
        scene.write(name, auths.to_string().as_bytes())
    };
    assert!(push(&[]).expect_err("nobody").contains("wants credentials"));
    let wrong = login("wrong.json", "ci:another");
    assert!(push(&[("REGISTRY_AUTH_FILE", &wrong)]).expect_err("wrong").contains("wants credentials"));
    let right = login("right.json", "ci:a secret");
    let pushed = push(&[("REGISTRY_AUTH_FILE", &right)]).expect("pushed");
    // Where `docker login` leaves it.
    login("config.json", "ci:a secret");
    push(&[]).expect("pushed");
    let untrusted = scene.tool(&["pull", &reference, "-o", &scene.file("x"), "--plain-http", "nowhere"]);
    assert!(untrusted.expect_err("no root").contains("speaks no TLS that can be trusted"));
    let plain = scene.tool(&["pull", &reference, "-o", &scene.file("x")]).expect_err("TLS wants TLS");
    assert!(plain.contains("answers 400"), "{plain}");

    let config = |credentials: &str| {
        let keys = format!("plain_http = []\nca = \"{ca}\"\n");
        scene.config("", &keys).replace("\"off\"", &format!("\"{credentials}\""))
    };
    for (credentials, said_of_it) in
        [("off", "wants credentials"), (wrong.as_str(), "wants credentials"), ("none.json", "No such file")]
    {
        let (code, said) = scene.check(&config(credentials));
        assert!(code == Some(2) && said.contains(said_of_it), "{said}");
        assert!(!said.contains("another") && !said.contains(&BASE64.encode("ci:another")), "{said}");
    }
    let gateway = Gateway::start(&config(&right)).await;
    assert!(serves(&gateway, pushed.trim().split_once('@').expect("a digest").1).await);
    assert_eq!(routed(&gateway).await, "blue");
    assert!(!gateway.log().contains("a secret") && !gateway.log().contains(&BASE64.encode("ci:a secret")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_takes_components_only_and_keys_are_never_overwritten() {
    let Some(scene) = Scene::new().await else { return };
    let whole = std::fs::read(root().join(CANARY)).expect("a component");
    for (bytes, said_of_it) in [
        (&b"#!/bin/sh\n"[..], "does not begin as one"),
        (b"\0asm\x01\0\0\0", "core module"),
        (&whole[..whole.len() / 2], "not a WebAssembly component"),
    ] {
        let file = scene.write("bad.wasm", bytes);
        let said = scene.tool(&["push", &file, &scene.reference()]).expect_err("refused");
        assert!(said.contains("is not pushed") && said.contains(said_of_it), "{said}");
    }
    let said = scene.tool(&["pull", &scene.reference(), "-o", &scene.file("x")]).expect_err("nothing is there");
    assert!(said.contains("there is no oci://"), "{said}");
    let before = std::fs::read(scene.path("team.key")).expect("a key");
    assert!(scene.tool(&["keygen", &scene.file("team")]).expect_err("it is there").contains("File exists"));
    assert_eq!(std::fs::read(scene.path("team.key")).expect("a key"), before);
}

pub(crate) fn sha256(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().expect("sha256sum runs");
    let text = String::from_utf8(output.stdout).expect("text");
    format!("sha256:{}", text.split_whitespace().next().expect("a digest"))
}

/// Copies a tag from one repository to another, blobs mounted: what anybody who may push can do.
async fn copy_tag(registry: &Registry, from: &str, to: &str, tag: &str) -> u16 {
    let client = Client::http1(registry.address);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let path = format!("/v2/{from}/manifests/{tag}");
    let manifest = client.send(Method::GET, &path, &[("accept", kind)], "").await.expect("an answer").text();
    let parsed: serde_json::Value = serde_json::from_str(&manifest).expect("JSON");
    let layers = parsed["layers"].as_array().expect("layers").iter().chain([&parsed["config"]]);
    for digest in layers.map(|layer| layer["digest"].as_str().expect("a digest")) {
        let path = format!("/v2/{to}/blobs/uploads/?mount={digest}&from={from}");
        assert_eq!(client.send(Method::POST, &path, &[], "").await.expect("an answer").status, 201);
    }
    let path = format!("/v2/{to}/manifests/{tag}");
    client.send(Method::PUT, &path, &[("content-type", kind)], manifest).await.expect("an answer").status.as_u16()
}
