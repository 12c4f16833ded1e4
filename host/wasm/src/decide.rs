//! Asking a guest, whatever the question: memo, budget, instance, call, and what is counted of it. The questions themselves are
//! in `questions.rs`.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_policy::{Answered, Blame, Decision, Origin, PolicyFault, PolicyFaultKind};
use wasmtime::component::{ComponentNamedList, Lift, TypedFunc};

use crate::budget::Purse;
use crate::instances::{Failed, Functions, Instance, Slot, run, with_slot};
use crate::memo::Remembered;
use crate::plugin::{Handle, Isolation};
use crate::prefetch::Packet;
use crate::read::Read;
use crate::state::{Facts, State};
use crate::stats::QUESTIONS;
use crate::trace::Purpose;

mod later;
mod questions;

pub(crate) use questions::{AskDecide, AskIdentify, AskPick, AskRoute, AskTunnel};

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
            let purpose = self.purpose(A::QUESTION, learns);
            let instance = self.make_ready(&mut slot.instance, &slot.purse, facts, purpose, begun)?;
            let along = purpose == Purpose::Prefetch;
            let packet = if along { slot.prefetches[question].pack(instance.store.data_mut()) } else { None };
            let answered = asking.call(instance, packet);
            if let Ok(answer) = &answered
                && learns
            {
                let state = instance.store.data();
                slot.memos[question].learn(&state.trace, &state.facts, granted, asking.remember(answer));
            }
            took = Some(self.settle(slot, A::QUESTION, answered.is_ok(), begun));
            answered.map(|answer| (answer, Origin::Wasm))
        });
        self.decided(A::QUESTION, asked, took.unwrap_or_else(|| begun.elapsed()))
    }

    /// What the guest's reads are recorded for.
    fn purpose(&self, question: Question, learns: bool) -> Purpose {
        let core = &self.0.core;
        if core.observed {
            Purpose::Show
        } else if learns {
            Purpose::Memo
        } else if core.prepared.exports.prefetched[question as usize].is_some() {
            Purpose::Prefetch
        } else {
            Purpose::None
        }
    }

    /// The instance in its `place`, or a new one there, with the facts.
    #[inline(never)]
    fn make_ready<'a>(
        &self,
        place: &'a mut Option<Instance>,
        purse: &Rc<Purse>,
        facts: Facts,
        purpose: Purpose,
        begun: Instant,
    ) -> Result<&'a mut Instance, Failed> {
        let core = &self.0.core;
        if let Some(why) = purse.short(begun) {
            return Err(Failed { kind: PolicyFaultKind::Budget, detail: why.to_owned() });
        }
        // One that a panic left behind has seen another question.
        if core.isolation == Isolation::Request {
            *place = None;
        }
        let instance = match place {
            Some(instance) => {
                instance.begin_at(begun);
                instance
            }
            none => {
                // What fails here was the guest's time too.
                let new = Instance::new(core, purse).inspect_err(|_| purse.charge(begun.elapsed()))?;
                none.insert(new)
            }
        };
        let state = instance.store.data_mut();
        state.facts = facts;
        state.trace.begin(purpose);
        Ok(instance)
    }

    /// After the call: what it taught, what it cost, and whether its instance is asked again.
    ///
    /// # Returns
    /// How long the question took.
    #[inline(never)]
    fn settle(&self, slot: &mut Slot, question: Question, answered: bool, begun: Instant) -> Duration {
        let mut cpu = None;
        if let Some(instance) = &mut slot.instance {
            let state = instance.store.data_mut();
            cpu = state.deadline.cpu();
            match state.trace.purpose() {
                Purpose::Prefetch => slot.prefetches[question as usize].learn(state.trace.reads()),
                Purpose::Show => std::mem::swap(&mut slot.reads, state.trace.reads()),
                Purpose::Memo | Purpose::None => {}
            }
            state.clear();
            if !answered {
                // The store is dead after a trap: drop it, and what it taught.
                slot.forget();
            } else if self.0.core.isolation == Isolation::Request || instance.nearly_full() {
                slot.instance = None;
            }
        }
        // To drop it was the guest's time too.
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
