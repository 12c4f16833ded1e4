//! How much of a thread a guest takes: looked at whenever its future is polled, and once a tick while it computes. It is held to
//! its own limit, and to what there is for it and its tenant.
//!
//! Who is beyond its limit is stopped. Who finds that the CPU time of this second is used up has done nothing wrong, and
//! waits, wherever it is: a guest has a stack of its own, so it can be left between any two instructions that the epoch is looked at,
//! and nobody else needs what it holds. It waits outside of its future, which is not polled meanwhile, so that neither computing
//! nor waking up from its own waits brings it past. Its timeout goes on.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use thiserror::Error;
use tidegate_wasm::{Account, TICK, Ticker, Waiting};
use tokio::time::{Sleep, sleep};
use wasmtime::UpdateDeadline;

/// CPU time of one guest. It runs on one thread; the atomics are for the store, which may be on any.
#[derive(Debug)]
pub(crate) struct Meter {
    limit: u64,
    /// Who is charged besides.
    account: Arc<Account>,
    /// Nanoseconds, up to the last look.
    used: AtomicU64,
    /// Those of the current poll.
    polled: AtomicU64,
    /// The thread's CPU time at the last look.
    since: AtomicU64,
}

/// The guest computed for longer than it may.
#[derive(Debug, Error)]
#[error("it took more than its CPU time")]
pub(crate) struct Spent;

impl Meter {
    pub(crate) fn new(limit: Duration, account: Arc<Account>) -> Self {
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let [used, polled, since] = [(); 3].map(|()| AtomicU64::new(0));
        Self { limit, account, used, polled, since }
    }

    fn begin(&self) {
        self.polled.store(0, Ordering::Relaxed);
        self.since.store(cpu_time(), Ordering::Relaxed);
    }

    /// Counts and charges what was taken since the last look.
    fn count(&self, now: Instant) {
        let time = cpu_time();
        let slice = time.saturating_sub(self.since.swap(time, Ordering::Relaxed));
        self.used.fetch_add(slice, Ordering::Relaxed);
        self.polled.fetch_add(slice, Ordering::Relaxed);
        self.account.charge(Duration::from_nanos(slice), now);
    }

    pub(crate) fn used(&self) -> Duration {
        Duration::from_nanos(self.used.load(Ordering::Relaxed))
    }

    /// Called by the store on each tick while its guest runs. Who has had a tick gives way until the event loop has been
    /// round: a task that only wakes itself is polled sixty times over before anybody looks at the sockets.
    pub(crate) fn look(&self) -> wasmtime::Result<UpdateDeadline> {
        let now = Instant::now();
        self.count(now);
        if self.used.load(Ordering::Relaxed) >= self.limit {
            return Err(Spent.into());
        }
        if self.polled.load(Ordering::Relaxed) < TICK.as_nanos() as u64 && self.account.short(now).is_none() {
            return Ok(UpdateDeadline::Continue(1));
        }
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
    }
}

/// A future of a guest, with its meter running while it is polled.
pub(crate) struct Metered<F> {
    work: Pin<Box<F>>,
    meter: Arc<Meter>,
    ticker: Arc<Ticker>,
    /// While there is no CPU time for it.
    waits: Option<(Pin<Box<Sleep>>, Waiting)>,
}

impl<F> Metered<F> {
    pub(crate) fn new(work: F, meter: Arc<Meter>, ticker: Arc<Ticker>) -> Self {
        Self { work: Box::pin(work), meter, ticker, waits: None }
    }

    /// Ready where it may compute. Of many that wait for the same time the first one takes it, and the rest find that when
    /// they are polled.
    fn poll_budget(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some((sleep, _)) = &mut self.waits {
                ready!(sleep.as_mut().poll(cx));
                self.waits = None;
            }
            let account = &self.meter.account;
            let Some(short) = account.short(Instant::now()) else { return Poll::Ready(()) };
            self.waits = Some((Box::pin(sleep(short.time)), account.wait()));
        }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        /// Also where a host function panics.
        struct Running<'a>(&'a Meter, &'a Ticker);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.1.call_ends();
                self.0.count(Instant::now());
            }
        }
        ready!(self.poll_budget(cx));
        let Self { work, meter, ticker, .. } = &mut *self;
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
    use tidegate_wasm::CpuShare;

    use super::*;

    /// Takes so much CPU time, in milliseconds.
    fn compute(time: u64) {
        let end = cpu_time() + time * 1_000_000;
        while cpu_time() < end {}
    }

    #[test]
    fn who_computes_gives_way_and_is_stopped_at_its_limit() {
        let meter = Meter::new(Duration::from_millis(5), Arc::default());
        meter.begin();
        assert!(matches!(meter.look(), Ok(UpdateDeadline::Continue(1))), "it has only begun");
        compute(2);
        assert!(matches!(meter.look(), Ok(UpdateDeadline::YieldCustom(1, _))));
        meter.count(Instant::now());
        assert!(meter.used() >= Duration::from_millis(2));
        meter.begin();
        assert!(matches!(meter.look(), Ok(UpdateDeadline::Continue(1))), "another poll");
        compute(3);
        assert!(meter.look().is_err_and(|error| error.is::<Spent>()), "polls add up");
    }

    #[test]
    fn who_has_no_time_left_waits_for_it_and_nobody_begins_meanwhile() {
        let share = CpuShare { per_second: Duration::from_millis(100), burst: Duration::from_millis(2) };
        let account = Arc::new(Account::new(Some(share), None));
        let engine = wasmtime::Engine::default();
        let ticker = Ticker::start(&engine).expect("a thread");
        let meter = Arc::new(Meter::new(Duration::from_secs(1), account.clone()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let begun = Instant::now();
            let mut work = Metered::new(
                async {
                    for _ in 0..4 {
                        compute(3);
                        tokio::task::yield_now().await;
                    }
                },
                meter.clone(),
                ticker,
            );
            std::future::poll_fn(|cx| {
                assert!(Pin::new(&mut work).poll(cx).is_pending(), "the burst");
                assert!(Pin::new(&mut work).poll(cx).is_pending(), "it owes a millisecond");
                assert!(account.short_for_another(Instant::now()).is_some());
                assert!(meter.used() < Duration::from_millis(6), "it was polled beyond its time");
                Poll::Ready(())
            })
            .await;
            work.await;
            // Of twelve milliseconds nine were waited for, up to where the last was begun: ten times as long.
            assert!(begun.elapsed() > Duration::from_millis(65), "{:?}", begun.elapsed());
        });
        assert!(meter.used() >= Duration::from_millis(12));
    }
}
