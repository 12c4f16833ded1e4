//! Goes elsewhere where the origin was not reached, and waits for one that is overloaded.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tidegate_sdk::{Attempt, Cause, Endpoints, Policy, Request, Retry, Verdict};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Most attempts that are followed by another.
    #[serde(default = "default_attempts")]
    attempts: u32,
    /// Milliseconds that an overloaded origin is given.
    #[serde(default = "default_pause")]
    pause_ms: u32,
}

fn default_attempts() -> u32 {
    2
}

fn default_pause() -> u32 {
    50
}

/// The policy.
pub struct Unreached(Settings);

impl Policy for Unreached {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        if settings.attempts == 0 || settings.attempts > 10 {
            return Err("attempts: not from 1 to 10".to_owned());
        }
        if settings.pause_ms > 10_000 {
            return Err("pause_ms: not from 0 to 10000".to_owned());
        }
        Ok(Self(settings))
    }

    fn settings_schema() -> Option<String> {
        let number = json!({ "type": "integer", "minimum": 0 });
        let properties = json!({ "attempts": number, "pause_ms": number });
        Some(json!({ "type": "object", "additionalProperties": false, "properties": properties }).to_string())
    }
}

impl Retry for Unreached {
    fn decide(&mut self, _: &Request, attempt: &Attempt, _: &Endpoints) -> Verdict {
        if attempt.number() > self.0.attempts {
            return Verdict::Stop;
        }
        match attempt.failure() {
            Cause::Connect | Cause::Tls | Cause::RefusedStream | Cause::GoAway => Verdict::Elsewhere(Duration::ZERO),
            Cause::Status(503) => Verdict::Again(Duration::from_millis(self.0.pause_ms.into())),
            _ => Verdict::Stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_sdk::Proof;
    use tidegate_sdk::testing::{Question, configure};

    use super::*;

    #[test]
    fn it_goes_elsewhere_where_nothing_was_reached() {
        let mut policy: Unreached = configure(json!({})).expect("good settings");
        let mut ask = |failure| Question::get("/").failed(failure, Proof::Unprocessed).decide(&mut policy);
        assert_eq!(ask(Cause::Connect), Verdict::Elsewhere(Duration::ZERO));
        assert_eq!(ask(Cause::Status(503)), Verdict::Again(Duration::from_millis(50)));
        assert_eq!(ask(Cause::Reset), Verdict::Stop);
    }
}
