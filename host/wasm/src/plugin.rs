//! A plugin: a component with settings, limits and grants, compiled and linked once, shared by all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytestring::ByteString;
use serde_json::json;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tidegate_policy::{Balancer, Forwarding, Retry, Router, TunnelRouter};

use crate::artifact::{self, Binary, ComponentDigest};
use crate::budget::{Allowances, Share};
use crate::callout::Http;
use crate::decide::Asker;
use crate::instances::{self, Failed};
use crate::kv::Kv;
use crate::prepared::{self, Exports, Granted, Prepared};
use crate::quarantine::Quarantine;
use crate::runtime::Runtime;
use crate::stats::{PluginStats, QUESTIONS, QuestionStats};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Isolation {
    /// An instance per worker, reused.
    Worker,
    /// Fresh memory for every question.
    Request,
}

/// What one decision may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    pub time: Duration,
    /// Bytes of linear memory.
    pub memory: usize,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Grants {
    /// Lower-case names of the fields it may read and edit; `None`: all.
    pub headers: Option<Vec<String>>,
    pub wasi: bool,
}

impl Grants {
    /// Whether it may see and edit the field of this name, however a guest writes it.
    pub(crate) fn field(&self, name: &str) -> bool {
        self.headers.as_ref().is_none_or(|names| names.iter().any(|granted| granted.eq_ignore_ascii_case(name)))
    }
}

/// What a plugin is made of.
#[derive(Clone, Debug)]
pub struct PluginSpec {
    pub name: ByteString,
    pub bytes: Binary,
    pub settings: serde_json::Value,
    /// On failure: refuse the request in place of the native answer.
    pub deny: bool,
    pub limits: Limits,
    pub grants: Grants,
    pub isolation: Isolation,
    pub memoise: bool,
    pub share: Share,
}

impl PluginSpec {
    /// Of all that a plugin depends on.
    fn identity(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(self.bytes.digest);
        let rest = (&self.name, self.deny, self.limits, &self.grants, self.isolation, self.memoise);
        hasher.update(format!("{rest:?}"));
        hasher.update(self.settings.to_string());
        // Its budget by value: what is used of it changes all the time.
        let Share { tenant, cpu, instances, log_lines, kv, http } = &self.share;
        let tenant = tenant.as_ref().map(|tenant| (tenant.name(), tenant.limits()));
        hasher.update(format!("{:?}", (tenant, cpu, instances, log_lines, kv, http)));
        hasher.finalize().into()
    }
}

/// Why a plugin cannot be used. Says what to do about it.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error("it is not a WebAssembly component: {0}")]
    NotAComponent(String),
    #[error(
        "it answers no question: export router, balancer, forwarding, retry or tunnel-router of tidegate:policy@0.1.0"
    )]
    NoQuestion,
    #[error("it imports {import:?}, which {why}")]
    Import { import: String, why: String },
    #[error("it exports {export:?} in another shape than the contract's: {why}; build it against wit/")]
    Export { export: String, why: String },
    #[error("its imports do not fit the contract: {0}")]
    Link(String),
    #[error("its settings schema is not JSON Schema: {0}")]
    Schema(String),
    #[error("its settings are refused: {0}")]
    Settings(String),
    #[error("it fails when it is started: {0}")]
    Start(String),
    #[error("asked {question:?} of a plain request it fails: {why}")]
    Rehearsal { question: &'static str, why: String },
}

impl LoadError {
    /// Whether the component is right as such, and only refuses its settings or fails as it starts, or is
    /// asked for the first time, with them.
    pub fn of_settings(&self) -> bool {
        matches!(self, Self::Schema(_) | Self::Settings(_) | Self::Start(_) | Self::Rehearsal { .. })
    }
}

