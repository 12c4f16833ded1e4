//! Hedging: a safe request that waits long is sent to another endpoint as well, the first that answers is taken, and the
//! others are cancelled (Dean and Barroso, "The Tail at Scale", 2013).
//!
//! Only where the route asks for it, and only for requests that may act any number of times (RFC 9110, section 9.2.1)
//! and have no content. A hedge is a try like any other: it counts against the route's attempts, the cluster's retry budget
//! and its circuit breaker. An interim response is an answer too: passed on, it binds the exchange to who sent it.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use smallvec::SmallVec;
use tidegate_policy::{Bound, Cause, ConnectionHead, EndpointsView, Fault};

use super::attempt::{Begun, Clocks, InFlight, Step};
use super::request_body::RequestBody;
use super::{Exchange, OutgoingHead, Plan, decide};
use crate::body::{Arrived, Awaiting, Incoming, Length, Outgoing, Reply};
use crate::snapshot::Cluster;
use crate::timer::Deadline;
use crate::upstream::{Lease, Upstreams};

/// One of the tries that run at once.
struct Racer<'c, 'a> {
    index: u32,
    begun: Instant,
    load: InFlight<'c>,
    /// There from when the request is on its way.
    lease: Rc<RefCell<Option<Lease>>>,
    answer: Pin<Box<dyn Future<Output = Answer> + 'a>>,
}

/// What an endpoint said first.
type Answer = Result<(Awaiting, Arrived), Fault>;

#[allow(clippy::large_enum_variant, reason = "it is made and taken apart at once")]
enum Event {
    Answered(usize, Answer),
    ClientGone(String),
    Over(Fault),
    Hedge,
}

/// Asks one endpoint, up to the first that it says.
async fn ask(
    upstreams: &Upstreams,
    cluster: &Arc<Cluster>,
    index: u32,
    client: &Rc<ConnectionHead>,
    head: &OutgoingHead,
    place: Rc<RefCell<Option<Lease>>>,
) -> Answer {
    let mut lease = upstreams.lease(cluster, index, client).await.map_err(Fault::nothing_written)?;
    let started = lease.start(head, Length::None).await;
    let (out, mut awaiting) = started.map_err(|mut fault| {
        fault.unprocessed |= !lease.written();
        fault
    })?;
    place.replace(Some(lease));
    let arrived = poll_fn(|cx| awaiting.poll_head(cx)).await.map_err(|mut fault| {
        fault.unprocessed |= place.borrow().as_ref().is_some_and(|lease| !lease.written());
        fault
    });
    drop(out);
    Ok((awaiting, arrived?))
}

