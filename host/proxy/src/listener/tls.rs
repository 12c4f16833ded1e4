//! TLS for clients: certificates by SNI, ALPN, client certificates, tickets that every worker can open.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use rustc_hash::FxHashMap;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ProtocolVersion, RootCertStore, ServerConfig};
use thiserror::Error;
use tokio::net::TcpStream;

use crate::stream::Transport;
use crate::timer::{Deadline, Timers};

/// PEM texts of one certificate chain and its key.
#[derive(Clone, Eq, PartialEq)]
pub struct CertificatePair {
    pub chain: Vec<u8>,
    pub key: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClientAuth {
    Required,
    Optional,
}

/// What a listener's TLS is made of.
#[derive(Eq, PartialEq)]
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

/// When a certificate ends.
#[derive(Clone, Debug)]
pub struct Expiry {
    /// The first DNS name in it.
    pub name: String,
    /// Seconds since 1970.
    pub not_after: i64,
}

/// Ready-made configurations: one for TCP, one for QUIC when HTTP/3 is served.
pub struct ServerTls {
    spec: ServerTlsSpec,
    names: Arc<BySni>,
    pub(crate) tcp: Arc<ServerConfig>,
    pub(crate) quic: Option<Arc<quinn::crypto::rustls::QuicServerConfig>>,
}

#[derive(Debug, Error)]
pub enum TlsError {
    #[error("there is no certificate in it; PEM text with BEGIN CERTIFICATE is wanted")]
    NoCertificate,
    #[error("it is not PEM text: {0}")]
    Pem(String),
    #[error("there is no private key in it; PEM text with BEGIN PRIVATE KEY is wanted")]
    NoKey,
    #[error("the key does not belong to the certificate")]
    KeyMismatch,
    #[error("{0:?} is no DNS name or IP address")]
    ServerName(String),
    #[error("there are no roots to verify against; name them with ca")]
    NoRoots,
    #[error("{0}")]
    Verifier(String),
    #[error(transparent)]
    Rustls(rustls::Error),
}

/// The one cryptography provider, passed explicitly: nothing depends on a process-wide default.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())).clone()
}

pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| TlsError::Pem(error.to_string()))?;
    if chain.is_empty() { Err(TlsError::NoCertificate) } else { Ok(chain) }
}

pub(crate) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| TlsError::NoKey)
}

impl ServerTls {
    pub fn new(spec: ServerTlsSpec) -> Result<Self, TlsError> {
        let resolver = Arc::new(BySni::new(&spec.certificates)?);
        let names = resolver.clone();
        let tcp = config(&spec, resolver.clone(), false)?;
        let quic = if spec.http3 {
            let config = config(&spec, resolver, true)?;
            let quic = quinn::crypto::rustls::QuicServerConfig::try_from(config)
                .map_err(|error| TlsError::Verifier(error.to_string()))?;
            Some(Arc::new(quic))
        } else {
            None
        };
        Ok(Self { spec, names, tcp: Arc::new(tcp), quic })
    }

    /// When each of its certificates ends, in the order of the configuration.
    pub fn expiries(&self) -> &[Expiry] {
        &self.names.expiries
    }

    /// Whether it is what `spec` would give: then it stays over a reload, and so do the tickets that clients hold.
    pub fn is_of(&self, spec: &ServerTlsSpec) -> bool {
        self.spec == *spec
    }

    /// Whether a connection whose ClientHello named `server_name` may carry requests for `host`: that very name, or one
    /// that its certificate stands for too (RFC 9110, section 4.3.4; RFC 9113, section 9.1.1). A client that named
    /// nothing had nothing to choose from.
    pub(crate) fn covers(&self, server_name: Option<&str>, host: &str) -> bool {
        let Some(name) = server_name else { return true };
        let host = host.strip_suffix('.').unwrap_or(host);
        name.strip_suffix('.').unwrap_or(name) == host || self.names.same_certificate(name, host)
    }
}

