//! Who takes requests: active checks, ejection by results, panic, circuit breakers. Times are short in the
//! configuration; what should come about is waited for, never slept for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;
use tidegate_tests::certs::Authority;
use tidegate_tests::origin::{Body, full};
use tidegate_tests::{Client, Gateway, Origin, RawOrigin, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Checks often, and believes a single result.
const OFTEN: &str = "interval = \"30ms\", timeout = \"5s\", healthy_threshold = 1, unhealthy_threshold = 1";

fn status(code: u16, text: &'static str) -> Response<Body> {
    let mut response = Response::new(full(text));
    *response.status_mut() = StatusCode::from_u16(code).expect("a status");
    response
}

/// Says `name`; its `/health` is as well as `well`.
async fn patient(name: &'static str, well: &Arc<AtomicBool>) -> Origin {
    let well = well.clone();
    Origin::answering(false, move |seen| match seen.path.as_str() {
        "/health" if well.load(Ordering::Relaxed) => status(204, ""),
        "/health" => status(500, "ill"),
        _ => status(200, name),
    })
    .await
}

fn of(metric: &str, endpoint: SocketAddr, more: &str) -> String {
    format!("{metric}{{cluster=\"api\",endpoint=\"{endpoint}\"{more}}}")
}

async fn until_healthy(gateway: &Gateway, endpoint: SocketAddr, healthy: bool) {
    let sample = of("tidegate_endpoint_healthy", endpoint, "");
    let wanted = f64::from(u8::from(healthy));
    eventually("its health changes", async || (gateway.metric(&sample).await == wanted).then_some(())).await;
}

/// The bodies of `count` requests, which must all be 200.
async fn ask(gateway: &Gateway, count: usize) -> Vec<String> {
    let client = Client::http1(gateway.edge());
    let mut texts = Vec::new();
    for _ in 0..count {
        let answer = client.get("/").await.expect("an answer");
        assert_eq!(answer.status, 200);
        texts.push(answer.text());
    }
    texts
}

/// Conduct "Guard-rails", the issue's "Health: active (HTTP)": an endpoint that fails its check gets no request until it passes
/// again; the log, the metrics and the status page say why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_fails_its_check_leaves_and_returns() {
    let (well, always) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
    let (one, two) = (patient("one", &well).await, patient("two", &always).await);
    let more = format!("health = {{ path = \"/health\", host = \"check.example\", {OFTEN} }}");
    let gateway = Gateway::start(&crate::simple(&[one.address, two.address], &more)).await;
    until_healthy(&gateway, one.address, true).await;
    until_healthy(&gateway, two.address, true).await;
    let texts = ask(&gateway, 10).await;
    assert!(texts.iter().any(|text| text == "one") && texts.iter().any(|text| text == "two"), "{texts:?}");
    let check = one.record().into_iter().find(|seen| seen.path == "/health").expect("a check");
    assert_eq!((check.method.as_str(), check.authority.as_str()), ("GET", "check.example"));

    well.store(false, Ordering::Relaxed);
    until_healthy(&gateway, one.address, false).await;
    assert_eq!(ask(&gateway, 10).await, ["two"; 10]);
    assert_eq!(gateway.metric(&of("tidegate_endpoint_unhealthy", one.address, ",reason=\"checks\"")).await, 1.0);
    assert!(gateway.metric(&of("tidegate_endpoint_checks_total", one.address, ",outcome=\"failed\"")).await >= 1.0);
    assert!(gateway.metric(&of("tidegate_endpoint_checks_total", two.address, ",outcome=\"passed\"")).await >= 1.0);
    let page: serde_json::Value = serde_json::from_str(&gateway.admin_get("/status").await.text()).expect("JSON");
    let endpoint = &page["clusters"][0]["endpoints"][0];
    assert_eq!((endpoint["healthy"].as_bool(), endpoint["reason"].as_str()), (Some(false), Some("checks")));
    gateway.says("status 500").await;

    well.store(true, Ordering::Relaxed);
    until_healthy(&gateway, one.address, true).await;
    assert!(ask(&gateway, 10).await.contains(&"one".to_owned()));
}

