//! What a plugin decided, as it is kept in a record: values, not words. Most records are only counted, so the words are
//! made by whoever shows them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use tidegate_policy::{Choice, EndpointsView, Origin, PolicyFaultKind, RouteAnswer, TunnelAnswer, Verdict, Watched};

/// The questions, for records and labels.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Question {
    Route,
    Pick,
    Identify,
    Decide,
    Tunnel,
}

impl Question {
    pub fn name(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Pick => "pick",
            Self::Identify => "identify",
            Self::Decide => "decide",
            Self::Tunnel => "tunnel",
        }
    }
}

/// What one plugin decided in one exchange.
#[derive(Debug)]
pub struct DecisionRecord {
    pub question: Question,
    /// The plugin's name; a next version has one of its own.
    pub by: ByteString,
    /// Which version that was, where there are two.
    pub watched: Option<Watched>,
    pub origin: Origin,
    pub decided: Decided,
    /// Waits for callouts included.
    pub took: Duration,
    pub callouts: u32,
    /// That it waited for them.
    pub waited: Duration,
}

/// The answer, or the kind of the failure. Displays as the words of the access log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decided {
    Pass,
    Forward(Arc<str>),
    /// With this status.
    Respond(u16),
    /// The index, and the address if there is such an endpoint.
    Endpoint(u32, Option<SocketAddr>),
    Hash(u64),
    NoEndpoint,
    /// Elements of the chain that is sent.
    Identify(usize),
    /// A tunnel.
    Refuse,
    Stop,
    Again(Duration),
    Elsewhere(Duration),
    Failed(PolicyFaultKind),
}

impl From<&RouteAnswer> for Decided {
    fn from(answer: &RouteAnswer) -> Self {
        match answer {
            RouteAnswer::Pass => Self::Pass,
            RouteAnswer::Forward(cluster) => Self::Forward(cluster.clone()),
            RouteAnswer::Respond(response) => Self::Respond(response.status.as_u16()),
        }
    }
}

impl From<&TunnelAnswer> for Decided {
    fn from(answer: &TunnelAnswer) -> Self {
        match answer {
            TunnelAnswer::Pass => Self::Pass,
            TunnelAnswer::Forward(cluster) => Self::Forward(cluster.clone()),
            TunnelAnswer::Refuse => Self::Refuse,
        }
    }
}

impl Decided {
    pub(crate) fn of_choice(choice: Choice, view: &EndpointsView) -> Self {
        match choice {
            Choice::Pass => Self::Pass,
            Choice::Endpoint(index) => Self::Endpoint(index, view.get(index).map(|endpoint| endpoint.address)),
            Choice::Hash(key) => Self::Hash(key),
            Choice::None => Self::NoEndpoint,
        }
    }
}

impl From<&Verdict> for Decided {
    fn from(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Stop => Self::Stop,
            Verdict::Again(pause) => Self::Again(*pause),
            Verdict::Elsewhere(pause) => Self::Elsewhere(*pause),
        }
    }
}

impl fmt::Display for Decided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |pause: &Duration| pause.as_secs_f64() * 1e3;
        match self {
            Self::Pass => f.write_str("pass"),
            Self::Forward(cluster) => write!(f, "forward {cluster}"),
            Self::Respond(status) => write!(f, "respond {status}"),
            Self::Endpoint(index, Some(address)) => write!(f, "endpoint {index} ({address})"),
            Self::Endpoint(index, None) => write!(f, "endpoint {index}"),
            Self::Hash(key) => write!(f, "hash {key:016x}"),
            Self::NoEndpoint => f.write_str("none"),
            Self::Identify(elements) => write!(f, "{elements} elements"),
            Self::Refuse => f.write_str("refuse"),
            Self::Stop => f.write_str("stop"),
            Self::Again(pause) => write!(f, "again after {:.1} ms", ms(pause)),
            Self::Elsewhere(pause) => write!(f, "elsewhere after {:.1} ms", ms(pause)),
            Self::Failed(kind) => write!(f, "failed: {}", kind.name()),
        }
    }
}
