//! Dialling over QUIC: one endpoint of the worker for each address family, made when it is first needed, carries the
//! connections to all HTTP/3 origins.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::{ClientConfig, ConnectError, ConnectionError, EndpointConfig, Runtime, TransportConfig, VarInt};
use rustls::pki_types::ServerName;
use tidegate_policy::{Cause, Fault};

use super::connect::MAX_RESPONSE_HEAD;
use super::tls::ClientTls;
use crate::codec::http3;
use crate::gso::Gathering;
use crate::timer::Timers;

/// A connection whose peer vanished is noticed after this; one that is merely quiet is kept alive, for as long as its
/// pool wants it.
const VANISHED: Duration = Duration::from_secs(30);

/// A stream may have this much unread.
const STREAM_WINDOW: u32 = 256 * 1024;

#[derive(Default)]
pub(super) struct Endpoints {
    v4: RefCell<Option<quinn::Endpoint>>,
    v6: RefCell<Option<quinn::Endpoint>>,
}

impl Endpoints {
    pub(super) async fn dial(
        &self,
        address: SocketAddr,
        tls: Option<&ClientTls>,
        max_streams: u32,
        timers: &Timers,
    ) -> Result<http3::ClientConnection, Fault> {
        let Some((tls, quic)) = tls.and_then(|tls| Some((tls, tls.quic.clone()?))) else {
            return Err(Fault::new(Cause::Internal, "HTTP/3 without TLS").nothing_written());
        };
        let name = match &tls.server_name {
            Some(ServerName::DnsName(name)) => name.as_ref().to_owned(),
            Some(ServerName::IpAddress(ip)) => std::net::IpAddr::from(*ip).to_string(),
            _ => address.ip().to_string(),
        };
        let mut config = ClientConfig::new(quic);
        config.transport_config(transport(max_streams));
        let connecting = self.connect(config, address, &name).map_err(|error| {
            let cause = if error == ConnectError::EndpointStopping { Cause::ConnectFailed } else { Cause::Internal };
            Fault::new(cause, format!("{address}: {error}")).nothing_written()
        })?;
        let connection = connecting.await.map_err(|error| failed(address, &error))?;
        http3::ClientConnection::connect(connection, MAX_RESPONSE_HEAD, timers).await
    }

    fn connect(&self, config: ClientConfig, to: SocketAddr, name: &str) -> Result<quinn::Connecting, ConnectError> {
        let place = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        let mut place = place.borrow_mut();
        if let Some(endpoint) = &*place {
            match endpoint.connect_with(config.clone(), to, name) {
                // Its socket broke: a fresh one may do.
                Err(ConnectError::EndpointStopping) => {}
                other => return other,
            }
        }
        let endpoint = endpoint(to).map_err(|error| {
            tracing::error!(%error, "no socket for HTTP/3 upstreams");
            ConnectError::EndpointStopping
        })?;
        place.insert(endpoint).connect_with(config, to, name)
    }
}

fn endpoint(to: SocketAddr) -> io::Result<quinn::Endpoint> {
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind(SocketAddr::new(any, 0))?;
    let runtime = Arc::new(quinn::TokioRuntime);
    let socket = Arc::new(Gathering::new(runtime.wrap_udp_socket(socket)?, ()));
    quinn::Endpoint::new_with_abstract_socket(EndpointConfig::default(), None, socket, runtime)
}

fn transport(max_streams: u32) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        // RFC 9114, section 6.1: servers open no bidirectional streams.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(16))
        .max_idle_timeout(quinn::IdleTimeout::try_from(VANISHED).ok())
        .keep_alive_interval(Some(VANISHED / 3))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        // Room for all streams of the connection: clients that take nothing must not stall those that share it with them.
        .receive_window(VarInt::from_u32(STREAM_WINDOW.saturating_mul(max_streams.saturating_add(1)).min(1 << 30)))
        .send_window(2 * 1024 * 1024)
        .datagram_receive_buffer_size(None);
    Arc::new(transport)
}

/// A certificate that does not verify is told apart from a handshake that breaks, and both from a port that is closed.
fn failed(address: SocketAddr, error: &ConnectionError) -> Fault {
    // RFC 9001, section 4.8: an alert of TLS is a code from 0x100. Of our own quinn keeps the words only; rustls prints
    // `Error::InvalidCertificate` and `Error::NoCertificatesPresented` like this.
    let alert = |code: quinn::TransportErrorCode| (0x100..0x200).contains(&u64::from(code));
    let unverified = |reason: &str| {
        reason.starts_with("invalid peer certificate") || reason.starts_with("peer sent no certificates")
    };
    let cause = match error {
        ConnectionError::TransportError(error) if alert(error.code) && unverified(&error.reason) => {
            Cause::TlsCertificate
        }
        ConnectionError::TransportError(error) if alert(error.code) => Cause::TlsFailed,
        ConnectionError::ConnectionClosed(close) if alert(close.error_code) => Cause::TlsFailed,
        ConnectionError::TimedOut => Cause::ConnectTimeout,
        _ => Cause::ConnectFailed,
    };
    Fault::new(cause, format!("{address}: {error}"))
}
