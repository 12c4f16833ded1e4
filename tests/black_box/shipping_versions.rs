//! Next versions and shadows by way of a registry: held to what is asked of the plugin, and never in its way.

use std::path::Path;

use http::Method;
use tidegate_tests::gateway::{root, run};
use tidegate_tests::{Client, Gateway, eventually};

use crate::shipping::{Scene, sha256};

/// Sends requests where its settings say.
const GUEST: &str = "tests/guests/built/misbehave_router.wasm";
/// A component that answers nothing.
const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";
const NEXT: &str = "router@next";

/// The tag that the next version is looked up by.
fn tag(scene: &Scene) -> String {
    scene.registry.reference("team/router:next")
}

/// A gateway whose router sends all to `native`; its next version, which has every second request, leaves them to the
/// route, which leads to `blue`, and traps for those below `/trap`.
fn config(scene: &Scene, plugin: &str, registry: &str) -> String {
    let next = format!(
        "rollout = {{ source = \"{}\", settings = {{ behave = \"trap_on_path\" }}, share = \"50%\", sticky_by = \"random\" }}",
        tag(scene)
    );
    with(scene, &format!("{next}\nsigned_by = [\"{}\"]\n{plugin}", scene.file("team.pub")), registry)
}

fn with(scene: &Scene, plugin: &str, registry: &str) -> String {
    let source = format!("source = \"{}\"", root().join(GUEST).display());
    let own = "settings = { behave = \"forward\", cluster = \"native\" }\nlimits = { time = \"200ms\" }";
    scene.config_of(&format!("{source}\n{own}\n{plugin}"), registry, "blue")
}

/// Who answered how many of 40 requests: the current version, and the next one.
async fn answered(gateway: &Gateway, path: &str) -> (usize, usize) {
    let client = Client::http1(gateway.edge());
    let mut count = (0, 0);
    for _ in 0..40 {
        let answer = client.send(Method::GET, path, &[], "").await.expect("an answer").text();
        match answer.as_str() {
            "native" => count.0 += 1,
            "blue" => count.1 += 1,
            other => panic!("{other}"),
        }
    }
    count
}

async fn has_its_share(gateway: &Gateway) {
    let (current, next) = answered(gateway, "/").await;
    assert!(current > 4 && next > 4, "{current} and {next}");
}

async fn current_alone(gateway: &Gateway) {
    assert_eq!(answered(gateway, "/").await, (40, 0));
}

async fn serves(gateway: &Gateway, name: &str, manifest: &str) -> bool {
    let start = format!("tidegate_plugin_version_info{{plugin=\"{name}\"");
    let page = gateway.admin_get("/metrics").await.text();
    page.lines().any(|line| line.starts_with(&start) && line.contains(manifest))
}

async fn comes_to_serve(gateway: &Gateway, name: &str, manifest: &str) {
    eventually("the version serves", async || serves(gateway, name, manifest).await.then_some(())).await;
}

async fn counted(gateway: &Gateway, sample: &str, key: &str, value: &str, least: f64) {
    let sample = format!("tidegate_plugin_{sample}_total{{plugin=\"{NEXT}\",{key}=\"{value}\"}}");
    eventually(value, async || {
        let page = gateway.admin_get("/metrics").await.text();
        let line = page.lines().find_map(|line| line.strip_prefix(&sample)?.trim().parse::<f64>().ok());
        line.filter(|count| *count >= least)
    })
    .await;
}

async fn fetched(gateway: &Gateway, outcome: &str) {
    counted(gateway, "fetches", "outcome", outcome, 1.0).await;
}

async fn status(gateway: &Gateway) -> serde_json::Value {
    serde_json::from_str(&gateway.admin_get("/status").await.text()).expect("JSON")
}

/// What the status says of a version that was not taken.
async fn refused(gateway: &Gateway) -> Option<(String, String, String)> {
    let status = status(gateway).await;
    let rows = status["refused_versions"].as_array().expect("rows");
    assert!(rows.len() <= 1, "{rows:?}");
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().expect("text").to_owned();
    rows.first().map(|row| (text(row, "name"), text(row, "stage"), text(row, "why")))
}

