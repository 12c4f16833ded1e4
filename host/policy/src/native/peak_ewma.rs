//! Peak EWMA: the endpoint that would answer sooner, of two drawn at random.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::draw::Draw;
use crate::{Answered, Asked, Balancer, Choice, Decision, EndpointSet, EndpointsView};
use bytestring::ByteString;

/// Costs an endpoint by its peak-sensitive average latency times the requests it would have in flight.
pub struct PeakEwma(Draw);

impl PeakEwma {
    pub fn new(set: &Arc<EndpointSet>) -> Self {
        Self(Draw::new(set))
    }
}

/// What an endpoint without a sample is taken to need, so that a new one is tried but not flooded.
const UNKNOWN: Duration = Duration::from_millis(1);

impl Balancer for PeakEwma {
    fn name(&self) -> ByteString {
        ByteString::from_static("peak_ewma")
    }

    fn pick(&self, _: &Rc<Asked>, view: &EndpointsView) -> Decision<Choice> {
        let time = |index| match view.latency(index) {
            Duration::ZERO => UNKNOWN.as_secs_f64(),
            latency => latency.as_secs_f64(),
        };
        Ok(Answered::native(self.0.of_two(view, time)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{asked, endpoints};

    #[test]
    fn the_faster_of_two_is_taken_until_its_queue_outweighs_it() {
        let set = endpoints(&[1, 1]);
        set.endpoints[0].state.sample_latency(Duration::ZERO, Duration::from_millis(10));
        set.endpoints[1].state.sample_latency(Duration::ZERO, Duration::from_millis(40));
        let view = EndpointsView::new(set.clone(), Duration::ZERO);
        let pick = || PeakEwma::new(&set).pick(&asked("GET", "/"), &view).map(|answered| answered.value).ok();
        assert_eq!(pick(), Some(Choice::Endpoint(0)));
        (0..5).for_each(|_| set.endpoints[0].state.begin());
        assert_eq!(pick(), Some(Choice::Endpoint(1)));
    }

    #[test]
    fn one_that_fails_fast_is_not_taken_for_fast() {
        let set = endpoints(&[1, 1]);
        let (sound, broken) = (&set.endpoints[0].state, &set.endpoints[1].state);
        sound.sample_latency(Duration::ZERO, Duration::from_millis(10));
        for _ in 0..2 {
            broken.sample_latency(Duration::ZERO, Duration::from_micros(100));
            broken.penalise_latency(Duration::ZERO);
        }
        let pick = |seconds| {
            let view = EndpointsView::new(set.clone(), Duration::from_secs(seconds));
            PeakEwma::new(&set).pick(&asked("GET", "/"), &view).map(|answered| answered.value).ok()
        };
        assert_eq!(pick(0), Some(Choice::Endpoint(0)));
        sound.sample_latency(Duration::from_secs(60), Duration::from_millis(10));
        assert_eq!(pick(60), Some(Choice::Endpoint(1)), "a penalty fades, and the endpoint is tried again");
        (0..100).for_each(|_| broken.penalise_latency(Duration::ZERO));
        assert_eq!(broken.last_latency(), Duration::from_secs(1), "and it has an end");
    }

    #[test]
    fn endpoints_that_are_alike_share_by_weight() {
        let set = endpoints(&[3, 1]);
        let view = EndpointsView::new(set.clone(), Duration::ZERO);
        let balancer = PeakEwma::new(&set);
        let pick = || balancer.pick(&asked("GET", "/"), &view).map(|answered| answered.value).ok();
        let first = (0..10_000).filter(|_| pick() == Some(Choice::Endpoint(0))).count();
        assert!(first.abs_diff(7500) < 400, "{first}");
    }
}
