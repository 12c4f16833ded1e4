//! `[[listener]]`: where clients connect.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::reader::Section;
use crate::tunnel::Tunnel;

#[derive(Clone, Debug)]
pub struct Listener {
    pub line: usize,
    pub name: String,
    pub address: SocketAddr,
    pub http1: bool,
    pub http2: bool,
    pub http3: bool,
    pub trusted_proxies: Vec<IpNet>,
    /// `None`: off.
    pub proxy_protocol: Option<AcceptProxyProtocol>,
    pub trusted_family: TrustedFields,
    pub max_connections: usize,
    pub max_header_bytes: usize,
    pub max_headers: usize,
    pub max_streams: u32,
    pub header_timeout: Duration,
    pub idle_timeout: Duration,
    pub body_idle_timeout: Duration,
    pub handshake_timeout: Duration,
    pub max_requests_per_connection: u64,
    /// Bytes a second, at least 1.
    pub min_upload_rate: Option<u64>,
    pub min_download_rate: Option<u64>,
    pub rate_grace: Duration,
    pub buffer_memory: Option<u64>,
    pub alt_svc: bool,
    pub tls: Option<ListenerTls>,
    /// `None`: every connection ends here.
    pub tunnel: Option<Tunnel>,
}

/// The fields that trusted proxies maintain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TrustedFields {
    Auto,
    Forwarded,
    XForwarded,
}

#[derive(Clone, Debug)]
pub struct AcceptProxyProtocol {
    pub required: bool,
    pub trusted: Vec<IpNet>,
    pub timeout: Duration,
}

#[derive(Clone, Debug)]
pub struct ListenerTls {
    pub certificates: Vec<CertificateFiles>,
    pub tls13_only: bool,
    pub early_data: bool,
}

#[derive(Clone, Debug)]
pub struct CertificateFiles {
    pub line: usize,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// All in the certificate where empty.
    pub names: Vec<String>,
    /// Its own, or else the listener's.
    pub client: Option<ClientCertificates>,
}

/// What clients are asked for.
#[derive(Clone, Debug)]
pub struct ClientCertificates {
    /// Of `ca`.
    pub line: usize,
    pub ca: PathBuf,
    pub auth: ClientAuthMode,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClientAuthMode {
    Required,
    Optional,
}

impl Listener {
    /// Whether requests come by it: all of it is tunnels else.
    pub fn speaks_http(&self) -> bool {
        self.http1 || self.http2 || self.http3
    }

