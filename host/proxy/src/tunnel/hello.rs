//! Reads a connection's ClientHello. What was read is kept: it goes on as it came.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::client_hello::{ClientHello, NoHello, Records};
use crate::timer::{Deadline, Timers};

/// How a connection begins: with these bytes, that are a hello or are none.
pub(super) struct Heard {
    pub(super) bytes: Bytes,
    pub(super) hello: Result<ClientHello, NoHello>,
}

#[derive(Debug, Error)]
pub(super) enum Unheard {
    #[error("no whole ClientHello within {0:?}")]
    Late(Duration),
    #[error("the client left within its ClientHello")]
    CutOff,
    #[error("the client left without a word")]
    Gone,
}

/// A hello of today fits in two segments; more room is made as more comes.
const FIRST: usize = 2048;

/// Reads until it is known what the connection begins with. `ahead` was read before.
pub(super) async fn hear(
    tcp: &mut TcpStream,
    ahead: Bytes,
    timeout: Duration,
    timers: &Timers,
) -> Result<Heard, Unheard> {
    let mut records = Records::default();
    let mut bytes = BytesMut::from(&ahead[..]);
    let mut looked = records.push(&bytes);
    let mut deadline = Deadline::after(timers, Some(timeout));
    loop {
        match looked {
            Ok(Some(hello)) => return Ok(Heard { bytes: bytes.freeze(), hello: Ok(hello) }),
            Ok(None) => {}
            Err(none) => return Ok(Heard { bytes: bytes.freeze(), hello: Err(none) }),
        }
        let before = bytes.len();
        bytes.reserve(FIRST.max(before));
        let read = tokio::select! {
            read = tcp.read_buf(&mut bytes) => read,
            () = deadline.elapsed() => return Err(Unheard::Late(timeout)),
        };
        match read {
            Ok(0) | Err(_) if before > 0 => return Err(Unheard::CutOff),
            Ok(0) | Err(_) => return Err(Unheard::Gone),
            Ok(_) => looked = records.push(&bytes[before..]),
        }
    }
}
