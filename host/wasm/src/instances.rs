//! This thread's live instances: made when first asked, reused, retired when they fail, dropped with their plugin.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use tidegate_policy::PolicyFaultKind;
use wasmtime::component::{self, ComponentExportIndex, ComponentNamedList, Lift, Lower, TypedFunc};
use wasmtime::{PoolConcurrencyLimitError, Store, Trap};

use crate::budget::{Place, Purse, Tenant, TenantPurse};
use crate::memo::Memo;
use crate::plugin::{Core, Handle, Isolation, LoadError};
use crate::prefetch::{Packet, Prefetch};
use crate::read::Read;
use crate::state::{self, Deadline, State};
use crate::stats::QUESTIONS;
use crate::types::{Choice, RouteAnswer, TunnelAnswer, Verdict};

/// Why a guest gave no answer.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) kind: PolicyFaultKind,
    pub(crate) detail: String,
}

impl Failed {
    /// As an error of loading.
    pub(crate) fn at_load(self) -> LoadError {
        match self.kind {
            PolicyFaultKind::Configure => LoadError::Settings(self.detail),
            PolicyFaultKind::Invalid => LoadError::Export { export: "an answer".to_owned(), why: self.detail },
            kind => LoadError::Start(format!("{}: {}", kind.name(), self.detail)),
        }
    }
}

/// The functions of the questions; those it does not export are absent.
#[derive(Default)]
pub(crate) struct Functions {
    pub(crate) route: Option<TypedFunc<(), (RouteAnswer,)>>,
    pub(crate) pick: Option<TypedFunc<(), (Choice,)>>,
    pub(crate) identify: Option<TypedFunc<(), ()>>,
    pub(crate) decide: Option<TypedFunc<(), (Verdict,)>>,
    pub(crate) tunnel: Option<TypedFunc<(), (TunnelAnswer,)>>,
    /// The same with facts that come along.
    pub(crate) prefetched_route: Option<TypedFunc<(Packet,), (RouteAnswer,)>>,
    pub(crate) prefetched_pick: Option<TypedFunc<(Packet,), (Choice,)>>,
    pub(crate) prefetched_identify: Option<TypedFunc<(Packet,), ()>>,
    pub(crate) prefetched_decide: Option<TypedFunc<(Packet,), (Verdict,)>>,
}

/// One store with one instance: a trap poisons the whole store, so none is shared.
pub(crate) struct Instance {
    pub(crate) store: Store<State>,
    pub(crate) functions: Functions,
    /// Bytes of memory when it was configured.
    at_start: usize,
    _place: Place,
}

/// A live instance's place, if its plugin and its tenant may have another.
fn place(core: &Arc<Core>, purse: &Purse) -> Result<Place, Failed> {
    let over = |why: &str| Failed { kind: PolicyFaultKind::Budget, detail: why.to_owned() };
    let place = Place::take(purse.tenant(), core.share.instances, &core.stats.live).map_err(over)?;
    core.stats.made.fetch_add(1, Ordering::Relaxed);
    Ok(place)
}

/// Bytes that one call may carry between host and guest.
const HOSTCALL_BYTES: usize = 2 * 1024 * 1024;

fn store(core: &Arc<Core>, purse: &Rc<Purse>) -> Store<State> {
    let mut store = Store::new(&core.runtime.engine, State::new(core.clone(), purse.clone()));
    store.limiter(|state| state);
    store.set_hostcall_fuel(HOSTCALL_BYTES);
    store.epoch_deadline_callback(|mut context| state::look(context.data_mut()));
    store.set_epoch_deadline(1);
    store
}

/// Runs guest code under the clock, which began when the store was made or its instance taken for another question. The
/// store is spent when this fails.
pub(crate) fn run<T>(
    store: &mut Store<State>,
    call: impl FnOnce(&mut Store<State>) -> wasmtime::Result<T>,
) -> Result<T, Failed> {
    let state = store.data_mut();
    (state.refused_growth, state.refused_budget) = (false, false);
    store.set_epoch_deadline(1);
    store.data().core.runtime.ticker.call_begins();
    // A host function of WASI may panic in an executor of ours; it must not take the worker along.
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| call(store)));
    store.data().core.runtime.ticker.call_ends();
    came_to(result, store)
}

