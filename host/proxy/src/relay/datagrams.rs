//! Datagrams both ways, for connect-udp (RFC 9298): capsules on the client's stream, or QUIC datagrams where it has them,
//! and a UDP socket that knows one endpoint.
//!
//! Nothing is buffered here. What the client's stream brings waits for the socket; what the socket brings while the client
//! takes no more capsules waits in the kernel, and is lost beyond its room. The tunnel ends with the client's stream.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::io::{Interest, ReadBuf};
use tokio::net::UdpSocket;

use super::End;
use crate::body::{Activity, BodyError, Frame, Incoming, Outgoing, Quiet};
use crate::capsule::{self, Decoder, Malformed};
use crate::codec::http3::{Datagrams, Sent};
use crate::observe::WorkerMetrics;
use crate::timer::Timers;

thread_local! {
    /// As long as a UDP payload can be; one for all tunnels of a worker.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; 1 << 16].into());
}

/// How a tunnel is bounded and counted.
pub(crate) struct DatagramRules<'a> {
    /// Longest time without a datagram in either direction.
    pub(crate) idle: Option<Duration>,
    pub(crate) timers: &'a Timers,
    pub(crate) metrics: &'a WorkerMetrics,
    /// Bytes of payloads from the client.
    pub(crate) up: &'a Cell<u64>,
    /// Bytes of payloads to the client.
    pub(crate) down: &'a Cell<u64>,
    /// Whether the endpoint ever sent something.
    pub(crate) answered: &'a Cell<bool>,
}

/// Why a tunnel did not end by itself.
#[derive(Debug, Error)]
pub(crate) enum Broke {
    #[error("tunnel, client: {0}")]
    Client(String),
    #[error("tunnel, client: {0}")]
    Malformed(String),
    /// The socket is of no more use: mostly since nobody listens (ICMP).
    #[error("tunnel, endpoint: {0}")]
    Endpoint(io::Error),
    #[error("tunnel: silent for {0:?}")]
    Idle(Duration),
}

impl From<Malformed> for Broke {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed.to_string())
    }
}

/// Moves datagrams until the client ends, something breaks, nothing moves for too long, or `over`.
pub(crate) async fn relay(
    mut client: End,
    quic: Option<Datagrams>,
    socket: &UdpSocket,
    over: impl Future<Output = ()>,
    rules: DatagramRules<'_>,
) -> Result<(), Broke> {
    let activity = Activity::now();
    let within = Cell::new(false);
    let mut idle = Quiet::new(&activity, rules.timers, rules.idle);
    let mut ended = {
        let tunnel = Tunnel { quic, socket, activity: &activity, within: &within, rules: &rules };
        let mut up = pin!(tunnel.up(&mut client.incoming));
        let mut down = pin!(tunnel.down(&mut client.outgoing));
        let mut failed = pin!(tunnel.failed());
        let mut over = pin!(over);
        poll_fn(|cx| {
            if let Poll::Ready(ended) = up.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            if let Poll::Ready(broke) = down.as_mut().poll(cx) {
                return Poll::Ready(Err(broke));
            }
            if let Poll::Ready(error) = failed.as_mut().poll(cx) {
                return Poll::Ready(Err(Broke::Endpoint(error)));
            }
            if over.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            idle.poll(cx).map(|idle| Err(Broke::Idle(idle)))
        })
        .await
    };
    // A capsule of which a part is on its way must not look whole: then the stream has no clean end.
    if ended.is_ok() && !within.get() {
        let mut finishing = pin!(client.outgoing.finish(&activity));
        ended = poll_fn(|cx| {
            if let Poll::Ready(finished) = finishing.as_mut().poll(cx) {
                return Poll::Ready(finished.map_err(|gone| Broke::Client(gone.to_string())));
            }
            idle.poll(cx).map(|idle| Err(Broke::Idle(idle)))
        })
        .await;
    }
    match &ended {
        Ok(()) if within.get() => client.outgoing.reset(),
        Ok(()) => {}
        Err(Broke::Malformed(_)) => client.outgoing.malformed(),
        Err(_) => client.outgoing.reset(),
    }
    ended
}

struct Tunnel<'a> {
    quic: Option<Datagrams>,
    socket: &'a UdpSocket,
    activity: &'a Activity,
    /// A capsule is being handed over.
    within: &'a Cell<bool>,
    rules: &'a DatagramRules<'a>,
}

enum Came {
    Frame(Option<Result<Frame, BodyError>>),
    Datagram(Bytes),
}

