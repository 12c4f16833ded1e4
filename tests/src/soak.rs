//! The soak: the real program under a mixed load over all protocols, with origins that fail in known ways, clients without
//! manners, and reloads all the while. Every outcome is what had to come of what was asked for, or is told in full; and in
//! the end the program must be as it was: no memory, descriptor, connection or request more.
//!
//! `ask` has a request and its judge, `load` what clients do, `origins` whom they get to, `bench` the configuration.

mod ask;
mod bench;
mod chance;
mod load;
mod origins;
mod tally;

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bench::Bench;
use chance::Chance;
use load::World;
use tally::Tally;

/// Memory is judged in runs of this and longer.
const JUDGED: Duration = Duration::from_secs(120);
/// Growth that is none: allocators and maps breathe.
const GROWTH: f64 = 1.05;
const SLACK: u64 = 4 << 20;
/// From the end of the load until all is quiet; the gateway's own times are far below.
const QUIET: Duration = Duration::from_secs(60);
/// Sockets that a worker makes on first use, and keeps, beyond those of the first round.
const KEPT: usize = 8;
/// What must be zero then.
const GAUGES: [&str; 6] = [
    "tidegate_connections_active",
    "tidegate_tunnels_active",
    "tidegate_exchanges_active",
    "tidegate_upstream_connections_active",
    "tidegate_upstream_waiting",
    "tidegate_endpoint_requests_active",
];
/// What must be zero always.
const NEVER: [&str; 3] =
    ["tidegate_plugin_faults_total", "tidegate_plugin_quarantined", "tidegate_reloads_total{outcome=\"refused\"}"];

#[derive(Clone, Debug)]
pub struct Options {
    pub time: Duration,
    pub seed: u64,
    /// Clients at once, each with a connection and up to five streams.
    pub clients: usize,
}

/// How a run went.
pub struct Report {
    pub text: String,
    pub unexplained: u64,
    pub told: Vec<String>,
    /// Requests and the like that ended.
    pub total: u64,
}

struct Sample {
    at: Duration,
    resident: u64,
    descriptors: usize,
}

