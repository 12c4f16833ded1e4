//! Steering in the kernel: NAT pass-through and direct server return, with a client, a gateway and two backends in network
//! namespaces of their own, and real packets between them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;
use tidegate_tests::gateway::run;
use tidegate_tests::lab::{Flow, Lab, PORT, Wiring};
use tidegate_tests::{Gateway, eventually};

const OFTEN: &str = "health = { kind = \"tcp\", interval = \"100ms\", timeout = \"300ms\", unhealthy_threshold = 2, healthy_threshold = 1 }";

/// A steer of TCP and UDP to both backends, with these weights.
fn config(lab: &Lab, port: u16, weights: &[u32], more: &str) -> String {
    let endpoints: Vec<String> = weights
        .iter()
        .enumerate()
        .map(|(index, weight)| {
            format!("{{ address = \"{}\", weight = {weight} }}", SocketAddr::new(lab.backend(index), port))
        })
        .collect();
    format!(
        "[[steer]]\nname = \"web\"\naddress = \"{}\"\nports = \"{PORT}\"\nprotocols = [\"tcp\", \"udp\"]\ncluster = \"web\"\ntable = 251\n{more}\n\
         [[cluster]]\nname = \"web\"\nendpoints = [{}]\n{OFTEN}\n",
        lab.virtual_address(),
        endpoints.join(", "),
    )
}

const NAT: &str = "mode = \"nat\"";
const DSR: &str = "mode = \"dsr\"\ninterface = \"e0\"";

async fn start(lab: &Lab, config: &str) -> Gateway {
    let folder = tempfile::tempdir().expect("a folder");
    Gateway::start_under(&["ip", "netns", "exec", &lab.gateway.name], folder, config).await
}