impl Tunnel<'_> {
    /// From the client to the endpoint, until the client's stream ends.
    async fn up(&self, from: &mut Incoming) -> Result<(), Broke> {
        let mut capsules = Decoder::default();
        loop {
            let came = poll_fn(|cx| {
                if let Poll::Ready(frame) = from.poll_frame(cx) {
                    return Poll::Ready(Came::Frame(frame));
                }
                match &self.quic {
                    Some(quic) => quic.poll_next(cx).map(Came::Datagram),
                    None => Poll::Pending,
                }
            });
            match came.await {
                Came::Datagram(datagram) => self.forward(datagram).await?,
                Came::Frame(Some(Ok(Frame::Data(mut data)))) => {
                    while let Some(datagram) = capsules.next(&mut data)? {
                        self.forward(datagram).await?;
                    }
                }
                Came::Frame(None) => {
                    capsules.end()?;
                    // What came before the end goes out; RFC 9297, section 2.1: what comes after it does not.
                    while let Some(datagram) = self.quic.as_ref().and_then(Datagrams::next) {
                        self.forward(datagram).await?;
                    }
                    return Ok(());
                }
                // RFC 9297, section 3.1: nothing but capsules.
                Came::Frame(Some(Ok(Frame::Trailers(_)))) => {
                    return Err(Broke::Malformed("a field section within a tunnel".to_owned()));
                }
                Came::Frame(Some(Err(error))) => return Err(Broke::Client(error.to_string())),
            }
        }
    }

    async fn forward(&self, datagram: Bytes) -> Result<(), Broke> {
        let udp = &self.rules.metrics.udp;
        let Some(payload) = capsule::payload(datagram)? else {
            udp.unknown_context.add(1);
            return Ok(());
        };
        match self.socket.send(&payload).await {
            Ok(_) => {
                self.rules.up.set(self.rules.up.get() + payload.len() as u64);
                self.activity.moved();
                udp.up.add(1);
                Ok(())
            }
            // RFC 9298, section 3.1: never in fragments.
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                udp.too_large.add(1);
                Ok(())
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                udp.overflow.add(1);
                Ok(())
            }
            Err(error) => Err(Broke::Endpoint(error)),
        }
    }

    /// From the endpoint to the client, until one of them is gone.
    async fn down(&self, to: &mut Outgoing) -> Broke {
        loop {
            let received = match poll_fn(|cx| Poll::Ready(self.poll_receive(cx))).await {
                Poll::Ready(received) => received,
                Poll::Pending => {
                    if let Err(gone) = to.flush(self.activity).await {
                        return Broke::Client(gone.to_string());
                    }
                    poll_fn(|cx| {
                        if let Poll::Ready(received) = self.poll_receive(cx) {
                            return Poll::Ready(received);
                        }
                        to.poll_closed(cx).map(|gone| Err(Broke::Client(gone.to_string())))
                    })
                    .await
                }
            };
            let capsule = match received {
                Ok(Some(capsule)) => capsule,
                Ok(None) => continue,
                Err(broke) => return broke,
            };
            self.within.set(true);
            if let Err(gone) = to.send(Frame::Data(capsule), self.activity).await {
                return Broke::Client(gone.to_string());
            }
            self.within.set(false);
        }
    }

    /// Until the socket has an error, as after an ICMP message. Linux tells of it by a sign of its own, which wakes nobody
    /// who waits for datagrams.
    async fn failed(&self) -> io::Error {
        loop {
            if let Err(error) = self.socket.ready(Interest::ERROR).await {
                return error;
            }
            // What was taken otherwise meanwhile clears the sign.
            let taken = self.socket.try_io(Interest::ERROR, || match self.socket.take_error()? {
                Some(error) => Ok(error),
                None => Err(io::ErrorKind::WouldBlock.into()),
            });
            match taken {
                Ok(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => self.rules.metrics.udp.too_large.add(1),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(error) | Err(error) => return error,
            }
        }
    }

    /// Takes what the socket has: a capsule to send, or nothing where it went out as a datagram, or not at all.
    fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Broke>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut room = ReadBuf::new(scratch);
            match ready!(self.socket.poll_recv(cx, &mut room)) {
                Ok(()) => Poll::Ready(Ok(self.pack(room.filled()))),
                // What a larger one of ours met on its way.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    self.rules.metrics.udp.too_large.add(1);
                    Poll::Ready(Ok(None))
                }
                Err(error) => Poll::Ready(Err(Broke::Endpoint(error))),
            }
        })
    }

    fn pack(&self, payload: &[u8]) -> Option<Bytes> {
        let udp = &self.rules.metrics.udp;
        self.rules.answered.set(true);
        self.activity.moved();
        let capsule = match self.quic.as_ref().map_or(Sent::Unwanted, |quic| quic.send(payload)) {
            Sent::Queued => None,
            Sent::Unwanted => Some(capsule::capsule(payload)),
            Sent::TooLarge => {
                udp.too_large.add(1);
                return None;
            }
            Sent::Full => {
                udp.overflow.add(1);
                return None;
            }
        };
        self.rules.down.set(self.rules.down.get() + payload.len() as u64);
        udp.down.add(1);
        capsule
    }
}