fn config(spec: &ServerTlsSpec, resolver: Arc<BySni>, quic: bool) -> Result<ServerConfig, TlsError> {
    let versions: &[_] = if spec.tls13_only || quic {
        &[&rustls::version::TLS13]
    } else {
        &[&rustls::version::TLS13, &rustls::version::TLS12]
    };
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(TlsError::Rustls)?;
    let builder = match &spec.client_ca {
        None => builder.with_no_client_auth(),
        Some((pem, auth)) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(pem)? {
                roots.add(certificate).map_err(TlsError::Rustls)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match auth {
                ClientAuth::Required => verifier,
                ClientAuth::Optional => verifier.allow_unauthenticated(),
            };
            let verifier = verifier.build().map_err(|error| TlsError::Verifier(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = if quic {
        vec![b"h3".to_vec()]
    } else {
        let offered = [(spec.http2, &b"h2"[..]), (spec.http1, b"http/1.1")];
        offered.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.to_vec()).collect()
    };
    // Stateless and rotated, and one for all workers: a client may come back to any of them.
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(TlsError::Rustls)?;
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// Finds the certificate for a name.
#[derive(Debug)]
struct BySni {
    exact: FxHashMap<String, Arc<CertifiedKey>>,
    /// `example.com` for `*.example.com`.
    wildcards: FxHashMap<String, Arc<CertifiedKey>>,
    default: Arc<CertifiedKey>,
    expiries: Vec<Expiry>,
}

impl BySni {
    fn new(pairs: &[CertificatePair]) -> Result<Self, TlsError> {
        let (mut exact, mut wildcards) = (FxHashMap::default(), FxHashMap::default());
        let (mut default, mut expiries) = (None, Vec::new());
        for pair in pairs {
            let chain = certificates(&pair.chain)?;
            let key = private_key(&pair.key)?;
            let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch,
                error => TlsError::Rustls(error),
            })?;
            let certified = Arc::new(certified);
            let names = dns_names(&certified)?;
            expiries.extend(not_after(&certified).map(|not_after| {
                let name = names.first().cloned().unwrap_or_default();
                Expiry { name, not_after }
            }));
            for name in names {
                // Of two for a name the first listed serves.
                match name.strip_prefix("*.") {
                    Some(suffix) => wildcards.entry(suffix.to_owned()).or_insert_with(|| certified.clone()),
                    None => exact.entry(name).or_insert_with(|| certified.clone()),
                };
            }
            default.get_or_insert(certified);
        }
        let default = default.ok_or(TlsError::NoCertificate)?;
        Ok(Self { exact, wildcards, default, expiries })
    }
}

/// Seconds since 1970; `None` for a certificate that says it in a way nobody else does.
fn not_after(certified: &CertifiedKey) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certified.cert.first()?).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// The DNS names of an end-entity certificate, lower case.
fn dns_names(certified: &CertifiedKey) -> Result<Vec<String>, TlsError> {
    let end_entity = certified.end_entity_cert().map_err(TlsError::Rustls)?;
    let parsed = webpki::EndEntityCert::try_from(end_entity).map_err(|error| TlsError::Verifier(error.to_string()))?;
    Ok(parsed.valid_dns_names().map(str::to_ascii_lowercase).collect())
}

impl BySni {
    /// The certificate that names this host, which is lower case and has no trailing dot.
    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        self.exact.get(name).or_else(|| {
            let (_, suffix) = name.split_once('.')?;
            self.wildcards.get(suffix)
        })
    }

    /// Whether the certificate served for `server_name` names `host` too.
    fn same_certificate(&self, server_name: &str, host: &str) -> bool {
        let served = self.find(server_name).unwrap_or(&self.default);
        self.find(host).is_some_and(|wanted| Arc::ptr_eq(served, wanted))
    }
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let Some(name) = hello.server_name() else { return Some(self.default.clone()) };
        let name = name.to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        Some(self.find(name).unwrap_or(&self.default).clone())
    }
}

