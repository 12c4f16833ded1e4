//! Active checks: so many results in a row change the standing.

use super::Standing;

/// How many results in a row it takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Thresholds {
    /// Good ones, until a failing endpoint passes.
    pub healthy: u32,
    /// Bad ones, until a passing endpoint fails.
    pub unhealthy: u32,
}

/// The results in a row that speak against the present standing.
#[derive(Debug, Default)]
pub struct Streak(u32);

impl Streak {
    /// The standing after one more result. The first check of an awaited endpoint decides alone: nothing is known that
    /// could outweigh it, and nobody should wait for a second.
    pub fn observe(&mut self, before: Standing, passed: bool, thresholds: Thresholds) -> Standing {
        let (after, needed) = match (before, passed) {
            (Standing::Awaited, true) => (Standing::Passing, 1),
            (Standing::Awaited, false) => (Standing::Failing, 1),
            // It was believed anyway.
            (Standing::Unchecked | Standing::Passing, true) => {
                self.0 = 0;
                return Standing::Passing;
            }
            (Standing::Unchecked | Standing::Passing, false) => (Standing::Failing, thresholds.unhealthy),
            (Standing::Failing, true) => (Standing::Passing, thresholds.healthy),
            (Standing::Failing, false) => {
                self.0 = 0;
                return Standing::Failing;
            }
        };
        self.0 = self.0.saturating_add(1);
        if self.0 < needed {
            return before;
        }
        self.0 = 0;
        after
    }
}
