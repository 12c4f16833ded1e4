//! Dialling: TCP, PROXY header, TLS, ALPN, all within the connect timeout. Nothing of a request is written here.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tidegate_policy::{Cause, Fault};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::quic::Endpoints;
use crate::body::{Awaiting, Length, Outgoing};
use crate::codec::{http1, http2, http3};
use crate::exchange::OutgoingHead;
use crate::origin::{MemoryStream, Origin};
use crate::snapshot::{PoolSettings, UpstreamProtocol};
use crate::stream::{Stream, Transport};
use crate::timer::{Deadline, Timers};
use crate::upstream::tls::ClientTls;

/// Most bytes of a response head.
pub(super) const MAX_RESPONSE_HEAD: usize = 64 * 1024;
/// When the kernel begins to probe a silent connection.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long what was sent may go unacknowledged before the kernel gives the connection up.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// A fresh connection, by the protocol it speaks.
pub(crate) enum Connected {
    Http1(http1::ClientConnection),
    Shared(Multiplexed),
}

/// A connection that many requests share, a stream each.
#[derive(Clone)]
pub(crate) enum Multiplexed {
    Http2(http2::ClientConnection),
    Http3(http3::ClientConnection),
}

impl Multiplexed {
    pub(super) async fn start(&self, head: &OutgoingHead, length: Length) -> Result<(Outgoing, Awaiting), Fault> {
        match self {
            Self::Http2(connection) => {
                let (out, awaiting) = connection.start(head, length).await?;
                Ok((out, Awaiting::Http2(awaiting)))
            }
            Self::Http3(connection) => {
                let (out, awaiting) = connection.start(head, length).await?;
                Ok((out, Awaiting::Http3(awaiting)))
            }
        }
    }

    /// Takes new streams.
    pub(super) fn open(&self) -> bool {
        match self {
            Self::Http2(connection) => connection.open(),
            Self::Http3(connection) => connection.open(),
        }
    }

    /// Whether the origin takes extended CONNECT, once it has said so.
    pub(super) async fn takes_tunnels(&self) -> bool {
        match self {
            Self::Http2(connection) => connection.takes_tunnels().await,
            Self::Http3(connection) => connection.takes_tunnels().await,
        }
    }

    /// The origin's limit on concurrent streams, as far as known.
    pub(super) fn max_streams(&self) -> usize {
        match self {
            Self::Http2(connection) => connection.max_streams(),
            Self::Http3(connection) => connection.max_streams(),
        }
    }

    /// Takes no more streams from now on; closes after the last.
    pub(super) fn retire(&self) {
        match self {
            Self::Http2(connection) => connection.retire(),
            Self::Http3(connection) => connection.retire(),
        }
    }
}

/// Connects to an endpoint.
pub(crate) async fn connect(
    address: SocketAddr,
    settings: &PoolSettings,
    tls: Option<&ClientTls>,
    proxy_header: Option<&[u8]>,
    quic: &Endpoints,
    timers: &Timers,
) -> Result<Connected, Fault> {
    let mut deadline = Deadline::after(timers, Some(settings.connect_timeout));
    tokio::select! {
        connected = async {
            match settings.protocol {
                UpstreamProtocol::Http3 => {
                    let dialled = quic.dial(address, tls, settings.max_streams_per_connection, timers).await;
                    dialled.map(Multiplexed::Http3).map(Connected::Shared)
                }
                _ => dial(address, settings, tls, proxy_header).await,
            }
        } => connected,
        () = deadline.elapsed() => {
            Err(Fault::new(Cause::ConnectTimeout, format!("{address}: no connection within {:?}", settings.connect_timeout)))
        }
    }
}

/// Connects to an origin within this process.
pub(crate) fn connect_within(origin: &Arc<dyn Origin>) -> Connected {
    over_http1(Stream::new(Transport::Memory(MemoryStream::connect(origin))))
}

/// A connection of its own, for a tunnel: over TLS where the cluster has it, with `alpn` as all that is offered.
pub(crate) async fn connect_alone(
    address: SocketAddr,
    settings: &PoolSettings,
    tls: Option<&ClientTls>,
    proxy_header: Option<&[u8]>,
    alpn: &[&[u8]],
    timers: &Timers,
) -> Result<Stream, Fault> {
    let dialling = async {
        let tcp = tcp(address, proxy_header).await?;
        let Some(tls) = tls else { return Ok(Stream::new(Transport::Tcp(tcp))) };
        let mut config = (*tls.config).clone();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let name = tls.server_name.clone().unwrap_or_else(|| ServerName::IpAddress(address.ip().into()));
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, tcp).await.map_err(|error| tls_failed(address, &error))?;
        Ok(Stream::new(Transport::ClientTls(Box::new(stream))))
    };
    let mut deadline = Deadline::after(timers, Some(settings.connect_timeout));
    tokio::select! {
        stream = dialling => stream,
        () = deadline.elapsed() => {
            Err(Fault::new(Cause::ConnectTimeout, format!("{address}: no connection within {:?}", settings.connect_timeout)))
        }
    }
}

