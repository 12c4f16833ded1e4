//! A shadow: another version of a plugin that is asked too, and whose answers are compared and not used.
//!
//! It is asked after the answer that stands is there, on the same thread: what it costs a request is the time of its own
//! decision. It calls nobody out: a request is made whether its answer is used or not. It is bounded in how often it is asked and how long it runs in a second, and left alone while it is in quarantine.
//! Differences are grouped under a lock that nobody waits for.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytestring::ByteString;
use serde_json::json;
use tidegate_policy::{
    Answered, Asked, AttemptFacts, Balancer, Blame, Choice, Decision, Egress, EndpointsView, Forwarding, Identity,
    Later, PolicyFault, PolicyFaultKind, RequestEdits, Retry, RouteAnswer, Router, TunnelAnswer, TunnelRouter, Verdict,
};

use crate::decide::Asker;
use crate::plugin::Plugin;
use crate::rollout::{StickyBy, end, place};
use crate::stats::QUESTIONS;

mod difference;
mod report;

use difference::Difference;
use report::Report;

/// How much a shadow is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct ShadowSpec {
    /// Of the exchanges, from 0 to 1: of one it answers all questions or none.
    pub share: f64,
    /// Most questions a second, over all workers.
    pub rate: u64,
}

/// What it may run in a second, over all workers: a twentieth of a core.
const TIME: Duration = Duration::from_millis(50);

/// Why it was not asked.
const SKIPS: [&str; 3] = ["rate", "quarantined", "budget"];

/// A shadow and what it came to.
pub struct Shadow {
    plugin: ByteString,
    asker: Asker,
    /// Of all versions compared.
    versions: [[u8; 32]; 2],
    spec: ShadowSpec,
    end: u64,
    zero: Instant,
    /// The second in the upper half, the questions in it in the lower.
    asked: AtomicU64,
    spent_ns: AtomicU64,
    compared: [AtomicU64; QUESTIONS.len()],
    differences: [AtomicU64; QUESTIONS.len()],
    skipped: [AtomicU64; SKIPS.len()],
    report: Mutex<Report>,
}

impl Shadow {
    /// Of `shadow`, which was loaded for it, beside `current`. Where `previous` is the same in every respect it goes on, with
    /// what it counted.
    pub fn new(shadow: &Plugin, current: &Plugin, spec: ShadowSpec, previous: Option<&Arc<Self>>) -> Arc<Self> {
        let versions = [shadow.identity, current.identity];
        if let Some(same) = previous.filter(|known| known.versions == versions && known.spec == spec) {
            return same.clone();
        }
        Arc::new(Self {
            plugin: current.name().clone(),
            asker: Asker(shadow.handle.clone()),
            versions,
            end: end(spec.share),
            spec,
            zero: Instant::now(),
            asked: AtomicU64::new(0),
            spent_ns: AtomicU64::new(0),
            compared: Default::default(),
            differences: Default::default(),
            skipped: Default::default(),
            report: Mutex::default(),
        })
    }

    /// The name of the plugin it stands beside.
    pub fn plugin(&self) -> &str {
        &self.plugin
    }

    /// Questions that both answered, or failed to; and those whose answers differed. By question.
    pub fn compared(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = self.compared.iter().zip(&self.differences);
        QUESTIONS.iter().zip(counts).map(move |(name, (compared, differ))| (*name, load(compared), load(differ)))
    }

    /// Questions it was not asked, by reason.
    pub fn skipped(&self) -> impl Iterator<Item = (&'static str, u64)> {
        SKIPS.iter().zip(&self.skipped).map(|(reason, count)| (*reason, count.load(Ordering::Relaxed)))
    }

    /// What the admin listener shows.
    pub fn report(&self) -> serde_json::Value {
        let groups = self.report.lock().unwrap_or_else(PoisonError::into_inner).groups();
        let questions: serde_json::Map<_, _> = self
            .compared()
            .filter(|(_, compared, _)| *compared > 0)
            .map(|(name, compared, differ)| (name.to_owned(), json!({ "compared": compared, "differences": differ })))
            .collect();
        let skipped: serde_json::Map<_, _> =
            self.skipped().map(|(reason, count)| (reason.to_owned(), json!(count))).collect();
        let differ: u64 = self.compared().map(|(_, _, differ)| differ).sum();
        let grouped: u64 = groups.iter().map(|group| group.count).sum();
        json!({
            "name": *self.asker.0.core.name,
            "share": self.spec.share,
            "questions": questions,
            "skipped": skipped,
            "groups": groups,
            // Of kinds beyond the bound, or met while another was written down.
            "ungrouped": differ.saturating_sub(grouped),
        })
    }

