//! The one place that turns a fault into a response: status, `Proxy-Status`, body.
//!
//! The client learns the kind of failure (RFC 9209), never its details: those go to the log.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use tidegate_policy::{Cause, DirectResponse, HttpVersion, RequestHead, ResponseHead};

use crate::body::{Activity, Frame, Length, Reply, SinkGone};
use crate::codec::Served;
use crate::exchange::{grpc, shape};
use crate::snapshot::Snapshot;
use crate::timer::Deadline;

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// The status and the error token of RFC 9209, section 2.3, for each cause; `None` where there is nobody to answer.
fn answer(cause: Cause) -> Option<(StatusCode, &'static str)> {
    use Cause::*;
    Some(match cause {
        ConnectTimeout => (StatusCode::GATEWAY_TIMEOUT, "connection_timeout"),
        ConnectRefused => (StatusCode::BAD_GATEWAY, "connection_refused"),
        ConnectFailed => (StatusCode::BAD_GATEWAY, "destination_ip_unroutable"),
        TlsFailed => (StatusCode::BAD_GATEWAY, "tls_protocol_error"),
        TlsCertificate => (StatusCode::BAD_GATEWAY, "tls_certificate_error"),
        NoEndpoint => (StatusCode::SERVICE_UNAVAILABLE, "destination_unavailable"),
        PoolExhausted | ClusterFull => (StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached"),
        Reset | GoAway => (StatusCode::BAD_GATEWAY, "connection_terminated"),
        RefusedStream | StreamReset => (StatusCode::BAD_GATEWAY, "http_response_incomplete"),
        HeaderTimeout | AttemptTimeout | TotalTimeout => (StatusCode::GATEWAY_TIMEOUT, "http_response_timeout"),
        IdleTimeout => (StatusCode::GATEWAY_TIMEOUT, "connection_write_timeout"),
        ResponseInvalid => (StatusCode::BAD_GATEWAY, "http_protocol_error"),
        UpgradeFailed => (StatusCode::BAD_GATEWAY, "http_upgrade_failed"),
        ResponseHeadTooLarge => (StatusCode::BAD_GATEWAY, "http_response_header_section_size"),
        ResponseTruncated => (StatusCode::BAD_GATEWAY, "http_response_incomplete"),
        RequestInvalid => (StatusCode::BAD_REQUEST, "http_request_error"),
        RequestBodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "http_request_denied"),
        RequestBodyTimeout => (StatusCode::REQUEST_TIMEOUT, "http_request_error"),
        NoRoute => (StatusCode::NOT_FOUND, "destination_not_found"),
        // RFC 9110, section 15.5.20: the client may try again on another connection.
        Misdirected => (StatusCode::MISDIRECTED_REQUEST, "http_request_error"),
        Loop => (StatusCode::LOOP_DETECTED, "proxy_loop_detected"),
        TunnelDenied => (StatusCode::FORBIDDEN, "http_request_denied"),
        // RFC 9220, section 3.
        TunnelUnsupported => (StatusCode::NOT_IMPLEMENTED, "http_request_denied"),
        PolicyDenied => (StatusCode::SERVICE_UNAVAILABLE, "http_request_denied"),
        // RFC 6585, section 4: a quota, not a fault of the gateway that a balancer in front should see.
        TenantFull => (StatusCode::TOO_MANY_REQUESTS, "http_request_denied"),
        Overload | Draining => (StatusCode::SERVICE_UNAVAILABLE, "proxy_internal_response"),
        Status | Internal => (StatusCode::INTERNAL_SERVER_ERROR, "proxy_internal_error"),
        ClientGone => return None,
    })
}

/// The response to a request that failed for `cause`; `None` when the client is gone.
pub(super) fn to_fault(cause: Cause, request: &RequestHead, snapshot: &Snapshot) -> Option<DirectResponse> {
    let (status, token) = answer(cause)?;
    let mut headers = HeaderMap::with_capacity(4);
    if let Ok(value) = HeaderValue::try_from(format!("{}; error={token}", snapshot.via.pseudonym())) {
        headers.insert(PROXY_STATUS, value);
    }
    if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if grpc::is_call(request) {
        return Some(grpc::failure(status, token, headers));
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let reason = status.canonical_reason().unwrap_or("error");
    let body = format!("{} {reason}\n", status.as_u16()).into();
    Some(DirectResponse { status, headers, body })
}

/// Sends a response that the gateway made. Returns the bytes of its body.
pub(super) async fn send(
    served: &Served,
    method: &Method,
    response: DirectResponse,
    reply: Reply,
) -> Result<u64, SinkGone> {
    let DirectResponse { status, mut headers, body } = response;
    shape::complete(&mut headers, served.alt_svc.as_ref());
    headers.remove(header::CONTENT_LENGTH);
    let bodiless = method == Method::HEAD || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let length = if bodiless { Length::None } else { Length::Known(body.len() as u64) };
    if method == Method::HEAD {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    // The codec knows its own version; this one is only for interim bookkeeping.
    let head = ResponseHead { version: HttpVersion::Http11, status, headers };
    let sending = async {
        let activity = Activity::now();
        let mut out = reply.head(head, length)?;
        let mut sent = 0;
        if !bodiless && !body.is_empty() {
            sent = body.len() as u64;
            out.send(Frame::Data(body), &activity).await?;
        }
        out.finish(&activity).await?;
        Ok(sent)
    };
    taken(served, sending).await
}

/// Runs what the client must take: one that takes nothing for its idle time is given up, whatever it holds (a zero
/// window, no stream credit, an unread socket).
pub(super) async fn taken<T>(served: &Served, work: impl Future<Output = Result<T, SinkGone>>) -> Result<T, SinkGone> {
    let idle = served.listener.limits.body_idle_timeout;
    let mut limit = Deadline::after(&served.worker.timers, Some(idle));
    let mut work = pin!(work);
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(done),
        Poll::Pending => {
            limit.poll_elapsed(cx).map(|()| Err(SinkGone(format!("the client took nothing for {idle:?}"))))
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9209, section 2.3, and conduct "Timeout status": 502, 503 and 504 are told apart.
    #[test]
    fn every_cause_has_the_status_of_its_kind() {
        let status = |cause| answer(cause).map(|(status, _)| status.as_u16());
        for cause in [Cause::ConnectRefused, Cause::Reset, Cause::TlsCertificate, Cause::ResponseInvalid] {
            assert_eq!(status(cause), Some(502), "{cause:?}");
        }
        for cause in [Cause::NoEndpoint, Cause::PoolExhausted, Cause::ClusterFull, Cause::Overload] {
            assert_eq!(status(cause), Some(503), "{cause:?}");
        }
        for cause in [Cause::ConnectTimeout, Cause::AttemptTimeout, Cause::TotalTimeout] {
            assert_eq!(status(cause), Some(504), "{cause:?}");
        }
        assert_eq!(status(Cause::ClientGone), None);
    }
}
