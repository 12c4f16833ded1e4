//! One measurement of one set-up.

use std::path::Path;
use std::time::{Duration, Instant};

use super::Around;
use super::setup::{ASK, Setup, Target};
use crate::bench::cpu;
use crate::bench::load::{Front, Load, Running};
use crate::bench::message::head;
use crate::bench::proxies::configs::Ports;
use crate::bench::proxies::configs::tidegate::Edge;
use crate::bench::proxies::{Decided, Launch, Proxy, check};
use crate::bench::run::{counted, growth};

async fn start(around: &Around<'_>, setup: &Setup, cache: &Path, cores: &[usize]) -> Result<Proxy, String> {
    let ports = Ports::free();
    let edge = Edge {
        ports,
        folder: &around.behind.folder,
        cache,
        workers: setup.workers,
        instances: 8 + setup.plugins * setup.workers,
    };
    Proxy::tidegate(&edge.config(&setup.rest), ports, Launch { cores, counts: None }).await
}

/// The origin that is meant answers it.
async fn reaches(proxy: &Proxy, target: &Target) -> Result<(), String> {
    let fields = [vec![("x-tenant", "t42")], target.fields()].concat();
    let path = format!("{}/mark", target.path);
    check::reaches(proxy.address(Front::Http1), &target.host, &path, &fields, target.origin).await
}

fn load(setup: &Setup) -> Load {
    Load { requests: Some(setup.requests()), ..Load::of(Front::Http1, setup.connections, 1, ASK) }
}

/// Microseconds of processor time of a request.
pub(super) async fn cost(around: &Around<'_>, setup: &Setup) -> Result<f64, String> {
    let proxy = start(around, setup, &around.behind.folder.join("plugins"), setup.cores).await?;
    for target in [0, setup.targets.len() / 2, setup.targets.len() - 1] {
        reaches(&proxy, &setup.targets[target]).await?;
    }
    let running = Running::start(load(setup), proxy.address(Front::Http1), around.authority.client(&[], None));
    let counted = counted(running, proxy.pid(), around.times, setup.warm).await?;
    if setup.plugins > 0 {
        check::asks(&proxy, Decided::Plugin, counted.all).await?;
    }
    eprintln!("  {:.0} requests/s", counted.per_second());
    Ok(counted.cost())
}

/// Milliseconds until the last of what there is has answered a request, with both cores. Where compiled plugins are to be
/// there, another start comes before.
pub(super) async fn start_up(around: &Around<'_>, setup: &Setup, cached: bool) -> Result<f64, String> {
    let cache = tempfile::tempdir().map_err(|error| error.to_string())?;
    if cached {
        start(around, setup, cache.path(), &[0, 1]).await?.end();
    }
    let begun = Instant::now();
    let proxy = start(around, setup, cache.path(), &[0, 1]).await?;
    reaches(&proxy, &setup.targets[setup.targets.len() - 1]).await?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// KiB that are resident before anything was asked.
pub(super) async fn resident(around: &Around<'_>, setup: &Setup) -> Result<f64, String> {
    let cache = around.behind.folder.join("plugins");
    // What compiling left behind is not counted.
    start(around, setup, &cache, &[0]).await?.end();
    let proxy = start(around, setup, &cache, &[0]).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(cpu::memory(proxy.pid(), "VmRSS") as f64)
}

/// KiB of an instance: the growth when every plugin is asked for the first time.
pub(super) async fn instance(around: &Around<'_>, setup: &Setup) -> Result<f64, String> {
    let proxy = start(around, setup, &around.behind.folder.join("plugins"), &[0]).await?;
    let tls = around.authority.client(&[], None);
    let ask = async |targets: &[Target], count: usize| {
        let of = |target: &Target| head(&ASK, &target.host, &format!("{}{}", target.path, ASK.path), &[]);
        let requests = Some(targets.iter().map(of).collect());
        let load = Load { requests, count: Some(count as u64), ..Load::of(Front::Http1, 1, 1, ASK) };
        Running::start(load, proxy.address(Front::Http1), tls.clone()).end().await
    };
    let (first, others) = setup.targets.split_first().ok_or("no plugins")?;
    ask(std::slice::from_ref(first), 500).await?;
    let before = cpu::memory(proxy.pid(), "VmRSS");
    ask(others, others.len()).await?;
    let after = cpu::memory(proxy.pid(), "VmRSS");
    check::asks(&proxy, Decided::Plugin, 500 + others.len() as u64).await?;
    Ok(after.saturating_sub(before) as f64 / others.len() as f64)
}

/// KiB of a TLS connection that had one answer and is silent, of so many.
pub(super) async fn idle(around: &Around<'_>, setup: &Setup, connections: usize) -> Result<f64, String> {
    let proxy = start(around, setup, &around.behind.folder.join("plugins"), &[0]).await?;
    let mut tls = around.authority.client(&[b"http/1.1"], None);
    tls.resumption = rustls::client::Resumption::disabled();
    growth(&Load::of(Front::Http1Tls, connections, 1, ASK), &proxy, proxy.address(Front::Http1Tls), tls).await
}
