//! One request and its response, all steps in order. Read this first.
//!
//! `serve` takes the snapshot, asks where the request goes and what the upstream may know of the client, and then tries:
//! pick, lease, send, relay, until an answer is on its way to the client or nothing is left to try. Bodies stream
//! through [`crate::body::pump`]; they never stop here unless the route buffers them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue};
use tidegate_policy::native::received_identity;
use tidegate_policy::{
    Asked, Bound, Cause, DirectResponse, EndpointsView, Fault, Permit, RequestEdits, RequestHead, Tunnel,
};

use crate::body::{Incoming, Length, Reply};
use crate::codec::Served;
use crate::observe::Record;
use crate::snapshot::{Cluster, Route, Snapshot};
use crate::tenant::Turn;
use crate::timer::Deadline;

mod admit;
mod again;
mod attempt;
mod callouts;
mod client_cert;
mod compress;
mod decide;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod grpc;
mod hedge;
mod in_step;
mod reply;
mod request_body;
mod response;
mod shape;
mod slot;
mod upgrade;
mod via;

pub(crate) use again::{report, report_fault};
pub(crate) use attempt::InFlight;
pub(crate) use client_cert::CertificateFields;
pub use client_cert::ClientCertificate;
pub(crate) use decide::{pick, tunnel};
pub(crate) use in_step::Steps;
pub(crate) use shape::OutgoingHead;
pub(crate) use slot::{Run, Slots};
pub use via::Via;

use admit::Hops;
use attempt::Step;
use callouts::Callouts;
use decide::Destination;
use request_body::RequestBody;

/// The state of one exchange, on one worker, until its record is dropped.
struct Exchange<'a> {
    served: &'a Served,
    snapshot: Arc<Snapshot>,
    asked: Rc<Asked>,
    record: Record,
    /// Its place among the cluster's retries, once it is beyond its first try.
    retrying: Option<Permit>,
    /// And its place among the cluster's requests, until its upstream is free.
    within_bound: Option<Permit>,
    /// And its place among the tenant's, until its end.
    within_tenant: Option<Permit>,
}

/// What was decided before the first attempt.
struct Plan {
    route: Arc<Route>,
    cluster: Arc<Cluster>,
    head: OutgoingHead,
    edits: RequestEdits,
    /// Until the final response head; moves on by the time that receiving the request took.
    total: Option<Instant>,
    attempt_timeout: Option<Duration>,
    /// A gRPC call's own, until the end of its response.
    deadline: Option<Instant>,
    /// What the exchange becomes if an upstream accepts.
    tunnel: Option<Tunnel>,
    /// What the client sends into that tunnel, untouched before it is open.
    client_half: Option<Incoming>,
}

impl Plan {
    /// Whether any of what precedes a request on its way is a plugin's to decide.
    fn asks_plugins(&self) -> bool {
        self.route.asks_plugins() || self.cluster.plugin.is_some()
    }
}

/// Runs one exchange to its end.
async fn serve(served: &Served, head: RequestHead, body: Incoming, reply: Reply) {
    let snapshot = served.worker.current.load_full();
    let listener = &served.listener;
    let (client, received) =
        received_identity(&head.headers, &served.connection, &listener.trusted_proxies, listener.trusted_family);
    let connection = served.connection.clone();
    let draw = fastrand::u64(..);
    let asked = Rc::new(Asked { connection, request: head, client, received, notes: RefCell::default(), draw });
    let record = Record::begin(&served.worker, &asked);
    let mut exchange =
        Exchange { served, snapshot, asked, record, retrying: None, within_bound: None, within_tenant: None };
    let mut reply = Some(reply);
    let forwarded = match exchange.planned(&mut reply).await {
        Ok(Planned::Forward(mut plan)) => exchange.forward(&mut plan, body, &mut reply).await,
        Ok(Planned::Respond(response)) => return Box::pin(exchange.respond(response, reply)).await,
        Err(fault) => Err(fault),
    };
    // What is rare is boxed: its state would be part of every exchange's.
    if let Err(fault) = forwarded {
        Box::pin(exchange.fail(fault, reply)).await;
    }
}

/// A route, and what `Max-Forwards` asks; or an answer without one.
enum Routed {
    To(Arc<Route>, Hops),
    Respond(DirectResponse),
}

enum Planned {
    Forward(Box<Plan>),
    Respond(DirectResponse),
}

