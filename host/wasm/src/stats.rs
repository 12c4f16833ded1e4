//! What is counted of a plugin, by all workers together.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use tidegate_policy::{CalloutError, CalloutResponse, PolicyFaultKind};

/// The questions, in the order of every array by question.
pub const QUESTIONS: [&str; 5] = ["route", "pick", "identify", "decide", "tunnel"];

/// Upper bounds of decision times, in nanoseconds.
const BOUNDS: [u64; 10] = [250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000, 5_000_000];

/// Counts of one question.
#[derive(Debug, Default)]
pub struct QuestionStats {
    memo: AtomicU64,
    faults: [AtomicU64; PolicyFaultKind::ALL.len()],
    total_ns: AtomicU64,
    buckets: [AtomicU64; BOUNDS.len() + 1],
}

impl QuestionStats {
    pub(crate) fn answered(&self, took: Duration, memo: bool) {
        let ns = took.as_nanos() as u64;
        if memo {
            self.memo.fetch_add(1, Ordering::Relaxed);
        }
        self.total_ns.fetch_add(ns, Ordering::Relaxed);
        self.buckets[BOUNDS.partition_point(|bound| *bound < ns)].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self, kind: PolicyFaultKind) {
        let index = PolicyFaultKind::ALL.iter().position(|other| *other == kind).unwrap_or(0);
        self.faults[index].fetch_add(1, Ordering::Relaxed);
    }

    pub fn asked(&self) -> u64 {
        // Every question ends in a bucket or a fault; what was answered and could not be used is in a bucket already.
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let failed =
            PolicyFaultKind::ALL.iter().zip(&self.faults).filter(|(kind, _)| **kind != PolicyFaultKind::Invalid);
        self.buckets.iter().map(load).sum::<u64>() + failed.map(|(_, count)| load(count)).sum::<u64>()
    }

    pub fn memo_hits(&self) -> u64 {
        self.memo.load(Ordering::Relaxed)
    }

    /// Counts by kind.
    pub fn faults(&self) -> impl Iterator<Item = (&'static str, u64)> {
        PolicyFaultKind::ALL.iter().zip(&self.faults).map(|(kind, count)| (kind.name(), count.load(Ordering::Relaxed)))
    }

    /// Cumulative counts by upper bound in seconds, then their number and the sum of seconds.
    pub fn times(&self) -> (Vec<(f64, u64)>, u64, f64) {
        times(&BOUNDS, &self.buckets, &self.total_ns)
    }
}

/// Counts below each bound, and the last of all.
fn times(bounds: &[u64], counts: &[AtomicU64], total_ns: &AtomicU64) -> (Vec<(f64, u64)>, u64, f64) {
    let mut count = 0;
    let mut buckets = Vec::with_capacity(bounds.len());
    for (bound, bucket) in bounds.iter().zip(counts) {
        count += bucket.load(Ordering::Relaxed);
        buckets.push((*bound as f64 / 1e9, count));
    }
    count += counts[bounds.len()].load(Ordering::Relaxed);
    (buckets, count, total_ns.load(Ordering::Relaxed) as f64 / 1e9)
}

/// How a callout ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CalloutOutcome {
    /// With a response, whatever its status.
    Answered,
    NotGranted,
    TimedOut,
    TooLarge,
    Failed,
    /// Beyond what its plugin or its tenant may have.
    Refused,
    /// The exchange ended before it.
    Cancelled,
}

impl CalloutOutcome {
    pub const ALL: [Self; 7] = [
        Self::Answered,
        Self::NotGranted,
        Self::TimedOut,
        Self::TooLarge,
        Self::Failed,
        Self::Refused,
        Self::Cancelled,
    ];

    /// The metric label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NotGranted => "not_granted",
            Self::TimedOut => "timed_out",
            Self::TooLarge => "too_large",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
        }
    }
}

