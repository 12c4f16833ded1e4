//! Ejection: endpoints whose results are bad are left out for a while, longer each time, but never too many at once.
//!
//! Failures in a row eject at once, by the worker that saw the last of them. What needs a comparison with the others (success
//! rate, share of failures) and the way back are the sweep's, on the control thread.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{EndpointHealth, Outcome, stamp};
use crate::{Endpoint, EndpointSet};

/// When endpoints are ejected. A count or share of zero turns its rule off.
#[derive(Clone, Debug, PartialEq)]
pub struct EjectionRules {
    pub consecutive_5xx: u32,
    pub consecutive_gateway: u32,
    pub consecutive_local: u32,
    /// How often results are compared.
    pub interval: Duration,
    /// An ejection lasts this long times the ejections of late, up to `max_time`.
    pub base_time: Duration,
    pub max_time: Duration,
    /// Most endpoints that may be out at once, as a share; one always may.
    pub max_ejected: f64,
    /// Standard deviations below the mean at which a success rate is an outlier.
    pub success_rate_factor: f64,
    /// Of the requests within an interval.
    pub failure_share: f64,
    /// So many endpoints must have had so many requests within an interval before they are compared.
    pub min_endpoints: usize,
    pub min_requests: u32,
}

impl EjectionRules {
    fn time(&self, strikes: u32) -> Duration {
        self.base_time.saturating_mul(strikes.max(1)).min(self.max_time.max(self.base_time))
    }

    fn most(&self, endpoints: usize) -> usize {
        // Shares such as 0.29 have no exact binary form; a hair must not cost an endpoint.
        ((endpoints as f64 * self.max_ejected + 1e-9) as usize).max(1)
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum EjectionReason {
    Consecutive5xx,
    ConsecutiveGateway,
    ConsecutiveLocal,
    SuccessRate,
    FailureShare,
}

impl EjectionReason {
    pub(super) fn of(byte: u8) -> Self {
        match byte {
            1 => Self::ConsecutiveGateway,
            2 => Self::ConsecutiveLocal,
            3 => Self::SuccessRate,
            4 => Self::FailureShare,
            _ => Self::Consecutive5xx,
        }
    }

    /// The name in the log and the status page.
    pub fn name(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive_5xx",
            Self::ConsecutiveGateway => "consecutive_gateway",
            Self::ConsecutiveLocal => "consecutive_local",
            Self::SuccessRate => "success_rate",
            Self::FailureShare => "failure_share",
        }
    }
}

/// An endpoint was ejected, just now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ejected {
    pub reason: EjectionReason,
    pub time: Duration,
}

/// What a sweep did to an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Swept {
    Ejected(Ejected),
    Returned,
}

impl EndpointSet {
    /// Takes note of an attempt's outcome. No lock, and for a success of a sound endpoint one counter; `Some` when this was
    /// the failure too many, for the log.
    pub fn report(&self, index: u32, outcome: Outcome, now: Duration) -> Option<Ejected> {
        let rules = self.health.rules.ejection.as_ref()?;
        let endpoint = self.endpoints.get(index as usize)?;
        let health = &endpoint.state.health;
        let reached = match outcome {
            Outcome::Success => {
                health.good.fetch_add(1, Ordering::Relaxed);
                clear(&health.server_errors);
                clear(&health.gateway_errors);
                clear(&health.local_errors);
                return None;
            }
            Outcome::ServerError => {
                clear(&health.gateway_errors);
                clear(&health.local_errors);
                reaches(&health.server_errors, rules.consecutive_5xx).then_some(EjectionReason::Consecutive5xx)
            }
            Outcome::GatewayError => {
                clear(&health.local_errors);
                let server = reaches(&health.server_errors, rules.consecutive_5xx);
                let gateway = reaches(&health.gateway_errors, rules.consecutive_gateway);
                match (gateway, server) {
                    (true, _) => Some(EjectionReason::ConsecutiveGateway),
                    (_, true) => Some(EjectionReason::Consecutive5xx),
                    _ => None,
                }
            }
            // Says nothing of what an answer would have been: the other rows go on.
            Outcome::LocalError => {
                reaches(&health.local_errors, rules.consecutive_local).then_some(EjectionReason::ConsecutiveLocal)
            }
        };
        health.bad.fetch_add(1, Ordering::Relaxed);
        self.eject(endpoint, reached?, rules, now)
    }

    /// Ejects unless it is out already or too many are. Without a lock: each racer steps out, counts, and steps back when
    /// there are too many, so that the bound holds whatever the order.
    fn eject(
        &self,
        endpoint: &Endpoint,
        reason: EjectionReason,
        rules: &EjectionRules,
        now: Duration,
    ) -> Option<Ejected> {
        let health = &endpoint.state.health;
        let most = rules.most(self.endpoints.len());
        if self.out() >= most {
            return None;
        }
        let strikes = health.strikes.load(Ordering::Relaxed).saturating_add(1);
        let time = rules.time(strikes);
        let until = stamp(now.saturating_add(time));
        health.ejected_until.compare_exchange(0, until, Ordering::SeqCst, Ordering::SeqCst).ok()?;
        if self.out() > most {
            health.ejected_until.store(0, Ordering::SeqCst);
            self.health.shared.changed();
            return None;
        }
        health.ejected_for.store(reason as u8, Ordering::Relaxed);
        health.strikes.store(strikes, Ordering::Relaxed);
        health.ejections.fetch_add(1, Ordering::Relaxed);
        self.health.shared.changed();
        Some(Ejected { reason, time })
    }