/// "Health: active (TCP)": a connection is enough, or what is sent must be answered as expected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_checks_connect_and_may_converse() {
    let right = Arc::new(AtomicBool::new(true));
    let says = right.clone();
    let talker = RawOrigin::start(move |mut stream, _| {
        let says = says.clone();
        async move {
            let mut asked = [0; 6];
            if stream.read_exact(&mut asked).await.is_ok() && &asked == b"PING\r\n" {
                // In two pieces: an answer may come as it likes.
                let answer: [&[u8]; 2] =
                    if says.load(Ordering::Relaxed) { [b"+PO", b"NG\r\n"] } else { [b"-LOAD", b"ING\r\n"] };
                for piece in answer {
                    let _ = stream.write_all(piece).await;
                    let _ = stream.flush().await;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        }
    })
    .await;
    // A listener that accepts nothing: the kernel connects all the same.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("an address");
    let refusing = tidegate_tests::gateway::free_address();
    let plain = crate::simple(&[address, refusing], &format!("health = {{ kind = \"tcp\", {OFTEN} }}"));
    let gateway = Gateway::start(&plain).await;
    until_healthy(&gateway, address, true).await;
    until_healthy(&gateway, refusing, false).await;
    drop(silent);
    until_healthy(&gateway, address, false).await;

    let more = format!("health = {{ kind = \"tcp\", send = \"PING\\r\\n\", receive = \"+PONG\", {OFTEN} }}");
    let gateway = Gateway::start(&crate::simple(&[talker.address], &more)).await;
    until_healthy(&gateway, talker.address, true).await;
    right.store(false, Ordering::Relaxed);
    until_healthy(&gateway, talker.address, false).await;
    right.store(true, Ordering::Relaxed);
    until_healthy(&gateway, talker.address, true).await;
}

/// "Health: active (gRPC)", grpc.health.v1: SERVING is healthy, NOT_SERVING and an unknown method are not; the service's name is
/// sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_checks_ask_after_a_service() {
    let serving = Arc::new(AtomicU8::new(1));
    let says = serving.clone();
    let origin = Origin::answering(true, move |_| {
        let says = says.load(Ordering::Relaxed);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, says]);
        let mut response = if says == 0 {
            // Trailers-only.
            let mut response = Response::new(full(""));
            response.headers_mut().insert("grpc-status", HeaderValue::from_static("12"));
            response
        } else {
            Response::new(full(message).with_trailers(std::future::ready(Some(Ok(trailers)))).boxed())
        };
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        response
    })
    .await;
    let more = format!("protocol = \"http2\"\nhealth = {{ kind = \"grpc\", service = \"shop.Cart\", {OFTEN} }}");
    let gateway = Gateway::start(&crate::simple(&[origin.address], &more)).await;
    until_healthy(&gateway, origin.address, true).await;
    let check = origin.last();
    assert_eq!((check.method.as_str(), check.path.as_str()), ("POST", "/grpc.health.v1.Health/Check"));
    assert_eq!(check.header("content-type"), Some("application/grpc"));
    assert_eq!(check.header("te"), Some("trailers"));
    assert_eq!(&check.body[..], b"\0\0\0\0\x0b\x0a\x09shop.Cart");
    for ill in [2, 0] {
        serving.store(ill, Ordering::Relaxed);
        until_healthy(&gateway, origin.address, false).await;
        serving.store(1, Ordering::Relaxed);
        until_healthy(&gateway, origin.address, true).await;
    }
}

/// Conduct "Re-encryption": checks use the cluster's TLS, verified like its requests, and its protocol by ALPN.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_use_the_clusters_tls() {
    let authority = Authority::new();
    let pair = authority.issue(&["origin.example"]);
    let good = Origin::tls(true, pair.server(&[b"h2"], None)).await;
    let also = Origin::tls(false, pair.server(&[b"http/1.1"], None)).await;
    let other = Origin::tls(false, authority.issue(&["other.example"]).server(&[b"http/1.1"], None)).await;
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).expect("written");
    let more = format!(
        "tls = {{ server_name = \"origin.example\", ca = \"ca.pem\" }}\nhealth = {{ method = \"HEAD\", {OFTEN} }}"
    );
    let config = crate::simple(&[good.address, also.address, other.address], &more);
    let gateway = Gateway::start_in(folder, &config).await;
    until_healthy(&gateway, good.address, true).await;
    until_healthy(&gateway, also.address, true).await;
    until_healthy(&gateway, other.address, false).await;
    for origin in [&good, &also] {
        let check = origin.last();
        assert_eq!((check.method.as_str(), check.authority.as_str()), ("HEAD", "origin.example"));
    }
    assert_eq!(good.last().version, http::Version::HTTP_2);
    assert!(other.record().is_empty(), "no request over a connection that is not verified");
}

