//! The four traits over the exported interfaces: from facts to a call, from its result to an answer.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use bytestring::ByteString;
use http::{HeaderMap, StatusCode};
use tidegate_policy::{
    self as policy, Answered, Asked, AttemptFacts, Balancer, Blame, Decision, DirectResponse, EndpointsView,
    Forwarding, Identity, Origin, PolicyFault, PolicyFaultKind, RequestEdits, Retry, Router,
};

use crate::instances::{Failed, Instance, run, with_slot};
use crate::memo::Remembered;
use crate::plugin::{Grants, Handle, Isolation};
use crate::state::{Facts, State};
use crate::types::{Choice, Response, RouteAnswer, Verdict};

/// A plugin as the answerer of its questions.
pub(crate) struct Asker(pub(crate) Arc<Handle>);

#[derive(Clone, Copy)]
enum Question {
    Route,
    Pick,
    Identify,
    Decide,
}

/// What a call left, before the store is cleared.
type Outcome = Result<Remembered, Failed>;

impl Asker {
    /// Asks: the memo, else the guest. Counts, quarantines, retires.
    fn ask(
        &self,
        question: Question,
        facts: Facts,
        call: impl FnOnce(&mut Instance) -> Outcome,
    ) -> Result<(Remembered, Origin), PolicyFault> {
        let core = &self.0.core;
        let stats = &core.stats.questions[question as usize];
        let begun = Instant::now();
        if !core.quarantine.open() {
            stats.failed(PolicyFaultKind::Quarantined);
            let why = if core.quarantine.withdrawn() { "it was withdrawn" } else { "it failed too often lately" };
            return Err(self.fault(PolicyFaultKind::Quarantined, why.to_owned()));
        }
        let asked = with_slot(&self.0, |slot| {
            let granted = |name: &str| core.grants.field(name);
            let memo = &mut slot.memos[question as usize];
            if core.memoise
                && let Some(found) = memo.find(&facts, granted)
            {
                return Ok((found.clone(), Origin::Memo));
            }
            let mut instance = match core.isolation {
                Isolation::Worker => slot.take_instance(core, begun)?,
                Isolation::Request => Instance::new(core)?,
            };
            let memo = &mut slot.memos[question as usize];
            let learns = core.memoise && memo.in_use();
            let state = instance.store.data_mut();
            state.facts = facts;
            state.trace.begin(learns);
            match call(&mut instance) {
                Ok(answer) => {
                    let state = instance.store.data_mut();
                    if learns {
                        memo.learn(&state.trace, &state.facts, granted, answer.clone());
                    }
                    state.clear();
                    if core.isolation == Isolation::Worker {
                        slot.keep(instance);
                    }
                    Ok((answer, Origin::Wasm))
                }
                Err(failed) => {
                    // The store is dead after a trap: drop it, and what it taught.
                    slot.forget();
                    Err(failed)
                }
            }
        });
        match asked {
            Ok((answer, origin)) => {
                stats.answered(begun.elapsed(), origin == Origin::Memo);
                // What the memo knew says nothing of the guest's health.
                if origin != Origin::Memo {
                    core.quarantine.succeeded();
                }
                Ok((answer, origin))
            }
            Err(Failed { kind, detail }) => {
                stats.failed(kind);
                // That no instance was to be had is the pool's doing.
                let blame = if kind == PolicyFaultKind::Exhausted { Blame::Nobody } else { Blame::Policy };
                self.note(kind, blame, &detail);
                Err(self.fault(kind, detail))
            }
        }
    }

    fn fault(&self, kind: PolicyFaultKind, detail: String) -> PolicyFault {
        PolicyFault { kind, deny: self.0.core.deny, detail }
    }

