//! A component that answers requests: compiled, linked and checked once, shared by all workers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use thiserror::Error;
use tidegate_wasm::{Account, Binary, CpuShare, Tenant, check_component, component};
use tokio::sync::Semaphore;
use wasmtime::component::Component as Compiled;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use crate::engine::Edge;
use crate::guest::Guest;
use crate::imports::offered;
use crate::stats::Stats;

/// What a component may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Of one request.
    pub cpu_time: Duration,
    /// Of all requests together; `None`: as much as there is.
    pub cpu: Option<CpuShare>,
    /// From the begin of a request until its instance is done; `None`: as long as somebody waits for it.
    pub timeout: Option<Duration>,
    /// Bytes of linear memory of one request.
    pub memory: usize,
    /// Requests at once, over all workers.
    pub instances: usize,
    /// How long a request waits for an instance.
    pub pending_timeout: Duration,
    /// Lines a second in the log, over all workers.
    pub log_lines: u32,
}

/// What a component is made of.
#[derive(Clone, Debug)]
pub struct ComponentSpec {
    /// The cluster's, in logs.
    pub name: Arc<str>,
    pub bytes: Binary,
    pub environment: Vec<(String, String)>,
    pub limits: Limits,
    /// Whose budget is charged.
    pub tenant: Option<Arc<Tenant>>,
}

impl ComponentSpec {
    /// Of all that a component depends on.
    fn identity(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        // Its budget by value: what is used of it changes all the time.
        let tenant = self.tenant.as_ref().map(|tenant| (tenant.name(), tenant.limits()));
        hasher.update(format!("{:?}", (&self.name, &self.bytes, &self.environment, self.limits, tenant)));
        hasher.finalize().into()
    }
}

/// Why a component cannot answer requests. Says what to do about it.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error(transparent)]
    NotAComponent(#[from] tidegate_wasm::LoadError),
    #[error("it cannot be compiled: {0}")]
    Compile(String),
    #[error(
        "it imports {0:?}, which is not offered here: a cluster's component has wasi:http, wasi:io, wasi:clocks, \
         wasi:random, wasi:cli and a wasi:filesystem without files, each in version 0.2"
    )]
    Import(String),
    #[error("it answers questions, not requests: it belongs into a [[plugin]]")]
    Plugin,
    #[error("it is of wasi:http 0.3, and 0.2 is served here; build it for the world wasi:http/proxy@0.2")]
    Newer,
    #[error("it does not export wasi:http/incoming-handler@0.2; build it for the world wasi:http/proxy@0.2")]
    NoHandler,
    #[error("its imports and exports do not fit wasi:http/proxy@0.2: {0}")]
    Link(String),
}

/// What guests on all threads share of their component.
pub(crate) struct Shared {
    pub(crate) name: Arc<str>,
    pub(crate) edge: Arc<Edge>,
    pub(crate) pre: ProxyPre<Guest>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) limits: Limits,
    pub(crate) free: Arc<Semaphore>,
    pub(crate) account: Arc<Account>,
    pub(crate) stats: Arc<Stats>,
}

/// A component, ready to answer.
pub struct Component {
    pub(crate) shared: Arc<Shared>,
    identity: [u8; 32],
}

impl Edge {
    /// Compiles, links and checks. None of the component's code runs.
    ///
    /// Where `previous` is the same in every respect it is taken over; counts go on in any case.
    pub fn load(
        self: &Arc<Self>,
        spec: &ComponentSpec,
        previous: Option<&Arc<Component>>,
    ) -> Result<Arc<Component>, LoadError> {
        let identity = spec.identity();
        if let Some(same) = previous.filter(|previous| previous.identity == identity) {
            return Ok(same.clone());
        }
        let pre = self.prepare(&spec.bytes)?;
        let shared = Shared {
            name: spec.name.clone(),
            edge: self.clone(),
            pre,
            environment: spec.environment.clone(),
            limits: spec.limits,
            free: Arc::new(Semaphore::new(spec.limits.instances)),
            account: Arc::new(Account::new(spec.limits.cpu, spec.tenant.clone())),
            stats: previous.map(|previous| previous.shared.stats.clone()).unwrap_or_default(),
        };
        Ok(Arc::new(Component { shared: Arc::new(shared), identity }))
    }

    fn prepare(&self, bytes: &Binary) -> Result<ProxyPre<Guest>, LoadError> {
        check_component(bytes.as_bytes())?;
        let cache: Option<&Path> = self.cache.as_deref();
        let compiled =
            component(&self.engine, bytes, cache).map_err(|error| LoadError::Compile(format!("{error:#}")))?;
        self.check(&compiled)?;
        let link = |error: wasmtime::Error| LoadError::Link(format!("{error:#}"));
        ProxyPre::new(self.linker.instantiate_pre(&compiled).map_err(link)?).map_err(link)
    }

    /// Names what is missing or too much, where wasmtime would tell of types.
    fn check(&self, compiled: &Compiled) -> Result<(), LoadError> {
        let kind = compiled.component_type();
        let exports = |prefix: &str| kind.exports(&self.engine).any(|(name, _)| name.starts_with(prefix));
        if !exports("wasi:http/incoming-handler@0.2.") {
            return Err(if exports("wasi:http/handler@0.3.") {
                LoadError::Newer
            } else if exports("tidegate:policy/") {
                LoadError::Plugin
            } else {
                LoadError::NoHandler
            });
        }
        match kind.imports(&self.engine).find(|(name, _)| !offered(name)) {
            Some((import, _)) => Err(LoadError::Import(import.to_owned())),
            None => Ok(()),
        }
    }
}

impl Component {
    /// Outlives the component for whoever keeps it.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.shared.stats
    }
}
