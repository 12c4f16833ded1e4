//! Configuration to snapshot: the one place that sees both. Reads the files it names, compiles its plugins, builds
//! tables; all that is wrong is told at once, and nothing has changed when anything is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate_config::{Config, Errors, OnFailure, Plugin as PluginConfig, PluginIsolation, PluginSource};
use tidegate_proxy::Buffers;
use tidegate_proxy::snapshot::{Cluster, Snapshot};
use tidegate_wasm::{Binary, Grants, Isolation, Limits, Plugin, PluginSpec, Runtime, RuntimeOptions};

mod clusters;
mod listeners;
mod routes;
mod tenants;

pub(crate) use tenants::Tenant;

use crate::{plugins, telemetry};

/// What a configuration became, and what the next one may take over.
pub(crate) struct Compiled {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) plugins: Vec<(String, Arc<Plugin>)>,
    clusters: HashMap<String, clusters::Kept>,
    pub(crate) tenants: Vec<tenants::Tenant>,
}

impl Compiled {
    fn plugin(&self, name: &str) -> Option<&Arc<Plugin>> {
        self.plugins.iter().find(|(known, _)| known == name).map(|(_, plugin)| plugin)
    }
}

/// Lives as long as the process: the plugin engine, the generation count.
pub(crate) struct Compiler {
    runtime: Arc<Runtime>,
    generation: AtomicU64,
    buffers: Arc<Buffers>,
}

/// What the parts of the compile step share.
struct Scope<'a> {
    config: &'a Config,
    previous: Option<&'a Compiled>,
    errors: Errors,
    plugins: Vec<(String, Arc<Plugin>)>,
    tenants: Vec<tenants::Tenant>,
    generation: u64,
}

impl Scope<'_> {
    fn error(&mut self, line: usize, message: impl Into<String>) {
        self.config.error_at(&mut self.errors, line, message);
    }

    fn tenant(&self, name: &str) -> Option<&tenants::Tenant> {
        self.tenants.iter().find(|tenant| *tenant.proxy.name == *name)
    }

    /// A file the configuration names; noted where it cannot be read.
    fn read(&mut self, line: usize, path: &Path) -> Option<Vec<u8>> {
        match std::fs::read(path) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.error(line, format!("cannot read {}: {error}", path.display()));
                None
            }
        }
    }

    /// The answer a plugin gives to a question; noted where it gives none. A plugin that did not load was noted.
    fn asked<T>(
        &mut self,
        name: Option<&str>,
        line: usize,
        question: &str,
        answer: impl Fn(&Plugin) -> Option<T>,
    ) -> Option<T> {
        let name = name?;
        let (_, plugin) = self.plugins.iter().find(|(known, _)| known == name)?;
        let found = answer(plugin);
        if found.is_none() {
            self.error(line, format!("plugin {name:?} does not answer {question:?}"));
        }
        found
    }
}

impl Compiler {
    /// Sets the plugin engine up. Its cache and its bound on instances are of the first configuration, and so is what
    /// bodies may hold in memory and on disk.
    pub(crate) fn new(config: &Config) -> Result<Self, Errors> {
        let options = RuntimeOptions {
            cache: config.gateway.plugin_cache.clone(),
            max_instances: config.gateway.max_plugin_instances,
        };
        let runtime = Runtime::new(options).map_err(|error| {
            let mut errors = Errors::default();
            config.error_at(&mut errors, 1, error.to_string());
            errors
        })?;
        let gateway = &config.gateway;
        let buffers = Buffers::new(gateway.buffer_memory, gateway.spool_limit, gateway.spool_directory.clone());
        Ok(Self { runtime, generation: AtomicU64::new(0), buffers })
    }

    /// Compiles `config`. What is unchanged since `previous` is taken over: plugins with their instances, endpoints with
    /// their load and health, clusters with their connections.
    pub(crate) fn compile(&self, config: &Config, previous: Option<&Compiled>) -> Result<Compiled, Errors> {
        self.compile_with(config, previous, false)
    }

    /// Begins to read and write what plugins keep on disk: once a configuration is to serve, not when it is checked.
    pub(crate) fn begin_kv(&self) -> Result<(), tidegate_wasm::KvError> {
        self.runtime.begin_kv()
    }

