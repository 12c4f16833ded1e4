//! Two versions as one policy, for each question.

use std::rc::Rc;
use std::sync::Arc;

use bytestring::ByteString;
use tidegate_policy::{
    Asked, AttemptFacts, Balancer, Blame, Choice, Decision, Egress, EndpointsView, Forwarding, Identity, Later,
    PolicyFault, RequestEdits, Retry, RouteAnswer, Router, TunnelAnswer, TunnelRouter, Verdict, Version, Versioned,
    Watch, Watched,
};

use super::Rollout;

/// One version, counted.
struct Side<P: ?Sized> {
    policy: Arc<P>,
    version: Version,
    rollout: Arc<Rollout>,
}

impl<P: ?Sized> Side<P> {
    fn counted<T>(&self, ask: impl FnOnce(&P) -> Decision<T>) -> Decision<T> {
        let decision = ask(&self.policy);
        self.rollout.decided(self.version, &decision);
        decision
    }

    fn counted_later<'a, T: 'a>(&'a self, ask: impl FnOnce(&'a P) -> Later<'a, T>) -> Later<'a, T> {
        let asked = ask(&self.policy);
        Box::pin(async move {
            let decision = asked.await;
            self.rollout.decided(self.version, &decision);
            decision
        })
    }

    fn watched(&self) -> Watched {
        Watched { watch: self.rollout.clone() as Arc<dyn Watch>, version: self.version }
    }
}

/// Both. As a policy of its own it gives the answer of the version that an exchange has.
pub(crate) struct Split<P: ?Sized> {
    current: Side<P>,
    next: Side<P>,
}

impl<P: ?Sized> Split<P> {
    pub(crate) fn new(current: Arc<P>, next: Arc<P>, rollout: &Arc<Rollout>) -> Self {
        let side = |policy, version| Side { policy, version, rollout: rollout.clone() };
        Self { current: side(current, Version::Current), next: side(next, Version::Next) }
    }

    fn choose(&self, asked: &Asked) -> &Side<P> {
        match self.current.rollout.choose(asked) {
            Version::Current => &self.current,
            Version::Next => &self.next,
        }
    }

    /// `as_policy` names a side's trait: it is the same line for each.
    fn versioned<'a, Q: ?Sized>(&'a self, asked: &Asked, as_policy: fn(&'a Side<P>) -> &'a Q) -> Versioned<'a, Q> {
        let side = self.choose(asked);
        let instead = (side.version == Version::Next).then(|| (as_policy(&self.current), self.current.watched()));
        Versioned { policy: as_policy(side), watched: side.watched(), instead }
    }
}

/// What every question's trait has beside its question. A side refuses answers on its own account; the two together are
/// never told, since the core asks for the version first.
macro_rules! common {
    () => {
        fn name(&self) -> ByteString {
            self.policy.name()
        }

        fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
            self.rollout.refused(self.version, blame);
            self.policy.answer_refused(reason, blame)
        }
    };
    ($policy:ident of two) => {
        fn name(&self) -> ByteString {
            self.current.policy.name()
        }

        fn answer_refused(&self, reason: &str, blame: Blame) -> PolicyFault {
            self.current.policy.answer_refused(reason, blame)
        }

        fn version(&self, asked: &Asked) -> Option<Versioned<'_, dyn $policy>> {
            Some(self.versioned(asked, |side| side as &dyn $policy))
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
    (of two) => {
        /// Whether an exchange may have a version that does.
        fn waits(&self) -> bool {
            self.current.policy.waits() || self.next.policy.waits()
        }
    };
}

impl Router for Side<dyn Router> {
    common!();
    waits!();

    fn route(&self, asked: &Rc<Asked>, edits: &mut RequestEdits) -> Decision<RouteAnswer> {
        self.counted(|policy| policy.route(asked, edits))
    }

    fn route_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, (RouteAnswer, RequestEdits)> {
        self.counted_later(|policy| policy.route_later(asked, egress))
    }
}

