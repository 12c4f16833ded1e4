//! What is told of a steer: on `/status`, on the metrics page, by `tidegate status`.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};
use tidegate_steer::nft::Count;
use tidegate_steer::{Affinity, Mac, Mode, Role, Source, Steer, TableName, counters};

use super::one::One;

/// A steer as of the last look at it.
pub(crate) struct Report {
    pub(crate) steer: Arc<Steer>,
    pub(crate) cluster: String,
    pub(crate) installed: bool,
    /// What keeps the last change out of the kernel.
    pub(crate) failure: Option<String>,
    pub(crate) endpoints: Vec<EndpointReport>,
    /// Packets that nobody could take.
    pub(crate) unserved: Count,
    pub(crate) applied: u64,
    pub(crate) failed: u64,
    /// Flows taken from endpoints that are down.
    pub(crate) moved: u64,
}

pub(crate) struct EndpointReport {
    pub(crate) address: SocketAddr,
    role: Role,
    mac: Option<Mac>,
    /// That it was chosen for.
    pub(crate) flows: u64,
    pub(crate) received: Count,
    /// With NAT; otherwise nobody here sees them.
    pub(crate) sent: Option<Count>,
}

impl Report {
    pub(super) fn of(one: &One) -> Self {
        let count = |name: &str| one.counts.get(name).copied().unwrap_or_default();
        let nat = matches!(one.steer().mode, Mode::Nat(_));
        let endpoints = one.roster().backends().iter().map(|backend| {
            let [flows, received, sent] = counters(backend.address);
            EndpointReport {
                address: backend.address,
                role: backend.role,
                mac: backend.mac.filter(|_| !nat),
                flows: count(&flows).packets,
                received: count(&received),
                sent: nat.then(|| count(&sent)),
            }
        });
        Self {
            steer: one.steer().clone(),
            cluster: one.cluster().to_owned(),
            installed: one.installed(),
            failure: one.failure.clone(),
            endpoints: endpoints.collect(),
            unserved: count("unserved"),
            applied: one.applied,
            failed: one.failed,
            moved: one.moved,
        }
    }

    /// For `/status`.
    pub(crate) fn json(&self) -> Value {
        let steer = &self.steer;
        let ports = steer.ports.iter().map(|ports| match (ports.start(), ports.end()) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        });
        let mut status = json!({
            "name": steer.name,
            "table": TableName::of(steer).to_string(),
            "installed": self.installed,
            "failure": self.failure,
            "address": steer.address,
            "ports": ports.collect::<Vec<_>>(),
            "protocols": steer.protocols.iter().map(|protocol| protocol.name()).collect::<Vec<_>>(),
            "cluster": self.cluster,
            "affinity": match steer.affinity { Affinity::Connection => "connection", Affinity::Client => "client" },
            "endpoints": self.endpoints.iter().map(EndpointReport::json).collect::<Vec<_>>(),
            "unserved_packets": self.unserved.packets,
            "flows_moved": self.moved,
        });
        match &steer.mode {
            Mode::Nat(nat) => {
                status["mode"] = "nat".into();
                status["source"] = match nat.source {
                    Source::Keep => "keep",
                    Source::Gateway => "gateway",
                }
                .into();
                status["interface"] = nat.interface.clone().into();
                status["forwarding"] = forwards(steer).into();
            }
            Mode::Dsr(dsr) => {
                status["mode"] = "dsr".into();
                status["interface"] = dsr.interface.clone().into();
                status["endpoint_interface"] = dsr.endpoint_interface.clone().into();
                status["check"] = if dsr.check_mark.is_some() { "virtual_address" } else { "endpoint_address" }.into();
                status["check_mark"] = dsr.check_mark.into();
            }
        }
        status
    }
}

impl EndpointReport {
    fn json(&self) -> Value {
        json!({
            "address": self.address,
            "role": self.role.name(),
            "weight": match self.role { Role::Takes(weight) => weight, Role::Drains | Role::Down => 0 },
            "mac": self.mac.map(|mac| mac.to_string()),
            "flows": self.flows,
            "packets_to_endpoint": self.received.packets,
            "packets_to_client": self.sent.map(|sent| sent.packets),
        })
    }
}

/// Whether the kernel forwards packets of the address's IP version at all.
pub(super) fn forwards(steer: &Steer) -> bool {
    let file = match steer.address.is_ipv4() {
        true => "/proc/sys/net/ipv4/ip_forward",
        false => "/proc/sys/net/ipv6/conf/all/forwarding",
    };
    std::fs::read_to_string(file).is_ok_and(|text| text.trim() != "0")
}
