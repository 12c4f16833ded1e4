//! When a rollout is ended: what both versions came to within a window, held against what is allowed.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// What a next version may come to within a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Guard {
    /// Traps, deadlines, memory: the rollout ends at so many.
    pub faults: u64,
    /// How much larger its share of failed exchanges may be than the current version's, from 0 to 1.
    pub error_rate: f64,
    /// How many times as long as the current version it may take to decide.
    pub latency: f64,
    pub window: Duration,
    /// Exchanges, or answers of each version, that make a share or a time worth comparing.
    pub min: u64,
}

/// Why a rollout was ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    Faults,
    ErrorRate,
    Latency,
}

impl Reason {
    pub const ALL: [Self; 3] = [Self::Faults, Self::ErrorRate, Self::Latency];

    /// The metric label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Faults => "faults",
            Self::ErrorRate => "error_rate",
            Self::Latency => "latency",
        }
    }
}

/// What one version came to in this window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Tally {
    pub(crate) faults: u64,
    pub(crate) exchanges: u64,
    /// Of those: failed ones, and answers that the core could not use.
    pub(crate) failed: u64,
}

/// How long one version took to decide in this window, memoised answers apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Pace {
    pub(crate) answers: u64,
    /// Three of four were faster. Unlike a mean it is not the first question's of each worker, which makes an instance, and
    /// unlike a median it sees what is slow for one question in four.
    pub(crate) third_quartile: Duration,
}

/// A difference below this is one of caches: whoever is asked less finds them colder.
const LATENCY_FLOOR: Duration = Duration::from_micros(100);

impl Guard {
    pub(crate) fn on_faults(&self, next: &Tally) -> Option<(Reason, String)> {
        let wrong = next.faults >= self.faults;
        wrong.then(|| {
            (Reason::Faults, format!("{} faults in {:?}, {} are allowed", next.faults, self.window, self.faults - 1))
        })
    }

    /// Does not wait for `min` exchanges where so many have failed already that the rest cannot make it good.
    pub(crate) fn on_errors(&self, current: &Tally, next: &Tally) -> Option<(Reason, String)> {
        let share = |tally: &Tally, least: u64| match tally.exchanges.max(least) {
            0 => 0.0,
            exchanges => (tally.failed as f64 / exchanges as f64).min(1.0),
        };
        let (was, is) = (share(current, 0), share(next, self.min));
        let wrong = is > was + self.error_rate;
        wrong.then(|| {
            let (f, e, cf, ce) = (next.failed, next.exchanges, current.failed, current.exchanges);
            (
                Reason::ErrorRate,
                format!("{f} of {e} exchanges failed, of the current version's {cf} of {ce}, in {:?}", self.window),
            )
        })
    }

    pub(crate) fn on_latency(&self, current: &Pace, next: &Pace) -> Option<(Reason, String)> {
        let (was, is) = (current.third_quartile, next.third_quartile);
        let enough = current.answers >= self.min && next.answers >= self.min;
        let wrong = enough && is > was.mul_f64(self.latency) && is > was + LATENCY_FLOOR;
        wrong.then(|| {
            (
                Reason::Latency,
                format!(
                    "three of four decisions take up to {is:?}, the current version's {was:?}, in {:?}",
                    self.window
                ),
            )
        })
    }
}

/// Quarters of octaves of nanoseconds.
const STEPS: u64 = 4;

/// What is counted of one version within a window, by all workers together. Emptied in place when the next one begins: what
/// another worker counts meanwhile may be lost, which no guard minds.
#[derive(Debug)]
pub(crate) struct Counts {
    faults: AtomicU64,
    exchanges: AtomicU64,
    failed: AtomicU64,
    times: [AtomicU32; 64 * STEPS as usize],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            faults: AtomicU64::new(0),
            exchanges: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            times: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }
}

fn step_of(ns: u64) -> usize {
    let ns = ns.max(STEPS);
    let octave = u64::from(ns.ilog2());
    (octave * STEPS + ((ns >> (octave - 2)) & (STEPS - 1))) as usize
}

/// The least time that is in no lower step.
fn time_of(step: usize) -> Duration {
    let (octave, quarter) = (step as u64 / STEPS, step as u64 % STEPS);
    Duration::from_nanos(((STEPS + quarter) << octave) >> 2)
}

