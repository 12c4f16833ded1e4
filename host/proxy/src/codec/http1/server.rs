//! The client's side: requests in, responses out, in order, until either side has had enough.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderMap, StatusCode};
use tidegate_policy::{HttpVersion, ResponseHead, Scheme};

use super::body::{BodyReader, BodyWriter, gone, poll_closed, put_field, tunnel};
use super::framing::Framing;
use super::head::{self, ParsedRequest, Refusal};
use super::wire::{Conn, WRITE_AHEAD};
use crate::body::{Incoming, Length, Outgoing, SinkGone};
use crate::codec::{Served, date};
use crate::stream::Stream;
use crate::timer::{Deadline, Timers};

/// What a client may still send, and how long it may take, after a response that ended before its request did: closing
/// at once would reset the connection and could take the response with it (RFC 9112, section 9.6).
const LINGER_BYTES: usize = 256 * 1024;
const LINGER_TIME: Duration = Duration::from_secs(2);

/// Serves one connection until it ends.
pub(crate) async fn serve(stream: Stream, served: Rc<Served>, timers: Timers) {
    let conn = Rc::new(Conn::new(stream));
    let limits = &served.listener.limits;
    let mut count = 0;
    loop {
        let first = count == 0;
        let parsed = match next_request(&conn, &served, &timers, first).await {
            Next::Request(parsed) => parsed,
            Next::Refused(refusal) => {
                served.refused(HttpVersion::Http11, refusal.status.as_u16(), &refusal.reason);
                refuse(&conn, &refusal, &timers).await;
                break;
            }
            Next::End => return goodbye(&conn, &timers).await,
        };
        count += 1;
        let ParsedRequest { head, framing, keep_alive } = *parsed;
        conn.keep_alive.set(keep_alive && count < limits.max_requests_per_connection);
        conn.sent.set(false);
        conn.received.set(true);
        let body = match framing {
            Framing::None => Incoming::Empty,
            framing => Incoming::Http1(BodyReader::new(&conn, framing, limits.max_header_bytes, limits.max_headers)),
        };
        let reply = Reply { conn: conn.clone(), served: served.clone(), http10: head.version == HttpVersion::Http10 };
        served.exchange(head, body, crate::body::Reply::Http1(reply)).await;
        if !conn.sent.get() {
            // Cut short, or never answered: the close tells the client. It gets what there was, above all the head: a
            // client that sees nothing of a response takes its request for unprocessed and may send it again.
            return flush(&conn, &timers).await;
        }
        if !conn.received.get() || !conn.keep_alive.get() {
            break;
        }
    }
    linger(&conn, &timers).await;
}

enum Next {
    Request(Box<ParsedRequest>),
    Refused(Refusal),
    /// Nothing more will come, or nothing more is wanted.
    End,
}

