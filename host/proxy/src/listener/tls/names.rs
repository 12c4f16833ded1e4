//! Which certificate, and whose rules for client certificates, a name is served with.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::{Expiry, NamedCertificate, TlsError, certificates, private_key, provider};

/// What a name is served with.
#[derive(Debug)]
pub(super) struct Served {
    certified: Arc<CertifiedKey>,
    /// Of the listener's, which one a client is asked by.
    pub(super) policy: usize,
}

/// By name; whoever is not named gets the default.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) exact: FxHashMap<String, Arc<Served>>,
    /// `example.com` for `*.example.com`.
    pub(super) wildcards: FxHashMap<String, Arc<Served>>,
    pub(super) default: Arc<Served>,
    pub(super) expiries: Vec<Expiry>,
}

impl Names {
    /// `policies` are those of the certificates, in their order.
    pub(super) fn new(listed: &[NamedCertificate], policies: &[usize]) -> Result<Self, TlsError> {
        let (mut exact, mut wildcards) = (FxHashMap::default(), FxHashMap::default());
        let (mut default, mut expiries) = (None, Vec::new());
        for (named, policy) in listed.iter().zip(policies) {
            let chain = certificates(&named.pair.chain)?;
            let key = private_key(&named.pair.key)?;
            let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch,
                error => TlsError::Rustls(error),
            })?;
            let names = names_of(&certified, &named.names)?;
            expiries.extend(not_after(&certified).map(|not_after| {
                let name = names.first().cloned().unwrap_or_default();
                Expiry { name, not_after }
            }));
            let served = Arc::new(Served { certified: Arc::new(certified), policy: *policy });
            for name in names {
                // Of two for a name the first listed serves.
                let first: &mut Arc<Served> = match name.strip_prefix("*.") {
                    Some(suffix) => wildcards.entry(suffix.to_owned()).or_insert_with(|| served.clone()),
                    None => exact.entry(name.clone()).or_insert_with(|| served.clone()),
                };
                // Never which certificate a client is asked for: whoever wrote the second meant it.
                if first.policy != *policy {
                    return Err(TlsError::TwoPolicies(name));
                }
            }
            default.get_or_insert(served);
        }
        let default = default.ok_or(TlsError::NoCertificate)?;
        Ok(Self { exact, wildcards, default, expiries })
    }

    /// What names this host, which is lower case and has no trailing dot.
    fn find(&self, name: &str) -> Option<&Arc<Served>> {
        self.exact.get(name).or_else(|| {
            let (_, suffix) = name.split_once('.')?;
            self.wildcards.get(suffix)
        })
    }

    /// What serves a client that says this name, in any case, or none.
    pub(super) fn serving(&self, name: Option<&str>) -> &Arc<Served> {
        let found = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            self.find(name.strip_suffix('.').unwrap_or(&name))
        });
        found.unwrap_or(&self.default)
    }

    /// Whether the certificate served for `server_name` names `host` too.
    pub(super) fn same_certificate(&self, server_name: &str, host: &str) -> bool {
        let served = self.serving(Some(server_name));
        self.find(host).is_some_and(|wanted| Arc::ptr_eq(served, wanted))
    }
}

/// Seconds since 1970; `None` for a certificate that says it in a way nobody else does.
fn not_after(certified: &CertifiedKey) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certified.cert.first()?).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// The names of an end-entity certificate, lower case; or those of them that it is to serve.
fn names_of(certified: &CertifiedKey, wanted: &[String]) -> Result<Vec<String>, TlsError> {
    let end_entity = certified.end_entity_cert().map_err(TlsError::Rustls)?;
    let parsed = webpki::EndEntityCert::try_from(end_entity).map_err(|error| TlsError::Verifier(error.to_string()))?;
    let own: Vec<String> = parsed.valid_dns_names().map(str::to_ascii_lowercase).collect();
    if wanted.is_empty() {
        return Ok(own);
    }
    let wanted = wanted.iter().map(|name| {
        let name = name.to_ascii_lowercase();
        let valid = |name: &ServerName<'_>| parsed.verify_is_valid_for_subject_name(name).is_ok();
        // A wildcard is no name of a server: it stands in the certificate as it is written, or not at all.
        let is_of = own.contains(&name) || ServerName::try_from(name.as_str()).is_ok_and(|name| valid(&name));
        if is_of { Ok(name) } else { Err(TlsError::NotItsName(name)) }
    });
    wanted.collect()
}

/// Finds certificates for handshakes under one policy.
#[derive(Debug)]
pub(super) struct ByName {
    pub(super) names: Arc<Names>,
    pub(super) policy: usize,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let served = self.names.serving(hello.server_name());
        // Were a handshake ever begun under the rules of another name, it ends here.
        (served.policy == self.policy).then(|| served.certified.clone())
    }
}
