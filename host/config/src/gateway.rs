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
    pub log_line: usize,
    /// `None`: off.
    pub plugin_cache: Option<PathBuf>,
    /// `None`: the user has no folder for state, and none is named.
    pub plugin_store: Option<PathBuf>,
    /// Bytes.
    pub plugin_store_limit: u64,
    pub max_plugin_instances: u32,
    pub max_component_instances: u32,
    /// `None`: only a reload reads them again.
    pub tls_files_check: Option<Duration>,
    /// Bytes.
    pub buffer_memory: u64,
    pub spool_directory: PathBuf,
    pub spool_limit: u64,
}

impl Gateway {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from).min(255);
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
            log_line: section.line_of("log"),
            plugin_cache,
            plugin_store: section.path("plugin_store").or_else(default_store),
            plugin_store_limit: section.size("plugin_store_limit", 0, u64::MAX),
            max_plugin_instances: section.number("max_plugin_instances", 1, 100_000).unwrap_or(1000) as u32,
            max_component_instances: section.number("max_component_instances", 1, 100_000).unwrap_or(1000) as u32,
            tls_files_check: section.time_or_off("tls_files_check"),
            buffer_memory: section.size("buffer_memory", 0, u64::MAX),
            spool_directory: section.path("spool_directory").unwrap_or_else(std::env::temp_dir),
            spool_limit: section.size("spool_limit", 0, u64::MAX),
        }
    }
}

impl Gateway {
    /// The keys that differ from those of the configuration the process began with and are read only then.
    pub fn needs_restart(&self, began: &Self) -> Vec<&'static str> {
        let differs = [
            ("workers", self.workers != began.workers),
            ("drain_timeout", self.drain_timeout != began.drain_timeout),
            ("admin", self.admin != began.admin),
            ("access_log", self.access_log != began.access_log),
            ("log", self.log != began.log),
            ("plugin_cache", self.plugin_cache != began.plugin_cache),
            ("max_plugin_instances", self.max_plugin_instances != began.max_plugin_instances),
            ("max_component_instances", self.max_component_instances != began.max_component_instances),
            ("buffer_memory", self.buffer_memory != began.buffer_memory),
            ("spool_directory", self.spool_directory != began.spool_directory),
            ("spool_limit", self.spool_limit != began.spool_limit),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

fn default_cache() -> Option<PathBuf> {
    user_folder("XDG_CACHE_HOME", ".cache").map(|base| base.join("tidegate"))
}

fn default_store() -> Option<PathBuf> {
    user_folder("XDG_STATE_HOME", ".local/state").map(|base| base.join("tidegate/plugins"))
}

/// The folder that a variable names, else this one below the user's own (XDG base directories).
fn user_folder(variable: &str, below: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    named.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(below)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::parse;

    #[test]
    fn what_needs_a_restart_is_named() {
        let rest = "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:0\"\n[[route]]\nrespond = { status = 204 }\n";
        let gateway = |text: &str| {
            let text = format!("[gateway]\nworkers = 1\n{text}\n{rest}");
            parse(&text, Path::new("x.toml")).expect("a configuration").gateway
        };
        let began = gateway("");
        assert!(gateway("via = \"edge\"").needs_restart(&began).is_empty());
        let changed = gateway("log = \"debug\"\ndrain_timeout = \"1s\"\naccess_log = \"stdout\"");
        assert_eq!(changed.needs_restart(&began), ["drain_timeout", "access_log", "log"]);
    }
}
