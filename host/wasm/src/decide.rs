//! The traits over the exported interfaces: from facts to a call, from its result to an answer.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytestring::ByteString;
use http::{HeaderMap, StatusCode};
use tidegate_policy::{
    self as policy, Answered, Asked, AttemptFacts, Balancer, Blame, Decision, DirectResponse, EndpointsView,
    Forwarding, Identity, Origin, PolicyFault, PolicyFaultKind, RequestEdits, Retry, Router, TunnelRouter,
};

use crate::instances::{Failed, Instance, run, with_slot};
use crate::memo::{Going, Read, Remembered};
use crate::plugin::{Grants, Handle, Isolation};
use crate::state::{Facts, IdentityEdits};
use crate::types::{Choice, Response, RouteAnswer, TunnelAnswer, Verdict};

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
    const QUESTION: Question;

    fn call(&mut self, instance: &mut Instance) -> Result<Self::Answer, Failed>;
    fn remember(&self, answer: &Self::Answer) -> Remembered;
    /// Nothing if it is of another question.
    fn recall(&mut self, remembered: &Remembered) -> Option<Self::Answer>;
}

impl Asker {
    /// Asks: the memo, else the guest. Counts, quarantines, retires.
    fn ask<A: Asking>(&self, facts: Facts, mut asking: A) -> Decision<A::Answer> {
        let core = &self.0.core;
        let question = A::QUESTION as usize;
        let stats = &core.stats.questions[question];
        let begun = Instant::now();
        if !core.quarantine.open() {
            stats.failed(PolicyFaultKind::Quarantined);
            let why = if core.quarantine.withdrawn() { "it was withdrawn" } else { "it failed too often lately" };
            return Err(self.fault(PolicyFaultKind::Quarantined, why.to_owned()));
        }
        let (mut payer, mut cpu) = (None, None);
        let asked = with_slot(&self.0, |slot| {
            let granted = |name: &str| core.grants.field(name);
            let memo = &mut slot.memos[question];
            if core.memoise
                && let Some(answer) = memo.find(&facts, granted).and_then(|found| asking.recall(found))
            {
                return Ok((answer, Origin::Memo));
            }
            if let Some(why) = slot.purse.short(begun) {
                return Err(Failed { kind: PolicyFaultKind::Budget, detail: why.to_owned() });
            }
            payer = Some(slot.purse.clone());
            let learns = core.memoise && memo.in_use();
            let mut fresh = None;
            let place = match core.isolation {
                Isolation::Worker => &mut slot.instance,
                Isolation::Request => &mut fresh,
            };
            let instance = match place {
                Some(instance) => {
                    instance.begin_at(begun);
                    instance
                }
                none => none.insert(Instance::new(core, &slot.purse)?),
            };
            let state = instance.store.data_mut();
            state.facts = facts;
            if core.observed {
                state.trace.begin_to_show();
            } else {
                state.trace.begin(learns);
            }
            let answered = asking.call(instance);
            let state = instance.store.data_mut();
            cpu = state.deadline.cpu();
            if let Ok(answer) = &answered
                && learns
            {
                memo.learn(&state.trace, &state.facts, granted, asking.remember(answer));
            }
            if core.observed {
                std::mem::swap(&mut slot.reads, state.trace.reads());
            }
            state.clear();
            if answered.is_err() {
                // The store is dead after a trap: drop it, and what it taught.
                slot.forget();
            } else if instance.nearly_full() {
                slot.instance = None;
            }
            answered.map(|answer| (answer, Origin::Wasm))
        });
        let took = begun.elapsed();
        if let Some(payer) = payer {
            payer.charge(cpu.unwrap_or(took));
        }
        match asked {
            Ok((value, origin)) => {
                stats.answered(took, origin == Origin::Memo);
                // What the memo knew says nothing of the guest's health.
                if origin != Origin::Memo {
                    core.quarantine.succeeded();
                }
                Ok(Answered { value, origin, took })
            }
            Err(Failed { kind, detail }) => {
                stats.failed(kind);
                self.note(kind, kind.blame(), &detail);
                Err(PolicyFault { took, ..self.fault(kind, detail) })
            }
        }
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

/// A function that `Plugin` checked to be there.
fn absent(name: &str) -> Failed {
    Failed { kind: PolicyFaultKind::Invalid, detail: format!("{name} is not exported") }
}

pub(crate) struct AskRoute<'a> {
    pub(crate) edits: &'a mut RequestEdits,
}

impl Asking for AskRoute<'_> {
    type Answer = Going;
    const QUESTION: Question = Question::Route;

