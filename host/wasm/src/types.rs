//! The contract's types as Rust has them, and conversions. `wit/types.wit` and its neighbours are the source.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tidegate_policy as policy;
use wasmtime::component::{ComponentType, Lift, Lower, flags};

#[derive(Clone, Copy, ComponentType, Lower)]
#[component(enum)]
#[repr(u8)]
pub(crate) enum HttpVersion {
    #[component(name = "http10")]
    Http10,
    #[component(name = "http11")]
    Http11,
    #[component(name = "http2")]
    Http2,
    #[component(name = "http3")]
    Http3,
}

impl From<policy::HttpVersion> for HttpVersion {
    fn from(version: policy::HttpVersion) -> Self {
        match version {
            policy::HttpVersion::Http10 => Self::Http10,
            policy::HttpVersion::Http11 => Self::Http11,
            policy::HttpVersion::Http2 => Self::Http2,
            policy::HttpVersion::Http3 => Self::Http3,
        }
    }
}

#[derive(Clone, Copy, ComponentType, Lower)]
#[component(enum)]
#[repr(u8)]
pub(crate) enum UrlScheme {
    #[component(name = "http")]
    Http,
    #[component(name = "https")]
    Https,
}

impl From<policy::Scheme> for UrlScheme {
    fn from(scheme: policy::Scheme) -> Self {
        match scheme {
            policy::Scheme::Http => Self::Http,
            policy::Scheme::Https => Self::Https,
        }
    }
}

#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(variant)]
pub(crate) enum IpAddress {
    #[component(name = "ipv4")]
    Ipv4((u8, u8, u8, u8)),
    #[component(name = "ipv6")]
    Ipv6((u16, u16, u16, u16, u16, u16, u16, u16)),
}

impl From<IpAddr> for IpAddress {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::Ipv4(ip.octets().into()),
            IpAddr::V6(ip) => Self::Ipv6(ip.segments().into()),
        }
    }
}

impl From<IpAddress> for IpAddr {
    fn from(ip: IpAddress) -> Self {
        match ip {
            IpAddress::Ipv4(octets) => Ipv4Addr::from(<[u8; 4]>::from(octets)).into(),
            IpAddress::Ipv6(segments) => Ipv6Addr::from(<[u16; 8]>::from(segments)).into(),
        }
    }
}

#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(record)]
pub(crate) struct SocketAddress {
    ip: IpAddress,
    port: u16,
}

impl From<SocketAddr> for SocketAddress {
    fn from(address: SocketAddr) -> Self {
        Self { ip: address.ip().into(), port: address.port() }
    }
}

#[derive(Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub(crate) struct EndpointLoad {
    pub(crate) available: bool,
    #[component(name = "in-flight")]
    pub(crate) in_flight: u32,
    /// Nanoseconds.
    pub(crate) latency: u64,
}

#[derive(Clone, ComponentType, Lift, Lower)]
#[component(record)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) value: Vec<u8>,
}

#[derive(Clone, ComponentType, Lift, Lower)]
#[component(record)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<Field>,
    pub(crate) body: Vec<u8>,
}

#[derive(Clone, Debug, ComponentType, Lower)]
#[component(variant)]
pub(crate) enum KvError {
    #[component(name = "too-large")]
    TooLarge,
    #[component(name = "not-a-number")]
    NotANumber,
    #[allow(dead_code, reason = "the contract has it, for what may come")]
    #[component(name = "other")]
    Other(Option<String>),
}

#[derive(Clone, Debug, ComponentType, Lower)]
#[component(variant)]
pub(crate) enum HttpError {
    #[component(name = "not-granted")]
    NotGranted,
    #[component(name = "timed-out")]
    TimedOut,
    #[component(name = "too-large")]
    TooLarge,
    #[component(name = "failed")]
    Failed(Option<String>),
    #[component(name = "other")]
    Other(Option<String>),
}

#[derive(Clone, Debug, ComponentType, Lower)]
#[component(variant)]
pub(crate) enum EditError {
    #[component(name = "invalid-name")]
    InvalidName,
    #[component(name = "invalid-value")]
    InvalidValue,
    #[component(name = "not-granted")]
    NotGranted,
    #[component(name = "other")]
    Other(Option<String>),
}

impl From<policy::EditError> for EditError {
    fn from(error: policy::EditError) -> Self {
        match error {
            policy::EditError::InvalidName => Self::InvalidName,
            policy::EditError::InvalidValue => Self::InvalidValue,
            policy::EditError::NotGranted => Self::NotGranted,
            policy::EditError::Other(text) => Self::Other(Some(text)),
        }
    }
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "guests make these values")]
pub(crate) enum Buffering {
    #[component(name = "stream")]
    Stream,
    #[component(name = "request")]
    Request,
    #[component(name = "both")]
    Both,
}

#[derive(Clone, ComponentType, Lift)]
#[component(variant)]
pub(crate) enum RouteAnswer {
    #[component(name = "pass")]
    Pass,
    #[component(name = "forward")]
    Forward(String),
    #[component(name = "respond")]
    Respond(Response),
}

