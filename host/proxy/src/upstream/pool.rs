//! The connections of one worker to one endpoint.
//!
//! One request at a time on an HTTP/1 connection, taken last in first out so that surplus ones age and go; streams
//! shared on HTTP/2 and HTTP/3 up to a cap, with another connection beyond it; waiters served in the order they came. Every open
//! or dialling connection holds a `Seat`: dropping it makes room for the next.
//!
//! Where the cluster sends PROXY headers, a connection serves only requests that are advertised like the one it was
//! made for: each of idle connections, streams, dials and waiters is looked for among its like. All count against the one
//! limit, at which an idle connection of somebody else gives its seat up.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use bytes::Bytes;
use tidegate_policy::{Cause, Fault};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Notify, oneshot};

use super::advertised::Advertised;
use super::connect::{Connected, Multiplexed, connect, connect_alone, connect_tcp, connect_within, http1_over};
use super::quic::Endpoints;
use super::tls::ClientTls;
use super::udp;
use crate::body::{Awaiting, Incoming, Length, Outgoing};
use crate::clock::Lately;
use crate::codec::http1;
use crate::exchange::OutgoingHead;
use crate::observe::WorkerMetrics;
use crate::origin::Origin;
use crate::snapshot::{Cluster, PoolSettings, UpstreamProtocol};
use crate::stream::Stream;
use crate::timer::{Deadline, Timers};

/// What all pools of a worker share.
pub(super) struct Shared {
    pub(super) timers: Timers,
    pub(super) metrics: Arc<WorkerMetrics>,
    /// Wakes the sweeper when something idles.
    pub(super) idling: Notify,
    pub(super) quic: Endpoints,
}

pub(super) struct Pool {
    address: SocketAddr,
    settings: PoolSettings,
    tls: Option<Arc<ClientTls>>,
    origin: Option<Arc<dyn Origin>>,
    shared: Rc<Shared>,
    state: RefCell<State>,
    /// No snapshot names it any more: nothing is kept.
    retired: Cell<bool>,
}

#[derive(Default)]
struct State {
    /// The longest idle first.
    idle: Vec<Idle>,
    /// Those that streams share.
    shared: Vec<Rc<Streams>>,
    /// Seats taken.
    connections: usize,
    /// Dials under way, by whom they are for.
    dialling: Vec<For>,
    waiters: VecDeque<Waiter>,
    /// Whether the endpoint agreed to HTTP/2 by ALPN, once known.
    shares: Option<bool>,
}

/// Whom a connection is for; `None`: for anybody, where no PROXY header is sent.
type For = Option<Advertised>;

struct Waiter {
    client: For,
    sender: oneshot::Sender<Granted>,
}

/// The right to be a connection of the pool. Counts as dialling from the moment it is given: whoever comes meanwhile knows
/// that a connection is on its way.
struct Seat {
    pool: Weak<Pool>,
    /// Whom the dial is for, until it is over.
    dialling: RefCell<Option<For>>,
}

impl Seat {
    fn take(pool: &Rc<Pool>, state: &mut State, client: &For) -> Self {
        state.connections += 1;
        state.dialling.push(client.clone());
        Self { pool: Rc::downgrade(pool), dialling: RefCell::new(Some(client.clone())) }
    }

    /// One that was given up serves another dial.
    fn dial_for(&self, client: &For) {
        if let Some(pool) = self.pool.upgrade() {
            self.dialling.replace(Some(client.clone()));
            pool.state.borrow_mut().dialling.push(client.clone());
        }
    }

