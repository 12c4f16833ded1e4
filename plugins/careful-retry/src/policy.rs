//! Try again where it can help and cannot hurt.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tidegate_sdk::{Attempt, Cause, Endpoints, Policy, Proof, Request, Retry, Verdict, random};

/// What to retry for one group of methods.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Empty: every method.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Response statuses to retry.
    #[serde(default = "statuses")]
    pub statuses: Vec<u16>,
    /// gRPC statuses to retry, in a trailers-only response.
    #[serde(default = "grpc_statuses")]
    pub grpc_statuses: Vec<u32>,
    /// Whether connections that failed or broke are retried.
    #[serde(default = "yes")]
    pub connection_failures: bool,
    /// Most tries for these methods.
    #[serde(default = "attempts")]
    pub attempts: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The first rule that names the method counts.
    #[serde(default = "rules")]
    pub rules: Vec<Rule>,
    #[serde(default = "backoff_ms")]
    pub backoff_ms: u64,
    #[serde(default = "max_backoff_ms")]
    pub max_backoff_ms: u64,
    /// A `Retry-After` longer than this is for the client to wait.
    #[serde(default = "max_retry_after_ms")]
    pub max_retry_after_ms: u64,
}

fn statuses() -> Vec<u16> {
    vec![502, 503, 504]
}

/// UNAVAILABLE; RESOURCE_EXHAUSTED has its own pushback and stays out.
fn grpc_statuses() -> Vec<u32> {
    vec![14]
}

fn yes() -> bool {
    true
}

fn attempts() -> u32 {
    3
}

fn rules() -> Vec<Rule> {
    vec![Rule {
        methods: Vec::new(),
        statuses: statuses(),
        grpc_statuses: grpc_statuses(),
        connection_failures: true,
        attempts: attempts(),
    }]
}

fn backoff_ms() -> u64 {
    25
}

fn max_backoff_ms() -> u64 {
    250
}

fn max_retry_after_ms() -> u64 {
    2000
}

/// The policy.
pub struct CarefulRetry(Settings);

impl Policy for CarefulRetry {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        if settings.max_backoff_ms > 60_000 || settings.max_retry_after_ms > 60_000 {
            return Err("pauses of more than a minute are not retries".to_owned());
        }
        Ok(Self(settings))
    }

    fn settings_schema() -> Option<String> {
        let rule = json!({ "type": "object", "additionalProperties": false, "properties": {
            "methods": { "type": "array", "items": { "type": "string" } },
            "statuses": { "type": "array", "items": { "type": "integer", "minimum": 400, "maximum": 599 } },
            "grpc_statuses": { "type": "array", "items": { "type": "integer", "minimum": 1, "maximum": 16 } },
            "connection_failures": { "type": "boolean" },
            "attempts": { "type": "integer", "minimum": 1, "maximum": 10 },
        } });
        let schema = json!({ "type": "object", "additionalProperties": false, "properties": {
            "rules": { "type": "array", "items": rule },
            "backoff_ms": { "type": "integer", "minimum": 0 },
            "max_backoff_ms": { "type": "integer", "minimum": 0, "maximum": 60000 },
            "max_retry_after_ms": { "type": "integer", "minimum": 0, "maximum": 60000 },
        } });
        Some(schema.to_string())
    }
}

impl Retry for CarefulRetry {
    fn decide(&mut self, request: &Request, attempt: &Attempt, endpoints: &Endpoints) -> Verdict {
        if attempt.safety() == Proof::Unsafe {
            return Verdict::Stop;
        }
        let method = request.method();
        let rule = self.0.rules.iter().find(|rule| rule.methods.is_empty() || rule.methods.contains(&method));
        let Some(rule) = rule.filter(|rule| attempt.number() < rule.attempts) else { return Verdict::Stop };
        let wanted = match attempt.failure() {
            Cause::Status(status) => {
                rule.statuses.contains(&status) || grpc_status(attempt).is_some_and(|s| rule.grpc_statuses.contains(&s))
            }
            Cause::Connect | Cause::Reset | Cause::RefusedStream | Cause::GoAway | Cause::Timeout => {
                rule.connection_failures
            }
            Cause::Tls | Cause::Other(_) => false,
        };
        if !wanted {
            return Verdict::Stop;
        }
        let mut pause = self.backoff(attempt.number());
        if let Some(after) = retry_after(attempt) {
            if after > Duration::from_millis(self.0.max_retry_after_ms) {
                return Verdict::Stop;
            }
            pause = pause.max(after);
        }
        if pause >= attempt.time_left() {
            return Verdict::Stop;
        }
        if endpoints.size() > 1 { Verdict::Elsewhere(pause) } else { Verdict::Again(pause) }
    }
}