/// Whether these bytes are a valid component, without compiling them.
///
/// # Errors
/// What they are in its place.
pub fn check_component(bytes: &[u8]) -> Result<(), LoadError> {
    if !wasmparser::Parser::is_component(bytes) {
        let why = if wasmparser::Parser::is_core_wasm(bytes) {
            "it is a core module; see `wasm-tools component new`"
        } else {
            "it does not begin as one"
        };
        return Err(LoadError::NotAComponent(why.to_owned()));
    }
    let checked = wasmparser::Validator::new().validate_all(bytes);
    checked.map(drop).map_err(|error| LoadError::NotAComponent(error.to_string()))
}

/// Which questions a component answers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Questions {
    pub route: bool,
    pub pick: bool,
    pub identify: bool,
    pub decide: bool,
    pub tunnel: bool,
}

impl Questions {
    pub(crate) fn of(exports: &Exports) -> Self {
        let [route, pick, identify, decide, tunnel] = exports.questions.each_ref().map(Option::is_some);
        Self { route, pick, identify, decide, tunnel }
    }

    pub(crate) fn list(self) -> [bool; QUESTIONS.len()] {
        [self.route, self.pick, self.identify, self.decide, self.tunnel]
    }
}

/// What instances on all threads share of a plugin.
pub(crate) struct Core {
    /// Never used twice in a process.
    pub(crate) id: u64,
    pub(crate) name: ByteString,
    pub(crate) limits: Limits,
    pub(crate) grants: Grants,
    pub(crate) isolation: Isolation,
    pub(crate) memoise: bool,
    /// What it reads is looked at, and no answer of it remembered.
    pub(crate) observed: bool,
    pub(crate) deny: bool,
    pub(crate) share: Share,
    pub(crate) allowances: Allowances,
    pub(crate) kv: Option<Kv>,
    /// What it may call, where it can.
    pub(crate) http: Option<Http>,
    pub(crate) settings: String,
    pub(crate) prepared: Arc<Prepared>,
    pub(crate) stats: Arc<PluginStats>,
    pub(crate) quarantine: Quarantine,
    pub(crate) runtime: Arc<Runtime>,
}

/// What those share who may ask a plugin. The core alone cannot tell whether anybody does: every live instance holds it.
pub(crate) struct Handle {
    pub(crate) core: Arc<Core>,
    /// As `core.prepared` has it. Here it is at hand before anything else is read for a question.
    pub(crate) waits: bool,
}

impl Drop for Handle {
    fn drop(&mut self) {
        instances::asker_gone();
    }
}

/// A loaded plugin.
pub struct Plugin {
    pub(crate) handle: Arc<Handle>,
    pub(crate) identity: [u8; 32],
    digest: ComponentDigest,
    questions: Questions,
    memory: usize,
}

impl Runtime {
    /// Compiles, links, checks the settings and configures an instance once, so that what is wrong shows now. Where
    /// `previous` is the same in every respect it is taken over, with its instances and counts; where the component is the
    /// same, it is not compiled again.
    pub fn load(self: &Arc<Self>, spec: &PluginSpec, previous: Option<&Arc<Plugin>>) -> Result<Arc<Plugin>, LoadError> {
        self.load_as(spec, previous, false)
    }

    /// The same for a [`crate::Shadow`]: what it reads is shown with the differences, so nothing of it is remembered. It calls
    /// nobody: that an answer is not used does not undo a request.
    pub fn load_shadow(
        self: &Arc<Self>,
        spec: &PluginSpec,
        previous: Option<&Arc<Plugin>>,
    ) -> Result<Arc<Plugin>, LoadError> {
        self.load_as(spec, previous.filter(|plugin| plugin.handle.core.observed), true)
    }