impl Exchange<'_> {
    /// What is to be done: all that is decided before a first attempt.
    async fn planned(&mut self, reply: &mut Option<Reply>) -> Result<Planned, Fault> {
        match self.route()? {
            Routed::Respond(response) => Ok(Planned::Respond(response)),
            Routed::To(route, hops) => {
                let asks = route.asks_plugins();
                let turn = if asks { self.turn(&route, reply).await? } else { None };
                if asks && route.waits() {
                    // Whoever waits for somebody else does not keep its tenant's others from theirs.
                    drop(turn);
                    return Box::pin(attempt::select(self.plan_later(route, hops), reply, |_| Poll::Pending)).await?;
                }
                self.plan(route, hops)
            }
        }
    }

    /// Finds the route, and a place among its tenant's requests.
    fn route(&mut self) -> Result<Routed, Fault> {
        let request = &self.asked.request;
        admit::admit(self.served, request, &self.snapshot)?;
        let hops = admit::max_forwards(request);
        if let Hops::Ended(response) = hops {
            return Ok(Routed::Respond(response));
        }
        upgrade::check_udp(request)?;
        let Some(index) = self.snapshot.table.find(request) else {
            let connect = matches!(request.tunnel, Some(Tunnel::Connect | Tunnel::ConnectUdp));
            return Err(if connect {
                upgrade::denied(request)
            } else {
                Fault::new(Cause::NoRoute, "no route matches")
            });
        };
        let route = self.snapshot.routes[index].clone();
        self.record.route = Some(route.name.clone());
        if let Some(tenant) = &route.tenant {
            self.record.tenant = Some(tenant.clone());
            self.within_tenant = tenant.requests.enter(Bound::Requests);
            if self.within_tenant.is_none() {
                let detail = format!("tenant {:?} has all the requests it may have in flight", tenant.name);
                return Err(Fault::new(Cause::TenantFull, detail));
            }
        }
        Ok(Routed::To(route, hops))
    }

    /// Waits until plugins may be asked for this route's tenant: those of one tenant take turns with everybody else.
    async fn turn(&self, route: &Route, reply: &mut Option<Reply>) -> Result<Option<Turn>, Fault> {
        let Some(tenant) = &route.tenant else { return Ok(None) };
        let turns = &self.served.worker.turns;
        match turns.now(tenant) {
            Some(turn) => Ok(Some(turn)),
            None => Box::pin(attempt::select(turns.wait(tenant), reply, |_| Poll::Pending)).await.map(Some),
        }
    }

    /// Where to, then identify. No byte is sent for a request that has no place to go.
    fn plan(&mut self, route: Arc<Route>, hops: Hops) -> Result<Planned, Fault> {
        let upgrade = self.upgrade(&route)?;
        let mut edits = RequestEdits::default();
        let destination = decide::route(&self.snapshot, &route, &self.asked, &mut edits, &mut self.record)?;
        let cluster = match self.settle(destination, &mut edits)? {
            Destination::Cluster(cluster) => cluster,
            Destination::Respond(response) => return Ok(Planned::Respond(response)),
        };
        let identity = decide::identify(&route, &self.asked, &mut self.record)?;
        Ok(self.plan_for(route, hops, upgrade, edits, cluster, identity))
    }

    /// The same, of plugins that may call out before they answer.
    async fn plan_later(&mut self, route: Arc<Route>, hops: Hops) -> Result<Planned, Fault> {
        let upgrade = self.upgrade(&route)?;
        let callouts = self.callouts(&route);
        let (snapshot, asked) = (self.snapshot.clone(), self.asked.clone());
        let mut edits = RequestEdits::default();
        let routing = decide::route_later(&snapshot, &route, &asked, &mut edits, &mut self.record, &callouts);
        let destination = routing.await?;
        let cluster = match self.settle(destination, &mut edits)? {
            Destination::Cluster(cluster) => cluster,
            Destination::Respond(response) => return Ok(Planned::Respond(response)),
        };
        let identity = decide::identify_later(&route, &asked, &mut self.record, &callouts).await?;
        Ok(self.plan_for(route, hops, upgrade, edits, cluster, identity))
    }

    /// Who sends what the plugins of this exchange call out.
    fn callouts(&self, route: &Route) -> Rc<Callouts> {
        Callouts::new(self.served, &self.snapshot, &self.asked, route.tenant.as_ref())
    }

    /// What the route lets the exchange become, and the key of that.
    fn upgrade(&self, route: &Route) -> Result<(Option<Tunnel>, Option<HeaderValue>), Fault> {
        let request = &self.asked.request;
        let tunnel = upgrade::granted(request, route)?;
        let key = (tunnel == Some(Tunnel::WebSocket)).then(|| upgrade::handshake_key(request)).transpose()?;
        Ok((tunnel, key))
    }

    fn settle(&mut self, destination: Destination, edits: &mut RequestEdits) -> Result<Destination, Fault> {
        self.asked.notes.borrow_mut().append(&mut edits.notes);
        match destination {
            Destination::Cluster(cluster) => {
                self.record.cluster = Some(cluster.name.clone());
                Ok(Destination::Cluster(cluster))
            }
            Destination::Respond(response)
                if response.status.is_success() && self.asked.request.opened_by_success() =>
            {
                Err(Fault::new(Cause::TunnelUnsupported, "an answer of our own would open the tunnel"))
            }
            Destination::Respond(response) => Ok(Destination::Respond(response)),
        }
    }

    fn plan_for(
        &self,
        route: Arc<Route>,
        hops: Hops,
        (tunnel, key): (Option<Tunnel>, Option<HeaderValue>),
        edits: RequestEdits,
        cluster: Arc<Cluster>,
        mut identity: Vec<(HeaderName, HeaderValue)>,
    ) -> Planned {
        if route.client_certificate != ClientCertificate::Off {
            identity.extend(self.served.certificate_fields().wanted(route.client_certificate));
        }
        let mut head = OutgoingHead::new(&self.asked, &edits, identity, &self.snapshot);
        head.upgrade = key;
        if let Hops::Left(left) = hops {
            head.max_forwards = Some(left.into());
        }
        let timeout = edits.timeout.or(route.timeout);
        let call = grpc::timeout(&self.asked.request);
        let deadline = call.and_then(|call| self.record.begun.checked_add(call));
        let total = timeout.into_iter().chain(call).min().and_then(|total| self.record.begun.checked_add(total));
        let attempt_timeout = edits.attempt_timeout.or(route.attempt_timeout);
        let client_half = None;
        let plan = Plan { route, cluster, head, edits, total, attempt_timeout, deadline, tunnel, client_half };
        Planned::Forward(Box::new(plan))
    }

    /// Tries until there is an answer, or a reason not to try again: the fault to answer for, if `reply` is still there.
    async fn forward(&mut self, plan: &mut Plan, mut body: Incoming, reply: &mut Option<Reply>) -> Result<(), Fault> {
        if plan.tunnel.is_some() {
            upgrade::without_content(&self.asked.request, &body)?;
            plan.client_half = Some(std::mem::replace(&mut body, Incoming::Empty));
        }
        body.look();
        let length = body.length();
        if let (Some(limit), Length::Known(length)) = (plan.route.max_request_body, length)
            && length > limit
        {
            return Err(Fault::new(Cause::RequestBodyTooLarge, format!("{length} bytes")));
        }
        let mut body = match length {
            Length::None => RequestBody::None,
            _ => Box::pin(RequestBody::receive(self, plan, body, reply)).await?,
        };
        let cluster = plan.cluster.clone();
        self.within_bound = cluster.breaker.enter(Bound::Requests);
        if self.within_bound.is_none() {
            let detail = format!("cluster {:?} has all the requests it may have in flight", cluster.name);
            return Err(Fault::new(Cause::ClusterFull, detail));
        }
        cluster.budget.deposit();
        let mut view = EndpointsView::new(cluster.set.clone(), self.served.worker.now());
        let handshake = &self.served.handshake;
        loop {
            // What is sent after the handshake is nobody's replay.
            plan.head.early = !handshake.is_complete();
            if plan.cluster.plugin.is_some() {
                drop(self.turn(&plan.route, reply).await?);
            }
            match self.attempt(plan, &mut body, &mut view, reply).await {
                Step::Done => return Ok(()),
                Step::Failed(fault) => return Err(fault),
                Step::Again(pause) => {
                    if !pause.is_zero() {
                        // Of the runtime: the worker's own wheel is too coarse for pauses of a millisecond.
                        Box::pin(self.while_wanted(plan, reply, tokio::time::sleep(pause))).await?;
                    }
                    self.served.worker.metrics.retries.add(1);
                }
                Step::AfterHandshake => {
                    if !Box::pin(self.while_wanted(plan, reply, handshake.wait())).await? {
                        return Err(Fault::new(Cause::ClientGone, "the handshake failed"));
                    }
                    self.served.worker.metrics.early.refused.add(1);
                }
            }
        }
    }

    /// Runs `work` unless the client leaves or the exchange's time is over.
    async fn while_wanted<T>(
        &self,
        plan: &Plan,
        reply: &mut Option<Reply>,
        work: impl Future<Output = T>,
    ) -> Result<T, Fault> {
        let mut total = Deadline::at(&self.served.worker.timers, plan.total);
        attempt::select(work, reply, |cx| {
            total.poll_elapsed(cx).map(|()| Fault::new(Cause::TotalTimeout, "no answer in time"))
        })
        .await
    }

    async fn respond(&mut self, response: DirectResponse, reply: Option<Reply>) {
        let Some(reply) = reply else { return };
        self.record.status = response.status.as_u16();
        let method = &self.asked.request.method;
        match reply::send(self.served, method, response, reply).await {
            Ok(sent) => {
                self.record.bytes_out.set(sent);
                self.record.complete = true;
            }
            // What there was to answer for is the better reason to keep.
            Err(gone) if self.record.cause.is_none() => {
                self.record.cause = Some(Cause::ClientGone);
                self.record.detail = Some(gone.to_string());
            }
            Err(_) => {}
        }
    }

    /// Answers for a fault, and writes it down. Without a reply what there is to be known was written down before.
    async fn fail(&mut self, fault: Fault, reply: Option<Reply>) {
        if reply.is_none() {
            return;
        }
        self.record.cause = Some(fault.cause);
        self.record.detail = Some(fault.detail);
        if let Some(response) = reply::to_fault(fault.cause, &self.asked.request, &self.snapshot) {
            self.respond(response, reply).await;
        }
    }
}
