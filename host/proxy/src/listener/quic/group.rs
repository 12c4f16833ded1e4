//! The sockets of a UDP port: one a worker; those of HTTP/3 are steered by connection id.
//!
//! The kernel spreads datagrams over the sockets of a SO_REUSEPORT group by the 4-tuple, which a client that moves to
//! another address changes. A classic BPF program on the group reads the worker from the connection id instead
//! (RFC 9000, section 5.1): the byte we put into it, or for a client's first packets one of its random ones. What the
//! program returns is an index into the group, so a group is opened and closed as a whole, and kept for as long as any
//! worker still uses it: sockets that join or leave one by one would change whose index is whose.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use quinn::{AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, Runtime};
use socket2::{Domain, Protocol, Socket, Type};

use crate::gso::Gathering;
use crate::listener::tls::provider;

const CID_LENGTH: usize = 8;
/// Measured best: smaller loses rate, larger gains none.
const SOCKET_BUFFER: usize = 2 * 1024 * 1024;

/// How the kernel spreads datagrams over a group.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Spread {
    /// To the worker that the id names: connections end here.
    ByConnectionId,
    /// By the addresses of both ends.
    ByAddresses,
}

/// The sockets of one address, by worker.
#[derive(Debug)]
pub(crate) struct Group {
    address: SocketAddr,
    spread: Spread,
    sockets: Vec<UdpSocket>,
}

/// The groups that are open, as the control thread finds them again: a listener that gets another name, or HTTP/3 back,
/// while clients of the old one are still served takes over the sockets of its address.
#[derive(Default)]
pub(crate) struct Groups(Mutex<HashMap<SocketAddr, Weak<Group>>>);

impl Groups {
    /// With port 0 on one that is free.
    pub(crate) fn open(&self, address: SocketAddr, workers: usize, spread: Spread) -> io::Result<Arc<Group>> {
        // Nothing that could panic happens under the lock.
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = groups.get(&address).and_then(Weak::upgrade) {
            if group.spread != spread {
                let left =
                    "connections of the listener that was here before are still open, and two cannot share the port";
                return Err(io::Error::new(io::ErrorKind::AddrInUse, left));
            }
            return Ok(group);
        }
        groups.retain(|_, group| group.strong_count() > 0);
        let group = Arc::new(Group::bind(address, workers, spread)?);
        groups.insert(group.address, Arc::downgrade(&group));
        Ok(group)
    }
}

impl Group {
    fn bind(mut address: SocketAddr, workers: usize, spread: Spread) -> io::Result<Self> {
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
            let socket = UdpSocket::from(socket);
            address = socket.local_addr()?;
            sockets.push(socket);
        }
        if spread == Spread::ByConnectionId
            && workers > 1
            && let Some(first) = sockets.first()
        {
            steer(first, workers)?;
        }
        Ok(Self { address, spread, sockets })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A worker's socket. The group is to be kept for as long as it is.
    pub(crate) fn share(&self, worker: usize) -> io::Result<UdpSocket> {
        self.sockets.get(worker).ok_or(io::ErrorKind::NotFound)?.try_clone()
    }

    /// A worker's socket for its endpoint, which keeps the group open.
    pub(super) fn socket(self: &Arc<Self>, worker: usize) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let socket = quinn::TokioRuntime.wrap_udp_socket(self.share(worker)?)?;
        // It is closed before the group may be opened anew.
        Ok(Arc::new(Gathering::new(socket, self.clone())))
    }
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
pub(super) struct WorkerIds {
    worker: u8,
    workers: u8,
}

impl WorkerIds {
    pub(super) fn new(worker: usize, workers: usize) -> Self {
        Self { worker: u8::try_from(worker).unwrap_or(0), workers: u8::try_from(workers.clamp(1, 255)).unwrap_or(1) }
    }
}

impl ConnectionIdGenerator for WorkerIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CID_LENGTH];
        // A failing system generator leaves fastrand's numbers: guessable, but still unique.
        if provider().secure_random.fill(&mut id).is_err() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_its_worker() {
        for workers in [1, 2, 3, 7, 64, 255] {
            for worker in [0, workers / 2, workers - 1] {
                let mut ids = WorkerIds::new(worker, workers);
                for _ in 0..20 {
                    assert_eq!(usize::from(ids.generate_cid()[0]) % workers, worker);
                }
            }
        }
    }

    /// A group that is in use is found again, whoever asks; one that nobody uses is closed, and its port free.
    #[test]
    fn a_group_lives_while_it_is_used() {
        let groups = Groups::default();
        let free = UdpSocket::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
        let group = groups.open(free, 2, Spread::ByConnectionId).expect("a group");
        let again = groups.open(free, 2, Spread::ByConnectionId).expect("a group");
        groups.open(free, 2, Spread::ByAddresses).expect_err("used otherwise");
        assert!(Arc::ptr_eq(&group, &again));
        drop(group);
        UdpSocket::bind(free).expect_err("still bound");
        drop(again);
        UdpSocket::bind(free).expect("free");
    }
}