impl Exchange<'_> {
    /// Whether this try may be hedged.
    pub(super) fn may_hedge(&self, plan: &Plan, body: &RequestBody) -> bool {
        plan.route.hedge_after.is_some()
            && plan.tunnel.is_none()
            && matches!(body, RequestBody::None)
            && self.asked.request.method.is_safe()
            && self.record.attempts < plan.route.attempts
    }

    /// One try that may become several. What is begun is the one that answered first.
    #[allow(clippy::too_many_arguments, reason = "the state of a try, which this takes over")]
    pub(super) async fn race<'c: 'p, 'p>(
        &mut self,
        plan: &'p Plan,
        cluster: &'c Arc<Cluster>,
        index: u32,
        begun: Instant,
        load: InFlight<'c>,
        view: &mut EndpointsView,
        reply: &mut Option<Reply>,
    ) -> Result<Begun<'c>, Step>
    where
        Self: 'p,
    {
        let upstreams = &self.served.worker.upstreams;
        let connection = self.asked.connection.clone();
        let enter = |index, begun, load| {
            let lease = Rc::new(RefCell::new(None));
            let (connection, place) = (connection.clone(), lease.clone());
            let answer = Box::pin(async move { ask(upstreams, cluster, index, &connection, &plan.head, place).await });
            Racer { index, begun, load, lease, answer }
        };
        let mut racers: SmallVec<[Racer<'c, 'p>; 2]> = SmallVec::new();
        racers.push(enter(index, begun, load));
        let timers = &self.served.worker.timers;
        let mut clocks = Clocks::new(self, plan);
        let mut next = Some(Deadline::after(timers, plan.route.hedge_after));
        loop {
            let event = poll_fn(|cx| poll_race(&mut racers, reply, &mut clocks, &mut next, cx)).await;
            match event {
                Event::Answered(at, Ok((awaiting, arrived))) => {
                    let Racer { index, begun, load, lease, .. } = racers.swap_remove(at);
                    self.lost(view, &racers);
                    let Some(lease) = lease.take() else {
                        return Err(Step::Failed(Fault::new(Cause::Internal, "an answer without a connection")));
                    };
                    self.record.endpoint = view.get(index).map(|endpoint| endpoint.address);
                    if at > 0 {
                        self.served.worker.metrics.hedges_won.add(1);
                    }
                    let (incoming, out) = (Incoming::Empty, Outgoing::Ended);
                    return Ok(Begun { index, begun, load, lease, incoming, out, awaiting, arrived: Some(arrived) });
                }
                Event::Answered(at, Err(fault)) => {
                    let index = racers.remove(at).index;
                    if racers.is_empty() {
                        return Err(self.after(plan, &RequestBody::None, view, index, fault).await);
                    }
                    self.failed(view, index);
                    self.blame(plan, view, index, fault.cause);
                }
                Event::ClientGone(detail) => return Err(Step::Failed(Fault::new(Cause::ClientGone, detail))),
                Event::Over(fault) => {
                    for racer in &racers {
                        if let Some(lease) = &*racer.lease.borrow() {
                            lease.timed_out(racer.begun);
                        }
                    }
                    let last = racers.pop().map_or(index, |racer| racer.index);
                    for racer in racers {
                        self.failed(view, racer.index);
                        self.blame(plan, view, racer.index, fault.cause);
                    }
                    return Err(self.after(plan, &RequestBody::None, view, last, fault).await);
                }
                Event::Hedge => {
                    next = None;
                    // Its balancer's turn comes with the next round: a hedge can wait, a neighbour should not.
                    let turns = &self.served.worker.turns;
                    let tenant = plan.route.tenant.as_ref().filter(|_| cluster.plugin.is_some());
                    if tenant.is_some_and(|tenant| turns.now(tenant).is_none()) {
                        next = Some(Deadline::after(timers, plan.route.hedge_after));
                        continue;
                    }
                    let Some(index) = self.hedge(plan, cluster, view, &racers) else { continue };
                    let Some(endpoint) = cluster.set.endpoints.get(index as usize) else { continue };
                    racers.push(enter(index, Instant::now(), InFlight::begin(&endpoint.state)));
                    clocks = Clocks::new(self, plan);
                    if self.record.attempts < plan.route.attempts {
                        next = Some(Deadline::after(timers, plan.route.hedge_after));
                    }
                }
            }
        }
    }

    /// Another endpoint, if there is one and the cluster bears another try.
    fn hedge(
        &mut self,
        plan: &Plan,
        cluster: &Arc<Cluster>,
        view: &mut EndpointsView,
        racers: &[Racer<'_, '_>],
    ) -> Option<u32> {
        let now = self.served.worker.now();
        view.refresh(now);
        // Those before it in this exchange stay tried; these count as tried for this one pick.
        let tried = view.tried.len();
        view.tried.extend(racers.iter().map(|racer| racer.index));
        // The tries that are under way would wait for a plugin that does.
        let picked = decide::pick(cluster, &self.asked, view, &mut self.record).ok();
        view.tried.truncate(tried);
        let index = picked.filter(|index| racers.iter().all(|racer| racer.index != *index))?;
        if self.retrying.is_none() {
            self.retrying = Some(cluster.breaker.enter(Bound::Retries)?);
        }
        if !plan.cluster.budget.withdraw(now) {
            self.served.worker.metrics.retries_without_budget.add(1);
            return None;
        }
        self.record.attempts += 1;
        self.served.worker.metrics.hedges.add(1);
        Some(index)
    }

    /// Those who were slower: how long they took is not known, but that it is no less than this.
    fn lost(&self, view: &EndpointsView, racers: &[Racer<'_, '_>]) {
        let now = self.served.worker.now();
        for racer in racers {
            if let Some(endpoint) = view.get(racer.index) {
                endpoint.state.sample_latency(now, racer.begun.elapsed());
            }
        }
    }
}

fn poll_race(
    racers: &mut [Racer<'_, '_>],
    reply: &mut Option<Reply>,
    clocks: &mut Clocks,
    next: &mut Option<Deadline>,
    cx: &mut Context<'_>,
) -> Poll<Event> {
    for (at, racer) in racers.iter_mut().enumerate() {
        if let Poll::Ready(answer) = racer.answer.as_mut().poll(cx) {
            return Poll::Ready(Event::Answered(at, answer));
        }
    }
    if let Some(Poll::Ready(gone)) = reply.as_mut().map(|reply| reply.poll_closed(cx)) {
        return Poll::Ready(Event::ClientGone(gone.to_string()));
    }
    if let Poll::Ready(fault) = clocks.poll(cx) {
        return Poll::Ready(Event::Over(fault));
    }
    match next {
        Some(deadline) => deadline.poll_elapsed(cx).map(|()| Event::Hedge),
        None => Poll::Pending,
    }
}
