//! The time for next to nothing: deadlines, idle times, ages and statistics need no more than the kernel's coarse clock,
//! which is read without asking the processor's counter. It is behind the exact one by its resolution at
//! most, a little more on a virtual machine that is not given its ticks in time.

use std::time::Duration;

/// A moment of the monotonic clock, in nanoseconds.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Lately(u64);

/// Of the C library, which finds the kernel's page for it under every tool: rustix' own way fails where that is hidden.
#[inline]
fn read(clock: libc::clockid_t) -> libc::timespec {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes into the struct. These clocks are there since Linux 2.6.32; it cannot fail.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time
}

fn nanoseconds(time: libc::timespec) -> u64 {
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// Seconds since 1970, behind by no more than [`lag`].
pub(crate) fn unix_seconds() -> u64 {
    read(libc::CLOCK_REALTIME_COARSE).tv_sec.max(0) as u64
}

impl Lately {
    /// A moment ago.
    #[inline]
    pub(crate) fn now() -> Self {
        Self(nanoseconds(read(libc::CLOCK_MONOTONIC_COARSE)))
    }

    /// Exactly now: what others are counted from.
    pub(crate) fn exactly() -> Self {
        Self(nanoseconds(read(libc::CLOCK_MONOTONIC)))
    }

    /// Nothing where `earlier` is later.
    #[inline]
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    #[inline]
    pub(crate) fn elapsed(self) -> Duration {
        Self::now().since(self)
    }

    /// So long before.
    pub(crate) fn before(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// The resolution of [`Lately::now`], by which it is behind: 4 ms on most kernels.
pub(crate) fn lag() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: as in `read`.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    Duration::from_nanos(nanoseconds(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_the_exact_time() {
        for _ in 0..20 {
            let before = Lately::exactly();
            let now = Lately::now();
            let after = Lately::exactly();
            assert!(now <= after);
            // Ticks of a loaded machine may be late.
            assert!(before.since(now) <= lag() + Duration::from_secs(1), "{:?} behind", before.since(now));
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(Lately(1).since(Lately(2)), Duration::ZERO);
    }
}