fn came_to<T>(result: std::thread::Result<wasmtime::Result<T>>, store: &Store<State>) -> Result<T, Failed> {
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failed(&error, store.data())),
        Err(_) => Err(Failed { kind: PolicyFaultKind::Trap, detail: "a host function panicked".to_owned() }),
    }
}

/// The same on a fiber, for a guest that may wait. `ran` is told of every stretch in which it had the thread: how long that
/// was, and the CPU time in it. Dropped while
/// the guest waits, the store is spent as well: the guest is not there to end what it began.
pub(crate) async fn run_later<T: ComponentNamedList + Lift + 'static>(
    store: &mut Store<State>,
    function: TypedFunc<(), T>,
    ran: impl Fn(Duration, Duration),
) -> Result<T, Failed> {
    let state = store.data_mut();
    (state.refused_growth, state.refused_budget) = (false, false);
    state.running = Some(state.core.runtime.ticker.run());
    store.set_epoch_deadline(1);
    let result = {
        let mut calling = pin!(function.call_async(&mut *store, ()));
        poll_fn(|cx| {
            let (begun, cpu) = (Instant::now(), state::cpu_time());
            let polled = std::panic::catch_unwind(AssertUnwindSafe(|| calling.as_mut().poll(cx)));
            ran(begun.elapsed(), state::cpu_time().saturating_sub(cpu));
            match polled {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(result)) => Poll::Ready(Ok(result)),
                Err(panic) => Poll::Ready(Err(panic)),
            }
        })
        .await
    };
    store.data_mut().running = None;
    came_to(result, store)
}

/// A call on a fiber that has nothing to wait for: without an egress no guest does.
fn at_once<T>(call: impl Future<Output = wasmtime::Result<T>>) -> wasmtime::Result<T> {
    match pin!(call).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(wasmtime::Error::msg("it waits where nobody waits for it")),
    }
}

fn instantiate(core: &Core, store: &mut Store<State>) -> Result<component::Instance, Failed> {
    let pre = &core.prepared.pre;
    if core.prepared.waits {
        return run(store, |store| at_once(pre.instantiate_async(store)));
    }
    run(store, |store| pre.instantiate(store))
}

/// Calls what may not wait, of any component.
pub(crate) fn call<P, R>(store: &mut Store<State>, function: TypedFunc<P, R>, parameters: P) -> Result<R, Failed>
where
    P: ComponentNamedList + Lower,
    R: ComponentNamedList + Lift + 'static,
{
    if store.data().core.prepared.waits {
        return run(store, |store| at_once(function.call_async(store, parameters)));
    }
    run(store, |store| function.call(store, parameters))
}

fn failed(error: &wasmtime::Error, state: &State) -> Failed {
    let kind = if error.is::<PoolConcurrencyLimitError>() {
        PolicyFaultKind::Exhausted
    } else if matches!(error.downcast_ref::<Trap>(), Some(Trap::Interrupt)) {
        PolicyFaultKind::Deadline
    } else if state.refused_budget {
        PolicyFaultKind::Budget
    } else if state.refused_growth {
        PolicyFaultKind::Memory
    } else {
        PolicyFaultKind::Trap
    };
    // The chain without the backtrace's addresses, which say nothing to a user.
    let mut detail: String = format!("{error:#}");
    detail.truncate(detail.floor_char_boundary(400));
    Failed { kind, detail }
}

/// An export that is not of the contract's type.
fn misshapen(error: wasmtime::Error) -> Failed {
    Failed { kind: PolicyFaultKind::Invalid, detail: format!("{error:#}") }
}

/// A function that the component may export.
fn function<P, R>(
    instance: &component::Instance,
    store: &mut Store<State>,
    index: &Option<ComponentExportIndex>,
) -> Result<Option<TypedFunc<P, R>>, Failed>
where
    P: ComponentNamedList + Lower,
    R: ComponentNamedList + Lift,
{
    index.as_ref().map(|index| instance.get_typed_func(store, index).map_err(misshapen)).transpose()
}

