//! TLS towards origins: verified by default.
/// What a cluster's TLS is made of. PEM texts.
pub struct ClientTlsSpec {
    /// Sent as SNI and verified; without it the endpoint's IP address is verified and no SNI sent.
    pub server_name: Option<String>,
    /// PEM roots; `None`: the roots given in `system_roots`.
    pub ca: Option<Vec<u8>>,
    pub system_roots: std::sync::Arc<rustls::RootCertStore>,
    pub certificate: Option<crate::CertificatePair>,
    pub verify: bool,
    pub alpn: crate::snapshot::UpstreamProtocol,
}
/// A ready-made configuration.
pub struct ClientTls;
impl ClientTls {
    pub fn new(_spec: ClientTlsSpec) -> Result<Self, crate::TlsError> { unreachable!() }
}