/// Has the kernel ask a silent peer whether it is still there.
pub(crate) fn keep_alive(tcp: &TcpStream) {
    let probes = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4).with_retries(3);
    // A socket that is gone already shows it by itself.
    let _ = socket2::SockRef::from(tcp).set_tcp_keepalive(&probes);
}

/// A connection on which nothing at all is written.
pub(crate) async fn connect_tcp(address: SocketAddr, timeout: Duration, timers: &Timers) -> Result<TcpStream, Fault> {
    let mut deadline = Deadline::after(timers, Some(timeout));
    tokio::select! {
        connected = tcp(address, None) => connected.inspect(|tcp| {
            // To the kernel an endpoint that takes nothing for so long is one that has gone; a tunnel's idle time says that.
            let _ = socket2::SockRef::from(tcp).set_tcp_user_timeout(None);
        }),
        () = deadline.elapsed() => {
            Err(Fault::new(Cause::ConnectTimeout, format!("{address}: no connection within {timeout:?}")))
        }
    }
}

/// A socket, on which nothing is written but the PROXY header of a cluster that wants one.
async fn tcp(address: SocketAddr, proxy_header: Option<&[u8]>) -> Result<TcpStream, Fault> {
    let mut tcp = TcpStream::connect(address).await.map_err(|error| {
        let cause = match error.kind() {
            io::ErrorKind::ConnectionRefused => Cause::ConnectRefused,
            io::ErrorKind::TimedOut => Cause::ConnectTimeout,
            _ => Cause::ConnectFailed,
        };
        Fault::new(cause, format!("{address}: {error}"))
    })?;
    // Without the first a request waits for acknowledgements, without the others a vanished origin is never noticed.
    let _ = tcp.set_nodelay(true);
    keep_alive(&tcp);
    let _ = socket2::SockRef::from(&tcp).set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    if let Some(header) = proxy_header {
        let failed = |error| Fault::new(Cause::ConnectFailed, format!("{address}: sending the PROXY header: {error}"));
        tcp.write_all(header).await.map_err(failed)?;
    }
    Ok(tcp)
}

async fn dial(
    address: SocketAddr,
    settings: &PoolSettings,
    tls: Option<&ClientTls>,
    proxy_header: Option<&[u8]>,
) -> Result<Connected, Fault> {
    let protocol = settings.protocol;
    let tcp = tcp(address, proxy_header).await?;
    let Some(tls) = tls else {
        let stream = Stream::new(Transport::Tcp(tcp));
        return match protocol {
            // No ALPN in clear: HTTP/2 is spoken by prior knowledge only (RFC 9113, section 3.3).
            UpstreamProtocol::Http2 => over_http2(stream, settings.max_streams_per_connection).await,
            UpstreamProtocol::Http1 | UpstreamProtocol::Http3 | UpstreamProtocol::Auto => Ok(over_http1(stream)),
        };
    };
    let name = tls.server_name.clone().unwrap_or_else(|| ServerName::IpAddress(address.ip().into()));
    let connector = tokio_rustls::TlsConnector::from(tls.config.clone());
    let stream = connector.connect(name, tcp).await.map_err(|error| tls_failed(address, &error))?;
    let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    let stream = Stream::new(Transport::ClientTls(Box::new(stream)));
    match (agreed.as_deref(), protocol) {
        (Some(b"h2"), _) => over_http2(stream, settings.max_streams_per_connection).await,
        (_, UpstreamProtocol::Http2) => {
            Err(Fault::new(Cause::TlsFailed, format!("{address}: the origin does not agree to h2 by ALPN")))
        }
        _ => Ok(over_http1(stream)),
    }
}

fn over_http1(stream: Stream) -> Connected {
    Connected::Http1(http1_over(stream))
}

pub(crate) fn http1_over(stream: Stream) -> http1::ClientConnection {
    http1::ClientConnection::new(stream, MAX_RESPONSE_HEAD)
}

async fn over_http2(stream: Stream, streams: u32) -> Result<Connected, Fault> {
    let connected = http2::ClientConnection::connect(stream, MAX_RESPONSE_HEAD, streams).await;
    connected.map(Multiplexed::Http2).map(Connected::Shared)
}

/// A certificate that does not verify is told apart from a handshake that breaks.
fn tls_failed(address: SocketAddr, error: &io::Error) -> Fault {
    let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let cause = match reason {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => Cause::TlsCertificate,
        _ => Cause::TlsFailed,
    };
    Fault::new(cause, format!("{address}: {error}"))
}
