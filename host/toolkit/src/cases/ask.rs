//! Asking a component what a case asks.

use std::rc::Rc;
use std::sync::Arc;

use tidegate_policy::{Asked, AttemptFacts, EndpointsView, Identity, PolicyFault, RequestEdits};
use tidegate_wasm::{
    Binary, Grants, Isolation, Limits, LoadError, Plugin, PluginSpec, Runtime, RuntimeOptions, Share, Simulation,
};

use super::answer::{Outcome, difference, of_choice, of_identity, of_route, of_tunnel, of_verdict};
use super::format::Case;
use super::{Subject, facts};
use crate::misuse;
use crate::words::Question;

/// A case's facts, made once.
pub(crate) struct Facts {
    asked: Rc<Asked>,
    endpoints: EndpointsView,
    attempt: Rc<AttemptFacts>,
    identity: Identity,
}

impl Facts {
    pub(crate) fn of(case: &Case, question: Question) -> anyhow::Result<Self> {
        let made = || -> Result<Self, String> {
            Ok(Self {
                asked: facts::asked(case, question)?,
                endpoints: facts::endpoints(case),
                attempt: facts::attempt(case)?,
                identity: facts::identity(case)?,
            })
        };
        made().map_err(|error| misuse(format!("case {:?}: {error}", case.name)))
    }
}

/// Asks a plugin its question. The plugin answers it: that was seen when it was loaded.
pub(crate) fn asked_of(plugin: &Plugin, question: Question, facts: &Facts) -> Outcome {
    const ANSWERS: &str = "a plugin answers the question that its cases ask";
    let Facts { asked, endpoints, attempt, identity } = facts;
    let answer: Result<Vec<String>, PolicyFault> = match question {
        Question::Router => {
            let mut edits = RequestEdits::default();
            let answered = plugin.router().expect(ANSWERS).route(asked, &mut edits);
            answered.map(|answered| of_route(&answered.value, &edits))
        }
        Question::Balancer => {
            plugin.balancer().expect(ANSWERS).pick(asked, endpoints).map(|answered| of_choice(answered.value))
        }
        Question::Forwarding => {
            let mut identity = identity.clone();
            plugin.forwarding().expect(ANSWERS).identify(asked, &mut identity).map(|_| of_identity(&identity))
        }
        Question::Retry => {
            plugin.retry().expect(ANSWERS).decide(asked, attempt, endpoints).map(|answered| of_verdict(answered.value))
        }
        Question::TunnelRouter => {
            plugin.tunnel_router().expect(ANSWERS).tunnel(asked).map(|answered| of_tunnel(&answered.value))
        }
    };
    answer.map_or_else(|fault| Outcome::Fault(fault.to_string()), Outcome::Answer)
}

/// A runtime whose time and chance are a case's, and the component in it.
pub(crate) struct Asker {
    runtime: Arc<Runtime>,
    simulation: Arc<Simulation>,
    question: Question,
    settings: serde_json::Value,
    limits: Limits,
    bytes: Binary,
    /// The last that was loaded: its machine code serves the next.
    previous: Option<Arc<Plugin>>,
}

impl Asker {
    pub(crate) fn new(subject: &Subject) -> anyhow::Result<Self> {
        let clock = super::format::Clock::default();
        let simulation = Arc::new(Simulation::new(clock.monotonic, clock.wall, 1));
        let options = RuntimeOptions { cache: subject.cache.clone(), max_instances: 16 };
        Ok(Self {
            runtime: Runtime::simulated(options, simulation.clone())?,
            simulation,
            question: subject.cases.question,
            settings: subject.cases.settings.clone(),
            limits: Limits { time: subject.limits.time, memory: subject.limits.memory },
            bytes: subject.bytes.as_slice().into(),
            previous: None,
        })
    }

    /// Loads the component as a case wants it. An outcome where it does not load for a reason that a case may expect.
    pub(crate) fn load(
        &mut self,
        case: &Case,
        isolation: Isolation,
        memoise: bool,
    ) -> anyhow::Result<Result<Arc<Plugin>, Outcome>> {
        self.simulation.set(case.clock.monotonic, case.clock.wall, case.seed);
        let script = facts::callouts(case).map_err(|error| misuse(format!("case {:?}: {error}", case.name)))?;
        self.simulation.set_callouts(script);
        let spec = PluginSpec {
            name: "plugin".into(),
            bytes: self.bytes.clone(),
            settings: case.settings.clone().unwrap_or_else(|| self.settings.clone()),
            deny: false,
            limits: self.limits,
            grants: Grants { headers: case.grants.clone(), wasi: false },
            isolation,
            memoise,
            share: Share::default(),
        };
        let plugin = match self.runtime.load(&spec, self.previous.as_ref()) {
            Ok(plugin) => plugin,
            Err(LoadError::Settings(reason)) => return Ok(Err(Outcome::Refused(reason))),
            Err(LoadError::Start(reason)) => return Ok(Err(Outcome::Fault(reason))),
            Err(error) => return Err(misuse(format!("the component cannot be loaded: {error}"))),
        };
        let questions = plugin.questions();
        let answers = match self.question {
            Question::Router => questions.route,
            Question::Balancer => questions.pick,
            Question::Forwarding => questions.identify,
            Question::Retry => questions.decide,
            Question::TunnelRouter => questions.tunnel,
        };
        if !answers {
            return Err(misuse(format!("the component is no {}, which its cases ask", self.question)));
        }
        self.previous = Some(plugin.clone());
        Ok(Ok(plugin))
    }

    /// Asks, and asks again memoised. What is wrong comes back in words to show.
    pub(super) fn hold(&mut self, case: &Case) -> anyhow::Result<Option<String>> {
        let facts = Facts::of(case, self.question)?;
        let outcome = match self.load(case, Isolation::Worker, false)? {
            Ok(plugin) => asked_of(&plugin, self.question, &facts),
            Err(outcome) => outcome,
        };
        let differs = outcome.differs(case, self.question);
        if let Some(wrong) = differs.map_err(|error| misuse(format!("case {:?}: {error}", case.name)))? {
            return Ok(Some(wrong));
        }
        let Outcome::Answer(right) = &outcome else { return Ok(None) };
        if !case.memoise {
            return Ok(None);
        }
        let Ok(plugin) = self.load(case, Isolation::Worker, true)? else {
            return Ok(Some("it loads, and with memoise = true it does not".to_owned()));
        };
        for time in ["once", "twice"] {
            let again = asked_of(&plugin, self.question, &facts);
            if again != outcome {
                let got = match again {
                    Outcome::Answer(lines) => lines,
                    other => vec![format!("{other:?}")],
                };
                let shown = difference(right, &got);
                return Ok(Some(format!("memoised and asked {time}, it answers otherwise:\n{shown}")));
            }
        }
        Ok(None)
    }
}
