//! How an answer comes back: the value, where it came from, or why there is none.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

/// Where an answer came from, for metrics, logs and explanations.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    Native,
    /// The component ran.
    Wasm,
    /// Its memo knew the answer, the component did not run.
    Memo,
}

/// An answer and its origin.
#[derive(Clone, Debug)]
pub struct Answered<T> {
    pub value: T,
    pub origin: Origin,
    /// Of a component only; native answers are not timed.
    pub took: Duration,
}

impl<T> Answered<T> {
    pub fn native(value: T) -> Self {
        Self { value, origin: Origin::Native, took: Duration::ZERO }
    }

    /// What is made of the value, of the same origin.
    pub fn map<U>(self, make: impl FnOnce(T) -> U) -> Answered<U> {
        Answered { value: make(self.value), origin: self.origin, took: self.took }
    }

    /// Another value of the same origin.
    pub fn with<U>(self, value: U) -> Answered<U> {
        Answered { value, origin: self.origin, took: self.took }
    }
}

/// What asking a policy gives.
pub type Decision<T> = Result<Answered<T>, PolicyFault>;

/// The same from a policy that waits for others before it answers. Dropped, the question is given up.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = Decision<T>> + 'a>>;

/// Why a policy gave no usable answer. The asker counts it and goes on with the native answer, or refuses where
/// `deny` is set (`on_failure = "deny"`).
#[derive(Clone, Debug)]
pub struct PolicyFault {
    pub kind: PolicyFaultKind,
    pub deny: bool,
    /// For the log, never for the client.
    pub detail: String,
    /// Until it failed; nothing if it answered and the answer could not be used.
    pub took: Duration,
}

impl PolicyFault {
    /// Of an answer that the core could not use, from a policy that leaves refusing requests to others.
    pub fn invalid(reason: &str) -> Self {
        Self { kind: PolicyFaultKind::Invalid, deny: false, detail: reason.to_owned(), took: Duration::ZERO }
    }
}

/// Whose fault an answer is that the core cannot use. Each is counted; blame adds up to a quarantine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Blame {
    /// The policy could have known better.
    Policy,
    /// It could not: things changed after it looked. Or it errs for one kind of request and is right for all others, so
    /// that leaving it alone would do more harm.
    Nobody,
}

impl fmt::Display for PolicyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.detail)
    }
}

impl std::error::Error for PolicyFault {}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PolicyFaultKind {
    Trap,
    /// Ran past its time limit.
    Deadline,
    /// Asked for more memory than its limit, and ended for it.
    Memory,
    /// `configure` refused its settings when an instance was rebuilt.
    Configure,
    /// Failed too often lately: not asked.
    Quarantined,
    /// No instance to be had (pool exhausted).
    Exhausted,
    /// It answered, but not with something the core can use.
    Invalid,
    /// It, or its tenant, has used what it may use for now: shed alone.
    Budget,
}

impl PolicyFaultKind {
    /// Whose fault it is, where an answer was not given.
    pub fn blame(self) -> Blame {
        match self {
            // That no instance was to be had is the pool's doing, and a budget is back with the next second.
            Self::Exhausted | Self::Budget => Blame::Nobody,
            _ => Blame::Policy,
        }
    }

    pub const ALL: [Self; 8] = [
        Self::Trap,
        Self::Deadline,
        Self::Memory,
        Self::Configure,
        Self::Quarantined,
        Self::Exhausted,
        Self::Invalid,
        Self::Budget,
    ];

    /// The metric label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Configure => "configure",
            Self::Quarantined => "quarantined",
            Self::Exhausted => "exhausted",
            Self::Invalid => "invalid",
            Self::Budget => "budget",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_use_up_is_nobodys_fault() {
        let nobodys = PolicyFaultKind::ALL.into_iter().filter(|kind| kind.blame() == Blame::Nobody);
        assert_eq!(nobodys.collect::<Vec<_>>(), [PolicyFaultKind::Exhausted, PolicyFaultKind::Budget]);
    }
}
