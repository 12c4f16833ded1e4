//! A store's data: the question at hand, what is recorded of it, and what bounds the guest.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_policy::{Asked, AttemptFacts, Egress, Element, EndpointsView, Families, Identity, RequestEdits};
use wasmtime::component::ResourceTable;
use wasmtime::{ResourceLimiter, UpdateDeadline};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::budget::{Held, Purse};
use crate::plugin::{Core, Limits};
use crate::ticker::Running;
use crate::trace::Trace;

/// What a question gives a guest to read, moved in for the time of one call.
#[derive(Default)]
pub(crate) struct Facts {
    pub(crate) asked: Option<Rc<Asked>>,
    pub(crate) endpoints: Option<EndpointsView>,
    pub(crate) attempt: Option<Rc<AttemptFacts>>,
    pub(crate) identity: Option<Rc<Identity>>,
}

impl Facts {
    pub(crate) fn received(&self) -> &[Element] {
        self.asked.as_ref().map_or(&[], |asked| &asked.received)
    }

    pub(crate) fn client(&self) -> Option<IpAddr> {
        self.asked.as_ref().map(|asked| asked.client)
    }
}

pub(crate) struct State {
    pub(crate) core: Arc<Core>,
    /// What it spends from, on this worker.
    pub(crate) purse: Rc<Purse>,
    pub(crate) facts: Facts,
    /// What the guest asked to change: of the request, of the identity.
    pub(crate) edits: RequestEdits,
    pub(crate) identity: IdentityEdits,
    pub(crate) trace: Trace,
    pub(crate) random: fastrand::Rng,
    pub(crate) deadline: Deadline,
    /// Who sends its callouts, for a question that may wait.
    pub(crate) egress: Option<Rc<dyn Egress>>,
    /// What the question ran before it waited last, and how long it waited so far.
    ran: Duration,
    pub(crate) waited: Duration,
    waits_since: Instant,
    /// It runs on a fiber now.
    pub(crate) running: Option<Running>,
    limits: Limits,
    /// A growth was refused since the last call began.
    pub(crate) refused_growth: bool,
    /// The same, because its tenant has all the memory it may have.
    pub(crate) refused_budget: bool,
    pub(crate) memory: Held,
    wasi: Option<(WasiCtx, ResourceTable)>,
}

// SAFETY: wasmtime-wasi asks for `Send`, which the `Rc`s of a question at hand are not. A store is made, used and
// dropped within `instances::INSTANCES`, a thread-local of this crate, or on the stack of one call; no function hands
// it out, so it never leaves its thread.
unsafe impl Send for State {}

impl State {
    pub(crate) fn new(core: Arc<Core>, purse: Rc<Purse>) -> Self {
        let memory = Held::of(purse.tenant());
        let limits = core.limits;
        let random = core.runtime.simulation.as_ref().map_or_else(fastrand::Rng::new, |simulation| simulation.random());
        let wasi = core.grants.wasi.then(crate::wasi::context);
        Self {
            core,
            purse,
            facts: Facts::default(),
            edits: RequestEdits::default(),
            identity: IdentityEdits::default(),
            trace: Trace::default(),
            random,
            deadline: Deadline::begin(),
            egress: None,
            ran: Duration::ZERO,
            waited: Duration::ZERO,
            waits_since: Instant::now(),
            running: None,
            limits,
            refused_growth: false,
            refused_budget: false,
            memory,
            wasi,
        }
    }

    /// Back to nothing between questions: no fact of one may be seen by the next.
    pub(crate) fn clear(&mut self) {
        self.facts = Facts::default();
        if !self.edits.is_empty() {
            self.edits = RequestEdits::default();
        }
        self.identity = IdentityEdits::default();
    }

    /// A question begins that may wait.
    pub(crate) fn begin_to_wait(&mut self, egress: Rc<dyn Egress>) {
        self.egress = Some(egress);
        (self.ran, self.waited) = (Duration::ZERO, Duration::ZERO);
    }

    /// The guest waits: others have the thread, and the clock that stops it does not count.
    pub(crate) fn pause(&mut self) {
        self.ran += self.deadline.cpu().unwrap_or_else(|| self.deadline.begun.elapsed());
        self.running = None;
        self.waits_since = Instant::now();
    }

    /// And goes on.
    pub(crate) fn resume(&mut self) {
        let now = Instant::now();
        self.waited += now - self.waits_since;
        self.deadline = Deadline::begin_at(now);
        self.running = Some(self.core.runtime.ticker.run());
    }

    pub(crate) fn granted(&self, header: &str) -> bool {
        self.core.grants.field(header)
    }
}

impl ResourceLimiter for State {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let fits = desired <= self.limits.memory;
        self.refused_growth |= !fits;
        let granted = fits && self.memory.grow(desired);
        self.refused_budget |= fits && !granted;
        Ok(granted)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= 20_000)
    }
}

/// What a forwarding policy set, applied to whatever the configured rule proposes: the same edits may belong to routes
/// that propose different things.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct IdentityEdits {
    pub(crate) elements: Option<Vec<Element>>,
    pub(crate) families: Option<Families>,
}

impl IdentityEdits {
    pub(crate) fn apply(self, identity: &mut Identity) {
        if let Some(elements) = self.elements {
            identity.elements = elements;
        }
        if let Some(families) = self.families {
            identity.families = families;
        }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let (ctx, table) = self.wasi.as_mut().expect("WASI is linked only for plugins that were granted it");
        WasiCtxView { ctx, table }
    }
}

/// When a call must end. Looked at once a tick of the epoch while the guest runs.
///
/// What counts is the CPU time of the thread from the first look on, so that a guest whose thread waits for a core is
/// not stopped for it; ten times the limit on the wall clock ends it in any case.
///
/// One stretch of time for all that a question takes: making an instance, configuring it, the call.
pub(crate) struct Deadline {
    pub(crate) begun: Instant,
    cpu_at_first_look: Option<std::time::Duration>,
}

impl Deadline {
    pub(crate) fn begin() -> Self {
        Self::begin_at(Instant::now())
    }

    pub(crate) fn begin_at(begun: Instant) -> Self {
        Self { begun, cpu_at_first_look: None }
    }

    /// CPU time so far of what runs for longer than a tick; what is shorter has no time to wait for a core.
    pub(crate) fn cpu(&self) -> Option<std::time::Duration> {
        self.cpu_at_first_look.map(|first| cpu_time().saturating_sub(first) + crate::ticker::TICK)
    }
}

/// Called by the store on each tick while its guest runs.
pub(crate) fn look(state: &mut State) -> wasmtime::Result<UpdateDeadline> {
    let limit = state.limits.time;
    let wall = state.ran + state.deadline.begun.elapsed();
    let cpu = cpu_time();
    let first = *state.deadline.cpu_at_first_look.get_or_insert(cpu);
    let used = state.ran + cpu.saturating_sub(first) + crate::ticker::TICK;
    if (wall >= limit && used >= limit) || wall >= limit.saturating_mul(10) {
        return Err(wasmtime::Trap::Interrupt.into());
    }
    Ok(UpdateDeadline::Continue(1))
}

/// Of this thread.
pub(crate) fn cpu_time() -> std::time::Duration {
    // Of the C library: rustix' own way needs the kernel's page for it, which profilers hide.
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes into the struct, and cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    std::time::Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec.clamp(0, 999_999_999) as u32)
}
