//! Callouts of guests: what a plugin was granted of `http-client`, what each may take, and what is counted of them.
//!
//! A guest that imports `http-client` runs on a fiber, so that its worker serves others while it waits. Here is what holds for
//! one callout; who sends it is the [`Egress`](tidegate_policy::Egress) that the question came with.

use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate_policy::{Callout, CalloutError, CalloutResponse, Sent};

use crate::budget::InFlight;
use crate::state::State;
use crate::stats::{CalloutOutcome, PluginStats};

/// Which clusters a plugin may call, and how.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HttpGrant {
    pub clusters: Vec<String>,
    /// Bytes of a body, each way.
    pub max_request: u64,
    pub max_response: u64,
    /// Over all workers.
    pub max_in_flight: u64,
    /// In each second, over all workers; `None`: as many as there is room for.
    pub per_second: Option<u32>,
    /// What one decision may wait for all its callouts together.
    pub wait: Duration,
}

impl HttpGrant {
    /// Of these clusters, with the bounds that a configuration has by default.
    pub fn of(clusters: &[&str]) -> Self {
        Self {
            clusters: clusters.iter().map(|&name| name.to_owned()).collect(),
            max_request: 64 * 1024,
            max_response: 64 * 1024,
            max_in_flight: 100,
            per_second: None,
            wait: Duration::from_secs(1),
        }
    }
}

/// A grant in use.
pub(crate) struct Http {
    grant: HttpGrant,
    in_flight: Arc<AtomicU64>,
}

impl Http {
    pub(crate) fn new(grant: HttpGrant) -> Self {
        Self { grant, in_flight: Arc::default() }
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// What a guest asks to be sent.
pub(crate) struct Wanted {
    pub(crate) cluster: String,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    /// Zero for as long as it may.
    pub(crate) timeout: Duration,
}

/// How a callout ended. Written down when it is dropped: one that is given up counts too.
pub(crate) struct Counted {
    stats: Arc<PluginStats>,
    begun: Instant,
    outcome: CalloutOutcome,
}

impl Counted {
    pub(crate) fn begin(stats: &Arc<PluginStats>) -> Self {
        Self { stats: stats.clone(), begun: Instant::now(), outcome: CalloutOutcome::Cancelled }
    }

    pub(crate) fn ended(&mut self, response: &Result<CalloutResponse, CalloutError>) {
        self.outcome = response.into();
    }

    pub(crate) fn took(&self) -> Duration {
        self.begun.elapsed()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.stats.called_out(self.outcome, self.begun.elapsed());
    }
}

/// A callout that was let out.
pub(crate) struct Out {
    sent: Here,
    _in_flight: InFlight,
}

impl Out {
    /// Holds what a guest wants against its grant, its budget and the time its decision has left to wait, and begins to send it.
    ///
    /// # Errors
    /// Why it is not sent.
    pub(crate) fn begin(state: &State, wanted: Wanted) -> Result<Self, CalloutError> {
        let core = &state.core;
        // Without an egress no question is asked that may wait: it is configured, or tried out.
        let (Some(http), Some(egress)) = (&core.http, &state.egress) else { return Err(CalloutError::NotGranted) };
        let grant = &http.grant;
        if !grant.clusters.contains(&wanted.cluster) {
            return Err(CalloutError::NotGranted);
        }
        if wanted.body.len() as u64 > grant.max_request {
            return Err(CalloutError::TooLarge);
        }
        let fields = wanted.fields.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        let body = Bytes::from(wanted.body);
        let mut callout = Callout::new(&wanted.cluster, &wanted.method, &wanted.target, fields, body)?;
        let left = grant.wait.saturating_sub(state.waited);
        if left.is_zero() {
            return Err(CalloutError::TimedOut);
        }
        callout.timeout = if wanted.timeout.is_zero() { left } else { wanted.timeout.min(left) };
        callout.max_response = grant.max_response;
        let refused = |why: &str| CalloutError::Refused(why.to_owned());
        let in_flight = InFlight::enter(state.purse.tenant(), grant.max_in_flight, &http.in_flight).map_err(refused)?;
        state.purse.call_out(Instant::now()).map_err(refused)?;
        Ok(Self { sent: Here(egress.clone().send(callout)), _in_flight: in_flight })
    }
}

impl Future for Out {
    type Output = Result<CalloutResponse, CalloutError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.sent.0.as_mut().poll(cx)
    }
}

struct Here(Sent);

// SAFETY: wasmtime asks for `Send` of what a host function waits for. It is polled and dropped by the fiber of a store,
// which never leaves its thread: see `State`.
unsafe impl Send for Here {}

/// Responses that are given beforehand, for asking a component questions whose answers can be known.
#[derive(Debug, Default)]
pub(crate) struct Script(RwLock<Vec<Scripted>>);

/// What a call gets in a simulation.
#[derive(Clone, Debug)]
pub struct Scripted {
    pub cluster: String,
    pub method: String,
    /// Path and query.
    pub target: String,
    pub response: Result<CalloutResponse, CalloutError>,
}

impl Script {
    pub(crate) fn set(&self, script: Vec<Scripted>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = script;
    }

    /// The first that fits; nothing is granted that nobody wrote down.
    pub(crate) fn answer(&self, wanted: &Wanted) -> Result<CalloutResponse, CalloutError> {
        let fields = wanted.fields.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        Callout::new(&wanted.cluster, &wanted.method, &wanted.target, fields, Bytes::new())?;
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let fits = |scripted: &&Scripted| {
            scripted.cluster == wanted.cluster && scripted.method == wanted.method && scripted.target == wanted.target
        };
        known.iter().find(fits).map_or(Err(CalloutError::NotGranted), |scripted| scripted.response.clone())
    }
}
