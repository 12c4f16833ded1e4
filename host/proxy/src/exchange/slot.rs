//! Memory for exchanges in flight, used again and again.
//!
//! The state of an exchange is some ten KiB. Part of every connection's or stream's task, it would be copied as often as a
//! task is moved until it has its place, and an idle connection would hold it. So it lives in slots of the worker: whoever
//! has a request borrows one, polls it from within the own task, and gives it back.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tidegate_policy::RequestHead;

use crate::body::{Incoming, Reply};
use crate::codec::Served;

/// Slots that a worker keeps while nobody uses them: those of a burst go.
const KEPT: usize = 512;

/// What is to be done.
struct Job {
    served: Rc<Served>,
    head: RequestHead,
    body: Incoming,
    reply: Reply,
}

/// Where a slot finds its next job, and says that the last is done.
#[derive(Default)]
struct Desk {
    job: RefCell<Option<Job>>,
    done: Cell<bool>,
}

struct Slot {
    desk: Rc<Desk>,
    /// Never ends: exchanges follow one another in the same place.
    work: Pin<Box<dyn Future<Output = ()>>>,
}

impl Slot {
    fn new() -> Self {
        let desk = Rc::new(Desk::default());
        let work = Box::pin(work(desk.clone()));
        Self { desk, work }
    }
}

async fn work(desk: Rc<Desk>) {
    loop {
        // Whoever leaves a job polls.
        let Job { served, head, body, reply } = poll_fn(|_| match desk.job.take() {
            Some(job) => Poll::Ready(job),
            None => Poll::Pending,
        })
        .await;
        super::serve(&served, head, body, reply).await;
        desk.done.set(true);
    }
}

/// The slots of a worker.
#[derive(Default)]
pub(crate) struct Slots {
    free: RefCell<Vec<Slot>>,
    /// How many exchanges have one.
    taken: Cell<usize>,
}

impl Slots {
    /// Whether whoever runs now is the only one.
    pub(super) fn one_at_most(&self) -> bool {
        self.taken.get() <= 1
    }

    fn take(&self) -> Slot {
        self.taken.set(self.taken.get() + 1);
        self.free.borrow_mut().pop().unwrap_or_else(Slot::new)
    }

    /// Who leaves within an exchange has nothing to give back.
    fn give_back(&self, slot: Option<Slot>) {
        self.taken.set(self.taken.get() - 1);
        let mut free = self.free.borrow_mut();
        if free.len() < KEPT {
            free.extend(slot);
        }
    }
}

/// One exchange, until it is done. Dropped before, it is cancelled, and its slot goes with it.
#[must_use = "it does nothing unless polled"]
pub(crate) struct Run {
    served: Rc<Served>,
    slot: Option<Slot>,
}

impl Run {
    pub(crate) fn new(served: &Rc<Served>, head: RequestHead, body: Incoming, reply: Reply) -> Self {
        let slot = served.worker.slots.take();
        slot.desk.job.replace(Some(Job { served: served.clone(), head, body, reply }));
        Self { served: served.clone(), slot: Some(slot) }
    }
}

impl Future for Run {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(slot) = &mut self.slot else { return Poll::Ready(()) };
        // It never ends.
        let _ = slot.work.as_mut().poll(cx);
        if !slot.desk.done.replace(false) {
            return Poll::Pending;
        }
        let slot = self.slot.take();
        self.served.worker.slots.give_back(slot);
        Poll::Ready(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.slot.take().is_some() {
            self.served.worker.slots.give_back(None);
        }
    }
}
