//! What a plugin and its tenant may use, in a second and at once. `budget/account.rs` is the same of a component.
//!
//! CPU time, log lines and callouts come out of an [`Allowance`] that refills steadily. All workers share it, and none asks it for
//! each question: a worker draws a slice, a sixteenth of the burst, into a [`Bucket`] of its own, and goes on with that
//! until it is used up. So a share follows where the tenant's requests arrive, whatever the kernel made of its
//! connections, and a draw is one compare-and-exchange. What a decision took is known when it is over: a bucket may go
//! below nothing, and is closed until the allowance has made up for it. A slice that lies about for a second is void.
//!
//! Every tenant has an allowance of its own: what one uses is never another's.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytestring::ByteString;

use crate::callout::HttpGrant;
use crate::host::nanos;
use crate::kv::KvGrant;

mod account;

pub use account::{Account, Short, Waiting};

/// CPU time of guests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CpuShare {
    /// In each second, over all workers.
    pub per_second: Duration,
    /// What may be saved up.
    pub burst: Duration,
}

/// What a plugin may use besides the limits of one decision.
#[derive(Clone, Debug)]
pub struct Share {
    pub tenant: Option<Arc<Tenant>>,
    /// `None`: as much as there is.
    pub cpu: Option<CpuShare>,
    /// Live at once, over all workers.
    pub instances: Option<u64>,
    /// In each second, over all workers.
    pub log_lines: u32,
    pub kv: Option<KvGrant>,
    /// The clusters it may call; `None`: none.
    pub http: Option<HttpGrant>,
}

impl Default for Share {
    fn default() -> Self {
        Self { tenant: None, cpu: None, instances: None, log_lines: 100, kv: None, http: None }
    }
}

/// Bounds on all plugins of a tenant together; `None` bounds nothing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TenantLimits {
    pub cpu: Option<CpuShare>,
    /// Bytes of linear memory.
    pub memory: Option<u64>,
    pub instances: Option<u64>,
    pub log_lines: Option<u32>,
    /// In each second.
    pub callouts: Option<u32>,
    /// At once.
    pub callouts_in_flight: Option<u64>,
}

/// What is counted of a tenant, over reloads.
#[derive(Debug, Default)]
struct Counts {
    memory: AtomicU64,
    instances: AtomicU64,
    cpu_ns: AtomicU64,
    callouts: AtomicU64,
}

/// Somebody whose plugins share a budget.
#[derive(Debug)]
pub struct Tenant {
    name: ByteString,
    limits: TenantLimits,
    cpu: Option<Arc<Allowance>>,
    log: Option<Arc<Allowance>>,
    callouts: Option<Arc<Allowance>>,
    counts: Arc<Counts>,
}

impl Tenant {
    /// `previous` goes on where its limits are the same; else what is in use under it counts on.
    pub fn new(name: &str, limits: TenantLimits, previous: Option<&Arc<Self>>) -> Arc<Self> {
        if let Some(same) = previous.filter(|previous| previous.limits == limits) {
            return same.clone();
        }
        let counts = previous.map(|previous| previous.counts.clone()).unwrap_or_default();
        Arc::new(Self {
            name: name.into(),
            limits,
            cpu: limits.cpu.map(Allowance::of_cpu),
            log: limits.log_lines.map(Allowance::of_number),
            callouts: limits.callouts.map(Allowance::of_number),
            counts,
        })
    }

    pub fn name(&self) -> &ByteString {
        &self.name
    }

    pub fn limits(&self) -> &TenantLimits {
        &self.limits
    }

    /// Bytes of linear memory that its live instances have.
    pub fn memory(&self) -> u64 {
        self.counts.memory.load(Ordering::Relaxed)
    }

    pub fn live_instances(&self) -> u64 {
        self.counts.instances.load(Ordering::Relaxed)
    }

    /// Callouts of its plugins under way.
    pub fn callouts_in_flight(&self) -> u64 {
        self.counts.callouts.load(Ordering::Relaxed)
    }

