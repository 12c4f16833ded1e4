//! `[gateway]`: what concerns the process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::reader::Section;

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AccessLogTarget {
    Off,
    Stdout,
    File(PathBuf),
}

#[derive(Clone, Debug)]
pub struct Gateway {
    pub workers: usize,
    pub drain_timeout: Duration,
    /// `None`: off.
    pub admin: Option<SocketAddr>,
    pub via: String,
    pub access_log: AccessLogTarget,
    pub log: String,
    /// `None`: off.
    pub plugin_cache: Option<PathBuf>,
    pub max_plugin_instances: u32,
}

impl Gateway {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let workers = section.number("workers", 1, 255).map_or_else(cores, |workers| workers as usize);
        let admin = match section.text("admin").as_deref() {
            Some("off") => None,
            _ => section.parsed("admin", "an address and port, as in \"127.0.0.1:9901\", or \"off\""),
        };
        let access_log = match section.text("access_log").as_deref() {
            Some("off") | None => AccessLogTarget::Off,
            Some("stdout") => AccessLogTarget::Stdout,
            Some(_) => section.path("access_log").map_or(AccessLogTarget::Off, AccessLogTarget::File),
        };
        let plugin_cache = match section.text("plugin_cache").as_deref() {
            Some("off") => None,
            Some(_) => section.path("plugin_cache"),
            None => default_cache(),
        };
        let via = section.name("via");
        if !via.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
            section.error(
                section.line_of("via"),
                format!("gateway: via = {via:?} is not a token; use letters, digits, - . and _"),
            );
        }
        Self {
            workers,
            drain_timeout: section.time("drain_timeout"),
            admin,
            via,
            access_log,
            log: section.text("log").unwrap_or_default(),
            plugin_cache,
            max_plugin_instances: section.number("max_plugin_instances", 1, 100_000).unwrap_or(1000) as u32,
        }
    }
}

fn default_cache() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    base.map(|base| base.join("tidegate"))
}
