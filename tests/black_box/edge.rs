//! Components as origins: requests answered within the gateway, and failures that stay with the request that caused them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::{Method, Version};
use tidegate_tests::certs::Authority;
use tidegate_tests::gateway::{root, run};
use tidegate_tests::{Client, Gateway, Origin, RawClient, eventually};
use tokio::io::AsyncReadExt;

/// A folder with the guest, under the name that the configurations below give it.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    install(folder.path(), "edge_function.wasm");
    folder
}

fn install(folder: &std::path::Path, guest: &str) {
    let from = root().join("tests/guests/built").join(guest);
    // Written beside and renamed: half of it would be refused, and rightly.
    std::fs::copy(from, folder.join("part")).expect("copied");
    std::fs::rename(folder.join("part"), folder.join("function.wasm")).expect("renamed");
}

/// A gateway's file with the component as its only cluster.
fn config(cluster: &str, route: &str) -> String {
    format!(
        r#"[[listener]]
name = "edge"
address = "127.0.0.1:0"
[[cluster]]
name = "function"
component = "function.wasm"
{cluster}
[[route]]
cluster = "function"
{route}
"#
    )
}

/// Without it a safe request is tried again, as with any origin.
const ONE_TRY: &str = "retry = { attempts = 1 }";

async fn start(cluster: &str, route: &str) -> Gateway {
    Gateway::start_in(folder(), &config(cluster, route)).await
}

async fn status(client: &Client, path: &str) -> u16 {
    client.get(path).await.expect("an answer").status.as_u16()
}

async fn faults(gateway: &Gateway, cause: &str) -> f64 {
    gateway.metric(&format!("tidegate_component_faults_total{{cluster=\"function\",cause=\"{cause}\"}}")).await
}

