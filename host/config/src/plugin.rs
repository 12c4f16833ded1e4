//! `[[plugin]]`: a component that answers questions.

use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::is_token;
use crate::reader::Section;
use crate::registry::{Registry, Shipped};

#[derive(Clone, Debug)]
pub struct Plugin {
    pub line: usize,
    pub source_line: usize,
    pub settings_line: usize,
    pub name: String,
    pub source: PluginSource,
    pub settings: serde_json::Value,
    pub on_failure: OnFailure,
    pub isolation: PluginIsolation,
    pub memoise: bool,
    pub time: Duration,
    pub memory: u64,
    /// `None`: all.
    pub headers: Option<Vec<String>>,
    pub wasi: bool,
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
    pub(crate) fn read(section: &Section<'_>, registry: &Registry) -> Self {
        let text = section.text("source").unwrap_or_default();
        let source = if text.starts_with(Shipped::SCHEME) {
            PluginSource::Registry(Box::new(Shipped::read(section, text, registry)))
        } else {
            Shipped::refuse_keys(section);
            match text.strip_prefix("builtin:") {
                Some(name) => PluginSource::Builtin(name.to_owned()),
                None => PluginSource::File(section.path("source").unwrap_or_default()),
            }
        };
        let limits = section.section("limits");
        let grants = section.section("grants");
        let mut names = Vec::new();
        for (name, line) in grants.texts("headers") {
            if !is_token(&name) {
                section.error(line, format!("grants: {name:?} is not a field name"));
            }
            names.push(name.to_ascii_lowercase());
        }
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
            name: section.label("name"),
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
            headers: if names.iter().any(|name| name == "*") { None } else { Some(names) },
            wasi,
        }
    }
}
