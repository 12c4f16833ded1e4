//! Where does this request go?

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use http::{HeaderMap, StatusCode};

use crate::{Asked, Blame, Decision, PolicyFault, RequestEdits, Versioned};

/// Answers where a request goes. Asked once per exchange, at its head, before any upstream is touched.
pub trait Router: Send + Sync {
    /// The name in configuration, logs and metrics. Cheap to clone: every record keeps it.
    fn name(&self) -> ByteString;

    /// `edits` is empty when asked; what is put there is applied only if the answer is `Forward` or `Pass`.
    fn route(&self, asked: &Rc<Asked>, edits: &mut RequestEdits) -> Decision<RouteAnswer>;

    /// The core could not use the answer (unknown cluster, status out of range). What comes back says whether the request
    /// is refused for it.
    fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
        let _ = blame;
        PolicyFault::invalid(reason)
    }

    /// Where this stands for two versions of a policy: the one that this exchange has, to be asked in its place. Asked before
    /// each question; the default is one version.
    fn version(&self, asked: &Asked) -> Option<Versioned<'_, dyn Router>> {
        let _ = asked;
        None
    }
}

#[derive(Clone, Debug)]
pub enum RouteAnswer {
    /// No opinion: the route table decides.
    Pass,
    /// To the cluster of this name.
    Forward(Arc<str>),
    /// The gateway answers by itself.
    Respond(Box<DirectResponse>),
}

/// A response made by the gateway, not by an upstream.
#[derive(Clone, Debug)]
pub struct DirectResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}
