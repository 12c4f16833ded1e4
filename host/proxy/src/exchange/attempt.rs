//! One try against one endpoint: pick, lease, send, wait for the head. Then `response` relays it, or `again` says what follows.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tidegate_policy::{Cause, EndpointState, EndpointsView, Fault, Outcome, Tunnel};

use super::request_body::{RequestBody, from_body};
use super::response::Engaged;
use super::{Exchange, Plan, decide, reply, shape, upgrade};
use crate::body::{Activity, Arrived, Awaiting, Incoming, Length, Outgoing, PumpError, PumpRules, Reply, pump};
use crate::relay::End;
use crate::snapshot::Cluster;
use crate::timer::Deadline;
use crate::upstream::Lease;

/// What became of an attempt.
pub(super) enum Step {
    /// The response went to the client, or broke off on its way: nothing is left to do.
    Done,
    Again(Duration),
    /// It came too early for the upstream (RFC 8470, section 5.2).
    AfterHandshake,
    Failed(Fault),
}

/// One request in flight at an endpoint, for as long as this lives.
pub(crate) struct InFlight<'a>(&'a EndpointState);

impl<'a> InFlight<'a> {
    pub(crate) fn begin(state: &'a EndpointState) -> Self {
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
        let waits = cluster.plugin.as_ref().is_some_and(|plugin| plugin.waits());
        let picked = if waits {
            Box::pin(self.pick_later(plan, &cluster, view, reply)).await
        } else {
            decide::pick(&cluster, &self.asked, view, &mut self.record)
        };
        let index = match picked {
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

        if plan.asks_plugins() {
            let worker = &self.served.worker;
            worker.steps.step(worker.slots.one_at_most(), worker.now()).await;
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
                        if let Some(step) = self.after_status(plan, body, view, index, &head, &lease).await {
                            return step;
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
        self.after(plan, body, view, index, broke).await
    }

    /// Question two, of a plugin that may wait.
    async fn pick_later(
        &mut self,
        plan: &Plan,
        cluster: &Cluster,
        view: &EndpointsView,
        reply: &mut Option<Reply>,
    ) -> Result<u32, Fault> {
        let mut clocks = Clocks::new(self, plan);
        let callouts = self.callouts(&plan.route);
        let picking = decide::pick_later(cluster, &self.asked, view, &mut self.record, &callouts);
        select(picking, reply, |cx| clocks.poll(cx)).await?
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
        let ready = plan.tunnel.is_none().then(|| upstreams.lease_now(cluster, index, connection)).flatten();
        let mut lease = match ready {
            Some(lease) => lease,
            None => {
                let leasing = async {
                    match plan.tunnel {
                        None => upstreams.lease(cluster, index, connection).await,
                        Some(_) => upstreams.lease_for_upgrade(cluster, index, connection).await,
                    }
                };
                // Boxed: the state of a dial would be part of every exchange's.
                let lease = Box::pin(select(leasing, reply, |cx| clocks.poll(cx))).await;
                match lease.and_then(|lease| lease) {
                    Ok(lease) => lease,
                    Err(fault) => return Err(self.after(plan, body, view, index, fault.nothing_written()).await),
                }
            }
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
                return Err(self.after(plan, body, view, index, fault).await);
            }
        };
        Ok(Begun { index, begun, load, lease, incoming, out, awaiting, arrived: None })
    }
}
