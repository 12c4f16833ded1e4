//! `clock`: what time it is.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use wasmtime::StoreContextMut;

use super::Instance;
use crate::state::State;

/// Monotonic time counts from here.
static ZERO: LazyLock<Instant> = LazyLock::new(Instant::now);

pub(super) fn link(linker: &mut Instance<'_>) -> wasmtime::Result<()> {
    linker.func_wrap("monotonic", |mut store: StoreContextMut<'_, State>, (): ()| {
        let state = store.data_mut();
        state.trace.taint();
        let simulated = state.core.runtime.simulation.as_ref().map(|simulation| simulation.monotonic());
        Ok((simulated.unwrap_or_else(|| ZERO.elapsed().as_nanos() as u64),))
    })?;
    linker.func_wrap("wall", |mut store: StoreContextMut<'_, State>, (): ()| {
        let state = store.data_mut();
        state.trace.taint();
        let simulated = state.core.runtime.simulation.as_ref().map(|simulation| simulation.wall());
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        Ok((simulated.unwrap_or_else(now),))
    })
}
