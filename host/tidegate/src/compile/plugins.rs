//! Plugins: their bytes from files, the program itself or registries, then compiled and configured. Which version of one
//! from a registry serves, where the newest does not do, is decided here.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use tidegate_config::{OnFailure, OnLoadFailure, Plugin as PluginConfig, PluginIsolation, PluginSource};
use tidegate_registry::{Component, Error};
use tidegate_wasm::{Binary, Grants, Isolation, Limits, LoadError, Plugin, PluginSpec, Runtime};

use super::{Fresh, Scope, Served, rollouts, tenants};
use crate::plugins;
use crate::shipping::{Depot, Order, Shipping, Stage};

pub(super) fn load(scope: &mut Scope<'_>, runtime: &Arc<Runtime>, shipping: &Shipping) {
    let config = scope.config;
    let depot = Depot::open(scope);
    let orders: Vec<Order<'_>> = config.plugins.iter().filter_map(|plugin| Order::of(scope, plugin)).collect();
    let mut fetched: HashMap<&str, (&Order<'_>, Result<Component, Error>)> = HashMap::new();
    if let Some(depot) = &depot {
        let results = shipping.fetch(depot, &orders);
        fetched.extend(orders.iter().zip(results).map(|(order, result)| (order.plugin.name.as_str(), (order, result))));
    }
    let mut binaries = Binaries::new();
    for plugin in &config.plugins {
        match &plugin.source {
            PluginSource::File(_) | PluginSource::Builtin(_) => {
                if let Some(binary) = read(scope, &mut binaries, &plugin.source, plugin.source_line) {
                    load_binary(scope, runtime, plugin, binary);
                }
            }
            PluginSource::Registry(_) => {
                if let (Some(depot), Some((order, result))) = (&depot, fetched.remove(plugin.name.as_str())) {
                    let shipment = Shipment { runtime, shipping, depot, order };
                    if let Err((line, why)) = shipment.load(scope, result, None) {
                        scope.error(line, why);
                    }
                }
            }
        }
    }
    rollouts::deploy(scope, runtime, &mut binaries);
}

/// The plugins that run, but for those that are looked up: of these the version that came, where one does, and the one
/// that runs where none does. One that is revoked goes in any case.
pub(super) fn refresh(scope: &mut Scope<'_>, runtime: &Arc<Runtime>, shipping: &Shipping, names: &[String]) {
    let (config, Some(previous)) = (scope.config, scope.previous) else { return };
    let Some(depot) = Depot::open(scope) else { return };
    let mut orders = Vec::new();
    for plugin in config.plugins.iter().filter(|plugin| names.contains(&plugin.name)) {
        if let (Some(order), Some(served)) = (Order::of(scope, plugin), previous.plugins.served.get(&plugin.name)) {
            orders.push((order, served));
        }
    }
    let looked = shipping.look(&depot, &orders);
    let mut looked: HashMap<&str, _> = orders
        .iter()
        .zip(looked)
        .filter_map(|((order, _), result)| Some((order.plugin.name.as_str(), (order, result?))))
        .collect();
    // Other versions follow those that they are versions of.
    for (name, runs) in previous.plugins.list.iter().filter(|(name, _)| !rollouts::is_other(name)) {
        let served = previous.plugins.served.get(name);
        if let Some((order, result)) = looked.remove(name.as_str()) {
            let shipment = Shipment { runtime, shipping, depot: &depot, order };
            let revoked = served.is_some_and(|served| served.revoked(&depot.revoked));
            match shipment.load(scope, result, Some(runs).filter(|_| !revoked)) {
                Ok(()) => continue,
                Err((_, why)) if revoked => {
                    runs.withdraw();
                    scope.plugins.notes.push(format!("{why}; what runs is revoked: it is asked no more"));
                }
                Err((_, why)) => scope.plugins.notes.push(why),
            }
        }
        scope.plugins.list.push((name.clone(), runs.clone()));
        scope.plugins.served.extend(served.map(|served| (name.clone(), served.clone())));
    }
    if !scope.plugins.fresh.is_empty() {
        rollouts::deploy(scope, runtime, &mut Binaries::new());
    }
}

/// Each is read and hashed once, however many plugins are made of it.
pub(super) type Binaries<'a> = HashMap<&'a PluginSource, Option<Binary>>;

/// A component from this machine; what is wrong with it is noted.
pub(super) fn read<'a>(
    scope: &mut Scope<'a>,
    binaries: &mut Binaries<'a>,
    source: &'a PluginSource,
    line: usize,
) -> Option<Binary> {
    let new = match binaries.entry(source) {
        Entry::Occupied(known) => return known.get().clone(),
        Entry::Vacant(new) => new,
    };
    let read = match source {
        PluginSource::File(path) => scope.read(line, path).map(Binary::from),
        PluginSource::Builtin(name) => {
            let found = plugins::builtin(name).map(Binary::from);
            if found.is_none() {
                let known = plugins::BUILTIN.map(|(name, _)| name).join(", ");
                scope.error(line, format!("no plugin {name:?} is built in; there are {known}"));
            }
            found
        }
        PluginSource::Registry(_) => None,
    };
    new.insert(read).clone()
}

