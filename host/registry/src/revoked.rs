//! Digests that are refused wherever they come from: of manifests, or of components under whatever manifest.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use crate::digest::Digest;
use crate::error::Error;

/// The list. Empty by default.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Revoked(HashSet<Digest>);

/// Why a list cannot be used. None of it is, then: half a list would let through what it was written against.
#[derive(Debug, Error)]
pub enum RevokedError {
    #[error("cannot read {}: {source}", file.display())]
    Read { file: PathBuf, source: std::io::Error },
    #[error("{}: {why}", file.display())]
    Form { file: PathBuf, why: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    revoked: Vec<Digest>,
}

impl Revoked {
    /// A digest a line, `#` and what follows are comments; or, in a file named `.toml`, `revoked = ["sha256:…"]`.
    pub fn read(file: &Path) -> Result<Self, RevokedError> {
        let text =
            std::fs::read_to_string(file).map_err(|source| RevokedError::Read { file: file.to_owned(), source })?;
        let parsed = if file.extension().is_some_and(|extension| extension == "toml") {
            Self::parse_toml(&text)
        } else {
            Self::parse_lines(&text)
        };
        parsed.map_err(|why| RevokedError::Form { file: file.to_owned(), why })
    }

    fn parse_toml(text: &str) -> Result<Self, String> {
        let document: Document = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        Ok(Self(document.revoked.into_iter().collect()))
    }

    fn parse_lines(text: &str) -> Result<Self, String> {
        let mut digests = HashSet::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                digests.insert(line.parse().map_err(|why| format!("line {}: {why}", number + 1))?);
            }
        }
        Ok(Self(digests))
    }

    pub fn contains(&self, digest: Digest) -> bool {
        self.0.contains(&digest)
    }

    pub(crate) fn check(&self, digest: Digest) -> Result<(), Error> {
        if self.contains(digest) { Err(Error::Revoked(digest)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_toml_say_the_same_and_half_a_list_is_none() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let lines = Revoked::parse_lines(&format!("# bad ones\n\n{a}  # leaks\n  {b}\n")).expect("a list");
        assert!(lines.contains(a) && lines.contains(b) && !lines.contains(Digest::of(b"c")));
        assert_eq!(Revoked::parse_toml(&format!("revoked = [\"{a}\",\n\"{b}\"]")), Ok(lines));
        assert!(Revoked::parse_lines(&format!("{a}\n{}\n", a.hex())).expect_err("a line").starts_with("line 2: "));
        for wrong in ["", "revoked = [\"x\"]", "revoke = []", "revoked = 1"] {
            assert!(Revoked::parse_toml(wrong).is_err(), "{wrong}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let absent = folder.path().join("revoked");
        assert!(matches!(Revoked::read(&absent), Err(RevokedError::Read { .. })));
        std::fs::write(&absent, a.to_string()).expect("written");
        assert!(Revoked::read(&absent).expect("a list").check(a).is_err());
    }
}
