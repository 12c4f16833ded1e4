//! The connections of one worker to one endpoint.
//!
//! One request at a time on an HTTP/1 connection, taken last in first out so that surplus ones age and go; streams
//! shared on HTTP/2 up to a cap, with another connection beyond it; waiters served in the order they came. Every open
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

use tidegate_policy::{Cause, Fault};
use tokio::sync::{Notify, oneshot};

use super::advertised::Advertised;
use super::connect::{Connected, connect};
use super::tls::ClientTls;
use crate::body::{Awaiting, Length, Outgoing};
use crate::codec::{http1, http2};
use crate::exchange::OutgoingHead;
use crate::observe::WorkerMetrics;
use crate::snapshot::{PoolSettings, UpstreamProtocol};
use crate::timer::{Deadline, Timers};

/// What all pools of a worker share.
pub(super) struct Shared {
    pub(super) timers: Timers,
    pub(super) metrics: Arc<WorkerMetrics>,
    /// Wakes the sweeper when something idles.
    pub(super) idling: Notify,
}

pub(super) struct Pool {
    address: SocketAddr,
    settings: PoolSettings,
    tls: Option<Arc<ClientTls>>,
    shared: Rc<Shared>,
    state: RefCell<State>,
    /// No snapshot names it any more: nothing is kept.
    retired: Cell<bool>,
}

#[derive(Default)]
struct State {
    /// The longest idle first.
    idle: Vec<Idle>,
    http2: Vec<Rc<Http2>>,
    /// Seats taken.
    connections: usize,
    /// Dials under way, by whom they are for.
    dialling: Vec<For>,
    waiters: VecDeque<Waiter>,
    /// What the endpoint agreed to by ALPN, once known.
    speaks_http2: Option<bool>,
}

/// Whom a connection is for; `None`: for anybody, where no PROXY header is sent.
type For = Option<Advertised>;

struct Waiter {
    client: For,
    sender: oneshot::Sender<Granted>,
}

/// The right to be a connection of the pool.
struct Seat(Weak<Pool>);

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.state.borrow_mut().connections -= 1;
            pool.serve_waiters();
        }
    }
}

/// Counts a dial under way.
struct Dialling<'a>(&'a Rc<Pool>, &'a For);

impl<'a> Dialling<'a> {
    fn begin(pool: &'a Rc<Pool>, client: &'a For) -> Self {
        pool.state.borrow_mut().dialling.push(client.clone());
        Self(pool, client)
    }
}

impl Drop for Dialling<'_> {
    fn drop(&mut self) {
        let dialling = &mut self.0.state.borrow_mut().dialling;
        if let Some(at) = dialling.iter().position(|client| client == self.1) {
            dialling.swap_remove(at);
        }
    }
}

/// What a connection carries besides itself.
struct Life {
    born: Instant,
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
    since: Instant,
}

struct Http2 {
    connection: http2::ClientConnection,
    life: Life,
    streams: Cell<usize>,
    requests: Cell<u64>,
    since: Cell<Instant>,
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
    pub(super) fn new(
        address: SocketAddr,
        settings: PoolSettings,
        tls: Option<Arc<ClientTls>>,
        shared: Rc<Shared>,
    ) -> Rc<Self> {
        Rc::new(Self { address, settings, tls, shared, state: RefCell::default(), retired: Cell::new(false) })
    }

