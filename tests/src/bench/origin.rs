//! What stands behind every proxy: an origin that costs as little as can be, so that the machine's other core has time for
//! the load. HTTP/1.1 by hand, HTTP/2 over TLS by the `h2` crate. Answers go by the path's last part: `/1k`, `/100k`, `/10m`,
//! and `/up`, which takes content.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::message::{KIB, MIB, pattern};
use crate::certs::Pair;

/// Serves on the current thread until the runtime ends.
pub async fn http1() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A connection that a proxy gave up is no matter of the origin's.
            tokio::task::spawn_local(async move {
                let _ = serve(stream).await;
            });
        }
    });
    Ok(address)
}

fn size(path: &str) -> usize {
    match path.rsplit('/').next() {
        Some("100k") => 100 * KIB,
        Some("10m") => 10 * MIB,
        Some("up") => 0,
        _ => KIB,
    }
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 256 * KIB];
    let mut filled = 0;
    loop {
        let Some(end) = buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") else {
            let read = stream.read(&mut buffer[filled..]).await?;
            if read == 0 {
                return Ok(());
            }
            filled += read;
            continue;
        };
        let head = std::str::from_utf8(&buffer[..end]).map_err(std::io::Error::other)?.to_ascii_lowercase();
        let path = head.split(' ').nth(1).unwrap_or_default();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let chunked = head.contains("transfer-encoding: chunked");
        let answer = size(path);
        let mut response =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {answer}\r\n\r\n").into_bytes();
        // Content that must be read first: by length, or to the last chunk's end.
        let mut rest = filled - end - 4;
        buffer.copy_within(end + 4..filled, 0);
        if chunked {
            while !buffer[..rest].ends_with(b"0\r\n\r\n") {
                let keep = rest.min(8);
                buffer.copy_within(rest - keep..rest, 0);
                rest = keep + stream.read(&mut buffer[keep..]).await?;
                if rest == keep {
                    return Ok(());
                }
            }
            rest = 0;
        } else if let Some(mut left) = length {
            left = left.saturating_sub(rest);
            while left > 0 {
                let read = stream.read(&mut buffer).await?;
                if read == 0 {
                    return Ok(());
                }
                left = left.saturating_sub(read);
            }
            rest = 0;
        }
        filled = rest;
        let body = pattern(answer);
        if answer <= KIB {
            response.extend_from_slice(&body);
            stream.write_all(&response).await?;
        } else {
            stream.write_all(&response).await?;
            stream.write_all(&body).await?;
        }
    }
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
