//! The configuration file: TOML tables in the words of the lexicon, read strictly, every mistake told at once.
//!
//! [`load`] reads a file, checks every key, value and name in it, and gives a [`Config`] or all [`Errors`] with their
//! lines. It knows nothing of sockets, certificates or plugins: what they are made of is the compile step's.

mod check;
mod cluster;
mod component;
mod error;
mod file;
mod gateway;
mod health;
mod keys;
mod listener;
mod load;
mod plugin;
mod reader;
mod registry;
mod route;
mod steer;
mod tenant;
mod tunnel;
mod units;

pub use cluster::{
    Balance, BalanceBy, Cluster, ClusterProtocol, ClusterTls, EndpointSpec, HashKey, PROXY_TLVS, ProxyProtocol,
};
pub use component::Component;
pub use error::{ConfigError, Errors};
pub use file::Config;
pub use gateway::{AccessLogTarget, Gateway};
pub use health::{CheckKind, CircuitBreaker, Ejection, HealthCheck};
pub use keys::{json_schema, reference};
pub use listener::{
    AcceptProxyProtocol, CertificateFiles, ClientAuthMode, ClientCertificates, Listener, ListenerTls, TrustedFields,
};
pub use load::{load, parse};
pub use plugin::{
    Http, Kv, OnFailure, OtherVersion, Plugin, PluginIsolation, PluginSource, PluginVersion, Role, Rollout, Shadow,
    StickyBy,
};
pub use registry::{OnLoadFailure, Pull, Registry, RegistryCredentials, Shipped};
pub use route::{
    ClientCertificate, ConnectTarget, Destination, Forwarding, ForwardingFamilies, HeaderMatch, HostMatch, PathMatch,
    Respond, RetryPolicy, Route,
};
pub use steer::{Steer, SteerAffinity, SteerCheck, SteerMode};
pub use tenant::{CpuShare, Tenant, TenantGrants, TenantLimits};
pub use tunnel::{Tunnel, TunnelRoute};
