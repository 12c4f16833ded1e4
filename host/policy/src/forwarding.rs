//! What does the upstream learn of the client?

use std::rc::Rc;

use bytestring::ByteString;

use crate::{Asked, Blame, Decision, Identity, PolicyFault, Versioned};

/// Decides the identity fields of the upstream request. Asked once per exchange, after routing.
pub trait Forwarding: Send + Sync {
    fn name(&self) -> ByteString;

    /// `identity` comes in as the configured rule would send it; what is in it afterwards is sent. On an error the
    /// core restores the configured rule's.
    fn identify(&self, asked: &Rc<Asked>, identity: &mut Identity) -> Decision<()>;

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
