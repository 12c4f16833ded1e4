//! Deadlines by the thousand: a coarse wheel per worker instead of a runtime timer per request.
//!
//! Almost every deadline is dropped unused. A runtime's timer costs a request 5 % of its CPU; here arming is a push to
//! a vector and disarming a swap out of it, and only when something has to wait. What is due within a turn sits in a slot
//! of its tick; what is due later sits in a slot of its turn, and comes down when that turn begins. The driver sleeps
//! until the next occupied slot, so an idle worker does not wake up.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::clock::{self, Lately};

/// Resolution: a deadline fires within this time after it is due, and what the coarse clock is behind.
const TICK: Duration = Duration::from_millis(5);
/// Slots of a level: a turn of ticks is 5.12 s, a turn of turns 87 minutes. What is due beyond stays for another round.
const SLOTS: u64 = 1024;

/// The worker's wheel. Clones share it.
#[derive(Clone)]
pub(crate) struct Timers(Rc<Wheel>);

struct Wheel {
    zero: Instant,
    /// The same moment.
    zero_lately: Lately,
    lag: Duration,
    /// A level of ticks, then a level of turns.
    slots: RefCell<Box<[Vec<Rc<Entry>>]>>,
    /// The last tick that was worked off.
    done: Cell<u64>,
    /// The tick the driver sleeps until, `u64::MAX` when the wheel is empty.
    next: Cell<u64>,
    armed: Cell<usize>,
    earlier: Notify,
}

/// Not in any slot.
const NOWHERE: u32 = u32::MAX;
/// In place of the due tick.
const FIRED: u64 = 0;

struct Entry {
    /// Due tick, or `FIRED`.
    due: Cell<u64>,
    /// Where it sits, and at which place of that slot: so that it can leave at once.
    slot: Cell<u32>,
    index: Cell<u32>,
    waker: RefCell<Option<Waker>>,
}

impl Entry {
    fn new(waker: Waker) -> Rc<Self> {
        Rc::new(Self {
            due: Cell::new(u64::MAX),
            slot: Cell::new(NOWHERE),
            index: Cell::new(0),
            waker: RefCell::new(Some(waker)),
        })
    }
}

fn ticks(time: Duration) -> u64 {
    const TICK_NS: u64 = TICK.as_nanos() as u64;
    match u64::try_from(time.as_nanos()) {
        Ok(nanoseconds) => nanoseconds / TICK_NS,
        // Five centuries.
        Err(_) => u64::MAX / TICK_NS,
    }
}

impl Timers {
    pub(crate) fn new() -> Self {
        Self(Rc::new(Wheel {
            zero: Instant::now(),
            zero_lately: Lately::exactly(),
            lag: clock::lag(),
            slots: RefCell::new((0..2 * SLOTS).map(|_| Vec::new()).collect()),
            done: Cell::new(0),
            next: Cell::new(u64::MAX),
            armed: Cell::new(0),
            earlier: Notify::new(),
        }))
    }

    fn tick_at(&self, at: Instant) -> u64 {
        ticks(at.saturating_duration_since(self.0.zero))
    }

    /// The tick within which `after` from now is over for certain.
    fn tick_after(&self, after: Duration) -> u64 {
        let lately = Lately::now().since(self.0.zero_lately) + self.0.lag;
        ticks(lately.saturating_add(after))
    }

    /// Puts an entry that sits nowhere where it is found in time for its due tick.
    fn place(&self, entry: &Rc<Entry>) {
        let due = entry.due.get();
        let done = self.0.done.get();
        // A tick of this turn; or a turn, whose entries come down when it begins.
        let (slot, wake) =
            if due < done + SLOTS { (due % SLOTS, due) } else { (SLOTS + due / SLOTS % SLOTS, due / SLOTS * SLOTS) };
        let mut slots = self.0.slots.borrow_mut();
        let entries = &mut slots[slot as usize];
        entry.slot.set(slot as u32);
        entry.index.set(entries.len() as u32);
        entries.push(entry.clone());
        self.0.armed.set(self.0.armed.get() + 1);
        if wake < self.0.next.get() {
            self.0.earlier.notify_one();
        }
    }

