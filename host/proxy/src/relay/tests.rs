//! Tunnels between sockets.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::codec::http1;
use crate::stream::{Stream, Transport};

/// A peer's socket, and our end of the connection to it.
async fn connected() -> (TcpStream, End) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let address = listener.local_addr().expect("an address");
    let (peer, ours) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (incoming, outgoing) = http1::tunnel(Stream::new(Transport::Tcp(ours.expect("accepted").0)));
    (peer.expect("connected"), End { incoming, outgoing })
}

/// Runs a relay between two peers, and `talk` with them; how the relay ended, and what it counted.
fn relayed<F>(idle: Option<Duration>, talk: impl FnOnce(TcpStream, TcpStream) -> F) -> (Result<(), Broke>, u64, u64)
where
    F: Future<Output = ()>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let timers = Timers::new();
        tokio::task::spawn_local(timers.clone().drive());
        let ((client, ours), (origin, theirs)) = (connected().await, connected().await);
        let (up, down) = (Cell::new(0), Cell::new(0));
        let rules = RelayRules { idle, timers: &timers, up: &up, down: &down };
        let both = async { tokio::join!(relay(ours, theirs, rules), talk(client, origin)).0 };
        let ended = tokio::time::timeout(Duration::from_secs(20), both).await.expect("no stand-still");
        (ended, up.get(), down.get())
    })
}

/// Conduct "L4 full proxy": half a close passes both ways, and the other half goes on.
#[test]
fn halves_close_one_by_one() {
    let (ended, up, down) = relayed(None, async |mut client, mut origin| {
        client.write_all(b"question").await.expect("sent");
        client.shutdown().await.expect("shut down");
        let mut got = Vec::new();
        origin.read_to_end(&mut got).await.expect("an end");
        assert_eq!(got, b"question");
        origin.write_all(b"answer, late").await.expect("sent");
        drop(origin);
        got.clear();
        client.read_to_end(&mut got).await.expect("an end");
        assert_eq!(got, b"answer, late");
    });
    assert!(ended.is_ok(), "{ended:?}");
    assert_eq!((up, down), (8, 12));
}

/// Conduct "L4 full proxy": a reset is a reset on the other side, and what caused it is told.
#[test]
fn resets_pass() {
    let (ended, ..) = relayed(None, async |client, mut origin| {
        client.set_zero_linger().expect("no linger");
        drop(client);
        assert!(origin.read_u8().await.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    });
    assert!(matches!(ended, Err(Broke::Client(_))), "{ended:?}");
    let (ended, ..) = relayed(None, async |mut client, origin| {
        origin.set_zero_linger().expect("no linger");
        drop(origin);
        assert!(client.read_u8().await.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    });
    assert!(matches!(ended, Err(Broke::Upstream(_))), "{ended:?}");
}

/// Conduct "L4 full proxy": a peer that reads nothing stops the other one, and nothing piles up in between.
#[test]
fn a_stalled_reader_stops_the_sender() {
    let idle = Duration::from_millis(300);
    let (ended, up, _) = relayed(Some(idle), async |mut client, origin| {
        let piece = vec![0; 1 << 16];
        // Until the tunnel is cut off for standing still.
        while client.write_all(&piece).await.is_ok() {}
        drop(origin);
    });
    assert!(matches!(ended, Err(Broke::Idle(_))), "{ended:?}");
    // What the kernel holds on both connections, and a read and a write of our own.
    assert!(up < 32 << 20, "{up} bytes went in");
}

/// The idle time is that of both directions together.
#[test]
fn traffic_one_way_keeps_both_open() {
    let begun = std::time::Instant::now();
    let (ended, ..) = relayed(Some(Duration::from_millis(500)), async |mut client, mut origin| {
        for _ in 0..10 {
            origin.write_all(b".").await.expect("sent");
            assert_eq!(client.read_u8().await.expect("a byte"), b'.');
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(client.read_u8().await.is_err());
    });
    assert!(matches!(ended, Err(Broke::Idle(_))) && begun.elapsed() > Duration::from_millis(1400), "{ended:?}");
}
