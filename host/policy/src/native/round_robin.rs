//! Round robin, smooth and weighted, without a lock.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::draw::Draw;
use crate::{Answered, Asked, Balancer, Choice, Decision, EndpointSet, EndpointsView};
use bytestring::ByteString;

/// Longest sequence that is laid out; larger weight sums are scaled down to it.
const MAX_SEQUENCE: u64 = 4096;

/// Takes endpoints in turn: a sequence in which each stands as often as it weighs, spread evenly, and one counter.
pub struct RoundRobin {
    sequence: Box<[u32]>,
    next: AtomicUsize,
    draw: Draw,
}

impl RoundRobin {
    pub fn new(set: &Arc<EndpointSet>) -> Self {
        let start = fastrand::usize(..=usize::MAX / 2);
        Self { sequence: sequence(set), next: AtomicUsize::new(start), draw: Draw::new(set) }
    }
}

/// Smooth weighted order: at each step every endpoint gains its weight, the highest is taken and pays the sum.
fn sequence(set: &EndpointSet) -> Box<[u32]> {
    let sum: u64 = set.endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
    let divisor = set.endpoints.iter().filter(|e| e.weight > 0).map(|e| u64::from(e.weight)).fold(0, gcd).max(1);
    let scale = (sum / divisor).div_ceil(MAX_SEQUENCE).max(1) * divisor;
    let weights: Vec<i64> = set
        .endpoints
        .iter()
        .map(|e| if e.weight == 0 { 0 } else { (u64::from(e.weight) / scale).max(1) as i64 })
        .collect();
    let total: i64 = weights.iter().sum();
    // All alike: the order is the list itself, at no cost for a thousand endpoints.
    if weights.iter().all(|weight| *weight == 1) {
        return (0..weights.len() as u32).collect();
    }
    let mut current = vec![0_i64; weights.len()];
    (0..total)
        .filter_map(|_| {
            for (value, weight) in current.iter_mut().zip(&weights) {
                *value += weight;
            }
            let best = (0..current.len()).filter(|i| weights[*i] > 0).max_by_key(|i| (current[*i], usize::MAX - i))?;
            current[best] -= total;
            Some(best as u32)
        })
        .collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Balancer for RoundRobin {
    fn name(&self) -> ByteString {
        ByteString::from_static("round_robin")
    }

    fn pick(&self, _: &Rc<Asked>, view: &EndpointsView) -> Decision<Choice> {
        let length = self.sequence.len();
        if length == 0 {
            return Ok(Answered::native(Choice::None));
        }
        let turn = self.sequence[self.next.fetch_add(1, Ordering::Relaxed) % length];
        // The turn of one that is not available goes to any of the others, by weight: to the next one in the sequence it
        // would go each time, and that one would bear twice its share.
        let found = if view.available(turn) { Some(turn) } else { self.draw.draw(view, None) };
        Ok(Answered::native(found.map_or(Choice::None, Choice::Endpoint)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{asked, endpoints};

    #[test]
    fn weights_are_kept_and_spread() {
        let set = endpoints(&[5, 1, 1]);
        let order = sequence(&set);
        assert_eq!(*order, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn every_endpoint_gets_its_turn_and_the_unavailable_is_passed_over() {
        let set = endpoints(&[1, 1, 1]);
        let balancer = RoundRobin::new(&set);
        let mut view = EndpointsView::new(set, std::time::Duration::ZERO);
        view.tried.push(1);
        let mut seen = [0; 3];
        for _ in 0..30 {
            match balancer.pick(&asked("GET", "/"), &view).map(|answered| answered.value) {
                Ok(Choice::Endpoint(index)) => seen[index as usize] += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((seen[1], seen[0] + seen[2]), (0, 30));
        assert!(seen[0] >= 10 && seen[2] >= 10);
    }

    #[test]
    fn huge_weights_keep_the_sequence_short() {
        let order = sequence(&endpoints(&[1_000_000, 1, 999_999]));
        assert!(order.len() <= MAX_SEQUENCE as usize + 3);
        assert!(order.contains(&1));
    }

    #[test]
    fn the_share_of_one_that_is_gone_is_shared_by_all() {
        let set = endpoints(&[1, 1, 1, 1, 2]);
        let balancer = RoundRobin::new(&set);
        let mut view = EndpointsView::new(set, std::time::Duration::ZERO);
        view.tried.push(1);
        let mut seen = [0_usize; 5];
        for _ in 0..10_000 {
            if let Ok(Choice::Endpoint(index)) = balancer.pick(&asked("GET", "/"), &view).map(|answered| answered.value)
            {
                seen[index as usize] += 1;
            }
        }
        let near = |count: usize, expected: usize| count.abs_diff(expected) < 200;
        assert!([0, 2, 3].iter().all(|index| near(seen[*index], 2000)) && near(seen[4], 4000), "{seen:?}");
    }
}