impl Instance {
    /// Instantiates and configures.
    pub(crate) fn new(core: &Arc<Core>, purse: &Rc<Purse>) -> Result<Self, Failed> {
        let place = place(core, purse)?;
        let mut store = store(core, purse);
        let instance = instantiate(core, &mut store)?;
        if let Some(index) = &core.prepared.exports.configure {
            type Configured = (Result<(), String>,);
            let configure = instance.get_typed_func::<(&str,), Configured>(&mut store, index).map_err(misshapen)?;
            let (configured,) = call(&mut store, configure, (&*core.settings,))?;
            if let Err(reason) = configured {
                return Err(Failed { kind: PolicyFaultKind::Configure, detail: reason });
            }
        }
        let [route, pick, identify, decide, tunnel] = &core.prepared.exports.questions;
        let [prefetched_route, prefetched_pick, prefetched_identify, prefetched_decide, _] =
            &core.prepared.exports.prefetched;
        let functions = Functions {
            route: function(&instance, &mut store, route)?,
            pick: function(&instance, &mut store, pick)?,
            identify: function(&instance, &mut store, identify)?,
            decide: function(&instance, &mut store, decide)?,
            tunnel: function(&instance, &mut store, tunnel)?,
            prefetched_route: function(&instance, &mut store, prefetched_route)?,
            prefetched_pick: function(&instance, &mut store, prefetched_pick)?,
            prefetched_identify: function(&instance, &mut store, prefetched_identify)?,
            prefetched_decide: function(&instance, &mut store, prefetched_decide)?,
        };
        let at_start = store.data().memory.bytes();
        // What it set while it was configured belongs to no question.
        store.data_mut().clear();
        Ok(Self { store, functions, at_start, _place: place })
    }

    /// The time of another question begins.
    pub(crate) fn begin_at(&mut self, begun: Instant) {
        self.store.data_mut().deadline = Deadline::begin_at(begun);
    }

    /// An instance that holds nearly all it may is replaced before it fails, if a new one would hold less: one that needs
    /// that much from the start would else be made anew for every question.
    pub(crate) fn nearly_full(&self) -> bool {
        let state = self.store.data();
        nearly_full(state.memory.bytes(), self.at_start, state.core.limits.memory)
    }
}

/// More than three quarters of the limit, and more than half of what was left after the configuration.
fn nearly_full(memory: usize, at_start: usize, limit: usize) -> bool {
    memory > limit / 4 * 3 && memory.saturating_sub(at_start) > limit.saturating_sub(at_start) / 2
}

/// Makes an instance and drops it, to see that it can be made.
///
/// # Returns
/// Bytes of its memory.
pub(crate) fn try_out(core: &Arc<Core>) -> Result<usize, Failed> {
    Instance::new(core, &Purse::trial(&core.allowances)).map(|instance| instance.at_start)
}

/// The schema that a component states for its settings, from an instance of its own.
pub(crate) fn settings_schema(core: &Arc<Core>) -> Result<Option<String>, Failed> {
    let Some(index) = &core.prepared.exports.settings_schema else { return Ok(None) };
    let mut store = store(core, &Purse::trial(&core.allowances));
    let instance = instantiate(core, &mut store)?;
    let function = instance.get_typed_func::<(), (Option<String>,)>(&mut store, index).map_err(misshapen)?;
    call(&mut store, function, ()).map(|(schema,)| schema)
}

/// What a thread has of a plugin.
pub(crate) struct Slot {
    askers: Weak<Handle>,
    pub(crate) purse: Rc<Purse>,
    /// `Slots::turn` when it was last asked.
    used: u64,
    pub(crate) instance: Option<Instance>,
    /// Of a plugin that waits: those that nobody has now.
    spare: Vec<Instance>,
    pub(crate) memos: [Memo; QUESTIONS.len()],
    pub(crate) prefetches: [Prefetch; QUESTIONS.len()],
    /// Of the last question, where the plugin's reads are looked at.
    pub(crate) reads: Vec<Read>,
}

/// What a thread has of all plugins.
#[derive(Default)]
struct Slots {
    by_plugin: FxHashMap<u64, Slot>,
    tenants: FxHashMap<usize, Rc<TenantPurse>>,
    /// Counts the questions.
    turn: u64,
    /// `GONE` when they were last swept.
    swept: u64,
}

