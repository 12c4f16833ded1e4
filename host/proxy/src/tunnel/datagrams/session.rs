//! A session: the datagrams between one address of a client and one endpoint. Over QUIC it is one connection.
//!
//! The endpoint is picked once. Until it has said something, an endpoint that nobody listens at (ICMP) is left for another;
//! what was sent to it is lost, as datagrams are. A session ends when it is silent for too long, and that is no fault.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use smallvec::SmallVec;
use tidegate_policy::{Asked, Cause, ConnectionHead, EndpointsView, Fault, Permit as Within};
use tokio::io::{Interest, Ready};
use tokio::sync::Notify;

use super::socket::{self, Path, Run, Sent, is_too_large};
use super::upstream::{Upstream, again, connect, pick};
use super::{Key, Port};
use crate::body::{Activity, Quiet};
use crate::listener::Permit;
use crate::observe::{TunnelKind, TunnelRecord};
use crate::snapshot::{Cluster, TunnelRules};
use crate::timer::Deadline;
use crate::tunnel::client_hello::ClientHello;
use crate::tunnel::quic::{self, Head, Id, Kind, Known};
use crate::tunnel::report;
use crate::tunnel::{Way, asked, name, route, within_bound};
use crate::upstream::datagram_header;
use crate::worker::Worker;

/// Batches taken from an endpoint before others get their turn.
const TURN: usize = 8;
/// Ids of a connection that are remembered: that of the client's first packets, one after a Retry, the server's.
const MOST_IDS: usize = 8;

/// What a session begins with.
pub(super) struct Opening<'a> {
    pub(super) key: Key,
    pub(super) rules: &'a TunnelRules,
    pub(super) permit: Permit,
    pub(super) connection: ConnectionHead,
    pub(super) kind: TunnelKind,
    pub(super) hello: ClientHello,
    /// The destination of what the client sent first, over QUIC.
    pub(super) id: Option<Id>,
    /// It has an endpoint already.
    pub(super) known: Option<Arc<Known>>,
}

pub(super) struct Session {
    pub(super) key: Key,
    worker: Rc<Worker>,
    port: Rc<Port>,
    /// The address to answer from.
    from: Option<IpAddr>,
    asked: Rc<Asked>,
    cluster: Arc<Cluster>,
    /// Endpoints that may be tried.
    attempts: u32,
    /// The PROXY header before each datagram to the endpoint.
    header: Box<[u8]>,
    record: RefCell<TunnelRecord>,
    view: RefCell<EndpointsView>,
    upstream: RefCell<Rc<Upstream>>,
    answered: Cell<bool>,
    activity: Activity,
    ids: RefCell<SmallVec<[Id; 3]>>,
    known: Option<RefCell<Arc<Known>>>,
    /// It is over, if so with a fault.
    over: Cell<bool>,
    fault: RefCell<Option<Fault>>,
    /// There is another upstream, or it is over.
    changed: Notify,
    _permit: Permit,
    _within: Within,
}

/// What happens to a session.
enum Event {
    Changed,
    Ready(io::Result<Ready>),
    Idle,
    Lifetime,
}

impl Session {
    /// Routes, picks and begins. `None` if it goes nowhere, which the record tells.
    pub(super) fn open(worker: &Rc<Worker>, port: &Rc<Port>, opening: Opening<'_>) -> Option<Rc<Self>> {
        let Opening { key, rules, permit, mut connection, kind, hello, id, known } = opening;
        name(&mut connection, &hello);
        let asked = asked(connection);
        let mut record = TunnelRecord::begin(worker, &asked, kind);
        let found = match &known {
            Some(known) => again(worker, known),
            None => match route(worker, rules, &asked, &hello, &mut record) {
                Ok(Way::To(cluster)) => Ok((cluster, None)),
                Ok(Way::Terminate) => Err(Fault::new(Cause::NoRoute, "datagrams do not end here")),
                Err(fault) => Err(fault),
            },
        };
        let opened = found.and_then(|(cluster, index)| {
            record.cluster = Some(cluster.name.clone());
            let header = datagram_header(&cluster, &asked.connection)?;
            let within = within_bound(&cluster)?;
            let mut view = EndpointsView::new(cluster.set.clone(), worker.now());
            let upstream = match index {
                Some(index) => {
                    record.attempts += 1;
                    connect(worker, &cluster, index)?
                }
                None => pick(worker, &cluster, &asked, &mut view, &mut record, rules.connect_attempts)?,
            };
            Ok((cluster, header, within, view, upstream))
        });
        let (cluster, header, within, view, upstream) = match opened {
            Ok(opened) => opened,
            Err(fault) => {
                record.broke(fault.cause, fault.detail);
                return None;
            }
        };
        record.endpoint = Some(upstream.address);
        record.opened();
        let attempts = if known.is_some() { 1 } else { rules.connect_attempts };
        // Where the connection is from now on, as its ids will say.
        let known = (kind == TunnelKind::Quic).then(|| {
            let here = || Known { cluster: cluster.name.clone(), endpoint: upstream.address, hello };
            RefCell::new(known.clone().unwrap_or_else(|| Arc::new(here())))
        });
        let session = Rc::new(Self {
            key,
            worker: worker.clone(),
            port: port.clone(),
            from: port.answers_from(key.local),
            asked,
            cluster,
            attempts,
            header,
            record: RefCell::new(record),
            view: RefCell::new(view),
            upstream: RefCell::new(Rc::new(upstream)),
            answered: Cell::new(false),
            activity: Activity::now(),
            ids: RefCell::new(id.into_iter().collect()),
            known,
            over: Cell::new(false),
            fault: RefCell::new(None),
            changed: Notify::new(),
            _permit: permit,
            _within: within,
        });
        let running = session.clone();
        worker.spawn_connection(running.run(rules.udp_idle_timeout, rules.max_lifetime));
        Some(session)
    }

