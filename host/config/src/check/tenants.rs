//! Tenants are apart: hosts have one owner, a tenant's routes match its hosts only, and what it names is its own or shared.

use std::collections::{HashMap, HashSet};

use crate::error::nearest;
use crate::file::Config;
use crate::plugin::{Kv, Plugin};
use crate::reader::Source;
use crate::route::{HostMatch, Route};
use crate::tenant::{Tenant, covers};

pub(super) fn check(config: &mut Config, source: &Source<'_>) {
    known(config, source);
    hosts(config, source);
    for route in &config.routes {
        of_route(config, source, route);
    }
    for cluster in config.clusters.iter().filter(|cluster| !cluster.shared) {
        let who = format!("cluster {:?}", cluster.name);
        if let Some(name) = &cluster.balance.plugin {
            may_name(config, source, cluster.balance.line, &who, cluster.tenant.as_deref(), ("plugin", name));
        }
    }
    for cluster in config.clusters.iter().filter(|cluster| cluster.shared) {
        let of_tenant = |name: &String| config.plugins.iter().find(|plugin| plugin.name == *name && !plugin.shared);
        if let Some(plugin) = cluster.balance.plugin.as_ref().and_then(of_tenant)
            && !config.tenants.is_empty()
        {
            let message = format!(
                "cluster {:?} is shared and names plugin {:?}, which is not; write shared = true in that plugin",
                cluster.name, plugin.name
            );
            source.error(cluster.balance.line, message);
        }
    }
    for plugin in &config.plugins {
        let who = format!("plugin {:?}", plugin.name);
        for (name, line) in plugin.http.iter().flat_map(|http| &http.clusters) {
            // A plugin of all is asked for every tenant's requests.
            let shared = config.clusters.iter().any(|cluster| cluster.name == *name && cluster.shared);
            if plugin.shared && !config.tenants.is_empty() && !shared {
                let message = format!(
                    "{who} is shared and calls cluster {name:?}, which is not; write shared = true in that cluster"
                );
                source.error(*line, message);
            } else if !plugin.shared {
                may_name(config, source, *line, &who, plugin.tenant.as_deref(), ("cluster", name));
            }
        }
    }
    grants(config, source);
    kv(config, source);
}

/// Whoever names a tenant names one there is; what is shared is nobody's.
fn known(config: &Config, source: &Source<'_>) {
    let names = || config.tenants.iter().map(|tenant| tenant.name.as_str());
    let routes = config.routes.iter().map(|r| ("route", &r.name, &r.tenant, r.tenant_line, false));
    let clusters = config.clusters.iter().map(|c| ("cluster", &c.name, &c.tenant, c.tenant_line, c.shared));
    let plugins = config.plugins.iter().map(|p| ("plugin", &p.name, &p.tenant, p.tenant_line, p.shared));
    for (table, name, tenant, line, shared) in routes.chain(clusters).chain(plugins) {
        let Some(tenant) = tenant else { continue };
        if !names().any(|known| known == tenant) {
            let near = nearest(tenant, names());
            source.error(line, format!("{table} {name:?} names tenant {tenant:?}, which is not defined{near}"));
        }
        if shared {
            let message = format!(
                "{table} {name:?}: tenant and shared exclude one another: what all use is the gateway's; keep one"
            );
            source.error(line, message);
        }
    }
}

/// No host has two owners.
fn hosts(config: &Config, source: &Source<'_>) {
    for (place, tenant) in config.tenants.iter().enumerate() {
        for earlier in &config.tenants[..place] {
            let both = |own: &&HostMatch| earlier.hosts.iter().any(|other| covers(other, own) || covers(own, other));
            if let Some(host) = tenant.hosts.iter().find(both) {
                let message = format!(
                    "tenant {:?}: hosts: {:?} overlaps with those of tenant {:?}; a host has one owner",
                    tenant.name,
                    text(host),
                    earlier.name
                );
                source.error(tenant.hosts_line, message);
            }
        }
    }
}

fn text(host: &HostMatch) -> String {
    match host {
        HostMatch::Exact(name) => name.clone(),
        HostMatch::Wildcard(suffix) => format!("*.{suffix}"),
    }
}

