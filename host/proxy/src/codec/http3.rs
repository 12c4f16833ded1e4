//! HTTP/3 on both sides (RFC 9114), over quinn. Frames, QPACK and what a message may look like are ours: a gateway must
//! bound what a peer can make it hold, tell a cut-off message from a whole one, hear of a peer that gives up while it is
//! silent itself, and know which requests an origin never saw. Of the `h3` crate we use the error codes; the tests use
//! its client and server as peers.
//!
//! From the wire inwards: `varint`, `frame`, `qpack` and `message` are slices and values; `stream` is a request stream, `uni` and
//! `control` are the others; `link` is what the streams of a connection share, `budget` its patience; `fields` makes heads
//! of field sections; `datagrams` sorts those of QUIC by their stream; `body`, `server` and `client` are the seam to the exchange.

mod body;
mod budget;
mod client;
mod control;
mod datagrams;
mod fields;
mod frame;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod link;
mod message;
mod qpack;
mod server;
mod stream;
mod uni;
pub(crate) mod varint;

pub(crate) use body::{BodyReader, BodyWriter};
pub(crate) use client::{Awaiting, ClientConnection};
pub(crate) use datagrams::{Datagrams, Sent};
pub(crate) use server::{Reply, serve};
