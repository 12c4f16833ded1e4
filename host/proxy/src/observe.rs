//! One record per exchange: every step writes into it, dropping it counts and logs, for cancelled exchanges too.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_policy::{Asked, Cause, HttpVersion, Side};

mod access_log;
mod decision;
mod health_page;
mod metrics;
pub mod names;
mod record;
mod tunnel;

pub use access_log::{line as access_log_line, tunnel_line};
pub use decision::{Decided, DecisionRecord, Question};
pub use metrics::{Counter, Histogram, UdpDatagrams, WorkerMetrics, protocol, render};
pub(crate) use record::Deciding;
pub use tunnel::{TunnelKind, TunnelRecord};

use crate::codec::Served;
use crate::tenant::Tenant;
use crate::worker::Worker;

/// Where finished records go besides the metrics: an access log, the demo's commentary. Called on the worker, so it
/// must not block.
pub trait RecordSink: Send + Sync {
    fn write(&self, record: &Record);

    fn write_tunnel(&self, record: &TunnelRecord) {
        let _ = record;
    }
}

/// The record of one exchange.
pub struct Record {
    worker: Rc<Worker>,
    pub asked: Rc<Asked>,
    pub begun: Instant,
    /// Of the final head that was sent to the client; 0 before.
    pub status: u16,
    pub route: Option<Arc<str>>,
    pub tenant: Option<Arc<Tenant>>,
    pub cluster: Option<Arc<str>>,
    pub endpoint: Option<SocketAddr>,
    pub attempts: u32,
    /// Until it became a tunnel, whose life is no response time.
    pub opened: Option<Duration>,
    /// From the start of the last attempt to its response head.
    pub upstream: Option<Duration>,
    pub bytes_in: Cell<u64>,
    pub bytes_out: Cell<u64>,
    pub cause: Option<Cause>,
    /// Words about `cause`, for the log.
    pub detail: Option<String>,
    /// The whole response was handed to the client's side.
    pub complete: bool,
    /// Of plugins only: native answers are not worth a line.
    pub decisions: Vec<DecisionRecord>,
}

impl Record {
    pub(crate) fn begin(worker: &Rc<Worker>, asked: &Rc<Asked>) -> Self {
        worker.metrics.exchanges_active.add(1);
        Self {
            worker: worker.clone(),
            asked: asked.clone(),
            begun: Instant::now(),
            status: 0,
            route: None,
            tenant: None,
            cluster: None,
            endpoint: None,
            attempts: 0,
            opened: None,
            upstream: None,
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            cause: None,
            detail: None,
            complete: false,
            decisions: Vec::new(),
        }
    }

    /// It ended badly, and not by the client's doing.
    fn failed(&self) -> bool {
        let cause = self.cause.map(Cause::side);
        self.status >= 500
            || cause.is_some_and(|side| side == Side::Upstream)
            || (self.status == 0 && !self.cancelled())
    }

    /// The client left before the whole response was its.
    pub fn cancelled(&self) -> bool {
        !self.complete && matches!(self.cause, None | Some(Cause::ClientGone))
    }
}

impl Deciding for Record {
    fn decided(&mut self, decision: DecisionRecord) {
        self.decisions.push(decision);
    }

    fn guest_took(&self, time: Duration) {
        self.worker.guest_took(self.tenant.as_deref(), time);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let metrics = &self.worker.metrics;
        metrics.exchanges_active.sub(1);
        metrics.exchange(self.asked.request.version, self.status, self.opened.unwrap_or_else(|| self.begun.elapsed()));
        metrics.bytes_in.add(self.bytes_in.get());
        metrics.bytes_out.add(self.bytes_out.get());
        if self.cancelled() {
            metrics.cancelled.add(1);
        }
        if let Some(cause) = self.cause {
            metrics.fault(cause);
            tracing::debug!(
                cause = cause.name(),
                detail = self.detail.as_deref().unwrap_or_default(),
                route = self.route.as_deref().unwrap_or_default(),
                cluster = self.cluster.as_deref().unwrap_or_default(),
                "exchange failed"
            );
        }
        record::tell_watches(&self.decisions, self.failed(), self.worker.now());
        for sink in &self.worker.sinks {
            sink.write(self);
        }
    }
}

/// Counts and logs a request that a codec refused before it became an exchange.
pub(crate) fn refused(served: &Served, version: HttpVersion, status: u16, reason: &str) {
    served.worker.metrics.refuse(version);
    tracing::debug!(
        listener = %served.listener.name,
        peer = %served.connection.peer,
        protocol = protocol(version),
        status,
        reason,
        "request refused"
    );
}
