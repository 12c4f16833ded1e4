//! Tunnels of datagrams: listener → session → endpoint, and back.
//!
//! A worker has one socket of each listener; the kernel spreads clients over them by their addresses. What it brings is
//! sorted into sessions (`session.rs`), by the client's address, and over QUIC by connection id too, as one address may have many
//! connections. Nothing is queued: what cannot go on at once is dropped and counted. Only what comes before a
//! ClientHello is whole is kept (`waiting.rs`).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use quinn::udp::{EcnCodepoint, RecvMeta, UdpSocketState};
use smallvec::SmallVec;
use tidegate_policy::{ConnectionHead, ProxyTlvs};
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use crate::listener::quic::Group;
use crate::listener::{Gate, canonical, proxy_protocol};
use crate::observe::TunnelKind;
use crate::proxy_protocol::Addresses;
use crate::snapshot::{Listener, Otherwise, TunnelRules};
use crate::timer::Deadline;
use crate::tunnel::client_hello::ClientHello;
use crate::tunnel::quic::{self, Head, Id, Ids, Kind, Known};
use crate::worker::Worker;

mod session;
mod socket;
mod waiting;

use session::{Opening, Session};
use socket::Run;
use waiting::{Kept, Pushed, Waiting};

/// Batches taken before others get their turn.
const TURN: usize = 8;
/// Sessions of one address of a client: with more, the one that is silent for longest makes room.
const MOST_OF_CLIENT: usize = 128;

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

