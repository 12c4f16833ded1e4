use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// Both ends of a connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let near = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
    let far = listener.accept().await.expect("a connection").0;
    (near, far)
}

/// Runs a relay between a client and an upstream whose far ends `talk` has; what came of it, and the bytes counted.
async fn between<F: Future<Output = ()>>(
    idle: Option<Duration>,
    lifetime: Option<Duration>,
    first: (&'static [u8], &'static [u8]),
    talk: impl FnOnce(TcpStream, TcpStream) -> F,
) -> (Result<(), Broke>, u64, u64) {
    let timers = Timers::new();
    let tasks = tokio::task::LocalSet::new();
    tasks.spawn_local(timers.clone().drive());
    tasks
        .run_until(async {
            let (client, client_far) = pair().await;
            let (upstream, upstream_far) = pair().await;
            let (up, down) = (Cell::new(0), Cell::new(0));
            let rules = Rules { idle, lifetime, timers: &timers, up: &up, down: &down };
            let (ahead, read) = (Bytes::from_static(first.0), Bytes::from_static(first.1));
            let relaying = async {
                let ended = relay(&client_far, &upstream, ahead, read, rules).await;
                drop((client_far, upstream));
                ended
            };
            let (ended, ()) = tokio::join!(relaying, talk(client, upstream_far));
            (ended, up.get(), down.get())
        })
        .await
}

fn noise(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..length).map(|_| random.u8(..)).collect()
}

#[tokio::test]
async fn bytes_of_every_size_both_ways_and_half_a_close() {
    let payload = noise(9 * 1024 * 1024 + 17);
    let sizes = [1, 4095, 4096, 4097, 65_536, 1 << 20, 3, 7 << 20];
    let (ended, up, down) = between(None, None, (b"header ", b"read "), async |client, upstream| {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_upstream, mut to_upstream) = upstream.into_split();
        let sending = async {
            let mut rest = &payload[..];
            for size in sizes {
                let (piece, left) = rest.split_at(size.min(rest.len()));
                to_client.write_all(piece).await.expect("sent");
                rest = left;
            }
            to_client.write_all(rest).await.expect("sent");
            to_client.shutdown().await.expect("closed");
        };
        let echoing = async {
            let mut got = Vec::new();
            from_upstream.read_to_end(&mut got).await.expect("read to its end");
            assert!(got == [b"header read ", &payload[..]].concat(), "{} bytes", got.len());
            to_upstream.write_all(&got).await.expect("the other direction is open");
            to_upstream.shutdown().await.expect("closed");
        };
        let reading = async {
            let mut back = Vec::new();
            from_client.read_to_end(&mut back).await.expect("read to its end");
            assert_eq!(back.len(), payload.len() + 12);
        };
        tokio::join!(sending, echoing, reading);
    })
    .await;
    assert!(ended.is_ok(), "{ended:?}");
    assert_eq!((up, down), (payload.len() as u64 + 5, payload.len() as u64 + 12), "a PROXY header is not the client's");
}

/// The kind of error that the far end of a reset connection sees.
async fn fate(mut stream: TcpStream) -> ErrorKind {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect_err("no clean end").kind()
}

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset() {
    let (ended, _, _) = between(None, None, (b"", b""), async |client, upstream| {
        reset_on_close(&client);
        drop(client);
        assert_eq!(fate(upstream).await, ErrorKind::ConnectionReset);
    })
    .await;
    assert!(matches!(ended, Err(Broke::Client(_))), "{ended:?}");
    let (ended, _, _) = between(None, None, (b"", b""), async |client, upstream| {
        reset_on_close(&upstream);
        drop(upstream);
        assert_eq!(fate(client).await, ErrorKind::ConnectionReset);
    })
    .await;
    assert!(matches!(ended, Err(Broke::Upstream(_))), "{ended:?}");
}

/// A source that is not read, since the sink takes nothing, is still watched.
#[tokio::test]
async fn a_reset_is_seen_behind_a_receiver_that_takes_nothing() {
    let (ended, up, _) = between(Some(Duration::from_secs(20)), None, (b"", b""), async |mut client, upstream| {
        let noise = noise(1 << 20);
        while let Ok(sent) = tokio::time::timeout(Duration::from_millis(300), client.write_all(&noise)).await {
            sent.expect("sent");
        }
        reset_on_close(&client);
        drop(client);
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(upstream);
    })
    .await;
    assert!(matches!(ended, Err(Broke::Client(_))), "{ended:?}");
    assert!(up > 0);
}

#[tokio::test]
async fn silence_and_age_end_it() {
    let begun = std::time::Instant::now();
    let (ended, _, _) = between(Some(Duration::from_millis(300)), None, (b"", b""), async |mut client, upstream| {
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(150)).await;
            client.write_all(b"x").await.expect("still there");
        }
        assert_eq!(fate(upstream).await, ErrorKind::ConnectionReset);
    })
    .await;
    assert!(matches!(ended, Err(Broke::Idle(_))), "{ended:?}");
    assert!(begun.elapsed() >= Duration::from_millis(900), "it was in use");
    let most = Some(Duration::from_millis(200));
    let (ended, _, _) = between(None, most, (b"", b""), async |mut client, upstream| {
        while client.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(upstream);
    })
    .await;
    assert!(matches!(ended, Err(Broke::Lifetime(_))), "{ended:?}");
}
