//! Listeners: sockets per worker, accept, limits, a task per connection. Handshakes happen inside that task, so that a
//! slow one delays nobody.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use socket2::{Domain, Protocol, Socket, Type};
use tidegate_policy::{ConnectionHead, HttpVersion, ProxyTlvs};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::codec::{self, Served};
use crate::listener::quic::Spread;
use crate::snapshot::{Listener, Snapshot};
use crate::stream::{Stream, Transport};
use crate::timer::Deadline;
use crate::tunnel;
use crate::worker::Worker;

pub(crate) mod proxy_protocol;
pub(crate) mod quic;
pub(crate) mod tls;

use proxy_protocol::{Begins, Refused};

/// The sockets of a listener on all workers, as the control thread remembers them.
#[derive(Clone)]
pub(crate) struct Sockets {
    configured: SocketAddr,
    bound: SocketAddr,
    kinds: Kinds,
    connections: Arc<AtomicUsize>,
}

/// Which sockets a listener has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Kinds {
    tcp: bool,
    udp: Option<Spread>,
}

impl Kinds {
    fn of(listener: &Listener) -> Self {
        let (tcp, datagrams) = listener.tunnel.as_ref().map_or((true, false), |tunnel| (tunnel.tcp, tunnel.udp));
        let quic = listener.protocols.http3 && listener.tls.is_some();
        let udp = if datagrams { Some(Spread::ByAddresses) } else { quic.then_some(Spread::ByConnectionId) };
        Self { tcp, udp }
    }
}

/// One worker's share of a listener that was just bound.
pub(crate) struct Opened {
    name: Arc<str>,
    tcp: Option<std::net::TcpListener>,
    udp: Option<Arc<quic::Group>>,
    ids: Arc<tunnel::Ids>,
    connections: Arc<AtomicUsize>,
}

impl Sockets {
    /// Binds a group of SO_REUSEPORT sockets, one a worker: the kernel spreads connections over them.
    pub(crate) fn bind(listener: &Listener, workers: usize, groups: &quic::Groups) -> io::Result<(Self, Vec<Opened>)> {
        let kinds = Kinds::of(listener);
        let (connections, ids) = (Arc::new(AtomicUsize::new(0)), Arc::default());
        let mut address = listener.address;
        // A free TCP port may be taken for UDP: with port 0 try a few.
        let mut tries = if kinds.udp.is_some() && address.port() == 0 { 16 } else { 1 };
        let (first, udp) = loop {
            let tcp = kinds.tcp.then(|| bind_tcp(address)).transpose()?;
            let bound = tcp.as_ref().map_or(Ok(address), std::net::TcpListener::local_addr)?;
            tries -= 1;
            let udp = match kinds.udp.map(|spread| groups.open(bound, workers, spread)).transpose() {
                Ok(udp) => udp,
                Err(error) if tries == 0 => return Err(error),
                Err(_) => continue,
            };
            address = udp.as_ref().map_or(bound, |group| group.address());
            break (tcp, udp);
        };
        let mut opened = vec![first];
        for _ in 1..workers {
            opened.push(kinds.tcp.then(|| bind_tcp(address)).transpose()?);
        }
        let share = |tcp| Opened {
            name: listener.name.clone(),
            tcp,
            udp: udp.clone(),
            ids: Arc::clone(&ids),
            connections: connections.clone(),
        };
        let shares = opened.into_iter().map(share).collect();
        Ok((Self { configured: listener.address, bound: address, kinds, connections }, shares))
    }

    /// Whether these sockets are what `listener` asks for.
    pub(crate) fn serves(&self, listener: &Listener) -> bool {
        self.configured == listener.address && self.kinds == Kinds::of(listener)
    }

    pub(crate) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.connections, &other.connections)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.bound
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        // `[::]` serves IPv4 too, whatever the system's default is.
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// A listener that a worker serves. Dropped, its sockets close.
pub(crate) struct Serving {
    listener: Rc<RefCell<Arc<Listener>>>,
    quic: Option<quic::Serving>,
    _datagrams: Option<tunnel::Serving>,
    stop: Rc<Notify>,
    accepting: Option<JoinHandle<()>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}

impl Serving {
    /// Accepts no more, once those are accepted that the kernel completed for us already.
    pub(crate) async fn stop(mut self) {
        self.stop.notify_one();
        // It ends by itself; should it have panicked, there is nothing left to accept.
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.await;
        }
    }
}