/// Waits for a head: idle for a while, then whole within the header time. A client that connected and says nothing has
/// the header time only.
async fn next_request(conn: &Conn, served: &Served, timers: &Timers, first: bool) -> Next {
    let limits = &served.listener.limits;
    let scheme = if served.connection.tls { Scheme::Https } else { Scheme::Http };
    let mut deadline = Deadline::after(timers, Some(if first { limits.header_timeout } else { limits.idle_timeout }));
    let mut begun = false;
    loop {
        {
            let wire = &mut *conn.wire.borrow_mut();
            let (most, fields) = (limits.max_header_bytes, limits.max_headers);
            match head::take_request(&mut wire.read, &mut wire.scan, most, fields, scheme) {
                Ok(Some(parsed)) => return Next::Request(Box::new(parsed)),
                Ok(None) => {}
                Err(refusal) => return Next::Refused(refusal),
            }
            if !begun && !head::is_blank(&wire.read) {
                begun = true;
                if !first {
                    deadline = Deadline::after(timers, Some(limits.header_timeout));
                }
            }
        }
        // A pooled client connection that is idle when the drain begins ends; one that has begun a head may finish.
        let read = tokio::select! {
            biased;
            read = poll_fn(|cx| {
                let mut wire = conn.wire.borrow_mut();
                let read = wire.poll_fill(cx);
                if read.is_pending() {
                    // Ten thousand idle clients need no buffers.
                    wire.release();
                }
                read
            }) => read,
            () = deadline.elapsed() => {
                return if begun {
                    Next::Refused(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the head did not come in time"))
                } else {
                    Next::End
                };
            }
            () = served.drained(), if !begun => return Next::End,
        };
        match read {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Next::End,
        }
    }
}

/// Answers what is no request, and ends the connection.
async fn refuse(conn: &Conn, refusal: &Refusal, timers: &Timers) {
    let status = refusal.status;
    let body = format!("{} {}\n", status.as_u16(), status.canonical_reason().unwrap_or("error"));
    conn.wire.borrow_mut().text(|out| {
        put_status(out, status);
        put_field(out, b"date", date::value().as_bytes());
        put_field(out, b"content-type", b"text/plain; charset=utf-8");
        put_field(out, b"content-length", itoa::Buffer::new().format(body.len()).as_bytes());
        put_field(out, b"connection", b"close");
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(body.as_bytes());
    });
    flush(conn, timers).await;
}

/// Sends what is queued. A client that does not take it in time has lost it.
async fn flush(conn: &Conn, timers: &Timers) {
    let mut limit = Deadline::after(timers, Some(LINGER_TIME));
    tokio::select! {
        _ = poll_fn(|cx| conn.wire.borrow_mut().poll_send(cx, 0)) => {}
        () = limit.elapsed() => {}
    }
}

/// Ends a connection on which nothing is under way: over TLS not without saying so (RFC 8446, section 6.1).
async fn goodbye(conn: &Conn, timers: &Timers) {
    let mut limit = Deadline::after(timers, Some(LINGER_TIME));
    tokio::select! {
        _ = poll_fn(|cx| conn.wire.borrow_mut().poll_shutdown(cx)) => {}
        () = limit.elapsed() => {}
    }
}

/// Closes our side, and reads on a little so that the client gets what was written.
async fn linger(conn: &Conn, timers: &Timers) {
    let mut limit = Deadline::after(timers, Some(LINGER_TIME));
    let closing = async {
        let shut = poll_fn(|cx| conn.wire.borrow_mut().poll_shutdown(cx)).await;
        let mut read = 0;
        while shut.is_ok() && read < LINGER_BYTES {
            conn.wire.borrow_mut().read.clear();
            match poll_fn(|cx| conn.wire.borrow_mut().poll_fill(cx)).await {
                Ok(count @ 1..) => read += count,
                Ok(0) | Err(_) => break,
            }
        }
    };
    tokio::select! {
        () = closing => {}
        () = limit.elapsed() => {}
    }
}

fn put_status(out: &mut BytesMut, status: StatusCode) {
    out.reserve(256);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn put_fields(out: &mut BytesMut, headers: &HeaderMap) {
    for (name, value) in headers {
        put_field(out, name.as_str().as_bytes(), value.as_bytes());
    }
}

/// Where the response to the request at hand goes.
pub(crate) struct Reply {
    conn: Rc<Conn>,
    served: Rc<Served>,
    http10: bool,
}

impl Reply {
    /// None for HTTP/1.0 clients, which know no interim responses (RFC 9110, section 15.2).
    pub(crate) async fn interim(&mut self, head: ResponseHead) -> Result<(), SinkGone> {
        if self.http10 {
            return Ok(());
        }
        self.conn.wire.borrow_mut().text(|out| {
            put_status(out, head.status);
            put_fields(out, &head.headers);
            out.extend_from_slice(b"\r\n");
        });
        // A client that reads slowly must not hold up the exchange: what does not leave now follows in `poll_closed`.
        poll_fn(|cx| {
            let mut wire = self.conn.wire.borrow_mut();
            match wire.poll_send(cx, 0) {
                Poll::Pending if wire.unsent() <= WRITE_AHEAD => Poll::Ready(Ok(())),
                sent => sent,
            }
        })
        .await
        .map_err(gone)
    }

    pub(crate) fn head(self, head: ResponseHead, length: Length) -> Outgoing {
        let conn = &self.conn;
        let framing = match length {
            Length::None => Framing::None,
            Length::Known(length) => Framing::Length(length),
            Length::Unknown if self.http10 => Framing::UntilClose,
            Length::Unknown => Framing::Chunked,
        };
        let keep_alive =
            conn.keep_alive.get() && conn.received.get() && framing != Framing::UntilClose && !self.served.draining();
        conn.keep_alive.set(keep_alive);
        conn.wire.borrow_mut().text(|out| {
            put_status(out, head.status);
            put_fields(out, &head.headers);
            match framing {
                Framing::Length(length) => {
                    put_field(out, b"content-length", itoa::Buffer::new().format(length).as_bytes());
                }
                Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
                Framing::None | Framing::UntilClose | Framing::Tunnel => {}
            }
            if !keep_alive {
                out.extend_from_slice(b"connection: close\r\n");
            } else if self.http10 {
                out.extend_from_slice(b"connection: keep-alive\r\n");
            }
            out.extend_from_slice(b"\r\n");
        });
        Outgoing::Http1(BodyWriter::new(conn, framing))
    }

    /// Ends messages on this connection: 101 changes to `protocol` (RFC 9110, section 7.8), a 2xx opens what `CONNECT`
    /// asked for, without framing fields (section 9.3.6).
    pub(crate) async fn open(self, head: ResponseHead, protocol: &str) -> Result<(BodyReader, BodyWriter), SinkGone> {
        let conn = &self.conn;
        conn.wire.borrow_mut().text(|out| {
            put_status(out, head.status);
            put_fields(out, &head.headers);
            if head.status == StatusCode::SWITCHING_PROTOCOLS {
                out.extend_from_slice(b"connection: upgrade\r\n");
                put_field(out, b"upgrade", protocol.as_bytes());
            }
            out.extend_from_slice(b"\r\n");
        });
        let (reader, writer) = tunnel(conn);
        poll_fn(|cx| conn.wire.borrow_mut().poll_send(cx, 0)).await.map_err(gone)?;
        Ok((reader, writer))
    }

    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<SinkGone> {
        poll_closed(&self.conn, cx)
    }
}

#[cfg(test)]
mod tests;