fn of_route(config: &Config, source: &Source<'_>, route: &Route) {
    let who = format!("route {:?}", route.name);
    let tenant = route.tenant.as_deref();
    if let Some(owner) = find(config, tenant) {
        if route.hosts.is_empty() {
            let message = format!("{who} of tenant {:?} matches any host; give it a host of that tenant", owner.name);
            source.error(route.line, message);
        }
        if let Some(host) = route.hosts.iter().find(|host| !owner.owns(host)) {
            let own: Vec<String> = owner.hosts.iter().map(text).collect();
            let message = format!(
                "{who}: host {:?} is not of tenant {:?}, which owns {}",
                text(host),
                owner.name,
                own.join(", ")
            );
            source.error(route.host_line, message);
        }
    }
    for name in route.destination.clusters() {
        may_name(config, source, route.destination_line, &who, tenant, ("cluster", name));
    }
    for (name, line) in route.plugins() {
        may_name(config, source, line, &who, tenant, ("plugin", name));
    }
}

fn find<'a>(config: &'a Config, name: Option<&str>) -> Option<&'a Tenant> {
    config.tenants.iter().find(|tenant| Some(tenant.name.as_str()) == name)
}

/// A tenant names its own and what is shared; the gateway's own tables name no tenant's plugin, whose budget is for that
/// tenant's requests, nor its cluster.
fn may_name(config: &Config, source: &Source<'_>, line: usize, who: &str, tenant: Option<&str>, named: (&str, &str)) {
    let (table, name) = named;
    let owner = match table {
        "cluster" => config.clusters.iter().find(|c| c.name == name).map(|c| (c.tenant.as_deref(), c.shared)),
        _ => config.plugins.iter().find(|p| p.name == name).map(|p| (p.tenant.as_deref(), p.shared)),
    };
    // One that is not defined was noted.
    let Some((owner, shared)) = owner else { return };
    if shared || owner == tenant {
        return;
    }
    let message = match (tenant, owner) {
        (Some(tenant), Some(owner)) => {
            format!("{who} of tenant {tenant:?} names {table} {name:?}, which is of tenant {owner:?}")
        }
        (Some(tenant), None) => format!(
            "{who} of tenant {tenant:?} names {table} {name:?}, which is the gateway's own; write tenant = {tenant:?} or shared = true in it"
        ),
        (None, owner) => {
            let owner = owner.unwrap_or_default();
            format!(
                "{who} names {table} {name:?}, which is of tenant {owner:?}; write tenant = {owner:?} in it as well"
            )
        }
    };
    source.error(line, message);
}

/// What a plugin is granted is within what its tenant may grant, and what it may take within what the tenant has. A plugin
/// that does not say which fields it may see may see those that its tenant may.
fn grants(config: &mut Config, source: &Source<'_>) {
    let tenants = &config.tenants;
    for plugin in &mut config.plugins {
        let Some(tenant) = tenants.iter().find(|tenant| Some(&tenant.name) == plugin.tenant.as_ref()) else { continue };
        let who = format!("plugin {:?} of tenant {:?}", plugin.name, tenant.name);
        match (&plugin.headers, &tenant.grants.headers) {
            (_, None) => {}
            (None, allowed) if !plugin.headers_written => plugin.headers.clone_from(allowed),
            (None, Some(_)) => {
                let message = format!("{who}: grants.headers: \"*\" is more than the tenant's grants; name the fields");
                source.error(plugin.grants_line, message);
            }
            (Some(wanted), Some(allowed)) => {
                if let Some(name) = wanted.iter().find(|name| !allowed.contains(name)) {
                    let message = format!("{who}: grants.headers: {name:?} is not among the tenant's grants");
                    source.error(plugin.grants_line, message);
                }
            }
        }
        if plugin.wasi && !tenant.grants.wasi {
            source.error(plugin.grants_line, format!("{who}: grants.wasi is not among the tenant's grants"));
        }
        if let Some(most) = tenant.limits.memory.filter(|most| plugin.memory > *most) {
            let message = format!(
                "{who}: limits.memory of {} bytes is more than the {most} that the tenant has for all",
                plugin.memory
            );
            source.error(plugin.limits_line, message);
        }
    }
    for cluster in &config.clusters {
        let (Some(component), Some(tenant)) = (&cluster.component, find(config, cluster.tenant.as_deref())) else {
            continue;
        };
        if let Some(most) = tenant.limits.memory.filter(|most| component.memory > *most) {
            let message = format!(
                "cluster {:?} of tenant {:?}: limits.memory of {} bytes is more than the {most} that the tenant has for all",
                cluster.name, tenant.name, component.memory
            );
            source.error(component.limits_line, message);
        }
    }
}

