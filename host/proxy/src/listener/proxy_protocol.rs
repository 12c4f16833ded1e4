//! Reads the PROXY header at the start of a connection, and not a byte more: what follows is for TLS or the codec.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::observe::WorkerMetrics;
use crate::proxy_protocol::{self, Header, Invalid, Parsed};
use crate::snapshot::AcceptProxyHeader;
use crate::timer::{Deadline, Timers};

/// Enough for a line of version 1 and a usual header of version 2.
const FIRST_LOOK: usize = 128;

/// How a connection begins.
#[derive(Debug)]
pub(super) enum Begins {
    WithHeader(Header),
    /// Without one: where it is optional. These bytes were taken to find out, and come first.
    With(Bytes),
}

#[derive(Debug, Error)]
pub(crate) enum Refused {
    #[error("the peer is not among those that may send a header")]
    Untrusted,
    #[error("{0}")]
    Invalid(#[from] Invalid),
    #[error("it does not begin with a header")]
    Absent,
    #[error("no whole header within {0:?}")]
    Late(Duration),
    #[error("the peer closed within the header")]
    CutOff,
    /// Nothing came that could be refused.
    #[error("the peer left: {0}")]
    Gone(io::Error),
}

impl Refused {
    pub(crate) fn count(&self, metrics: &WorkerMetrics) {
        let counts = &metrics.proxy_headers_refused;
        match self {
            Self::Untrusted => counts.untrusted.add(1),
            Self::Invalid(_) | Self::Absent => counts.invalid.add(1),
            Self::Late(_) => counts.late.add(1),
            Self::CutOff => counts.cut_off.add(1),
            Self::Gone(_) => {}
        }
    }
}

/// The header at the start of a datagram, and the rest of it: "the header and the payload are in the same datagram", in each
/// of a client's. Only version 2 knows datagrams. Without a header, where none is needed, it is the peer's own.
pub(crate) fn of_datagram<'a>(
    accept: &AcceptProxyHeader,
    peer: IpAddr,
    datagram: &'a [u8],
) -> Result<(Header, &'a [u8]), Refused> {
    if !accept.trusted.iter().any(|net| net.contains(&peer)) {
        return if accept.required { Err(Refused::Untrusted) } else { Ok((Header::default(), datagram)) };
    }
    match proxy_protocol::of_datagram(datagram)? {
        Some((header, rest)) => Ok((header, rest)),
        None if accept.required => Err(Refused::Absent),
        None => Ok((Header::default(), datagram)),
    }
}

/// What the header's sender may do, by `accept`: a peer that is not trusted is refused where a header is required, and
/// taken as it is where it is optional.
pub(super) async fn receive(
    tcp: &mut TcpStream,
    accept: &AcceptProxyHeader,
    peer: IpAddr,
    timers: &Timers,
) -> Result<Begins, Refused> {
    if !accept.trusted.iter().any(|net| net.contains(&peer)) {
        return if accept.required { Err(Refused::Untrusted) } else { Ok(Begins::With(Bytes::new())) };
    }
    let mut deadline = Deadline::after(timers, Some(accept.timeout));
    let mut taken = Vec::new();
    let read = tokio::select! {
        read = read(tcp, &mut taken) => read?,
        () = deadline.elapsed() => {
            // One who may leave the header out may be silent too: the codec's own times begin.
            let silent = taken.is_empty() && !accept.required;
            return if silent { Ok(Begins::With(Bytes::new())) } else { Err(Refused::Late(accept.timeout)) };
        }
    };
    match read {
        Some(header) => Ok(Begins::WithHeader(header)),
        None if accept.required => Err(Refused::Absent),
        None => Ok(Begins::With(taken.into())),
    }
}

