//! Circuit breakers: bounds on what a cluster has in flight, over all workers. What is beyond them is refused at once,
//! since a queue before a cluster that is full helps nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What is bounded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Bound {
    Requests,
    Retries,
}

impl Bound {
    pub const ALL: [Self; 2] = [Self::Requests, Self::Retries];

    /// The name in metric labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Retries => "retries",
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    active: [AtomicU32; Bound::ALL.len()],
    refused: [AtomicU64; Bound::ALL.len()],
}

/// The bounds of one configuration over counts that successive ones share.
#[derive(Debug)]
pub struct Breaker {
    most: [u32; Bound::ALL.len()],
    counts: Arc<Counts>,
}

/// Bounds nothing.
impl Default for Breaker {
    fn default() -> Self {
        Self { most: [u32::MAX; Bound::ALL.len()], counts: Arc::default() }
    }
}

impl Breaker {
    /// `None` bounds nothing. What is in flight under `previous` counts on.
    pub fn new(max_requests: Option<u32>, max_retries: Option<u32>, previous: Option<&Self>) -> Self {
        let counts = previous.map(|previous| previous.counts.clone()).unwrap_or_default();
        Self { most: [max_requests, max_retries].map(|most| most.unwrap_or(u32::MAX)), counts }
    }

    /// Room for one more until the permit is dropped; `None`, counted, when there is none. What is not bounded is not counted
    /// either: a counter that all workers write for every request has its price.
    pub fn enter(&self, bound: Bound) -> Option<Permit> {
        let most = self.most[bound as usize];
        if most == u32::MAX {
            return Some(Permit(None));
        }
        let active = &self.counts.active[bound as usize];
        let entered = active
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |active| (active < most).then(|| active + 1))
            .is_ok();
        if !entered {
            self.counts.refused[bound as usize].fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Permit(Some((self.counts.clone(), bound))))
    }

    /// Whether there is a bound at all.
    pub fn bounds(&self, bound: Bound) -> bool {
        self.most[bound as usize] != u32::MAX
    }

    pub fn active(&self, bound: Bound) -> u32 {
        self.counts.active[bound as usize].load(Ordering::Relaxed)
    }

    pub fn refused(&self, bound: Bound) -> u64 {
        self.counts.refused[bound as usize].load(Ordering::Relaxed)
    }
}

/// A place within a bound, free again when this is dropped.
#[derive(Debug)]
pub struct Permit(Option<(Arc<Counts>, Bound)>);

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some((counts, bound)) = &self.0 {
            counts.active[*bound as usize].fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_a_bound_is_refused_and_counted() {
        let breaker = Breaker::new(Some(2), None, None);
        let one = breaker.enter(Bound::Requests);
        let two = breaker.enter(Bound::Requests);
        assert!(one.is_some() && two.is_some() && breaker.enter(Bound::Requests).is_none());
        assert_eq!((breaker.active(Bound::Requests), breaker.refused(Bound::Requests)), (2, 1));
        drop(one);
        assert!(breaker.enter(Bound::Requests).is_some());
        assert!((0..1000).all(|_| breaker.enter(Bound::Retries).is_some()), "unbounded");
    }

    #[test]
    fn a_new_configuration_counts_on() {
        let old = Breaker::new(Some(5), Some(0), None);
        let held = old.enter(Bound::Requests);
        assert!(held.is_some() && old.enter(Bound::Retries).is_none());
        let new = Breaker::new(Some(1), Some(1), Some(&old));
        assert!(new.enter(Bound::Requests).is_none());
        drop(held);
        assert!(new.enter(Bound::Requests).is_some());
        assert_eq!(new.refused(Bound::Retries), 1);
    }
}
