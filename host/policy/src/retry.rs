//! Try again?

use std::future::ready;
use std::rc::Rc;
use std::time::Duration;

use bytestring::ByteString;

use crate::{Asked, AttemptFacts, Blame, Decision, Egress, EndpointsView, Later, PolicyFault, Versioned};

/// Decides whether a failed attempt is followed by another. Asked while nothing has been sent to the client, and only
/// when the core could try again at all (attempts, time, budget and a replayable body are left).
pub trait Retry: Send + Sync {
    fn name(&self) -> ByteString;

    /// The core refuses what is unsafe whatever the answer: see [`crate::Proof`].
    fn decide(&self, asked: &Rc<Asked>, attempt: &Rc<AttemptFacts>, endpoints: &EndpointsView) -> Decision<Verdict>;

    /// Whether an answer may be a while coming, so that `decide_later` is to be asked in place of `decide`: other exchanges of the
    /// worker go on meanwhile. The default answers at once.
    fn waits(&self) -> bool {
        false
    }

    /// As of [`crate::Router::route_later`].
    fn decide_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        attempt: &'a Rc<AttemptFacts>,
        endpoints: &'a EndpointsView,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, Verdict> {
        let _ = egress;
        Box::pin(ready(self.decide(asked, attempt, endpoints)))
    }

    /// As of [`crate::Router::answer_refused`].
    fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
        let _ = blame;
        PolicyFault::invalid(reason)
    }

    /// As of [`crate::Router::version`].
    fn version(&self, asked: &Asked) -> Option<Versioned<'_, dyn Retry>> {
        let _ = asked;
        None
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    Stop,
    /// After this pause, any endpoint, the same one included.
    Again(Duration),
    /// After this pause, an endpoint that was not tried yet (any, when all were).
    Elsewhere(Duration),
}
