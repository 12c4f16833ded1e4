//! A component in place of a cluster's endpoints.

use std::path::PathBuf;
use std::time::Duration;

use crate::reader::Section;
use crate::tenant::CpuShare;

/// A component that answers a cluster's requests within the gateway.
#[derive(Clone, Debug)]
pub struct Component {
    pub line: usize,
    pub limits_line: usize,
    pub file: PathBuf,
    /// What it reads as its environment.
    pub environment: Vec<(String, String)>,
    /// CPU time of one request.
    pub cpu_time: Duration,
    /// Of all of them.
    pub cpu: Option<CpuShare>,
    /// From a request's begin to the end of its response; `None`: as long as the client stays.
    pub timeout: Option<Duration>,
    /// Bytes of linear memory of one request.
    pub memory: u64,
    /// Requests at once, over all workers.
    pub instances: u32,
    /// Lines a second, over all workers.
    pub log_lines: u32,
}

/// What says how endpoints are reached, and so nothing of a component.
const OF_ENDPOINTS: [&str; 3] = ["tls", "health", "slow_start"];

impl Component {
    /// `None` for a cluster of endpoints.
    pub(crate) fn read(section: &Section<'_>) -> Option<Self> {
        if !section.has("component") {
            if !section.has("endpoints") {
                let message = "cluster: \"endpoints\" is missing: where its requests go; or \"component\", which answers \
                               them here";
                section.error(section.line, message);
            }
            for key in ["limits", "env"].into_iter().filter(|key| section.has(key)) {
                section.error(section.line_of(key), format!("cluster: {key} is of a component, and there is none"));
            }
            return None;
        }
        let line = section.line_of("component");
        if section.has("endpoints") {
            let message = "cluster: endpoints and component exclude one another: a cluster's requests go somewhere or are \
                           answered here; make two clusters, and a route with a split";
            section.error(line, message);
        }
        for key in OF_ENDPOINTS.into_iter().filter(|key| section.has(key)) {
            let message = format!("cluster: {key} does not go with a component, which is no other machine; remove it");
            section.error(section.line_of(key), message);
        }
        for (key, plain) in [("protocol", ["auto", "http1"].as_slice()), ("proxy_protocol", &["off"])] {
            if !section.text(key).is_some_and(|text| plain.contains(&text.as_str())) {
                let message =
                    format!("cluster: {key} says how endpoints are spoken to, and does not go with a component");
                section.error(section.line_of(key), message);
            }
        }
        let limits = section.section("limits");
        Some(Self {
            line,
            limits_line: section.line_of("limits"),
            file: section.path("component").unwrap_or_default(),
            environment: section.text_map("env").into_iter().map(|(name, value, _)| (name, value)).collect(),
            cpu_time: limits.time("cpu_time"),
            cpu: CpuShare::read(&limits, "cluster"),
            timeout: limits.time_or_off("timeout"),
            memory: limits.size("memory", 64 * 1024, 1 << 30),
            instances: limits.number("instances", 1, 100_000).unwrap_or(1) as u32,
            log_lines: limits.number("log_lines", 1, 1_000_000).unwrap_or(1) as u32,
        })
    }
}
