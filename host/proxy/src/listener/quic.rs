//! HTTP/3's way in: an endpoint per worker on one port, connection ids that name their worker.
//!
//! The kernel spreads datagrams over the sockets of a SO_REUSEPORT group by the 4-tuple, which a client that moves to
//! another address changes. A classic BPF program on the group reads the worker from the connection id instead
//! (RFC 9000, section 5.1): the byte we put into it, or for a client's first packets one of its random ones.

use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, ServerConfig, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use tidegate_policy::{ConnectionHead, ProxyTlvs};

use super::tls::ServerTls;
use super::{Gate, canonical};
use crate::codec::{Served, http3};
use crate::snapshot::{Limits, Listener};
use crate::timer::Deadline;
use crate::worker::Worker;

const CID_LENGTH: usize = 8;
/// Measured best: smaller loses rate, larger gains none.
const SOCKET_BUFFER: usize = 2 * 1024 * 1024;

/// Binds one socket a worker to `address`, steered by connection id.
pub(crate) fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<UdpSocket>> {
    let mut sockets: Vec<UdpSocket> = Vec::with_capacity(workers);
    for _ in 0..workers {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_port(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        // The system may allow less: a smaller buffer works too.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        sockets.push(socket.into());
    }
    if workers > 1
        && let Some(first) = sockets.first()
    {
        steer(first, workers)?;
    }
    Ok(sockets)
}

/// Attaches the program to the group: long headers carry the destination id from byte 6, short ones from byte 1.
fn steer(socket: &UdpSocket, workers: usize) -> io::Result<()> {
    let op = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 2, 0x80),
        op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 6),
        op(libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
        op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 1),
        op(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, u32::try_from(workers).unwrap_or(1)),
        op(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the descriptor is open for the call, and `filter` points at `program`, which outlives it; the kernel
    // copies both.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes ids whose first byte, modulo the number of workers, is their worker; the rest is random.
struct WorkerIds {
    worker: u8,
    workers: u8,
}

impl ConnectionIdGenerator for WorkerIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CID_LENGTH];
        // A failing system generator leaves fastrand's numbers: guessable, but still unique.
        if rustls_random(&mut id).is_none() {
            fastrand::fill(&mut id);
        }
        // Any multiple of the number of workers above hides the index from a casual look.
        let turns = u16::from(u8::MAX) / u16::from(self.workers);
        let turn = u16::from(id[0]) % turns.max(1);
        id[0] = (turn * u16::from(self.workers) + u16::from(self.worker)) as u8;
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CID_LENGTH
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn rustls_random(id: &mut [u8]) -> Option<()> {
    super::tls::provider().secure_random.fill(id).ok()
}

/// A worker's endpoint.
pub(crate) fn endpoint(
    socket: UdpSocket,
    worker: usize,
    workers: usize,
    tls: &ServerTls,
    limits: &Limits,
) -> io::Result<quinn::Endpoint> {
    let ids = (u8::try_from(worker).unwrap_or(0), u8::try_from(workers.clamp(1, 255)).unwrap_or(1));
    let mut config = EndpointConfig::default();
    config.cid_generator(move || Box::new(WorkerIds { worker: ids.0, workers: ids.1 }));
    let server = server_config(tls, limits)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the listener has no QUIC configuration"))?;
    quinn::Endpoint::new(config, Some(server), socket, Arc::new(quinn::TokioRuntime))
}

fn server_config(tls: &ServerTls, limits: &Limits) -> Option<ServerConfig> {
    let mut config = ServerConfig::with_crypto(tls.quic.clone()?);
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
        .datagram_receive_buffer_size(None);
    config.transport_config(Arc::new(transport));
    Some(config)
}

/// Takes over changed certificates and limits; connections that are open keep what they have.
pub(crate) fn update(endpoint: &quinn::Endpoint, tls: &ServerTls, limits: &Limits) {
    if let Some(config) = server_config(tls, limits) {
        endpoint.set_server_config(Some(config));
    }
}

/// One worker's accept loop. Ends when the endpoint closes or the drain begins; what is open goes on in its tasks.
pub(crate) async fn serve(
    endpoint: quinn::Endpoint,
    current: Rc<RefCell<Arc<Listener>>>,
    worker: Rc<Worker>,
    gate: Gate,
) {
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = worker.drain.begun() => {
                // New connections are refused from here on; the endpoint goes on carrying the open ones.
                endpoint.set_server_config(None);
                return endpoint.wait_idle().await;
            }
        };
        let Some(incoming) = incoming else { return };
        let listener = current.borrow().clone();
        worker.metrics.quic_connections.add(1);
        let Some(permit) = gate.admit(listener.limits.max_connections) else {
            worker.metrics.connections_refused.add(1);
            incoming.refuse();
            continue;
        };
        let task = connection(worker.clone(), listener, incoming);
        worker.spawn_connection(async move {
            let _permit = permit;
            task.await;
        });
    }
}

async fn connection(worker: Rc<Worker>, listener: Arc<Listener>, incoming: quinn::Incoming) {
    let peer = canonical(incoming.remote_address());
    let port = listener.address.port();
    let local_ip = incoming.local_ip().unwrap_or(listener.address.ip()).to_canonical();
    let mut deadline = Deadline::after(&worker.timers, Some(listener.limits.handshake_timeout));
    let handshake = async { incoming.accept()?.await };
    let connected = tokio::select! {
        connected = handshake => connected,
        () = deadline.elapsed() => Err(quinn::ConnectionError::TimedOut),
    };
    let connection = match connected {
        Ok(connection) => connection,
        Err(error) => {
            worker.metrics.handshakes_failed.add(1);
            tracing::debug!(listener = %listener.name, %peer, %error, "quic handshake failed");
            return;
        }
    };
    let handshake =
        connection.handshake_data().and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
    let server_name = handshake.and_then(|data| data.server_name).map(|name| name.to_ascii_lowercase().into());
    let certificates = connection.peer_identity().and_then(|data| data.downcast::<Vec<CertificateDer<'static>>>().ok());
    let client_certificate = certificates.and_then(|chain| chain.first().map(|end| Bytes::copy_from_slice(end)));
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
    };
    let timers = worker.timers.clone();
    let served = Rc::new(Served { worker, listener, connection: Rc::new(head) });
    http3::serve(connection, served, timers).await;
}