    /// The connection is there, or will not be.
    fn connected(&self) {
        let Some(client) = self.dialling.take() else { return };
        if let Some(pool) = self.pool.upgrade() {
            let dialling = &mut pool.state.borrow_mut().dialling;
            if let Some(at) = dialling.iter().position(|other| *other == client) {
                dialling.swap_remove(at);
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connected();
        if let Some(pool) = self.pool.upgrade() {
            pool.state.borrow_mut().connections -= 1;
            pool.serve_waiters();
        }
    }
}

/// What a connection carries besides itself.
struct Life {
    born: Lately,
    requests: u64,
    client: For,
    shared: Rc<Shared>,
    /// Until it is given up to another.
    seat: Option<Seat>,
}

impl Life {
    /// Nobody is likely to ask for it again.
    fn forlorn(&self) -> bool {
        self.client.as_ref().is_some_and(Advertised::client_is_gone)
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.shared.metrics.upstream_connections_active.sub(1);
    }
}

struct Idle {
    connection: http1::ClientConnection,
    life: Life,
    since: Lately,
}

struct Streams {
    connection: Multiplexed,
    life: Life,
    streams: Cell<usize>,
    requests: Cell<u64>,
    /// The last stream ended.
    since: Cell<Lately>,
    /// The last response head came.
    answered: Cell<Lately>,
}

/// What a connection that became a tunnel holds of its pool.
pub(crate) struct TunnelSeat {
    _life: Life,
}

/// What a waiter gets. Dropped unreceived, it goes on to the next.
enum Granted {
    Lease(Lease),
    /// Room for a connection of its own.
    Seat(Seat),
}

impl State {
    /// The connection for `client` that was used last.
    fn take_idle(&mut self, client: &For) -> Option<Idle> {
        let at = self.idle.iter().rposition(|idle| idle.life.client == *client)?;
        Some(self.idle.remove(at))
    }

    /// How many dials are under way for `client`, and how many requests of it wait.
    fn dialling_and_waiting(&self, client: &For) -> (usize, usize) {
        if client.is_none() {
            return (self.dialling.len(), self.waiters.len());
        }
        let dialling = self.dialling.iter().filter(|other| *other == client).count();
        (dialling, self.waiters.iter().filter(|waiter| waiter.client == *client).count())
    }
}

impl Pool {
    /// The pool of the endpoint of `cluster` at `address`.
    pub(super) fn new(address: SocketAddr, cluster: &Cluster, shared: Rc<Shared>) -> Rc<Self> {
        let (settings, tls, origin) = (cluster.pool.clone(), cluster.tls.clone(), cluster.origin.clone());
        Rc::new(Self { address, settings, tls, origin, shared, state: RefCell::default(), retired: Cell::new(false) })
    }

    /// An open connection with room for one request, if there is one to be had without a wait.
    pub(super) fn lease_now(self: &Rc<Self>, client: &For) -> Option<Lease> {
        let lease = if self.is_first(client) { self.take_open(client) } else { None };
        if lease.is_some() {
            self.shared.metrics.upstream_reused.add(1);
        }
        lease
    }

    /// Whether nobody waits for the same: they go first.
    fn is_first(&self, client: &For) -> bool {
        !self.state.borrow().waiters.iter().any(|waiter| waiter.client == *client)
    }

    /// A connection with room for one request.
    pub(super) async fn lease(self: &Rc<Self>, client: For) -> Result<Lease, Fault> {
        let ready = if self.is_first(&client) { self.take(&client) } else { None };
        let granted = match ready {
            Some(granted) => granted,
            None => self.wait(client.clone()).await?,
        };
        match granted {
            Granted::Lease(lease) => {
                self.shared.metrics.upstream_reused.add(1);
                Ok(lease)
            }
            Granted::Seat(seat) => self.dial(seat, client).await,
        }
    }

    /// What is to be had now: an open connection, or room to make one.
    fn take(self: &Rc<Self>, client: &For) -> Option<Granted> {
        if let Some(lease) = self.take_open(client) {
            return Some(Granted::Lease(lease));
        }
        let mut state = self.state.borrow_mut();
        // A connection that is being dialled may carry many streams: better to wait for it than to dial another.
        let shares = match (self.settings.protocol, state.shares) {
            (UpstreamProtocol::Http2 | UpstreamProtocol::Http3, _) | (UpstreamProtocol::Auto, Some(true)) => true,
            (UpstreamProtocol::Auto, None) => self.tls.is_some(),
            _ => false,
        };
        if shares {
            let (dialling, waiting) = state.dialling_and_waiting(client);
            if waiting < dialling * self.settings.max_streams_per_connection as usize {
                return None;
            }
        }
        if state.connections >= self.settings.max_connections {
            drop(state);
            return self.evict(client).map(Granted::Seat);
        }
        Some(Granted::Seat(Seat::take(self, &mut state, client)))
    }

    /// An open connection: a stream of a shared one, or one that idles.
    fn take_open(self: &Rc<Self>, client: &For) -> Option<Lease> {
        if let Some(lease) = self.take_stream(client) {
            return Some(lease);
        }
        let now = Lately::now();
        loop {
            // Dropped outside the borrow: its seat borrows too.
            let idle = self.state.borrow_mut().take_idle(client);
            let mut idle = idle?;
            if !self.worn(&idle.life, idle.life.requests, now)
                && now.since(idle.since) < self.settings.idle_timeout
                && !stale(&idle)
            {
                // Equal, but perhaps another connection of the same client, which lives longer.
                idle.life.client.clone_from(client);
                let held = Held::Http1 { connection: idle.connection, life: idle.life };
                return Some(Lease { pool: self.clone(), held: Some(held) });
            }
        }
    }

    /// At the limit: the seat of the connection that has been idle the longest, of those that are of no use to `client`.
    fn evict(&self, client: &For) -> Option<Seat> {
        client.as_ref()?;
        let mut state = self.state.borrow_mut();
        let seat = if state.idle.is_empty() {
            let streamless = |c: &Rc<Streams>| c.streams.get() == 0 && c.life.client != *client;
            let at = state.shared.iter().position(streamless)?;
            let connection = state.shared.remove(at);
            drop(state);
            connection.connection.retire();
            // Without streams the list had the only one.
            Rc::into_inner(connection)?.life.seat.take()?
        } else {
            let mut idle = state.idle.remove(0);
            drop(state);
            idle.life.seat.take()?
        };
        seat.dial_for(client);
        Some(seat)
    }

    fn take_stream(self: &Rc<Self>, client: &For) -> Option<Lease> {
        if self.state.borrow().shared.is_empty() {
            return None;
        }
        self.drop_worn_shared();
        let state = self.state.borrow();
        let cap = self.settings.max_streams_per_connection as usize;
        // The busiest that has room: idle ones may then go.
        let open = state
            .shared
            .iter()
            .filter(|c| c.life.client == *client && c.streams.get() < cap.min(c.connection.max_streams()));
        let connection = open.max_by_key(|c| c.streams.get())?.clone();
        drop(state);
        Some(self.stream_of(connection))
    }

    fn stream_of(self: &Rc<Self>, connection: Rc<Streams>) -> Lease {
        connection.streams.set(connection.streams.get() + 1);
        connection.requests.set(connection.requests.get() + 1);
        Lease { pool: self.clone(), held: Some(Held::Shared(connection)) }
    }

    /// Takes closed, old and used-up connections out of the list; their streams end in peace.
    fn drop_worn_shared(&self) {
        let mut gone = Vec::new();
        let now = Lately::now();
        self.state.borrow_mut().shared.retain(|c| {
            let keep = c.connection.open() && !self.worn(&c.life, c.requests.get(), now);
            if !keep {
                gone.push(c.clone());
            }
            keep
        });
        for connection in gone {
            connection.connection.retire();
        }
    }

    fn worn(&self, life: &Life, requests: u64, now: Lately) -> bool {
        self.retired.get()
            || requests >= self.settings.max_requests_per_connection
            || now.since(life.born) >= self.settings.max_connection_age
    }

    async fn wait(self: &Rc<Self>, client: For) -> Result<Granted, Fault> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.state.borrow_mut();
            if state.waiters.len() >= self.settings.max_pending {
                state.waiters.retain(|waiter| !waiter.sender.is_closed());
            }
            if state.waiters.len() >= self.settings.max_pending {
                return Err(Fault::new(
                    Cause::PoolExhausted,
                    format!("{}: too many wait for a connection", self.address),
                ));
            }
            state.waiters.push_back(Waiter { client, sender });
        }
        let _waiting = Waiting::begin(&self.shared.metrics);
        let mut deadline = Deadline::after(&self.shared.timers, Some(self.settings.pending_timeout));
        let late = || Fault::new(Cause::PoolExhausted, format!("{}: no connection came free in time", self.address));
        tokio::select! {
            granted = receiver => granted.map_err(|_| late()),
            () = deadline.elapsed() => Err(late()),
        }
    }

