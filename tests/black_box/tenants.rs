//! Tenants are apart: what a router may name, what is in flight, what is kept, and what each may use.

use std::net::SocketAddr;

use tidegate_tests::{Client, Gateway, Origin, eventually};

use crate::hostile::guest;

fn listener() -> &'static str {
    "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\n"
}

/// A plugin `p` on a tenant's only route; `more` goes into it.
fn config(origin: SocketAddr, behave: &str, tenant: &str, more: &str) -> String {
    format!(
        "{}[[tenant]]\nname = \"a\"\nhosts = \"a.test\"\n{tenant}\n\
         [[cluster]]\nname = \"api\"\ntenant = \"a\"\nendpoints = [\"{origin}\"]\n\
         [[plugin]]\nname = \"p\"\ntenant = \"a\"\nsource = \"{}\"\nsettings = {{ {behave} }}\n{more}\n\
         [[route]]\ntenant = \"a\"\nhost = \"a.test\"\nrouter = \"p\"\ncluster = \"api\"\n",
        listener(),
        guest()
    )
}

fn faults(cause: &str) -> String {
    format!("tidegate_plugin_faults_total{{plugin=\"p\",tenant=\"a\",question=\"route\",cause=\"{cause}\"}}")
}

const KV: &str = "limits = { kv = \"1MiB\" }";

/// The misbehaving component imports `kv`.
const GRANT: &str = "grants = { kv = \"64KiB\" }";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_names_clusters_of_its_tenant_and_shared_ones() {
    let (own, other) = (Origin::http1().await, Origin::http1().await);
    for (to, shared, reaches) in
        [("others", "tenant = \"b\"", false), ("others", "", false), ("others", "shared = true", true)]
    {
        let more = format!(
            "[[tenant]]\nname = \"b\"\nhosts = \"b.test\"\n[[cluster]]\nname = \"{to}\"\n{shared}\nendpoints = [\"{}\"]\n",
            other.address
        );
        let behave = format!("behave = \"forward\", to = \"{to}\"");
        let gateway = Gateway::start(&(config(own.address, &behave, KV, GRANT) + &more)).await;
        let before = other.record().len();
        let answer = Client::http1(gateway.edge()).authority("a.test").get("/").await.expect("an answer");
        assert_eq!(answer.status, 200, "{shared}: the native answer stands");
        assert_eq!(other.record().len() - before, usize::from(reaches), "{shared}");
        assert_eq!(gateway.metric(&faults("invalid")).await, f64::from(u8::from(!reaches)), "{shared}");
        let line = eventually("a line", async || gateway.access_log().pop()).await;
        assert_eq!(line["tenant"], "a");
    }
}

