//! Facts from the question that `testing` asks on this thread.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::testing::{with_question, with_question_mut};
use crate::{Buffering, Cause, EditError, Element, Families, HttpVersion, Level, Load, Proof, Scheme};

pub fn now() -> Duration {
    with_question(|q| q.now)
}

pub fn wall() -> Duration {
    with_question(|q| q.wall)
}

/// A fixed sequence: tests repeat.
pub fn random() -> u64 {
    with_question_mut(|q| {
        q.random = q.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        q.random
    })
}

/// A line of the policy, on the test's own output.
pub fn log(level: Level, message: &str) {
    println!("{level:?}: {message}");
}

/// Counters go nowhere natively.
pub mod metrics {
    pub fn add(_: &str, _: u64) {}
    pub fn set(_: &str, _: f64) {}
    pub fn observe(_: &str, _: f64) {}
}

/// Kept with the question: ask the same one again to see what was kept.
pub mod kv {
    use std::time::Duration;

    use crate::kv::Error;
    use crate::testing::{with_question, with_question_mut};

    /// As the gateway has them.
    const MAX_KEY: usize = 512;
    const MAX_VALUE: usize = 1 << 20;

    pub fn get(key: &str) -> Option<Vec<u8>> {
        with_question(|q| {
            q.kv.get(key).filter(|(_, end)| end.is_none_or(|end| q.now < end)).map(|(value, _)| value.clone())
        })
    }

    fn put(key: &str, value: Vec<u8>, end: Option<Duration>) -> Result<(), Error> {
        if key.len() > MAX_KEY || value.len() > MAX_VALUE {
            return Err(Error::TooLarge);
        }
        with_question_mut(|q| q.kv.insert(key.to_owned(), (value, end)));
        Ok(())
    }

    fn end(ttl: Option<Duration>) -> Option<Duration> {
        with_question(|q| ttl.map(|ttl| q.now + ttl))
    }

    pub fn set(key: &str, value: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
        put(key, value.to_vec(), end(ttl))
    }

    pub fn delete(key: &str) -> bool {
        let there = get(key).is_some();
        with_question_mut(|q| q.kv.remove(key));
        there
    }

    pub fn increment(key: &str, by: i64, ttl: Option<Duration>) -> Result<i64, Error> {
        let (number, end) = match get(key) {
            None => (0, end(ttl)),
            Some(value) => {
                let text = std::str::from_utf8(&value).ok();
                let number = text.and_then(|text| text.parse::<i64>().ok()).ok_or(Error::NotANumber)?;
                (number, with_question(|q| q.kv.get(key).and_then(|(_, end)| *end)))
            }
        };
        let sum = number.saturating_add(by);
        put(key, sum.to_string().into_bytes(), end)?;
        Ok(sum)
    }

    pub fn compare_and_swap(
        key: &str,
        expected: Option<&[u8]>,
        value: Option<&[u8]>,
        ttl: Option<Duration>,
    ) -> Result<bool, Error> {
        if get(key).as_deref() != expected {
            return Ok(false);
        }
        match value {
            Some(value) => set(key, value, ttl)?,
            None => {
                delete(key);
            }
        }
        Ok(true)
    }
}

/// The origins of the question: closures that stand in for clusters.
pub mod http_client {
    use crate::Response;
    use crate::http_client::{Error, Request};
    use crate::testing::{with_question, with_question_mut};

    pub fn send(request: &Request) -> Result<Response, Error> {
        with_question_mut(|q| q.called.push(request.clone()));
        let origin = with_question(|q| q.origins.get(&request.cluster).cloned());
        origin.map_or(Err(Error::NotGranted), |origin| origin.0(request))
    }
}

pub fn header(name: &str) -> Option<Vec<u8>> {
    with_question(|q| q.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone()))
}

pub fn header_values(name: &str) -> Vec<Vec<u8>> {
    with_question(|q| q.headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.clone()).collect())
}

pub fn cookie(name: &str) -> Option<String> {
    let fields = header_values("cookie");
    fields.iter().find_map(|field| {
        let text = std::str::from_utf8(field).ok()?;
        text.split(';').find_map(|pair| {
            let (key, value) = pair.trim().split_once('=')?;
            (key == name).then(|| value.to_owned())
        })
    })
}

pub fn note(name: &str) -> Option<String> {
    with_question(|q| q.notes.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.clone()))
}

pub fn response_header(name: &str) -> Option<Vec<u8>> {
    with_question(|q| q.response_headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone()))
}

pub fn weight(index: u32) -> u32 {
    with_question(|q| q.endpoints.get(index as usize).map_or(0, |endpoint| endpoint.weight))
}

pub fn zone(index: u32) -> Option<String> {
    with_question(|q| q.endpoints.get(index as usize)?.zone.clone())
}

pub fn address(index: u32) -> SocketAddr {
    let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
    with_question(|q| q.endpoints.get(index as usize).map_or(unknown, |endpoint| endpoint.address))
}

pub fn label(index: u32, key: &str) -> Option<String> {
    with_question(|q| {
        let labels = &q.endpoints.get(index as usize)?.labels;
        labels.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    })
}

pub fn in_flight(index: u32) -> u32 {
    with_question(|q| q.endpoints.get(index as usize).map_or(0, |endpoint| endpoint.in_flight))
}

pub fn load(index: u32) -> Load {
    Load { available: available(index), in_flight: in_flight(index), latency: latency(index) }
}

pub fn latency(index: u32) -> Duration {
    with_question(|q| q.endpoints.get(index as usize).map_or(Duration::ZERO, |endpoint| endpoint.latency))
}