pub(super) fn explain(name: &str, error: &LoadError) -> String {
    format!("plugin {name:?}: {error}")
}

fn load_binary(scope: &mut Scope<'_>, runtime: &Arc<Runtime>, plugin: &PluginConfig, bytes: Binary) {
    let previous = scope.previous.and_then(|previous| previous.plugins.get(&plugin.name));
    match runtime.load(&spec(scope, plugin, bytes), previous) {
        Ok(loaded) => scope.plugins.list.push((plugin.name.clone(), loaded)),
        Err(error) => {
            let settings = matches!(error, LoadError::Settings(_));
            let line = if settings { plugin.settings_line } else { plugin.source_line };
            scope.error(line, explain(&plugin.name, &error));
        }
    }
}

/// A plugin on its way from a registry.
struct Shipment<'a> {
    runtime: &'a Arc<Runtime>,
    shipping: &'a Shipping,
    depot: &'a Depot,
    order: &'a Order<'a>,
}

impl Shipment<'_> {
    /// Takes the version that came, or the last one that served and does. `runs` is as good as any that served.
    ///
    /// # Errors
    /// None does: where the configuration is to blame, and why.
    fn load(
        &self,
        scope: &mut Scope<'_>,
        fetched: Result<Component, Error>,
        runs: Option<&Arc<Plugin>>,
    ) -> Result<(), (usize, String)> {
        let Order { plugin, shipped, reference, .. } = self.order;
        let named = format!("plugin {:?}: {reference}", plugin.name);
        let mut refused = None;
        let (stage, line, why) = match fetched {
            Err(error) => (Stage::Fetch, plugin.source_line, format!("{named}: {error}")),
            Ok(component) => {
                let manifest = component.version.manifest;
                refused = Some(manifest);
                match self.configure(scope, component) {
                    Ok(()) => return Ok(()),
                    Err(error) if error.of_settings() => {
                        (Stage::Configure, plugin.settings_line, format!("{named}: {manifest}: {error}"))
                    }
                    Err(error) => (Stage::Compile, plugin.source_line, format!("{named}: {manifest}: {error}")),
                }
            }
        };
        self.shipping.refused(&plugin.name, stage, refused);
        if runs.is_some() {
            return Err((line, format!("{why}; the version that runs goes on")));
        }
        if stage.policy(shipped) == OnLoadFailure::Refuse {
            return Err((line, why));
        }
        let mut others = Vec::new();
        for version in self.depot.store.served(&self.order.used_as()) {
            if Some(version.manifest) == refused {
                continue;
            }
            let found = self.order.kept(self.depot, &version).map_err(|error| error.to_string());
            match found.and_then(|component| self.configure(scope, component).map_err(|error| error.to_string())) {
                Ok(()) => {
                    scope.plugins.notes.push(format!("{why}; {} goes on, which served last", version.manifest));
                    return Ok(());
                }
                Err(error) => others.push(format!("nor does {} do, which served before: {error}", version.manifest)),
            }
        }
        if others.is_empty() {
            others.push("no version has served yet".to_owned());
        }
        Err((line, format!("{why}; {}", others.join("; "))))
    }

    fn configure(&self, scope: &mut Scope<'_>, component: Component) -> Result<(), LoadError> {
        let plugin = self.order.plugin;
        let previous = scope.previous.and_then(|previous| previous.plugins.get(&plugin.name));
        let loaded = self.runtime.load(&spec(scope, plugin, Binary::from(&component.bytes[..])), previous)?;
        scope.plugins.list.push((plugin.name.clone(), loaded));
        let served = Served { reference: self.order.reference.to_string(), version: component.version.clone() };
        scope.plugins.served.insert(plugin.name.clone(), served);
        scope.plugins.fresh.push(Fresh { used_as: self.order.used_as(), store: self.depot.store.clone(), component });
        Ok(())
    }
}

pub(super) fn spec(scope: &Scope<'_>, plugin: &PluginConfig, bytes: Binary) -> PluginSpec {
    PluginSpec {
        name: plugin.name.as_str().into(),
        bytes,
        settings: plugin.settings.clone(),
        deny: plugin.on_failure == OnFailure::Deny,
        limits: Limits { time: plugin.time, memory: plugin.memory as usize },
        grants: Grants { headers: plugin.headers.clone(), wasi: plugin.wasi },
        isolation: match plugin.isolation {
            PluginIsolation::Worker => Isolation::Worker,
            PluginIsolation::Request => Isolation::Request,
        },
        memoise: plugin.memoise,
        share: tenants::share(scope, plugin),
    }
}
