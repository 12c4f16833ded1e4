//! TLS for clients: certificates by SNI, ALPN, client certificates.
use std::sync::Arc;

use thiserror::Error;

/// PEM texts of one certificate chain and its key.
pub struct CertificatePair { pub chain: Vec<u8>, pub key: Vec<u8> }

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClientAuth { Required, Optional }

/// What a listener's TLS is made of.
pub struct ServerTlsSpec {
    /// By SNI (DNS names and wildcards of the certificate); the first is the default.
    pub certificates: Vec<CertificatePair>,
    /// Only TLS 1.3 where set; else 1.2 and 1.3.
    pub tls13_only: bool,
    /// PEM roots that client certificates must lead to.
    pub client_ca: Option<(Vec<u8>, ClientAuth)>,
    pub http1: bool,
    pub http2: bool,
    pub http3: bool,
}

/// Ready-made configurations: one for TCP, one for QUIC when HTTP/3 is served.
pub struct ServerTls {
    pub(crate) tcp: Arc<rustls::ServerConfig>,
    pub(crate) quic: Option<Arc<quinn::crypto::rustls::QuicServerConfig>>,
}

#[derive(Debug, Error)]
pub enum TlsError { #[error("{0}")] Invalid(String) }

impl ServerTls {
    pub fn new(_spec: ServerTlsSpec) -> Result<Self, TlsError> { unreachable!() }
}
