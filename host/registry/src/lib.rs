//! Components in OCI registries: where they are, how they come and go, who signed them, and a store that outlives the
//! registry's absence.
//!
//! A [`Reference`] names an artifact. A [`Client`] pushes and pulls it, with every digest checked, every size bounded and
//! every step under a deadline; [`SigningKey`] and [`PublicKey`] sign and verify it the way cosign does, without any
//! service; a [`Store`] keeps what was pulled, and remembers which versions served; [`Revoked`] lists what is refused
//! wherever it comes from. Nothing here knows what a component does, or who asks for it.

mod client;
mod component;
mod credentials;
mod digest;
mod error;
mod manifest;
mod reference;
mod revoked;
mod signature;
mod store;

pub use client::{Client, Options, PlainHttp};
pub use component::{Component, Verifier};
pub use credentials::{Credentials, Login};
pub use digest::Digest;
pub use error::{Error, Kind};
pub use manifest::Layout;
pub use reference::{Reference, ReferenceError};
pub use revoked::{Revoked, RevokedError};
pub use signature::{KeyError, PublicKey, Signature, SignatureError, SigningKey};
pub use store::{Store, Version};
