//! Steers: what the kernel is told of packets, and the endpoints they go to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tidegate_config::{Config, Steer as SteerConfig, SteerAffinity, SteerCheck, SteerMode};
use tidegate_proxy::snapshot::Cluster;
use tidegate_steer::{Affinity, Dsr, Mac, Mode, Nat, Protocol, Source, Steer, usual_mark};

use super::clusters::Kept;

/// A steer and its cluster.
#[derive(Clone)]
pub(crate) struct Steered {
    pub(crate) steer: Arc<Steer>,
    pub(crate) cluster: Arc<Cluster>,
    /// MAC addresses that the configuration names.
    pub(crate) macs: HashMap<SocketAddr, Mac>,
}

pub(super) fn compile(config: &Config, clusters: &HashMap<String, Kept>) -> Arc<[Steered]> {
    let one = |steer: &SteerConfig| {
        let cluster = clusters.get(&steer.cluster)?.cluster.clone();
        let labelled = cluster.set.endpoints.iter().filter_map(|endpoint| {
            let (_, mac) = endpoint.labels.iter().find(|(name, _)| &**name == "mac")?;
            Some((endpoint.address, mac.parse().ok()?))
        });
        Some(Steered { macs: labelled.collect(), steer: Arc::new(steered(steer)?), cluster })
    };
    config.steers.iter().filter_map(one).collect()
}

fn steered(config: &SteerConfig) -> Option<Steer> {
    let protocols = [(config.tcp, Protocol::Tcp), (config.udp, Protocol::Udp)];
    Some(Steer {
        name: config.name.clone(),
        address: config.address?,
        protocols: protocols.into_iter().filter(|(wanted, _)| *wanted).map(|(_, protocol)| protocol).collect(),
        ports: config.ports.clone(),
        affinity: match config.affinity {
            SteerAffinity::Connection => Affinity::Connection,
            SteerAffinity::Client => Affinity::Client,
        },
        table: config.table,
        mode: match &config.mode {
            SteerMode::Nat { interface, keep_source } => Mode::Nat(Nat {
                interface: interface.clone(),
                source: if *keep_source { Source::Keep } else { Source::Gateway },
            }),
            SteerMode::Dsr { interface, endpoint_interface, flows, flow_timeout, .. } => Mode::Dsr(Dsr {
                interface: interface.clone(),
                endpoint_interface: endpoint_interface.clone(),
                flows: *flows,
                flow_timeout: *flow_timeout,
                check_mark: check_mark(config),
            }),
        },
    })
}

fn check_mark(steer: &SteerConfig) -> Option<u32> {
    match &steer.mode {
        SteerMode::Dsr { check: SteerCheck::VirtualAddress { mark }, .. } => {
            Some(mark.unwrap_or_else(|| usual_mark(&steer.name)))
        }
        SteerMode::Dsr { .. } | SteerMode::Nat { .. } => None,
    }
}

/// What the checks of a cluster carry so that the kernel leads them where its clients' packets go: one mark for each virtual
/// address that they are to reach, none for the endpoint's own.
pub(super) fn check_marks(config: &Config, cluster: &str) -> Vec<Option<u32>> {
    let steers = config.steers.iter().filter(|steer| steer.cluster == cluster);
    let mut marks: Vec<Option<u32>> = steers.map(check_mark).collect();
    if marks.is_empty() {
        marks.push(None);
    }
    marks.sort_unstable();
    marks.dedup();
    marks
}
