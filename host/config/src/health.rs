//! `[cluster.health]`, `[cluster.ejection]`, `circuit_breaker`: who takes requests, and how many at once.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::reader::Section;

/// Active checks.
#[derive(Clone, Debug)]
pub struct HealthCheck {
    pub kind: CheckKind,
    /// In place of the endpoint's.
    pub port: Option<u16>,
    pub interval: Duration,
    pub timeout: Duration,
    /// Each interval is longer by up to this share of it.
    pub jitter: f64,
    pub healthy_threshold: u32,
    pub unhealthy_threshold: u32,
    /// Endpoints are believed until a check says otherwise.
    pub initially_healthy: bool,
}

/// What a check asks, and what it wants to hear.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CheckKind {
    Http {
        path: String,
        host: Option<String>,
        head: bool,
        expect: Vec<RangeInclusive<u16>>,
    },
    /// Without `send` and `receive` a connection is enough.
    Tcp {
        send: String,
        receive: String,
    },
    Grpc {
        service: String,
        host: Option<String>,
    },
}

/// Ejection by results.
#[derive(Clone, Debug)]
pub struct Ejection {
    pub consecutive_5xx: u32,
    pub consecutive_gateway: u32,
    pub consecutive_local: u32,
    pub interval: Duration,
    pub base_time: Duration,
    pub max_time: Duration,
    pub max_ejected: f64,
    pub success_rate_factor: f64,
    pub failure_share: f64,
    pub min_endpoints: usize,
    pub min_requests: u32,
}

#[derive(Clone, Copy, Debug)]
pub struct CircuitBreaker {
    pub max_requests: Option<u32>,
    pub max_retries: u32,
}

/// Of intervals between checks.
const SHORTEST: Duration = Duration::from_millis(10);

impl HealthCheck {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let word = section.one_of("kind");
        for (key, kinds) in [
            ("path", &["http"][..]),
            ("method", &["http"]),
            ("expect", &["http"]),
            ("host", &["http", "grpc"]),
            ("service", &["grpc"]),
            ("send", &["tcp"]),
            ("receive", &["tcp"]),
        ] {
            if section.has(key) && !kinds.contains(&word.as_str()) {
                let message = format!("cluster.health: {key} does not go with kind = {word:?}; remove one of them");
                section.error(section.line_of(key), message);
            }
        }
        let kind = match word.as_str() {
            "tcp" => CheckKind::Tcp {
                send: section.text("send").unwrap_or_default(),
                receive: section.text("receive").unwrap_or_default(),
            },
            "grpc" => CheckKind::Grpc { service: section.text("service").unwrap_or_default(), host: host(section) },
            _ => CheckKind::Http {
                path: path(section),
                host: host(section),
                head: section.one_of("method") == "HEAD",
                expect: expected(section),
            },
        };
        let interval = section.time("interval");
        if interval < SHORTEST {
            let message =
                format!("cluster.health: interval: less than {SHORTEST:?} would keep endpoints busy with checks");
            section.error(section.line_of("interval"), message);
        }
        Self {
            kind,
            port: section.number("port", 1, 65_535).map(|port| port as u16),
            interval,
            timeout: section.time("timeout"),
            jitter: share(section, "cluster.health", "jitter"),
            healthy_threshold: section.number("healthy_threshold", 1, 1000).unwrap_or(1) as u32,
            unhealthy_threshold: section.number("unhealthy_threshold", 1, 1000).unwrap_or(1) as u32,
            initially_healthy: section.one_of("initial") == "healthy",
        }
    }
}

fn path(section: &Section<'_>) -> String {
    let path = section.text("path").unwrap_or_default();
    if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        let message = format!("cluster.health: path = {path:?} is not a path, as in \"/health\"");
        section.error(section.line_of("path"), message);
    }
    path
}

/// As it goes into `Host` or `:authority`.
fn host(section: &Section<'_>) -> Option<String> {
    let host = section.text("host")?;
    let fits = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~:[]".contains(&b));
    if !fits {
        let message = format!("cluster.health: host = {host:?} is not a name, as in \"api.internal\"");
        section.error(section.line_of("host"), message);
    }
    Some(host)
}

fn expected(section: &Section<'_>) -> Vec<RangeInclusive<u16>> {
    let mut ranges = Vec::new();
    for (text, line) in section.texts("expect") {
        let (first, last) = text.split_once('-').unwrap_or((&text, &text));
        let status = |text: &str| text.trim().parse::<u16>().ok().filter(|status| (200..=599).contains(status));
        match (status(first), status(last)) {
            (Some(first), Some(last)) if first <= last => ranges.push(first..=last),
            _ => section.error(
                line,
                format!("cluster.health: expect: {text:?} is neither a status nor a range of them, as in \"200-299\""),
            ),
        }
    }
    if section.texts("expect").is_empty() {
        section.error(section.line_of("expect"), "cluster.health: expect: without a status no check can pass");
    }
    ranges
}

impl Ejection {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let count = |name| section.number(name, 0, 1_000_000).unwrap_or(0) as u32;
        let factor: f64 = section.parsed("success_rate_factor", "a number, as in \"1.9\"").unwrap_or(0.0);
        if !(0.0..=1000.0).contains(&factor) {
            let message = format!("cluster.ejection: success_rate_factor = \"{factor}\" is not between 0 and 1000");
            section.error(section.line_of("success_rate_factor"), message);
        }
        Self {
            consecutive_5xx: count("consecutive_5xx"),
            consecutive_gateway: count("consecutive_gateway"),
            consecutive_local: count("consecutive_local"),
            interval: section.time("interval"),
            base_time: section.time("base_time"),
            max_time: section.time("max_time"),
            max_ejected: share(section, "cluster.ejection", "max_ejected"),
            success_rate_factor: factor,
            failure_share: share(section, "cluster.ejection", "failure_share"),
            min_endpoints: section.number("min_endpoints", 1, 100_000).unwrap_or(1) as usize,
            min_requests: section.number("min_requests", 1, 1_000_000_000).unwrap_or(1) as u32,
        }
    }
}

impl CircuitBreaker {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        Self {
            max_requests: section.number("max_requests", 1, u64::from(u32::MAX) - 1).map(|most| most as u32),
            max_retries: section.number("max_retries", 0, u64::from(u32::MAX) - 1).unwrap_or(0) as u32,
        }
    }
}

/// A part of a whole, of a key of `table`.
pub(crate) fn share(section: &Section<'_>, table: &str, name: &str) -> f64 {
    let share = section.share(name);
    if share > 1.0 {
        section.error(section.line_of(name), format!("{table}: {name} is more than 100%"));
    }
    share.min(1.0)
}
