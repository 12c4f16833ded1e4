//! Policies for the tidegate gateway, in Rust.
//!
//! A policy is a struct made from its settings, and an answer to a question:
//!
//! ```
//! use tidegate_sdk::{Forward, Policy, Request, Route, Router};
//!
//! #[derive(serde::Deserialize)]
//! struct ByTenant {
//!     default: String,
//! }
//!
//! impl Policy for ByTenant {
//!     type Settings = Self;
//!     fn new(settings: Self) -> Result<Self, String> {
//!         Ok(settings)
//!     }
//! }
//!
//! impl Router for ByTenant {
//!     fn route(&mut self, request: &Request, _: &mut Forward) -> Route {
//!         Route::Forward(request.header("x-tenant").unwrap_or_else(|| self.default.clone()))
//!     }
//! }
//!
//! tidegate_sdk::router!(ByTenant);
//!
//! // Natively, a policy is asked about made-up questions:
//! use tidegate_sdk::testing::Question;
//! let mut policy = ByTenant { default: "api".into() };
//! assert_eq!(Question::get("/").route(&mut policy), Route::Forward("api".into()));
//! assert_eq!(Question::get("/").header("x-tenant", "b").route(&mut policy), Route::Forward("b".into()));
//! ```
//!
//! Built for `wasm32-unknown-unknown` and made a component (`wasm-tools component new`), it needs nothing but the
//! gateway's own interfaces: no WASI. Facts are read when they are asked for, and what is asked for again and again comes
//! along with the question; what is not asked for is not copied.

#[cfg(any(test, all(target_arch = "wasm32", feature = "arena")))]
mod arena;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod bindings;
#[cfg(any(test, target_arch = "wasm32"))]
mod chain;
mod export;
mod facts;
pub mod http_client;
pub mod kv;
#[cfg(any(test, target_arch = "wasm32"))]
#[cfg_attr(test, allow(dead_code, reason = "its tests need less of it than guests do"))]
#[doc(hidden)]
pub mod prefetched;
mod questions;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod types;

#[cfg(all(target_arch = "wasm32", feature = "arena"))]
#[global_allocator]
static ALLOCATOR: arena::Arena = arena::Arena::new();

#[doc(hidden)]
pub use export::Holder;
pub use facts::{Attempt, Connection, Endpoints, Forward, Identity, Request, log, metrics, now, random, wall};
pub use questions::{Balancer, Forwarding, Policy, Retry, Router, TunnelRouter};
pub use types::{
    Buffering, Cause, Choice, EditError, Element, Families, HttpVersion, Level, Load, Node, Proof, Response, Route,
    Scheme, TunnelRoute, Verdict,
};
