//! Start order, signals, stop; and `Control`, what the control thread knows while workers serve.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use anyhow::Context;
use serde_json::json;
use tidegate_config::{AccessLogTarget, Config};
use tidegate_policy::Ailment;
use tidegate_proxy::HealthChecks;
use tidegate_proxy::observe::{RecordSink, WorkerMetrics};
use tidegate_proxy::snapshot::Snapshot;
use tidegate_proxy::worker::{Gateway, GatewayOptions};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::compile::{Compiled, Compiler};
use crate::telemetry::{self, AccessLog};
use crate::{admin, cli};

/// What the control thread knows: the running gateway, the compiler, what serves now.
pub(crate) struct Control {
    path: Option<PathBuf>,
    compiler: Compiler,
    running: Mutex<Running>,
    draining: AtomicBool,
    started: Instant,
    pub(crate) reloads_ok: AtomicU64,
    pub(crate) reloads_refused: AtomicU64,
    pub(crate) log_dropped: Option<Arc<AtomicU64>>,
}

/// Changed by one reload at a time.
pub(crate) struct Running {
    pub(crate) gateway: Gateway,
    pub(crate) compiled: Arc<Compiled>,
    /// Once the control thread's runtime is there.
    health: Option<HealthChecks>,
}

impl Control {
    /// Compiles `config` and starts the workers. A refused configuration is a `ConfigRefused` inside the error.
    pub(crate) fn start(path: Option<&Path>, config: &Config, sinks: Vec<Arc<dyn RecordSink>>) -> anyhow::Result<Self> {
        let compiler = Compiler::new(config).map_err(refused)?;
        let compiled = compiler.compile(config, None).map_err(refused)?;
        let mut sinks = sinks;
        let log = match &config.gateway.access_log {
            AccessLogTarget::Off => None,
            AccessLogTarget::Stdout => Some(AccessLog::to_stdout()?),
            AccessLogTarget::File(file) => {
                let opened = AccessLog::to_file(file);
                Some(opened.with_context(|| format!("cannot open the access log {}", file.display()))?)
            }
        };
        let log_dropped = log.as_ref().map(|log| log.dropped.clone());
        sinks.extend(log.map(|log| Arc::new(log) as Arc<dyn RecordSink>));
        let options = GatewayOptions {
            workers: config.gateway.workers,
            sinks,
            drain_timeout: config.gateway.drain_timeout,
            on_apply: Some(Arc::new(tidegate_wasm::retire_stale)),
        };
        let gateway = Gateway::start(compiled.snapshot.clone(), options)?;
        Ok(Self {
            path: path.map(Path::to_owned),
            compiler,
            running: Mutex::new(Running { gateway, compiled: Arc::new(compiled), health: None }),
            draining: AtomicBool::new(false),
            started: Instant::now(),
            reloads_ok: AtomicU64::new(0),
            reloads_refused: AtomicU64::new(0),
            log_dropped,
        })
    }

    /// A reload that panicked half way left a whole old state behind: nothing is replaced before the end.
    pub(crate) fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Load, check, compile, bind, swap. Any error keeps the old configuration and is told to the caller.
    pub(crate) fn reload(&self) -> Result<u64, Vec<String>> {
        let result = self.try_reload();
        match &result {
            Ok(generation) => {
                self.reloads_ok.fetch_add(1, Ordering::Relaxed);
                tracing::info!(generation, "configuration reloaded");
            }
            Err(errors) => {
                self.reloads_refused.fetch_add(1, Ordering::Relaxed);
                for error in errors {
                    tracing::error!("reload refused: {error}");
                }
            }
        }
        result
    }

    fn try_reload(&self) -> Result<u64, Vec<String>> {
        let words = |errors: tidegate_config::Errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        let Some(path) = &self.path else {
            return Err(vec!["the demo's configuration is in the program: there is nothing to reload".to_owned()]);
        };
        let config = tidegate_config::load(path).map_err(words)?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let mut running = self.running();
        let compiled = self.compiler.compile(&config, Some(&running.compiled)).map_err(words)?;
        running.gateway.apply(compiled.snapshot.clone()).map_err(|error| vec![error.to_string()])?;
        let generation = compiled.snapshot.generation;
        let before = std::mem::replace(&mut running.compiled, Arc::new(compiled));
        let snapshot = running.compiled.snapshot.clone();
        if let Some(health) = &mut running.health {
            health.apply(&snapshot, Some(&before.snapshot));
        }
        Ok(generation)
    }

    /// Health is looked after on this runtime, from now on and over reloads.
    pub(crate) fn start_health(&self, runtime: &tokio::runtime::Handle) {
        let mut running = self.running();
        let (zero, current) = (running.gateway.zero(), running.gateway.current());
        running.health = Some(HealthChecks::start(runtime.clone(), zero, current));
    }