/// Runs all of it. Needs a runtime with threads.
pub async fn run(options: &Options) -> Report {
    let mut bench = Bench::start().await;
    let tls = [&b"http/1.1"[..], b"h2", b"h3"].map(|alpn| Arc::new(bench.authority.client(&[alpn], None)));
    let world = Arc::new(World {
        edge: bench.gateway.edge(),
        plain: bench.gateway.address("plain"),
        tls,
        tally: Tally::default(),
        stop: AtomicBool::new(false),
        refusals: AtomicU64::new(0),
    });
    load::everything(&world, Chance::new(options.seed, 1_000)).await;
    let note = |kind, outcome| world.tally.note("gateway", kind, outcome);
    let idle = match quiet(&bench, usize::MAX).await {
        Ok(descriptors) => descriptors,
        Err(what) => {
            note("quiet before", Err(what));
            bench.gateway.descriptors()
        }
    };

    let clients: Vec<_> = (0..options.clients)
        .map(|number| tokio::spawn(load::client(world.clone(), Chance::new(options.seed, number as u64))))
        .collect();
    let (begun, mut samples) = (Instant::now(), Vec::new());
    while begun.elapsed() < options.time {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (resident, descriptors) = (bench.gateway.resident(), bench.gateway.descriptors());
        samples.push(Sample { at: begun.elapsed(), resident, descriptors });
        if begun.elapsed().as_secs() / 4 > bench.reloads() as u64 {
            bench.reload().await;
            bench.origins.forget();
        }
    }
    world.stop.store(true, Ordering::Relaxed);
    for client in clients {
        note("client", client.await.map_err(|panic| panic.to_string()));
    }

    let after = quiet(&bench, idle + KEPT).await;
    note("quiet after", after.as_ref().map(|_| ()).map_err(Clone::clone));
    let page = bench.gateway.admin_get("/metrics").await.text();
    for name in NEVER {
        let sum = sum(&page, name);
        note("counts of faults", if sum == 0.0 { Ok(()) } else { Err(format!("{name} is {sum}")) });
    }
    bench.gateway.signal(libc::SIGTERM);
    let status = bench.gateway.ended().await;
    note("drain", if status.success() { Ok(()) } else { Err(format!("it ended with {status}")) });
    let log = bench.gateway.log();
    let loud = log.lines().filter(|line| line.contains("panicked at") || line.contains("ERROR\u{1b}")).take(5);
    let loud: Vec<&str> = loud.collect();
    note("log", if loud.is_empty() { Ok(()) } else { Err(loud.join("\n")) });

    let mut text = world.tally.table();
    let _ = writeln!(text, "\nretries {}", sum(&page, "tidegate_retries_total"));
    for line in page.lines().filter(|line| line.starts_with("tidegate_faults_total")) {
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(
        text,
        "\nreloads {}, plugin decisions {}",
        bench.reloads(),
        sum(&page, "tidegate_plugin_decisions_total")
    );
    let descriptors = samples.iter().map(|sample| sample.descriptors).max().unwrap_or(0);
    let _ = writeln!(text, "descriptors idle {idle}, at most {descriptors}, after {after:?}");
    note("memory", memory(&samples, options.time, &mut text));
    let unexplained = world.tally.unexplained();
    let total = world.tally.total();
    let _ = writeln!(
        text,
        "\n{total} ends in {:?} with seed {}, {unexplained} unexplained: {}",
        options.time,
        options.seed,
        if unexplained == 0 { "well" } else { "NOT WELL" }
    );
    Report { text, unexplained, told: world.tally.told(), total }
}

/// Waits until every gauge is zero and no more descriptors are open than `most`. How many are; what is not quiet.
async fn quiet(bench: &Bench, most: usize) -> Result<usize, String> {
    let begun = Instant::now();
    loop {
        let page = bench.gateway.admin_get("/metrics").await.text();
        let descriptors = bench.gateway.descriptors();
        let busy: Vec<String> = GAUGES
            .iter()
            .map(|name| (name, sum(&page, name)))
            .filter(|(_, value)| *value != 0.0)
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        if busy.is_empty() && descriptors <= most {
            return Ok(descriptors);
        }
        if begun.elapsed() > QUIET {
            return Err(format!("{busy:?}, {descriptors} descriptors of {most}"));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Over all labels.
fn sum(page: &str, name: &str) -> f64 {
    let sample = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let value = rest.starts_with(['{', ' ']).then(|| rest.rsplit(' ').next())??;
        value.parse::<f64>().ok()
    };
    page.lines().filter_map(sample).sum()
}

/// After a third to warm up: the median of the second third against that of the last tenth, and the line through both.
fn memory(samples: &[Sample], time: Duration, text: &mut String) -> Result<(), String> {
    let part = |from: f64, to: f64| {
        let within = |sample: &&Sample| (time.mul_f64(from)..=time.mul_f64(to)).contains(&sample.at);
        let mut all: Vec<u64> = samples.iter().filter(within).map(|sample| sample.resident).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or(0)
    };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    text.push_str("resident, MiB, by tenths of the time:");
    for tenth in 0..10 {
        let _ = write!(text, " {:.1}", mib(part(f64::from(tenth) / 10.0, f64::from(tenth + 1) / 10.0)));
    }
    let (settled, last) = (part(1.0 / 3.0, 2.0 / 3.0), part(0.9, 1.0));
    let minutes = time.as_secs_f64() / 60.0 * 0.45;
    let slope = (mib(last) - mib(settled)) / minutes.max(f64::EPSILON);
    let _ = writeln!(text, "\nsecond third {:.1}, last tenth {:.1}, {slope:+.2} a minute", mib(settled), mib(last));
    let bound = (settled as f64 * GROWTH) as u64 + SLACK;
    if time < JUDGED || last <= bound {
        return Ok(());
    }
    Err(format!("grew from {:.1} to {:.1} MiB", mib(settled), mib(last)))
}
