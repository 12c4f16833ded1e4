//! Components that answer a cluster's requests: an engine once one is named, each loaded, or taken over where it is unchanged.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use tidegate_config::{Cluster as ClusterConfig, Component as ComponentConfig, Config};
use tidegate_edge::{Component, ComponentSpec, Edge, EdgeError, EdgeOptions, Limits, Stats};
use tidegate_proxy::Origin;
use tokio::io::DuplexStream;

use super::Scope;

/// The address of the one endpoint that such a cluster has.
pub(super) const NOWHERE: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));

/// A component as the proxy sees it.
pub(crate) struct Answering(Arc<Component>);

impl Answering {
    pub(crate) fn stats(&self) -> &Arc<Stats> {
        self.0.stats()
    }
}

impl Origin for Answering {
    fn serve(self: Arc<Self>, connection: DuplexStream) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(self.0.clone().serve(connection))
    }
}

/// The engine of all such components, from the first on: it reserves address space.
pub(crate) struct Components {
    options: EdgeOptions,
    edge: Mutex<Option<Arc<Edge>>>,
}

impl Components {
    pub(super) fn new(config: &Config) -> Self {
        let gateway = &config.gateway;
        let options =
            EdgeOptions { cache: gateway.plugin_cache.clone(), max_instances: gateway.max_component_instances };
        Self { options, edge: Mutex::new(None) }
    }

    fn edge(&self) -> Result<Arc<Edge>, EdgeError> {
        let mut edge = self.edge.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(edge) = &*edge {
            return Ok(edge.clone());
        }
        Ok(edge.insert(Edge::new(self.options.clone())?).clone())
    }

    /// What is wrong is noted.
    pub(super) fn load(
        &self,
        scope: &mut Scope<'_>,
        cluster: &ClusterConfig,
        config: &ComponentConfig,
    ) -> Option<Arc<Answering>> {
        let previous = scope.previous.and_then(|previous| previous.clusters.get(&cluster.name));
        let previous = previous.and_then(|kept| kept.component.clone());
        if scope.components_stay && previous.is_some() {
            return previous;
        }
        let bytes = scope.read(config.line, &config.file)?;
        let spec = ComponentSpec {
            name: cluster.name.as_str().into(),
            bytes: bytes.into(),
            environment: config.environment.clone(),
            limits: Limits {
                cpu_time: config.cpu_time,
                cpu: config.cpu.map(super::tenants::cpu),
                timeout: config.timeout,
                memory: usize::try_from(config.memory).unwrap_or(usize::MAX),
                instances: config.instances as usize,
                pending_timeout: cluster.pending_timeout,
                log_lines: config.log_lines,
            },
            tenant: cluster.tenant.as_deref().and_then(|name| scope.tenant(name)).map(|tenant| tenant.wasm.clone()),
        };
        let place = || format!("cluster {:?}: component {}", cluster.name, config.file.display());
        let edge = match self.edge() {
            Ok(edge) => edge,
            Err(error) => {
                scope.error(config.line, format!("{}: {error}", place()));
                return None;
            }
        };
        match edge.load(&spec, previous.as_ref().map(|previous| &previous.0)) {
            Ok(component) => match previous.filter(|previous| Arc::ptr_eq(&previous.0, &component)) {
                Some(same) => Some(same),
                None => Some(Arc::new(Answering(component))),
            },
            Err(error) => {
                scope.error(config.line, format!("{}: {error}", place()));
                None
            }
        }
    }
}
