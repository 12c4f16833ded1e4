//! `[[plugin]]`: a component that answers questions.

use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::is_token;
use crate::reader::Section;
use crate::registry::{Registry, Shipped};
use crate::tenant::{CpuShare, granted_headers};

#[derive(Clone, Debug)]
pub struct Plugin {
    pub line: usize,
    pub source_line: usize,
    pub settings_line: usize,
    pub limits_line: usize,
    pub grants_line: usize,
    pub name: String,
    pub tenant: Option<String>,
    pub tenant_line: usize,
    /// Tenants' routes may name it.
    pub shared: bool,
    pub source: PluginSource,
    pub settings: serde_json::Value,
    pub on_failure: OnFailure,
    pub isolation: PluginIsolation,
    pub memoise: bool,
    pub time: Duration,
    pub memory: u64,
    /// `None`: all.
    pub headers: Option<Vec<String>>,
    /// Whether somebody wrote which.
    pub(crate) headers_written: bool,
    pub wasi: bool,
    pub rollout: Option<Rollout>,
    pub shadow: Option<Shadow>,
    pub cpu: Option<CpuShare>,
    pub instances: Option<u64>,
    pub log_lines: u32,
    pub kv: Option<Kv>,
    pub http: Option<Http>,
    /// For all calls of a decision.
    pub wait: Duration,
    pub callouts: Option<u32>,
}

/// What a plugin may call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Http {
    pub line: usize,
    /// And the line of each.
    pub clusters: Vec<(String, usize)>,
    pub max_request: u64,
    pub max_response: u64,
    pub max_in_flight: u64,
}

/// Another version of a plugin: all but this is the plugin's, and so is what is asked of it on its way from a registry.
#[derive(Clone, Debug)]
pub struct OtherVersion {
    pub source_line: usize,
    pub source: PluginSource,
    /// `None`: the plugin's.
    pub settings: Option<serde_json::Value>,
    pub settings_line: usize,
}

/// What a version is to its plugin.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    Current,
    /// Rolled out.
    Next,
    Shadow,
}

impl Role {
    /// What logs and metrics call the version of a plugin: no name that a configuration gives has an `@`.
    pub fn name(self, plugin: &str) -> String {
        match self {
            Self::Current => plugin.to_owned(),
            Self::Next => format!("{plugin}@next"),
            Self::Shadow => format!("{plugin}@shadow"),
        }
    }
}

/// One of the versions that a plugin has.
#[derive(Clone, Copy, Debug)]
pub struct PluginVersion<'a> {
    pub plugin: &'a Plugin,
    pub role: Role,
    pub source: &'a PluginSource,
    pub source_line: usize,
    pub settings: &'a serde_json::Value,
    pub settings_line: usize,
}

impl<'a> PluginVersion<'a> {
    fn other(&self, role: Role, version: &'a OtherVersion) -> Self {
        Self {
            plugin: self.plugin,
            role,
            source: &version.source,
            source_line: version.source_line,
            settings: version.settings.as_ref().unwrap_or(self.settings),
            settings_line: version.settings_line,
        }
    }

    pub fn name(&self) -> String {
        self.role.name(&self.plugin.name)
    }

