//! A configuration for each proxy. What a user of it would write, with the usual advice for keeping connections.

use std::net::SocketAddr;
use std::path::Path;

use super::{Behind, Decided, Kind};

pub(super) struct Config {
    pub(super) name: &'static str,
    pub(super) text: String,
    /// `FILE` stands for the configuration's own path.
    pub(super) arguments: Vec<&'static str>,
}

#[derive(Clone, Copy)]
pub(super) struct Ports {
    pub(super) clear: SocketAddr,
    /// HTTP/1.1 and HTTP/2, and HTTP/3 where it is spoken.
    pub(super) tls: SocketAddr,
}

/// `None` where the proxy has no such way to decide.
pub(super) fn config(kind: Kind, behind: &Behind, ports: Ports, decided: Decided, own: &Path) -> Option<Config> {
    if decided == Decided::Memoised && kind != Kind::Tidegate {
        return None;
    }
    match kind {
        Kind::Tidegate => Some(tidegate(behind, ports, decided)),
        Kind::Nginx => (decided != Decided::Plugin).then(|| nginx(behind, ports, decided)),
        Kind::Haproxy => Some(haproxy(behind, ports, decided, own)),
        Kind::Envoy => Some(envoy(behind, ports, decided)),
        Kind::Caddy => Some(caddy(behind, ports, decided)),
    }
}

fn tidegate(behind: &Behind, ports: Ports, decided: Decided) -> Config {
    let Behind { http1, http2, folder } = behind;
    let folder = folder.display();
    let Ports { clear, tls } = ports;
    let plugin = |memoise: bool| {
        format!(
            "[[plugin]]\nname = \"tenants\"\nsource = \"builtin:tenant-canary\"\nmemoise = {memoise}\n\
             grants = {{ headers = [\"x-tenant\"] }}\n[plugin.settings]\ntenant_from = [{{ header = \"x-tenant\" }}]\n\
             default = \"alpha\"\n[[plugin.settings.tenants]]\nname = \"t42\"\ncluster = \"beta\"\n\
             [[route]]\nname = \"api\"\npath = \"/api/*\"\nrouter = \"tenants\"\n"
        )
    };
    let rules = match decided {
        Decided::No => String::new(),
        Decided::Native => "[[route]]\nname = \"api\"\npath = \"/api/*\"\nheaders = { x-tenant = \"t42\" }\n\
                            cluster = \"beta\"\n"
            .to_owned(),
        Decided::Plugin => plugin(false),
        Decided::Memoised => plugin(true),
    };
    let text = format!(
        r#"[gateway]
workers = 1
admin = "off"
plugin_cache = "{folder}/plugins"
max_plugin_instances = 4
[[listener]]
name = "clear"
address = "{clear}"
max_connections = 100000
max_requests_per_connection = 1000000000
[[listener]]
name = "tls"
address = "{tls}"
max_connections = 100000
max_requests_per_connection = 1000000000
tls.certificates = [{{ certificate = "{folder}/edge.pem", key = "{folder}/edge.key" }}]
[[cluster]]
name = "alpha"
endpoints = ["{http1}"]
max_requests_per_connection = 1000000000
[[cluster]]
name = "beta"
endpoints = ["{http1}"]
max_requests_per_connection = 1000000000
[[cluster]]
name = "two"
endpoints = ["{http2}"]
protocol = "http2"
tls = {{ ca = "{folder}/ca.pem", server_name = "bench.test" }}
max_requests_per_connection = 1000000000
{rules}[[route]]
name = "two"
path = "/h2/*"
cluster = "two"
[[route]]
name = "all"
cluster = "alpha"
"#
    );
    Config { name: "gateway.toml", text, arguments: vec!["run", "--config", "FILE"] }
}

