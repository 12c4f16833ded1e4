//! Dialling: TCP, PROXY header, TLS, ALPN, all within the connect timeout. Nothing of a request is written here.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tidegate_policy::{Cause, Fault};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::codec::{http1, http2};
use crate::snapshot::{PoolSettings, UpstreamProtocol};
use crate::stream::{Stream, Transport};
use crate::timer::{Deadline, Timers};
use crate::upstream::tls::ClientTls;

/// Most bytes of a response head.
const MAX_RESPONSE_HEAD: usize = 64 * 1024;
/// When the kernel begins to probe a silent connection.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// A fresh connection, by the protocol it speaks.
pub(crate) enum Connected {
    Http1(http1::ClientConnection),
    Http2(http2::ClientConnection),
}

/// Connects to an endpoint.
pub(crate) async fn connect(
    address: SocketAddr,
    settings: &PoolSettings,
    tls: Option<&ClientTls>,
    proxy_header: Option<&[u8]>,
    timers: &Timers,
) -> Result<Connected, Fault> {
    let mut deadline = Deadline::after(timers, Some(settings.connect_timeout));
    tokio::select! {
        connected = dial(address, settings.protocol, tls, proxy_header) => connected,
        () = deadline.elapsed() => {
            Err(Fault::new(Cause::ConnectTimeout, format!("{address}: no connection within {:?}", settings.connect_timeout)))
        }
    }
}

async fn dial(
    address: SocketAddr,
    protocol: UpstreamProtocol,
    tls: Option<&ClientTls>,
    proxy_header: Option<&[u8]>,
) -> Result<Connected, Fault> {
    let mut tcp = TcpStream::connect(address).await.map_err(|error| {
        let cause = match error.kind() {
            io::ErrorKind::ConnectionRefused => Cause::ConnectRefused,
            io::ErrorKind::TimedOut => Cause::ConnectTimeout,
            _ => Cause::ConnectFailed,
        };
        Fault::new(cause, format!("{address}: {error}"))
    })?;
    // Without the first a request waits for acknowledgements, without the second a vanished origin is never noticed.
    let _ = tcp.set_nodelay(true);
    let _ = socket2::SockRef::from(&tcp).set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE));
    if let Some(header) = proxy_header {
        let failed = |error| Fault::new(Cause::ConnectFailed, format!("{address}: sending the PROXY header: {error}"));
        tcp.write_all(header).await.map_err(failed)?;
    }
    let Some(tls) = tls else {
        let stream = Stream::new(Transport::Tcp(tcp));
        return match protocol {
            // No ALPN in clear: HTTP/2 is spoken by prior knowledge only (RFC 9113, section 3.3).
            UpstreamProtocol::Http2 => over_http2(stream).await,
            UpstreamProtocol::Http1 | UpstreamProtocol::Auto => Ok(over_http1(stream)),
        };
    };
    let name = tls.server_name.clone().unwrap_or_else(|| ServerName::IpAddress(address.ip().into()));
    let connector = tokio_rustls::TlsConnector::from(tls.config.clone());
    let stream = connector.connect(name, tcp).await.map_err(|error| tls_failed(address, &error))?;
    let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    let stream = Stream::new(Transport::ClientTls(Box::new(stream)));
    match (agreed.as_deref(), protocol) {
        (Some(b"h2"), _) => over_http2(stream).await,
        (_, UpstreamProtocol::Http2) => {
            Err(Fault::new(Cause::TlsFailed, format!("{address}: the origin does not agree to h2 by ALPN")))
        }
        _ => Ok(over_http1(stream)),
    }
}

fn over_http1(stream: Stream) -> Connected {
    Connected::Http1(http1::ClientConnection::new(stream, MAX_RESPONSE_HEAD))
}

async fn over_http2(stream: Stream) -> Result<Connected, Fault> {
    http2::ClientConnection::connect(stream, MAX_RESPONSE_HEAD).await.map(Connected::Http2)
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
