//! TLS for clients: certificates and what is asked of clients by SNI, ALPN, tickets that every worker can open.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{Acceptor, WebPkiClientVerifier};
use rustls::{ProtocolVersion, RootCertStore, ServerConfig};
use thiserror::Error;
use tokio::net::TcpStream;

use self::names::{ByName, Names};
use self::quic_by_name::QuicByName;
use crate::stream::Transport;
use crate::timer::{Deadline, Timers};

mod names;
mod quic_by_name;

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

/// PEM roots that client certificates must lead to, and whether there must be one.
pub type ClientPolicy = (Vec<u8>, ClientAuth);

/// A certificate, and what is asked of the clients of its names.
#[derive(Clone, Eq, PartialEq)]
pub struct NamedCertificate {
    pub pair: CertificatePair,
    /// DNS names and wildcards that it serves; all of those in it where this is empty.
    pub names: Vec<String>,
    /// `None`: clients are asked for no certificate.
    pub client: Option<ClientPolicy>,
}

/// What a listener's TLS is made of.
#[derive(Eq, PartialEq)]
pub struct ServerTlsSpec {
    /// By SNI; the first is the default.
    pub certificates: Vec<NamedCertificate>,
    /// Only TLS 1.3 where set; else 1.2 and 1.3.
    pub tls13_only: bool,
    pub http1: bool,
    pub http2: bool,
    pub http3: bool,
    /// Early data is taken, over HTTP/3.
    pub early_data: Option<Remembered>,
}

/// What clients remember of a connection and hold the next one to from its first byte. With other values none of what they
/// hold may open early data (RFC 9000, section 7.4.1; RFC 9114, section 7.2.4.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Remembered {
    pub max_streams: u32,
    pub max_header_bytes: usize,
}

/// Sessions kept for clients that may come back with early data, of a listener's workers together. The oldest goes first;
/// its client makes a full handshake.
const SESSIONS: usize = 32 * 1024;

/// When a certificate ends.
#[derive(Clone, Debug)]
pub struct Expiry {
    /// The first DNS name in it.
    pub name: String,
    /// Seconds since 1970.
    pub not_after: i64,
}

/// Ready-made configurations. One for each policy that names have for client certificates, so that no ticket from under
/// one opens a session under another (RFC 8446, section 4.6.1; conduct "TLS termination").
pub struct ServerTls {
    spec: ServerTlsSpec,
    names: Arc<Names>,
    /// Whether clients are asked for a certificate, by policy.
    asks: Vec<bool>,
    tcp: Vec<Arc<ServerConfig>>,
    pub(crate) quic: Option<Arc<dyn quinn::crypto::ServerConfig>>,
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
    #[error("{0:?} is not among the names of the certificate")]
    NotItsName(String),
    #[error("two certificates name {0:?} and differ in client_ca or client_auth; tell them apart with names")]
    TwoPolicies(String),
    #[error("{0:?} is no DNS name or IP address")]
    ServerName(String),
    #[error("there are no roots to verify against; name them with ca")]
    NoRoots,
    #[error("early_data with client_ca: who asks is not known before the handshake is complete")]
    EarlyUnknown,
    #[error("early_data without http3: it is taken over QUIC only")]
    EarlyOverTcp,
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

/// Roots from PEM text, at least one.
pub fn roots(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(TlsError::Rustls)?;
    }
    Ok(roots)
}

pub(crate) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| TlsError::NoKey)
}

impl ServerTls {
    pub fn new(spec: ServerTlsSpec) -> Result<Self, TlsError> {
        let mut policies: Vec<Option<&ClientPolicy>> = Vec::new();
        let mut chosen = Vec::new();
        for certificate in &spec.certificates {
            let client = certificate.client.as_ref();
            let known = policies.iter().position(|policy| *policy == client);
            chosen.push(known.unwrap_or(policies.len()));
            if known.is_none() {
                policies.push(client);
            }
        }
        let names = Arc::new(Names::new(&spec.certificates, &chosen)?);
        if spec.early_data.is_some() && policies.iter().any(Option::is_some) {
            return Err(TlsError::EarlyUnknown);
        }
        if spec.early_data.is_some() && !spec.http3 {
            return Err(TlsError::EarlyOverTcp);
        }
        let by_policy = |quic| {
            let configs = policies.iter().enumerate().map(|(policy, client)| {
                let resolver = ByName { names: names.clone(), policy };
                config(&spec, *client, resolver, quic).map(Arc::new)
            });
            configs.collect::<Result<Vec<_>, _>>()
        };
        let tcp = by_policy(false)?;
        let quic = if spec.http3 { Some(quic(&names, by_policy(true)?)?) } else { None };
        let asks = policies.iter().map(Option::is_some).collect();
        Ok(Self { names, asks, tcp, quic, spec })
    }

    /// When each of its certificates ends, in the order of the configuration.
    pub fn expiries(&self) -> &[Expiry] {
        &self.names.expiries
    }

    pub(crate) fn takes_early_data(&self) -> bool {
        self.spec.early_data.is_some()
    }

