//! The traits over the exported interfaces: from facts to a call, from its result to an answer.

use std::rc::Rc;
use std::time::Duration;

use bytestring::ByteString;
use http::{HeaderMap, StatusCode};
use tidegate_policy::{
    self as policy, Answered, Asked, AttemptFacts, Balancer, Blame, Decision, DirectResponse, Egress, EndpointsView,
    Forwarding, Identity, Later, PolicyFault, RequestEdits, Retry, Router, TunnelRouter,
};
use wasmtime::component::TypedFunc;

use super::{Asker, Asking, Question};
use crate::instances::Functions;
use crate::memo::{Going, Remembered};
use crate::plugin::Grants;
use crate::prefetch::Packet;
use crate::state::{Facts, IdentityEdits, State};
use crate::types::{Choice, Response, RouteAnswer, TunnelAnswer, Verdict};

pub(crate) struct AskRoute<'a> {
    pub(crate) edits: &'a mut RequestEdits,
}

impl Asking for AskRoute<'_> {
    type Answer = Going;
    type Given = (RouteAnswer,);
    const QUESTION: Question = Question::Route;

    fn function(functions: &Functions) -> Option<TypedFunc<(), Self::Given>> {
        functions.route
    }

    fn prefetched(functions: &Functions) -> Option<TypedFunc<(Packet,), Self::Given>> {
        functions.prefetched_route
    }

    fn answer(&mut self, (answer,): Self::Given, state: &mut State) -> Going {
        if !state.edits.is_empty() {
            std::mem::swap(self.edits, &mut state.edits);
        }
        match answer {
            RouteAnswer::Pass => Going::Nowhere,
            RouteAnswer::Forward(cluster) => Going::To(cluster.into()),
            RouteAnswer::Respond(response) => Going::Back(response),
        }
    }

    fn remember(&self, going: &Going) -> Remembered {
        Remembered::Route(Box::new((going.clone(), self.edits.clone())))
    }

    fn recall(&mut self, remembered: &Remembered) -> Option<Going> {
        let Remembered::Route(route) = remembered else { return None };
        let (going, wanted) = &**route;
        if !wanted.is_empty() {
            self.edits.clone_from(wanted);
        }
        Some(going.clone())
    }
}

impl Asker {
    fn routed(&self, Answered { value, origin, took }: Answered<Going>) -> Decision<policy::RouteAnswer> {
        let value = match value {
            Going::Nowhere => policy::RouteAnswer::Pass,
            Going::To(cluster) => policy::RouteAnswer::Forward(cluster),
            Going::Back(response) => match respond(response, &self.0.core.grants) {
                Ok(response) => policy::RouteAnswer::Respond(Box::new(response)),
                Err(reason) => return self.invalid(Question::Route, &reason),
            },
        };
        Ok(Answered { value, origin, took })
    }
}

impl Router for Asker {
    fn name(&self) -> ByteString {
        self.0.core.name.clone()
    }

    fn route(&self, asked: &Rc<Asked>, edits: &mut RequestEdits) -> Decision<policy::RouteAnswer> {
        let facts = Facts { asked: Some(asked.clone()), ..Facts::default() };
        let answered = self.ask(facts, AskRoute { edits })?;
        self.routed(answered)
    }

    fn waits(&self) -> bool {
        self.0.waits
    }

    fn route_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, (policy::RouteAnswer, RequestEdits)> {
        Box::pin(async move {
            let facts = Facts { asked: Some(asked.clone()), ..Facts::default() };
            let mut edits = RequestEdits::default();
            let answered = self.ask_later(facts, AskRoute { edits: &mut edits }, egress).await?;
            self.routed(answered).map(|answered| answered.map(|answer| (answer, edits)))
        })
    }

    fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
        self.refused(Question::Route, reason, blame)
    }
}

/// Largest body of a response that a plugin makes, and most of its fields.
const MAX_BODY: usize = 1024 * 1024;
const MAX_FIELDS: usize = 64;

/// A guest's response under the rules every message keeps: a status that ends an exchange, fields of the right form, and
/// those only that it may set.
fn respond(response: Response, grants: &Grants) -> Result<DirectResponse, String> {
    let status = StatusCode::from_u16(response.status).ok().filter(|status| (200..=599).contains(&status.as_u16()));
    let status = status.ok_or_else(|| format!("{} is not a status to respond with", response.status))?;
    if response.body.len() > MAX_BODY || response.headers.len() > MAX_FIELDS {
        return Err("the response is too large".to_owned());
    }
    let mut edits = policy::HeaderEdits::default();
    for field in &response.headers {
        if !grants.field(&field.name) {
            return Err(format!("the field {:?}: not granted", field.name));
        }
        edits.append(&field.name, &field.value).map_err(|error| format!("the field {:?}: {error}", field.name))?;
    }
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    edits.apply(&mut headers);
    Ok(DirectResponse { status, headers, body: response.body.into() })
}

