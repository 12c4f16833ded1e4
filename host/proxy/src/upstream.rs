//! Clusters as this worker sees them: connections dialled, shared, reused.
use std::sync::Arc;

use tidegate_policy::Fault;

use crate::body::{Awaiting, Length, Outgoing};
use crate::exchange::OutgoingHead;
use crate::snapshot::{Cluster, Snapshot};
use crate::timer::Timers;

pub(crate) mod tls;

/// All of a worker's pools.
pub(crate) struct Upstreams;
impl Upstreams {
    pub(crate) fn new(_timers: Timers, _metrics: Arc<crate::observe::WorkerMetrics>) -> Self { unreachable!() }
    /// A connection to `endpoint` of `cluster` with room for one request: pooled, or dialled, or waited for.
    pub(crate) async fn lease(&self, _cluster: &Arc<Cluster>, _endpoint: u32) -> Result<Lease, Fault> { unreachable!() }
    /// Keeps the pools that `snapshot` still uses; the others close as their leases come back.
    pub(crate) fn apply(&self, _snapshot: &Snapshot) { unreachable!() }
    /// Closes idle connections (drain, or end of worker).
    pub(crate) fn close_idle(&self) { unreachable!() }
}
/// The right to one request on a connection. Dropped, it goes back to its pool if request and response are both
/// complete and the connection may be reused; else it is closed (HTTP/1) or the stream given back (HTTP/2).
pub(crate) struct Lease;
impl Lease {
    pub(crate) async fn start(&mut self, _head: &OutgoingHead, _length: Length) -> Result<(Outgoing, Awaiting), Fault> { unreachable!() }
    /// Whether the connection served a request before: its failure before any response byte may be the keep-alive race.
    pub(crate) fn reused(&self) -> bool { unreachable!() }
    /// Whether any byte of this request has left the process.
    pub(crate) fn written(&self) -> bool { unreachable!() }
}