impl From<&Result<CalloutResponse, CalloutError>> for CalloutOutcome {
    fn from(response: &Result<CalloutResponse, CalloutError>) -> Self {
        match response {
            Ok(_) => Self::Answered,
            Err(CalloutError::NotGranted) => Self::NotGranted,
            Err(CalloutError::TimedOut) => Self::TimedOut,
            Err(CalloutError::TooLarge) => Self::TooLarge,
            Err(CalloutError::Failed(_)) => Self::Failed,
            Err(CalloutError::Refused(_)) => Self::Refused,
        }
    }
}

/// Upper bounds of the times of callouts, in nanoseconds.
const CALLOUT_BOUNDS: [u64; 10] = [
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    100_000_000,
    500_000_000,
    2_000_000_000,
];

/// What a guest counts itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CustomMetric {
    Counter(u64),
    Gauge(f64),
    /// Observations and their sum.
    Histogram(u64, f64),
}

/// Most metrics of its own that a plugin may have, and the longest name.
const MAX_CUSTOM: usize = 64;
const MAX_NAME: usize = 64;

/// Everything counted of one plugin.
#[derive(Debug, Default)]
pub struct PluginStats {
    pub questions: [QuestionStats; QUESTIONS.len()],
    pub(crate) live: Arc<AtomicU64>,
    pub(crate) made: AtomicU64,
    custom: Mutex<BTreeMap<String, CustomMetric>>,
    pub(crate) log_dropped: AtomicU64,
    callouts: [AtomicU64; CalloutOutcome::ALL.len()],
    callout_ns: AtomicU64,
    callout_buckets: [AtomicU64; CALLOUT_BOUNDS.len() + 1],
    /// When it was last told that decisions are shed, in seconds of this process and one.
    shedding_told: AtomicU64,
}

impl PluginStats {
    pub fn live_instances(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    pub fn instantiations(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Whether it is time for a line about decisions that are shed: once in ten seconds is enough.
    pub(crate) fn tell_of_shedding(&self) -> bool {
        static ZERO: LazyLock<Instant> = LazyLock::new(Instant::now);
        let now = ZERO.elapsed().as_secs() + 1;
        let told = self.shedding_told.load(Ordering::Relaxed);
        (told == 0 || now >= told + 10)
            && self.shedding_told.compare_exchange(told, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Lines beyond what it may write.
    pub fn log_lines_dropped(&self) -> u64 {
        self.log_dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn called_out(&self, outcome: CalloutOutcome, took: Duration) {
        self.callouts[outcome as usize].fetch_add(1, Ordering::Relaxed);
        if matches!(outcome, CalloutOutcome::NotGranted | CalloutOutcome::Refused) {
            // It went nowhere.
            return;
        }
        let ns = took.as_nanos() as u64;
        self.callout_ns.fetch_add(ns, Ordering::Relaxed);
        self.callout_buckets[CALLOUT_BOUNDS.partition_point(|bound| *bound < ns)].fetch_add(1, Ordering::Relaxed);
    }

    /// Callouts by outcome.
    pub fn callouts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CalloutOutcome::ALL.iter().zip(&self.callouts).map(|(outcome, n)| (outcome.name(), n.load(Ordering::Relaxed)))
    }

    /// Times of those that were sent, as of [`QuestionStats::times`].
    pub fn callout_times(&self) -> (Vec<(f64, u64)>, u64, f64) {
        times(&CALLOUT_BOUNDS, &self.callout_buckets, &self.callout_ns)
    }

    pub fn custom(&self) -> BTreeMap<String, CustomMetric> {
        lock(&self.custom).clone()
    }

    /// A metric's name is bounded in alphabet, length and number; what is not fine is dropped.
    pub(crate) fn update_custom(&self, name: &str, start: CustomMetric, update: impl FnOnce(&mut CustomMetric)) {
        let fine = !name.is_empty()
            && name.len() <= MAX_NAME
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        let mut custom = lock(&self.custom);
        if !fine || (custom.len() >= MAX_CUSTOM && !custom.contains_key(name)) {
            return;
        }
        update(custom.entry(name.to_owned()).or_insert(start));
    }
}

/// Counts stay right whatever panicked while holding them.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
