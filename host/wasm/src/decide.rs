//! The traits over the exported interfaces: from facts to a call, from its result to an answer.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytestring::ByteString;
use http::{HeaderMap, StatusCode};
use tidegate_policy::{
    self as policy, Answered, Asked, AttemptFacts, Balancer, Blame, Decision, DirectResponse, Egress, EndpointsView,
    Forwarding, Identity, Later, Origin, PolicyFault, PolicyFaultKind, RequestEdits, Retry, Router, TunnelRouter,
};
use wasmtime::component::{ComponentNamedList, Lift, TypedFunc};

use crate::instances::{Failed, Functions, Instance, Slot, run, with_slot};
use crate::memo::{Going, Remembered};
use crate::plugin::{Grants, Handle, Isolation};
use crate::prefetch::Packet;
use crate::read::Read;
use crate::state::{Facts, IdentityEdits, State};
use crate::stats::QUESTIONS;
use crate::trace::Purpose;
use crate::types::{Choice, Response, RouteAnswer, TunnelAnswer, Verdict};

mod later;

/// A plugin as the answerer of its questions.
pub(crate) struct Asker(pub(crate) Arc<Handle>);

#[derive(Clone, Copy)]
pub(crate) enum Question {
    Route,
    Pick,
    Identify,
    Decide,
    Tunnel,
}

/// One question being asked: how a guest is called, and what a memo keeps of its answer.
pub(crate) trait Asking {
    type Answer;
    /// What its function gives.
    type Given: ComponentNamedList + Lift + 'static;
    const QUESTION: Question;

    fn function(functions: &Functions) -> Option<TypedFunc<(), Self::Given>>;
    /// The same with facts that come along.
    fn prefetched(functions: &Functions) -> Option<TypedFunc<(Packet,), Self::Given>>;
    /// With what the guest set besides.
    fn answer(&mut self, given: Self::Given, state: &mut State) -> Self::Answer;
    fn remember(&self, answer: &Self::Answer) -> Remembered;
    /// Nothing if it is of another question.
    fn recall(&mut self, remembered: &Remembered) -> Option<Self::Answer>;

    /// Asks a guest that does not wait, with a packet of facts if there is one.
    fn call(&mut self, instance: &mut Instance, packet: Option<Packet>) -> Result<Self::Answer, Failed> {
        let given = match (packet, Self::prefetched(&instance.functions)) {
            (Some(packet), Some(function)) => run(&mut instance.store, |store| function.call(store, (packet,)))?,
            _ => {
                let function = exported::<Self>(instance)?;
                run(&mut instance.store, |store| function.call(store, ()))?
            }
        };
        Ok(self.answer(given, instance.store.data_mut()))
    }
}

/// The function that `Plugin` checked to be there.
pub(crate) fn exported<A: Asking + ?Sized>(instance: &Instance) -> Result<TypedFunc<(), A::Given>, Failed> {
    let absent = || format!("{} is not exported", QUESTIONS[A::QUESTION as usize]);
    A::function(&instance.functions).ok_or_else(|| Failed { kind: PolicyFaultKind::Invalid, detail: absent() })
}

impl Asker {
    /// Asks: the memo, else the guest. Counts, quarantines, retires.
    ///
    /// There is one of it for each question; what is the same for all is in functions of its own, of which there is one.
    fn ask<A: Asking>(&self, facts: Facts, mut asking: A) -> Decision<A::Answer> {
        let core = &self.0.core;
        let question = A::QUESTION as usize;
        let begun = Instant::now();
        if !core.quarantine.open() {
            return Err(self.quarantined(A::QUESTION));
        }
        let mut took = None;
        let asked = with_slot(&self.0, |slot| {
            let granted = |name: &str| core.grants.field(name);
            if core.memoise
                && let Some(answer) = slot.memos[question].find(&facts, granted).and_then(|found| asking.recall(found))
            {
                return Ok((answer, Origin::Memo));
            }
            let learns = core.memoise && slot.memos[question].in_use();
            let mut fresh = None;
            let packet = self.make_ready(slot, &mut fresh, A::QUESTION, facts, begun)?;
            let instance = fresh.as_mut().or(slot.instance.as_mut()).expect("it was made ready");
            let answered = asking.call(instance, packet);
            if let Ok(answer) = &answered
                && learns
            {
                let state = instance.store.data();
                slot.memos[question].learn(&state.trace, &state.facts, granted, asking.remember(answer));
            }
            took = Some(self.settle(slot, &mut fresh, A::QUESTION, answered.is_ok(), begun));
            answered.map(|answer| (answer, Origin::Wasm))
        });
        self.decided(A::QUESTION, asked, took.unwrap_or_else(|| begun.elapsed()))
    }

