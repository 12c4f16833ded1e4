//! Exchanges in step: those of a worker that are ready at the same time decide together, then send together.
//!
//! A plugin has code and memory of its own, and so has the network stack of the kernel, which is far more. Where every
//! exchange sends as soon as it has decided, each question finds the caches full of the stack. Where all decide first, only
//! the first has to fetch what questions need (Larus and Parkes, "Using Cohort Scheduling to Enhance Server Performance",
//! USENIX 2002). The more there is to do, the more go together, and the less each costs.

use std::cell::Cell;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

/// A decision that takes longer gains little by company, and others would wait for it.
const QUICK: Duration = Duration::from_micros(50);
/// How long nobody steps after such a one: an exchange waits for one of them at most.
const PAUSE: Duration = Duration::from_millis(10);

/// The steps of one worker's exchanges.
#[derive(Default)]
pub(crate) struct Steps {
    /// By the worker's clock.
    paused_until: Cell<Duration>,
}

impl Steps {
    /// A guest took so much of the worker's time, at `now`.
    pub(crate) fn guest_took(&self, time: Duration, now: impl FnOnce() -> Duration) {
        if time > QUICK {
            self.paused_until.set(now() + PAUSE);
        }
    }

    /// Between deciding and sending: lets the others that are ready come as far. At once for who is `alone`.
    ///
    /// Sockets are not looked at meanwhile: the event loop does that in its own time.
    pub(super) async fn step(&self, alone: bool, now: Duration) {
        let mut waits = !alone && now >= self.paused_until.get();
        poll_fn(|cx| {
            if !std::mem::take(&mut waits) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::pin::pin;
    use std::rc::Rc;
    use std::task::{Context, Waker};

    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn all_decide_before_one_sends() {
        let work = async {
            let (steps, done) = (Rc::new(Steps::default()), Rc::new(RefCell::new(Vec::new())));
            let running: Vec<_> = (0..9)
                .map(|number| {
                    let (steps, done) = (steps.clone(), done.clone());
                    spawn_local(async move {
                        done.borrow_mut().push(("decides", number));
                        steps.guest_took(QUICK, || NOW);
                        steps.step(false, NOW).await;
                        done.borrow_mut().push(("sends", number));
                    })
                })
                .collect();
            for running in running {
                running.await.expect("it ends");
            }
            done.take()
        };
        let expected: Vec<_> = (0..9).map(|n| ("decides", n)).chain((0..9).map(|n| ("sends", n))).collect();
        assert_eq!(LocalSet::new().run_until(work).await, expected);
    }

    /// Not even for a turn of the event loop.
    #[test]
    fn nobody_waits_for_who_is_not_there_or_slow() {
        let steps = Steps::default();
        let at_once = |alone: bool, now: Duration| {
            pin!(steps.step(alone, now)).poll(&mut Context::from_waker(Waker::noop())).is_ready()
        };
        assert!(at_once(true, NOW));
        assert!(!at_once(false, NOW));
        steps.guest_took(QUICK + Duration::from_micros(1), || NOW);
        assert!(at_once(false, NOW) && at_once(false, NOW + PAUSE - Duration::from_micros(1)));
        assert!(!at_once(false, NOW + PAUSE));
    }
}
