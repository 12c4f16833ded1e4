//! What does the upstream learn of the client?

use std::rc::Rc;

use bytestring::ByteString;

use crate::{Asked, Decision, Identity};

/// Decides the identity fields of the upstream request. Asked once per exchange, after routing.
pub trait Forwarding: Send + Sync {
    fn name(&self) -> ByteString;

    /// `identity` comes in as the configured rule would send it; what is in it afterwards is sent. On an error the
    /// core restores the configured rule's.
    fn identify(&self, asked: &Rc<Asked>, identity: &mut Identity) -> Decision<()>;

    fn answer_refused(&self, reason: &str) {
        let _ = reason;
    }
}
