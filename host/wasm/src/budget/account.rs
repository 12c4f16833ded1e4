//! What a component that answers requests spends, and its tenant with it.
//!
//! It draws no slices as plugins do. Its guests yield and wait, and while they wait their store may be on any thread; next to
//! an instance for each request, a compare-and-exchange for each stretch that one computes is nothing. So it is charged
//! where the allowance is, and what it took beyond is owed, also by its tenant's plugins: their buckets draw nothing
//! until it is earned.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Allowance, CpuShare, Held, Place, Tenant, nanos};
use crate::instances;

/// A component's own allowance of CPU time, and its tenant's allowances; of neither, it bounds nothing.
#[derive(Debug, Default)]
pub struct Account {
    cpu: Option<Arc<Allowance>>,
    tenant: Option<Arc<Tenant>>,
}

/// CPU time is used up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Short {
    /// Whose.
    pub why: &'static str,
    /// Until there is some again, if nobody else takes it.
    pub time: Duration,
}

/// Counts a guest that waits for CPU time, while it does.
#[derive(Debug)]
pub struct Waiting(Arc<Account>);

impl Account {
    pub fn new(cpu: Option<CpuShare>, tenant: Option<Arc<Tenant>>) -> Self {
        Self { cpu: cpu.map(Allowance::of_cpu), tenant }
    }

    pub fn tenant(&self) -> Option<&Arc<Tenant>> {
        self.tenant.as_ref()
    }

    fn allowances(&self) -> impl Iterator<Item = (&Arc<Allowance>, &'static str)> {
        let own = self.cpu.as_ref().map(|cpu| (cpu, "its CPU time of this second is used up (limits.cpu)"));
        let tenant = self.tenant.as_ref().and_then(|tenant| tenant.cpu.as_ref());
        let tenant = tenant.map(|cpu| (cpu, "its tenant's CPU time of this second is used up (limits.cpu)"));
        own.into_iter().chain(tenant)
    }

    /// Whether a guest has to wait before it computes further.
    pub fn short(&self, now: Instant) -> Option<Short> {
        let short = self.allowances().filter_map(|(cpu, why)| Some(Short { why, time: cpu.closed_for(now)? }));
        short.max_by_key(|short| short.time)
    }

    /// Whether there is none for another request: what there is belongs to the guests that wait for it already. Else each
    /// would have a little of it, and none be done in time.
    pub fn short_for_another(&self, now: Instant) -> Option<Short> {
        let taken = |cpu: &Allowance| (cpu.waiting.load(Ordering::Relaxed) > 0).then_some(Duration::ZERO);
        let short = self.allowances();
        let short =
            short.filter_map(|(cpu, why)| Some(Short { why, time: cpu.closed_for(now).or_else(|| taken(cpu))? }));
        short.max_by_key(|short| short.time)
    }

    /// A guest begins to wait for CPU time.
    pub fn wait(self: &Arc<Self>) -> Waiting {
        self.allowances().for_each(|(cpu, _)| _ = cpu.waiting.fetch_add(1, Ordering::Relaxed));
        Waiting(self.clone())
    }

    /// CPU time that was taken.
    pub fn charge(&self, took: Duration, now: Instant) {
        let took = nanos(took);
        if let Some(tenant) = &self.tenant {
            tenant.counts.cpu_ns.fetch_add(took, Ordering::Relaxed);
        }
        self.allowances().for_each(|(cpu, _)| cpu.spend(took, now));
    }

    /// Whether the tenant may write another line; takes it.
    pub fn may_log(&self, now: Instant) -> bool {
        let Some(log) = self.tenant.as_ref().and_then(|tenant| tenant.log.as_ref()) else { return true };
        let may = log.closed_for(now).is_none();
        if may {
            log.spend(1, now);
        }
        may
    }

