//! The demo's clients, one for each version of HTTP.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, ensure};
use bytes::{Buf, Bytes};
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// Asks the gateway at `edge`, trusting its throwaway certificate and nothing else.
pub(crate) struct Client {
    edge: SocketAddr,
    roots: Arc<rustls::RootCertStore>,
}

impl Client {
    pub(crate) fn new(edge: SocketAddr, certificate: &CertificateDer<'static>) -> anyhow::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.clone())?;
        Ok(Self { edge, roots: Arc::new(roots) })
    }

    fn tls(&self, alpn: &[u8]) -> anyhow::Result<rustls::ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(config)
    }

    /// A GET with these fields.
    pub(crate) async fn get(&self, version: Version, path: &str, fields: &[(&str, &str)]) -> anyhow::Result<Answer> {
        let mut request = Request::builder().uri(format!("https://localhost:{}{path}", self.edge.port()));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        if version == Version::HTTP_3 {
            return self.http3(request.body(())?).await;
        }
        if version == Version::HTTP_11 {
            request = request.header("host", format!("localhost:{}", self.edge.port()));
        }
        let request = request.body(Empty::<Bytes>::new())?;
        let http2 = version == Version::HTTP_2;
        let connector =
            tokio_rustls::TlsConnector::from(Arc::new(self.tls(if http2 { b"h2" } else { b"http/1.1" })?));
        let tcp = tokio::net::TcpStream::connect(self.edge).await?;
        let stream = connector.connect(ServerName::try_from("localhost")?, tcp).await?;
        let response = if http2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        };
        ensure!(response.version() == version, "the answer came in {:?}", response.version());
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok(Answer { status, body })
    }

    async fn http3(&self, request: Request<()>) -> anyhow::Result<Answer> {
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(self.tls(b"h3")?)?;
        let mut endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        let connection = endpoint.connect(self.edge, "localhost")?.await.context("no QUIC connection")?;
        let (mut driver, mut sender) = h3::client::new(h3_quinn::Connection::new(connection)).await?;
        let driving = tokio::spawn(async move {
            // Ends with the connection, whose end is ours.
            std::future::poll_fn(|cx| driver.poll_close(cx)).await;
        });
        let mut stream = sender.send_request(request).await?;
        // A server that needs no more of a request may end it, and its response counts (RFC 9114, section 4.1).
        let _ = stream.finish().await;
        let response = stream.recv_response().await?;
        let mut body = Vec::new();
        while let Some(mut data) = stream.recv_data().await? {
            body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
        driving.abort();
        endpoint.close(0_u32.into(), b"done");
        Ok(Answer { status: response.status(), body: body.into() })
    }
}
