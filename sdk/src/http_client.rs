//! Calls to clusters while a question is asked: needs `grants.http` in the plugin's configuration.
//!
//! The policy waits, and its worker serves others meanwhile: on each of them it is asked in another instance, so nothing of
//! one question is there in the next for certain. How long a decision may wait for all its calls is `limits.wait`. An answer
//! that made a call is not remembered by a memo.
//!
//! ```
//! use tidegate_sdk::http_client::{self, Error};
//! use tidegate_sdk::testing::Question;
//! use tidegate_sdk::{Forward, Policy, Request, Response, Route, Router};
//!
//! /// Asks a service of ours whether the caller may.
//! struct Authorised;
//!
//! impl Policy for Authorised {
//!     type Settings = ();
//!     fn new(_: ()) -> Result<Self, String> {
//!         Ok(Self)
//!     }
//! }
//!
//! impl Router for Authorised {
//!     fn route(&mut self, request: &Request, _: &mut Forward) -> Route {
//!         let token = request.header("authorization").unwrap_or_default();
//!         let asked = http_client::Request::get("auth", "/check").header("authorization", &token).send();
//!         let status = match asked {
//!             Ok(response) if response.status == 200 => return Route::Pass,
//!             Ok(_) => 403,
//!             Err(_) => 503,
//!         };
//!         Route::Respond(Response { status, headers: vec![], body: vec![] })
//!     }
//! }
//!
//! // Natively, a closure stands in for the cluster.
//! let auth = |request: &http_client::Request| {
//!     let good = request.headers.iter().any(|(name, value)| name == "authorization" && value == b"Bearer good");
//!     Ok(Response { status: if good { 200 } else { 401 }, headers: vec![], body: vec![] })
//! };
//! let mut question = Question::get("/").header("authorization", "Bearer good").origin("auth", auth);
//! assert_eq!(question.route(&mut Authorised), Route::Pass);
//! assert_eq!(question.called[0].path, "/check");
//! let mut refused = Question::get("/").origin("auth", auth);
//! assert!(matches!(refused.route(&mut Authorised), Route::Respond(response) if response.status == 403));
//! let mut late = Question::get("/").origin("auth", |_| Err(Error::TimedOut));
//! assert!(matches!(late.route(&mut Authorised), Route::Respond(response) if response.status == 503));
//! ```

use std::fmt;
use std::time::Duration;

use crate::Response;
use crate::facts::http_client as source;

/// A request to a cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    pub cluster: String,
    pub method: String,
    /// And query.
    pub path: String,
    /// Names lower case. Framing, `host`, hop-by-hop and forwarding fields are the gateway's.
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    /// `None`: as long as the decision may wait.
    pub timeout: Option<Duration>,
}

impl Request {
    pub fn new(method: &str, cluster: &str, path: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            method: method.to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            timeout: None,
        }
    }

    pub fn get(cluster: &str, path: &str) -> Self {
        Self::new("GET", cluster, path)
    }

    pub fn post(cluster: &str, path: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::new("POST", cluster, path) }
    }

    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Until the end of the response.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sends it, and waits for the whole response, whatever its status.
    pub fn send(&self) -> Result<Response, Error> {
        source::send(self)
    }
}

/// Why there is no response.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Error {
    /// The cluster is not among those granted. Nothing is where `Policy::new` runs, and in a shadow.
    NotGranted,
    TimedOut,
    /// A body is longer than was granted, the request's or the response's.
    TooLarge,
    /// The cluster gave none, or the request is none that can be sent.
    Failed(Option<String>),
    /// There is no room for it now, or as a later gateway may say.
    Other(Option<String>),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotGranted => f.write_str("not granted"),
            Self::TimedOut => f.write_str("no response in time"),
            Self::TooLarge => f.write_str("a body is too large"),
            Self::Failed(text) => f.write_str(text.as_deref().unwrap_or("no response")),
            Self::Other(text) => f.write_str(text.as_deref().unwrap_or("refused")),
        }
    }
}

impl std::error::Error for Error {}
