//! Plugins that loop, trap, hog memory, talk nonsense or lie: everyone else notices nothing.

use tidegate_tests::gateway::root;
use tidegate_tests::{Client, Gateway, Origin};

/// A faulty plugin on one route, none on the other; `[plugin]` keys in `more`.
fn config(origin: std::net::SocketAddr, guest: &str, behave: &str, more: &str) -> String {
    let guest = root().join(format!("tests/guests/built/misbehave_{guest}.wasm"));
    let (router, balance) = match guest.to_string_lossy().contains("balancer") {
        true => ("", "balance = { plugin = \"faulty\" }"),
        false => ("router = \"faulty\"", ""),
    };
    format!(
        "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\n\
         [[cluster]]\nname = \"api\"\nendpoints = [\"{origin}\"]\n{balance}\n\
         [[cluster]]\nname = \"other\"\nendpoints = [\"{origin}\"]\n\
         [[plugin]]\nname = \"faulty\"\nsource = \"{}\"\nsettings = {{ behave = \"{behave}\" }}\n{more}\n\
         [[route]]\npath = \"/faulty\"\n{router}\ncluster = \"api\"\n\
         [[route]]\ncluster = \"other\"\n",
        guest.display()
    )
}

/// The faulty decision falls back, the others succeed, and the counter of its cause grows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_faulty_plugin_fails_alone() {
    let origin = Origin::http1().await;
    for (guest, question, behave, cause) in [
        ("router", "route", "loop", "deadline"),
        ("router", "route", "trap", "trap"),
        ("router", "route", "hog", "memory"),
        ("router", "route", "bad_status", "invalid"),
        ("router", "route", "bad_field", "invalid"),
        ("balancer", "pick", "loop", "deadline"),
        ("balancer", "pick", "trap", "trap"),
        ("balancer", "pick", "hog", "memory"),
        ("balancer", "pick", "out_of_range", "invalid"),
        ("balancer", "pick", "unavailable", "invalid"),
    ] {
        let limits = "limits = { time = \"20ms\", memory = \"8MiB\" }";
        let gateway = Gateway::start(&config(origin.address, guest, behave, limits)).await;
        let client = Client::http1(gateway.edge());
        let others = (0..20).map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                client.get("/other").await.map(|answer| answer.status.as_u16()).map_err(|e| e.to_string())
            })
        });
        let others: Vec<_> = others.collect();
        for _ in 0..8 {
            let answer = client.get("/faulty").await.expect("an answer");
            assert_eq!(answer.status, 200, "{behave}: the native answer stands");
        }
        for other in others {
            assert_eq!(other.await.expect("no panic"), Ok(200), "{behave}: others succeed");
        }
        let sample = |cause: &str| {
            format!("tidegate_plugin_faults_total{{plugin=\"faulty\",question=\"{question}\",cause=\"{cause}\"}}")
        };
        let counted = gateway.metric(&sample(cause)).await;
        assert!(counted >= 1.0, "{behave}: {cause} counted {counted}");
        // Five of a kind, and it is left alone for a while.
        assert_eq!(gateway.metric("tidegate_plugin_quarantined{plugin=\"faulty\"}").await, 1.0, "{behave}");
        assert!(gateway.metric(&sample("quarantined")).await >= 1.0, "{behave}");
    }
}

/// One wrong name is counted, and does not switch a whole router off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_cluster_is_counted_and_not_quarantined() {
    let origin = Origin::http1().await;
    let gateway = Gateway::start(&config(origin.address, "router", "unknown_cluster", "")).await;
    let client = Client::http1(gateway.edge());
    for _ in 0..12 {
        assert_eq!(client.get("/faulty").await.expect("an answer").status, 200);
    }
    let invalid = "tidegate_plugin_faults_total{plugin=\"faulty\",question=\"route\",cause=\"invalid\"}";
    assert_eq!(gateway.metric(invalid).await, 12.0);
    assert_eq!(gateway.metric("tidegate_plugin_quarantined{plugin=\"faulty\"}").await, 0.0);
}

/// An answer that cannot be used is a failure like any other: where the plugin fails closed, so is the request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_answer_fails_closed_too() {
    let origin = Origin::http1().await;
    for (guest, behave) in [("router", "unknown_cluster"), ("router", "bad_status"), ("balancer", "out_of_range")] {
        let gateway = Gateway::start(&config(origin.address, guest, behave, "on_failure = \"deny\"")).await;
        let client = Client::http1(gateway.edge());
        assert_eq!(client.get("/faulty").await.expect("an answer").status, 503, "{behave}");
        assert_eq!(client.get("/other").await.expect("an answer").status, 200, "{behave}");
    }
    assert!(origin.record().iter().all(|request| request.path == "/other"));
}

/// `on_failure = "deny"` refuses in place of falling back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_may_fail_closed() {
    let origin = Origin::http1().await;
    let gateway = Gateway::start(&config(origin.address, "router", "trap", "on_failure = \"deny\"")).await;
    let client = Client::http1(gateway.edge());
    assert_eq!(client.get("/faulty").await.expect("an answer").status, 503);
    assert_eq!(client.get("/other").await.expect("an answer").status, 200);
}

/// Isolation per question: no byte of an earlier question is there for the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fresh_memory_has_no_past() {
    let origin = Origin::http1().await;
    let counts = async |isolation: &str| {
        let more = format!("isolation = \"{isolation}\"");
        let gateway = Gateway::start(&config(origin.address, "router", "count", &more)).await;
        let mut counts = Vec::new();
        for _ in 0..6 {
            let answer = Client::http1(gateway.edge()).get("/faulty").await.expect("an answer");
            counts.push(answer.header("x-asked").expect("the plugin's field").parse::<u32>().expect("a number"));
        }
        counts
    };
    assert_eq!(counts("request").await, [1; 6]);
    let reused = counts("worker").await;
    assert!(reused.iter().any(|count| *count > 1), "{reused:?}");
}
