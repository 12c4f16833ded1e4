//! Active health checks and the sweep of ejections: on the control thread's runtime, never on a worker.
//!
//! A task per endpoint checks it, sleeps, and checks again: checks of one endpoint never overlap. What it finds goes into the
//! endpoint's atomics, where the next pick on any worker sees it. A reload keeps the tasks of endpoints whose cluster,
//! address and way of being checked are the same.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tidegate_policy::{CheckOutcome, EndpointSet, EndpointState, SharedHealth, Standing, Streak, Swept, Thresholds};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::ClientTls;
use crate::snapshot::{Cluster, PoolSettings, Snapshot};

mod check;
mod over_http3;

pub use check::CheckKind;
use check::Target;

/// How the endpoints of a cluster are checked.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheck {
    pub kind: CheckKind,
    /// In place of the endpoint's.
    pub port: Option<u16>,
    /// From start to start.
    pub interval: Duration,
    pub timeout: Duration,
    /// Each interval is longer by up to this share of it, so that endpoints are not checked in step.
    pub jitter: f64,
    pub thresholds: Thresholds,
    /// Marks (`SO_MARK`) by which the kernel leads a check elsewhere than to the endpoint's address, `None` for no mark. It is
    /// made once with each, and passes where all of them do within its time.
    pub marks: Vec<Option<u32>>,
}

/// Wakes the sweeper where it sleeps for want of anything to compare.
#[derive(Debug, Default)]
pub struct Alarm {
    /// It sleeps, and wants to be woken by the next report.
    set: AtomicBool,
    bell: Notify,
}

impl Alarm {
    /// An attempt was reported: a look at one flag, unless it is the first for a while. One that comes just as the sweeper
    /// falls asleep may be missed; the next one is not.
    pub(crate) fn ring(&self) {
        if self.set.load(Ordering::Relaxed) && self.set.swap(false, Ordering::SeqCst) {
            self.bell.notify_one();
        }
    }
}

/// Everything that is checked and swept, as the control thread holds it. Dropped, all of it stops.
pub struct HealthChecks {
    runtime: Handle,
    zero: Instant,
    running: HashMap<(Arc<str>, SocketAddr), Running>,
    sweeper: AbortHandle,
    /// Wakes the sweeper: another snapshot may want it more often.
    alarm: Arc<Alarm>,
    verdicts: Arc<Notify>,
}

struct Running {
    work: Arc<Work>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Aborting is not at once; the lock makes sure that no verdict comes after this.
        *self.work.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.task.abort();
    }
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        self.sweeper.abort();
    }
}

impl HealthChecks {
    /// `zero` and `alarm` are the workers', so that all speak of the same times and wake the same sweeper; `current` is where
    /// successive snapshots are.
    pub fn start(runtime: Handle, zero: Instant, current: Arc<ArcSwap<Snapshot>>, alarm: Arc<Alarm>) -> Self {
        let snapshot = current.load_full();
        let sweeper = runtime.spawn(sweep(current, zero, alarm.clone())).abort_handle();
        let mut checks = Self { runtime, zero, running: HashMap::new(), sweeper, alarm, verdicts: Arc::default() };
        checks.apply(&snapshot, None);
        checks
    }

    /// Notified whenever checks have found an endpoint to be other than it was. For one to wait on.
    pub fn verdicts(&self) -> Arc<Notify> {
        self.verdicts.clone()
    }

    /// A snapshot came into force after `before`: tasks for what is new or checked in another way, none for what is gone.
    pub fn apply(&mut self, snapshot: &Snapshot, before: Option<&Snapshot>) {
        let mut running = HashMap::new();
        for cluster in &snapshot.clusters {
            let known = before.and_then(|before| before.cluster(&cluster.name));
            self.settle(cluster, known.map(|known| &*known.set));
            let Some(check) = &cluster.check else { continue };
            for endpoint in &cluster.set.endpoints {
                let place = (cluster.name.clone(), endpoint.address);
                // An address that is listed twice has one state, and is checked once.
                let Entry::Vacant(vacant) = running.entry(place.clone()) else { continue };
                let work = Work::new(cluster, check, endpoint.address, endpoint.state.clone());
                let kept = self.running.remove(&place).filter(|kept| kept.work.same(&work));
                vacant.insert(kept.unwrap_or_else(|| self.spawn(work)));
            }
        }
        // Those that are left in the old map stop as they are dropped.
        self.running = running;
        for cluster in snapshot.clusters.iter().filter(|cluster| cluster.check.is_none()) {
            for endpoint in &cluster.set.endpoints {
                cluster.set.health.shared.judge(
                    &endpoint.state.health,
                    Standing::Unchecked,
                    self.zero.elapsed(),
                    Duration::ZERO,
                );
            }
        }
        self.alarm.bell.notify_one();
    }

