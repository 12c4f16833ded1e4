//! Facts from the gateway: those that came along with the question, others by a call.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::bindings::facts::tidegate::policy as wit;
use crate::chain;
use crate::prefetched::{self, kind, part};
use crate::{Buffering, Cause, EditError, Element, Families, HttpVersion, Level, Load, Node, Proof, Scheme};

pub fn now() -> Duration {
    Duration::from_nanos(wit::clock::monotonic())
}

pub fn wall() -> Duration {
    Duration::from_nanos(wit::clock::wall())
}

pub fn random() -> u64 {
    prefetched::random().unwrap_or_else(wit::random::next)
}

/// A line in the gateway's log.
pub fn log(level: Level, message: &str) {
    use wit::log::Level as To;
    let level = match level {
        Level::Trace => To::Trace,
        Level::Debug => To::Debug,
        Level::Info => To::Info,
        Level::Warn => To::Warn,
        Level::Error => To::Error,
    };
    wit::log::write(level, message);
}

/// Counters and the like on the gateway's metrics page.
pub mod metrics {
    use crate::bindings::facts::tidegate::policy::metrics as wit;

    pub fn add(counter: &str, by: u64) {
        wit::add(counter, by);
    }

    pub fn set(gauge: &str, to: f64) {
        wit::set(gauge, to);
    }

    pub fn observe(histogram: &str, value: f64) {
        wit::observe(histogram, value);
    }
}

/// What outlives the question.
pub mod kv {
    use std::time::Duration;

    use super::nanos;
    use crate::bindings::facts::tidegate::policy::kv as wit;
    use crate::kv::Error;

    fn error(error: wit::KvError) -> Error {
        match error {
            wit::KvError::TooLarge => Error::TooLarge,
            wit::KvError::NotANumber => Error::NotANumber,
            wit::KvError::Other(text) => Error::Other(text),
        }
    }

    pub fn get(key: &str) -> Option<Vec<u8>> {
        wit::get(key)
    }

    pub fn set(key: &str, value: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
        wit::set(key, value, ttl.map(nanos)).map_err(error)
    }

    pub fn delete(key: &str) -> bool {
        wit::delete(key)
    }

    pub fn increment(key: &str, by: i64, ttl: Option<Duration>) -> Result<i64, Error> {
        wit::increment(key, by, ttl.map(nanos)).map_err(error)
    }

    pub fn compare_and_swap(
        key: &str,
        expected: Option<&[u8]>,
        value: Option<&[u8]>,
        ttl: Option<Duration>,
    ) -> Result<bool, Error> {
        wit::compare_and_swap(key, expected, value, ttl.map(nanos)).map_err(error)
    }
}

/// Calls to clusters.
pub mod http_client {
    use std::time::Duration;

    use super::nanos;
    use crate::Response;
    use crate::bindings::facts::tidegate::policy::{http_client as wit, types};
    use crate::http_client::{Error, Request};

    fn error(error: wit::HttpError) -> Error {
        match error {
            wit::HttpError::NotGranted => Error::NotGranted,
            wit::HttpError::TimedOut => Error::TimedOut,
            wit::HttpError::TooLarge => Error::TooLarge,
            wit::HttpError::Failed(text) => Error::Failed(text),
            wit::HttpError::Other(text) => Error::Other(text),
        }
    }

    pub fn send(request: &Request) -> Result<Response, Error> {
        let Request { cluster, method, path, headers, body, timeout } = request;
        let field = |(name, value): &(String, Vec<u8>)| types::Field { name: name.clone(), value: value.clone() };
        let headers: Vec<types::Field> = headers.iter().map(field).collect();
        let timeout = nanos(timeout.unwrap_or(Duration::ZERO));
        let response = wit::send(cluster, method, path, &headers, body, timeout).map_err(error)?;
        let headers = response.headers.into_iter().map(|field| (field.name, field.value)).collect();
        Ok(Response { status: response.status, headers, body: response.body })
    }
}

