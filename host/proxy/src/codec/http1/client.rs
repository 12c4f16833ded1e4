//! The upstream's side: requests out, responses in, one at a time on a connection.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use http::{Method, StatusCode, header};
use tidegate_policy::{Cause, Fault, Tunnel};

use super::body::{self, BodyReader, BodyWriter, put_field};
use super::framing::Framing;
use super::head::{self, BadResponse};
use super::wire::Conn;
use crate::body::{Arrived, Incoming, Length, Outgoing};
use crate::exchange::OutgoingHead;
use crate::stream::Stream;

/// Most interim responses before the final one: more is an attack on whoever relays them.
const MAX_INTERIM: usize = 16;
/// Most fields of a response head.
const MAX_FIELDS: usize = 256;

/// A connection to an origin. Clones share it.
#[derive(Clone)]
pub(crate) struct ClientConnection {
    conn: Rc<Conn>,
    max_head_bytes: usize,
}

impl ClientConnection {
    pub(crate) fn new(stream: Stream, max_head_bytes: usize) -> Self {
        Self { conn: Rc::new(Conn::new(stream)), max_head_bytes }
    }

    /// Writes the head, and sends it if nothing follows; else the body's writer sends both together.
    pub(crate) async fn start(&self, head: &OutgoingHead, length: Length) -> Result<(Outgoing, Awaiting), Fault> {
        let conn = &self.conn;
        conn.received.set(false);
        conn.sent.set(false);
        let framing = match length {
            Length::None => Framing::None,
            Length::Known(length) => Framing::Length(length),
            Length::Unknown => Framing::Chunked,
        };
        {
            let mut wire = conn.wire.borrow_mut();
            wire.written = false;
            wire.text(|out| put_head(out, head, framing));
        }
        let out = if framing == Framing::None {
            poll_fn(|cx| conn.wire.borrow_mut().poll_send(cx, 0)).await.map_err(|error| {
                let fault = Fault::new(Cause::Reset, format!("sending the request: {error}"));
                if self.written() { fault } else { fault.nothing_written() }
            })?;
            conn.sent.set(true);
            Outgoing::Ended
        } else {
            Outgoing::Http1(BodyWriter::new(conn, framing))
        };
        let awaiting = Awaiting {
            conn: conn.clone(),
            method: head.method.clone(),
            upgrades: head.upgrade.is_some(),
            interim: Cell::new(0),
            max_head_bytes: self.max_head_bytes,
        };
        Ok((out, awaiting))
    }

    /// Request and response are both complete, both sides keep the connection, and nothing came that nobody asked for
    /// (RFC 9112, section 9.3; what follows a response unasked would be taken for the next one's).
    pub(crate) fn reusable(&self) -> bool {
        let conn = &self.conn;
        let idle = conn.received.get() && conn.sent.get() && conn.keep_alive.get();
        idle && conn.wire.try_borrow().is_ok_and(|wire| wire.read.is_empty() && !wire.eof && wire.unsent() == 0)
    }

    /// Takes no request after this one.
    pub(crate) fn retire(&self) {
        self.conn.keep_alive.set(false);
    }

    /// Ready when an idle connection must be discarded: closed by the origin, or not silent.
    pub(crate) fn poll_stale(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut wire = self.conn.wire.borrow_mut();
        if !wire.read.is_empty() {
            return Poll::Ready(());
        }
        let stale = wire.poll_fill(cx).map(|_| ());
        if stale.is_pending() {
            wire.release();
        }
        stale
    }

    /// Whether any byte of the current request has left the process.
    pub(crate) fn written(&self) -> bool {
        self.conn.wire.borrow().written
    }
}

/// Both ends of a connection on which no HTTP is spoken.
pub(crate) fn tunnel(stream: Stream) -> (Incoming, Outgoing) {
    let (reader, writer) = body::tunnel(&Rc::new(Conn::new(stream)));
    (Incoming::Http1(reader), Outgoing::Http1(writer))
}