/// Beyond its budget a plugin is not asked, is not blamed, and is asked again when there is more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_its_cpu_budget_a_plugin_is_shed() {
    let origin = Origin::http1().await;
    let behave = "behave = \"work\", work = 3000000";
    for (limits, more) in [
        (KV.to_owned(), "limits = { time = \"1s\", cpu = \"2ms\" }"),
        ("limits = { kv = \"1MiB\", cpu = \"2ms\" }".to_owned(), "limits = { time = \"1s\" }"),
    ] {
        let more = format!("{more}\n{GRANT}\non_failure = \"deny\"");
        let gateway = Gateway::start(&config(origin.address, behave, &limits, &more)).await;
        let client = Client::http1(gateway.edge()).authority("a.test");
        let mut statuses = Vec::new();
        for _ in 0..30 {
            statuses.push(client.get("/").await.expect("an answer").status.as_u16());
        }
        assert_eq!(statuses[0], 200, "{limits} {more}");
        let shed = statuses.iter().filter(|status| **status == 503).count();
        assert!(shed > 0, "{statuses:?}");
        assert_eq!(gateway.metric(&faults("budget")).await, shed as f64);
        assert_eq!(gateway.metric("tidegate_plugin_quarantined{plugin=\"p\",tenant=\"a\"}").await, 0.0);
        assert!(gateway.metric("tidegate_tenant_cpu_seconds_total{tenant=\"a\"}").await > 0.0);
        gateway.says("plugin over its budget").await;
        eventually("it is asked again", async || {
            client.get("/").await.is_ok_and(|answer| answer.status == 200).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_beyond_a_tenants_bound_are_refused_with_a_cause_of_their_own() {
    let slow = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let tenant = "limits = { kv = \"1MiB\", requests = 2 }";
    let config = config(slow.local_addr().expect("bound"), "behave = \"well\"", tenant, GRANT);
    let gateway = Gateway::start(&config).await;
    let client = Client::http1(gateway.edge()).authority("a.test");
    // Accepted by the system, never answered.
    let held: Vec<_> = (0..2)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get("/held").await.map(|answer| answer.status.as_u16()).ok() })
        })
        .collect();
    let active = "tidegate_tenant_requests_active{tenant=\"a\"}";
    eventually("two in flight", async || (gateway.metric(active).await == 2.0).then_some(())).await;
    let refused = client.get("/more").await.expect("an answer");
    assert_eq!((refused.status.as_u16(), refused.header("retry-after")), (429, Some("1")));
    assert_eq!(gateway.metric("tidegate_tenant_requests_refused_total{tenant=\"a\"}").await, 1.0);
    let faults = "tidegate_faults_total{cause=\"tenant_full\"}";
    eventually("its fault is counted", async || (gateway.metric(faults).await == 1.0).then_some(())).await;
    let line =
        eventually("its line", async || gateway.access_log().into_iter().find(|line| line["path"] == "/more")).await;
    assert_eq!((&line["cause"], &line["tenant"]), (&"tenant_full".into(), &"a".into()));
    held.iter().for_each(tokio::task::JoinHandle::abort);
    eventually("places are free again", async || (gateway.metric(active).await == 0.0).then_some(())).await;
}

async fn count(gateway: &Gateway) -> u32 {
    let answer = Client::http1(gateway.edge()).authority("a.test").get("/").await.expect("an answer");
    answer.header("x-asked").expect("the plugin's field").parse().expect("a number")
}

/// One store for all workers, over a reload and, on disk, over a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kv_is_shared_by_workers_and_outlives_a_reload_and_a_restart() {
    let origin = Origin::http1().await;
    let persist = "grants = { kv = \"64KiB\", kv_persist = \"kv.redb\" }";
    let with = |more: &str| config(origin.address, "behave = \"count_kv\"", KV, more);
    let mut gateway = Gateway::start(&with(persist)).await;
    for expected in 1..=20 {
        assert_eq!(count(&gateway).await, expected, "whichever worker is asked");
    }
    // Other limits: another plugin to the runtime, the same one to its store.
    let (taken, said) = gateway.reload(&with(&format!("limits = {{ time = \"9ms\" }}\n{persist}")));
    assert!(taken, "{said}");
    assert_eq!(count(&gateway).await, 21);
    let file = gateway.folder.path().join("gateway.toml");
    let checked = tidegate_tests::gateway::run(&["check", &file.to_string_lossy()]);
    assert!(checked.status.success(), "checking does not take the database: {checked:?}");
    gateway.signal(libc::SIGTERM);
    assert!(gateway.ended().await.success());
    let folder = std::mem::replace(&mut gateway.folder, tempfile::tempdir().expect("a folder"));
    std::fs::remove_file(folder.path().join("addresses.json")).expect("it was there");
    let gateway = Gateway::start_in(folder, &with(persist)).await;
    assert_eq!(count(&gateway).await, 22);
}

/// The next version counts where the current one does, neither its trial nor a reload does, and its counts are the plugin's
/// when it takes over. With keys of its own it begins anew, and leaves the plugin's alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_next_version_shares_the_plugins_kv_or_has_its_own() {
    let origin = Origin::http1().await;
    let with = |more: &str| config(origin.address, "behave = \"count_kv\"", KV, &format!("{GRANT}\n{more}"));
    let rollout = |share: &str, keys: &str| {
        with(&format!("rollout = {{ source = \"{}\", share = \"{share}\", {keys} }}", guest()))
    };
    let gateway = Gateway::start(&with("")).await;
    assert_eq!((count(&gateway).await, count(&gateway).await), (1, 2));
    let (taken, said) = gateway.reload(&rollout("100%", ""));
    assert!(taken, "{said}");
    assert_eq!((count(&gateway).await, count(&gateway).await), (3, 4));
    let decided = |version: &str| {
        format!("tidegate_plugin_rollout_decisions_total{{plugin=\"p\",tenant=\"a\",version=\"{version}\"}}")
    };
    assert_eq!((gateway.metric(&decided("next")).await, gateway.metric(&decided("current")).await), (2.0, 0.0));
    assert_eq!(gateway.metric("tidegate_plugin_rollout_share{plugin=\"p\",tenant=\"a\"}").await, 1.0);
    assert!(gateway.reload(&rollout("0%", "")).0);
    assert_eq!(count(&gateway).await, 5, "the current one goes on from there");
    assert!(gateway.reload(&rollout("100%", "kv = \"own\"")).0);
    assert_eq!((count(&gateway).await, count(&gateway).await), (1, 2));
    assert!(gateway.reload(&with("")).0);
    assert_eq!(count(&gateway).await, 6);
}

