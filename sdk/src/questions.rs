//! The traits a policy implements.

use serde::de::DeserializeOwned;

use crate::{Attempt, Choice, Endpoints, Forward, Identity, Request, Route, Verdict};

/// A policy, made once per instance from its settings.
pub trait Policy: Sized + 'static {
    /// The plugin's `settings` table.
    type Settings: DeserializeOwned;

    /// Called before any question. An error keeps the old configuration alive, and is shown to whoever loaded it.
    fn new(settings: Self::Settings) -> Result<Self, String>;

    /// JSON Schema of the settings, which the gateway checks them against first.
    fn settings_schema() -> Option<String> {
        None
    }
}

/// Answers where a request goes: once per exchange, at its head.
pub trait Router: Policy {
    /// Edits made through `forward` count if the answer is `Pass` or `Forward`.
    fn route(&mut self, request: &Request, forward: &mut Forward) -> Route;
}

/// Answers which endpoint takes an attempt.
pub trait Balancer: Policy {
    fn pick(&mut self, request: &Request, endpoints: &Endpoints) -> Choice;
}

/// Decides what the upstream learns of the client: once per exchange, after routing.
pub trait Forwarding: Policy {
    /// Without an edit the configured rule stands.
    fn identify(&mut self, request: &Request, identity: &mut Identity);
}

/// Decides whether to try again after a failed attempt.
pub trait Retry: Policy {
    fn decide(&mut self, request: &Request, attempt: &Attempt, endpoints: &Endpoints) -> Verdict;
}