/// Looks before it takes: bytes that cannot belong to a header stay with the kernel. `None` if there is no header.
async fn read(tcp: &mut TcpStream, taken: &mut Vec<u8>) -> Result<Option<Header>, Refused> {
    let mut look = vec![0; FIRST_LOOK];
    loop {
        let before = taken.len();
        let seen = match tcp.peek(&mut look).await {
            Ok(0) if before > 0 => return Err(Refused::CutOff),
            Ok(0) => return Err(Refused::Gone(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => &look[..count],
            Err(error) => return Err(Refused::Gone(error)),
        };
        taken.extend_from_slice(seen);
        let parsed = proxy_protocol::parse(taken)?;
        let mine = match &parsed {
            Parsed::Header { length, .. } => *length,
            Parsed::NeedsMore { .. } => taken.len(),
            Parsed::Absent => before,
        };
        taken.truncate(mine);
        // What was looked at is there: this does not wait for the peer.
        tcp.read_exact(&mut look[..mine - before]).await.map_err(Refused::Gone)?;
        match parsed {
            Parsed::Header { header, .. } => return Ok(Some(header)),
            Parsed::Absent => return Ok(None),
            Parsed::NeedsMore { at_most } => look.resize(at_most.saturating_sub(mine).max(1), 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        client.set_nodelay(true).expect("a socket option");
        (client, listener.accept().await.expect("a connection").0)
    }

    fn accept(required: bool, timeout: u64) -> AcceptProxyHeader {
        let trusted = ["127.0.0.0/8".parse().expect("a network")].into();
        AcceptProxyHeader { required, trusted, timeout: Duration::from_millis(timeout) }
    }

    /// Sends `pieces` one by one, closes if told to, and gives what was received and what is left on the socket.
    async fn given(accept: AcceptProxyHeader, pieces: Vec<Vec<u8>>, close: bool) -> (Result<Begins, Refused>, Vec<u8>) {
        tokio::task::LocalSet::new()
            .run_until(async move {
                let timers = Timers::new();
                tokio::task::spawn_local(timers.clone().drive());
                let (mut client, mut server) = pair().await;
                let sending = tokio::task::spawn_local(async move {
                    for piece in pieces {
                        client.write_all(&piece).await.expect("sent");
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    if close {
                        client.shutdown().await.expect("closed");
                    }
                    client
                });
                let received = receive(&mut server, &accept, [127, 0, 0, 1].into(), &timers).await;
                let mut client = sending.await.expect("no panic");
                let mut rest = Vec::new();
                if received.is_ok() {
                    client.shutdown().await.expect("closed");
                    server.read_to_end(&mut rest).await.expect("read");
                }
                (received, rest)
            })
            .await
    }

    const LINE: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n";

    #[tokio::test]
    async fn the_header_is_taken_and_nothing_else() {
        let binary = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\x03abc";
        for header in [LINE, binary] {
            let whole = [header, b"GET / HTTP/1.1\r\n\r\n"].concat();
            for cut in [0, 1, 5, 13, 15, header.len() - 1, header.len(), header.len() + 3] {
                let pieces = vec![whole[..cut].to_vec(), whole[cut..].to_vec()];
                let (received, rest) = given(accept(true, 5000), pieces, false).await;
                assert!(matches!(received, Ok(Begins::WithHeader(_))), "{received:?}");
                assert_eq!(rest, b"GET / HTTP/1.1\r\n\r\n");
            }
        }
    }

    #[tokio::test]
    async fn without_a_header() {
        for (pieces, first) in [(vec![b"PUT".to_vec()], &b""[..]), (vec![b"PRO".to_vec(), b"PFIND".to_vec()], b"PRO")] {
            let (received, rest) = given(accept(false, 5000), pieces.clone(), false).await;
            assert!(matches!(&received, Ok(Begins::With(ahead)) if ahead == first), "{received:?}");
            assert_eq!([first, &rest].concat(), pieces.concat());
            let (received, _) = given(accept(true, 5000), pieces, false).await;
            assert!(matches!(received, Err(Refused::Absent)), "{received:?}");
        }
    }

    #[tokio::test]
    async fn late_cut_off_silent() {
        let late = given(accept(true, 30), vec![LINE[..9].to_vec()], false).await.0;
        assert!(matches!(late, Err(Refused::Late(_))), "{late:?}");
        let late = given(accept(false, 30), vec![LINE[..9].to_vec()], false).await.0;
        assert!(matches!(late, Err(Refused::Late(_))), "{late:?}");
        let silent = given(accept(true, 30), vec![], false).await.0;
        assert!(matches!(silent, Err(Refused::Late(_))), "{silent:?}");
        let silent = given(accept(false, 30), vec![], false).await.0;
        assert!(matches!(silent, Ok(Begins::With(_))), "{silent:?}");
        let cut_off = given(accept(true, 5000), vec![LINE[..9].to_vec()], true).await.0;
        assert!(matches!(cut_off, Err(Refused::CutOff)), "{cut_off:?}");
        let gone = given(accept(true, 5000), vec![], true).await.0;
        assert!(matches!(gone, Err(Refused::Gone(_))), "{gone:?}");
        let invalid = given(accept(false, 5000), vec![b"PROXY \r\n".to_vec()], false).await.0;
        assert!(matches!(invalid, Err(Refused::Invalid(Invalid::Line))), "{invalid:?}");
    }
}
