//! `clock`: what time it is.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use wasmtime::StoreContextMut;

use super::Instance;
use crate::state::State;

/// Monotonic time, in nanoseconds.
pub(crate) fn monotonic() -> u64 {
    static ZERO: LazyLock<Instant> = LazyLock::new(Instant::now);
    nanos(ZERO.elapsed())
}

/// Time as guests have it.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn link(linker: &mut Instance<'_>) -> wasmtime::Result<()> {
    linker.func_wrap("monotonic", |mut store: StoreContextMut<'_, State>, (): ()| {
        let state = store.data_mut();
        state.trace.taint();
        let simulated = state.core.runtime.simulation.as_ref().map(|simulation| simulation.monotonic());
        Ok((simulated.unwrap_or_else(monotonic),))
    })?;
    linker.func_wrap("wall", |mut store: StoreContextMut<'_, State>, (): ()| {
        let state = store.data_mut();
        state.trace.taint();
        let simulated = state.core.runtime.simulation.as_ref().map(|simulation| simulation.wall());
        let now = || nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        Ok((simulated.unwrap_or_else(now),))
    })
}
