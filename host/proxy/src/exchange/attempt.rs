//! One try against one endpoint: pick, lease, send, wait for the head, relay; and what follows when it fails.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, StatusCode};
use tidegate_policy::native::permitted;
use tidegate_policy::{
    AttemptFacts, Bound, Buffering, Cause, EndpointState, EndpointsView, Fault, Outcome, Permit, Proof, ResponseHead,
    Swept, Tunnel, Verdict,
};

use super::request_body::{DEFAULT_BUFFER, RequestBody, from_body};
use super::{Exchange, Plan, compress, decide, reply, shape, upgrade};
use crate::body::{
    Activity, Arrived, Awaiting, BodyError, Encoded, Incoming, Length, Outgoing, PumpError, PumpRules, ReadAhead,
    Reply, pump,
};
use crate::buffer::{Claim, Spool};
use crate::relay::End;
use crate::snapshot::Cluster;
use crate::timer::Deadline;
use crate::upstream::{Lease, health};

/// What became of an attempt.
pub(super) enum Step {
    /// The response went to the client, or broke off on its way: nothing is left to do.
    Done,
    Again(Duration),
    Failed(Fault),
}

/// One request in flight at an endpoint, for as long as this lives.
pub(super) struct InFlight<'a>(&'a EndpointState);

impl<'a> InFlight<'a> {
    pub(super) fn begin(state: &'a EndpointState) -> Self {
        state.begin();
        Self(state)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A request on its way to an endpoint.
pub(super) struct Begun<'a> {
    pub(super) index: u32,
    pub(super) begun: Instant,
    pub(super) load: InFlight<'a>,
    pub(super) lease: Lease,
    pub(super) incoming: Incoming,
    pub(super) out: Outgoing,
    pub(super) awaiting: Awaiting,
    /// What came of the response already.
    pub(super) arrived: Option<Arrived>,
}

/// What an exchange holds of its upstream: given up early where the response is read ahead of the client.
struct Engaged<'a> {
    _lease: Lease,
    _load: InFlight<'a>,
    _permits: [Option<Permit>; 2],
}

/// Runs `work` unless the client leaves, or `over` says why it must end.
pub(super) async fn select<T>(
    work: impl Future<Output = T>,
    reply: &mut Option<Reply>,
    mut over: impl FnMut(&mut Context<'_>) -> Poll<Fault>,
) -> Result<T, Fault> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        if let Some(Poll::Ready(gone)) = reply.as_mut().map(|reply| reply.poll_closed(cx)) {
            return Poll::Ready(Err(Fault::new(Cause::ClientGone, gone)));
        }
        over(cx).map(Err)
    })
    .await
}

/// The times that bound an attempt until its response head. They run while the upstream has the whole request: how
/// fast a client uploads is for the idle time alone to judge.
pub(super) struct Clocks {
    attempt: Deadline,
    total: Deadline,
}

impl Clocks {
    pub(super) fn new(exchange: &Exchange<'_>, plan: &Plan) -> Self {
        let timers = &exchange.served.worker.timers;
        Self { attempt: Deadline::after(timers, plan.attempt_timeout), total: Deadline::at(timers, plan.total) }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        if self.total.poll_elapsed(cx).is_ready() {
            return Poll::Ready(Fault::new(Cause::TotalTimeout, "no response head within the exchange's time"));
        }
        self.attempt
            .poll_elapsed(cx)
            .map(|()| Fault::new(Cause::AttemptTimeout, "no response head within the attempt's time"))
    }
}

