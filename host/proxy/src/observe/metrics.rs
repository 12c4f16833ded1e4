//! What a worker counts: plain atomics of its own, summed when somebody asks.
//!
//! Only the worker writes, so an increment is an uncontended relaxed add; the admin listener reads from its thread.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate_policy::{Cause, HttpVersion};

use super::{TunnelKind, names};
use crate::Coding;
use crate::snapshot::Snapshot;

/// A count that only grows, or a gauge that goes up and down.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    pub fn sub(&self, by: u64) {
        self.0.fetch_sub(by, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the latency buckets, in microseconds.
const BOUNDS: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    10_000_000, 60_000_000,
];

#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BOUNDS.len() + 1],
    total_us: Counter,
}

impl Histogram {
    pub fn observe(&self, time: Duration) {
        let us = time.as_micros() as u64;
        let bucket = BOUNDS.partition_point(|bound| *bound < us);
        self.buckets[bucket].add(1);
        self.total_us.add(us);
    }
}

/// Protocol labels, in the order of the arrays below.
const PROTOCOLS: [&str; 3] = ["h1", "h2", "h3"];

/// The label of a version.
pub fn protocol(version: HttpVersion) -> &'static str {
    PROTOCOLS[protocol_index(version)]
}

fn protocol_index(version: HttpVersion) -> usize {
    match version {
        HttpVersion::Http10 | HttpVersion::Http11 => 0,
        HttpVersion::Http2 => 1,
        HttpVersion::Http3 => 2,
    }
}

const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Every cause of `tidegate_policy::Cause` has a slot: its discriminant.
const CAUSES: usize = Cause::Internal as usize + 1;

/// By reason.
#[derive(Debug, Default)]
pub struct ProxyHeadersRefused {
    pub untrusted: Counter,
    pub invalid: Counter,
    pub late: Counter,
    pub cut_off: Counter,
}

/// Connections that were asked for a ClientHello and sent none.
#[derive(Debug, Default)]
pub struct HellosUnheard {
    pub late: Counter,
    pub cut_off: Counter,
    /// It is something else, which goes where what no route names goes.
    pub none: Counter,
}

/// UDP payloads in tunnels.
#[derive(Debug, Default)]
pub struct UdpDatagrams {
    /// From clients to endpoints.
    pub up: Counter,
    pub down: Counter,
    /// Of a context that nobody registered.
    pub unknown_context: Counter,
    /// For a link, a QUIC packet or the client's limit.
    pub too_large: Counter,
    /// There was no room.
    pub overflow: Counter,
    /// Of a stream that is not there, or not any more.
    pub unknown_stream: Counter,
    /// Of no session, and none begins with it.
    pub no_session: Counter,
    /// The system would not send it.
    pub unsent: Counter,
}

/// Requests that came before the client's handshake was complete (RFC 8470).
#[derive(Debug, Default)]
pub struct EarlyRequests {
    /// Went on before it was.
    pub served: Counter,
    /// Waited for it.
    pub held: Counter,
    /// Of those served: the upstream said 425, and they waited after all.
    pub refused: Counter,
}

