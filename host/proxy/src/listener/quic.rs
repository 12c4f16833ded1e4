//! HTTP/3's way in: an endpoint per worker on one port, connection ids that name their worker.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::{Arc, OnceLock};

use quinn::{ConnectionError, EndpointConfig, ServerConfig, TransportConfig, VarInt, ZeroRttAccepted};
use rustls::pki_types::CertificateDer;
use tidegate_policy::{ConnectionHead, ProxyTlvs};

use super::tls::ServerTls;
use super::{Gate, canonical};
use crate::codec::{Handshake, Served, http3};
use crate::observe::WorkerMetrics;
use crate::snapshot::{Limits, Listener};
use crate::timer::Deadline;
use crate::worker::{Drain, Worker};

mod group;

pub(crate) use group::{Group, Groups, Spread};

/// Handshakes under way on one worker of a listener before a peer must show that it is where it says it is.
const UNPROVED_HANDSHAKES: usize = 64;

/// Bytes of QUIC datagrams that a connection holds, each way; what is beyond is dropped.
const DATAGRAM_BUFFER: usize = 256 * 1024;

/// A worker's endpoint on one address. Lives while a listener serves it, or connections of one that is gone.
struct Port {
    group: Arc<Group>,
    endpoint: quinn::Endpoint,
}

/// The ports of a worker. A listener that comes back to an address, under another name or after HTTP/3 was off, goes on
/// with the endpoint that still carries connections there: two on one socket would take each other's datagrams.
#[derive(Default)]
pub(crate) struct Ports(RefCell<Vec<Weak<Port>>>);

impl Ports {
    fn open(&self, group: &Arc<Group>, worker: &Worker, config: ServerConfig) -> io::Result<Rc<Port>> {
        let mut ports = self.0.borrow_mut();
        ports.retain(|port| port.strong_count() > 0);
        if let Some(port) = ports.iter().filter_map(Weak::upgrade).find(|port| Arc::ptr_eq(&port.group, group)) {
            port.endpoint.set_server_config(Some(config));
            return Ok(port);
        }
        let (index, workers) = (worker.index, worker.workers);
        let mut endpoint = EndpointConfig::default();
        endpoint.cid_generator(move || Box::new(group::WorkerIds::new(index, workers)));
        let runtime = Arc::new(quinn::TokioRuntime);
        let socket = group.socket(index)?;
        let endpoint = quinn::Endpoint::new_with_abstract_socket(endpoint, Some(config), socket, runtime)?;
        let port = Rc::new(Port { group: group.clone(), endpoint });
        ports.push(Rc::downgrade(&port));
        Ok(port)
    }
}

/// A listener on a port. Dropped, it takes no more connections; those that are open get GOAWAY and finish, and the port
/// is closed after the last.
pub(crate) struct Serving {
    port: Rc<Port>,
    retired: Rc<Drain>,
}

impl Serving {
    pub(crate) fn begin(
        worker: &Rc<Worker>,
        listener: Rc<RefCell<Arc<Listener>>>,
        tls: &ServerTls,
        group: &Arc<Group>,
        gate: Gate,
    ) -> io::Result<Self> {
        let config = server_config(tls, &listener.borrow().limits)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the listener has no QUIC configuration"))?;
        let port = worker.ports.open(group, worker, config)?;
        let retired = Rc::new(Drain::default());
        let accepting = Accepting {
            port: port.clone(),
            retired: retired.clone(),
            listener,
            worker: worker.clone(),
            gate,
            handshakes: Rc::default(),
        };
        tokio::task::spawn_local(accepting.run());
        Ok(Self { port, retired })
    }

    /// Takes over changed certificates and limits; connections that are open keep what they have.
    pub(crate) fn update(&self, tls: &ServerTls, limits: &Limits) {
        if let Some(config) = server_config(tls, limits) {
            self.port.endpoint.set_server_config(Some(config));
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // At once, not when the task runs: another listener may take the port over meanwhile.
        self.port.endpoint.set_server_config(None);
        self.retired.begin();
    }
}

fn server_config(tls: &ServerTls, limits: &Limits) -> Option<ServerConfig> {
    // Its random key seals address validation tokens: with one for all, what one worker gave out another accepts, and so
    // does the configuration after a reload (RFC 9000, section 8.1.3).
    static FIRST: OnceLock<ServerConfig> = OnceLock::new();
    let crypto = tls.quic.clone()?;
    let mut config = FIRST.get_or_init(|| ServerConfig::with_crypto(crypto.clone())).clone();
    config.crypto = crypto;
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(limits.max_streams))
        // Control and two QPACK streams, and a few of kinds we do not know (RFC 9114, section 6.2).
        .max_concurrent_uni_streams(VarInt::from_u32(16))
        .max_idle_timeout(quinn::IdleTimeout::try_from(limits.idle_timeout).ok())
        // A quiet event stream is no idle connection; ours ends an idle one by itself, in HTTP/3.
        .keep_alive_interval(Some(limits.idle_timeout / 3))
        .stream_receive_window(VarInt::from_u32(512 * 1024))
        .receive_window(VarInt::from_u32(4 * 1024 * 1024))
        .send_window(2 * 1024 * 1024)
        // Those of a connection that were not sorted yet, and those that wait for room (RFC 9221).
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER);
    config.transport_config(Arc::new(transport));
    Some(config)
}

/// One worker's accept loop of one listener.
struct Accepting {
    port: Rc<Port>,
    retired: Rc<Drain>,
    listener: Rc<RefCell<Arc<Listener>>>,
    worker: Rc<Worker>,
    gate: Gate,
    /// Under way.
    handshakes: Rc<Cell<usize>>,
}

/// A place among the handshakes that are under way.
struct UnderWay(Rc<Cell<usize>>);

