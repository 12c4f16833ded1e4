//! Workers: a thread per core, each with its runtime, sockets, pools and guest instances, and the handle on all of them.
//!
//! Workers share the snapshot, counters and endpoint state; nothing else, so a request takes no lock. The control
//! thread speaks to them through a channel each: sockets to serve, sockets to close, a snapshot to look at, the signal
//! to drain.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use tokio::sync::{Notify, mpsc};

use crate::clock::Lately;
use crate::exchange::{Slots, Steps};
use crate::listener::{self, Opened, Serving, Sockets};
use crate::observe::{RecordSink, WorkerMetrics};
use crate::snapshot::Snapshot;
use crate::tenant::{Tenant, Turns};
use crate::timer::{Deadline, Timers};
use crate::tunnel;
use crate::upstream::Upstreams;
use crate::upstream::health::Alarm;

/// What everything on one worker shares.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) workers: usize,
    zero: Lately,
    pub(crate) current: Arc<ArcSwap<Snapshot>>,
    pub(crate) timers: Timers,
    pub(crate) upstreams: Upstreams,
    pub(crate) alarm: Arc<Alarm>,
    pub(crate) metrics: Arc<WorkerMetrics>,
    pub(crate) drain: Drain,
    pub(crate) slots: Slots,
    pub(crate) steps: Steps,
    pub(crate) turns: Turns,
    pub(crate) ports: listener::quic::Ports,
    pub(crate) datagrams: tunnel::Ports,
    pub(crate) sinks: Box<[Arc<dyn RecordSink>]>,
    /// Connection tasks that have not ended.
    connections: Cell<usize>,
    quiet: Notify,
}

impl Worker {
    /// Since a zero that all workers share, for averages and budgets: a moment ago.
    pub(crate) fn now(&self) -> Duration {
        self.zero.elapsed()
    }

    /// A guest took so much of this worker's time, for a request of `tenant`'s if it has one.
    pub(crate) fn guest_took(&self, tenant: Option<&Tenant>, time: Duration) {
        self.steps.guest_took(time, || self.now());
        if let Some(tenant) = tenant {
            self.turns.took(tenant, time);
        }
    }

    /// Runs a connection's task, counted until its end.
    pub(crate) fn spawn_connection(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        struct Running(Rc<Worker>);
        impl Drop for Running {
            fn drop(&mut self) {
                self.0.connections.set(self.0.connections.get() - 1);
                self.0.metrics.connections_active.sub(1);
                self.0.quiet.notify_waiters();
            }
        }
        self.connections.set(self.connections.get() + 1);
        self.metrics.connections_active.add(1);
        let running = Running(self.clone());
        // An `async` block around it would hold the task twice.
        tokio::task::spawn_local(task.map(move |()| drop(running)));
    }

