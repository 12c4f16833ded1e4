//! The facts about a try that did not end well.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};

use crate::Cause;

/// What the core can prove about a failed attempt (the truth table of RFC 9110, section 9.2.2 and the references in
/// `Cause::unprocessed`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Proof {
    /// The upstream has not processed the request: any method may be sent again.
    Unprocessed,
    /// It may have, but the method is idempotent and the body can be sent again.
    Idempotent,
    /// Sending again could act twice: refused.
    Unsafe,
}

impl Proof {
    /// `unprocessed` is what the failure proves; `method` is the request's.
    pub fn of(unprocessed: bool, method: &Method) -> Self {
        if unprocessed {
            Self::Unprocessed
        } else if method.is_idempotent() {
            Self::Idempotent
        } else {
            Self::Unsafe
        }
    }
}

/// One failed attempt, as a retry policy sees it.
#[derive(Clone, Debug)]
pub struct AttemptFacts {
    /// 1 for the first.
    pub number: u32,
    /// Index in the endpoints view; `None` when no endpoint was picked.
    pub endpoint: Option<u32>,
    pub cause: Cause,
    /// The status of a whole response head that arrived.
    pub status: Option<StatusCode>,
    /// Its fields; empty without one.
    pub headers: HeaderMap,
    pub proof: Proof,
    /// Since the exchange began.
    pub elapsed: Duration,
    /// Until the exchange's total timeout; `Duration::MAX` without one.
    pub time_left: Duration,
    /// Retries left to this exchange within the cluster's budget.
    pub retries_left: u32,
}
