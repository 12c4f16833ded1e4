//! `random`: chance, an instance's own.

use wasmtime::StoreContextMut;

use super::Instance;
use crate::read::Read;
use crate::state::State;

pub(super) fn link(linker: &mut Instance<'_>) -> wasmtime::Result<()> {
    linker.func_wrap("next", |mut store: StoreContextMut<'_, State>, (): ()| {
        let state = store.data_mut();
        state.trace.note(|| Read::Random);
        Ok((state.random.u64(..),))
    })
}
