//! Facts about the question at hand. In a guest each method is a call into the gateway; natively it reads the question
//! of [`testing`](crate::testing) that is being asked.

#[cfg(target_arch = "wasm32")]
#[path = "facts/guest.rs"]
mod source;
#[cfg(not(target_arch = "wasm32"))]
#[path = "facts/native.rs"]
mod source;

pub(crate) use source::{http_client, kv};
pub use source::{log, metrics};

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::{Buffering, Cause, EditError, Element, Families, HttpVersion, Load, Proof, Scheme};

/// Since any fixed point.
pub fn now() -> Duration {
    source::now()
}

/// Since 1970-01-01T00:00:00Z.
pub fn wall() -> Duration {
    source::wall()
}

/// The next number of the instance's own generator.
pub fn random() -> u64 {
    source::random()
}

/// The head of the request. Its body never comes here.
pub struct Request(());

impl Request {
    #[doc(hidden)]
    pub fn current() -> Self {
        Self(())
    }

    /// The client, after trusted forwarding fields.
    pub fn client(&self) -> IpAddr {
        source::client()
    }

    pub fn version(&self) -> HttpVersion {
        source::version()
    }

    pub fn method(&self) -> String {
        source::method()
    }

    pub fn scheme(&self) -> Scheme {
        source::scheme()
    }

    pub fn authority(&self) -> String {
        source::authority()
    }

    /// Without the query, exactly as received.
    pub fn path(&self) -> String {
        source::path()
    }

    pub fn query(&self) -> Option<String> {
        source::query()
    }

    /// The first field of this lower-case name, if it is UTF-8.
    pub fn header(&self, name: &str) -> Option<String> {
        self.header_bytes(name).and_then(|value| String::from_utf8(value).ok())
    }

    /// The first field of this lower-case name.
    pub fn header_bytes(&self, name: &str) -> Option<Vec<u8>> {
        source::header(name)
    }

    pub fn header_values(&self, name: &str) -> Vec<Vec<u8>> {
        source::header_values(name)
    }

    pub fn headers(&self) -> Vec<(String, Vec<u8>)> {
        source::headers()
    }

    pub fn cookie(&self, name: &str) -> Option<String> {
        source::cookie(name)
    }

    /// What a router of this request left.
    pub fn note(&self, name: &str) -> Option<String> {
        source::note(name)
    }

    /// Where it came on.
    pub fn connection(&self) -> Connection {
        Connection::current()
    }
}

/// The connection a request came on, or one that is not decrypted. Not for retry policies, whose world has none.
pub struct Connection(());

impl Connection {
    #[doc(hidden)]
    pub fn current() -> Self {
        Self(())
    }

    /// The other end of the socket.
    pub fn peer(&self) -> SocketAddr {
        source::peer()
    }

    /// Whom the gateway takes for the client of this connection.
    pub fn client(&self) -> SocketAddr {
        source::connection_client()
    }

    pub fn local(&self) -> SocketAddr {
        source::local()
    }

    pub fn listener(&self) -> String {
        source::listener()
    }

    /// The name in the TLS ClientHello, lower case.
    pub fn server_name(&self) -> Option<String> {
        source::server_name()
    }

    /// The protocol agreed on; of a connection that is not decrypted, the first that its ClientHello offers.
    pub fn alpn(&self) -> Option<String> {
        source::alpn()
    }

    /// DER of the client certificate that the gateway verified.
    pub fn client_certificate(&self) -> Option<Vec<u8>> {
        source::client_certificate()
    }

    /// A value of the PROXY v2 header, by type.
    pub fn proxy_tlv(&self, kind: u8) -> Option<Vec<u8>> {
        source::proxy_tlv(kind)
    }
}

/// A router's edits to the request that goes on, and to the response that comes back.
pub struct Forward(());

impl Forward {
    #[doc(hidden)]
    pub fn current() -> Self {
        Self(())
    }

    /// Without a query; starts with `/`.
    pub fn set_path(&mut self, path: &str) -> Result<(), EditError> {
        source::set_path(path)
    }

    /// `None` removes it.
    pub fn set_query(&mut self, query: Option<&str>) -> Result<(), EditError> {
        source::set_query(query)
    }

    pub fn set_authority(&mut self, authority: &str) -> Result<(), EditError> {
        source::set_authority(authority)
    }

    pub fn set_header(&mut self, name: &str, value: &[u8]) -> Result<(), EditError> {
        source::set_header(name, value)
    }

