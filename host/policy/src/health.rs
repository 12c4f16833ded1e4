//! Who may take requests: what checks and results say of an endpoint, as atomics that all workers share.
//!
//! Two judges, independent of one another: active checks, which give a [`Standing`] after so many results in a row
//! ([`Streak`]), and the [`Outcome`]s of real attempts, which eject for a while (`ejection`). Nothing here waits or reads
//! a clock: who checks and who sweeps is `tidegate-proxy`'s control thread; times are since any fixed zero.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::EndpointSet;

mod ejection;
mod outcome;
mod streak;
#[cfg(test)]
mod tests;

pub use ejection::{Ejected, EjectionReason, EjectionRules, Swept};
pub use outcome::Outcome;
pub use streak::{Streak, Thresholds};

/// What active checks say of an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Standing {
    /// Nobody asks, or it is believed until enough checks have failed.
    Unchecked,
    /// Not believed before its first check.
    Awaited,
    Passing,
    Failing,
}

impl Standing {
    fn of(byte: u8) -> Self {
        match byte {
            1 => Self::Awaited,
            2 => Self::Passing,
            3 => Self::Failing,
            _ => Self::Unchecked,
        }
    }

    fn believed(self) -> bool {
        matches!(self, Self::Unchecked | Self::Passing)
    }
}

/// Why an endpoint takes no requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ailment {
    /// Its first check is not done.
    Awaited,
    /// Its checks fail.
    Checks,
    Ejected(EjectionReason),
}

impl Ailment {
    /// The name in the status page and metric labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Awaited => "awaited",
            Self::Checks => "checks",
            Self::Ejected(_) => "ejected",
        }
    }
}

/// What became of an active check.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CheckOutcome {
    Passed,
    Failed,
    TimedOut,
}

impl CheckOutcome {
    pub const ALL: [Self; 3] = [Self::Passed, Self::Failed, Self::TimedOut];

    /// The name in metric labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::TimedOut => "timeout",
        }
    }
}

/// The least share of its weight that a warming endpoint gets.
const COLDEST: f64 = 0.1;

/// The health of one endpoint. Carried over with its state on reload.
#[derive(Debug, Default)]
pub struct EndpointHealth {
    standing: AtomicU8,
    /// 0 while it is in; else until when it is out, as a [`stamp`].
    ejected_until: AtomicU64,
    ejected_for: AtomicU8,
    /// Ejections of late: the next lasts as many times the base. Falls by one with every interval that it stays in.
    strikes: AtomicU32,
    /// Since when and until when it warms up, as stamps.
    warm_from: AtomicU64,
    warm_until: AtomicU64,
    // Failures in a row, by kind.
    server_errors: AtomicU32,
    gateway_errors: AtomicU32,
    local_errors: AtomicU32,
    // Results within the interval.
    good: AtomicU32,
    bad: AtomicU32,
    ejections: AtomicU64,
    checks: [AtomicU64; CheckOutcome::ALL.len()],
}

/// Milliseconds since the zero, from 1, so that 0 can mean never.
fn stamp(now: Duration) -> u64 {
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX - 1).saturating_add(1)
}

impl EndpointHealth {
    /// Of an endpoint that takes nothing before its first check.
    pub fn awaited() -> Self {
        Self { standing: AtomicU8::new(Standing::Awaited as u8), ..Self::default() }
    }

    pub fn healthy(&self) -> bool {
        self.standing().believed() && !self.ejected()
    }

    pub fn standing(&self) -> Standing {
        Standing::of(self.standing.load(Ordering::Relaxed))
    }

    pub fn ejected(&self) -> bool {
        self.ejected_until.load(Ordering::Relaxed) != 0
    }

    /// `None` for a healthy one.
    pub fn ailment(&self) -> Option<Ailment> {
        match self.standing() {
            Standing::Failing => Some(Ailment::Checks),
            Standing::Awaited => Some(Ailment::Awaited),
            _ if self.ejected() => Some(Ailment::Ejected(EjectionReason::of(self.ejected_for.load(Ordering::Relaxed)))),
            _ => None,
        }
    }