    /// That its guests took so far.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.counts.cpu_ns.load(Ordering::Relaxed))
    }

    /// Whether another instance may not fit: one that rests should make room.
    pub(crate) fn crowded(&self) -> bool {
        self.limits.instances.is_some_and(|most| self.live_instances() >= most)
            || self.limits.memory.is_some_and(|most| self.memory() > most / 8 * 7)
    }
}

/// Adds to what is in use, unless that would be more than `most`.
fn enter(used: &AtomicU64, by: u64, most: Option<u64>) -> bool {
    let most = most.unwrap_or(u64::MAX);
    let fits = |used: u64| used.checked_add(by).filter(|sum| *sum <= most);
    used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
}

/// A live instance's place among those of its plugin, or component, and tenant.
#[derive(Debug)]
pub struct Place {
    tenant: Option<Arc<Tenant>>,
    live: Arc<AtomicU64>,
}

impl Place {
    /// Or whose bound is reached.
    pub(crate) fn take(
        tenant: Option<&Arc<Tenant>>,
        most: Option<u64>,
        live: &Arc<AtomicU64>,
    ) -> Result<Self, &'static str> {
        if !enter(live, 1, most) {
            return Err("its plugin has all the instances it may have (limits.instances)");
        }
        if let Some(tenant) = tenant
            && !enter(&tenant.counts.instances, 1, tenant.limits.instances)
        {
            live.fetch_sub(1, Ordering::Relaxed);
            return Err("its tenant has all the instances it may have (limits.instances)");
        }
        Ok(Self { tenant: tenant.cloned(), live: live.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
        if let Some(tenant) = &self.tenant {
            tenant.counts.instances.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A callout's place among those in flight of its plugin and tenant.
#[derive(Debug)]
pub(crate) struct InFlight {
    tenant: Option<Arc<Tenant>>,
    of_plugin: Arc<AtomicU64>,
}

impl InFlight {
    /// Or whose bound is reached.
    pub(crate) fn enter(
        tenant: Option<&Arc<Tenant>>,
        most: u64,
        of_plugin: &Arc<AtomicU64>,
    ) -> Result<Self, &'static str> {
        if !enter(of_plugin, 1, Some(most)) {
            return Err("the plugin has all the callouts it may have in flight (grants.http.max_in_flight)");
        }
        if let Some(tenant) = tenant
            && !enter(&tenant.counts.callouts, 1, tenant.limits.callouts_in_flight)
        {
            of_plugin.fetch_sub(1, Ordering::Relaxed);
            return Err("its tenant has all the callouts it may have in flight (limits.callouts_in_flight)");
        }
        Ok(Self { tenant: tenant.cloned(), of_plugin: of_plugin.clone() })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.of_plugin.fetch_sub(1, Ordering::Relaxed);
        if let Some(tenant) = &self.tenant {
            tenant.counts.callouts.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Memory that an instance has, counted for its tenant.
#[derive(Debug, Default)]
pub struct Held {
    bytes: usize,
    tenant: Option<Arc<Tenant>>,
}

impl Held {
    pub(crate) fn of(tenant: Option<&Arc<Tenant>>) -> Self {
        Self { bytes: 0, tenant: tenant.cloned() }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// False where the tenant may not have as much; `to` are bytes.
    pub fn grow(&mut self, to: usize) -> bool {
        let more = to.saturating_sub(self.bytes) as u64;
        let fits = self.tenant.as_ref().is_none_or(|t| enter(&t.counts.memory, more, t.limits.memory));
        if fits {
            self.bytes = self.bytes.max(to);
        }
        fits
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(tenant) = &self.tenant {
            tenant.counts.memory.fetch_sub(self.bytes as u64, Ordering::Relaxed);
        }
    }
}

/// So much a second, and a burst: shared by the workers, without a lock.
#[derive(Debug)]
pub(crate) struct Allowance {
    per_second: u64,
    burst: u64,
    zero: Instant,
    /// Until when all is spent, in nanoseconds since `zero` and a whole burst before it.
    spent: AtomicU64,
    /// Guests of components that wait for some of it.
    waiting: AtomicU64,
}

const SECOND: u128 = 1_000_000_000;

impl Allowance {
    fn new(per_second: u64, burst: u64) -> Arc<Self> {
        let (per_second, burst) = (per_second.max(1), burst.max(1));
        Arc::new(Self { per_second, burst, zero: Instant::now(), spent: AtomicU64::new(0), waiting: AtomicU64::new(0) })
    }

    /// In nanoseconds.
    pub(crate) fn of_cpu(share: CpuShare) -> Arc<Self> {
        Self::new(nanos(share.per_second), nanos(share.burst))
    }

    /// Of what is counted one by one.
    pub(crate) fn of_number(per_second: u32) -> Arc<Self> {
        Self::new(per_second.into(), per_second.into())
    }

    /// How long it takes to earn an amount.
    fn time_of(&self, amount: u64) -> u64 {
        u64::try_from((u128::from(amount) * SECOND).div_ceil(self.per_second.into())).unwrap_or(u64::MAX / 4)
    }

    fn elapsed(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.zero).as_nanos()).unwrap_or(u64::MAX / 4)
    }

    /// Takes an amount, whether it is there or not: what is not is owed.
    fn spend(&self, amount: u64, now: Instant) {
        let (elapsed, time) = (self.elapsed(now), self.time_of(amount));
        let more = |spent: u64| Some(spent.max(elapsed).saturating_add(time));
        let _ = self.spent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// How long it takes until there is something; `None` where there is.
    fn closed_for(&self, now: Instant) -> Option<Duration> {
        let end = self.elapsed(now).saturating_add(self.time_of(self.burst));
        let owed = self.spent.load(Ordering::Relaxed).checked_sub(end)?;
        Some(Duration::from_nanos(owed + 1))
    }

    /// Up to `want` of what there is.
    fn draw(&self, want: u64, now: Instant) -> u64 {
        let elapsed = self.elapsed(now);
        let end = elapsed.saturating_add(self.time_of(self.burst));
        let mut spent = self.spent.load(Ordering::Relaxed);
        loop {
            let from = spent.max(elapsed);
            let saved = (u128::from(end.saturating_sub(from)) * u128::from(self.per_second) / SECOND) as u64;
            let got = saved.min(want);
            if got == 0 {
                return 0;
            }
            let to = from.saturating_add(self.time_of(got));
            match self.spent.compare_exchange_weak(spent, to, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return got,
                Err(other) => spent = other,
            }
        }
    }
}

/// One worker's part of an allowance.
#[derive(Debug)]
pub(crate) struct Bucket {
    from: Arc<Allowance>,
    left: Cell<i64>,
    drawn: Cell<Instant>,
}

/// Then what was drawn and not used is void: else idle workers would keep a burst of their own each.
const STALE: Duration = Duration::from_secs(1);

impl Bucket {
    pub(crate) fn new(from: &Arc<Allowance>) -> Self {
        Self { from: from.clone(), left: Cell::new(0), drawn: Cell::new(Instant::now()) }
    }

    /// Whether there is anything left, or to be drawn.
    pub(crate) fn open(&self, now: Instant) -> bool {
        let mut left = self.left.get();
        if left > 0 && now.saturating_duration_since(self.drawn.get()) > STALE {
            left = 0;
        }
        if left <= 0 {
            let slice = (self.from.burst / 16).max(1);
            left += self.from.draw(slice.saturating_add(left.unsigned_abs()), now) as i64;
            self.drawn.set(now);
            self.left.set(left);
        }
        left > 0
    }

    pub(crate) fn charge(&self, amount: u64) {
        self.left.set(self.left.get().saturating_sub(i64::try_from(amount).unwrap_or(i64::MAX)));
    }
}

/// A tenant's buckets on one worker.
#[derive(Debug)]
pub(crate) struct TenantPurse {
    pub(crate) tenant: Arc<Tenant>,
    cpu: Option<Bucket>,
    log: Option<Bucket>,
    callouts: Option<Bucket>,
}

impl TenantPurse {
    pub(crate) fn new(tenant: &Arc<Tenant>) -> Rc<Self> {
        let bucket = |of: &Option<Arc<Allowance>>| of.as_ref().map(Bucket::new);
        let (cpu, log, callouts) = (bucket(&tenant.cpu), bucket(&tenant.log), bucket(&tenant.callouts));
        Rc::new(Self { tenant: tenant.clone(), cpu, log, callouts })
    }
}

/// What a plugin's allowances are, for all workers.
#[derive(Debug)]
pub(crate) struct Allowances {
    cpu: Option<Arc<Allowance>>,
    log: Arc<Allowance>,
    callouts: Option<Arc<Allowance>>,
}

impl Allowances {
    pub(crate) fn of(share: &Share) -> Self {
        let callouts = share.http.as_ref().and_then(|http| http.per_second);
        Self {
            cpu: share.cpu.map(Allowance::of_cpu),
            log: Allowance::of_number(share.log_lines),
            callouts: callouts.map(Allowance::of_number),
        }
    }
}

/// What a plugin has to spend on one worker: its own, and its tenant's.
#[derive(Debug)]
pub(crate) struct Purse {
    cpu: Option<Bucket>,
    log: Bucket,
    callouts: Option<Bucket>,
    tenant: Option<Rc<TenantPurse>>,
}

impl Purse {
    pub(crate) fn new(allowances: &Allowances, tenant: Option<Rc<TenantPurse>>) -> Rc<Self> {
        let cpu = allowances.cpu.as_ref().map(Bucket::new);
        let callouts = allowances.callouts.as_ref().map(Bucket::new);
        Rc::new(Self { cpu, log: Bucket::new(&allowances.log), callouts, tenant })
    }

    /// For what is made once to see that it can be, on no worker. Its tenant's bounds are left out: what that has in use is no
    /// reason to refuse a configuration.
    pub(crate) fn trial(allowances: &Allowances) -> Rc<Self> {
        Self::new(allowances, None)
    }

    /// Who is charged besides; nobody while a plugin is tried out.
    pub(crate) fn tenant(&self) -> Option<&Arc<Tenant>> {
        self.tenant.as_ref().map(|purse| &purse.tenant)
    }

    /// Whose CPU time is used up, if any is.
    pub(crate) fn short(&self, now: Instant) -> Option<&'static str> {
        let closed = |cpu: Option<&Bucket>| cpu.is_some_and(|cpu| !cpu.open(now));
        if closed(self.cpu.as_ref()) {
            Some("its CPU time of this second is used up (limits.cpu)")
        } else if closed(self.tenant.as_ref().and_then(|tenant| tenant.cpu.as_ref())) {
            Some("its tenant's CPU time of this second is used up (limits.cpu)")
        } else {
            None
        }
    }

    pub(crate) fn charge(&self, took: Duration) {
        let ns = took.as_nanos() as u64;
        if let Some(cpu) = &self.cpu {
            cpu.charge(ns);
        }
        if let Some(purse) = &self.tenant {
            purse.tenant.counts.cpu_ns.fetch_add(ns, Ordering::Relaxed);
            if let Some(cpu) = &purse.cpu {
                cpu.charge(ns);
            }
        }
    }

    /// Whether another line may be written; takes it.
    pub(crate) fn may_log(&self, now: Instant) -> bool {
        let of_tenant = self.tenant.as_ref().and_then(|tenant| tenant.log.as_ref());
        let may = self.log.open(now) && of_tenant.is_none_or(|log| log.open(now));
        if may {
            self.log.charge(1);
            of_tenant.inspect(|log| log.charge(1));
        }
        may
    }

    /// Takes another callout, or says whose are used up.
    pub(crate) fn call_out(&self, now: Instant) -> Result<(), &'static str> {
        let of_tenant = self.tenant.as_ref().and_then(|tenant| tenant.callouts.as_ref());
        if self.callouts.as_ref().is_some_and(|callouts| !callouts.open(now)) {
            return Err("the plugin's callouts of this second are used up (limits.callouts)");
        }
        if of_tenant.is_some_and(|callouts| !callouts.open(now)) {
            return Err("its tenant's callouts of this second are used up (limits.callouts)");
        }
        for callouts in self.callouts.iter().chain(of_tenant) {
            callouts.charge(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn share(per_second: u64, burst: u64) -> CpuShare {
        CpuShare { per_second: Duration::from_millis(per_second), burst: Duration::from_millis(burst) }
    }

    /// Decisions of `each` milliseconds, one after the other for `seconds`, asked of these buckets in turn.
    fn spend(buckets: &[&Bucket], from: Instant, seconds: u64, each: u64) -> u64 {
        let mut spent = 0;
        for step in 0..seconds * 1000 / each {
            let bucket = buckets[step as usize % buckets.len()];
            if bucket.open(from + Duration::from_millis(step * each)) {
                bucket.charge(each * MS);
                spent += each;
            }
        }
        spent
    }

    #[test]
    fn a_second_has_so_much_and_a_burst_is_what_was_saved() {
        let allowance = Allowance::of_cpu(share(100, 50));
        let bucket = Bucket::new(&allowance);
        let spent = spend(&[&bucket], allowance.zero, 10, 1);
        // Ten seconds of 100 ms, the burst before them, and at most one decision more.
        assert!((1000..=1051).contains(&spent), "{spent} ms");
        let later = allowance.zero + Duration::from_secs(1000);
        let again = spend(&[&bucket], later, 1, 1);
        assert!((100..=151).contains(&again), "an idle time saves the burst, no more: {again} ms");
    }

    #[test]
    fn a_decision_beyond_the_share_is_made_up_for() {
        let allowance = Allowance::of_cpu(share(10, 10));
        let bucket = Bucket::new(&allowance);
        let spent = spend(&[&bucket], allowance.zero, 60, 5);
        assert!((600..=620).contains(&spent), "{spent} ms in a minute");
    }

    #[test]
    fn the_share_is_where_the_work_is() {
        let allowance = Allowance::of_cpu(share(100, 50));
        let (busy, idle) = (Bucket::new(&allowance), Bucket::new(&allowance));
        assert!(idle.open(allowance.zero));
        let alone = spend(&[&busy], allowance.zero, 10, 1);
        assert!(alone >= 990, "a worker that is asked alone has it all: {alone} ms");
        let start = allowance.zero + Duration::from_secs(100);
        let both = spend(&[&busy, &idle], start, 10, 1);
        assert!((1000..=1060).contains(&both), "two have no more than one: {both} ms");
    }

    #[test]
    fn what_a_worker_drew_and_left_is_void() {
        let allowance = Allowance::of_cpu(share(16, 16));
        let buckets: Vec<Bucket> = (0..64).map(|_| Bucket::new(&allowance)).collect();
        // Over a long time every worker draws its slice once.
        for (index, bucket) in (0..).zip(&buckets) {
            assert!(bucket.open(allowance.zero + Duration::from_secs(index)));
        }
        let later = allowance.zero + Duration::from_secs(100);
        let mut spent = 0;
        while let Some(bucket) = buckets.iter().find(|bucket| bucket.open(later)) {
            bucket.charge(MS);
            spent += 1;
        }
        assert_eq!(spent, 16, "milliseconds at one moment");
    }

    #[test]
    fn tenants_have_nothing_in_common() {
        let limits = TenantLimits { cpu: Some(share(10, 10)), log_lines: Some(5), ..TenantLimits::default() };
        let purse = |name: &str| {
            let tenant = Tenant::new(name, limits, None);
            Purse::new(&Allowances::of(&Share::default()), Some(TenantPurse::new(&tenant)))
        };
        let (a, b) = (purse("a"), purse("b"));
        let now = Instant::now() + Duration::from_millis(1);
        a.charge(Duration::from_secs(1));
        assert!(a.short(now).is_some_and(|why| why.contains("tenant")) && b.short(now).is_none());
        assert_eq!((0..50).filter(|_| a.may_log(now)).count(), 5);
        assert_eq!((0..50).filter(|_| b.may_log(now)).count(), 5);
    }

    #[test]
    fn callouts_are_bounded_in_a_second_and_at_once() {
        let limits = TenantLimits { callouts: Some(5), callouts_in_flight: Some(3), ..TenantLimits::default() };
        let tenant = Tenant::new("a", limits, None);
        let http = |per_second| HttpGrant { per_second, ..HttpGrant::of(&["auth"]) };
        let purse = |per_second| {
            let share = Share { http: Some(http(per_second)), ..Share::default() };
            Purse::new(&Allowances::of(&share), Some(TenantPurse::new(&tenant)))
        };
        let (strict, loose) = (purse(Some(2)), purse(None));
        let now = Instant::now() + Duration::from_millis(1);
        let made = |purse: &Purse| (0..50).filter(|_| purse.call_out(now).is_ok()).count();
        assert_eq!(made(&strict), 2);
        assert!(strict.call_out(now).is_err_and(|why| why.contains("plugin")));
        assert_eq!(made(&loose), 3, "the rest of the tenant's");
        assert!(loose.call_out(now).is_err_and(|why| why.contains("tenant")));

        let (one, other) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let enter = |of: &Arc<AtomicU64>| InFlight::enter(Some(&tenant), 2, of);
        let held = [enter(&one), enter(&one), enter(&other)];
        assert!(held.iter().all(Result::is_ok));
        assert!(enter(&one).is_err_and(|why| why.contains("plugin")));
        assert!(enter(&other).is_err_and(|why| why.contains("tenant")));
        assert_eq!((other.load(Ordering::Relaxed), tenant.callouts_in_flight()), (1, 3));
        drop(held);
        assert_eq!((one.load(Ordering::Relaxed), tenant.callouts_in_flight()), (0, 0));
    }

    #[test]
    fn plugins_of_a_tenant_share_its_bounds() {
        let limits = TenantLimits { memory: Some(100), instances: Some(3), ..TenantLimits::default() };
        let tenant = Tenant::new("a", limits, None);
        let take = |live: &Arc<AtomicU64>| Place::take(Some(&tenant), Some(2), live);
        let (one, other) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let first = take(&one);
        let second = take(&one);
        assert!(first.is_ok() && second.is_ok());
        assert!(take(&one).is_err_and(|why| why.contains("plugin")));
        let third = take(&other);
        assert!(third.is_ok() && tenant.crowded());
        assert!(take(&other).is_err_and(|why| why.contains("tenant")));
        assert_eq!(other.load(Ordering::Relaxed), 1, "a place that was not to be had is given back");
        drop(first);
        assert!(take(&other).is_ok());

        let (mut a, mut b) = (Held::of(Some(&tenant)), Held::of(Some(&tenant)));
        assert!(a.grow(60) && b.grow(40) && !b.grow(41) && !a.grow(61));
        assert_eq!((a.bytes(), b.bytes(), tenant.memory()), (60, 40, 100));
        drop(a);
        assert!(b.grow(100));
        // Another budget, the same use.
        let wider = TenantLimits { memory: Some(200), ..limits };
        let next = Tenant::new("a", wider, Some(&tenant));
        let mut c = Held::of(Some(&next));
        assert!(c.grow(100) && !c.grow(101));
    }
}
