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
        store.data_mut().trace.taint();
        Ok((ZERO.elapsed().as_nanos() as u64,))
    })?;
    linker.func_wrap("wall", |mut store: StoreContextMut<'_, State>, (): ()| {
        store.data_mut().trace.taint();
        Ok((SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64,))
    })
}