    pub(crate) fn read(section: &Section<'_>) -> Self {
        let tls = section.optional_section("tls").map(|tls| ListenerTls::read(&tls));
        let line = section.line_of("protocols");
        let only_tunnel = tls.is_none() && section.has("tunnel");
        let known: &[&str] = if only_tunnel { &["tcp", "udp"] } else { &["http1", "http2", "http3"] };
        let named = section.words("protocols", known);
        let tunnel = section.optional_section("tunnel").map(|tunnel| Tunnel::read(&tunnel, tls.is_some(), &named));
        let proxy_protocol = AcceptProxyProtocol::read(&section.section("proxy_protocol"));
        let proxied = proxy_protocol.as_ref().is_some_and(|accept| accept.required);
        let has = |name: &str| {
            let default = name != "http3" || (tls.is_some() && !proxied);
            !only_tunnel && if section.has("protocols") { named.iter().any(|n| n == name) } else { default }
        };
        let (http1, http2, http3) = (has("http1"), has("http2"), has("http3"));
        if section.has("protocols") && named.is_empty() {
            section.error(line, "listener: protocols is empty; leave it out for the default");
        }
        if http3 && tls.is_none() {
            section.error(line, "listener: http3 needs tls: QUIC has no clear text (RFC 9001)");
        }
        if http3 && proxied {
            section
                .error(line, "listener: http3 has no PROXY header to require; leave it out, or accept = \"optional\"");
        }
        if http3 && !http1 && !http2 {
            section.error(line, "listener: http3 alone is never found; add http2 or http1, which announce it");
        }
        let unspecified = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Self {
            line: section.line,
            name: section.label("name"),
            address: section.parsed("address", "an address and port, as in \"[::]:8443\"").unwrap_or(unspecified),
            http1,
            http2,
            http3,
            trusted_proxies: networks(section, "listener", section.texts("trusted_proxies")),
            proxy_protocol,
            trusted_family: match section.one_of("trusted_family").as_str() {
                "forwarded" => TrustedFields::Forwarded,
                "x_forwarded" => TrustedFields::XForwarded,
                _ => TrustedFields::Auto,
            },
            max_connections: section.number("max_connections", 1, 10_000_000).unwrap_or(1) as usize,
            max_header_bytes: section.size("max_header_bytes", 1024, 1024 * 1024) as usize,
            max_headers: section.number("max_headers", 1, 1000).unwrap_or(1) as usize,
            max_streams: section.number("max_streams", 1, 100_000).unwrap_or(1) as u32,
            header_timeout: section.time("header_timeout"),
            idle_timeout: section.time("idle_timeout"),
            body_idle_timeout: section.time("body_idle_timeout"),
            handshake_timeout: section.time("handshake_timeout"),
            max_requests_per_connection: section.number("max_requests_per_connection", 1, u64::MAX).unwrap_or(1),
            min_upload_rate: section.size_or_off("min_upload_rate").filter(|rate| *rate > 0),
            min_download_rate: section.size_or_off("min_download_rate").filter(|rate| *rate > 0),
            rate_grace: section.time("rate_grace"),
            buffer_memory: section.size_or_off("buffer_memory"),
            alt_svc: section.bool("alt_svc"),
            tls,
            tunnel,
        }
    }
}

impl AcceptProxyProtocol {
    fn read(section: &Section<'_>) -> Option<Self> {
        let texts = section.texts("trusted");
        let nobody = texts.is_empty();
        let trusted = networks(section, "proxy_protocol", texts);
        let timeout = section.time("timeout");
        let accept = section.one_of("accept");
        if accept == "off" {
            return None;
        }
        if nobody {
            section.error(
                section.line_of("accept"),
                format!("proxy_protocol: accept = {accept:?} without trusted takes a header from nobody; name the proxies' networks"),
            );
        }
        Some(Self { required: accept == "required", trusted, timeout })
    }
}

/// Networks, or single addresses.
fn networks(section: &Section<'_>, table: &str, texts: Vec<(String, usize)>) -> Vec<IpNet> {
    let mut networks = Vec::new();
    for (text, line) in texts {
        let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        match network {
            Ok(network) => networks.push(network.trunc()),
            Err(_) => section.error(line, format!("{table}: {text:?} is not a network, as in \"10.0.0.0/8\"")),
        }
    }
    networks
}

impl ListenerTls {
    fn read(section: &Section<'_>) -> Self {
        let auth = section.one_of("client_auth");
        let client = section.path("client_ca").map(|ca| (section.line_of("client_ca"), ca));
        if section.has("client_auth") && client.is_none() {
            section.error(
                section.line_of("client_auth"),
                "listener.tls: client_auth without client_ca verifies nobody; name the roots",
            );
        }
        let certificates = section.sections("certificates");
        Self {
            certificates: certificates
                .iter()
                .map(|pair| CertificateFiles::read(pair, client.as_ref(), &auth))
                .collect(),
            tls13_only: section.one_of("min_version") == "1.3",
            early_data: section.bool("early_data"),
        }
    }
}

impl CertificateFiles {
    /// With what the listener has for all: the roots and their line, and `client_auth`.
    fn read(section: &Section<'_>, shared: Option<&(usize, PathBuf)>, shared_auth: &str) -> Self {
        let own = section.path("client_ca").map(|ca| (section.line_of("client_ca"), ca));
        let auth = if section.has("client_auth") { section.one_of("client_auth") } else { shared_auth.to_owned() };
        let client = match auth.as_str() {
            "off" if own.is_some() => {
                let line = section.line_of("client_auth");
                section.error(line, "certificate: client_ca with client_auth = \"off\" is never used; leave one out");
                None
            }
            "off" => None,
            auth => {
                let auth = if auth == "optional" { ClientAuthMode::Optional } else { ClientAuthMode::Required };
                let roots = own.as_ref().or(shared).cloned();
                roots.map(|(line, ca)| ClientCertificates { line, ca, auth })
            }
        };
        if section.has("client_auth") && auth != "off" && client.is_none() {
            let line = section.line_of("client_auth");
            section.error(line, "certificate: client_auth without client_ca verifies nobody; name the roots");
        }
        Self {
            line: section.line,
            certificate: section.path("certificate").unwrap_or_default(),
            key: section.path("key").unwrap_or_default(),
            names: section.texts("names").into_iter().map(|(name, _)| name).collect(),
            client,
        }
    }
}
