//! Keys of signatures: ECDSA over P-256, in PEM; private ones as PKCS#8 or SEC 1, or locked with a password by cosign.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, ParsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crypto_secretbox::aead::Aead;
use crypto_secretbox::{KeyInit, XSalsa20Poly1305};
use serde::Deserialize;
use thiserror::Error;

use super::Signature;

#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum KeyError {
    #[error("there is no {0} in it")]
    Absent(&'static str),
    #[error("it is not the PEM of an ECDSA key over P-256")]
    NotAKey,
    #[error("it is locked: give its password in COSIGN_PASSWORD")]
    Locked,
    #[error("it is locked, and the password is another")]
    Password,
    #[error("it is locked in a way that is not known: {0}")]
    Lock(String),
    #[error("the system gives no random numbers")]
    Random,
}

/// Verifies signatures.
#[derive(Clone)]
pub struct PublicKey {
    key: ParsedPublicKey,
    der: Vec<u8>,
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKey").finish_non_exhaustive()
    }
}

impl PublicKey {
    /// From PEM, `PUBLIC KEY`.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let (_, der) = pem(text, &["PUBLIC KEY"]).ok_or(KeyError::Absent("PUBLIC KEY"))?;
        Self::from_der(der)
    }

    fn from_der(der: Vec<u8>) -> Result<Self, KeyError> {
        let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &der).map_err(|_| KeyError::NotAKey)?;
        Ok(Self { key, der })
    }

    pub fn to_pem(&self) -> String {
        to_pem("PUBLIC KEY", &self.der)
    }

    /// Whether the payload was signed with its private half.
    pub(crate) fn verifies(&self, signed: &Signature) -> bool {
        let Ok(signature) = BASE64.decode(signed.signature.trim()) else { return false };
        self.key.verify_sig(&signed.payload, &signature).is_ok()
    }
}

/// Makes signatures.
pub struct SigningKey(EcdsaKeyPair);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").finish_non_exhaustive()
    }
}

const PKCS8: &str = "PRIVATE KEY";
const SEC1: &str = "EC PRIVATE KEY";
const SIGSTORE: &str = "ENCRYPTED SIGSTORE PRIVATE KEY";
const COSIGN: &str = "ENCRYPTED COSIGN PRIVATE KEY";

impl SigningKey {
    pub fn generate() -> Result<Self, KeyError> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map(Self).map_err(|_| KeyError::Random)
    }

    /// From PEM; `password` is for one that is locked.
    pub fn from_pem(text: &str, password: Option<&str>) -> Result<Self, KeyError> {
        let found = pem(text, &[PKCS8, SEC1, SIGSTORE, COSIGN]);
        let (label, bytes) = found.ok_or(KeyError::Absent("PRIVATE KEY"))?;
        let der = match label {
            SIGSTORE | COSIGN => unlock(&bytes, password.ok_or(KeyError::Locked)?)?,
            _ => bytes,
        };
        let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, &der);
        pair.map(Self).map_err(|_| KeyError::NotAKey)
    }

    /// PKCS#8, not locked.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        let der = self.0.to_pkcs8v1().map_err(|_| KeyError::NotAKey)?;
        Ok(to_pem(PKCS8, der.as_ref()))
    }

    pub fn public_key(&self) -> Result<PublicKey, KeyError> {
        let der: Result<PublicKeyX509Der<'_>, _> = self.0.public_key().as_der();
        PublicKey::from_der(der.map_err(|_| KeyError::NotAKey)?.as_ref().to_vec())
    }

    /// Base64 of the DER form.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<String, KeyError> {
        let signature = self.0.sign(&SystemRandom::new(), message).map_err(|_| KeyError::Random)?;
        Ok(BASE64.encode(signature.as_ref()))
    }
}

/// Cosign's way of locking a key: scrypt, then NaCl's secretbox.
#[derive(Deserialize)]
struct Locked {
    kdf: Kdf,
    cipher: Cipher,
    ciphertext: String,
}

#[derive(Deserialize)]
struct Kdf {
    name: String,
    params: ScryptParams,
    salt: String,
}

#[derive(Deserialize)]
struct ScryptParams {
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
}

#[derive(Deserialize)]
struct Cipher {
    name: String,
    nonce: String,
}

