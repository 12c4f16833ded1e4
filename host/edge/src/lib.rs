//! Components that answer requests in place of an origin: the world `wasi:http/proxy` 0.2.
//!
//! An [`Edge`] is the engine they share, a [`Component`] is one of them with its limits. It serves HTTP/1.1 on a connection in
//! memory, and every request has an instance of its own, which runs on the thread that asks and gives way to others while it
//! waits or computes for long. Nothing here knows of sockets, or of the gateway's configuration.

mod component;
mod engine;
mod guest;
mod imports;
mod meter;
mod output;
mod serve;
mod stats;

pub use component::{Component, ComponentSpec, Limits, LoadError};
pub use engine::{Edge, EdgeError, EdgeOptions};
pub use imports::offered;
pub use stats::{FAULTS, Stats};