/// Namespaces add up to what the tenant has; those who share one agree in it.
fn kv(config: &Config, source: &Source<'_>) {
    for plugin in config.plugins.iter().filter(|plugin| plugin.tenant.is_none()) {
        if plugin.kv.as_ref().is_some_and(|kv| kv.of_tenant) {
            let message = format!("plugin {:?}: grants.kv_scope = \"tenant\" without a tenant; set one", plugin.name);
            source.error(plugin.grants_line, message);
        }
    }
    for tenant in &config.tenants {
        let granted = || {
            let own = config.plugins.iter().filter(|plugin| plugin.tenant.as_ref() == Some(&tenant.name));
            own.filter_map(|plugin| Some((plugin, plugin.kv.as_ref()?)))
        };
        let shared: Vec<(&Plugin, &Kv)> = granted().filter(|(_, kv)| kv.of_tenant).collect();
        if let [(first, with), rest @ ..] = &shared[..]
            && let Some((other, _)) = rest.iter().find(|(_, kv)| kv != with)
        {
            let message = format!(
                "plugins {:?} and {:?} share the kv of tenant {:?}: they must agree in grants.kv and kv_persist",
                first.name, other.name, tenant.name
            );
            source.error(other.grants_line, message);
        }
        let common = shared.first().map_or(0, |(_, kv)| kv.bytes);
        let own: u64 = granted().filter(|(_, kv)| !kv.of_tenant).map(|(_, kv)| kv.bytes).sum();
        let apart: u64 = granted().map(|(plugin, kv)| kv.bytes.saturating_mul(apart(plugin))).sum();
        let sum = own.saturating_add(common).saturating_add(apart);
        if sum > tenant.limits.kv {
            let line = granted().next_back().map_or(tenant.line, |(plugin, _)| plugin.grants_line);
            let message = format!(
                "the plugins of tenant {:?} are granted {sum} bytes of kv together, and its limits.kv is {}",
                tenant.name, tenant.limits.kv
            );
            source.error(line, message);
        }
    }
    // A place has one owner: whoever opens a file of another's would read it.
    let mut places: HashMap<_, HashSet<Option<&str>>> = HashMap::new();
    for plugin in &config.plugins {
        let Some(path) = plugin.kv.as_ref().and_then(|kv| kv.persist.as_ref()) else { continue };
        let owners = places.entry(path).or_default();
        owners.insert(plugin.tenant.as_deref());
        if owners.len() > 1 {
            let message = format!("plugin {:?}: kv_persist: {} is another tenant's too", plugin.name, path.display());
            source.error(plugin.grants_line, message);
        }
    }
}

/// How many versions of a plugin have a namespace of their own beside it.
fn apart(plugin: &Plugin) -> u64 {
    u64::from(plugin.shadow.is_some()) + u64::from(plugin.rollout.as_ref().is_some_and(|rollout| !rollout.shares_kv))
}

/// What is allowed and probably not meant.
pub(super) fn warnings(config: &Config) -> Vec<(usize, String)> {
    let mut warnings = Vec::new();
    let sum: u64 = config.tenants.iter().filter_map(|tenant| tenant.limits.instances).sum();
    let most = u64::from(config.gateway.max_plugin_instances);
    if let Some(last) = config.tenants.last().filter(|_| sum > most) {
        let message = format!(
            "tenants may have {sum} instances together, and gateway.max_plugin_instances is {most}: one may find none left"
        );
        warnings.push((last.limits.line, message));
    }
    for tenant in &config.tenants {
        if !config.routes.iter().any(|route| route.tenant.as_ref() == Some(&tenant.name)) {
            warnings.push((tenant.line, format!("tenant {:?} has no route", tenant.name)));
        }
    }
    warnings
}