pub fn cluster() -> String {
    with_question(|q| q.cluster.clone())
}

pub fn available(index: u32) -> bool {
    with_question(|q| q.endpoints.get(index as usize).is_some_and(|endpoint| endpoint.available))
}

pub fn availables() -> Vec<u32> {
    (0..size()).filter(|index| available(*index)).collect()
}

pub fn set_path(path: &str) -> Result<(), EditError> {
    if !path.starts_with('/') {
        return Err(EditError::InvalidValue);
    }
    with_question_mut(|q| q.edited.path = Some(path.to_owned()));
    Ok(())
}

pub fn set_query(query: Option<&str>) -> Result<(), EditError> {
    with_question_mut(|q| q.edited.query = Some(query.map(str::to_owned)));
    Ok(())
}

pub fn set_authority(authority: &str) -> Result<(), EditError> {
    with_question_mut(|q| q.edited.authority = Some(authority.to_owned()));
    Ok(())
}

pub fn set_header(name: &str, value: &[u8]) -> Result<(), EditError> {
    with_question_mut(|q| q.edited.headers.push((name.to_owned(), Some(value.to_owned()))));
    Ok(())
}

pub fn append_header(name: &str, value: &[u8]) -> Result<(), EditError> {
    with_question_mut(|q| q.edited.appended.push((name.to_owned(), value.to_owned())));
    Ok(())
}

pub fn remove_header(name: &str) -> Result<(), EditError> {
    with_question_mut(|q| q.edited.headers.push((name.to_owned(), None)));
    Ok(())
}

pub fn set_response_header(name: &str, value: &[u8]) -> Result<(), EditError> {
    with_question_mut(|q| q.edited.response_headers.push((name.to_owned(), Some(value.to_owned()))));
    Ok(())
}

pub fn remove_response_header(name: &str) -> Result<(), EditError> {
    with_question_mut(|q| q.edited.response_headers.push((name.to_owned(), None)));
    Ok(())
}

pub fn set_timeout(total: Duration) {
    with_question_mut(|q| q.edited.timeout = Some(total));
}

pub fn set_attempt_timeout(each: Duration) {
    with_question_mut(|q| q.edited.attempt_timeout = Some(each));
}

pub fn set_buffering(mode: Buffering) {
    with_question_mut(|q| q.edited.buffering = Some(mode));
}

pub fn set_note(name: &str, value: &str) {
    with_question_mut(|q| q.notes.push((name.to_owned(), value.to_owned())));
}

pub fn set_elements(elements: Vec<Element>) -> Result<(), EditError> {
    with_question_mut(|q| q.edited.elements = Some(elements));
    Ok(())
}

pub fn set_families(families: Families) {
    with_question_mut(|q| q.edited.families = Some(families));
}

pub fn client() -> IpAddr {
    with_question(|q| q.client)
}

pub fn version() -> HttpVersion {
    with_question(|q| q.version)
}

pub fn method() -> String {
    with_question(|q| q.method.clone())
}

pub fn scheme() -> Scheme {
    with_question(|q| q.scheme)
}

pub fn authority() -> String {
    with_question(|q| q.authority.clone())
}

pub fn path() -> String {
    with_question(|q| q.path.clone())
}

pub fn query() -> Option<String> {
    with_question(|q| q.query.clone())
}

pub fn headers() -> Vec<(String, Vec<u8>)> {
    with_question(|q| q.headers.clone())
}

pub fn peer() -> SocketAddr {
    with_question(|q| SocketAddr::new(q.client, 40_000))
}

pub fn connection_client() -> SocketAddr {
    peer()
}

pub fn local() -> SocketAddr {
    with_question(|q| q.local)
}

pub fn listener() -> String {
    with_question(|q| q.listener.clone())
}

pub fn server_name() -> Option<String> {
    with_question(|q| q.server_name.clone())
}

pub fn alpn() -> Option<String> {
    with_question(|q| q.alpn.clone())
}

pub fn client_certificate() -> Option<Vec<u8>> {
    with_question(|q| q.client_certificate.clone())
}

pub fn proxy_tlv(kind: u8) -> Option<Vec<u8>> {
    with_question(|q| q.proxy_tlvs.iter().find(|(k, _)| *k == kind).map(|(_, value)| value.clone()))
}

pub fn generation() -> u64 {
    with_question(|q| q.generation)
}

pub fn size() -> u32 {
    with_question(|q| q.endpoints.len() as u32)
}

pub fn in_flights() -> Vec<u32> {
    with_question(|q| q.endpoints.iter().map(|endpoint| endpoint.in_flight).collect())
}

pub fn latencies() -> Vec<Duration> {
    with_question(|q| q.endpoints.iter().map(|endpoint| endpoint.latency).collect())
}

pub fn received() -> Vec<Element> {
    with_question(|q| q.received.clone())
}

pub fn proposed() -> Vec<Element> {
    with_question(|q| q.proposed.clone())
}

pub fn number() -> u32 {
    with_question(|q| q.number)
}

pub fn endpoint() -> u32 {
    with_question(|q| q.tried)
}

pub fn failure() -> Cause {
    with_question(|q| q.failure.clone())
}

pub fn safety() -> Proof {
    with_question(|q| q.safety)
}

pub fn elapsed() -> Duration {
    with_question(|q| q.elapsed)
}

pub fn time_left() -> Duration {
    with_question(|q| q.time_left)
}

pub fn retries_left() -> u32 {
    with_question(|q| q.retries_left)
}
