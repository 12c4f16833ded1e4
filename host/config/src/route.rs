//! `[[route]]`: which requests go where.

use std::time::Duration;

use crate::cluster::is_token;
use crate::reader::Section;

#[derive(Clone, Debug)]
pub struct Route {
    pub line: usize,
    pub name: String,
    pub tenant: Option<String>,
    pub tenant_line: usize,
    pub host_line: usize,
    /// Empty: any.
    pub hosts: Vec<HostMatch>,
    pub path: PathMatch,
    pub methods: Vec<String>,
    pub headers: Vec<(String, HeaderMatch)>,
    pub destination: Destination,
    /// Of the key that names the cluster, or of the table.
    pub destination_line: usize,
    pub router: Option<String>,
    pub router_line: usize,
    pub forwarding: Forwarding,
    pub retry: RetryPolicy,
    pub timeout: Option<Duration>,
    pub attempt_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub max_request_body: Option<u64>,
    pub buffer: Buffer,
    /// `None`: off.
    pub compress: Option<Compress>,
    /// Clients may change to WebSocket.
    pub websocket: bool,
    pub connect: Vec<ConnectTarget>,
    pub connect_udp: Vec<ConnectTarget>,
    pub connect_udp_line: usize,
    pub udp_idle_timeout: Option<Duration>,
}

