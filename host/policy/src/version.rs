//! Two versions of a policy at a time: which of them answers in an exchange, and who is told how that ended.

use std::sync::Arc;
use std::time::Duration;

/// Of the two that a rollout has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// Which answered alone before.
    Current,
    /// Which is to take over.
    Next,
}

impl Version {
    pub const ALL: [Self; 2] = [Self::Current, Self::Next];

    /// The metric label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Next => "next",
        }
    }
}

/// Compares the versions of a policy by what becomes of the exchanges they decided.
pub trait Watch: Send + Sync {
    /// Called once for an exchange in which this version was asked, when it ends. `failed`: it ended with a 5xx, or without
    /// an answer that was not the client's doing. `now`: the worker's time, of one origin for all workers. Must not block.
    fn ended(&self, version: Version, failed: bool, now: Duration);
}

/// Who is to be told of an exchange, and which version it had.
#[derive(Clone)]
pub struct Watched {
    pub watch: Arc<dyn Watch>,
    pub version: Version,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Watched").field(&self.version).finish()
    }
}

/// The version of a policy `P` that an exchange has: it stays the same for all its questions, unless the rollout is ended
/// in between.
pub struct Versioned<'a, P: ?Sized> {
    pub policy: &'a P,
    pub watched: Watched,
    /// Asked where `policy` gives no answer: a new version that fails costs a request nothing but its time.
    pub instead: Option<(&'a P, Watched)>,
}
