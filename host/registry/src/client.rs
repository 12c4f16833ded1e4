//! The client's side of the OCI distribution spec: manifests and blobs by name, both ways.
//!
//! `client/transport` makes one exchange, `client/authorise` answers what a registry asks of its callers; here are the
//! paths and statuses of the spec, and what is checked of all that comes: sizes while it arrives, digests once it is here.

mod authorise;
mod transport;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};

use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::{ACCEPT, Descriptor, Layout, Manifest, OCI_MANIFEST};
use crate::reference::Reference;
use crate::signature::{self, Signature};
use authorise::Access;
use transport::{Answer, Ask, Url};

/// Which registries may be spoken to without TLS.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PlainHttp(Vec<String>);

impl PlainHttp {
    /// Stands for `localhost` and the addresses of loopback.
    pub const LOOPBACK: &'static str = "loopback";

    /// Each `HOST`, `HOST:PORT` or `loopback`.
    ///
    /// # Errors
    /// The first that is none of these.
    pub fn new(granted: Vec<String>) -> Result<Self, crate::reference::ReferenceError> {
        for name in &granted {
            crate::reference::authority_parts(name)?;
        }
        Ok(Self(granted.iter().map(|name| name.to_ascii_lowercase()).collect()))
    }

    fn allows(&self, host: &str, port: Option<u16>) -> bool {
        let with_port = format!("{host}:{}", port.unwrap_or(80));
        self.0.iter().any(|name| {
            let loopback = name == Self::LOOPBACK && transport::is_loopback(host);
            loopback || name == host || *name == with_port
        })
    }
}

/// How registries are spoken to.
pub struct Options {
    /// For every registry that is not granted plain HTTP.
    pub tls: Arc<rustls::ClientConfig>,
    pub plain_http: PlainHttp,
    pub credentials: Credentials,
    /// Each step, to connect, an answer's head, a piece of its body, may take this long.
    pub step: Duration,
    /// The largest component, in bytes.
    pub max_component: u64,
}

impl Options {
    /// 64 MiB.
    pub const MAX_COMPONENT: u64 = 64 << 20;
    pub const STEP: Duration = Duration::from_secs(10);
}

const MAX_MANIFEST: u64 = 1 << 20;
const MAX_PAYLOAD: u64 = 64 << 10;
/// Signatures of one artifact that are looked at.
const MAX_SIGNATURES: usize = 32;

/// A registry's client, with the tokens it was given.
pub struct Client {
    options: Options,
    /// By registry, repository and action.
    tokens: Mutex<HashMap<String, header::HeaderValue>>,
}

/// A manifest as it came.
pub(crate) struct Pulled {
    pub(crate) digest: Digest,
    pub(crate) manifest: Manifest,
    pub(crate) bytes: Bytes,
}

impl Client {
    pub fn new(options: Options) -> Self {
        Self { options, tokens: Mutex::default() }
    }

    /// The manifest's digest as it is now.
    pub async fn resolve(&self, reference: &Reference) -> Result<Digest, Error> {
        Ok(self.manifest(reference).await?.digest)
    }

    pub(crate) async fn manifest(&self, reference: &Reference) -> Result<Pulled, Error> {
        let ask = Ask {
            headers: vec![(header::ACCEPT, ACCEPT.to_owned())],
            ..Ask::get(self.url(reference, &format!("manifests/{}", reference.version()))?, MAX_MANIFEST)
        };
        let what = reference.to_string();
        let answer = self.ask(reference, Access::Pull, &what, ask).await?;
        let answer = expect(answer, &what, &[StatusCode::OK])?;
        let digest = Digest::of(&answer.body);
        if let Some(wanted) = reference.digest().filter(|wanted| *wanted != digest) {
            return Err(Error::Digest { what, wanted, found: digest });
        }
        let manifest = Manifest::parse(&answer.body).map_err(|why| Error::Malformed { what, why })?;
        Ok(Pulled { digest, manifest, bytes: answer.body })
    }

    /// The component of a manifest.
    pub(crate) async fn component(&self, reference: &Reference, pulled: &Pulled) -> Result<Bytes, Error> {
        self.blob(reference, component_of(reference, pulled)?, self.options.max_component).await
    }

    async fn blob(&self, reference: &Reference, wanted: &Descriptor, limit: u64) -> Result<Bytes, Error> {
        let what = format!("the blob {} of {reference}", wanted.digest);
        if wanted.size > limit {
            return Err(Error::TooLarge { what, limit });
        }
        let ask = Ask::get(self.url(reference, &format!("blobs/{}", wanted.digest))?, wanted.size);
        let answer = self.ask(reference, Access::Pull, &what, ask).await?;
        let answer = expect(answer, &what, &[StatusCode::OK])?;
        let found = Digest::of(&answer.body);
        if found != wanted.digest {
            return Err(Error::Digest { what, wanted: wanted.digest, found });
        }
        Ok(answer.body)
    }

    /// Pushes a component.
    ///
    /// # Returns
    /// The digest of its manifest: what signatures and references by digest name.
    pub async fn push(&self, reference: &Reference, component: Bytes, layout: Layout) -> Result<Digest, Error> {
        let what = "the component".to_owned();
        if component.len() as u64 > self.options.max_component {
            return Err(Error::TooLarge { what, limit: self.options.max_component });
        }
        let (manifest, config) = Manifest::of_component(layout, &component);
        let bytes = manifest.to_bytes();
        let digest = Digest::of(&bytes);
        if let Some(wanted) = reference.digest().filter(|wanted| *wanted != digest) {
            return Err(Error::Digest { what, wanted, found: digest });
        }
        self.push_blob(reference, component).await?;
        self.push_blob(reference, config.into()).await?;
        self.push_manifest(reference, bytes).await
    }

