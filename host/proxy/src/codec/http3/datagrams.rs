//! HTTP Datagrams as QUIC's (RFC 9297, section 2.1): each begins with the number of its request stream. A task per
//! connection sorts them into queues of the streams that take them; all that has no room is dropped, as UDP does.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use h3::error::Code;
use quinn::SendDatagramError;
use rustc_hash::FxHashMap;

use super::frame::Violation;
use super::link::Link;
use super::varint;
use crate::capsule;
use crate::observe::WorkerMetrics;

/// Streams are numbered in 62 bits, of which the last two tell their kind.
const MAX_QUARTER: u64 = varint::MAX / 4;
/// What may wait for its tunnel, in bytes as [`cost`] counts them.
const QUEUED: usize = 128 * 1024;
/// The same for all streams of a connection whose heads have not come.
const EARLY: usize = 32 * 1024;
/// How long a head may be behind its datagrams: some round trips (section 2.1).
const EARLY_TIME: Duration = Duration::from_secs(1);

/// Small ones take memory too.
fn cost(datagram: &Bytes) -> usize {
    datagram.len() + 64
}

#[derive(Default)]
struct Queue {
    datagrams: VecDeque<Bytes>,
    cost: usize,
    waker: Option<Waker>,
}

impl Queue {
    /// False when there is no room.
    fn push(&mut self, datagram: Bytes) -> bool {
        let cost = cost(&datagram);
        if self.cost + cost > QUEUED {
            return false;
        }
        self.cost += cost;
        self.datagrams.push_back(datagram);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        true
    }

    fn pop(&mut self) -> Option<Bytes> {
        let datagram = self.datagrams.pop_front()?;
        self.cost -= cost(&datagram);
        Some(datagram)
    }
}

struct Early {
    quarter: u64,
    datagram: Bytes,
    came: Instant,
}

/// Where a connection's datagrams go. Without any it costs nothing but its place.
#[derive(Default)]
pub(super) struct Flows {
    open: RefCell<FxHashMap<u64, Rc<RefCell<Queue>>>>,
    early: RefCell<VecDeque<Early>>,
}

/// What became of a datagram that came.
#[derive(Debug, Eq, PartialEq)]
enum Delivered {
    Queued,
    /// Held for a stream whose head may come yet; so many that were held before had to go.
    Held(usize),
    /// Its stream's queue is full.
    Full,
}

impl Flows {
    /// Whether datagrams wait for this stream's head. Forgets them.
    pub(super) fn came_early(&self, stream: u64) -> bool {
        let mut early = self.early.borrow_mut();
        if early.is_empty() {
            return false;
        }
        let before = early.len();
        early.retain(|early| early.quarter != stream / 4);
        early.len() < before
    }

    fn deliver(&self, quarter: u64, datagram: &[u8], now: Instant) -> Delivered {
        // A copy, since what QUIC gives may be a small part of what it read.
        let datagram = Bytes::copy_from_slice(datagram);
        if let Some(queue) = self.open.borrow().get(&quarter) {
            return if queue.borrow_mut().push(datagram) { Delivered::Queued } else { Delivered::Full };
        }
        let mut early = self.early.borrow_mut();
        let before = early.len();
        let mut left = EARLY.saturating_sub(cost(&datagram));
        // The newest stay.
        let kept = early.iter().rev().take_while(|early| {
            let fits = cost(&early.datagram) <= left && now.saturating_duration_since(early.came) < EARLY_TIME;
            left = left.saturating_sub(cost(&early.datagram));
            fits
        });
        let gone = before - kept.count();
        early.drain(..gone);
        early.push_back(Early { quarter, datagram, came: now });
        Delivered::Held(gone)
    }

    fn open(&self, quarter: u64, now: Instant) -> Rc<RefCell<Queue>> {
        let queue = Rc::new(RefCell::new(Queue::default()));
        self.early.borrow_mut().retain(|early| {
            let ours = early.quarter == quarter;
            if ours && now.saturating_duration_since(early.came) < EARLY_TIME {
                // Room there is: less was held than a queue takes.
                queue.borrow_mut().push(early.datagram.clone());
            }
            !ours
        });
        self.open.borrow_mut().insert(quarter, queue.clone());
        queue
    }
}

/// Splits a QUIC datagram into the quarter of its stream's id and the rest (section 2.1).
fn split(mut datagram: Bytes) -> Result<(u64, Bytes), Violation> {
    let wrong = |reason| Violation::new(Code::H3_DATAGRAM_ERROR, reason);
    let (quarter, used) = varint::read(&datagram).ok_or(wrong("a datagram without the number of its stream"))?;
    if quarter > MAX_QUARTER {
        return Err(wrong("a datagram of a stream that cannot be"));
    }
    datagram.advance(used);
    Ok((quarter, datagram))
}

/// Sorts what comes until the connection ends.
pub(super) async fn accept(link: Rc<Link>, metrics: Arc<WorkerMetrics>) {
    while let Ok(datagram) = link.connection.read_datagram().await {
        match split(datagram) {
            Ok((quarter, datagram)) => match link.flows.deliver(quarter, &datagram, Instant::now()) {
                Delivered::Queued => {}
                Delivered::Held(gone) => metrics.udp.unknown_stream.add(gone as u64),
                Delivered::Full => metrics.udp.overflow.add(1),
            },
            Err(violation) => return link.fail(violation),
        }
    }
}