    fn load_as(
        self: &Arc<Self>,
        spec: &PluginSpec,
        previous: Option<&Arc<Plugin>>,
        observed: bool,
    ) -> Result<Arc<Plugin>, LoadError> {
        let identity = spec.identity();
        if let Some(previous) = previous.filter(|plugin| plugin.is_made_of(spec)) {
            return Ok(previous.clone());
        }
        let http = match &spec.share.http {
            _ if self.simulation.is_some() => prepared::Http::WithoutWaits,
            None => prepared::Http::No,
            Some(_) if observed => prepared::Http::WithoutWaits,
            Some(_) => prepared::Http::Yes,
        };
        let granted = Granted { wasi: spec.grants.wasi, kv: spec.share.kv.is_some(), http };
        let prepared = self.prepare(&spec.bytes, granted)?;
        let questions = prepared.questions;
        let core = Arc::new(core(self, spec, prepared, observed));
        // Before it runs for the first time, which is to say what its settings are.
        self.ticker.limit_to(spec.limits.time);
        check_settings(&core, &spec.settings)?;
        let memory = instances::try_out(&core).map_err(Failed::at_load)?;
        let handle = Arc::new(Handle { waits: core.prepared.waits, core });
        Ok(Arc::new(Plugin { handle, identity, digest: spec.bytes.digest, questions, memory }))
    }
}

/// What instances share of a plugin that is made of `prepared` as `spec` says.
pub(crate) fn core(runtime: &Arc<Runtime>, spec: &PluginSpec, prepared: Arc<Prepared>, observed: bool) -> Core {
    let tenant = spec.share.tenant.as_ref().map(|tenant| &**tenant.name());
    static IDS: AtomicU64 = AtomicU64::new(0);
    Core {
        id: IDS.fetch_add(1, Ordering::Relaxed),
        name: spec.name.clone(),
        limits: spec.limits,
        grants: spec.grants.clone(),
        isolation: spec.isolation,
        // What a guest learns through WASI is in no trace.
        memoise: spec.memoise && !spec.grants.wasi && !observed,
        observed,
        deny: spec.deny,
        allowances: Allowances::of(&spec.share),
        kv: spec.share.kv.as_ref().map(|grant| runtime.kv.open(&spec.name, tenant, grant)),
        http: spec.share.http.clone().filter(|_| prepared.waits).map(Http::new),
        share: spec.share.clone(),
        settings: spec.settings.to_string(),
        prepared,
        stats: Arc::default(),
        quarantine: Quarantine::default(),
        runtime: runtime.clone(),
    }
}

/// Asks for the schema, and holds the settings against it.
fn check_settings(core: &Arc<Core>, settings: &serde_json::Value) -> Result<(), LoadError> {
    let known = &core.prepared.schema;
    let validator = match known.get() {
        Some(validator) => validator,
        None => {
            let validator = validator(core)?;
            known.get_or_init(|| validator)
        }
    };
    let Some(validator) = validator else { return Ok(()) };
    let complaints: Vec<String> = validator
        .iter_errors(settings)
        .map(|error| {
            let place = error.instance_path.to_string();
            if place.is_empty() { error.to_string() } else { format!("{}: {error}", place.trim_start_matches('/')) }
        })
        .collect();
    if complaints.is_empty() { Ok(()) } else { Err(LoadError::Settings(complaints.join("; "))) }
}

/// Of the schema that a component states for its settings.
fn validator(core: &Arc<Core>) -> Result<Option<jsonschema::Validator>, LoadError> {
    let schema = instances::settings_schema(core).map_err(|failed| failed.at_load())?;
    let Some(schema) = schema else { return Ok(None) };
    let schema: serde_json::Value =
        serde_json::from_str(&schema).map_err(|error| LoadError::Schema(error.to_string()))?;
    jsonschema::validator_for(&schema).map(Some).map_err(|error| LoadError::Schema(error.to_string()))
}

impl Plugin {
    pub fn name(&self) -> &ByteString {
        &self.handle.core.name
    }

    /// Whether it would be taken over for this.
    pub fn is_made_of(&self, spec: &PluginSpec) -> bool {
        self.identity == spec.identity() && !self.withdrawn()
    }

    /// SHA-256 of the component, in hexadecimal.
    pub fn digest(&self) -> String {
        artifact::hex(&self.digest)
    }

    /// Bytes of linear memory that an instance has once it is configured.
    pub fn memory_at_start(&self) -> usize {
        self.memory
    }

    pub fn questions(&self) -> Questions {
        self.questions
    }

