//! A component on its way from a registry or the store to whoever runs it: every check it passes stands here, in order.

use bytes::Bytes;

use crate::client::{Client, component_of};
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::Manifest;
use crate::reference::Reference;
use crate::revoked::Revoked;
use crate::signature::{PublicKey, Signature, SignatureError};
use crate::store::{Store, Version};

/// Who must have signed.
#[derive(Clone, Debug)]
pub struct Verifier {
    /// With the names that errors give them; one at least.
    pub keys: Vec<(String, PublicKey)>,
    /// Each of the keys, not any.
    pub all: bool,
    /// `HOST/REPOSITORY` that was signed, where it is not where the component comes from.
    pub signed_as: Option<String>,
}

impl Verifier {
    /// Checks the signatures of a manifest's digest.
    ///
    /// # Returns
    /// The names of the keys that signed it.
    pub fn verify(
        &self,
        reference: &Reference,
        digest: Digest,
        signatures: &[Signature],
    ) -> Result<Vec<&str>, SignatureError> {
        let name = self.signed_as.clone().unwrap_or_else(|| reference.name());
        let (mut good, mut others, mut wrong) = (Vec::new(), Vec::new(), None);
        for (key_name, key) in &self.keys {
            let mut by_key = signatures.iter().filter(|signature| key.verifies(signature)).peekable();
            if by_key.peek().is_none() {
                others.push(key_name.as_str());
                continue;
            }
            match by_key.map(|signature| signature.claims(&name, digest)).reduce(Result::or) {
                Some(Err(why)) => wrong = Some(SignatureError::Claims { digest, key: key_name.clone(), why }),
                _ => good.push(key_name.as_str()),
            }
        }
        let enough = if self.all { good.len() == self.keys.len() } else { !good.is_empty() };
        if enough && !self.keys.is_empty() {
            return Ok(good);
        }
        Err(match wrong {
            Some(wrong) => wrong,
            None if signatures.is_empty() => SignatureError::None(digest),
            None => {
                let joint = if self.all { " and " } else { " or " };
                SignatureError::OtherKeys { digest, keys: others.join(joint) }
            }
        })
    }
}

/// A component that passed every check.
#[derive(Clone, Debug)]
pub struct Component {
    pub bytes: Bytes,
    pub version: Version,
}

impl Component {
    /// Gets it from the registry; what the store has of it is not sent again.
    pub async fn fetch(
        client: &Client,
        store: Option<&Store>,
        reference: &Reference,
        verifier: Option<&Verifier>,
        revoked: &Revoked,
    ) -> Result<Self, Error> {
        let pulled = client.manifest(reference).await?;
        revoked.check(pulled.digest)?;
        let layer = component_of(reference, &pulled)?.digest;
        revoked.check(layer)?;
        // Before the component is: what nobody vouches for is not even downloaded.
        let mut signatures = Vec::new();
        if let Some(verifier) = verifier {
            signatures = client.signatures(reference, pulled.digest).await?;
            verifier.verify(reference, pulled.digest, &signatures)?;
        }
        let bytes = match store.and_then(|store| store.blob(layer)) {
            Some(bytes) => bytes,
            None => {
                let bytes = client.component(reference, &pulled).await?;
                if let Some(store) = store {
                    store.put(&bytes)?;
                }
                bytes
            }
        };
        let version =
            Version { manifest: pulled.digest, manifest_bytes: pulled.bytes.to_vec(), component: layer, signatures };
        Ok(Self { bytes, version })
    }

    /// Gets a version that served before from the store, with every check made again: keys may be others by now, the list
    /// of what is revoked longer, and files may have been touched.
    pub fn kept(
        store: &Store,
        reference: &Reference,
        version: &Version,
        verifier: Option<&Verifier>,
        revoked: &Revoked,
    ) -> Result<Self, Error> {
        let what = || format!("the kept manifest {} of {reference}", version.manifest);
        let found = Digest::of(&version.manifest_bytes);
        if found != version.manifest {
            return Err(Error::Digest { what: what(), wanted: version.manifest, found });
        }
        let malformed = |why| Error::Malformed { what: what(), why };
        let manifest = Manifest::parse(&version.manifest_bytes).map_err(malformed)?;
        let layer = manifest.component().map_err(malformed)?.digest;
        revoked.check(version.manifest)?;
        revoked.check(layer)?;
        if let Some(verifier) = verifier {
            verifier.verify(reference, version.manifest, &version.signatures)?;
        }
        let missing = || Error::Missing(format!("whole component {layer} in the store"));
        let bytes = store.blob(layer).ok_or_else(missing)?;
        Ok(Self { bytes, version: version.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::SigningKey;

    #[test]
    fn any_or_all_of_the_keys_under_the_right_name() {
        let reference: Reference = "r.example/team/router:1".parse().expect("a reference");
        let digest = Digest::of(b"manifest");
        let keys: Vec<SigningKey> = (0..3).map(|_| SigningKey::generate().expect("a key")).collect();
        let by = |index: usize, name: &str| Signature::new(&keys[index], name, digest).expect("signed");
        let verifier = |of: &[usize], all: bool, signed_as: Option<&str>| Verifier {
            keys: of.iter().map(|i| (format!("key{i}"), keys[*i].public_key().expect("a key"))).collect(),
            all,
            signed_as: signed_as.map(str::to_owned),
        };
        let here = "r.example/team/router";
        let verify = |verifier: Verifier, signatures: &[Signature]| {
            let names = verifier.verify(&reference, digest, signatures)?;
            Ok::<_, SignatureError>(names.into_iter().map(str::to_owned).collect::<Vec<_>>())
        };
        let both = [by(0, here), by(1, here)];
        assert_eq!(verify(verifier(&[0, 2], false, None), &both), Ok(vec!["key0".to_owned()]));
        assert_eq!(verify(verifier(&[0, 1], true, None), &both).map(|names| names.len()), Ok(2));
        let other = verify(verifier(&[0, 2], true, None), &both).expect_err("one is missing");
        assert_eq!(other, SignatureError::OtherKeys { digest, keys: "key2".to_owned() });
        assert_eq!(verify(verifier(&[0], false, None), &[]), Err(SignatureError::None(digest)));
        assert!(verify(verifier(&[], true, None), &both).is_err(), "nobody is not everybody");
        let elsewhere = [by(0, "r.example/team/other")];
        let error = verify(verifier(&[0], false, None), &elsewhere).expect_err("signed for another");
        assert!(matches!(error, SignatureError::Claims { .. }), "{error}");
        assert!(verify(verifier(&[0], false, Some("r.example/team/other")), &elsewhere).is_ok());
        let second = [by(0, "r.example/team/other"), by(0, here)];
        assert!(verify(verifier(&[0], true, None), &second).is_ok(), "one of a key's signatures is enough");
        let mut forged = by(0, here);
        forged.payload = by(1, here).payload;
        forged.signature = by(1, here).signature;
        assert!(verify(verifier(&[0], false, None), &[forged]).is_err());
    }
}