    /// Asks and compares, where this exchange is part of the share and there is room for a question.
    fn beside<T: Told>(
        &self,
        question: usize,
        asked: &Rc<Asked>,
        ask: impl FnOnce(&Asker) -> T,
        compare: impl FnOnce(&T) -> Option<Difference>,
    ) {
        let core = &self.asker.0.core;
        if u64::from(place(&core.name, &StickyBy::Random, asked)) >= self.end {
            return;
        }
        if !core.quarantine.open() {
            self.skipped[1].fetch_add(1, Ordering::Relaxed);
            return;
        }
        let begun = Instant::now();
        if !self.room((begun - self.zero).as_secs()) {
            self.skipped[0].fetch_add(1, Ordering::Relaxed);
            return;
        }
        let answer = ask(&self.asker);
        self.spent_ns.fetch_add(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
        let skipped = match answer.fault() {
            // Another worker's question may have been the last.
            Some(PolicyFaultKind::Quarantined) => Some(1),
            Some(PolicyFaultKind::Budget) => Some(2),
            _ => None,
        };
        if let Some(reason) = skipped {
            self.skipped[reason].fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.compared[question].fetch_add(1, Ordering::Relaxed);
        let Some(difference) = compare(&answer) else { return };
        self.differences[question].fetch_add(1, Ordering::Relaxed);
        // Whoever holds it is adding another, or reading: this one is counted all the same.
        if let Ok(mut report) = self.report.try_lock() {
            report.add(QUESTIONS[question], difference, asked, &core.grants, || self.asker.reads());
        }
    }

    /// Whether there is room for another question in this second.
    fn room(&self, second: u64) -> bool {
        let this = (second & u64::from(u32::MAX)) << 32;
        let known = self.asked.load(Ordering::Relaxed);
        if known >> 32 != this >> 32
            && self.asked.compare_exchange(known, this, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.spent_ns.store(0, Ordering::Relaxed);
        }
        if self.spent_ns.load(Ordering::Relaxed) >= TIME.as_nanos() as u64 {
            return false;
        }
        // What is refused does not count up: a second's questions never reach the upper half.
        let more = |asked: u64| ((asked & u64::from(u32::MAX)) < self.spec.rate).then_some(asked + 1);
        self.asked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

/// What a shadow said, with whatever came beside it.
trait Told {
    fn fault(&self) -> Option<PolicyFaultKind>;
}

impl<T> Told for Decision<T> {
    fn fault(&self) -> Option<PolicyFaultKind> {
        self.as_ref().err().map(|fault| fault.kind)
    }
}

impl<T, W> Told for (Decision<T>, W) {
    fn fault(&self) -> Option<PolicyFaultKind> {
        self.0.fault()
    }
}

/// A policy with its shadow.
pub(crate) struct Shadowed<P: ?Sized> {
    pub(crate) policy: Arc<P>,
    pub(crate) shadow: Arc<Shadow>,
}

macro_rules! common {
    () => {
        fn name(&self) -> ByteString {
            self.policy.name()
        }

        fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
            self.policy.answer_refused(reason, blame)
        }
    };
}

/// Of the questions that may be answered later.
macro_rules! waits {
    () => {
        fn waits(&self) -> bool {
            self.policy.waits()
        }
    };
}

impl Router for Shadowed<dyn Router> {
    common!();
    waits!();

    fn route(&self, asked: &Rc<Asked>, edits: &mut RequestEdits) -> Decision<RouteAnswer> {
        let stood = self.policy.route(asked, edits);
        self.compare_route(asked, &stood, edits);
        stood
    }

    fn route_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, (RouteAnswer, RequestEdits)> {
        Box::pin(async move {
            let (stood, edits) = apart(self.policy.route_later(asked, egress).await);
            self.compare_route(asked, &stood, &edits);
            together(stood, edits)
        })
    }
}

/// An answer and what came with it, of whoever was asked later.
fn apart<T, W: Default>(decision: Decision<(T, W)>) -> (Decision<T>, W) {
    match decision {
        Ok(Answered { value: (value, with), origin, took }) => (Ok(Answered { value, origin, took }), with),
        Err(fault) => (Err(fault), W::default()),
    }
}

fn together<T, W>(decision: Decision<T>, with: W) -> Decision<(T, W)> {
    decision.map(|answered| answered.map(|value| (value, with)))
}

impl Shadowed<dyn Router> {
    fn compare_route(&self, asked: &Rc<Asked>, stood: &Decision<RouteAnswer>, edits: &RequestEdits) {
        let ask = |shadow: &Asker| {
            let mut edits = RequestEdits::default();
            (shadow.route(asked, &mut edits), edits)
        };
        self.shadow.beside(0, asked, ask, |(answer, wanted)| difference::of_routes((stood, edits), (answer, wanted)));
    }
}

impl Balancer for Shadowed<dyn Balancer> {
    common!();
    waits!();

    fn pick(&self, asked: &Rc<Asked>, endpoints: &EndpointsView) -> Decision<Choice> {
        let stood = self.policy.pick(asked, endpoints);
        self.compare_pick(asked, endpoints, &stood);
        stood
    }

    fn pick_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        endpoints: &'a EndpointsView,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, Choice> {
        Box::pin(async move {
            let stood = self.policy.pick_later(asked, endpoints, egress).await;
            self.compare_pick(asked, endpoints, &stood);
            stood
        })
    }
}

impl Shadowed<dyn Balancer> {
    fn compare_pick(&self, asked: &Rc<Asked>, endpoints: &EndpointsView, stood: &Decision<Choice>) {
        let compare = |answer: &Decision<Choice>| difference::of_picks(stood, answer, endpoints);
        self.shadow.beside(1, asked, |shadow| shadow.pick(asked, endpoints), compare);
    }
}

impl Forwarding for Shadowed<dyn Forwarding> {
    common!();
    waits!();

    fn identify(&self, asked: &Rc<Asked>, identity: &mut Identity) -> Decision<()> {
        let proposed = identity.clone();
        let stood = self.policy.identify(asked, identity);
        self.compare_identity(asked, proposed, &stood, identity);
        stood
    }

    fn identify_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        identity: Identity,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, Identity> {
        Box::pin(async move {
            let proposed = identity.clone();
            let stood = self.policy.identify_later(asked, identity, egress).await;
            let (stood, edited) = apart(stood.map(|answered| answered.map(|identity| ((), Some(identity)))));
            let identity = edited.unwrap_or_else(|| proposed.clone());
            self.compare_identity(asked, proposed, &stood, &identity);
            stood.map(|answered| answered.with(identity))
        })
    }
}

impl Shadowed<dyn Forwarding> {
    fn compare_identity(&self, asked: &Rc<Asked>, proposed: Identity, stood: &Decision<()>, identity: &Identity) {
        let ask = |shadow: &Asker| {
            let mut identity = proposed;
            (shadow.identify(asked, &mut identity), identity)
        };
        self.shadow
            .beside(2, asked, ask, |(answer, wanted)| difference::of_identities((stood, identity), (answer, wanted)));
    }
}

impl Retry for Shadowed<dyn Retry> {
    common!();
    waits!();

    fn decide(&self, asked: &Rc<Asked>, attempt: &Rc<AttemptFacts>, endpoints: &EndpointsView) -> Decision<Verdict> {
        let stood = self.policy.decide(asked, attempt, endpoints);
        self.compare_verdict(asked, attempt, endpoints, &stood);
        stood
    }

    fn decide_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        attempt: &'a Rc<AttemptFacts>,
        endpoints: &'a EndpointsView,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, Verdict> {
        Box::pin(async move {
            let stood = self.policy.decide_later(asked, attempt, endpoints, egress).await;
            self.compare_verdict(asked, attempt, endpoints, &stood);
            stood
        })
    }
}

impl Shadowed<dyn Retry> {
    fn compare_verdict(
        &self,
        asked: &Rc<Asked>,
        attempt: &Rc<AttemptFacts>,
        endpoints: &EndpointsView,
        stood: &Decision<Verdict>,
    ) {
        let compare = |answer: &Decision<Verdict>| difference::of_verdicts(stood, answer);
        self.shadow.beside(3, asked, |shadow| shadow.decide(asked, attempt, endpoints), compare);
    }
}

impl TunnelRouter for Shadowed<dyn TunnelRouter> {
    common!();

    fn tunnel(&self, asked: &Rc<Asked>) -> Decision<TunnelAnswer> {
        let stood = self.policy.tunnel(asked);
        let compare = |answer: &Decision<TunnelAnswer>| difference::of_tunnels(&stood, answer);
        self.shadow.beside(4, asked, |shadow| shadow.tunnel(asked), compare);
        stood
    }
}
