//! The harness of the black-box tests: the real program on free ports, origins that do as they are told, clients of all
//! three versions of HTTP. It knows nothing of the crates under `host/`.

pub mod bench;
pub mod certs;
pub mod client;
pub mod eventually;
pub mod gateway;
pub mod lab;
pub mod link;
pub mod namespace;
pub mod origin;
pub mod peer;
pub mod peers;
pub mod quic;
pub mod registry;
pub mod soak;
pub mod tap;
pub mod tunnel;

pub use client::{Answer, Client, RawClient};
pub use eventually::eventually;
pub use gateway::{Gateway, program};
pub use link::{Link, Way};
pub use origin::{Origin, RawOrigin, Recorded};
pub use peer::Peer;
pub use registry::Registry;
pub use tap::{Seen, Tap};