impl CarefulRetry {
    /// Doubling, and anything below that at random.
    fn backoff(&self, number: u32) -> Duration {
        let doubled =
            self.0.backoff_ms.saturating_mul(1 << number.saturating_sub(1).min(20)).min(self.0.max_backoff_ms);
        Duration::from_micros(random() % (doubled * 1000 + 1))
    }
}

/// Of a trailers-only response, which has it among its header fields.
fn grpc_status(attempt: &Attempt) -> Option<u32> {
    attempt.response_header("grpc-status")?.parse().ok()
}

/// Seconds only: a date needs a clock that both ends share.
fn retry_after(attempt: &Attempt) -> Option<Duration> {
    attempt.response_header("retry-after")?.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use tidegate_sdk::testing::{Endpoint, Question, configure};

    use super::*;

    fn policy() -> CarefulRetry {
        configure(json!({ "rules": [
            { "methods": ["GET", "HEAD"] },
            { "methods": ["POST"], "statuses": [503], "attempts": 2 },
        ] }))
        .expect("good settings")
    }

    fn failed(method: &str, cause: Cause, proof: Proof) -> Question {
        Question::new(method, "/").failed(cause, proof).endpoint(Endpoint::default()).endpoint(Endpoint::default())
    }

    #[test]
    fn methods_have_their_own_rules() {
        let mut policy = policy();
        let mut goes = |mut question: Question| question.decide(&mut policy) != Verdict::Stop;
        assert!(goes(failed("GET", Cause::Status(502), Proof::Idempotent)));
        assert!(!goes(failed("GET", Cause::Status(500), Proof::Idempotent)));
        assert!(goes(failed("POST", Cause::Status(503), Proof::Unprocessed)));
        assert!(!goes(failed("POST", Cause::Status(502), Proof::Unprocessed)));
        assert!(!goes(failed("DELETE", Cause::Connect, Proof::Unprocessed)), "no rule names it");
        assert!(!goes(failed("GET", Cause::Tls, Proof::Unprocessed)));
        let mut second = failed("POST", Cause::Connect, Proof::Unprocessed);
        second.number = 2;
        assert!(!goes(second));
    }

    #[test]
    fn what_could_act_twice_is_never_tried_again() {
        for cause in [Cause::Connect, Cause::Reset, Cause::Status(503)] {
            assert_eq!(failed("POST", cause, Proof::Unsafe).decide(&mut policy()), Verdict::Stop);
        }
    }

    #[test]
    fn retry_after_is_honoured_or_left_to_the_client() {
        let ask = |seconds: &str| {
            failed("GET", Cause::Status(503), Proof::Idempotent)
                .response_header("retry-after", seconds)
                .decide(&mut policy())
        };
        assert_eq!(ask("1"), Verdict::Elsewhere(Duration::from_secs(1)));
        assert_eq!(ask("30"), Verdict::Stop);
        let mut late = failed("GET", Cause::Status(503), Proof::Idempotent).response_header("retry-after", "1");
        late.time_left = Duration::from_millis(500);
        assert_eq!(late.decide(&mut policy()), Verdict::Stop);
    }

    #[test]
    fn grpc_failures_hide_in_a_good_status() {
        let ask = |status: &str| {
            failed("GET", Cause::Status(200), Proof::Idempotent)
                .response_header("grpc-status", status)
                .decide(&mut policy())
        };
        assert!(matches!(ask("14"), Verdict::Elsewhere(_)));
        assert_eq!(ask("3"), Verdict::Stop);
    }
}
