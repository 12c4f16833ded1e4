//! `oci://HOST[:PORT]/REPOSITORY[:TAG][@sha256:DIGEST]`, read strictly: what a reference does not say is not guessed.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::digest::Digest;

/// The name of an artifact in a registry.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Reference {
    host: String,
    port: Option<u16>,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text names no artifact.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum ReferenceError {
    #[error("{0:?} has no registry; write oci://HOST/REPOSITORY:TAG, as in oci://registry.example.com/team/router:1.2")]
    NoRegistry(String),
    #[error("{0:?} is not the name or address of a registry; write it as in registry.example.com or 127.0.0.1:5000")]
    Host(String),
    #[error("{0:?} is not a port; write 1 to 65535")]
    Port(String),
    #[error(
        "{0:?} is not a repository; write words of lower-case letters and digits, joined by . _ __ or -, between slashes"
    )]
    Repository(String),
    #[error("{0:?} is not a tag; write up to 128 letters, digits, _ . and -, the first of them no . or -")]
    Tag(String),
    #[error("{0}")]
    Digest(String),
    #[error("it names neither a tag nor a digest; write :TAG, @sha256:DIGEST or both")]
    NoVersion,
}

impl Reference {
    /// The scheme that sets references apart from file names.
    pub const SCHEME: &'static str = "oci://";

    /// `HOST` or `HOST:PORT`, as it is written in the reference and in credentials.
    pub fn registry(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }

    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest that it insists on.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// `HOST[:PORT]/REPOSITORY`: what a signature says it is for.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry(), self.repository)
    }

    /// The same repository at a tag.
    pub(crate) fn at_tag(&self, tag: String) -> Self {
        Self { tag: Some(tag), digest: None, ..self.clone() }
    }

    /// What the last part of a manifest's URL is: the digest where there is one, for a tag can move.
    pub(crate) fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::SCHEME, self.name())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let plain = text.strip_prefix(Self::SCHEME).unwrap_or(text);
        let (plain, digest) = match plain.split_once('@') {
            None => (plain, None),
            Some((plain, digest)) => (plain, Some(digest.parse().map_err(ReferenceError::Digest)?)),
        };
        let no_registry = || ReferenceError::NoRegistry(text.to_owned());
        let (authority, path) = plain.split_once('/').ok_or_else(no_registry)?;
        // Docker's own short names ("team/router") have no place here: the first part is always the registry.
        if authority.is_empty() || path.is_empty() {
            return Err(no_registry());
        }
        let (host, port) = authority_parts(authority)?;
        let (repository, tag) = match path.split_once(':') {
            None => (path, None),
            Some((repository, tag)) => (repository, Some(tag)),
        };
        if !is_repository(repository) {
            return Err(ReferenceError::Repository(repository.to_owned()));
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag(tag.to_owned()));
        }
        if tag.is_none() && digest.is_none() {
            return Err(ReferenceError::NoVersion);
        }
        Ok(Self {
            host: host.to_ascii_lowercase(),
            port,
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

/// Host and port: a name, an IPv4 address, or an IPv6 address in brackets.
pub(crate) fn authority_parts(text: &str) -> Result<(&str, Option<u16>), ReferenceError> {
    let wrong = || ReferenceError::Host(text.to_owned());
    let (host, port) = if text.starts_with('[') {
        let end = text.find(']').ok_or_else(wrong)?;
        let (host, rest) = text.split_at(end + 1);
        host[1..end].parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
        match rest {
            "" => (host, None),
            _ => (host, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
        }
    } else {
        let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
        let label = |label: &str| {
            let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
            let bytes = label.as_bytes();
            ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        };
        if host.len() > 253 || !host.split('.').all(label) {
            return Err(wrong());
        }
        (host, port)
    };
    let number = |text: &str| {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|port| digits && *port != 0).ok_or_else(|| ReferenceError::Port(text.to_owned()))
    };
    Ok((host, port.map(number).transpose()?))
}

/// OCI distribution spec, "Pulling manifests": `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` between slashes.
fn is_repository(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    // What lies between two letters or digits: nothing, or one separator.
    let joins = |between: &str| matches!(between, "." | "_" | "__") || between.bytes().all(|b| b == b'-');
    let word = |word: &str| {
        word.starts_with(alphanumeric) && word.ends_with(alphanumeric) && word.split(alphanumeric).all(joins)
    };
    text.len() <= 255 && text.split('/').all(word)
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&text.len())
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn references_read_and_write_the_same() {
        for text in [
            "oci://registry.example.com/team/router:1.2",
            "oci://127.0.0.1:5000/router:latest",
            "oci://[::1]:5000/a/b/c:_x",
            "oci://localhost/a--b.c_d__e:V1",
            &format!("oci://r.example/router@{DIGEST}"),
            &format!("oci://r.example/router:1.2@{DIGEST}"),
        ] {
            let reference: Reference = text.parse().expect(text);
            assert_eq!(reference.to_string(), text);
            let short = text.trim_start_matches(Reference::SCHEME);
            assert_eq!(short.parse::<Reference>(), Ok(reference), "the scheme may be left out");
        }
        let reference: Reference = format!("oci://R.example:81/team/router:1.2@{DIGEST}").parse().expect("a reference");
        assert_eq!(reference.name(), "r.example:81/team/router");
        assert_eq!((reference.tag(), reference.version().as_str()), (Some("1.2"), DIGEST));
    }

    #[test]
    fn what_is_wrong_is_named() {
        use ReferenceError as E;
        let wrong = |text: &str| text.parse::<Reference>().expect_err(text);
        for text in ["", "oci://", "router", "oci://router:1", "oci:///router:1", "oci://r.example/"] {
            assert_eq!(wrong(text), E::NoRegistry(text.to_owned()));
        }
        for host in ["r_x", "-r", "r-", "r..x", "user:pass", "[::1", "[zz]", "[::1]x", "a b", "ü"] {
            let error = wrong(&format!("oci://{host}/router:1"));
            assert!(matches!(error, E::Host(_) | E::Port(_)), "{host}: {error:?}");
        }
        for port in ["0", "65536", "", "+80", "8o"] {
            assert_eq!(wrong(&format!("oci://r.example:{port}/router:1")), E::Port(port.to_owned()));
        }
        for repository in ["Router", "a//b", "/a", "a/", "a/..", ".", "a_", "-a", "a___b", "a..b", "a._b", "a b", "ü"]
        {
            assert_eq!(wrong(&format!("r.example/{repository}:1")), E::Repository(repository.to_owned()));
        }
        for tag in ["", ".x", "-x", "a:b", "a/b", "ü", &"x".repeat(129)] {
            assert_eq!(wrong(&format!("r.example/router:{tag}")), E::Tag(tag.to_owned()));
        }
        assert!(matches!(wrong("r.example/router:1@sha256:12"), E::Digest(_)));
        assert!(matches!(wrong("r.example/router@md5:12"), E::Digest(_)));
        assert_eq!(wrong("r.example/router"), E::NoVersion);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_what_is_read_can_be_written(text in "(oci://)?[a-zA-Z0-9./:@_\\[\\]ü-]{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse(), Ok(reference));
            }
        }
    }
}
