//! `log`: a guest's lines in the gateway's log, under the plugin's name, cut and rationed.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::time::Instant;

use wasmtime::StoreContextMut;

use super::Instance;
use crate::state::State;
use crate::types::Level;

const MAX_LINE: usize = 1024;

pub(super) fn link(linker: &mut Instance<'_>) -> wasmtime::Result<()> {
    linker.func_wrap("write", |mut store: StoreContextMut<'_, State>, (level, message): (Level, String)| {
        let state = store.data_mut();
        state.trace.taint();
        if !state.purse.may_log(Instant::now()) {
            state.core.stats.log_dropped.fetch_add(1, Ordering::Relaxed);
        } else {
            let line = &message[..message.floor_char_boundary(MAX_LINE)];
            let (plugin, message) = (&*state.core.name, &*one_line(line));
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

/// A guest writes one line: with line ends or escape sequences it could forge those of others.
pub fn one_line(message: &str) -> Cow<'_, str> {
    // The separators of Unicode end a line in some viewers.
    let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    if !message.contains(breaks) {
        return message.into();
    }
    let mut line = String::with_capacity(message.len() + 16);
    for c in message.chars() {
        if breaks(c) { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line.into()
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn a_message_stays_within_its_line() {
        assert_eq!(one_line("caf\u{e9} \"x\""), "caf\u{e9} \"x\"");
        assert_eq!(one_line("a\r\nWARN forged\u{1b}[0m\u{85}\u{2028}"), "a\\r\\nWARN forged\\u{1b}[0m\\u{85}\\u{2028}");
    }
}
