//! A path for UDP datagrams that delays, loses, doubles and reorders them as a test says.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// From whoever opened the path to its target.
    There,
    Back,
}

/// What becomes of a datagram of so many bytes: a delay for each copy that arrives, none if it is lost.
type Fate = dyn Fn(Way, usize) -> Vec<Duration> + Send + Sync;

/// A socket that stands for `target`: each peer has a path of its own through it.
pub struct Link {
    pub address: SocketAddr,
    lost: Arc<AtomicUsize>,
}

impl Link {
    pub async fn to(target: SocketAddr, fate: impl Fn(Way, usize) -> Vec<Duration> + Send + Sync + 'static) -> Self {
        let near = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
        let address = near.local_addr().expect("an address");
        let lost = Arc::new(AtomicUsize::new(0));
        let (fate, count): (Arc<Fate>, _) = (Arc::new(fate), lost.clone());
        tokio::spawn(async move {
            let mut paths: HashMap<SocketAddr, Lane> = HashMap::new();
            let mut datagram = vec![0; 65_536];
            // Errors of the socket are those of peers that are gone.
            loop {
                let Ok((length, peer)) = near.recv_from(&mut datagram).await else { continue };
                let lane = match paths.entry(peer) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => {
                        new.insert(path(peer, target, near.clone(), fate.clone(), count.clone()).await)
                    }
                };
                lane.take(&datagram[..length]);
            }
        });
        Self { address, lost }
    }

    /// A fixed share of the datagrams is lost and doubled each, the others take their time, so that they overtake one
    /// another. Chances are in thousandths, and drawn from `seed`.
    pub async fn bad(target: SocketAddr, seed: u64, lost: u64, doubled: u64, slowest: Duration) -> Self {
        let state = std::sync::Mutex::new(seed | 1);
        Self::to(target, move |_, _| {
            let mut state = state.lock().expect("no panic");
            let mut draw = |below: u64| {
                // xorshift64
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                (*state >> 11) % below
            };
            let copies = match draw(1000) {
                chance if chance < lost => 0,
                chance if chance < lost + doubled => 2,
                _ => 1,
            };
            (0..copies).map(|_| slowest.mul_f64(draw(1000) as f64 / 1000.0)).collect()
        })
        .await
    }

    /// How many datagrams did not arrive.
    pub fn lost(&self) -> usize {
        self.lost.load(Ordering::SeqCst)
    }
}

/// One direction of one path.
struct Lane {
    way: Way,
    fate: Arc<Fate>,
    lost: Arc<AtomicUsize>,
    queue: UnboundedSender<(Instant, Vec<u8>)>,
}

impl Lane {
    fn new(way: Way, fate: Arc<Fate>, lost: Arc<AtomicUsize>, from: Arc<UdpSocket>, to: SocketAddr) -> Self {
        let (queue, due) = unbounded_channel();
        tokio::spawn(deliver(due, from, to));
        Self { way, fate, lost, queue }
    }

    fn take(&self, datagram: &[u8]) {
        let copies = (self.fate)(self.way, datagram.len());
        if copies.is_empty() {
            self.lost.fetch_add(1, Ordering::SeqCst);
        }
        for delay in copies {
            // The other end goes with the test.
            let _ = self.queue.send((Instant::now() + delay, datagram.to_vec()));
        }
    }
}

/// Opens the way there and back for a new peer.
async fn path(
    peer: SocketAddr,
    target: SocketAddr,
    near: Arc<UdpSocket>,
    fate: Arc<Fate>,
    lost: Arc<AtomicUsize>,
) -> Lane {
    let far = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
    let there = Lane::new(Way::There, fate.clone(), lost.clone(), far.clone(), target);
    let back = Lane::new(Way::Back, fate, lost, near, peer);
    tokio::spawn(async move {
        let mut datagram = vec![0; 65_536];
        loop {
            if let Ok(length) = far.recv(&mut datagram).await {
                back.take(&datagram[..length]);
            }
        }
    });
    there
}

/// Sends each datagram when it is due; those due at once in the order they came.
async fn deliver(mut due: UnboundedReceiver<(Instant, Vec<u8>)>, from: Arc<UdpSocket>, to: SocketAddr) {
    let mut waiting = BTreeMap::new();
    let mut number = 0_u64;
    loop {
        let next = waiting.first_key_value().map(|((at, _), _)| *at);
        let arrived = match next {
            None => due.recv().await.map(Some),
            Some(at) => match tokio::time::timeout_at(at, due.recv()).await {
                Ok(arrived) => arrived.map(Some),
                Err(_) => Some(None),
            },
        };
        match arrived {
            Some(Some((at, datagram))) => {
                number += 1;
                waiting.insert((at, number), datagram);
            }
            Some(None) => {
                if let Some((_, datagram)) = waiting.pop_first() {
                    let _ = from.send_to(&datagram, to).await;
                }
            }
            None => return,
        }
    }
}