    /// Gives what is to be had to those who wait, first come first. One who cannot be served stands in the way of those
    /// only who want the same.
    fn serve_waiters(self: &Rc<Self>) {
        let mut passed = 0;
        loop {
            let next = self.state.borrow_mut().waiters.remove(passed);
            let Some(waiter) = next else { return };
            if waiter.sender.is_closed() {
                continue;
            }
            match self.take(&waiter.client) {
                // A waiter that left meanwhile passes it on by dropping it.
                Some(granted) => drop(waiter.sender.send(granted)),
                None => {
                    let for_all = waiter.client.is_none();
                    let mut state = self.state.borrow_mut();
                    let place = passed.min(state.waiters.len());
                    state.waiters.insert(place, waiter);
                    if for_all {
                        return;
                    }
                    passed = place + 1;
                }
            }
        }
    }

    async fn dial(self: &Rc<Self>, seat: Seat, client: For) -> Result<Lease, Fault> {
        let metrics = &self.shared.metrics;
        metrics.upstream_connections.add(1);
        let header = client.as_ref().map(Advertised::header);
        let (tls, shared) = (self.tls.as_deref(), &self.shared);
        let connected = match &self.origin {
            Some(origin) => Ok(connect_within(origin)),
            None => connect(self.address, &self.settings, tls, header, &shared.quic, &shared.timers).await,
        };
        seat.connected();
        let connected = connected.inspect_err(|_| metrics.upstream_connect_failed.add(1))?;
        metrics.upstream_connections_active.add(1);
        let life = Life { born: Lately::now(), requests: 0, client, shared: self.shared.clone(), seat: Some(seat) };
        self.state.borrow_mut().shares = Some(matches!(connected, Connected::Shared(_)));
        let lease = match connected {
            Connected::Http1(connection) => {
                let held = Some(Held::Http1 { connection, life });
                Lease { pool: self.clone(), held }
            }
            Connected::Shared(connection) => {
                let (streams, requests) = (Cell::new(0), Cell::new(0));
                let (since, answered) = (Cell::new(life.born), Cell::new(life.born));
                let connection = Rc::new(Streams { connection, life, streams, requests, since, answered });
                self.state.borrow_mut().shared.push(connection.clone());
                self.shared.idling.notify_one();
                self.stream_of(connection)
            }
        };
        // Those who waited for this dial share it, or learned that they need their own.
        self.serve_waiters();
        Ok(lease)
    }

