//! A plugin's next version has its share, and is taken back by itself when it does worse.

use std::collections::HashSet;
use std::net::SocketAddr;

use http::{Method, Response};
use tidegate_tests::gateway::{free_address, root};
use tidegate_tests::origin::full;
use tidegate_tests::{Client, Gateway, Origin, eventually};

/// A router that sends everything to `old`; its next version has these settings, and these keys besides.
struct Canary {
    old: Origin,
    new: Origin,
    /// Nobody listens there.
    dead: SocketAddr,
}

impl Canary {
    async fn new() -> Self {
        let named = async |name: &'static str| Origin::answering(false, move |_| Response::new(full(name))).await;
        Self { old: named("old").await, new: named("new").await, dead: free_address() }
    }

    fn config(&self, settings: &str, keys: &str) -> String {
        let source = root().join("tests/guests/built/misbehave_router.wasm");
        let source = source.display();
        format!(
            r#"
[[listener]]
name = "edge"
address = "127.0.0.1:0"
[[cluster]]
name = "old"
endpoints = ["{}"]
[[cluster]]
name = "new"
endpoints = ["{}"]
[[cluster]]
name = "dead"
endpoints = ["{}"]
[[plugin]]
name = "canary"
source = "{source}"
settings = {{ behave = "forward", cluster = "old" }}
limits = {{ time = "200ms" }}
rollout = {{ source = "{source}", settings = {settings}, {keys} }}
[[route]]
router = "canary"
"#,
            self.old.address, self.new.address, self.dead
        )
    }
}

/// Asks so often, four at a time; how many were answered otherwise than 200 by `old` or `new`.
async fn load(gateway: &Gateway, path: &'static str, each: usize) -> usize {
    let tasks = (0..4).map(|index| {
        let client = if index % 2 == 0 { Client::http1(gateway.edge()) } else { Client::http2(gateway.edge()) };
        tokio::spawn(async move {
            let mut failed = 0;
            for _ in 0..each {
                let answer = client.get(path).await.expect("an answer");
                failed += usize::from(answer.status != 200);
            }
            failed
        })
    });
    let mut failed = 0;
    for task in tasks.collect::<Vec<_>>() {
        failed += task.await.expect("no panic");
    }
    failed
}

async fn rollbacks(gateway: &Gateway, reason: &str) -> f64 {
    let sample = format!("tidegate_plugin_rollout_rollbacks_total{{plugin=\"canary\",reason=\"{reason}\"}}");
    gateway.metric(&sample).await
}

async fn share(gateway: &Gateway) -> f64 {
    gateway.metric("tidegate_plugin_rollout_share{plugin=\"canary\"}").await
}