    /// Writes what is left of it.
    pub(crate) fn finish_kv(&self) {
        self.runtime.finish_kv();
    }

    /// The same configuration again, with its files of certificates and keys as they are now. Plugins stay as they are.
    pub(crate) fn compile_tls(&self, config: &Config, previous: &Compiled) -> Result<Compiled, Errors> {
        self.compile_with(config, Some(previous), true)
    }

    fn compile_with(
        &self,
        config: &Config,
        previous: Option<&Compiled>,
        same_plugins: bool,
    ) -> Result<Compiled, Errors> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let mut scope = Scope {
            config,
            previous,
            errors: Errors::default(),
            plugins: Vec::new(),
            tenants: tenants::compile(config, previous),
            generation,
        };
        if let Err(error) = telemetry::filter(&config.gateway.log) {
            scope.error(
                config.gateway.log_line,
                format!("gateway: log = {:?} is no filter: {error}", config.gateway.log),
            );
        }
        match previous.filter(|_| same_plugins) {
            Some(previous) => scope.plugins.clone_from(&previous.plugins),
            None => self.load_plugins(&mut scope),
        }
        let listeners = listeners::compile(&mut scope);
        let clusters = clusters::compile(&mut scope);
        let routes = routes::compile(&mut scope, &clusters);
        let (Some(listeners), Some((table, routes))) = (listeners, routes) else {
            return Err(scope.errors);
        };
        if !scope.errors.is_empty() {
            return Err(scope.errors);
        }
        let in_order: Vec<Arc<Cluster>> = config
            .clusters
            .iter()
            .filter_map(|cluster| clusters.get(&cluster.name))
            .map(|kept| kept.cluster.clone())
            .collect();
        let cluster_by_name =
            in_order.iter().enumerate().map(|(index, cluster)| (cluster.name.clone(), index)).collect();
        let snapshot = Snapshot {
            generation,
            listeners,
            clusters: in_order,
            cluster_by_name,
            table,
            routes,
            tenants: scope.tenants.iter().map(|tenant| tenant.proxy.clone()).collect(),
            via: config.gateway.via.as_str().into(),
            buffers: self.buffers.clone(),
        };
        Ok(Compiled { snapshot: Arc::new(snapshot), plugins: scope.plugins, clusters, tenants: scope.tenants })
    }

    fn load_plugins(&self, scope: &mut Scope<'_>) {
        // Each is read and hashed once, however many plugins are made of it.
        let mut binaries: HashMap<&PluginSource, Option<Binary>> = HashMap::new();
        let config = scope.config;
        for plugin in &config.plugins {
            let binary = match binaries.entry(&plugin.source) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(read_plugin(scope, plugin)),
            };
            let Some(bytes) = binary.clone() else { continue };
            let spec = PluginSpec {
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
            };
            let previous = scope.previous.and_then(|previous| previous.plugin(&plugin.name));
            match self.runtime.load(&spec, previous) {
                Ok(loaded) => scope.plugins.push((plugin.name.clone(), loaded)),
                Err(error) => {
                    let settings = matches!(error, tidegate_wasm::LoadError::Settings(_));
                    let line = if settings { plugin.settings_line } else { plugin.source_line };
                    scope.error(line, format!("plugin {:?}: {error}", plugin.name));
                }
            }
        }
    }
}

/// The component that a plugin is made of; what is wrong with it is noted.
fn read_plugin(scope: &mut Scope<'_>, plugin: &PluginConfig) -> Option<Binary> {
    match &plugin.source {
        PluginSource::File(path) => scope.read(plugin.source_line, path).map(Binary::from),
        PluginSource::Builtin(name) => {
            let found = plugins::builtin(name).map(Binary::from);
            if found.is_none() {
                let known = plugins::BUILTIN.map(|(name, _)| name).join(", ");
                scope.error(plugin.source_line, format!("no plugin {name:?} is built in; there are {known}"));
            }
            found
        }
    }
}

/// Files by path and content, to tell whether something made of them is still the same.
type Files = Vec<(PathBuf, Vec<u8>)>;