    /// A connection on which another protocol than HTTP can be asked for: pooled if it takes such requests, else one of
    /// its own that speaks HTTP/1.1, where the endpoint may be spoken to so.
    pub(super) async fn lease_for_upgrade(self: &Rc<Self>, client: For) -> Result<Lease, Fault> {
        let lease = self.lease(client.clone()).await?;
        if let Some(Held::Shared(shared)) = &lease.held {
            let mut deadline = Deadline::after(&self.shared.timers, Some(self.settings.connect_timeout));
            let takes = tokio::select! {
                takes = shared.connection.takes_tunnels() => takes,
                // Whoever says nothing of it does not.
                () = deadline.elapsed() => false,
            };
            if takes {
                return Ok(lease);
            }
        } else {
            return Ok(lease);
        }
        if self.settings.protocol != UpstreamProtocol::Auto {
            let detail = format!("{}: the origin does not take extended CONNECT (RFC 8441)", self.address);
            return Err(Fault::new(Cause::UpgradeFailed, detail).nothing_written());
        }
        drop(lease);
        let (stream, life) = self.dial_alone(client, &[b"http/1.1"]).await?;
        let held = Some(Held::Http1 { connection: http1_over(stream), life });
        Ok(Lease { pool: self.clone(), held })
    }

    /// Both ends of a connection of its own, without HTTP, and what holds its seat. It never comes back.
    pub(super) async fn tunnel(self: &Rc<Self>, client: For) -> Result<(Incoming, Outgoing, TunnelSeat), Fault> {
        let (stream, life) = self.dial_alone(client, &[]).await?;
        let (incoming, outgoing) = http1::tunnel(stream);
        Ok((incoming, outgoing, TunnelSeat { _life: life }))
    }

