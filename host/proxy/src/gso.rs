//! Datagrams that follow one another to the same peer, given to the kernel together.
//!
//! Generic segmentation offload takes a whole train of datagrams through the kernel's stack as one: 64 KiB at most. quinn
//! gives ten at a time, a bound of its own, and at once the next ten while there is more to send. So a full ten waits for
//! what follows it, for as long as the other tasks of this turn of the event loop take; whatever is shorter is the end of a
//! train, and leaves at once with what waited. Nothing overtakes anything.

use std::fmt::Debug;
use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// Datagrams that quinn gives at once while it has more of them; all as long as one another.
const FULL: usize = 10;
/// Bytes of a train: below what UDP over IPv4 and IPv6 can carry.
const MOST: usize = 65_000;
/// Trains that wait at once. A worker's turn of the event loop has few connections that send without end.
const TRAINS: usize = 8;

/// What the datagrams of a train have in common.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Kind {
    destination: SocketAddr,
    source: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    /// Bytes of each but the last, which may be shorter.
    segment: usize,
}

impl Kind {
    fn of(transmit: &Transmit<'_>) -> Self {
        let Transmit { destination, ecn, contents, segment_size, src_ip } = *transmit;
        Self { destination, source: src_ip, ecn, segment: segment_size.unwrap_or(contents.len()) }
    }
}

#[derive(Debug)]
struct Train {
    kind: Kind,
    bytes: Vec<u8>,
    /// Something came since the last turn: more may follow.
    growing: bool,
}

impl Train {
    /// Whether these datagrams may follow those that wait.
    fn takes(&self, transmit: &Transmit<'_>, most_segments: usize) -> bool {
        let length = transmit.contents.len();
        let kind = match transmit.segment_size {
            // One alone may be the shorter one at the end.
            None if length <= self.kind.segment => Kind { segment: self.kind.segment, ..Kind::of(transmit) },
            _ => Kind::of(transmit),
        };
        kind == self.kind
            && self.bytes.len().is_multiple_of(kind.segment)
            && self.bytes.len() + length <= MOST.min(most_segments.saturating_mul(kind.segment))
    }

    fn send(&self, socket: &dyn AsyncUdpSocket) -> io::Result<()> {
        let Kind { destination, source, ecn, segment } = self.kind;
        let segment_size = (self.bytes.len() > segment).then_some(segment);
        socket.try_send(&Transmit { destination, ecn, contents: &self.bytes, segment_size, src_ip: source })
    }
}

#[derive(Debug, Default)]
struct Trains {
    waiting: Vec<Train>,
    /// Buffers of those that left.
    spare: Vec<Vec<u8>>,
    /// Who sends in the end what nothing followed, and what tells it that there is room again, while there is none.
    waker: Option<Waker>,
    poller: Option<Pin<Box<dyn UdpPoller>>>,
}

