//! HTTP/2 on both sides, over the `h2` crate (RFC 9113). The crate has frames, flow control and HPACK; what a request
//! may look like and how bodies stream is ours.

mod body;
mod client;
mod server;

pub(crate) use body::{BodyReader, BodyWriter};
pub(crate) use client::{Awaiting, ClientConnection};
pub(crate) use server::{Reply, serve};

/// A stream may have this much in flight: enough for 100 Mbit/s over 20 ms.
const STREAM_WINDOW: u32 = 256 * 1024;
/// And a connection this: several streams at full rate, a bound on what one client can make us hold.
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
/// What may wait in the crate's send buffer, per stream.
const SEND_BUFFER: usize = 64 * 1024;