/// A host and a port that `CONNECT` or connect-udp may name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConnectTarget {
    pub host: HostMatch,
    pub port: u16,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum HostMatch {
    Exact(String),
    /// The part after `*.`.
    Wildcard(String),
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum PathMatch {
    Any,
    Exact(String),
    /// The part before `/*`.
    Prefix(String),
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum HeaderMatch {
    Present,
    Exact(String),
}

#[derive(Clone, Debug)]
pub enum Destination {
    Cluster(String),
    Split(Vec<(String, u32)>),
    Respond(Respond),
    /// Only the router knows.
    Nothing,
}

impl Destination {
    /// The clusters it names.
    pub(crate) fn clusters(&self) -> impl Iterator<Item = &str> {
        let (one, shares) = match self {
            Self::Cluster(name) => (Some(name), [].as_slice()),
            Self::Split(shares) => (None, shares.as_slice()),
            Self::Respond(_) | Self::Nothing => (None, [].as_slice()),
        };
        one.into_iter().chain(shares.iter().map(|(name, _)| name)).map(String::as_str)
    }
}

#[derive(Clone, Debug)]
pub struct Respond {
    pub status: u16,
    pub body: String,
    pub headers: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ForwardingFamilies {
    pub forwarded: bool,
    pub x_forwarded: bool,
    pub x_real_ip: bool,
}

/// What the upstream learns of the client's certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClientCertificate {
    Off,
    Leaf,
    Chain,
}

#[derive(Clone, Debug)]
pub struct Forwarding {
    pub line: usize,
    pub families: ForwardingFamilies,
    pub append: bool,
    pub by: Option<String>,
    pub client_certificate: ClientCertificate,
    pub plugin: Option<String>,
}

#[derive(Clone, Debug)]
pub struct RetryPolicy {
    pub line: usize,
    /// `connect`, `reset`, `refused`, `timeout`, `gateway`, `5xx`.
    pub on: Vec<String>,
    pub statuses: Vec<u16>,
    pub attempts: u32,
    pub hedge_after: Option<Duration>,
    pub backoff: Duration,
    pub max_backoff: Duration,
    pub plugin: Option<String>,
}

impl Route {
    /// The plugins it names, each with the line.
    pub(crate) fn plugins(&self) -> impl Iterator<Item = (&str, usize)> {
        let named = [
            (&self.router, self.router_line),
            (&self.forwarding.plugin, self.forwarding.line),
            (&self.retry.plugin, self.retry.line),
        ];
        named.into_iter().filter_map(|(plugin, line)| Some((plugin.as_deref()?, line)))
    }

    /// `place` counts from 1.
    pub(crate) fn read(section: &Section<'_>, place: usize) -> Self {
        let (destination, destination_line) = destination(section);
        let (path, idle_timeout) = (path(section), section.time_or_off("idle_timeout"));
        let connect_udp = connect_udp(section, &path);
        Self {
            line: section.line,
            name: section.text("name").unwrap_or_else(|| format!("route-{place}")),
            tenant: section.text("tenant"),
            tenant_line: section.line_of("tenant"),
            host_line: section.line_of("host"),
            hosts: hosts(section, "host"),
            path,
            methods: methods(section),
            headers: headers(section),
            destination,
            destination_line,
            router: section.text("router"),
            router_line: section.line_of("router"),
            forwarding: Forwarding::read(&section.section("forwarding")),
            retry: RetryPolicy::read(&section.section("retry")),
            timeout: section.time_or_off("timeout"),
            attempt_timeout: section.time_or_off("attempt_timeout"),
            idle_timeout,
            max_request_body: section.size_or_off("max_request_body"),
            buffer: Buffer::read(&section.section("buffer")),
            compress: section.optional_section("compress").map(|compress| Compress::read(&compress)),
            websocket: section.words("upgrade", &["websocket"]).iter().any(|word| word == "websocket"),
            connect: connect(section),
            connect_udp,
            connect_udp_line: section.line_of("connect_udp"),
            // RFC 9298, section 3.1: not below two minutes, unless somebody says so.
            udp_idle_timeout: if section.has("idle_timeout") { idle_timeout } else { Some(UDP_IDLE_TIMEOUT) },
        }
    }
}

/// What is held back of each message, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub request: u64,
    pub response: u64,
    pub spool: u64,
    pub refuse_larger: bool,
}

impl Buffer {
    fn read(section: &Section<'_>) -> Self {
        let buffer = Self {
            request: section.size("request", 0, 1 << 30),
            response: section.size("response", 0, 1 << 30),
            spool: section.size_or_off("spool").unwrap_or(0),
            refuse_larger: section.bool("refuse_larger"),
        };
        if buffer.spool > 0 && buffer.request == 0 && buffer.response == 0 {
            let message = "buffer: spool takes what memory does not; set request or response as well";
            section.error(section.line_of("spool"), message);
        }
        if buffer.refuse_larger && buffer.request == 0 {
            let message = "buffer: refuse_larger refuses every request with content without request; set it as well";
            section.error(section.line_of("refuse_larger"), message);
        }
        buffer
    }
}

/// Which responses are compressed.
#[derive(Clone, Debug)]
pub struct Compress {
    /// Of `zstd`, `br`, `gzip`.
    pub encodings: Vec<String>,
    pub types: Vec<String>,
    /// Bytes.
    pub min_size: u64,
    pub credentials: bool,
}

impl Compress {
    fn read(section: &Section<'_>) -> Self {
        let mut types = Vec::new();
        for (text, line) in section.texts("types") {
            let halves = text.split_once('/').filter(|(kind, sub)| is_token(kind) && (*sub == "*" || is_token(sub)));
            match halves {
                Some(_) => types.push(text.to_ascii_lowercase()),
                None => section
                    .error(line, format!("compress: {text:?} is not a media type, as in \"text/html\" or \"text/*\"")),
            }
        }
        let encodings = section.words("encodings", &["zstd", "br", "gzip"]);
        if encodings.is_empty() {
            section.error(section.line_of("encodings"), "compress: encodings is empty; leave compress out for none");
        }
        Self {
            encodings,
            types,
            min_size: section.size("min_size", 0, u64::MAX),
            credentials: section.bool("credentials"),
        }
    }
}

/// Names or wildcards under a key.
pub(crate) fn hosts(section: &Section<'_>, key: &str) -> Vec<HostMatch> {
    let mut hosts = Vec::new();
    for (text, line) in section.texts(key) {
        match host(&text) {
            Some(host) => hosts.push(host),
            None => section.error(
                line,
                format!(
                    "{}: {key} {text:?} is not a name without port, as in \"api.example.com\" or \"*.example.com\"",
                    section.table()
                ),
            ),
        }
    }
    hosts
}

/// A name, a bracketed address, or `*.` and a name.
fn host(text: &str) -> Option<HostMatch> {
    let lower = text.to_ascii_lowercase();
    let (wildcard, name) = match lower.strip_prefix("*.") {
        Some(rest) => (true, rest),
        None => (false, lower.as_str()),
    };
    let fine = !name.is_empty()
        && !name.ends_with('.')
        && (name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) || !wildcard && is_literal(name));
    fine.then(|| if wildcard { HostMatch::Wildcard(name.to_owned()) } else { HostMatch::Exact(name.to_owned()) })
}

fn connect(section: &Section<'_>) -> Vec<ConnectTarget> {
    let targets = targets(section, "connect", "db.example.com:5432");
    if !targets.is_empty()
        && section.has("methods")
        && !section.texts("methods").iter().any(|(method, _)| method == "CONNECT")
    {
        section.error(
            section.line_of("methods"),
            "route: connect is never asked for; add \"CONNECT\" to methods, or remove them",
        );
    }
    // A request for a tunnel has no path, and an answer of our own would pass for one.
    for key in ["path", "respond"] {
        if !targets.is_empty() && section.has(key) {
            section.error(section.line_of("connect"), format!("route: connect does not go with {key}; keep one"));
        }
    }
    targets
}

