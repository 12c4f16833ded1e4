//! Envoy. It is extended by filters: WebAssembly by proxy-wasm, or Lua. Both write the cluster into a field, which the route
//! goes by.

use std::net::SocketAddr;

use super::super::{Behind, Decided};
use super::{Config, Ports};
use crate::gateway::root;

const RULE: &str = "- { match: { prefix: /api/, headers: [{ name: x-tenant, string_match: { exact: t42 } }] }, route: { cluster: beta, \
                    timeout: 0s } }";

const LUA: &str = r#"            - name: envoy.filters.http.lua
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
                default_source_code:
                  inline_string: |
                    function envoy_on_request(handle)
                      local headers = handle:headers()
                      if headers:get("x-tenant") == "t42" then
                        headers:replace("x-pool", "beta")
                      else
                        headers:replace("x-pool", "alpha")
                      end
                    end
"#;

/// `tests/guests/tenant-filter`, compiled by V8.
fn wasm() -> String {
    format!(
        r#"            - name: envoy.filters.http.wasm
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
                config:
                  vm_config:
                    runtime: envoy.wasm.runtime.v8
                    code: {{ local: {{ filename: {} }} }}
"#,
        root().join("tests/guests/built/tenant_filter.wasm").display()
    )
}

pub(super) fn config(behind: &Behind, ports: Ports, decided: Decided) -> Config {
    let Behind { alpha, beta, http2, folder } = behind;
    let folder = folder.display();
    let by_field = "- { match: { prefix: /api/ }, route: { cluster_header: x-pool, timeout: 0s } }";
    let (rules, filters) = match decided {
        Decided::Native => (RULE, String::new()),
        Decided::Plugin => (by_field, wasm()),
        Decided::Script => (by_field, LUA.to_owned()),
        _ => ("", String::new()),
    };
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
        alpha = cluster("alpha", *alpha, ""),
        beta = cluster("beta", *beta, ""),
        two = cluster("two", *http2, &two),
    );
    let arguments = vec!["-c", "FILE", "--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id"];
    Config { name: "envoy.yaml", text, arguments }
}
