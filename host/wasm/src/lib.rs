//! WebAssembly components that answer tidegate's questions.
//!
//! A [`Runtime`] compiles components, a [`Plugin`] is one of them with its settings, limits and grants, and gives the
//! traits of `tidegate-policy` for the questions it exports. Calls are synchronous on the worker's thread; instances
//! live in a thread-local, one store each. Nothing here knows of sockets.

mod artifact;
mod budget;
mod decide;
mod host;
mod instances;
mod kv;
mod memo;
mod plugin;
mod prepared;
mod quarantine;
mod runtime;
mod state;
mod stats;
mod ticker;
mod types;
mod wasi;

pub use artifact::Binary;
pub use budget::{CpuShare, Share, Tenant, TenantLimits};
pub use instances::{has_instances, retire_stale};
pub use kv::{KvError, KvGrant};
pub use plugin::{Grants, Isolation, Limits, LoadError, Plugin, PluginSpec, Questions};
pub use runtime::{Runtime, RuntimeError, RuntimeOptions};
pub use stats::{CustomMetric, PluginStats, QUESTIONS, QuestionStats};
