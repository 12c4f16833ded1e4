//! One measurement: a proxy, a load, a warm-up, and what was used while so many requests were answered.

use std::time::{Duration, Instant};

use super::load::{self, Running};
use super::proxies::{Behind, Proxy};
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

async fn busy(
    scenario: &Scenario,
    proxy: &Proxy,
    address: std::net::SocketAddr,
    tls: rustls::ClientConfig,
    times: Times,
) -> Result<Sample, String> {
    let running = Running::start(scenario.load.clone(), address, tls);
    tokio::time::sleep(times.warm).await;
    let before = running.done()?;
    running.record();
    let (begun, used) = (Instant::now(), cpu::used(proxy.pid()));
    tokio::time::sleep(times.counted).await;
    let (used, took) = (cpu::used(proxy.pid()) - used, begun.elapsed());
    let count = running.done()? - before;
    let mut recorded = running.recorded();
    running.stop().await?;
    if count == 0 {
        return Err("nothing was answered".to_owned());
    }
    recorded.sort_unstable();
    let at = |share: f64| {
        let index = ((recorded.len() as f64 * share) as usize).min(recorded.len().saturating_sub(1));
        recorded.get(index).map_or(0.0, |ns| *ns as f64 / 1e3)
    };
    let cost = match scenario.measure {
        Measure::Bytes => {
            used.as_secs_f64() * 1e3 / (count as f64 * scenario.moves() as f64 / (1024.0 * 1024.0 * 1024.0))
        }
        _ => used.as_secs_f64() * 1e6 / count as f64,
    };
    Ok(Sample {
        cost,
        per_second: count as f64 / took.as_secs_f64(),
        latencies: [at(0.5), at(0.99), at(0.999)],
        peak: cpu::memory(proxy.pid(), "VmHWM") as f64 / 1024.0,
    })
}

async fn idle(
    scenario: &Scenario,
    proxy: &Proxy,
    address: std::net::SocketAddr,
    tls: rustls::ClientConfig,
) -> Result<Sample, String> {
    // Some first, so that what is there once is there already.
    let some = load::Load { connections: 50, ..scenario.load.clone() };
    drop(load::idle(some, address, tls.clone()).await?);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = cpu::memory(proxy.pid(), "VmRSS");
    let open = load::idle(scenario.load.clone(), address, tls).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = cpu::memory(proxy.pid(), "VmRSS");
    let count = open.len() as f64;
    Ok(Sample { cost: after.saturating_sub(before) as f64 / count, per_second: 0.0, ..Sample::default() })
}
