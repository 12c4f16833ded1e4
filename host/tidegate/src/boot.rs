//! Start order, signals, stop; and `Control`, what the control thread knows while workers serve.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;
use tidegate_config::{AccessLogTarget, Config, Errors, Gateway as GatewayConfig};
use tidegate_policy::Ailment;
use tidegate_proxy::HealthChecks;
use tidegate_proxy::observe::{RecordSink, WorkerMetrics};
use tidegate_proxy::snapshot::Snapshot;
use tidegate_proxy::worker::{Gateway, GatewayOptions};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};

use crate::compile::{Compiled, Compiler, Fresh};
use crate::files::TlsFiles;
use crate::shipping::Shipping;
use crate::steering::{self, Steering};
use crate::telemetry::{self, AccessLog, LogWriter};
use crate::{admin, cli, refresh};

/// What the control thread knows: the running gateway, the compiler, what serves now.
pub(crate) struct Control {
    path: Option<PathBuf>,
    compiler: Compiler,
    /// As the process began: some of it is read only then.
    began: GatewayConfig,
    /// Held by the one reload at a time, from reading the file on: whoever comes last reads last, and wins.
    reloading: Mutex<()>,
    /// Held for moments: the admin listener looks through it.
    running: Mutex<Running>,
    draining: AtomicBool,
    started: Instant,
    pub(crate) reloads_ok: AtomicU64,
    pub(crate) reloads_refused: AtomicU64,
    pub(crate) renewals_ok: AtomicU64,
    pub(crate) renewals_refused: AtomicU64,
    /// Files as they were when they were refused.
    refused_files: Mutex<Option<TlsFiles>>,
    /// The generation in force, told to all who wait for another.
    swapped: watch::Sender<u64>,
    pub(crate) steering: Steering,
    pub(crate) log_dropped: Option<Arc<AtomicU64>>,
    log_writer: Option<Mutex<LogWriter>>,
}

/// Why a reload changed nothing.
#[derive(Debug)]
pub(crate) enum ReloadRefused {
    /// The configuration is wrong, in these respects.
    Configuration(Vec<String>),
    /// It may be right, but cannot be served.
    Failed(String),
}

impl ReloadRefused {
    pub(crate) fn reasons(&self) -> &[String] {
        match self {
            Self::Configuration(errors) => errors,
            Self::Failed(error) => std::slice::from_ref(error),
        }
    }
}

/// Changed by one reload at a time.
pub(crate) struct Running {
    pub(crate) gateway: Gateway,
    pub(crate) compiled: Arc<Compiled>,
    config: Arc<Config>,
    /// The files of TLS that are served.
    tls_files: TlsFiles,
    /// Once the control thread's runtime is there.
    health: Option<HealthChecks>,
}

impl Control {
    /// Compiles `config` and starts the workers. A refused configuration is a `ConfigRefused` inside the error.
    pub(crate) fn start(path: Option<&Path>, config: &Config, sinks: Vec<Arc<dyn RecordSink>>) -> anyhow::Result<Self> {
        let compiler = Compiler::new(config).map_err(refused)?;
        let tls_files = TlsFiles::of(config);
        let mut compiled = compiler.compile(config, None).map_err(refused)?;
        compiler.begin_kv()?;
        let mut sinks = sinks;
        let opened = match &config.gateway.access_log {
            AccessLogTarget::Off => None,
            AccessLogTarget::Stdout => Some(AccessLog::to_stdout()?),
            AccessLogTarget::File(file) => {
                let opened = AccessLog::to_file(file);
                Some(opened.with_context(|| format!("cannot open the access log {}", file.display()))?)
            }
        };
        let (log, log_writer) = opened.unzip();
        let log_dropped = log.as_ref().map(|log| log.dropped.clone());
        sinks.extend(log.map(|log| Arc::new(log) as Arc<dyn RecordSink>));
        let options = GatewayOptions {
            workers: config.gateway.workers,
            sinks,
            drain_timeout: config.gateway.drain_timeout,
            on_apply: Some(Arc::new(sweep_instances)),
        };
        let steering = Steering::default();
        // The demo has none, and what others left behind is not its business.
        if path.is_some() {
            steering.begin(&compiled.steers)?;
        }
        let gateway = Gateway::start(compiled.snapshot.clone(), options)?;
        settle(&mut compiled).iter().for_each(Fresh::remember);
        Ok(Self {
            path: path.map(Path::to_owned),
            compiler,
            began: config.gateway.clone(),
            reloading: Mutex::default(),
            running: Mutex::new(Running {
                gateway,
                compiled: Arc::new(compiled),
                config: Arc::new(config.clone()),
                tls_files,
                health: None,
            }),
            refused_files: Mutex::default(),
            swapped: watch::Sender::new(0),
            draining: AtomicBool::new(false),
            started: Instant::now(),
            reloads_ok: AtomicU64::new(0),
            reloads_refused: AtomicU64::new(0),
            renewals_ok: AtomicU64::new(0),
            renewals_refused: AtomicU64::new(0),
            steering,
            log_dropped,
            log_writer: log_writer.map(Mutex::new),
        })
    }