impl Counts {
    pub(crate) fn answered(&self, took: Duration) {
        self.times[step_of(took.as_nanos() as u64)].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn fault(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    /// An answer that could not be used, in an exchange that is counted when it ends.
    pub(crate) fn unusable(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the exchanges so far.
    pub(crate) fn ended(&self, failed: bool) -> u64 {
        self.failed.fetch_add(failed.into(), Ordering::Relaxed);
        self.exchanges.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn tally(&self) -> Tally {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Tally { faults: load(&self.faults), exchanges: load(&self.exchanges), failed: load(&self.failed) }
    }

    pub(crate) fn pace(&self) -> Pace {
        let count = |times: &[AtomicU32]| -> u64 { times.iter().map(|n| u64::from(n.load(Ordering::Relaxed))).sum() };
        let answers = count(&self.times);
        let wanted = answers - answers / 4;
        let mut below = 0;
        let step = self.times.iter().position(|n| {
            below += u64::from(n.load(Ordering::Relaxed));
            below >= wanted
        });
        let third_quartile = step.filter(|_| answers > 0).map(time_of).unwrap_or_default();
        Pace { answers, third_quartile }
    }

    pub(crate) fn empty(&self) {
        for count in [&self.faults, &self.exchanges, &self.failed] {
            count.store(0, Ordering::Relaxed);
        }
        self.times.iter().for_each(|count| count.store(0, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        Guard { faults: 5, error_rate: 0.05, latency: 2.0, window: Duration::from_secs(30), min: 50 }
    }

    fn tally(failed: u64, exchanges: u64) -> Tally {
        Tally { faults: 0, exchanges, failed }
    }

    #[test]
    fn faults_are_counted_to_the_limit() {
        let with = |faults| guard().on_faults(&Tally { faults, ..Tally::default() });
        assert_eq!(with(4), None);
        assert!(matches!(with(5), Some((Reason::Faults, text)) if text.contains("5 faults in 30s, 4 are allowed")));
    }

    #[test]
    fn errors_are_held_against_the_current_versions() {
        for (current, next, ends) in [
            (tally(0, 1000), tally(0, 100), false),
            (tally(0, 1000), tally(5, 100), false),
            (tally(0, 1000), tally(6, 100), true),
            // An origin that fails for everybody is nobody's fault.
            (tally(500, 1000), tally(54, 100), false),
            (tally(500, 1000), tally(56, 100), true),
            (tally(9, 9), tally(3, 3), false),
            // Few exchanges prove nothing, unless no others could make it good.
            (tally(0, 1000), tally(1, 1), false),
            (tally(0, 1000), tally(2, 2), false),
            (tally(0, 1000), tally(3, 3), true),
            // Nobody has the current version any more.
            (tally(0, 0), tally(2, 50), false),
            (tally(0, 0), tally(3, 50), true),
            (tally(0, 0), tally(500, 100), true),
        ] {
            let verdict = guard().on_errors(&current, &next);
            assert_eq!(verdict.is_some(), ends, "{next:?} beside {current:?}: {verdict:?}");
            assert!(verdict.is_none_or(|(reason, _)| reason == Reason::ErrorRate));
        }
    }

    #[test]
    fn times_are_compared_where_there_are_enough_and_the_difference_is_no_caches() {
        let pace = |answers, us| Pace { answers, third_quartile: Duration::from_micros(us) };
        for (current, next, ends) in [
            (pace(500, 100), pace(50, 190), false),
            (pace(500, 100), pace(50, 210), true),
            (pace(500, 100), pace(49, 9000), false),
            (pace(49, 100), pace(500, 9000), false),
            (pace(500, 1), pace(50, 90), false),
            (pace(500, 1), pace(50, 110), true),
        ] {
            let verdict = guard().on_latency(&current, &next);
            assert_eq!(verdict.is_some(), ends, "{next:?} beside {current:?}: {verdict:?}");
        }
    }

    #[test]
    fn the_third_quartile_is_within_a_quarter() {
        let counts = Counts::default();
        for us in 1..=1000 {
            counts.answered(Duration::from_micros(us));
        }
        let Pace { answers, third_quartile } = counts.pace();
        let us = third_quartile.as_micros();
        assert!(answers == 1000 && (750 * 4 / 5..=750).contains(&us), "{us}");
        // A few slow ones, as the first questions are, do not show.
        (0..100).for_each(|_| counts.answered(Duration::from_secs(1)));
        assert!(counts.pace().third_quartile < Duration::from_millis(1));
        counts.empty();
        assert_eq!((counts.pace(), counts.tally()), (Pace::default(), Tally::default()));
        for ns in [0, 1, 3, 4, 5, 1000, u64::MAX] {
            counts.answered(Duration::from_nanos(ns));
            assert!(time_of(step_of(ns)) <= Duration::from_nanos(ns.max(4)));
        }
    }
}