/// Everything one worker counts.
#[derive(Debug)]
pub struct WorkerMetrics {
    exchanges: [[Counter; CLASSES.len()]; 3],
    seconds: [Histogram; 3],
    faults: [(Counter, std::sync::OnceLock<&'static str>); CAUSES],
    refused: [Counter; 3],
    pub exchanges_active: Counter,
    pub cancelled: Counter,
    pub bytes_in: Counter,
    pub bytes_out: Counter,
    pub retries: Counter,
    pub hedges: Counter,
    /// In the order of `Coding`.
    pub compressed: [Counter; 3],
    pub compression_in: Counter,
    pub compression_out: Counter,
    pub hedges_won: Counter,
    pub retries_without_budget: Counter,
    pub retries_unsafe: Counter,
    pub tunnels_websocket: Counter,
    pub tunnels_connect: Counter,
    pub tunnels_connect_udp: Counter,
    /// Of those below HTTP, in the order of `TunnelKind::ALL`.
    pub tunnels_below: [Counter; TunnelKind::ALL.len()],
    pub hellos: HellosUnheard,
    pub udp: UdpDatagrams,
    pub tunnels_active: Counter,
    pub tcp_connections: Counter,
    pub quic_connections: Counter,
    pub connections_active: Counter,
    pub connections_refused: Counter,
    pub handshakes_failed: Counter,
    pub early: EarlyRequests,
    pub proxy_headers_refused: ProxyHeadersRefused,
    pub upstream_connections: Counter,
    pub upstream_connections_active: Counter,
    pub upstream_reused: Counter,
    pub upstream_connect_failed: Counter,
    pub upstream_waiting: Counter,
}

impl Default for WorkerMetrics {
    fn default() -> Self {
        Self {
            exchanges: Default::default(),
            seconds: Default::default(),
            faults: std::array::from_fn(|_| Default::default()),
            refused: Default::default(),
            exchanges_active: Counter::default(),
            cancelled: Counter::default(),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            retries: Counter::default(),
            hedges: Counter::default(),
            compressed: Default::default(),
            compression_in: Counter::default(),
            compression_out: Counter::default(),
            hedges_won: Counter::default(),
            retries_without_budget: Counter::default(),
            retries_unsafe: Counter::default(),
            tunnels_websocket: Counter::default(),
            tunnels_connect: Counter::default(),
            tunnels_connect_udp: Counter::default(),
            tunnels_below: Default::default(),
            hellos: HellosUnheard::default(),
            udp: UdpDatagrams::default(),
            tunnels_active: Counter::default(),
            tcp_connections: Counter::default(),
            quic_connections: Counter::default(),
            connections_active: Counter::default(),
            connections_refused: Counter::default(),
            handshakes_failed: Counter::default(),
            early: EarlyRequests::default(),
            proxy_headers_refused: ProxyHeadersRefused::default(),
            upstream_connections: Counter::default(),
            upstream_connections_active: Counter::default(),
            upstream_reused: Counter::default(),
            upstream_connect_failed: Counter::default(),
            upstream_waiting: Counter::default(),
        }
    }
}

impl WorkerMetrics {
    /// `status` 0 for an exchange without an answer.
    pub(super) fn exchange(&self, version: HttpVersion, status: u16, took: Duration) {
        let index = protocol_index(version);
        let class = usize::from(status / 100).min(CLASSES.len() - 1);
        self.exchanges[index][class].add(1);
        self.seconds[index].observe(took);
    }

    pub(super) fn fault(&self, cause: Cause) {
        let (counter, name) = &self.faults[cause as usize];
        name.get_or_init(|| cause.name());
        counter.add(1);
    }

    pub(super) fn refuse(&self, version: HttpVersion) {
        self.refused[protocol_index(version)].add(1);
    }
}

/// Writes the sums of `workers` and the state of the snapshot's endpoints in Prometheus' text format.
pub fn render(workers: &[Arc<WorkerMetrics>], snapshot: &Snapshot, out: &mut String) {
    let mut page = Page { out, workers };
    page.head(names::EXCHANGES, "counter", "exchanges that ended");
    for (p, protocol) in PROTOCOLS.iter().enumerate() {
        for (c, class) in CLASSES.iter().enumerate() {
            let labels = format!("protocol=\"{protocol}\",status=\"{class}\"");
            page.sample(names::EXCHANGES, &labels, |w| w.exchanges[p][c].get());
        }
    }
    page.head(names::EXCHANGE_SECONDS, "histogram", "time from request head to the end of the response");
    for (p, protocol) in PROTOCOLS.iter().enumerate() {
        page.histogram(names::EXCHANGE_SECONDS, &format!("protocol=\"{protocol}\""), |w| &w.seconds[p]);
    }
    page.head(names::FAULTS, "counter", "faults that ended an exchange, by cause");
    for index in 0..CAUSES {
        let name = page.workers.iter().find_map(|w| w.faults[index].1.get().copied());
        if let Some(name) = name {
            page.sample(names::FAULTS, &format!("cause=\"{name}\""), |w| w.faults[index].0.get());
        }
    }
    page.head(names::REFUSED, "counter", "messages refused before they became an exchange");
    for (p, protocol) in PROTOCOLS.iter().enumerate() {
        page.sample(names::REFUSED, &format!("protocol=\"{protocol}\""), |w| w.refused[p].get());
    }
    page.head(names::BODY_BYTES, "counter", "bytes of bodies");
    page.sample(names::BODY_BYTES, "direction=\"in\"", |w| w.bytes_in.get());
    page.sample(names::BODY_BYTES, "direction=\"out\"", |w| w.bytes_out.get());
    page.head(names::COMPRESSED, "counter", "responses that were compressed, by coding");
    for coding in Coding::ALL {
        let label = format!("coding=\"{}\"", coding.name());
        page.sample(names::COMPRESSED, &label, |w| w.compressed[coding as usize].get());
    }
    page.head(names::COMPRESSION_BYTES, "counter", "bytes of those responses before and after");
    page.sample(names::COMPRESSION_BYTES, "direction=\"in\"", |w| w.compression_in.get());
    page.sample(names::COMPRESSION_BYTES, "direction=\"out\"", |w| w.compression_out.get());
    page.head(names::RETRIES_REFUSED, "counter", "retries that were wanted but refused");
    page.sample(names::RETRIES_REFUSED, "reason=\"budget\"", |w| w.retries_without_budget.get());
    page.sample(names::RETRIES_REFUSED, "reason=\"unsafe\"", |w| w.retries_unsafe.get());
    page.head(names::TUNNELS, "counter", "tunnels opened");
    page.sample(names::TUNNELS, "kind=\"websocket\"", |w| w.tunnels_websocket.get());
    page.sample(names::TUNNELS, "kind=\"connect\"", |w| w.tunnels_connect.get());
    page.sample(names::TUNNELS, "kind=\"connect-udp\"", |w| w.tunnels_connect_udp.get());
    for kind in TunnelKind::ALL {
        let label = format!("kind=\"{}\"", kind.name());
        page.sample(names::TUNNELS, &label, |w| w.tunnels_below[kind as usize].get());
    }
    page.head(names::HELLOS_UNHEARD, "counter", "connections without the ClientHello that was waited for");
    page.sample(names::HELLOS_UNHEARD, "reason=\"late\"", |w| w.hellos.late.get());
    page.sample(names::HELLOS_UNHEARD, "reason=\"cut_off\"", |w| w.hellos.cut_off.get());
    page.sample(names::HELLOS_UNHEARD, "reason=\"none\"", |w| w.hellos.none.get());
    page.head(names::UDP_DATAGRAMS, "counter", "UDP payloads relayed");
    page.sample(names::UDP_DATAGRAMS, "direction=\"in\"", |w| w.udp.up.get());
    page.sample(names::UDP_DATAGRAMS, "direction=\"out\"", |w| w.udp.down.get());
    page.head(names::UDP_DATAGRAMS_DROPPED, "counter", "HTTP Datagrams and UDP payloads dropped");
    page.sample(names::UDP_DATAGRAMS_DROPPED, "reason=\"unknown_context\"", |w| w.udp.unknown_context.get());
    page.sample(names::UDP_DATAGRAMS_DROPPED, "reason=\"too_large\"", |w| w.udp.too_large.get());
    page.sample(names::UDP_DATAGRAMS_DROPPED, "reason=\"overflow\"", |w| w.udp.overflow.get());
    page.sample(names::UDP_DATAGRAMS_DROPPED, "reason=\"unknown_stream\"", |w| w.udp.unknown_stream.get());
    page.sample(names::UDP_DATAGRAMS_DROPPED, "reason=\"no_session\"", |w| w.udp.no_session.get());
    page.sample(names::UDP_DATAGRAMS_DROPPED, "reason=\"unsent\"", |w| w.udp.unsent.get());
    page.single(names::TUNNELS_ACTIVE, "gauge", "tunnels open", |w| w.tunnels_active.get());
    page.head(names::CONNECTIONS, "counter", "downstream connections accepted");
    page.sample(names::CONNECTIONS, "kind=\"tcp\"", |w| w.tcp_connections.get());
    page.sample(names::CONNECTIONS, "kind=\"quic\"", |w| w.quic_connections.get());
    page.single(names::EXCHANGES_ACTIVE, "gauge", "exchanges in flight", |w| w.exchanges_active.get());
    page.single(names::CANCELLED, "counter", "exchanges whose client left", |w| w.cancelled.get());
    page.single(names::RETRIES, "counter", "tries beyond the first", |w| w.retries.get());
    page.single(names::HEDGES, "counter", "tries beside one that had no answer yet", |w| w.hedges.get());
    page.single(names::HEDGES_WON, "counter", "hedges that answered first", |w| w.hedges_won.get());
    page.single(names::CONNECTIONS_ACTIVE, "gauge", "downstream connections open", |w| w.connections_active.get());
    page.single(names::CONNECTIONS_REFUSED, "counter", "connections turned away", |w| w.connections_refused.get());
    page.single(names::HANDSHAKES_FAILED, "counter", "handshakes that failed", |w| w.handshakes_failed.get());
    page.head(names::EARLY_REQUESTS, "counter", "requests that came in early data, by what became of them");
    page.sample(names::EARLY_REQUESTS, "outcome=\"served\"", |w| w.early.served.get());
    page.sample(names::EARLY_REQUESTS, "outcome=\"held\"", |w| w.early.held.get());
    page.sample(names::EARLY_REQUESTS, "outcome=\"refused\"", |w| w.early.refused.get());
    page.head(names::PROXY_HEADERS_REFUSED, "counter", "connections closed for want of a good PROXY header");
    page.sample(names::PROXY_HEADERS_REFUSED, "reason=\"untrusted\"", |w| w.proxy_headers_refused.untrusted.get());
    page.sample(names::PROXY_HEADERS_REFUSED, "reason=\"invalid\"", |w| w.proxy_headers_refused.invalid.get());
    page.sample(names::PROXY_HEADERS_REFUSED, "reason=\"late\"", |w| w.proxy_headers_refused.late.get());
    page.sample(names::PROXY_HEADERS_REFUSED, "reason=\"cut_off\"", |w| w.proxy_headers_refused.cut_off.get());
    page.single(names::UPSTREAM_CONNECTIONS, "counter", "upstream connections dialled", |w| {
        w.upstream_connections.get()
    });
    page.single(names::UPSTREAM_CONNECTIONS_ACTIVE, "gauge", "upstream connections open", |w| {
        w.upstream_connections_active.get()
    });
    page.single(names::UPSTREAM_REUSED, "counter", "attempts on a connection that served before", |w| {
        w.upstream_reused.get()
    });
    page.single(names::UPSTREAM_CONNECT_FAILED, "counter", "upstream connections that failed", |w| {
        w.upstream_connect_failed.get()
    });
    page.single(names::UPSTREAM_WAITING, "gauge", "requests that wait for a connection", |w| w.upstream_waiting.get());
    page.endpoints(snapshot);
    super::health_page::render(snapshot, page.out);
}

struct Page<'a> {
    out: &'a mut String,
    workers: &'a [Arc<WorkerMetrics>],
}

impl Page<'_> {
    // Writing to a String cannot fail.
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sum(&self, of: impl Fn(&WorkerMetrics) -> u64) -> u64 {
        // Gauges of different workers may be read while one goes down and another up: wrap, do not panic.
        self.workers.iter().fold(0, |sum, worker| sum.wrapping_add(of(worker)))
    }

