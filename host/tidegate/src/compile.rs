//! Configuration to snapshot: the one place that sees both. Reads the files it names, compiles its plugins, builds
//! tables; all that is wrong is told at once, and nothing has changed when anything is.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate_config::{Config, Errors};
use tidegate_proxy::Buffers;
use tidegate_proxy::snapshot::{Cluster, Snapshot};
use tidegate_registry::{Component, Revoked, RevokedError, Store, Version};
use tidegate_wasm::{Deployment, Plugin, Rollout, Runtime, RuntimeOptions, Shadow};

mod clusters;
mod components;
mod listeners;
mod plugins;
mod rollouts;
mod routes;
mod steers;
mod tenants;

pub(crate) use steers::Steered;
pub(crate) use tenants::Tenant;

use crate::shipping::Shipping;
use crate::telemetry;
pub(crate) use clusters::system_roots;

/// Which plugins a configuration gets.
enum PluginsFrom {
    /// Those that it names.
    Sources,
    /// These, which are loaded.
    Before(Loaded),
}

/// What a configuration became, and what the next one may take over.
pub(crate) struct Compiled {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) plugins: Loaded,
    clusters: HashMap<String, clusters::Kept>,
    pub(crate) steers: Arc<[Steered]>,
    pub(crate) tenants: Vec<tenants::Tenant>,
}

/// The plugins of a configuration.
#[derive(Default)]
pub(crate) struct Loaded {
    /// All versions, by name.
    pub(crate) list: Vec<(String, Arc<Plugin>)>,
    /// What routes and clusters name.
    pub(crate) deployments: Vec<(String, Deployment)>,
    /// Of those versions that are from registries, which they are, by name.
    pub(crate) served: HashMap<String, Served>,
    /// Versions that did not do, where another goes on.
    pub(crate) notes: Vec<String>,
    /// Versions to be remembered once they serve.
    fresh: Vec<Fresh>,
}

impl Loaded {
    fn again(&self) -> Self {
        Self {
            list: self.list.clone(),
            deployments: self.deployments.clone(),
            served: self.served.clone(),
            ..Self::default()
        }
    }

    /// For the status page: what each says of itself, and which version it is.
    pub(crate) fn status(&self) -> Vec<serde_json::Value> {
        let one = |(name, plugin): &(String, Arc<Plugin>)| {
            let mut status = plugin.status();
            if let Some(served) = self.served.get(name) {
                status["reference"] = served.reference.as_str().into();
                status["manifest"] = served.version.manifest.to_string().into();
            }
            status
        };
        self.list.iter().map(one).collect()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Plugin>> {
        self.list.iter().find(|(known, _)| known == name).map(|(_, plugin)| plugin)
    }

    fn deployment(&self, name: &str) -> Option<&Deployment> {
        self.deployments.iter().find(|(known, _)| known == name).map(|(_, deployment)| deployment)
    }
}

/// A plugin's version.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) reference: String,
    pub(crate) version: Version,
}

impl Served {
    pub(crate) fn revoked(&self, revoked: &Revoked) -> bool {
        revoked.contains(self.version.manifest) || revoked.contains(self.version.component)
    }
}

/// A version that is new to this configuration, with what the store needs of it.
pub(crate) struct Fresh {
    used_as: String,
    store: Store,
    component: Component,
}

impl Fresh {
    /// It serves: the next time this is where to fall back to.
    pub(crate) fn remember(&self) {
        let Self { used_as, store, component } = self;
        if let Err(error) = store.keep(used_as, &component.version, &component.bytes) {
            tracing::warn!(used_as, "a version that serves cannot be kept: {error}");
        }
    }
}

impl Compiled {
    pub(crate) fn take_fresh(&mut self) -> Vec<Fresh> {
        std::mem::take(&mut self.plugins.fresh)
    }

    /// Those of its clusters that answer here, by name.
    pub(crate) fn components(&self) -> impl Iterator<Item = (&str, &Arc<tidegate_edge::Stats>)> {
        let named = self.snapshot.clusters.iter().filter_map(|cluster| self.clusters.get_key_value(&*cluster.name));
        named.filter_map(|(name, kept)| Some((name.as_str(), kept.component.as_ref()?.stats())))
    }

    pub(crate) fn rollouts(&self) -> impl Iterator<Item = &Arc<Rollout>> {
        self.plugins
            .deployments
            .iter()
            .filter_map(|(_, deployment)| deployment.rollout.as_ref())
            .map(|(_, rollout)| rollout)
    }

    pub(crate) fn shadows(&self) -> impl Iterator<Item = &Arc<Shadow>> {
        self.plugins.deployments.iter().filter_map(|(_, deployment)| deployment.shadow.as_ref())
    }
}

/// Lives as long as the process: the plugin engine, the generation count.
pub(crate) struct Compiler {
    runtime: Arc<Runtime>,
    generation: AtomicU64,
    buffers: Arc<Buffers>,
    components: components::Components,
    pub(crate) shipping: Shipping,
}

