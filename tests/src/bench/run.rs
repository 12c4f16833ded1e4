//! One measurement: a proxy, a load, a warm-up, and what was used while so many requests were answered.

use std::time::{Duration, Instant};

use super::load::{self, Running};
use super::proxies::{Behind, Proxy, check};
use super::scenarios::{Measure, Scenario};
use super::{cpu, proxies};
use crate::certs::Authority;

/// How long each part takes.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub warm: Duration,
    pub counted: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Microseconds of a request, or milliseconds of a GiB; KiB of a connection where that was measured.
    pub cost: f64,
    pub per_second: f64,
    /// Microseconds at 50, 99 and 99.9 %.
    pub latencies: [f64; 3],
    /// MiB.
    pub peak: f64,
}

pub async fn measure(
    scenario: &Scenario,
    kind: proxies::Kind,
    behind: &Behind,
    authority: &Authority,
    times: Times,
) -> Result<Option<Sample>, String> {
    let Some(proxy) = Proxy::start(kind, behind, scenario.decided).await? else { return Ok(None) };
    let alpn: &[&[u8]] = match scenario.load.front {
        load::Front::Http1 | load::Front::Http1Tls => &[b"http/1.1"],
        load::Front::Http2 => &[b"h2"],
        load::Front::Http3 => &[b"h3"],
    };
    let mut tls = authority.client(alpn, None);
    // New connections are full handshakes.
    tls.resumption = rustls::client::Resumption::disabled();
    let address = proxy.address(scenario.load.front);
    let sample = if scenario.measure == Measure::Idle {
        idle(scenario, &proxy, address, tls).await
    } else {
        busy(scenario, &proxy, address, tls, times).await
    };
    sample.map(Some).map_err(|error| format!("{}, {}: {error}", scenario.name, kind.name()))
}

/// What a proxy did while it was looked at.
pub(super) struct Counted {
    /// Of its processor time.
    pub(super) used: Duration,
    pub(super) took: Duration,
    /// Requests within that.
    pub(super) count: u64,
    /// Requests since its load began.
    pub(super) all: u64,
    /// Nanoseconds of each, sorted.
    latencies: Vec<u64>,
}

impl Counted {
    /// Microseconds of processor time of a request.
    pub(super) fn cost(&self) -> f64 {
        self.used.as_secs_f64() * 1e6 / self.count as f64
    }

    pub(super) fn per_second(&self) -> f64 {
        self.count as f64 / self.took.as_secs_f64()
    }

    /// In microseconds, of the request at this share.
    fn latency(&self, share: f64) -> f64 {
        let index = ((self.latencies.len() as f64 * share) as usize).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(index).map_or(0.0, |ns| *ns as f64 / 1e3)
    }
}

/// Loads it, looks on for a while once it is warm and so many requests were answered, and lets the load end.
pub(super) async fn counted(running: Running, pid: u32, times: Times, warm: u64) -> Result<Counted, String> {
    tokio::time::sleep(times.warm).await;
    while running.done()? < warm {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = running.done()?;
    running.record();
    let (begun, used) = (Instant::now(), cpu::used(pid));
    tokio::time::sleep(times.counted).await;
    let (used, took) = (cpu::used(pid) - used, begun.elapsed());
    let all = running.done()?;
    let mut latencies = running.recorded();
    running.stop().await?;
    if all == before {
        return Err("nothing was answered".to_owned());
    }
    latencies.sort_unstable();
    Ok(Counted { used, took, count: all - before, all, latencies })
}

async fn busy(
    scenario: &Scenario,
    proxy: &Proxy,
    address: std::net::SocketAddr,
    tls: rustls::ClientConfig,
    times: Times,
) -> Result<Sample, String> {
    let running = Running::start(scenario.load.clone(), address, tls);
    let counted = counted(running, proxy.pid(), times, 0).await?;
    check::asks(proxy, scenario.decided, counted.all).await?;
    let cost = match scenario.measure {
        Measure::Bytes => counted.cost() / 1e3 * (1024.0 * 1024.0 * 1024.0) / scenario.moves() as f64,
        _ => counted.cost(),
    };
    Ok(Sample {
        cost,
        per_second: counted.per_second(),
        latencies: [0.5, 0.99, 0.999].map(|share| counted.latency(share)),
        peak: cpu::memory(proxy.pid(), "VmHWM") as f64 / 1024.0,
    })
}

async fn idle(
    scenario: &Scenario,
    proxy: &Proxy,
    address: std::net::SocketAddr,
    tls: rustls::ClientConfig,
) -> Result<Sample, String> {
    let cost = growth(&scenario.load, proxy, address, tls).await?;
    Ok(Sample { cost, ..Sample::default() })
}

/// KiB of resident memory for each of a load's connections, once they are silent.
pub(super) async fn growth(
    load: &load::Load,
    proxy: &Proxy,
    address: std::net::SocketAddr,
    tls: rustls::ClientConfig,
) -> Result<f64, String> {
    // Some first, so that what is there once is there already.
    let some = load::Load { connections: 50, ..load.clone() };
    drop(load::idle(some, address, tls.clone()).await?);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = cpu::memory(proxy.pid(), "VmRSS");
    let open = load::idle(load.clone(), address, tls).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = cpu::memory(proxy.pid(), "VmRSS");
    Ok(after.saturating_sub(before) as f64 / open.len() as f64)
}