/// What came at once, and from where.
struct Came<'a> {
    worker: &'a Rc<Worker>,
    listener: &'a Listener,
    rules: &'a TunnelRules,
    key: Key,
    tlvs: ProxyTlvs,
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

    fn take(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        listener: &Listener,
        rules: &TunnelRules,
        run: Run<'_>,
        meta: &RecvMeta,
    ) {
        let key = Key { peer: meta.addr, local: meta.dst_ip.unwrap_or(self.local.ip()), said: None };
        let Some(accept) = &listener.proxy_protocol else {
            return self.sort(&Came { worker, listener, rules, key, tlvs: ProxyTlvs::default() }, run);
        };
        for datagram in run.datagrams() {
            match proxy_protocol::of_datagram(accept, meta.addr.ip().to_canonical(), datagram) {
                Ok((header, rest)) => {
                    let key = Key { said: header.addresses, ..key };
                    self.sort(&Came { worker, listener, rules, key, tlvs: header.tlvs }, Run::one(rest, run.ecn));
                }
                Err(refused) => {
                    refused.count(&worker.metrics);
                    tracing::debug!(listener = %listener.name, peer = %meta.addr, %refused, "datagram dropped before a PROXY header");
                }
            }
        }
    }

    /// To the session it belongs to, or a new one.
    fn sort(self: &Rc<Self>, came: &Came<'_>, run: Run<'_>) {
        let quic = came.rules.wants_hello();
        if !quic || run.datagrams().all(|datagram| !datagram.first().is_some_and(|first| quic::is_long(*first))) {
            let known = match self.clients.borrow().get(&came.key).map(SmallVec::as_slice) {
                Some([session]) => Some(session.clone()),
                _ => None,
            };
            if let Some(session) = known {
                return session.forward(run);
            }
        }
        if quic {
            run.datagrams().for_each(|datagram| self.sort_quic(came, datagram, run.ecn));
        } else if let Some(session) = self.latest(&came.key) {
            // The listener looked for QUIC before it was changed.
            session.forward(run);
        } else if let Some(session) = self.open(came, TunnelKind::Udp, ClientHello::default(), None, None, run.count())
        {
            session.forward(run);
        }
    }

    /// By what its first packet shows, where that leads to a session at all.
    fn sort_quic(self: &Rc<Self>, came: &Came<'_>, datagram: &[u8], ecn: Option<EcnCodepoint>) {
        let key = &came.key;
        let run = Run::one(datagram, ecn);
        let drop_it = || came.worker.metrics.udp.no_session.add(1);
        match quic::head(datagram) {
            Some(Head::Long { kind, destination, .. }) => {
                if let Some(session) = self.find(key, |session| session.has(destination)) {
                    return session.forward(run);
                }
                // It has the length of one.
                let Some(id) = Id::new(destination) else { return drop_it() };
                if self.waiting.borrow().has(key, id) {
                    return self.hear(came, id, datagram, ecn);
                }
                if let Some(known) = self.ids.find(destination) {
                    return self.come_back(came, id, known, run);
                }
                match kind {
                    Kind::Initial(version)
                        if destination.len() >= quic::LEAST_FIRST_ID && datagram.len() >= quic::LEAST_INITIAL =>
                    {
                        if !self.takes_new(came.worker) {
                            return drop_it();
                        }
                        if let Some(left) = self.waiting.borrow_mut().begin(*key, id, version) {
                            came.worker.metrics.hellos.late.add(1);
                            came.worker.metrics.udp.overflow.add(left.len() as u64);
                        }
                        self.hear(came, id, datagram, ecn);
                    }
                    Kind::Unknown => self.without_hello(came, run),
                    // Of a server that has no ids; else before its Initial packet, or long after.
                    _ => match self.latest(key) {
                        Some(session) => session.forward(run),
                        None => drop_it(),
                    },
                }
            }
            Some(Head::Short(rest)) => {
                if let Some(session) = self.find(key, |session| session.begins(rest)) {
                    return session.forward(run);
                }
                match self.latest(key) {
                    Some(session) => session.forward(run),
                    None => match self.ids.find_in(rest) {
                        Some((id, known)) => self.come_back(came, id, known, run),
                        None => self.without_hello(came, run),
                    },
                }
            }
            None => self.without_hello(came, run),
        }
    }

    fn find(&self, key: &Key, wanted: impl Fn(&Session) -> bool) -> Option<Rc<Session>> {
        self.clients.borrow().get(key)?.iter().find(|session| wanted(session)).cloned()
    }

    /// The client's session that began last.
    fn latest(&self, key: &Key) -> Option<Rc<Session>> {
        self.clients.borrow().get(key)?.last().cloned()
    }

    fn takes_new(&self, worker: &Worker) -> bool {
        self.open.get() && !worker.drain.is_draining()
    }

    /// Another datagram of a client whose ClientHello is waited for.
    fn hear(self: &Rc<Self>, came: &Came<'_>, id: Id, datagram: &[u8], ecn: Option<EcnCodepoint>) {
        let pushed = self.waiting.borrow_mut().push(came.key, id, datagram, ecn);
        let (kept, hello): (Kept, _) = match pushed {
            Pushed::More => return,
            Pushed::Dropped => return came.worker.metrics.udp.overflow.add(1),
            Pushed::Heard(kept, hello) => (kept, hello),
        };
        let (kind, hello) = match hello {
            Ok(hello) => (TunnelKind::Quic, hello),
            Err(none) => {
                came.worker.metrics.hellos.none.add(1);
                tracing::debug!(listener = %came.listener.name, peer = %came.key.peer, reason = %none, "no ClientHello");
                (TunnelKind::Udp, ClientHello::default())
            }
        };
        if let Some(session) = self.open(came, kind, hello, Some(id), None, kept.len()) {
            kept.iter().for_each(|(datagram, ecn)| session.forward(Run::one(datagram, *ecn)));
        }
    }

    /// What is no QUIC, or none that can be read: where the rest goes.
    fn without_hello(self: &Rc<Self>, came: &Came<'_>, run: Run<'_>) {
        if let Some(session) = self.latest(&came.key) {
            return session.forward(run);
        }
        came.worker.metrics.hellos.none.add(1);
        if came.rules.router.is_none() && matches!(came.rules.otherwise, Otherwise::Close) {
            // No record: it would be one for each datagram of whoever sends anything here.
            came.worker.metrics.udp.no_session.add(1);
            return;
        }
        if let Some(session) = self.open(came, TunnelKind::Udp, ClientHello::default(), None, None, 1) {
            session.forward(run);
        }
    }

    /// From another address than before: a new session to the server that has the connection, which finds out by itself
    /// whether the client is there (RFC 9000, section 9). What goes to the old address still does.
    fn come_back(self: &Rc<Self>, came: &Came<'_>, id: Id, known: Arc<Known>, run: Run<'_>) {
        let hello = known.hello.clone();
        if let Some(session) = self.open(came, TunnelKind::Quic, hello, Some(id), Some(known), 1) {
            session.forward(run);
        }
    }

    /// `None` if no session begins; the `count` datagrams that it would have been for are dropped.
    fn open(
        self: &Rc<Self>,
        came: &Came<'_>,
        kind: TunnelKind,
        hello: ClientHello,
        id: Option<Id>,
        known: Option<Arc<Known>>,
        count: usize,
    ) -> Option<Rc<Session>> {
        let (worker, listener, key) = (came.worker, came.listener, came.key);
        let opened = if self.takes_new(worker) { self.admitted(came, kind, hello, id, known) } else { None };
        let Some(session) = opened else {
            worker.metrics.udp.no_session.add(count as u64);
            return None;
        };
        let mut clients = self.clients.borrow_mut();
        let sessions = clients.entry(key).or_default();
        if sessions.len() >= MOST_OF_CLIENT
            && let Some((at, _)) = sessions.iter().enumerate().max_by_key(|(_, session)| session.silent_for())
        {
            tracing::debug!(listener = %listener.name, peer = %key.peer, "too many sessions: the most silent ends");
            sessions.remove(at).end();
        }
        sessions.push(session.clone());
        Some(session)
    }

    fn admitted(
        self: &Rc<Self>,
        came: &Came<'_>,
        kind: TunnelKind,
        hello: ClientHello,
        id: Option<Id>,
        known: Option<Arc<Known>>,
    ) -> Option<Rc<Session>> {
        let (worker, listener, key) = (came.worker, came.listener, came.key);
        let Some(permit) = self.gate.borrow().admit(listener.limits.max_connections) else {
            worker.metrics.connections_refused.add(1);
            tracing::debug!(listener = %listener.name, peer = %key.peer, "session refused: at the listener's limit");
            return None;
        };
        let peer = canonical(key.peer);
        let local = SocketAddr::new(key.local.to_canonical(), self.local.port());
        let (client, local) = match key.said {
            Some(said) => (canonical(said.source), canonical(said.destination)),
            None => (peer, local),
        };
        let connection = ConnectionHead {
            id: fastrand::u128(..),
            peer,
            client,
            local,
            proxy_tlvs: came.tlvs.clone(),
            listener: listener.name.clone(),
            tls: false,
            tls_version: None,
            server_name: None,
            alpn: None,
            client_certificate: None,
            client_chain: Box::default(),
        };
        Session::open(worker, self, Opening { key, rules: came.rules, permit, connection, kind, hello, id, known })
    }
}