async fn none_lives(gateway: &Gateway) {
    eventually("no instance is left", async || {
        (gateway.metric("tidegate_component_instances{cluster=\"function\"}").await == 0.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_answers_every_version() {
    let folder = folder();
    let authority = Authority::new();
    authority.issue(&["edge.example"]).write(folder.path(), "edge");
    let tls = "address = \"127.0.0.1:0\"\ntls.certificates = [{ certificate = \"edge.pem\", key = \"edge.key\" }]";
    let config = config("env = { GREETING = \"hello\" }", "").replace("address = \"127.0.0.1:0\"", tls);
    let gateway = Gateway::start_in(folder, &config).await;
    for (version, alpn) in [(Version::HTTP_11, &b"http/1.1"[..]), (Version::HTTP_2, b"h2"), (Version::HTTP_3, b"h3")] {
        let client = Client::tls(gateway.edge(), version, authority.client(&[alpn], None), "edge.example");
        let fields = [("x-mine", "kept"), ("x-forwarded-for", "6.6.6.6")];
        let answer = client.send(Method::PUT, "/told?a=%20b", &fields, "ignored").await.expect("an answer");
        assert_eq!((answer.status.as_u16(), answer.version), (200, version));
        assert_eq!(answer.header("content-type"), Some("text/plain"));
        assert!(answer.header("via").is_some() && answer.header("date").is_some(), "{:?}", answer.headers);
        let told = answer.text();
        assert!(told.starts_with("PUT https://edge.example/told?a=%20b\n"), "{told}");
        assert!(told.contains("x-mine: kept\n") && told.contains("$GREETING=hello\n"), "{told}");
        assert!(!told.contains("6.6.6.6") && told.contains("x-forwarded-for: 127.0.0.1\n"), "{told}");
        let large = client.get("/large?1048576").await.expect("an answer");
        assert_eq!(large.body.len(), 1 << 20);
        let body: Vec<u8> = (0..300_000_u32).map(|index| (index % 251) as u8).collect();
        let streamed = client.send(Method::POST, "/stream", &[], body.clone()).await.expect("an answer");
        assert_eq!((streamed.status.as_u16(), streamed.body.len()), (200, body.len()), "{version:?}");
        assert!(streamed.body == body, "{version:?}: another body came back");
    }
    assert!(gateway.metric("tidegate_component_requests_total{cluster=\"function\"}").await >= 9.0);
    assert!(gateway.metric("tidegate_component_cpu_seconds_total{cluster=\"function\"}").await > 0.0);
    none_lives(&gateway).await;
}

/// A byte that is sent comes back before the next one is: neither way waits for the other's end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_stream_both_ways_at_once() {
    let gateway = start("", "").await;
    let mut client = RawClient::connect(gateway.edge()).await;
    client.send(b"POST /stream HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
    client.send(b"5\r\nfirst\r\n").await;
    client.until("first").await;
    client.send(b"6\r\nsecond\r\n").await;
    client.until("second").await;
    client.send(b"0\r\n\r\n").await;
    client.until("0\r\n\r\n").await;
    let begun = Instant::now();
    client.send(b"GET /drip?5 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.until("0\n").await;
    assert!(begun.elapsed() < Duration::from_millis(90), "the first line waited for the last");
    client.until("4\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_fails_fails_alone() {
    let limits = "limits = { cpu_time = \"1s\", timeout = \"8s\", memory = \"8MiB\" }";
    // One worker, so that whoever blocks it blocks the neighbour.
    let gateway = Gateway::start_in(folder(), &format!("workers = 1\n{}", config(limits, ONE_TRY))).await;
    let client = Client::http1(gateway.edge());
    let done = Arc::new(AtomicBool::new(false));
    let neighbour = {
        let (client, done) = (client.clone(), done.clone());
        tokio::spawn(async move {
            let mut slowest = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let answer = client.get("/told").await.expect("an answer");
                assert_eq!(answer.status, 200);
                slowest = slowest.max(begun.elapsed());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            slowest
        })
    };
    let ways = [
        ("/trap", "trap"),
        ("/loop", "cpu_time"),
        ("/memory", "memory"),
        ("/hang", "timeout"),
        ("/silent", "no_answer"),
        ("/error", "error"),
    ];
    for (path, cause) in ways {
        let answer = client.get(path).await.expect("an answer");
        let said = answer.header("proxy-status").unwrap_or_default().to_owned();
        assert_eq!((answer.status.as_u16(), said.as_str()), (502, "tidegate; error=connection_terminated"), "{path}");
        assert_eq!(faults(&gateway, cause).await, 1.0, "{path}");
        let quoted = format!("\"{cause}\"");
        let logged =
            |line: &str| line.contains("a component failed") && line.contains("\"function\"") && line.contains(&quoted);
        assert!(gateway.log().lines().any(logged), "{path} is not logged");
    }
    // What began well breaks off, and is no whole message.
    assert!(client.get("/trap-late?200").await.is_err());
    // Or nothing of it left in time.
    assert!(client.get("/trap-late?0").await.map_or(true, |answer| answer.status == 502));
    assert_eq!(faults(&gateway, "trap").await, 3.0);
    done.store(true, Ordering::Relaxed);
    let slowest = neighbour.await.expect("the neighbour is served");
    // The one that loops does so for a second of CPU time: who waits for its turns waits for a few of them.
    assert!(slowest < Duration::from_millis(150), "a neighbour waited {slowest:?}");
    none_lives(&gateway).await;
}

/// Computing is counted, waiting is not; a guest that computes for long gives way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_costs_no_cpu_time() {
    let gateway = start("limits = { cpu_time = \"100ms\" }", ONE_TRY).await;
    let client = Client::http1(gateway.edge());
    assert_eq!(status(&client, "/sleep?400").await, 200);
    assert_eq!(status(&client, "/spin?20").await, 200);
    assert_eq!(status(&client, "/spin?5000").await, 502);
    assert_eq!(faults(&gateway, "cpu_time").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeouts_and_clients_that_leave_end_the_guest() {
    let gateway = start("limits = { timeout = \"off\" }", "attempt_timeout = \"300ms\"").await;
    let client = Client::http1(gateway.edge());
    let answer = client.get("/hang").await.expect("an answer");
    assert_eq!(answer.status, 504);
    assert!(answer.header("proxy-status").is_some_and(|said| said.ends_with("error=http_response_timeout")));
    none_lives(&gateway).await;
    let mut leaver = RawClient::connect(gateway.edge()).await;
    leaver.send(b"GET /drip?100000 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    leaver.until("3\n").await;
    assert_eq!(gateway.metric("tidegate_component_instances{cluster=\"function\"}").await, 1.0);
    drop(leaver);
    none_lives(&gateway).await;
    // One whose upload never ends.
    let mut uploader = RawClient::connect(gateway.edge()).await;
    uploader.send(b"POST /stream HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf").await;
    uploader.until("half").await;
    drop(uploader);
    none_lives(&gateway).await;
}

/// A client that reads nothing holds its guest up, and nothing piles up in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_is_back_pressure_for_the_guest() {
    let gateway = start("limits = { cpu_time = \"10s\" }", "").await;
    let mut slow = RawClient::connect(gateway.edge()).await;
    slow.send(b"GET /large?67108864 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    slow.until("\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = gateway.resident();
    assert_eq!(gateway.metric("tidegate_component_instances{cluster=\"function\"}").await, 1.0, "it is not done");
    let mut received = 0;
    let mut block = vec![0; 64 * 1024];
    while received < 64 << 20 {
        match slow.0.read(&mut block).await.expect("bytes") {
            0 => break,
            count => received += count,
        }
    }
    assert!(received >= 64 << 20, "{received}");
    assert!(gateway.resident() < before + (16 << 20), "{before} {}", gateway.resident());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_are_bounded_over_all_workers() {
    let gateway = start("limits = { instances = 2 }\npending_timeout = \"200ms\"", "").await;
    let client = Client::http1(gateway.edge());
    let asked: Vec<_> = (0..6)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get("/sleep?600").await.expect("an answer") })
        })
        .collect();
    let mut statuses = Vec::new();
    for answer in asked {
        let answer = answer.await.expect("asked");
        if answer.status == 503 {
            assert_eq!(answer.header("retry-after"), Some("1"));
            assert!(answer.header("proxy-status").is_some_and(|said| said.contains("connection_limit_reached")));
        }
        statuses.push(answer.status.as_u16());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 503, 503, 503, 503]);
    assert_eq!(faults(&gateway, "full").await, 4.0);
    // Who waits for less than that is served.
    let short: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { status(&client, "/sleep?50").await })
        })
        .collect();
    for answer in short {
        assert_eq!(answer.await.expect("asked"), 200);
    }
}

/// Outgoing requests are denied, as a code that the guest can read; its output is in the log, bounded and harmless.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_reaches_nothing_and_its_output_is_logged() {
    let gateway = start("limits = { log_lines = 5 }", "").await;
    let client = Client::http1(gateway.edge());
    let out = client.get("/out").await.expect("an answer");
    assert_eq!(out.text(), "ErrorCode::HttpRequestDenied\n");
    assert_eq!(status(&client, "/print?2").await, 200);
    eventually("it is logged", async || {
        let log = gateway.log();
        let said = log.lines().any(|line| line.contains("said 1") && line.contains("\"function\""));
        let escaped = log.contains("complained\\u{1b}[31m") && !log.contains("complained\u{1b}");
        (said && escaped).then_some(())
    })
    .await;
    assert_eq!(status(&client, "/print?1000").await, 200);
    let name = "tidegate_component_log_lines_dropped_total{cluster=\"function\"}";
    assert!(gateway.metric(name).await >= 990.0);
}

