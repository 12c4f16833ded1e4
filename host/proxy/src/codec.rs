//! What stands between a stream of bytes and exchanges: a codec per version, all speaking the request model of
//! `tidegate-policy` and the seam of `body`.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use http::HeaderValue;
use tidegate_policy::{ConnectionHead, HttpVersion, RequestHead};
use tokio::io::AsyncReadExt;

use crate::body::{Incoming, Reply};
use crate::exchange::{CertificateFields, Run};
use crate::snapshot::{Listener, Protocols};
use crate::stream::Stream;
use crate::timer::{Deadline, Timers};
use crate::worker::Worker;

pub(crate) mod date;
pub(crate) mod gather;
mod handshake;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod http3;
pub(crate) mod pseudo;
mod streams;

pub(crate) use handshake::Handshake;

/// What a codec knows of the connection it serves. One per connection, shared by its streams.
pub(crate) struct Served {
    pub(crate) worker: Rc<Worker>,
    pub(crate) listener: Arc<Listener>,
    pub(crate) connection: Rc<ConnectionHead>,
    /// The `Alt-Svc` of responses: HTTP/3 is to be had at the port that this client came to over TCP (RFC 7838).
    pub(crate) alt_svc: Option<HeaderValue>,
    /// The client's TLS handshake; complete where there is none.
    pub(crate) handshake: Handshake,
    certificate: OnceCell<CertificateFields>,
}

impl Served {
    pub(crate) fn new(worker: Rc<Worker>, listener: Arc<Listener>, connection: ConnectionHead) -> Self {
        Self::before_the_handshake(worker, listener, connection, Handshake::complete())
    }

    /// The same, where `handshake` may still be under way.
    pub(crate) fn before_the_handshake(
        worker: Rc<Worker>,
        listener: Arc<Listener>,
        connection: ConnectionHead,
        handshake: Handshake,
    ) -> Self {
        let over_tcp = connection.tls && connection.alpn.as_deref() != Some("h3");
        let announced =
            (listener.alt_svc && over_tcp).then(|| format!("h3=\":{}\"; ma=86400", connection.local.port()));
        let alt_svc = announced.and_then(|value| HeaderValue::try_from(value).ok());
        Self { worker, listener, connection: Rc::new(connection), alt_svc, handshake, certificate: OnceCell::new() }
    }

    /// What an upstream may be told of the client's certificate.
    pub(crate) fn certificate_fields(&self) -> &CertificateFields {
        self.certificate.get_or_init(|| CertificateFields::of(&self.connection))
    }

    /// Runs one exchange to its end. The reply is always used up: answered, or ended as an error.
    pub(crate) fn exchange(self: &Rc<Self>, head: RequestHead, body: Incoming, reply: Reply) -> Run {
        Run::new(self, head, body, reply)
    }

    /// Counts and logs a request that broke the protocol and never became an exchange. `reason` is for the log.
    pub(crate) fn refused(&self, version: HttpVersion, status: u16, reason: &str) {
        crate::observe::refused(self, version, status, reason);
    }

    /// Whether new work is to be declined: this connection should end after what it has in flight.
    pub(crate) fn draining(&self) -> bool {
        self.worker.drain.is_draining()
    }

    /// Completes when draining begins; at once when it has begun.
    pub(crate) async fn drained(&self) {
        self.worker.drain.begun().await;
    }
}

/// What an HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection without TLS: HTTP/2 by prior knowledge if it begins with the preface, else HTTP/1, each only where
/// the listener speaks it.
pub(crate) async fn serve_clear_text(stream: Stream, served: Rc<Served>, timers: Timers) {
    let Protocols { http1, http2, .. } = served.listener.protocols;
    let looked = if http2 { Box::pin(look_for_preface(stream, &served, &timers)).await } else { Some((stream, false)) };
    let Some((stream, is_http2)) = looked else { return };
    if is_http2 {
        Box::pin(http2::serve(stream, served, timers)).await;
    } else if http1 {
        Box::pin(http1::serve(stream, served, timers)).await;
    } else {
        served.refused(HttpVersion::Http11, 0, "this listener does not speak HTTP/1");
    }
}

/// The stream with what was read of it put back, and whether that is HTTP/2's preface. `None` for a client that is gone.
async fn look_for_preface(mut stream: Stream, served: &Served, timers: &Timers) -> Option<(Stream, bool)> {
    let mut ahead = BytesMut::with_capacity(PREFACE.len());
    let mut deadline = Deadline::after(timers, Some(served.listener.limits.header_timeout));
    while ahead.len() < PREFACE.len() && PREFACE.starts_with(&ahead) {
        let mut missing = [0; PREFACE.len()];
        let room = &mut missing[..PREFACE.len() - ahead.len()];
        let read = tokio::select! {
            read = stream.read(room) => read,
            () = deadline.elapsed() => return None,
            () = served.drained(), if ahead.is_empty() => return None,
        };
        match read {
            Ok(count @ 1..) => ahead.extend_from_slice(&room[..count]),
            // Gone, or half of a preface: nobody to answer.
            Ok(0) | Err(_) => return None,
        }
    }
    let is_http2 = ahead == PREFACE;
    Some((stream.put_back(ahead.freeze()), is_http2))
}
