//! Plugins: their bytes from files, the program itself or registries, then compiled and configured. Which version of one
//! from a registry serves, where the newest does not do, is decided here.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use tidegate_config::{
    OnFailure, OnLoadFailure, Plugin as PluginConfig, PluginIsolation, PluginSource, PluginVersion, Role,
};
use tidegate_registry::{Component, Error};
use tidegate_wasm::{Binary, Grants, Isolation, Limits, Plugin, PluginSpec, Runtime};

use super::rollouts::{self, Unfit};
use super::{Compiled, Fresh, Scope, Served, tenants};
use crate::plugins;
use crate::shipping::{Depot, Order, Shipping, Stage};

/// What came of orders, by the version's name.
type Arrivals<'a> = HashMap<&'a str, (&'a Order<'a>, Result<Component, Error>)>;

pub(super) fn load(scope: &mut Scope<'_>, runtime: &Arc<Runtime>, shipping: &Shipping) {
    let config = scope.config;
    let depot = Depot::open(scope);
    let versions = config.plugins.iter().flat_map(PluginConfig::versions);
    let orders: Vec<Order<'_>> = versions.filter_map(|version| Order::of(scope, version)).collect();
    let mut arrivals = Arrivals::new();
    if let Some(depot) = &depot {
        let results = shipping.fetch(depot, &orders);
        arrivals.extend(orders.iter().zip(results).map(|(order, result)| (order.name.as_str(), (order, result))));
    }
    let mut sources = Sources { runtime, shipping, depot: depot.as_ref(), arrivals, binaries: HashMap::new() };
    for plugin in &config.plugins {
        let current = plugin.versions().next().and_then(|version| sources.load(scope, version, None));
        scope.plugins.list.extend(current.map(|loaded| (plugin.name.clone(), loaded)));
    }
    rollouts::deploy(scope, |scope, version, current| sources.load(scope, version, Some(current)));
}

/// Where versions come from, of a start or a reload.
struct Sources<'a, 'o> {
    runtime: &'o Arc<Runtime>,
    shipping: &'o Shipping,
    depot: Option<&'o Depot>,
    arrivals: Arrivals<'o>,
    /// Each is read and hashed once, however many plugins are made of it.
    binaries: HashMap<&'a PluginSource, Option<Binary>>,
}

impl<'a> Sources<'a, '_> {
    /// What is wrong with the version is noted.
    fn load(
        &mut self,
        scope: &mut Scope<'_>,
        version: PluginVersion<'a>,
        current: Option<&Plugin>,
    ) -> Option<Arc<Plugin>> {
        let (runtime, shipping) = (self.runtime, self.shipping);
        let (line, why) = match version.source {
            PluginSource::File(_) | PluginSource::Builtin(_) => {
                let binary = self.read(scope, version)?;
                match rollouts::make(scope, runtime, version, binary, current) {
                    Ok(loaded) => return Some(loaded),
                    Err(unfit) => (unfit.line(version), format!("plugin {:?}: {}", version.name(), unfit.why)),
                }
            }
            PluginSource::Registry(_) => {
                let (depot, (order, result)) = (self.depot?, self.arrivals.remove(version.name().as_str())?);
                let shipment = Shipment { runtime, shipping, depot, order };
                match shipment.load(scope, current, result, false) {
                    Ok(loaded) => return Some(loaded),
                    Err((_, why)) if version.role != Role::Current => {
                        scope.plugins.notes.push(left_out(version.role, &why));
                        return None;
                    }
                    Err(wrong) => wrong,
                }
            }
        };
        scope.error(line, why);
        None
    }

    /// A component from this machine.
    fn read(&mut self, scope: &mut Scope<'_>, version: PluginVersion<'a>) -> Option<Binary> {
        let new = match self.binaries.entry(version.source) {
            Entry::Occupied(known) => return known.get().clone(),
            Entry::Vacant(new) => new,
        };
        let read = match version.source {
            PluginSource::File(path) => scope.read(version.source_line, path).map(Binary::from),
            PluginSource::Builtin(name) => {
                let found = plugins::builtin(name).map(Binary::from);
                if found.is_none() {
                    let known = plugins::BUILTIN.map(|(name, _)| name).join(", ");
                    scope.error(version.source_line, format!("no plugin {name:?} is built in; there are {known}"));
                }
                found
            }
            PluginSource::Registry(_) => None,
        };
        new.insert(read).clone()
    }
}

