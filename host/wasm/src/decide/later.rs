//! Asking a guest that may wait: it has an instance for itself until it answers, and others are asked meanwhile.

use std::rc::Rc;
use std::time::Instant;

use tidegate_policy::{Decision, Egress, Origin, PolicyFaultKind};

use super::{Asker, Asking, exported};
use crate::instances::{Failed, Instance, run_later, with_slot};
use crate::state::Facts;
use crate::trace::Purpose;

/// What a question that may wait finds at its start.
enum Found<T> {
    /// The memo knew.
    Known(T),
    /// Who is to be asked, and whether its answer is to be remembered.
    Leased(Box<Instance>, bool),
}

impl Asker {
    /// The same as `ask`, with an `egress` for callouts. Dropped, the instance is dropped with it: what its guest began has
    /// no end.
    pub(super) async fn ask_later<A: Asking>(
        &self,
        facts: Facts,
        mut asking: A,
        egress: Rc<dyn Egress>,
    ) -> Decision<A::Answer> {
        let core = &self.0.core;
        let question = A::QUESTION as usize;
        let begun = Instant::now();
        if !core.quarantine.open() {
            return Err(self.quarantined(A::QUESTION));
        }
        let granted = |name: &str| core.grants.field(name);
        let found = with_slot(&self.0, |slot| {
            let memo = &mut slot.memos[question];
            if core.memoise
                && let Some(answer) = memo.find(&facts, granted).and_then(|found| asking.recall(found))
            {
                return Ok(Found::Known(answer));
            }
            if let Some(why) = slot.purse.short(begun) {
                return Err(Failed { kind: PolicyFaultKind::Budget, detail: why.to_owned() });
            }
            let learns = core.memoise && memo.in_use();
            let instance = slot.lease(core, begun)?;
            // Most are there already; to make one is the guest's time too.
            slot.purse.charge(begun.elapsed());
            Ok(Found::Leased(Box::new(instance), learns))
        });
        let asked = match found {
            Err(failed) => Err(failed),
            Ok(Found::Known(answer)) => Ok((answer, Origin::Memo)),
            Ok(Found::Leased(mut instance, learns)) => {
                let state = instance.store.data_mut();
                state.facts = facts;
                state.trace.begin(if learns { Purpose::Memo } else { Purpose::None });
                state.begin_to_wait(egress.clone());
                let purse = state.purse.clone();
                let ran = |time, cpu| {
                    purse.charge(cpu);
                    egress.guest_ran(time);
                };
                let answered = match exported::<A>(&instance) {
                    Ok(function) => run_later(&mut instance.store, function, ran).await,
                    Err(absent) => Err(absent),
                };
                let state = instance.store.data_mut();
                state.egress = None;
                let answered = answered.map(|given| asking.answer(given, state));
                with_slot(&self.0, |slot| match &answered {
                    Ok(answer) => {
                        let state = instance.store.data_mut();
                        if learns {
                            slot.memos[question].learn(&state.trace, &state.facts, granted, asking.remember(answer));
                        }
                        state.clear();
                        slot.give_back(*instance);
                    }
                    // The store is dead after a trap, and so is what the instance taught.
                    Err(_) => slot.memos = Default::default(),
                });
                answered.map(|answer| (answer, Origin::Wasm))
            }
        };
        self.decided(A::QUESTION, asked, begun.elapsed())
    }
}