pub(crate) struct AskPick;

impl Asking for AskPick {
    type Answer = Choice;
    type Given = (Choice,);
    const QUESTION: Question = Question::Pick;

    fn function(functions: &Functions) -> Option<TypedFunc<(), Self::Given>> {
        functions.pick
    }

    fn prefetched(functions: &Functions) -> Option<TypedFunc<(Packet,), Self::Given>> {
        functions.prefetched_pick
    }

    fn answer(&mut self, (choice,): Self::Given, _: &mut State) -> Choice {
        choice
    }

    fn remember(&self, choice: &Choice) -> Remembered {
        Remembered::Pick(*choice)
    }

    fn recall(&mut self, remembered: &Remembered) -> Option<Choice> {
        if let Remembered::Pick(choice) = remembered { Some(*choice) } else { None }
    }
}

impl Balancer for Asker {
    fn name(&self) -> ByteString {
        self.0.core.name.clone()
    }

    fn pick(&self, asked: &Rc<Asked>, endpoints: &EndpointsView) -> Decision<policy::Choice> {
        let facts = Facts { asked: Some(asked.clone()), endpoints: Some(endpoints.clone()), ..Facts::default() };
        Ok(self.ask(facts, AskPick)?.map(policy::Choice::from))
    }

    fn waits(&self) -> bool {
        self.0.waits
    }

    fn pick_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        endpoints: &'a EndpointsView,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, policy::Choice> {
        Box::pin(async move {
            let facts = Facts { asked: Some(asked.clone()), endpoints: Some(endpoints.clone()), ..Facts::default() };
            Ok(self.ask_later(facts, AskPick, egress).await?.map(policy::Choice::from))
        })
    }

    fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
        self.refused(Question::Pick, reason, blame)
    }
}

pub(crate) struct AskIdentify;

impl Asking for AskIdentify {
    type Answer = IdentityEdits;
    type Given = ();
    const QUESTION: Question = Question::Identify;

    fn function(functions: &Functions) -> Option<TypedFunc<(), Self::Given>> {
        functions.identify
    }

    fn prefetched(functions: &Functions) -> Option<TypedFunc<(Packet,), Self::Given>> {
        functions.prefetched_identify
    }

    fn answer(&mut self, (): (), state: &mut State) -> IdentityEdits {
        std::mem::take(&mut state.identity)
    }

    fn remember(&self, edited: &IdentityEdits) -> Remembered {
        Remembered::Identify(Box::new(edited.clone()))
    }

    fn recall(&mut self, remembered: &Remembered) -> Option<IdentityEdits> {
        if let Remembered::Identify(edited) = remembered { Some((**edited).clone()) } else { None }
    }
}

impl Forwarding for Asker {
    fn name(&self) -> ByteString {
        self.0.core.name.clone()
    }

    fn identify(&self, asked: &Rc<Asked>, identity: &mut Identity) -> Decision<()> {
        // Lent for the time of the question rather than copied; with its facts gone, it is nobody else's.
        let proposed = Rc::new(std::mem::take(identity));
        let facts = Facts { asked: Some(asked.clone()), identity: Some(proposed.clone()), ..Facts::default() };
        let answered = self.ask(facts, AskIdentify);
        *identity = Rc::unwrap_or_clone(proposed);
        Ok(answered?.map(|edited| edited.apply(identity)))
    }

    fn waits(&self) -> bool {
        self.0.waits
    }

    fn identify_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        identity: Identity,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, Identity> {
        Box::pin(async move {
            let proposed = Rc::new(identity);
            let facts = Facts { asked: Some(asked.clone()), identity: Some(proposed.clone()), ..Facts::default() };
            let answered = self.ask_later(facts, AskIdentify, egress).await?;
            let mut identity = Rc::unwrap_or_clone(proposed);
            Ok(answered.map(|edited| {
                edited.apply(&mut identity);
                identity
            }))
        })
    }

    fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
        self.refused(Question::Identify, reason, blame)
    }
}

pub(crate) struct AskDecide;

