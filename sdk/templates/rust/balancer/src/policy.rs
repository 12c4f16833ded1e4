//! Keeps a user at an endpoint; everybody else goes where least is in flight.

use serde::Deserialize;
use tidegate_sdk::{Balancer, Choice, Endpoints, Policy, Request};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The field that names the user.
    #[serde(default = "default_header")]
    header: String,
}

fn default_header() -> String {
    "x-user".to_owned()
}

/// The policy.
pub struct Steady(Settings);

impl Policy for Steady {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        let name_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if settings.header.is_empty() || !settings.header.bytes().all(name_byte) {
            return Err(format!("header: {:?} is not a lower-case field name", settings.header));
        }
        Ok(Self(settings))
    }
}

impl Balancer for Steady {
    fn pick(&mut self, request: &Request, endpoints: &Endpoints) -> Choice {
        if let Some(user) = request.header_bytes(&self.0.header) {
            // FNV-1a; the gateway's consistent hash makes an endpoint of it.
            let hash = user.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
            });
            return Choice::Hash(hash);
        }
        let in_flight = endpoints.in_flights();
        let least = endpoints.availables().into_iter().min_by_key(|index| in_flight.get(*index as usize).copied());
        least.map_or(Choice::Pass, Choice::Endpoint)
    }
}

#[cfg(test)]
mod tests {
    use tidegate_sdk::testing::{Endpoint, Question, configure};

    use super::*;

    #[test]
    fn the_least_loaded_takes_it() {
        let mut policy: Steady = configure(serde_json::json!({})).expect("good settings");
        let busy = Endpoint { in_flight: 3, ..Endpoint::default() };
        let mut question = Question::get("/").endpoint(busy).endpoint(Endpoint::default());
        assert_eq!(question.pick(&mut policy), Choice::Endpoint(1));
        assert_eq!(Question::get("/").pick(&mut policy), Choice::Pass);
        assert!(matches!(Question::get("/").header("x-user", "a").pick(&mut policy), Choice::Hash(_)));
    }
}