    fn sample(&mut self, name: &str, labels: &str, of: impl Fn(&WorkerMetrics) -> u64) {
        let value = self.sum(of);
        let _ = writeln!(self.out, "{name}{{{labels}}} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, of: impl Fn(&WorkerMetrics) -> u64) {
        self.head(name, kind, help);
        let value = self.sum(of);
        let _ = writeln!(self.out, "{name} {value}");
    }

    fn histogram(&mut self, name: &str, labels: &str, of: impl Fn(&WorkerMetrics) -> &Histogram) {
        let mut count = 0;
        for (index, bound) in BOUNDS.iter().enumerate() {
            count += self.sum(|w| of(w).buckets[index].get());
            let le = *bound as f64 / 1e6;
            let _ = writeln!(self.out, "{name}_bucket{{{labels},le=\"{le}\"}} {count}");
        }
        count += self.sum(|w| of(w).buckets[BOUNDS.len()].get());
        let _ = writeln!(self.out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let seconds = self.sum(|w| of(w).total_us.get()) as f64 / 1e6;
        let _ = writeln!(self.out, "{name}_sum{{{labels}}} {seconds}\n{name}_count{{{labels}}} {count}");
    }

    fn endpoints(&mut self, snapshot: &Snapshot) {
        type Read = fn(&tidegate_policy::Endpoint) -> f64;
        let rows: [(&str, &str, &str, Read); 5] = [
            (names::ENDPOINT_ACTIVE, "gauge", "requests in flight", |e| e.state.in_flight().into()),
            (names::ENDPOINT_REQUESTS, "counter", "attempts", |e| e.state.requests.load(Ordering::Relaxed) as f64),
            (names::ENDPOINT_FAILURES, "counter", "failed attempts", |e| {
                e.state.failures.load(Ordering::Relaxed) as f64
            }),
            (names::ENDPOINT_HEALTHY, "gauge", "1 when healthy", |e| f64::from(u8::from(e.state.healthy()))),
            (
                names::ENDPOINT_LATENCY,
                "gauge",
                "moving average of the time to the response head, raised by failures",
                |e| e.state.last_latency().as_secs_f64(),
            ),
        ];
        for (name, kind, help, read) in rows {
            self.head(name, kind, help);
            for cluster in &snapshot.clusters {
                for endpoint in &cluster.set.endpoints {
                    let (cluster, address, value) = (&cluster.name, endpoint.address, read(endpoint));
                    let _ = writeln!(self.out, "{name}{{cluster=\"{cluster}\",endpoint=\"{address}\"}} {value}");
                }
            }
        }
    }
}