/// A page of the admin listener, asked where the gateway is.
fn page(lab: &Lab, gateway: &Gateway, path: &str) -> String {
    let admin = gateway.admin();
    lab.gateway.run(|| {
        let mut stream = TcpStream::connect(admin).expect("admin listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer.split_once("\r\n\r\n").expect("a head").1.to_owned()
    })
}

fn status(lab: &Lab, gateway: &Gateway) -> Value {
    let status: Value = serde_json::from_str(&page(lab, gateway, "/status")).expect("JSON");
    status["steers"][0].clone()
}

fn metric(lab: &Lab, gateway: &Gateway, sample: &str) -> u64 {
    let page = page(lab, gateway, "/metrics");
    let line = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {sample} in\n{page}")).parse().expect("a number")
}

async fn until_roles(lab: &Lab, gateway: &Gateway, wanted: [&str; 2]) {
    eventually(&format!("roles are {wanted:?}"), async || {
        let status = status(lab, gateway);
        let roles = [0, 1].map(|index| status["endpoints"][index]["role"].as_str().unwrap_or_default().to_owned());
        (roles == wanted).then_some(())
    })
    .await;
}

fn tables(lab: &Lab) -> String {
    lab.gateway.output("nft", &["list", "tables"]).expect("nft lists")
}

fn flows(lab: &Lab, udp: bool, count: usize) -> Vec<Flow> {
    (0..count).map(|_| lab.flow(udp, PORT).expect("a flow")).collect()
}

fn answers(flows: &mut [Flow]) -> Vec<String> {
    flows.iter_mut().map(Flow::who).collect()
}

/// What both modes must do: spread flows of TCP and UDP, show the client's address, move the flows of a backend that is cut
/// off and no others, take it back, and leave nothing behind.
/// `last` looks at it before it stops.
async fn steers(lab: Lab, config: &str, backend_port: u16, last: impl FnOnce(&Lab)) {
    let services = lab.serve(backend_port);
    let mut gateway = start(&lab, config).await;
    until_roles(&lab, &gateway, ["takes", "takes"]).await;
    let (mut tcp, mut udp) = (flows(&lab, false, 24), flows(&lab, true, 24));
    let before = [answers(&mut tcp), answers(&mut udp)];
    for answers in &before {
        for name in ["a", "b"] {
            assert!(answers.iter().any(|answer| answer == name), "all go one way: {answers:?}");
        }
    }
    // Each backend's own record names the client, and nobody else.
    for service in &services {
        let seen = service.seen();
        assert!(seen.len() >= 2 && seen.iter().all(|address| *address == lab.client_address()), "{seen:?}");
    }
    assert_eq!([answers(&mut tcp), answers(&mut udp)], before, "a flow stays where it is");

    // What is installed is told, by name, and its counters are read back.
    let (family, mode) = (status(&lab, &gateway)["table"].clone(), status(&lab, &gateway)["mode"].clone());
    let table = family.as_str().expect("a table");
    assert!(tables(&lab).contains(table), "{table}");
    let admin = gateway.admin().to_string();
    let binary = tidegate_tests::program().to_string_lossy().into_owned();
    let said = lab.gateway.output(&binary, &["status", "--admin", &admin]).expect("a status");
    assert!(said.contains(&format!("steer web  {}", mode.as_str().expect("a mode"))) && said.contains(table), "{said}");
    let mut chosen = 0;
    for (index, name) in ["a", "b"].into_iter().enumerate() {
        let endpoint = SocketAddr::new(lab.backend(index), backend_port);
        let count =
            metric(&lab, &gateway, &format!("tidegate_steer_flows_total{{steer=\"web\",endpoint=\"{endpoint}\"}}"));
        let of = before.iter().flatten().filter(|answer| *answer == name).count();
        assert!(count >= of as u64, "{endpoint}: {count} flows, {of} answered");
        chosen += count;
        let packets =
            format!("tidegate_steer_packets_total{{steer=\"web\",endpoint=\"{endpoint}\",direction=\"to_endpoint\"}}");
        assert!(metric(&lab, &gateway, &packets) >= count);
    }
    assert!((48..60).contains(&chosen), "{chosen} flows counted of 48");

    // Cut off: its flows move, and no others.
    lab.cable(0, false);
    until_roles(&lab, &gateway, ["down", "takes"]).await;
    for (flow, was) in udp.iter_mut().zip(&before[1]) {
        assert_eq!(flow.who(), "b", "a datagram flow that was {was}'s");
    }
    for (flow, was) in tcp.iter_mut().zip(&before[0]) {
        match was.as_str() {
            "b" => assert_eq!(flow.who(), "b"),
            // The other backend knows nothing of it and says so at once.
            _ => assert!(flow.ask().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)),
        }
    }
    assert!(answers(&mut flows(&lab, false, 8)).iter().all(|answer| answer == "b"));

    // Back again: new flows go there, those that moved stay.
    lab.cable(0, true);
    until_roles(&lab, &gateway, ["takes", "takes"]).await;
    assert!(answers(&mut flows(&lab, false, 24)).iter().any(|answer| answer == "a"));
    assert!(answers(&mut udp).iter().all(|answer| answer == "b"));

    last(&lab);
    gateway.signal(libc::SIGTERM);
    assert!(gateway.ended().await.success());
    assert!(!tables(&lab).contains("tidegate"), "{}", tables(&lab));
}

