//! A budget for retries: a share of the requests, so that retries cannot turn a slow origin into a dead one.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// Tokens in thousandths: a request deposits its share, a retry takes a whole one; besides, a few a second are free.
/// The balance never exceeds ten seconds' worth of the minimum plus a thousand requests' share.
#[derive(Debug)]
pub struct RetryBudget {
    per_request: i64,
    min_per_second: u32,
    balance: AtomicI64,
    /// The second in which `free` was counted, in the high half; the free retries taken in it, in the low half.
    free: AtomicU64,
}

const WHOLE: i64 = 1000;

impl RetryBudget {
    /// `percent` of the requests may be retries, 0.0 to 1.0; `min_per_second` are allowed besides.
    pub fn new(percent: f64, min_per_second: u32) -> Self {
        let per_request = (percent.clamp(0.0, 10.0) * WHOLE as f64).round() as i64;
        Self { per_request, min_per_second, balance: AtomicI64::new(0), free: AtomicU64::new(0) }
    }

    /// Whether it is a budget of these figures: then it goes on over a reload.
    pub fn allows(&self, percent: f64, min_per_second: u32) -> bool {
        let other = Self::new(percent, min_per_second);
        (self.per_request, self.min_per_second) == (other.per_request, other.min_per_second)
    }

    /// A request begins.
    pub fn deposit(&self) {
        if self.balance.load(Ordering::Relaxed) < self.per_request * 1000 {
            self.balance.fetch_add(self.per_request, Ordering::Relaxed);
        }
    }

    /// Takes a retry's worth; false when there is none. `now` is since any fixed zero.
    pub fn withdraw(&self, now: Duration) -> bool {
        let second = now.as_secs() & 0xffff_ffff;
        let free = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| {
            let taken = if state >> 32 == second { state & 0xffff_ffff } else { 0 };
            (taken < u64::from(self.min_per_second)).then_some(second << 32 | (taken + 1))
        });
        free.is_ok() || self.take()
    }

    fn take(&self) -> bool {
        self.balance
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |balance| (balance >= WHOLE).then_some(balance - WHOLE))
            .is_ok()
    }

    /// Retries that could be taken now.
    pub fn balance(&self, now: Duration) -> u32 {
        let state = self.free.load(Ordering::Relaxed);
        let second = now.as_secs() & 0xffff_ffff;
        let taken = if state >> 32 == second { (state & 0xffff_ffff) as u32 } else { 0 };
        let saved = (self.balance.load(Ordering::Relaxed) / WHOLE).max(0);
        self.min_per_second.saturating_sub(taken).saturating_add(u32::try_from(saved).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_requests_and_a_few_a_second() {
        let budget = RetryBudget::new(0.2, 2);
        let now = Duration::from_secs(5);
        assert_eq!(budget.balance(now), 2);
        assert!(budget.withdraw(now) && budget.withdraw(now) && !budget.withdraw(now));
        (0..10).for_each(|_| budget.deposit());
        assert_eq!(budget.balance(now), 2);
        assert!(budget.withdraw(now) && budget.withdraw(now) && !budget.withdraw(now));
        assert!(budget.withdraw(Duration::from_secs(6)), "a new second brings its minimum");
    }

    #[test]
    fn a_quiet_night_does_not_save_up_for_a_storm() {
        let budget = RetryBudget::new(0.2, 0);
        (0..100_000).for_each(|_| budget.deposit());
        assert!(budget.balance(Duration::ZERO) <= 201);
    }
}
