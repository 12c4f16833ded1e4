//! Clusters as this worker sees them: a pool per endpoint, found by the cluster's address, kept over reloads.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tidegate_policy::{Cause, ConnectionHead, Fault};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Notify;

use crate::body::{Incoming, Outgoing};
use crate::observe::WorkerMetrics;
use crate::snapshot::{Cluster, PoolSettings, Snapshot};
use crate::timer::{Deadline, Timers};

mod advertised;
mod connect;
pub(crate) mod health;
mod pool;
mod quic;
pub(crate) mod tls;
mod udp;

pub(crate) use connect::keep_alive;
pub(crate) use pool::{Lease, TunnelSeat};

#[cfg(fuzzing)]
pub(crate) use advertised::fuzz::said_again;

use advertised::Advertised;
use pool::{Pool, Shared};
use quic::Endpoints;

/// Everything that makes two connections not interchangeable: where to, how, and as whom. TLS configurations and origins
/// are told apart by identity: one that is unchanged by a reload is the same `Arc`.
#[derive(Clone, Eq, Hash, PartialEq)]
struct Key {
    address: SocketAddr,
    settings: PoolSettings,
    tls: usize,
    origin: usize,
}

impl Key {
    fn of(cluster: &Cluster, address: SocketAddr) -> Self {
        let tls = cluster.tls.as_ref().map_or(0, |tls| Arc::as_ptr(tls) as usize);
        let origin = cluster.origin.as_ref().map_or(0, |origin| Arc::as_ptr(origin).cast::<()>() as usize);
        Self { address, settings: cluster.pool.clone(), tls, origin }
    }
}

/// What the cluster's endpoints are told of the client before anything else, where they are told.
fn advertised(cluster: &Cluster, client: &Rc<ConnectionHead>) -> Option<Advertised> {
    cluster.pool.proxy_protocol.map(|version| Advertised::new(version, client))
}

/// The PROXY header that goes before each datagram to an endpoint; empty where the cluster wants none.
pub(crate) fn datagram_header(cluster: &Cluster, client: &ConnectionHead) -> Result<Box<[u8]>, Fault> {
    let Some(version) = cluster.pool.proxy_protocol else { return Ok(Box::default()) };
    let header = advertised::header_of_datagrams(version, client).ok_or_else(|| {
        let detail = format!("cluster {:?} has PROXY headers of version 1, which know no UDP", cluster.name);
        Fault::new(Cause::TunnelUnsupported, detail)
    })?;
    Ok(header.into())
}

/// All of a worker's pools.
pub(crate) struct Upstreams {
    shared: Rc<Shared>,
    pools: Rc<RefCell<FxHashMap<Key, Rc<Pool>>>>,
    /// The pools of a cluster's endpoints, by the address of its `Arc`: the look-up on the way of a request.
    clusters: RefCell<FxHashMap<usize, ClusterPools>>,
}

/// Keeps the cluster alive, so that its address names no other.
type ClusterPools = (Arc<Cluster>, Box<[Rc<Pool>]>);

/// How often idle connections are looked at, while there are any.
const SWEEP: Duration = Duration::from_secs(1);

impl Upstreams {
    /// Needs a `LocalSet`: idle connections are watched by a task.
    pub(crate) fn new(timers: Timers, metrics: Arc<WorkerMetrics>) -> Self {
        let shared = Rc::new(Shared { timers, metrics, idling: Notify::new(), quic: Endpoints::default() });
        let pools = Rc::new(RefCell::new(FxHashMap::default()));
        tokio::task::spawn_local(sweep(shared.clone(), pools.clone()));
        Self { shared, pools, clusters: RefCell::default() }
    }

    /// The same as [`lease`](Self::lease) where a connection is open and free, which it mostly is.
    pub(crate) fn lease_now(
        &self,
        cluster: &Arc<Cluster>,
        endpoint: u32,
        client: &Rc<ConnectionHead>,
    ) -> Option<Lease> {
        self.pool(cluster, endpoint).ok()?.lease_now(&advertised(cluster, client))
    }

    /// A connection to `endpoint` of `cluster` with room for one request: pooled, or dialled, or waited for. `client` is
    /// advertised where the cluster sends PROXY headers.
    pub(crate) async fn lease(
        &self,
        cluster: &Arc<Cluster>,
        endpoint: u32,
        client: &Rc<ConnectionHead>,
    ) -> Result<Lease, Fault> {
        self.pool(cluster, endpoint)?.lease(advertised(cluster, client)).await
    }

