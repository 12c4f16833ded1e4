//! Signatures the way cosign makes them with a key of one's own: ECDSA over P-256 on a small JSON text that names the
//! digest, kept beside the artifact in its repository. Neither a certificate nor a log is asked.

mod key;

use serde::{Deserialize, Serialize};
use serde_json::json;
use thiserror::Error;

use crate::digest::Digest;
use crate::manifest::Descriptor;

pub use key::{KeyError, PublicKey, SigningKey};

/// Where a layer of a signature's manifest has the signature of its payload.
pub(crate) const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
pub(crate) const MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
pub(crate) const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const TYPE: &str = "cosign container image signature";

/// Where the signatures of a digest lie in its repository.
pub(crate) fn tag(digest: &Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

/// Cosign reads it as the configuration of an image, whose layers are the payloads.
pub(crate) fn config(layers: &[Descriptor]) -> Vec<u8> {
    let digests: Vec<String> = layers.iter().map(|layer| layer.digest.to_string()).collect();
    let never = "0001-01-01T00:00:00Z";
    json!({
        "architecture": "", "os": "", "created": never, "config": {},
        "history": vec![json!({ "created": never }); layers.len()],
        "rootfs": { "type": "layers", "diff_ids": digests },
    })
    .to_string()
    .into_bytes()
}

/// A payload and its signature.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Signature {
    /// JSON, "simple signing".
    pub payload: Vec<u8>,
    /// Base64 of the DER form.
    pub signature: String,
}

/// Why signatures are not enough.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum SignatureError {
    #[error("{0} is not signed")]
    None(Digest),
    #[error("{digest} is not signed by {keys}")]
    OtherKeys { digest: Digest, keys: String },
    #[error("{digest} is signed by {key}, but {why}")]
    Claims { digest: Digest, key: String, why: String },
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    identity: Identity,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Identity {
    docker_reference: String,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    docker_manifest_digest: String,
}

impl Signature {
    /// Signs a digest under the name of its repository, `HOST/REPOSITORY`.
    pub fn new(key: &SigningKey, name: &str, digest: Digest) -> Result<Self, KeyError> {
        let payload = json!({
            "critical": {
                "identity": Identity { docker_reference: name.to_owned() },
                "image": Image { docker_manifest_digest: digest.to_string() },
                "type": TYPE,
            },
            "optional": null,
        });
        let payload = payload.to_string().into_bytes();
        let signature = key.sign(&payload)?;
        Ok(Self { payload, signature })
    }

    /// Whether what was signed is this digest under this name.
    pub(crate) fn claims(&self, name: &str, digest: Digest) -> Result<(), String> {
        let payload: Payload = serde_json::from_slice(&self.payload)
            .map_err(|error| format!("what was signed cannot be read: {error}"))?;
        let Critical { identity, image, kind } = payload.critical;
        if kind != TYPE {
            return Err(format!("what was signed is a {kind:?}"));
        }
        if image.docker_manifest_digest != digest.to_string() {
            return Err(format!("for {}", image.docker_manifest_digest));
        }
        // A version, as some write it, is no part of the name.
        let signed = identity.docker_reference.as_str();
        let signed = signed.split_once('@').map_or(signed, |(name, _)| name);
        let signed = match signed.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => name,
            _ => signed,
        };
        if signed != name {
            return Err(format!(
                "as {:?}, not as {name:?}; a copy can be told by `signed_as`",
                identity.docker_reference
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_for_one_digest_under_one_name() {
        let key = SigningKey::generate().expect("a key");
        let digest = Digest::of(b"manifest");
        let signature = Signature::new(&key, "r.example:5000/team/router", digest).expect("signed");
        assert!(key.public_key().expect("a key").verifies(&signature));
        assert_eq!(signature.claims("r.example:5000/team/router", digest), Ok(()));
        assert!(signature.claims("r.example:5000/team/router", Digest::of(b"other")).is_err());
        assert!(signature.claims("r.example:5000/team", digest).expect_err("another").contains("signed_as"));
        assert!(signature.claims("r.example", digest).is_err());
        assert_eq!(tag(&digest), format!("sha256-{}.sig", digest.hex()));
    }

    #[test]
    fn payloads_of_cosign_are_read() {
        let digest = Digest::of(b"manifest");
        let claims = |reference: &str, kind: &str| {
            let payload = json!({
                "critical": {
                    "identity": { "docker-reference": reference },
                    "image": { "docker-manifest-digest": digest },
                    "type": kind,
                },
                "optional": { "creator": "cosign" },
            });
            let payload = payload.to_string().into_bytes();
            Signature { payload, signature: String::new() }.claims("r.example:5000/router", digest).is_ok()
        };
        assert!(claims("r.example:5000/router", TYPE));
        assert!(claims("r.example:5000/router:1.2", TYPE));
        assert!(claims(&format!("r.example:5000/router@{digest}"), TYPE));
        assert!(!claims("r.example:5000/router", "atomic container signature"));
        assert!(!claims("router", TYPE) && !claims("", TYPE));
        let junk = Signature { payload: b"{}".to_vec(), signature: String::new() };
        assert!(junk.claims("r.example/router", digest).is_err());
    }
}
