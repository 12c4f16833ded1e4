//! TCP that is relayed as it is: `[listener.tunnel]` to a cluster.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tidegate_tests::{Gateway, RawOrigin, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A listener that relays everything to one cluster; `tunnel` and `cluster` go into their tables.
fn relay(endpoints: &[SocketAddr], tunnel: &str, cluster: &str) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|address| format!("\"{address}\"")).collect();
    format!(
        "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\ntunnel = {{ cluster = \"db\"{tunnel} }}\n\
         [[cluster]]\nname = \"db\"\nendpoints = [{}]\n{cluster}\n",
        endpoints.join(", ")
    )
}

/// Sends back all that it gets, once its sender has ended.
async fn echo() -> RawOrigin {
    RawOrigin::start(|mut stream, _| async move {
        let mut all = Vec::new();
        if stream.read_to_end(&mut all).await.is_ok() {
            let _ = stream.write_all(&all).await;
        }
    })
    .await
}

/// Says its name and goes on only when it is let go.
async fn naming(name: &'static str) -> RawOrigin {
    RawOrigin::start(move |mut stream, _| async move {
        let _ = stream.write_all(name.as_bytes()).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await
}

async fn connect(gateway: &Gateway) -> TcpStream {
    TcpStream::connect(gateway.edge()).await.expect("a connection")
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket option");
}

async fn exactly(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut bytes)).await.expect("in time").expect("read");
    bytes
}

/// What came until the other side ended a connection, or how it broke.
type Fate = Result<Vec<u8>, ErrorKind>;
type Fates = Arc<Mutex<Vec<Fate>>>;

async fn fate(stream: &mut TcpStream) -> Fate {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await.expect("in time");
    read.map(|_| rest).map_err(|error| error.kind())
}

/// Conduct "L4 full proxy": byte exact, half closed from one side and then the other, whoever speaks first; counted and
/// logged once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_both_ways_until_both_have_ended() {
    let origin = echo().await;
    let gateway = Gateway::start(&relay(&[origin.address], "", "")).await;
    let mut random = fastrand::Rng::with_seed(1);
    for size in [0, 1, 4096, 100_000, 20_000_000] {
        let payload: Vec<u8> = (0..size).map(|_| random.u8(..)).collect();
        let (mut from, mut to) = connect(&gateway).await.into_split();
        let (payload, back) = tokio::join!(
            async {
                to.write_all(&payload).await.expect("sent");
                to.shutdown().await.expect("closed");
                payload
            },
            async {
                let mut back = Vec::new();
                from.read_to_end(&mut back).await.expect("a clean end");
                back
            }
        );
        assert!(payload == back, "{size} bytes differ");
    }
    let lines = eventually("five lines", async || {
        let lines = gateway.access_log();
        (lines.len() == 5).then_some(lines)
    })
    .await;
    let line = lines.iter().find(|line| line["bytes_in"] == 20_000_000).expect("the longest");
    assert_eq!((&line["bytes_out"], &line["protocol"]), (&20_000_000.into(), &"tcp".into()));
    assert_eq!((&line["cluster"], &line["cause"]), (&"db".into(), &serde_json::Value::Null));
    assert_eq!(line["endpoint"], origin.address.to_string());
    assert_eq!(gateway.metric("tidegate_tunnels_total{kind=\"tcp\"}").await, 5.0);
    assert_eq!(gateway.metric("tidegate_tunnels_active").await, 0.0);
    assert_eq!(gateway.metric("tidegate_body_bytes_total{direction=\"in\"}").await, 20_104_097.0);

    let speaks_first = naming("220 ready\r\n").await;
    assert!(gateway.reload(&relay(&[speaks_first.address], "", "")).0);
    let mut client = connect(&gateway).await;
    assert_eq!(exactly(&mut client, 11).await, b"220 ready\r\n");
}

/// Conduct "L4 full proxy", "RST propagated": both ways, and never as an end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_passed_on() {
    let saw: Fates = Arc::default();
    let seen = saw.clone();
    let origin = RawOrigin::start(move |mut stream, number| {
        let seen = seen.clone();
        async move {
            let _ = stream.write_all(b"hello").await;
            if number == 0 {
                let ended = fate(&mut stream).await;
                seen.lock().expect("no panic").push(ended);
            } else {
                let _ = stream.read_u8().await;
                reset(stream);
            }
        }
    })
    .await;
    let gateway = Gateway::start(&relay(&[origin.address], "", "")).await;
    let mut client = connect(&gateway).await;
    assert_eq!(exactly(&mut client, 5).await, b"hello");
    reset(client);
    eventually("the origin sees it", async || (!saw.lock().expect("no panic").is_empty()).then_some(())).await;
    assert_eq!(saw.lock().expect("no panic")[0], Err(ErrorKind::ConnectionReset));
    let mut client = connect(&gateway).await;
    assert_eq!(exactly(&mut client, 5).await, b"hello");
    client.write_all(b"x").await.expect("sent");
    assert_eq!(fate(&mut client).await, Err(ErrorKind::ConnectionReset));
    let causes = eventually("two lines", async || {
        let causes: Vec<_> = gateway.access_log().iter().map(|line| line["cause"].clone()).collect();
        (causes.len() == 2).then_some(causes)
    })
    .await;
    assert_eq!(causes, ["client_gone", "reset"]);
}

