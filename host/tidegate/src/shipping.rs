//! Plugins from registries, for the compile step: what the configuration says of them becomes orders, orders become
//! components, and what came of each is counted.
//!
//! All of it happens on the control thread, or whichever thread compiles, never on a worker.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use serde_json::json;
use tidegate_config::{Config, OnLoadFailure, Plugin, PluginVersion, Pull, RegistryCredentials, Shipped};
use tidegate_registry::{
    Client, Component, Credentials, Digest, Error, Options, PlainHttp, PublicKey, Reference, Revoked, Store, Verifier,
    Version,
};

use crate::compile::{Scope, Served, system_roots};

/// What became of plugins from registries, for as long as the process lives.
#[derive(Default)]
pub(crate) struct Shipping {
    counts: Mutex<BTreeMap<String, Counts>>,
}

/// Of one version that a plugin has: its current, next or shadow one.
#[derive(Clone, Default)]
pub(crate) struct Counts {
    pub(crate) tenant: Option<String>,
    pub(crate) fetches: BTreeMap<&'static str, u64>,
    /// Versions that were not taken.
    pub(crate) refusals: BTreeMap<&'static str, u64>,
    /// The manifest that was refused last: it is not compiled at every look.
    refused: Option<Digest>,
    failure: Option<Failure>,
}

/// Why what the registry offers is not what serves.
#[derive(Clone)]
struct Failure {
    stage: Stage,
    why: String,
    at: SystemTime,
}

/// Where a version came to grief.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stage {
    Fetch,
    Compile,
    Configure,
}

impl Stage {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Compile => "compile",
            Self::Configure => "configure",
        }
    }

    pub(crate) fn policy(self, shipped: &Shipped) -> OnLoadFailure {
        match self {
            Self::Fetch => shipped.on_fetch_failure,
            Self::Compile => shipped.on_compile_failure,
            Self::Configure => shipped.on_configure_failure,
        }
    }
}

/// A fetch that was not a failure.
const UNCHANGED: &str = "unchanged";
const FETCHED: &str = "fetched";
/// The tag means what was refused before.
const REFUSED: &str = "refused";

impl Shipping {
    pub(crate) fn counts(&self) -> BTreeMap<String, Counts> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Counts>> {
        self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn count<T>(&self, order: &Order<'_>, change: impl FnOnce(&mut Counts) -> T) -> T {
        let mut counts = self.lock();
        let counts = counts.entry(order.name.clone()).or_default();
        counts.tenant.clone_from(&order.version.plugin.tenant);
        change(counts)
    }

    fn count_fetch(&self, order: &Order<'_>, outcome: &'static str) {
        self.count(order, |counts| *counts.fetches.entry(outcome).or_default() += 1);
    }

    pub(crate) fn refused(&self, order: &Order<'_>, stage: Stage, version: Option<Digest>, why: &str) {
        self.count(order, |counts| {
            *counts.refusals.entry(stage.name()).or_default() += 1;
            counts.refused = version.or(counts.refused);
            counts.failure = Some(Failure { stage, why: why.to_owned(), at: SystemTime::now() });
        });
    }

    /// What the registry offers is what serves.
    pub(crate) fn taken(&self, order: &Order<'_>) {
        self.count(order, |counts| counts.failure = None);
    }

    fn was_refused(&self, order: &Order<'_>, version: Digest) -> bool {
        self.lock().get(&order.name).is_some_and(|counts| counts.refused == Some(version))
    }

    /// For the status page: the versions of this configuration that registries offer and that were not taken, and why.
    pub(crate) fn failures(&self, config: &Config) -> Vec<serde_json::Value> {
        let counts = self.lock();
        let one = |version: PluginVersion<'_>| {
            let reference = &version.shipped()?.reference;
            let Failure { stage, why, at } = counts.get(&version.name())?.failure.as_ref()?;
            let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            Some(json!({
                "name": version.name(), "reference": reference, "stage": stage.name(), "why": why, "at": at,
            }))
        };
        config.plugins.iter().flat_map(Plugin::versions).filter_map(one).collect()
    }