/// Plugins so far that nobody can ask any more. Their instances live on threads that only those threads may touch: each
/// compares this with what it saw last, and sweeps when it changed.
static GONE: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static SLOTS: RefCell<Slots> = RefCell::default();
}

impl Slots {
    /// The slot of a plugin that is about to be asked. One piece of code for all questions.
    #[inline(never)]
    fn of(&mut self, handle: &Arc<Handle>) -> &mut Slot {
        self.sweep();
        self.make_room(&handle.core);
        self.turn += 1;
        let slot = match self.by_plugin.entry(handle.core.id) {
            Entry::Occupied(slot) => slot.into_mut(),
            Entry::Vacant(place) => place.insert(Slot {
                askers: Arc::downgrade(handle),
                purse: purse(&mut self.tenants, &handle.core),
                used: 0,
                instance: None,
                spare: Vec::new(),
                memos: Default::default(),
                prefetches: Default::default(),
                reads: Vec::new(),
            }),
        };
        slot.used = self.turn;
        slot
    }

    fn sweep(&mut self) {
        let gone = GONE.load(Ordering::Acquire);
        if self.swept != gone {
            self.swept = gone;
            self.by_plugin.retain(|_, slot| slot.askers.strong_count() > 0);
            self.tenants.retain(|_, purse| Rc::strong_count(purse) > 1);
        }
    }

    fn make_room(&mut self, core: &Core) {
        let Some(tenant) = core.share.tenant.as_ref().filter(|tenant| tenant.crowded()) else { return };
        if self.by_plugin.get(&core.id).is_none_or(|slot| slot.idle().is_none()) {
            self.give_way(tenant);
        }
    }

    /// A tenant that has all it may have makes room itself: of its plugins on this thread, the one that was not asked for
    /// longest gives its instance up.
    fn give_way(&mut self, tenant: &Tenant) {
        let of_it = |slot: &&mut Slot| {
            let holder = slot.idle().and_then(|instance| instance.store.data().core.share.tenant.as_ref());
            holder.is_some_and(|holder| holder.name() == tenant.name())
        };
        if let Some(slot) = self.by_plugin.values_mut().filter(of_it).min_by_key(|slot| slot.used) {
            slot.instance = None;
            slot.spare.pop();
        }
    }
}

fn purse(tenants: &mut FxHashMap<usize, Rc<TenantPurse>>, core: &Core) -> Rc<Purse> {
    let tenant = core.share.tenant.as_ref().map(|tenant| {
        // The purse keeps its tenant alive, so its address is nobody else's.
        tenants.entry(Arc::as_ptr(tenant) as usize).or_insert_with(|| TenantPurse::new(tenant)).clone()
    });
    Purse::new(&core.allowances, tenant)
}

/// The same for an instance that is no plugin's. Not within a question.
pub(crate) fn give_way(tenant: &Tenant) {
    if tenant.crowded() {
        SLOTS.with_borrow_mut(|slots| slots.give_way(tenant));
    }
}

/// Gives `use_slot` this thread's slot of the plugin.
pub(crate) fn with_slot<T>(handle: &Arc<Handle>, use_slot: impl FnOnce(&mut Slot) -> T) -> T {
    SLOTS.with_borrow_mut(|slots| use_slot(slots.of(handle)))
}

/// Most instances of one plugin that a worker keeps while nobody asks them. A plugin or a tenant with a bound on instances
/// has them back sooner: another worker may want one.
const SPARE: usize = 16;

impl Slot {
    /// One that no question has now.
    fn idle(&self) -> Option<&Instance> {
        self.instance.as_ref().or(self.spare.last())
    }

    /// An instance for a question that may wait: until it is given back, other questions have others.
    pub(crate) fn lease(&mut self, core: &Arc<Core>, begun: Instant) -> Result<Instance, Failed> {
        match self.spare.pop() {
            Some(mut instance) => {
                instance.begin_at(begun);
                Ok(instance)
            }
            None => Instance::new(core, &self.purse),
        }
    }

