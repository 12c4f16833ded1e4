//! One check: dial, ask, judge the answer. No pool and no hyper: a connection each, a head or a message read, no more.

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::pin::pin;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, Request, StatusCode, header};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::over_http3::over_http3;
use crate::ClientTls;
use crate::snapshot::{PoolSettings, UpstreamProtocol};

/// What a check asks, and what it wants to hear.
#[derive(Clone, Debug, PartialEq)]
pub enum CheckKind {
    Http {
        path: String,
        host: Option<String>,
        head: bool,
        expect: Vec<RangeInclusive<u16>>,
    },
    /// With nothing to send or receive a connection is enough.
    Tcp {
        send: Vec<u8>,
        receive: Vec<u8>,
    },
    Grpc {
        service: String,
        host: Option<String>,
    },
}

const USER_AGENT: &str = concat!("tidegate/", env!("CARGO_PKG_VERSION"), " (health check)");
/// Most bytes that are read in search of an answer.
const MAX_HEAD: usize = 64 * 1024;
pub(super) const MAX_MESSAGE: usize = 4 * 1024;
const MAX_RECEIVED: usize = 4 * 1024;

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// An endpoint and how it is asked.
pub(super) struct Target {
    address: SocketAddr,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// Where the cluster speaks HTTP/3.
    quic: Option<Arc<QuicClientConfig>>,
    pool: PoolSettings,
    authority: String,
    kind: CheckKind,
    mark: Option<u32>,
}

impl Target {
    pub(super) fn new(
        address: SocketAddr,
        pool: PoolSettings,
        tls: Option<&ClientTls>,
        kind: CheckKind,
        mark: Option<u32>,
    ) -> Self {
        let name = tls.and_then(|tls| tls.server_name.clone());
        let quic = tls.and_then(|tls| tls.quic.clone());
        let host = match &kind {
            CheckKind::Http { host, .. } | CheckKind::Grpc { host, .. } => host.clone(),
            CheckKind::Tcp { .. } => None,
        };
        let authority = host.or(name.as_ref().map(|name| name.to_str().into_owned()));
        let tls = tls.map(|tls| {
            let name = name.unwrap_or_else(|| ServerName::IpAddress(address.ip().into()));
            let mut config = tls.config.clone();
            if matches!(kind, CheckKind::Grpc { .. }) {
                // gRPC is HTTP/2 whatever the cluster's requests are.
                let mut only = (*config).clone();
                only.alpn_protocols = vec![b"h2".to_vec()];
                config = Arc::new(only);
            }
            (config, name)
        });
        Self { address, tls, quic, pool, authority: authority.unwrap_or_else(|| address.to_string()), kind, mark }
    }

    /// `Err` says why it failed. Whoever calls bounds the time.
    pub(super) async fn check(&self) -> Result<(), String> {
        match &self.kind {
            CheckKind::Http { path, head, expect, .. } => {
                let method = if *head { Method::HEAD } else { Method::GET };
                let status = self.status(method, path).await?;
                let good = expect.iter().any(|range| range.contains(&status.as_u16()));
                if good { Ok(()) } else { Err(format!("status {}", status.as_u16())) }
            }
            CheckKind::Tcp { send, receive } => exchange_bytes(self.dial().await?.0, send, receive).await,
            CheckKind::Grpc { service, .. } => {
                let request = self
                    .request(Method::POST, "/grpc.health.v1.Health/Check")?
                    .header(header::CONTENT_TYPE, "application/grpc")
                    .header(header::TE, "trailers")
                    .body(())
                    .map_err(|error| error.to_string())?;
                let message = Some(grpc_request(service));
                let answer = match self.quic() {
                    Some((tls, name)) => over_http3(self.address, &name, tls, request, message).await?,
                    None => over_http2(self.dial().await?.0, request, message).await?,
                };
                if answer.status != StatusCode::OK {
                    return Err(format!("status {}", answer.status.as_u16()));
                }
                match answer.grpc_status.as_deref() {
                    Some(b"0") => serving(&answer.body),
                    Some(other) => Err(format!("grpc-status {}", String::from_utf8_lossy(other))),
                    None => Err("no grpc-status".to_owned()),
                }
            }
        }
    }

    /// What a request of the cluster's own version is answered.
    async fn status(&self, method: Method, path: &str) -> Result<StatusCode, String> {
        let request = || self.request(method.clone(), path)?.body(()).map_err(|error| error.to_string());
        if let Some((tls, name)) = self.quic() {
            return Ok(over_http3(self.address, &name, tls, request()?, None).await?.status);
        }
        let (stream, http2) = self.dial().await?;
        if http2 {
            return Ok(over_http2(stream, request()?, None).await?.status);
        }
        self.over_http1(stream, &method, path).await
    }

    /// Where the cluster speaks HTTP/3: its TLS, and the name that is verified.
    fn quic(&self) -> Option<(Arc<QuicClientConfig>, String)> {
        let (_, name) = self.tls.as_ref()?;
        Some((self.quic.clone()?, name.to_str().into_owned()))
    }