/// Issue "Below HTTP": NAT works for TCP and UDP. The backends' ports are others than the address's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nat_ipv4() {
    let Some(lab) = Lab::new(Wiring::Routed, false) else { return };
    let config = config(&lab, 8080, &[1, 1], NAT);
    steers(lab, &config, 8080, |_| ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nat_ipv6() {
    let Some(lab) = Lab::new(Wiring::Routed, true) else { return };
    let config = config(&lab, 8080, &[1, 1], NAT);
    steers(lab, &config, 8080, |_| ()).await;
}

/// Issue "Below HTTP": DSR works for TCP and UDP, and packet counters prove that replies bypass the gateway.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dsr_ipv4() {
    let Some(lab) = Lab::new(Wiring::Bridged, false) else { return };
    bypasses(lab, "ip", "ether type ip").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dsr_ipv6() {
    let Some(lab) = Lab::new(Wiring::Bridged, true) else { return };
    bypasses(lab, "ip6", "meta l4proto { tcp, udp }").await;
}

async fn bypasses(lab: Lab, header: &str, any: &str) {
    let address = lab.virtual_address();
    // Before anything is steered, both ends count frames from the address: at the client by who sent them.
    let counting = |rules: &str| {
        format!(
            "table netdev lab {{\n chain c {{\n type filter hook ingress device \"e0\" priority -400\n{rules}\n}}\n}}\n"
        )
    };
    let from = format!("{any} {header} saddr {address}");
    let of = |host| format!("ether saddr {} {from} counter", lab.mac(host));
    let at_client = format!("{}\n{}\n{}", of(&lab.gateway), of(&lab.backends[0]), of(&lab.backends[1]));
    // Answers to the gateway's own checks are its own.
    let replies = format!("{from} {header} daddr {} counter", lab.client_address());
    let at_gateway = format!("{replies}\n{any} {header} daddr {address} counter");
    for (host, rules) in [(&lab.client, at_client), (&lab.gateway, at_gateway)] {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("rules");
        std::fs::write(&file, counting(&rules)).expect("written");
        host.output("nft", &["-f", &file.to_string_lossy()]).expect("rules that count");
    }
    let config = config(&lab, PORT, &[1, 1], DSR);
    // What comes later is the gateway's own to answer again: it has the address.
    let last = |lab: &Lab| {
        let counts = |host: &tidegate_tests::namespace::Namespace| -> Vec<u64> {
            let said = host.output("nft", &["list", "table", "netdev", "lab"]).expect("a table");
            let words: Vec<&str> = said.split_whitespace().collect();
            let packets = words.windows(2).filter(|pair| pair[0] == "packets");
            packets.map(|pair| pair[1].parse().expect("a number")).collect()
        };
        let at_client = counts(&lab.client);
        assert_eq!(at_client[0], 0, "replies by the gateway: {at_client:?}");
        assert!(at_client[1] > 20 && at_client[2] > 20, "replies by each backend: {at_client:?}");
        let at_gateway = counts(&lab.gateway);
        assert_eq!(at_gateway[0], 0, "replies that came to the gateway: {at_gateway:?}");
        assert!(at_gateway[1] > 40, "requests that came to the gateway: {at_gateway:?}");
    };
    steers(lab, &config, PORT, last).await;
}

/// Conduct, direct server return: health checks go to the virtual address, the way that clients' packets take. What answers at
/// an endpoint's own address is no matter, unless checks are told to go there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dsr_checks_go_to_the_virtual_address() {
    for ipv6 in [false, true] {
        let Some(lab) = Lab::new(Wiring::Bridged, ipv6) else { return };
        let _services = lab.serve(PORT);
        // Its own address is closed to everybody; the virtual one is not.
        let (header, own) = (if ipv6 { "ip6" } else { "ip" }, lab.backend(0));
        let closed = format!(
            "add table inet own; add chain inet own input {{ type filter hook input priority 0; }}; \
             add rule inet own input meta l4proto tcp {header} daddr {own} drop"
        );
        lab.backends[0].output("nft", &[&closed]).expect("a rule that closes");
        let by_default = config(&lab, PORT, &[1, 1], DSR);
        let gateway = start(&lab, &by_default).await;
        until_roles(&lab, &gateway, ["takes", "takes"]).await;
        let said = status(&lab, &gateway);
        assert_eq!(said["check"], "virtual_address");
        assert!(said["check_mark"].as_u64().is_some_and(|mark| mark >> 24 == 0x7d), "{said}");
        let checks = |outcome: &str| {
            let endpoint = SocketAddr::new(own, PORT);
            let labels = format!("cluster=\"web\",endpoint=\"{endpoint}\",outcome=\"{outcome}\"");
            metric(&lab, &gateway, &format!("tidegate_endpoint_checks_total{{{labels}}}"))
        };
        let passed = async |many: u64| {
            let before = checks("passed");
            eventually("checks pass", async || (checks("passed") >= before + many).then_some(())).await;
        };
        // The first is over; what follows is not luck.
        passed(3).await;
        assert!(answers(&mut flows(&lab, false, 24)).iter().any(|answer| answer == "a"));

        lab.virtual_address_at(0, false);
        until_roles(&lab, &gateway, ["down", "takes"]).await;
        assert!(answers(&mut flows(&lab, false, 8)).iter().all(|answer| answer == "b"));
        lab.virtual_address_at(0, true);
        until_roles(&lab, &gateway, ["takes", "takes"]).await;

        gateway.rewrite(&by_default.replace(DSR, &format!("{DSR}\ncheck = \"endpoint_address\"")));
        gateway.signal(libc::SIGHUP);
        until_roles(&lab, &gateway, ["down", "takes"]).await;
        assert_eq!(status(&lab, &gateway)["check"], "endpoint_address");
        lab.backends[0].output("nft", &["delete table inet own"]).expect("open again");
        until_roles(&lab, &gateway, ["takes", "takes"]).await;
        lab.virtual_address_at(0, false);
        passed(5).await;
        assert_eq!(status(&lab, &gateway)["endpoints"][0]["role"], "takes", "nobody asks after the virtual address");
    }
}

