//! A configuration is swapped with nothing dropped, or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use http::Response;
use tidegate_tests::origin::full;
use tidegate_tests::{Client, Gateway, Origin, eventually};

/// Requests go on while the configuration changes back and forth: none fails, all go where one of the two says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_under_load_drop_nothing() {
    let one = Origin::answering(false, |_| Response::new(full("one"))).await;
    let two = Origin::answering(false, |_| Response::new(full("two"))).await;
    let plugin = "[[plugin]]\nname = \"latency\"\nsource = \"builtin:latency-aware\"\n";
    let config =
        |origin: &Origin| format!("{plugin}{}", crate::simple(&[origin.address], "balance = { plugin = \"latency\" }"));
    let gateway = Gateway::start(&config(&one)).await;
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load: Vec<_> = (0..4)
        .map(|index| {
            let client = if index % 2 == 0 { Client::http1(gateway.edge()) } else { Client::http2(gateway.edge()) };
            let (stop, asked) = (stop.clone(), asked.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.get("/").await.map_err(|error| error.to_string())?;
                    if answer.status != 200 || !["one", "two"].contains(&answer.text().as_str()) {
                        return Err(format!("{} {}", answer.status, answer.text()));
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        })
        .collect();
    for round in 0..10 {
        let seen = asked.load(Ordering::Relaxed);
        eventually("requests go on", async || (asked.load(Ordering::Relaxed) > seen + 5).then_some(())).await;
        let (taken, said) = gateway.reload(&config(if round % 2 == 0 { &two } else { &one }));
        assert!(taken, "{said}");
    }
    stop.store(true, Ordering::Relaxed);
    for task in load {
        assert_eq!(task.await.expect("no panic"), Ok(()));
    }
    // The plugin is the same in every configuration: loaded once, and its counts go on.
    assert!(gateway.metric("tidegate_plugin_instantiations_total{plugin=\"latency\"}").await <= 3.0);
    assert_eq!(gateway.metric("tidegate_config_generation").await, 11.0);
}

/// An error keeps the old configuration, and is told to whoever asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_configuration_changes_nothing() {
    let origin = Origin::http1().await;
    let good = crate::simple(&[origin.address], "");
    let gateway = Gateway::start(&good).await;
    let client = Client::http1(gateway.edge());
    for (bad, expected) in [
        (good.replace("cluster = \"api\"\n", "cluster = \"apis\"\n"), "did you mean \"api\"?"),
        (good.replacen("127.0.0.1:0", "127.0.0.1:1:2", 1), "is not an address and port"),
        (format!("{good}router = \"p\"\n[[plugin]]\nname = \"p\"\nsource = \"missing.wasm\"\n"), "cannot read"),
        (
            format!("{good}router = \"p\"\n[[plugin]]\nname = \"p\"\nsource = \"gateway.toml\"\n"),
            "not a WebAssembly component",
        ),
        (
            format!("{good}router = \"p\"\n[[plugin]]\nname = \"p\"\nsource = \"builtin:tenant-canary\"\n"),
            "settings are refused",
        ),
        (
            format!("{good}router = \"p\"\n[[plugin]]\nname = \"p\"\nsource = \"builtin:latency-aware\"\n"),
            "does not answer \"route\"",
        ),
    ] {
        let (taken, said) = gateway.reload(&bad);
        assert!(!taken && said.contains(expected) && said.contains("gateway.toml:"), "{said}");
        assert_eq!(client.get("/").await.expect("an answer").status, 200);
    }
    assert_eq!(gateway.metric("tidegate_reloads_total{outcome=\"refused\"}").await, 6.0);
    assert_eq!(gateway.metric("tidegate_config_generation").await, 1.0);
}

/// SIGHUP reloads too; endpoints keep their counts, listeners come and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_reloads_and_endpoints_keep_their_state() {
    let origin = Origin::http1().await;
    let config = crate::simple(&[origin.address], "");
    let gateway = Gateway::start(&config).await;
    let client = Client::http1(gateway.edge());
    client.get("/").await.expect("an answer");
    let path = gateway.folder.path().join("gateway.toml");
    let text = std::fs::read_to_string(&path).expect("the configuration");
    std::fs::write(&path, format!("{text}\n[[listener]]\nname = \"second\"\naddress = \"127.0.0.1:0\"\n"))
        .expect("written");
    gateway.signal(libc::SIGHUP);
    eventually("the new generation serves", async || {
        (gateway.metric("tidegate_config_generation").await == 2.0).then_some(())
    })
    .await;
    client.get("/").await.expect("an answer");
    let sample = format!("tidegate_endpoint_requests_total{{cluster=\"api\",endpoint=\"{}\"}}", origin.address);
    assert_eq!(gateway.metric(&sample).await, 2.0);
    let status: serde_json::Value = serde_json::from_str(&gateway.admin_get("/status").await.text()).expect("JSON");
    let second =
        status["listeners"].as_array().expect("listeners").iter().find(|l| l["name"] == "second").expect("it is there");
    let address = second["address"].as_str().expect("an address").parse().expect("an address");
    assert_eq!(Client::http1(address).get("/").await.expect("an answer").status, 200);
    assert!(gateway.reload(&config).0);
    eventually("the second listener is gone", async || Client::http1(address).get("/").await.err()).await;
}

/// The code says whose fault it was: 2 is a bad configuration.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_reload_has_its_code_and_what_needs_a_restart_is_told() {
    let origin = Origin::http1().await;
    let good = crate::simple(&[origin.address], "");
    let gateway = Gateway::start(&good).await;
    let file = gateway.folder.path().join("gateway.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let reload = || tidegate_tests::gateway::run(&["reload", "--admin", &gateway.admin().to_string()]).status.code();
    std::fs::write(&file, "nonsense").expect("written");
    assert_eq!(reload(), Some(2));
    // An address that cannot be bound is no mistake of the file.
    std::fs::write(&file, text.replace("127.0.0.1:0\"\n[[cluster]]", "203.0.113.1:1\"\n[[cluster]]")).expect("written");
    assert_eq!(reload(), Some(1));
    std::fs::write(&file, text.replace("workers = 2", "workers = 3")).expect("written");
    assert_eq!(reload(), Some(0));
    gateway.says("gateway.workers differs").await;
}
