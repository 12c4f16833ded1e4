//! Where does this request go?

use std::future::ready;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use http::{HeaderMap, StatusCode};

use crate::{Asked, Blame, Decision, Egress, Later, PolicyFault, RequestEdits, Versioned};

/// Answers where a request goes. Asked once per exchange, at its head, before any upstream is touched.
pub trait Router: Send + Sync {
    /// The name in configuration, logs and metrics. Cheap to clone: every record keeps it.
    fn name(&self) -> ByteString;

    /// `edits` is empty when asked; what is put there is applied only if the answer is `Forward` or `Pass`.
    fn route(&self, asked: &Rc<Asked>, edits: &mut RequestEdits) -> Decision<RouteAnswer>;

    /// Whether an answer may be a while coming, so that `route_later` is to be asked in place of `route`: other exchanges of the
    /// worker go on meanwhile. The default answers at once.
    fn waits(&self) -> bool {
        false
    }

    /// The answer and the edits, from a policy that may send callouts by `egress` before it gives them.
    fn route_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, (RouteAnswer, RequestEdits)> {
        let _ = egress;
        let mut edits = RequestEdits::default();
        let decision = self.route(asked, &mut edits);
        Box::pin(ready(decision.map(|answered| answered.map(|answer| (answer, edits)))))
    }

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
