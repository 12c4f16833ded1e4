//! Plugins that call a service before they answer: what they get, what they are kept from, and that nobody waits with them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{Method, Response};
use tidegate_tests::gateway::{free_address, root, run};
use tidegate_tests::origin::{RawOrigin, Recorded, full, read_head};
use tidegate_tests::{Client, Gateway, Origin, RawClient, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

fn guest(question: &str) -> String {
    root().join(format!("tests/guests/built/caller_{question}.wasm")).display().to_string()
}

/// A router on the only route, which calls the cluster `auth`; `plugin` goes into it, `more` at the end.
fn config(api: SocketAddr, auth: SocketAddr, plugin: &str, more: &str) -> String {
    format!(
        "workers = 1\n[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\n\
         [[cluster]]\nname = \"api\"\nendpoints = [\"{api}\"]\n\
         [[cluster]]\nname = \"auth\"\nendpoints = [\"{auth}\"]\n\
         [[plugin]]\nname = \"caller\"\nsource = \"{}\"\n{plugin}\n\
         [[route]]\nrouter = \"caller\"\ncluster = \"api\"\n{more}\n",
        guest("router")
    )
}

const GRANT: &str = "grants = { http = { clusters = [\"auth\"] } }";

/// Lets those in who bring `good`.
fn authorise(request: &Recorded) -> Response<tidegate_tests::origin::Body> {
    let good = request.header("authorization") == Some("good");
    let answer = Response::builder().status(if good { 200 } else { 401 });
    answer
        .header("x-user", "somebody")
        .header("connection", "x-secret")
        .header("x-secret", "1")
        .body(full("ok"))
        .expect("a response")
}

fn ended(outcome: &str) -> String {
    format!("tidegate_plugin_callouts_total{{plugin=\"caller\",outcome=\"{outcome}\"}}")
}

const ACTIVE: &str = "tidegate_plugin_callouts_active{plugin=\"caller\"}";
const INSTANCES: &str = "tidegate_plugin_instances{plugin=\"caller\"}";

/// A service that answers when it is let, and knows who came and who left.
struct Service {
    origin: RawOrigin,
    gate: Arc<Semaphore>,
    asked: Arc<AtomicUsize>,
    gone: Arc<AtomicUsize>,
}

impl Service {
    async fn start() -> Self {
        let gate = Arc::new(Semaphore::new(0));
        let (asked, gone) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (opens, asks, goes) = (gate.clone(), asked.clone(), gone.clone());
        let origin = RawOrigin::start(move |mut stream, _| {
            let (gate, asked, gone) = (opens.clone(), asks.clone(), goes.clone());
            async move {
                loop {
                    if read_head(&mut stream).await.is_empty() {
                        return;
                    }
                    asked.fetch_add(1, Ordering::SeqCst);
                    let mut byte = [0];
                    tokio::select! {
                        open = gate.acquire() => open.expect("never closed").forget(),
                        _ = stream.read(&mut byte) => {
                            gone.fetch_add(1, Ordering::SeqCst);
                            return;
                        }
                    }
                    if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        Self { origin, gate, asked, gone }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn until_asked(&self, times: usize) {
        eventually("the service is asked", async || (self.asked() >= times).then_some(())).await;
    }
}

fn get(address: SocketAddr, path: &str) -> tokio::task::JoinHandle<(u16, String)> {
    let (client, path) = (Client::http1(address), path.to_owned());
    tokio::spawn(async move {
        let answer = client.get(&path).await.expect("an answer");
        (answer.status.as_u16(), answer.text())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_asks_a_service_over_either_version() {
    for http2 in [false, true] {
        let api = Origin::http1().await;
        let auth = Origin::answering(http2, authorise).await;
        let protocol = if http2 { "protocol = \"http2\"" } else { "" };
        let settings = "settings = { fields = [[\"x-extra\", \"a\"], [\"x-extra\", \"b\"]], method = \"POST\", body = 5 }\nmemoise = true";
        let text = config(api.address, auth.address, &format!("{GRANT}\n{settings}"), "");
        let text = text.replace("name = \"auth\"\n", &format!("name = \"auth\"\n{protocol}\n"));
        let gateway = Gateway::start(&text).await;
        let client = Client::http1(gateway.edge());
        for _ in 0..3 {
            let fields = [("authorization", "good"), ("x-user", "forged"), ("x-private", "1")];
            let answer = client.send(Method::GET, "/a?b=c", &fields, "").await.expect("an answer");
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        let refused = client.get("/a").await.expect("an answer");
        assert_eq!((refused.status.as_u16(), refused.text()), (403, "the service says 401".to_owned()));
        let asked = auth.record();
        assert_eq!(asked.len(), 4, "nothing is remembered of an answer that called");
        let call = &asked[0];
        assert_eq!((call.method.as_str(), call.path.as_str(), call.body.len()), ("POST", "/check/a", 5));
        assert_eq!(call.authority, auth.address.to_string(), "the core says who is asked");
        assert_eq!(call.headers.get_all("x-extra").iter().count(), 2);
        assert!(call.header("via").is_some_and(|via| via.contains("tidegate")), "{:?}", call.headers);
        assert_eq!(call.header("content-length"), Some("5"));
        let own = ["x-private", "x-forwarded-for", "forwarded", "transfer-encoding", "connection"];
        assert!(own.iter().all(|name| call.header(name).is_none()), "{:?}", call.headers);
        assert_eq!(auth.connections(), 1, "calls use the worker's pool");
        let forwarded = api.record();
        assert_eq!(forwarded.len(), 3);
        assert_eq!(
            (forwarded[0].header("x-user"), forwarded[0].header("x-answer-bytes")),
            (Some("somebody"), Some("2"))
        );
        assert_eq!(gateway.metric(&ended("answered")).await, 4.0);
        assert_eq!(gateway.metric("tidegate_plugin_callout_seconds_count{plugin=\"caller\"}").await, 4.0);
        assert_eq!((gateway.metric(ACTIVE).await, gateway.metric(INSTANCES).await), (0.0, 1.0));
        let mut log = eventually("four lines", async || Some(gateway.access_log()).filter(|log| log.len() == 4)).await;
        let line = log.pop().expect("the fourth");
        let decision = &line["decisions"][0];
        assert_eq!((&decision["callouts"], &decision["answer"]), (&1.into(), &"respond 403".into()), "{line}");
        let (waited, took) = (decision["waited_ns"].as_u64(), decision["ns"].as_u64());
        assert!(waited.is_some_and(|waited| waited > 0) && waited <= took, "{line}");
        let status: serde_json::Value = serde_json::from_str(&gateway.admin_get("/status").await.text()).expect("JSON");
        assert_eq!(status["plugins"][0]["callouts"]["ended"]["answered"], 4, "{status}");
    }
}

/// One worker: while the guest waits, it serves what needs no wait, asks the same plugin for others, and lets them wait beside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_one_waits_the_worker_serves_others() {
    let api = Origin::http1().await;
    let service = Service::start().await;
    let more = "[[route]]\npath = \"/plain\"\ncluster = \"api\"\n";
    let plugin = format!("{GRANT}\nlimits = {{ wait = \"30s\" }}");
    let gateway = Gateway::start(&config(api.address, service.origin.address, &plugin, more)).await;
    let waiting: Vec<_> = (0..3).map(|index| get(gateway.edge(), &format!("/{index}"))).collect();
    service.until_asked(3).await;
    for path in ["/free", "/plain", "/free"] {
        let (status, _) = get(gateway.edge(), path).await.expect("no panic");
        assert_eq!(status, 200, "{path}");
    }
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    assert_eq!(gateway.metric(ACTIVE).await, 3.0);
    assert_eq!(gateway.metric(INSTANCES).await, 4.0, "one for each that waits, one for the other");
    service.gate.add_permits(3);
    for waiting in waiting {
        assert_eq!(waiting.await.expect("no panic").0, 200);
    }
    assert_eq!(gateway.metric(ACTIVE).await, 0.0);
    service.gate.add_permits(100);
    let made = gateway.metric("tidegate_plugin_instantiations_total{plugin=\"caller\"}").await;
    for _ in 0..10 {
        assert_eq!(get(gateway.edge(), "/again").await.expect("no panic").0, 200);
    }
    let now = gateway.metric("tidegate_plugin_instantiations_total{plugin=\"caller\"}").await;
    assert_eq!(now, made, "those that waited are used again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_called_that_was_not_granted() {
    let api = Origin::http1().await;
    let auth = Origin::answering(false, authorise).await;
    let checked = |plugin: &str| {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("gateway.toml");
        let text = config(api.address, auth.address, plugin, "").replace("workers = 1\n", "");
        std::fs::write(&file, text).expect("written");
        let output = run(&["check", &file.to_string_lossy()]);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (plugin, said) in [
        ("", "imports \"tidegate:policy/http-client@0.1.0\", which was not granted; set grants.http"),
        (
            "grants = { http = { clusters = [\"auht\"] } }",
            "names cluster \"auht\", which is not defined; did you mean \"auth\"?",
        ),
        ("grants = { http = { clusters = [] } }", "clusters is empty"),
        ("grants = { http = { max_request = \"1KiB\" } }", "\"clusters\" is missing"),
        (&format!("{GRANT}\nsettings = {{ at_once = true }}"), "called as it is configured: Err(NotGranted)"),
    ] {
        let (taken, text) = checked(plugin);
        assert!(!taken && text.contains(said), "{plugin}: {text}");
    }
    assert!(checked(GRANT).0);
    // A cluster beside the one that was granted, and requests that nobody may make.
    let gateway =
        Gateway::start(&config(api.address, auth.address, &format!("{GRANT}\nsettings = {{ cluster = \"api\" }}"), ""))
            .await;
    assert_eq!(get(gateway.edge(), "/").await.expect("no panic"), (503, "NotGranted".to_owned()));
    assert_eq!(gateway.metric(&ended("not_granted")).await, 1.0);
    for settings in [
        "fields = [[\"host\", \"other\"]]",
        "fields = [[\"transfer-encoding\", \"chunked\"]]",
        "fields = [[\"content-length\", \"7\"]]",
        "fields = [[\"x-forwarded-for\", \"192.0.2.1\"]]",
        "fields = [[\"x-a\", \"1\\r\\nx-b: 2\"]]",
        "method = \"CONNECT\"",
        "path = \"/a b\"",
        "path = \"http://elsewhere/\"",
    ] {
        let (taken, said) =
            gateway.reload(&config(api.address, auth.address, &format!("{GRANT}\nsettings = {{ {settings} }}"), ""));
        assert!(taken, "{said}");
        let (status, text) = get(gateway.edge(), "/").await.expect("no panic");
        assert!(status == 503 && text.starts_with("Failed("), "{settings}: {status} {text}");
    }
    assert!(auth.record().is_empty() && api.record().is_empty());
}

/// The guest has its answer in time, whatever the service does, and the decision has its own bound. Neither is CPU time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_has_an_end() {
    let api = Origin::http1().await;
    let service = Service::start().await;
    let text = |keys: &str| config(api.address, service.origin.address, &format!("{GRANT}\n{keys}"), "");
    let gateway = Gateway::start(&text("settings = { timeout_ms = 50 }")).await;
    let asked = async |least: u64, most: u64| {
        let begun = Instant::now();
        let answer = get(gateway.edge(), "/").await.expect("no panic");
        assert_eq!(answer, (503, "TimedOut".to_owned()));
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(least) && took < Duration::from_millis(most), "{took:?}");
    };
    asked(50, 5000).await;
    // Ten calls of 100 ms each, within a decision that may wait for 250.
    let keys = "settings = { timeout_ms = 100, times = 10 }\nlimits = { wait = \"250ms\" }";
    assert!(gateway.reload(&text(keys)).0);
    let before = service.asked();
    asked(250, 5000).await;
    assert!(service.asked() - before <= 3, "what is left to wait is the bound of each call");
    assert_eq!(gateway.metric(ACTIVE).await, 0.0);
    // Longer than the CPU time it may take, by far.
    assert!(gateway.reload(&text("limits = { time = \"5ms\", wait = \"10s\" }")).0);
    let late = get(gateway.edge(), "/");
    tokio::time::sleep(Duration::from_millis(300)).await;
    service.gate.add_permits(1);
    assert_eq!(late.await.expect("no panic").0, 200);
    let faults =
        gateway.metric("tidegate_plugin_faults_total{plugin=\"caller\",question=\"route\",cause=\"deadline\"}").await;
    assert_eq!(faults, 0.0);
    // What it runs counts as ever, before a wait and after it.
    assert!(
        gateway
            .reload(&text("settings = { work = 3000000000 }\nlimits = { time = \"20ms\" }\non_failure = \"deny\""))
            .0
    );
    assert_eq!(get(gateway.edge(), "/").await.expect("no panic").0, 503);
    let faults =
        gateway.metric("tidegate_plugin_faults_total{plugin=\"caller\",question=\"route\",cause=\"deadline\"}").await;
    assert_eq!(faults, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_bounded_both_ways() {
    let api = Origin::http1().await;
    let auth = Origin::answering(false, |request| {
        let size = request.path.trim_start_matches("/check/").parse::<usize>().unwrap_or(0);
        Response::new(full(vec![b'x'; size]))
    })
    .await;
    let grant = "grants = { http = { clusters = [\"auth\"], max_request = \"1KiB\", max_response = \"4KiB\" } }";
    let text = |settings: &str| config(api.address, auth.address, &format!("{grant}\nsettings = {{ {settings} }}"), "");
    let gateway = Gateway::start(&text("method = \"POST\", body = 1024")).await;
    assert_eq!(get(gateway.edge(), "/4096").await.expect("no panic").0, 200);
    assert_eq!(get(gateway.edge(), "/4097").await.expect("no panic"), (503, "TooLarge".to_owned()));
    // And where nobody said how much there would be.
    let endless = RawOrigin::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        while stream.write_all(b"400\r\n").await.is_ok() && stream.write_all(&[b'x'; 1024]).await.is_ok() {
            if stream.write_all(b"\r\n").await.is_err() {
                break;
            }
        }
    })
    .await;
    let (taken, said) = gateway.reload(&config(api.address, endless.address, grant, ""));
    assert!(taken, "{said}");
    assert_eq!(get(gateway.edge(), "/").await.expect("no panic"), (503, "TooLarge".to_owned()));
    let before = auth.record().len();
    assert!(gateway.reload(&text("method = \"POST\", body = 1025")).0);
    assert_eq!(get(gateway.edge(), "/1").await.expect("no panic"), (503, "TooLarge".to_owned()));
    assert_eq!(auth.record().len(), before, "it is not sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_cannot_be_reached_is_said_to_be_so() {
    let api = Origin::http1().await;
    let nobody = free_address();
    let gateway = Gateway::start(&config(api.address, nobody, GRANT, "")).await;
    let (status, text) = get(gateway.edge(), "/").await.expect("no panic");
    assert!(status == 503 && text.starts_with("Failed(") && text.contains("connect_refused"), "{text}");
    assert_eq!(gateway.metric(&ended("failed")).await, 1.0);
    // A connection that ends before its response: what may be sent again is, elsewhere.
    let good = Origin::http1().await;
    let bad = RawOrigin::start(|mut stream, _| async move {
        read_head(&mut stream).await;
    })
    .await;
    let both = format!("{}\", \"{}", bad.address, good.address);
    let two = config(api.address, nobody, GRANT, "").replace(&nobody.to_string(), &both);
    assert!(gateway.reload(&two).0);
    for _ in 0..4 {
        assert_eq!(get(gateway.edge(), "/").await.expect("no panic").0, 200);
    }
    assert!(bad.connections() > 0);
    // As many requests as the cluster takes.
    let service = Service::start().await;
    let full = config(api.address, service.origin.address, &format!("{GRANT}\nlimits = {{ wait = \"30s\" }}"), "");
    let full = full.replace("name = \"auth\"\n", "name = \"auth\"\ncircuit_breaker = { max_requests = 1 }\n");
    let (taken, said) = gateway.reload(&full);
    assert!(taken, "{said}");
    let first = get(gateway.edge(), "/");
    service.until_asked(1).await;
    let (status, text) = get(gateway.edge(), "/").await.expect("no panic");
    assert!(status == 503 && text.contains("in flight"), "{text}");
    service.gate.add_permits(1);
    assert_eq!(first.await.expect("no panic").0, 200);
}

/// Calls in flight and in a second are bounded for the plugin; who is over a bound is told, and asked on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_bounded_at_once_and_in_a_second() {
    let api = Origin::http1().await;
    let service = Service::start().await;
    let grant = "grants = { http = { clusters = [\"auth\"], max_in_flight = 2 } }\nlimits = { wait = \"30s\" }";
    let gateway = Gateway::start(&config(api.address, service.origin.address, grant, "")).await;
    let waiting = [get(gateway.edge(), "/"), get(gateway.edge(), "/")];
    service.until_asked(2).await;
    let (status, text) = get(gateway.edge(), "/").await.expect("no panic");
    assert!(status == 503 && text.contains("max_in_flight"), "{text}");
    service.gate.add_permits(1000);
    for waiting in waiting {
        assert_eq!(waiting.await.expect("no panic").0, 200);
    }
    assert_eq!(gateway.metric(&ended("refused")).await, 1.0);
    let rate = "grants = { http = { clusters = [\"auth\"] } }\nlimits = { callouts = 5 }";
    assert!(gateway.reload(&config(api.address, service.origin.address, rate, "")).0);
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(get(gateway.edge(), "/").await.expect("no panic"));
    }
    let good = answers.iter().filter(|(status, _)| *status == 200).count();
    assert!((5..15).contains(&good), "{good} of 20 at five a second");
    assert!(answers.iter().all(|(status, text)| *status == 200 || text.contains("limits.callouts")), "{answers:?}");
}

/// The client leaves: the call is given up at once, and nothing stays behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_ends_with_its_client() {
    let api = Origin::http1().await;
    let service = Service::start().await;
    let plugin = format!("{GRANT}\nlimits = {{ wait = \"60s\" }}");
    let gateway = Gateway::start(&config(api.address, service.origin.address, &plugin, "")).await;
    for round in 1..=3 {
        let mut client = RawClient::connect(gateway.edge()).await;
        client.send(b"GET / HTTP/1.1\r\nhost: example.com\r\n\r\n").await;
        service.until_asked(round).await;
        drop(client);
        eventually("the service sees it go", async || (service.gone.load(Ordering::SeqCst) >= round).then_some(()))
            .await;
    }
    eventually("nothing is in flight", async || (gateway.metric(ACTIVE).await == 0.0).then_some(())).await;
    assert_eq!(gateway.metric(&ended("cancelled")).await, 3.0);
    assert_eq!(gateway.metric(INSTANCES).await, 0.0, "who was left alone is not asked again");
    let line = eventually("a line", async || gateway.access_log().pop()).await;
    assert_eq!((&line["cause"], &line["cancelled"]), (&"client_gone".into(), &true.into()), "{line}");
    service.gate.add_permits(1);
    assert_eq!(get(gateway.edge(), "/").await.expect("no panic").0, 200);
}

/// Who waits while the configuration changes is answered by what it began with; the next by what is there then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_finds_calls_under_way() {
    let (api, next) = (Origin::http1().await, Origin::http1().await);
    let service = Service::start().await;
    let keys = "limits = { wait = \"30s\" }";
    let gateway = Gateway::start(&config(api.address, service.origin.address, &format!("{GRANT}\n{keys}"), "")).await;
    let waiting = get(gateway.edge(), "/old");
    service.until_asked(1).await;
    let keys = "limits = { wait = \"29s\" }";
    assert!(gateway.reload(&config(next.address, service.origin.address, &format!("{GRANT}\n{keys}"), "")).0);
    service.gate.add_permits(2);
    assert_eq!(get(gateway.edge(), "/new").await.expect("no panic").0, 200);
    assert_eq!(waiting.await.expect("no panic").0, 200);
    assert_eq!((api.record().len(), next.record().len()), (1, 1));
    // And one to a configuration without the plugin.
    let waiting = get(gateway.edge(), "/old");
    service.until_asked(3).await;
    assert!(gateway.reload(&format!("workers = 1\n{}", crate::simple(&[api.address], ""))).0);
    service.gate.add_permits(1);
    assert_eq!(waiting.await.expect("no panic").0, 200);
    assert_eq!(next.record().len(), 2);
    assert_eq!(get(gateway.edge(), "/plain").await.expect("no panic").0, 200);
}

/// A cluster that is this gateway: every round asks the plugin, which calls, and `Via` ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circle_of_calls_has_an_end() {
    let api = Origin::http1().await;
    let own = free_address();
    let plugin = format!("{GRANT}\nlimits = {{ wait = \"20s\" }}");
    let text =
        config(api.address, own, &plugin, "").replace("address = \"127.0.0.1:0\"", &format!("address = \"{own}\""));
    let gateway = Gateway::start(&text).await;
    let (status, text) = get(own, "/").await.expect("no panic");
    assert_eq!((status, text.as_str()), (403, "the service says 403"));
    let lines =
        eventually("all are logged", async || Some(gateway.access_log()).filter(|lines| lines.len() >= 12)).await;
    assert_eq!(lines.len(), 12);
    assert_eq!(lines.iter().filter(|line| line["cause"] == "loop").count(), 1);
    assert!(api.record().is_empty());
}

/// Balancers, forwarding and retry policies wait like routers do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_question_may_call() {
    let (one, two) = (Origin::http1().await, Origin::http1().await);
    let fails =
        Origin::answering(false, |_| Response::builder().status(503).body(full("no")).expect("a response")).await;
    let says = Origin::answering(false, |request| {
        Response::new(full(match request.path.as_str() {
            "/check/pick" => "1",
            "/check/name" => "somebody",
            "/check/again" => "again",
            _ => "stop",
        }))
    })
    .await;
    let plugin =
        |question: &str| format!("[[plugin]]\nname = \"{question}\"\nsource = \"{}\"\n{GRANT}\n", guest(question));
    let text = format!(
        "workers = 1\n[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\n\
         [[cluster]]\nname = \"auth\"\nendpoints = [\"{}\"]\n\
         [[cluster]]\nname = \"two\"\nendpoints = [\"{}\", \"{}\"]\nbalance = {{ plugin = \"balancer\" }}\n\
         [[cluster]]\nname = \"fails\"\nendpoints = [\"{}\"]\n{}{}{}\
         [[route]]\npath = \"/pick\"\ncluster = \"two\"\n\
         [[route]]\npath = \"/name\"\ncluster = \"two\"\nforwarding = {{ plugin = \"forwarding\" }}\n\
         [[route]]\ncluster = \"fails\"\nretry = {{ plugin = \"retry\", attempts = 3 }}\n",
        says.address,
        one.address,
        two.address,
        fails.address,
        plugin("balancer"),
        plugin("forwarding"),
        plugin("retry"),
    );
    let gateway = Gateway::start(&text).await;
    for _ in 0..3 {
        assert_eq!(get(gateway.edge(), "/pick").await.expect("no panic").0, 200);
    }
    assert_eq!((one.record().len(), two.record().len()), (0, 3));
    assert_eq!(get(gateway.edge(), "/name").await.expect("no panic").0, 200);
    let named = [one.record(), two.record()].concat();
    let forwarded =
        named.iter().find(|request| request.path == "/name").and_then(|request| request.header("forwarded"));
    assert!(forwarded.is_some_and(|value| value.contains("for=_somebody")), "{forwarded:?}");
    assert_eq!(get(gateway.edge(), "/again").await.expect("no panic").0, 503);
    assert_eq!(fails.record().len(), 3, "as the service said");
    assert_eq!(get(gateway.edge(), "/stop").await.expect("no panic").0, 503);
    assert_eq!(fails.record().len(), 4);
}

/// A shadow's answers are not used, and neither is what it would ask of others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shadow_calls_nobody_and_a_next_version_does() {
    let api = Origin::http1().await;
    let auth = Origin::http1().await;
    let keys = |keys: &str| format!("{GRANT}\nsettings = {{ path = \"/current\" }}\n{keys}");
    let shadow = format!("shadow = {{ source = \"{}\", settings = {{ path = \"/shadow\" }} }}", guest("router"));
    let gateway = Gateway::start(&config(api.address, auth.address, &keys(&shadow), "")).await;
    for _ in 0..3 {
        assert_eq!(get(gateway.edge(), "/").await.expect("no panic").0, 200);
    }
    assert!(auth.record().iter().all(|request| request.path == "/current") && auth.record().len() == 3);
    let compared = "tidegate_plugin_shadow_compared_total{plugin=\"caller\",question=\"route\"}";
    assert_eq!(gateway.metric(compared).await, 3.0);
    let next = format!(
        "rollout = {{ source = \"{}\", settings = {{ path = \"/next\" }}, share = \"100%\" }}",
        guest("router")
    );
    let (taken, said) = gateway.reload(&config(api.address, auth.address, &keys(&next), ""));
    assert!(taken, "{said}");
    assert_eq!(get(gateway.edge(), "/").await.expect("no panic").0, 200);
    assert_eq!(auth.record().last().map(|request| request.path.clone()), Some("/next".to_owned()));
}

/// A tenant's plugin calls the tenant's clusters and shared ones, within what the tenant may call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_calls_its_own() {
    let api = Origin::http1().await;
    let service = Service::start().await;
    let text = |of_auth: &str, limits: &str| {
        let text = config(
            api.address,
            service.origin.address,
            &format!("tenant = \"a\"\n{GRANT}\nlimits = {{ wait = \"30s\" }}"),
            "",
        );
        let text = text.replace("name = \"api\"\n", "name = \"api\"\ntenant = \"a\"\n");
        let text = text.replace("name = \"auth\"\n", &format!("name = \"auth\"\n{of_auth}\n"));
        let text = text.replace("[[route]]\n", "[[route]]\ntenant = \"a\"\nhost = \"example.com\"\n");
        format!(
            "{text}[[tenant]]\nname = \"a\"\nhosts = \"example.com\"\nlimits = {{ {limits} }}\n\
             [[tenant]]\nname = \"b\"\nhosts = \"b.test\"\n"
        )
    };
    let gateway = Gateway::start(&text("tenant = \"a\"", "callouts_in_flight = 1")).await;
    let (taken, said) = gateway.reload(&text("tenant = \"b\"", ""));
    assert!(
        !taken && said.contains("plugin \"caller\" of tenant \"a\" names cluster \"auth\", which is of tenant \"b\""),
        "{said}"
    );
    let (taken, said) = gateway.reload(&text("", ""));
    assert!(!taken && said.contains("which is the gateway's own"), "{said}");
    let waiting = get(gateway.edge(), "/");
    service.until_asked(1).await;
    let (status, text_of) = get(gateway.edge(), "/").await.expect("no panic");
    assert!(status == 503 && text_of.contains("callouts_in_flight"), "{text_of}");
    service.gate.add_permits(1000);
    assert_eq!(waiting.await.expect("no panic").0, 200);
    assert!(gateway.reload(&text("shared = true", "callouts = 3")).0);
    let mut good = 0;
    for _ in 0..10 {
        good += usize::from(get(gateway.edge(), "/").await.expect("no panic").0 == 200);
    }
    assert!((3..10).contains(&good), "{good} of ten at three a second");
}