fn ip(address: wit::types::IpAddress) -> IpAddr {
    match address {
        wit::types::IpAddress::Ipv4((a, b, c, d)) => Ipv4Addr::new(a, b, c, d).into(),
        wit::types::IpAddress::Ipv6((a, b, c, d, e, f, g, h)) => Ipv6Addr::new(a, b, c, d, e, f, g, h).into(),
    }
}

fn edited(result: Result<(), wit::types::EditError>) -> Result<(), EditError> {
    result.map_err(|error| match error {
        wit::types::EditError::InvalidName => EditError::InvalidName,
        wit::types::EditError::InvalidValue => EditError::InvalidValue,
        wit::types::EditError::NotGranted => EditError::NotGranted,
        wit::types::EditError::Other(text) => EditError::Other(text),
    })
}

pub fn client() -> IpAddr {
    prefetched::ip(kind::CLIENT).unwrap_or_else(|| ip(wit::request::client()))
}

pub fn version() -> HttpVersion {
    prefetched::version().unwrap_or_else(|| match wit::request::version() {
        wit::types::HttpVersion::Http10 => HttpVersion::Http10,
        wit::types::HttpVersion::Http11 => HttpVersion::Http11,
        wit::types::HttpVersion::Http2 => HttpVersion::Http2,
        wit::types::HttpVersion::Http3 => HttpVersion::Http3,
    })
}

pub fn method() -> String {
    prefetched::text(kind::METHOD).unwrap_or_else(wit::request::method)
}

pub fn scheme() -> Scheme {
    prefetched::scheme().unwrap_or_else(|| match wit::request::scheme() {
        wit::types::UrlScheme::Http => Scheme::Http,
        wit::types::UrlScheme::Https => Scheme::Https,
    })
}

pub fn authority() -> String {
    prefetched::text(kind::AUTHORITY).unwrap_or_else(wit::request::authority)
}

pub fn path() -> String {
    prefetched::text(kind::PATH).unwrap_or_else(wit::request::path)
}

pub fn query() -> Option<String> {
    prefetched::optional_text(kind::QUERY, "").unwrap_or_else(wit::request::query)
}

pub fn header(name: &str) -> Option<Vec<u8>> {
    prefetched::optional(kind::HEADER, name).unwrap_or_else(|| wit::request::header(name))
}

pub fn header_values(name: &str) -> Vec<Vec<u8>> {
    wit::request::header_values(name)
}

pub fn headers() -> Vec<(String, Vec<u8>)> {
    wit::request::headers().into_iter().map(|field| (field.name, field.value)).collect()
}

pub fn cookie(name: &str) -> Option<String> {
    prefetched::optional_text(kind::COOKIE, name).unwrap_or_else(|| wit::request::cookie(name))
}

pub fn note(name: &str) -> Option<String> {
    prefetched::optional_text(kind::NOTE, name).unwrap_or_else(|| wit::request::note(name))
}

fn socket(address: wit::types::SocketAddress) -> SocketAddr {
    SocketAddr::new(ip(address.ip), address.port)
}

pub fn peer() -> SocketAddr {
    prefetched::socket(kind::PEER).unwrap_or_else(|| socket(wit::connection::peer()))
}

pub fn connection_client() -> SocketAddr {
    prefetched::socket(kind::CONNECTION_CLIENT).unwrap_or_else(|| socket(wit::connection::client()))
}

pub fn local() -> SocketAddr {
    prefetched::socket(kind::LOCAL).unwrap_or_else(|| socket(wit::connection::local()))
}

pub fn listener() -> String {
    prefetched::text(kind::LISTENER).unwrap_or_else(wit::connection::listener)
}

pub fn server_name() -> Option<String> {
    prefetched::optional_text(kind::SERVER_NAME, "").unwrap_or_else(wit::connection::server_name)
}