    /// A connection for whatever comes, and what is to be written first: the PROXY header, where there is one.
    pub(super) async fn tcp(self: &Rc<Self>, client: For) -> Result<(TcpStream, Bytes, TunnelSeat), Fault> {
        let seat = self.seat_alone(&client)?;
        let metrics = &self.shared.metrics;
        let connected = connect_tcp(self.address, self.settings.connect_timeout, &self.shared.timers).await;
        let stream = connected.inspect_err(|_| metrics.upstream_connect_failed.add(1))?;
        let header = client.as_ref().map(Advertised::to_bytes).unwrap_or_default();
        Ok((stream, header, TunnelSeat { _life: self.alone(client, seat) }))
    }

    /// A UDP socket and what holds its seat.
    pub(super) fn udp(self: &Rc<Self>) -> Result<(UdpSocket, TunnelSeat), Fault> {
        let seat = self.seat_alone(&None)?;
        let metrics = &self.shared.metrics;
        let socket = udp::connect(self.address).inspect_err(|_| metrics.upstream_connect_failed.add(1))?;
        Ok((socket, TunnelSeat { _life: self.alone(None, seat) }))
    }

    async fn dial_alone(self: &Rc<Self>, client: For, alpn: &[&[u8]]) -> Result<(Stream, Life), Fault> {
        let seat = self.seat_alone(&client)?;
        let header = client.as_ref().map(Advertised::header);
        let tls = self.tls.as_deref();
        let connected = connect_alone(self.address, &self.settings, tls, header, alpn, &self.shared.timers).await;
        let stream = connected.inspect_err(|_| self.shared.metrics.upstream_connect_failed.add(1))?;
        Ok((stream, self.alone(client, seat)))
    }

    /// The right to a connection that nobody shares, at once or not at all.
    fn seat_alone(self: &Rc<Self>, client: &For) -> Result<Seat, Fault> {
        if self.origin.is_some() {
            return Err(Fault::new(Cause::ConnectFailed, "an origin within this process takes no tunnels"));
        }
        let free = |state: &State| state.connections < self.settings.max_connections;
        if !free(&self.state.borrow()) && !self.state.borrow().idle.is_empty() {
            // The longest idle makes room, unless somebody waits for it.
            let idle = self.state.borrow_mut().idle.remove(0);
            drop(idle);
        }
        if !free(&self.state.borrow()) {
            let detail = format!("{}: no room for another connection", self.address);
            return Err(Fault::new(Cause::PoolExhausted, detail));
        }
        self.shared.metrics.upstream_connections.add(1);
        Ok(Seat::take(self, &mut self.state.borrow_mut(), client))
    }

    fn alone(&self, client: For, seat: Seat) -> Life {
        seat.connected();
        self.shared.metrics.upstream_connections_active.add(1);
        Life { born: Lately::now(), requests: 0, client, shared: self.shared.clone(), seat: Some(seat) }
    }

    /// Takes back an HTTP/1 connection.
    fn give_back(self: &Rc<Self>, connection: http1::ClientConnection, mut life: Life) {
        life.requests += 1;
        let now = Lately::now();
        if connection.reusable() && !self.worn(&life, life.requests, now) {
            self.state.borrow_mut().idle.push(Idle { connection, life, since: now });
            self.shared.idling.notify_one();
            self.serve_waiters();
        }
        // Else it is dropped here, and its seat serves whoever waits.
    }