/// What ends the wait for a response head.
#[allow(clippy::large_enum_variant, reason = "it is made and taken apart at once")]
enum Event {
    Arrived(Result<Arrived, Fault>),
    Uploaded,
    /// The request cannot be completed: the client's side broke, or somebody stalls.
    RequestBroke(PumpError),
    ClientGone(String),
    Over(Fault),
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Upload {
    Running,
    Done,
    /// The upstream takes no more of it; its response may still come (RFC 9112, section 9.5).
    Refused,
}

impl Exchange<'_> {
    pub(super) async fn attempt(
        &mut self,
        plan: &mut Plan,
        body: &mut RequestBody,
        view: &mut EndpointsView,
        reply: &mut Option<Reply>,
    ) -> Step {
        let begun = Instant::now();
        let cluster = plan.cluster.clone();
        view.refresh(self.served.worker.now());
        let index = match decide::pick(&cluster, &self.asked, view, &mut self.record) {
            Ok(index) => index,
            Err(fault) => return Step::Failed(fault),
        };
        let Some(endpoint) = cluster.set.endpoints.get(index as usize) else {
            return Step::Failed(Fault::new(Cause::Internal, "the picked endpoint is out of range"));
        };
        self.record.attempts += 1;
        self.record.endpoint = Some(endpoint.address);
        let load = InFlight::begin(&endpoint.state);

        if plan.tunnel == Some(Tunnel::Connect) {
            return Box::pin(self.connect(plan, body, view, index, reply)).await;
        }
        if plan.tunnel == Some(Tunnel::ConnectUdp) {
            return Box::pin(self.connect_udp(plan, body, view, index, reply)).await;
        }

        let begun = if self.may_hedge(plan, body) {
            Box::pin(self.race(plan, &cluster, index, begun, load, view, reply)).await
        } else {
            self.begin(plan, &cluster, index, begun, load, body, view, reply).await
        };
        let Begun { index, begun, load, lease, mut incoming, mut out, mut awaiting, mut arrived } = match begun {
            Ok(begun) => begun,
            Err(step) => return step,
        };
        let Some(endpoint) = cluster.set.endpoints.get(index as usize) else {
            return Step::Failed(Fault::new(Cause::Internal, "the picked endpoint is out of range"));
        };
        let mut clocks = Clocks::new(self, plan);
        let moved = Cell::new(0);
        let activity = Activity::now();
        let worker = self.served.worker.clone();
        let rules = PumpRules {
            moved: &moved,
            activity: &activity,
            limit: plan.route.max_request_body,
            source_idle: Some(self.served.listener.limits.body_idle_timeout),
            sink_idle: plan.route.idle_timeout,
            source_rate: self.served.listener.limits.upload_rate,
            sink_rate: None,
            timers: &worker.timers,
        };
        let sending = Instant::now();
        let mut upload = Upload::Running;
        let broke = {
            let mut uploading = pin!(pump(&mut incoming, &mut out, rules));
            loop {
                let event = poll_fn(|cx| {
                    if let Some(arrived) = arrived.take() {
                        return Poll::Ready(Event::Arrived(Ok(arrived)));
                    }
                    if upload == Upload::Running
                        && let Poll::Ready(end) = uploading.as_mut().poll(cx)
                    {
                        match end {
                            Ok(()) => {
                                upload = Upload::Done;
                                return Poll::Ready(Event::Uploaded);
                            }
                            Err(PumpError::Sink(_)) => upload = Upload::Refused,
                            Err(error) => return Poll::Ready(Event::RequestBroke(error)),
                        }
                    }
                    if let Poll::Ready(arrived) = awaiting.poll_head(cx) {
                        return Poll::Ready(Event::Arrived(arrived));
                    }
                    if let Some(Poll::Ready(gone)) = reply.as_mut().map(|reply| reply.poll_closed(cx)) {
                        return Poll::Ready(Event::ClientGone(gone.to_string()));
                    }
                    match upload {
                        Upload::Running => Poll::Pending,
                        Upload::Done | Upload::Refused => clocks.poll(cx).map(Event::Over),
                    }
                })
                .await;
                match event {
                    Event::Uploaded => {
                        if moved.get() > 0 {
                            plan.total = plan.total.and_then(|total| total.checked_add(sending.elapsed()));
                        }
                        clocks = Clocks::new(self, plan);
                    }
                    Event::Arrived(Ok(Arrived::Interim(mut head))) => {
                        shape::strip_hop_by_hop(&mut head.headers);
                        if let Some(reply) = reply.as_mut()
                            && let Err(gone) = reply::taken(self.served, reply.interim(head)).await
                        {
                            break Fault::new(Cause::ClientGone, gone);
                        }
                    }
                    Event::Arrived(Ok(Arrived::Tunnel(head, incoming, outgoing))) => {
                        let took = begun.elapsed();
                        self.record.upstream = Some(took);
                        lease.answered();
                        endpoint.state.sample_latency(worker.now(), took);
                        let upstream = End { incoming, outgoing };
                        match upgrade::accepted(&head, plan.head.upgrade.as_ref()) {
                            Ok(()) => {
                                self.report(view, index, Outcome::Success);
                                return Box::pin(self.upgraded(plan, head, upstream, reply)).await;
                            }
                            Err(fault) => break fault,
                        }
                    }
                    Event::Arrived(Ok(Arrived::Final(head, _)))
                        if head.status.is_success() && self.asked.request.opened_by_success() =>
                    {
                        // Passed on, it would open a tunnel that the upstream knows nothing of.
                        break Fault::new(
                            Cause::UpgradeFailed,
                            format!("{} to a handshake over HTTP/1.1", head.status),
                        );
                    }
                    Event::Arrived(Ok(Arrived::Final(head, response))) => {
                        let took = begun.elapsed();
                        self.record.upstream = Some(took);
                        lease.answered();
                        endpoint.state.sample_latency(worker.now(), took);
                        // What was read of the body is lost to another attempt unless a whole copy is kept.
                        let pause = self.after_status(plan, body, view, index, &head, &lease);
                        if let Some(pause) = pause {
                            return Step::Again(pause);
                        }
                        let rest = (upload == Upload::Running).then_some(uploading);
                        let permits = [self.within_bound.take(), self.retrying.take()];
                        let engaged = Engaged { _lease: lease, _load: load, _permits: permits };
                        self.relay(plan, head, response, rest, &activity, reply, engaged).await;
                        // The head spoke well of the endpoint; a body that breaks off speaks against it.
                        if let Some(cause) = self.record.cause {
                            self.blame(plan, view, index, cause);
                        }
                        self.record.bytes_in.set(self.record.bytes_in.get().max(moved.get()));
                        return Step::Done;
                    }
                    Event::Arrived(Err(mut fault)) => {
                        fault.unprocessed |= !lease.written();
                        break fault;
                    }
                    Event::RequestBroke(PumpError::Source(error)) => break from_body(&error),
                    Event::RequestBroke(PumpError::SourceIdle(idle)) => {
                        break Fault::new(Cause::RequestBodyTimeout, format!("the client sent nothing for {idle:?}"));
                    }
                    Event::RequestBroke(error @ PumpError::SourceSlow(_)) => {
                        break Fault::new(Cause::RequestBodyTimeout, error);
                    }
                    Event::RequestBroke(error) => break Fault::new(Cause::IdleTimeout, error),
                    Event::ClientGone(detail) => break Fault::new(Cause::ClientGone, detail),
                    Event::Over(fault) => {
                        lease.timed_out(begun);
                        break fault;
                    }
                }
            }
        };
        drop(out);
        self.record.bytes_in.set(self.record.bytes_in.get().max(moved.get()));
        // One that turned out to be empty can be sent again as well as one that nothing was read of.
        if moved.get() == 0 && (upload != Upload::Done || incoming.length() == Length::None) {
            body.give_back(incoming);
        }
        self.after(plan, body, view, index, broke)
    }

