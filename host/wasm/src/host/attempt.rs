//! `attempt`: the try that failed. Its times and budgets change, so no answer to it is remembered.

use tidegate_policy::{AttemptFacts, Proof as PolicyProof};
use wasmtime::StoreContextMut;

use super::{Instance, nanos};
use crate::read::Read;
use crate::state::State;
use crate::types::{Cause, Proof};

type Store<'a> = StoreContextMut<'a, State>;

pub(super) fn link(linker: &mut Instance<'_>) -> wasmtime::Result<()> {
    linker.func_wrap("number", |mut store: Store<'_>, (): ()| {
        Ok((read(store.data_mut()).map_or(0, |facts| facts.number),))
    })?;
    linker.func_wrap("endpoint", |mut store: Store<'_>, (): ()| {
        Ok((read(store.data_mut()).and_then(|facts| facts.endpoint).unwrap_or(u32::MAX),))
    })?;
    linker.func_wrap("failure", |mut store: Store<'_>, (): ()| {
        Ok((read(store.data_mut()).map_or(Cause::Other(None), Cause::of),))
    })?;
    linker.func_wrap("safety", |mut store: Store<'_>, (): ()| {
        Ok((Proof::from(read(store.data_mut()).map_or(PolicyProof::Unsafe, |facts| facts.proof)),))
    })?;
    linker.func_wrap("response-header", |mut store: Store<'_>, (name,): (String,)| {
        let state = store.data_mut();
        let granted = state.granted(&name);
        if let Some(name) = state.trace.field(&name) {
            state.trace.note(|| Read::ResponseHeader(name));
        }
        let value = facts(state).filter(|_| granted).and_then(|facts| facts.headers.get(&*name));
        Ok((value.map(|value| value.as_bytes().to_vec()),))
    })?;
    linker.func_wrap("elapsed", |mut store: Store<'_>, (): ()| {
        Ok((read(store.data_mut()).map_or(0, |facts| nanos(facts.elapsed)),))
    })?;
    linker.func_wrap("time-left", |mut store: Store<'_>, (): ()| {
        Ok((read(store.data_mut()).map_or(0, |facts| nanos(facts.time_left)),))
    })?;
    linker.func_wrap("retries-left", |mut store: Store<'_>, (): ()| {
        Ok((read(store.data_mut()).map_or(0, |facts| facts.retries_left),))
    })
}

fn read(state: &mut State) -> Option<&AttemptFacts> {
    state.trace.note(|| Read::Attempt);
    facts(state)
}

fn facts(state: &mut State) -> Option<&AttemptFacts> {
    state.trace.taint();
    state.facts.attempt.as_deref()
}
