//! The endpoint that would answer soonest, of two drawn at random, outliers left out.

use serde::Deserialize;
use serde_json::json;
use tidegate_sdk::{Balancer, Choice, Endpoints, Policy, Request, random};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// An endpoint slower than this many times the median is drawn only if nothing else is there.
    #[serde(default = "outlier")]
    pub outlier: f64,
    /// What an endpoint without a sample is taken to need, in milliseconds.
    #[serde(default = "assume_ms")]
    pub assume_ms: f64,
}

fn outlier() -> f64 {
    4.0
}

fn assume_ms() -> f64 {
    1.0
}

/// The policy.
pub struct LatencyAware(Settings);

impl Policy for LatencyAware {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        if settings.outlier < 1.0 {
            return Err(format!("outlier = {} is below 1: every endpoint would be one", settings.outlier));
        }
        Ok(Self(settings))
    }

    fn settings_schema() -> Option<String> {
        let schema = json!({ "type": "object", "additionalProperties": false, "properties": {
            "outlier": { "type": "number", "minimum": 1 },
            "assume_ms": { "type": "number", "exclusiveMinimum": 0 },
        } });
        Some(schema.to_string())
    }
}

impl Balancer for LatencyAware {
    fn pick(&mut self, _: &Request, endpoints: &Endpoints) -> Choice {
        let available = endpoints.availables();
        match available.as_slice() {
            [] => return Choice::None,
            [only] => return Choice::Endpoint(*only),
            _ => {}
        }
        let latencies = endpoints.latencies();
        let in_flights = endpoints.in_flights();
        let latency = |index: u32| match latencies.get(index as usize).map(std::time::Duration::as_secs_f64) {
            Some(seconds) if seconds > 0.0 => seconds,
            _ => self.0.assume_ms / 1e3,
        };
        // The median over those that can be drawn: one slow endpoint does not move it.
        let mut sorted: Vec<f64> = available.iter().map(|index| latency(*index)).collect();
        sorted.sort_by(f64::total_cmp);
        let bound = sorted[(sorted.len() - 1) / 2] * self.0.outlier;
        let fit: Vec<u32> = available.iter().copied().filter(|index| latency(*index) <= bound).collect();
        // Two different ones, where there are two.
        let drawn = random();
        let (low, high) = ((drawn & 0xffff_ffff) as usize, (drawn >> 32) as usize);
        let place = low % fit.len();
        let step = if fit.len() > 1 { 1 + high % (fit.len() - 1) } else { 0 };
        let (first, second) = (fit[place], fit[(place + step) % fit.len()]);
        let cost = |index: u32| {
            let queue = in_flights.get(index as usize).copied().unwrap_or(0) + 1;
            latency(index) * f64::from(queue) / f64::from(endpoints.weight(index).max(1))
        };
        Choice::Endpoint(if cost(second) < cost(first) { second } else { first })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_sdk::testing::{Endpoint, Question, configure};

    use super::*;

    fn endpoint(ms: u64, in_flight: u32) -> Endpoint {
        Endpoint { latency: Duration::from_millis(ms), in_flight, ..Endpoint::default() }
    }

    fn picks(endpoints: Vec<Endpoint>) -> Vec<usize> {
        let mut policy: LatencyAware = configure(json!({})).expect("good settings");
        let mut counts = vec![0; endpoints.len()];
        let mut question = Question::get("/");
        question.endpoints = endpoints;
        for _ in 0..500 {
            if let Choice::Endpoint(index) = question.pick(&mut policy) {
                counts[index as usize] += 1;
            }
        }
        counts
    }

    #[test]
    fn the_faster_gets_more_and_an_outlier_nothing() {
        let counts = picks(vec![endpoint(10, 0), endpoint(20, 0), endpoint(1000, 0)]);
        assert_eq!(counts, [500, 0, 0], "of two that are drawn the faster is taken");
        let counts = picks(vec![endpoint(10, 0), endpoint(20, 0), endpoint(30, 0), endpoint(1000, 0)]);
        assert!(counts[0] > counts[1] && counts[1] > 0 && counts[2] == 0 && counts[3] == 0, "{counts:?}");
    }

    #[test]
    fn a_queue_outweighs_speed() {
        let counts = picks(vec![endpoint(10, 9), endpoint(20, 0)]);
        assert!(counts[1] > counts[0], "{counts:?}");
    }

    #[test]
    fn only_the_available_are_drawn() {
        let mut gone = endpoint(1, 0);
        gone.available = false;
        assert_eq!(picks(vec![gone.clone(), endpoint(50, 0)]), [0, 500]);
        assert_eq!(picks(vec![gone]), [0]);
    }
}
