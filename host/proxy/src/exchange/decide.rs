//! Asking: each question goes to its plugin if the configuration names one, its answer is checked, and the native
//! answer stands where there is none. What plugins said is written into the record.

use std::rc::Rc;
use std::sync::Arc;

use bytestring::ByteString;
use http::{HeaderName, HeaderValue};
use tidegate_policy::{
    Asked, AttemptFacts, Balancer, Blame, Cause, Choice, Decision, DirectResponse, EndpointsView, Fault, Forwarding,
    Identity, Origin, RequestEdits, Retry, RouteAnswer, Router, TunnelAnswer, TunnelRouter, Verdict, Versioned,
    Watched,
};

use crate::observe::{Decided, Deciding, DecisionRecord, Question, Record};
use crate::snapshot::{Cluster, Route, RouteAction, Snapshot};

mod later;

pub(super) use later::{again_later, identify_later, pick_later, route_later};

/// Where the request goes.
pub(super) enum Destination {
    Cluster(Arc<Cluster>),
    Respond(DirectResponse),
}

/// Who is asked: a policy, or the version of it that the exchange has.
struct Asking<'a, P: ?Sized> {
    question: Question,
    policy: &'a P,
    version: Option<Versioned<'a, P>>,
    name: fn(&P) -> ByteString,
    waits: fn(&P) -> bool,
}

impl<'a, P: ?Sized> Asking<'a, P> {
    /// Asks, and writes down what was answered. Where a next version gives no answer, the current one is asked after it.
    /// Returns whose decision it is.
    fn ask<T>(
        self,
        record: &mut impl Deciding,
        mut ask: impl FnMut(&P) -> Decision<T>,
        decided: impl Fn(&T) -> Decided,
    ) -> (&'a P, Decision<T>) {
        let Self { question, policy, version, name, .. } = self;
        let mut one = |policy: &'a P, watched: Option<Watched>| {
            let decision = ask(policy);
            let (origin, decided, took) = match &decision {
                Ok(answered) => (answered.origin, decided(&answered.value), answered.took),
                Err(fault) => (Origin::Wasm, Decided::Failed(fault.kind), fault.took),
            };
            if origin == Origin::Wasm {
                record.guest_took(took);
            }
            let (callouts, waited) = Default::default();
            let by = name(policy);
            record.decided(DecisionRecord { question, by, watched, origin, decided, took, callouts, waited });
            (policy, decision)
        };
        let Some(Versioned { policy, watched, instead }) = version else { return one(policy, None) };
        match (one(policy, Some(watched)), instead) {
            ((_, Err(_)), Some((policy, watched))) => one(policy, Some(watched)),
            (asked, _) => asked,
        }
    }
}

/// A failed decision either falls back (`Ok`) or denies.
fn fall_back(by: &str, fault: &tidegate_policy::PolicyFault) -> Result<(), Fault> {
    tracing::debug!(plugin = by, kind = fault.kind.name(), detail = %fault.detail, "a plugin gave no answer");
    if fault.deny { Err(Fault::new(Cause::PolicyDenied, format!("plugin {by:?}: {fault}"))) } else { Ok(()) }
}

impl<'a> Asking<'a, dyn Router> {
    fn of(router: &'a (dyn Router + 'static), asked: &Asked) -> Self {
        let version = router.version(asked);
        let (name, waits) = (|router: &dyn Router| router.name(), |router: &dyn Router| router.waits());
        Self { question: Question::Route, policy: router, version, name, waits }
    }
}

/// Question one. `edits` holds what was accepted of a router's edits.
pub(super) fn route(
    snapshot: &Snapshot,
    route: &Route,
    asked: &Rc<Asked>,
    edits: &mut RequestEdits,
    record: &mut Record,
) -> Result<Destination, Fault> {
    if let Some(router) = &route.router {
        let (router, decision) = Asking::<dyn Router>::of(&**router, asked).ask(
            record,
            |router| {
                *edits = RequestEdits::default();
                router.route(asked, edits)
            },
            |answer| answer.into(),
        );
        if let Some(destination) = routed(snapshot, route, asked, edits, router, decision)? {
            return Ok(destination);
        }
    }
    route_natively(route)
}