    /// A place among the tenant's instances, counted in `live` besides. A plugin's instance that rests on this thread makes
    /// room where the tenant has all it may.
    ///
    /// # Errors
    /// Whose bound is reached.
    pub fn enter(&self, live: &Arc<AtomicU64>) -> Result<Place, &'static str> {
        self.tenant.as_deref().inspect(|tenant| instances::give_way(tenant));
        Place::take(self.tenant.as_ref(), None, live)
    }

    /// An instance's memory, of which there is none yet.
    pub fn held(&self) -> Held {
        Held::of(self.tenant.as_ref())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.allowances().for_each(|(cpu, _)| _ = cpu.waiting.fetch_sub(1, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Allowances, Purse, Share, TenantLimits, TenantPurse};
    use super::*;

    fn share(per_second: u64, burst: u64) -> CpuShare {
        CpuShare { per_second: Duration::from_millis(per_second), burst: Duration::from_millis(burst) }
    }

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn what_is_owed_is_earned_before_anybody_has_more() {
        let limits = TenantLimits { cpu: Some(share(100, 50)), ..TenantLimits::default() };
        let tenant = Tenant::new("a", limits, None);
        let account = Account::new(None, Some(tenant.clone()));
        let purse = Purse::new(&Allowances::of(&Share::default()), Some(TenantPurse::new(&tenant)));
        let begun = Instant::now();
        let at = |milliseconds| begun + ms(milliseconds);
        assert_eq!(account.short(at(0)), None);
        // The burst, and twenty milliseconds that take two hundred to earn.
        account.charge(ms(70), at(0));
        let short = account.short(at(0)).expect("it owes");
        assert!(short.why.contains("tenant") && short.time > ms(198) && short.time < ms(202), "{short:?}");
        assert!(account.short(at(150)).is_some_and(|short| short.time < ms(60)));
        assert!(purse.short(at(150)).is_some(), "its tenant's plugins owe it too");
        assert_eq!(account.short(at(210)), None);
        assert_eq!(purse.short(at(210)), None);
        assert_eq!(tenant.cpu(), ms(70));
    }

    #[test]
    fn a_component_of_nobody_has_a_share_of_its_own() {
        let account = Account::new(Some(share(10, 10)), None);
        let begun = Instant::now();
        let mut spent = 0;
        for step in 0..10_000 {
            let now = begun + ms(step);
            if account.short(now).is_none() {
                account.charge(ms(1), now);
                spent += 1;
            }
        }
        assert!((109..=112).contains(&spent), "{spent} ms in ten seconds");
        assert_eq!(Account::default().short(begun), None, "without a bound there is none");
    }

    #[test]
    fn nobody_begins_while_others_wait() {
        let tenant = Tenant::new("a", TenantLimits { cpu: Some(share(100, 50)), ..TenantLimits::default() }, None);
        let [one, other] = [(); 2].map(|()| Arc::new(Account::new(None, Some(tenant.clone()))));
        let now = Instant::now();
        assert_eq!(other.short_for_another(now), None);
        let waiting = one.wait();
        assert_eq!(other.short(now), None, "who is at work goes on");
        assert!(other.short_for_another(now).is_some_and(|short| short.why.contains("tenant")));
        drop(waiting);
        assert_eq!(other.short_for_another(now), None);
    }

    #[test]
    fn lines_instances_and_memory_are_the_tenants() {
        let limits =
            TenantLimits { memory: Some(100), instances: Some(2), log_lines: Some(3), ..TenantLimits::default() };
        let tenant = Tenant::new("a", limits, None);
        let account = Account::new(None, Some(tenant.clone()));
        let now = Instant::now() + ms(1);
        assert_eq!((0..10).filter(|_| account.may_log(now)).count(), 3);
        let live = Arc::default();
        let places = [account.enter(&live), account.enter(&live)];
        assert!(places.iter().all(Result::is_ok) && tenant.live_instances() == 2);
        assert!(account.enter(&live).is_err_and(|why| why.contains("tenant")));
        assert_eq!(live.load(Ordering::Relaxed), 2);
        drop(places);
        assert_eq!((live.load(Ordering::Relaxed), tenant.live_instances()), (0, 0));
        let (mut one, mut other) = (account.held(), account.held());
        assert!(one.grow(60) && !other.grow(50) && other.grow(40));
        assert_eq!(tenant.memory(), 100);
    }
}