    pub(crate) fn give_back(&mut self, instance: Instance) {
        let core = &instance.store.data().core;
        let tenant = core.share.tenant.as_ref();
        let bounded =
            core.share.instances.is_some() || tenant.is_some_and(|tenant| tenant.limits().instances.is_some());
        let most = if bounded { 1 } else { SPARE };
        if core.isolation == Isolation::Worker && self.spare.len() < most && !instance.nearly_full() {
            self.spare.push(instance);
        }
    }

    /// Drops the instance and what it taught: that is not for the next one, its state may have made it so.
    pub(crate) fn forget(&mut self) {
        self.instance = None;
        self.memos = Default::default();
    }
}

/// Nobody can ask a plugin any more. Often this is the thread whose exchange was the last that could.
pub(crate) fn asker_gone() {
    GONE.fetch_add(1, Ordering::Release);
    retire_stale();
}

/// Whether this thread has anything of any plugin.
pub fn has_instances() -> bool {
    SLOTS.with_borrow(|slots| !slots.by_plugin.is_empty())
}

/// Drops this thread's instances of plugins that nobody can ask any more: no configuration names them, and no exchange
/// under way began with one that did. Costs nothing while there are none; called whenever a thread has reason to look.
pub fn retire_stale() {
    // Neither within a question nor while the thread ends: then a later look, or the end, does it.
    let _ = SLOTS.try_with(|slots| {
        if let Ok(mut slots) = slots.try_borrow_mut() {
            slots.sweep();
        }
    });
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Instance, nearly_full};
    use crate::budget::Purse;
    use crate::{Grants, Isolation, Limits, PluginSpec, Runtime, RuntimeOptions, Share};

    /// A question that needs a new instance has one limit for all of it: what instantiating took is gone.
    #[test]
    fn instance_configuration_and_call_share_one_time() {
        let text = r#"(component
          (core module $policy
            (func $work (local $left i32)
              (local.set $left (i32.const 30000000))
              (loop (br_if 0 (local.tee $left (i32.sub (local.get $left) (i32.const 1))))))
            (start $work)
            (memory (export "memory") 1)
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
            (func (export "configure") (param i32 i32) (result i32) (i32.const 256))
            (func (export "identify")))
          (core instance $policy (instantiate $policy))
          (func $configure (param "settings" string) (result (result (error string)))
            (canon lift (core func $policy "configure") (memory (core memory $policy "memory"))
              (realloc (core func $policy "realloc"))))
          (func $identify (canon lift (core func $policy "identify")))
          (instance $plugin (export "configure" (func $configure)))
          (instance $forwarding (export "identify" (func $identify)))
          (export "tidegate:policy/plugin@0.1.0" (instance $plugin))
          (export "tidegate:policy/forwarding@0.1.0" (instance $forwarding)))"#;
        let spec = PluginSpec {
            name: "p".into(),
            bytes: wat::parse_str(text).expect("a component").into(),
            settings: serde_json::json!({}),
            deny: false,
            limits: Limits { time: Duration::from_secs(20), memory: 1 << 20 },
            grants: Grants { headers: None, wasi: false },
            isolation: Isolation::Worker,
            memoise: false,
            share: Share::default(),
        };
        let runtime = Runtime::new(RuntimeOptions { cache: None, max_instances: 10 }).expect("an engine");
        let plugin = runtime.load(&spec, None).expect("it loads");
        let begun = Instant::now();
        let core = &plugin.handle.core;
        let instance = Instance::new(core, &Purse::trial(&core.allowances)).expect("an instance");
        let (took, counted) = (begun.elapsed(), instance.store.data().deadline.begun.elapsed());
        assert!(counted > took / 2, "of {took:?} only {counted:?} count");
    }

    #[test]
    fn an_instance_is_replaced_for_what_it_gathered_not_for_what_it_needs() {
        assert!(!nearly_full(70, 10, 100));
        assert!(nearly_full(80, 10, 100));
        assert!(!nearly_full(80, 80, 100));
        assert!(!nearly_full(85, 80, 100), "a little more, once, is its steady state");
        assert!(nearly_full(95, 80, 100));
    }
}
