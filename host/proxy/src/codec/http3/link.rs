//! What all streams of one connection share: the peer's settings and GOAWAY, the budgets, and the way to end it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Instant;

use h3::error::Code;
use quinn::VarInt;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use super::budget::Budget;
use super::datagrams::Flows;
use super::frame::{Settings, Violation};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    Server,
    Client,
}

/// Cancelled requests that may come at once, and per second after that.
const CANCELLED: (f64, f64) = (200.0, 20.0);
/// The same for frames that carry nothing. Every request adds some: browsers send a PRIORITY_UPDATE with each.
const IDLE_FRAMES: (f64, f64) = (500.0, 50.0);
const IDLE_FRAMES_PER_REQUEST: f64 = 4.0;

pub(super) struct Link {
    pub(super) connection: quinn::Connection,
    pub(super) role: Role,
    peer: Cell<Settings>,
    /// SETTINGS came, or never will.
    settled: Cell<bool>,
    settling: Notify,
    /// The id of the peer's last GOAWAY.
    goaway: Cell<Option<u64>>,
    /// Why we closed it, if the peer broke the protocol.
    violation: Cell<Option<Violation>>,
    cancelled: RefCell<Budget>,
    idle_frames: RefCell<Budget>,
    /// Requests that wait for a response, to be told of a GOAWAY. A client's.
    waiting: RefCell<FxHashMap<u64, Waker>>,
    /// Where datagrams go. A server's.
    pub(super) flows: Flows,
}

impl Link {
    pub(super) fn new(connection: quinn::Connection, role: Role) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            connection,
            role,
            peer: Cell::default(),
            settled: Cell::new(false),
            settling: Notify::new(),
            goaway: Cell::new(None),
            violation: Cell::new(None),
            cancelled: RefCell::new(Budget::new(CANCELLED.0, CANCELLED.1, now)),
            idle_frames: RefCell::new(Budget::new(IDLE_FRAMES.0, IDLE_FRAMES.1, now)),
            waiting: RefCell::default(),
            flows: Flows::default(),
        })
    }

    /// Closes the connection; its streams end with it.
    pub(super) fn fail(&self, violation: Violation) {
        if self.violation.get().is_none() {
            self.violation.set(Some(violation));
            let (role, peer) = (self.role, self.connection.remote_address());
            tracing::debug!(?role, %peer, code = %violation.code, reason = violation.reason, "closing an HTTP/3 connection");
        }
        self.close(violation.code, violation.reason);
    }

    pub(super) fn close(&self, code: Code, reason: &str) {
        self.connection.close(varint(code), reason.as_bytes());
    }

    pub(super) fn violation(&self) -> Option<Violation> {
        self.violation.get()
    }

    pub(super) fn peer(&self) -> Settings {
        self.peer.get()
    }

    pub(super) fn set_peer(&self, settings: Settings) {
        self.peer.set(settings);
        self.settle();
    }

    /// No more is to be learnt of the peer's settings.
    pub(super) fn settle(&self) {
        self.settled.set(true);
        self.settling.notify_waiters();
    }

    /// The peer's settings once they came; the initial ones where the connection ended first.
    pub(super) async fn settled(&self) -> Settings {
        loop {
            let settling = self.settling.notified();
            if self.settled.get() {
                return self.peer();
            }
            settling.await;
        }
    }

    /// A stream was cancelled by the peer. Too many of them, and the connection is closed.
    pub(super) fn cancelled(&self) {
        if !self.cancelled.borrow_mut().spend(Instant::now()) {
            self.fail(Violation::new(Code::H3_EXCESSIVE_LOAD, "too many cancelled requests"));
        }
    }

    /// A response was taken whole: that allows for a cancelled request. A connection that carries the requests of many
    /// clients has many that leave.
    pub(super) fn completed(&self) {
        self.cancelled.borrow_mut().earn(1.0);
    }

    /// Something came that carries nothing.
    pub(super) fn idle_frame(&self) -> Result<(), Violation> {
        if self.idle_frames.borrow_mut().spend(Instant::now()) {
            return Ok(());
        }
        Err(Violation::new(Code::H3_EXCESSIVE_LOAD, "too many frames that carry nothing"))
    }

    pub(super) fn request(&self) {
        self.idle_frames.borrow_mut().earn(IDLE_FRAMES_PER_REQUEST);
    }

    pub(super) fn goaway(&self) -> Option<u64> {
        self.goaway.get()
    }

    /// Takes the peer's GOAWAY (section 5.2): ids never grow, and a server names request streams.
    pub(super) fn set_goaway(&self, id: u64) -> Result<(), Violation> {
        if self.role == Role::Client && !id.is_multiple_of(4) {
            return Err(Violation::new(Code::H3_ID_ERROR, "GOAWAY with an id that is no request's"));
        }
        if self.goaway.get().is_some_and(|last| id > last) {
            return Err(Violation::new(Code::H3_ID_ERROR, "GOAWAY with a larger id than before"));
        }
        self.goaway.set(Some(id));
        for waker in std::mem::take(&mut *self.waiting.borrow_mut()).into_values() {
            waker.wake();
        }
        Ok(())
    }

    /// Has the task woken when a GOAWAY comes.
    pub(super) fn watch_goaway(&self, stream: u64, cx: &Context<'_>) {
        let mut waiting = self.waiting.borrow_mut();
        let waker = waiting.entry(stream).or_insert_with(|| cx.waker().clone());
        if !waker.will_wake(cx.waker()) {
            waker.clone_from(cx.waker());
        }
    }

    pub(super) fn unwatch_goaway(&self, stream: u64) {
        self.waiting.borrow_mut().remove(&stream);
    }
}

/// Codes of HTTP/3 fit by far.
pub(super) fn varint(code: Code) -> VarInt {
    VarInt::from_u64(code.value()).unwrap_or(VarInt::MAX)
}

/// One request stream, as its reader, its writer and its task share it.
pub(super) struct Course {
    pub(super) link: Rc<Link>,
    /// Why the peer takes no more of what we send: noted by the task that runs the exchange.
    pub(super) stopped: RefCell<Option<String>>,
    /// Our message went out whole: what is left is its acknowledgement.
    pub(super) finished: Cell<bool>,
    cancelled: Cell<bool>,
}

impl Course {
    pub(super) fn new(link: &Rc<Link>) -> Rc<Self> {
        Rc::new(Self {
            link: link.clone(),
            stopped: RefCell::default(),
            finished: Cell::new(false),
            cancelled: Cell::new(false),
        })
    }

    /// The peer gave the request up, by either of its ways to say so. Counts once.
    pub(super) fn cancelled(&self) {
        if !self.cancelled.replace(true) && self.link.role == Role::Server {
            self.link.cancelled();
        }
    }
}
