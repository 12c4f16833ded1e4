//! One record per tunnel below HTTP: a TCP connection or a session of datagrams that was relayed, or should have been.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_policy::{Asked, Cause, Side};

use super::record::tell_watches;
use super::{Deciding, DecisionRecord};
use crate::worker::Worker;

/// What is relayed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TunnelKind {
    Tcp,
    Udp,
    /// Datagrams of QUIC, whose ClientHello was read.
    Quic,
}

impl TunnelKind {
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Quic];

    /// The name in logs and metric labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Quic => "quic",
        }
    }
}

/// The record of one tunnel. Dropped, it is counted and logged.
pub struct TunnelRecord {
    worker: Rc<Worker>,
    pub asked: Rc<Asked>,
    pub kind: TunnelKind,
    pub begun: Instant,
    pub cluster: Option<Arc<str>>,
    pub endpoint: Option<SocketAddr>,
    /// Endpoints that were tried.
    pub attempts: u32,
    /// Until an endpoint took it.
    pub connected: Option<Duration>,
    /// From the client, and to it.
    pub bytes_in: Cell<u64>,
    pub bytes_out: Cell<u64>,
    /// Why it did not end by itself.
    pub cause: Option<Cause>,
    pub detail: Option<String>,
    /// Of plugins only.
    pub decisions: Vec<DecisionRecord>,
    /// It became something else.
    forgotten: bool,
}

impl TunnelRecord {
    pub(crate) fn begin(worker: &Rc<Worker>, asked: &Rc<Asked>, kind: TunnelKind) -> Self {
        Self {
            worker: worker.clone(),
            asked: asked.clone(),
            kind,
            begun: Instant::now(),
            cluster: None,
            endpoint: None,
            attempts: 0,
            connected: None,
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            cause: None,
            detail: None,
            decisions: Vec::new(),
            forgotten: false,
        }
    }

    /// No tunnel after all: what becomes of the connection has records of its own.
    pub(crate) fn forget(mut self) {
        self.forgotten = true;
    }

    /// An endpoint took it: it is a tunnel from now on.
    pub(crate) fn opened(&mut self) {
        self.connected = Some(self.begun.elapsed());
        let metrics = &self.worker.metrics;
        metrics.tunnels_below[self.kind as usize].add(1);
        metrics.tunnels_active.add(1);
    }

    pub(crate) fn broke(&mut self, cause: Cause, detail: impl ToString) {
        self.cause = Some(cause);
        self.detail = Some(detail.to_string());
    }
}

impl Deciding for TunnelRecord {
    fn decided(&mut self, decision: DecisionRecord) {
        self.decisions.push(decision);
    }

    /// A listener is nobody's but the gateway's.
    fn guest_took(&self, _: Duration) {}
}

impl Drop for TunnelRecord {
    fn drop(&mut self) {
        let metrics = &self.worker.metrics;
        if self.connected.is_some() {
            metrics.tunnels_active.sub(1);
        }
        metrics.bytes_in.add(self.bytes_in.get());
        metrics.bytes_out.add(self.bytes_out.get());
        if let Some(cause) = self.cause {
            metrics.fault(cause);
            tracing::debug!(
                cause = cause.name(),
                detail = self.detail.as_deref().unwrap_or_default(),
                listener = &*self.asked.connection.listener,
                cluster = self.cluster.as_deref().unwrap_or_default(),
                "tunnel failed"
            );
        }
        let failed = self.cause.map(Cause::side) == Some(Side::Upstream);
        tell_watches(&self.decisions, failed, self.worker.now());
        if self.forgotten {
            return;
        }
        for sink in &self.worker.sinks {
            sink.write_tunnel(self);
        }
    }
}