/// The same over HTTP/3, for requests and for gRPC.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_of_http3_clusters_go_over_http3() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).expect("written");
    let well = Arc::new(AtomicBool::new(true));
    let mut origins = Vec::new();
    for name in ["origin.example", "origin.example", "other.example"] {
        let well = well.clone();
        let tls = authority.issue(&[name]).server(&[b"h3"], None);
        let origin = Origin::http3(tls, move |asked| {
            let well = well.load(Ordering::Relaxed);
            if asked.path != "/grpc.health.v1.Health/Check" {
                return Response::builder().status(if well { 200 } else { 503 }).body(full("")).expect("a response");
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, if well { 1 } else { 2 }]);
            Response::new(full(message).with_trailers(std::future::ready(Some(Ok(trailers)))).boxed())
        });
        origins.push(origin.await);
    }
    let cluster = |name: &str, origin: &Origin, health: &str| {
        format!(
            "[[cluster]]\nname = \"{name}\"\nendpoints = [\"{}\"]\nprotocol = \"http3\"\n\
             tls = {{ server_name = \"origin.example\", ca = \"ca.pem\" }}\nhealth = {{ {health}, {OFTEN} }}\n",
            origin.address
        )
    };
    let [http, grpc, other] = &origins[..] else { panic!("three") };
    let config = format!(
        "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\n{}{}{}\
         [[route]]\nsplit = [{{ cluster = \"http\" }}, {{ cluster = \"grpc\" }}, {{ cluster = \"other\" }}]\n",
        cluster("http", http, "path = \"/health\""),
        cluster("grpc", grpc, "kind = \"grpc\""),
        cluster("other", other, "path = \"/health\""),
    );
    let gateway = Gateway::start_in(folder, &config).await;
    let until = async |name: &str, origin: &Origin, wanted: f64| {
        let sample = format!("tidegate_endpoint_healthy{{cluster=\"{name}\",endpoint=\"{}\"}}", origin.address);
        eventually("its standing", async || (gateway.metric(&sample).await == wanted).then_some(())).await;
    };
    for wanted in [1.0, 0.0, 1.0] {
        well.store(wanted == 1.0, Ordering::Relaxed);
        until("http", http, wanted).await;
        until("grpc", grpc, wanted).await;
        until("other", other, 0.0).await;
    }
    let check = http.last();
    assert_eq!((check.version, check.authority.as_str()), (http::Version::HTTP_3, "origin.example"));
    assert_eq!(&grpc.last().body[..], b"\0\0\0\0\0");
    assert!(other.record().is_empty(), "no request over a connection that is not verified");
}

/// Conduct "PROXY v2 + TLV: health checks must send LOCAL", PROXY protocol section 2.2: a check is nobody's connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_say_local_where_a_proxy_header_is_wanted() {
    for (version, header) in [("v1", &b"PROXY UNKNOWN\r\n"[..]), ("v2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")] {
        let origin = RawOrigin::start(move |mut stream, _| async move {
            let mut first = vec![0; header.len()];
            if stream.read_exact(&mut first).await.is_ok() && first == header {
                tidegate_tests::origin::read_head(&mut stream).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        })
        .await;
        let more = format!("proxy_protocol = \"{version}\"\nhealth = {{ {OFTEN} }}");
        let gateway = Gateway::start(&crate::simple(&[origin.address], &more)).await;
        until_healthy(&gateway, origin.address, true).await;
        assert!(
            gateway.metric(&of("tidegate_endpoint_checks_total", origin.address, ",outcome=\"passed\"")).await >= 1.0
        );
    }
}

/// "Passive with ejection by consecutive errors": a row of 5xx puts an endpoint out at once, and after its time it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_errors_ejects_for_a_while() {
    let well = Arc::new(AtomicBool::new(false));
    let says = well.clone();
    let bad =
        Origin::answering(
            false,
            move |_| {
                if says.load(Ordering::Relaxed) { status(200, "bad") } else { status(500, "bad") }
            },
        )
        .await;
    let good = Origin::answering(false, |_| status(200, "good")).await;
    let more = "ejection = { consecutive_5xx = 3, base_time = \"2s\", interval = \"200ms\" }";
    let gateway = Gateway::start(&crate::simple(&[bad.address, good.address], more)).await;
    let client = Client::http1(gateway.edge());
    eventually("it is ejected", async || {
        client.get("/").await.expect("an answer");
        let ejections = gateway.metric(&of("tidegate_endpoint_ejections_total", bad.address, "")).await;
        (ejections == 1.0).then_some(())
    })
    .await;
    assert_eq!(bad.record().len(), 3, "at once");
    gateway.says("consecutive_5xx").await;
    well.store(true, Ordering::Relaxed);
    eventually("it is back", async || {
        let text = client.get("/").await.expect("an answer").text();
        (text == "bad").then_some(())
    })
    .await;
    until_healthy(&gateway, bad.address, true).await;
}