    /// Where it is in a registry, if it comes from one.
    pub fn shipped(&self) -> Option<&'a Shipped> {
        match self.source {
            PluginSource::Registry(shipped) => Some(shipped),
            PluginSource::File(_) | PluginSource::Builtin(_) => None,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Rollout {
    pub next: OtherVersion,
    /// Both versions use the plugin's namespace of `kv`; else the next has its own.
    pub shares_kv: bool,
    /// From 0 to 1.
    pub share: f64,
    pub sticky_by: StickyBy,
    pub faults: u64,
    /// From 0 to 1.
    pub error_rate: f64,
    /// Times the current version's.
    pub latency: f64,
    pub window: Duration,
    pub min: u64,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StickyBy {
    ClientIp,
    Header(String),
    Cookie(String),
    Random,
}

#[derive(Clone, Debug)]
pub struct Shadow {
    pub version: OtherVersion,
    /// From 0 to 1.
    pub share: f64,
    /// Questions a second.
    pub rate: u64,
}

/// What a plugin may keep.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kv {
    pub bytes: u64,
    /// In one namespace with the other plugins of its tenant that say so.
    pub of_tenant: bool,
    pub persist: Option<PathBuf>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum PluginSource {
    File(PathBuf),
    Builtin(String),
    Registry(Box<Shipped>),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OnFailure {
    Fallback,
    Deny,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PluginIsolation {
    Worker,
    Request,
}

impl Plugin {
    /// The current one first.
    pub fn versions(&self) -> impl Iterator<Item = PluginVersion<'_>> {
        let current = PluginVersion {
            plugin: self,
            role: Role::Current,
            source: &self.source,
            source_line: self.source_line,
            settings: &self.settings,
            settings_line: self.settings_line,
        };
        let next = self.rollout.as_ref().map(|rollout| current.other(Role::Next, &rollout.next));
        let shadow = self.shadow.as_ref().map(|shadow| current.other(Role::Shadow, &shadow.version));
        std::iter::once(current).chain(next).chain(shadow)
    }

    pub(crate) fn read(section: &Section<'_>, registry: &Registry) -> Self {
        let (rollout, shadow) = (section.optional_section("rollout"), section.optional_section("shadow"));
        let of_version = |version: &Option<Section<'_>>| version.as_ref().is_some_and(PluginSource::is_shipped);
        let any = PluginSource::is_shipped(section) || of_version(&rollout) || of_version(&shadow);
        let shipped = any.then(|| Shipped::read(section, registry));
        if shipped.is_none() {
            Shipped::refuse_keys(section);
        }
        let shipped = shipped.as_ref();
        let source = PluginSource::read(section, shipped);
        let limits = section.section("limits");
        let grants = section.section("grants");
        let (memoise, wasi) = (section.bool("memoise"), grants.bool("wasi"));
        if memoise && wasi {
            let message = "plugin: memoise = true and grants.wasi = true exclude one another: what WASI tells a plugin \
                           (the time, random numbers) is not part of what answers are remembered by";
            section.error(section.line_of("memoise"), message);
        }
        Self {
            line: section.line,
            source_line: section.line_of("source"),
            settings_line: section.line_of("settings"),
            limits_line: section.line_of("limits"),
            grants_line: section.line_of("grants"),
            name: section.label("name"),
            tenant: section.text("tenant"),
            tenant_line: section.line_of("tenant"),
            shared: section.bool("shared"),
            source,
            settings: section.free("settings"),
            on_failure: if section.one_of("on_failure") == "deny" { OnFailure::Deny } else { OnFailure::Fallback },
            isolation: match section.one_of("isolation").as_str() {
                "request" => PluginIsolation::Request,
                _ => PluginIsolation::Worker,
            },
            memoise,
            time: limits.time("time"),
            memory: limits.size("memory", 64 * 1024, 1 << 30),
            headers: granted_headers(&grants, "plugin"),
            headers_written: grants.has("headers"),
            wasi,
            rollout: rollout
                .as_ref()
                .map(|rollout| Rollout::read(rollout, shipped, grants.size_or_off("kv").is_some())),
            shadow: shadow.as_ref().map(|shadow| Shadow::read(shadow, shipped)),
            cpu: CpuShare::read(&limits, "plugin"),
            instances: limits.has("instances").then(|| limits.number("instances", 1, 1_000_000)).flatten(),
            log_lines: limits.number("log_lines", 1, 1_000_000).unwrap_or(1) as u32,
            kv: Kv::read(&grants),
            http: grants.optional_section("http").map(|http| Http::read(&http)),
            wait: limits.time("wait"),
            callouts: limits
                .has("callouts")
                .then(|| limits.number("callouts", 1, u64::from(u32::MAX)))
                .flatten()
                .map(|callouts| callouts as u32),
        }
    }
}

/// What passes between host and guest in one call is less than two mebibytes.
const MOST_HTTP: u64 = 1024 * 1024;

impl Http {
    fn read(section: &Section<'_>) -> Self {
        let clusters = section.texts("clusters");
        if clusters.is_empty() && section.has("clusters") {
            section.error(section.line_of("clusters"), "grants.http: clusters is empty; leave http out to grant none");
        }
        Self {
            line: section.line,
            clusters,
            max_request: section.size("max_request", 0, MOST_HTTP),
            max_response: section.size("max_response", 0, MOST_HTTP),
            max_in_flight: section.number("max_in_flight", 1, 1_000_000).unwrap_or(1),
        }
    }
}

impl PluginSource {
    fn is_shipped(section: &Section<'_>) -> bool {
        section.text("source").is_some_and(|text| text.starts_with(Shipped::SCHEME))
    }

    /// `shipped` is what the plugin says of whatever of it comes from registries.
    fn read(section: &Section<'_>, shipped: Option<&Shipped>) -> Self {
        let text = section.text("source").unwrap_or_default();
        match (shipped, text.strip_prefix("builtin:")) {
            (Some(shipped), _) if text.starts_with(Shipped::SCHEME) => {
                Self::Registry(Box::new(Shipped { reference: text, ..shipped.clone() }))
            }
            (_, Some(name)) => Self::Builtin(name.to_owned()),
            (_, None) => Self::File(section.path("source").unwrap_or_default()),
        }
    }
}

impl OtherVersion {
    fn read(section: &Section<'_>, shipped: Option<&Shipped>) -> Self {
        Self {
            source_line: section.line_of("source"),
            source: PluginSource::read(section, shipped),
            settings: section.has("settings").then(|| section.free("settings")),
            settings_line: section.line_of(if section.has("settings") { "settings" } else { "source" }),
        }
    }
}

/// A share of a whole.
fn part(section: &Section<'_>, table: &str, key: &str) -> f64 {
    let share = section.share(key);
    if share > 1.0 {
        section.error(section.line_of(key), format!("{table}: {key} is more than \"100%\""));
    }
    share.min(1.0)
}

impl Rollout {
    fn read(section: &Section<'_>, shipped: Option<&Shipped>, has_kv: bool) -> Self {
        if section.has("kv") && !has_kv {
            section.error(section.line_of("kv"), "rollout: kv without grants.kv has no effect; grant it as well");
        }
        let guard = section.section("guard");
        let text = section.text("sticky_by").unwrap_or_default();
        let sticky_by = match text.split_once(':') {
            None if text == "client_ip" => StickyBy::ClientIp,
            None if text == "random" => StickyBy::Random,
            Some(("header", name)) if is_token(name) => StickyBy::Header(name.to_ascii_lowercase()),
            Some(("cookie", name)) if is_token(name) => StickyBy::Cookie(name.to_owned()),
            _ => {
                let wanted = "\"client_ip\", \"random\", \"header:NAME\" or \"cookie:NAME\"";
                section
                    .error(section.line_of("sticky_by"), format!("rollout: sticky_by = {text:?} is none of {wanted}"));
                StickyBy::ClientIp
            }
        };
        let latency = guard.share("latency");
        if latency < 1.0 {
            let message =
                "guard: latency is less than \"100%\": a version as fast as the current one would be rolled back";
            guard.error(guard.line_of("latency"), message);
        }
        Self {
            next: OtherVersion::read(section, shipped),
            shares_kv: section.one_of("kv") == "shared",
            share: part(section, "rollout", "share"),
            sticky_by,
            faults: guard.number("faults", 1, u64::from(u32::MAX)).unwrap_or(1),
            error_rate: part(&guard, "guard", "error_rate"),
            latency,
            window: guard.time("window"),
            min: guard.number("min", 1, u64::from(u32::MAX)).unwrap_or(1),
        }
    }
}

impl Shadow {
    fn read(section: &Section<'_>, shipped: Option<&Shipped>) -> Self {
        Self {
            version: OtherVersion::read(section, shipped),
            share: part(section, "shadow", "share"),
            rate: section.number("rate", 1, u64::from(u32::MAX)).unwrap_or(1),
        }
    }
}

/// The least that holds an entry.
const LEAST_KV: u64 = 1024;

impl Kv {
    fn read(grants: &Section<'_>) -> Option<Self> {
        if grants.size_or_off("kv").is_none() {
            for key in ["kv_scope", "kv_persist"] {
                if grants.has(key) {
                    grants
                        .error(grants.line_of(key), format!("grants: {key} without kv has no effect; set kv as well"));
                }
            }
            return None;
        }
        Some(Self {
            bytes: grants.size("kv", LEAST_KV, 1 << 40),
            of_tenant: grants.one_of("kv_scope") == "tenant",
            persist: grants.path("kv_persist"),
        })
    }
}
