//! Clusters: endpoints with their carried-over state, balancers, TLS.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_config::{
    BalanceBy, CheckKind as ConfigCheckKind, Cluster as ClusterConfig, ClusterProtocol, ClusterTls, EndpointSpec,
    HashKey, ProxyProtocol,
};
use tidegate_policy::native::{HashOn, LeastRequest, Maglev, PeakEwma, RetryBudget, RoundRobin};
use tidegate_policy::{
    Balancer, Breaker, EjectionRules, Endpoint, EndpointSet, EndpointState, HealthRules, SetHealth, Thresholds,
};
use tidegate_proxy::snapshot::{Cluster, PoolSettings, ProxyFields, SendProxyHeader, UpstreamProtocol};
use tidegate_proxy::{CertificatePair, CheckKind, ClientTls, ClientTlsSpec, HealthCheck, Origin, Owner};

use super::components::{self, Components};
use super::{Files, Scope, steers};

/// A cluster, and what its TLS was made of.
pub(super) struct Kept {
    pub(super) cluster: Arc<Cluster>,
    tls: Option<TlsSource>,
    pub(super) component: Option<Arc<components::Answering>>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct TlsSource {
    server_name: Option<String>,
    verify: bool,
    protocol: UpstreamProtocol,
    own_roots: bool,
    files: Files,
}

pub(super) fn compile(scope: &mut Scope<'_>, components: &Components) -> HashMap<String, Kept> {
    let config = scope.config;
    let mut clusters = HashMap::new();
    for cluster in &config.clusters {
        if let Some(kept) = compile_one(scope, cluster, components) {
            clusters.insert(cluster.name.clone(), kept);
        }
    }
    clusters
}

fn compile_one(scope: &mut Scope<'_>, config: &ClusterConfig, components: &Components) -> Option<Kept> {
    let protocol = match config.protocol {
        ClusterProtocol::Auto => UpstreamProtocol::Auto,
        ClusterProtocol::Http1 => UpstreamProtocol::Http1,
        ClusterProtocol::Http2 => UpstreamProtocol::Http2,
        ClusterProtocol::Http3 => UpstreamProtocol::Http3,
    };
    let (tls, source) = match &config.tls {
        None => (None, None),
        Some(tls) => {
            let (tls, source) = client_tls(scope, config, tls, protocol)?;
            (Some(tls), Some(source))
        }
    };
    let component = match &config.component {
        None => None,
        Some(component) => Some(components.load(scope, config, component)?),
    };
    let set = endpoints(scope, config);
    let on = match &config.balance.on {
        HashKey::ClientIp => HashOn::ClientIp,
        HashKey::Path => HashOn::Path,
        HashKey::Header(name) => HashOn::Header(name.parse().ok()?),
        HashKey::Cookie(name) => HashOn::Cookie(name.clone()),
    };
    // Only these two ever look at the table: others need not pay for one.
    let hashes = config.balance.by == BalanceBy::Maglev || config.balance.plugin.is_some();
    let maglev = Arc::new(Maglev::new(&set, if hashes { config.balance.table } else { 1 }, on));
    let balancer: Arc<dyn Balancer> = match config.balance.by {
        BalanceBy::RoundRobin => Arc::new(RoundRobin::new(&set)),
        BalanceBy::LeastRequest => Arc::new(LeastRequest::new(&set)),
        BalanceBy::PeakEwma => Arc::new(PeakEwma::new(&set)),
        BalanceBy::Maglev => maglev.clone(),
    };
    let plugin = scope.asked(config.balance.plugin.as_deref(), config.balance.line, "pick", |plugin| plugin.balancer());
    let previous = scope.previous.and_then(|previous| previous.clusters.get(&config.name));
    let cluster = Cluster {
        name: config.name.as_str().into(),
        owner: match &config.tenant {
            Some(tenant) => Owner::Tenant(tenant.as_str().into()),
            None if config.shared => Owner::Shared,
            None => Owner::Gateway,
        },
        set,
        pool: PoolSettings {
            protocol,
            connect_timeout: config.connect_timeout,
            idle_timeout: config.idle_timeout,
            max_connection_age: config.max_connection_age,
            max_requests_per_connection: config.max_requests_per_connection,
            max_connections: config.max_connections,
            max_streams_per_connection: config.max_streams_per_connection,
            max_pending: config.max_pending,
            pending_timeout: config.pending_timeout,
            proxy_protocol: send_proxy_header(&config.proxy_protocol),
        },
        tls,
        origin: component.clone().map(|component| component as Arc<dyn Origin>),
        balancer,
        plugin,
        maglev,
        budget: budget(scope, config),
        check: config.health.as_ref().map(|health| {
            let marks = steers::check_marks(scope.config, &config.name);
            Arc::new(health_check(health, marks))
        }),
        breaker: Breaker::new(
            config.breaker.max_requests,
            Some(config.breaker.max_retries),
            previous.map(|previous| &previous.cluster.breaker),
        ),
    };
    Some(Kept { cluster: Arc::new(cluster), tls: source, component })
}

fn send_proxy_header(config: &ProxyProtocol) -> Option<SendProxyHeader> {
    match config {
        ProxyProtocol::Off => None,
        ProxyProtocol::V1 => Some(SendProxyHeader::V1),
        ProxyProtocol::V2(fields) => {
            let has = |name: &str| fields.iter().any(|field| field == name);
            Some(SendProxyHeader::V2(ProxyFields {
                alpn: has("alpn"),
                authority: has("authority"),
                ssl: has("ssl"),
                unique_id: has("unique_id"),
                crc32c: has("crc32c"),
            }))
        }
    }
}

/// The previous configuration's, where it allows as much.
fn budget(scope: &Scope<'_>, config: &ClusterConfig) -> Arc<RetryBudget> {
    let previous = scope.previous.and_then(|previous| previous.clusters.get(&config.name));
    let same = previous.map(|kept| &kept.cluster.budget);
    match same.filter(|budget| budget.allows(config.retry_percent, config.retry_min)) {
        Some(budget) => budget.clone(),
        None => Arc::new(RetryBudget::new(config.retry_percent, config.retry_min)),
    }
}

/// An endpoint is the same one after a reload if its cluster and address are: its load, health and counts go on. So is one
/// that is listed twice.
fn endpoints(scope: &Scope<'_>, config: &ClusterConfig) -> Arc<EndpointSet> {
    let previous = scope.previous.and_then(|previous| previous.clusters.get(&config.name));
    let known = previous.into_iter().flat_map(|previous| &previous.cluster.set.endpoints);
    let mut states: HashMap<_, _> = known.map(|endpoint| (endpoint.address, endpoint.state.clone())).collect();
    let awaits = config.health.as_ref().is_some_and(|health| !health.initially_healthy);
    let fresh = || Arc::new(if awaits { EndpointState::awaited() } else { EndpointState::default() });
    let within = config.component.as_ref().map(|component| EndpointSpec {
        line: component.line,
        address: components::NOWHERE,
        weight: 1,
        zone: None,
        labels: Vec::new(),
    });
    let endpoints = config
        .endpoints
        .iter()
        .chain(&within)
        .map(|endpoint| Endpoint {
            address: endpoint.address,
            weight: endpoint.weight,
            zone: endpoint.zone.as_deref().map(Into::into),
            labels: endpoint.labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
            max_requests: config.max_requests,
            state: states.entry(endpoint.address).or_insert_with(fresh).clone(),
        })
        .collect();
    let shared = previous.map(|previous| previous.cluster.set.health.shared.clone()).unwrap_or_default();
    let health = SetHealth::new(health_rules(config), shared);
    Arc::new(EndpointSet { cluster: config.name.as_str().into(), generation: scope.generation, endpoints, health })
}

fn health_rules(config: &ClusterConfig) -> HealthRules {
    HealthRules {
        panic_threshold: config.panic_threshold,
        slow_start: config.slow_start.unwrap_or_default(),
        ejection: config.ejection.as_ref().map(|ejection| EjectionRules {
            consecutive_5xx: ejection.consecutive_5xx,
            consecutive_gateway: ejection.consecutive_gateway,
            consecutive_local: ejection.consecutive_local,
            interval: ejection.interval,
            base_time: ejection.base_time,
            max_time: ejection.max_time,
            max_ejected: ejection.max_ejected,
            success_rate_factor: ejection.success_rate_factor,
            failure_share: ejection.failure_share,
            min_endpoints: ejection.min_endpoints,
            min_requests: ejection.min_requests,
        }),
    }
}

fn health_check(health: &tidegate_config::HealthCheck, marks: Vec<Option<u32>>) -> HealthCheck {
    HealthCheck {
        kind: match health.kind.clone() {
            ConfigCheckKind::Http { path, host, head, expect } => CheckKind::Http { path, host, head, expect },
            ConfigCheckKind::Tcp { send, receive } => {
                CheckKind::Tcp { send: send.into_bytes(), receive: receive.into_bytes() }
            }
            ConfigCheckKind::Grpc { service, host } => CheckKind::Grpc { service, host },
        },
        port: health.port,
        interval: health.interval,
        timeout: health.timeout,
        jitter: health.jitter,
        thresholds: Thresholds { healthy: health.healthy_threshold, unhealthy: health.unhealthy_threshold },
        marks,
    }
}

/// The previous configuration's, where nothing it is made of has changed: then its connections and sessions stay.
fn client_tls(
    scope: &mut Scope<'_>,
    cluster: &ClusterConfig,
    tls: &ClusterTls,
    protocol: UpstreamProtocol,
) -> Option<(Arc<ClientTls>, TlsSource)> {
    let mut files = Files::new();
    let ca = match &tls.ca {
        None => None,
        Some(path) => {
            let pem = scope.read(tls.line, path)?;
            files.push((path.clone(), pem.clone()));
            Some(pem)
        }
    };
    let certificate = match &tls.certificate {
        None => None,
        Some((certificate, key)) => {
            let pair = CertificatePair { chain: scope.read(tls.line, certificate)?, key: scope.read(tls.line, key)? };
            files.push((certificate.clone(), pair.chain.clone()));
            files.push((key.clone(), pair.key.clone()));
            Some(pair)
        }
    };
    let server_name = tls.server_name.clone();
    let source = TlsSource { server_name, verify: tls.verify, protocol, own_roots: ca.is_some(), files };
    if let Some(previous) = scope.previous.and_then(|previous| previous.clusters.get(&cluster.name))
        && previous.tls.as_ref() == Some(&source)
        && let Some(same) = &previous.cluster.tls
    {
        return Some((same.clone(), source));
    }
    let spec = ClientTlsSpec {
        server_name: tls.server_name.clone(),
        system_roots: if ca.is_none() && tls.verify {
            system_roots()
        } else {
            Arc::new(rustls::RootCertStore::empty())
        },
        ca,
        certificate,
        verify: tls.verify,
        protocol,
    };
    match ClientTls::new(spec) {
        Ok(tls) => Some((Arc::new(tls), source)),
        Err(error) => {
            scope.error(tls.line, format!("cluster {:?}: tls: {error}", cluster.name));
            None
        }
    }
}

/// The operating system's, read once.
pub(crate) fn system_roots() -> Arc<rustls::RootCertStore> {
    static ROOTS: std::sync::OnceLock<Arc<rustls::RootCertStore>> = std::sync::OnceLock::new();
    let load = || {
        let mut roots = rustls::RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in found.errors {
            tracing::warn!(%error, "some of the system's roots cannot be read");
        }
        roots.add_parsable_certificates(found.certs);
        Arc::new(roots)
    };
    ROOTS.get_or_init(load).clone()
}