/// Where a router's answer leads, if it leads anywhere.
fn routed(
    snapshot: &Snapshot,
    route: &Route,
    asked: &Asked,
    edits: &mut RequestEdits,
    router: &dyn Router,
    decision: Decision<RouteAnswer>,
) -> Result<Option<Destination>, Fault> {
    match decision {
        Ok(answered) => match answered.value {
            RouteAnswer::Pass => edits.fit(&asked.request.target),
            RouteAnswer::Forward(name) => {
                match snapshot.cluster(&name).filter(|cluster| cluster.owner.serves(route.tenant.as_deref())) {
                    Some(cluster) => {
                        edits.fit(&asked.request.target);
                        return Ok(Some(Destination::Cluster(cluster.clone())));
                    }
                    None => {
                        *edits = RequestEdits::default();
                        // One name that leads nowhere says little against all the others.
                        let refused = router.answer_refused(&format!("no cluster is named {name:?}"), Blame::Nobody);
                        fall_back(&router.name(), &refused)?;
                    }
                }
            }
            RouteAnswer::Respond(response) if response.status.as_u16() >= 200 => {
                return Ok(Some(Destination::Respond(*response)));
            }
            RouteAnswer::Respond(response) => {
                *edits = RequestEdits::default();
                let reason = format!("{} is not a final status", response.status);
                fall_back(&router.name(), &router.answer_refused(&reason, Blame::Policy))?;
            }
        },
        Err(fault) => {
            *edits = RequestEdits::default();
            fall_back(&router.name(), &fault)?;
        }
    }
    Ok(None)
}

fn route_natively(route: &Route) -> Result<Destination, Fault> {
    match &route.action {
        RouteAction::Cluster(cluster) => Ok(Destination::Cluster(cluster.clone())),
        RouteAction::Split(split, clusters) => match clusters.get(split.pick(fastrand::u64(..))) {
            Some(cluster) => Ok(Destination::Cluster(cluster.clone())),
            None => Err(Fault::new(Cause::NoRoute, "the split has no weight")),
        },
        RouteAction::Respond(response) => Ok(Destination::Respond(response.clone())),
        RouteAction::Nothing => Err(Fault::new(Cause::NoRoute, "the router passed and the route names no cluster")),
    }
}

impl<'a> Asking<'a, dyn Forwarding> {
    fn of(plugin: &'a (dyn Forwarding + 'static), asked: &Asked) -> Self {
        let version = plugin.version(asked);
        let (name, waits) = (|plugin: &dyn Forwarding| plugin.name(), |plugin: &dyn Forwarding| plugin.waits());
        Self { question: Question::Identify, policy: plugin, version, name, waits }
    }
}

/// Question three: the fields that tell the upstream of the client.
pub(super) fn identify(
    route: &Route,
    asked: &Rc<Asked>,
    record: &mut Record,
) -> Result<Vec<(HeaderName, HeaderValue)>, Fault> {
    let Some(plugin) = &route.forwarding_plugin else { return Ok(route.forwarding.fields(asked)) };
    let (plugin, decision) = Asking::<dyn Forwarding>::of(&**plugin, asked).ask(
        record,
        |plugin| {
            let mut identity = route.forwarding.identity(asked);
            plugin.identify(asked, &mut identity).map(|answered| answered.with(identity))
        },
        |sent| Decided::Identify(sent.elements.len()),
    );
    identified(route, asked, plugin, decision)
}

fn identified(
    route: &Route,
    asked: &Asked,
    plugin: &dyn Forwarding,
    decision: Decision<Identity>,
) -> Result<Vec<(HeaderName, HeaderValue)>, Fault> {
    match decision {
        Ok(answered) => Ok(route.forwarding.render(&answered.value, asked)),
        Err(fault) => {
            fall_back(&plugin.name(), &fault)?;
            Ok(route.forwarding.fields(asked))
        }
    }
}