pub(super) fn put_head(out: &mut BytesMut, head: &OutgoingHead, framing: Framing) {
    out.reserve(512);
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(head.target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    put_field(out, b"host", head.authority.as_bytes());
    let (mut te, mut version) = (false, false);
    head.for_each(|name, value| {
        te |= name == header::TE;
        version |= name == header::SEC_WEBSOCKET_VERSION;
        put_field(out, name.as_str().as_bytes(), value.as_bytes());
    });
    // RFC 9110, sections 7.8 and 10.1.4: a sender of Upgrade, or of TE, names it in Connection.
    match (&head.upgrade, te) {
        (Some(_), true) => out.extend_from_slice(b"connection: upgrade, te\r\n"),
        (Some(_), false) => out.extend_from_slice(b"connection: upgrade\r\n"),
        (None, true) => out.extend_from_slice(b"connection: te\r\n"),
        (None, false) => {}
    }
    if let Some(key) = &head.upgrade {
        put_field(out, b"upgrade", Tunnel::WebSocket.name().as_bytes());
        put_field(out, b"sec-websocket-key", key.as_bytes());
        if !version {
            // A client of HTTP/2 that left it out means the only one there is (RFC 6455, section 4.1).
            out.extend_from_slice(b"sec-websocket-version: 13\r\n");
        }
    }
    match framing {
        Framing::Length(length) => put_field(out, b"content-length", itoa::Buffer::new().format(length).as_bytes()),
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        // RFC 9110, section 8.6: methods that usually have content say that there is none.
        Framing::None if [Method::POST, Method::PUT, Method::PATCH].contains(&head.method) => {
            out.extend_from_slice(b"content-length: 0\r\n");
        }
        Framing::None | Framing::UntilClose | Framing::Tunnel => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// A response that has not come yet.
pub(crate) struct Awaiting {
    conn: Rc<Conn>,
    method: Method,
    /// Another protocol was asked for: 101 is an answer.
    upgrades: bool,
    interim: Cell<usize>,
    max_head_bytes: usize,
}

impl Awaiting {
    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arrived, Fault>> {
        let invalid = |reason: String| Poll::Ready(Err(Fault::new(Cause::ResponseInvalid, reason)));
        let wire = &mut *self.conn.wire.borrow_mut();
        loop {
            match head::take_response(&mut wire.read, &mut wire.scan, self.max_head_bytes, MAX_FIELDS, &self.method) {
                Err(BadResponse::Invalid(reason)) => return invalid(reason),
                Err(BadResponse::TooLarge) => {
                    let detail = format!("the response head is longer than {} bytes", self.max_head_bytes);
                    return Poll::Ready(Err(Fault::new(Cause::ResponseHeadTooLarge, detail)));
                }
                Ok(None) => {}
                Ok(Some(parsed)) if parsed.head.status == StatusCode::SWITCHING_PROTOCOLS && self.upgrades => {
                    // RFC 9110, section 7.8: to what, and that it is this connection that changes.
                    let headers = &parsed.head.headers;
                    let agreed = head::lists(headers, &header::CONNECTION, "upgrade")
                        && head::lists(headers, &header::UPGRADE, Tunnel::WebSocket.name());
                    self.conn.keep_alive.set(false);
                    if !agreed {
                        let fault = Fault::new(Cause::UpgradeFailed, "101 without the upgrade that was asked for");
                        return Poll::Ready(Err(fault));
                    }
                    let (reader, writer) = body::tunnel(&self.conn);
                    let (reader, writer) = (Incoming::Http1(reader), Outgoing::Http1(writer));
                    return Poll::Ready(Ok(Arrived::Tunnel(parsed.head, reader, writer)));
                }
                Ok(Some(parsed)) if parsed.head.status == StatusCode::SWITCHING_PROTOCOLS => {
                    return invalid("101 to a request that asked for no upgrade".to_owned());
                }
                Ok(Some(parsed)) if parsed.head.status.is_informational() => {
                    self.interim.set(self.interim.get() + 1);
                    if self.interim.get() > MAX_INTERIM {
                        return invalid(format!("more than {MAX_INTERIM} interim responses"));
                    }
                    return Poll::Ready(Ok(Arrived::Interim(parsed.head)));
                }
                Ok(Some(parsed)) => {
                    self.conn.keep_alive.set(self.conn.keep_alive.get() && parsed.keep_alive);
                    let body = match parsed.framing {
                        Framing::None => {
                            self.conn.received.set(true);
                            Incoming::Empty
                        }
                        framing => {
                            let reader = BodyReader::new(&self.conn, framing, self.max_head_bytes, MAX_FIELDS);
                            Incoming::Http1(reader)
                        }
                    };
                    return Poll::Ready(Ok(Arrived::Final(parsed.head, body)));
                }
            }
            let failed = match wire.poll_fill(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) if wire.read.is_empty() => "closed before a response".to_owned(),
                Poll::Ready(Ok(0)) => "closed within the response head".to_owned(),
                Poll::Ready(Ok(_)) => continue,
                Poll::Ready(Err(error)) => error.to_string(),
            };
            self.conn.keep_alive.set(false);
            let fault = Fault::new(Cause::Reset, failed);
            return Poll::Ready(Err(if wire.written { fault } else { fault.nothing_written() }));
        }
    }
}

#[cfg(test)]
mod tests;
