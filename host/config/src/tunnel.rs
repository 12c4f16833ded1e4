//! `[listener.tunnel]`: connections that are relayed as they are, and where each goes.

use std::time::Duration;

use crate::reader::Section;
use crate::route::{HostMatch, hosts};

#[derive(Clone, Debug)]
pub struct Tunnel {
    pub line: usize,
    /// TCP connections are relayed, or datagrams, or both.
    pub tcp: bool,
    pub udp: bool,
    /// The first that matches is taken.
    pub routes: Vec<TunnelRoute>,
    /// Where goes what no route names. `None`: it is ended here where the listener has TLS, else closed.
    pub cluster: Option<String>,
    pub cluster_line: usize,
    /// A plugin, asked first.
    pub router: Option<String>,
    pub router_line: usize,
    pub hello_timeout: Duration,
    pub connect_attempts: u32,
    pub idle_timeout: Option<Duration>,
    pub udp_idle_timeout: Duration,
    pub max_lifetime: Option<Duration>,
}

/// A row: all that it names must match.
#[derive(Clone, Debug)]
pub struct TunnelRoute {
    pub line: usize,
    /// Any name, and none, where empty.
    pub server_names: Vec<HostMatch>,
    /// One of these is offered. Anything where empty.
    pub alpn: Vec<String>,
    pub cluster: String,
}

impl Tunnel {
    pub(crate) fn read(section: &Section<'_>, tls: bool, protocols: &[String]) -> Self {
        let named = |name: &str| protocols.iter().any(|known| known == name);
        let udp = named("udp");
        let tcp = named("tcp") || !udp;
        let routes: Vec<_> = section.sections("routes").iter().map(TunnelRoute::read).collect();
        let (cluster, router) = (section.text("cluster"), section.text("router"));
        let cluster_line = section.line_of("cluster");
        if tls && cluster.is_some() {
            section.error(
                cluster_line,
                "tunnel: cluster takes all that no route names, so the listener's tls is never used; remove one of them",
            );
        }
        if routes.is_empty() && router.is_none() && (tls || cluster.is_none()) {
            let what = if tls { "routes or a router" } else { "a cluster, routes or a router" };
            section.error(section.line, format!("tunnel: nothing goes anywhere; give it {what}"));
        }
        Self {
            line: section.line,
            tcp,
            udp,
            routes,
            cluster,
            cluster_line,
            router,
            router_line: section.line_of("router"),
            hello_timeout: section.time("hello_timeout"),
            connect_attempts: section.number("connect_attempts", 1, 100).unwrap_or(1) as u32,
            idle_timeout: section.time_or_off("idle_timeout"),
            udp_idle_timeout: section.time("udp_idle_timeout"),
            max_lifetime: section.time_or_off("max_lifetime"),
        }
    }

    /// The clusters it names, with the lines that name them.
    pub fn clusters(&self) -> impl Iterator<Item = (&str, usize)> {
        let routes = self.routes.iter().map(|route| (route.cluster.as_str(), route.line));
        routes.chain(self.cluster.as_deref().map(|name| (name, self.cluster_line)))
    }
}

impl TunnelRoute {
    fn read(section: &Section<'_>) -> Self {
        let server_names = hosts(section, "server_name");
        let mut alpn = Vec::new();
        for (name, line) in section.texts("alpn") {
            // RFC 7301, section 3.1.
            if name.is_empty() || name.len() > 255 {
                section.error(line, "tunnel: a protocol's name in alpn has 1 to 255 bytes");
            }
            alpn.push(name);
        }
        if section.texts("server_name").is_empty() && alpn.is_empty() {
            section.error(
                section.line,
                "tunnel: a route without server_name and alpn takes everything; give it one, or set tunnel.cluster",
            );
        }
        Self { line: section.line, server_names, alpn, cluster: section.name("cluster") }
    }
}