    pub(crate) fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.running().gateway.drain();
    }

    /// Waits until the workers have ended, which they do after `drain`.
    pub(crate) fn join_workers(&self) {
        let threads = self.running().gateway.take_threads();
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }

    /// What `/status` shows.
    pub(crate) fn status(&self) -> serde_json::Value {
        let running = self.running();
        let snapshot: &Snapshot = &running.compiled.snapshot;
        let listeners: Vec<_> = running
            .gateway
            .addresses()
            .into_iter()
            .map(|(name, address)| json!({ "name": *name, "address": address }))
            .collect();
        let clusters: Vec<_> = snapshot.clusters.iter().map(|cluster| cluster_status(cluster)).collect();
        let plugins: Vec<_> = running.compiled.plugins.iter().map(|(_, plugin)| plugin.status()).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "generation": snapshot.generation,
            "draining": self.draining(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "workers": running.gateway.metrics().len(),
            "listeners": listeners,
            "clusters": clusters,
            "plugins": plugins,
        })
    }

    pub(crate) fn metrics(&self) -> (Vec<Arc<WorkerMetrics>>, Arc<Compiled>) {
        let running = self.running();
        (running.gateway.metrics().to_vec(), running.compiled.clone())
    }
}

fn cluster_status(cluster: &tidegate_proxy::snapshot::Cluster) -> serde_json::Value {
    let endpoints: Vec<_> = cluster
        .set
        .endpoints
        .iter()
        .map(|endpoint| {
            json!({
                "address": endpoint.address,
                "weight": endpoint.weight,
                "healthy": endpoint.state.healthy(),
                "reason": endpoint.state.health.ailment().map(ailment),
                "ejections": endpoint.state.health.ejections(),
                "in_flight": endpoint.state.in_flight(),
                "requests": endpoint.state.requests.load(Ordering::Relaxed),
                "failures": endpoint.state.failures.load(Ordering::Relaxed),
                "latency_us": endpoint.state.last_latency().as_micros() as u64,
            })
        })
        .collect();
    json!({ "name": *cluster.name, "panic": cluster.set.panicking(), "endpoints": endpoints })
}

/// Why an endpoint takes no requests: `awaited`, `checks`, or `ejected: consecutive_5xx`.
fn ailment(ailment: Ailment) -> String {
    match ailment {
        Ailment::Ejected(reason) => format!("{}: {}", ailment.name(), reason.name()),
        Ailment::Awaited | Ailment::Checks => ailment.name().to_owned(),
    }
}

/// Prints every error; the caller ends with the code for a bad configuration.
fn refused(errors: tidegate_config::Errors) -> anyhow::Error {
    cli::ConfigRefused(errors).into()
}

/// `tidegate run`: serves until SIGTERM or SIGINT, reloads on SIGHUP.
pub(crate) fn run(path: &Path, config: Config, addresses: Option<&Path>) -> anyhow::Result<ExitCode> {
    telemetry::install(&config.gateway.log);
    let control = Arc::new(Control::start(Some(path), &config, Vec::new())?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    control.start_health(runtime.handle());
    runtime.block_on(async {
        let mut bound = serde_json::Map::new();
        for (name, address) in control.running().gateway.addresses() {
            tracing::info!("listening name={name} address={address}");
            bound.insert(name.to_string(), json!(address));
        }
        if let Some(admin) = config.gateway.admin {
            let listener =
                TcpListener::bind(admin).await.with_context(|| format!("cannot bind the admin listener to {admin}"))?;
            let address = listener.local_addr()?;
            tracing::info!("listening name=admin address={address}");
            bound.insert("admin".to_owned(), json!(address));
            tokio::spawn(admin::serve(listener, control.clone()));
        }
        if let Some(file) = addresses {
            write_addresses(file, &bound)?;
        }
        wait_for_stop(&control).await
    })?;
    control.drain();
    tracing::info!("draining");
    // Admin goes on answering until the workers have ended.
    control.join_workers();
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Written beside and renamed, so that a reader never sees half of it.
fn write_addresses(file: &Path, bound: &serde_json::Map<String, serde_json::Value>) -> anyhow::Result<()> {
    let beside = file.with_extension("part");
    let text = serde_json::to_vec(bound)?;
    std::fs::write(&beside, text)
        .and_then(|()| std::fs::rename(&beside, file))
        .with_context(|| format!("cannot write {}", file.display()))
}

async fn wait_for_stop(control: &Arc<Control>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => {
                let control = control.clone();
                // Logged inside; a reload that fails changes nothing.
                let _ = tokio::task::spawn_blocking(move || control.reload()).await;
            }
        }
    }
}
