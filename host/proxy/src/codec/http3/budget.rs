//! How often a peer may do what costs us more than it: cancelling requests (CVE-2023-44487), frames that carry nothing
//! (RFC 9114, section 10.5). A bucket that fills with time; empty, the connection is closed with H3_EXCESSIVE_LOAD.

use std::time::Instant;

pub(super) struct Budget {
    left: f64,
    most: f64,
    per_second: f64,
    filled: Instant,
}

impl Budget {
    pub(super) fn new(most: f64, per_second: f64, now: Instant) -> Self {
        Self { left: most, most, per_second, filled: now }
    }

    /// Takes one; false when there is none left.
    pub(super) fn spend(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        self.left = (self.left + passed * self.per_second).min(self.most);
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }

    /// Adds some for work that was worth it.
    pub(super) fn earn(&mut self, count: f64) {
        self.left = (self.left + count).min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_a_rate() {
        let begun = Instant::now();
        let mut budget = Budget::new(3.0, 2.0, begun);
        assert!((0..3).all(|_| budget.spend(begun)));
        assert!(!budget.spend(begun));
        assert!(!budget.spend(begun + Duration::from_millis(400)));
        assert!(budget.spend(begun + Duration::from_millis(600)));
        assert!(!budget.spend(begun + Duration::from_millis(700)));
        budget.earn(1.0);
        assert!(budget.spend(begun + Duration::from_millis(700)));
        assert!((0..3).all(|_| budget.spend(begun + Duration::from_secs(100))));
        assert!(!budget.spend(begun + Duration::from_secs(100)), "it never holds more than its most");
    }
}
