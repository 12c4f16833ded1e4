//! Which session a datagram belongs to, and when another begins.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use quinn::udp::{EcnCodepoint, RecvMeta};
use smallvec::SmallVec;
use tidegate_policy::{ConnectionHead, ProxyTlvs};

use super::session::{Opening, Session};
use super::socket::Run;
use super::waiting::{Kept, Pushed};
use super::{Key, Port};
use crate::listener::{canonical, proxy_protocol};
use crate::observe::TunnelKind;
use crate::snapshot::{Listener, Otherwise, TunnelRules};
use crate::tunnel::client_hello::ClientHello;
use crate::tunnel::quic::{self, Head, Id, Kind, Known};
use crate::worker::Worker;

/// Sessions of one address of a client: with more, the one that is silent for longest makes room.
const MOST_OF_CLIENT: usize = 128;

/// What came at once, and from where.
struct Came<'a> {
    worker: &'a Rc<Worker>,
    listener: &'a Listener,
    rules: &'a TunnelRules,
    key: Key,
    tlvs: ProxyTlvs,
}

impl Port {
    /// What came as one message.
    pub(super) fn take(
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