/// What the parts of the compile step share.
pub(crate) struct Scope<'a> {
    pub(crate) config: &'a Config,
    previous: Option<&'a Compiled>,
    errors: Errors,
    plugins: Loaded,
    tenants: Vec<tenants::Tenant>,
    generation: u64,
    /// The file may be half edited, and only what was asked for is looked at again.
    components_stay: bool,
}

impl<'a> Scope<'a> {
    fn new(config: &'a Config, previous: Option<&'a Compiled>, generation: u64) -> Self {
        Self {
            config,
            previous,
            errors: Errors::default(),
            plugins: Loaded::default(),
            tenants: tenants::compile(config, previous),
            generation,
            components_stay: false,
        }
    }

    pub(crate) fn error(&mut self, line: usize, message: impl Into<String>) {
        self.config.error_at(&mut self.errors, line, message);
    }

    fn tenant(&self, name: &str) -> Option<&tenants::Tenant> {
        self.tenants.iter().find(|tenant| *tenant.proxy.name == *name)
    }

    /// A file the configuration names; noted where it cannot be read.
    pub(crate) fn read(&mut self, line: usize, path: &Path) -> Option<Vec<u8>> {
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
        answer: impl Fn(&Deployment) -> Option<T>,
    ) -> Option<T> {
        let name = name?;
        let deployment = self.plugins.deployment(name)?;
        let found = answer(deployment);
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
        let components = components::Components::new(config);
        Ok(Self { runtime, generation: AtomicU64::new(0), buffers, components, shipping: Shipping::default() })
    }

    /// Compiles `config`. What is unchanged since `previous` is taken over: plugins with their instances, endpoints with
    /// their load and health, clusters with their connections.
    pub(crate) fn compile(&self, config: &Config, previous: Option<&Compiled>) -> Result<Compiled, Errors> {
        self.compile_with(config, previous, PluginsFrom::Sources)
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
        self.compile_with(config, Some(previous), PluginsFrom::Before(previous.plugins.again()))
    }

    /// The same configuration again, with these versions of plugins looked up anew, by name.
    ///
    /// # Returns
    /// `None` where all that serves goes on; what went wrong was logged.
    pub(crate) fn refresh(
        &self,
        config: &Config,
        previous: &Compiled,
        names: &[String],
    ) -> Option<Result<Compiled, Errors>> {
        let mut scope = Scope::new(config, Some(previous), 0);
        let changed = plugins::refresh(&mut scope, &self.runtime, &self.shipping, names);
        // A key or a list that cannot be read.
        if !scope.errors.is_empty() {
            return Some(Err(scope.errors));
        }
        if !changed {
            scope.plugins.notes.iter().for_each(|note| tracing::error!("{note}"));
            return None;
        }
        Some(self.compile_with(config, Some(previous), PluginsFrom::Before(scope.plugins)))
    }

    /// The versions that serve and are revoked by now.
    pub(crate) fn revoked(config: &Config, serves: &Compiled) -> Result<Vec<String>, RevokedError> {
        let Some(file) = &config.registry.revoked else { return Ok(Vec::new()) };
        let revoked = Revoked::read(file)?;
        let served = serves.plugins.served.iter().filter(|(_, served)| served.revoked(&revoked));
        Ok(served.map(|(name, _)| name.clone()).collect())
    }

    fn compile_with(
        &self,
        config: &Config,
        previous: Option<&Compiled>,
        plugins_from: PluginsFrom,
    ) -> Result<Compiled, Errors> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let mut scope = Scope::new(config, previous, generation);
        if let Err(error) = telemetry::filter(&config.gateway.log) {
            scope.error(
                config.gateway.log_line,
                format!("gateway: log = {:?} is no filter: {error}", config.gateway.log),
            );
        }
        match plugins_from {
            PluginsFrom::Sources => plugins::load(&mut scope, &self.runtime, &self.shipping),
            PluginsFrom::Before(loaded) => {
                scope.plugins = loaded;
                scope.components_stay = true;
            }
        }
        let clusters = clusters::compile(&mut scope, &self.components);
        let listeners = listeners::compile(&mut scope, &clusters);
        let routes = routes::compile(&mut scope, &clusters);
        let (Some(listeners), Some((table, routes))) = (listeners, routes) else {
            return Err(scope.errors);
        };
        let steers = steers::compile(config, &clusters);
        if !scope.errors.is_empty() {
            return Err(scope.errors);
        }
        let in_order: Vec<Arc<Cluster>> = config
            .clusters
            .iter()
            .filter_map(|cluster| clusters.get(&cluster.name))
            .map(|kept| kept.cluster.clone())
            .collect();
        // No router sends requests where the kernel sends packets.
        let steered = |cluster: &Cluster| config.steers.iter().any(|steer| *steer.cluster == *cluster.name);
        let named = in_order.iter().enumerate().filter(|(_, cluster)| !steered(cluster));
        let cluster_by_name = named.map(|(index, cluster)| (cluster.name.clone(), index)).collect();
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
        Ok(Compiled { snapshot: Arc::new(snapshot), plugins: scope.plugins, clusters, steers, tenants: scope.tenants })
    }
}

/// Files by path and content, to tell whether something made of them is still the same.
type Files = Vec<(PathBuf, Vec<u8>)>;
