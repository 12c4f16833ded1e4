//! A shadow is asked what its plugin is asked, and answers nobody: its differences are told.

use http::Method;
use tidegate_tests::gateway::{root, run};
use tidegate_tests::{Client, Gateway, Origin};

fn config(origin: &Origin, guest: &str, settings: &str, keys: &str) -> String {
    let built = root().join("tests/guests/built");
    format!(
        r#"
[[listener]]
name = "edge"
address = "127.0.0.1:0"
[[cluster]]
name = "a"
endpoints = ["{}"]
[[plugin]]
name = "tenants"
source = "{}"
settings = {{ behave = "forward", cluster = "a" }}
grants = {{ headers = ["x-tenant", "authorization"] }}
shadow = {{ source = "{}", settings = {settings}{keys} }}
[[route]]
router = "tenants"
"#,
        origin.address,
        built.join("misbehave_router.wasm").display(),
        built.join(guest).display()
    )
}

async fn compared(gateway: &Gateway) -> (f64, f64) {
    let sample = |name: &str| format!("tidegate_plugin_shadow_{name}_total{{plugin=\"tenants\",question=\"route\"}}");
    (gateway.metric(&sample("compared")).await, gateway.metric(&sample("differences")).await)
}

async fn report(gateway: &Gateway) -> serde_json::Value {
    serde_json::from_str(&gateway.admin_get("/shadow").await.text()).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn differences_are_counted_grouped_and_shown_without_secrets() {
    let origin = Origin::http1().await;
    let gateway = Gateway::start(&config(&origin, "reader.wasm", "{}", "")).await;
    let ask = async |path: &str, tenant: &str| {
        let fields =
            [("x-tenant", tenant), ("x-env", "hidden"), ("authorization", "Bearer hidden"), ("cookie", "hidden")];
        for client in [Client::http1(gateway.edge()), Client::http2(gateway.edge())] {
            let answer = client.send(Method::GET, path, &fields, "").await.expect("an answer");
            assert_eq!(answer.status, 200);
        }
    };
    for _ in 0..5 {
        ask("/v1/same?token=hidden", "a").await;
        ask("/v1/other?token=hidden", "b").await;
    }
    ask("/v1/third", "c").await;
    ask("/other", "a").await;
    assert_eq!(compared(&gateway).await, (24.0, 14.0));
    assert!(
        origin.record().len() == 24 && gateway.access_log().iter().all(|line| line["decisions"][0]["by"] == "tenants")
    );
    let report = report(&gateway).await;
    let shadow = &report["shadows"][0];
    let groups = shadow["groups"].as_array().expect("groups");
    let kinds: Vec<_> =
        groups.iter().map(|group| (group["shadow"].as_str().expect("words"), group["count"].as_u64())).collect();
    assert_eq!(kinds.first(), Some(&("forward b", Some(10))));
    assert!(kinds.contains(&("forward c", Some(2))) && kinds.contains(&("pass", Some(2))), "{kinds:?}");
    assert_eq!(groups[0]["stood"], "forward a");
    let example = &groups[0]["examples"][0];
    assert_eq!(
        (&example["method"], &example["host"], &example["path"]),
        (&"GET".into(), &"example.com".into(), &"/v1/other".into())
    );
    assert_eq!(
        example["fields"],
        serde_json::json!([{ "name": "x-tenant", "value": "b" }]),
        "what it read and was granted"
    );
    assert_eq!(groups[0]["examples"].as_array().map(Vec::len), Some(1), "ten times the same teach no more than once");
    assert!(!report.to_string().contains("hidden"), "{report:#}");
    let output = run(&["shadow", "--admin", &gateway.admin().to_string()]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success());
    for line in [
        "tenants@shadow",
        "14 of 24 answers differ (58.33%)",
        "10  route: forward a -> forward b",
        "GET example.com/v1/other  x-tenant: b",
    ] {
        assert!(said.contains(line), "{line:?} is not in\n{said}");
    }
    // A reload that leaves it alone leaves its counts, another begins anew.
    assert!(gateway.reload(&config(&origin, "reader.wasm", "{}", "")).0);
    assert_eq!(compared(&gateway).await, (24.0, 14.0));
    assert!(gateway.reload(&config(&origin, "reader.wasm", "{}", ", share = \"0%\"")).0);
    ask("/v1/other", "b").await;
    assert_eq!(compared(&gateway).await, (0.0, 0.0));
}

/// One that traps, loops or is slow: every request has its answer, and it is asked no more than it may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_shadow_fails_no_request() {
    let origin = Origin::http1().await;
    for (settings, keys, reason) in [
        ("{ behave = \"trap_on_path\" }", "", "quarantined"),
        ("{ behave = \"forward\", cluster = \"nowhere\" }", ", rate = 2", "rate"),
    ] {
        let gateway = Gateway::start(&config(&origin, "misbehave_router.wasm", settings, keys)).await;
        let client = Client::http1(gateway.edge());
        for _ in 0..40 {
            assert_eq!(client.get("/trap").await.expect("an answer").status, 200);
        }
        let sample = format!("tidegate_plugin_shadow_skipped_total{{plugin=\"tenants\",reason=\"{reason}\"}}");
        let (skipped, (compared, differ)) = (gateway.metric(&sample).await, compared(&gateway).await);
        assert!(skipped > 0.0 && skipped + compared == 40.0 && differ == compared, "{skipped} {compared} {differ}");
        assert_eq!(gateway.metric("tidegate_plugin_quarantined{plugin=\"tenants\"}").await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_shadow_the_report_says_so() {
    let origin = Origin::http1().await;
    let gateway = crate::gateway_to(origin.address).await;
    assert_eq!(report(&gateway).await, serde_json::json!({ "shadows": [] }));
    let output = run(&["shadow", "--admin", &gateway.admin().to_string()]);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("no plugin has a shadow"));
}
