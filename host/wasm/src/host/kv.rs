//! `kv`: bytes that outlive the question. What it gives changes, so no answer from it is remembered.

use wasmtime::StoreContextMut;

use super::{Instance, clock::monotonic};
use crate::kv::{Kv, Refused};
use crate::state::State;
use crate::types::KvError;

type Store<'a> = StoreContextMut<'a, State>;

pub(super) fn link(linker: &mut Instance<'_>) -> wasmtime::Result<()> {
    linker.func_wrap("get", |mut store: Store<'_>, (key,): (String,)| Ok((of(&mut store)?.get(&key, monotonic()),)))?;
    linker.func_wrap("set", |mut store: Store<'_>, (key, value, ttl): (String, Vec<u8>, Option<u64>)| {
        Ok((of(&mut store)?.set(&key, value, ttl, monotonic()).map_err(KvError::from),))
    })?;
    linker.func_wrap("delete", |mut store: Store<'_>, (key,): (String,)| {
        Ok((of(&mut store)?.delete(&key, monotonic()),))
    })?;
    linker.func_wrap("increment", |mut store: Store<'_>, (key, by, ttl): (String, i64, Option<u64>)| {
        Ok((of(&mut store)?.increment(&key, by, ttl, monotonic()).map_err(KvError::from),))
    })?;
    type Swap = (String, Option<Vec<u8>>, Option<Vec<u8>>, Option<u64>);
    linker.func_wrap("compare-and-swap", |mut store: Store<'_>, (key, expected, value, ttl): Swap| {
        let swapped = of(&mut store)?.compare_and_swap(&key, expected.as_deref(), value, ttl, monotonic());
        Ok((swapped.map_err(KvError::from),))
    })
}

fn of<'a>(store: &'a mut Store<'_>) -> wasmtime::Result<&'a Kv> {
    let state = store.data_mut();
    state.trace.taint();
    state.core.kv.as_ref().ok_or_else(|| wasmtime::Error::msg("kv was not granted"))
}

impl From<Refused> for KvError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::TooLarge => Self::TooLarge,
            Refused::NotANumber => Self::NotANumber,
        }
    }
}
