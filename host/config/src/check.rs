//! Names across tables: what is named is defined, what is defined is named once, no route hides another.

use std::collections::{HashMap, HashSet};

use crate::cluster::{HashKey, ProxyProtocol};
use crate::error::{ConfigError, nearest};
use crate::file::Config;
use crate::listener::Listener;
use crate::plugin::Plugin;
use crate::reader::Source;
use crate::route::{HeaderMatch, HostMatch, PathMatch};
use crate::tunnel::Tunnel;

mod steers;
mod tenants;

pub(crate) fn check(config: &mut Config, source: &Source<'_>) {
    unique(source, "listener", config.listeners.iter().map(|listener| (listener.name.as_str(), listener.line)));
    unique(source, "cluster", config.clusters.iter().map(|cluster| (cluster.name.as_str(), cluster.line)));
    unique(source, "plugin", config.plugins.iter().map(|plugin| (plugin.name.as_str(), plugin.line)));
    unique(source, "route", config.routes.iter().map(|route| (route.name.as_str(), route.line)));
    unique(source, "steer", config.steers.iter().map(|steer| (steer.name.as_str(), steer.line)));
    unique(source, "tenant", config.tenants.iter().map(|tenant| (tenant.name.as_str(), tenant.line)));
    addresses(config, source);
    let mut used = HashSet::new();
    references(config, source, &mut used);
    tenants::check(config, source);
    udp(config, source);
    tunnels(config, source);
    steers::check(config, source);
    shipped(config, source);
    shadows(config, source);
    warn(config, &used);
}

fn unique<'a>(source: &Source<'_>, table: &str, names: impl Iterator<Item = (&'a str, usize)>) {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (name, line) in names.filter(|(name, _)| !name.is_empty()) {
        if let Some(first) = seen.get(name) {
            source.error(line, format!("{table} {name:?} is defined twice, first in line {first}"));
        } else {
            seen.insert(name, line);
        }
    }
}

fn addresses(config: &Config, source: &Source<'_>) {
    let mut seen = HashMap::new();
    for listener in config.listeners.iter().filter(|listener| listener.address.port() != 0) {
        if let Some(other) = seen.insert(listener.address, &listener.name) {
            let message =
                format!("listener {:?} has the address of listener {other:?}, {}", listener.name, listener.address);
            source.error(listener.line, message);
        }
    }
    if let Some(admin) = config.gateway.admin.filter(|admin| admin.port() != 0)
        && let Some(name) = seen.get(&admin)
    {
        source.error(1, format!("listener {name:?} has the address of the admin listener, {admin}"));
    }
}

/// Notes every name that leads nowhere; collects those in use, as `cluster:x` and `plugin:y`.
fn references(config: &Config, source: &Source<'_>, used: &mut HashSet<String>) {
    let clusters: Vec<&str> = config.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
    let plugins: Vec<&str> = config.plugins.iter().map(|plugin| plugin.name.as_str()).collect();
    let mut named = |line: usize, who: String, kind: &str, name: &str| {
        let known = if kind == "cluster" { &clusters } else { &plugins };
        if !known.contains(&name) {
            let near = nearest(name, known.iter().copied());
            source.error(line, format!("{who} names {kind} {name:?}, which is not defined{near}"));
        }
        used.insert(format!("{kind}:{name}"));
    };
    for route in &config.routes {
        let who = || format!("route {:?}", route.name);
        route.destination.clusters().for_each(|name| named(route.destination_line, who(), "cluster", name));
        route.plugins().for_each(|(name, line)| named(line, who(), "plugin", name));
    }
    for plugin in &config.plugins {
        for (name, line) in plugin.http.iter().flat_map(|http| &http.clusters) {
            named(*line, format!("plugin {:?}: grants.http", plugin.name), "cluster", name);
        }
    }
    for (listener, tunnel) in tunnelling(config) {
        let who = || format!("listener {:?}: tunnel", listener.name);
        tunnel.clusters().for_each(|(name, line)| named(line, who(), "cluster", name));
        if let Some(name) = &tunnel.router {
            named(tunnel.router_line, who(), "plugin", name);
        }
    }
    for steer in config.steers.iter().filter(|steer| !steer.cluster.is_empty()) {
        named(steer.cluster_line, format!("steer {:?}", steer.name), "cluster", &steer.cluster);
    }
    if config.listeners.is_empty() && config.steers.is_empty() {
        source.error(1, "there is no listener and no steer: clients could not connect anywhere");
    }
    if config.routes.is_empty() && config.listeners.iter().any(Listener::speaks_http) {
        source.error(1, "there is no route: requests would go nowhere");
    }
    for cluster in &config.clusters {
        if let Some(name) = &cluster.balance.plugin {
            named(cluster.balance.line, format!("cluster {:?}", cluster.name), "plugin", name);
        }
        let mut addresses = HashSet::new();
        for endpoint in &cluster.endpoints {
            if !addresses.insert(endpoint.address) {
                let message = format!(
                    "cluster {:?} has the endpoint {} twice; give it a weight instead",
                    cluster.name, endpoint.address
                );
                source.error(endpoint.line, message);
            }
        }
    }
}

