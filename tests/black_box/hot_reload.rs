//! A plugin is replaced a hundred times under load, and nobody notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use http::Response;
use tidegate_tests::gateway::root;
use tidegate_tests::origin::full;
use tidegate_tests::{Client, Gateway, Origin, eventually};

const RELOADS: usize = 100;
/// After so many, memory is where it stays.
const WARM_UP: usize = 30;
/// What the rest of them may add to resident memory: a leaked instance alone would add 64 KiB of its own memory for each worker
/// and reload, its compiled code far more.
const MORE_MEMORY: u64 = 4 << 20;

fn config(origin: &Origin, round: usize) -> String {
    // Room for both workers' instances of both plugins, before and after, and those of the load step: a leak empties it.
    format!(
        r#"max_plugin_instances = 16
[[listener]]
name = "edge"
address = "127.0.0.1:0"
[[cluster]]
name = "api"
endpoints = ["{}"]
[[plugin]]
name = "changing"
source = "plugin.wasm"
settings = {{ behave = "forward", cluster = "api", round = {round} }}
limits = {{ time = "1s" }}
[[plugin]]
name = "same"
source = "builtin:tenant-canary"
settings = {{ tenant_from = [{{ header = "x-tenant" }}], tenants = [], default = "api" }}
memoise = true
limits = {{ time = "1s" }}
[[route]]
path = "/changing/*"
router = "changing"
cluster = "api"
[[route]]
path = "/same"
router = "same"
cluster = "api"
"#,
        origin.address
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_under_load_fail_no_request_and_leak_nothing() {
    let origin = Arc::new(Origin::answering(false, |_| Response::new(full("ok"))).await);
    let folder = tempfile::tempdir().expect("a folder");
    let plugin = folder.path().join("plugin.wasm");
    let built = root().join("tests/guests/built");
    let components =
        ["misbehave_router.wasm", "reader.wasm"].map(|name| std::fs::read(built.join(name)).expect("a guest"));
    // Written beside and renamed: a plugin that is half written would be refused, and rightly.
    let replace = |round: usize| {
        let beside = plugin.with_extension("part");
        std::fs::write(&beside, &components[round % 2]).expect("written");
        std::fs::rename(&beside, &plugin).expect("renamed");
    };
    replace(0);
    let gateway = Gateway::start_in(folder, &config(&origin, 0)).await;
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load: Vec<_> = (0..4)
        .map(|index| {
            let client = if index % 2 == 0 { Client::http1(gateway.edge()) } else { Client::http2(gateway.edge()) };
            let (stop, asked, origin) = (stop.clone(), asked.clone(), origin.clone());
            tokio::spawn(async move {
                let mut round = index;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let path = if round % 4 < 2 { "/same" } else { "/changing/x" };
                    let answer = client.get(path).await.map_err(|error| error.to_string())?;
                    if answer.status != 200 {
                        return Err(format!("{path}: {} {}", answer.status, answer.text()));
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                    origin.forget();
                }
                Ok(())
            })
        })
        .collect();
    let go_on = async |more: u64| {
        let seen = asked.load(Ordering::Relaxed);
        eventually("requests go on", async || (asked.load(Ordering::Relaxed) >= seen + more).then_some(())).await;
    };
    go_on(50).await;
    let made = "tidegate_plugin_instantiations_total{plugin=\"same\"}";
    let instances = gateway.metric(made).await;
    let mut warm = 0;
    for round in 1..=RELOADS {
        replace(round);
        let (taken, said) = gateway.reload(&config(&origin, round));
        assert!(taken, "round {round}: {said}");
        go_on(4).await;
        if round == WARM_UP {
            warm = gateway.resident();
        }
    }
    let end = gateway.resident();
    stop.store(true, Ordering::Relaxed);
    for task in load {
        assert_eq!(task.await.expect("no panic"), Ok(()));
    }
    let question =
        |name: &str, plugin: &str| format!("tidegate_plugin_{name}_total{{plugin=\"{plugin}\",question=\"route\"}}");
    println!(
        "{} requests; resident {} KiB after {WARM_UP} reloads, {} KiB after {RELOADS}",
        asked.load(Ordering::Relaxed),
        warm >> 10,
        end >> 10
    );
    assert!(end <= warm + MORE_MEMORY, "resident memory grew from {warm} to {end}");
    assert_eq!(gateway.metric("tidegate_config_generation").await, RELOADS as f64 + 1.0);
    // Nothing changed of it: its instances are those of the beginning (a worker that was not asked before may have made one
    // since), and what they remember is still known.
    let now = gateway.metric(made).await;
    assert!(now <= 3.0 && now <= instances + 1.0, "{instances}, then {now} instances made");
    let (decisions, remembered) =
        (gateway.metric(&question("decisions", "same")).await, gateway.metric(&question("memo_hits", "same")).await);
    assert!(decisions - remembered <= 2.0, "{remembered} of {decisions} answers were remembered");
    for plugin in ["same", "changing"] {
        let live = gateway.metric(&format!("tidegate_plugin_instances{{plugin=\"{plugin}\"}}")).await;
        assert!(live <= 2.0, "{live} instances of {plugin}");
        for cause in ["exhausted", "trap", "deadline"] {
            let sample =
                format!("tidegate_plugin_faults_total{{plugin=\"{plugin}\",question=\"route\",cause=\"{cause}\"}}");
            assert_eq!(gateway.metric(&sample).await, 0.0, "{plugin}: {cause}");
        }
    }
}