/// Another version never keeps its plugin from serving.
fn left_out(role: Role, why: &str) -> String {
    match role {
        Role::Current | Role::Next => format!("{why}; the current version answers alone"),
        Role::Shadow => format!("{why}; no shadow is asked"),
    }
}

/// The plugins that run, but for those versions that are looked up: of these the one that came, where one does, and the one
/// that runs where none does. One that is revoked goes in any case. No other is read again.
///
/// # Returns
/// Whether anything is to be another than it is.
pub(super) fn refresh(scope: &mut Scope<'_>, runtime: &Arc<Runtime>, shipping: &Shipping, names: &[String]) -> bool {
    let (config, Some(previous)) = (scope.config, scope.previous) else { return false };
    let Some(depot) = Depot::open(scope) else { return false };
    let mut orders = Vec::new();
    for version in config.plugins.iter().flat_map(PluginConfig::versions) {
        let name = version.name();
        if names.contains(&name)
            && let Some(order) = Order::of(scope, version)
        {
            orders.push((order, previous.plugins.served.get(&name)));
        }
    }
    let looked = shipping.look(&depot, &orders);
    let came = orders.iter().zip(looked);
    let came = came.filter_map(|((order, _), result)| Some((order.name.as_str(), (order, result?)))).collect();
    let mut again = Again { runtime, shipping, depot: &depot, previous, came };
    for plugin in &config.plugins {
        let current = plugin.versions().next().and_then(|version| again.load(scope, version, None));
        scope.plugins.list.extend(current.map(|loaded| (plugin.name.clone(), loaded)));
    }
    rollouts::deploy(scope, |scope, version, current| again.load(scope, version, Some(current)));
    let objects =
        |list: &[(String, Arc<Plugin>)]| list.iter().map(|(_, plugin)| Arc::as_ptr(plugin)).collect::<Vec<_>>();
    !scope.plugins.fresh.is_empty() || objects(&scope.plugins.list) != objects(&previous.plugins.list)
}

/// A look at tags, while the rest runs on.
struct Again<'a> {
    runtime: &'a Arc<Runtime>,
    shipping: &'a Shipping,
    depot: &'a Depot,
    previous: &'a Compiled,
    came: Arrivals<'a>,
}

impl Again<'_> {
    fn load(
        &mut self,
        scope: &mut Scope<'_>,
        version: PluginVersion<'_>,
        current: Option<&Plugin>,
    ) -> Option<Arc<Plugin>> {
        let (name, role) = (version.name(), version.role);
        let (runs, served) = (self.previous.plugins.get(&name), self.previous.plugins.served.get(&name));
        if let Some((order, result)) = self.came.remove(name.as_str()) {
            let Self { runtime, shipping, depot, .. } = *self;
            let shipment = Shipment { runtime, shipping, depot, order };
            let revoked = served.is_some_and(|served| served.revoked(&depot.revoked));
            match (shipment.load(scope, current, result, runs.is_some() && !revoked), runs) {
                (Ok(loaded), _) => return Some(loaded),
                (Err((_, why)), Some(runs)) if revoked => {
                    runs.withdraw();
                    let why = format!("{why}; what runs is revoked: it is asked no more");
                    if role != Role::Current {
                        scope.plugins.notes.push(left_out(role, &why));
                        return None;
                    }
                    scope.plugins.notes.push(why);
                }
                (Err((_, why)), Some(_)) => scope.plugins.notes.push(why),
                (Err((_, why)), None) => scope.plugins.notes.push(left_out(role, &why)),
            }
        }
        let runs = runs?.clone();
        // What came of its plugin may answer other questions.
        if let Some(Err(unfit)) = current.map(|current| rollouts::alike(&runs, current)) {
            scope.plugins.notes.push(left_out(role, &format!("plugin {name:?}: {}", unfit.why)));
            return None;
        }
        scope.plugins.served.extend(served.map(|served| (name, served.clone())));
        Some(runs)
    }
}