    /// The same with room for a request that asks for another protocol than HTTP.
    pub(crate) async fn lease_for_upgrade(
        &self,
        cluster: &Arc<Cluster>,
        endpoint: u32,
        client: &Rc<ConnectionHead>,
    ) -> Result<Lease, Fault> {
        self.pool(cluster, endpoint)?.lease_for_upgrade(advertised(cluster, client)).await
    }

    /// A connection of its own, with no protocol on it. The seat is its place among the endpoint's connections.
    pub(crate) async fn tunnel(
        &self,
        cluster: &Arc<Cluster>,
        endpoint: u32,
        client: &Rc<ConnectionHead>,
    ) -> Result<(Incoming, Outgoing, TunnelSeat), Fault> {
        self.pool(cluster, endpoint)?.tunnel(advertised(cluster, client)).await
    }

    /// A connection for whatever a client sends, and the PROXY header that goes before it, where the cluster wants one.
    pub(crate) async fn tcp(
        &self,
        cluster: &Arc<Cluster>,
        endpoint: u32,
        client: &Rc<ConnectionHead>,
    ) -> Result<(TcpStream, Bytes, TunnelSeat), Fault> {
        self.pool(cluster, endpoint)?.tcp(advertised(cluster, client)).await
    }

    /// A UDP socket of its own, which counts as one of the endpoint's connections.
    pub(crate) fn udp(&self, cluster: &Arc<Cluster>, endpoint: u32) -> Result<(UdpSocket, TunnelSeat), Fault> {
        self.pool(cluster, endpoint)?.udp()
    }

    fn pool(&self, cluster: &Arc<Cluster>, endpoint: u32) -> Result<Rc<Pool>, Fault> {
        let at = Arc::as_ptr(cluster) as usize;
        let known = self.clusters.borrow().get(&at).map(|(_, pools)| pools.get(endpoint as usize).cloned());
        // An exchange that began before a reload, or one that began before this worker heard of it.
        let pool = known.unwrap_or_else(|| {
            let pools = self.pools_of(cluster);
            let pool = pools.get(endpoint as usize).cloned();
            self.clusters.borrow_mut().insert(at, (cluster.clone(), pools));
            pool
        });
        pool.ok_or_else(|| Fault::new(Cause::Internal, format!("{:?} has no endpoint {endpoint}", cluster.name)))
    }

    fn pools_of(&self, cluster: &Cluster) -> Box<[Rc<Pool>]> {
        let mut pools = self.pools.borrow_mut();
        let pool = |address| {
            let new = || Pool::new(address, cluster, self.shared.clone());
            pools.entry(Key::of(cluster, address)).or_insert_with(new).clone()
        };
        cluster.set.endpoints.iter().map(|endpoint| endpoint.address).map(pool).collect()
    }

    /// Keeps the pools that `snapshot` still uses; the others close as their leases come back.
    pub(crate) fn apply(&self, snapshot: &Snapshot) {
        let clusters: FxHashMap<_, _> = snapshot
            .clusters
            .iter()
            .map(|cluster| (Arc::as_ptr(cluster) as usize, (cluster.clone(), self.pools_of(cluster))))
            .collect();
        let mut gone = Vec::new();
        self.pools.borrow_mut().retain(|_, pool| {
            let used = clusters.values().any(|(_, pools)| pools.iter().any(|used| Rc::ptr_eq(used, pool)));
            if !used {
                gone.push(pool.clone());
            }
            used
        });
        *self.clusters.borrow_mut() = clusters;
        for pool in gone {
            pool.retire();
        }
    }

    /// Closes what idles; nothing is kept from now on.
    pub(crate) fn close_idle(&self) {
        let pools: Vec<_> = self.pools.borrow().values().cloned().collect();
        for pool in pools {
            pool.retire();
        }
    }
}

/// Looks after idle connections; sleeps for good while there are none.
async fn sweep(shared: Rc<Shared>, pools: Rc<RefCell<FxHashMap<Key, Rc<Pool>>>>) {
    loop {
        shared.idling.notified().await;
        loop {
            Deadline::after(&shared.timers, Some(SWEEP)).elapsed().await;
            let pools: Vec<_> = pools.borrow().values().cloned().collect();
            let idling = pools.iter().filter(|pool| pool.sweep()).count();
            if idling == 0 {
                break;
            }
        }
    }
}
