//! Clients in a closed loop: each connection, or stream, asks again as soon as it has its answer, and every byte of that
//! is checked. With a rate, each asks when its time has come, and what it waited for its turn counts.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tokio::sync::Semaphore;

use super::message::Ask;

mod http1;
mod http2;
mod http3;

/// How clients speak to the proxy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Front {
    Http1,
    Http1Tls,
    Http2,
    Http3,
}

/// What a load does.
#[derive(Clone, Debug)]
pub struct Load {
    pub front: Front,
    pub connections: usize,
    /// On each connection at once; 1 for HTTP/1.1.
    pub streams: usize,
    pub ask: Ask,
    /// In HTTP/1.1 these, in turn over all connections, in place of the one request that `ask` makes.
    pub requests: Option<Rc<[Vec<u8>]>>,
    /// A new connection for every request.
    pub fresh: bool,
    /// Connections are reset at their end, as impatient clients do.
    pub reset: bool,
    /// Requests a second over all, or as many as go.
    pub rate: Option<u32>,
    /// Ends by itself after so many.
    pub count: Option<u64>,
}

impl Load {
    /// The same request again and again, as fast as it is answered.
    pub fn of(front: Front, connections: usize, streams: usize, ask: Ask) -> Self {
        Self { front, connections, streams, ask, requests: None, fresh: false, reset: false, rate: None, count: None }
    }
}

/// What all clients of a load share.
pub struct Shared {
    pub load: Load,
    pub address: SocketAddr,
    pub tls: Arc<ClientConfig>,
    stop: Cell<bool>,
    /// Requests that may begin.
    left: Cell<u64>,
    done: Cell<u64>,
    /// Of the requests that are asked in turn, the next.
    next: Cell<usize>,
    failed: RefCell<Option<String>>,
    /// Nanoseconds each, while they are recorded.
    times: RefCell<Option<Vec<u64>>>,
    turns: Option<Rc<Semaphore>>,
}

impl Shared {
    fn new(load: Load, address: SocketAddr, tls: ClientConfig) -> Self {
        Self {
            address,
            tls: Arc::new(tls),
            stop: Cell::new(false),
            left: Cell::new(load.count.unwrap_or(u64::MAX)),
            done: Cell::new(0),
            next: Cell::new(0),
            failed: RefCell::default(),
            times: RefCell::new(None),
            turns: load.rate.map(|_| Rc::new(Semaphore::new(0))),
            load,
        }
    }

    pub fn stopping(&self) -> bool {
        self.stop.get()
    }

    /// Whether another request is to begin: it is counted.
    fn another(&self) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0 && !self.stop.get()
    }

    /// Waits for its turn, where there is a rate; then the clock runs.
    async fn turn(&self) -> Instant {
        if let Some(turns) = &self.turns
            && let Ok(permit) = turns.acquire().await
        {
            permit.forget();
        }
        Instant::now()
    }

    /// Where the next connection comes from: an address of loopback has some 28,000 ports, and closed ones rest for a while,
    /// those of the loads before as well.
    fn source(&self) -> SocketAddr {
        /// Connections opened, by all loads.
        static OPENED: AtomicUsize = AtomicUsize::new(0);
        let opened = OPENED.fetch_add(1, Ordering::Relaxed);
        SocketAddr::from(([127, 0, 0, 1 + (opened / 4000 % 200) as u8], 0))
    }

    fn answered(&self, begun: Instant) {
        self.done.set(self.done.get() + 1);
        if let Some(times) = &mut *self.times.borrow_mut() {
            times.push(begun.elapsed().as_nanos() as u64);
        }
    }

    fn fail(&self, error: String) {
        self.failed.borrow_mut().get_or_insert(error);
        self.stop.set(true);
    }
}

/// A load that runs on the current thread.
pub struct Running {
    shared: Rc<Shared>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Running {
    pub fn start(load: Load, address: SocketAddr, tls: ClientConfig) -> Self {
        let shared = Rc::new(Shared::new(load, address, tls));
        if let (Some(rate), Some(turns)) = (shared.load.rate, shared.turns.clone()) {
            let shared = shared.clone();
            tokio::task::spawn_local(async move {
                let begun = Instant::now();
                let mut given = 0;
                let mut tick = tokio::time::interval(Duration::from_millis(1));
                while !shared.stopping() {
                    tick.tick().await;
                    let due = (begun.elapsed().as_secs_f64() * f64::from(rate)) as usize;
                    turns.add_permits(due - given);
                    given = due;
                }
                turns.close();
            });
        }
        let clients = (0..shared.load.connections).map(|_| {
            let shared = shared.clone();
            tokio::task::spawn_local(async move {
                let ran = match shared.load.front {
                    Front::Http1 | Front::Http1Tls => http1::client(&shared).await,
                    Front::Http2 => http2::client(&shared).await,
                    Front::Http3 => http3::client(&shared).await,
                };
                if let Err(error) = ran
                    && !shared.stopping()
                {
                    shared.fail(error);
                }
            })
        });
        Self { clients: clients.collect(), shared }
    }

    /// Answers so far, or what went wrong.
    pub fn done(&self) -> Result<u64, String> {
        match &*self.shared.failed.borrow() {
            Some(error) => Err(error.clone()),
            None => Ok(self.shared.done.get()),
        }
    }

    pub fn record(&self) {
        *self.shared.times.borrow_mut() = Some(Vec::with_capacity(1 << 20));
    }

    pub fn recorded(&self) -> Vec<u64> {
        self.shared.times.borrow_mut().take().unwrap_or_default()
    }

    /// Lets what is under way end.
    pub async fn stop(self) -> Result<(), String> {
        self.shared.stop.set(true);
        self.end().await
    }

    /// Waits for a load that ends by itself.
    pub async fn end(self) -> Result<(), String> {
        for client in self.clients {
            let end = tokio::time::timeout(Duration::from_secs(120), client).await;
            end.map_err(|_| "a client does not end".to_owned())?.map_err(|error| error.to_string())?;
        }
        self.shared.failed.borrow().clone().map_or(Ok(()), Err)
    }
}

/// Connections that are open and silent, each after one request.
pub async fn idle(load: Load, address: SocketAddr, tls: ClientConfig) -> Result<Vec<Box<dyn std::any::Any>>, String> {
    let shared = Rc::new(Shared::new(load, address, tls));
    let mut open: Vec<Box<dyn std::any::Any>> = Vec::new();
    for _ in 0..shared.load.connections {
        open.push(match shared.load.front {
            Front::Http1 | Front::Http1Tls => Box::new(http1::once(&shared).await?),
            Front::Http2 => Box::new(http2::once(&shared).await?),
            Front::Http3 => Box::new(http3::once(&shared).await?),
        });
    }
    Ok(open)
}
