//! The words of questions and answers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HttpVersion {
    Http10,
    Http11,
    Http2,
    Http3,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scheme {
    Http,
    Https,
}

/// Where a request goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Route {
    /// No opinion: the route table decides.
    Pass,
    /// To the cluster of this name.
    Forward(String),
    /// The gateway answers.
    Respond(Response),
}

/// Where a connection goes that the gateway does not decrypt.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TunnelRoute {
    /// No opinion: the listener's routes decide.
    Pass,
    /// To the cluster of this name.
    Forward(String),
    /// Closed at once, without a word.
    Refuse,
}

/// A response that the gateway sends in the policy's name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Response {
    pub status: u16,
    /// Lower-case names.
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

/// How bodies pass.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Buffering {
    Stream,
    /// The request's is whole in memory before an upstream is engaged, within the route's limit.
    Request,
    Both,
}

/// Which endpoint takes an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Choice {
    /// The cluster's own algorithm decides.
    Pass,
    Endpoint(u32),
    /// The gateway's consistent hash decides, by this key.
    Hash(u64),
    /// None will do: 503.
    None,
}

/// Whether to try again, and after which pause.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    Stop,
    Again(Duration),
    /// At an endpoint that was not tried yet.
    Elsewhere(Duration),
}

/// What weighs in a choice between endpoints, of one of them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Load {
    /// Healthy, below its limits, and not tried yet by this exchange.
    pub available: bool,
    /// Requests under way at it.
    pub in_flight: u32,
    /// Moving average of the time to the response head; zero before the first.
    pub latency: Duration,
}

/// What the gateway can prove about a failed attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Proof {
    /// Not processed: any method may be sent again.
    Unprocessed,
    /// Perhaps processed, but the method is idempotent.
    Idempotent,
    /// Sending again could act twice: the gateway will not.
    Unsafe,
}

/// Why an attempt failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Cause {
    Connect,
    Tls,
    Reset,
    RefusedStream,
    GoAway,
    Timeout,
    /// A whole response head arrived, with this status.
    Status(u16),
    Other(Option<String>),
}

/// A node of the forwarding chain (RFC 7239, section 6).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Node {
    Address(SocketAddr),
    Ip(IpAddr),
    Unknown,
    /// With its leading underscore.
    Obfuscated(String),
}

/// One hop of the forwarding chain (RFC 7239, section 4).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Element {
    pub r#for: Option<Node>,
    pub by: Option<Node>,
    pub host: Option<String>,
    pub proto: Option<String>,
}

/// Which fields carry the chain.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Families {
    pub forwarded: bool,
    pub x_forwarded: bool,
    pub x_real_ip: bool,
}

/// Why the gateway refused an edit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EditError {
    InvalidName,
    InvalidValue,
    /// The plugin was not granted this field, or it is the gateway's own.
    NotGranted,
    Other(Option<String>),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}
