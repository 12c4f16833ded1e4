//! What a gateway must know of gRPC (gRPC over HTTP/2): a call's deadline, and how a call fails.

use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use tidegate_policy::{DirectResponse, RequestHead};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

pub(super) fn is_call(request: &RequestHead) -> bool {
    let call = |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc");
    request.method == Method::POST && request.headers.get(header::CONTENT_TYPE).is_some_and(call)
}

/// How long the caller waits for all of a call; `None` where it does not say, or says nonsense.
pub(super) fn timeout(request: &RequestHead) -> Option<Duration> {
    let text = request.headers.get(GRPC_TIMEOUT).filter(|_| is_call(request))?.as_bytes();
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(count * 3600)),
        b'M' => Some(Duration::from_secs(count * 60)),
        b'S' => Some(Duration::from_secs(count)),
        b'm' => Some(Duration::from_millis(count)),
        b'u' => Some(Duration::from_micros(count)),
        b'n' => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// A call that fails here: its outcome is in `grpc-status`, without a message (trailers-only), and HTTP's status is 200.
pub(super) fn failure(status: StatusCode, token: &'static str, mut headers: HeaderMap) -> DirectResponse {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, code(status));
    headers.insert(GRPC_MESSAGE, HeaderValue::from_static(token));
    DirectResponse { status: StatusCode::OK, headers, body: Default::default() }
}

/// gRPC's mapping of HTTP statuses for a response that is not gRPC's own.
fn code(status: StatusCode) -> HeaderValue {
    HeaderValue::from_static(match status.as_u16() {
        400 => "13",
        403 => "7",
        404 => "12",
        408 | 504 => "4",
        413 | 429 => "8",
        502 | 503 => "14",
        _ => "2",
    })
}

#[cfg(test)]
mod tests {
    use tidegate_policy::contract::asked_with;

    use super::*;

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        let read = |value: &str| {
            let fields = [("content-type", "application/grpc+proto"), ("grpc-timeout", value)];
            timeout(&asked_with("POST", "/s/m", &fields).request)
        };
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("99999999M"), Some(Duration::from_secs(99_999_999 * 60)));
        assert_eq!(read("150m"), Some(Duration::from_millis(150)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        for nonsense in ["", "m", "1", "1x", "-1m", "1.5S", "123456789n"] {
            assert_eq!(read(nonsense), None, "{nonsense:?}");
        }
        assert_eq!(timeout(&asked_with("POST", "/", &[("grpc-timeout", "1S")]).request), None, "not a call");
    }
}