    /// Gets every order, all at once, within the time that the configuration gives them together.
    pub(crate) fn fetch(&self, depot: &Depot, orders: &[Order<'_>]) -> Vec<Result<Component, Error>> {
        let fetched = together(depot.timeout, orders, async |order| match order.kept_will_do(depot) {
            Some(component) => Ok((component, None)),
            None => order.fetch(depot).await.map(|component| (component, Some(FETCHED))),
        });
        orders.iter().zip(fetched).map(|(order, fetched)| self.counted(order, fetched)).collect()
    }

    /// Looks what the tags of these orders mean now, and gets those that mean something else than what serves, if anything
    /// does.
    ///
    /// # Returns
    /// Nothing for those where nothing is to be done.
    pub(crate) fn look(
        &self,
        depot: &Depot,
        orders: &[(Order<'_>, Option<&Served>)],
    ) -> Vec<Option<Result<Component, Error>>> {
        let fetched = together(depot.timeout, orders, async |(order, serves)| {
            // What is revoked by now has to go, also where its tag stays.
            if !serves.is_some_and(|serves| serves.revoked(&depot.revoked)) {
                let now = depot.client.resolve(&order.reference).await?;
                if serves.is_some_and(|serves| serves.version.manifest == now) {
                    return Ok(Err(UNCHANGED));
                }
                if self.was_refused(order, now) {
                    return Ok(Err(REFUSED));
                }
            }
            order.fetch(depot).await.map(Ok)
        });
        let orders = orders.iter().map(|(order, _)| order);
        let mut looked = Vec::new();
        for (order, fetched) in orders.zip(fetched) {
            looked.push(match fetched {
                Ok(Err(outcome)) => {
                    self.count_fetch(order, outcome);
                    if outcome == UNCHANGED {
                        self.taken(order);
                    }
                    None
                }
                Ok(Ok(component)) => Some(self.counted(order, Ok((component, Some(FETCHED))))),
                Err(error) => Some(self.counted(order, Err(error))),
            });
        }
        looked
    }

    fn counted(
        &self,
        order: &Order<'_>,
        fetched: Result<(Component, Option<&'static str>), Error>,
    ) -> Result<Component, Error> {
        match &fetched {
            Ok((component, Some(outcome))) => {
                self.count_fetch(order, outcome);
                let (plugin, reference) = (&order.name, &order.reference);
                tracing::info!(plugin, %reference, manifest = %component.version.manifest, "plugin fetched");
            }
            Ok((_, None)) => {}
            Err(error) => self.count_fetch(order, error.kind().name()),
        }
        fetched.map(|(component, _)| component)
    }
}

/// Does `work` for each at the same time, and gives all of them until `timeout`.
fn together<'a, T, I>(
    timeout: Duration,
    items: &'a [I],
    work: impl AsyncFn(&'a I) -> Result<T, Error>,
) -> Vec<Result<T, Error>> {
    if items.is_empty() {
        return Vec::new();
    }
    let late = || Error::Timeout { what: "to fetch it".to_owned(), seconds: timeout.as_secs().max(1) };
    let one = async |item| tokio::time::timeout(timeout, work(item)).await.unwrap_or_else(|_| Err(late()));
    match block_on(futures_util::future::join_all(items.iter().map(one))) {
        Ok(all) => all,
        Err(error) => {
            let why = |_| Err(Error::Connect { host: "any registry".to_owned(), why: error.to_string() });
            items.iter().map(why).collect()
        }
    }
}

/// Runs `work` on this thread, to its end.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> std::io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    // A name that nobody resolves must not hold up the rest.
    runtime.shutdown_background();
    Ok(done)
}

/// What plugins of one configuration are fetched with.
pub(crate) struct Depot {
    client: Client,
    pub(crate) store: Store,
    pub(crate) revoked: Revoked,
    timeout: Duration,
}

impl Depot {
    /// Notes what is wrong in the configuration. `None`: something is, or no plugin comes from a registry.
    pub(crate) fn open(scope: &mut Scope<'_>) -> Option<Self> {
        let config = scope.config;
        let mut versions = config.plugins.iter().flat_map(Plugin::versions);
        let first = versions.find(|version| version.shipped().is_some())?;
        let registry = &config.registry;
        let plain_http = PlainHttp::new(registry.plain_http.clone())
            .map_err(|error| scope.error(registry.plain_http_line, format!("registry: plain_http: {error}")));
        let tls = tls(registry.ca.as_deref())
            .map_err(|error| scope.error(registry.ca_line, format!("registry: ca: {error:#}")));
        let revoked = registry.revoked.as_deref().map_or_else(|| Ok(Revoked::default()), Revoked::read);
        let revoked =
            revoked.map_err(|error| scope.error(registry.revoked_line, format!("registry: revoked: {error}")));
        // That it is set was checked.
        let folder = config.gateway.plugin_store.as_deref().unwrap_or(Path::new("plugins"));
        let store = Store::open(folder, config.gateway.plugin_store_limit)
            .map_err(|error| scope.error(first.source_line, error.to_string()));
        let credentials = match &registry.credentials {
            RegistryCredentials::Auto => Credentials::usual(),
            RegistryCredentials::Off => Credentials::none(),
            RegistryCredentials::File(file) => Credentials::file(file.clone()),
        };
        let (Ok(plain_http), Ok(tls), Ok(revoked), Ok(store)) = (plain_http, tls, revoked, store) else { return None };
        let options =
            Options { tls, plain_http, credentials, step: Options::STEP, max_component: registry.max_component };
        Some(Self { client: Client::new(options), store, revoked, timeout: registry.timeout })
    }
}

/// A version that is to come from a registry.
pub(crate) struct Order<'a> {
    pub(crate) version: PluginVersion<'a>,
    /// The version's.
    pub(crate) name: String,
    pub(crate) shipped: &'a Shipped,
    pub(crate) reference: Reference,
    verifier: Option<Verifier>,
}

/// What is looked up again while the gateway runs, and how often: tags, and what could not be had so far. `serves` tells
/// of a version's name whether one is there.
pub(crate) fn refreshed(config: &Config, serves: impl Fn(&str) -> bool) -> impl Iterator<Item = (String, Duration)> {
    config.plugins.iter().flat_map(Plugin::versions).filter_map(move |version| {
        let shipped = version.shipped()?;
        let name = version.name();
        // A digest means what it meant.
        let moves = shipped.reference.parse::<Reference>().is_ok_and(|reference| reference.digest().is_none());
        let every = shipped.refresh.filter(|_| moves || !serves(&name))?;
        Some((name, every))
    })
}

impl<'a> Order<'a> {
    /// Notes what is wrong. `None`: something is, or the version comes from elsewhere.
    pub(crate) fn of(scope: &mut Scope<'_>, version: PluginVersion<'a>) -> Option<Self> {
        let shipped = version.shipped()?;
        let name = version.name();
        let reference = shipped.reference.parse::<Reference>().map_err(|error| {
            scope.error(version.source_line, format!("plugin {name:?}: {error}"));
        });
        let mut keys = Vec::new();
        for file in &shipped.signed_by {
            let name = file.display().to_string();
            let text = scope.read(shipped.signed_by_line, file)?;
            match PublicKey::from_pem(&String::from_utf8_lossy(&text)) {
                Ok(key) => keys.push((name, key)),
                Err(error) => scope.error(shipped.signed_by_line, format!("the public key {name}: {error}")),
            }
        }
        let verifier = (!shipped.signed_by.is_empty()).then(|| Verifier {
            keys,
            all: shipped.signed_by_all,
            signed_as: shipped.signed_as.clone(),
        });
        Some(Self { version, name, shipped, reference: reference.ok()?, verifier })
    }

    /// What versions that served are known by: another plugin may have other settings for the same artifact, and what served
    /// beside a plugin is no version to fall back to for the plugin.
    pub(crate) fn used_as(&self) -> String {
        format!("{} {}", self.name, self.reference)
    }

    async fn fetch(&self, depot: &Depot) -> Result<Component, Error> {
        let Depot { client, store, revoked, .. } = depot;
        Component::fetch(client, Some(store), &self.reference, self.verifier.as_ref(), revoked).await
    }

    /// A version that served, where the registry need not be asked.
    fn kept_will_do(&self, depot: &Depot) -> Option<Component> {
        let wanted = |version: &Version| match self.reference.digest() {
            Some(digest) => version.manifest == digest,
            None => self.shipped.pull == Pull::IfAbsent,
        };
        let served = depot.store.served(&self.used_as());
        served.iter().filter(|version| wanted(version)).find_map(|version| self.kept(depot, version).ok())
    }

    /// From the store, with every check made again.
    pub(crate) fn kept(&self, depot: &Depot, version: &Version) -> Result<Component, Error> {
        Component::kept(&depot.store, &self.reference, version, self.verifier.as_ref(), &depot.revoked)
    }
}

/// TLS towards registries: HTTP/1.1, with the roots of a file or the system's.
pub(crate) fn tls(ca: Option<&Path>) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let roots = match ca {
        None => system_roots(),
        Some(file) => {
            let pem = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            Arc::new(tidegate_proxy::roots(&pem).with_context(|| file.display().to_string())?)
        }
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
