//! The endpoint of a session: picked, connected, and told how it fares.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_policy::{Asked, Cause, EndpointSet, EndpointsView, Fault, Outcome, Swept};
use tokio::net::UdpSocket;

use super::socket;
use crate::exchange;
use crate::observe::TunnelRecord;
use crate::snapshot::Cluster;
use crate::tunnel::quic::Known;
use crate::upstream::{TunnelSeat, health};
use crate::worker::Worker;

/// A socket to an endpoint.
pub(super) struct Upstream {
    pub(super) socket: UdpSocket,
    pub(super) address: SocketAddr,
    pub(super) index: u32,
    _load: Load,
    _seat: TunnelSeat,
}

/// What the endpoint has to do.
struct Load(Arc<EndpointSet>, u32);

impl Load {
    fn begin(set: &Arc<EndpointSet>, index: u32) -> Self {
        if let Some(endpoint) = set.endpoints.get(index as usize) {
            endpoint.state.begin();
        }
        Self(set.clone(), index)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(endpoint) = self.0.endpoints.get(self.1 as usize) {
            endpoint.state.end();
        }
    }
}

/// Where a connection is that a client comes back to.
pub(super) fn again(worker: &Worker, known: &Known) -> Result<(Arc<Cluster>, Option<u32>), Fault> {
    let gone = || Fault::new(Cause::NoEndpoint, format!("{} has left cluster {:?}", known.endpoint, known.cluster));
    let snapshot = worker.current.load();
    let cluster = snapshot.cluster(&known.cluster).ok_or_else(gone)?;
    let index = cluster.set.endpoints.iter().position(|endpoint| endpoint.address == known.endpoint);
    Ok((cluster.clone(), Some(index.ok_or_else(gone)? as u32)))
}

/// An endpoint of the balancer's, with a socket to it.
pub(super) fn pick(
    worker: &Worker,
    cluster: &Arc<Cluster>,
    asked: &Rc<Asked>,
    view: &mut EndpointsView,
    record: &mut TunnelRecord,
    most: u32,
) -> Result<Upstream, Fault> {
    loop {
        view.refresh(worker.now());
        let index = exchange::pick(cluster, asked, view, record)?;
        record.attempts += 1;
        record.endpoint = view.get(index).map(|endpoint| endpoint.address);
        match connect(worker, cluster, index) {
            Ok(upstream) => return Ok(upstream),
            Err(fault) => {
                report(worker, view, index, Err(&fault));
                if record.attempts >= most {
                    return Err(fault);
                }
                view.tried.push(index);
            }
        }
    }
}

pub(super) fn connect(worker: &Worker, cluster: &Arc<Cluster>, index: u32) -> Result<Upstream, Fault> {
    let load = Load::begin(&cluster.set, index);
    let (socket, seat) = worker.upstreams.udp(cluster, index)?;
    let Some(endpoint) = cluster.set.endpoints.get(index as usize) else {
        return Err(Fault::new(Cause::Internal, "the picked endpoint is out of range"));
    };
    socket::tune(&socket, endpoint.address);
    Ok(Upstream { socket, address: endpoint.address, index, _load: load, _seat: seat })
}

/// The endpoint's health and load hear of it: an answer and how long it took, or none.
pub(super) fn report(worker: &Worker, view: &EndpointsView, index: u32, answer: Result<Duration, &Fault>) {
    let Some(endpoint) = view.get(index) else { return };
    let now = worker.now();
    let outcome = match answer {
        Ok(took) => {
            endpoint.state.sample_latency(now, took);
            Some(Outcome::Success)
        }
        Err(fault) => {
            endpoint.state.failures.fetch_add(1, Ordering::Relaxed);
            let outcome = Outcome::of_fault(fault.cause);
            if outcome.is_some() {
                endpoint.state.penalise_latency(now);
            }
            outcome
        }
    };
    if let Some(ejected) = outcome.and_then(|outcome| view.set.report(index, outcome, now)) {
        health::tell(&view.set, index, Swept::Ejected(ejected));
    }
}