impl Asking for AskDecide {
    type Answer = Verdict;
    type Given = (Verdict,);
    const QUESTION: Question = Question::Decide;

    fn function(functions: &Functions) -> Option<TypedFunc<(), Self::Given>> {
        functions.decide
    }

    fn prefetched(functions: &Functions) -> Option<TypedFunc<(Packet,), Self::Given>> {
        functions.prefetched_decide
    }

    fn answer(&mut self, (verdict,): Self::Given, _: &mut State) -> Verdict {
        verdict
    }

    fn remember(&self, verdict: &Verdict) -> Remembered {
        Remembered::Decide(*verdict)
    }

    fn recall(&mut self, remembered: &Remembered) -> Option<Verdict> {
        if let Remembered::Decide(verdict) = remembered { Some(*verdict) } else { None }
    }
}

/// Longest pause a plugin may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(60);

fn facts_of(asked: &Rc<Asked>, attempt: &Rc<AttemptFacts>, endpoints: &EndpointsView) -> Facts {
    Facts {
        asked: Some(asked.clone()),
        endpoints: Some(endpoints.clone()),
        attempt: Some(attempt.clone()),
        identity: None,
    }
}

impl Asker {
    fn verdict(&self, Answered { value, origin, took }: Answered<Verdict>) -> Decision<policy::Verdict> {
        let value = match value {
            Verdict::Stop => policy::Verdict::Stop,
            Verdict::Again(pause) | Verdict::Elsewhere(pause) if Duration::from_nanos(pause) > MAX_PAUSE => {
                let reason = format!("a pause of {:?} is too long", Duration::from_nanos(pause));
                return self.invalid(Question::Decide, &reason);
            }
            Verdict::Again(pause) => policy::Verdict::Again(Duration::from_nanos(pause)),
            Verdict::Elsewhere(pause) => policy::Verdict::Elsewhere(Duration::from_nanos(pause)),
        };
        Ok(Answered { value, origin, took })
    }
}

impl Retry for Asker {
    fn name(&self) -> ByteString {
        self.0.core.name.clone()
    }

    fn decide(
        &self,
        asked: &Rc<Asked>,
        attempt: &Rc<AttemptFacts>,
        endpoints: &EndpointsView,
    ) -> Decision<policy::Verdict> {
        let answered = self.ask(facts_of(asked, attempt, endpoints), AskDecide)?;
        self.verdict(answered)
    }

    fn waits(&self) -> bool {
        self.0.waits
    }

    fn decide_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        attempt: &'a Rc<AttemptFacts>,
        endpoints: &'a EndpointsView,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, policy::Verdict> {
        Box::pin(async move {
            let answered = self.ask_later(facts_of(asked, attempt, endpoints), AskDecide, egress).await?;
            self.verdict(answered)
        })
    }

    fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
        self.refused(Question::Decide, reason, blame)
    }
}

pub(crate) struct AskTunnel;

impl Asking for AskTunnel {
    type Answer = policy::TunnelAnswer;
    type Given = (TunnelAnswer,);
    const QUESTION: Question = Question::Tunnel;

    fn function(functions: &Functions) -> Option<TypedFunc<(), Self::Given>> {
        functions.tunnel
    }

    fn prefetched(_: &Functions) -> Option<TypedFunc<(Packet,), Self::Given>> {
        None
    }

    fn answer(&mut self, (answer,): Self::Given, _: &mut State) -> policy::TunnelAnswer {
        match answer {
            TunnelAnswer::Pass => policy::TunnelAnswer::Pass,
            TunnelAnswer::Forward(cluster) => policy::TunnelAnswer::Forward(cluster.into()),
            TunnelAnswer::Refuse => policy::TunnelAnswer::Refuse,
        }
    }

    fn remember(&self, answer: &policy::TunnelAnswer) -> Remembered {
        Remembered::Tunnel(answer.clone())
    }

    fn recall(&mut self, remembered: &Remembered) -> Option<policy::TunnelAnswer> {
        if let Remembered::Tunnel(answer) = remembered { Some(answer.clone()) } else { None }
    }
}

impl TunnelRouter for Asker {
    fn name(&self) -> ByteString {
        self.0.core.name.clone()
    }

    fn tunnel(&self, asked: &Rc<Asked>) -> Decision<policy::TunnelAnswer> {
        self.ask(Facts { asked: Some(asked.clone()), ..Facts::default() }, AskTunnel)
    }

    fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
        self.refused(Question::Tunnel, reason, blame)
    }
}
