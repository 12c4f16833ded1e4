//! The origins of a soak: good ones in all three versions, and bad ones that do what the path names.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::chance::pattern;
use crate::certs::Authority;
use crate::origin::{Body, full, read_head};
use crate::quic::{Answering, QuicOrigin, control, data, headers};
use crate::tunnel::accept;
use crate::{Origin, RawOrigin, Recorded};

/// Everything that the gateway of a soak leads to.
pub(super) struct Origins {
    /// Good, two of each version: reloads take one away and bring it back.
    pub(super) http1: [Origin; 2],
    pub(super) http2: [Origin; 2],
    pub(super) http3: [Origin; 2],
    /// Good, but the second says every other while that it is not well.
    pub(super) flapping: [Origin; 2],
    pub(super) bad1: RawOrigin,
    /// Answers well, and closes when it likes.
    pub(super) closing1: RawOrigin,
    pub(super) bad2: SocketAddr,
    /// Closes every connection that asks for something.
    pub(super) closing2: SocketAddr,
    pub(super) rejecting3: QuicOrigin,
    pub(super) cutting3: QuicOrigin,
    pub(super) websocket: RawOrigin,
    pub(super) echo: RawOrigin,
}

impl Origins {
    pub(super) async fn start(authority: &Authority) -> Self {
        let tls = || authority.issue(&["origin.example"]).server(&[b"h3"], None);
        let good = async |http2| Origin::answering(http2, answer).await;
        let begun = Instant::now();
        let flapping = Origin::answering(false, move |seen| {
            let ill = seen.path == "/health" && begun.elapsed().as_secs() / 3 % 2 == 1;
            if ill { status(503) } else { answer(seen) }
        });
        Self {
            http1: [good(false).await, good(false).await],
            http2: [good(true).await, good(true).await],
            http3: [Origin::http3(tls(), answer).await, Origin::http3(tls(), answer).await],
            flapping: [good(false).await, flapping.await],
            bad1: RawOrigin::start(|stream, _| bad1(stream)).await,
            closing1: RawOrigin::start(closing1).await,
            bad2: bad2().await,
            closing2: closing2().await,
            rejecting3: bad3(tls(), false).await,
            cutting3: bad3(tls(), true).await,
            websocket: RawOrigin::start(|stream, _| websocket(stream)).await,
            echo: RawOrigin::start(|stream, _| echo(stream)).await,
        }
    }

    /// Lets go of what the good ones remember.
    pub(super) fn forget(&self) {
        for origin in [&self.http1, &self.http2, &self.http3, &self.flapping].into_iter().flatten() {
            origin.forget();
        }
    }
}

/// What a good origin answers, by path after the route's own segment: `/echo`, `/down/LENGTH/SEED`, `/events/COUNT`,
/// `/status/CODE`.
fn answer(seen: &Recorded) -> Response<Body> {
    let parts: Vec<&str> = seen.path.split('/').collect();
    let number = |at: usize| parts.get(at).and_then(|part| part.parse::<usize>().ok()).unwrap_or(0);
    match parts.get(2).copied() {
        Some("echo") => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().expect("a value"));
            let pieces = seen.body.chunks(9_000).map(Bytes::copy_from_slice).collect();
            let mut response = Response::new(Paced::new(pieces, Duration::ZERO, Some(trailers)).boxed());
            if let Some(kind) = seen.headers.get("content-type") {
                response.headers_mut().insert("content-type", kind.clone());
            }
            response
        }
        Some("down") => Response::new(full(pattern(number(4), number(3)))),
        Some("events") => {
            let events = (0..number(3)).map(|event| format!("data: {event}\n\n").into()).collect();
            let mut response = Response::new(Paced::new(events, Duration::from_millis(20), None).boxed());
            response.headers_mut().insert("content-type", "text/event-stream".parse().expect("a value"));
            response
        }
        Some("status") => status(number(3) as u16),
        _ => Response::new(full("ok")),
    }
}

fn status(code: u16) -> Response<Body> {
    let mut response = Response::new(full("as told"));
    *response.status_mut() = StatusCode::from_u16(code).expect("a status");
    response
}

/// A body in pieces, with pauses, of a length that nobody knows.
pub(super) struct Paced {
    pieces: std::vec::IntoIter<Bytes>,
    pause: Duration,
    sleeping: Option<Pin<Box<tokio::time::Sleep>>>,
    trailers: Option<HeaderMap>,
}

impl Paced {
    pub(super) fn new(pieces: Vec<Bytes>, pause: Duration, trailers: Option<HeaderMap>) -> Self {
        Self { pieces: pieces.into_iter(), pause, sleeping: None, trailers }
    }
}