/// Conduct "L4 full proxy", "back-pressure (memory bounded with stalled reader)".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_takes_nothing_holds_its_sender_back() {
    let origin = RawOrigin::start(|stream, _| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    })
    .await;
    let gateway = Gateway::start(&relay(&[origin.address], "", "")).await;
    drop(connect(&gateway).await);
    let before = gateway.resident();
    let piece = vec![7; 1 << 20];
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = connect(&gateway).await;
        let mut sent = 0;
        while let Ok(written) = tokio::time::timeout(Duration::from_millis(150), client.write(&piece)).await {
            sent += written.expect("still open");
            assert!(sent < 64 << 20, "nothing holds it back");
        }
        clients.push(client);
    }
    let grown = gateway.resident().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes for twenty that wait");
}

/// Conduct "L4 full proxy", "connect timeouts": nothing was sent yet, so another endpoint is tried; when none takes it,
/// the client is told at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_endpoint_is_tried_until_one_takes_it() {
    let origin = naming("here").await;
    let dead: Vec<SocketAddr> = (0..3).map(|_| tidegate_tests::gateway::free_address()).collect();
    let gateway = Gateway::start(&relay(&[dead[0], origin.address, dead[1]], "", "")).await;
    for _ in 0..6 {
        assert_eq!(exactly(&mut connect(&gateway).await, 4).await, b"here");
    }
    let (taken, said) =
        gateway.reload(&relay(&[dead[0], dead[1], dead[2], origin.address], ", connect_attempts = 1", ""));
    assert!(taken, "{said}");
    let mut refused = 0;
    for _ in 0..4 {
        refused += u32::from(fate_or_name(&gateway).await.is_err());
    }
    assert_eq!(refused, 3, "in turn, each once");
    assert!(gateway.reload(&relay(&dead, "", "")).0);
    let begun = Instant::now();
    assert!(fate_or_name(&gateway).await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(5));
    let last = eventually("a line", async || gateway.access_log().pop().filter(|line| line["attempts"] == 3)).await;
    assert_eq!(last["cause"], "connect_refused");
}

/// What a client is told before anything else, or how it is turned away.
async fn fate_or_name(gateway: &Gateway) -> Result<Vec<u8>, ErrorKind> {
    // Whoever is turned away may know before it has seen that it was let in.
    let mut client = TcpStream::connect(gateway.edge()).await.map_err(|error| error.kind())?;
    let mut name = [0; 4];
    client.read_exact(&mut name).await.map(|_| name.to_vec()).map_err(|error| error.kind())
}

/// Idle and lifetime limits, the listener's on connections, the cluster's on tunnels and on connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits() {
    let origin = naming("here").await;
    let gateway = Gateway::start(&relay(&[origin.address], ", idle_timeout = \"300ms\"", "")).await;
    let mut client = connect(&gateway).await;
    exactly(&mut client, 4).await;
    assert_eq!(fate(&mut client).await, Err(ErrorKind::ConnectionReset));
    assert!(gateway.reload(&relay(&[origin.address], ", max_lifetime = \"400ms\"", "")).0);
    let mut client = connect(&gateway).await;
    exactly(&mut client, 4).await;
    let begun = Instant::now();
    while client.write_all(b"x").await.is_ok() && begun.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "as busy as it is");
    let causes = eventually("two lines", async || {
        let causes: Vec<_> = gateway.access_log().iter().map(|line| line["cause"].clone()).collect();
        (causes.len() == 2).then_some(causes)
    })
    .await;
    assert_eq!(causes, ["idle_timeout", "total_timeout"]);
    let most = relay(&[origin.address], "", "").replacen("tunnel", "max_connections = 1\ntunnel", 1);
    let breaker = relay(&[origin.address], "", "circuit_breaker = { max_requests = 1 }");
    for config in [most, breaker] {
        assert!(gateway.reload(&config).0, "{config}");
        let mut first = connect(&gateway).await;
        assert_eq!(exactly(&mut first, 4).await, b"here");
        assert_ne!(fate_or_name(&gateway).await, Ok(b"here".to_vec()), "{config}");
        drop(first);
        eventually("room again", async || fate_or_name(&gateway).await.ok()).await;
    }
}