    pub fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }

    pub fn checks(&self, outcome: CheckOutcome) -> u64 {
        self.checks[outcome as usize].load(Ordering::Relaxed)
    }

    pub fn count_check(&self, outcome: CheckOutcome) {
        self.checks[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stand(&self, standing: Standing) -> Standing {
        Standing::of(self.standing.swap(standing as u8, Ordering::Relaxed))
    }

    /// From now on its share of the requests grows to the whole within `window`.
    pub fn warm_up(&self, now: Duration, window: Duration) {
        if !window.is_zero() {
            self.warm_from.store(stamp(now), Ordering::Relaxed);
            self.warm_until.store(stamp(now.saturating_add(window)), Ordering::Relaxed);
        }
    }

    /// The share of its weight that it is to have: 1 but for a while after it came back or joined, when it grows evenly
    /// from a tenth.
    pub fn warmth(&self, now: Duration) -> f64 {
        let until = self.warm_until.load(Ordering::Relaxed);
        if until == 0 {
            return 1.0;
        }
        let (now, from) = (stamp(now), self.warm_from.load(Ordering::Relaxed));
        if now >= until {
            return 1.0;
        }
        let window = until.saturating_sub(from).max(1) as f64;
        (now.saturating_sub(from) as f64 / window).clamp(COLDEST, 1.0)
    }
}

/// How the endpoints of a set are judged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HealthRules {
    /// When a smaller share of the endpoints is healthy, health is not looked at; 0 for never.
    pub panic_threshold: f64,
    /// How long an endpoint that joins or comes back warms up; zero for not at all.
    pub slow_start: Duration,
    pub ejection: Option<EjectionRules>,
}

/// What the successive sets of a cluster share.
#[derive(Debug, Default)]
pub struct SharedHealth {
    /// Grows with every change of an endpoint's health.
    epoch: AtomicU64,
    panicked: AtomicU64,
    swept_at: AtomicU64,
}

impl SharedHealth {
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Attempts that were made while health was not looked at.
    pub fn panicked(&self) -> u64 {
        self.panicked.load(Ordering::Relaxed)
    }

    /// After the change itself, so that whoever sees the new epoch sees it too.
    fn changed(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// What a check found, or that nobody checks any more. The standing before; a change is for the caller to tell of.
    pub fn judge(&self, endpoint: &EndpointHealth, to: Standing, now: Duration, slow_start: Duration) -> Standing {
        let before = endpoint.stand(to);
        if before != to {
            if to == Standing::Passing && !before.believed() && !endpoint.ejected() {
                endpoint.warm_up(now, slow_start);
            }
            self.changed();
        }
        before
    }

    /// Takes an endpoint back that was ejected under rules which are gone.
    pub fn pardon(&self, endpoint: &EndpointHealth) {
        endpoint.strikes.store(0, Ordering::Relaxed);
        if endpoint.ejected_until.swap(0, Ordering::SeqCst) != 0 {
            self.changed();
        }
    }
}

/// A set's rules, what it shares with its successors, and whether it is in panic.
#[derive(Debug, Default)]
pub struct SetHealth {
    pub rules: HealthRules,
    pub shared: Arc<SharedHealth>,
    /// The epoch for which panic was worked out, plus one, and in the lowest bit the result: endpoints are counted once
    /// after a change, not for every pick.
    counted: AtomicU64,
}

impl SetHealth {
    pub fn new(rules: HealthRules, shared: Arc<SharedHealth>) -> Self {
        Self { rules, shared, counted: AtomicU64::new(0) }
    }
}

impl EndpointSet {
    /// Whether so few endpoints are healthy that using all is better than crowding these.
    pub fn panicking(&self) -> bool {
        let health = &self.health;
        if health.rules.panic_threshold <= 0.0 {
            return false;
        }
        let epoch = health.shared.epoch().wrapping_add(1) << 1;
        let counted = health.counted.load(Ordering::Relaxed);
        if counted & !1 == epoch {
            return counted & 1 == 1;
        }
        let panic = self.too_few_are_healthy();
        health.counted.store(epoch | u64::from(panic), Ordering::Relaxed);
        panic
    }

    /// Endpoints that await their first check count neither way, unless there are no others.
    fn too_few_are_healthy(&self) -> bool {
        let (mut judged, mut healthy, mut all) = (0_u32, 0_u32, 0_u32);
        for endpoint in self.endpoints.iter().filter(|endpoint| endpoint.weight > 0) {
            all += 1;
            let health = &endpoint.state.health;
            judged += u32::from(health.standing() != Standing::Awaited);
            healthy += u32::from(health.healthy());
        }
        match (all, judged) {
            (0, _) => false,
            (_, 0) => true,
            _ => f64::from(healthy) < f64::from(judged) * self.health.rules.panic_threshold,
        }
    }

    /// Notes an attempt that does not look at health.
    pub(crate) fn count_panic(&self) {
        self.health.shared.panicked.fetch_add(1, Ordering::Relaxed);
    }

    /// Grows with every change of membership and of health.
    pub fn current_generation(&self) -> u64 {
        self.generation.wrapping_add(self.health.shared.epoch())
    }
}