    /// Leases a connection and sends the head; the body follows.
    #[allow(clippy::too_many_arguments, reason = "the state of a try, which this takes over")]
    async fn begin<'c>(
        &mut self,
        plan: &Plan,
        cluster: &'c Arc<Cluster>,
        index: u32,
        begun: Instant,
        load: InFlight<'c>,
        body: &mut RequestBody,
        view: &mut EndpointsView,
        reply: &mut Option<Reply>,
    ) -> Result<Begun<'c>, Step> {
        let mut clocks = Clocks::new(self, plan);
        let upstreams = &self.served.worker.upstreams;
        let connection = &self.asked.connection;
        let leasing = async {
            match plan.tunnel {
                None => upstreams.lease(cluster, index, connection).await,
                Some(_) => Box::pin(upstreams.lease_for_upgrade(cluster, index, connection)).await,
            }
        };
        let lease = select(leasing, reply, |cx| clocks.poll(cx)).await;
        let mut lease = match lease.and_then(|lease| lease) {
            Ok(lease) => lease,
            Err(fault) => return Err(self.after(plan, body, view, index, fault.nothing_written())),
        };
        let Some(mut incoming) = body.take() else {
            return Err(Step::Failed(Fault::new(Cause::Internal, "the request body is gone")));
        };
        incoming.look();
        if incoming.length() == Length::None {
            *body = RequestBody::None;
        }
        let started = select(lease.start(&plan.head, incoming.length()), reply, |cx| clocks.poll(cx)).await;
        let (out, awaiting) = match started.and_then(|started| started) {
            Ok(started) => started,
            Err(mut fault) => {
                fault.unprocessed |= !lease.written();
                body.give_back(incoming);
                return Err(self.after(plan, body, view, index, fault));
            }
        };
        Ok(Begun { index, begun, load, lease, incoming, out, awaiting, arrived: None })
    }

    /// Sends the response on. From its head on nothing can be tried again: an upstream that fails now ends the client's
    /// message as an error, never as a clean end (RFC 9112, section 8).
    #[allow(clippy::too_many_arguments, reason = "the ends of both messages, and what they hold")]
    async fn relay(
        &mut self,
        plan: &Plan,
        mut head: ResponseHead,
        mut response: Incoming,
        upload: Option<impl Future<Output = Result<(), PumpError>> + Unpin>,
        activity: &Activity,
        reply: &mut Option<Reply>,
        engaged: Engaged<'_>,
    ) {
        let Some(reply) = reply.take() else { return };
        let alt_svc = self.served.alt_svc.as_ref();
        shape::response(&mut head, &plan.edits.response_headers, alt_svc, &self.snapshot);
        self.compress(plan, &mut head, &mut response);
        let method = &self.asked.request.method;
        let length = shape::response_length(method, head.status, &mut head.headers, &response);
        self.record.status = head.status.as_u16();
        let mut out = match reply::taken(self.served, reply.head(head, length)).await {
            Ok(out) => out,
            Err(gone) => return self.note(Cause::ClientGone, gone.to_string()),
        };
        let ahead = if length == Length::None { None } else { self.read_ahead(plan, &mut response) };
        let ended = {
            let mut engaged = Some(engaged);
            let rules = PumpRules {
                moved: &self.record.bytes_out,
                activity,
                limit: None,
                source_idle: plan.route.idle_timeout,
                sink_idle: Some(self.served.listener.limits.body_idle_timeout),
                source_rate: None,
                sink_rate: self.served.listener.limits.download_rate,
                timers: &self.served.worker.timers,
            };
            let mut download = pin!(pump(&mut response, &mut out, rules));
            let mut upload = upload;
            let mut deadline = Deadline::at(&self.served.worker.timers, plan.deadline);
            poll_fn(|cx| {
                if let Some(uploading) = &mut upload
                    && let Poll::Ready(end) = std::pin::Pin::new(uploading).poll(cx)
                {
                    upload = None;
                    // An upstream that answered may refuse the rest; a client that breaks off has left.
                    if let Err(PumpError::Source(error)) = end {
                        return Poll::Ready(Err(Err(from_body(&error))));
                    }
                }
                loop {
                    let full = ahead.as_ref().is_some_and(|ahead| ahead.borrow_mut().poll_fill(cx));
                    if upload.is_none() && ahead.as_ref().is_some_and(|ahead| ahead.borrow().complete()) {
                        // The rest is between the client and us.
                        engaged = None;
                    }
                    if let Poll::Ready(ended) = download.as_mut().poll(cx) {
                        return Poll::Ready(ended.map_err(Ok));
                    }
                    if !full || !ahead.as_ref().is_some_and(|ahead| ahead.borrow_mut().has_room()) {
                        break;
                    }
                }
                let late = || Err(Err(Fault::new(Cause::TotalTimeout, "the call's own deadline is over")));
                deadline.poll_elapsed(cx).map(|()| late())
            })
            .await
        };
        match ended {
            Ok(()) => self.record.complete = true,
            Err(Ok(PumpError::Source(error))) => self.note(from_response(&error), error.to_string()),
            Err(Ok(PumpError::Sink(gone))) => self.note(Cause::ClientGone, gone.to_string()),
            Err(Ok(error @ (PumpError::SourceIdle(_) | PumpError::SourceSlow(_)))) => {
                self.note(Cause::IdleTimeout, error.to_string());
            }
            Err(Ok(error @ (PumpError::SinkIdle(_) | PumpError::SinkSlow(_)))) => {
                self.note(Cause::ClientGone, error.to_string());
            }
            Err(Err(fault)) => self.note(fault.cause, fault.detail),
        }
    }

    /// Where the route compresses and the client takes it: `response` becomes what is sent of it.
    fn compress(&self, plan: &Plan, head: &mut ResponseHead, response: &mut Incoming) {
        let Some(compression) = &plan.route.compression else { return };
        let request = &self.asked.request;
        let length = response.length();
        // The fields of an answer to `HEAD` are those that `GET` has; else what has no content has no coding.
        if length == Length::None && request.method != Method::HEAD && head.status != StatusCode::NOT_MODIFIED {
            return;
        }
        let coding = compress::negotiate(compression, request, head.status, &mut head.headers, length);
        if let Some(coding) = coding.filter(|_| length != Length::None) {
            let source = std::mem::replace(response, Incoming::Empty);
            *response = Incoming::Encoded(Box::new(Encoded::new(source, coding, &self.served.worker.metrics)));
        }
    }

    /// Where the route buffers responses: `response` becomes what is read ahead of the client.
    fn read_ahead(&self, plan: &Plan, response: &mut Incoming) -> Option<Rc<RefCell<ReadAhead>>> {
        let buffer = plan.route.buffer;
        let most = match plan.edits.buffering {
            Some(Buffering::Stream) => 0,
            Some(Buffering::Both) => buffer.response.max(DEFAULT_BUFFER),
            Some(Buffering::Request) | None => buffer.response,
        };
        if most == 0 {
            return None;
        }
        let spool = (buffer.spool > 0).then(|| Spool::new(&self.snapshot.buffers, buffer.spool));
        let source = std::mem::replace(response, Incoming::Empty);
        let ahead = Rc::new(RefCell::new(ReadAhead::new(source, most, self.memory_claim(), spool)));
        *response = Incoming::Ahead(ahead.clone());
        Some(ahead)
    }

    /// Room for buffered bodies of this listener's clients.
    pub(super) fn memory_claim(&self) -> Claim {
        let listener = self.served.listener.buffer_memory.clone();
        Claim::on(listener.into_iter().chain([self.snapshot.buffers.memory.clone()]))
    }

    pub(super) fn note(&mut self, cause: Cause, detail: String) {
        self.record.cause = Some(cause);
        self.record.detail = Some(detail);
    }

    /// A whole response head arrived: whether its status is a reason to try again, and after which pause.
    fn after_status(
        &mut self,
        plan: &Plan,
        body: &RequestBody,
        view: &mut EndpointsView,
        index: u32,
        head: &ResponseHead,
        lease: &Lease,
    ) -> Option<Duration> {
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
            return self.consider(plan, body, view, index, &raced, None);
        }
        let mut fault = Fault::new(Cause::Status, head.status);
        match head.status {
            // Not processed here: another connection may be the right one (RFC 9110, section 15.5.20).
            StatusCode::MISDIRECTED_REQUEST => {
                lease.misdirected();
                fault.unprocessed = true;
            }
            // Who sent the request early is who has to hear of it (RFC 8470, section 5.2).
            StatusCode::TOO_EARLY if self.asked.request.headers.contains_key("early-data") => return None,
            StatusCode::TOO_EARLY => fault.unprocessed = true,
            _ => {}
        }
        let wanted = plan.route.retry_plugin.is_some() || retry.retries_status(head.status);
        wanted.then(|| self.consider(plan, body, view, index, &fault, Some((head.status, &head.headers))))?
    }

    /// After a failure: again, or the fault stands.
    pub(super) fn after(
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
        match self.consider(plan, body, view, index, &fault, None) {
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

    /// Passive health: every attempt that ended says something of its endpoint.
    pub(super) fn report(&self, view: &EndpointsView, index: u32, outcome: Outcome) {
        let now = self.served.worker.now();
        if outcome != Outcome::Success
            && let Some(endpoint) = view.get(index)
        {
            endpoint.state.penalise_latency(now);
        }
        if let Some(ejected) = view.set.report(index, outcome, now) {
            health::tell(&view.set, index, Swept::Ejected(ejected));
        }
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
    fn consider(
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
        let verdict = match decide::again(route, &self.asked, &facts, view, &mut self.record) {
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
}

/// A response body that broke is the upstream's fault.
fn from_response(error: &BodyError) -> Cause {
    match error {
        BodyError::Truncated(_) | BodyError::Reset(_) => Cause::ResponseTruncated,
        BodyError::Invalid(_) | BodyError::TooLarge(_) => Cause::ResponseInvalid,
        BodyError::Internal(_) => Cause::Internal,
    }
}
