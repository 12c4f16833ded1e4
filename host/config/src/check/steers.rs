//! Steered clusters: nothing in front of them or in them may ask for what only who ends a connection could do.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::cluster::Cluster;
use crate::file::Config;
use crate::reader::Source;
use crate::steer::{Steer, SteerMode};

pub(super) fn check(config: &Config, source: &Source<'_>) {
    let mut told = HashSet::new();
    for (place, steer) in config.steers.iter().enumerate() {
        if let Some(other) = config.steers[..place].iter().find(|other| steer.meets(other)) {
            let message = format!(
                "steer {:?} takes the same packets as steer {:?}; part their addresses or ports",
                steer.name, other.name
            );
            source.error(steer.line, message);
        }
        listeners(config, source, steer);
        // That it is not defined was noted.
        let Some(cluster) = config.clusters.iter().find(|cluster| cluster.name == steer.cluster) else { continue };
        if let Some(tenant) = &cluster.tenant {
            let message = format!(
                "steer {:?} names cluster {:?}, which is tenant {tenant:?}'s: only that tenant's routes may name it",
                steer.name, cluster.name
            );
            source.error(steer.cluster_line, message);
        }
        if told.insert(&cluster.name) {
            requests(config, source, steer, cluster);
        }
        endpoints(source, steer, cluster);
    }
}

/// A listener whose packets never reach it.
fn listeners(config: &Config, source: &Source<'_>, steer: &Steer) {
    for listener in &config.listeners {
        let port = listener.address.port();
        let tcp = steer.tcp && (listener.http1 || listener.http2 || listener.tunnel.as_ref().is_some_and(|t| t.tcp));
        let udp = steer.udp && (listener.http3 || listener.tunnel.as_ref().is_some_and(|t| t.udp));
        if Some(listener.address.ip()) == steer.address
            && (tcp || udp)
            && steer.ports.iter().any(|ports| ports.contains(&port))
        {
            let message = format!(
                "listener {:?} hears nothing: steer {:?} sends all that comes to {} on to cluster {:?}",
                listener.name, steer.name, listener.address, steer.cluster
            );
            source.error(listener.line, message);
        }
    }
}

/// Whole packets pass: there is no request, no response and no connection of the gateway's own.
fn requests(config: &Config, source: &Source<'_>, steer: &Steer, cluster: &Cluster) {
    let steered = format!(
        "cluster {:?} is steered by steer {:?}: the kernel passes its packets on unread",
        cluster.name, steer.name
    );
    for (key, line) in &cluster.of_requests {
        let what = match *key {
            "tls" | "protocol" => "the client's TLS and HTTP are the endpoint's to answer",
            "proxy_protocol" | "proxy_tlvs" => "nothing can be put before what the client sends",
            "balance" => "flows are spread by Maglev, see table and affinity of the steer",
            "retry_budget" | "ejection" => "no answer is seen, so none can be tried again or counted",
            _ => "the gateway has no connections or requests there to bound",
        };
        source.error(*line, format!("{steered}; {what}: remove {key}, or give requests a cluster of their own"));
    }
    for route in &config.routes {
        if route.destination.clusters().any(|name| *name == cluster.name) {
            let message = format!(
                "route {:?} leads requests there, but {steered}; give the route a cluster of its own, with the same endpoints",
                route.name
            );
            source.error(route.destination_line, message);
        }
    }
}

fn endpoints(source: &Source<'_>, steer: &Steer, cluster: &Cluster) {
    let Some(address) = steer.address else { return };
    let dsr = matches!(steer.mode, SteerMode::Dsr { .. });
    let mut hosts: HashSet<IpAddr> = HashSet::new();
    for endpoint in &cluster.endpoints {
        let ip = endpoint.address.ip();
        let refuse = |why: String| {
            source
                .error(endpoint.line, format!("steer {:?} leads to endpoint {}, {why}", steer.name, endpoint.address));
        };
        if ip.is_ipv4() != address.is_ipv4() {
            refuse(format!("which is of the other IP version than {address}; give each version a steer and a cluster"));
        } else if ip == address {
            refuse("which is the virtual address itself; name the endpoint's own".to_owned());
        } else if ip.is_loopback() {
            refuse("which packets from outside cannot reach; name an address of its interface".to_owned());
        }
        if !hosts.insert(ip) && steer.keeps_ports() {
            refuse(
                "whose host is an endpoint already: packets keep their ports here, so a host is one endpoint"
                    .to_owned(),
            );
        }
        if let Some((_, mac)) = endpoint.labels.iter().find(|(name, _)| dsr && name == "mac")
            && !is_mac(mac)
        {
            refuse(format!("whose label mac = {mac:?} is not an address as in \"02:00:5e:00:53:01\""));
        }
    }
}

fn is_mac(text: &str) -> bool {
    let two_digits = |part: &str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    text.split(':').count() == 6 && text.split(':').all(two_digits)
}

/// What is allowed and probably not meant.
pub(super) fn warnings(config: &Config) -> Vec<(usize, String)> {
    let mut warnings = Vec::new();
    for steer in &config.steers {
        let Some(cluster) = config.clusters.iter().find(|cluster| cluster.name == steer.cluster) else { continue };
        let other = |port: u16| cluster.endpoints.iter().find(|endpoint| endpoint.address.port() != port);
        if matches!(steer.mode, SteerMode::Dsr { .. })
            && let Some(port) = steer.single_port()
            && let Some(endpoint) = other(port)
        {
            let message = format!(
                "steer {:?}: with mode = \"dsr\" packets keep port {port}; that of endpoint {} is only where its health is asked",
                steer.name, endpoint.address
            );
            warnings.push((endpoint.line, message));
        }
        if cluster.health.is_none() && cluster.endpoints.len() > 1 {
            let message = format!(
                "steer {:?}: cluster {:?} has no health checks: an endpoint that is gone keeps its share of the flows",
                steer.name, cluster.name
            );
            warnings.push((cluster.line, message));
        }
    }
    warnings
}
