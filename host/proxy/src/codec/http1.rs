//! HTTP/1.1 and 1.0 on both sides (RFC 9112): our own codec, on httparse for the syntax of heads.
//!
//! A connection is a `Wire` (buffers over a stream) in a `Conn` that its parts share: the reader of the body that comes
//! in, the writer of the one that goes out, and whoever waits for a head. All of them live on one worker, mostly in one
//! task, and none holds the wire across an await.

mod body;
mod chunked;
mod client;
mod framing;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod head;
mod server;
mod target;
mod wire;

pub(crate) use body::{BodyReader, BodyWriter};
pub(crate) use client::{Awaiting, ClientConnection, tunnel};
pub(crate) use server::{Reply, serve};
pub(crate) use target::{checked_authority, checked_connect, checked_target};