    async fn push_manifest(&self, reference: &Reference, bytes: Vec<u8>) -> Result<Digest, Error> {
        let digest = Digest::of(&bytes);
        let version = reference.tag().map_or_else(|| digest.to_string(), str::to_owned);
        let ask = Ask {
            method: Method::PUT,
            headers: vec![(header::CONTENT_TYPE, OCI_MANIFEST.to_owned())],
            body: bytes.into(),
            ..Ask::get(self.url(reference, &format!("manifests/{version}"))?, MAX_MANIFEST)
        };
        let what = format!("push {reference}");
        let answer = self.ask(reference, Access::Push, &what, ask).await?;
        expect(answer, &what, &[StatusCode::CREATED, StatusCode::OK])?;
        Ok(digest)
    }

    async fn push_blob(&self, reference: &Reference, bytes: Bytes) -> Result<(), Error> {
        let digest = Digest::of(&bytes);
        let what = format!("push the blob {digest} to {}", reference.name());
        let blob = self.url(reference, &format!("blobs/{digest}"))?;
        let there = Ask { method: Method::HEAD, ..Ask::get(blob, MAX_MANIFEST) };
        if self.ask(reference, Access::Push, &what, there).await?.status == StatusCode::OK {
            return Ok(());
        }
        let uploads = self.url(reference, "blobs/uploads/")?;
        let begin = Ask { method: Method::POST, ..Ask::get(uploads.clone(), MAX_MANIFEST) };
        let begun = expect(self.ask(reference, Access::Push, &what, begin).await?, &what, &[StatusCode::ACCEPTED])?;
        let location = begun.header(&header::LOCATION).ok_or_else(|| Error::Malformed {
            what: what.clone(),
            why: "was accepted without saying where to".to_owned(),
        })?;
        let mut target = uploads.join(location)?;
        // A registry behind a proxy that ends TLS may not know its own scheme.
        if target.authority() == uploads.authority() {
            target = target.with_scheme_of(&uploads);
        }
        let ask = Ask {
            method: Method::PUT,
            headers: vec![(header::CONTENT_TYPE, "application/octet-stream".to_owned())],
            body: bytes,
            ..Ask::get(target.with_query("digest", &digest.to_string()), MAX_MANIFEST)
        };
        expect(self.ask(reference, Access::Push, &what, ask).await?, &what, &[StatusCode::CREATED]).map(drop)
    }

    /// The signatures that lie beside an artifact. None is no error.
    pub async fn signatures(&self, reference: &Reference, digest: Digest) -> Result<Vec<Signature>, Error> {
        let place = reference.at_tag(signature::tag(&digest));
        let Some(manifest) = self.signature_manifest(&place).await? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for layer in manifest.layers.iter().take(MAX_SIGNATURES) {
            if let Some(text) = layer.annotations.get(signature::ANNOTATION) {
                let payload = self.blob(&place, layer, MAX_PAYLOAD).await?;
                found.push(Signature { payload: payload.to_vec(), signature: text.clone() });
            }
        }
        Ok(found)
    }

    /// Puts a signature beside those that are there.
    pub async fn push_signature(&self, reference: &Reference, digest: Digest, new: Signature) -> Result<(), Error> {
        let place = reference.at_tag(signature::tag(&digest));
        let mut layers = self.signature_manifest(&place).await?.map(|manifest| manifest.layers).unwrap_or_default();
        let mut layer = Descriptor::of(signature::MEDIA_TYPE, &new.payload);
        layer.annotations.insert(signature::ANNOTATION.to_owned(), new.signature);
        layers.push(layer);
        let config = signature::config(&layers);
        self.push_blob(&place, new.payload.into()).await?;
        let manifest = Manifest::new(Descriptor::of(signature::CONFIG_TYPE, &config), layers);
        self.push_blob(&place, config.into()).await?;
        self.push_manifest(&place, manifest.to_bytes()).await.map(drop)
    }

    async fn signature_manifest(&self, place: &Reference) -> Result<Option<Manifest>, Error> {
        match self.manifest(place).await {
            Ok(pulled) => Ok(Some(pulled.manifest)),
            Err(Error::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn url(&self, reference: &Reference, rest: &str) -> Result<Url, Error> {
        let registry = reference.registry();
        // The name that people use for Docker's registry is not where it is.
        let authority = if registry == "docker.io" { "registry-1.docker.io" } else { &registry };
        let (host, port) = crate::reference::authority_parts(authority)
            .map_err(|error| Error::Malformed { what: registry.clone(), why: error.to_string() })?;
        let scheme = if self.options.plain_http.allows(host, port) { "http" } else { "https" };
        Url::parse(&format!("{scheme}://{authority}/v2/{}/{rest}", reference.repository()))
    }
}

pub(crate) fn component_of<'a>(reference: &Reference, pulled: &'a Pulled) -> Result<&'a Descriptor, Error> {
    pulled.manifest.component().map_err(|why| Error::Malformed { what: reference.to_string(), why })
}

/// The answer, where it has one of these statuses.
fn expect(answer: Answer, what: &str, statuses: &[StatusCode]) -> Result<Answer, Error> {
    if statuses.contains(&answer.status) {
        return Ok(answer);
    }
    if answer.status == StatusCode::NOT_FOUND {
        return Err(Error::Missing(what.to_owned()));
    }
    Err(Error::Status { what: what.to_owned(), status: answer.status.as_u16(), detail: answer.detail() })
}

#[cfg(test)]
mod tests;