/// Names or addresses with a port.
fn targets(section: &Section<'_>, key: &str, example: &str) -> Vec<ConnectTarget> {
    let mut targets = Vec::new();
    for (text, line) in section.texts(key) {
        let target = text.rsplit_once(':').and_then(|(name, port)| {
            let port = port.parse().ok().filter(|port| *port > 0)?;
            Some(ConnectTarget { host: host(name)?, port })
        });
        match target {
            Some(target) => targets.push(target),
            None => section.error(
                line,
                format!("route: {key}: {text:?} is not a name with a port, as in {example:?} or \"*.example.com:443\""),
            ),
        }
    }
    targets
}

/// The path that clients ask for UDP at begins so (RFC 9298, section 3).
const UDP_PATH: &str = "/.well-known/masque/udp/";

/// Where no other is written.
const UDP_IDLE_TIMEOUT: Duration = Duration::from_secs(120);

fn connect_udp(section: &Section<'_>, path: &PathMatch) -> Vec<ConnectTarget> {
    let mut targets = targets(section, "connect_udp", "dns.example.com:53");
    if targets.is_empty() {
        return targets;
    }
    let line = section.line_of("connect_udp");
    // An address has many spellings: the gateway compares the one of RFC 5952.
    for target in &mut targets {
        let address = match &target.host {
            HostMatch::Exact(name) => name.trim_matches(['[', ']']).parse::<std::net::Ipv6Addr>().ok(),
            HostMatch::Wildcard(_) => None,
        };
        if let Some(address) = address {
            target.host = HostMatch::Exact(format!("[{address}]"));
        }
    }
    if section.has("methods") && !section.texts("methods").iter().any(|(method, _)| method == "GET") {
        let message = "route: connect_udp is never asked for; add \"GET\" to methods, or remove them";
        section.error(section.line_of("methods"), message);
    }
    let asked_at = match path {
        PathMatch::Any => true,
        PathMatch::Exact(path) => path.starts_with(UDP_PATH),
        PathMatch::Prefix(prefix) => UDP_PATH.starts_with(&format!("{prefix}/")) || prefix.starts_with(UDP_PATH),
    };
    if section.has("path") && !asked_at {
        let message = format!("route: connect_udp is never asked for; write path = \"{UDP_PATH}*\", or remove it");
        section.error(section.line_of("path"), message);
    }
    // An answer of our own would pass for an acceptance.
    if section.has("respond") {
        section.error(line, "route: connect_udp does not go with respond; keep one");
    }
    targets
}

/// An IPv6 address in brackets (RFC 3986, section 3.2.2).
fn is_literal(host: &str) -> bool {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
}

fn path(section: &Section<'_>) -> PathMatch {
    let Some(text) = section.text("path") else { return PathMatch::Any };
    let fine = text.starts_with('/') && text.bytes().all(|b| (0x21..=0x7e).contains(&b) && !b"?#".contains(&b));
    let star = text.find('*');
    match text.strip_suffix("/*") {
        Some(prefix) if fine && star == Some(text.len() - 1) => PathMatch::Prefix(prefix.to_owned()),
        None if fine && star.is_none() => PathMatch::Exact(text),
        _ => {
            section.error(
                section.line_of("path"),
                format!("route: path = {text:?} is not a path, as in \"/v1\" or \"/v1/*\""),
            );
            PathMatch::Any
        }
    }
}

fn methods(section: &Section<'_>) -> Vec<String> {
    let mut methods = Vec::new();
    for (method, line) in section.texts("methods") {
        if is_token(&method) && !method.bytes().any(|b| b.is_ascii_lowercase()) {
            methods.push(method);
        } else {
            section
                .error(line, format!("route: {method:?} is not a method; they are written in capitals, as in \"GET\""));
        }
    }
    methods
}

fn headers(section: &Section<'_>) -> Vec<(String, HeaderMatch)> {
    let mut headers = Vec::new();
    for (name, value, line) in section.text_map("headers") {
        if !is_token(&name) {
            section.error(line, format!("route: {name:?} is not a field name"));
        }
        if name.eq_ignore_ascii_case("host") {
            let message = "route: headers: the host is not matched as a header; write host = \"api.example.com\"";
            section.error(line, message);
        }
        let value = if value == "*" { HeaderMatch::Present } else { HeaderMatch::Exact(value) };
        headers.push((name.to_ascii_lowercase(), value));
    }
    headers.sort_by(|a, b| a.0.cmp(&b.0));
    headers
}