/// Where nothing is sent upstream, nobody looks whether to eject: the process sleeps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sweep_of_ejections_rests_with_the_traffic() {
    let origin = Origin::answering(false, |_| status(200, "good")).await;
    // Looked at fifty times a second while there is anything to look at.
    let more = "ejection = { base_time = \"200ms\", interval = \"200ms\" }";
    let gateway = Gateway::start(&crate::simple(&[origin.address], more)).await;
    let rests = async || {
        eventually("it rests", async || {
            let before = gateway.sleeps();
            tokio::time::sleep(Duration::from_secs(1)).await;
            (gateway.sleeps() - before < 20).then_some(())
        })
        .await;
    };
    rests().await;
    assert_eq!(ask(&gateway, 3).await, ["good"; 3]);
    rests().await;
}

/// "Passive ... maximum ejection": connections that fail eject too, but of two endpoints one always stays in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_all_are_ejected() {
    let nobody = || tidegate_tests::gateway::free_address();
    let endpoints = [nobody(), nobody()];
    let more = "ejection = { consecutive_local = 1, base_time = \"60s\" }\npanic_threshold = \"0%\"";
    let gateway = Gateway::start(&crate::simple(&endpoints, more)).await;
    for _ in 0..10 {
        let answer = Client::http1(gateway.edge()).get("/").await.expect("an answer");
        assert_eq!(answer.header("proxy-status"), Some("tidegate; error=connection_refused"));
    }
    let healthy = async || {
        let mut healthy = 0.0;
        for endpoint in endpoints {
            healthy += gateway.metric(&of("tidegate_endpoint_healthy", endpoint, "")).await;
        }
        healthy
    };
    assert_eq!(healthy().await, 1.0);
    // An ejection goes on over a reload, and ends when nobody is to be ejected any more.
    assert!(gateway.reload(&crate::simple(&endpoints, &format!("{more}\nmax_pending = 7"))).0);
    assert_eq!(healthy().await, 1.0);
    assert!(gateway.reload(&crate::simple(&endpoints, "")).0);
    assert_eq!(healthy().await, 2.0);
}

/// "Success rate by standard deviation": who fares much worse than the others is put out by comparison, without a row of errors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_fares_much_worse_is_ejected() {
    let mut origins = Vec::new();
    for _ in 0..3 {
        origins.push(Origin::http1().await);
    }
    // Every other answer is bad.
    let count = AtomicUsize::new(0);
    let bad = Origin::answering(false, move |_| {
        if count.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) { status(500, "no") } else { status(200, "ok") }
    })
    .await;
    let endpoints: Vec<SocketAddr> = origins.iter().map(|origin| origin.address).chain([bad.address]).collect();
    let more = "ejection = { interval = \"1s\", base_time = \"60s\", success_rate_factor = \"1.2\", min_endpoints = 4, min_requests = 6 }";
    let gateway = Gateway::start(&crate::simple(&endpoints, more)).await;
    let client = Client::http1(gateway.edge());
    eventually("it is ejected", async || {
        for _ in 0..8 {
            client.get("/").await.expect("an answer");
        }
        let ejected = gateway.metric(&of("tidegate_endpoint_ejections_total", bad.address, "")).await;
        (ejected == 1.0).then_some(())
    })
    .await;
    gateway.says("success_rate").await;
    for origin in &origins {
        assert_eq!(gateway.metric(&of("tidegate_endpoint_healthy", origin.address, "")).await, 1.0);
    }
    let page: serde_json::Value = serde_json::from_str(&gateway.admin_get("/status").await.text()).expect("JSON");
    assert_eq!(page["clusters"][0]["endpoints"][3]["reason"], "ejected: success_rate");
}

