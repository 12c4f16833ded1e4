//! A least rate, for peers that never fall silent and never finish: a byte now and then holds memory and a place upstream
//! for as long as the peer likes, and no idle time sees it.

use std::task::{Context, Poll};
use std::time::Duration;

use crate::clock::Lately;
use crate::timer::{Deadline, Timers};

/// So many bytes a second on the average of a body, counted while we wait for the peer, with some time to begin with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LeastRate {
    /// At least 1.
    pub bytes_per_second: u64,
    pub grace: Duration,
}

impl LeastRate {
    /// How long a peer may have been waited for once so many bytes have moved.
    fn allows(&self, moved: u64) -> Duration {
        let earned = moved as f64 / self.bytes_per_second.max(1) as f64;
        self.grace.saturating_add(Duration::try_from_secs_f64(earned).unwrap_or(Duration::MAX))
    }
}

/// One peer's. What the other side takes its time for does not count against it.
pub(crate) struct Pace<'a> {
    least: LeastRate,
    timers: &'a Timers,
    waited: Duration,
    /// The wait under way, and when it has been too long.
    waiting: Option<(Lately, Deadline)>,
}

impl<'a> Pace<'a> {
    pub(crate) fn of(least: Option<LeastRate>, timers: &'a Timers) -> Option<Self> {
        least.map(|least| Self { least, timers, waited: Duration::ZERO, waiting: None })
    }

    /// Called while the peer is waited for. Ready, with the rate, when it is too slow for the `moved` bytes so far.
    pub(crate) fn poll_late(&mut self, cx: &mut Context<'_>, moved: u64) -> Poll<u64> {
        let (_, deadline) = self.waiting.get_or_insert_with(|| {
            let left = self.least.allows(moved).saturating_sub(self.waited);
            (Lately::now(), Deadline::after(self.timers, Some(left)))
        });
        deadline.poll_elapsed(cx).map(|()| self.least.bytes_per_second)
    }

    /// The wait is over.
    pub(crate) fn rest(&mut self) {
        if let Some((since, _)) = self.waiting.take() {
            self.waited += since.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_earned_by_bytes() {
        let least = LeastRate { bytes_per_second: 1000, grace: Duration::from_secs(5) };
        assert_eq!(least.allows(0), Duration::from_secs(5));
        assert_eq!(least.allows(2500), Duration::from_millis(7500));
        assert!(least.allows(u64::MAX) > Duration::from_secs(1 << 40));
        let odd = LeastRate { bytes_per_second: 0, grace: Duration::MAX };
        assert_eq!(odd.allows(u64::MAX), Duration::MAX);
    }
}
