//! Datagrams in and out of sockets, many at a time: what comes in one call may be several of one size (GRO), which go out
//! in one call too where the system can (GSO). What cannot be sent at once is dropped; nothing is fragmented.

use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::observe::UdpDatagrams;
/// Messages taken in one call.
const BATCH: usize = 16;
/// As long as a message can be, however many datagrams it holds.
const ROOM: usize = 1 << 16;

thread_local! {
    /// One for all sockets of a worker. Pages that nothing was ever read into cost nothing.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// A header and what it goes before.
    static WHOLE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Datagrams from one sender that came as one message: all of one length, but the last may be shorter.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    bytes: &'a [u8],
    each: usize,
    pub(super) ecn: Option<EcnCodepoint>,
}

impl<'a> Run<'a> {
    pub(super) fn one(bytes: &'a [u8], ecn: Option<EcnCodepoint>) -> Self {
        Self { bytes, each: bytes.len(), ecn }
    }

    fn is_one(&self) -> bool {
        self.each >= self.bytes.len()
    }

    pub(super) fn count(&self) -> usize {
        if self.is_one() { 1 } else { self.bytes.len().div_ceil(self.each) }
    }

    /// An empty datagram is one too.
    pub(super) fn datagrams(self) -> impl Iterator<Item = &'a [u8]> {
        let first = if self.is_one() { Some(self.bytes) } else { None };
        let others = if self.is_one() { &[] } else { self.bytes };
        first.into_iter().chain(others.chunks(self.each.max(1)))
    }
}

/// What became of a run.
#[derive(Default)]
pub(super) struct Sent {
    pub(super) passed: u64,
    pub(super) bytes: u64,
    /// For a link on the way.
    pub(super) too_large: u64,
    /// There was no room.
    pub(super) overflow: u64,
    /// Not sent, with the reason.
    pub(super) failed: u64,
    pub(super) error: Option<io::Error>,
}

impl Sent {
    /// What did not go on, by why.
    pub(super) fn count_dropped(&self, udp: &UdpDatagrams) {
        udp.too_large.add(self.too_large);
        udp.overflow.add(self.overflow);
        udp.unsent.add(self.failed);
    }

    fn note(&mut self, sent: io::Result<()>, count: u64, bytes: usize) {
        match sent {
            Ok(()) => {
                self.passed += count;
                self.bytes += bytes as u64;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS) => {
                self.overflow += count;
            }
            Err(error) if is_too_large(&error) => self.too_large += count,
            Err(error) => {
                self.failed += count;
                self.error = Some(error);
            }
        }
    }
}

