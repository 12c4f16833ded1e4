//! A configuration for each proxy. What a user of it would write, with the usual advice for keeping connections.

use std::net::SocketAddr;
use std::path::Path;

use super::{Behind, Decided, Kind};

mod caddy;
mod envoy;
mod haproxy;
mod nginx;
pub(in crate::bench) mod tidegate;
mod tunnels;

pub(in crate::bench) struct Config {
    pub(in crate::bench) name: &'static str,
    pub(in crate::bench) text: String,
    /// `FILE` stands for the configuration's own path.
    pub(in crate::bench) arguments: Vec<&'static str>,
}

#[derive(Clone, Copy)]
pub(in crate::bench) struct Ports {
    pub(in crate::bench) clear: SocketAddr,
    /// HTTP/1.1 and HTTP/2, and HTTP/3 where it is spoken.
    pub(in crate::bench) tls: SocketAddr,
    /// Where tidegate tells of itself.
    pub(in crate::bench) admin: SocketAddr,
}

/// `None` where the proxy has no such way to decide. Scripts go into its own folder, and are missed by the proxy where they
/// cannot be written.
pub(super) fn config(kind: Kind, behind: &Behind, ports: Ports, decided: Decided, own: &Path) -> Option<Config> {
    if !kind.decides(decided) {
        return None;
    }
    if let Decided::Tunnel { splice } = decided {
        return tunnels::config(kind, behind.alpha, ports, splice, own);
    }
    match kind {
        Kind::Tidegate => Some(tidegate::config(behind, ports, decided)),
        Kind::Nginx => nginx::config(behind, ports, decided, own),
        Kind::Haproxy => Some(haproxy::config(behind, ports, decided, own)),
        Kind::Envoy => Some(envoy::config(behind, ports, decided)),
        Kind::Caddy => Some(caddy::config(behind, ports, decided)),
    }
}