/// From nothing to a version, from that to the next; and whatever is wrong with one leaves what serves as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_next_version_is_fetched_verified_and_refused_without_the_current_one() {
    let Some(mut scene) = Scene::new().await else { return };
    let config = config(&scene, "refresh = \"200ms\"", "");
    let (code, said) = scene.check(&config);
    assert!(code == Some(0) && said.contains("warning: plugin \"router@next\": oci://"), "{said}");
    // What is written wrong is refused as everywhere.
    let (code, said) = scene.check(&config.replace("team/router:next", "team/Router:next"));
    assert!(
        code == Some(2) && said.contains("plugin \"router@next\"") && said.contains("is not a repository"),
        "{said}"
    );
    let gateway = Gateway::start(&config).await;
    current_alone(&gateway).await;
    fetched(&gateway, "missing").await;
    let (name, stage, why) = refused(&gateway).await.expect("it is told");
    assert!(name == NEXT && stage == "fetch" && why.contains("there is no oci://"), "{name} {stage} {why}");
    let said = run(&["status", "--admin", &gateway.admin().to_string()]);
    let said = String::from_utf8(said.stdout).expect("text");
    assert!(said.contains("plugin router@next  a version was not taken (fetch): "), "{said}");
    gateway.says("the current version answers alone").await;

    let unsigned = scene.push_as(&scene.version_of(GUEST, "v0"), &tag(&scene));
    fetched(&gateway, "unsigned").await;
    current_alone(&gateway).await;
    gateway.says(&format!("{unsigned} is not signed")).await;

    let first = scene.push_signed_as(&scene.version_of(GUEST, "v1"), &tag(&scene));
    comes_to_serve(&gateway, NEXT, &first).await;
    has_its_share(&gateway).await;
    assert_eq!(refused(&gateway).await, None);
    let shown = status(&gateway).await;
    let row = shown["plugins"].as_array().expect("plugins").iter().find(|row| row["name"] == NEXT).expect("a row");
    assert_eq!((&row["manifest"], &row["reference"]), (&first.clone().into(), &tag(&scene).into()));

    // What cannot serve in its place: neither version notices.
    scene.push_signed_as(&scene.write("empty", EMPTY), &tag(&scene));
    counted(&gateway, "version_refusals", "stage", "compile", 1.0).await;
    counted(&gateway, "fetches", "outcome", "refused", 2.0).await;
    assert_eq!(refused(&gateway).await.map(|(_, stage, _)| stage).as_deref(), Some("compile"));
    scene.push_signed_as(&root().join("plugins/tenant-canary/tenant_canary.wasm").display().to_string(), &tag(&scene));
    counted(&gateway, "version_refusals", "stage", "configure", 1.0).await;
    let other = root().join("tests/guests/built/misbehave_balancer.wasm").display().to_string();
    scene.push_signed_as(&other, &tag(&scene));
    let questions = "does not answer the same questions";
    eventually("other questions are refused", async || gateway.log().contains(questions).then_some(())).await;
    let tampered = scene.version_of(GUEST, "v2");
    let digest = sha256(Path::new(&tampered));
    let staged = scene.registry.reference("team/router:staged");
    scene.tool(&["push", &tampered, &staged]).expect("pushed");
    scene.tool(&["sign", &staged, "--key", &scene.file("team.key")]).expect("signed");
    let blob = scene.registry.blob(&digest);
    let mut bytes = std::fs::read(&blob).expect("a blob");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(&blob, bytes).expect("written");
    scene.push_as(&tampered, &tag(&scene));
    fetched(&gateway, "damaged").await;
    assert!(serves(&gateway, NEXT, &first).await);
    has_its_share(&gateway).await;

    let second = scene.push_signed_as(&scene.version_of(GUEST, "v3"), &tag(&scene));
    comes_to_serve(&gateway, NEXT, &second).await;
    has_its_share(&gateway).await;
    scene.kept(&second).await;
    scene.registry.down();
    fetched(&gateway, "unreachable").await;
    assert!(gateway.reload(&config).0, "a reload takes the version that served");
    assert!(serves(&gateway, NEXT, &second).await);
    has_its_share(&gateway).await;
    drop(gateway);

    // A new process has what served last, and with the other policy begins without.
    let gateway = Gateway::start(&config).await;
    assert!(serves(&gateway, NEXT, &second).await);
    has_its_share(&gateway).await;
    drop(gateway);
    let refuse = config.replace("refresh =", "on_fetch_failure = \"refuse\"\nrefresh =");
    let gateway = Gateway::start(&refuse).await;
    current_alone(&gateway).await;
    assert_eq!(refused(&gateway).await.map(|(name, ..)| name).as_deref(), Some(NEXT));
    scene.registry.up().await;
    comes_to_serve(&gateway, NEXT, &second).await;
    has_its_share(&gateway).await;
    // Promoted: the plugin takes over what its next version was.
    let promoted = with(&scene, &format!("signed_by = [\"{}\"]", scene.file("team.pub")), "")
        .replace(&format!("source = \"{}\"", root().join(GUEST).display()), &format!("source = \"{}\"", tag(&scene)))
        .replace("behave = \"forward\", cluster = \"native\"", "behave = \"trap_on_path\"");
    let (taken, said) = gateway.reload(&promoted);
    assert!(taken, "{said}");
    assert!(serves(&gateway, "router", &second).await && !serves(&gateway, NEXT, &second).await);
    assert_eq!(answered(&gateway, "/").await, (0, 40));
}

