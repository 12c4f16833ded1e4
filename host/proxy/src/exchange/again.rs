//! What follows when a try fails: what it says of the endpoint, what it proves, and whether there is another.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};
use tidegate_policy::native::permitted;
use tidegate_policy::{AttemptFacts, Bound, Cause, EndpointsView, Fault, Outcome, Proof, ResponseHead, Swept, Verdict};

use super::attempt::Step;
use super::request_body::RequestBody;
use super::{Exchange, Plan, decide, shape};
use crate::upstream::{Lease, health};
use crate::worker::Worker;

/// Passive health: every attempt that ended says something of its endpoint.
pub(crate) fn report(worker: &Worker, view: &EndpointsView, index: u32, outcome: Outcome) {
    let now = worker.now();
    if outcome != Outcome::Success
        && let Some(endpoint) = view.get(index)
    {
        endpoint.state.penalise_latency(now);
    }
    if let Some(ejected) = view.set.report(index, outcome, now) {
        health::tell(&view.set, index, Swept::Ejected(ejected));
    }
    if view.set.health.rules.ejection.is_some() {
        worker.alarm.ring();
    }
}

/// The same of one that came to nothing: it is counted, and held against the endpoint where that is to blame.
pub(crate) fn report_fault(worker: &Worker, view: &EndpointsView, index: u32, fault: &Fault) {
    if let Some(endpoint) = view.get(index) {
        endpoint.state.failures.fetch_add(1, Ordering::Relaxed);
    }
    if let Some(outcome) = Outcome::of_fault(fault.cause) {
        report(worker, view, index, outcome);
    }
}

