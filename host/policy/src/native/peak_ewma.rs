//! Peak EWMA: the endpoint that would answer sooner, of two drawn at random.

use std::rc::Rc;
use std::time::Duration;

use super::least_request::of_two;
use crate::{Answered, Asked, Balancer, Choice, Decision, EndpointsView};
use bytestring::ByteString;

/// Costs an endpoint by its peak-sensitive average latency times the requests it would have in flight.
#[derive(Debug, Default)]
pub struct PeakEwma;

/// What an endpoint without a sample is taken to need, so that a new one is tried but not flooded.
const UNKNOWN: Duration = Duration::from_millis(1);

impl Balancer for PeakEwma {
    fn name(&self) -> ByteString {
        ByteString::from_static("peak_ewma")
    }

    fn pick(&self, _: &Rc<Asked>, view: &EndpointsView) -> Decision<Choice> {
        let cost = |index| {
            let latency = match view.latency(index) {
                Duration::ZERO => UNKNOWN,
                latency => latency,
            };
            let weight = view.get(index).map_or(1, |endpoint| endpoint.weight.max(1));
            latency.as_secs_f64() * f64::from(view.in_flight(index) + 1) / f64::from(weight)
        };
        Ok(Answered::native(of_two(view, cost)))
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
        let pick = || PeakEwma.pick(&asked("GET", "/"), &view).map(|answered| answered.value).ok();
        assert_eq!(pick(), Some(Choice::Endpoint(0)));
        (0..5).for_each(|_| set.endpoints[0].state.begin());
        assert_eq!(pick(), Some(Choice::Endpoint(1)));
    }
}
