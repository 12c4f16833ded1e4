//! The access log's line: one JSON object per exchange, or tunnel below HTTP.

use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};
use tidegate_policy::{Origin, Tunnel};

use super::{Decided, DecisionRecord, Record, TunnelRecord, protocol};

#[derive(Serialize)]
struct Line<'a> {
    /// Seconds since 1970-01-01T00:00:00Z, when the head came.
    time: f64,
    listener: &'a str,
    client: String,
    peer: String,
    protocol: &'static str,
    method: &'a str,
    authority: &'a str,
    path: &'a str,
    /// What the exchange became, or was asked to become.
    tunnel: Option<&'static str>,
    status: u16,
    route: Option<&'a str>,
    tenant: Option<&'a str>,
    cluster: Option<&'a str>,
    endpoint: Option<String>,
    attempts: u32,
    duration_us: u64,
    upstream_us: Option<u64>,
    bytes_in: u64,
    bytes_out: u64,
    cause: Option<&'static str>,
    detail: Option<&'a str>,
    cancelled: bool,
    decisions: Vec<Decision<'a>>,
}

#[derive(Serialize)]
struct Decision<'a> {
    question: &'static str,
    by: &'a str,
    origin: &'static str,
    #[serde(serialize_with = "words")]
    answer: &'a Decided,
    ns: u64,
    /// Of those that make some.
    #[serde(skip_serializing_if = "Option::is_none")]
    callouts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waited_ns: Option<u64>,
}

impl<'a> From<&'a DecisionRecord> for Decision<'a> {
    fn from(record: &'a DecisionRecord) -> Self {
        let origin = match record.origin {
            Origin::Native => "native",
            Origin::Wasm => "wasm",
            Origin::Memo => "memo",
        };
        let ns = record.took.as_nanos() as u64;
        let called_out = record.callouts > 0;
        Self {
            question: record.question.name(),
            by: &record.by,
            origin,
            answer: &record.decided,
            ns,
            callouts: called_out.then_some(record.callouts),
            waited_ns: called_out.then_some(record.waited.as_nanos() as u64),
        }
    }
}

fn words<S: Serializer>(decided: &&Decided, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(decided)
}

/// Appends the line of `record`, its line feed included. JSON escapes every control character, so nothing a client
/// sends can break out of its line.
pub fn line(record: &Record, out: &mut Vec<u8>) {
    let request = &record.asked.request;
    let connection = &record.asked.connection;
    let took = record.begun.elapsed();
    let line = Line {
        time: seconds_before_now(took),
        listener: &connection.listener,
        client: record.asked.client.to_string(),
        peer: connection.peer.to_string(),
        protocol: protocol(request.version),
        method: request.method.as_str(),
        authority: &request.authority,
        path: request.target.as_str(),
        tunnel: request.tunnel.map(Tunnel::name),
        status: record.status,
        route: record.route.as_deref(),
        tenant: record.tenant.as_ref().map(|tenant| &*tenant.name),
        cluster: record.cluster.as_deref(),
        endpoint: record.endpoint.map(|endpoint| endpoint.to_string()),
        attempts: record.attempts,
        duration_us: took.as_micros() as u64,
        upstream_us: record.upstream.map(|time| time.as_micros() as u64),
        bytes_in: record.bytes_in.get(),
        bytes_out: record.bytes_out.get(),
        cause: record.cause.map(|cause| cause.name()),
        detail: record.detail.as_deref(),
        cancelled: record.cancelled(),
        decisions: record.decisions.iter().map(Decision::from).collect(),
    };
    if serde_json::to_writer(&mut *out, &line).is_ok() {
        out.push(b'\n');
    }
}

fn seconds_before_now(time: Duration) -> f64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since_epoch.saturating_sub(time).as_micros() as f64 / 1e6
}

#[derive(Serialize)]
struct TunnelLine<'a> {
    /// As of [`Line`].
    time: f64,
    listener: &'a str,
    client: String,
    peer: String,
    /// `tcp`, `udp` or `quic`: not one of those of HTTP.
    protocol: &'static str,
    server_name: Option<&'a str>,
    alpn: Option<&'a str>,
    cluster: Option<&'a str>,
    endpoint: Option<String>,
    attempts: u32,
    duration_us: u64,
    connect_us: Option<u64>,
    bytes_in: u64,
    bytes_out: u64,
    cause: Option<&'static str>,
    detail: Option<&'a str>,
    decisions: Vec<Decision<'a>>,
}

/// The same for a tunnel below HTTP.
pub fn tunnel_line(record: &TunnelRecord, out: &mut Vec<u8>) {
    let connection = &record.asked.connection;
    let took = record.begun.elapsed();
    let line = TunnelLine {
        time: seconds_before_now(took),
        listener: &connection.listener,
        client: connection.client.to_string(),
        peer: connection.peer.to_string(),
        protocol: record.kind.name(),
        server_name: connection.server_name.as_deref(),
        alpn: connection.alpn.as_deref(),
        cluster: record.cluster.as_deref(),
        endpoint: record.endpoint.map(|endpoint| endpoint.to_string()),
        attempts: record.attempts,
        duration_us: took.as_micros() as u64,
        connect_us: record.connected.map(|time| time.as_micros() as u64),
        bytes_in: record.bytes_in.get(),
        bytes_out: record.bytes_out.get(),
        cause: record.cause.map(|cause| cause.name()),
        detail: record.detail.as_deref(),
        decisions: record.decisions.iter().map(Decision::from).collect(),
    };
    if serde_json::to_writer(&mut *out, &line).is_ok() {
        out.push(b'\n');
    }
}
