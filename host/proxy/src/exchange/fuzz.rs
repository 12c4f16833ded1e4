//! Properties of what the exchange reads out of header fields.

use http::{Method, StatusCode};
use tidegate_policy::native::{Nominated, is_hop_by_hop};
use tidegate_policy::{HttpVersion, RequestHead, Scheme, Target};

use super::{admit, compress, grpc, shape, upgrade};
use crate::body::{Coding, Length};
use crate::fuzz::header_map;
use crate::snapshot::Compression;

/// grpc-timeout, max-forwards, accept-encoding, cache-control, connection, sec-websocket-key: no field makes anything panic;
/// hop-by-hop fields and nominated ones are gone where they must be; a compressed head is consistent.
pub fn small_fields(data: &[u8]) {
    let [method, data @ ..] = data else { return };
    let methods = [Method::GET, Method::HEAD, Method::POST, Method::OPTIONS, Method::TRACE, Method::CONNECT];
    let headers = header_map(data);
    let request = RequestHead {
        version: HttpVersion::Http11,
        method: methods[usize::from(*method) % methods.len()].clone(),
        scheme: Scheme::Https,
        authority: "a.example".into(),
        target: Target::new("/a?b".into()),
        headers: headers.clone(),
        tunnel: None,
    };
    let _ = grpc::timeout(&request);
    let _ = admit::max_forwards(&request);
    if let Ok(key) = upgrade::handshake_key(&request) {
        assert_eq!(key.len(), 24);
    }
    let mut stripped = headers.clone();
    shape::strip_hop_by_hop(&mut stripped);
    let nominated = Nominated::from(&headers);
    for name in stripped.keys() {
        assert!(!is_hop_by_hop(name) && !nominated.contains(name), "{name}");
    }
    let compression = Compression {
        codings: Box::new(Coding::ALL),
        types: Box::new(["text/*".to_owned()]),
        min_size: 1,
        credentials: true,
    };
    let mut response = headers.clone();
    let coding = compress::negotiate(&compression, &request, StatusCode::OK, &mut response, Length::Known(100));
    match coding {
        Some(coding) => {
            assert_eq!(response.get_all("content-encoding").iter().count(), 1);
            assert_eq!(response["content-encoding"], coding.name());
            assert!(!response.contains_key("content-length") && !response.contains_key("accept-ranges"));
            assert!(response.get("etag").is_none_or(|tag| !tag.as_bytes().starts_with(b"\"")));
            assert!(response.contains_key("vary"));
        }
        None => assert_eq!(response.get("content-encoding"), headers.get("content-encoding")),
    }
}