/// With `source = "gateway"` the backend sees the gateway, and needs no way back to the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nat_with_the_gateways_own_address() {
    let Some(lab) = Lab::new(Wiring::Routed, false) else { return };
    let _services = lab.serve(8080);
    lab.backends.iter().for_each(|backend| backend.ip("route del default"));
    let gateway =
        start(&lab, &config(&lab, 8080, &[1, 1], "mode = \"nat\"\nsource = \"gateway\"\naffinity = \"client\"")).await;
    let mut names = Vec::new();
    for udp in [false, true] {
        for mut flow in flows(&lab, udp, 8) {
            let (name, seen) = flow.ask().expect("an answer");
            assert_eq!(seen.to_string(), "10.53.0.2");
            names.push(name);
        }
    }
    names.dedup();
    assert_eq!(names.len(), 1, "one client, one backend: {names:?}");
    let endpoint = SocketAddr::new(lab.backend(usize::from(names[0] == "b")), 8080);
    let back = format!("tidegate_steer_packets_total{{steer=\"web\",endpoint=\"{endpoint}\",direction=\"to_client\"}}");
    assert!(metric(&lab, &gateway, &back) > 20);
}

/// Drain: an endpoint of weight 0, or one that leaves the configuration, keeps the flows it has and gets no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drained_backends_keep_their_flows() {
    for (wiring, port, mode) in [(Wiring::Routed, 8080, NAT), (Wiring::Bridged, PORT, DSR)] {
        let Some(lab) = Lab::new(wiring, false) else { return };
        let _services = lab.serve(port);
        let gateway = start(&lab, &config(&lab, port, &[1, 1], mode)).await;
        until_roles(&lab, &gateway, ["takes", "takes"]).await;
        let (mut tcp, mut udp) = (flows(&lab, false, 16), flows(&lab, true, 16));
        let before = [answers(&mut tcp), answers(&mut udp)];
        assert!(before.iter().flatten().any(|answer| answer == "a"), "{before:?}");
        // Held open: a datagram from the port of one that was closed is no new flow in the kernel's eyes.
        let mut held = Vec::new();
        for weights in [&[0, 1][..], &[1, 1], &[]] {
            let mut next = config(&lab, port, weights, mode);
            let wanted = match weights {
                [] => {
                    // The second alone: the first left.
                    let second = SocketAddr::new(lab.backend(1), port);
                    next = next.replace("endpoints = []", &format!("endpoints = [\"{second}\"]"));
                    ["takes", "drains"]
                }
                [0, ..] => ["drains", "takes"],
                _ => ["takes", "takes"],
            };
            gateway.rewrite(&next);
            gateway.signal(libc::SIGHUP);
            until_roles(&lab, &gateway, wanted).await;
            assert_eq!([answers(&mut tcp), answers(&mut udp)], before, "{mode}: {wanted:?}");
            let mut new = flows(&lab, false, 16);
            new.extend(flows(&lab, true, 16));
            let new_answers = answers(&mut new);
            held.extend(new);
            let any = new_answers.iter().any(|answer| answer == "a");
            assert_eq!(any, wanted == ["takes", "takes"], "{mode}: {wanted:?}: {new_answers:?}");
        }
        // Without the steer nothing of it is left, while the gateway goes on.
        gateway.rewrite(
            "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\n[[route]]\nrespond = { status = 204 }\n",
        );
        gateway.signal(libc::SIGHUP);
        eventually("the table goes", async || (!tables(&lab).contains("tidegate")).then_some(())).await;
    }
}

