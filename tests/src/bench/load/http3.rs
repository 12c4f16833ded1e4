//! HTTP/3, frames by hand over quinn.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use quinn::{Connection, Endpoint, TransportConfig, VarInt};

use super::Shared;
use crate::bench::message::{Ask, Check, FIELDS, KIB, MIB, NAME, pattern};
use crate::quic;

struct Open {
    endpoint: Endpoint,
    _control: quinn::SendStream,
    connection: Connection,
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

async fn open(shared: &Shared) -> Result<Open, String> {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(shared.tls.clone()).map_err(text)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(4 * MIB as u32))
        .receive_window(VarInt::from_u32(32 * MIB as u32))
        .send_window(16 * MIB as u64)
        .max_idle_timeout(None);
    config.transport_config(Arc::new(transport));
    let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).map_err(text)?;
    let connecting = endpoint.connect_with(config, shared.address, NAME).map_err(text)?;
    let connection = connecting.await.map_err(text)?;
    let mut control = connection.open_uni().await.map_err(text)?;
    control.write_all(&quic::control(&[], &[])).await.map_err(text)?;
    Ok(Open { endpoint, _control: control, connection })
}

fn head(ask: &Ask) -> Vec<u8> {
    let pseudo = [(":method", ask.method()), (":scheme", "https"), (":authority", NAME), (":path", ask.path)];
    quic::headers(&[&pseudo[..], &FIELDS[..]].concat())
}

async fn ask(connection: &Connection, head: &[u8], ask: &Ask) -> Result<(), String> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(text)?;
    send.write_all(head).await.map_err(text)?;
    if ask.upload > 0 {
        for piece in pattern(ask.upload).chunks(64 * KIB) {
            send.write_all(&quic::data(piece)).await.map_err(text)?;
        }
    }
    send.finish().map_err(text)?;
    let mut ahead = BytesMut::new();
    // Of a DATA frame that has begun.
    let mut left = 0;
    let mut check = Check::new(ask.answer);
    let mut good = false;
    while let Some(chunk) = recv.read_chunk(usize::MAX, true).await.map_err(text)? {
        ahead.extend_from_slice(&chunk.bytes);
        while !ahead.is_empty() {
            if left > 0 {
                let piece = ahead.split_to(ahead.len().min(left));
                left -= piece.len();
                if !check.take(&piece) {
                    return Err("the content is not what the origin sent".to_owned());
                }
                continue;
            }
            let Some((kind, length, head)) = frame(&ahead) else { break };
            if kind == 0 {
                left = length;
                ahead.advance(head);
            } else if ahead.len() < head + length {
                break;
            } else {
                // A response's fields: the status is an entry of the static table there.
                good |= kind == 1 && ahead.get(head + 2) == Some(&STATUS_200);
                ahead.advance(head + length);
            }
        }
    }
    if good && check.is_complete() { Ok(()) } else { Err("no status 200, or content cut off".to_owned()) }
}

/// `:status: 200`, an indexed line of QPACK (RFC 9204, section 4.5.2 and appendix A).
const STATUS_200: u8 = 0xc0 | 25;

/// Type, length, and length of both, of the frame that begins here.
fn frame(bytes: &[u8]) -> Option<(u64, usize, usize)> {
    let number = |at: usize| {
        let first = *bytes.get(at)?;
        let length = 1 << (first >> 6);
        let rest = bytes.get(at + 1..at + length)?;
        Some((rest.iter().fold(u64::from(first & 0x3f), |sum, byte| sum << 8 | u64::from(*byte)), at + length))
    };
    let (kind, at) = number(0)?;
    let (length, at) = number(at)?;
    Some((kind, length as usize, at))
}

pub(super) async fn client(shared: &Rc<Shared>) -> Result<(), String> {
    let head: Rc<[u8]> = head(&shared.load.ask).into();
    if shared.load.fresh {
        while shared.another() {
            let begun = shared.turn().await;
            let open = open(shared).await?;
            ask(&open.connection, &head, &shared.load.ask).await?;
            open.connection.close(VarInt::from_u32(0x100), b"");
            open.endpoint.wait_idle().await;
            shared.answered(begun);
        }
        return Ok(());
    }
    let open = open(shared).await?;
    let streams = (0..shared.load.streams).map(|_| {
        let (shared, head, connection) = (shared.clone(), head.clone(), open.connection.clone());
        tokio::task::spawn_local(async move {
            while shared.another() {
                let begun = shared.turn().await;
                ask(&connection, &head, &shared.load.ask).await?;
                shared.answered(begun);
            }
            Ok::<(), String>(())
        })
    });
    for stream in streams.collect::<Vec<_>>() {
        stream.await.map_err(text)??;
    }
    open.connection.close(VarInt::from_u32(0x100), b"");
    Ok(())
}

pub(super) async fn once(shared: &Shared) -> Result<impl Sized + use<>, String> {
    let open = open(shared).await?;
    ask(&open.connection, &head(&shared.load.ask), &shared.load.ask).await?;
    Ok(open)
}