fn nginx(behind: &Behind, ports: Ports, decided: Decided) -> Config {
    let Behind { http1, folder, .. } = behind;
    let folder = folder.display();
    let Ports { clear, tls } = ports;
    let (map, pass) = match decided {
        Decided::No => ("", "http://alpha"),
        _ => ("map $http_x_tenant $pool { t42 beta; default alpha; }", "http://$pool"),
    };
    let location = "proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host; \
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_pass";
    let locations = format!("location /api/ {{ {location} {pass}; }} location / {{ {location} http://alpha; }}");
    let text = format!(
        r#"daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit; user root; worker_rlimit_nofile 60000;
events {{ worker_connections 30000; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s; client_max_body_size 0;
  client_body_temp_path body; proxy_temp_path proxied; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  {map}
  upstream alpha {{ server {http1}; keepalive 1024; keepalive_requests 1000000000; }}
  upstream beta {{ server {http1}; keepalive 1024; keepalive_requests 1000000000; }}
  server {{ listen {clear}; {locations} }}
  server {{
    listen {tls} ssl http2; ssl_certificate {folder}/edge.pem; ssl_certificate_key {folder}/edge.key;
    ssl_protocols TLSv1.2 TLSv1.3; http2_max_concurrent_streams 256; {locations}
  }}
}}
"#
    );
    Config { name: "nginx.conf", text, arguments: vec!["-p", ".", "-e", "stderr", "-c", "FILE"] }
}

fn haproxy(behind: &Behind, ports: Ports, decided: Decided, own: &Path) -> Config {
    let Behind { http1, http2, folder } = behind;
    let folder = folder.display();
    let Ports { clear, tls } = ports;
    let (lua, rule) = match decided {
        Decided::No => (String::new(), ""),
        Decided::Native => (String::new(), "use_backend beta if { path_beg /api/ } { req.hdr(x-tenant) -m str t42 }"),
        _ => {
            let script = own.join("decide.lua");
            // Fails as the configuration does that names it.
            let _ = std::fs::write(
                &script,
                "core.register_fetches(\"pool\", function(txn)\n  if txn.sf:req_hdr(\"x-tenant\") == \"t42\" then return \
                 \"beta\" end\n  return \"alpha\"\nend)\n",
            );
            (format!("lua-load {}", script.display()), "use_backend %[lua.pool] if { path_beg /api/ }")
        }
    };
    let text = format!(
        r#"global
  nbthread 1
  maxconn 9000
  {lua}
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 1h
  option forwardfor
  http-reuse always
  default_backend alpha
frontend clear
  bind {clear}
  use_backend two if {{ path_beg /h2/ }}
  {rule}
frontend tls
  bind {tls} ssl crt {folder}/edge.both alpn h2,http/1.1
  use_backend two if {{ path_beg /h2/ }}
  {rule}
backend alpha
  server one {http1}
backend beta
  server one {http1}
backend two
  server one {http2} ssl verify none alpn h2 sni str(bench.test)
"#
    );
    Config { name: "haproxy.cfg", text, arguments: vec!["-db", "-f", "FILE"] }
}

