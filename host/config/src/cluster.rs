//! `[[cluster]]`: endpoints that can stand in for one another.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::component::Component;
use crate::health::{CheckKind, CircuitBreaker, Ejection, HealthCheck, share};
use crate::reader::Section;

#[derive(Clone, Debug)]
pub struct Cluster {
    pub line: usize,
    pub name: String,
    pub tenant: Option<String>,
    pub tenant_line: usize,
    /// Tenants' routes and routers may name it.
    pub shared: bool,
    pub endpoints: Vec<EndpointSpec>,
    /// In place of endpoints.
    pub component: Option<Component>,
    pub protocol: ClusterProtocol,
    pub balance: Balance,
    pub connect_timeout: Duration,
    pub idle_timeout: Duration,
    pub max_connection_age: Duration,
    pub max_requests_per_connection: u64,
    pub max_connections: usize,
    pub max_streams_per_connection: u32,
    pub max_pending: usize,
    pub pending_timeout: Duration,
    pub max_requests: u32,
    pub proxy_protocol: ProxyProtocol,
    pub retry_percent: f64,
    pub retry_min: u32,
    pub tls: Option<ClusterTls>,
    pub health: Option<HealthCheck>,
    pub ejection: Option<Ejection>,
    pub panic_threshold: f64,
    pub slow_start: Option<Duration>,
    pub breaker: CircuitBreaker,
    /// Keys that were written and are about connections and requests of the gateway's own, with their lines.
    pub of_requests: Vec<(&'static str, usize)>,
}

/// What has a meaning only where the gateway connects to the endpoints itself, checks apart.
const OF_REQUESTS: [&str; 17] = [
    "protocol",
    "balance",
    "idle_timeout",
    "max_connection_age",
    "max_requests_per_connection",
    "max_connections",
    "max_streams_per_connection",
    "max_pending",
    "pending_timeout",
    "max_requests",
    "proxy_protocol",
    "proxy_tlvs",
    "retry_budget",
    "tls",
    "ejection",
    "slow_start",
    "circuit_breaker",
];

#[derive(Clone, Debug)]
pub struct EndpointSpec {
    pub line: usize,
    pub address: SocketAddr,
    pub weight: u32,
    pub zone: Option<String>,
    pub labels: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClusterProtocol {
    Auto,
    Http1,
    Http2,
    Http3,
}

/// The header that goes before all else on a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ProxyProtocol {
    Off,
    V1,
    /// With these fields, of [`PROXY_TLVS`].
    V2(Vec<String>),
}

/// What `proxy_tlvs` may name.
pub const PROXY_TLVS: [&str; 5] = ["alpn", "authority", "ssl", "unique_id", "crc32c"];

#[derive(Clone, Debug)]
pub struct Balance {
    pub line: usize,
    pub by: BalanceBy,
    pub on: HashKey,
    pub table: usize,
    pub plugin: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BalanceBy {
    RoundRobin,
    LeastRequest,
    PeakEwma,
    Maglev,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HashKey {
    ClientIp,
    Path,
    Header(String),
    Cookie(String),
}

#[derive(Clone, Debug)]
pub struct ClusterTls {
    pub line: usize,
    pub server_name: Option<String>,
    pub ca: Option<PathBuf>,
    pub certificate: Option<(PathBuf, PathBuf)>,
    pub verify: bool,
}

impl Cluster {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let protocol = match section.one_of("protocol").as_str() {
            "http1" => ClusterProtocol::Http1,
            "http2" => ClusterProtocol::Http2,
            "http3" => ClusterProtocol::Http3,
            _ => ClusterProtocol::Auto,
        };
        let tls = section.optional_section("tls").map(|tls| ClusterTls::read(&tls));
        if protocol == ClusterProtocol::Http3 && tls.is_none() {
            let line = section.line_of("protocol");
            section.error(
                line,
                "cluster: protocol = \"http3\" needs tls: QUIC has no clear text (RFC 9001); add tls = {}",
            );
        }
        let health = section.optional_section("health").map(|health| HealthCheck::read(&health));
        let tcp = health.as_ref().is_some_and(|health| matches!(health.kind, CheckKind::Tcp { .. }));
        if protocol == ClusterProtocol::Http3 && tcp {
            let line = section.line_of("health");
            section.error(
                line,
                "cluster: health: kind = \"tcp\" says nothing of an endpoint on QUIC; \"http\" and \"grpc\" go over it",
            );
        }
        let budget = section.section("retry_budget");
        let endpoints = endpoints(section);
        let balance = Balance::read(&section.section("balance"));
        let slow_start = section.time_or_off("slow_start");
        if slow_start.is_some() && balance.by == BalanceBy::Maglev {
            let message =
                "cluster: slow_start does not go with maglev, which keeps each key to its endpoint; remove one of them";
            section.error(section.line_of("slow_start"), message);
        }
        Self {
            line: section.line,
            name: section.label("name"),
            tenant: section.text("tenant"),
            tenant_line: section.line_of("tenant"),
            shared: section.bool("shared"),
            endpoints,
            component: Component::read(section),
            protocol,
            balance,
            connect_timeout: section.time("connect_timeout"),
            idle_timeout: section.time("idle_timeout"),
            max_connection_age: section.time("max_connection_age"),
            max_requests_per_connection: section.number("max_requests_per_connection", 1, u64::MAX).unwrap_or(1),
            max_connections: section.number("max_connections", 1, 1_000_000).unwrap_or(1) as usize,
            max_streams_per_connection: section.number("max_streams_per_connection", 1, 100_000).unwrap_or(1) as u32,
            max_pending: section.number("max_pending", 0, 1_000_000).unwrap_or(0) as usize,
            pending_timeout: section.time("pending_timeout"),
            max_requests: section.number("max_requests", 1, u64::from(u32::MAX)).unwrap_or(1) as u32,
            proxy_protocol: proxy_protocol(section),
            retry_percent: budget.share("percent"),
            retry_min: budget.number("min", 0, 1_000_000).unwrap_or(0) as u32,
            tls,
            health,
            ejection: section.optional_section("ejection").map(|ejection| Ejection::read(&ejection)),
            panic_threshold: share(section, "cluster", "panic_threshold"),
            slow_start,
            breaker: CircuitBreaker::read(&section.section("circuit_breaker")),
            of_requests: OF_REQUESTS
                .into_iter()
                .filter(|key| section.has(key))
                .map(|key| (key, section.line_of(key)))
                .collect(),
        }
    }
}

fn proxy_protocol(section: &Section<'_>) -> ProxyProtocol {
    let fields = section.words("proxy_tlvs", &PROXY_TLVS);
    let version = section.one_of("proxy_protocol");
    if version != "v2" && section.has("proxy_tlvs") {
        let line = section.line_of("proxy_tlvs");
        section.error(
            line,
            "cluster: proxy_tlvs without proxy_protocol = \"v2\" are sent nowhere; only version 2 has fields",
        );
    }
    match version.as_str() {
        "v1" => ProxyProtocol::V1,
        "v2" => ProxyProtocol::V2(fields),
        _ => ProxyProtocol::Off,
    }
}

fn endpoints(section: &Section<'_>) -> Vec<EndpointSpec> {
    let mut endpoints = Vec::new();
    for item in section.items("endpoints") {
        match item {
            Ok(table) => {
                let Some(address) = table.parsed("address", "an IP address and port, as in \"127.0.0.1:9001\"") else {
                    continue;
                };
                let labels = table.text_map("labels").into_iter().map(|(key, value, _)| (key, value)).collect();
                let weight = table.number("weight", 0, 1_000_000).unwrap_or(1) as u32;
                endpoints.push(EndpointSpec { line: table.line, address, weight, zone: table.text("zone"), labels });
            }
            Err((text, line)) => match text.parse() {
                Ok(address) => {
                    endpoints.push(EndpointSpec { line, address, weight: 1, zone: None, labels: Vec::new() });
                }
                Err(_) => {
                    section.error(
                        line,
                        format!("cluster: endpoint {text:?} is not an IP address and port, as in \"127.0.0.1:9001\""),
                    );
                }
            },
        }
    }
    endpoints
}

impl Balance {
    fn read(section: &Section<'_>) -> Self {
        let by = match section.one_of("by").as_str() {
            "least_request" => BalanceBy::LeastRequest,
            "peak_ewma" => BalanceBy::PeakEwma,
            "maglev" => BalanceBy::Maglev,
            _ => BalanceBy::RoundRobin,
        };
        let text = section.text("on").unwrap_or_default();
        let on = match text.split_once(':') {
            None if text == "client_ip" => HashKey::ClientIp,
            None if text == "path" => HashKey::Path,
            Some(("header", name)) if name.eq_ignore_ascii_case("host") => {
                let message = "balance: the host is not a header here: requests for one host would all go to one \
                               endpoint; hash by \"path\", \"client_ip\" or another field";
                section.error(section.line_of("on"), message);
                HashKey::ClientIp
            }
            Some(("header", name)) if is_token(name) => HashKey::Header(name.to_ascii_lowercase()),
            Some(("cookie", name)) if is_token(name) => HashKey::Cookie(name.to_owned()),
            _ => {
                let wanted = "\"client_ip\", \"path\", \"header:NAME\" or \"cookie:NAME\"";
                section.error(section.line_of("on"), format!("balance: on = {text:?} is none of {wanted}"));
                HashKey::ClientIp
            }
        };
        let table = section.number("table", 3, 5_000_011).unwrap_or(65_537);
        if !is_prime(table) {
            section.error(
                section.line_of("table"),
                format!("balance: table = {table} is not a prime; 251, 4099 and 65537 are"),
            );
        }
        Self { line: section.line_of("plugin"), by, on, table: table as usize, plugin: section.text("plugin") }
    }
}

impl ClusterTls {
    fn read(section: &Section<'_>) -> Self {
        let certificate = match (section.path("certificate"), section.path("key")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                section.error(section.line, "cluster.tls: certificate and key go together; give both or neither");
                None
            }
        };
        Self {
            line: section.line,
            server_name: section.text("server_name"),
            ca: section.path("ca"),
            certificate,
            verify: section.bool("verify"),
        }
    }
}

/// A field or cookie name (RFC 9110, section 5.6.2).
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

pub(crate) fn is_prime(number: u64) -> bool {
    number > 1 && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}