    /// Whose it is.
    pub fn tenant(&self) -> Option<&ByteString> {
        self.handle.core.share.tenant.as_ref().map(|tenant| tenant.name())
    }

    /// Bytes of its `kv` namespace in use, and entries that had to make room; `None` without the grant.
    pub fn kv(&self) -> Option<(u64, u64)> {
        self.handle.core.kv.as_ref().map(|kv| (kv.used(), kv.evicted()))
    }

    /// Callouts under way; `None` for one that calls nobody.
    pub fn callouts_in_flight(&self) -> Option<u64> {
        self.handle.core.http.as_ref().map(Http::in_flight)
    }

    /// Outlives the plugin for whoever keeps it.
    pub fn stats(&self) -> &Arc<PluginStats> {
        &self.handle.core.stats
    }

    /// Whether it is left alone for now.
    pub fn quarantined(&self) -> bool {
        !self.handle.core.quarantine.open()
    }

    /// Never to be asked again, from the next question on, by any worker: `on_failure` decides in its place. For a version
    /// that must not run a moment longer, while nothing is there to replace it.
    pub fn withdraw(&self) {
        self.handle.core.quarantine.withdraw();
    }

    pub fn withdrawn(&self) -> bool {
        self.handle.core.quarantine.withdrawn()
    }

    pub fn router(&self) -> Option<Arc<dyn Router>> {
        self.questions.route.then(|| Arc::new(Asker(self.handle.clone())) as Arc<dyn Router>)
    }

    pub fn balancer(&self) -> Option<Arc<dyn Balancer>> {
        self.questions.pick.then(|| Arc::new(Asker(self.handle.clone())) as Arc<dyn Balancer>)
    }

    pub fn forwarding(&self) -> Option<Arc<dyn Forwarding>> {
        self.questions.identify.then(|| Arc::new(Asker(self.handle.clone())) as Arc<dyn Forwarding>)
    }

    pub fn retry(&self) -> Option<Arc<dyn Retry>> {
        self.questions.decide.then(|| Arc::new(Asker(self.handle.clone())) as Arc<dyn Retry>)
    }

    pub fn tunnel_router(&self) -> Option<Arc<dyn TunnelRouter>> {
        self.questions.tunnel.then(|| Arc::new(Asker(self.handle.clone())) as Arc<dyn TunnelRouter>)
    }

    /// The questions that it answers, by name, with their counts.
    pub fn answered(&self) -> impl Iterator<Item = (&'static str, &QuestionStats)> {
        let questions = QUESTIONS.into_iter().zip(&self.stats().questions);
        questions.zip(self.questions.list()).filter_map(|(question, answers)| answers.then_some(question))
    }

    /// For the status page.
    pub fn status(&self) -> serde_json::Value {
        let stats = self.stats();
        let questions: serde_json::Map<String, serde_json::Value> = self
            .answered()
            .map(|(name, question)| {
                let faults: serde_json::Map<_, _> =
                    question.faults().filter(|(_, n)| *n > 0).map(|(kind, n)| (kind.to_owned(), json!(n))).collect();
                let (_, count, seconds) = question.times();
                let mean = if count == 0 { 0.0 } else { seconds * 1e9 / count as f64 };
                let row = json!({
                    "asked": question.asked(), "memo_hits": question.memo_hits(),
                    "mean_ns": mean.round(), "faults": faults,
                });
                (name.to_owned(), row)
            })
            .collect();
        json!({
            "name": **self.name(),
            "tenant": self.tenant().map(|tenant| &**tenant),
            "digest": self.digest(),
            "quarantined": self.quarantined(),
            "withdrawn": self.withdrawn(),
            "instances": stats.live_instances(),
            "questions": questions,
            "callouts": self.callouts_in_flight().map(|in_flight| {
                let ended = stats.callouts().filter(|(_, n)| *n > 0).map(|(outcome, n)| (outcome.to_owned(), json!(n)));
                json!({ "in_flight": in_flight, "ended": ended.collect::<serde_json::Map<_, _>>() })
            }),
        })
    }
}
