//! Properties of what the exchange reads out of header fields.

use http::{Method, StatusCode};
use tidegate_policy::native::{Nominated, is_hop_by_hop};
use tidegate_policy::{HttpVersion, RequestHead, ResponseHead, Scheme, Target};

use super::{admit, compress, grpc, shape, upgrade};
use crate::body::{Coding, Length};
use crate::fuzz::header_map;
use crate::snapshot::Compression;

/// grpc-timeout, max-forwards, via, retry-after, accept-encoding, cache-control, connection, sec-websocket-key: no field makes anything panic;
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
    match admit::max_forwards(&request) {
        admit::Hops::Left(left) => {
            // As many as were stated, less this one: never more.
            let stated = headers[http::header::MAX_FORWARDS].to_str().ok().and_then(|text| text.parse::<u64>().ok());
            assert_eq!(Some(left + 1), stated);
        }
        admit::Hops::Ended(answer) => assert!(answer.status.is_success()),
        admit::Hops::Any => {}
    }
    let members = headers.get_all("via").iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    assert!(admit::passes(&headers, "gw") <= members.count());
    tidegate_policy::fuzz::retry_after(&headers);
    if let Ok(key) = upgrade::handshake_key(&request) {
        assert_eq!(key.len(), 24);
        // Only the answer to this key opens a tunnel.
        let mut head = ResponseHead {
            version: HttpVersion::Http11,
            status: StatusCode::SWITCHING_PROTOCOLS,
            headers: headers.clone(),
        };
        let answered = upgrade::accepted(&head, Some(&key)).is_ok();
        assert!(!answered || headers.get_all("sec-websocket-accept").iter().count() == 1);
        head.headers.remove("sec-websocket-accept");
        assert!(upgrade::accepted(&head, Some(&key)).is_err());
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