/// Brings what a worker serves in line with a snapshot.
pub(crate) fn reconcile(
    worker: &Rc<Worker>,
    snapshot: &Snapshot,
    serving: &mut HashMap<Arc<str>, Serving>,
    opened: Vec<Opened>,
    closed: &[Arc<str>],
) {
    for name in closed {
        serving.remove(name);
    }
    for listener in &snapshot.listeners {
        if let Some(serving) = serving.get(&listener.name) {
            *serving.listener.borrow_mut() = listener.clone();
            if let (Some(quic), Some(tls)) = (&serving.quic, &listener.tls) {
                quic.update(tls, &listener.limits);
            }
        }
    }
    for share in opened {
        let Some(listener) = snapshot.listeners.iter().find(|listener| listener.name == share.name) else { continue };
        match Serving::begin(worker, listener, share) {
            Ok(begun) => {
                serving.insert(listener.name.clone(), begun);
            }
            Err(error) => tracing::error!(listener = %listener.name, %error, "cannot serve a listener"),
        }
    }
}

impl Serving {
    fn begin(worker: &Rc<Worker>, listener: &Arc<Listener>, share: Opened) -> io::Result<Self> {
        let current = Rc::new(RefCell::new(listener.clone()));
        let stop = Rc::new(Notify::new());
        let gate = Gate { connections: share.connections };
        let accepting = match share.tcp {
            Some(tcp) => {
                let tcp = TcpListener::from_std(tcp)?;
                let accepting = Accepting { worker: worker.clone(), listener: current.clone(), gate: gate.clone() };
                Some(tokio::task::spawn_local(accepting.run(tcp, stop.clone())))
            }
            None => None,
        };
        let (mut quic, mut datagrams) = (None, None);
        match (share.udp, &listener.tls) {
            (Some(group), _) if listener.tunnel.as_ref().is_some_and(|tunnel| tunnel.udp) => {
                datagrams = Some(tunnel::Serving::begin(worker, current.clone(), &group, &share.ids, gate)?);
            }
            (Some(group), Some(tls)) => {
                quic = Some(quic::Serving::begin(worker, current.clone(), tls, &group, gate)?);
            }
            _ => {}
        }
        Ok(Self { listener: current, quic, _datagrams: datagrams, stop, accepting })
    }
}

/// Counts a listener's connections over all workers.
#[derive(Clone)]
pub(crate) struct Gate {
    connections: Arc<AtomicUsize>,
}

/// One admitted connection.
pub(crate) struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gate {
    /// Whether more than a quarter of the limit is taken: then it is worth a round trip to know that a peer is where it
    /// says it is (RFC 9000, section 8.1.2).
    pub(crate) fn crowded(&self, limit: usize) -> bool {
        self.connections.load(Ordering::Relaxed) > limit / 4
    }

    /// `None` at the limit: the connection is to be closed at once.
    pub(crate) fn admit(&self, limit: usize) -> Option<Permit> {
        let permit = Permit(self.connections.clone());
        (self.connections.fetch_add(1, Ordering::Relaxed) < limit).then_some(permit)
    }
}

/// One worker's accept loop of one listener.
struct Accepting {
    worker: Rc<Worker>,
    listener: Rc<RefCell<Arc<Listener>>>,
    gate: Gate,
}

impl Accepting {
    async fn run(self, tcp: TcpListener, stop: Rc<Notify>) {
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = tcp.accept() => accepted,
                () = stop.notified() => break,
            };
            match accepted {
                Ok((stream, peer)) => self.connection(stream, peer),
                Err(error) => self.failed(&error).await,
            }
        }
        // Those that the kernel completed for us already are still ours to answer.
        while let Some(Ok((stream, peer))) = tcp.accept().now_or_never() {
            self.connection(stream, peer);
        }
    }

    /// Out of descriptors or memory: retrying at once would spin. What concerns one connection only passes.
    async fn failed(&self, error: &io::Error) {
        let passing = matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset);
        if !passing {
            tracing::warn!(listener = %self.listener.borrow().name, %error, "cannot accept");
            Deadline::after(&self.worker.timers, Some(Duration::from_millis(50))).elapsed().await;
        }
    }

    fn connection(&self, tcp: TcpStream, peer: SocketAddr) {
        let listener = self.listener.borrow().clone();
        let metrics = &self.worker.metrics;
        metrics.tcp_connections.add(1);
        let Some(permit) = self.gate.admit(listener.limits.max_connections) else {
            metrics.connections_refused.add(1);
            tracing::debug!(listener = %listener.name, %peer, "connection refused: at the listener's limit");
            return;
        };
        let worker = self.worker.clone();
        self.worker.spawn_connection(serve(worker, listener, tcp, peer).map(move |()| drop(permit)));
    }
}