/// A guest may go on after its response; the next request on the connection is answered meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_may_go_on_after_its_response() {
    let gateway = Gateway::start_in(folder(), &format!("workers = 1\n{}", config("max_connections = 1", ""))).await;
    let client = Client::http1(gateway.edge());
    let begun = Instant::now();
    assert_eq!(client.get("/after?500").await.expect("an answer").text(), "answered\n");
    assert_eq!(status(&client, "/told").await, 200);
    assert!(begun.elapsed() < Duration::from_millis(400), "{:?}", begun.elapsed());
    eventually("it went on", async || gateway.log().contains("went on").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_keeps_what_is_unchanged_and_swaps_what_is_not() {
    let gateway = start("env = { VERSION = \"one\" }", "").await;
    let client = Client::http1(gateway.edge());
    let version = async || {
        let told = client.get("/told").await.expect("an answer").text();
        told.lines().find_map(|line| line.strip_prefix("$VERSION=")).map(str::to_owned)
    };
    assert_eq!(version().await.as_deref(), Some("one"));
    let compiled = || std::fs::read_dir(gateway.folder.path().join("cache")).expect("a cache").count();
    let before = compiled();
    let connections = "tidegate_upstream_connections_total";
    let dialled = gateway.metric(connections).await;
    // Unchanged: the connections to it stay.
    let (ok, said) = gateway.reload(&config("env = { VERSION = \"one\" }", "timeout = \"5s\""));
    assert!(ok, "{said}");
    for _ in 0..4 {
        assert_eq!(version().await.as_deref(), Some("one"));
    }
    assert!(gateway.metric(connections).await <= dialled + 1.0, "a worker at most had none yet");
    // Requests in flight end with what they began with.
    let mut slow = RawClient::connect(gateway.edge()).await;
    slow.send(b"GET /drip?40 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    slow.until("1\n").await;
    let (ok, said) = gateway.reload(&config("env = { VERSION = \"two\" }", ""));
    assert!(ok, "{said}");
    assert_eq!(version().await.as_deref(), Some("two"));
    slow.until("39\n").await;
    assert_eq!(compiled(), before, "the same bytes are compiled once");
    // Another file that is none: nothing changes.
    std::fs::write(gateway.folder.path().join("function.wasm"), b"\0asm\x01\0\0\0").expect("written");
    let (ok, said) = gateway.reload(&config("env = { VERSION = \"three\" }", ""));
    assert!(!ok && said.contains("it is a core module"), "{said}");
    assert_eq!(version().await.as_deref(), Some("two"));
    assert_eq!(gateway.metric("tidegate_component_faults_total{cluster=\"function\",cause=\"trap\"}").await, 0.0);
}

/// As `check` says it: an import that is not offered, and what is no such component.
#[test]
fn check_names_what_does_not_fit() {
    let folder = folder();
    let file = folder.path().join("gateway.toml");
    let check = |guest: &std::path::Path| {
        std::fs::copy(guest, folder.path().join("function.wasm")).expect("copied");
        std::fs::write(&file, format!("[gateway]\nplugin_cache = \"off\"\n{}", config("", ""))).expect("written");
        let output = run(&["check", &file.to_string_lossy()]);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let guests = root().join("tests/guests/built");
    assert_eq!(check(&guests.join("edge_function.wasm")), (Some(0), String::new()));
    for (guest, said) in [
        (guests.join("edge_function_sockets.wasm"), "it imports \"wasi:sockets/"),
        (root().join("plugins/tenant-canary/tenant_canary.wasm"), "it answers questions, not requests"),
        (file.clone(), "it does not begin as one"),
    ] {
        let (code, error) = check(&guest);
        assert!(code == Some(2) && error.contains("cluster \"function\": component"), "{error}");
        assert!(error.contains(said), "{error}");
    }
}

/// A component beside endpoints, by a split, and what is done with its failures: retries and ejection are the cluster's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_cluster_like_others() {
    let origin = Origin::http1().await;
    let more = format!(
        r#"
[cluster.ejection]
consecutive_5xx = 2
consecutive_local = 2
max_ejected = "100%"
[[cluster]]
name = "origin"
endpoints = ["{}"]
[[route]]
path = "/split/*"
split = [{{ cluster = "function" }}, {{ cluster = "origin" }}]
"#,
        origin.address
    );
    let gateway = Gateway::start_in(folder(), &config(&format!("panic_threshold = \"0%\"{more}"), ONE_TRY)).await;
    let client = Client::http1(gateway.edge());
    let mut told = 0;
    for _ in 0..40 {
        let text = client.get("/split/x").await.expect("an answer").text();
        assert!(text == "ok" || text.starts_with("GET http://example.com/split/x\n"), "{text}");
        told += usize::from(text != "ok");
    }
    assert!((5..36).contains(&told), "{told} of 40");
    let refused = client.send(Method::CONNECT, "example.com:80", &[], "").await;
    assert!(refused.is_err() || refused.is_ok_and(|answer| answer.status.is_client_error()));
    for _ in 0..2 {
        assert_eq!(status(&client, "/trap").await, 502);
    }
    eventually("it is left out", async || (status(&client, "/told").await == 503).then_some(())).await;
}

/// wasi:http 0.2 on `outgoing-body`: one that is dropped without `finish`, or shorter than its `content-length`, is corrupted.
/// Nobody may take it for a whole one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_not_finished_is_broken_off() {
    let folder = folder();
    let authority = Authority::new();
    authority.issue(&["edge.example"]).write(folder.path(), "edge");
    let tls = "address = \"127.0.0.1:0\"\ntls.certificates = [{ certificate = \"edge.pem\", key = \"edge.key\" }]";
    let clear = "[[listener]]\nname = \"clear\"\naddress = \"127.0.0.1:0\"\n";
    let config = config("", ONE_TRY).replace("address = \"127.0.0.1:0\"", tls) + clear;
    let gateway = Gateway::start_in(folder, &config).await;
    let ways = ["/unfinished?100", "/dropped?100", "/short?100"];
    // Its head and nine bytes, and no last chunk behind them.
    for path in ways {
        let mut client = RawClient::connect(gateway.address("clear")).await;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await;
        let mut all = Vec::new();
        // It may be reset.
        let _ =
            tokio::time::timeout(Duration::from_secs(5), client.0.read_to_end(&mut all)).await.expect("it is closed");
        let text = String::from_utf8_lossy(&all);
        assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("half of it"), "{path}: {text}");
        assert!(!text.ends_with("0\r\n\r\n"), "{path}: {text}");
        assert_eq!(text.contains("content-length: 20\r\n"), path.starts_with("/short"), "{path}: {text}");
    }
    for (version, alpn) in [(Version::HTTP_11, &b"http/1.1"[..]), (Version::HTTP_2, b"h2"), (Version::HTTP_3, b"h3")] {
        let client = Client::tls(gateway.edge(), version, authority.client(&[alpn], None), "edge.example");
        for path in ways {
            assert!(client.get(path).await.is_err(), "{version:?} {path} looks whole");
            assert_eq!(client.get("/told").await.expect("an answer").status, 200, "{version:?} after {path}");
        }
    }
    assert_eq!(faults(&gateway, "unfinished").await, 12.0);
    // What nothing of left in time is answered for.
    let client = Client::http1(gateway.address("clear"));
    assert!(client.get("/unfinished?0").await.map_or(true, |answer| answer.status == 502));
    none_lives(&gateway).await;
}

