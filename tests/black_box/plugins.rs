//! The plugins that come with the program, each as its users see it.

use http::{Method, Response, StatusCode};
use tidegate_tests::origin::full;
use tidegate_tests::{Client, Gateway, Origin};

async fn named(name: &'static str) -> Origin {
    Origin::answering(false, move |_| Response::new(full(name))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenant_canary_routes_tenants_and_their_canaries() {
    let (stable, next, shared) = (named("stable").await, named("next").await, named("shared").await);
    let config = format!(
        r#"
[[listener]]
name = "edge"
address = "127.0.0.1:0"
[[cluster]]
name = "stable"
endpoints = ["{}"]
[[cluster]]
name = "next"
endpoints = ["{}"]
[[cluster]]
name = "shared"
endpoints = ["{}"]
[[plugin]]
name = "tenants"
source = "builtin:tenant-canary"
memoise = true
[plugin.settings]
tenant_from = [{{ header = "x-tenant" }}, {{ cookie = "tenant" }}, "subdomain"]
default = "shared"
[[plugin.settings.tenants]]
name = "a"
cluster = "stable"
canary = {{ cluster = "next", percent = 50, sticky_by = {{ cookie = "sid" }}, force_header = "x-canary" }}
[[route]]
router = "tenants"
"#,
        stable.address, next.address, shared.address
    );
    let gateway = Gateway::start(&config).await;
    let client = Client::http1(gateway.edge());
    let ask =
        async |fields: &[(&str, &str)]| client.send(Method::GET, "/", fields, "").await.expect("an answer").text();
    assert_eq!(ask(&[]).await, "shared");
    assert_eq!(ask(&[("cookie", "tenant=a"), ("x-canary", "never")]).await, "stable");
    assert_eq!(ask(&[("host", "a.example.com"), ("x-canary", "always")]).await, "next");
    let mut met = std::collections::HashSet::new();
    for sid in 0..20 {
        let cookie = format!("sid={sid}");
        let fields = [("x-tenant", "a"), ("cookie", cookie.as_str())];
        let first = ask(&fields).await;
        for _ in 0..3 {
            assert_eq!(ask(&fields).await, first, "a session stays where it is");
        }
        met.insert(first);
    }
    assert_eq!(met.len(), 2, "half of the sessions get the canary");
    assert!(gateway.metric("tidegate_plugin_memo_hits_total{plugin=\"tenants\",question=\"route\"}").await > 10.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latency_aware_prefers_the_faster_endpoint() {
    let fast = named("fast").await;
    let slow = Origin::answering(false, |_| {
        std::thread::sleep(std::time::Duration::from_millis(40));
        Response::new(full("slow"))
    })
    .await;
    let plugin = "[[plugin]]\nname = \"latency\"\nsource = \"builtin:latency-aware\"\n";
    let config = crate::simple(&[slow.address, fast.address], "balance = { plugin = \"latency\" }");
    let gateway = Gateway::start(&format!("{plugin}{config}")).await;
    let client = Client::http1(gateway.edge());
    for _ in 0..60 {
        assert_eq!(client.get("/").await.expect("an answer").status, 200);
    }
    assert!(fast.record().len() > 2 * slow.record().len(), "{} and {}", fast.record().len(), slow.record().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_forwarding_hides_the_client() {
    let origin = Origin::http1().await;
    let plugin = "[[plugin]]\nname = \"private\"\nsource = \"builtin:private-forwarding\"\nsettings = { secret = \"0123456789abcdef\" }\n";
    let config = crate::simple(&[origin.address], "").replace(
        "cluster = \"api\"\n",
        "cluster = \"api\"\nforwarding = { families = [\"x_forwarded\", \"x_real_ip\"], plugin = \"private\" }\n",
    );
    let gateway = Gateway::start(&format!("{plugin}{config}")).await;
    Client::http1(gateway.edge()).get("/").await.expect("an answer");
    let seen = origin.last();
    assert!(
        seen.header("forwarded").is_some_and(|value| value.starts_with("for=_") && value.contains("proto=http")),
        "{:?}",
        seen.headers
    );
    assert!(seen.header("x-forwarded-for").is_none() && seen.header("x-real-ip").is_none());
    assert!(!format!("{:?}", seen.headers).contains("127.0.0.1"), "{:?}", seen.headers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn careful_retry_waits_as_told_and_reads_grpc() {
    let grpc = Origin::answering(false, |_| {
        let mut response = Response::new(full(""));
        response.headers_mut().insert("content-type", "application/grpc".parse().expect("a value"));
        response.headers_mut().insert("grpc-status", "14".parse().expect("a value"));
        response
    })
    .await;
    let patient = Origin::answering(false, |_| {
        let mut response = Response::new(full("later"));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert("retry-after", "600".parse().expect("a value"));
        response
    })
    .await;
    let start = async |origin: &Origin| {
        let plugin =
            "[[plugin]]\nname = \"careful\"\nsource = \"builtin:careful-retry\"\nsettings = { backoff_ms = 1 }\n";
        let config = crate::simple(&[origin.address], "")
            .replace("cluster = \"api\"\n", "cluster = \"api\"\nretry = { attempts = 5, plugin = \"careful\" }\n");
        Gateway::start(&format!("{plugin}{config}")).await
    };
    let gateway = start(&grpc).await;
    let answer = Client::http1(gateway.edge()).get("/").await.expect("an answer");
    assert_eq!((answer.header("grpc-status"), grpc.record().len()), (Some("14"), 3));
    Client::http1(gateway.edge()).send(Method::POST, "/", &[], "x").await.expect("an answer");
    assert_eq!(grpc.record().len(), 4, "a POST that was answered is not repeated, whatever the plugin thinks");
    let gateway = start(&patient).await;
    let answer = Client::http1(gateway.edge()).get("/").await.expect("an answer");
    assert_eq!((answer.status.as_u16(), patient.record().len()), (503, 1), "ten minutes are for the client to wait");
}
