//! What a connection costs the whole machine, beyond what it would cost without a gateway: steered by the kernel, and
//! ended by tidegate, in namespaces on one switch. In all ways the client connects, asks once, has a KiB and resets.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::message::KIB;
use super::report::median;
use crate::Gateway;
use crate::lab::{Lab, PORT, Wiring};

/// How clients reach a backend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    /// By its own address, without a gateway, or through one that only routes.
    Direct,
    Nat,
    Dsr,
    Tunnel,
}

impl Way {
    fn wiring(self) -> Wiring {
        if self == Self::Dsr { Wiring::Bridged } else { Wiring::Routed }
    }

    fn config(self, lab: &Lab) -> Option<String> {
        let endpoints = [0, 1].map(|index| format!("\"{}\"", SocketAddr::new(lab.backend(index), PORT)));
        let cluster = format!("[[cluster]]\nname = \"web\"\nendpoints = [{}]\n", endpoints.join(", "));
        let front = match self {
            Self::Direct => return None,
            Self::Nat => "mode = \"nat\"",
            Self::Dsr => "mode = \"dsr\"\ninterface = \"e0\"",
            Self::Tunnel => {
                let address = SocketAddr::new(lab.virtual_address(), PORT);
                return Some(format!(
                    "workers = 1\n[[listener]]\nname = \"web\"\naddress = \"{address}\"\ntunnel = {{ cluster = \"web\" }}\n{cluster}"
                ));
            }
        };
        Some(format!(
            "[[steer]]\nname = \"web\"\naddress = \"{}\"\nports = \"{PORT}\"\nprotocols = [\"tcp\"]\ncluster = \"web\"\n{front}\n{cluster}",
            lab.virtual_address()
        ))
    }
}

/// Answers each connection with a KiB once it has asked, until its client has gone; for good.
fn serve(lab: &Lab, index: usize) {
    let listener = lab.backends[index].run(|| TcpListener::bind(("0.0.0.0", PORT)).expect("a port"));
    std::thread::spawn(move || {
        let answer = [b'x'; KIB];
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut question = [0; 64];
            // A client that has gone is the next one's gain.
            let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
            if matches!(stream.read(&mut question), Ok(1..)) && stream.write_all(&answer).is_ok() {
                let _ = stream.read(&mut question);
            }
        }
    });
}

/// Runs so many connections one after the other.
fn run(lab: &Lab, to: IpAddr, connections: u32) -> Result<(), String> {
    let to = SocketAddr::new(to, PORT);
    lab.client.run(|| {
        for _ in 0..connections {
            let exchange = || {
                let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                stream.set_nodelay(true)?;
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                let mut answer = [0; KIB];
                stream.read_exact(&mut answer)
            };
            exchange().map_err(|error: std::io::Error| format!("{to}: {error}"))?;
        }
        Ok(())
    })
}

/// Time that all cores together were busy, microseconds: interrupts and what they set off belong to it.
fn busy() -> Result<f64, String> {
    let stat = std::fs::read_to_string("/proc/stat").map_err(|error| error.to_string())?;
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq.
    let [user, nice, system, _, _, irq, softirq, ..] = ticks[..] else { return Err(format!("not read: {line}")) };
    Ok((user + nice + system + irq + softirq) * 10_000.0)
}

/// Measures all ways, round by round; a table in Markdown.
///
/// # Errors
/// There are no namespaces here, or a connection failed.
pub async fn table(rounds: usize, connections: u32) -> Result<String, String> {
    let ways = [Way::Direct, Way::Nat, Way::Tunnel, Way::Dsr];
    let mut costs: Vec<Vec<f64>> = vec![Vec::new(); ways.len() + 1];
    for round in 1..=rounds {
        for wiring in [Wiring::Routed, Wiring::Bridged] {
            let lab = Lab::new(wiring, false).ok_or("no lab here")?;
            [0, 1].iter().for_each(|index| serve(&lab, *index));
            for (place, way) in ways.iter().enumerate() {
                let direct = *way == Way::Direct;
                if !direct && way.wiring() != wiring {
                    continue;
                }
                let gateway = match way.config(&lab) {
                    None => None,
                    Some(config) => {
                        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
                        // A line for each connection would be part of what it costs.
                        let before = ["ip", "netns", "exec", &lab.gateway.name, "env", "TIDEGATE_LOG=warn"];
                        Some(Gateway::start_under(&before, folder, &config).await)
                    }
                };
                let to = if direct { lab.backend(0) } else { lab.virtual_address() };
                // Rules come a moment after the start.
                tokio::time::sleep(Duration::from_secs(2)).await;
                run(&lab, to, connections / 10)?;
                let before = busy()?;
                run(&lab, to, connections)?;
                let cost = (busy()? - before) / f64::from(connections);
                eprintln!("round {round}: {way:?}, {wiring:?}: {cost:.1}");
                let place = if direct && wiring == Wiring::Bridged { ways.len() } else { place };
                costs[place].push(cost);
                drop(gateway);
            }
        }
    }
    let [direct, nat, tunnel, dsr, bridged] = [0, 1, 2, 3, 4].map(|place: usize| median(costs[place].clone()));
    let ended = tunnel - direct;
    let mut out =
        "| | us of the whole machine | more than without it | to one that ends here |\n|---|--:|--:|--:|\n".to_owned();
    for (name, cost, without) in [
        ("routed, no gateway", direct, direct),
        ("NAT", nat, direct),
        ("ended here: TCP tunnel", tunnel, direct),
        ("switched, no gateway", bridged, bridged),
        ("DSR", dsr, bridged),
    ] {
        let more = cost - without;
        out.push_str(&format!("| {name} | {cost:.1} | {more:.1} | {:.2} |\n", more / ended));
    }
    Ok(out)
}
