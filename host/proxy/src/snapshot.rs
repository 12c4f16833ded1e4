//! All that a worker needs to know, immutable: made by the compile step, swapped as a whole, taken once per exchange.
//!
//! Endpoint state (load, health) and statistics live behind `Arc`s that successive snapshots share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustc_hash::FxHashMap;
use tidegate_policy::native::{
    HostPattern, Maglev, RetryBudget, RetryRules, RouteTable, Split, StandardForwarding, TrustedFamily,
};
use tidegate_policy::{Balancer, Breaker, DirectResponse, EndpointSet, Forwarding, RequestHead, Retry, Router};

use crate::{
    Allowance, Buffers, ClientCertificate, ClientTls, Coding, HealthCheck, LeastRate, Origin, Owner, ServerTls, Tenant,
    Via,
};

mod tunnel;

pub use tunnel::{Otherwise, TunnelRules};

/// One generation of configuration, ready to serve.
pub struct Snapshot {
    /// Grows with every swap.
    pub generation: u64,
    pub listeners: Vec<Arc<Listener>>,
    pub clusters: Vec<Arc<Cluster>>,
    pub cluster_by_name: FxHashMap<Arc<str>, usize>,
    /// Finds an index into `routes`.
    pub table: RouteTable,
    pub routes: Vec<Arc<Route>>,
    pub tenants: Vec<Arc<Tenant>>,
    /// The pseudonym in `Via` and `Proxy-Status`.
    pub via: Via,
    /// What waits in this process; the same in every snapshot.
    pub buffers: Arc<Buffers>,
}

impl Snapshot {
    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.cluster_by_name.get(name).map(|index| &self.clusters[*index])
    }
}

/// Which versions of HTTP a listener speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Protocols {
    pub http1: bool,
    pub http2: bool,
    pub http3: bool,
}

/// Bounds on what one client may ask for. Each is a configuration key of the same name.
#[derive(Clone, Debug)]
pub struct Limits {
    pub max_connections: usize,
    pub max_header_bytes: usize,
    pub max_headers: usize,
    pub max_streams: u32,
    pub header_timeout: Duration,
    pub idle_timeout: Duration,
    pub body_idle_timeout: Duration,
    pub handshake_timeout: Duration,
    pub max_requests_per_connection: u64,
    /// How slow the sender of a request may be, and the receiver of a response.
    pub upload_rate: Option<LeastRate>,
    pub download_rate: Option<LeastRate>,
}

/// From whom a listener takes a PROXY header.
#[derive(Clone, Debug)]
pub struct AcceptProxyHeader {
    /// A connection without one is closed.
    pub required: bool,
    pub trusted: Box<[IpNet]>,
    pub timeout: Duration,
}

/// The PROXY header that goes before all else on a cluster's connections.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum SendProxyHeader {
    V1,
    V2(ProxyFields),
}

/// Which fields a version 2 header carries, where there is something to say.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ProxyFields {
    pub alpn: bool,
    pub authority: bool,
    pub ssl: bool,
    pub unique_id: bool,
    pub crc32c: bool,
}

/// A listener: where clients connect, and what they may do.
pub struct Listener {
    pub name: Arc<str>,
    /// As configured; port 0 is replaced by the bound one.
    pub address: SocketAddr,
    pub protocols: Protocols,
    pub limits: Limits,
    /// Peers whose forwarding fields are believed.
    pub trusted_proxies: Box<[IpNet]>,
    /// `None`: a header is bytes like any others.
    pub proxy_protocol: Option<AcceptProxyHeader>,
    /// Which of them.
    pub trusted_family: TrustedFamily,
    pub tls: Option<Arc<ServerTls>>,
    /// `None`: every connection ends here.
    pub tunnel: Option<TunnelRules>,
    /// Whether TLS clients over TCP are told that HTTP/3 is served on the same port (RFC 7838).
    pub alt_svc: bool,
    /// What its clients' buffered bodies may hold in memory, if there is a bound besides the gateway's.
    pub buffer_memory: Option<Allowance>,
}

/// Which HTTP version to speak to a cluster.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum UpstreamProtocol {
    Http1,
    Http2,
    /// Over QUIC; needs TLS.
    Http3,
    /// By ALPN over TLS, else HTTP/1.1.
    Auto,
}

/// How connections to one endpoint are made and kept. Part of the pool's key: clusters that agree in it and in `tls`
/// and the address could share connections, those that differ in any of it never do.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PoolSettings {
    pub protocol: UpstreamProtocol,
    pub connect_timeout: Duration,
    pub idle_timeout: Duration,
    pub max_connection_age: Duration,
    pub max_requests_per_connection: u64,
    pub max_connections: usize,
    pub max_streams_per_connection: u32,
    pub max_pending: usize,
    pub pending_timeout: Duration,
    /// With one, a connection is for the requests of one client only.
    pub proxy_protocol: Option<SendProxyHeader>,
}