impl<'a> Asking<'a, dyn Balancer> {
    fn of(plugin: &'a (dyn Balancer + 'static), asked: &Asked) -> Self {
        let version = plugin.version(asked);
        let (name, waits) = (|plugin: &dyn Balancer| plugin.name(), |plugin: &dyn Balancer| plugin.waits());
        Self { question: Question::Pick, policy: plugin, version, name, waits }
    }
}

/// Question two: an endpoint that is available, or the fault that there is none. A plugin that may wait is not asked: where
/// nobody can wait for it, the cluster's own algorithm picks.
pub(crate) fn pick(
    cluster: &Cluster,
    asked: &Rc<Asked>,
    view: &EndpointsView,
    record: &mut impl Deciding,
) -> Result<u32, Fault> {
    if let Some(plugin) = cluster.plugin.as_ref().filter(|plugin| !plugin.waits()) {
        let asking = Asking::<dyn Balancer>::of(&**plugin, asked);
        let (plugin, decision) =
            asking.ask(record, |plugin| plugin.pick(asked, view), |choice| Decided::of_choice(*choice, view));
        if let Some(index) = picked(cluster, view, plugin, decision)? {
            return Ok(index);
        }
    }
    pick_natively(cluster, asked, view)
}

/// The endpoint of a plugin's choice, if it has one.
fn picked(
    cluster: &Cluster,
    view: &EndpointsView,
    plugin: &dyn Balancer,
    decision: Decision<Choice>,
) -> Result<Option<u32>, Fault> {
    match decision {
        Ok(answered) => match answered.value {
            Choice::Pass => {}
            Choice::Endpoint(index) if view.available(index) => return Ok(Some(index)),
            Choice::Endpoint(index) => {
                let reason = format!("endpoint {index} of {} is not available", view.len());
                fall_back(&plugin.name(), &plugin.answer_refused(&reason, blame_for(view, index)))?;
            }
            Choice::Hash(key) => match cluster.maglev.pick_by_hash(view, key) {
                Some(index) => return Ok(Some(index)),
                None => return Err(none(cluster, "no endpoint is available")),
            },
            Choice::None => return Err(none(cluster, "the balancer wants none of the endpoints")),
        },
        Err(fault) => fall_back(&plugin.name(), &fault)?,
    }
    Ok(None)
}

fn none(cluster: &Cluster, why: &str) -> Fault {
    Fault::new(Cause::NoEndpoint, format!("cluster {:?}: {why}", cluster.name))
}

/// By the cluster's own algorithm.
pub(super) fn pick_natively(cluster: &Cluster, asked: &Rc<Asked>, view: &EndpointsView) -> Result<u32, Fault> {
    let none = |why: &str| none(cluster, why);
    match cluster.balancer.pick(asked, view) {
        Ok(answered) => match answered.value {
            Choice::Endpoint(index) if view.available(index) => Ok(warm_enough(cluster, asked, view, index)),
            Choice::Hash(key) => cluster.maglev.pick_by_hash(view, key).ok_or_else(|| none("no endpoint is available")),
            _ => Err(none("no endpoint is available")),
        },
        Err(fault) => Err(Fault::new(Cause::Internal, fault)),
    }
}

/// An endpoint that is still warming up gives way, by chance, to one that the algorithm picks from the others.
fn warm_enough(cluster: &Cluster, asked: &Rc<Asked>, view: &EndpointsView, index: u32) -> u32 {
    if view.warm_enough(index) {
        return index;
    }
    let mut others = view.clone();
    others.tried.push(index);
    match cluster.balancer.pick(asked, &others).map(|answered| answered.value) {
        Ok(Choice::Endpoint(other)) if others.available(other) => other,
        _ => index,
    }
}

