//! Which endpoint takes this attempt?

use std::future::ready;
use std::rc::Rc;

use bytestring::ByteString;

use crate::{Asked, Blame, Decision, Egress, EndpointsView, Later, PolicyFault, Versioned};

/// Picks an endpoint of a cluster. Asked for every attempt of an exchange.
pub trait Balancer: Send + Sync {
    fn name(&self) -> ByteString;

    /// The core re-checks the answer: an index out of range or an endpoint that is not available is invalid, is
    /// counted, and the cluster's own algorithm picks, or the request is refused where the policy fails closed.
    fn pick(&self, asked: &Rc<Asked>, endpoints: &EndpointsView) -> Decision<Choice>;

    /// Whether an answer may be a while coming, so that `pick_later` is to be asked in place of `pick`: other exchanges of the
    /// worker go on meanwhile. The default answers at once.
    fn waits(&self) -> bool {
        false
    }

    /// As of [`crate::Router::route_later`].
    fn pick_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        endpoints: &'a EndpointsView,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, Choice> {
        let _ = egress;
        Box::pin(ready(self.pick(asked, endpoints)))
    }

    /// The core could not use the answer. What comes back says whether the request is refused for it.
    fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
        let _ = blame;
        PolicyFault::invalid(reason)
    }

    /// As of [`crate::Router::version`].
    fn version(&self, asked: &Asked) -> Option<Versioned<'_, dyn Balancer>> {
        let _ = asked;
        None
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Choice {
    /// The cluster's own algorithm decides.
    Pass,
    /// This index of the view.
    Endpoint(u32),
    /// The core's consistent hash decides, by this key.
    Hash(u64),
    /// None will do: 503.
    None,
}
