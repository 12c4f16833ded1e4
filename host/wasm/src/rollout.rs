//! A rollout: part of the exchanges have the next version of a plugin, which goes back by itself when it does worse.
//!
//! It stands before the two as one policy. The core asks which version an exchange has ([`tidegate_policy::Router::version`]
//! and its like), asks that, and tells when the exchange has ended. No lock and no allocation on that way: a hash, a
//! comparison and a few counters.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytestring::ByteString;
use serde_json::json;
use tidegate_policy::{Asked, Blame, Decision, Origin, PolicyFaultKind, Version, Watch};

use crate::plugin::Plugin;

mod guard;
mod share;
mod sides;

pub use guard::{Guard, Reason};
pub use share::StickyBy;
pub(crate) use share::{end, place};
pub(crate) use sides::Split;

use guard::Counts;

/// How a next version is to take over.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutSpec {
    /// Of the exchanges, from 0 to 1.
    pub share: f64,
    pub sticky_by: StickyBy,
    pub guard: Guard,
}

/// Counts that outlive a change of the share.
#[derive(Debug, Default)]
struct Totals {
    decisions: [AtomicU64; 2],
    rollbacks: [AtomicU64; Reason::ALL.len()],
}

/// A rollout in force, or one that was ended.
#[derive(Debug)]
pub struct Rollout {
    plugin: ByteString,
    /// The component, settings and limits of the next version.
    next: [u8; 32],
    spec: RolloutSpec,
    /// Places below have the next version; 0 once it was rolled back.
    end: AtomicU64,
    ended: OnceLock<Ended>,
    /// Which window `counts` are of.
    window: AtomicU64,
    counts: [Counts; 2],
    totals: Arc<Totals>,
}

#[derive(Debug)]
struct Ended {
    reason: Reason,
    detail: String,
    at: SystemTime,
}

/// Latency is looked at once in so many exchanges of the next version: that is a walk over all its counts.
const LOOK_EVERY: u64 = 16;

impl Rollout {
    /// Where `previous` is the same in every respect it goes on, with what it counted: one that was rolled back stays so.
    pub fn new(plugin: ByteString, next: &Plugin, spec: RolloutSpec, previous: Option<&Arc<Self>>) -> Arc<Self> {
        if let Some(same) = previous.filter(|known| known.next == next.identity && known.spec == spec) {
            return same.clone();
        }
        Arc::new(Self {
            plugin,
            next: next.identity,
            end: AtomicU64::new(end(spec.share)),
            spec,
            ended: OnceLock::new(),
            window: AtomicU64::new(0),
            counts: Default::default(),
            totals: previous.map(|known| known.totals.clone()).unwrap_or_default(),
        })
    }

    pub fn plugin(&self) -> &str {
        &self.plugin
    }

    /// Of the exchanges, now: 0 once it was rolled back.
    pub fn share(&self) -> f64 {
        if self.ended.get().is_some() { 0.0 } else { self.spec.share }
    }

    pub fn decisions(&self, version: Version) -> u64 {
        self.totals.decisions[version as usize].load(Ordering::Relaxed)
    }

    pub fn rollbacks(&self, reason: Reason) -> u64 {
        self.totals.rollbacks[reason as usize].load(Ordering::Relaxed)
    }

    /// For the status page.
    pub fn status(&self) -> serde_json::Value {
        let ended = self.ended.get().map(|ended| {
            let at = ended.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            json!({ "reason": ended.reason.name(), "detail": ended.detail, "at": at.as_secs() })
        });
        let version = |version: Version| {
            let counts = self.counts(version);
            let (tally, pace) = (counts.tally(), counts.pace());
            json!({
                "decisions": self.decisions(version),
                "window": {
                    "exchanges": tally.exchanges, "failed": tally.failed, "faults": tally.faults,
                    "third_quartile_us": pace.third_quartile.as_secs_f64() * 1e6,
                },
            })
        };
        json!({
            "plugin": *self.plugin,
            "share": self.share(),
            "configured_share": self.spec.share,
            "state": if ended.is_some() { "rolled back" } else { "running" },
            "rolled_back": ended,
            "current": version(Version::Current),
            "next": version(Version::Next),
        })
    }

    /// The version that an exchange has.
    fn choose(&self, asked: &Asked) -> Version {
        let end = self.end.load(Ordering::Relaxed);
        let within = end != 0 && u64::from(place(&self.plugin, &self.spec.sticky_by, asked)) < end;
        if within { Version::Next } else { Version::Current }
    }

    fn counts(&self, version: Version) -> &Counts {
        &self.counts[version as usize]
    }

    fn decided<T>(&self, version: Version, decision: &Decision<T>) {
        self.totals.decisions[version as usize].fetch_add(1, Ordering::Relaxed);
        match decision {
            // What was remembered says nothing of how long the guest takes.
            Ok(answered) if answered.origin == Origin::Wasm => self.counts(version).answered(answered.took),
            Ok(_) => {}
            // A quarantine is of those faults that were counted.
            Err(fault) if fault.kind == PolicyFaultKind::Quarantined || fault.kind.blame() == Blame::Nobody => {}
            Err(_) => self.fault(version),
        }
    }

    fn fault(&self, version: Version) {
        self.counts(version).fault();
        if version == Version::Next
            && let Some((reason, detail)) = self.spec.guard.on_faults(&self.counts(version).tally())
        {
            self.roll_back(reason, detail);
        }
    }

    /// The core could not use an answer. What the version could not have known counts as an exchange that failed: rare ones
    /// are nobody's fault, and a version whose every answer is refused is found out.
    fn refused(&self, version: Version, blame: Blame) {
        match blame {
            Blame::Policy => self.fault(version),
            Blame::Nobody => self.counts(version).unusable(),
        }
    }

    fn roll_back(&self, reason: Reason, detail: String) {
        let ended = Ended { reason, detail, at: SystemTime::now() };
        if self.ended.set(ended).is_err() {
            return;
        }
        self.end.store(0, Ordering::Relaxed);
        self.totals.rollbacks[reason as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(ended) = self.ended.get() {
            let (plugin, share) = (&*self.plugin, self.spec.share);
            tracing::warn!(
                plugin,
                reason = reason.name(),
                detail = ended.detail,
                share,
                "rollout rolled back: the current version answers alone"
            );
        }
    }
}

impl Watch for Rollout {
    fn ended(&self, version: Version, failed: bool, now: Duration) {
        let window = (now.as_nanos() / self.spec.guard.window.as_nanos().max(1)) as u64;
        let begun = self.window.load(Ordering::Relaxed);
        if window > begun && self.window.compare_exchange(begun, window, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.counts.iter().for_each(Counts::empty);
        }
        let exchanges = self.counts(version).ended(failed);
        if version == Version::Current || self.ended.get().is_some() {
            return;
        }
        let (current, next) = (self.counts(Version::Current), self.counts(Version::Next));
        let guard = &self.spec.guard;
        let wrong = guard.on_errors(&current.tally(), &next.tally()).or_else(|| {
            let look = exchanges.is_multiple_of(LOOK_EVERY);
            look.then(|| guard.on_latency(&current.pace(), &next.pace())).flatten()
        });
        if let Some((reason, detail)) = wrong {
            self.roll_back(reason, detail);
        }
    }
}