/// What is revoked is not rolled out: the version before it is, or none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_next_version_leaves_the_current_one_alone() {
    let Some(scene) = Scene::new().await else { return };
    scene.write("revoked", b"# none yet\n");
    let list = format!("revoked = \"{}\"", scene.file("revoked"));
    let first = scene.push_signed_as(&scene.version_of(GUEST, "v1"), &tag(&scene));
    let config = config(&scene, "refresh = \"200ms\"", &list);
    let gateway = Gateway::start(&config).await;
    comes_to_serve(&gateway, NEXT, &first).await;
    let second = scene.push_signed_as(&scene.version_of(GUEST, "v2"), &tag(&scene));
    comes_to_serve(&gateway, NEXT, &second).await;
    scene.write("revoked", format!("{second}\n").as_bytes());
    comes_to_serve(&gateway, NEXT, &first).await;
    has_its_share(&gateway).await;
    scene.write("revoked", format!("{second}\n{first}\n").as_bytes());
    eventually("it is gone", async || (!serves(&gateway, NEXT, "sha256").await).then_some(())).await;
    current_alone(&gateway).await;
    assert!(status(&gateway).await["rollouts"].as_array().is_some_and(Vec::is_empty));
    assert!(refused(&gateway).await.is_some_and(|(_, _, why)| why.contains("is revoked")));
    // Nor does a reload or a start bring it back, or fail for it.
    assert!(gateway.reload(&config).0);
    current_alone(&gateway).await;
    let third = scene.push_signed_as(&scene.version_of(GUEST, "v3"), &tag(&scene));
    comes_to_serve(&gateway, NEXT, &third).await;
    has_its_share(&gateway).await;
}

/// A version that was rolled back stays so over looks and reloads; what its tag means next is another version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moved_tag_begins_a_rollout_anew() {
    let Some(scene) = Scene::new().await else { return };
    let first = scene.push_signed_as(&scene.version_of(GUEST, "v1"), &tag(&scene));
    let config = config(&scene, "refresh = \"200ms\"", "");
    let gateway = Gateway::start(&config).await;
    assert!(serves(&gateway, NEXT, &first).await);
    let share = async || gateway.metric("tidegate_plugin_rollout_share{plugin=\"router\"}").await;
    assert_eq!(share().await, 0.5);
    // The current version answers in its place.
    assert_eq!(answered(&gateway, "/trap").await, (40, 0));
    assert_eq!(share().await, 0.0);
    counted(&gateway, "fetches", "outcome", "unchanged", 2.0).await;
    assert!(gateway.reload(&config).0);
    assert_eq!(share().await, 0.0);
    current_alone(&gateway).await;
    let second = scene.push_signed_as(&scene.version_of(GUEST, "v2"), &tag(&scene));
    comes_to_serve(&gateway, NEXT, &second).await;
    assert_eq!(share().await, 0.5);
    has_its_share(&gateway).await;
    let rolled_back = "tidegate_plugin_rollout_rollbacks_total{plugin=\"router\",reason=\"faults\"}";
    assert_eq!(gateway.metric(rolled_back).await, 1.0, "what happened goes on being counted");
}

/// A digest is a version for good: it is not looked up again, but where it could not be had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shadow_comes_from_a_registry_by_its_digest() {
    let Some(mut scene) = Scene::new().await else { return };
    let version = scene.push_signed_as(&scene.version_of(GUEST, "v1"), &tag(&scene));
    scene.registry.down();
    let shadow = format!(
        "shadow = {{ source = \"{}\", settings = {{ behave = \"well\" }} }}\nsigned_by = [\"{}\"]\nrefresh = \"200ms\"",
        scene.registry.reference(&format!("team/router@{version}")),
        scene.file("team.pub")
    );
    let gateway = Gateway::start(&with(&scene, &shadow, "")).await;
    current_alone(&gateway).await;
    gateway.says("no shadow is asked").await;
    scene.registry.up().await;
    comes_to_serve(&gateway, "router@shadow", &version).await;
    scene.kept(&version).await;
    current_alone(&gateway).await;
    let sample = |name: &str| format!("tidegate_plugin_shadow_{name}_total{{plugin=\"router\",question=\"route\"}}");
    assert_eq!(gateway.metric(&sample("compared")).await, 40.0);
    assert_eq!(gateway.metric(&sample("differences")).await, 40.0);
    // It has served: nobody has to be there for it.
    scene.registry.down();
    assert!(gateway.reload(&with(&scene, &shadow, "")).0);
    assert!(serves(&gateway, "router@shadow", &version).await);
    assert_eq!(refused(&gateway).await, None);
}

/// A look at one tag reads nothing else: a file that changed meanwhile waits for a reload.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_at_one_tag_leaves_the_other_versions_alone() {
    let Some(scene) = Scene::new().await else { return };
    let first = scene.push_signed_as(&scene.version_of(GUEST, "v1"), &tag(&scene));
    let shadow = scene.version_of(GUEST, "shadow");
    let keys = format!("refresh = \"200ms\"\nshadow = {{ source = \"{shadow}\" }}");
    let gateway = Gateway::start(&config(&scene, &keys, "")).await;
    comes_to_serve(&gateway, NEXT, &first).await;
    let digest = sha256(Path::new(&shadow));
    assert!(serves(&gateway, "router@shadow", &digest).await);
    std::fs::write(&shadow, EMPTY).expect("written");
    let second = scene.push_signed_as(&scene.version_of(GUEST, "v2"), &tag(&scene));
    comes_to_serve(&gateway, NEXT, &second).await;
    assert!(serves(&gateway, "router@shadow", &digest).await);
    has_its_share(&gateway).await;
}