    async fn without_connections(&self) {
        loop {
            let notified = self.quiet.notified();
            if self.connections.get() == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// The stop signal as one worker sees it: no new work, what is in flight finishes.
#[derive(Default)]
pub(crate) struct Drain {
    draining: Cell<bool>,
    begin: Notify,
}

impl Drain {
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Completes when draining begins; at once when it has begun.
    pub(crate) async fn begun(&self) {
        loop {
            let notified = self.begin.notified();
            if self.draining.get() {
                return;
            }
            notified.await;
        }
    }

    pub(crate) fn begin(&self) {
        self.draining.set(true);
        self.begin.notify_waiters();
    }
}

/// How many workers, and what they report to.
pub struct GatewayOptions {
    pub workers: usize,
    pub sinks: Vec<Arc<dyn RecordSink>>,
    /// How long work in flight may take to finish once draining began.
    pub drain_timeout: Duration,
    /// Called on every worker's thread when a snapshot came into force: plugin instances live there.
    pub on_apply: Option<Arc<dyn Fn() + Send + Sync>>,
}

enum Command {
    Apply { opened: Vec<Opened>, closed: Vec<Arc<str>> },
    Drain,
}

/// Sockets by the listener's name.
type Bound = HashMap<Arc<str>, Sockets>;

/// All workers, as the control thread holds them.
pub struct Gateway {
    current: Arc<ArcSwap<Snapshot>>,
    metrics: Vec<Arc<WorkerMetrics>>,
    channels: Vec<mpsc::UnboundedSender<Command>>,
    threads: Vec<JoinHandle<()>>,
    bound: Bound,
    udp: listener::quic::Groups,
    workers: usize,
    zero: Instant,
    alarm: Arc<Alarm>,
}

impl Gateway {
    /// Binds every listener and starts the workers. Fails before any thread runs if an address cannot be bound.
    pub fn start(snapshot: Arc<Snapshot>, options: GatewayOptions) -> io::Result<Self> {
        let workers = options.workers.max(1);
        let current = Arc::new(ArcSwap::new(snapshot.clone()));
        let zero = Instant::now();
        let options = Arc::new(options);
        let mut gateway = Self {
            current,
            metrics: Vec::new(),
            channels: Vec::new(),
            threads: Vec::new(),
            bound: HashMap::new(),
            udp: listener::quic::Groups::default(),
            workers,
            zero,
            alarm: Arc::default(),
        };
        let (bound, opened) = gateway.bind(&snapshot)?;
        gateway.bound = bound;
        for (index, opened) in opened.into_iter().enumerate() {
            let metrics = Arc::new(WorkerMetrics::default());
            let (sender, receiver) = mpsc::unbounded_channel();
            // The receiver lives as long as its thread, which has not started.
            let _ = sender.send(Command::Apply { opened, closed: Vec::new() });
            let (current, alarm) = (gateway.current.clone(), gateway.alarm.clone());
            let start = Start { index, workers, zero, current, alarm, metrics: metrics.clone() };
            let options = options.clone();
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || start.run(receiver, &options))?;
            gateway.metrics.push(metrics);
            gateway.channels.push(sender);
            gateway.threads.push(thread);
        }
        Ok(gateway)
    }

    /// Sockets for every listener of `snapshot`: those that are bound already stay. Nothing changes on an error.
    fn bind(&self, snapshot: &Snapshot) -> io::Result<(Bound, Vec<Vec<Opened>>)> {
        let mut bound = HashMap::new();
        let mut opened: Vec<Vec<Opened>> = (0..self.workers).map(|_| Vec::new()).collect();
        for spec in &snapshot.listeners {
            if let Some(sockets) = self.bound.get(&spec.name).filter(|sockets| sockets.serves(spec)) {
                bound.insert(spec.name.clone(), sockets.clone());
                continue;
            }
            let (sockets, shares) = Sockets::bind(spec, self.workers, &self.udp).map_err(|error| {
                io::Error::new(error.kind(), format!("listener {:?}: cannot bind {}: {error}", spec.name, spec.address))
            })?;
            bound.insert(spec.name.clone(), sockets);
            for (worker, share) in opened.iter_mut().zip(shares) {
                worker.push(share);
            }
        }
        Ok((bound, opened))
    }

    /// Swaps the configuration: new listeners are bound first, then every exchange that begins sees `snapshot`, then
    /// listeners that are gone close. Connections and exchanges under way are not touched.
    pub fn apply(&mut self, snapshot: Arc<Snapshot>) -> io::Result<()> {
        let (bound, opened) = self.bind(&snapshot)?;
        let closed: Vec<Arc<str>> = self
            .bound
            .iter()
            .filter(|(name, sockets)| !bound.get(*name).is_some_and(|kept| kept.same(sockets)))
            .map(|(name, _)| name.clone())
            .collect();
        self.bound = bound;
        self.current.store(snapshot);
        for (channel, opened) in self.channels.iter().zip(opened) {
            // A worker that ended (draining) has nothing to change.
            let _ = channel.send(Command::Apply { opened, closed: closed.clone() });
        }
        Ok(())
    }

    /// The addresses that are bound, by listener name.
    pub fn addresses(&self) -> Vec<(Arc<str>, SocketAddr)> {
        self.bound.iter().map(|(name, sockets)| (name.clone(), sockets.address())).collect()
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The place where successive snapshots are.
    pub fn current(&self) -> Arc<ArcSwap<Snapshot>> {
        self.current.clone()
    }

    /// The zero of all times that workers share.
    pub fn zero(&self) -> Instant {
        self.zero
    }

    /// What wakes the sweeper of ejections.
    pub fn alarm(&self) -> Arc<Alarm> {
        self.alarm.clone()
    }

    pub fn metrics(&self) -> &[Arc<WorkerMetrics>] {
        &self.metrics
    }

    /// Begins the graceful stop: listeners close, connections end after what they have in flight.
    pub fn drain(&self) {
        for channel in &self.channels {
            let _ = channel.send(Command::Drain);
        }
    }

    /// The workers' threads, to be joined once: they end when drained, or when the drain timeout is over.
    pub fn take_threads(&mut self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.threads)
    }
}

/// What a worker's thread starts from.
struct Start {
    index: usize,
    workers: usize,
    zero: Instant,
    current: Arc<ArcSwap<Snapshot>>,
    alarm: Arc<Alarm>,
    metrics: Arc<WorkerMetrics>,
}

impl Start {
    fn run(self, commands: mpsc::UnboundedReceiver<Command>, options: &GatewayOptions) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, worker = self.index, "no runtime for a worker");
                return;
            }
        };
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime, self.serve(commands, options));
        // Dropping the tasks closes whatever outlived the drain timeout.
        drop(tasks);
    }

    async fn serve(self, mut commands: mpsc::UnboundedReceiver<Command>, options: &GatewayOptions) {
        let timers = Timers::new();
        tokio::task::spawn_local(timers.clone().drive());
        let worker = Rc::new(Worker {
            index: self.index,
            workers: self.workers,
            zero: Lately::exactly().before(self.zero.elapsed()),
            current: self.current,
            upstreams: Upstreams::new(timers.clone(), self.metrics.clone()),
            timers,
            alarm: self.alarm,
            metrics: self.metrics,
            drain: Drain::default(),
            slots: Slots::default(),
            steps: Steps::default(),
            turns: Turns::default(),
            ports: listener::quic::Ports::default(),
            datagrams: tunnel::Ports::default(),
            sinks: options.sinks.clone().into(),
            connections: Cell::new(0),
            quiet: Notify::new(),
        });
        let turns = worker.clone();
        tokio::task::spawn_local(async move { turns.turns.drive().await });
        let serving: RefCell<HashMap<Arc<str>, Serving>> = RefCell::default();
        while let Some(command) = commands.recv().await {
            match command {
                Command::Apply { opened, closed } => {
                    let snapshot = worker.current.load_full();
                    worker.upstreams.apply(&snapshot);
                    listener::reconcile(&worker, &snapshot, &mut serving.borrow_mut(), opened, &closed);
                    if let Some(on_apply) = &options.on_apply {
                        on_apply();
                    }
                }
                Command::Drain => break,
            }
        }
        worker.drain.begin();
        for (_, serving) in serving.into_inner() {
            serving.stop().await;
        }
        worker.upstreams.close_idle();
        let mut timeout = Deadline::after(&worker.timers, Some(options.drain_timeout));
        tokio::select! {
            () = worker.without_connections() => {}
            () = timeout.elapsed() => {
                tracing::warn!(worker = worker.index, connections = worker.connections.get(), "drain timeout: closing what is left");
            }
        }
    }
}
