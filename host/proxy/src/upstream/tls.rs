//! TLS towards origins: verified by default, with the operating system's roots or the cluster's own.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::listener::tls::{certificates, private_key, provider, roots};
use crate::snapshot::UpstreamProtocol;
use crate::{CertificatePair, TlsError};

/// What a cluster's TLS is made of. PEM texts.
pub struct ClientTlsSpec {
    /// Sent as SNI and verified; without it the endpoint's IP address is verified and no SNI is sent.
    pub server_name: Option<String>,
    /// PEM roots; `None`: `system_roots`.
    pub ca: Option<Vec<u8>>,
    pub system_roots: Arc<RootCertStore>,
    pub certificate: Option<CertificatePair>,
    pub verify: bool,
    pub protocol: UpstreamProtocol,
}

/// A ready-made configuration. One per cluster, so that sessions are resumed within it only.
pub struct ClientTls {
    pub(crate) config: Arc<ClientConfig>,
    /// For HTTP/3 only.
    pub(crate) quic: Option<Arc<quinn::crypto::rustls::QuicClientConfig>>,
    pub(crate) server_name: Option<ServerName<'static>>,
}

impl ClientTls {
    pub fn new(spec: ClientTlsSpec) -> Result<Self, TlsError> {
        let server_name = match spec.server_name {
            None => None,
            Some(name) => Some(ServerName::try_from(name.clone()).map_err(|_| TlsError::ServerName(name))?),
        };
        let roots = match &spec.ca {
            None => spec.system_roots,
            Some(pem) => Arc::new(roots(pem)?),
        };
        if roots.is_empty() && spec.verify {
            return Err(TlsError::NoRoots);
        }
        let provider = provider();
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Rustls)?;
        let builder = if spec.verify {
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|error| TlsError::Verifier(error.to_string()))?;
            builder.dangerous().with_custom_certificate_verifier(verifier)
        } else {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        };
        let mut config = match &spec.certificate {
            None => builder.with_no_client_auth(),
            Some(pair) => builder
                .with_client_auth_cert(certificates(&pair.chain)?, private_key(&pair.key)?)
                .map_err(TlsError::Rustls)?,
        };
        config.alpn_protocols = match spec.protocol {
            UpstreamProtocol::Http1 => vec![b"http/1.1".to_vec()],
            UpstreamProtocol::Http2 => vec![b"h2".to_vec()],
            UpstreamProtocol::Http3 => vec![b"h3".to_vec()],
            UpstreamProtocol::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        let quic = match spec.protocol {
            UpstreamProtocol::Http3 => {
                let quic = quinn::crypto::rustls::QuicClientConfig::try_from(config.clone())
                    .map_err(|error| TlsError::Verifier(error.to_string()))?;
                Some(Arc::new(quic))
            }
            _ => None,
        };
        Ok(Self { config: Arc::new(config), quic, server_name })
    }
}

/// For `verify = false`: any certificate will do, but the peer must hold its key.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