    fn call(&mut self, instance: &mut Instance) -> Result<Going, Failed> {
        let Instance { store, functions, .. } = instance;
        let route = functions.route.as_ref().ok_or_else(|| absent("route"))?;
        let (answer,) = run(store, |store| route.call(store, ()))?;
        let wanted = &mut store.data_mut().edits;
        if !wanted.is_empty() {
            std::mem::swap(self.edits, wanted);
        }
        Ok(match answer {
            RouteAnswer::Pass => Going::Nowhere,
            RouteAnswer::Forward(cluster) => Going::To(cluster.into()),
            RouteAnswer::Respond(response) => Going::Back(response),
        })
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

impl Router for Asker {
    fn name(&self) -> ByteString {
        self.0.core.name.clone()
    }

    fn route(&self, asked: &Rc<Asked>, edits: &mut RequestEdits) -> Decision<policy::RouteAnswer> {
        let facts = Facts { asked: Some(asked.clone()), ..Facts::default() };
        let Answered { value, origin, took } = self.ask(facts, AskRoute { edits })?;
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
    const QUESTION: Question = Question::Pick;

    fn call(&mut self, instance: &mut Instance) -> Result<Choice, Failed> {
        let Instance { store, functions, .. } = instance;
        let pick = functions.pick.as_ref().ok_or_else(|| absent("pick"))?;
        run(store, |store| pick.call(store, ())).map(|(choice,)| choice)
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
        let Answered { value: choice, origin, took } = self.ask(facts, AskPick)?;
        let value = match choice {
            Choice::Pass => policy::Choice::Pass,
            Choice::Endpoint(index) => policy::Choice::Endpoint(index),
            Choice::Hash(key) => policy::Choice::Hash(key),
            Choice::None => policy::Choice::None,
        };
        Ok(Answered { value, origin, took })
    }

    fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
        self.refused(Question::Pick, reason, blame)
    }
}

pub(crate) struct AskIdentify;

impl Asking for AskIdentify {
    type Answer = IdentityEdits;
    const QUESTION: Question = Question::Identify;

    fn call(&mut self, instance: &mut Instance) -> Result<IdentityEdits, Failed> {
        let Instance { store, functions, .. } = instance;
        let identify = functions.identify.as_ref().ok_or_else(|| absent("identify"))?;
        run(store, |store| identify.call(store, ()))?;
        Ok(std::mem::take(&mut store.data_mut().identity))
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
        let facts = Facts { asked: Some(asked.clone()), identity: Some(identity.clone()), ..Facts::default() };
        let Answered { value: edited, origin, took } = self.ask(facts, AskIdentify)?;
        edited.apply(identity);
        Ok(Answered { value: (), origin, took })
    }

    fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
        self.refused(Question::Identify, reason, blame)
    }
}

pub(crate) struct AskDecide;

impl Asking for AskDecide {
    type Answer = Verdict;
    const QUESTION: Question = Question::Decide;

    fn call(&mut self, instance: &mut Instance) -> Result<Verdict, Failed> {
        let Instance { store, functions, .. } = instance;
        let decide = functions.decide.as_ref().ok_or_else(|| absent("decide"))?;
        run(store, |store| decide.call(store, ())).map(|(verdict,)| verdict)
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
        let facts = Facts {
            asked: Some(asked.clone()),
            endpoints: Some(endpoints.clone()),
            attempt: Some(attempt.clone()),
            identity: None,
        };
        let Answered { value: verdict, origin, took } = self.ask(facts, AskDecide)?;
        let value = match verdict {
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

    fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
        self.refused(Question::Decide, reason, blame)
    }
}

pub(crate) struct AskTunnel;

impl Asking for AskTunnel {
    type Answer = policy::TunnelAnswer;
    const QUESTION: Question = Question::Tunnel;

    fn call(&mut self, instance: &mut Instance) -> Result<policy::TunnelAnswer, Failed> {
        let Instance { store, functions, .. } = instance;
        let tunnel = functions.tunnel.as_ref().ok_or_else(|| absent("route of tunnel-router"))?;
        let (answer,) = run(store, |store| tunnel.call(store, ()))?;
        Ok(match answer {
            TunnelAnswer::Pass => policy::TunnelAnswer::Pass,
            TunnelAnswer::Forward(cluster) => policy::TunnelAnswer::Forward(cluster.into()),
            TunnelAnswer::Refuse => policy::TunnelAnswer::Refuse,
        })
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