    pub(crate) fn running(&self) -> MutexGuard<'_, Running> {
        lock(&self.running)
    }

    /// Load, check, compile, bind, swap. Any error keeps the old configuration and is told to the caller.
    pub(crate) fn reload(&self) -> Result<u64, ReloadRefused> {
        let result = self.try_reload();
        match &result {
            Ok(generation) => {
                self.reloads_ok.fetch_add(1, Ordering::Relaxed);
                tracing::info!(generation, "configuration reloaded");
            }
            Err(refused) => {
                self.reloads_refused.fetch_add(1, Ordering::Relaxed);
                for reason in refused.reasons() {
                    tracing::error!("reload refused: {reason}");
                }
            }
        }
        result
    }

    fn try_reload(&self) -> Result<u64, ReloadRefused> {
        let wrong = |errors: tidegate_config::Errors| {
            ReloadRefused::Configuration(errors.iter().map(ToString::to_string).collect())
        };
        let failed = |why: &str| ReloadRefused::Failed(why.to_owned());
        let Some(path) = &self.path else {
            return Err(failed("the demo's configuration is in the program: there is nothing to reload"));
        };
        let _one_at_a_time = lock(&self.reloading);
        if self.draining() {
            return Err(failed(DRAINING));
        }
        let config = Arc::new(tidegate_config::load(path).map_err(wrong)?);
        let tls_files = TlsFiles::of(&config);
        let previous = self.running().compiled.clone();
        let compiled = self.compiler.compile(&config, Some(&previous)).map_err(wrong)?;
        let generation = self.swap(&config, compiled, tls_files, &previous)?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        for key in config.gateway.needs_restart(&self.began) {
            tracing::warn!("gateway.{key} differs from what this process began with: it needs a restart");
        }
        Ok(generation)
    }

    /// Puts a compiled configuration into force. Called by one at a time.
    fn swap(
        &self,
        config: &Arc<Config>,
        mut compiled: Compiled,
        tls_files: TlsFiles,
        previous: &Compiled,
    ) -> Result<u64, ReloadRefused> {
        let snapshot = compiled.snapshot.clone();
        self.steering.claim(&compiled.steers).map_err(|error| ReloadRefused::Failed(format!("{error:#}")))?;
        let mut running = self.running();
        // A listener bound now would outlive the workers' last look.
        if self.draining() {
            return Err(ReloadRefused::Failed(DRAINING.to_owned()));
        }
        self.compiler.begin_kv().map_err(|error| ReloadRefused::Failed(error.to_string()))?;
        let applied = running.gateway.apply(snapshot.clone());
        applied.map_err(|error| ReloadRefused::Failed(error.to_string()))?;
        let fresh = settle(&mut compiled);
        running.compiled = Arc::new(compiled);
        running.config = config.clone();
        running.tls_files = tls_files;
        if let Some(health) = &mut running.health {
            health.apply(&snapshot, Some(&previous.snapshot));
        }
        drop(running);
        // It writes to disk: whoever looks through `running` does not wait for that.
        fresh.iter().for_each(Fresh::remember);
        self.swapped.send_replace(snapshot.generation);
        Ok(snapshot.generation)
    }

    /// The same configuration with something that it names as that is now; else why not, in a line.
    fn swap_same(
        &self,
        config: &Arc<Config>,
        compiled: Result<Compiled, Errors>,
        tls_files: TlsFiles,
        previous: &Compiled,
    ) -> Result<u64, String> {
        let words = |errors: Errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let swapped = self.swap(config, compiled.map_err(words)?, tls_files, previous);
        swapped.map_err(|refused| refused.reasons().join("; "))
    }

    /// Takes certificates, keys and roots as they are now, if they are others than those that are served. The rest of the
    /// configuration stays what was loaded: its file may be half edited.
    pub(crate) fn renew_tls(&self) {
        let _one_at_a_time = lock(&self.reloading);
        let (config, previous) = self.serves();
        let served = self.running().tls_files.clone();
        let now = TlsFiles::of(&config);
        // What was refused as it is now will not fit any better.
        if self.draining() || now == served || lock(&self.refused_files).as_ref() == Some(&now) {
            return;
        }
        let changed = now.differing(&served).map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        let compiled = self.compiler.compile_tls(&config, &previous);
        match self.swap_same(&config, compiled, now.clone(), &previous) {
            Ok(generation) => {
                self.renewals_ok.fetch_add(1, Ordering::Relaxed);
                lock(&self.refused_files).take();
                tracing::info!(generation, changed, "certificates renewed");
            }
            Err(reasons) => {
                self.renewals_refused.fetch_add(1, Ordering::Relaxed);
                *lock(&self.refused_files) = Some(now);
                tracing::error!(changed, "certificates not renewed: {reasons}");
            }
        }
    }

    /// Looks up what the tags of these versions of plugins mean now, and takes what means something else than what serves, as a reload
    /// does but with the configuration that was loaded. Any error keeps what serves.
    pub(crate) fn refresh_plugins(&self, names: &[String]) {
        let _one_at_a_time = lock(&self.reloading);
        if self.draining() {
            return;
        }
        let (config, previous) = self.serves();
        let tls_files = TlsFiles::of(&config);
        let Some(compiled) = self.compiler.refresh(&config, &previous, names) else { return };
        match self.swap_same(&config, compiled, tls_files, &previous) {
            Ok(generation) => tracing::info!(generation, "plugins refreshed"),
            Err(reasons) => tracing::error!("plugins not refreshed: {reasons}"),
        }
    }

    /// The configuration in force, and what it became.
    pub(crate) fn serves(&self) -> (Arc<Config>, Arc<Compiled>) {
        let running = self.running();
        (running.config.clone(), running.compiled.clone())
    }

    /// Changes when another configuration has come into force.
    pub(crate) fn swaps(&self) -> watch::Receiver<u64> {
        self.swapped.subscribe()
    }

    pub(crate) fn shipping(&self) -> &Shipping {
        &self.compiler.shipping
    }

    /// How often they are looked at; `None` for never, or where there are none.
    fn tls_files_check(&self) -> Option<Duration> {
        let running = self.running();
        running.config.gateway.tls_files_check.filter(|_| !running.tls_files.is_empty())
    }

    /// Health is looked after on this runtime, from now on and over reloads.
    pub(crate) fn start_health(&self, runtime: &tokio::runtime::Handle) {
        let mut running = self.running();
        let (zero, current) = (running.gateway.zero(), running.gateway.current());
        let alarm = running.gateway.alarm();
        running.health = Some(HealthChecks::start(runtime.clone(), zero, current, alarm));
    }

    /// Notified when checks changed their mind of an endpoint. After `start_health`.
    pub(crate) fn verdicts(&self) -> Arc<Notify> {
        self.running().health.as_ref().map(HealthChecks::verdicts).unwrap_or_default()
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

    /// Writes what plugins keep on disk. After `join_workers`: they change it.
    pub(crate) fn finish_kv(&self) {
        self.compiler.finish_kv();
    }

    /// Waits for the last lines of the access log. After `join_workers`: they held it.
    pub(crate) fn finish_log(&self) {
        if let Some(writer) = &self.log_writer {
            lock(writer).finish();
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
        let steers: Vec<_> = self.steering.reports().iter().map(|report| report.json()).collect();
        let plugins: Vec<_> = running.compiled.plugins.status();
        let rollouts: Vec<_> = running.compiled.rollouts().map(|rollout| rollout.status()).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "generation": snapshot.generation,
            "draining": self.draining(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "workers": running.gateway.metrics().len(),
            "listeners": listeners,
            "clusters": clusters,
            "steers": steers,
            "plugins": plugins,
            "rollouts": rollouts,
            "refused_versions": self.shipping().failures(&running.config),
        })
    }

    /// What `/shadow` shows.
    pub(crate) fn shadows(&self) -> serde_json::Value {
        let compiled = self.running().compiled.clone();
        let shadows: Vec<_> = compiled.shadows().map(|shadow| shadow.report()).collect();
        json!({ "shadows": shadows })
    }

    pub(crate) fn metrics(&self) -> (Vec<Arc<WorkerMetrics>>, Arc<Compiled>) {
        let running = self.running();
        (running.gateway.metrics().to_vec(), running.compiled.clone())
    }
}

