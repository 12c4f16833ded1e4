//! What does the upstream learn of the client?

use std::future::ready;
use std::rc::Rc;

use bytestring::ByteString;

use crate::{Asked, Blame, Decision, Egress, Identity, Later, PolicyFault, Versioned};

/// Decides the identity fields of the upstream request. Asked once per exchange, after routing.
pub trait Forwarding: Send + Sync {
    fn name(&self) -> ByteString;

    /// `identity` comes in as the configured rule would send it; what is in it afterwards is sent. On an error the
    /// core restores the configured rule's.
    fn identify(&self, asked: &Rc<Asked>, identity: &mut Identity) -> Decision<()>;

    /// Whether an answer may be a while coming, so that `identify_later` is to be asked in place of `identify`: other exchanges of the
    /// worker go on meanwhile. The default answers at once.
    fn waits(&self) -> bool {
        false
    }

    /// What `identity` becomes, as of [`crate::Router::route_later`].
    fn identify_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        mut identity: Identity,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, Identity> {
        let _ = egress;
        let decision = self.identify(asked, &mut identity);
        Box::pin(ready(decision.map(|answered| answered.map(|()| identity))))
    }

    /// As of [`crate::Router::answer_refused`].
    fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
        let _ = blame;
        PolicyFault::invalid(reason)
    }

    /// As of [`crate::Router::version`].
    fn version(&self, asked: &Asked) -> Option<Versioned<'_, dyn Forwarding>> {
        let _ = asked;
        None
    }
}