    /// From the client.
    pub(super) fn forward(&self, run: Run<'_>) {
        let mut sent = self.send(run);
        if let Some(error) = sent.error.take()
            && self.failed(error)
        {
            sent = self.send(run);
            if let Some(error) = sent.error.take() {
                self.failed(error);
            }
        }
        let udp = &self.worker.metrics.udp;
        udp.up.add(sent.passed);
        sent.count_dropped(udp);
        let record = self.record.borrow();
        record.bytes_in.set(record.bytes_in.get() + sent.bytes);
        self.activity.moved();
    }

    fn send(&self, run: Run<'_>) -> Sent {
        if self.over.get() {
            return Sent { failed: run.count() as u64, ..Sent::default() };
        }
        let upstream = self.upstream.borrow();
        let path = Path { to: upstream.address, from: None, connected: true };
        socket::send(&self.port.state, &upstream.socket, path, &self.header, run)
    }

    /// Whether a packet to this id belongs to the session's connection.
    pub(super) fn has(&self, id: &[u8]) -> bool {
        self.ids.borrow().iter().any(|known| known.bytes() == id)
    }

    /// Whether a packet that begins with one of its ids does.
    pub(super) fn begins(&self, packet: &[u8]) -> bool {
        self.ids.borrow().iter().any(|known| known.tells() && packet.starts_with(known.bytes()))
    }

    pub(super) fn silent_for(&self) -> Duration {
        self.activity.silent_for()
    }

    /// Makes room for others.
    pub(super) fn end(&self) {
        self.over.set(true);
        self.changed.notify_one();
    }

    /// The upstream socket failed. True if there is another upstream now.
    fn failed(&self, error: io::Error) -> bool {
        let (index, address) = {
            let upstream = self.upstream.borrow();
            (upstream.index, upstream.address)
        };
        let again = if self.answered.get() {
            Err(Fault::new(Cause::Reset, format!("{address}: {error}")))
        } else {
            let mut view = self.view.borrow_mut();
            let mut record = self.record.borrow_mut();
            let fault = Fault::new(Cause::ConnectRefused, format!("{address}: {error}"));
            report(&self.worker, &view, index, Err(&fault));
            if record.attempts >= self.attempts {
                Err(fault)
            } else {
                tracing::debug!(cause = fault.cause.name(), detail = %fault.detail, "trying another endpoint");
                view.tried.push(index);
                let most = self.attempts;
                pick(&self.worker, &self.cluster, &self.asked, &mut view, &mut record, most).map_err(|_| fault)
            }
        };
        let there = match again {
            Ok(upstream) => {
                self.record.borrow_mut().endpoint = Some(upstream.address);
                if let Some(known) = &self.known {
                    let before = known.borrow().clone();
                    *known.borrow_mut() = Arc::new(Known { endpoint: upstream.address, ..(*before).clone() });
                }
                *self.upstream.borrow_mut() = Rc::new(upstream);
                true
            }
            Err(fault) => {
                *self.fault.borrow_mut() = Some(fault);
                self.over.set(true);
                false
            }
        };
        self.changed.notify_one();
        there
    }

