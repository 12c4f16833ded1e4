//! A plugin that keeps failing is left alone for a while: asking it would cost every request its time limit.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidegate_policy::PolicyFaultKind;

/// Faults of one kind within `WINDOW` that quarantine.
const FAULTS: u32 = 5;
const WINDOW: Duration = Duration::from_secs(10);
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// In `until`: for good.
const WITHDRAWN: u64 = u64::MAX;
/// Decisions in a row that clear the record.
const CLEAN: u32 = 20;

/// Per plugin, shared by all workers. Asking reads one atomic; the lock is for failures only.
#[derive(Debug)]
pub(crate) struct Quarantine {
    zero: Instant,
    /// Nanoseconds since `zero`; 0: not quarantined. Stays set, in the past, while the plugin is on probation.
    until: AtomicU64,
    clean: AtomicU64,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    /// By kind: when the window began, and the faults in it.
    windows: [(Duration, u32); PolicyFaultKind::ALL.len()],
    /// Quarantines so far, for the backoff.
    level: u32,
}

impl Default for Quarantine {
    fn default() -> Self {
        Self { zero: Instant::now(), until: AtomicU64::new(0), clean: AtomicU64::new(0), record: Mutex::default() }
    }
}

impl Quarantine {
    /// Whether the plugin may be asked now.
    pub(crate) fn open(&self) -> bool {
        match self.until.load(Ordering::Relaxed) {
            0 => true,
            until => self.zero.elapsed().as_nanos() as u64 >= until,
        }
    }

    /// An answer that could be used.
    pub(crate) fn succeeded(&self) {
        let until = self.until.load(Ordering::Relaxed);
        if until == 0 || self.clean.fetch_add(1, Ordering::Relaxed) + 1 < u64::from(CLEAN) {
            return;
        }
        // An answer that was asked for before the plugin was withdrawn does not bring it back.
        let cleared = |until| (until != WITHDRAWN).then_some(0);
        if self.until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, cleared).is_ok() {
            *self.lock() = Record::default();
        }
    }

    /// Never to be asked again.
    pub(crate) fn withdraw(&self) {
        let _record = self.lock();
        self.until.store(WITHDRAWN, Ordering::Relaxed);
    }

    pub(crate) fn withdrawn(&self) -> bool {
        self.until.load(Ordering::Relaxed) == WITHDRAWN
    }

    /// Counts a fault; true when it begins a quarantine.
    pub(crate) fn failed(&self, kind: PolicyFaultKind) -> bool {
        self.failed_at(kind, self.zero.elapsed())
    }

    fn failed_at(&self, kind: PolicyFaultKind, now: Duration) -> bool {
        self.clean.store(0, Ordering::Relaxed);
        let mut record = self.lock();
        let until = self.until.load(Ordering::Relaxed);
        // Asked before it was quarantined, by another worker: nothing new.
        if until > now.as_nanos() as u64 {
            return false;
        }
        let probation = until != 0;
        let index = PolicyFaultKind::ALL.iter().position(|other| *other == kind).unwrap_or(0);
        let (begun, faults) = &mut record.windows[index];
        if now.saturating_sub(*begun) > WINDOW {
            (*begun, *faults) = (now, 0);
        }
        *faults += 1;
        // On probation the first fault is enough.
        if *faults < FAULTS && !probation {
            return false;
        }
        *faults = 0;
        let pause = FIRST.saturating_mul(1 << record.level.min(16)).min(LONGEST);
        record.level += 1;
        self.until.store((now + pause).as_nanos() as u64, Ordering::Relaxed);
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_faults_of_a_kind_quarantine_with_doubling_pauses() {
        let quarantine = Quarantine::default();
        let at = Duration::from_secs(1);
        for _ in 0..4 {
            assert!(!quarantine.failed_at(PolicyFaultKind::Trap, at));
            assert!(!quarantine.failed_at(PolicyFaultKind::Deadline, at), "kinds are counted apart");
        }
        assert!(quarantine.failed_at(PolicyFaultKind::Trap, at));
        let until = |q: &Quarantine| Duration::from_nanos(q.until.load(Ordering::Relaxed));
        assert_eq!(until(&quarantine), Duration::from_secs(2));
        assert!(!quarantine.open());
        for _ in 0..10 {
            assert!(!quarantine.failed_at(PolicyFaultKind::Trap, at + Duration::from_millis(5)));
        }
        assert_eq!(until(&quarantine), Duration::from_secs(2), "those asked before it do not make it longer");
        let later = Duration::from_secs(5);
        assert!(quarantine.failed_at(PolicyFaultKind::Trap, later), "on probation one is enough");
        assert_eq!(until(&quarantine), Duration::from_secs(7));
    }

    #[test]
    fn what_is_withdrawn_stays_so() {
        let quarantine = Quarantine::default();
        quarantine.withdraw();
        assert!(quarantine.withdrawn() && !quarantine.open());
        (0..2 * CLEAN).for_each(|_| quarantine.succeeded());
        (0..10).for_each(|_| assert!(!quarantine.failed(PolicyFaultKind::Trap)));
        assert!(quarantine.withdrawn() && !quarantine.open());
    }

    #[test]
    fn old_faults_are_forgotten_and_good_answers_clear_the_record() {
        let quarantine = Quarantine::default();
        for second in 0..20 {
            assert!(!quarantine.failed_at(PolicyFaultKind::Trap, Duration::from_secs(second * 5)));
        }
        quarantine.until.store(1, Ordering::Relaxed);
        (0..CLEAN).for_each(|_| quarantine.succeeded());
        assert_eq!(quarantine.until.load(Ordering::Relaxed), 0);
    }
}
