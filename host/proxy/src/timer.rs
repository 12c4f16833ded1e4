//! Deadlines by the thousand: a coarse wheel per worker instead of a runtime timer per request.
//!
//! Almost every deadline is dropped unused. A runtime's timer costs a request 5 % of its CPU; here arming is a push to
//! a vector, and only when something has to wait. The wheel sleeps until its next occupied slot, so an idle worker
//! does not wake up.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Resolution: a deadline fires within this time after it is due.
const TICK: Duration = Duration::from_millis(5);
/// Slots of a turn; deadlines beyond a turn (5.12 s) stay in their slot for further turns.
const SLOTS: usize = 1024;

/// The worker's wheel. Clones share it.
#[derive(Clone)]
pub(crate) struct Timers(Rc<Wheel>);

struct Wheel {
    zero: Instant,
    slots: RefCell<Box<[Vec<Rc<Entry>>]>>,
    /// The last tick that was worked off.
    done: Cell<u64>,
    /// The tick the driver sleeps until, `u64::MAX` when the wheel is empty.
    next: Cell<u64>,
    armed: Cell<usize>,
    earlier: Notify,
}

struct Entry {
    /// Due tick; 0 when disarmed or fired.
    due: Cell<u64>,
    /// Whether the entry sits in a slot.
    placed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Timers {
    pub(crate) fn new() -> Self {
        Self(Rc::new(Wheel {
            zero: Instant::now(),
            slots: RefCell::new((0..SLOTS).map(|_| Vec::new()).collect()),
            done: Cell::new(0),
            next: Cell::new(u64::MAX),
            armed: Cell::new(0),
            earlier: Notify::new(),
        }))
    }

    fn tick_at(&self, at: Instant) -> u64 {
        (at.saturating_duration_since(self.0.zero).as_nanos() / TICK.as_nanos()) as u64
    }

    /// Places `entry` for `due`. Entries already placed stay where they are when they fire later than their slot: the
    /// driver moves them on when it gets there.
    fn place(&self, entry: &Rc<Entry>, due: u64) {
        entry.due.set(due);
        if !entry.placed.replace(true) {
            self.0.slots.borrow_mut()[due as usize % SLOTS].push(entry.clone());
            self.0.armed.set(self.0.armed.get() + 1);
            if due < self.0.next.get() {
                self.0.earlier.notify_one();
            }
        }
    }

    /// Runs the wheel until the worker ends. One task per worker.
    pub(crate) async fn drive(self) {
        loop {
            let next = self.next_occupied();
            self.0.next.set(next);
            if next == u64::MAX {
                self.0.earlier.notified().await;
                continue;
            }
            let at = self.0.zero + Duration::from_nanos((next + 1).saturating_mul(TICK.as_nanos() as u64));
            tokio::select! {
                () = tokio::time::sleep_until(at.into()) => self.work_off(self.tick_at(Instant::now())),
                () = self.0.earlier.notified() => {}
            }
        }
    }

    /// The first tick after `done` whose slot holds anything.
    fn next_occupied(&self) -> u64 {
        if self.0.armed.get() == 0 {
            return u64::MAX;
        }
        let slots = self.0.slots.borrow();
        let done = self.0.done.get();
        (done + 1..=done + SLOTS as u64).find(|tick| !slots[*tick as usize % SLOTS].is_empty()).unwrap_or(u64::MAX)
    }

    /// Fires what is due up to `now`, and moves on what was pushed back.
    fn work_off(&self, now: u64) {
        let from = self.0.done.get() + 1;
        let from = from.max(now.saturating_sub(SLOTS as u64 - 1));
        let mut later = Vec::new();
        for tick in from..now {
            let slot = std::mem::take(&mut self.0.slots.borrow_mut()[tick as usize % SLOTS]);
            for entry in slot {
                self.0.armed.set(self.0.armed.get() - 1);
                entry.placed.set(false);
                let due = entry.due.get();
                if due == 0 {
                    continue;
                }
                if due >= now {
                    later.push((entry, due));
                    continue;
                }
                entry.due.set(0);
                if let Some(waker) = entry.waker.borrow_mut().take() {
                    waker.wake();
                }
            }
        }
        self.0.done.set(now.saturating_sub(1).max(self.0.done.get()));
        for (entry, due) in later {
            self.place(&entry, due);
        }
    }
}

/// A point in time that can be waited for, moved, and dropped for next to nothing.
pub(crate) struct Deadline {
    timers: Timers,
    after: Option<Duration>,
    at: Option<Instant>,
    entry: Option<Rc<Entry>>,
}

impl Deadline {
    /// `None` never elapses. The clock is read now; nothing is armed before the first poll.
    pub(crate) fn after(timers: &Timers, after: Option<Duration>) -> Self {
        let at = after.and_then(|after| Instant::now().checked_add(after));
        Self { timers: timers.clone(), after, at, entry: None }
    }

