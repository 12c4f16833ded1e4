//! `[[plugin]]`: a component that answers questions.

use std::path::PathBuf;
use std::time::Duration;

use crate::reader::Section;
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
    pub cpu: Option<CpuShare>,
    pub instances: Option<u64>,
    pub log_lines: u32,
    pub kv: Option<Kv>,
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
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let source = match section.text("source").as_deref().and_then(|text| text.strip_prefix("builtin:")) {
            Some(name) => PluginSource::Builtin(name.to_owned()),
            None => PluginSource::File(section.path("source").unwrap_or_default()),
        };
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
            cpu: CpuShare::read(&limits, "plugin"),
            instances: limits.has("instances").then(|| limits.number("instances", 1, 1_000_000)).flatten(),
            log_lines: limits.number("log_lines", 1, 1_000_000).unwrap_or(1) as u32,
            kv: Kv::read(&grants),
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