/// A tunnel goes on over a reload that leads new ones elsewhere, and through a drain until its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reload_and_drain_leave_tunnels_alone() {
    let (one, two) = (echoing("one!").await, echoing("two!").await);
    let mut gateway = Gateway::start(&relay(&[one.address], "", "")).await;
    let mut old = connect(&gateway).await;
    assert_eq!(exactly(&mut old, 4).await, b"one!");
    assert!(gateway.reload(&relay(&[two.address], "", "")).0);
    let mut new = connect(&gateway).await;
    assert_eq!(exactly(&mut new, 4).await, b"two!");
    old.write_all(b"still").await.expect("sent");
    assert_eq!(exactly(&mut old, 5).await, b"still");
    gateway.signal(libc::SIGTERM);
    eventually("no more are taken", async || TcpStream::connect(gateway.edge()).await.err()).await;
    for tunnel in [&mut old, &mut new] {
        tunnel.write_all(b"and on").await.expect("sent");
        assert_eq!(exactly(tunnel, 6).await, b"and on");
    }
    drop((old, new));
    assert!(gateway.ended().await.success());
}

/// Says a word, then echoes at once.
async fn echoing(word: &'static str) -> RawOrigin {
    RawOrigin::start(move |mut stream, _| async move {
        let _ = stream.write_all(word.as_bytes()).await;
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut piece).await {
            if stream.write_all(&piece[..count]).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// Balancers work for tunnels: by hash of the client, by load, and health counts refused connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn balancers_and_health() {
    let origins = [naming("aaaa").await, naming("bbbb").await, naming("cccc").await];
    let addresses = origins.each_ref().map(|origin| origin.address);
    let hashed = "balance = { by = \"maglev\", on = \"client_ip\", table = 251 }";
    let gateway = Gateway::start(&relay(&addresses, "", hashed)).await;
    let first = fate_or_name(&gateway).await.expect("a name");
    for _ in 0..5 {
        // The hash is bounded by load: one that is still open would count.
        eventually("none is open", async || (gateway.metric("tidegate_tunnels_active").await == 0.0).then_some(()))
            .await;
        assert_eq!(fate_or_name(&gateway).await.expect("a name"), first);
    }
    assert!(gateway.reload(&relay(&addresses, "", "balance = { by = \"least_request\" }")).0);
    let mut open = Vec::new();
    for _ in 0..30 {
        let mut client = connect(&gateway).await;
        exactly(&mut client, 4).await;
        open.push(client);
    }
    let counts = origins.each_ref().map(RawOrigin::connections);
    assert!(counts.iter().all(|count| *count >= 5), "{counts:?}: open tunnels are load");
    let dead = tidegate_tests::gateway::free_address();
    let ejecting = "ejection = { consecutive_local = 2, max_ejected = \"50%\" }";
    assert!(gateway.reload(&relay(&[dead, addresses[0]], "", ejecting)).0);
    for _ in 0..8 {
        assert_eq!(fate_or_name(&gateway).await.expect("a name"), b"aaaa");
    }
    let healthy = format!("tidegate_endpoint_healthy{{cluster=\"db\",endpoint=\"{dead}\"}}");
    assert_eq!(gateway.metric(&healthy).await, 0.0);
}

/// PROXY headers in, of both versions, and out, before the first byte, also where the origin speaks first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_headers_both_ways() {
    let heard: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let record = heard.clone();
    let origin = RawOrigin::start(move |mut stream, _| {
        let record = record.clone();
        async move {
            let mut all = vec![0; 4096];
            let count = stream.read(&mut all).await.unwrap_or_default();
            all.truncate(count);
            let _ = stream.write_all(b"here").await;
            let _ = stream.read_to_end(&mut all).await;
            record.lock().expect("no panic").push(all);
        }
    })
    .await;
    let config = relay(&[origin.address], "", "proxy_protocol = \"v1\"");
    let accept = "proxy_protocol = { accept = \"optional\", trusted = [\"127.0.0.1\"] }\ntunnel";
    let gateway = Gateway::start(&config.replacen("tunnel", accept, 1)).await;
    let port = gateway.edge().port();
    let v2 = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &[192, 0, 2, 7, 192, 0, 2, 8, 0x1f, 0x90, 0, 80]].concat();
    let ours = |client: SocketAddr| format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {port}\r\n", client.port());
    let said = b"PROXY TCP4 192.0.2.7 192.0.2.8 8080 80\r\n";
    for (sent, header) in [(&b""[..], None), (&v2, Some(&said[..])), (said, Some(said)), (b"PROXima", None)] {
        let mut client = connect(&gateway).await;
        let own = ours(client.local_addr().expect("an address"));
        client.write_all(sent).await.expect("sent");
        if sent.is_empty() {
            // It waits for the origin to begin.
            assert_eq!(exactly(&mut client, 4).await, b"here");
        }
        client.write_all(b"payload").await.expect("sent");
        client.shutdown().await.expect("closed");
        fate(&mut client).await.expect("a clean end");
        let got = eventually("the origin hears it", async || heard.lock().expect("no panic").pop()).await;
        let before = if header.is_some() { &b""[..] } else { sent };
        let expected = [header.unwrap_or(own.as_bytes()), before, b"payload"].concat();
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&expected));
    }
}