    pub fn append_header(&mut self, name: &str, value: &[u8]) -> Result<(), EditError> {
        source::append_header(name, value)
    }

    pub fn remove_header(&mut self, name: &str) -> Result<(), EditError> {
        source::remove_header(name)
    }

    pub fn set_response_header(&mut self, name: &str, value: &[u8]) -> Result<(), EditError> {
        source::set_response_header(name, value)
    }

    pub fn remove_response_header(&mut self, name: &str) -> Result<(), EditError> {
        source::remove_response_header(name)
    }

    /// Until the response head, all attempts together.
    pub fn set_timeout(&mut self, total: Duration) {
        source::set_timeout(total);
    }

    /// The same for each attempt.
    pub fn set_attempt_timeout(&mut self, each: Duration) {
        source::set_attempt_timeout(each);
    }

    pub fn set_buffering(&mut self, mode: Buffering) {
        source::set_buffering(mode);
    }

    /// For later questions of the same exchange.
    pub fn set_note(&mut self, name: &str, value: &str) {
        source::set_note(name, value);
    }
}

/// The endpoints of the cluster in question. Indexes hold within a generation.
pub struct Endpoints(());

impl Endpoints {
    #[doc(hidden)]
    pub fn current() -> Self {
        Self(())
    }

    pub fn cluster(&self) -> String {
        source::cluster()
    }

    /// Grows with every change: rebuild derived tables only then.
    pub fn generation(&self) -> u64 {
        source::generation()
    }

    pub fn size(&self) -> u32 {
        source::size()
    }

    pub fn address(&self, index: u32) -> SocketAddr {
        source::address(index)
    }

    pub fn weight(&self, index: u32) -> u32 {
        source::weight(index)
    }

    pub fn zone(&self, index: u32) -> Option<String> {
        source::zone(index)
    }

    pub fn label(&self, index: u32, key: &str) -> Option<String> {
        source::label(index, key)
    }

    /// Healthy, below its limits, and not tried yet by this exchange.
    pub fn available(&self, index: u32) -> bool {
        source::available(index)
    }

    /// All that are, in one copy.
    pub fn availables(&self) -> Vec<u32> {
        source::availables()
    }

    pub fn in_flight(&self, index: u32) -> u32 {
        source::in_flight(index)
    }

    /// Moving average of the time to the response head; zero before the first.
    pub fn latency(&self, index: u32) -> Duration {
        source::latency(index)
    }

    /// The three above in one call.
    pub fn load(&self, index: u32) -> Load {
        source::load(index)
    }

    /// Of all, in one copy.
    pub fn in_flights(&self) -> Vec<u32> {
        source::in_flights()
    }

    /// Of all, in one copy.
    pub fn latencies(&self) -> Vec<Duration> {
        source::latencies()
    }
}

/// The identity fields that the upstream request will carry.
pub struct Identity(());

impl Identity {
    #[doc(hidden)]
    pub fn current() -> Self {
        Self(())
    }

    /// From a trusted peer, nearest hop last.
    pub fn received(&self) -> Vec<Element> {
        source::received()
    }

    /// What the configured rule would send, nearest hop last.
    pub fn proposed(&self) -> Vec<Element> {
        source::proposed()
    }

    /// The whole chain to send.
    pub fn set_elements(&mut self, elements: Vec<Element>) -> Result<(), EditError> {
        source::set_elements(elements)
    }

    pub fn set_families(&mut self, families: Families) {
        source::set_families(families);
    }
}

/// The try that failed.
pub struct Attempt(());

impl Attempt {
    #[doc(hidden)]
    pub fn current() -> Self {
        Self(())
    }

    /// 1 for the first.
    pub fn number(&self) -> u32 {
        source::number()
    }

    /// The index of the endpoint that was tried.
    pub fn endpoint(&self) -> u32 {
        source::endpoint()
    }

    pub fn failure(&self) -> Cause {
        source::failure()
    }

    pub fn safety(&self) -> Proof {
        source::safety()
    }

    pub fn response_header(&self, name: &str) -> Option<String> {
        source::response_header(name).and_then(|value| String::from_utf8(value).ok())
    }

    pub fn elapsed(&self) -> Duration {
        source::elapsed()
    }

    pub fn time_left(&self) -> Duration {
        source::time_left()
    }

    pub fn retries_left(&self) -> u32 {
        source::retries_left()
    }
}