    /// An instance that has the facts: the slot's, or a `fresh` one for a plugin that has one for each request.
    ///
    /// # Returns
    /// Facts that come along.
    #[inline(never)]
    fn make_ready(
        &self,
        slot: &mut Slot,
        fresh: &mut Option<Instance>,
        question: Question,
        facts: Facts,
        begun: Instant,
    ) -> Result<Option<Packet>, Failed> {
        let core = &self.0.core;
        if let Some(why) = slot.purse.short(begun) {
            return Err(Failed { kind: PolicyFaultKind::Budget, detail: why.to_owned() });
        }
        let place = match core.isolation {
            Isolation::Worker => &mut slot.instance,
            Isolation::Request => fresh,
        };
        let instance = match place {
            Some(instance) => {
                instance.begin_at(begun);
                instance
            }
            none => {
                // What fails here was the guest's time too.
                let new = Instance::new(core, &slot.purse).inspect_err(|_| slot.purse.charge(begun.elapsed()))?;
                none.insert(new)
            }
        };
        let question = question as usize;
        let purpose = if core.observed {
            Purpose::Show
        } else if core.memoise && slot.memos[question].in_use() {
            Purpose::Memo
        } else if core.prepared.exports.prefetched[question].is_some() {
            Purpose::Prefetch
        } else {
            Purpose::None
        };
        let state = instance.store.data_mut();
        state.facts = facts;
        state.trace.begin(purpose);
        Ok(if purpose == Purpose::Prefetch { slot.prefetches[question].pack(state) } else { None })
    }

    /// After the call: what it taught, what it cost, and whether its instance is asked again.
    ///
    /// # Returns
    /// How long the question took.
    #[inline(never)]
    fn settle(
        &self,
        slot: &mut Slot,
        fresh: &mut Option<Instance>,
        question: Question,
        answered: bool,
        begun: Instant,
    ) -> Duration {
        let instance = fresh.as_mut().or(slot.instance.as_mut()).expect("it was asked");
        let state = instance.store.data_mut();
        let cpu = state.deadline.cpu();
        match state.trace.purpose() {
            Purpose::Prefetch => slot.prefetches[question as usize].learn(state.trace.reads()),
            Purpose::Show => std::mem::swap(&mut slot.reads, state.trace.reads()),
            Purpose::Memo | Purpose::None => {}
        }
        state.clear();
        if !answered {
            // The store is dead after a trap: drop it, and what it taught.
            slot.forget();
        } else if instance.nearly_full() {
            slot.instance = None;
        }
        // To drop it is the guest's time too.
        *fresh = None;
        let took = begun.elapsed();
        slot.purse.charge(cpu.unwrap_or(took));
        took
    }

    fn quarantined(&self, question: Question) -> PolicyFault {
        let core = &self.0.core;
        core.stats.questions[question as usize].failed(PolicyFaultKind::Quarantined);
        let why = if core.quarantine.withdrawn() { "it was withdrawn" } else { "it failed too often lately" };
        self.fault(PolicyFaultKind::Quarantined, why.to_owned())
    }

    /// Counts what was answered, or why nothing was.
    fn decided<T>(&self, question: Question, asked: Result<(T, Origin), Failed>, took: Duration) -> Decision<T> {
        match asked {
            Ok((value, origin)) => {
                self.answered(question, origin, took);
                Ok(Answered { value, origin, took })
            }
            Err(failed) => Err(self.failed(question, failed, took)),
        }
    }

    #[inline(never)]
    fn answered(&self, question: Question, origin: Origin, took: Duration) {
        let core = &self.0.core;
        core.stats.questions[question as usize].answered(took, origin == Origin::Memo);
        // What the memo knew says nothing of the guest's health.
        if origin != Origin::Memo {
            core.quarantine.succeeded();
        }
    }

    #[cold]
    fn failed(&self, question: Question, Failed { kind, detail }: Failed, took: Duration) -> PolicyFault {
        self.0.core.stats.questions[question as usize].failed(kind);
        self.note(kind, kind.blame(), &detail);
        PolicyFault { took, ..self.fault(kind, detail) }
    }

    /// What the guest read for its last question on this thread, if it is observed.
    pub(crate) fn reads(&self) -> Vec<Read> {
        with_slot(&self.0, |slot| std::mem::take(&mut slot.reads))
    }

    fn fault(&self, kind: PolicyFaultKind, detail: String) -> PolicyFault {
        PolicyFault { kind, deny: self.0.core.deny, detail, took: Duration::ZERO }
    }

    fn note(&self, kind: PolicyFaultKind, blame: Blame, detail: &str) {
        let core = &self.0.core;
        let quarantined = blame == Blame::Policy && core.quarantine.failed(kind);
        let plugin = &*core.name;
        if quarantined {
            tracing::warn!(plugin, kind = kind.name(), detail, "plugin quarantined");
        } else if kind == PolicyFaultKind::Budget && core.stats.tell_of_shedding() {
            let tenant = core.share.tenant.as_ref().map_or("", |tenant| &**tenant.name());
            tracing::warn!(plugin, tenant, detail, "plugin over its budget: not asked until there is more");
        } else {
            tracing::debug!(plugin, kind = kind.name(), detail, "plugin failed");
        }
    }

    /// An answer the core could not use.
    fn refused(&self, question: Question, reason: &str, blame: Blame) -> PolicyFault {
        self.0.core.stats.questions[question as usize].failed(PolicyFaultKind::Invalid);
        self.note(PolicyFaultKind::Invalid, blame, reason);
        self.fault(PolicyFaultKind::Invalid, reason.to_owned())
    }

    /// An answer that this crate could not use.
    fn invalid<T>(&self, question: Question, reason: &str) -> Decision<T> {
        Err(self.refused(question, reason, Blame::Policy))
    }
}

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