    /// Whether it is what `spec` would give: then it stays over a reload, and so do the tickets that clients hold.
    pub fn is_of(&self, spec: &ServerTlsSpec) -> bool {
        self.spec == *spec
    }

    /// Whether a connection whose ClientHello named `server_name` may carry requests for `host`: that very name, or one
    /// that its certificate stands for too (RFC 9110, section 4.3.4; RFC 9113, section 9.1.1). A client that named
    /// nothing had nothing to choose from, but was asked for no other certificate than the default's clients are.
    pub(crate) fn covers(&self, server_name: Option<&str>, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        let Some(name) = server_name else { return self.asked_as(None, host) };
        name.strip_suffix('.').unwrap_or(name) == host || self.names.same_certificate(name, host)
    }

    /// Whether clients of `host` need show nothing, or what the handshake for `server_name` asked for.
    pub(crate) fn asked_as(&self, server_name: Option<&str>, host: &str) -> bool {
        let wanted = self.names.serving(Some(host)).policy;
        !self.asks[wanted] || wanted == self.names.serving(server_name).policy
    }
}

/// What quinn takes. The session of rustls' own where all names ask the same.
fn quic(names: &Arc<Names>, configs: Vec<Arc<ServerConfig>>) -> Result<Arc<dyn quinn::crypto::ServerConfig>, TlsError> {
    let convert = |config: Arc<ServerConfig>| {
        let config = quinn::crypto::rustls::QuicServerConfig::try_from(config);
        config.map(Arc::new).map_err(|error| TlsError::Verifier(error.to_string()))
    };
    let mut configs = configs.into_iter().map(convert).collect::<Result<Vec<_>, _>>()?;
    match configs.len() {
        1 => Ok(configs.remove(0)),
        _ => Ok(Arc::new(QuicByName { names: names.clone(), configs })),
    }
}