/// What a handshake brought.
pub(crate) struct Accepted {
    pub(crate) transport: Transport,
    pub(crate) version: Option<&'static str>,
    pub(crate) server_name: Option<ByteString>,
    pub(crate) alpn: Option<ByteString>,
    /// The client's own, and the rest of its chain.
    pub(crate) client_certificate: (Option<Bytes>, Box<[Bytes]>),
}

/// The client's certificate and the rest of its chain, as a verified handshake brought them.
pub(super) fn client_certificate(certificates: Option<&[CertificateDer<'_>]>) -> (Option<Bytes>, Box<[Bytes]>) {
    let mut certificates = certificates.unwrap_or_default().iter().map(|der| Bytes::copy_from_slice(der));
    (certificates.next(), certificates.collect())
}

#[derive(Debug, Error)]
pub(crate) enum HandshakeError {
    #[error("not finished within {0:?}")]
    Late(Duration),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Runs a handshake. Called inside the connection's own task, so that a slow client delays nobody.
pub(crate) async fn accept(
    tcp: TcpStream,
    tls: &ServerTls,
    timeout: Duration,
    timers: &Timers,
) -> Result<Accepted, HandshakeError> {
    let mut deadline = Deadline::after(timers, Some(timeout));
    let acceptor = tokio_rustls::TlsAcceptor::from(tls.tcp.clone());
    let stream = tokio::select! {
        stream = acceptor.accept(tcp) => stream?,
        () = deadline.elapsed() => return Err(HandshakeError::Late(timeout)),
    };
    let session = stream.get_ref().1;
    let text = |bytes: &[u8]| ByteString::try_from(bytes).ok();
    let version = session.protocol_version().and_then(|version| match version {
        ProtocolVersion::TLSv1_2 => Some("TLSv1.2"),
        ProtocolVersion::TLSv1_3 => Some("TLSv1.3"),
        _ => None,
    });
    let server_name = session.server_name().map(|name| name.to_ascii_lowercase().into());
    let alpn = session.alpn_protocol().and_then(text);
    let client_certificate = client_certificate(session.peer_certificates());
    Ok(Accepted { transport: Transport::ServerTls(Box::new(stream)), version, server_name, alpn, client_certificate })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(names: &[&str]) -> CertificatePair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let signed = rcgen::generate_simple_self_signed(names).expect("a certificate");
        CertificatePair { chain: signed.cert.pem().into_bytes(), key: signed.signing_key.serialize_pem().into_bytes() }
    }

    fn spec(certificates: Vec<CertificatePair>) -> ServerTlsSpec {
        ServerTlsSpec { certificates, tls13_only: false, client_ca: None, http1: true, http2: true, http3: true }
    }

    #[test]
    fn names_are_found_exactly_by_wildcard_or_not_at_all() {
        let resolver =
            BySni::new(&[pair(&["default.example"]), pair(&["A.example", "*.b.example"])]).expect("certificates");
        assert!(resolver.exact.contains_key("a.example"));
        assert!(resolver.wildcards.contains_key("b.example"));
        assert!(!Arc::ptr_eq(&resolver.exact["a.example"], &resolver.default));
        // Conduct "TLS termination": a connection for one name carries another only where its certificate has both.
        assert!(resolver.same_certificate("a.example", "x.b.example"));
        assert!(resolver.same_certificate("unknown.example", "default.example"));
        assert!(!resolver.same_certificate("a.example", "default.example"));
        assert!(!resolver.same_certificate("a.example", "unknown.example"));
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let (one, other) = (pair(&["a.example"]), pair(&["b.example"]));
        let wrong = |chain: &[u8], key: &[u8]| {
            let pair = CertificatePair { chain: chain.to_vec(), key: key.to_vec() };
            ServerTls::new(spec(vec![pair])).err().expect("refused")
        };
        assert!(matches!(wrong(b"", &one.key), TlsError::NoCertificate));
        assert!(matches!(wrong(&one.chain, b"junk"), TlsError::NoKey));
        assert!(matches!(wrong(&one.chain, &other.key), TlsError::KeyMismatch));
        assert!(ServerTls::new(spec(vec![one])).is_ok_and(|tls| tls.quic.is_some()));
    }
}
