//! How a policy asks for an HTTP call while it is asked itself: a value that goes out, a value that comes back.
//!
//! Who serves exchanges implements [`Egress`] on the pools it has; who runs policies holds a callout against what the policy
//! was granted before it sends it. Neither knows the other.

use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use http::{HeaderMap, Method, StatusCode};
use thiserror::Error;

use crate::edits::{HeaderEdits, is_target_byte};
use crate::{EditError, Target};

/// A request that a policy makes to a cluster.
#[derive(Clone, Debug)]
pub struct Callout {
    pub cluster: ByteString,
    pub method: Method,
    pub target: Target,
    /// Fields that a policy may set: [`is_core_field`](crate::is_core_field) holds for none.
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Until the end of its response.
    pub timeout: Duration,
    /// Bytes of the response's body.
    pub max_response: u64,
}

/// The whole response to a callout, without the fields that speak of one connection.
#[derive(Clone, Debug)]
pub struct CalloutResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there is none. The words are for the policy and for the log.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum CalloutError {
    #[error("not granted")]
    NotGranted,
    #[error("no response in time")]
    TimedOut,
    #[error("too large")]
    TooLarge,
    /// The request is none that can be sent, or the cluster gave no response.
    #[error("{0}")]
    Failed(String),
    /// There is no room for it now.
    #[error("{0}")]
    Refused(String),
}

/// A response on its way. Dropped, the callout is given up.
pub type Sent = Pin<Box<dyn Future<Output = Result<CalloutResponse, CalloutError>>>>;

/// Who sends callouts, for the questions of one exchange, on its worker.
pub trait Egress {
    /// Sends it to an endpoint that the cluster's own algorithm picks, within the cluster's bounds. No route and no other
    /// policy is asked. The cluster must be one that the exchange's tenant may name.
    fn send(self: Rc<Self>, callout: Callout) -> Sent;

    /// A guest ran on this thread for that long, between two waits.
    fn guest_ran(&self, time: Duration);
}

/// Longest path and query, in bytes.
const MAX_TARGET: usize = 16 * 1024;

impl Callout {
    /// Holds what a policy wants to send against the rules of every request: a method that is a token and opens no tunnel
    /// (RFC 9110, section 9.3.6), a target in origin form, fields of the right form that are not the core's.
    ///
    /// # Errors
    /// Which of these does not hold.
    pub fn new<'a>(
        cluster: &str,
        method: &str,
        target: &str,
        fields: impl IntoIterator<Item = (&'a str, &'a [u8])>,
        body: Bytes,
    ) -> Result<Self, CalloutError> {
        let failed = |why: String| CalloutError::Failed(why);
        let parsed = Method::from_bytes(method.as_bytes()).ok().filter(|method| method != Method::CONNECT);
        let method = parsed.ok_or_else(|| failed(format!("{method:?} is not a method for a callout")))?;
        if !target.starts_with('/') || target.len() > MAX_TARGET || !target.bytes().all(is_target_byte) {
            return Err(failed("the path does not begin with /, or has what no path may have".to_owned()));
        }
        let mut edits = HeaderEdits::default();
        for (name, value) in fields {
            edits.append(name, value).map_err(|error: EditError| failed(format!("the field {name:?}: {error}")))?;
        }
        let mut headers = HeaderMap::new();
        edits.apply(&mut headers);
        Ok(Self {
            cluster: cluster.into(),
            method,
            target: Target::new(target.into()),
            headers,
            body,
            timeout: Duration::ZERO,
            max_response: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callout(method: &str, target: &str, fields: &[(&str, &str)]) -> Result<Callout, CalloutError> {
        let fields = fields.iter().map(|(name, value)| (*name, value.as_bytes()));
        Callout::new("auth", method, target, fields, Bytes::new())
    }

    #[test]
    fn what_no_client_may_send_no_policy_may() {
        let made = callout("POST", "/check?x=1", &[("x-a", "1"), ("x-a", "2")]).expect("a callout");
        assert_eq!((made.target.path(), made.target.query()), ("/check", Some("x=1")));
        assert_eq!(made.headers.get_all("x-a").iter().count(), 2);
        for (method, target, fields) in [
            ("CONNECT", "/", &[][..]),
            ("G ET", "/", &[]),
            ("", "/", &[]),
            ("GET", "", &[]),
            ("GET", "*", &[]),
            ("GET", "http://other/", &[]),
            ("GET", "/a b", &[]),
            ("GET", "/a\r\nx: y", &[]),
            ("GET", "/#part", &[]),
            ("GET", "/", &[("host", "other")]),
            ("GET", "/", &[("content-length", "7")]),
            ("GET", "/", &[("transfer-encoding", "chunked")]),
            ("GET", "/", &[("transfer_encoding", "chunked")]),
            ("GET", "/", &[("connection", "x-a")]),
            ("GET", "/", &[("upgrade", "websocket")]),
            ("GET", "/", &[("x-forwarded-for", "192.0.2.1")]),
            ("GET", "/", &[("via", "1.1 other")]),
            ("GET", "/", &[("x-a", "1\r\nx-b: 2")]),
            ("GET", "/", &[("X-A", "1")]),
        ] {
            let refused = callout(method, target, fields);
            assert!(matches!(refused, Err(CalloutError::Failed(_))), "{method} {target} {fields:?}: {refused:?}");
        }
    }
}
