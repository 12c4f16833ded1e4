//! What operators see: metrics, health, status, the access log.

use http::Method;
use tidegate_tests::{Client, Gateway, Origin, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_listener_tells() {
    let origin = Origin::http1().await;
    let gateway = crate::gateway_to(origin.address).await;
    for (client, version) in [(Client::http1(gateway.edge()), "h1"), (Client::http2(gateway.edge()), "h2")] {
        let answer = client.send(Method::POST, "/a?b=\"c", &[], "12345").await;
        // hyper refuses to send the quote in some versions; a plain path will do.
        if answer.is_err() {
            client.send(Method::POST, "/a", &[], "12345").await.expect("an answer");
        }
        let sample = format!("tidegate_exchanges_total{{protocol=\"{version}\",status=\"2xx\"}}");
        // An exchange is counted once its last byte is on its way.
        eventually("it is counted", async || (gateway.metric(&sample).await == 1.0).then_some(())).await;
    }
    assert_eq!(gateway.metric("tidegate_body_bytes_total{direction=\"in\"}").await, 10.0);
    assert_eq!(gateway.metric("tidegate_body_bytes_total{direction=\"out\"}").await, 4.0);
    for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/status", 200), ("/nothing", 404), ("/reload", 405)] {
        assert_eq!(gateway.admin_get(path).await.status, status, "{path}");
    }
    let line = eventually("it is logged", async || gateway.access_log().into_iter().next()).await;
    for (key, value) in [
        ("method", "POST"),
        ("protocol", "h1"),
        ("listener", "edge"),
        ("route", "all"),
        ("cluster", "api"),
        ("client", "127.0.0.1"),
    ] {
        assert_eq!(line[key], value, "{line}");
    }
    assert_eq!(
        (line["status"].as_u64(), line["bytes_in"].as_u64(), line["bytes_out"].as_u64()),
        (Some(200), Some(5), Some(2))
    );
    assert_eq!(line["endpoint"], origin.address.to_string());
}

/// Routes by host, path, method and header; direct responses; 404 where nothing matches; limits on bodies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_route_table_decides() {
    let origin = Origin::http1().await;
    let config = format!(
        r#"
[[listener]]
name = "edge"
address = "127.0.0.1:0"
[[cluster]]
name = "api"
endpoints = ["{}"]
[[route]]
name = "small"
host = "api.example"
path = "/v1/*"
methods = ["POST"]
cluster = "api"
max_request_body = "4B"
[[route]]
name = "teapot"
host = "*.example"
respond = {{ status = 418, body = "short and stout", headers = {{ "x-kind" = "tea" }} }}
"#,
        origin.address
    );
    let gateway = Gateway::start(&config).await;
    let client = Client::http1(gateway.edge());
    let ask = async |method: Method, path: &str, host: &str, body: &'static str| {
        client.send(method, path, &[("host", host)], body).await.expect("an answer")
    };
    assert_eq!(ask(Method::POST, "/v1/x", "api.example", "1234").await.status, 200);
    assert_eq!(ask(Method::POST, "/v1/x", "api.example", "12345").await.status, 413);
    let tea = ask(Method::GET, "/v1/x", "api.example", "").await;
    assert_eq!((tea.status.as_u16(), tea.text().as_str(), tea.header("x-kind")), (418, "short and stout", Some("tea")));
    let none = ask(Method::GET, "/", "elsewhere", "").await;
    assert_eq!(
        (none.status.as_u16(), none.header("proxy-status")),
        (404, Some("tidegate; error=destination_not_found"))
    );
}

/// Conduct "X-Forwarded-For", "Forwarded": mixing both families and trusting the wrong one (RFC 7239, section 7.4). A
/// trusted proxy that maintains one family passes the other through as its client wrote it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_family_that_a_trusted_proxy_passes_through_is_not_believed() {
    let origin = Origin::http1().await;
    let start = async |family: &str| {
        let trust = format!("trusted_proxies = [\"127.0.0.1\"]\n{family}\n[[cluster]]");
        let rule = "cluster = \"api\"\nforwarding = { families = [\"x_real_ip\"], mode = \"replace\" }\n";
        let config = crate::simple(&[origin.address], "");
        Gateway::start(&config.replace("[[cluster]]", &trust).replace("cluster = \"api\"\n", rule)).await
    };
    let real = async |gateway: &Gateway, fields: &[(&str, &str)]| {
        Client::http1(gateway.edge()).send(Method::GET, "/", fields, "").await.expect("an answer");
        origin.last().header("x-real-ip").map(str::to_owned)
    };
    let conflict = [("forwarded", "for=192.0.2.66"), ("x-forwarded-for", "192.0.2.7")];
    let gateway = start("").await;
    assert_eq!(real(&gateway, &conflict[1..]).await.as_deref(), Some("192.0.2.7"));
    assert_eq!(real(&gateway, &conflict).await.as_deref(), Some("127.0.0.1"), "neither is believed");
    assert_eq!(gateway.metric("tidegate_forwarding_conflicts_total").await, 1.0);
    let same = [("forwarded", "for=192.0.2.7"), ("x-forwarded-for", "192.0.2.7")];
    assert_eq!(real(&gateway, &same).await.as_deref(), Some("192.0.2.7"));
    // A client that fills the list up does not push out of sight what its proxy added.
    let long = format!("{}192.0.2.7", "127.0.0.1, ".repeat(40));
    assert_eq!(real(&gateway, &[("x-forwarded-for", &long)]).await.as_deref(), Some("192.0.2.7"));
    let gateway = start("trusted_family = \"x_forwarded\"").await;
    assert_eq!(real(&gateway, &conflict).await.as_deref(), Some("192.0.2.7"));
}