    fn out(&self) -> usize {
        let out = |endpoint: &&Endpoint| endpoint.state.health.ejected_until.load(Ordering::SeqCst) != 0;
        self.endpoints.iter().filter(out).count()
    }

    /// Whether a sweep would find nothing, now or later: nothing was reported since the last comparison, nobody is out, and no
    /// old ejection is left to be forgotten. Of a set with rules, until the next report.
    pub fn at_rest(&self) -> bool {
        self.endpoints.iter().map(|endpoint| &endpoint.state.health).all(|health| {
            let counts = [&health.good, &health.bad, &health.strikes];
            health.ejected_until.load(Ordering::SeqCst) == 0
                && counts.into_iter().all(|count| count.load(Ordering::SeqCst) == 0)
        })
    }

    /// Once an interval compares results, and brings back those whose time is over: in this order, so that the interval in which
    /// an endpoint was out is not taken for good conduct. For one thread at a time.
    pub fn sweep(&self, now: Duration) -> Vec<(u32, Swept)> {
        let mut swept = Vec::new();
        let (at, last) = (stamp(now), self.health.shared.swept_at.load(Ordering::Relaxed));
        if let Some(rules) = &self.health.rules.ejection
            && (last == 0 || Duration::from_millis(at.saturating_sub(last)) >= rules.interval)
        {
            self.health.shared.swept_at.store(at, Ordering::Relaxed);
            self.compare(rules, now, &mut swept);
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            if self.bring_back(&endpoint.state.health, now) {
                swept.push((index as u32, Swept::Returned));
            }
        }
        swept
    }

    fn bring_back(&self, health: &EndpointHealth, now: Duration) -> bool {
        let until = health.ejected_until.load(Ordering::SeqCst);
        if until == 0 || stamp(now) < until {
            return false;
        }
        // A fresh start: what it did before it went out is paid for.
        for counter in [&health.server_errors, &health.gateway_errors, &health.local_errors, &health.good, &health.bad]
        {
            counter.store(0, Ordering::Relaxed);
        }
        health.warm_up(now, self.health.rules.slow_start);
        health.ejected_until.store(0, Ordering::SeqCst);
        self.health.shared.changed();
        true
    }

    fn compare(&self, rules: &EjectionRules, now: Duration, swept: &mut Vec<(u32, Swept)>) {
        let mut rates = Vec::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let health = &endpoint.state.health;
            let (good, bad) = (health.good.swap(0, Ordering::Relaxed), health.bad.swap(0, Ordering::Relaxed));
            if health.ejected() {
                continue;
            }
            let strikes = health.strikes.load(Ordering::Relaxed);
            health.strikes.store(strikes.saturating_sub(1), Ordering::Relaxed);
            let requests = good.saturating_add(bad);
            if requests >= rules.min_requests.max(1) {
                rates.push((index as u32, f64::from(good) / f64::from(requests)));
            }
        }
        if rates.len() < rules.min_endpoints {
            return;
        }
        let floor = outlier_floor(&rates, rules.success_rate_factor);
        for (index, rate) in rates {
            let reason = if rules.failure_share > 0.0 && 1.0 - rate >= rules.failure_share {
                EjectionReason::FailureShare
            } else if rate < floor {
                EjectionReason::SuccessRate
            } else {
                continue;
            };
            if let Some(endpoint) = self.endpoints.get(index as usize)
                && let Some(ejected) = self.eject(endpoint, reason, rules, now)
            {
                swept.push((index, Swept::Ejected(ejected)));
            }
        }
    }
}

/// The success rate below which an endpoint is an outlier: `factor` standard deviations below the mean.
fn outlier_floor(rates: &[(u32, f64)], factor: f64) -> f64 {
    if factor <= 0.0 || rates.is_empty() {
        return f64::NEG_INFINITY;
    }
    let count = rates.len() as f64;
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
    let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
    mean - factor * variance.sqrt()
}

/// Leaves a counter's cache line alone where it is zero already: the usual case.
fn clear(counter: &AtomicU32) {
    if counter.load(Ordering::Relaxed) != 0 {
        counter.store(0, Ordering::Relaxed);
    }
}

/// Counts a failure; true, and from zero again, when there are `limit` in a row.
fn reaches(counter: &AtomicU32, limit: u32) -> bool {
    if limit == 0 {
        return false;
    }
    let reached = counter.fetch_add(1, Ordering::Relaxed) + 1 >= limit;
    if reached {
        counter.store(0, Ordering::Relaxed);
    }
    reached
}
