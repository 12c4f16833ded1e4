//! Bytes under keys that outlive a question: needs `grants.kv` in the plugin's configuration.
//!
//! The gateway keeps them for all its workers, within the bytes that were granted: when those are taken, what was not used
//! for longest goes, so nothing here is sure to be there. An answer that used any of it is not remembered by a memo.
//!
//! ```
//! use std::time::Duration;
//! use tidegate_sdk::testing::Question;
//! use tidegate_sdk::{Forward, Policy, Request, Response, Route, Router, kv};
//!
//! /// A hundred requests a minute for each client.
//! struct Limit;
//!
//! impl Policy for Limit {
//!     type Settings = ();
//!     fn new(_: ()) -> Result<Self, String> {
//!         Ok(Self)
//!     }
//! }
//!
//! impl Router for Limit {
//!     fn route(&mut self, request: &Request, _: &mut Forward) -> Route {
//!         let asked = kv::increment(&request.client().to_string(), 1, Some(Duration::from_secs(60)));
//!         if asked.is_ok_and(|asked| asked > 100) {
//!             return Route::Respond(Response { status: 429, headers: vec![], body: vec![] });
//!         }
//!         Route::Pass
//!     }
//! }
//!
//! let mut question = Question::get("/");
//! for _ in 0..100 {
//!     assert_eq!(question.route(&mut Limit), Route::Pass);
//! }
//! assert!(matches!(question.route(&mut Limit), Route::Respond(_)));
//! question.now += Duration::from_secs(60);
//! assert_eq!(question.route(&mut Limit), Route::Pass);
//! ```

use std::fmt;
use std::time::Duration;

use crate::facts::kv as source;

/// Why an operation was refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Error {
    /// The key is longer than 512 bytes, or the value than a mebibyte or than was granted.
    TooLarge,
    /// What is there is no decimal number.
    NotANumber,
    /// As a later gateway may say.
    Other(Option<String>),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => f.write_str("key or value is too large"),
            Self::NotANumber => f.write_str("what is there is not a number"),
            Self::Other(text) => f.write_str(text.as_deref().unwrap_or("refused")),
        }
    }
}

impl std::error::Error for Error {}

/// What is there.
pub fn get(key: &str) -> Option<Vec<u8>> {
    source::get(key)
}

/// Without a `ttl` it stays until it is deleted or has to make room.
pub fn set(key: &str, value: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
    source::set(key, value, ttl)
}

/// Whether there was one.
pub fn delete(key: &str) -> bool {
    source::delete(key)
}

/// Adds to a decimal number, and gives the sum. A key that is not there counts as 0, and `ttl` is its time from then on: it
/// does not move the end of one that is there.
pub fn increment(key: &str, by: i64, ttl: Option<Duration>) -> Result<i64, Error> {
    source::increment(key, by, ttl)
}

/// Sets `value`, or deletes where that is `None`, if what is there is `expected`; whether it was.
pub fn compare_and_swap(
    key: &str,
    expected: Option<&[u8]>,
    value: Option<&[u8]>,
    ttl: Option<Duration>,
) -> Result<bool, Error> {
    source::compare_and_swap(key, expected, value, ttl)
}
