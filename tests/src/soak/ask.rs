//! One request and what is to come of it, over a connection of any version.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderMap, Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use super::origins::Paced;
use crate::origin::Body;

/// The name that the gateway's certificates have.
pub(super) const NAME: &str = "edge.example";

/// What a client sends.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Nothing,
    Whole(Bytes),
    /// In pieces of this size with pauses between them, of a length that is not told.
    Pieces(Bytes, usize, Duration),
}

/// What must come of it: nothing else will do.
#[derive(Clone, Debug)]
pub(super) enum Want {
    /// 200, and these bytes, whole.
    Bytes(Bytes),
    /// The origin's own answer.
    Status(u16),
    /// The gateway's answer, with this error in `Proxy-Status` (RFC 9209).
    Fault(u16, &'static str),
    /// 200, then a part, then an error: never a clean end.
    Cut,
}

#[derive(Clone, Debug)]
pub(super) struct Ask {
    /// What the table calls it.
    pub(super) name: &'static str,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) fields: Vec<(&'static str, String)>,
    pub(super) content: Content,
    /// Between two reads of the response.
    pub(super) pause: Duration,
    /// Leave once so many bytes came: what follows is nobody's.
    pub(super) leave: Option<usize>,
    pub(super) want: Want,
}

impl Ask {
    pub(super) fn get(name: &'static str, path: String, want: Want) -> Self {
        let (fields, pause) = (Vec::new(), Duration::ZERO);
        Self { name, method: Method::GET, path, fields, content: Content::Nothing, pause, leave: None, want }
    }
}

/// What came.
#[derive(Debug, Default)]
pub(super) struct Got {
    head: Option<(StatusCode, HeaderMap)>,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    error: Option<String>,
    left: bool,
}

impl Got {
    /// Whether it is what had to come; what is wrong if not.
    pub(super) fn judge(&self, ask: &Ask) -> Result<(), String> {
        let status = self.head.as_ref().map_or(0, |(status, _)| status.as_u16());
        let error = self.error.as_deref();
        let told = self.head.as_ref().and_then(|(_, headers)| headers.get("proxy-status"));
        let told = told.and_then(|value| value.to_str().ok()).unwrap_or("");
        let fine = match &ask.want {
            Want::Bytes(_) if self.left => status == 200,
            Want::Bytes(bytes) => {
                let length = || self.head.as_ref()?.1.get("content-length")?.to_str().ok()?.parse::<usize>().ok();
                let whole = match ask.method == Method::HEAD {
                    true => self.body.is_empty() && length() == Some(bytes.len()),
                    false => self.body == *bytes,
                };
                let called = ask.fields.iter().any(|(_, value)| value == "application/grpc");
                let ended = self.trailers.as_ref().is_some_and(|trailers| trailers.contains_key("grpc-status"));
                status == 200 && error.is_none() && whole && (!called || ended)
            }
            Want::Status(code) => status == *code && told.is_empty() && error.is_none(),
            Want::Fault(code, token) => status == *code && told.ends_with(&format!("error={token}")) && error.is_none(),
            // A reset may overtake the head on its own stream: HTTP/2 and HTTP/3 may then drop what waits to be sent.
            Want::Cut => {
                let reset = |error: &str| error.starts_with("http2 error") || error.starts_with("Remote reset");
                error.is_some_and(|error| status == 200 || (status == 0 && reset(error)))
            }
        };
        if fine {
            return Ok(());
        }
        let wanted = match &ask.want {
            Want::Bytes(bytes) => format!("200 and {} bytes", bytes.len()),
            other => format!("{other:?}"),
        };
        Err(format!(
            "{} {} wanted {wanted}; got {status} {told:?}, {} bytes, trailers {:?}, error {error:?}",
            ask.method,
            ask.path,
            self.body.len(),
            self.trailers
        ))
    }
}

/// A connection to the gateway.
pub(super) enum Session {
    Http1(http1::SendRequest<Body>),
    /// With the scheme that it is for (RFC 9113, section 8.3.1).
    Http2(http2::SendRequest<Body>, &'static str),
    Http3(h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>, Quic),
}

/// What an HTTP/3 connection lives on.
#[derive(Clone)]
pub(super) struct Quic {
    _endpoint: quinn::Endpoint,
    _driving: Arc<Driving>,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Session {
    /// Connects; in clear text without `tls`.
    pub(super) async fn open(
        address: SocketAddr,
        version: Version,
        tls: Option<Arc<rustls::ClientConfig>>,
    ) -> Result<Self, Failure> {
        if version == Version::HTTP_3 {
            let tls = tls.ok_or("HTTP/3 has TLS")?;
            return http3(address, &tls).await;
        }
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        match tls {
            None => over(TokioIo::new(tcp), version, "http").await,
            Some(config) => {
                let name = ServerName::try_from(NAME)?;
                let stream = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?;
                over(TokioIo::new(stream), version, "https").await
            }
        }
    }

    /// Another handle, where requests share a connection.
    pub(super) fn share(&self) -> Option<Self> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(sender, scheme) => Some(Self::Http2(sender.clone(), scheme)),
            Self::Http3(sender, quic) => Some(Self::Http3(sender.clone(), quic.clone())),
        }
    }