impl hyper::body::Body for Paced {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(sleeping) = &mut self.sleeping {
            std::task::ready!(sleeping.as_mut().poll(cx));
            self.sleeping = None;
        }
        if let Some(piece) = self.pieces.next() {
            if !self.pause.is_zero() {
                self.sleeping = Some(Box::pin(tokio::time::sleep(self.pause)));
            }
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

/// Bad over HTTP/1.1, by the path's last segment. What it begins it does not go on with: each has its connection.
async fn bad1(mut stream: TcpStream) {
    loop {
        let head = read_head(&mut stream).await;
        let Some(path) = head.split(' ').nth(1) else { return };
        let said: &[u8] = match path.rsplit('/').next().unwrap_or_default() {
            "reset" => {
                let _ = stream.set_zero_linger();
                return;
            }
            "close" => return,
            "truncated" => b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
            "unended" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            "garbage" => b"\x16\x03\x01 nonsense\r\n\r\n",
            "lengths" => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            "chunks" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nxyz\r\n",
            "never" => b"",
            "stall" => b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
            "extra" => {
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
            }
            "500" => b"HTTP/1.1 500 Oops\r\nContent-Length: 7\r\n\r\nas told",
            "503" => b"HTTP/1.1 503 Later\r\nContent-Length: 7\r\n\r\nas told",
            "slow" => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
            }
            _ => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        };
        if stream.write_all(said).await.is_err() {
            return;
        }
        if path.ends_with("never") || path.ends_with("stall") {
            // The gateway gives up first.
            let _ = stream.read_u8().await;
            return;
        }
        if !path.ends_with("ok") && !path.ends_with("slow") && !path.ends_with("500") && !path.ends_with("503") {
            let _ = stream.shutdown().await;
            return;
        }
    }
}

/// Closes an idle connection without a word, after some requests.
async fn closing1(mut stream: TcpStream, number: usize) {
    for _ in 0..=number % 4 {
        if !read_head(&mut stream).await.ends_with("\r\n\r\n")
            || stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.is_err()
        {
            return;
        }
    }
}

/// Bad over HTTP/2, by the path's last segment; `/once/ID/refuse` refuses each ID the first time only.
async fn bad2() -> SocketAddr {
    let refused = Arc::new(Mutex::new(HashSet::new()));
    listening(move |stream| {
        let refused = refused.clone();
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let path = request.uri().path().to_owned();
                let known = path.contains("/once/") && refused.lock().expect("no panic").take(&path).is_some();
                match path.rsplit('/').next().unwrap_or_default() {
                    "refuse" if !known => {
                        if path.contains("/once/") {
                            refused.lock().expect("no panic").insert(path);
                        }
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                    }
                    "cancel" => respond.send_reset(h2::Reason::CANCEL),
                    "cut" => {
                        if let Ok(mut send) = respond.send_response(Response::new(()), false) {
                            let _ = send.send_data(Bytes::from_static(b"half"), false);
                            tokio::spawn(async move {
                                tokio::time::sleep(Duration::from_millis(10)).await;
                                send.send_reset(h2::Reason::INTERNAL_ERROR);
                            });
                        }
                    }
                    other => {
                        if let Ok(mut send) = respond.send_response(Response::new(()), false) {
                            let _ = send.send_data(Bytes::from_static(b"ok"), true);
                        }
                        if other == "goaway" {
                            connection.graceful_shutdown();
                        }
                    }
                }
            }
        }
    })
    .await
}

async fn closing2() -> SocketAddr {
    listening(|stream| async move {
        if let Ok(mut connection) = h2::server::handshake(stream).await {
            let _ = connection.accept().await;
        }
    })
    .await
}

async fn listening<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// Bad over HTTP/3: rejects every request, or cuts every response off.
async fn bad3(tls: rustls::ServerConfig, cuts: bool) -> QuicOrigin {
    QuicOrigin::start(tls, move |connection, _| async move {
        let Ok(mut settings) = connection.open_uni().await else { return };
        if settings.write_all(&control(&[], &[])).await.is_err() {
            return;
        }
        while let Ok((mut send, recv)) = connection.accept_bi().await {
            tokio::spawn(async move {
                let _reading = Answering::new(recv);
                if !cuts {
                    let _ = send.reset(0x10b_u32.into());
                    return;
                }
                let _ = send.write_all(&[headers(&[(":status", "200")]), data(b"half")].concat()).await;
                tokio::time::sleep(Duration::from_millis(30)).await;
                let _ = send.reset(0x102_u32.into());
            });
        }
    })
    .await
}

/// Opens a WebSocket to whoever asks, and sends back what comes: what frames there are is between client and client.
async fn websocket(mut stream: TcpStream) {
    let head = read_head(&mut stream).await;
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim().to_owned())
    });
    let Some(key) = key else { return };
    let opened = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: chat\r\n\r\n",
        accept(&key)
    );
    if stream.write_all(opened.as_bytes()).await.is_ok() {
        echo(stream).await;
    }
}

async fn echo(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
}
