//! The names of all metrics, and who emits each. Nothing else spells a metric's name.

/// Exchanges that ended, by listener protocol (`h1`, `h2`, `h3`) and status class (`1xx` to `5xx`, `none` for those
/// without an answer). From `Record`.
pub const EXCHANGES: &str = "tidegate_exchanges_total";
/// Seconds from request head to the end of the response, or to the opening of a tunnel, by protocol. From `Record`.
pub const EXCHANGE_SECONDS: &str = "tidegate_exchange_duration_seconds";
/// Exchanges in flight. From `Record`.
pub const EXCHANGES_ACTIVE: &str = "tidegate_exchanges_active";
/// Exchanges whose client left before the end. From `Record`.
pub const CANCELLED: &str = "tidegate_exchanges_cancelled_total";
/// Faults that ended an exchange, by cause. From `Record`.
pub const FAULTS: &str = "tidegate_faults_total";
/// Messages refused by a codec before they became an exchange, by protocol. From `observe::refused`.
pub const REFUSED: &str = "tidegate_requests_refused_total";
/// Bytes of bodies, by direction (`in` from clients, `out` to clients). From `Record`.
pub const BODY_BYTES: &str = "tidegate_body_bytes_total";
/// Tries beyond the first. From `exchange`.
pub const RETRIES: &str = "tidegate_retries_total";
/// Tries beside one that had no answer yet. From `exchange::hedge`.
pub const HEDGES: &str = "tidegate_hedges_total";
/// Hedges that answered before what they stood by. From `exchange::hedge`.
pub const HEDGES_WON: &str = "tidegate_hedges_won_total";
/// Certificate files that changed and were read again, by outcome (`ok`, `refused`). From the control thread.
pub const CERTIFICATE_RENEWALS: &str = "tidegate_certificate_renewals_total";
/// When a listener's certificate ends, in seconds since 1970, by listener and first name. From `listener::tls`.
pub const CERTIFICATE_NOT_AFTER: &str = "tidegate_certificate_not_after_seconds";
/// Requests in QUIC's early data, by outcome (`served` at once, `held` until the handshake was complete, `refused` by the
/// upstream's 425 and sent again). From `codec::http3` and `exchange`.
pub const EARLY_REQUESTS: &str = "tidegate_early_requests_total";
/// Retries that were wanted but refused, by reason (`budget`, `unsafe`). From `exchange`.
pub const RETRIES_REFUSED: &str = "tidegate_retries_refused_total";
/// Tunnels opened, by kind (`websocket`, `connect`, `connect-udp`; below HTTP `tcp`, `udp`, `quic`). From
/// `exchange::upgrade` and `tunnel`.
pub const TUNNELS: &str = "tidegate_tunnels_total";
/// Connections to a listener that waits for a ClientHello, by what they had instead (`none`: not TLS; `late`; `cut_off`).
/// From `tunnel`.
pub const HELLOS_UNHEARD: &str = "tidegate_client_hellos_unheard_total";
/// Tunnels open now. From `exchange::upgrade` and `tunnel`.
pub const TUNNELS_ACTIVE: &str = "tidegate_tunnels_active";
/// UDP payloads relayed, by direction (`in` from clients, `out` to clients). From `relay::datagrams` and
/// `tunnel::datagrams`.
pub const UDP_DATAGRAMS: &str = "tidegate_udp_datagrams_total";
/// HTTP Datagrams and UDP payloads dropped, by reason (`unknown_context`, `too_large`, `overflow`, `unknown_stream`,
/// `no_session`, `unsent`). From `relay::datagrams`, `tunnel::datagrams` and `codec::http3`.
pub const UDP_DATAGRAMS_DROPPED: &str = "tidegate_udp_datagrams_dropped_total";
/// Downstream connections accepted, by listener kind (`tcp`, `quic`). From `listener`.
pub const CONNECTIONS: &str = "tidegate_connections_total";
/// Downstream connections open now. From `listener`.
pub const CONNECTIONS_ACTIVE: &str = "tidegate_connections_active";
/// Downstream connections turned away at a limit. From `listener`.
pub const CONNECTIONS_REFUSED: &str = "tidegate_connections_refused_total";
/// Downstream connections closed for want of a good PROXY header, by reason (`untrusted` peer, `invalid` or none at all,
/// `late`, `cut_off`). From `listener`.
pub const PROXY_HEADERS_REFUSED: &str = "tidegate_proxy_headers_refused_total";
/// Responses that were compressed, by coding (`gzip`, `br`, `zstd`). From `body::encode`.
pub const COMPRESSED: &str = "tidegate_compressed_responses_total";
/// Bytes of those responses, by direction (`in` from upstreams, `out` of the encoder). From `body::encode`.
pub const COMPRESSION_BYTES: &str = "tidegate_compression_bytes_total";
/// Bytes of buffered bodies that are held now, by place (`memory`, `disk`). From `buffer`.
pub const BUFFERED: &str = "tidegate_buffered_bytes";
/// Bytes of bodies written to disk. From `buffer`.
pub const SPOOLED: &str = "tidegate_spooled_bytes_total";
/// TLS and QUIC handshakes that failed. From `listener`.
pub const HANDSHAKES_FAILED: &str = "tidegate_handshakes_failed_total";
/// Upstream connections dialled. From `upstream`.
pub const UPSTREAM_CONNECTIONS: &str = "tidegate_upstream_connections_total";
/// Upstream connections open now. From `upstream`.
pub const UPSTREAM_CONNECTIONS_ACTIVE: &str = "tidegate_upstream_connections_active";
/// Attempts that took a connection which had served before. From `upstream`.
pub const UPSTREAM_REUSED: &str = "tidegate_upstream_connections_reused_total";
/// Upstream connections that could not be made. From `upstream`.
pub const UPSTREAM_CONNECT_FAILED: &str = "tidegate_upstream_connect_failures_total";
/// Requests that wait for a connection now. From `upstream`.
pub const UPSTREAM_WAITING: &str = "tidegate_upstream_waiting";
/// Requests in flight, by cluster and endpoint. From `EndpointState`.
pub const ENDPOINT_ACTIVE: &str = "tidegate_endpoint_requests_active";
/// Attempts, by cluster and endpoint. From `EndpointState`.
pub const ENDPOINT_REQUESTS: &str = "tidegate_endpoint_requests_total";
/// Failed attempts, by cluster and endpoint. From `EndpointState`.
pub const ENDPOINT_FAILURES: &str = "tidegate_endpoint_failures_total";
/// 1 for a healthy endpoint. From `EndpointState`.
pub const ENDPOINT_HEALTHY: &str = "tidegate_endpoint_healthy";
/// 1 while an endpoint takes no requests for this reason (`awaited`, `checks`, `ejected`), by cluster and endpoint. From
/// `EndpointHealth`.
pub const ENDPOINT_UNHEALTHY: &str = "tidegate_endpoint_unhealthy";
/// Ejections, by cluster and endpoint. From `EndpointHealth`.
pub const ENDPOINT_EJECTIONS: &str = "tidegate_endpoint_ejections_total";
/// Active checks, by cluster, endpoint and outcome (`passed`, `failed`, `timeout`). From `upstream::health`.
pub const ENDPOINT_CHECKS: &str = "tidegate_endpoint_checks_total";
/// 1 while so few of a cluster's endpoints are healthy that all are used. From `SetHealth`.
pub const CLUSTER_PANIC: &str = "tidegate_cluster_panic";
/// Attempts that were made in panic, by cluster. From `exchange`.
pub const CLUSTER_PANIC_ATTEMPTS: &str = "tidegate_cluster_panic_attempts_total";
/// What counts against a circuit breaker's bound (`requests`, `retries`) now, by cluster. From `Breaker`.
pub const BREAKER_ACTIVE: &str = "tidegate_circuit_breaker_active";
/// What a circuit breaker refused, by cluster and bound. From `Breaker`.
pub const BREAKER_REFUSED: &str = "tidegate_circuit_breaker_refused_total";
/// Moving average of the time to the response head, seconds. From `EndpointState`.
pub const ENDPOINT_LATENCY: &str = "tidegate_endpoint_latency_seconds";
/// Access log lines dropped because the writer could not keep up. From the access log.
pub const LOG_DROPPED: &str = "tidegate_access_log_dropped_total";
/// Questions asked, by plugin and question. From the plugin's statistics.
pub const DECISIONS: &str = "tidegate_plugin_decisions_total";
/// Answers that a memo knew, by plugin and question. From the plugin's statistics.
pub const DECISIONS_MEMOISED: &str = "tidegate_plugin_memo_hits_total";
/// Seconds a decision took, waits for calls included, by plugin and question. From the plugin's statistics.
pub const DECISION_SECONDS: &str = "tidegate_plugin_decision_duration_seconds";
/// Decisions that failed, by plugin, question and cause. From the plugin's statistics.
pub const DECISION_FAULTS: &str = "tidegate_plugin_faults_total";
/// Live instances, by plugin. From the plugin's statistics.
pub const PLUGIN_INSTANCES: &str = "tidegate_plugin_instances";
/// Instances made since the plugin was loaded, by plugin. From the plugin's statistics.
pub const PLUGIN_INSTANTIATIONS: &str = "tidegate_plugin_instantiations_total";
/// 1 while a plugin is quarantined. From the plugin's statistics.
pub const PLUGIN_QUARANTINED: &str = "tidegate_plugin_quarantined";
/// Looks at registries, by plugin and outcome (`fetched`, `unchanged`, `refused`: what was refused before, and the kinds of
/// failure). From shipping.
pub const PLUGIN_FETCHES: &str = "tidegate_plugin_fetches_total";
/// Versions that were not taken, by plugin and stage (`fetch`, `compile`, `configure`). From shipping.
pub const PLUGIN_REFUSALS: &str = "tidegate_plugin_version_refusals_total";
/// 1, with the version that serves as labels, by plugin. From the compile step.
pub const PLUGIN_VERSION: &str = "tidegate_plugin_version_info";
/// 1 where the version was withdrawn, because it is revoked and none took its place. From the plugin.
pub const PLUGIN_WITHDRAWN: &str = "tidegate_plugin_withdrawn";
/// The share of exchanges that a plugin's next version has, from 0 to 1; 0 once it was rolled back. From its rollout.
pub const ROLLOUT_SHARE: &str = "tidegate_plugin_rollout_share";
/// Questions asked of a plugin with two versions, by plugin and version (`current`, `next`). From its rollout.
pub const ROLLOUT_DECISIONS: &str = "tidegate_plugin_rollout_decisions_total";
/// Rollouts that were ended, by plugin and reason (`faults`, `error_rate`, `latency`). From its rollout.
pub const ROLLOUT_ROLLBACKS: &str = "tidegate_plugin_rollout_rollbacks_total";
/// Answers compared with a shadow's, by plugin and question. From its shadow.
pub const SHADOW_COMPARED: &str = "tidegate_plugin_shadow_compared_total";
/// Of those, the ones that differed, by plugin and question. From its shadow.
pub const SHADOW_DIFFERENCES: &str = "tidegate_plugin_shadow_differences_total";
/// Questions that a shadow was not asked, by plugin and reason (`rate`, `quarantined`, `budget`). From its shadow.
pub const SHADOW_SKIPPED: &str = "tidegate_plugin_shadow_skipped_total";
/// Log lines beyond what a plugin may write, by plugin. From the plugin's statistics.
pub const PLUGIN_LOG_DROPPED: &str = "tidegate_plugin_log_lines_dropped_total";
/// Bytes of `kv` in use, by plugin. From the plugin's namespace.
pub const PLUGIN_KV_BYTES: &str = "tidegate_plugin_kv_bytes";
/// Entries of `kv` that had to make room, by plugin. From the plugin's namespace.
pub const PLUGIN_KV_EVICTED: &str = "tidegate_plugin_kv_evicted_total";
/// Requests that a component answered or failed, by cluster. From the component's statistics.
pub const COMPONENT_REQUESTS: &str = "tidegate_component_requests_total";
/// Requests that a component failed, by cluster and cause (`trap`, `memory`, `cpu_time`, `timeout`, `no_answer`, `error`,
/// `full`). From the component's statistics.
pub const COMPONENT_FAULTS: &str = "tidegate_component_faults_total";
/// Live instances, by cluster. From the component's statistics.
pub const COMPONENT_INSTANCES: &str = "tidegate_component_instances";
/// CPU time of a component's instances, seconds, by cluster. From the component's statistics.
pub const COMPONENT_CPU: &str = "tidegate_component_cpu_seconds_total";
/// Log lines beyond what a component may write, by cluster. From the component's statistics.
pub const COMPONENT_LOG_DROPPED: &str = "tidegate_component_log_lines_dropped_total";
/// Calls of a plugin to clusters, by plugin and outcome. From the plugin's statistics.
pub const PLUGIN_CALLOUTS: &str = "tidegate_plugin_callouts_total";
/// The time of each that was sent, seconds, by plugin. From the plugin's statistics.
pub const PLUGIN_CALLOUT_SECONDS: &str = "tidegate_plugin_callout_seconds";
/// Those under way, by plugin. From the plugin's grant.
pub const PLUGIN_CALLOUTS_ACTIVE: &str = "tidegate_plugin_callouts_active";
/// CPU time of a tenant's guests, seconds, by tenant. From the plugin runtime.
pub const TENANT_CPU: &str = "tidegate_tenant_cpu_seconds_total";
/// Linear memory of a tenant's live instances, by tenant. From the plugin runtime.
pub const TENANT_MEMORY: &str = "tidegate_tenant_memory_bytes";
/// Live instances, by tenant. From the plugin runtime.
pub const TENANT_INSTANCES: &str = "tidegate_tenant_instances";
/// Requests in flight, by tenant, where they are bounded. From `Breaker`.
pub const TENANT_REQUESTS: &str = "tidegate_tenant_requests_active";
/// Requests refused because the tenant had all it may have in flight, by tenant. From `Breaker`.
pub const TENANT_REFUSED: &str = "tidegate_tenant_requests_refused_total";
/// What guests count themselves, by plugin and name. From the plugin's statistics.
pub const PLUGIN_CUSTOM: &str = "tidegate_plugin_custom";
/// Requests from trusted peers whose `Forwarded` and `X-Forwarded-For` named different clients. From `received_identity`.
pub const CONFLICTING_CLAIMS: &str = "tidegate_forwarding_conflicts_total";
/// The configuration generation that is served. From the admin listener.
pub const GENERATION: &str = "tidegate_config_generation";
/// Reloads, by outcome (`ok`, `refused`). From reload.
pub const RELOADS: &str = "tidegate_reloads_total";
/// 1 while a steer's rules are in the kernel, by steer. From steering.
pub const STEER_INSTALLED: &str = "tidegate_steer_installed";
/// Changes of a steer's rules, by steer and outcome (`applied`, `failed`). From steering.
pub const STEER_CHANGES: &str = "tidegate_steer_changes_total";
/// Flows that an endpoint was chosen for, by steer and endpoint. From the kernel's counters.
pub const STEER_FLOWS: &str = "tidegate_steer_flows_total";
/// Packets, by steer, endpoint and direction (`to_endpoint`; `to_client` with NAT only). From the kernel's counters.
pub const STEER_PACKETS: &str = "tidegate_steer_packets_total";
/// Their bytes, by the same. From the kernel's counters.
pub const STEER_BYTES: &str = "tidegate_steer_bytes_total";
/// Packets dropped because no endpoint could take them, by steer. From the kernel's counters.
pub const STEER_UNSERVED: &str = "tidegate_steer_unserved_packets_total";
/// Flows that connection tracking forgot because their endpoint was down, by steer. From steering.
pub const STEER_MOVED: &str = "tidegate_steer_flows_moved_total";