/// What a shadow keeps is its own: the plugin counts as without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shadow_has_keys_of_its_own() {
    let origin = Origin::http1().await;
    let shadow = format!("{GRANT}\nshadow = {{ source = \"{}\" }}", guest());
    let with = |tenant: &str| config(origin.address, "behave = \"count_kv\"", tenant, &shadow);
    let gateway = Gateway::start(&with(KV)).await;
    for expected in 1..=5 {
        assert_eq!(count(&gateway).await, expected);
    }
    let compared =
        |name: &str| format!("tidegate_plugin_shadow_{name}_total{{plugin=\"p\",tenant=\"a\",question=\"route\"}}");
    assert_eq!(gateway.metric(&compared("compared")).await, 5.0);
    // From one on, like the plugin: so they say the same.
    assert_eq!(gateway.metric(&compared("differences")).await, 0.0);
    let page = gateway.admin_get("/metrics").await.text();
    let versions = page.lines().filter(|line| line.starts_with("tidegate_plugin_version_info{"));
    let labels: Vec<_> = versions.filter_map(|line| line.split(",component").next()).collect();
    let of = |name: &str| format!("tidegate_plugin_version_info{{plugin=\"{name}\",tenant=\"a\"");
    assert_eq!(labels, [of("p"), of("p@shadow")]);
    // Both are within what the tenant has.
    let (taken, said) = gateway.reload(&with("limits = { kv = \"127KiB\" }"));
    assert!(!taken && said.contains("are granted 131072 bytes of kv together"), "{said}");
}

/// A shadow that may run no more is not asked, which is no difference.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shadow_over_its_budget_is_not_asked() {
    let origin = Origin::http1().await;
    let more = format!(
        "limits = {{ time = \"1s\", cpu = \"2ms\" }}\n{GRANT}\n\
         shadow = {{ source = \"{}\", settings = {{ behave = \"work\", work = 3000000 }} }}",
        guest()
    );
    let gateway = Gateway::start(&config(origin.address, "behave = \"well\"", KV, &more)).await;
    let client = Client::http1(gateway.edge()).authority("a.test");
    for _ in 0..40 {
        assert_eq!(client.get("/").await.expect("an answer").status, 200);
    }
    let skipped = async |reason: &str| {
        let labels = format!("plugin=\"p\",tenant=\"a\",reason=\"{reason}\"");
        gateway.metric(&format!("tidegate_plugin_shadow_skipped_total{{{labels}}}")).await
    };
    let (budget, rate) = (skipped("budget").await, skipped("rate").await);
    let row = "plugin=\"p\",tenant=\"a\",question=\"route\"";
    let compared = gateway.metric(&format!("tidegate_plugin_shadow_compared_total{{{row}}}")).await;
    assert!(budget > 0.0 && budget + rate + compared == 40.0, "{budget} {rate} {compared}");
    assert_eq!(gateway.metric(&format!("tidegate_plugin_shadow_differences_total{{{row}}}")).await, 0.0);
}

#[test]
fn kv_without_a_grant_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("x.toml");
    std::fs::write(&file, config(([127, 0, 0, 1], 1).into(), "behave = \"well\"", "", "")).expect("written");
    let output = tidegate_tests::gateway::run(&["check", &file.to_string_lossy()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("tidegate:policy/kv@0.1.0") && said.contains("set grants.kv"), "{said}");
}
