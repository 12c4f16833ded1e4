//! Drawing endpoints at random, as often as they weigh.

use crate::{Choice, EndpointSet, EndpointsView};

use super::Split;

/// The weights of a set, laid out for drawing. Built once per set.
pub(super) struct Draw(Split);

/// Throws before the rest is looked through: enough unless few of many are to be had.
const THROWS: usize = 8;

impl Draw {
    pub(super) fn new(set: &EndpointSet) -> Self {
        Self(Split::new(set.endpoints.iter().map(|endpoint| endpoint.weight)))
    }

    /// An available endpoint other than `but`, by weight among those that are: what the others would get is shared by
    /// all that remain.
    pub(super) fn draw(&self, view: &EndpointsView, but: Option<u32>) -> Option<u32> {
        let fits = |index: &u32| Some(*index) != but && view.available(*index);
        let thrown = (0..THROWS).map(|_| self.0.pick(fastrand::u64(..)) as u32).find(fits);
        thrown.or_else(|| {
            let weight = |index: u32| view.get(index).map_or(0, |endpoint| u64::from(endpoint.weight));
            let all = || (0..view.len() as u32).filter(fits);
            let sum: u64 = all().map(weight).sum();
            if sum == 0 {
                return None;
            }
            let mut rest = fastrand::u64(..sum);
            all().find(|index| match rest.checked_sub(weight(*index)) {
                Some(left) => {
                    rest = left;
                    false
                }
                None => true,
            })
        })
    }

    /// The better of two (Mitzenmacher, 2001): drawn by weight, compared by what one more request would cost there,
    /// which is `time` for each that is in flight, divided by the weight. Between two that are idle the draw has given
    /// the weights their due, and only `time` counts: else the heavier would take everything.
    pub(super) fn of_two(&self, view: &EndpointsView, time: impl Fn(u32) -> f64) -> Choice {
        let Some(first) = self.draw(view, None) else { return Choice::None };
        let Some(second) = self.draw(view, Some(first)) else { return Choice::Endpoint(first) };
        let (one, two) = (view.in_flight(first), view.in_flight(second));
        let idle = one == 0 && two == 0;
        let cost = |index, in_flight: u32| {
            let weight = view.get(index).map_or(1, |endpoint| endpoint.weight.max(1));
            if idle { time(index) } else { time(index) * (f64::from(in_flight) + 1.0) / f64::from(weight) }
        };
        Choice::Endpoint(if cost(second, two) < cost(first, one) { second } else { first })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::contract::endpoints;

    /// Of 10,000 draws, by index.
    fn drawn(weights: &[u32], tried: &[u32], but: Option<u32>) -> Vec<usize> {
        let set = endpoints(weights);
        let draw = Draw::new(&set);
        let mut view = EndpointsView::new(set, Duration::ZERO);
        view.tried.extend_from_slice(tried);
        let mut counts = vec![0; weights.len()];
        for _ in 0..10_000 {
            if let Some(index) = draw.draw(&view, but) {
                counts[index as usize] += 1;
            }
        }
        counts
    }

    fn about(count: usize, expected: usize) -> bool {
        count.abs_diff(expected) < 400
    }

    #[test]
    fn draws_follow_the_weights_of_what_is_available() {
        let counts = drawn(&[6, 3, 1, 0], &[], None);
        assert!(about(counts[0], 6000) && about(counts[1], 3000) && counts[3] == 0, "{counts:?}");
        let counts = drawn(&[6, 3, 1, 0], &[0], None);
        assert!(counts[0] == 0 && about(counts[1], 7500) && about(counts[2], 2500), "{counts:?}");
        // Throws rarely meet the rest here: the scan keeps to the weights too.
        let counts = drawn(&[1_000_000, 3, 1], &[], Some(0));
        assert!(counts[0] == 0 && about(counts[1], 7500) && about(counts[2], 2500), "{counts:?}");
        assert_eq!(drawn(&[1, 0], &[0], None), [0, 0]);
    }
}