impl Exchange<'_> {
    /// A whole response head arrived: whether its status is a reason to try again, and when.
    pub(super) async fn after_status(
        &mut self,
        plan: &Plan,
        body: &RequestBody,
        view: &mut EndpointsView,
        index: u32,
        head: &ResponseHead,
        lease: &Lease,
    ) -> Option<Step> {
        // Below 400 nothing failed. A gRPC failure hides in a 200 that has its status among the fields (trailers-only).
        let grpc_status = head.headers.get("grpc-status").map(|status| status.as_bytes());
        self.report(view, index, Outcome::of_response(head.status, grpc_status));
        let grpc = grpc_status.is_some_and(|status| status != b"0");
        if !grpc && head.status.as_u16() < 400 {
            return None;
        }
        if head.status.is_server_error() {
            self.failed(view, index);
        }
        let retry = &plan.route.retry;
        if head.status == StatusCode::REQUEST_TIMEOUT && lease.reused() && retry.on.reset {
            // The origin gave up an idle connection as the request was on its way (RFC 9110, section 15.5.9).
            let raced = Fault::new(Cause::Reset, "408 on a connection that had idled");
            return Box::pin(self.consider(plan, body, view, index, &raced, None)).await.map(Step::Again);
        }
        let mut fault = Fault::new(Cause::Status, head.status);
        match head.status {
            // Not processed here: another connection may be the right one (RFC 9110, section 15.5.20).
            StatusCode::MISDIRECTED_REQUEST => {
                lease.misdirected();
                fault.unprocessed = true;
            }
            // Who sent the request early is who has to hear of it (RFC 8470, section 5.2).
            StatusCode::TOO_EARLY if self.asked.request.headers.contains_key(shape::EARLY_DATA) => return None,
            // That was us, and it is no failure: there are no rules and no budget to ask.
            StatusCode::TOO_EARLY if plan.head.early => return Some(Step::AfterHandshake),
            StatusCode::TOO_EARLY => fault.unprocessed = true,
            _ => {}
        }
        if plan.route.retry_plugin.is_none() && !retry.retries_status(head.status) {
            return None;
        }
        let response = Some((head.status, &head.headers));
        // Boxed: what is rare is no part of every attempt's state.
        Box::pin(self.consider(plan, body, view, index, &fault, response)).await.map(Step::Again)
    }

    /// After a failure: again, or the fault stands.
    pub(super) async fn after(
        &mut self,
        plan: &Plan,
        body: &RequestBody,
        view: &mut EndpointsView,
        index: u32,
        fault: Fault,
    ) -> Step {
        if fault.cause.side() != tidegate_policy::Side::Upstream {
            return Step::Failed(fault);
        }
        self.failed(view, index);
        self.blame(plan, view, index, fault.cause);
        // An upstream that accepted, if wrongly, has begun: nothing proves the opposite.
        let begun = fault.cause == Cause::UpgradeFailed && !fault.unprocessed;
        if fault.cause == Cause::TotalTimeout || begun {
            return Step::Failed(fault);
        }
        match Box::pin(self.consider(plan, body, view, index, &fault, None)).await {
            Some(pause) => {
                tracing::debug!(cause = fault.cause.name(), detail = %fault.detail, "attempt failed, trying again");
                Step::Again(pause)
            }
            None => Step::Failed(fault),
        }
    }

    pub(super) fn failed(&self, view: &EndpointsView, index: u32) {
        if let Some(endpoint) = view.get(index) {
            endpoint.state.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn report(&self, view: &EndpointsView, index: u32, outcome: Outcome) {
        report(&self.served.worker, view, index, outcome);
    }

    /// Reports a fault that is the endpoint's. That a time was over which the client chose itself (grpc-timeout) proves nothing:
    /// with short ones a client could put endpoints out.
    pub(super) fn blame(&self, plan: &Plan, view: &EndpointsView, index: u32, cause: Cause) {
        let chosen = cause == Cause::TotalTimeout && plan.deadline.is_some();
        if let Some(outcome) = Outcome::of_fault(cause).filter(|_| !chosen) {
            self.report(view, index, outcome);
        }
    }

    /// The core's ground rules around question four: attempts, time, proof, a body to send, the budget.
    async fn consider(
        &mut self,
        plan: &Plan,
        body: &RequestBody,
        view: &mut EndpointsView,
        index: u32,
        fault: &Fault,
        response: Option<(StatusCode, &HeaderMap)>,
    ) -> Option<Duration> {
        let route = &plan.route;
        let left = route.attempts.saturating_sub(self.record.attempts);
        if left == 0 {
            return None;
        }
        let metrics = &self.served.worker.metrics;
        let proof = Proof::of(fault.unprocessed, &self.asked.request.method);
        if !permitted(proof, body.replayable(), false) {
            // Counted where somebody would have tried again, not for every 404 to a POST.
            let wanted =
                response.is_none_or(|(status, _)| status.is_server_error() || route.retry.retries_status(status));
            metrics.retries_unsafe.add(wanted.into());
            return None;
        }
        if let (Some(tenant), Some(_)) = (&route.tenant, &route.retry_plugin) {
            drop(self.served.worker.turns.take(tenant).await);
        }
        let now = self.served.worker.now();
        let time_left = match plan.total {
            Some(total) => total.saturating_duration_since(Instant::now()),
            None => Duration::MAX,
        };
        let (status, headers) = match response {
            Some((status, headers)) => (Some(status), headers.clone()),
            None => (None, HeaderMap::new()),
        };
        let facts = Rc::new(AttemptFacts {
            number: self.record.attempts,
            endpoint: Some(index),
            cause: fault.cause,
            status,
            headers,
            proof,
            elapsed: self.record.begun.elapsed(),
            time_left,
            retries_left: left.min(plan.cluster.budget.balance(now)),
        });
        let verdict = match self.again(plan, &facts, view).await {
            Ok(verdict) => verdict,
            Err(refused) => {
                tracing::debug!(%refused, "the retry question was denied");
                return None;
            }
        };
        let pause = match verdict {
            Verdict::Stop => return None,
            Verdict::Again(pause) => {
                view.tried.clear();
                pause
            }
            Verdict::Elsewhere(pause) => {
                if !view.tried.contains(&index) {
                    view.tried.push(index);
                }
                // All tried: better any than none.
                if !(0..view.len() as u32).any(|index| view.available(index)) {
                    view.tried.clear();
                }
                pause
            }
        };
        if pause >= time_left {
            return None;
        }
        // One place for all the retries of an exchange: it makes them one at a time.
        let permit = match self.retrying.take() {
            Some(permit) => permit,
            None => plan.cluster.breaker.enter(Bound::Retries)?,
        };
        if !plan.cluster.budget.withdraw(now) {
            self.served.worker.metrics.retries_without_budget.add(1);
            return None;
        }
        self.retrying = Some(permit);
        Some(pause)
    }

    /// Question four, of a plugin that may wait or of whoever answers at once. How long it may wait is bounded; that the client
    /// left is seen after it.
    async fn again(&mut self, plan: &Plan, facts: &Rc<AttemptFacts>, view: &EndpointsView) -> Result<Verdict, Fault> {
        let route = &plan.route;
        if route.retry_plugin.as_ref().is_some_and(|plugin| plugin.waits()) {
            let callouts = self.callouts(route);
            return decide::again_later(route, &self.asked, facts, view, &mut self.record, &callouts).await;
        }
        decide::again(route, &self.asked, facts, view, &mut self.record)
    }
}
