//! Tunnels of datagrams: listener → session → endpoint, and back.
//!
//! A worker has one socket of each listener; the kernel spreads clients over them by their addresses. What it brings is
//! sorted (`sort.rs`) into sessions (`session.rs`), by the client's address, and over QUIC by connection id too, as one address may have many
//! connections. Nothing is queued: what cannot go on at once is dropped and counted. Only what comes before a
//! ClientHello is whole is kept (`waiting.rs`).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use quinn::udp::{RecvMeta, UdpSocketState};
use smallvec::SmallVec;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use crate::listener::quic::Group;
use crate::listener::{Gate, canonical};
use crate::proxy_protocol::Addresses;
use crate::snapshot::{Listener, TunnelRules};
use crate::timer::Deadline;
use crate::tunnel::quic::Ids;
use crate::worker::Worker;

mod session;
mod socket;
mod sort;
mod upstream;
mod waiting;

use session::Session;
use socket::Run;
use waiting::Waiting;

/// Batches taken before others get their turn.
const TURN: usize = 8;

/// Whose datagrams these are.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Key {
    /// As the kernel says it.
    peer: SocketAddr,
    /// Where the client sent to.
    local: IpAddr,
    /// By a PROXY header.
    said: Option<Addresses>,
}

/// The sockets of a worker. A listener that comes back to an address goes on with the socket that still has sessions there:
/// with two, the kernel would give the one what is for the other.
#[derive(Default)]
pub(crate) struct Ports(RefCell<Vec<Weak<Port>>>);

/// A worker's socket on one address, and what goes on there. Lives while a listener serves it, or sessions of one that is
/// gone.
struct Port {
    group: Arc<Group>,
    socket: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    /// All workers'.
    ids: Arc<Ids>,
    /// The last that served it, in its newest form.
    listener: RefCell<Rc<RefCell<Arc<Listener>>>>,
    gate: RefCell<Gate>,
    /// A listener serves it: sessions may begin.
    open: Cell<bool>,
    running: Cell<bool>,
    /// Addresses can be forged, but not so that this map becomes slow: its hashes cannot be foreseen.
    clients: RefCell<HashMap<Key, SmallVec<[Rc<Session>; 1]>>>,
    waiting: RefCell<Waiting>,
    /// Whether it is of any more use is to be looked at.
    changed: Notify,
}

/// A listener on a port. Dropped, no session begins any more; those that are there go on.
pub(crate) struct Serving(Rc<Port>);

impl Serving {
    pub(crate) fn begin(
        worker: &Rc<Worker>,
        listener: Rc<RefCell<Arc<Listener>>>,
        group: &Arc<Group>,
        ids: &Arc<Ids>,
        gate: Gate,
    ) -> io::Result<Self> {
        let port = worker.datagrams.open(worker, listener, group, ids, gate)?;
        if !port.running.replace(true) {
            tokio::task::spawn_local(port.clone().run(worker.clone()));
        }
        Ok(Self(port))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.open.set(false);
        self.0.changed.notify_one();
    }
}

impl Ports {
    fn open(
        &self,
        worker: &Worker,
        listener: Rc<RefCell<Arc<Listener>>>,
        group: &Arc<Group>,
        ids: &Arc<Ids>,
        gate: Gate,
    ) -> io::Result<Rc<Port>> {
        let mut ports = self.0.borrow_mut();
        ports.retain(|port| port.strong_count() > 0);
        if let Some(port) = ports.iter().filter_map(Weak::upgrade).find(|port| Arc::ptr_eq(&port.group, group)) {
            *port.listener.borrow_mut() = listener;
            *port.gate.borrow_mut() = gate;
            port.open.set(true);
            return Ok(port);
        }
        let socket = UdpSocket::from_std(group.share(worker.index)?)?;
        let state = UdpSocketState::new((&socket).into())?;
        let port = Rc::new(Port {
            group: group.clone(),
            state,
            local: canonical(socket.local_addr()?),
            socket,
            ids: ids.clone(),
            listener: RefCell::new(listener),
            gate: RefCell::new(gate),
            open: Cell::new(true),
            running: Cell::new(false),
            clients: RefCell::default(),
            waiting: RefCell::default(),
            changed: Notify::new(),
        });
        ports.push(Rc::downgrade(&port));
        Ok(port)
    }
}

impl Port {
    async fn run(self: Rc<Self>, worker: Rc<Worker>) {
        while self.open.get() || !self.clients.borrow().is_empty() {
            let listener = self.listener.borrow().borrow().clone();
            let Some(rules) = &listener.tunnel else { break };
            let due = self.waiting.borrow_mut().due(rules.hello_timeout);
            let mut late = Deadline::after(&worker.timers, due);
            tokio::select! {
                biased;
                readable = self.socket.readable() => {
                    if let Err(error) = readable {
                        tracing::error!(listener = %listener.name, %error, "a socket for datagrams is lost");
                        break;
                    }
                    self.receive(&worker, &listener, rules);
                    tokio::task::yield_now().await;
                }
                () = late.elapsed() => {}
                () = self.changed.notified() => {}
            }
            self.forget_late(&worker, &listener, rules);
        }
        self.running.set(false);
    }

    fn receive(self: &Rc<Self>, worker: &Rc<Worker>, listener: &Listener, rules: &TunnelRules) {
        for _ in 0..TURN {
            let take = |run: Run<'_>, meta: &RecvMeta| self.take(worker, listener, rules, run, meta);
            match socket::receive(&self.state, &self.socket, take) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Of something that was sent before: nothing that concerns the next.
                Err(error) => {
                    tracing::debug!(listener = %listener.name, %error, "receiving datagrams");
                    return;
                }
            }
        }
    }

    fn forget_late(&self, worker: &Worker, listener: &Listener, rules: &TunnelRules) {
        while let Some((key, kept)) = self.waiting.borrow_mut().late(rules.hello_timeout) {
            worker.metrics.hellos.late.add(1);
            worker.metrics.udp.no_session.add(kept.len() as u64);
            tracing::debug!(listener = %listener.name, peer = %key.peer, "no whole ClientHello in time");
        }
    }

    /// The address that replies leave from; none where the socket has but one.
    fn answers_from(&self, local: IpAddr) -> Option<IpAddr> {
        self.local.ip().is_unspecified().then_some(local)
    }

    /// A session is over.
    fn leave(&self, session: &Rc<Session>) {
        let mut clients = self.clients.borrow_mut();
        if let Some(sessions) = clients.get_mut(&session.key) {
            sessions.retain(|known| !Rc::ptr_eq(known, session));
            if sessions.is_empty() {
                clients.remove(&session.key);
            }
        }
        if clients.is_empty() {
            self.changed.notify_one();
        }
    }
}
