//! The questions a gateway asks of its judgement, and the native answers to them.
//!
//! Nothing here opens a socket, reads a clock of its own accord or knows about WebAssembly: a question is a value, an
//! answer is a value. `tidegate-proxy` asks, this crate's [`native`] policies or `tidegate-wasm`'s plugins answer.
//!
//! | question | trait | asked |
//! |---|---|---|
//! | where does this request go? | [`Router`] | once per exchange |
//! | which endpoint? | [`Balancer`] | for every attempt |
//! | what does the upstream learn of the client? | [`Forwarding`] | once, after routing |
//! | try again? | [`Retry`] | after every attempt that failed |
//! | where does this connection go, undecrypted? | [`TunnelRouter`] | once per tunnel |

mod asked;
mod attempt;
mod balancer;
mod breaker;
mod decision;
mod edits;
mod egress;
mod endpoints;
mod fault;
mod forwarding;
#[cfg(fuzzing)]
pub mod fuzz;
mod head;
mod health;
mod identity;
pub mod native;
mod proxy_tlvs;
mod retry;
mod router;
mod tunnel_router;
mod version;

#[cfg(any(test, feature = "contract"))]
pub mod contract;

pub use asked::Asked;
pub use attempt::{AttemptFacts, Proof};
pub use balancer::{Balancer, Choice};
pub use breaker::{Bound, Breaker, Permit};
pub use decision::{Answered, Blame, Decision, Later, Origin, PolicyFault, PolicyFaultKind};
pub use edits::{Buffering, EditError, HeaderEdit, HeaderEdits, RequestEdits, is_core_field};
pub use egress::{Callout, CalloutError, CalloutResponse, Egress, Sent};
pub use endpoints::{Endpoint, EndpointSet, EndpointState, EndpointsView};
pub use fault::{Cause, Fault, Side};
pub use forwarding::Forwarding;
pub use head::{ConnectionHead, HttpVersion, RequestHead, ResponseHead, Scheme, Target, Tunnel, is_tchar, is_token};
pub use health::{
    Ailment, CheckOutcome, Ejected, EjectionReason, EjectionRules, EndpointHealth, HealthRules, Outcome, SetHealth,
    SharedHealth, Standing, Streak, Swept, Thresholds,
};
pub use identity::{Element, Families, Identity, Node};
pub use proxy_tlvs::{ProxyTlvs, Tlv, TlvError, tlv, walk as walk_tlvs};
pub use retry::{Retry, Verdict};
pub use router::{DirectResponse, RouteAnswer, Router};
pub use tunnel_router::{TunnelAnswer, TunnelRouter};
pub use version::{Version, Versioned, Watch, Watched};
