//! When to try again, by rule; and what may be tried again at all.

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use bytestring::ByteString;
use http::{HeaderMap, StatusCode, header};

use crate::{Answered, Asked, AttemptFacts, Cause, Decision, EndpointsView, Proof, Retry, Verdict};

/// What the core allows, whatever a policy says (conduct, section 2): nothing once the client has seen the response,
/// nothing without the whole body at hand, and never what could act twice.
pub fn permitted(proof: Proof, replayable: bool, response_started: bool) -> bool {
    replayable && !response_started && proof != Proof::Unsafe
}

/// The failures that a route retries.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RetryOn {
    /// No connection: refused, unreachable, timed out, TLS failed.
    pub connect: bool,
    /// The connection or stream ended before a response head.
    pub reset: bool,
    /// The upstream said it did not process it: REFUSED_STREAM, GOAWAY, 421.
    pub refused: bool,
    /// An attempt's time was over.
    pub timeout: bool,
    /// 502, 503, 504.
    pub gateway: bool,
    pub server_error: bool,
    pub statuses: Vec<StatusCode>,
}

/// The configured rule of a route: conditions and a jittered, growing pause.
#[derive(Clone, Debug)]
pub struct RetryRules {
    pub on: RetryOn,
    pub backoff: Duration,
    pub max_backoff: Duration,
}

/// Longest `Retry-After` that is waited for; beyond it the client is told instead.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(10);

impl RetryRules {
    pub fn retries_status(&self, status: StatusCode) -> bool {
        let on = &self.on;
        (on.gateway && matches!(status.as_u16(), 502..=504))
            || (on.server_error && status.is_server_error())
            || (on.refused && status == StatusCode::MISDIRECTED_REQUEST)
            || on.statuses.contains(&status)
    }

    fn retries(&self, cause: Cause, status: Option<StatusCode>) -> bool {
        use Cause::*;
        match cause {
            ConnectTimeout | ConnectRefused | ConnectFailed | TlsFailed => self.on.connect,
            // A certificate does not get better by asking again.
            TlsCertificate => false,
            Reset | StreamReset | ResponseTruncated => self.on.reset,
            RefusedStream | GoAway => self.on.refused,
            HeaderTimeout | AttemptTimeout => self.on.timeout,
            Status => status.is_some_and(|status| self.retries_status(status)),
            _ => false,
        }
    }

    /// Full jitter: anything from nothing to the doubled pause, so that clients do not come back in step.
    fn pause(&self, number: u32) -> Duration {
        let doubled = self.backoff.saturating_mul(1 << number.saturating_sub(1).min(16)).min(self.max_backoff);
        doubled.mul_f64(fastrand::f64())
    }
}

/// `Retry-After` as a pause from now: seconds or a date (RFC 9110, section 10.2.3).
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    // The library's reader would take a sign.
    if text.starts_with('+') {
        return None;
    }
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

impl Retry for RetryRules {
    fn name(&self) -> ByteString {
        ByteString::from_static("rules")
    }

    fn decide(&self, _: &Rc<Asked>, attempt: &Rc<AttemptFacts>, view: &EndpointsView) -> Decision<Verdict> {
        if !self.retries(attempt.cause, attempt.status) {
            return Ok(Answered::native(Verdict::Stop));
        }
        let mut pause = self.pause(attempt.number);
        if let Some(asked_for) = retry_after(&attempt.headers) {
            if asked_for > LONGEST_RETRY_AFTER || asked_for >= attempt.time_left {
                return Ok(Answered::native(Verdict::Stop));
            }
            pause = pause.max(asked_for);
        }
        // A connection that the upstream itself gave up says nothing against the endpoint.
        let stays = view.len() < 2 || attempt.cause == Cause::GoAway;
        Ok(Answered::native(if stays { Verdict::Again(pause) } else { Verdict::Elsewhere(pause) }))
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Method};

    use super::*;
    use crate::Fault;
    use crate::contract::{asked, attempt, endpoints};