    /// Ends what gone rules began, and warms up what joined.
    fn settle(&self, cluster: &Cluster, known: Option<&EndpointSet>) {
        let set = &cluster.set;
        if set.health.rules.ejection.is_none() {
            set.endpoints.iter().for_each(|endpoint| set.health.shared.pardon(&endpoint.state.health));
        }
        // A whole new cluster has nobody warmer to lean on; what awaits its first check warms up when that is good.
        let Some(known) = known else { return };
        let old: HashSet<_> = known.endpoints.iter().map(|old| Arc::as_ptr(&old.state)).collect();
        for endpoint in set.endpoints.iter().filter(|new| new.state.health.standing() != Standing::Awaited) {
            if !old.contains(&Arc::as_ptr(&endpoint.state)) {
                endpoint.state.health.warm_up(self.zero.elapsed(), set.health.rules.slow_start);
            }
        }
    }

    fn spawn(&self, work: Work) -> Running {
        let work = Arc::new(work);
        let task = self.runtime.spawn(watch(work.clone(), self.zero, self.verdicts.clone())).abort_handle();
        Running { work, task }
    }
}

/// One endpoint to be checked, and where the result goes.
struct Work {
    cluster: Arc<str>,
    address: SocketAddr,
    check: Arc<HealthCheck>,
    /// Checks connect like requests do.
    pool: PoolSettings,
    tls: Option<Arc<ClientTls>>,
    state: Arc<EndpointState>,
    shared: Arc<SharedHealth>,
    slow_start: Duration,
    /// Nobody wants a result any more.
    over: Mutex<bool>,
}

impl Work {
    fn new(cluster: &Cluster, check: &Arc<HealthCheck>, address: SocketAddr, state: Arc<EndpointState>) -> Self {
        Self {
            cluster: cluster.name.clone(),
            address,
            check: check.clone(),
            pool: cluster.pool.clone(),
            tls: cluster.tls.clone(),
            state,
            shared: cluster.set.health.shared.clone(),
            slow_start: cluster.set.health.rules.slow_start,
            over: Mutex::new(false),
        }
    }

