//! The endpoints of a cluster: what they are, how they fare, and how one exchange sees them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use smallvec::SmallVec;

use crate::{EndpointHealth, SetHealth};

/// What all workers and successive snapshots share about one endpoint. Carried over by identity on reload.
#[derive(Debug)]
pub struct EndpointState {
    in_flight: AtomicU32,
    pub health: EndpointHealth,
    /// Peak EWMA: nanoseconds, and the time of the last sample in nanoseconds since `Clock` zero.
    latency: AtomicU64,
    sampled_at: AtomicU64,
    pub requests: AtomicU64,
    pub failures: AtomicU64,
}

impl Default for EndpointState {
    fn default() -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            health: EndpointHealth::default(),
            latency: AtomicU64::new(0),
            sampled_at: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }
}

/// How fast an old latency fades, in nanoseconds: after this time a sample weighs 1/e.
const DECAY: f64 = 10e9;
/// What a failure multiplies the average by, from at least and to at most so many nanoseconds.
const PENALTY: u64 = 4;
const PENALTY_FROM: u64 = 1_000_000;
const PENALTY_TO: u64 = 1_000_000_000;

impl EndpointState {
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Of an endpoint that takes nothing before its first check.
    pub fn awaited() -> Self {
        Self { health: EndpointHealth::awaited(), ..Self::default() }
    }

    pub fn healthy(&self) -> bool {
        self.health.healthy()
    }

    /// What a check would find, for tests that have none.
    #[cfg(any(test, feature = "contract"))]
    pub fn set_healthy(&self, healthy: bool) {
        self.health.stand(if healthy { crate::Standing::Passing } else { crate::Standing::Failing });
    }

    /// The moving average at `now` (since any fixed zero); zero before the first sample.
    pub fn latency(&self, now: Duration) -> Duration {
        let last = self.latency.load(Ordering::Relaxed) as f64;
        let age = (now.as_nanos() as u64).saturating_sub(self.sampled_at.load(Ordering::Relaxed)) as f64;
        Duration::from_nanos((last * (-age / DECAY).exp()) as u64)
    }

    /// The average as of its last sample, for display.
    pub fn last_latency(&self) -> Duration {
        Duration::from_nanos(self.latency.load(Ordering::Relaxed))
    }

    /// Adds the time to a response head: a higher sample counts at once, a lower one by its weight (peak sensitive).
    /// Racing workers may lose a sample; the average does not need each one.
    pub fn sample_latency(&self, now: Duration, sample: Duration) {
        let now_ns = now.as_nanos() as u64;
        let last = self.latency.load(Ordering::Relaxed) as f64;
        let age = now_ns.saturating_sub(self.sampled_at.load(Ordering::Relaxed)) as f64;
        let sample = sample.as_nanos() as f64;
        let next = if sample >= last {
            sample
        } else {
            let keep = (-age / DECAY).exp();
            last * keep + sample * (1.0 - keep)
        };
        self.latency.store(next as u64, Ordering::Relaxed);
        self.sampled_at.store(now_ns, Ordering::Relaxed);
    }

    /// A failure makes the endpoint dearer, more with each: were its time a sample like any other, one that fails fast would
    /// look fast and draw the load of those that answer.
    pub fn penalise_latency(&self, now: Duration) {
        let last = self.latency.load(Ordering::Relaxed);
        let next = last.max(PENALTY_FROM).saturating_mul(PENALTY).min(PENALTY_TO).max(last);
        self.latency.store(next, Ordering::Relaxed);
        self.sampled_at.store(now.as_nanos() as u64, Ordering::Relaxed);
    }
}

/// One endpoint of a cluster. The index in its set is its name within a generation.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// 1 to 1,000,000; an endpoint of weight 0 gets no new work.
    pub weight: u32,
    pub zone: Option<Arc<str>>,
    pub labels: Arc<[(Box<str>, Box<str>)]>,
    /// Most requests in flight over all workers.
    pub max_requests: u32,
    pub state: Arc<EndpointState>,
}

impl Endpoint {
    /// Its weight, less while it warms up.
    pub fn effective_weight(&self, now: Duration) -> f64 {
        f64::from(self.weight) * self.state.health.warmth(now)
    }
}

/// The members of a cluster, immutable: a change makes a new set with a higher generation.
#[derive(Debug)]
pub struct EndpointSet {
    pub cluster: Arc<str>,
    pub generation: u64,
    pub endpoints: Box<[Endpoint]>,
    pub health: SetHealth,
}

/// The endpoints as one exchange sees them now. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EndpointsView {
    pub set: Arc<EndpointSet>,
    /// Indexes this exchange has tried and will not try again.
    pub tried: SmallVec<[u32; 4]>,
    /// Since the worker's fixed zero, for latencies.
    pub now: Duration,
    /// Too few are healthy: all are taken for it.
    panic: bool,
}

impl EndpointsView {
    pub fn new(set: Arc<EndpointSet>, now: Duration) -> Self {
        let panic = set.panicking();
        Self { set, tried: SmallVec::new(), now, panic }
    }

    /// Another attempt begins.
    pub fn refresh(&mut self, now: Duration) {
        self.now = now;
        self.panic = self.set.panicking();
        if self.panic {
            self.set.count_panic();
        }
    }

    pub fn len(&self) -> usize {
        self.set.endpoints.len()
    }

    pub fn is_empty(&self) -> bool {
        self.set.endpoints.is_empty()
    }

    pub fn get(&self, index: u32) -> Option<&Endpoint> {
        self.set.endpoints.get(index as usize)
    }

    /// Healthy unless in panic, of some weight, below its limit, and not tried yet by this exchange.
    pub fn available(&self, index: u32) -> bool {
        self.get(index).is_some_and(|endpoint| {
            endpoint.weight > 0
                && (self.panic || endpoint.state.healthy())
                && endpoint.state.in_flight() < endpoint.max_requests
                && !self.tried.contains(&index)
        })
    }

    /// By chance, in proportion: whether an endpoint that is still warming up takes this one. Others always do.
    pub fn warm_enough(&self, index: u32) -> bool {
        self.get(index).is_none_or(|endpoint| {
            let effective = endpoint.effective_weight(self.now);
            effective >= f64::from(endpoint.weight) || fastrand::f64() * f64::from(endpoint.weight) < effective
        })
    }

    pub fn in_flight(&self, index: u32) -> u32 {
        self.get(index).map_or(0, |endpoint| endpoint.state.in_flight())
    }

    pub fn latency(&self, index: u32) -> Duration {
        self.get(index).map_or(Duration::ZERO, |endpoint| endpoint.state.latency(self.now))
    }
}
