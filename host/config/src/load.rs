//! From a file to tables: read all of it, note all mistakes.

use std::path::Path;

use toml::de::DeTable;

use crate::check::check;
use crate::cluster::Cluster;
use crate::error::Errors;
use crate::file::Config;
use crate::gateway::Gateway;
use crate::listener::Listener;
use crate::plugin::Plugin;
use crate::reader::{Section, Source};
use crate::registry::Registry;
use crate::route::Route;
use crate::steer::Steer;
use crate::tenant::Tenant;

/// Reads and checks a file.
///
/// # Errors
/// All that is wrong with it, or that it cannot be read.
pub fn load(path: &Path) -> Result<Config, Errors> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, path),
        Err(error) => {
            let mut errors = Errors::default();
            errors.push(path, 1, format!("cannot read it: {error}"));
            Err(errors)
        }
    }
}

/// Checks a text as if it were in `file`; relative names start in its folder.
pub fn parse(text: &str, file: &Path) -> Result<Config, Errors> {
    let source = Source::new(text, file);
    let (table, mistakes) = DeTable::parse_recoverable(text);
    for mistake in mistakes {
        let at = mistake.span().map_or(0, |span| span.start);
        source.error(source.line(at), mistake.message().trim().replace('\n', ", "));
    }
    // After a syntax error the tables may be torn: what else seems wrong could be its fault.
    if !source.errors.borrow().is_empty() {
        return Err(finish(source));
    }
    let root = Section::root(&source, table.get_ref());
    let gateway = Gateway::read(&root.section("gateway"));
    let listeners = root.sections("listener").iter().map(Listener::read).collect();
    let clusters = root.sections("cluster").iter().map(Cluster::read).collect();
    let steers = root.sections("steer").iter().map(Steer::read).collect();
    let registry = Registry::read(&root.section("registry"));
    let plugins = root.sections("plugin").iter().map(|plugin| Plugin::read(plugin, &registry)).collect();
    let tenants = root.sections("tenant").iter().map(Tenant::read).collect();
    let routes =
        root.sections("route").iter().enumerate().map(|(index, route)| Route::read(route, index + 1)).collect();
    let mut config = Config {
        file: file.to_owned(),
        gateway,
        listeners,
        clusters,
        steers,
        plugins,
        registry,
        tenants,
        routes,
        warnings: Vec::new(),
    };
    check(&mut config, &source);
    if source.errors.borrow().is_empty() { Ok(config) } else { Err(finish(source)) }
}

fn finish(source: Source<'_>) -> Errors {
    let mut errors = source.errors.into_inner();
    errors.sort();
    errors
}
