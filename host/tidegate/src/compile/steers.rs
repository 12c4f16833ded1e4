//! Steers: what the kernel is told of packets, and the endpoints they go to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tidegate_config::{Config, Steer as SteerConfig, SteerAffinity, SteerMode};
use tidegate_proxy::snapshot::Cluster;
use tidegate_steer::{Affinity, Dsr, Mac, Mode, Nat, Protocol, Source, Steer};

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
            SteerMode::Dsr { interface, endpoint_interface, flows, flow_timeout } => Mode::Dsr(Dsr {
                interface: interface.clone(),
                endpoint_interface: endpoint_interface.clone(),
                flows: *flows,
                flow_timeout: *flow_timeout,
            }),
        },
    })
}