    fn note(&self, kind: PolicyFaultKind, blame: Blame, detail: &str) {
        let core = &self.0.core;
        let quarantined = blame == Blame::Policy && core.quarantine.failed(kind);
        let plugin = &*core.name;
        if quarantined {
            tracing::warn!(plugin, kind = kind.name(), detail, "plugin quarantined");
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

impl Router for Asker {
    fn name(&self) -> ByteString {
        self.0.core.name.clone()
    }

    fn route(&self, asked: &Rc<Asked>, edits: &mut RequestEdits) -> Decision<policy::RouteAnswer> {
        let facts = Facts { asked: Some(asked.clone()), ..Facts::default() };
        let (answer, origin) = self.ask(Question::Route, facts, |instance| {
            let Instance { store, functions, .. } = instance;
            let route = functions.route.as_ref().ok_or_else(|| absent("route"))?;
            let (answer,) = run(store, |store| route.call(store, ()))?;
            let edits = std::mem::take(&mut store.data_mut().edits);
            let cluster = match &answer {
                RouteAnswer::Forward(cluster) => Some(Arc::from(cluster.as_str())),
                _ => None,
            };
            Ok(Remembered::Route(Arc::new((answer, cluster, edits))))
        })?;
        let Remembered::Route(route) = answer else {
            return self.invalid(Question::Route, "an answer to another question");
        };
        let (answer, cluster, wanted) = &*route;
        let value = match (answer, cluster) {
            (RouteAnswer::Pass, _) => policy::RouteAnswer::Pass,
            (RouteAnswer::Forward(_), Some(cluster)) => policy::RouteAnswer::Forward(cluster.clone()),
            (RouteAnswer::Forward(_), None) => policy::RouteAnswer::Pass,
            (RouteAnswer::Respond(response), _) => match respond(response, &self.0.core.grants) {
                Ok(response) => policy::RouteAnswer::Respond(Box::new(response)),
                Err(reason) => return self.invalid(Question::Route, &reason),
            },
        };
        if !wanted.is_empty() {
            edits.clone_from(wanted);
        }
        Ok(Answered { value, origin })
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
fn respond(response: &Response, grants: &Grants) -> Result<DirectResponse, String> {
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
    Ok(DirectResponse { status, headers, body: Bytes::copy_from_slice(&response.body) })
}

impl Balancer for Asker {
    fn name(&self) -> ByteString {
        self.0.core.name.clone()
    }

    fn pick(&self, asked: &Rc<Asked>, endpoints: &EndpointsView) -> Decision<policy::Choice> {
        let facts = Facts { asked: Some(asked.clone()), endpoints: Some(endpoints.clone()), ..Facts::default() };
        let (answer, origin) = self.ask(Question::Pick, facts, |instance| {
            let Instance { store, functions, .. } = instance;
            let pick = functions.pick.as_ref().ok_or_else(|| absent("pick"))?;
            run(store, |store| pick.call(store, ())).map(|(choice,)| Remembered::Pick(choice))
        })?;
        let Remembered::Pick(choice) = answer else {
            return self.invalid(Question::Pick, "an answer to another question");
        };
        let value = match choice {
            Choice::Pass => policy::Choice::Pass,
            Choice::Endpoint(index) => policy::Choice::Endpoint(index),
            Choice::Hash(key) => policy::Choice::Hash(key),
            Choice::None => policy::Choice::None,
        };
        Ok(Answered { value, origin })
    }

    fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
        self.refused(Question::Pick, reason, blame)
    }
}

impl Forwarding for Asker {
    fn name(&self) -> ByteString {
        self.0.core.name.clone()
    }

    fn identify(&self, asked: &Rc<Asked>, identity: &mut Identity) -> Decision<()> {
        let facts = Facts { asked: Some(asked.clone()), identity: Some(identity.clone()), ..Facts::default() };
        let (answer, origin) = self.ask(Question::Identify, facts, |instance| {
            let Instance { store, functions, .. } = instance;
            let identify = functions.identify.as_ref().ok_or_else(|| absent("identify"))?;
            run(store, |store| identify.call(store, ()))?;
            let state: &mut State = store.data_mut();
            Ok(Remembered::Identify(Arc::new(std::mem::take(&mut state.identity))))
        })?;
        let Remembered::Identify(edited) = answer else {
            return self.invalid(Question::Identify, "an answer to another question");
        };
        edited.apply(identity);
        Ok(Answered { value: (), origin })
    }

    fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
        self.refused(Question::Identify, reason, blame)
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
        let (answer, origin) = self.ask(Question::Decide, facts, |instance| {
            let Instance { store, functions, .. } = instance;
            let decide = functions.decide.as_ref().ok_or_else(|| absent("decide"))?;
            run(store, |store| decide.call(store, ())).map(|(verdict,)| Remembered::Decide(verdict))
        })?;
        let Remembered::Decide(verdict) = answer else {
            return self.invalid(Question::Decide, "an answer to another question");
        };
        let value = match verdict {
            Verdict::Stop => policy::Verdict::Stop,
            Verdict::Again(pause) | Verdict::Elsewhere(pause) if Duration::from_nanos(pause) > MAX_PAUSE => {
                let reason = format!("a pause of {:?} is too long", Duration::from_nanos(pause));
                return self.invalid(Question::Decide, &reason);
            }
            Verdict::Again(pause) => policy::Verdict::Again(Duration::from_nanos(pause)),
            Verdict::Elsewhere(pause) => policy::Verdict::Elsewhere(Duration::from_nanos(pause)),
        };
        Ok(Answered { value, origin })
    }

    fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
        self.refused(Question::Decide, reason, blame)
    }
}