/// Whether a balancer could have known that its endpoint is not to be had. Health and load change while it thinks; what
/// the set has, what an endpoint weighs and what this exchange tried do not.
fn blame_for(view: &EndpointsView, index: u32) -> Blame {
    let fit = view.get(index).is_some_and(|endpoint| endpoint.weight > 0) && !view.tried.contains(&index);
    if fit { Blame::Nobody } else { Blame::Policy }
}

/// Where a connection goes that nobody decrypts here, by the plugin that its listener asks. `None`: it has no opinion, or
/// gave no answer and the listener's own routes stand.
pub(crate) fn tunnel(
    snapshot: &Snapshot,
    router: &dyn TunnelRouter,
    asked: &Rc<Asked>,
    record: &mut impl Deciding,
) -> Result<Option<Arc<Cluster>>, Fault> {
    let asking = Asking {
        question: Question::Tunnel,
        policy: router,
        version: router.version(asked),
        name: |router| router.name(),
        waits: |_| false,
    };
    let (router, decision) = asking.ask(record, |router| router.tunnel(asked), |answer| answer.into());
    match decision {
        Ok(answered) => match answered.value {
            TunnelAnswer::Pass => Ok(None),
            TunnelAnswer::Forward(name) => match snapshot.cluster(&name) {
                Some(cluster) if cluster.tls.is_none() => Ok(Some(cluster.clone())),
                found => {
                    let why = if found.is_some() { "has tls, which a tunnel cannot speak" } else { "is not there" };
                    let refused = router.answer_refused(&format!("the cluster {name:?} {why}"), Blame::Nobody);
                    fall_back(&router.name(), &refused).map(|()| None)
                }
            },
            TunnelAnswer::Refuse => {
                Err(Fault::new(Cause::TunnelDenied, format!("plugin {:?} refuses it", router.name())))
            }
        },
        Err(fault) => fall_back(&router.name(), &fault).map(|()| None),
    }
}

impl<'a> Asking<'a, dyn Retry> {
    fn of(plugin: &'a (dyn Retry + 'static), asked: &Asked) -> Self {
        let version = plugin.version(asked);
        let (name, waits) = (|plugin: &dyn Retry| plugin.name(), |plugin: &dyn Retry| plugin.waits());
        Self { question: Question::Decide, policy: plugin, version, name, waits }
    }
}

/// Question four. Asked only when the core could try again.
pub(super) fn again(
    route: &Route,
    asked: &Rc<Asked>,
    attempt: &Rc<AttemptFacts>,
    view: &EndpointsView,
    record: &mut Record,
) -> Result<Verdict, Fault> {
    if let Some(plugin) = &route.retry_plugin {
        let asking = Asking::<dyn Retry>::of(&**plugin, asked);
        let (plugin, decision) =
            asking.ask(record, |plugin| plugin.decide(asked, attempt, view), |verdict| verdict.into());
        match decision {
            Ok(answered) => return Ok(answered.value),
            Err(fault) => fall_back(&plugin.name(), &fault)?,
        }
    }
    again_natively(route, asked, attempt, view)
}

fn again_natively(
    route: &Route,
    asked: &Rc<Asked>,
    attempt: &Rc<AttemptFacts>,
    view: &EndpointsView,
) -> Result<Verdict, Fault> {
    match route.retry.decide(asked, attempt, view) {
        Ok(answered) => Ok(answered.value),
        Err(fault) => Err(Fault::new(Cause::Internal, fault)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_policy::contract::endpoints;

    use super::*;

    #[test]
    fn a_balancer_is_blamed_for_what_it_could_know() {
        let set = endpoints(&[1, 0, 1]);
        set.endpoints[0].state.set_healthy(false);
        let mut view = EndpointsView::new(set, Duration::ZERO);
        view.tried.push(2);
        let blamed = [0, 1, 2, 3].map(|index| blame_for(&view, index) == Blame::Policy);
        assert_eq!(blamed, [false, true, true, true]);
    }
}