/// An IPv4 client of an IPv6 socket is an IPv4 client (RFC 4291, section 2.5.5.2), for CIDRs and for logs.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// One TCP connection: PROXY header, handshake, then the codec that was agreed on. Each part has memory of its own, for its
/// own time: a connection that idles holds what its codec needs, and nothing else.
async fn serve(worker: Rc<Worker>, listener: Arc<Listener>, tcp: TcpStream, peer: SocketAddr) {
    let timers = worker.timers.clone();
    let Some((stream, served)) = Box::pin(begin(worker, listener, tcp, peer)).await else { return };
    let served = Rc::new(served);
    match served.connection.alpn.as_deref() {
        Some("h2") => Box::pin(codec::http2::serve(stream, served, timers)).await,
        Some(_) => Box::pin(codec::http1::serve(stream, served, timers)).await,
        // Over TLS only ALPN agrees on HTTP/2 (RFC 9113, section 3.2).
        None if served.connection.tls && served.listener.protocols.http1 => {
            Box::pin(codec::http1::serve(stream, served, timers)).await;
        }
        None if served.connection.tls => {
            served.refused(HttpVersion::Http2, 0, "no ALPN, and this listener does not speak HTTP/1");
        }
        None => codec::serve_clear_text(stream, served, timers).await,
    }
}

/// What comes before the first byte of HTTP. `None` if it never comes so far.
async fn begin(
    worker: Rc<Worker>,
    listener: Arc<Listener>,
    mut tcp: TcpStream,
    peer: SocketAddr,
) -> Option<(Stream, Served)> {
    // Without it a small response waits for the client's delayed acknowledgement.
    let _ = tcp.set_nodelay(true);
    let local = tcp.local_addr().ok()?;
    let (peer, local) = (canonical(peer), canonical(local));
    let mut head = ConnectionHead {
        id: fastrand::u128(..),
        peer,
        client: peer,
        local,
        proxy_tlvs: ProxyTlvs::default(),
        listener: listener.name.clone(),
        tls: false,
        tls_version: None,
        server_name: None,
        alpn: None,
        client_certificate: None,
        client_chain: Box::default(),
    };
    let mut ahead = Bytes::new();
    if let Some(accept) = &listener.proxy_protocol {
        match proxy_protocol::receive(&mut tcp, accept, peer.ip(), &worker.timers).await {
            Ok(Begins::WithHeader(header)) => {
                if let Some(addresses) = header.addresses {
                    (head.client, head.local) = (canonical(addresses.source), canonical(addresses.destination));
                }
                head.proxy_tlvs = header.tlvs;
            }
            Ok(Begins::With(taken)) => ahead = taken,
            Err(refused) => {
                proxy_header_refused(&worker, &listener, peer, &refused);
                return None;
            }
        }
    }
    let mut named = None;
    if let Some(rules) = &listener.tunnel {
        // Boxed: most of what a tunnel holds is for its life, and a connection that ends here has other needs.
        let terminated = Box::pin(tunnel::serve(&worker, &listener, rules, tcp, head.clone(), ahead)).await?;
        (tcp, ahead, named) = (terminated.tcp, terminated.ahead, terminated.server_name);
    }
    let transport = match &listener.tls {
        None => Transport::Tcp(tcp),
        // What may begin a header cannot begin a TLS record.
        Some(_) if !ahead.is_empty() && listener.tunnel.is_none() => {
            worker.metrics.handshakes_failed.add(1);
            tracing::debug!(listener = %listener.name, %peer, "neither a PROXY header nor TLS");
            return None;
        }
        Some(tls) => {
            match tls::accept(tcp, (ahead, named), tls, listener.limits.handshake_timeout, &worker.timers).await {
                Ok(accepted) => {
                    head.tls = true;
                    head.tls_version = accepted.version;
                    head.server_name = accepted.server_name;
                    head.alpn = accepted.alpn;
                    (head.client_certificate, head.client_chain) = accepted.client_certificate;
                    accepted.transport
                }
                Err(error) => {
                    worker.metrics.handshakes_failed.add(1);
                    tracing::debug!(listener = %listener.name, %peer, %error, "tls handshake failed");
                    return None;
                }
            }
        }
    };
    Some((Stream::new(transport), Served::new(worker, listener, head)))
}

fn proxy_header_refused(worker: &Worker, listener: &Listener, peer: SocketAddr, refused: &Refused) {
    refused.count(&worker.metrics);
    tracing::debug!(listener = %listener.name, %peer, %refused, "connection closed before a PROXY header");
}