/// UDP is sent as it is: a cluster that asks for more would not get it.
fn udp(config: &Config, source: &Source<'_>) {
    for route in config.routes.iter().filter(|route| !route.connect_udp.is_empty()) {
        let named: Vec<&str> = route.destination.clusters().collect();
        for cluster in config.clusters.iter().filter(|cluster| named.contains(&cluster.name.as_str())) {
            let wants = [
                ("tls", cluster.tls.is_some()),
                ("component", cluster.component.is_some()),
                ("proxy_protocol", !matches!(cluster.proxy_protocol, ProxyProtocol::Off)),
            ];
            for (key, _) in wants.iter().filter(|(_, wanted)| *wanted) {
                let message = format!(
                    "route {:?} leads UDP to cluster {:?}, which has {key}; give connect_udp a cluster without it",
                    route.name, cluster.name
                );
                source.error(route.connect_udp_line, message);
            }
        }
    }
}

fn tunnelling(config: &Config) -> impl Iterator<Item = (&Listener, &Tunnel)> {
    config.listeners.iter().filter_map(|listener| Some((listener, listener.tunnel.as_ref()?)))
}

/// Bytes are passed on as they are: what a cluster says of TLS, or of what is in requests, has no meaning for them.
fn tunnels(config: &Config, source: &Source<'_>) {
    for (listener, tunnel) in tunnelling(config) {
        for (name, line) in tunnel.clusters() {
            let Some(cluster) = config.clusters.iter().find(|cluster| cluster.name == name) else { continue };
            let refuse = |why: &str| {
                source.error(line, format!("listener {:?} relays to cluster {name:?}, {why}", listener.name));
            };
            if cluster.tls.is_some() {
                refuse("which has tls: a tunnel passes on the client's own; give it a cluster without");
            }
            if cluster.component.is_some() {
                refuse("which is a component: it answers requests, and a tunnel has none");
            }
            if matches!(cluster.balance.on, HashKey::Path | HashKey::Header(_) | HashKey::Cookie(_)) {
                refuse("which hashes by what is in a request: a tunnel has none; balance it on = \"client_ip\"");
            }
            if tunnel.udp && matches!(cluster.proxy_protocol, ProxyProtocol::V1) {
                refuse("which sends PROXY headers of version 1, which know no UDP; set proxy_protocol = \"v2\"");
            }
        }
    }
}

/// A plugin from a registry needs somewhere to be kept.
fn shipped(config: &Config, source: &Source<'_>) {
    let mut versions = config.plugins.iter().flat_map(Plugin::versions);
    if config.gateway.plugin_store.is_none()
        && let Some(version) = versions.find(|version| version.shipped().is_some())
    {
        let message = format!("plugin {:?} comes from a registry: set gateway.plugin_store", version.name());
        source.error(version.source_line, message);
    }
}

/// A route that can never match because an earlier one takes all it would.
fn shadows(config: &Config, source: &Source<'_>) {
    type Rest<'a> = (Vec<String>, &'a [(String, HeaderMatch)]);
    type Place<'a> = (Option<&'a HostMatch>, &'a PathMatch);
    let mut seen: HashMap<Place<'_>, Vec<(Rest<'_>, &str)>> = HashMap::new();
    for route in &config.routes {
        let mut methods = route.methods.clone();
        methods.sort();
        let hosts: Vec<Option<&HostMatch>> =
            if route.hosts.is_empty() { vec![None] } else { route.hosts.iter().map(Some).collect() };
        // Hidden for all of its hosts, or it still has a purpose.
        let mut hiding = Some("");
        for host in hosts {
            let earlier = seen.entry((host, &route.path)).or_default();
            let hidden = earlier.iter().find(|((other, headers), _)| {
                let methods_in = other.is_empty() || (!methods.is_empty() && methods.iter().all(|m| other.contains(m)));
                methods_in && headers.iter().all(|header| route.headers.contains(header))
            });
            hiding = hiding.and(hidden.map(|(_, name)| *name));
            earlier.push(((methods.clone(), &route.headers), &route.name));
        }
        if let Some(name) = hiding {
            let message =
                format!("route {:?} never matches: route {name:?} takes the same requests before it", route.name);
            source.error(route.line, message);
        }
    }
}

fn warn(config: &mut Config, used: &HashSet<String>) {
    let mut warnings = Vec::new();
    let mut warn = |line: usize, message: String| {
        warnings.push(ConfigError { file: config.file.clone(), line, message });
    };
    let routers = config.routes.iter().any(|route| route.router.is_some())
        || tunnelling(config).any(|(_, tunnel)| tunnel.router.is_some());
    for cluster in &config.clusters {
        if cluster.tls.as_ref().is_some_and(|tls| !tls.verify) {
            warn(cluster.line, format!("cluster {:?} takes any certificate (verify = false)", cluster.name));
        }
        if !cluster.endpoints.is_empty() && cluster.endpoints.iter().all(|endpoint| endpoint.weight == 0) {
            let message =
                format!("cluster {:?} has no endpoint with a weight: it answers 503 to everything", cluster.name);
            warn(cluster.line, message);
        }
        // A router may name any cluster.
        if !routers && !used.contains(&format!("cluster:{}", cluster.name)) {
            warn(cluster.line, format!("cluster {:?} is never used", cluster.name));
        }
    }
    for plugin in &config.plugins {
        for version in plugin.versions() {
            if let Some(shipped) = version.shipped()
                && shipped.signed_by.is_empty()
                && !shipped.reference.contains('@')
            {
                let message = format!(
                    "plugin {:?} is whatever its registry says: nobody has to sign it (signed_by), and no digest is named",
                    version.name()
                );
                warn(version.source_line, message);
            }
        }
        if !used.contains(&format!("plugin:{}", plugin.name)) {
            warn(plugin.line, format!("plugin {:?} is never used", plugin.name));
        }
    }
    for (line, message) in tenants::warnings(config).into_iter().chain(steers::warnings(config)) {
        warn(line, message);
    }
    config.warnings = warnings;
}