    /// A connection with room for one request.
    pub(super) async fn lease(self: &Rc<Self>, client: For) -> Result<Lease, Fault> {
        // Those who wait for the same go first.
        let first = !self.state.borrow().waiters.iter().any(|waiter| waiter.client == client);
        let ready = if first { self.take(&client) } else { None };
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
        if let Some(lease) = self.take_stream(client) {
            return Some(Granted::Lease(lease));
        }
        loop {
            // Dropped outside the borrow: its seat borrows too.
            let idle = self.state.borrow_mut().take_idle(client);
            let Some(mut idle) = idle else { break };
            if !self.worn(&idle.life, idle.life.requests)
                && idle.since.elapsed() < self.settings.idle_timeout
                && !stale(&idle)
            {
                // Equal, but perhaps another connection of the same client, which lives longer.
                idle.life.client.clone_from(client);
                let held = Held::Http1 { connection: idle.connection, life: idle.life };
                return Some(Granted::Lease(Lease { pool: self.clone(), held: Some(held) }));
            }
        }
        let mut state = self.state.borrow_mut();
        // A connection that is being dialled may carry many streams: better to wait for it than to dial another.
        let shares = match (self.settings.protocol, state.speaks_http2) {
            (UpstreamProtocol::Http2, _) | (UpstreamProtocol::Auto, Some(true)) => true,
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
        state.connections += 1;
        Some(Granted::Seat(Seat(Rc::downgrade(self))))
    }

    /// At the limit: the seat of the connection that has been idle the longest, of those that are of no use to `client`.
    fn evict(&self, client: &For) -> Option<Seat> {
        client.as_ref()?;
        let mut state = self.state.borrow_mut();
        if !state.idle.is_empty() {
            let mut idle = state.idle.remove(0);
            drop(state);
            return idle.life.seat.take();
        }
        let streamless = |c: &Rc<Http2>| c.streams.get() == 0 && c.life.client != *client;
        let at = state.http2.iter().position(streamless)?;
        let connection = state.http2.remove(at);
        drop(state);
        connection.connection.retire();
        // Without streams the list had the only one.
        Rc::into_inner(connection)?.life.seat.take()
    }

    fn take_stream(self: &Rc<Self>, client: &For) -> Option<Lease> {
        if self.state.borrow().http2.is_empty() {
            return None;
        }
        self.drop_worn_http2();
        let state = self.state.borrow();
        let cap = self.settings.max_streams_per_connection as usize;
        // The busiest that has room: idle ones may then go.
        let open = state
            .http2
            .iter()
            .filter(|c| c.life.client == *client && c.streams.get() < cap.min(c.connection.max_streams()));
        let connection = open.max_by_key(|c| c.streams.get())?.clone();
        drop(state);
        Some(self.stream_of(connection))
    }

    fn stream_of(self: &Rc<Self>, connection: Rc<Http2>) -> Lease {
        connection.streams.set(connection.streams.get() + 1);
        connection.requests.set(connection.requests.get() + 1);
        Lease { pool: self.clone(), held: Some(Held::Http2(connection)) }
    }

    /// Takes closed, old and used-up connections out of the list; their streams end in peace.
    fn drop_worn_http2(&self) {
        let mut gone = Vec::new();
        self.state.borrow_mut().http2.retain(|c| {
            let keep = c.connection.open() && !self.worn(&c.life, c.requests.get());
            if !keep {
                gone.push(c.clone());
            }
            keep
        });
        for connection in gone {
            connection.connection.retire();
        }
    }

    fn worn(&self, life: &Life, requests: u64) -> bool {
        self.retired.get()
            || requests >= self.settings.max_requests_per_connection
            || life.born.elapsed() >= self.settings.max_connection_age
    }

    async fn wait(self: &Rc<Self>, client: For) -> Result<Granted, Fault> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.state.borrow_mut();
            state.waiters.retain(|waiter| !waiter.sender.is_closed());
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
            let next = {
                let mut state = self.state.borrow_mut();
                state.waiters.retain(|waiter| !waiter.sender.is_closed());
                state.waiters.remove(passed)
            };
            let Some(waiter) = next else { return };
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
        let dialling = Dialling::begin(self, &client);
        let metrics = &self.shared.metrics;
        metrics.upstream_connections.add(1);
        let header = client.as_ref().map(Advertised::header);
        let connected = connect(self.address, &self.settings, self.tls.as_deref(), header, &self.shared.timers).await;
        drop(dialling);
        let connected = connected.inspect_err(|_| metrics.upstream_connect_failed.add(1))?;
        metrics.upstream_connections_active.add(1);
        let life = Life { born: Instant::now(), requests: 0, client, shared: self.shared.clone(), seat: Some(seat) };
        let http2 = matches!(connected, Connected::Http2(_));
        self.state.borrow_mut().speaks_http2 = Some(http2);
        let lease = match connected {
            Connected::Http1(connection) => {
                let held = Some(Held::Http1 { connection, life });
                Lease { pool: self.clone(), held }
            }
            Connected::Http2(connection) => {
                let (streams, requests, since) = (Cell::new(0), Cell::new(0), Cell::new(Instant::now()));
                let connection = Rc::new(Http2 { connection, life, streams, requests, since });
                self.state.borrow_mut().http2.push(connection.clone());
                self.shared.idling.notify_one();
                self.stream_of(connection)
            }
        };
        // Those who waited for this dial share it, or learned that they need their own.
        self.serve_waiters();
        Ok(lease)
    }

    /// Takes back an HTTP/1 connection.
    fn give_back(self: &Rc<Self>, connection: http1::ClientConnection, mut life: Life) {
        life.requests += 1;
        if connection.reusable() && !self.worn(&life, life.requests) {
            self.state.borrow_mut().idle.push(Idle { connection, life, since: Instant::now() });
            self.shared.idling.notify_one();
            self.serve_waiters();
        }
        // Else it is dropped here, and its seat serves whoever waits.
    }

    /// Closes what has idled too long or is closed; true while something idles.
    pub(super) fn sweep(self: &Rc<Self>) -> bool {
        self.drop_worn_http2();
        let mut gone = Vec::new();
        let mut retired = Vec::new();
        let idles = {
            let mut state = self.state.borrow_mut();
            let mut index = 0;
            while index < state.idle.len() {
                let idle = &state.idle[index];
                let old = idle.since.elapsed() >= self.settings.idle_timeout
                    || self.worn(&idle.life, idle.life.requests)
                    || idle.life.forlorn();
                if old || stale(idle) {
                    gone.push(state.idle.remove(index));
                } else {
                    index += 1;
                }
            }
            state.http2.retain(|c| {
                let old = c.since.get().elapsed() >= self.settings.idle_timeout || c.life.forlorn();
                let idle = c.streams.get() == 0 && old;
                if idle {
                    retired.push(c.clone());
                }
                !idle
            });
            !state.idle.is_empty() || !state.http2.is_empty()
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
    Http2(Rc<Http2>),
}

/// The right to one request on a connection. Dropped, an HTTP/1 connection goes back to its pool if request and
/// response are both complete and it may be reused, else it is closed; on HTTP/2 the stream's place becomes free.
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
            Some(Held::Http2(shared)) => {
                let (out, awaiting) = shared.connection.start(head, length).await?;
                Ok((out, Awaiting::Http2(awaiting)))
            }
            None => Err(Fault::new(Cause::Internal, "the lease is over")),
        }
    }

    /// Whether any byte of this request may have left the process. HTTP/2 says so in its faults.
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
            Some(Held::Http2(shared)) => {
                shared.streams.set(shared.streams.get() - 1);
                shared.since.set(Instant::now());
                drop(shared);
                self.pool.serve_waiters();
            }
            None => {}
        }
    }
}