    async fn run(self: Rc<Self>, idle: Duration, lifetime: Option<Duration>) {
        /// However it ends, also with its worker.
        struct Leave(Rc<Session>);
        impl Drop for Leave {
            fn drop(&mut self) {
                self.0.over.set(true);
                self.0.port.leave(&self.0);
            }
        }
        let leave = Leave(self);
        let this = &leave.0;
        if let Err(fault) = this.relay(idle, lifetime).await {
            this.record.borrow_mut().broke(fault.cause, fault.detail);
        }
    }

    async fn relay(&self, idle: Duration, lifetime: Option<Duration>) -> Result<(), Fault> {
        let timers = &self.worker.timers;
        let mut quiet = Quiet::new(&self.activity, timers, Some(idle));
        let mut end = Deadline::after(timers, lifetime);
        loop {
            let upstream = self.upstream.borrow().clone();
            let event = {
                let mut changed = pin!(self.changed.notified());
                // Linux tells of an error, as after an ICMP message, by a sign of its own, which wakes nobody who waits for datagrams.
                let mut ready = pin!(upstream.socket.ready(Interest::READABLE | Interest::ERROR));
                poll_fn(|cx| {
                    if changed.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Event::Changed);
                    }
                    if let Poll::Ready(ready) = ready.as_mut().poll(cx) {
                        return Poll::Ready(Event::Ready(ready));
                    }
                    if end.poll_elapsed(cx).is_ready() {
                        return Poll::Ready(Event::Lifetime);
                    }
                    quiet.poll(cx).map(|_| Event::Idle)
                })
                .await
            };
            match event {
                Event::Changed => {}
                Event::Idle => return Ok(()),
                Event::Lifetime => {
                    let detail = format!("the session is {:?} old", lifetime.unwrap_or_default());
                    return Err(Fault::new(Cause::TotalTimeout, detail));
                }
                Event::Ready(Err(error)) => return Err(Fault::new(Cause::Internal, error)),
                Event::Ready(Ok(ready)) => self.ready(&upstream, ready).await,
            }
            if self.over.get() {
                return self.fault.borrow_mut().take().map_or(Ok(()), Err);
            }
        }
    }

    async fn ready(&self, upstream: &Upstream, ready: Ready) {
        if ready.is_error() {
            // What was taken otherwise meanwhile clears the sign.
            let taken = upstream.socket.try_io(Interest::ERROR, || match upstream.socket.take_error()? {
                Some(error) => Ok(error),
                None => Err(io::ErrorKind::WouldBlock.into()),
            });
            if let Ok(error) = taken {
                self.upstream_error(error);
            }
        }
        if !ready.is_readable() || self.over.get() {
            return;
        }
        for _ in 0..TURN {
            match socket::receive(&self.port.state, &upstream.socket, |run, _| self.reply(run)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.upstream_error(error),
            }
        }
        tokio::task::yield_now().await;
    }

    fn upstream_error(&self, error: io::Error) {
        if is_too_large(&error) {
            self.worker.metrics.udp.too_large.add(1);
        } else {
            self.failed(error);
        }
    }

    /// To the client.
    fn reply(&self, run: Run<'_>) {
        if !self.answered.replace(true) {
            let begun = self.record.borrow().begun;
            report(&self.worker, &self.view.borrow(), self.upstream.borrow().index, Ok(begun.elapsed()));
        }
        if let Some(known) = &self.known {
            run.datagrams().for_each(|datagram| self.learn(known, datagram));
        }
        let path = Path { to: self.key.peer, from: self.from, connected: false };
        let sent = socket::send(&self.port.state, &self.port.socket, path, &[], run);
        let udp = &self.worker.metrics.udp;
        udp.down.add(sent.passed);
        sent.count_dropped(udp);
        let record = self.record.borrow();
        record.bytes_out.set(record.bytes_out.get() + sent.bytes);
        self.activity.moved();
    }

    /// The id that the server chose: in what it says before all else is encrypted.
    fn learn(&self, known: &RefCell<Arc<Known>>, datagram: &[u8]) {
        if !datagram.first().is_some_and(|first| quic::is_long(*first)) {
            return;
        }
        let Some(Head::Long { kind, source, .. }) = quic::head(datagram) else { return };
        // In a list of versions it is the client's own.
        let Some(id) = Id::new(source).filter(Id::tells).filter(|_| kind != Kind::Versions) else { return };
        let mut ids = self.ids.borrow_mut();
        if ids.len() < MOST_IDS && !ids.contains(&id) {
            ids.push(id);
            self.port.ids.learn(id, &known.borrow());
        }
    }
}