impl Router for Split<dyn Router> {
    common!(Router of two);
    waits!(of two);

    fn route(&self, asked: &Rc<Asked>, edits: &mut RequestEdits) -> Decision<RouteAnswer> {
        self.choose(asked).route(asked, edits)
    }

    fn route_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, (RouteAnswer, RequestEdits)> {
        self.choose(asked).route_later(asked, egress)
    }
}

impl Balancer for Side<dyn Balancer> {
    common!();
    waits!();

    fn pick(&self, asked: &Rc<Asked>, endpoints: &EndpointsView) -> Decision<Choice> {
        self.counted(|policy| policy.pick(asked, endpoints))
    }

    fn pick_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        endpoints: &'a EndpointsView,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, Choice> {
        self.counted_later(|policy| policy.pick_later(asked, endpoints, egress))
    }
}

impl Balancer for Split<dyn Balancer> {
    common!(Balancer of two);
    waits!(of two);

    fn pick(&self, asked: &Rc<Asked>, endpoints: &EndpointsView) -> Decision<Choice> {
        self.choose(asked).pick(asked, endpoints)
    }

    fn pick_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        endpoints: &'a EndpointsView,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, Choice> {
        self.choose(asked).pick_later(asked, endpoints, egress)
    }
}

impl Forwarding for Side<dyn Forwarding> {
    common!();
    waits!();

    fn identify(&self, asked: &Rc<Asked>, identity: &mut Identity) -> Decision<()> {
        self.counted(|policy| policy.identify(asked, identity))
    }

    fn identify_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        identity: Identity,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, Identity> {
        self.counted_later(|policy| policy.identify_later(asked, identity, egress))
    }
}

impl Forwarding for Split<dyn Forwarding> {
    common!(Forwarding of two);
    waits!(of two);

    fn identify(&self, asked: &Rc<Asked>, identity: &mut Identity) -> Decision<()> {
        self.choose(asked).identify(asked, identity)
    }

    fn identify_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        identity: Identity,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, Identity> {
        self.choose(asked).identify_later(asked, identity, egress)
    }
}

impl Retry for Side<dyn Retry> {
    common!();
    waits!();

    fn decide(&self, asked: &Rc<Asked>, attempt: &Rc<AttemptFacts>, endpoints: &EndpointsView) -> Decision<Verdict> {
        self.counted(|policy| policy.decide(asked, attempt, endpoints))
    }

    fn decide_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        attempt: &'a Rc<AttemptFacts>,
        endpoints: &'a EndpointsView,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, Verdict> {
        self.counted_later(|policy| policy.decide_later(asked, attempt, endpoints, egress))
    }
}

impl Retry for Split<dyn Retry> {
    common!(Retry of two);
    waits!(of two);

    fn decide(&self, asked: &Rc<Asked>, attempt: &Rc<AttemptFacts>, endpoints: &EndpointsView) -> Decision<Verdict> {
        self.choose(asked).decide(asked, attempt, endpoints)
    }

    fn decide_later<'a>(
        &'a self,
        asked: &'a Rc<Asked>,
        attempt: &'a Rc<AttemptFacts>,
        endpoints: &'a EndpointsView,
        egress: Rc<dyn Egress>,
    ) -> Later<'a, Verdict> {
        self.choose(asked).decide_later(asked, attempt, endpoints, egress)
    }
}

impl TunnelRouter for Side<dyn TunnelRouter> {
    common!();

    fn tunnel(&self, asked: &Rc<Asked>) -> Decision<TunnelAnswer> {
        self.counted(|policy| policy.tunnel(asked))
    }
}

impl TunnelRouter for Split<dyn TunnelRouter> {
    common!(TunnelRouter of two);

    fn tunnel(&self, asked: &Rc<Asked>) -> Decision<TunnelAnswer> {
        self.choose(asked).tunnel(asked)
    }
}