fn destination(section: &Section<'_>) -> (Destination, usize) {
    let named: Vec<&str> = ["cluster", "split", "respond"].into_iter().filter(|key| section.has(key)).collect();
    if named.len() > 1 {
        section.error(section.line, format!("route: {} exclude one another; keep one", named.join(" and ")));
    }
    match named.first() {
        Some(&"cluster") => (Destination::Cluster(section.name("cluster")), section.line_of("cluster")),
        Some(&"split") => {
            let shares = section.sections("split");
            let split: Vec<_> = shares
                .iter()
                .map(|share| (share.name("cluster"), share.number("weight", 0, 1_000_000).unwrap_or(1) as u32))
                .collect();
            if split.iter().all(|(_, weight)| *weight == 0) {
                section.error(section.line_of("split"), "route: the weights of split sum to nothing");
            }
            (Destination::Split(split), section.line_of("split"))
        }
        Some(_) => {
            let table = section.section("respond");
            let headers = table.text_map("headers");
            for (name, _, line) in headers.iter().filter(|(name, ..)| !is_token(name)) {
                section.error(*line, format!("respond: {name:?} is not a field name"));
            }
            let respond = Respond {
                status: table.number("status", 200, 599).unwrap_or(200) as u16,
                body: table.text("body").unwrap_or_default(),
                headers: headers.into_iter().map(|(name, value, _)| (name.to_ascii_lowercase(), value)).collect(),
            };
            (Destination::Respond(respond), section.line_of("respond"))
        }
        None => {
            if !section.has("router") {
                section.error(section.line, "route: it leads nowhere; give it cluster, split, respond or router");
            }
            (Destination::Nothing, section.line)
        }
    }
}

impl Forwarding {
    fn read(section: &Section<'_>) -> Self {
        let named = section.words("families", &["forwarded", "x_forwarded", "x_real_ip"]);
        let has = |name: &str| named.iter().any(|n| n == name);
        let by = section.text("by");
        if let Some(by) = by.as_deref() {
            let obfuscated = by.strip_prefix('_').is_some_and(|rest| {
                !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            });
            let address = by.parse::<std::net::IpAddr>().is_ok() || by.parse::<std::net::SocketAddr>().is_ok();
            if !obfuscated && !address {
                section.error(
                    section.line_of("by"),
                    format!(
                        "forwarding: by = {by:?} is neither an address nor an obfuscated name like \"_edge\" (RFC 7239)"
                    ),
                );
            }
        }
        Self {
            line: section.line_of("plugin"),
            families: ForwardingFamilies {
                forwarded: has("forwarded"),
                x_forwarded: has("x_forwarded"),
                x_real_ip: has("x_real_ip"),
            },
            append: section.one_of("mode") == "append",
            by,
            client_certificate: match section.one_of("client_certificate").as_str() {
                "leaf" => ClientCertificate::Leaf,
                "chain" => ClientCertificate::Chain,
                _ => ClientCertificate::Off,
            },
            plugin: section.text("plugin"),
        }
    }
}

impl RetryPolicy {
    fn read(section: &Section<'_>) -> Self {
        const WORDS: [&str; 6] = ["connect", "reset", "refused", "timeout", "gateway", "5xx"];
        let (mut on, mut statuses) = (Vec::new(), Vec::new());
        for (word, line) in section.texts("on") {
            match word.parse::<u16>() {
                Ok(status) if (400..=599).contains(&status) => statuses.push(status),
                Err(_) if WORDS.contains(&word.as_str()) => on.push(word),
                _ => {
                    let near = crate::error::nearest(&word, WORDS);
                    section.error(
                        line,
                        format!(
                            "retry: on: {word:?} is neither a status from 400 nor one of {}{near}",
                            crate::error::quoted(&WORDS)
                        ),
                    );
                }
            }
        }
        let attempts = section.number("attempts", 1, 10).unwrap_or(1) as u32;
        let hedge_after = section.time_or_off("hedge_after");
        if hedge_after.is_some() && attempts == 1 {
            section.error(section.line_of("hedge_after"), "retry: a hedge is a second try; attempts = 1 allows none");
        }
        Self {
            line: section.line_of("plugin"),
            on,
            statuses,
            attempts,
            hedge_after,
            backoff: section.time("backoff"),
            max_backoff: section.time("max_backoff"),
            plugin: section.text("plugin"),
        }
    }
}
