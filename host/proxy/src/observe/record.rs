//! What the records of exchanges and of tunnels share.

use std::sync::Arc;
use std::time::Duration;

use super::DecisionRecord;

/// Where decisions are written down.
pub(crate) trait Deciding {
    fn decided(&mut self, decision: DecisionRecord);

    /// A plugin took so much of the worker's time.
    fn guest_took(&self, time: Duration);
}

/// Tells whoever compares versions of plugins. Each is told once: where one version stepped in for the other, the exchange
/// is that of the first.
pub(super) fn tell_watches(decisions: &[DecisionRecord], failed: bool, now: Duration) {
    for (index, decision) in decisions.iter().enumerate() {
        let Some(watched) = &decision.watched else { continue };
        let earlier = decisions[..index].iter().filter_map(|decision| decision.watched.as_ref());
        if !earlier.into_iter().any(|known| Arc::ptr_eq(&known.watch, &watched.watch)) {
            watched.watch.ended(watched.version, failed, now);
        }
    }
}