fn unlock(bytes: &[u8], password: &str) -> Result<Vec<u8>, KeyError> {
    let unknown = |what: &str| KeyError::Lock(what.to_owned());
    let locked: Locked = serde_json::from_slice(bytes).map_err(|error| unknown(&error.to_string()))?;
    if locked.kdf.name != "scrypt" || locked.cipher.name != "nacl/secretbox" {
        return Err(unknown(&format!("{} and {}", locked.kdf.name, locked.cipher.name)));
    }
    let ScryptParams { n, r, p } = locked.kdf.params;
    // 128 bytes of memory times both; cosign takes 64 MiB.
    let bounded = n.is_power_of_two() && (2..=1 << 20).contains(&n) && (1..=16).contains(&r) && (1..=16).contains(&p);
    let params = scrypt::Params::new(n.trailing_zeros() as u8, r, p, 32).ok().filter(|_| bounded);
    let params = params.ok_or_else(|| unknown("scrypt with these parameters"))?;
    let decode = |text: &str| BASE64.decode(text).map_err(|_| unknown("what is not base64"));
    let mut key = [0; 32];
    scrypt::scrypt(password.as_bytes(), &decode(&locked.kdf.salt)?, &params, &mut key)
        .map_err(|error| unknown(&error.to_string()))?;
    let nonce: [u8; 24] =
        decode(&locked.cipher.nonce)?.try_into().map_err(|_| unknown("a nonce that is not 24 bytes"))?;
    let text = decode(&locked.ciphertext)?;
    XSalsa20Poly1305::new(&key.into()).decrypt(&nonce.into(), text.as_slice()).map_err(|_| KeyError::Password)
}

/// The first block with one of these labels (RFC 7468).
fn pem<'a>(text: &str, labels: &[&'a str]) -> Option<(&'a str, Vec<u8>)> {
    let mut lines = text.lines().map(str::trim);
    let label = lines.find_map(|line| {
        let label = line.strip_prefix("-----BEGIN ")?.strip_suffix("-----")?;
        labels.iter().find(|known| **known == label)
    })?;
    let end = format!("-----END {label}-----");
    let mut body = String::new();
    for line in lines {
        if line == end {
            return Some((label, BASE64.decode(body).ok()?));
        }
        body.push_str(line);
    }
    None
}

fn to_pem(label: &str, der: &[u8]) -> String {
    let body = BASE64.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(key: &SigningKey, payload: &[u8]) -> Signature {
        Signature { payload: payload.to_vec(), signature: key.sign(payload).expect("signed") }
    }

    #[test]
    fn keys_go_through_pem_and_only_their_own_signatures_are_good() {
        let key = SigningKey::generate().expect("a key");
        let read = SigningKey::from_pem(&key.to_pem().expect("PEM"), None).expect("a key");
        let public = PublicKey::from_pem(&key.public_key().expect("a key").to_pem()).expect("a key");
        let mut good = signed(&read, b"payload");
        assert!(public.verifies(&good));
        assert!(!SigningKey::generate().expect("a key").public_key().expect("a key").verifies(&good));
        good.payload.push(b' ');
        assert!(!public.verifies(&good));
        for junk in ["", "%", "AAAA"] {
            assert!(!public.verifies(&Signature { payload: b"payload".to_vec(), signature: junk.to_owned() }));
        }
    }

    /// Made with `openssl ecparam -name prime256v1 -genkey` and `openssl dgst -sha256 -sign`: not of our making.
    #[test]
    fn openssl_is_understood() {
        let public = PublicKey::from_pem(include_str!("testdata/openssl.pub")).expect("a key");
        let signature = include_str!("testdata/openssl.sig").replace('\n', "");
        assert!(public.verifies(&Signature { payload: b"tidegate".to_vec(), signature }));
        let private = SigningKey::from_pem(include_str!("testdata/openssl.key"), None).expect("a key, SEC 1");
        assert!(public.verifies(&signed(&private, b"x")));
    }

    /// Locked as cosign does it, by another implementation of scrypt and secretbox (Python's hashlib and PyNaCl).
    #[test]
    fn a_locked_key_opens_with_its_password_only() {
        let text = include_str!("testdata/locked.key");
        let public = PublicKey::from_pem(include_str!("testdata/openssl.pub")).expect("a key");
        let key = SigningKey::from_pem(text, Some("a password")).expect("a key");
        assert!(public.verifies(&signed(&key, b"x")));
        assert_eq!(SigningKey::from_pem(text, Some("another")).err(), Some(KeyError::Password));
        assert_eq!(SigningKey::from_pem(text, None).err(), Some(KeyError::Locked));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n", "PUBLIC KEY"] {
            assert_eq!(PublicKey::from_pem(text).err(), Some(KeyError::Absent("PUBLIC KEY")), "{text}");
        }
        let wrong = to_pem("PUBLIC KEY", b"not a key");
        assert_eq!(PublicKey::from_pem(&wrong).err(), Some(KeyError::NotAKey));
        assert_eq!(PublicKey::from_pem(include_str!("testdata/p384.pub")).err(), Some(KeyError::NotAKey));
        assert_eq!(SigningKey::from_pem(&wrong, None).err(), Some(KeyError::Absent("PRIVATE KEY")));
        assert_eq!(SigningKey::from_pem(&to_pem(PKCS8, b"x"), None).err(), Some(KeyError::NotAKey));
        assert!(matches!(SigningKey::from_pem(&to_pem(SIGSTORE, b"{}"), Some("")).err(), Some(KeyError::Lock(_))));
    }
}