fn config(
    spec: &ServerTlsSpec,
    client: Option<&ClientPolicy>,
    resolver: ByName,
    quic: bool,
) -> Result<ServerConfig, TlsError> {
    let versions: &[_] = if spec.tls13_only || quic {
        &[&rustls::version::TLS13]
    } else {
        &[&rustls::version::TLS13, &rustls::version::TLS12]
    };
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(TlsError::Rustls)?;
    let builder = match client {
        None => builder.with_no_client_auth(),
        Some((pem, auth)) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(pem)?), provider);
            let verifier = match auth {
                ClientAuth::Required => verifier,
                ClientAuth::Optional => verifier.allow_unauthenticated(),
            };
            let verifier = verifier.build().map_err(|error| TlsError::Verifier(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = if quic {
        vec![b"h3".to_vec()]
    } else {
        let offered = [(spec.http2, &b"h2"[..]), (spec.http1, b"http/1.1")];
        offered.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.to_vec()).collect()
    };
    if quic && spec.early_data.is_some() {
        // Kept here, shared by the workers, and good for one use: so early data is taken at most once (RFC 8446, section
        // 8.1). The size is the one that QUIC knows (RFC 9001, section 4.6.1).
        config.session_storage = rustls::server::ServerSessionMemoryCache::new(SESSIONS);
        config.max_early_data_size = u32::MAX;
    } else {
        // Stateless and rotated, and one for all workers: a client may come back to any of them.
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(TlsError::Rustls)?;
    }
    config.send_tls13_tickets = 1;
    Ok(config)
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

/// Runs a handshake. Called inside the connection's own task, so that a slow client delays nobody. Of a connection whose
/// ClientHello was looked at, its bytes are `heard`, with the name in it.
pub(crate) async fn accept(
    tcp: TcpStream,
    heard: (Bytes, Option<ByteString>),
    tls: &ServerTls,
    timeout: Duration,
    timers: &Timers,
) -> Result<Accepted, HandshakeError> {
    let mut deadline = Deadline::after(timers, Some(timeout));
    let (bytes, name) = heard;
    let handshake = async {
        if !bytes.is_empty() {
            // Should rustls read another name in it than we did, the resolver refuses: see `ByName`.
            let policy = tls.names.serving(name.as_deref()).policy;
            let acceptor = tokio_rustls::TlsAcceptor::from(tls.tcp[policy].clone());
            return acceptor.accept_with(tcp, |session| feed(session, &bytes)).await;
        }
        let hello = tokio_rustls::LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
        let policy = tls.names.serving(hello.client_hello().server_name()).policy;
        hello.into_stream(tls.tcp[policy].clone()).await
    };
    let stream = tokio::select! {
        stream = handshake => stream?,
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

/// Gives a session what was read before it began. An error stays with the session: its handshake ends with it, and an alert.
fn feed(session: &mut rustls::ServerConnection, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let taken = session.read_tls(&mut bytes);
        if session.process_new_packets().is_err() || !matches!(taken, Ok(1..)) {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(names: &[&str]) -> CertificatePair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let signed = rcgen::generate_simple_self_signed(names).expect("a certificate");
        CertificatePair { chain: signed.cert.pem().into_bytes(), key: signed.signing_key.serialize_pem().into_bytes() }
    }

    fn named(names: &[&str], client: Option<&str>) -> NamedCertificate {
        let client = client.map(|name| (pair(&[name]).chain, ClientAuth::Required));
        NamedCertificate { pair: pair(names), names: Vec::new(), client }
    }

    fn spec(certificates: Vec<NamedCertificate>) -> ServerTlsSpec {
        ServerTlsSpec { certificates, tls13_only: false, http1: true, http2: true, http3: true, early_data: None }
    }

    #[test]
    fn names_are_found_exactly_by_wildcard_or_not_at_all() {
        let listed = [named(&["default.example"], None), named(&["A.example", "*.b.example"], None)];
        let names = Names::new(&listed, &[0, 0]).expect("certificates");
        assert!(names.exact.contains_key("a.example"));
        assert!(names.wildcards.contains_key("b.example"));
        assert!(!Arc::ptr_eq(&names.exact["a.example"], &names.default));
        // Conduct "TLS termination": a connection for one name carries another only where its certificate has both.
        assert!(names.same_certificate("a.example", "x.b.example"));
        assert!(names.same_certificate("unknown.example", "default.example"));
        assert!(!names.same_certificate("a.example", "default.example"));
        assert!(!names.same_certificate("a.example", "unknown.example"));
    }

    /// Conduct "TLS termination": no handshake for one name reaches another that asks for more, nor one without a name.
    #[test]
    fn a_name_with_client_certificates_is_reached_by_its_own_handshake_only() {
        let wildcard = named(&["*.w.example"], None);
        let mut secret = NamedCertificate { names: vec!["Secret.w.example".to_owned()], ..wildcard.clone() };
        secret.client = named(&[], Some("roots")).client;
        let tls = ServerTls::new(spec(vec![wildcard, secret.clone()])).expect("two policies");
        assert_eq!(tls.tcp.len(), 2);
        assert!(tls.covers(Some("secret.w.example"), "secret.w.example"));
        assert!(tls.covers(Some("a.w.example"), "b.w.example"));
        for name in [None, Some("a.w.example"), Some("unknown.test")] {
            assert!(!tls.covers(name, "secret.w.example"), "{name:?}");
            assert!(!tls.covers(name, "secret.w.example."), "{name:?}");
            assert!(!tls.asked_as(name, "secret.w.example"), "{name:?}");
        }
        assert!(!tls.covers(Some("secret.w.example"), "a.w.example"));
        assert!(tls.covers(None, "a.w.example"));
        // The default's clients are asked as they are.
        let tls = ServerTls::new(spec(vec![secret])).expect("one policy");
        assert!(tls.covers(None, "secret.w.example"));
    }

    /// RFC 8470, section 3: a client that is to show who it is has not done so yet.
    #[test]
    fn early_data_is_for_listeners_that_ask_nobody_who_it_is_and_speak_http3() {
        let remembered = Some(Remembered { max_streams: 100, max_header_bytes: 16_384 });
        let early = |client, http3| {
            let named = named(&["a.example"], client);
            ServerTls::new(ServerTlsSpec { http3, early_data: remembered, ..spec(vec![named]) }).err()
        };
        assert!(early(None, true).is_none());
        assert!(matches!(early(Some("roots"), true), Some(TlsError::EarlyUnknown)));
        assert!(matches!(early(None, false), Some(TlsError::EarlyOverTcp)));
    }

    #[test]
    fn names_must_be_the_certificates_and_have_one_policy() {
        let open = named(&["a.example", "*.b.example"], None);
        let with = |names: &[&str], client: Option<ClientPolicy>| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            NamedCertificate { names, client, ..open.clone() }
        };
        let closed = named(&[], Some("roots")).client;
        let built = |listed: Vec<NamedCertificate>| ServerTls::new(spec(listed)).err();
        assert!(built(vec![with(&["a.example"], None), with(&["*.b.example"], closed.clone())]).is_none());
        assert!(built(vec![with(&[], None), with(&["x.b.example"], closed.clone())]).is_none());
        let error = built(vec![with(&[], None), with(&["a.example"], closed)]);
        assert!(matches!(error, Some(TlsError::TwoPolicies(name)) if name == "a.example"));
        for strange in ["c.example", "*.example", "b.example", "x.y.b.example", "junk junk"] {
            let error = built(vec![with(&[strange], None)]);
            assert!(matches!(error, Some(TlsError::NotItsName(name)) if name == strange));
        }
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let (one, other) = (pair(&["a.example"]), pair(&["b.example"]));
        let built = |chain: &[u8], key: &[u8]| {
            let pair = CertificatePair { chain: chain.to_vec(), key: key.to_vec() };
            ServerTls::new(spec(vec![NamedCertificate { pair, names: Vec::new(), client: None }]))
        };
        let wrong = |chain: &[u8], key: &[u8]| built(chain, key).err().expect("refused");
        assert!(matches!(wrong(b"", &one.key), TlsError::NoCertificate));
        assert!(matches!(wrong(&one.chain, b"junk"), TlsError::NoKey));
        assert!(matches!(wrong(&one.chain, &other.key), TlsError::KeyMismatch));
        assert!(built(&one.chain, &one.key).is_ok_and(|tls| tls.quic.is_some()));
    }
}
