//! `[registry]`, and what a `[[plugin]]` says of its way from one.

use std::path::PathBuf;
use std::time::Duration;

use crate::reader::Section;

#[derive(Clone, Debug)]
pub struct Registry {
    pub line: usize,
    pub plain_http: Vec<String>,
    pub plain_http_line: usize,
    pub ca: Option<PathBuf>,
    pub ca_line: usize,
    pub credentials: RegistryCredentials,
    /// Of plugins that name no keys.
    pub signed_by: Vec<PathBuf>,
    pub revoked: Option<PathBuf>,
    pub revoked_line: usize,
    pub timeout: Duration,
    /// Bytes.
    pub max_component: u64,
}

/// Where names and passwords are looked up.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RegistryCredentials {
    /// In the usual places.
    Auto,
    Off,
    File(PathBuf),
}

impl Registry {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let credentials = match section.text("credentials").as_deref() {
            Some("off") => RegistryCredentials::Off,
            Some("auto") | None => RegistryCredentials::Auto,
            Some(_) => section.path("credentials").map_or(RegistryCredentials::Off, RegistryCredentials::File),
        };
        Self {
            line: section.line,
            plain_http: section.texts("plain_http").into_iter().map(|(name, _)| name).collect(),
            plain_http_line: section.line_of("plain_http"),
            ca: section.path("ca"),
            ca_line: section.line_of("ca"),
            credentials,
            signed_by: section.paths("signed_by"),
            revoked: section.path("revoked"),
            revoked_line: section.line_of("revoked"),
            timeout: section.time("timeout"),
            max_component: section.size("max_component", 1, 1 << 30),
        }
    }
}

/// A plugin in a registry.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Shipped {
    /// As written: its form is checked by whoever reads references.
    pub reference: String,
    /// Empty: nobody has to.
    pub signed_by: Vec<PathBuf>,
    pub signed_by_line: usize,
    /// By each of them, not by any.
    pub signed_by_all: bool,
    pub signed_as: Option<String>,
    pub pull: Pull,
    /// `None`: never while it runs.
    pub refresh: Option<Duration>,
    pub on_fetch_failure: OnLoadFailure,
    pub on_compile_failure: OnLoadFailure,
    pub on_configure_failure: OnLoadFailure,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Pull {
    Always,
    IfAbsent,
}

/// What a version that cannot be used leads to.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum OnLoadFailure {
    /// The version that served last.
    LastGood,
    /// No start, no reload.
    Refuse,
}

/// The keys of `[[plugin]]` that are for plugins in registries only.
const KEYS: [&str; 8] = [
    "signed_by",
    "signatures",
    "signed_as",
    "pull",
    "refresh",
    "on_fetch_failure",
    "on_compile_failure",
    "on_configure_failure",
];

impl Shipped {
    pub(crate) const SCHEME: &'static str = "oci://";

    /// What a `[[plugin]]` says of all its versions whose source begins with the scheme; the reference is each one's own.
    pub(crate) fn read(section: &Section<'_>, registry: &Registry) -> Self {
        let on = |key: &str| match section.one_of(key).as_str() {
            "refuse" => OnLoadFailure::Refuse,
            _ => OnLoadFailure::LastGood,
        };
        let own = section.has("signed_by");
        Self {
            reference: String::new(),
            signed_by: if own { section.paths("signed_by") } else { registry.signed_by.clone() },
            signed_by_line: if own { section.line_of("signed_by") } else { registry.line },
            signed_by_all: section.one_of("signatures") == "all",
            signed_as: section.text("signed_as"),
            pull: if section.one_of("pull") == "if_absent" { Pull::IfAbsent } else { Pull::Always },
            refresh: section.time_or_off("refresh"),
            on_fetch_failure: on("on_fetch_failure"),
            on_compile_failure: on("on_compile_failure"),
            on_configure_failure: on("on_configure_failure"),
        }
    }

    /// Notes what says nothing of a plugin that comes from elsewhere.
    pub(crate) fn refuse_keys(section: &Section<'_>) {
        for key in KEYS.into_iter().filter(|key| section.has(key)) {
            section.error(section.line_of(key), format!("plugin: {key} is for a source {}", Self::SCHEME));
        }
    }
}