/// Rules outlive a crash and go on steering; the next start replaces them, or removes them where they are not wanted any more.
/// A name has one owner; what somebody else flushed is put back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_are_owned_by_name() {
    let Some(lab) = Lab::new(Wiring::Routed, false) else { return };
    let _services = lab.serve(8080);
    let both = config(&lab, 8080, &[1, 1], NAT);
    let mut gateway = start(&lab, &both).await;
    let binary = tidegate_tests::program().to_string_lossy().into_owned();
    let file = gateway.folder.path().join("gateway.toml").to_string_lossy().into_owned();
    let said = lab.gateway.output(&binary, &["run", "--config", &file]).expect_err("the name is taken");
    assert!(said.contains("another process here steers as \"web\""), "{said}");
    assert_eq!(lab.flow(false, PORT).expect("a flow").ask().expect("an answer").1, lab.client_address());

    lab.gateway.output("nft", &["flush", "ruleset"]).expect("flushed");
    eventually("the rules are put back", async || tables(&lab).contains("tidegate_web").then_some(())).await;
    assert!(lab.flow(false, PORT).is_ok());

    gateway.signal(libc::SIGKILL);
    gateway.ended().await;
    assert!(tables(&lab).contains("ip tidegate_web"));
    let mut flow = lab.flow(false, PORT).expect("a flow without a gateway");
    let was = flow.who();
    let mut gateway = start(&lab, &both).await;
    assert_eq!(flow.who(), was, "a start in the place of the dead does not break its flows");
    gateway.signal(libc::SIGKILL);
    gateway.ended().await;
    let other = both.replace("name = \"web\"\naddress", "name = \"other\"\naddress");
    let gateway = start(&lab, &other).await;
    let said = tables(&lab);
    assert!(said.contains("tidegate_other") && !said.contains("tidegate_web"), "{said}");
    gateway.says("removing the rules of a process that did not stop in order").await;
}

/// Nobody can take it: it is dropped, counted, and taken again as soon as somebody can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_backends_packets_are_dropped_and_counted() {
    for (wiring, port, mode) in [(Wiring::Routed, 8080, NAT), (Wiring::Bridged, PORT, DSR)] {
        let Some(lab) = Lab::new(wiring, false) else { return };
        let config = format!("{}panic_threshold = \"0%\"\n", config(&lab, port, &[1, 1], mode));
        let gateway = start(&lab, &config).await;
        until_roles(&lab, &gateway, ["down", "down"]).await;
        let mut flow = lab.flow(true, PORT).expect("a socket");
        assert!(flow.ask().is_err());
        assert!(metric(&lab, &gateway, "tidegate_steer_unserved_packets_total{steer=\"web\"}") > 0);
        let _services = lab.serve(port);
        until_roles(&lab, &gateway, ["takes", "takes"]).await;
        assert_eq!(flow.ask().expect("an answer").1, lab.client_address());
    }
}

/// `check` needs no privilege; `run` says what it lacks, and what there is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_is_told_at_the_start() {
    let Some(lab) = Lab::new(Wiring::Routed, false) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gateway.toml");
    let write = |mode: &str| {
        let text = format!("[gateway]\nadmin = \"off\"\nplugin_cache = \"off\"\n{}", config(&lab, 8080, &[1, 1], mode));
        std::fs::write(&file, text).expect("written");
    };
    let (binary, file) =
        (tidegate_tests::program().to_string_lossy().into_owned(), file.to_string_lossy().into_owned());
    let without = ["--bounding-set=-net_admin", "--inh-caps=-net_admin", &binary];
    write(NAT);
    let said = lab.gateway.output("setpriv", &[&without[..], &["check", &file]].concat()).expect("a check");
    assert!(said.contains("ok"), "{said}");
    let said = lab.gateway.output("setpriv", &[&without[..], &["run", "--config", &file]].concat()).expect_err("no");
    assert!(said.contains("needs CAP_NET_ADMIN"), "{said}");
    write("mode = \"dsr\"\ninterface = \"nowhere\"");
    let said = lab.gateway.output(&binary, &["run", "--config", &file]).expect_err("no such interface");
    assert!(said.contains("steer \"web\": there is no interface \"nowhere\" here"), "{said}");
    assert!(!tables(&lab).contains("tidegate"));
}

/// Config that asks for L7 features on a steered cluster is an error that explains.
#[test]
fn what_only_requests_could_have_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gateway.toml");
    let text = "[[steer]]\nname = \"web\"\naddress = \"192.0.2.1\"\nports = \"443\"\ncluster = \"web\"\nmode = \"nat\"\n\
                [[cluster]]\nname = \"web\"\nendpoints = [\"10.0.0.1:443\"]\ntls = {}\n";
    std::fs::write(&file, text).expect("written");
    let output = run(&["check", &file.to_string_lossy()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("cluster \"web\" is steered by steer \"web\"") && said.contains("remove tls"), "{said}");
}