pub fn alpn() -> Option<String> {
    prefetched::optional_text(kind::ALPN, "").unwrap_or_else(wit::connection::alpn)
}

pub fn proxy_tlv(kind: u8) -> Option<Vec<u8>> {
    wit::connection::proxy_tlv(kind)
}

pub fn client_certificate() -> Option<Vec<u8>> {
    wit::connection::client_certificate()
}

pub fn set_path(path: &str) -> Result<(), EditError> {
    edited(wit::forward::set_path(path))
}

pub fn set_query(query: Option<&str>) -> Result<(), EditError> {
    edited(wit::forward::set_query(query))
}

pub fn set_authority(authority: &str) -> Result<(), EditError> {
    edited(wit::forward::set_authority(authority))
}

pub fn set_header(name: &str, value: &[u8]) -> Result<(), EditError> {
    edited(wit::forward::set_header(name, value))
}

pub fn append_header(name: &str, value: &[u8]) -> Result<(), EditError> {
    edited(wit::forward::append_header(name, value))
}

pub fn remove_header(name: &str) -> Result<(), EditError> {
    edited(wit::forward::remove_header(name))
}

pub fn set_response_header(name: &str, value: &[u8]) -> Result<(), EditError> {
    edited(wit::forward::set_response_header(name, value))
}