/// Of a datagram, or as what a larger one of ours met on its way.
pub(super) fn is_too_large(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// Where a run goes.
#[derive(Clone, Copy)]
pub(super) struct Path {
    pub(super) to: SocketAddr,
    /// The address that it leaves from, where the socket has several.
    pub(super) from: Option<IpAddr>,
    /// The socket knows nobody but `to`.
    pub(super) connected: bool,
}

/// Sends what the socket takes now. `header` goes before each of them.
pub(super) fn send(state: &UdpSocketState, socket: &impl AsFd, path: Path, header: &[u8], run: Run<'_>) -> Sent {
    let mut sent = Sent::default();
    if !header.is_empty() {
        WHOLE.with_borrow_mut(|whole| {
            for datagram in run.datagrams() {
                whole.clear();
                whole.extend_from_slice(header);
                whole.extend_from_slice(datagram);
                sent.note(one(state, socket, path, whole, run.ecn), 1, datagram.len());
            }
        });
        return sent;
    }
    let count = run.count();
    if count > 1 && count <= state.max_gso_segments() {
        let transmit = Transmit {
            destination: path.to,
            ecn: run.ecn,
            contents: run.bytes,
            segment_size: Some(run.each),
            src_ip: path.from,
        };
        match state.try_send(socket.into(), &transmit) {
            // The device cannot, or one of them is too long: then one by one.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE)) => {}
            all => {
                sent.note(all, count as u64, run.bytes.len());
                return sent;
            }
        }
    }
    for datagram in run.datagrams() {
        sent.note(one(state, socket, path, datagram, run.ecn), 1, datagram.len());
        if sent.error.is_some() {
            sent.failed = count as u64 - sent.passed - sent.overflow - sent.too_large;
            break;
        }
    }
    sent
}

fn one(
    state: &UdpSocketState,
    socket: &impl AsFd,
    path: Path,
    datagram: &[u8],
    ecn: Option<EcnCodepoint>,
) -> io::Result<()> {
    if path.connected && ecn.is_none() {
        // An address would have the route looked up again.
        return socket2::SockRef::from(socket).send(datagram).map(drop);
    }
    let (destination, src_ip) = (path.to, path.from);
    state.try_send(socket.into(), &Transmit { destination, ecn, contents: datagram, segment_size: None, src_ip })
}

/// Takes one batch of what has come; `take` gets each run with the addresses it came between.
pub(super) fn receive(
    state: &UdpSocketState,
    socket: &UdpSocket,
    mut take: impl FnMut(Run<'_>, &RecvMeta),
) -> io::Result<()> {
    // Taken out for as long as it is used: whatever `take` does, it finds its own.
    let mut scratch = SCRATCH.take();
    if scratch.is_empty() {
        scratch = vec![0; BATCH * ROOM];
    }
    let mut metas = [RecvMeta::default(); BATCH];
    let received = {
        let mut pieces = scratch.chunks_exact_mut(ROOM);
        let mut room: [IoSliceMut<'_>; BATCH] =
            std::array::from_fn(|_| IoSliceMut::new(pieces.next().unwrap_or_default()));
        socket.try_io(Interest::READABLE, || state.recv(socket.into(), &mut room, &mut metas))
    };
    if let Ok(count) = received {
        for (piece, meta) in scratch.chunks_exact(ROOM).zip(&metas[..count]) {
            take(Run { bytes: &piece[..meta.len], each: meta.stride, ecn: meta.ecn }, meta);
        }
    }
    SCRATCH.set(scratch);
    received.map(drop)
}

/// Lets a socket to an endpoint give many datagrams at once, and their marks of congestion. Where the system cannot, it is
/// one by one and without.
pub(super) fn tune(socket: &UdpSocket, address: SocketAddr) {
    let reference = socket2::SockRef::from(socket);
    let _ = match address {
        SocketAddr::V4(_) => reference.set_recv_tos_v4(true),
        SocketAddr::V6(_) => reference.set_recv_tclass_v6(true),
    };
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the call, and the value is an integer of the size that is said.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_GRO,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_datagrams() {
        let all = |bytes, each| Run { bytes, each, ecn: None }.datagrams().map(<[u8]>::to_vec).collect::<Vec<_>>();
        assert_eq!(all(b"aabbc", 2), [&b"aa"[..], b"bb", b"c"]);
        assert_eq!(all(b"aa", 2), [b"aa"]);
        assert_eq!(all(b"", 0), [b""], "an empty one is one");
        assert_eq!(Run { bytes: b"aabbc", each: 2, ecn: None }.count(), 3);
        assert_eq!(Run::one(b"", None).count(), 1);
    }

    #[tokio::test]
    async fn runs_arrive_as_they_were_sent() {
        let receiver = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let sender = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let state = UdpSocketState::new((&receiver).into()).expect("options");
        let path = Path { to: receiver.local_addr().expect("an address"), from: None, connected: false };
        let many = [7; 2500];
        let sent = send(&state, &sender, path, b"", Run { bytes: &many, each: 1000, ecn: Some(EcnCodepoint::Ect0) });
        assert_eq!((sent.passed, sent.bytes), (3, 2500));
        let sent = send(&state, &sender, path, b"head", Run { bytes: b"abc", each: 2, ecn: None });
        assert_eq!((sent.passed, sent.bytes), (2, 3));
        assert_eq!(send(&state, &sender, path, b"", Run::one(b"", None)).passed, 1);
        let long = vec![0; 66_000];
        assert_eq!(send(&state, &sender, path, b"", Run::one(&long, None)).too_large, 1);
        let mut came = Vec::new();
        while came.len() < 6 {
            receiver.readable().await.expect("a socket");
            let _ = receive(&state, &receiver, |run, meta| {
                came.extend(run.datagrams().map(|datagram| (datagram.to_vec(), meta.ecn)));
            });
        }
        let marked = Some(EcnCodepoint::Ect0);
        let lengths: Vec<_> = came.iter().map(|(bytes, ecn)| (bytes.len(), *ecn == marked)).collect();
        assert_eq!(lengths, [(1000, true), (1000, true), (500, true), (6, false), (5, false), (0, false)]);
        assert_eq!(came[4].0, b"headc");
    }
}
