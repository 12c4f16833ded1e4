//! `log`: a guest's lines in the gateway's log, under the plugin's name, cut and rationed.

use wasmtime::StoreContextMut;

use super::Instance;
use crate::state::State;
use crate::types::Level;

const MAX_LINE: usize = 1024;

pub(super) fn link(linker: &mut Instance<'_>) -> wasmtime::Result<()> {
    linker.func_wrap("write", |mut store: StoreContextMut<'_, State>, (level, message): (Level, String)| {
        let state = store.data_mut();
        state.trace.taint();
        if state.core.stats.may_log() {
            let end = (0..=MAX_LINE.min(message.len())).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
            let (plugin, message) = (&*state.core.name, &message[..end]);
            match level {
                Level::Trace => tracing::trace!(plugin, "{message}"),
                Level::Debug => tracing::debug!(plugin, "{message}"),
                Level::Info => tracing::info!(plugin, "{message}"),
                Level::Warn => tracing::warn!(plugin, "{message}"),
                Level::Error => tracing::error!(plugin, "{message}"),
            }
        }
        Ok(())
    })
}
