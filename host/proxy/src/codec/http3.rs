//! HTTP/3 for clients (RFC 9114), over quinn and the `h3` crate, which has frames and QPACK. Between the two stands our
//! own transport, because a gateway must hear of a client that gives a request up while it is silent itself.

mod body;
mod server;
mod transport;

pub(crate) use body::{BodyReader, BodyWriter};
pub(crate) use server::{Reply, serve};
