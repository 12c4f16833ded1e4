//! The engine all plugins share: pooling allocator, copy-on-write memory, epochs.

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use crate::kv::{KvError, Stores};
use crate::prepared::Preparations;
use crate::simulation::Simulation;
use crate::ticker::Ticker;

/// What the runtime may use.
pub struct RuntimeOptions {
    /// Where compiled components are kept; `None`: nowhere.
    pub cache: Option<PathBuf>,
    /// Live instances over all threads and plugins.
    pub max_instances: u32,
}

#[derive(Debug, Error)]
pub enum RuntimeError {
    #[error("the WebAssembly engine cannot be set up: {0:#}")]
    Engine(wasmtime::Error),
    #[error("the epoch thread cannot be started: {0}")]
    Ticker(#[from] std::io::Error),
}

/// The engine, its clock and its cache.
pub struct Runtime {
    pub(crate) engine: Engine,
    pub(crate) ticker: Arc<Ticker>,
    pub(crate) cache: Option<PathBuf>,
    pub(crate) preparations: Preparations,
    pub(crate) simulation: Option<Arc<Simulation>>,
    pub(crate) kv: Stores,
}

/// The most memory any plugin may be limited to: the size of a slot's accessible part.
const MAX_MEMORY: usize = 1 << 30;
/// Core modules of one component, and the one of `reexport.rs`. CPython comes as shared libraries, 38 of them with what links
/// them. Their number is all that the pool counts: nothing is set aside for one.
const MAX_CORE_INSTANCES: u32 = 64 + 1;
/// An instance needs this many mappings; the process aborts when the kernel's limit is reached.
const MAPPINGS: u32 = 4;

impl Runtime {
    pub fn new(options: RuntimeOptions) -> Result<Arc<Self>, RuntimeError> {
        Self::build(options, None)
    }

    /// One whose components are told the time, and chance, by `simulation`.
    pub fn simulated(options: RuntimeOptions, simulation: Arc<Simulation>) -> Result<Arc<Self>, RuntimeError> {
        Self::build(options, Some(simulation))
    }

    fn build(options: RuntimeOptions, simulation: Option<Arc<Simulation>>) -> Result<Arc<Self>, RuntimeError> {
        let instances = options.max_instances.clamp(1, mappings_allow());
        let mut pool = PoolingAllocationConfig::default();
        pool.total_component_instances(instances)
            .total_memories(instances)
            .total_core_instances(instances.saturating_mul(MAX_CORE_INSTANCES))
            .total_tables(instances.saturating_mul(4))
            .max_core_instances_per_component(MAX_CORE_INSTANCES)
            .max_memories_per_component(1)
            .max_tables_per_component(8)
            .table_elements(20_000)
            .max_memory_size(MAX_MEMORY)
            .linear_memory_keep_resident(256 * 1024)
            .table_keep_resident(16 * 1024)
            .pagemap_scan(Enabled::Auto);
        let mut config = Config::new();
        config
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
            .cranelift_opt_level(OptLevel::Speed)
            .memory_init_cow(true)
            // Measured: with it each call costs 3.6 times as much. Decisions are synchronous.
            .concurrency_support(false)
            .epoch_interruption(true)
            .consume_fuel(false);
        let engine = Engine::new(&config).map_err(RuntimeError::Engine)?;
        let ticker = Ticker::start_at_rest(&engine)?;
        Ok(Arc::new(Self {
            engine,
            ticker,
            cache: options.cache,
            preparations: Preparations::default(),
            simulation,
            kv: Stores::default(),
        }))
    }
}

impl Runtime {
    /// Reads what the plugins so far keep on disk, and begins to write it. Before the first of them is asked.
    pub fn begin_kv(&self) -> Result<(), KvError> {
        self.kv.begin()
    }

    /// Writes what plugins keep on disk and is not written yet. After the last question.
    pub fn finish_kv(&self) {
        self.kv.finish();
    }
}

/// Half of what the kernel allows the process to map.
fn mappings_allow() -> u32 {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    let limit: u32 = limit.and_then(|text| text.trim().parse().ok()).unwrap_or(65_530);
    (limit / MAPPINGS / 2).max(1)
}
