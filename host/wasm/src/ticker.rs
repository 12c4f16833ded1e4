//! The clock that stops runaway guests: a thread that advances the engine's epoch, once a millisecond while it sees a guest
//! run, less often while it does not, and is parked while nobody asks.
//!
//! Guests that answer in microseconds are seldom seen, and each look costs the worker whose core it takes some twenty.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};

use wasmtime::{Engine, EngineWeak};

/// How far apart looks at a guest are that is seen to run.
pub const TICK: Duration = Duration::from_millis(1);
/// The same while none is seen, at most.
const REST: Duration = Duration::from_millis(10);
/// Time without a call before the thread parks: a busy gateway must not pay for waking it up with each decision.
const LINGER: Duration = Duration::from_millis(100);

/// The callers' handle.
#[derive(Debug)]
pub struct Ticker {
    begun: AtomicU64,
    ended: AtomicU64,
    parked: AtomicBool,
    /// Nanoseconds between looks while no guest is seen to run.
    rest: AtomicU64,
    thread: Thread,
}

impl Ticker {
    /// One whose guests are to give way: it looks once a millisecond. Ends by itself when the engine is gone.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(engine: &Engine) -> std::io::Result<Arc<Self>> {
        Self::start_resting(engine, TICK)
    }

    /// One whose guests are to be stopped in time: it looks as often as `limit_to` asks.
    pub(crate) fn start_at_rest(engine: &Engine) -> std::io::Result<Arc<Self>> {
        Self::start_resting(engine, REST)
    }

    fn start_resting(engine: &Engine, rest: Duration) -> std::io::Result<Arc<Self>> {
        let (send, receive) = std::sync::mpsc::channel::<Weak<Self>>();
        let engine = engine.weak();
        let handle = std::thread::Builder::new().name("epoch".to_owned()).spawn(move || {
            if let Ok(ticker) = receive.recv() {
                run(&engine, &ticker);
            }
        })?;
        let thread = handle.thread().clone();
        let ticker = Arc::new(Self {
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            parked: AtomicBool::new(false),
            rest: AtomicU64::new(rest.as_nanos() as u64),
            thread,
        });
        // The thread is waiting for it.
        let _ = send.send(Arc::downgrade(&ticker));
        Ok(ticker)
    }

    /// A guest comes that may take so long: from now on, who runs is seen before half of that is over.
    pub(crate) fn limit_to(&self, time: Duration) {
        let half = (time / 2).clamp(TICK, REST);
        self.rest.fetch_min(half.as_nanos() as u64, Ordering::Relaxed);
    }

    /// A guest is about to run.
    pub fn call_begins(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
    }

    pub fn call_ends(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// A guest runs, for as long as this lives.
pub(crate) struct Running(Arc<Ticker>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.call_ends();
    }
}

impl Ticker {
    /// The same as `call_begins`, for a guest that may wait, and end without coming back from that.
    pub(crate) fn run(self: &Arc<Self>) -> Running {
        self.call_begins();
        Running(self.clone())
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.thread.unpark();
    }
}

fn run(engine: &EngineWeak, ticker: &Weak<Ticker>) {
    let mut seen = 0;
    let mut due = Instant::now();
    let mut quiet_since = due;
    loop {
        let Some(engine) = engine.upgrade() else { return };
        let Some(shared) = ticker.upgrade() else { return };
        let ended = shared.ended.load(Ordering::Relaxed);
        let begun = shared.begun.load(Ordering::Relaxed);
        let (any, running) = (begun != seen, begun != ended);
        seen = begun;
        let now = Instant::now();
        if any || running {
            quiet_since = now;
        } else if now - quiet_since > LINGER {
            shared.parked.store(true, Ordering::SeqCst);
            // A call that came between the look and the store has not seen the flag: look again.
            if shared.begun.load(Ordering::SeqCst) == seen {
                drop((engine, shared));
                std::thread::park();
                if let Some(shared) = ticker.upgrade() {
                    shared.parked.store(false, Ordering::SeqCst);
                }
            } else {
                shared.parked.store(false, Ordering::SeqCst);
            }
            due = Instant::now();
            quiet_since = due;
            continue;
        }
        if running {
            engine.increment_epoch();
        }
        due += if running { TICK } else { Duration::from_nanos(shared.rest.load(Ordering::Relaxed)) };
        match due.checked_duration_since(now) {
            Some(left) => {
                drop((engine, shared));
                std::thread::sleep(left);
            }
            // Late: the next look counts from now, missed ones are not made up.
            None => due = now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks that were taken within a time, by what they did to the epoch of a guest that counts them.
    fn looks(ticker: &Arc<Ticker>, engine: &Engine, time: Duration) -> u64 {
        let text = r#"(module (func (export "run") (loop br 0)))"#;
        let module = wasmtime::Module::new(engine, wat::parse_str(text).expect("a module")).expect("it compiles");
        let begun = Instant::now();
        let mut store = wasmtime::Store::new(engine, 0_u64);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |mut store| {
            *store.data_mut() += 1;
            let over = begun.elapsed() > time;
            if over { Ok(wasmtime::UpdateDeadline::Interrupt) } else { Ok(wasmtime::UpdateDeadline::Continue(1)) }
        });
        let instance = wasmtime::Instance::new(&mut store, &module, &[]).expect("an instance");
        let function = instance.get_typed_func::<(), ()>(&mut store, "run").expect("a function");
        let _running = ticker.run();
        function.call(&mut store, ()).expect_err("it never ends by itself");
        *store.data()
    }

    /// However far apart the looks are while none is seen, who goes on running is looked at once a tick, after a rest and
    /// after the thread was parked.
    #[test]
    fn who_runs_on_is_looked_at_once_a_tick() {
        let engine = Engine::new(wasmtime::Config::new().epoch_interruption(true)).expect("an engine");
        let ticker = Ticker::start_at_rest(&engine).expect("a thread");
        for parked in [false, false, true] {
            let deadline = Instant::now() + Duration::from_secs(10);
            while parked && !ticker.parked.load(Ordering::SeqCst) {
                assert!(Instant::now() < deadline, "nobody asks, and it is not parked");
                std::thread::yield_now();
            }
            // A busy machine looks less often. At rest it would be ten times.
            let looks = looks(&ticker, &engine, Duration::from_millis(100));
            assert!(looks > 20, "{looks} looks in 100 ms, parked before: {parked}");
        }
        assert!(!ticker.parked.load(Ordering::SeqCst), "somebody just ran");
    }

    #[test]
    fn the_smallest_limit_counts() {
        let engine = Engine::new(wasmtime::Config::new().epoch_interruption(true)).expect("an engine");
        let ticker = Ticker::start_at_rest(&engine).expect("a thread");
        let rest = || Duration::from_nanos(ticker.rest.load(Ordering::Relaxed));
        for (limit, expected) in [(5000, 10_000), (5, 2500), (100, 2500), (1, 1000)] {
            ticker.limit_to(Duration::from_millis(limit));
            assert_eq!(rest(), Duration::from_micros(expected), "a limit of {limit} ms");
        }
    }
}
