//! The engine that all such components share: asynchronous, pooling, copy-on-write memory, epochs.

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use tidegate_wasm::Ticker;
use wasmtime::component::Linker;
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use crate::guest::Guest;
use crate::imports;

/// What the engine may use.
#[derive(Clone, Debug)]
pub struct EdgeOptions {
    /// Where compiled components are kept; `None`: nowhere.
    pub cache: Option<PathBuf>,
    /// Live instances over all threads and components.
    pub max_instances: u32,
}

#[derive(Debug, Error)]
pub enum EdgeError {
    #[error("the WebAssembly engine cannot be set up: {0:#}")]
    Engine(wasmtime::Error),
    #[error("the epoch thread cannot be started: {0}")]
    Ticker(#[from] std::io::Error),
}

/// The engine, its clock, its cache, and what guests import. Apart from that of plugins: those are called without a stack
/// of their own, and pay for nothing that waits.
pub struct Edge {
    pub(crate) engine: Engine,
    pub(crate) ticker: Arc<Ticker>,
    pub(crate) cache: Option<PathBuf>,
    pub(crate) linker: Linker<Guest>,
}

/// The most memory any guest may be limited to: the size of a slot's accessible part.
const MAX_MEMORY: usize = 1 << 30;
/// Core modules of one component. Their number is all that the pool counts.
const MAX_CORE_INSTANCES: u32 = 64;
/// Of what a stack has touched, so much stays mapped for the next guest on it.
const STACK_RESIDENT: usize = 32 * 1024;

impl Edge {
    pub fn new(options: EdgeOptions) -> Result<Arc<Self>, EdgeError> {
        let instances = options.max_instances.max(1);
        let mut pool = PoolingAllocationConfig::default();
        pool.total_component_instances(instances)
            .total_memories(instances)
            .total_stacks(instances)
            .total_core_instances(instances.saturating_mul(MAX_CORE_INSTANCES))
            .total_tables(instances.saturating_mul(4))
            .max_core_instances_per_component(MAX_CORE_INSTANCES)
            .max_memories_per_component(1)
            .max_tables_per_component(8)
            .table_elements(20_000)
            .max_memory_size(MAX_MEMORY)
            .linear_memory_keep_resident(256 * 1024)
            .table_keep_resident(16 * 1024)
            .async_stack_keep_resident(STACK_RESIDENT)
            .pagemap_scan(Enabled::Auto);
        let mut config = Config::new();
        config
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
            .cranelift_opt_level(OptLevel::Speed)
            .memory_init_cow(true)
            // For the asynchronous interfaces of WASI 0.3; what waits in 0.2 waits on a stack of its own.
            .concurrency_support(false)
            .epoch_interruption(true)
            .consume_fuel(false);
        let engine = Engine::new(&config).map_err(EdgeError::Engine)?;
        let ticker = Ticker::start(&engine)?;
        let linker = imports::link(&engine).map_err(EdgeError::Engine)?;
        Ok(Arc::new(Self { engine, ticker, cache: options.cache, linker }))
    }
}