/// A version on its way from a registry.
struct Shipment<'a> {
    runtime: &'a Arc<Runtime>,
    shipping: &'a Shipping,
    depot: &'a Depot,
    order: &'a Order<'a>,
}

impl Shipment<'_> {
    /// Takes the version that came, or the last one that served and does. Where one runs, that is as good as any that served.
    /// `current` is what it is another version of.
    ///
    /// # Errors
    /// None does: where the configuration is to blame, and why.
    fn load(
        &self,
        scope: &mut Scope<'_>,
        current: Option<&Plugin>,
        fetched: Result<Component, Error>,
        one_runs: bool,
    ) -> Result<Arc<Plugin>, (usize, String)> {
        let Order { version, name, shipped, reference, .. } = self.order;
        let named = format!("plugin {name:?}: {reference}");
        let mut refused = None;
        let (stage, line, why) = match fetched {
            Err(error) => (Stage::Fetch, version.source_line, format!("{named}: {error}")),
            Ok(component) => {
                let manifest = component.version.manifest;
                refused = Some(manifest);
                match self.configure(scope, current, component) {
                    Ok(loaded) => {
                        self.shipping.taken(self.order);
                        return Ok(loaded);
                    }
                    Err(unfit) => (unfit.stage, unfit.line(*version), format!("{named}: {manifest}: {}", unfit.why)),
                }
            }
        };
        self.shipping.refused(self.order, stage, refused, &why);
        if one_runs {
            return Err((line, format!("{why}; the version that runs goes on")));
        }
        if stage.policy(shipped) == OnLoadFailure::Refuse {
            return Err((line, why));
        }
        let mut others = Vec::new();
        for kept in self.depot.store.served(&self.order.used_as()) {
            if Some(kept.manifest) == refused {
                continue;
            }
            let found = self.order.kept(self.depot, &kept).map_err(|error| error.to_string());
            match found.and_then(|component| self.configure(scope, current, component).map_err(|unfit| unfit.why)) {
                Ok(loaded) => {
                    scope.plugins.notes.push(format!("{why}; {} goes on, which served last", kept.manifest));
                    return Ok(loaded);
                }
                Err(error) => others.push(format!("nor does {} do, which served before: {error}", kept.manifest)),
            }
        }
        if others.is_empty() {
            others.push("no version has served yet".to_owned());
        }
        Err((line, format!("{why}; {}", others.join("; "))))
    }

    fn configure(
        &self,
        scope: &mut Scope<'_>,
        current: Option<&Plugin>,
        component: Component,
    ) -> Result<Arc<Plugin>, Unfit> {
        let Order { version, name, reference, .. } = self.order;
        let binary = Binary::from(&component.bytes[..]);
        let loaded = rollouts::make(scope, self.runtime, *version, binary, current)?;
        let served = Served { reference: reference.to_string(), version: component.version.clone() };
        scope.plugins.served.insert(name.clone(), served);
        scope.plugins.fresh.push(Fresh { used_as: self.order.used_as(), store: self.depot.store.clone(), component });
        Ok(loaded)
    }
}

pub(super) fn spec(scope: &Scope<'_>, version: PluginVersion<'_>, bytes: Binary) -> PluginSpec {
    let plugin = version.plugin;
    PluginSpec {
        name: version.name().into(),
        bytes,
        settings: version.settings.clone(),
        deny: plugin.on_failure == OnFailure::Deny,
        limits: Limits { time: plugin.time, memory: plugin.memory as usize },
        grants: Grants { headers: plugin.headers.clone(), wasi: plugin.wasi },
        isolation: match plugin.isolation {
            PluginIsolation::Worker => Isolation::Worker,
            PluginIsolation::Request => Isolation::Request,
        },
        memoise: plugin.memoise,
        share: tenants::share(scope, version),
    }
}