/// The gateway's file, where the cluster is a tenant's.
fn of_tenant(tenant: &str, cluster: &str, route: &str) -> String {
    config(&format!("tenant = \"a\"\n{cluster}"), &format!("tenant = \"a\"\nhost = \"a.test\"\n{route}"))
        + &format!("[[tenant]]\nname = \"a\"\nhosts = \"a.test\"\n{tenant}\n")
}

fn refused_for_budget(answer: &tidegate_tests::Answer) -> bool {
    let said = answer.header("proxy-status").unwrap_or_default();
    let later = answer.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok());
    answer.status == 503 && said.contains("http_request_denied") && said.contains("budget") && later >= Some(1)
}

/// CPU time is charged while it is taken: who is at work waits for more, who comes anew is told so, and in the end all is done
/// that was begun, as fast as the budget is earned.
async fn is_held_to_its_share(gateway: &Gateway, client: &Client, rate: f64, burst: f64) {
    let cpu = "tidegate_component_cpu_seconds_total{cluster=\"function\"}";
    let (begun, before) = (Instant::now(), gateway.metric(cpu).await);
    let at_work = {
        let client = client.clone();
        tokio::spawn(async move { client.get("/work?500").await.expect("an answer") })
    };
    let mut refused = 0;
    while !at_work.is_finished() {
        let answer = client.get("/told").await.expect("an answer");
        refused += usize::from(refused_for_budget(&answer));
        assert!(refused_for_budget(&answer) || answer.status == 200, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let answer = at_work.await.expect("no panic");
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "worked\n"));
    let took = begun.elapsed().as_secs_f64();
    none_lives(gateway).await;
    let used = gateway.metric(cpu).await - before;
    assert!(used > 2.0 * burst, "{used} s are too little to tell anything");
    // A guest is looked at once a millisecond, and the machine's clock is not the thread's.
    assert!(took > (used - burst) / rate * 0.9 - 0.1, "{used} s of CPU time in {took} s");
    assert!(refused > 0 && faults(gateway, "budget").await >= refused as f64, "{refused}");
    assert_eq!(faults(gateway, "cpu_time").await, 0.0);
    let again = async || (client.get("/told").await.expect("an answer").status == 200).then_some(());
    eventually("there is CPU time again", again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_component_is_charged_to_its_budget() {
    let tenant = "limits = { cpu = \"50ms\", cpu_burst = \"20ms\" }";
    let gateway = Gateway::start_in(folder(), &of_tenant(tenant, "limits = { cpu_time = \"10s\" }", ONE_TRY)).await;
    let client = Client::http1(gateway.edge()).authority("a.test");
    is_held_to_its_share(&gateway, &client, 0.05, 0.02).await;
    let of_component = gateway.metric("tidegate_component_cpu_seconds_total{cluster=\"function\"}").await;
    let of_tenant = gateway.metric("tidegate_tenant_cpu_seconds_total{tenant=\"a\"}").await;
    assert!((of_component - of_tenant).abs() < 0.01, "{of_component} {of_tenant}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_of_nobody_may_have_a_share_of_its_own() {
    let limits = "limits = { cpu_time = \"10s\", cpu = \"50ms\", cpu_burst = \"20ms\" }";
    let gateway = Gateway::start_in(folder(), &config(limits, ONE_TRY)).await;
    is_held_to_its_share(&gateway, &Client::http1(gateway.edge()), 0.05, 0.02).await;
}

/// Waiting for CPU time ends as any waiting does: with the request's own time, or its client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_cpu_time_waits_no_longer_than_its_timeout() {
    let limits = "limits = { cpu_time = \"10s\", cpu = \"5ms\", cpu_burst = \"5ms\", timeout = \"400ms\" }";
    let gateway = Gateway::start_in(folder(), &config(limits, ONE_TRY)).await;
    let begun = Instant::now();
    assert_eq!(status(&Client::http1(gateway.edge()), "/burn").await, 502);
    assert!(begun.elapsed() > Duration::from_millis(390) && begun.elapsed() < Duration::from_secs(3));
    assert_eq!(faults(&gateway, "timeout").await, 1.0);
    none_lives(&gateway).await;
    let used = gateway.metric("tidegate_component_cpu_seconds_total{cluster=\"function\"}").await;
    assert!(used < 0.02, "{used} s of CPU time where there were 7 ms");
    eventually("there is CPU time again", async || {
        let mut leaver = RawClient::connect(gateway.edge()).await;
        leaver.send(b"GET /burn HTTP/1.1\r\nhost: a\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let lives = gateway.metric("tidegate_component_instances{cluster=\"function\"}").await == 1.0;
        drop(leaver);
        lives.then_some(())
    })
    .await;
    none_lives(&gateway).await;
}

/// Instances, memory and lines are of the tenant's too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_else_a_tenant_may_have_holds_for_its_components() {
    let tenant = "limits = { instances = 2, memory = \"24MiB\", log_lines = 4 }";
    let gateway = Gateway::start_in(folder(), &of_tenant(tenant, "limits = { memory = \"20MiB\" }", ONE_TRY)).await;
    let client = Client::http1(gateway.edge()).authority("a.test");
    let asleep: Vec<_> = (0..2)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { status(&client, "/sleep?500").await })
        })
        .collect();
    let instances = "tidegate_tenant_instances{tenant=\"a\"}";
    let memory = "tidegate_tenant_memory_bytes{tenant=\"a\"}";
    eventually("two are at work", async || (gateway.metric(instances).await == 2.0).then_some(())).await;
    // A place is taken before the memory is.
    eventually("both have memory", async || (gateway.metric(memory).await >= f64::from(2 << 16)).then_some(())).await;
    assert!(refused_for_budget(&client.get("/told").await.expect("an answer")));
    for answer in asleep {
        assert_eq!(answer.await.expect("no panic"), 200);
    }
    eventually("both are gone", async || (gateway.metric(instances).await == 0.0).then_some(())).await;
    assert_eq!(gateway.metric(memory).await, 0.0);
    assert_eq!(faults(&gateway, "budget").await, 1.0);
    assert_eq!(status(&client, "/memory").await, 502);
    assert_eq!(faults(&gateway, "memory").await, 1.0, "its own bound comes first");
    assert_eq!(status(&client, "/print?100").await, 200);
    let dropped = "tidegate_component_log_lines_dropped_total{cluster=\"function\"}";
    eventually("lines are dropped", async || (gateway.metric(dropped).await >= 90.0).then_some(())).await;
}