/// What became of a datagram that was to go out.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Sent {
    Queued,
    /// For the path or the peer: QUIC datagrams are not cut into pieces.
    TooLarge,
    /// Too many wait for the peer already.
    Full,
    /// The peer takes none, as far as it said: it gets capsules.
    Unwanted,
}

/// The datagrams of one request stream, until it is dropped.
pub(crate) struct Datagrams {
    link: Rc<Link>,
    quarter: u64,
    queue: Rc<RefCell<Queue>>,
}

impl Datagrams {
    pub(super) fn open(link: &Rc<Link>, stream: u64) -> Self {
        let quarter = stream / 4;
        Self { link: link.clone(), quarter, queue: link.flows.open(quarter, Instant::now()) }
    }

    /// The next that came: context id and payload.
    pub(crate) fn poll_next(&self, cx: &Context<'_>) -> Poll<Bytes> {
        let mut queue = self.queue.borrow_mut();
        match queue.pop() {
            Some(datagram) => Poll::Ready(datagram),
            None => {
                queue.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The next that is here.
    pub(crate) fn next(&self) -> Option<Bytes> {
        self.queue.borrow_mut().pop()
    }

    /// Sends a UDP payload, if the peer takes datagrams. RFC 9298, section 6.1: one that does not fit is no capsule, but
    /// lost; else the ends would not find out what their path carries.
    pub(crate) fn send(&self, payload: &[u8]) -> Sent {
        let connection = &self.link.connection;
        if !self.link.peer().datagrams || connection.max_datagram_size().is_none() {
            return Sent::Unwanted;
        }
        let datagram = capsule::datagram(payload, |out| varint::write(out, self.quarter));
        // QUIC would drop older ones in silence.
        if connection.datagram_send_buffer_space() < datagram.len() {
            return Sent::Full;
        }
        match connection.send_datagram(datagram) {
            // A connection that is gone ends the tunnel by its stream.
            Ok(()) | Err(SendDatagramError::ConnectionLost(_)) => Sent::Queued,
            Err(SendDatagramError::TooLarge) => Sent::TooLarge,
            Err(SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled) => Sent::Unwanted,
        }
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.link.flows.open.borrow_mut().remove(&self.quarter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9297, section 2.1.
    #[test]
    fn datagrams_name_their_stream() {
        assert_eq!(split(Bytes::from_static(&[5, 0, 9])), Ok((5, Bytes::from_static(&[0, 9]))));
        assert_eq!(split(Bytes::from_static(&[0x40, 5])), Ok((5, Bytes::new())));
        let largest = [0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(split(Bytes::copy_from_slice(&largest)), Ok((MAX_QUARTER, Bytes::from_static(&[1]))));
        for wrong in [&[][..], &[0x40], &[0xd0, 0, 0, 0, 0, 0, 0, 0], &[0xff; 8]] {
            let code = split(Bytes::copy_from_slice(wrong)).map_err(|violation| violation.code);
            assert_eq!(code, Err(Code::H3_DATAGRAM_ERROR), "{wrong:?}");
        }
    }

    #[test]
    fn early_ones_wait_for_their_stream_within_bounds() {
        let (flows, now) = (Flows::default(), Instant::now());
        assert!(!flows.came_early(4));
        assert_eq!(flows.deliver(1, b"a", now), Delivered::Held(0));
        assert_eq!(flows.deliver(2, b"b", now), Delivered::Held(0));
        assert_eq!(flows.deliver(1, b"c", now), Delivered::Held(0));
        let queue = flows.open(1, now);
        assert_eq!(flows.deliver(1, b"d", now), Delivered::Queued);
        let all: Vec<_> = std::iter::from_fn(|| queue.borrow_mut().pop()).collect();
        assert_eq!(all, [&b"a"[..], b"c", b"d"]);
        assert!(!flows.came_early(4) && flows.came_early(8) && !flows.came_early(8));
        // The oldest go, by number and by time.
        let large = [0; 1000];
        let gone: usize = (0..100)
            .map(|index| match flows.deliver(100 + index, &large, now) {
                Delivered::Held(gone) => gone,
                other => panic!("{other:?}"),
            })
            .sum();
        assert_eq!(gone, 100 - EARLY / 1064);
        assert!(!flows.came_early(400) && flows.came_early(4 * 199));
        let later = now + EARLY_TIME;
        assert_eq!(flows.deliver(7, b"x", later), Delivered::Held(EARLY / 1064 - 1));
        assert!(flows.open(198, later).borrow_mut().pop().is_none());
    }

    #[test]
    fn a_queue_has_an_end() {
        let (flows, now) = (Flows::default(), Instant::now());
        let queue = flows.open(0, now);
        let taken = (0..10_000).take_while(|_| flows.deliver(0, b"", now) == Delivered::Queued).count();
        assert_eq!(taken, QUEUED / 64);
        assert_eq!(flows.deliver(0, b"", now), Delivered::Full);
        queue.borrow_mut().pop();
        assert_eq!(flows.deliver(0, b"", now), Delivered::Queued);
    }
}