    /// Whether a task for this goes on as one for `other`.
    fn same(&self, other: &Self) -> bool {
        let tls = match (&self.tls, &other.tls) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        tls && self.check == other.check
            && self.pool == other.pool
            && self.slow_start == other.slow_start
            && Arc::ptr_eq(&self.state, &other.state)
            && Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Whether that makes it other than it was.
    fn conclude(&self, streak: &mut Streak, result: &Result<(), String>, now: Duration) -> bool {
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        if *over {
            return false;
        }
        let before = self.state.health.standing();
        let after = streak.observe(before, result.is_ok(), self.check.thresholds);
        self.shared.judge(&self.state.health, after, now, self.slow_start);
        drop(over);
        let (cluster, endpoint) = (&self.cluster, self.address);
        if let Err(reason) = result {
            tracing::debug!(%cluster, %endpoint, reason, "health check failed");
        }
        match (before, after) {
            (Standing::Passing | Standing::Unchecked | Standing::Awaited, Standing::Failing) => {
                let reason = result.as_ref().err().map_or("", String::as_str);
                tracing::info!(%cluster, %endpoint, reason, "endpoint unhealthy: its checks fail");
            }
            (Standing::Failing | Standing::Awaited, Standing::Passing) => {
                tracing::info!(%cluster, %endpoint, "endpoint healthy: its checks pass");
            }
            _ => {}
        }
        before != after
    }
}

/// Checks one endpoint for good; the first time at once.
async fn watch(work: Arc<Work>, zero: Instant, verdicts: Arc<Notify>) {
    let check = &work.check;
    let address = SocketAddr::new(work.address.ip(), check.port.unwrap_or(work.address.port()));
    let target =
        |mark: &Option<u32>| Target::new(address, work.pool.clone(), work.tls.as_deref(), check.kind.clone(), *mark);
    let targets: Vec<Target> = check.marks.iter().map(target).collect();
    let all = async || {
        for target in &targets {
            target.check().await?;
        }
        Ok(())
    };
    let mut streak = Streak::default();
    loop {
        let begun = tokio::time::Instant::now();
        let (outcome, result) = match tokio::time::timeout(check.timeout, all()).await {
            Ok(Ok(())) => (CheckOutcome::Passed, Ok(())),
            Ok(Err(reason)) => (CheckOutcome::Failed, Err(reason)),
            Err(_) => (CheckOutcome::TimedOut, Err(format!("no answer within {:?}", check.timeout))),
        };
        work.state.health.count_check(outcome);
        if work.conclude(&mut streak, &result, zero.elapsed()) {
            verdicts.notify_one();
        }
        let jitter = check.interval.mul_f64(fastrand::f64() * check.jitter);
        tokio::time::sleep_until(begun + check.interval + jitter).await;
    }
}

/// Bounds of the sweeper's pace. Coarser than this nobody notices, finer nobody needs.
const FASTEST: Duration = Duration::from_millis(20);
const SLOWEST: Duration = Duration::from_secs(1);
/// Where nobody is checked or ejected, and nothing to compare was reported: an idle process does not wake up for nothing.
const NOTHING_TO_DO: Duration = Duration::from_secs(60);

/// Brings back what was ejected long enough, and has endpoints compared. Over all clusters, with rules or without: an exchange
/// that began before a reload may eject by rules that are gone.
async fn sweep(current: Arc<ArcSwap<Snapshot>>, zero: Instant, alarm: Arc<Alarm>) {
    let mut panicking = HashSet::new();
    loop {
        // Before the look at what was reported: what comes after it rings.
        alarm.set.store(true, Ordering::SeqCst);
        let snapshot = current.load_full();
        let mut pace = NOTHING_TO_DO;
        for cluster in &snapshot.clusters {
            if let Some(rules) = &cluster.set.health.rules.ejection
                && !cluster.set.at_rest()
            {
                pace = pace.min(SLOWEST).min(rules.interval.min(rules.base_time) / 10);
            }
            if cluster.check.is_some() || cluster.set.endpoints.iter().any(|endpoint| !endpoint.state.healthy()) {
                pace = pace.min(SLOWEST);
            }
            for (index, swept) in cluster.set.sweep(zero.elapsed()) {
                tell(&cluster.set, index, swept);
            }
            tell_of_panic(&cluster.set, &mut panicking);
        }
        drop(snapshot);
        if pace < NOTHING_TO_DO {
            alarm.set.store(false, Ordering::SeqCst);
        }
        tokio::select! {
            () = tokio::time::sleep(pace.max(FASTEST)) => {}
            () = alarm.bell.notified() => {}
        }
    }
}

/// One line in the log when a cluster falls into panic, and one when it is over. That nobody is checked yet is no news.
fn tell_of_panic(set: &EndpointSet, panicking: &mut HashSet<Arc<str>>) {
    let judged = set.endpoints.iter().any(|endpoint| endpoint.state.health.standing() != Standing::Awaited);
    let cluster = &set.cluster;
    if judged && set.panicking() {
        if panicking.insert(cluster.clone()) {
            tracing::warn!(%cluster, "too few endpoints are healthy: all are used until there are more");
        }
    } else if panicking.remove(cluster) {
        tracing::info!(%cluster, "enough endpoints are healthy again");
    }
}

/// One line in the log for an endpoint that was ejected or came back.
pub(crate) fn tell(set: &EndpointSet, index: u32, swept: Swept) {
    let Some(endpoint) = set.endpoints.get(index as usize) else { return };
    let (cluster, endpoint) = (&set.cluster, endpoint.address);
    match swept {
        Swept::Ejected(ejected) => {
            tracing::info!(%cluster, %endpoint, reason = ejected.reason.name(), time = ?ejected.time, "endpoint ejected");
        }
        Swept::Returned => tracing::info!(%cluster, %endpoint, "endpoint back from ejection"),
    }
}