impl Trains {
    /// Sends one that waits.
    ///
    /// # Returns
    /// Whether it left; it did not where the socket is full. Of other errors quinn-udp has told, and the datagrams are lost,
    /// as datagrams may be.
    fn leave(&mut self, index: usize, socket: &dyn AsyncUdpSocket) -> bool {
        let left = !matches!(self.waiting[index].send(socket), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        if left {
            let mut bytes = self.waiting.swap_remove(index).bytes;
            bytes.clear();
            self.spare.push(bytes);
        }
        left
    }

    /// # Errors
    /// `WouldBlock` where the socket is full and nothing was taken; those of the socket for what is sent at once.
    fn add(&mut self, transmit: &Transmit<'_>, socket: &dyn AsyncUdpSocket) -> io::Result<()> {
        let segments = socket.max_transmit_segments();
        let length = transmit.contents.len();
        let full =
            transmit.segment_size.is_some_and(|segment| length >= FULL * segment && length.is_multiple_of(segment));
        let mut found = self.waiting.iter().position(|train| train.kind.destination == transmit.destination);
        if let Some(index) = found.filter(|index| !self.waiting[*index].takes(transmit, segments)) {
            if !self.leave(index, socket) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            found = None;
        }
        let index = match found {
            Some(index) => index,
            None if !full || segments < 2 * FULL => return socket.try_send(transmit),
            None => {
                if self.waiting.len() == TRAINS && !self.leave(0, socket) {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                let bytes = self.spare.pop().unwrap_or_default();
                self.waiting.push(Train { kind: Kind::of(transmit), bytes, growing: true });
                self.waiting.len() - 1
            }
        };
        let train = &mut self.waiting[index];
        train.bytes.extend_from_slice(transmit.contents);
        train.growing = full;
        if full || !self.leave(index, socket) {
            // They are taken: where the socket is full, sending them is no longer the caller's matter.
            self.waker.iter().for_each(Waker::wake_by_ref);
        }
        Ok(())
    }

    /// Sends what nothing followed for a turn.
    fn poll_rest(&mut self, socket: &Arc<dyn AsyncUdpSocket>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.waker.get_or_insert_with(|| cx.waker().clone());
        let mut another_turn = false;
        let mut index = 0;
        while let Some(train) = self.waiting.get_mut(index) {
            if std::mem::take(&mut train.growing) {
                another_turn = true;
                index += 1;
                continue;
            }
            if !self.leave(index, &**socket) {
                let poller = self.poller.get_or_insert_with(|| socket.clone().create_io_poller());
                ready!(poller.as_mut().poll_writable(cx))?;
            }
        }
        self.poller = None;
        if another_turn {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

#[derive(Debug)]
struct Gathered {
    socket: Arc<dyn AsyncUdpSocket>,
    /// Of one thread: never waited for.
    trains: Mutex<Trains>,
}

impl Gathered {
    fn trains(&self) -> MutexGuard<'_, Trains> {
        self.trains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        let Trains { waiting, waker, .. } = std::mem::take(&mut *self.trains());
        waiting.iter().for_each(|train| _ = train.send(&*self.socket));
        // The task finds that there is nobody to send for any more.
        waker.into_iter().for_each(Waker::wake);
    }
}

/// A socket that gathers what follows one another. Dropped, it is closed at once, and then what it kept is dropped.
#[derive(Debug)]
pub(crate) struct Gathering<K> {
    gathered: Arc<Gathered>,
    _kept: K,
}

impl<K> Gathering<K> {
    /// On the current runtime, which has a single thread.
    pub(crate) fn new(socket: Arc<dyn AsyncUdpSocket>, kept: K) -> Self {
        let gathered = Arc::new(Gathered { socket, trains: Mutex::default() });
        let waiting = Arc::downgrade(&gathered);
        tokio::spawn(async move {
            let rest = poll_fn(|cx| match waiting.upgrade() {
                Some(gathered) => gathered.trains().poll_rest(&gathered.socket, cx),
                None => Poll::Ready(Ok(())),
            });
            if let Err(error) = rest.await {
                tracing::warn!(%error, "a UDP socket is of no use any more");
            }
        });
        Self { gathered, _kept: kept }
    }
}

impl<K: Debug + Send + Sync + 'static> AsyncUdpSocket for Gathering<K> {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.gathered.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.gathered.trains().add(transmit, &*self.gathered.socket)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.gathered.socket.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.gathered.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.gathered.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.gathered.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.gathered.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes down what it is given. Full while `room` is nothing.
    #[derive(Debug, Default)]
    struct Recorder {
        sent: Mutex<Vec<(SocketAddr, Vec<Vec<u8>>)>>,
        room: Mutex<usize>,
    }

    impl AsyncUdpSocket for Recorder {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            Box::pin(Turn(false))
        }

        fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
            let mut room = self.room.lock().expect("one thread");
            *room = room.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
            assert!(transmit.contents.len() <= MOST);
            let size = transmit.segment_size.unwrap_or(transmit.contents.len());
            let datagrams: Vec<Vec<u8>> = transmit.contents.chunks(size).map(<[u8]>::to_vec).collect();
            assert!(datagrams.len() <= self.max_transmit_segments());
            self.sent.lock().expect("one thread").push((transmit.destination, datagrams));
            Ok(())
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
            _: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn max_transmit_segments(&self) -> usize {
            64
        }
    }

    /// Writable a turn after it was asked.
    #[derive(Debug)]
    struct Turn(bool);

    impl UdpPoller for Turn {
        fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.0 = !self.0;
            if self.0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(Ok(()))
        }
    }

    fn peer(number: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], number))
    }

    fn transmit(destination: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
        Transmit { destination, ecn: None, contents, segment_size, src_ip: None }
    }

    fn turns(work: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(work);
    }

    #[test]
    fn full_ones_wait_for_what_follows_and_no_longer() {
        turns(async {
            let recorder = Arc::new(Recorder { room: Mutex::new(usize::MAX), ..Recorder::default() });
            let gathering = Gathering::new(recorder.clone(), ());
            let trains = || -> Vec<usize> {
                recorder.sent.lock().expect("one thread").drain(..).map(|(_, datagrams)| datagrams.len()).collect()
            };
            let ten = vec![1; 10 * 1400];
            let full = || gathering.try_send(&transmit(peer(1), &ten, Some(1400))).expect("taken");
            let short = |bytes: usize| {
                let segment = (bytes > 1400).then_some(1400);
                gathering.try_send(&transmit(peer(1), &ten[..bytes], segment)).expect("taken");
            };
            tokio::task::yield_now().await;
            short(900);
            short(4200);
            assert_eq!(trains(), [1, 3], "what is not full waits for nothing");
            full();
            full();
            assert_eq!(trains(), [0; 0]);
            short(700);
            assert_eq!(trains(), [21], "the end of a train");
            (0..5).for_each(|_| full());
            assert_eq!(trains(), [40], "65 kB are the most");
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            assert_eq!(trains(), [10], "nothing followed");
            full();
            gathering.try_send(&transmit(peer(1), &[2; 1401], None)).expect("taken");
            assert_eq!(trains(), [10, 1], "it is longer than the others");
            full();
            tokio::task::yield_now().await;
            drop(gathering);
            assert_eq!(trains(), [10], "the last one leaves with the socket");
            assert_eq!(Arc::strong_count(&recorder), 1, "which is closed at once");
            for _ in 0..2 {
                tokio::task::yield_now().await;
            }
            assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0, "its task ends with it");
        });
    }

    /// Whatever comes in whatever order, to however many peers, and however often the socket is full: to each peer go its
    /// datagrams, each as it was, in their order.
    #[test]
    fn nothing_is_lost_torn_or_overtaken() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            turns(async {
                let recorder = Arc::new(Recorder::default());
                let gathering = Gathering::new(recorder.clone(), ());
                let peers = random.u16(1..12);
                let mut expected = vec![Vec::new(); usize::from(peers)];
                let mut number = 0_u32;
                for _ in 0..300 {
                    *recorder.room.lock().expect("one thread") = random.usize(0..4);
                    let to = random.u16(..peers);
                    let segment = *random.choice(&[1200, 1452]).expect("one");
                    let count = *random.choice(&[1, 3, 10, 10, 10]).expect("one");
                    let last = if random.bool() { segment } else { random.usize(4..=segment) };
                    let mut bytes = Vec::new();
                    let mut datagrams = Vec::new();
                    for index in 0..count {
                        number += 1;
                        let mut datagram = vec![0; if index + 1 == count { last } else { segment }];
                        datagram[..4].copy_from_slice(&number.to_le_bytes());
                        bytes.extend_from_slice(&datagram);
                        datagrams.push(datagram);
                    }
                    // As quinn does: the same again until it is taken.
                    let size = (count > 1).then_some(segment);
                    while let Err(error) = gathering.try_send(&transmit(peer(to), &bytes, size)) {
                        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                        *recorder.room.lock().expect("one thread") += random.usize(0..2);
                        tokio::task::yield_now().await;
                    }
                    expected[usize::from(to)].extend(datagrams);
                    if random.u8(..4) == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                *recorder.room.lock().expect("one thread") = usize::MAX;
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
                let mut sent = vec![Vec::new(); usize::from(peers)];
                for (to, datagrams) in recorder.sent.lock().expect("one thread").drain(..) {
                    sent[usize::from(to.port())].extend(datagrams);
                }
                assert!(sent == expected, "seed {seed}");
            });
        }
    }
}
