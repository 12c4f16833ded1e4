//! Least request by the power of two choices: two at random, the less loaded of them.

use std::rc::Rc;
use std::sync::Arc;

use super::draw::Draw;
use crate::{Answered, Asked, Balancer, Choice, Decision, EndpointSet, EndpointsView};
use bytestring::ByteString;

/// Picks the endpoint with fewer requests in flight per weight, of two drawn by weight.
pub struct LeastRequest(Draw);

impl LeastRequest {
    pub fn new(set: &Arc<EndpointSet>) -> Self {
        Self(Draw::new(set))
    }
}

impl Balancer for LeastRequest {
    fn name(&self) -> ByteString {
        ByteString::from_static("least_request")
    }

    fn pick(&self, _: &Rc<Asked>, view: &EndpointsView) -> Decision<Choice> {
        Ok(Answered::native(self.0.of_two(view, |_| 1.0)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::contract::{asked, endpoints};

    fn pick(view: &EndpointsView) -> u32 {
        let picked = LeastRequest::new(&view.set).pick(&asked("GET", "/"), view).map(|answered| answered.value);
        match picked {
            Ok(Choice::Endpoint(index)) => index,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_less_loaded_of_two_is_taken() {
        let set = endpoints(&[1, 1]);
        set.endpoints[0].state.begin();
        let view = EndpointsView::new(set, Duration::ZERO);
        assert!((0..20).all(|_| pick(&view) == 1));
    }

    #[test]
    fn weight_divides_the_load() {
        let set = endpoints(&[10, 1]);
        (0..5).for_each(|_| set.endpoints[0].state.begin());
        let view = EndpointsView::new(set, Duration::ZERO);
        assert_eq!(pick(&view), 0);
    }

    /// One after the other or all at once: the shares are the weights.
    #[test]
    fn shares_follow_the_weights_idle_or_busy() {
        let set = endpoints(&[6, 3, 1]);
        let view = EndpointsView::new(set.clone(), Duration::ZERO);
        let mut idle = [0_usize; 3];
        (0..10_000).for_each(|_| idle[pick(&view) as usize] += 1);
        let near = |count: usize, expected: usize| count.abs_diff(expected) < 500;
        assert!(near(idle[0], 6000) && near(idle[1], 3000) && near(idle[2], 1000), "{idle:?}");
        (0..1000).for_each(|_| set.endpoints[pick(&view) as usize].state.begin());
        let busy = [0, 1, 2].map(|index| view.in_flight(index));
        assert!((560..640).contains(&busy[0]) && (270..330).contains(&busy[1]), "{busy:?}");
    }
}
