//! Whether a client's handshake is complete. Only in QUIC with early data does HTTP begin before: until then what came may
//! be a replay of what somebody recorded (RFC 8446, section 8; RFC 8470, section 3).

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Pending,
    Complete,
    Failed,
}

/// One per connection, shared by its streams and by who watches the handshake.
#[derive(Clone)]
pub(crate) struct Handshake(Rc<Inner>);

struct Inner {
    state: Cell<State>,
    over: Notify,
}

impl Handshake {
    pub(crate) fn pending() -> Self {
        Self::new(State::Pending)
    }

    pub(crate) fn complete() -> Self {
        Self::new(State::Complete)
    }

    fn new(state: State) -> Self {
        Self(Rc::new(Inner { state: Cell::new(state), over: Notify::new() }))
    }

    /// Ends the wait of all.
    pub(crate) fn ended(&self, complete: bool) {
        self.0.state.set(if complete { State::Complete } else { State::Failed });
        self.0.over.notify_waiters();
    }

    /// False where it failed, too.
    pub(crate) fn is_complete(&self) -> bool {
        self.0.state.get() == State::Complete
    }

    /// Waits until it is over; whether it is complete, and the client therefore the one that spoke.
    pub(crate) async fn wait(&self) -> bool {
        loop {
            let over = self.0.over.notified();
            match self.0.state.get() {
                State::Pending => over.await,
                state => return state == State::Complete,
            }
        }
    }
}