/// "Panic threshold": when too few are healthy all are used, and with a threshold of nothing none is: 503.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panic_serves_anyway() {
    let ill = Arc::new(AtomicBool::new(false));
    let (one, two) = (patient("one", &ill).await, patient("two", &ill).await);
    let start = async |more: &str| {
        let more = format!("health = {{ path = \"/health\", {OFTEN} }}\n{more}");
        let gateway = Gateway::start(&crate::simple(&[one.address, two.address], &more)).await;
        until_healthy(&gateway, one.address, false).await;
        until_healthy(&gateway, two.address, false).await;
        gateway
    };
    let gateway = start("").await;
    let texts = ask(&gateway, 6).await;
    assert!(texts.contains(&"one".to_owned()) && texts.contains(&"two".to_owned()), "{texts:?}");
    assert_eq!(gateway.metric("tidegate_cluster_panic{cluster=\"api\"}").await, 1.0);
    assert_eq!(gateway.metric("tidegate_cluster_panic_attempts_total{cluster=\"api\"}").await, 6.0);
    eventually("the log says so", async || gateway.log().contains("too few endpoints are healthy").then_some(())).await;

    let gateway = start("panic_threshold = \"0%\"").await;
    let answer = Client::http1(gateway.edge()).get("/").await.expect("an answer");
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("proxy-status"), Some("tidegate; error=destination_unavailable"));
}

/// Until its first check a new endpoint takes nothing, unless the configuration believes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_endpoint_waits_for_its_first_check() {
    // Accepts and never answers: the first check hangs.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("an address");
    let more =
        |initial: &str| format!("health = {{ timeout = \"60s\", initial = \"{initial}\" }}\npanic_threshold = \"0%\"");
    let gateway = Gateway::start(&crate::simple(&[address], &more("unhealthy"))).await;
    assert_eq!(Client::http1(gateway.edge()).get("/").await.expect("an answer").status, 503);
    assert_eq!(gateway.metric(&of("tidegate_endpoint_unhealthy", address, ",reason=\"awaited\"")).await, 1.0);
    let gateway = Gateway::start(&crate::simple(&[address], &more("healthy"))).await;
    assert_eq!(gateway.metric(&of("tidegate_endpoint_healthy", address, "")).await, 1.0);
}

/// "A reload forgets nothing": verdicts stay, tasks are not doubled,
/// and what is no longer configured no longer counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_survives_a_reload() {
    let (ill, well) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    let (one, two) = (patient("one", &ill).await, patient("two", &well).await);
    let slow = "interval = \"60s\", timeout = \"5s\", unhealthy_threshold = 1";
    let more = format!("health = {{ path = \"/health\", {slow} }}");
    let config = crate::simple(&[one.address, two.address], &more);
    let gateway = Gateway::start(&config).await;
    until_healthy(&gateway, one.address, false).await;
    until_healthy(&gateway, two.address, true).await;
    for _ in 0..3 {
        let (taken, said) = gateway.reload(&format!("{config}timeout = \"30s\"\n"));
        assert!(taken, "{said}");
        assert_eq!(gateway.metric(&of("tidegate_endpoint_healthy", one.address, "")).await, 0.0);
        assert_eq!(ask(&gateway, 4).await, ["two"; 4]);
    }
    assert_eq!(gateway.metric(&of("tidegate_endpoint_checks_total", one.address, ",outcome=\"failed\"")).await, 1.0);
    // Another way of checking begins anew, from what is known; without checks all are believed.
    let (taken, said) = gateway.reload(&config.replace("\"/health\"", "\"/\""));
    assert!(taken, "{said}");
    eventually("it is checked anew", async || {
        let passed = of("tidegate_endpoint_checks_total", one.address, ",outcome=\"passed\"");
        (gateway.metric(&passed).await == 1.0).then_some(())
    })
    .await;
    assert_eq!(gateway.metric(&of("tidegate_endpoint_healthy", one.address, "")).await, 0.0, "one of two good ones");
    assert!(gateway.reload(&crate::simple(&[one.address, two.address], "")).0);
    until_healthy(&gateway, one.address, true).await;
    let checks = |origin: &Origin| origin.record().iter().filter(|seen| seen.path == "/health").count();
    assert_eq!((checks(&one), checks(&two)), (1, 1));
}

