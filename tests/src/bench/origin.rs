//! What stands behind every proxy: an origin that costs as little as can be, so that the machine's other core has time for
//! the load. HTTP/1.1 by hand, HTTP/2 over TLS by the `h2` crate. Answers go by the path's last part: `/1k`, `/100k`, `/10m`,
//! `/up`, which takes content, and `/mark`, answered with the origin's name. Below `/flaky/`, each number in `x-number` is
//! refused with 503 the first time it comes, and answered the second.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::message::{KIB, MIB, pattern};
use crate::certs::Pair;

/// One HTTP/1.1 origin.
struct Origin {
    name: &'static str,
    /// Numbers that were refused, and did not come again yet.
    refused: RefCell<HashSet<String>>,
}

/// Serves on the current thread until the runtime ends, on one port of all addresses of loopback; the answer names one.
pub async fn http1(name: &'static str) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    let port = listener.local_addr()?.port();
    let origin = Rc::new(Origin { name, refused: RefCell::default() });
    tokio::task::spawn_local(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            if !peer.ip().is_loopback() {
                continue;
            }
            let origin = origin.clone();
            // A connection that a proxy gave up is no matter of the origin's.
            tokio::task::spawn_local(async move {
                let _ = origin.serve(stream).await;
            });
        }
    });
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

fn size(path: &str) -> usize {
    match path.rsplit('/').next() {
        Some("100k") => 100 * KIB,
        Some("10m") => 10 * MIB,
        Some("up") => 0,
        _ => KIB,
    }
}

/// The value of a field, of a head in lower case.
fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

impl Origin {
    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        // Thousands of connections may be open: only those that take content have room for it.
        let mut buffer = vec![0; 4 * KIB];
        let mut filled = 0;
        loop {
            let Some(end) = buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") else {
                if filled == buffer.len() {
                    buffer.resize(256 * KIB, 0);
                }
                let read = stream.read(&mut buffer[filled..]).await?;
                if read == 0 {
                    return Ok(());
                }
                filled += read;
                continue;
            };
            let head = std::str::from_utf8(&buffer[..end]).map_err(std::io::Error::other)?.to_ascii_lowercase();
            let length = field(&head, "content-length").and_then(|length| length.parse().ok());
            let chunked = head.contains("transfer-encoding: chunked");
            let rest = filled - end - 4;
            buffer.copy_within(end + 4..filled, 0);
            filled = rest;
            if chunked || length.is_some_and(|length: usize| length > 0) {
                buffer.resize(256 * KIB, 0);
                if !content(&mut stream, &mut buffer, filled, length.filter(|_| !chunked)).await? {
                    return Ok(());
                }
                filled = 0;
            }
            self.answer(&mut stream, &head).await?;
        }
    }

    async fn answer(&self, stream: &mut TcpStream, head: &str) -> std::io::Result<()> {
        let path = head.split(' ').nth(1).unwrap_or_default();
        if path.contains("/flaky/") && self.refuses(field(head, "x-number").unwrap_or_default()) {
            return stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
        }
        let body = if path.ends_with("/mark") { Bytes::from_static(self.name.as_bytes()) } else { pattern(size(path)) };
        let mut response =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", body.len())
                .into_bytes();
        if body.len() <= KIB {
            response.extend_from_slice(&body);
            return stream.write_all(&response).await;
        }
        stream.write_all(&response).await?;
        stream.write_all(&body).await
    }

    fn refuses(&self, number: &str) -> bool {
        let mut refused = self.refused.borrow_mut();
        !refused.remove(number) && refused.insert(number.to_owned())
    }
}

/// Reads what is left of content: by length, or to the last chunk's end. False if the connection ends before.
async fn content(
    stream: &mut TcpStream,
    buffer: &mut [u8],
    mut filled: usize,
    length: Option<usize>,
) -> std::io::Result<bool> {
    if let Some(length) = length {
        let mut left = length.saturating_sub(filled);
        while left > 0 {
            let read = stream.read(buffer).await?;
            if read == 0 {
                return Ok(false);
            }
            left = left.saturating_sub(read);
        }
        return Ok(true);
    }
    while !buffer[..filled].ends_with(b"0\r\n\r\n") {
        let keep = filled.min(8);
        buffer.copy_within(filled - keep..filled, 0);
        filled = keep + stream.read(&mut buffer[keep..]).await?;
        if filled == keep {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The same over HTTP/2 and TLS.
pub async fn http2(pair: &Pair) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let acceptor = TlsAcceptor::from(Arc::new(pair.server(&[b"h2"], None)));
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::task::spawn_local(async move {
                let _ = stream.set_nodelay(true);
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let mut builder = h2::server::Builder::new();
                builder.initial_window_size(MIB as u32).initial_connection_window_size(16 * MIB as u32);
                let Ok(mut connection) = builder.max_concurrent_streams(1000).handshake::<_, Bytes>(stream).await
                else {
                    return;
                };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let body = pattern(size(request.uri().path()));
                    let response = http::Response::builder()
                        .header("content-type", "text/plain")
                        .header("content-length", body.len())
                        .body(());
                    // Both fail on a stream that is gone.
                    if let Ok(response) = response
                        && let Ok(mut send) = respond.send_response(response, false)
                    {
                        let _ = send.send_data(body, true);
                    }
                }
            });
        }
    });
    Ok(address)
}
