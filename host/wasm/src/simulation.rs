//! Time and chance that are given, not found: for asking a component questions whose answers can be known beforehand.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::callout::{Script, Scripted};
use crate::host::nanos;

/// What components of a runtime take for the time and for chance. What bounds them runs by the real clock.
#[derive(Debug)]
pub struct Simulation {
    monotonic: AtomicU64,
    wall: AtomicU64,
    seed: AtomicU64,
    pub(crate) script: Script,
}

impl Simulation {
    /// Time stands still at `monotonic`, and at `wall` since 1970. Instances made from now on draw from generators that begin
    /// with `seed`.
    pub fn new(monotonic: Duration, wall: Duration, seed: u64) -> Self {
        let zero = || AtomicU64::new(0);
        let simulation = Self { monotonic: zero(), wall: zero(), seed: zero(), script: Script::default() };
        simulation.set(monotonic, wall, seed);
        simulation
    }

    /// As of [`Self::new`], for what is asked from now on.
    pub fn set(&self, monotonic: Duration, wall: Duration, seed: u64) {
        self.monotonic.store(nanos(monotonic), Ordering::Relaxed);
        self.wall.store(nanos(wall), Ordering::Relaxed);
        self.seed.store(seed, Ordering::Relaxed);
    }

    /// What calls of `http-client` get from now on; any other is not granted.
    pub fn set_callouts(&self, script: Vec<Scripted>) {
        self.script.set(script);
    }

    pub(crate) fn monotonic(&self) -> u64 {
        self.monotonic.load(Ordering::Relaxed)
    }

    pub(crate) fn wall(&self) -> u64 {
        self.wall.load(Ordering::Relaxed)
    }

    pub(crate) fn random(&self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed.load(Ordering::Relaxed))
    }
}
