//! The questions as policies are asked them that may call out before they answer: each is a future, boxed by whoever waits for
//! it, so that nobody else's exchange is larger for it.

use std::rc::Rc;

use http::{HeaderName, HeaderValue};
use tidegate_policy::{
    Asked, AttemptFacts, Balancer, Decision, EndpointsView, Fault, Forwarding, Later, Origin, RequestEdits, Retry,
    Router, Verdict, Versioned,
};

use super::{
    Asking, Destination, again_natively, fall_back, identified, pick_natively, picked, route_natively, routed,
};
use crate::exchange::callouts::Callouts;
use crate::observe::{Decided, Deciding, DecisionRecord, Record};
use crate::snapshot::{Cluster, Route, Snapshot};

impl<'a, P: ?Sized> Asking<'a, P> {
    /// The same as `ask`, of policies that may call out before they answer.
    async fn ask_later<T>(
        self,
        record: &mut Record,
        callouts: &Callouts,
        mut ask: impl FnMut(&'a P) -> Later<'a, T>,
        decided: impl Fn(&T) -> Decided,
    ) -> (&'a P, Decision<T>) {
        let Self { question, policy, version, name, waits } = self;
        let (mut policy, mut watched, mut instead) = match version {
            Some(Versioned { policy, watched, instead }) => (policy, Some(watched), instead),
            None => (policy, None, None),
        };
        loop {
            let decision = ask(policy).await;
            let (origin, decided, took) = match &decision {
                Ok(answered) => (answered.origin, decided(&answered.value), answered.took),
                Err(fault) => (Origin::Wasm, Decided::Failed(fault.kind), fault.took),
            };
            // One that waits tells of its time as it takes it.
            if origin == Origin::Wasm && !waits(policy) {
                record.guest_took(took);
            }
            let by = name(policy);
            let (callouts, waited) = callouts.take();
            record.decided(DecisionRecord { question, by, watched, origin, decided, took, callouts, waited });
            match (&decision, instead.take()) {
                (Err(_), Some((other, of_other))) => (policy, watched) = (other, Some(of_other)),
                _ => return (policy, decision),
            }
        }
    }
}

/// Question one, as of [`super::route`].
pub(in crate::exchange) async fn route_later(
    snapshot: &Snapshot,
    route: &Route,
    asked: &Rc<Asked>,
    edits: &mut RequestEdits,
    record: &mut Record,
    callouts: &Rc<Callouts>,
) -> Result<Destination, Fault> {
    if let Some(router) = &route.router {
        let asking = Asking::<dyn Router>::of(&**router, asked);
        let asked_later = asking.ask_later(
            record,
            callouts,
            |router| router.route_later(asked, callouts.clone()),
            |(answer, _)| answer.into(),
        );
        let (router, decision) = asked_later.await;
        let decision = decision.map(|answered| {
            answered.map(|(answer, wanted)| {
                *edits = wanted;
                answer
            })
        });
        if let Some(destination) = routed(snapshot, route, asked, edits, router, decision)? {
            return Ok(destination);
        }
    }
    route_natively(route)
}

/// Question three, as of [`super::identify`].
pub(in crate::exchange) async fn identify_later(
    route: &Route,
    asked: &Rc<Asked>,
    record: &mut Record,
    callouts: &Rc<Callouts>,
) -> Result<Vec<(HeaderName, HeaderValue)>, Fault> {
    let Some(plugin) = &route.forwarding_plugin else { return Ok(route.forwarding.fields(asked)) };
    let asking = Asking::<dyn Forwarding>::of(&**plugin, asked);
    let asked_later = asking.ask_later(
        record,
        callouts,
        |plugin| plugin.identify_later(asked, route.forwarding.identity(asked), callouts.clone()),
        |sent| Decided::Identify(sent.elements.len()),
    );
    let (plugin, decision) = asked_later.await;
    identified(route, asked, plugin, decision)
}

/// Question two, as of [`super::pick`].
pub(in crate::exchange) async fn pick_later(
    cluster: &Cluster,
    asked: &Rc<Asked>,
    view: &EndpointsView,
    record: &mut Record,
    callouts: &Rc<Callouts>,
) -> Result<u32, Fault> {
    if let Some(plugin) = &cluster.plugin {
        let asking = Asking::<dyn Balancer>::of(&**plugin, asked);
        let asked_later = asking.ask_later(
            record,
            callouts,
            |plugin| plugin.pick_later(asked, view, callouts.clone()),
            |choice| Decided::of_choice(*choice, view),
        );
        let (plugin, decision) = asked_later.await;
        if let Some(index) = picked(cluster, view, plugin, decision)? {
            return Ok(index);
        }
    }
    pick_natively(cluster, asked, view)
}

/// Question four, as of [`super::again`].
pub(in crate::exchange) async fn again_later(
    route: &Route,
    asked: &Rc<Asked>,
    attempt: &Rc<AttemptFacts>,
    view: &EndpointsView,
    record: &mut Record,
    callouts: &Rc<Callouts>,
) -> Result<Verdict, Fault> {
    if let Some(plugin) = &route.retry_plugin {
        let asking = Asking::<dyn Retry>::of(&**plugin, asked);
        let asked_later = asking.ask_later(
            record,
            callouts,
            |plugin| plugin.decide_later(asked, attempt, view, callouts.clone()),
            |verdict| verdict.into(),
        );
        let (plugin, decision) = asked_later.await;
        match decision {
            Ok(answered) => return Ok(answered.value),
            Err(fault) => fall_back(&plugin.name(), &fault)?,
        }
    }
    again_natively(route, asked, attempt, view)
}