/// A cluster: endpoints that can stand in for one another, and how to reach them.
pub struct Cluster {
    pub name: Arc<str>,
    pub owner: Owner,
    pub set: Arc<EndpointSet>,
    pub pool: PoolSettings,
    pub tls: Option<Arc<ClientTls>>,
    /// Who answers in place of its endpoints, of which there is one then, whose address is nobody's.
    pub origin: Option<Arc<dyn Origin>>,
    /// The cluster's own algorithm.
    pub balancer: Arc<dyn Balancer>,
    /// Asked before it.
    pub plugin: Option<Arc<dyn Balancer>>,
    /// For a plugin's `hash` answers.
    pub maglev: Arc<Maglev>,
    pub budget: Arc<RetryBudget>,
    /// How its endpoints are checked; `None`: nobody asks them.
    pub check: Option<Arc<HealthCheck>>,
    /// Bounds over all workers.
    pub breaker: Breaker,
}

/// What happens to the requests that match.
pub enum RouteAction {
    Cluster(Arc<Cluster>),
    /// Weighted, by a random key.
    Split(Split, Vec<Arc<Cluster>>),
    Respond(DirectResponse),
    /// Only the route's router knows; without its answer: 404.
    Nothing,
}

/// A row of the route table, with everything that follows from matching it.
pub struct Route {
    pub name: Arc<str>,
    /// Whose requests these are.
    pub tenant: Option<Arc<Tenant>>,
    pub action: RouteAction,
    /// A plugin, asked first.
    pub router: Option<Arc<dyn Router>>,
    pub forwarding: StandardForwarding,
    pub forwarding_plugin: Option<Arc<dyn Forwarding>>,
    /// What the upstream gets of the client's certificate (RFC 9440).
    pub client_certificate: ClientCertificate,
    pub retry: RetryRules,
    pub retry_plugin: Option<Arc<dyn Retry>>,
    /// Most tries, the first included.
    pub attempts: u32,
    /// When a safe request that nobody has answered is sent to another endpoint as well.
    pub hedge_after: Option<Duration>,
    /// Until the final response head.
    pub timeout: Option<Duration>,
    /// Of one attempt, until its response head.
    pub attempt_timeout: Option<Duration>,
    /// Without a byte of the upstream's body, or either way of a tunnel.
    pub idle_timeout: Option<Duration>,
    pub max_request_body: Option<u64>,
    pub buffer: RouteBuffer,
    /// `None`: responses pass as they are.
    pub compression: Option<Compression>,
    /// Whether clients may change to WebSocket.
    pub websocket: bool,
    /// What `CONNECT` may name; the tunnel leads to the route's cluster.
    pub connect: Box<[ConnectTarget]>,
    /// What connect-udp may name (RFC 9298); the tunnel leads to the route's cluster.
    pub connect_udp: Box<[ConnectTarget]>,
    /// Without a datagram either way of such a tunnel.
    pub udp_idle_timeout: Option<Duration>,
}

impl Route {
    /// Whether plugins are asked before the first attempt.
    pub(crate) fn asks_plugins(&self) -> bool {
        self.router.is_some() || self.forwarding_plugin.is_some()
    }

    /// Whether a plugin that is asked before the first attempt may wait.
    pub(crate) fn waits(&self) -> bool {
        self.router.as_ref().is_some_and(|router| router.waits())
            || self.forwarding_plugin.as_ref().is_some_and(|plugin| plugin.waits())
    }
}

/// Which responses are compressed.
#[derive(Clone, Debug)]
pub struct Compression {
    /// Of those that a client likes equally, the first is taken.
    pub codings: Box<[Coding]>,
    /// Lower case, `text/html` or `text/*`.
    pub types: Box<[String]>,
    /// Bytes, where the length is known.
    pub min_size: u64,
    /// Also for requests with cookies or authorization.
    pub credentials: bool,
}

impl Compression {
    pub(crate) fn takes_type(&self, content_type: &[u8]) -> bool {
        let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        self.types.iter().any(|wanted| match wanted.strip_suffix('*') {
            Some(prefix) => {
                essence.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix.as_bytes()))
            }
            None => essence.eq_ignore_ascii_case(wanted.as_bytes()),
        })
    }
}

/// What may wait of a route's messages, in bytes each; 0 streams.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteBuffer {
    /// Of a request, kept for replay before the upstream is engaged.
    pub request: u64,
    /// Of a response, read ahead of its client.
    pub response: u64,
    /// Of either on disk, beyond what memory takes.
    pub spool: u64,
    /// A request that does not fit is refused instead of streamed.
    pub refuse_larger: bool,
}

/// A host and a port that `CONNECT` or connect-udp may name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConnectTarget {
    pub host: HostPattern,
    pub port: u16,
}

impl ConnectTarget {
    pub(crate) fn allows(&self, request: &RequestHead) -> bool {
        request.port().is_some_and(|port| self.names(request.host(), port))
    }

    /// `host` in lower case, an IPv6 address in brackets.
    pub(crate) fn names(&self, host: &str, port: u16) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        let named = match &self.host {
            HostPattern::Any => true,
            HostPattern::Exact(name) => host == name,
            HostPattern::Wildcard(suffix) => host.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.ends_with('.')),
        };
        named && port == self.port
    }
}