impl UnderWay {
    fn begin(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(count.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Accepting {
    async fn run(self) {
        loop {
            let incoming = tokio::select! {
                biased;
                () = self.retired.begun() => break,
                incoming = self.port.endpoint.accept() => incoming,
            };
            match incoming {
                Some(incoming) => self.take(incoming),
                None => return,
            }
        }
        // The port is this task's for as long as connections need it.
        self.port.endpoint.wait_idle().await;
    }

    fn take(&self, incoming: quinn::Incoming) {
        let listener = self.listener.borrow().clone();
        let (metrics, limit) = (&self.worker.metrics, listener.limits.max_connections);
        let crowded = self.gate.crowded(limit) || self.handshakes.get() >= UNPROVED_HANDSHAKES;
        if crowded && !incoming.remote_address_validated() && incoming.may_retry() {
            // RFC 9000, section 8.1.2: whoever sends from a false address never sees the token, and takes no place.
            let _ = incoming.retry();
            return;
        }
        metrics.quic_connections.add(1);
        let Some(permit) = self.gate.admit(limit) else {
            metrics.connections_refused.add(1);
            incoming.refuse();
            return;
        };
        let under_way = UnderWay::begin(&self.handshakes);
        let port = self.port.group.address().port();
        let (worker, retired) = (self.worker.clone(), self.retired.clone());
        self.worker.spawn_connection(async move {
            let _permit = permit;
            connection(worker, listener, incoming, port, under_way, retired).await;
        });
    }
}

/// The connection once its handshake is complete; where early data is taken, once the ClientHello was read, with what tells
/// that it is.
async fn begun(
    incoming: quinn::Incoming,
    early: bool,
) -> Result<(quinn::Connection, Option<ZeroRttAccepted>), ConnectionError> {
    let mut connecting = incoming.accept()?;
    if !early {
        return Ok((connecting.await?, None));
    }
    connecting.handshake_data().await?;
    match connecting.into_0rtt() {
        Ok((connection, accepted)) => Ok((connection, Some(accepted))),
        // Never on this side.
        Err(connecting) => Ok((connecting.await?, None)),
    }
}

/// Sees a handshake through to its end while what came early is served.
async fn watch(
    connection: quinn::Connection,
    accepted: ZeroRttAccepted,
    mut deadline: Deadline,
    handshake: Handshake,
    _under_way: UnderWay,
    failed: Failed,
) {
    let over = tokio::select! {
        // It says nothing of early data on this side, and comes too when the connection is lost.
        _ = accepted => connection.close_reason(),
        () = deadline.elapsed() => Some(ConnectionError::TimedOut),
    };
    // Only what is certain counts: a close may be in early data, or forged before there are keys.
    handshake.ended(over.is_none() || handshake.is_complete());
    match over {
        None | Some(ConnectionError::ApplicationClosed(_)) => {}
        Some(error) => {
            failed.tell(&error);
            connection.close(VarInt::from_u32(0), b"no handshake");
        }
    }
}

/// Whose handshake failed, for the log.
struct Failed {
    metrics: Arc<WorkerMetrics>,
    listener: Arc<str>,
    peer: SocketAddr,
}

impl Failed {
    fn tell(&self, error: &ConnectionError) {
        self.metrics.handshakes_failed.add(1);
        tracing::debug!(listener = %self.listener, peer = %self.peer, %error, "quic handshake failed");
    }
}

async fn connection(
    worker: Rc<Worker>,
    listener: Arc<Listener>,
    incoming: quinn::Incoming,
    port: u16,
    under_way: UnderWay,
    retired: Rc<Drain>,
) {
    let peer = canonical(incoming.remote_address());
    let local_ip = incoming.local_ip().unwrap_or(listener.address.ip()).to_canonical();
    let early = listener.tls.as_ref().is_some_and(|tls| tls.takes_early_data());
    let mut deadline = Deadline::after(&worker.timers, Some(listener.limits.handshake_timeout));
    let connected = tokio::select! {
        connected = begun(incoming, early) => connected,
        () = deadline.elapsed() => Err(ConnectionError::TimedOut),
    };
    let failed = Failed { metrics: worker.metrics.clone(), listener: listener.name.clone(), peer };
    let (connection, handshake) = match connected {
        Ok((connection, None)) => {
            drop(under_way);
            (connection, Handshake::complete())
        }
        Ok((connection, Some(accepted))) => {
            let handshake = Handshake::pending();
            tokio::task::spawn_local(watch(
                connection.clone(),
                accepted,
                deadline,
                handshake.clone(),
                under_way,
                failed,
            ));
            (connection, handshake)
        }
        Err(error) => return failed.tell(&error),
    };
    let data =
        connection.handshake_data().and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
    let server_name = data.and_then(|data| data.server_name).map(|name| name.to_ascii_lowercase().into());
    let certificates = connection.peer_identity().and_then(|data| data.downcast::<Vec<CertificateDer<'static>>>().ok());
    let (client_certificate, client_chain) =
        super::tls::client_certificate(certificates.as_ref().map(|chain| &chain[..]));
    let head = ConnectionHead {
        id: fastrand::u128(..),
        peer,
        client: peer,
        local: SocketAddr::new(local_ip, port),
        proxy_tlvs: ProxyTlvs::default(),
        listener: listener.name.clone(),
        tls: true,
        tls_version: Some("TLSv1.3"),
        server_name,
        alpn: Some("h3".into()),
        client_certificate,
        client_chain,
    };
    let timers = worker.timers.clone();
    let served = Rc::new(Served::before_the_handshake(worker, listener, head, handshake));
    http3::serve(connection, served, timers, retired).await;
    // The endpoint's tasks get to send the close, though this may have been the last that the worker waited for.
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}