    /// Closes what has idled too long or is closed; true while something idles.
    pub(super) fn sweep(self: &Rc<Self>) -> bool {
        self.drop_worn_shared();
        let mut gone = Vec::new();
        let mut retired = Vec::new();
        let idles = {
            let mut state = self.state.borrow_mut();
            let (mut index, now) = (0, Lately::now());
            while index < state.idle.len() {
                let idle = &state.idle[index];
                let old = now.since(idle.since) >= self.settings.idle_timeout
                    || self.worn(&idle.life, idle.life.requests, now)
                    || idle.life.forlorn();
                if old || stale(idle) {
                    gone.push(state.idle.remove(index));
                } else {
                    index += 1;
                }
            }
            state.shared.retain(|c| {
                let old = now.since(c.since.get()) >= self.settings.idle_timeout || c.life.forlorn();
                let idle = c.streams.get() == 0 && old;
                if idle {
                    retired.push(c.clone());
                }
                !idle
            });
            !state.idle.is_empty() || !state.shared.is_empty()
        };
        for connection in retired {
            connection.connection.retire();
        }
        drop(gone);
        idles
    }

    /// Closes what idles, and keeps nothing from now on.
    pub(super) fn retire(self: &Rc<Self>) {
        self.retired.set(true);
        self.sweep();
    }
}

/// Whether the origin closed an idle connection, or said something unasked.
fn stale(idle: &Idle) -> bool {
    idle.connection.poll_stale(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// Counts a request that waits.
struct Waiting<'a>(&'a WorkerMetrics);

impl<'a> Waiting<'a> {
    fn begin(metrics: &'a WorkerMetrics) -> Self {
        metrics.upstream_waiting.add(1);
        Self(metrics)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.upstream_waiting.sub(1);
    }
}

enum Held {
    Http1 { connection: http1::ClientConnection, life: Life },
    Shared(Rc<Streams>),
}

/// The right to one request on a connection. Dropped, an HTTP/1 connection goes back to its pool if request and
/// response are both complete and it may be reused, else it is closed; on HTTP/2 and HTTP/3 the stream's place becomes free.
pub(crate) struct Lease {
    pool: Rc<Pool>,
    held: Option<Held>,
}

impl Lease {
    pub(crate) async fn start(&mut self, head: &OutgoingHead, length: Length) -> Result<(Outgoing, Awaiting), Fault> {
        match &self.held {
            Some(Held::Http1 { connection, .. }) => {
                let (out, awaiting) = connection.start(head, length).await?;
                Ok((out, Awaiting::Http1(awaiting)))
            }
            Some(Held::Shared(shared)) => shared.connection.start(head, length).await,
            None => Err(Fault::new(Cause::Internal, "the lease is over")),
        }
    }

    /// A response head came.
    pub(crate) fn answered(&self) {
        if let Some(Held::Shared(shared)) = &self.held {
            shared.answered.set(Lately::now());
        }
    }

    /// Whether the connection has served a request before this one.
    pub(crate) fn reused(&self) -> bool {
        matches!(&self.held, Some(Held::Http1 { life, .. }) if life.requests > 0)
    }

    /// The origin said that this connection is not for such a request: it is kept for no other, though a shared one is
    /// left to the streams it has.
    pub(crate) fn misdirected(&self) {
        match &self.held {
            Some(Held::Http1 { connection, .. }) => connection.retire(),
            Some(Held::Shared(shared)) => shared.connection.retire(),
            None => {}
        }
    }

    /// No response head came in time to a request that began at `begun`. A shared connection on which nobody had an
    /// answer since then is taken for dead: it would swallow the next requests too.
    pub(crate) fn timed_out(&self, begun: Instant) {
        if let Some(Held::Shared(shared)) = self.held.as_ref()
            && shared.answered.get().elapsed() >= begun.elapsed()
        {
            shared.connection.retire();
        }
    }

    /// Whether any byte of this request may have left the process. HTTP/2 and HTTP/3 say so in their faults.
    pub(crate) fn written(&self) -> bool {
        match &self.held {
            Some(Held::Http1 { connection, .. }) => connection.written(),
            _ => true,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        match self.held.take() {
            Some(Held::Http1 { connection, life }) => self.pool.give_back(connection, life),
            Some(Held::Shared(shared)) => {
                shared.streams.set(shared.streams.get() - 1);
                shared.since.set(Lately::now());
                drop(shared);
                self.pool.serve_waiters();
            }
            None => {}
        }
    }
}
