//! Where does this connection go, undecrypted?

use std::rc::Rc;
use std::sync::Arc;

use bytestring::ByteString;

use crate::{Asked, Blame, Decision, PolicyFault, Versioned};

/// Answers where a connection goes that nobody decrypts here. Asked once per connection, or session of datagrams, before
/// any upstream is touched.
///
/// What it is asked about is the connection: its ends, what a PROXY header said, and what the ClientHello names. The
/// request of [`Asked`] is a `CONNECT` to that name, so that one kind of facts serves every question.
pub trait TunnelRouter: Send + Sync {
    fn name(&self) -> ByteString;

    fn tunnel(&self, asked: &Rc<Asked>) -> Decision<TunnelAnswer>;

    /// The core could not use the answer (unknown cluster). What comes back says whether the connection is refused for it.
    fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
        let _ = blame;
        PolicyFault::invalid(reason)
    }

    /// As of [`crate::Router::version`].
    fn version(&self, asked: &Asked) -> Option<Versioned<'_, dyn TunnelRouter>> {
        let _ = asked;
        None
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TunnelAnswer {
    /// No opinion: the listener's routes decide.
    Pass,
    /// To the cluster of this name.
    Forward(Arc<str>),
    /// Closed at once, without a word.
    Refuse,
}
