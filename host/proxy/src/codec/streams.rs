//! How many streams of a connection are under way: a connection is idle, and may be closed, when there are none.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

/// The streams of one connection.
#[derive(Default)]
pub(super) struct Streams {
    active: Cell<usize>,
    ended: Notify,
}

impl Streams {
    pub(super) fn busy(&self) -> bool {
        self.active.get() > 0
    }

    /// Until a stream ends. One that ended while nobody waited counts.
    pub(super) async fn ended(&self) {
        self.ended.notified().await;
    }
}

/// A stream under way, until it is dropped.
pub(super) struct Running(Rc<Streams>);

impl Running {
    pub(super) fn begin(streams: &Rc<Streams>) -> Self {
        streams.active.set(streams.active.get() + 1);
        Self(streams.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.ended.notify_one();
    }
}
