//! The endpoint that would answer soonest, of two drawn at random, outliers left out.

use std::time::Duration;

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

/// Picks between looks at all endpoints: what an outlier is changes slowly.
const PICKS_BETWEEN_LOOKS: u32 = 32;

/// The policy.
pub struct LatencyAware {
    settings: Settings,
    /// Of the generation below, by index.
    weights: Vec<u32>,
    generation: Option<u64>,
    /// Seconds above which an endpoint is an outlier.
    bound: f64,
    picks_left: u32,
}

impl Policy for LatencyAware {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        if settings.outlier < 1.0 {
            return Err(format!("outlier = {} is below 1: every endpoint would be one", settings.outlier));
        }
        Ok(Self { settings, weights: Vec::new(), generation: None, bound: 0.0, picks_left: 0 })
    }

    fn settings_schema() -> Option<String> {
        let schema = json!({ "type": "object", "additionalProperties": false, "properties": {
            "outlier": { "type": "number", "minimum": 1 },
            "assume_ms": { "type": "number", "exclusiveMinimum": 0 },
        } });
        Some(schema.to_string())
    }
}

impl LatencyAware {
    fn seconds(&self, latency: Duration) -> f64 {
        if latency.is_zero() { self.settings.assume_ms / 1e3 } else { latency.as_secs_f64() }
    }

    fn cost(&self, seconds: f64, in_flight: u32, index: u32) -> f64 {
        let weight = self.weights.get(index as usize).copied().unwrap_or(1).max(1);
        seconds * (f64::from(in_flight) + 1.0) / f64::from(weight)
    }

    /// The cheaper of the two, if both can be drawn.
    fn of_two(&self, first: u32, second: u32, endpoints: &Endpoints) -> Option<Choice> {
        let cost = |index: u32| {
            let load = endpoints.load(index);
            let seconds = self.seconds(load.latency);
            (seconds <= self.bound && load.available).then(|| self.cost(seconds, load.in_flight, index))
        };
        let (one, other) = (cost(first)?, cost(second)?);
        Some(Choice::Endpoint(if other < one { second } else { first }))
    }

    /// Looks at all, and draws from those that are fit.
    fn look(&mut self, drawn: u64, generation: u64, endpoints: &Endpoints) -> Choice {
        if self.generation != Some(generation) {
            self.weights = (0..endpoints.size()).map(|index| endpoints.weight(index)).collect();
            self.generation = Some(generation);
        }
        let available = endpoints.availables();
        if available.is_empty() {
            return Choice::None;
        }
        let latencies = endpoints.latencies();
        let latency = |index: u32| self.seconds(latencies.get(index as usize).copied().unwrap_or_default());
        // The median over those that can be drawn: one slow endpoint does not move it.
        let mut sorted: Vec<f64> = available.iter().map(|index| latency(*index)).collect();
        let middle = (sorted.len() - 1) / 2;
        let bound = *sorted.select_nth_unstable_by(middle, f64::total_cmp).1 * self.settings.outlier;
        let fit: Vec<u32> = available.iter().copied().filter(|index| latency(*index) <= bound).collect();
        let (first, second) = two(drawn, fit.len());
        let (first, second) = (fit[first], fit[second]);
        let cost = |index: u32| self.cost(latency(index), endpoints.in_flight(index), index);
        let second_wins = cost(second) < cost(first);
        (self.bound, self.picks_left) = (bound, PICKS_BETWEEN_LOOKS);
        Choice::Endpoint(if second_wins { second } else { first })
    }
}

/// Two places below `length`, which is not zero: different ones where there are two.
fn two(drawn: u64, length: usize) -> (usize, usize) {
    let (low, high) = ((drawn & 0xffff_ffff) as usize, (drawn >> 32) as usize);
    let first = low % length;
    let step = if length > 1 { 1 + high % (length - 1) } else { 0 };
    (first, (first + step) % length)
}

impl Balancer for LatencyAware {
    fn pick(&mut self, _: &Request, endpoints: &Endpoints) -> Choice {
        let (drawn, generation) = (random(), endpoints.generation());
        // Between looks two of all are drawn. Where one of them is not fit, a look draws among those that are: each pair
        // that is fit stays as likely as any other.
        if self.picks_left > 0 && self.generation == Some(generation) && self.weights.len() > 1 {
            self.picks_left -= 1;
            let (first, second) = two(drawn, self.weights.len());
            if let Some(choice) = self.of_two(first as u32, second as u32, endpoints) {
                return choice;
            }
        }
        // What was drawn led to what is not fit: draw anew.
        self.look(random(), generation, endpoints)
    }
}

#[cfg(test)]
mod tests {
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