#[derive(Clone, ComponentType, Lift)]
#[component(variant)]
pub(crate) enum TunnelAnswer {
    #[component(name = "pass")]
    Pass,
    #[component(name = "forward")]
    Forward(String),
    #[component(name = "refuse")]
    Refuse,
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(variant)]
pub(crate) enum Choice {
    #[component(name = "pass")]
    Pass,
    #[component(name = "endpoint")]
    Endpoint(u32),
    #[component(name = "hash")]
    Hash(u64),
    #[component(name = "none")]
    None,
}

impl From<Choice> for policy::Choice {
    fn from(choice: Choice) -> Self {
        match choice {
            Choice::Pass => Self::Pass,
            Choice::Endpoint(index) => Self::Endpoint(index),
            Choice::Hash(key) => Self::Hash(key),
            Choice::None => Self::None,
        }
    }
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(variant)]
pub(crate) enum Verdict {
    #[component(name = "stop")]
    Stop,
    #[component(name = "again")]
    Again(u64),
    #[component(name = "elsewhere")]
    Elsewhere(u64),
}

#[derive(Clone, Copy, ComponentType, Lower)]
#[component(enum)]
#[repr(u8)]
pub(crate) enum Proof {
    #[component(name = "unprocessed")]
    Unprocessed,
    #[component(name = "idempotent")]
    Idempotent,
    #[component(name = "unsafe")]
    Unsafe,
}

impl From<policy::Proof> for Proof {
    fn from(proof: policy::Proof) -> Self {
        match proof {
            policy::Proof::Unprocessed => Self::Unprocessed,
            policy::Proof::Idempotent => Self::Idempotent,
            policy::Proof::Unsafe => Self::Unsafe,
        }
    }
}

#[derive(Clone, ComponentType, Lower)]
#[component(variant)]
pub(crate) enum Cause {
    #[component(name = "connect")]
    Connect,
    #[component(name = "tls")]
    Tls,
    #[component(name = "reset")]
    Reset,
    #[component(name = "refused-stream")]
    RefusedStream,
    #[component(name = "go-away")]
    GoAway,
    #[component(name = "timeout")]
    Timeout,
    #[component(name = "status")]
    Status(u16),
    #[component(name = "other")]
    Other(Option<String>),
}

impl Cause {
    pub(crate) fn of(facts: &policy::AttemptFacts) -> Self {
        use policy::Cause::*;
        match facts.cause {
            ConnectTimeout | ConnectRefused | ConnectFailed => Self::Connect,
            TlsFailed | TlsCertificate => Self::Tls,
            Reset | StreamReset | ResponseTruncated => Self::Reset,
            RefusedStream => Self::RefusedStream,
            GoAway => Self::GoAway,
            HeaderTimeout | AttemptTimeout | IdleTimeout | TotalTimeout => Self::Timeout,
            Status => Self::Status(facts.status.map_or(0, |status| status.as_u16())),
            other => Self::Other(Some(other.name().to_owned())),
        }
    }
}

#[derive(Clone, ComponentType, Lift, Lower)]
#[component(variant)]
pub(crate) enum Node {
    #[component(name = "address")]
    Address(SocketAddress),
    #[component(name = "ip")]
    Ip(IpAddress),
    #[component(name = "unknown")]
    Unknown,
    #[component(name = "obfuscated")]
    Obfuscated(String),
}

#[derive(Clone, ComponentType, Lift, Lower)]
#[component(record)]
pub(crate) struct Element {
    #[component(name = "for")]
    r#for: Option<Node>,
    by: Option<Node>,
    host: Option<String>,
    proto: Option<String>,
}

flags! {
    FieldFamilies {
        #[component(name = "forwarded")]
        const FORWARDED;
        #[component(name = "x-forwarded")]
        const X_FORWARDED;
        #[component(name = "x-real-ip")]
        const X_REAL_IP;
    }
}

impl From<&policy::Node> for Node {
    fn from(node: &policy::Node) -> Self {
        match node {
            policy::Node::Address(address) => Self::Address((*address).into()),
            policy::Node::Ip(ip) => Self::Ip((*ip).into()),
            policy::Node::Unknown => Self::Unknown,
            policy::Node::Obfuscated(name) => Self::Obfuscated(name.clone()),
        }
    }
}

impl From<Node> for policy::Node {
    fn from(node: Node) -> Self {
        match node {
            Node::Address(address) => Self::Address(SocketAddr::new(address.ip.into(), address.port)),
            Node::Ip(ip) => Self::Ip(ip.into()),
            Node::Unknown => Self::Unknown,
            Node::Obfuscated(name) => Self::Obfuscated(name),
        }
    }
}

impl From<&policy::Element> for Element {
    fn from(element: &policy::Element) -> Self {
        Self {
            r#for: element.r#for.as_ref().map(Node::from),
            by: element.by.as_ref().map(Node::from),
            host: element.host.clone(),
            proto: element.proto.clone(),
        }
    }
}

impl From<Element> for policy::Element {
    fn from(element: Element) -> Self {
        Self {
            r#for: element.r#for.map(Into::into),
            by: element.by.map(Into::into),
            host: element.host,
            proto: element.proto,
        }
    }
}

impl From<FieldFamilies> for policy::Families {
    fn from(families: FieldFamilies) -> Self {
        Self {
            forwarded: families.contains(FieldFamilies::FORWARDED),
            x_forwarded: families.contains(FieldFamilies::X_FORWARDED),
            x_real_ip: families.contains(FieldFamilies::X_REAL_IP),
        }
    }
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "guests make these values")]
pub(crate) enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}