async fn decisions(gateway: &Gateway, version: &str) -> f64 {
    let sample = format!("tidegate_plugin_rollout_decisions_total{{plugin=\"canary\",version=\"{version}\"}}");
    gateway.metric(&sample).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_version_has_its_share_and_keeps_its_users() {
    let canary = Canary::new().await;
    let config = |share: u32| {
        let keys = format!("share = \"{share}%\", sticky_by = \"header:x-user\"");
        canary.config("{ behave = \"forward\", cluster = \"new\" }", &keys)
    };
    let gateway = Gateway::start(&config(30)).await;
    let client = Client::http1(gateway.edge());
    let new_users = async || {
        let mut users = HashSet::new();
        for user in 0..60 {
            let name = user.to_string();
            let mut met = HashSet::new();
            for _ in 0..2 {
                let answer = client.send(Method::GET, "/", &[("x-user", &name)], "").await.expect("an answer");
                met.insert(answer.text());
            }
            assert_eq!(met.len(), 1, "user {user} has one version");
            users.extend(met.contains("new").then_some(user));
        }
        users
    };
    let few = new_users().await;
    assert!((6..32).contains(&few.len()), "{} of 60", few.len());
    assert_eq!(share(&gateway).await, 0.3);
    assert_eq!(decisions(&gateway, "next").await, 2.0 * few.len() as f64);
    assert_eq!(decisions(&gateway, "current").await, 2.0 * (60 - few.len()) as f64);
    // Who has the new version keeps it when others get it too; the counts go on.
    assert!(gateway.reload(&config(70)).0);
    let more = new_users().await;
    assert!(few.is_subset(&more) && more.len() > few.len(), "{} of 60", more.len());
    assert_eq!(decisions(&gateway, "next").await, 2.0 * (few.len() + more.len()) as f64);
    // Each decision says whose it was.
    let log =
        eventually("the log is written", async || Some(gateway.access_log()).filter(|log| log.len() == 240)).await;
    for line in log {
        let decision = &line["decisions"][0];
        let expected = if line["cluster"] == "new" { "canary@next" } else { "canary" };
        assert_eq!(decision["by"], expected, "{line}");
    }
    assert_eq!(
        gateway.metric("tidegate_plugin_decisions_total{plugin=\"canary@next\",question=\"route\"}").await,
        decisions(&gateway, "next").await
    );
}

/// A trap costs nobody anything: the old version steps in, and after five of them it is alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_traps_is_rolled_back_without_a_failed_request() {
    let canary = Canary::new().await;
    let config = |share: u32| {
        canary.config("{ behave = \"trap_on_path\" }", &format!("share = \"{share}%\", sticky_by = \"random\""))
    };
    let gateway = Gateway::start(&config(50)).await;
    assert_eq!(load(&gateway, "/trap", 40).await, 0);
    assert_eq!((rollbacks(&gateway, "faults").await, share(&gateway).await), (1.0, 0.0));
    // Five, and those under way on the other worker.
    assert!(decisions(&gateway, "next").await <= 9.0);
    gateway.says("rollout rolled back").await;
    gateway.says("5 faults in 30s").await;
    let status: serde_json::Value = serde_json::from_str(&gateway.admin_get("/status").await.text()).expect("JSON");
    let rollout = &status["rollouts"][0];
    assert_eq!((&rollout["state"], &rollout["rolled_back"]["reason"]), (&"rolled back".into(), &"faults".into()));
    // It stays so until a configuration changes the rollout.
    assert!(gateway.reload(&config(50)).0);
    assert_eq!((rollbacks(&gateway, "faults").await, share(&gateway).await), (1.0, 0.0));
    assert!(gateway.reload(&config(51)).0);
    assert_eq!((rollbacks(&gateway, "faults").await, share(&gateway).await), (1.0, 0.51));
}

/// Of 400 requests, a tenth of them for a version that sends them where nobody answers, those fail that prove it: with the
/// defaults three, and what was under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_leads_nowhere_is_rolled_back_after_three_errors() {
    let canary = Canary::new().await;
    let keys = "share = \"10%\", sticky_by = \"random\"";
    let gateway = Gateway::start(&canary.config("{ behave = \"forward\", cluster = \"dead\" }", keys)).await;
    let failed = load(&gateway, "/", 100).await;
    assert!((3..=6).contains(&failed), "{failed} of 400 failed");
    assert_eq!((rollbacks(&gateway, "error_rate").await, share(&gateway).await), (1.0, 0.0));
    assert_eq!(load(&gateway, "/", 25).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_version_is_rolled_back() {
    let canary = Canary::new().await;
    let keys = "share = \"50%\", sticky_by = \"random\", guard = { min = 16 }";
    let gateway = Gateway::start(
        &canary.config("{ behave = \"slow\" }", keys).replace("[[route]]", "[[route]]\ncluster = \"new\""),
    )
    .await;
    assert_eq!(load(&gateway, "/", 50).await, 0);
    assert_eq!((rollbacks(&gateway, "latency").await, share(&gateway).await), (1.0, 0.0));
    gateway.says("three of four decisions take up to").await;
}

/// What is broken in any case never serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_fails_at_a_plain_request_is_refused() {
    let canary = Canary::new().await;
    let keys = "share = \"10%\"";
    let gateway = Gateway::start(&canary.config("{ behave = \"forward\", cluster = \"new\" }", keys)).await;
    for (settings, expected) in [
        ("{ behave = \"trap\" }", "asked \"route\" of a plain request it fails: trap"),
        ("{ behave = \"refuse_settings\" }", "its settings are refused"),
    ] {
        let (taken, said) = gateway.reload(&canary.config(settings, keys));
        assert!(!taken && said.contains(expected) && said.contains("canary@next"), "{said}");
    }
    let other = canary.config("{}", keys).replace("settings = {}, ", "").replacen(
        "rollout = { source = ",
        "rollout = { source = \"builtin:latency-aware\", settings = {}, share = \"1%\" }\n#",
        1,
    );
    let (taken, said) = gateway.reload(&other);
    assert!(!taken && said.contains("does not answer the same questions as \"canary\""), "{said}");
    assert_eq!(Client::http1(gateway.edge()).get("/").await.expect("an answer").status, 200);
}