    /// Conduct, section 2: one row of the table each.
    #[test]
    fn the_truth_table() {
        let rows = [
            // event, unprocessed?, POST, GET
            (Cause::ConnectRefused, true, true),
            (Cause::ConnectTimeout, true, true),
            (Cause::TlsFailed, true, true),
            (Cause::RefusedStream, true, true),
            (Cause::GoAway, true, true),
            (Cause::StreamReset, false, true),
            (Cause::Reset, false, true),
            (Cause::AttemptTimeout, false, true),
            (Cause::Status, false, true),
            (Cause::ResponseInvalid, false, true),
        ];
        for (cause, post, get) in rows {
            let fault = Fault::new(cause, "");
            let allowed = |method| permitted(Proof::of(fault.unprocessed, &method), true, false);
            assert_eq!((allowed(Method::POST), allowed(Method::GET)), (post, get), "{cause:?}");
            assert!(
                !permitted(Proof::of(fault.unprocessed, &Method::GET), false, false),
                "the body is gone: {cause:?}"
            );
            assert!(!permitted(Proof::of(fault.unprocessed, &Method::GET), true, true), "after the head: {cause:?}");
        }
        let unwritten = Fault::new(Cause::Reset, "").nothing_written();
        assert!(permitted(Proof::of(unwritten.unprocessed, &Method::POST), true, false));
        for idempotent in [Method::PUT, Method::DELETE, Method::HEAD, Method::OPTIONS, Method::TRACE] {
            assert!(permitted(Proof::of(false, &idempotent), true, false), "{idempotent}");
        }
        assert!(!permitted(Proof::of(false, &Method::PATCH), true, false));
    }

    fn rules() -> RetryRules {
        let on = RetryOn { connect: true, gateway: true, ..RetryOn::default() };
        RetryRules { on, backoff: Duration::from_millis(20), max_backoff: Duration::from_millis(100) }
    }

    fn decide(facts: AttemptFacts) -> Verdict {
        let view = EndpointsView::new(endpoints(&[1, 1]), Duration::ZERO);
        rules().decide(&asked("GET", "/"), &Rc::new(facts), &view).expect("native").value
    }

    #[test]
    fn conditions_pause_and_retry_after() {
        assert!(
            matches!(decide(attempt(1, Cause::ConnectRefused)), Verdict::Elsewhere(p) if p <= Duration::from_millis(20))
        );
        assert_eq!(decide(attempt(1, Cause::Reset)), Verdict::Stop);
        assert_eq!(decide(attempt(1, Cause::TlsCertificate)), Verdict::Stop);
        let status = |code: u16, after: Option<&'static str>| {
            let mut facts = attempt(1, Cause::Status);
            facts.status = StatusCode::from_u16(code).ok();
            if let Some(after) = after {
                facts.headers.insert(header::RETRY_AFTER, HeaderValue::from_static(after));
            }
            decide(facts)
        };
        assert_eq!(status(500, None), Verdict::Stop);
        assert!(matches!(status(503, None), Verdict::Elsewhere(_)));
        assert_eq!(status(503, Some("3600")), Verdict::Stop);
        assert!(matches!(status(503, Some("+3600")), Verdict::Elsewhere(_)), "no delay-seconds");
        assert!(matches!(status(503, Some("2")), Verdict::Elsewhere(p) if p == Duration::from_secs(2)));
        assert!(
            matches!(status(503, Some("Sun, 06 Nov 1994 08:49:37 GMT")), Verdict::Elsewhere(p) if p < Duration::from_secs(1))
        );
    }

    #[test]
    fn the_pause_doubles_up_to_its_bound() {
        let longest = |number| (0..200).map(|_| rules().pause(number)).max().unwrap_or_default();
        assert!(longest(2) <= Duration::from_millis(40) && longest(2) > Duration::from_millis(20));
        assert!(longest(30) <= Duration::from_millis(100));
    }
}