    /// A fresh connection over TCP, and whether it speaks HTTP/2.
    async fn dial(&self) -> Result<(Box<dyn Io>, bool), String> {
        let mut tcp = self.connect().await.map_err(|error| format!("connect: {error}"))?;
        let _ = tcp.set_nodelay(true);
        if let Some(header) = self.pool.proxy_protocol {
            // Nobody's connection but ours: LOCAL (PROXY protocol, section 2.2).
            tcp.write_all(&header.of_own_connection()).await.map_err(|error| format!("connect: {error}"))?;
        }
        let grpc = matches!(self.kind, CheckKind::Grpc { .. });
        let Some((config, name)) = &self.tls else {
            return Ok((Box::new(tcp), grpc || self.pool.protocol == UpstreamProtocol::Http2));
        };
        let connector = tokio_rustls::TlsConnector::from(config.clone());
        let stream = connector.connect(name.clone(), tcp).await.map_err(|error| format!("tls: {error}"))?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let wanted =
            grpc || (self.pool.protocol == UpstreamProtocol::Http2 && matches!(self.kind, CheckKind::Http { .. }));
        if wanted && !http2 {
            return Err("tls: h2 is not agreed to by ALPN".to_owned());
        }
        Ok((Box::new(stream), http2))
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(mark) = self.mark {
            socket2::SockRef::from(&socket).set_mark(mark)?;
        }
        socket.connect(self.address).await
    }

