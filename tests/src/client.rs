//! Clients of all three versions of HTTP, and one that sends raw bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderMap, Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// No exchange of a test takes longer.
const LONGEST: Duration = Duration::from_secs(60);

/// A response, whole.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

/// How to speak to the gateway. Each request has a connection of its own.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    version: Version,
    tls: Option<(Arc<rustls::ClientConfig>, String)>,
    authority: Option<String>,
}

impl Client {
    pub fn http1(address: SocketAddr) -> Self {
        Self { address, version: Version::HTTP_11, tls: None, authority: None }
    }

    /// By prior knowledge.
    pub fn http2(address: SocketAddr) -> Self {
        Self { address, version: Version::HTTP_2, tls: None, authority: None }
    }

    pub fn tls(address: SocketAddr, version: Version, config: rustls::ClientConfig, name: &str) -> Self {
        Self { address, version, tls: Some((Arc::new(config), name.to_owned())), authority: None }
    }

    /// Asks for another authority than the one that TLS was told.
    pub fn authority(mut self, authority: &str) -> Self {
        self.authority = Some(authority.to_owned());
        self
    }

    pub async fn get(&self, path: &str) -> Result<Answer, Error> {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    /// Sends a whole request, and takes the whole response.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        fields: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, Error> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let named = self.tls.as_ref().map_or("example.com", |(_, name)| name);
        let host = self.authority.as_deref().unwrap_or(named);
        let mut request = Request::builder().method(method);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let own_host = fields.iter().any(|(name, _)| *name == "host");
        let request = if self.version == Version::HTTP_11 {
            let request = if own_host { request } else { request.header("host", host) };
            request.uri(path)
        } else {
            request.uri(format!("{scheme}://{host}{path}"))
        };
        let work = self.exchange(request.body(Full::new(body.into()))?);
        tokio::time::timeout(LONGEST, work).await?
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, Error> {
        if self.version == Version::HTTP_3 {
            return self.http3(request).await;
        }
        let tcp = TcpStream::connect(self.address).await?;
        match &self.tls {
            None => self.over(TokioIo::new(tcp), request).await,
            Some((config, name)) => {
                let connector = tokio_rustls::TlsConnector::from(config.clone());
                let stream = connector.connect(ServerName::try_from(name.clone())?, tcp).await?;
                self.over(TokioIo::new(stream), request).await
            }
        }
    }

    async fn over<I>(&self, io: I, request: Request<Full<Bytes>>) -> Result<Answer, Error>
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let response = if self.version == Version::HTTP_2 {
            let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        };
        let (parts, body) = response.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        Ok(Answer {
            status: parts.status,
            version: parts.version,
            headers: parts.headers,
            body: body.to_bytes(),
            trailers,
        })
    }

    async fn http3(&self, request: Request<Full<Bytes>>) -> Result<Answer, Error> {
        let (config, name) = self.tls.as_ref().expect("HTTP/3 has TLS");
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from((**config).clone())?;
        let mut endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        let connection = endpoint.connect(self.address, name)?.await?;
        let (mut driver, mut sender) = h3::client::new(h3_quinn::Connection::new(connection)).await?;
        let driving = tokio::spawn(async move {
            std::future::poll_fn(|cx| driver.poll_close(cx)).await;
        });
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let mut stream = sender.send_request(Request::from_parts(parts, ())).await?;
        // A server that needs no more of a request says so and answers (RFC 9114, section 4.1): what counts is its answer.
        let sent = async {
            if !body.is_empty() {
                stream.send_data(body).await?;
            }
            stream.finish().await
        };
        let sent = sent.await;
        let mut response = match stream.recv_response().await {
            Ok(response) => response,
            Err(error) => return Err(sent.err().unwrap_or(error).into()),
        };
        while response.status().is_informational() {
            response = stream.recv_response().await?;
        }
        let mut body = Vec::new();
        while let Some(mut data) = stream.recv_data().await? {
            body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
        let trailers = stream.recv_trailers().await?;
        driving.abort();
        endpoint.close(0_u32.into(), b"done");
        let (parts, ()) = response.into_parts();
        Ok(Answer {
            status: parts.status,
            version: Version::HTTP_3,
            headers: parts.headers,
            body: body.into(),
            trailers,
        })
    }
}

/// A connection for raw bytes.
pub struct RawClient(pub TcpStream);

impl RawClient {
    pub async fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.expect("a connection"))
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("sent");
    }

    /// Everything until the gateway closes; what came before a reset.
    pub async fn rest(&mut self) -> String {
        let mut all = Vec::new();
        let read = async {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = self.0.read(&mut piece).await {
                all.extend_from_slice(&piece[..count]);
            }
        };
        assert!(tokio::time::timeout(LONGEST, read).await.is_ok(), "the gateway keeps the connection open");
        String::from_utf8_lossy(&all).into_owned()
    }

    /// Up to and with `end`.
    pub async fn until(&mut self, end: &str) -> String {
        let mut all = Vec::new();
        let read = async {
            while !all.ends_with(end.as_bytes()) {
                match self.0.read_u8().await {
                    Ok(byte) => all.push(byte),
                    Err(_) => break,
                }
            }
        };
        assert!(tokio::time::timeout(LONGEST, read).await.is_ok(), "{end:?} does not come");
        String::from_utf8_lossy(&all).into_owned()
    }
}