    /// Elapses at `at`.
    pub(crate) fn at(timers: &Timers, at: Option<Instant>) -> Self {
        Self { timers: timers.clone(), after: None, at, entry: None }
    }

    /// The whole time again, from now.
    pub(crate) fn restart(&mut self) {
        if let Some(after) = self.after {
            self.at = Instant::now().checked_add(after);
        }
    }

    /// Ready once the time has come.
    pub(crate) fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else { return Poll::Pending };
        if Instant::now() >= at {
            return Poll::Ready(());
        }
        let entry = self.entry.get_or_insert_with(|| {
            Rc::new(Entry { due: Cell::new(0), placed: Cell::new(false), waker: RefCell::new(None) })
        });
        let mut waker = entry.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        drop(waker);
        let due = self.timers.tick_at(at).max(self.timers.0.done.get() + 1);
        // An entry that sits in a slot for an earlier time is only pushed back: its slot comes round first and moves it.
        if entry.due.get() == 0 || due >= entry.due.get() {
            self.timers.place(entry, due);
        } else {
            entry.due.set(0);
            *entry.waker.borrow_mut() = None;
            let fresh = Rc::new(Entry {
                due: Cell::new(0),
                placed: Cell::new(false),
                waker: RefCell::new(Some(cx.waker().clone())),
            });
            self.timers.place(&fresh, due);
            self.entry = Some(fresh);
        }
        Poll::Pending
    }

    /// Waits for it.
    pub(crate) async fn elapsed(&mut self) {
        std::future::poll_fn(|cx| self.poll_elapsed(cx)).await;
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        if let Some(entry) = &self.entry {
            entry.due.set(0);
            entry.waker.borrow_mut().take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn deadlines_fire_in_order_and_not_before_their_time() {
        run(async {
            let timers = Timers::new();
            tokio::task::spawn_local(timers.clone().drive());
            let begun = Instant::now();
            let mut late = Deadline::after(&timers, Some(Duration::from_millis(60)));
            let mut soon = Deadline::after(&timers, Some(Duration::from_millis(20)));
            tokio::select! {
                () = late.elapsed() => panic!("the later one fired first"),
                () = soon.elapsed() => assert!(begun.elapsed() >= Duration::from_millis(20)),
            }
            late.elapsed().await;
            assert!(begun.elapsed() >= Duration::from_millis(60));
        });
    }

    #[test]
    fn a_deadline_pushed_back_waits_for_its_new_time() {
        run(async {
            let timers = Timers::new();
            tokio::task::spawn_local(timers.clone().drive());
            let begun = Instant::now();
            let mut deadline = Deadline::after(&timers, Some(Duration::from_millis(40)));
            let mut other = Deadline::after(&timers, Some(Duration::from_millis(25)));
            tokio::select! {
                () = deadline.elapsed() => panic!("fired early"),
                () = other.elapsed() => {}
            }
            deadline.restart();
            deadline.elapsed().await;
            assert!(begun.elapsed() >= Duration::from_millis(65));
        });
    }

    #[test]
    fn none_never_elapses_and_an_empty_wheel_holds_nothing() {
        run(async {
            let timers = Timers::new();
            tokio::task::spawn_local(timers.clone().drive());
            let mut never = Deadline::after(&timers, None);
            let mut soon = Deadline::after(&timers, Some(Duration::from_millis(10)));
            tokio::select! {
                () = never.elapsed() => panic!("never means never"),
                () = soon.elapsed() => {}
            }
            drop(soon);
            // The slot is emptied when its turn comes.
            let emptied = async {
                while timers.next_occupied() != u64::MAX {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(5), emptied).await.expect("an empty wheel");
        });
    }
}
