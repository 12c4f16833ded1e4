//! How much of a thread a guest takes: looked at whenever its future is polled, and once a tick while it computes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use thiserror::Error;
use tidegate_wasm::{TICK, Ticker};
use wasmtime::UpdateDeadline;

/// CPU time of one guest. It runs on one thread; the atomics are for the store, which may be on any.
#[derive(Debug)]
pub(crate) struct Meter {
    limit: u64,
    /// Nanoseconds, up to the current poll.
    used: AtomicU64,
    /// The thread's CPU time when the current poll began.
    since: AtomicU64,
}

/// The guest computed for longer than it may.
#[derive(Debug, Error)]
#[error("it took more than its CPU time")]
pub(crate) struct Spent;

impl Meter {
    pub(crate) fn new(limit: Duration) -> Self {
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Self { limit, used: AtomicU64::new(0), since: AtomicU64::new(0) }
    }

    fn begin(&self) {
        self.since.store(cpu_time(), Ordering::Relaxed);
    }

    fn end(&self) {
        self.used.fetch_add(self.slice(), Ordering::Relaxed);
    }

    fn slice(&self) -> u64 {
        cpu_time().saturating_sub(self.since.load(Ordering::Relaxed))
    }

    pub(crate) fn used(&self) -> Duration {
        Duration::from_nanos(self.used.load(Ordering::Relaxed))
    }

    /// Called by the store on each tick while its guest runs. Who has had a tick gives way until the event loop has been
    /// round: a task that only wakes itself is polled sixty times over before anybody looks at the sockets.
    pub(crate) fn look(&self) -> wasmtime::Result<UpdateDeadline> {
        let slice = self.slice();
        if self.used.load(Ordering::Relaxed) + slice >= self.limit {
            return Err(Spent.into());
        }
        if slice < TICK.as_nanos() as u64 {
            return Ok(UpdateDeadline::Continue(1));
        }
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
    }
}

/// A future of a guest, with its meter running while it is polled.
pub(crate) struct Metered<F> {
    pub(crate) work: Pin<Box<F>>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) ticker: Arc<Ticker>,
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        /// Also where a host function panics.
        struct Running<'a>(&'a Meter, &'a Ticker);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.1.call_ends();
                self.0.end();
            }
        }
        let Self { work, meter, ticker } = &mut *self;
        meter.begin();
        ticker.call_begins();
        let _running = Running(meter, ticker);
        work.as_mut().poll(cx)
    }
}

/// Nanoseconds of CPU time of this thread.
fn cpu_time() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes into the struct, and cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_computes_gives_way_and_is_stopped_at_its_limit() {
        let meter = Meter::new(Duration::from_millis(5));
        meter.begin();
        assert!(matches!(meter.look(), Ok(UpdateDeadline::Continue(1))), "it has only begun");
        let compute = |time: u64| while meter.slice() < time {};
        compute(2_000_000);
        assert!(matches!(meter.look(), Ok(UpdateDeadline::YieldCustom(1, _))));
        meter.end();
        assert!(meter.used() >= Duration::from_millis(2));
        meter.begin();
        compute(3_000_000);
        assert!(meter.look().is_err_and(|error| error.is::<Spent>()), "polls add up");
    }
}