    /// Sends the request and takes what comes.
    pub(super) async fn ask(&mut self, ask: &Ask) -> Got {
        let mut got = Got::default();
        if let Err(error) = self.exchange(ask, &mut got).await {
            // With its causes: "http2 error" alone explains nothing.
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            got.error = Some(format!("{error}{cause}"));
        }
        got
    }

    async fn exchange(&mut self, ask: &Ask, got: &mut Got) -> Result<(), Failure> {
        let mut request = Request::builder().method(&ask.method);
        for (name, value) in &ask.fields {
            request = request.header(*name, value);
        }
        let request = match self {
            Self::Http1(_) => request.header("host", NAME).uri(&ask.path),
            Self::Http2(_, scheme) => request.uri(format!("{scheme}://{NAME}{}", ask.path)),
            Self::Http3(..) => request.uri(format!("https://{NAME}{}", ask.path)),
        };
        let response = match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request.body(content(&ask.content))?).await?
            }
            Self::Http2(sender, _) => {
                sender.ready().await?;
                sender.send_request(request.body(content(&ask.content))?).await?
            }
            Self::Http3(sender, _) => {
                let request = request.body(())?;
                return ask_http3(sender, request, ask, got).await;
            }
        };
        let (parts, mut body) = response.into_parts();
        got.head = Some((parts.status, parts.headers));
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) => got.body.extend_from_slice(&data),
                Err(frame) => got.trailers = frame.into_trailers().ok(),
            }
            if ask.leave.is_some_and(|most| got.body.len() >= most) {
                got.left = true;
                return Ok(());
            }
            if !ask.pause.is_zero() {
                tokio::time::sleep(ask.pause).await;
            }
        }
        Ok(())
    }
}

fn content(content: &Content) -> Body {
    match content {
        Content::Nothing => http_body_util::Empty::new().map_err(|never| match never {}).boxed(),
        Content::Whole(bytes) => Full::new(bytes.clone()).map_err(|never| match never {}).boxed(),
        Content::Pieces(bytes, size, pause) => Paced::new(pieces(bytes, *size), *pause, None).boxed(),
    }
}

fn pieces(bytes: &Bytes, size: usize) -> Vec<Bytes> {
    bytes.chunks(size).map(|piece| bytes.slice_ref(piece)).collect()
}

async fn over<I>(io: I, version: Version, scheme: &'static str) -> Result<Session, Failure>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    if version == Version::HTTP_2 {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        return Ok(Session::Http2(sender, scheme));
    }
    let (sender, connection) = http1::handshake(io).await?;
    tokio::spawn(connection);
    Ok(Session::Http1(sender))
}

async fn http3(address: SocketAddr, tls: &rustls::ClientConfig) -> Result<Session, Failure> {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls.clone())?;
    let mut endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    let connection = endpoint.connect(address, NAME)?.await?;
    let (mut driver, sender) = h3::client::new(h3_quinn::Connection::new(connection)).await?;
    let driving = tokio::spawn(async move {
        std::future::poll_fn(|cx| driver.poll_close(cx)).await;
    });
    Ok(Session::Http3(sender, Quic { _endpoint: endpoint, _driving: Arc::new(Driving(driving)) }))
}

async fn ask_http3(
    sender: &mut h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>,
    request: Request<()>,
    ask: &Ask,
    got: &mut Got,
) -> Result<(), Failure> {
    let stream = sender.send_request(request).await?;
    let (mut send, mut recv) = stream.split();
    let (pieces, pause) = match &ask.content {
        Content::Nothing => (Vec::new(), Duration::ZERO),
        Content::Whole(bytes) => (vec![bytes.clone()], Duration::ZERO),
        Content::Pieces(bytes, size, pause) => (pieces(bytes, *size), *pause),
    };
    let sending = async move {
        for piece in pieces {
            send.send_data(piece).await?;
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        send.finish().await
    };
    let receiving = async {
        let response = recv.recv_response().await?;
        got.head = Some((response.status(), response.headers().clone()));
        while let Some(mut data) = recv.recv_data().await? {
            got.body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
            if ask.leave.is_some_and(|most| got.body.len() >= most) {
                got.left = true;
                return Ok(());
            }
            if !ask.pause.is_zero() {
                tokio::time::sleep(ask.pause).await;
            }
        }
        got.trailers = recv.recv_trailers().await?;
        Ok::<(), Failure>(())
    };
    // A server that needs no more of a request says so and answers (RFC 9114, section 4.1): its answer counts.
    let (_, received) = tokio::join!(sending, receiving);
    received
}

struct Driving(tokio::task::JoinHandle<()>);

impl Drop for Driving {
    fn drop(&mut self) {
        self.0.abort();
    }
}