    /// Takes an entry out of its slot; the last of the slot takes its place.
    fn remove(&self, entry: &Entry) {
        let slot = entry.slot.replace(NOWHERE);
        if slot == NOWHERE {
            return;
        }
        let mut slots = self.0.slots.borrow_mut();
        let entries = &mut slots[slot as usize];
        let index = entry.index.get() as usize;
        entries.swap_remove(index);
        if let Some(moved) = entries.get(index) {
            moved.index.set(index as u32);
        }
        self.0.armed.set(self.0.armed.get() - 1);
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

    /// The first tick after `done` at which there is something to do.
    fn next_occupied(&self) -> u64 {
        if self.0.armed.get() == 0 {
            return u64::MAX;
        }
        let slots = self.0.slots.borrow();
        let done = self.0.done.get();
        let occupied = |slot: u64| !slots[slot as usize].is_empty();
        let tick = (done + 1..done + SLOTS).find(|tick| occupied(tick % SLOTS));
        let turn = (done / SLOTS + 1..=done / SLOTS + SLOTS).find(|turn| occupied(SLOTS + turn % SLOTS));
        tick.into_iter().chain(turn.map(|turn| turn * SLOTS)).min().unwrap_or(u64::MAX)
    }

    /// Fires what was due before `now`, and brings down the turns that have begun.
    fn work_off(&self, now: u64) {
        let done = self.0.done.get();
        let until = now.saturating_sub(1).max(done);
        self.0.done.set(until);
        let mut later = Vec::new();
        // After a long sleep every slot is looked at once.
        for turn in (done / SLOTS + 1..=until / SLOTS).rev().take(SLOTS as usize) {
            later.extend(self.take_slot(SLOTS + turn % SLOTS));
        }
        for tick in (done + 1..=until).rev().take(SLOTS as usize) {
            later.extend(self.take_slot(tick % SLOTS));
        }
        for entry in later {
            if entry.due.get() > until {
                // Pushed back, or brought down.
                self.place(&entry);
                continue;
            }
            entry.due.set(FIRED);
            if let Some(waker) = entry.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    fn take_slot(&self, slot: u64) -> Vec<Rc<Entry>> {
        let entries = std::mem::take(&mut self.0.slots.borrow_mut()[slot as usize]);
        self.0.armed.set(self.0.armed.get() - entries.len());
        for entry in &entries {
            entry.slot.set(NOWHERE);
        }
        entries
    }
}

/// A point in time that can be waited for, moved, and dropped for next to nothing.
pub(crate) struct Deadline {
    timers: Timers,
    after: Option<Duration>,
    /// The tick within which it has come.
    due: Option<u64>,
    entry: Option<Rc<Entry>>,
}

impl Deadline {
    /// `None` never elapses. The clock is read now; nothing is armed before the first poll.
    pub(crate) fn after(timers: &Timers, after: Option<Duration>) -> Self {
        let due = after.map(|after| timers.tick_after(after));
        Self { timers: timers.clone(), after, due, entry: None }
    }

    /// Elapses at `at`.
    pub(crate) fn at(timers: &Timers, at: Option<Instant>) -> Self {
        Self { timers: timers.clone(), after: None, due: at.map(|at| timers.tick_at(at)), entry: None }
    }

    /// The whole time again, from now.
    pub(crate) fn restart(&mut self) {
        if let Some(after) = self.after {
            self.due = Some(self.timers.tick_after(after));
            if self.entry.as_ref().is_some_and(|entry| entry.due.get() == FIRED) {
                self.entry = None;
            }
        }
    }

    /// Ready once the time has come: the wheel tells, no clock is looked at. What is due already comes with its next turn.
    pub(crate) fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(due) = self.due else { return Poll::Pending };
        let entry = self.entry.get_or_insert_with(|| Entry::new(cx.waker().clone()));
        if entry.due.get() == FIRED {
            return Poll::Ready(());
        }
        let mut waker = entry.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        drop(waker);
        let due = due.max(self.timers.0.done.get() + 1);
        // One that was pushed back stays where it is: its slot comes round first and moves it.
        let earlier = due < entry.due.replace(due);
        if earlier {
            self.timers.remove(entry);
        }
        if entry.slot.get() == NOWHERE {
            self.timers.place(entry);
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
            self.timers.remove(entry);
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
            drop((soon, never));
            assert_eq!(timers.next_occupied(), u64::MAX, "who leaves takes the entry along");
        });
    }

    /// By hand, without a clock: every deadline fires once, at its tick, whichever level it began on.
    #[test]
    fn near_and_far_deadlines_fire_at_their_tick() {
        let timers = Timers::new();
        let dues = [1, 2, 5, SLOTS - 1, SLOTS, SLOTS + 1, 3 * SLOTS, 3 * SLOTS + 7, 700 * SLOTS + 3, 1500 * SLOTS + 5];
        let entries: Vec<_> = dues
            .iter()
            .map(|due| {
                let entry = Entry::new(Waker::noop().clone());
                entry.due.set(*due);
                timers.place(&entry);
                entry
            })
            .collect();
        let mut woken = 0;
        loop {
            let next = timers.next_occupied();
            if next == u64::MAX {
                break;
            }
            woken += 1;
            timers.work_off(next + 1);
            for (due, entry) in dues.iter().zip(&entries) {
                assert_eq!(entry.due.get() == FIRED, *due <= next, "{due} at {next}");
            }
        }
        assert!(woken < 3 * dues.len(), "the wheel turned {woken} times");
        assert_eq!(timers.0.armed.get(), 0);
    }

    #[test]
    fn leaving_and_long_sleeps_lose_nothing() {
        let timers = Timers::new();
        let mut entries: Vec<_> = (1..4000_u64)
            .map(|due| {
                let entry = Entry::new(Waker::noop().clone());
                entry.due.set(due);
                timers.place(&entry);
                entry
            })
            .collect();
        for (index, entry) in entries.iter().enumerate() {
            if index % 3 == 0 {
                timers.remove(entry);
            }
        }
        let mut index = 0;
        entries.retain(|_| {
            index += 1;
            (index - 1) % 3 != 0
        });
        assert_eq!(timers.0.armed.get(), entries.len());
        timers.work_off(3500);
        assert_eq!(entries.iter().filter(|entry| entry.due.get() != FIRED).count(), timers.0.armed.get());
        assert!(entries.iter().all(|entry| entry.due.get() == FIRED || entry.due.get() >= 3500));
        timers.work_off(9000);
        assert!(timers.0.armed.get() == 0 && entries.iter().all(|entry| entry.due.get() == FIRED));
    }
}
