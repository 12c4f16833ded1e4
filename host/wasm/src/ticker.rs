//! The clock that stops runaway guests: a thread that advances the engine's epoch once a millisecond while guests run,
//! and is parked while none do.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};

use wasmtime::{Engine, EngineWeak};

/// How far apart looks at a running guest are.
pub const TICK: Duration = Duration::from_millis(1);
/// Ticks without a call before the thread parks: a busy gateway must not pay for waking it up with each decision.
const LINGER: u32 = 100;

/// The callers' handle.
#[derive(Debug)]
pub struct Ticker {
    begun: AtomicU64,
    ended: AtomicU64,
    parked: AtomicBool,
    thread: Thread,
}

impl Ticker {
    /// Ends by itself when the engine is gone.
    pub fn start(engine: &Engine) -> std::io::Result<Arc<Self>> {
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
            thread,
        });
        // The thread is waiting for it.
        let _ = send.send(Arc::downgrade(&ticker));
        Ok(ticker)
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
    let (mut seen, mut quiet) = (0, 0);
    let mut due = Instant::now();
    loop {
        let Some(engine) = engine.upgrade() else { return };
        let Some(shared) = ticker.upgrade() else { return };
        let ended = shared.ended.load(Ordering::Relaxed);
        let begun = shared.begun.load(Ordering::Relaxed);
        quiet = if begun == seen && ended == begun { quiet + 1 } else { 0 };
        seen = begun;
        if quiet > LINGER {
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
            quiet = 0;
            due = Instant::now();
            continue;
        }
        due += TICK;
        let now = Instant::now();
        match due.checked_duration_since(now) {
            Some(rest) => {
                drop(shared);
                std::thread::sleep(rest);
            }
            // Late: the next look counts from now, missed ones are not made up.
            None => due = now,
        }
        engine.increment_epoch();
    }
}
