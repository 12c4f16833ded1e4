//! The endpoint of a session: picked, connected, and told how it fares.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tidegate_policy::{Asked, Cause, EndpointSet, EndpointsView, Fault};
use tokio::net::UdpSocket;

use super::socket;
use crate::exchange;
use crate::observe::TunnelRecord;
use crate::snapshot::Cluster;
use crate::tunnel::quic::Known;
use crate::tunnel::report;
use crate::upstream::TunnelSeat;
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