/// Conduct "Timeout status: overload → 503 + Retry-After", RFC 9209, section 2.3.12: what is beyond the cluster's bound is
/// refused at once, and there is room again when a request is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn circuit_breakers_refuse_what_is_too_much() {
    let release = Arc::new(tokio::sync::Semaphore::new(0));
    let arrived = Arc::new(AtomicUsize::new(0));
    let (gate, count) = (release.clone(), arrived.clone());
    let origin = RawOrigin::start(move |mut stream, _| {
        let (gate, count) = (gate.clone(), count.clone());
        async move {
            tidegate_tests::origin::read_head(&mut stream).await;
            count.fetch_add(1, Ordering::SeqCst);
            let _permit = gate.acquire().await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
        }
    })
    .await;
    let more = "circuit_breaker = { max_requests = 2 }";
    let gateway = Gateway::start(&crate::simple(&[origin.address], more)).await;
    let client = Client::http1(gateway.edge());
    let held: Vec<_> = (0..2)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                client.get("/").await.map(|answer| answer.status.as_u16()).map_err(|e| e.to_string())
            })
        })
        .collect();
    eventually("two are in flight", async || (arrived.load(Ordering::SeqCst) == 2).then_some(())).await;
    let active = "tidegate_circuit_breaker_active{cluster=\"api\",bound=\"requests\"}";
    assert_eq!(gateway.metric(active).await, 2.0);
    let answer = client.get("/").await.expect("an answer");
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("proxy-status"), Some("tidegate; error=connection_limit_reached"));
    assert!(answer.header("retry-after").is_some());
    let refused = "tidegate_circuit_breaker_refused_total{cluster=\"api\",bound=\"requests\"}";
    assert_eq!(gateway.metric(refused).await, 1.0);
    assert_eq!(gateway.metric("tidegate_faults_total{cause=\"cluster_full\"}").await, 1.0);
    release.add_permits(1000);
    for task in held {
        assert_eq!(task.await.expect("no panic"), Ok(200));
    }
    eventually("there is room again", async || (gateway.metric(active).await == 0.0).then_some(())).await;
    assert_eq!(client.get("/").await.expect("an answer").status, 200);
}

/// "Circuit breakers (retries)": without room for a retry the first failure stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn circuit_breakers_bound_retries() {
    let nobody = tidegate_tests::gateway::free_address();
    let more = "circuit_breaker = { max_retries = 0 }";
    let gateway = Gateway::start(&crate::simple(&[nobody], more)).await;
    assert_eq!(Client::http1(gateway.edge()).get("/").await.expect("an answer").status, 502);
    assert_eq!(gateway.metric("tidegate_retries_total").await, 0.0);
    let refused = "tidegate_circuit_breaker_refused_total{cluster=\"api\",bound=\"retries\"}";
    assert_eq!(gateway.metric(refused).await, 1.0);
}

/// "Slow start": an endpoint that joined gets a small share at first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joining_endpoint_starts_slowly() {
    let old = Origin::answering(false, |_| status(200, "old")).await;
    let new = Origin::answering(false, |_| status(200, "new")).await;
    for by in ["round_robin", "least_request"] {
        let more = format!("slow_start = \"1h\"\nbalance = {{ by = \"{by}\" }}");
        let gateway = Gateway::start(&crate::simple(&[old.address], &more)).await;
        assert_eq!(ask(&gateway, 3).await, ["old"; 3], "the first of all has nobody to lean on");
        assert!(gateway.reload(&crate::simple(&[old.address, new.address], &more)).0);
        let texts = ask(&gateway, 200).await;
        let taken = texts.iter().filter(|text| *text == "new").count();
        // A tenth of its half.
        assert!((1..40).contains(&taken), "{by}: {taken} of 200");
    }
}

/// An endpoint that fails at once is not taken for a fast one: the slower one that answers gets the load, nothing being ejected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_fails_fast_draws_no_load() {
    let sound = Origin::answering(false, |_| {
        std::thread::sleep(Duration::from_millis(5));
        status(200, "sound")
    })
    .await;
    let broken = Origin::answering(false, |_| status(500, "broken")).await;
    let more = "balance.by = \"peak_ewma\"";
    let gateway = Gateway::start(&crate::simple(&[sound.address, broken.address], more)).await;
    let client = Client::http1(gateway.edge());
    for _ in 0..100 {
        client.get("/").await.expect("an answer");
    }
    let (good, bad) = (sound.record().len(), broken.record().len());
    assert!(bad > 0 && good + bad == 100, "{good} {bad}");
    assert!(bad < 20, "{bad} of 100 went to the endpoint that fails");
}
