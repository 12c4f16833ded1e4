//! The client's certificate for an upstream, in the fields of RFC 9440. Whatever a client sends under these names was taken
//! out: only this gateway has seen the handshake.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use tidegate_policy::ConnectionHead;

/// How much of it a route's upstream gets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ClientCertificate {
    #[default]
    Off,
    /// `Client-Cert`.
    Leaf,
    /// And `Client-Cert-Chain`.
    Chain,
}

const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
const CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");

/// Longest value of either field, in bytes: what is longer would be refused upstream with the whole request.
const MAX_VALUE: usize = 16 * 1024;

/// Both fields of a connection, made once.
#[derive(Debug, Default)]
pub(crate) struct CertificateFields {
    leaf: Option<HeaderValue>,
    chain: Option<HeaderValue>,
}

impl CertificateFields {
    pub(crate) fn of(connection: &ConnectionHead) -> Self {
        let leaf = connection.client_certificate.as_deref().and_then(|der| value([der]));
        let chain = connection.client_chain.iter().map(|der| &der[..]);
        Self { leaf, chain: value(chain) }
    }

    pub(super) fn wanted(&self, wanted: ClientCertificate) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let leaf = self.leaf.clone().filter(|_| wanted != ClientCertificate::Off);
        let chain = self.chain.clone().filter(|_| leaf.is_some() && wanted == ClientCertificate::Chain);
        let leaf = leaf.map(|value| (CLIENT_CERT, value));
        leaf.into_iter().chain(chain.map(|value| (CLIENT_CERT_CHAIN, value)))
    }
}

/// A list of byte sequences (RFC 9440, sections 2.1 to 2.3; RFC 9651, section 3.3.5); `None` for none, or too long a one.
fn value<'a>(certificates: impl IntoIterator<Item = &'a [u8]>) -> Option<HeaderValue> {
    let mut text = String::new();
    for der in certificates {
        text.push_str(if text.is_empty() { ":" } else { ", :" });
        STANDARD.encode_string(der, &mut text);
        text.push(':');
    }
    HeaderValue::try_from(text).ok().filter(|value| (1..=MAX_VALUE).contains(&value.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_byte_sequences() {
        let text = |value: Option<HeaderValue>| value.map(|value| value.to_str().expect("ASCII").to_owned());
        assert_eq!(text(value([&b"der"[..]])).as_deref(), Some(":ZGVy:"));
        assert_eq!(text(value([&b"de"[..], b"r"])).as_deref(), Some(":ZGU=:, :cg==:"));
        assert_eq!(text(value([])), None);
        assert_eq!(text(value([&[0; MAX_VALUE][..]])), None);
    }
}
