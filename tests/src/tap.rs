//! A wire that remembers what went over it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// The bytes of one connection so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// From the side that connected.
    pub up: Vec<u8>,
    pub down: Vec<u8>,
}

/// Listens, and connects each connection through to a target.
pub struct Tap {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Arc<Mutex<Seen>>>>>,
}

impl Tap {
    pub async fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen: Arc<Mutex<Vec<Arc<Mutex<Seen>>>>> = Arc::default();
        let connections = seen.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(target).await else { continue };
                let seen = Arc::new(Mutex::new(Seen::default()));
                connections.lock().expect("no panic").push(seen.clone());
                let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
                tokio::spawn(one_way(from_near, to_far, seen.clone(), |seen| &mut seen.up));
                tokio::spawn(one_way(from_far, to_near, seen, |seen| &mut seen.down));
            }
        });
        Self { address, seen }
    }

    /// What went over each connection, in the order in which they came.
    pub fn seen(&self) -> Vec<Seen> {
        let connections = self.seen.lock().expect("no panic");
        connections.iter().map(|seen| seen.lock().expect("no panic").clone()).collect()
    }
}

async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    seen: Arc<Mutex<Seen>>,
    side: fn(&mut Seen) -> &mut Vec<u8>,
) {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        side(&mut seen.lock().expect("no panic")).extend_from_slice(&piece[..count]);
        if to.write_all(&piece[..count]).await.is_err() {
            return;
        }
    }
    // Whoever has gone needs no end.
    let _ = to.shutdown().await;
}
