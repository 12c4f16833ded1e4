//! Why an artifact did not come or go. The kind says whose matter it is, for metrics and exit codes.

use thiserror::Error;

use crate::digest::Digest;
use crate::signature::SignatureError;

/// What a failure is about.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Nobody answers, or not in time, or with an error of the server's own.
    Unreachable,
    /// The registry wants other credentials.
    Denied,
    /// There is no such artifact.
    Missing,
    /// What came is not what its digest, its size or its form promised.
    Damaged,
    /// Not signed by whom it should be.
    Unsigned,
    /// On the list of what is refused.
    Revoked,
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::Unreachable, Self::Denied, Self::Missing, Self::Damaged, Self::Unsigned, Self::Revoked];

    /// The word for it in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Denied => "denied",
            Self::Missing => "missing",
            Self::Damaged => "damaged",
            Self::Unsigned => "unsigned",
            Self::Revoked => "revoked",
        }
    }
}

#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot connect to {host}: {why}")]
    Connect { host: String, why: String },
    #[error("{host} speaks no TLS that can be trusted: {why}")]
    Tls { host: String, why: String },
    #[error("{host} does not answer: {why}")]
    Exchange { host: String, why: String },
    #[error("{what} takes longer than {seconds} s")]
    Timeout { what: String, seconds: u64 },
    #[error("{what}: the registry answers {status}{detail}")]
    Status { what: String, status: u16, detail: String },
    #[error(
        "{what}: the registry wants credentials{detail}; see `docker login`, or name a file with REGISTRY_AUTH_FILE"
    )]
    Denied { what: String, detail: String },
    #[error("credentials for {registry}: {why}")]
    Credentials { registry: String, why: String },
    #[error("{url} is plain HTTP, which {host} was not granted")]
    Plain { url: String, host: String },
    #[error("there is no {0}")]
    Missing(String),
    #[error("{what} is larger than {limit} bytes")]
    TooLarge { what: String, limit: u64 },
    #[error("{what} has the digest {found}, not {wanted}")]
    Digest { what: String, wanted: Digest, found: Digest },
    #[error("{what} {why}")]
    Malformed { what: String, why: String },
    #[error("{0}")]
    Unsigned(#[from] SignatureError),
    #[error("{0} is revoked")]
    Revoked(Digest),
    #[error("the store {path}: {source}")]
    Store { path: String, source: std::io::Error },
}

impl Error {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Status { status: 403, .. } | Self::Denied { .. } | Self::Credentials { .. } => Kind::Denied,
            Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Exchange { .. }
            | Self::Timeout { .. }
            | Self::Status { .. }
            | Self::Plain { .. }
            | Self::Store { .. } => Kind::Unreachable,
            Self::Missing(_) => Kind::Missing,
            Self::TooLarge { .. } | Self::Digest { .. } | Self::Malformed { .. } => Kind::Damaged,
            Self::Unsigned(_) => Kind::Unsigned,
            Self::Revoked(_) => Kind::Revoked,
        }
    }
}

/// A stranger's words, for a log: no line breaks, no novels.
pub(crate) fn in_a_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
