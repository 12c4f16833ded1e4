//! WebAssembly components that answer tidegate's questions.
//!
//! A [`Runtime`] compiles components, a [`Plugin`] is one of them with its settings, limits and grants, and gives the
//! traits of `tidegate-policy` for the questions it exports. Calls are synchronous on the worker's thread, but for those
//! that may call out; instances live in a thread-local, one store each. Nothing here knows of sockets.

mod artifact;
mod budget;
mod callout;
mod chain;
mod decide;
mod deployment;
mod host;
mod inspect;
mod instances;
mod kv;
mod memo;
mod plugin;
mod prefetch;
mod prepared;
mod quarantine;
mod read;
mod reexport;
mod rehearsal;
mod rollout;
mod runtime;
mod shadow;
mod simulation;
mod state;
mod stats;
mod ticker;
mod trace;
mod types;
mod wasi;

pub use artifact::{Binary, component};
pub use budget::{Account, CpuShare, Held, Place, Share, Short, Tenant, TenantLimits, Waiting};
pub use callout::{HttpGrant, Scripted};
pub use deployment::Deployment;
pub use host::one_line;
pub use inspect::{Import, Inspection};
pub use instances::{has_instances, retire_stale};
pub use kv::{KvError, KvGrant};
pub use plugin::{Grants, Isolation, Limits, LoadError, Plugin, PluginSpec, Questions, check_component};
pub use prepared::Need;
pub use rollout::{Guard, Reason, Rollout, RolloutSpec, StickyBy};
pub use runtime::{Runtime, RuntimeError, RuntimeOptions};
pub use shadow::{Shadow, ShadowSpec};
pub use simulation::Simulation;
pub use stats::{CalloutOutcome, CustomMetric, PluginStats, QUESTIONS, QuestionStats};
pub use ticker::{TICK, Ticker};