    fn request(&self, method: Method, path: &str) -> Result<http::request::Builder, String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let uri: http::Uri =
            format!("{scheme}://{}{path}", self.authority).parse().map_err(|_| format!("path {path:?}"))?;
        Ok(Request::builder().method(method).uri(uri).header(header::USER_AGENT, USER_AGENT))
    }

    async fn over_http1(&self, mut stream: Box<dyn Io>, method: &Method, path: &str) -> Result<StatusCode, String> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nuser-agent: {USER_AGENT}\r\naccept: */*\r\nconnection: close\r\n\r\n",
            self.authority
        );
        let broke = |error: std::io::Error| error.to_string();
        stream.write_all(head.as_bytes()).await.map_err(broke)?;
        stream.flush().await.map_err(broke)?;
        let mut got = BytesMut::with_capacity(1024);
        loop {
            if let Some(status) = final_status(&got)? {
                return Ok(status);
            }
            if got.len() >= MAX_HEAD {
                return Err(format!("no response head within {MAX_HEAD} bytes"));
            }
            if stream.read_buf(&mut got).await.map_err(broke)? == 0 {
                return Err("closed before a response head".to_owned());
            }
        }
    }
}

/// The status of the first head that is not interim; `None` while it is not whole.
fn final_status(mut got: &[u8]) -> Result<Option<StatusCode>, String> {
    loop {
        let mut fields = [httparse::EMPTY_HEADER; 128];
        let mut response = httparse::Response::new(&mut fields);
        let length = match response.parse(got).map_err(|error| format!("not a response: {error}"))? {
            httparse::Status::Partial => return Ok(None),
            httparse::Status::Complete(length) => length,
        };
        let code = response.code.unwrap_or_default();
        let status = StatusCode::from_u16(code).map_err(|_| format!("status {code}"))?;
        if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Some(status));
        }
        got = &got[length..];
    }
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// Read for gRPC only.
    pub(super) grpc_status: Option<Vec<u8>>,
    pub(super) body: Bytes,
}

/// One request on a connection of its own. With a message its answer is read to the trailers.
async fn over_http2(stream: Box<dyn Io>, request: Request<()>, message: Option<Bytes>) -> Result<Answer, String> {
    let failed = |error: h2::Error| format!("http2: {error}");
    let (sender, connection) = h2::client::handshake(stream).await.map_err(failed)?;
    let exchange = async {
        let mut sender = sender.ready().await.map_err(failed)?;
        let (response, mut out) = sender.send_request(request, message.is_none()).map_err(failed)?;
        let grpc = message.is_some();
        if let Some(message) = message {
            out.send_data(message, true).map_err(failed)?;
        }
        let (head, mut incoming) = response.await.map_err(failed)?.into_parts();
        let mut answer = Answer { status: head.status, grpc_status: None, body: Bytes::new() };
        if !grpc {
            return Ok(answer);
        }
        let mut body = BytesMut::new();
        while let Some(data) = incoming.data().await {
            let data = data.map_err(failed)?;
            if body.len() + data.len() > MAX_MESSAGE {
                return Err(format!("more than {MAX_MESSAGE} bytes"));
            }
            // Far below the window that the stream starts with: nothing needs to be released.
            body.extend_from_slice(&data);
        }
        let trailers = incoming.trailers().await.map_err(failed)?;
        let status = trailers.as_ref().unwrap_or(&head.headers).get("grpc-status");
        answer.grpc_status = status.map(|status| status.as_bytes().to_vec());
        answer.body = body.freeze();
        Ok(answer)
    };
    let (mut exchange, mut connection) = (pin!(exchange), pin!(connection));
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            answer = &mut exchange => return answer,
            // What arrived before its end is still there for the exchange to read.
            _ = &mut connection, if open => open = false,
        }
    }
}

async fn exchange_bytes(mut stream: Box<dyn Io>, send: &[u8], receive: &[u8]) -> Result<(), String> {
    let broke = |error: std::io::Error| error.to_string();
    if !send.is_empty() {
        stream.write_all(send).await.map_err(broke)?;
        stream.flush().await.map_err(broke)?;
    }
    let mut got = BytesMut::new();
    while !receive.is_empty() && memchr::memmem::find(&got, receive).is_none() {
        if got.len() >= MAX_RECEIVED {
            return Err(format!("what is expected is not in the first {MAX_RECEIVED} bytes"));
        }
        if stream.read_buf(&mut got).await.map_err(broke)? == 0 {
            return Err("closed before what is expected came".to_owned());
        }
    }
    Ok(())
}

/// `HealthCheckRequest { service = 1 }` as a gRPC message: a byte for no compression, four for the length, and the message.
fn grpc_request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        // Field 1, length-delimited.
        message.put_u8(0x0a);
        put_varint(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(&message);
    framed.freeze()
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Whether a gRPC message is `HealthCheckResponse { status = 1: SERVING }`.
fn serving(body: &[u8]) -> Result<(), String> {
    const BROKEN: &str = "not a HealthCheckResponse";
    let [0, a, b, c, d, message @ ..] = body else { return Err(BROKEN.to_owned()) };
    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    let mut rest = message.get(..length).ok_or(BROKEN)?;
    // The default of the enumeration, where the field is absent.
    let mut status = 0;
    while !rest.is_empty() {
        let tag = varint(&mut rest).ok_or(BROKEN)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = varint(&mut rest).ok_or(BROKEN)?,
            // Fields of a later version: skipped by their wire type.
            (_, 0) => drop(varint(&mut rest).ok_or(BROKEN)?),
            (_, 1) => rest = rest.get(8..).ok_or(BROKEN)?,
            (_, 2) => {
                let length = varint(&mut rest).and_then(|length| usize::try_from(length).ok()).ok_or(BROKEN)?;
                rest = rest.get(length..).ok_or(BROKEN)?;
            }
            (_, 5) => rest = rest.get(4..).ok_or(BROKEN)?,
            _ => return Err(BROKEN.to_owned()),
        }
    }
    match status {
        1 => Ok(()),
        2 => Err("NOT_SERVING".to_owned()),
        3 => Err("SERVICE_UNKNOWN".to_owned()),
        _ => Err("status unknown".to_owned()),
    }
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_final_status_is_found_past_interim_heads() {
        let of = |text: &str| final_status(text.as_bytes());
        assert_eq!(of("HTTP/1.1 204 No Content\r\n\r\n"), Ok(Some(StatusCode::NO_CONTENT)));
        assert_eq!(
            of("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 x\r\na: b\r\n\r\nrest").map(|s| s.map(|s| s.as_u16())),
            Ok(Some(503))
        );
        assert_eq!(of("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 2"), Ok(None));
        assert_eq!(of("HTTP/1.1 200 OK\r\na: b\r\n"), Ok(None));
        assert!(of("SSH-2.0-OpenSSH\r\n").is_err());
    }

    #[test]
    fn grpc_messages_are_written_and_read() {
        assert_eq!(&grpc_request("")[..], b"\0\0\0\0\0");
        assert_eq!(&grpc_request("a.B")[..], b"\0\0\0\0\x05\x0a\x03a.B");
        let long = "x".repeat(300);
        assert_eq!(&grpc_request(&long)[..8], b"\0\0\0\x01\x2f\x0a\xac\x02");
        assert_eq!(serving(b"\0\0\0\0\x02\x08\x01"), Ok(()));
        assert_eq!(serving(b"\0\0\0\0\x02\x08\x02"), Err("NOT_SERVING".to_owned()));
        assert!(serving(b"\0\0\0\0\0").is_err(), "UNKNOWN is the default");
        assert!(serving(b"\0\0\0\0\x09\x12\x02ab\x1d\x01\x02\x03\x04").is_err(), "other fields say nothing");
        assert_eq!(serving(b"\0\0\0\0\x0b\x12\x02ab\x1d\x01\x02\x03\x04\x08\x01"), Ok(()));
        for broken in [&b""[..], b"\0\0\0\0", b"\x01\0\0\0\x02\x08\x01", b"\0\0\0\0\x03\x08\x01", b"\0\0\0\0\x01\x08"] {
            assert!(serving(broken).is_err(), "{broken:?}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = serving(&bytes);
            let _ = final_status(&bytes);
        }
    }
}
