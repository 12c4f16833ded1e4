//! `[[tenant]]`: somebody whose hosts, routes, clusters and plugins are apart from those of others.

use std::time::Duration;

use crate::cluster::is_token;
use crate::reader::Section;
use crate::route::{HostMatch, hosts};

#[derive(Clone, Debug)]
pub struct Tenant {
    pub line: usize,
    pub hosts_line: usize,
    pub name: String,
    pub hosts: Vec<HostMatch>,
    pub limits: TenantLimits,
    pub grants: TenantGrants,
}

/// Bounds on all that a tenant has together.
#[derive(Clone, Debug)]
pub struct TenantLimits {
    pub line: usize,
    pub cpu: Option<CpuShare>,
    pub memory: Option<u64>,
    pub instances: Option<u64>,
    pub log_lines: Option<u32>,
    /// Bytes; 0 for none.
    pub kv: u64,
    pub callouts: Option<u32>,
    pub callouts_in_flight: Option<u64>,
    pub requests: Option<u32>,
}

/// What a tenant's plugins may be granted.
#[derive(Clone, Debug)]
pub struct TenantGrants {
    /// `None`: all.
    pub headers: Option<Vec<String>>,
    pub wasi: bool,
}

/// Guests' CPU time in each second, and what may be saved up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CpuShare {
    pub per_second: Duration,
    pub burst: Duration,
}

impl CpuShare {
    pub(crate) fn read(limits: &Section<'_>, table: &str) -> Option<Self> {
        let Some(per_second) = limits.time_or_off("cpu") else {
            if limits.has("cpu_burst") {
                let message = format!("{table}: limits: cpu_burst without cpu bounds nothing; set cpu as well");
                limits.error(limits.line_of("cpu_burst"), message);
            }
            return None;
        };
        let burst = if limits.has("cpu_burst") { limits.time("cpu_burst") } else { per_second };
        Some(Self { per_second, burst })
    }
}

impl Tenant {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        Self {
            line: section.line,
            hosts_line: section.line_of("hosts"),
            name: section.label("name"),
            hosts: hosts(section, "hosts"),
            limits: TenantLimits::read(&section.section("limits")),
            grants: TenantGrants::read(&section.section("grants")),
        }
    }

    /// Whether all that `host` matches is this tenant's.
    pub(crate) fn owns(&self, host: &HostMatch) -> bool {
        self.hosts.iter().any(|own| covers(own, host))
    }
}

impl TenantLimits {
    fn read(section: &Section<'_>) -> Self {
        let bound = |name: &str, most: u64| section.has(name).then(|| section.number(name, 1, most)).flatten();
        Self {
            line: section.line,
            cpu: CpuShare::read(section, "tenant"),
            memory: section.size_or_off("memory"),
            instances: bound("instances", 1_000_000),
            log_lines: bound("log_lines", 1_000_000).map(|lines| lines as u32),
            kv: section.size_or_off("kv").unwrap_or(0),
            callouts: bound("callouts", u64::from(u32::MAX)).map(|callouts| callouts as u32),
            callouts_in_flight: bound("callouts_in_flight", 1_000_000),
            // The last value stands for no bound.
            requests: bound("requests", u64::from(u32::MAX) - 1).map(|requests| requests as u32),
        }
    }
}

impl TenantGrants {
    fn read(section: &Section<'_>) -> Self {
        Self { headers: granted_headers(section, "tenant"), wasi: section.bool("wasi") }
    }
}

/// Names of fields, lower case; `None` for all.
pub(crate) fn granted_headers(grants: &Section<'_>, table: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for (name, line) in grants.texts("headers") {
        if !is_token(&name) {
            let place = if table == "plugin" { String::new() } else { format!("{table}: ") };
            grants.error(line, format!("{place}grants: {name:?} is not a field name"));
        }
        names.push(name.to_ascii_lowercase());
    }
    if names.iter().any(|name| name == "*") { None } else { Some(names) }
}

/// Whether `own` matches every host that `host` does.
pub(crate) fn covers(own: &HostMatch, host: &HostMatch) -> bool {
    let below = |name: &str, suffix: &str| name.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'));
    match (own, host) {
        (HostMatch::Exact(own), HostMatch::Exact(host)) => own == host,
        (HostMatch::Wildcard(suffix), HostMatch::Exact(host)) => below(host, suffix),
        (HostMatch::Wildcard(suffix), HostMatch::Wildcard(host)) => host == suffix || below(host, suffix),
        (HostMatch::Exact(_), HostMatch::Wildcard(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_owns_what_it_matches_and_no_more() {
        let exact = |name: &str| HostMatch::Exact(name.to_owned());
        let wild = |name: &str| HostMatch::Wildcard(name.to_owned());
        assert!(covers(&exact("a.com"), &exact("a.com")) && !covers(&exact("a.com"), &exact("b.a.com")));
        assert!(covers(&wild("a.com"), &exact("b.a.com")) && !covers(&wild("a.com"), &exact("a.com")));
        assert!(!covers(&wild("a.com"), &exact("ba.com")) && !covers(&exact("a.com"), &wild("a.com")));
        assert!(covers(&wild("a.com"), &wild("a.com")) && covers(&wild("a.com"), &wild("b.a.com")));
        assert!(!covers(&wild("b.a.com"), &wild("a.com")) && !covers(&wild("a.com"), &wild("ba.com")));
    }
}
