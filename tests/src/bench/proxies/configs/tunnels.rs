//! Every proxy as one that relays TCP and reads nothing of it.

use std::net::SocketAddr;
use std::path::Path;

use super::super::Kind;
use super::{Config, Ports};
use crate::peer;

/// `None` where it relays no TCP, or a module for that is not there: `tests/setup` fetches it.
pub(super) fn config(kind: Kind, origin: SocketAddr, ports: Ports, splice: bool, own: &Path) -> Option<Config> {
    match kind {
        Kind::Tidegate => Some(tidegate(origin, ports, own)),
        Kind::Nginx => nginx(origin, ports),
        Kind::Haproxy => Some(haproxy(origin, ports, if splice { "  option splice-auto\n" } else { "" })),
        Kind::Envoy => Some(envoy(origin, ports)),
        Kind::Caddy => None,
    }
}

fn tidegate(origin: SocketAddr, Ports { clear, tls, admin }: Ports, own: &Path) -> Config {
    let listener = |name: &str, address: SocketAddr| {
        format!(
            "[[listener]]\nname = \"{name}\"\naddress = \"{address}\"\nmax_connections = 100000\n\
             tunnel = {{ cluster = \"alpha\" }}\n"
        )
    };
    let text = format!(
        "[gateway]\nworkers = 1\nadmin = \"{admin}\"\nplugin_cache = \"{}\"\n{}{}\
         [[cluster]]\nname = \"alpha\"\nendpoints = [\"{origin}\"]\nmax_connections = 100000\n",
        own.join("plugins").display(),
        listener("clear", clear),
        listener("tls", tls),
    );
    Config { name: "gateway.toml", text, arguments: vec!["run", "--config", "FILE"] }
}

fn nginx(origin: SocketAddr, Ports { clear, tls, .. }: Ports) -> Option<Config> {
    let module = peer::nginx_module("ngx_stream_module.so")?;
    let text = format!(
        "load_module {};\ndaemon off; worker_processes 1; pid nginx.pid; error_log stderr crit; user root;\n\
         worker_rlimit_nofile 60000;\nevents {{ worker_connections 30000; }}\n\
         stream {{\n  server {{ listen {clear}; proxy_pass {origin}; }}\n  server {{ listen {tls}; proxy_pass {origin}; }}\n}}\n",
        module.display()
    );
    Some(Config { name: "nginx.conf", text, arguments: vec!["-p", ".", "-e", "stderr", "-c", "FILE"] })
}

fn haproxy(origin: SocketAddr, Ports { clear, tls, .. }: Ports, splice: &str) -> Config {
    // A pipe has two descriptors more, and it asks for all at its start.
    let most = if splice.is_empty() { 9000 } else { 2000 };
    let text = format!(
        "global\n  nbthread 1\n  maxconn {most}\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  \
         timeout server 1h\n{splice}frontend edge\n  bind {clear}\n  bind {tls}\n  default_backend alpha\n\
         backend alpha\n  server one {origin}\n"
    );
    Config { name: "haproxy.cfg", text, arguments: vec!["-db", "-f", "FILE"] }
}

fn envoy(origin: SocketAddr, Ports { clear, tls, .. }: Ports) -> Config {
    let listener = |name: &str, address: SocketAddr| {
        format!(
            r#"  - name: {name}
    address: {{ socket_address: {{ address: {}, port_value: {} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: {name}
          cluster: alpha
"#,
            address.ip(),
            address.port()
        )
    };
    let text = format!(
        r#"static_resources:
  listeners:
{}{}  clusters:
  - name: alpha
    type: STATIC
    circuit_breakers: {{ thresholds: [{{ max_connections: 100000, max_pending_requests: 100000, max_requests: 100000 }}] }}
    load_assignment:
      cluster_name: alpha
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: {} }} }} }} }}] }}]
"#,
        listener("clear", clear),
        listener("tls", tls),
        origin.ip(),
        origin.port()
    );
    Config {
        name: "envoy.yaml",
        text,
        arguments: vec!["-c", "FILE", "--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id"],
    }
}
