//! Least request by the power of two choices (Mitzenmacher, 2001): two at random, the less loaded of them.

use std::rc::Rc;

use crate::{Answered, Asked, Balancer, Choice, Decision, EndpointsView};
use bytestring::ByteString;

/// Picks the endpoint with fewer requests in flight per weight, of two drawn at random.
#[derive(Debug, Default)]
pub struct LeastRequest;

impl Balancer for LeastRequest {
    fn name(&self) -> ByteString {
        ByteString::from_static("least_request")
    }

    fn pick(&self, _: &Rc<Asked>, view: &EndpointsView) -> Decision<Choice> {
        let load = |index| {
            let weight = view.get(index).map_or(1, |endpoint| endpoint.weight.max(1));
            f64::from(view.in_flight(index) + 1) / f64::from(weight)
        };
        Ok(Answered::native(of_two(view, load)))
    }
}

/// The better of two available endpoints drawn at random, by the lower `cost`.
pub(super) fn of_two(view: &EndpointsView, cost: impl Fn(u32) -> f64) -> Choice {
    let Some(first) = draw(view, None) else { return Choice::None };
    let Some(second) = draw(view, Some(first)) else { return Choice::Endpoint(first) };
    Choice::Endpoint(if cost(second) < cost(first) { second } else { first })
}

/// A random available endpoint other than `but`: a few throws, then a scan from a random place.
fn draw(view: &EndpointsView, but: Option<u32>) -> Option<u32> {
    let size = view.len() as u32;
    if size == 0 {
        return None;
    }
    let fits = |index: &u32| Some(*index) != but && view.available(*index);
    let thrown = (0..3).map(|_| fastrand::u32(..size)).find(fits);
    thrown.or_else(|| {
        let start = fastrand::u32(..size);
        (0..size).map(|step| (start + step) % size).find(fits)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::contract::{asked, endpoints};

    #[test]
    fn the_less_loaded_of_two_is_taken() {
        let set = endpoints(&[1, 1]);
        set.endpoints[0].state.begin();
        let view = EndpointsView::new(set, Duration::ZERO);
        for _ in 0..20 {
            let picked = LeastRequest.pick(&asked("GET", "/"), &view).map(|answered| answered.value);
            assert_eq!(picked.ok(), Some(Choice::Endpoint(1)));
        }
    }

    #[test]
    fn weight_divides_the_load() {
        let set = endpoints(&[10, 1]);
        (0..5).for_each(|_| set.endpoints[0].state.begin());
        let view = EndpointsView::new(set, Duration::ZERO);
        let picked = LeastRequest.pick(&asked("GET", "/"), &view).map(|answered| answered.value);
        assert_eq!(picked.ok(), Some(Choice::Endpoint(0)));
    }
}