/// Tells of a configuration in force what is not as it should be in it. Returns the versions to remember.
fn settle(compiled: &mut Compiled) -> Vec<Fresh> {
    for note in std::mem::take(&mut compiled.plugins.notes) {
        tracing::error!("{note}");
    }
    compiled.take_fresh()
}

const DRAINING: &str = "the gateway is draining: it takes no new configuration";

/// What panicked while it held one of these left a whole old state behind: nothing is replaced before the end.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// On a worker's thread, with each snapshot: drops instances of plugins that nobody can ask any more, and looks again for a
/// minute, because exchanges that began before may still ask. What ends later is found with the next question or snapshot:
/// an idle worker does not wake up for it.
fn sweep_instances() {
    const LOOKS: u32 = 60;
    thread_local! {
        static LEFT: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    }
    tidegate_wasm::retire_stale();
    if tidegate_wasm::has_instances() && LEFT.replace(LOOKS) == 0 {
        tokio::task::spawn_local(async {
            while LEFT.get() > 0 {
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                tidegate_wasm::retire_stale();
                LEFT.set(LEFT.get() - 1);
            }
        });
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
    raise_descriptor_limit();
    // Before the first worker serves: a start that fails must not have answered anybody.
    let admin = config.gateway.admin.map(bind_admin).transpose()?;
    let control = Arc::new(Control::start(Some(path), &config, Vec::new())?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    control.start_health(runtime.handle());
    runtime.block_on(async {
        let mut bound = serde_json::Map::new();
        for (name, address) in control.running().gateway.addresses() {
            tracing::info!("listening name={name} address={address}");
            bound.insert(name.to_string(), json!(address));
        }
        if let Some(listener) = admin {
            let listener = TcpListener::from_std(listener)?;
            let address = listener.local_addr()?;
            tracing::info!("listening name=admin address={address}");
            bound.insert("admin".to_owned(), json!(address));
            tokio::spawn(admin::serve(listener, control.clone()));
        }
        tokio::spawn(renew_tls(control.clone()));
        tokio::spawn(refresh::run(control.clone()));
        tokio::spawn(steering::run(control.clone()));
        // Heard from before anybody is told that this process serves.
        let (mut stop, hangup) = (Stop::new()?, signal(SignalKind::hangup())?);
        if let Some(file) = addresses {
            write_addresses(file, &bound)?;
        }
        reload_until_stop(&control, &mut stop, hangup).await;
        let stopping = control.clone();
        tokio::spawn(async move {
            stop.asked().await;
            tracing::warn!("asked to stop again: ending at once");
            stopping.steering.end();
            std::process::exit(1);
        });
        anyhow::Ok(())
    })?;
    control.drain();
    tracing::info!("draining");
    // Admin goes on answering until the workers have ended.
    control.join_workers();
    control.steering.end();
    control.finish_log();
    control.finish_kv();
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Looks for renewed certificates for as long as the program runs.
async fn renew_tls(control: Arc<Control>) {
    let mut swaps = control.swaps();
    loop {
        // A reload may turn it on or off, and begins the time anew. `control` holds the sender: there is always another.
        let Some(pause) = control.tls_files_check() else {
            let _ = swaps.changed().await;
            continue;
        };
        if tokio::time::timeout(pause, swaps.changed()).await.is_err() {
            let control = control.clone();
            // It reads files; a panic in it is logged, and the next look may be better.
            let _ = tokio::task::spawn_blocking(move || control.renew_tls()).await;
        }
    }
}

/// A connection is a descriptor. What a service manager allows softly is mostly 1024, for the sake of programs that use
/// `select`; this is none.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "cannot raise the limit on open files");
        }
    }
}

fn bind_admin(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let listener =
        std::net::TcpListener::bind(address).with_context(|| format!("cannot bind the admin listener to {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Written beside and renamed, so that a reader never sees half of it.
fn write_addresses(file: &Path, bound: &serde_json::Map<String, serde_json::Value>) -> anyhow::Result<()> {
    let beside = file.with_extension("part");
    let text = serde_json::to_vec(bound)?;
    std::fs::write(&beside, text)
        .and_then(|()| std::fs::rename(&beside, file))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// SIGTERM and SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn reload_until_stop(control: &Arc<Control>, stop: &mut Stop, mut hangup: Signal) {
    loop {
        tokio::select! {
            () = stop.asked() => return,
            _ = hangup.recv() => {
                let control = control.clone();
                // Logged inside; a reload that fails changes nothing. A signal to stop does not wait for it.
                tokio::task::spawn_blocking(move || control.reload());
            }
        }
    }
}