pub fn remove_response_header(name: &str) -> Result<(), EditError> {
    edited(wit::forward::remove_response_header(name))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

pub fn set_timeout(total: Duration) {
    wit::forward::set_timeout(nanos(total));
}

pub fn set_attempt_timeout(each: Duration) {
    wit::forward::set_attempt_timeout(nanos(each));
}

pub fn set_buffering(mode: Buffering) {
    wit::forward::set_buffering(match mode {
        Buffering::Stream => wit::forward::Buffering::Stream,
        Buffering::Request => wit::forward::Buffering::Request,
        Buffering::Both => wit::forward::Buffering::Both,
    });
}

pub fn set_note(name: &str, value: &str) {
    wit::forward::set_note(name, value);
}

pub fn cluster() -> String {
    prefetched::text(kind::CLUSTER).unwrap_or_else(wit::endpoints::cluster)
}

pub fn address(index: u32) -> SocketAddr {
    socket(wit::endpoints::address(index))
}

pub fn label(index: u32, key: &str) -> Option<String> {
    wit::endpoints::label(index, key)
}

pub fn in_flight(index: u32) -> u32 {
    prefetched::load(index).map_or_else(|| wit::endpoints::in_flight(index), |load| load.in_flight)
}

pub fn latency(index: u32) -> Duration {
    prefetched::load(index).map_or_else(|| Duration::from_nanos(wit::endpoints::latency(index)), |load| load.latency)
}

pub fn load(index: u32) -> Load {
    prefetched::load(index).unwrap_or_else(|| {
        let wit::endpoints::EndpointLoad { available, in_flight, latency } = wit::endpoints::load(index);
        Load { available, in_flight, latency: Duration::from_nanos(latency) }
    })
}

pub fn generation() -> u64 {
    prefetched::u64(kind::GENERATION).unwrap_or_else(wit::endpoints::generation)
}

pub fn size() -> u32 {
    prefetched::u32(kind::SIZE).unwrap_or_else(wit::endpoints::size)
}

pub fn weight(index: u32) -> u32 {
    wit::endpoints::weight(index)
}

pub fn zone(index: u32) -> Option<String> {
    wit::endpoints::zone(index)
}

pub fn available(index: u32) -> bool {
    prefetched::load(index).map_or_else(|| wit::endpoints::available(index), |load| load.available)
}

pub fn availables() -> Vec<u32> {
    prefetched::loads(|index, load| load.available.then_some(index)).unwrap_or_else(wit::endpoints::availables)
}

pub fn in_flights() -> Vec<u32> {
    prefetched::loads(|_, load| Some(load.in_flight)).unwrap_or_else(wit::endpoints::in_flights)
}

pub fn latencies() -> Vec<Duration> {
    prefetched::loads(|_, load| Some(load.latency))
        .unwrap_or_else(|| wit::endpoints::latencies().into_iter().map(Duration::from_nanos).collect())
}

fn node(node: wit::identity::Node) -> Node {
    match node {
        wit::identity::Node::Address(address) => Node::Address(socket(address)),
        wit::identity::Node::Ip(address) => Node::Ip(ip(address)),
        wit::identity::Node::Unknown => Node::Unknown,
        wit::identity::Node::Obfuscated(name) => Node::Obfuscated(name),
    }
}

fn element(element: wit::identity::Element) -> Element {
    Element { r#for: element.for_.map(node), by: element.by.map(node), host: element.host, proto: element.proto }
}

pub fn received() -> Vec<Element> {
    prefetched::elements(kind::RECEIVED).unwrap_or_else(|| wit::identity::received().into_iter().map(element).collect())
}

pub fn proposed() -> Vec<Element> {
    prefetched::elements(kind::PROPOSED).unwrap_or_else(|| wit::identity::proposed().into_iter().map(element).collect())
}

pub fn set_elements(elements: Vec<Element>) -> Result<(), EditError> {
    edited(wit::identity::set_encoded(&chain::encode(&elements)))
}

pub fn set_families(families: Families) {
    let mut flags = wit::identity::FieldFamilies::empty();
    for (on, flag) in [
        (families.forwarded, wit::identity::FieldFamilies::FORWARDED),
        (families.x_forwarded, wit::identity::FieldFamilies::X_FORWARDED),
        (families.x_real_ip, wit::identity::FieldFamilies::X_REAL_IP),
    ] {
        if on {
            flags = flags | flag;
        }
    }
    wit::identity::set_families(flags);
}

pub fn number() -> u32 {
    prefetched::attempt_u32(part::NUMBER).unwrap_or_else(wit::attempt::number)
}

pub fn endpoint() -> u32 {
    prefetched::attempt_u32(part::ENDPOINT).unwrap_or_else(wit::attempt::endpoint)
}

pub fn failure() -> Cause {
    prefetched::failure().unwrap_or_else(|| match wit::attempt::failure() {
        wit::attempt::Cause::Connect => Cause::Connect,
        wit::attempt::Cause::Tls => Cause::Tls,
        wit::attempt::Cause::Reset => Cause::Reset,
        wit::attempt::Cause::RefusedStream => Cause::RefusedStream,
        wit::attempt::Cause::GoAway => Cause::GoAway,
        wit::attempt::Cause::Timeout => Cause::Timeout,
        wit::attempt::Cause::Status(status) => Cause::Status(status),
        wit::attempt::Cause::Other(text) => Cause::Other(text),
    })
}

pub fn safety() -> Proof {
    prefetched::safety().unwrap_or_else(|| match wit::attempt::safety() {
        wit::attempt::Proof::Unprocessed => Proof::Unprocessed,
        wit::attempt::Proof::Idempotent => Proof::Idempotent,
        wit::attempt::Proof::Unsafe => Proof::Unsafe,
    })
}

pub fn response_header(name: &str) -> Option<Vec<u8>> {
    prefetched::optional(kind::RESPONSE_HEADER, name).unwrap_or_else(|| wit::attempt::response_header(name))
}

pub fn elapsed() -> Duration {
    prefetched::attempt_duration(part::ELAPSED).unwrap_or_else(|| Duration::from_nanos(wit::attempt::elapsed()))
}

pub fn time_left() -> Duration {
    prefetched::attempt_duration(part::TIME_LEFT).unwrap_or_else(|| Duration::from_nanos(wit::attempt::time_left()))
}

pub fn retries_left() -> u32 {
    prefetched::attempt_u32(part::RETRIES_LEFT).unwrap_or_else(wit::attempt::retries_left)
}
