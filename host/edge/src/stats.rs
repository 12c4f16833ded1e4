//! What became of a component's requests, counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Why a request had no answer, or no whole one. The order is that of [`Stats::faults`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FaultKind {
    Trap,
    /// It wanted more memory than it may have, and then trapped.
    Memory,
    /// It computed for longer than it may.
    CpuTime,
    /// It was not done in time.
    Timeout,
    /// It returned, and had given no answer.
    NoAnswer,
    /// It said that it failed.
    Error,
    /// No instance was free.
    Full,
    /// Its tenant's budget or its own is used up.
    Budget,
    /// It left its body unfinished, or shorter than it said.
    Unfinished,
}

/// The names of the causes, as metrics and log have them.
pub const FAULTS: [&str; 9] =
    ["trap", "memory", "cpu_time", "timeout", "no_answer", "error", "full", "budget", "unfinished"];

impl FaultKind {
    pub(crate) fn name(self) -> &'static str {
        FAULTS[self as usize]
    }
}

/// Counts of one component, over all workers.
#[derive(Debug)]
pub struct Stats {
    begun: Instant,
    pub(crate) requests: AtomicU64,
    pub(crate) live: Arc<AtomicU64>,
    /// Nanoseconds.
    pub(crate) cpu: AtomicU64,
    faults: [AtomicU64; FAULTS.len()],
    lines_dropped: AtomicU64,
    /// The second since `begun`, above the lines that were written in it.
    lines: AtomicU64,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            requests: AtomicU64::new(0),
            live: Arc::default(),
            cpu: AtomicU64::new(0),
            faults: Default::default(),
            lines_dropped: AtomicU64::new(0),
            lines: AtomicU64::new(0),
        }
    }
}

impl Stats {
    /// Requests that an instance was made for.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Instances that live.
    pub fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// CPU time of all instances so far that are gone.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu.load(Ordering::Relaxed))
    }

    /// By cause.
    pub fn faults(&self) -> impl Iterator<Item = (&'static str, u64)> {
        FAULTS.into_iter().zip(self.faults.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    /// Lines that were written too fast for the log.
    pub fn lines_dropped(&self) -> u64 {
        self.lines_dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn fault(&self, kind: FaultKind) {
        self.faults[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Whether another line fits within this second, and `others` have nothing against it; counts it where not.
    pub(crate) fn may_log(&self, lines: u32, others: impl FnOnce() -> bool) -> bool {
        let second = self.begun.elapsed().as_secs() << 32;
        let another = |window: u64| {
            let written = if window & !u64::from(u32::MAX) == second { window & u64::from(u32::MAX) } else { 0 };
            (written < u64::from(lines)).then_some(second | (written + 1))
        };
        let fits = self.lines.fetch_update(Ordering::Relaxed, Ordering::Relaxed, another).is_ok() && others();
        if !fits {
            self.lines_dropped.fetch_add(1, Ordering::Relaxed);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_in_a_second_and_the_rest_is_counted() {
        let stats = Stats::default();
        let written = (0..10).filter(|_| stats.may_log(3, || true)).count();
        assert_eq!((written, stats.lines_dropped()), (3, 7));
        assert!(!Stats::default().may_log(3, || false));
    }

    #[test]
    fn every_fault_has_its_name() {
        assert_eq!(FaultKind::Trap.name(), "trap");
        assert_eq!(FaultKind::Full.name(), "full");
        assert_eq!(FaultKind::Unfinished.name(), "unfinished");
        let stats = Stats::default();
        stats.fault(FaultKind::NoAnswer);
        assert_eq!(
            stats.faults().filter(|(_, count)| *count == 1).map(|(name, _)| name).collect::<Vec<_>>(),
            ["no_answer"]
        );
    }
}