fn envoy(behind: &Behind, ports: Ports, decided: Decided) -> Config {
    let Behind { http1, http2, folder } = behind;
    let folder = folder.display();
    let mut filters = String::new();
    let mut rules = String::new();
    match decided {
        Decided::No => {}
        Decided::Native => {
            rules = "- { match: { prefix: /api/, headers: [{ name: x-tenant, string_match: { exact: t42 } }] }, \
                     route: { cluster: beta, timeout: 0s } }\n"
                .to_owned();
        }
        _ => {
            rules = "- { match: { prefix: /api/ }, route: { cluster_header: x-pool, timeout: 0s } }\n".to_owned();
            filters = "            - { name: envoy.filters.http.lua, typed_config: { \"@type\": \
                       type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua, default_source_code: { inline_string: \
                       'function envoy_on_request(handle) local headers = handle:headers() if headers:get(\"x-tenant\") == \
                       \"t42\" then headers:add(\"x-pool\", \"beta\") else headers:add(\"x-pool\", \"alpha\") end end' } } }\n"
                .to_owned();
        }
    }
    let manager = |codec: &str| {
        format!(
            r#"        - name: envoy.filters.network.http_connection_manager
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
            stat_prefix: edge
            codec_type: {codec}
            use_remote_address: true
            stream_idle_timeout: 0s
            route_config:
              virtual_hosts:
              - name: all
                domains: ["*"]
                routes:
                {rules}
                - {{ match: {{ prefix: /h2/ }}, route: {{ cluster: two, timeout: 0s }} }}
                - {{ match: {{ prefix: / }}, route: {{ cluster: alpha, timeout: 0s }} }}
            http_filters:
{filters}            - name: envoy.filters.http.router
              typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
"#
        )
    };
    let common = format!(
        "common_tls_context: {{ alpn_protocols: [ALPN], tls_certificates: [{{ certificate_chain: {{ filename: {folder}/edge.pem }}, \
         private_key: {{ filename: {folder}/edge.key }} }}] }}"
    );
    let tls = |alpn: &str| common.replace("ALPN", alpn);
    let address = |udp: bool, at: SocketAddr| {
        let protocol = if udp { "protocol: UDP, " } else { "" };
        format!("{{ socket_address: {{ {protocol}address: {}, port_value: {} }} }}", at.ip(), at.port())
    };
    let cluster = |name: &str, at: SocketAddr, more: &str| {
        format!(
            "  - name: {name}\n    connect_timeout: 5s\n    type: STATIC\n    circuit_breakers: {{ thresholds: [{{ max_connections: 100000, \
             max_pending_requests: 100000, max_requests: 100000 }}] }}\n    load_assignment: {{ cluster_name: {name}, endpoints: [{{ \
             lb_endpoints: [{{ endpoint: {{ address: {} }} }}] }}] }}\n{more}",
            address(false, at)
        )
    };
    let two = format!(
        r#"    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: bench.test
        common_tls_context: {{ alpn_protocols: [h2], validation_context: {{ trusted_ca: {{ filename: {folder}/ca.pem }} }} }}
"#
    );
    let text = format!(
        r#"static_resources:
  listeners:
  - name: clear
    address: {clear}
    filter_chains:
    - filters:
{auto}  - name: tls
    address: {over_tls}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config: {{ "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, {tcp} }}
      filters:
{auto}  - name: quic
    address: {over_quic}
    udp_listener_config: {{ quic_options: {{}}, downstream_socket_config: {{ prefer_gro: true }} }}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.quic
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.quic.v3.QuicDownstreamTransport
          downstream_tls_context: {{ {quic} }}
      filters:
{http3}  clusters:
{alpha}{beta}{two}"#,
        clear = address(false, ports.clear),
        over_tls = address(false, ports.tls),
        over_quic = address(true, ports.tls),
        auto = manager("AUTO"),
        http3 = manager("HTTP3"),
        tcp = tls("h2, http/1.1"),
        quic = tls("h3"),
        alpha = cluster("alpha", *http1, ""),
        beta = cluster("beta", *http1, ""),
        two = cluster("two", *http2, &two),
    );
    let arguments = vec!["-c", "FILE", "--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id"];
    Config { name: "envoy.yaml", text, arguments }
}

fn caddy(behind: &Behind, ports: Ports, decided: Decided) -> Config {
    let Behind { http1, http2, folder } = behind;
    let folder = folder.display();
    let pass = format!("reverse_proxy {http1} {{ transport http {{ keepalive_idle_conns_per_host 1024 }} }}");
    let pass = pass
        .replace("{ transport", "{\n      transport")
        .replace(" } }", "\n      }\n    }")
        .replace("http { ", "http {\n        ");
    let rule = match decided {
        Decided::No => String::new(),
        Decided::Native => {
            format!("@beta {{\n    path /api/*\n    header x-tenant t42\n  }}\n  handle @beta {{\n    {pass}\n  }}\n  ")
        }
        _ => format!(
            "@beta expression `{{http.request.uri.path}}.startsWith(\"/api/\") && {{http.request.header.x-tenant}} == \"t42\"`\n  \
             handle @beta {{\n    {pass}\n  }}\n  "
        ),
    };
    let site = format!(
        "{rule}handle /h2/* {{\n    reverse_proxy https://{http2} {{\n      transport http {{\n        versions 2\n        \
         tls_server_name bench.test\n        tls_trust_pool file {folder}/ca.pem\n      }}\n    }}\n  }}\n  handle {{\n    {pass}\n  }}\n"
    );
    let text = format!(
        "{{\n  admin off\n  auto_https off\n  persist_config off\n  log {{\n    level ERROR\n  }}\n}}\nhttp://:{clear} {{\n  bind 127.0.0.1\n  {site}}}\n\
         https://bench.test:{tls} {{\n  bind 127.0.0.1\n  tls {folder}/edge.pem {folder}/edge.key\n  {site}}}\n",
        clear = ports.clear.port(),
        tls = ports.tls.port(),
    );
    Config { name: "Caddyfile", text, arguments: vec!["run", "--config", "FILE", "--adapter", "caddyfile"] }
}
