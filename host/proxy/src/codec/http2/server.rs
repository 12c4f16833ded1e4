//! The client's side of HTTP/2: streams become exchanges, a task each.

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response, StatusCode};
use tidegate_policy::{HttpVersion, ResponseHead, Tunnel};

use super::body::{BodyReader, BodyWriter, gone, reset};
use super::{CONNECTION_WINDOW, SEND_BUFFER, STREAM_WINDOW};
use crate::body::{Incoming, Length, Outgoing, SinkGone};
use crate::codec::Served;
use crate::codec::pseudo::{Refused, request_head, stated_length};
use crate::codec::streams::{Running, Streams};
use crate::stream::Stream;
use crate::timer::{Deadline, Timers};

/// Resets of streams that were not yet accepted, and errors of the client's own making, before the connection is
/// closed: CVE-2023-44487 (rapid reset) and CVE-2025-8671 (MadeYouReset).
const MAX_RESETS: usize = 64;

/// How long a client without a stream may take to answer a GOAWAY.
const GOODBYE: Duration = Duration::from_secs(5);

/// Serves one connection until it ends. `stream` starts with the client preface.
pub(crate) async fn serve(stream: Stream, served: Rc<Served>, timers: Timers) {
    let limits = &served.listener.limits;
    // Boxed: its state is as large as the connection's.
    let Some(mut connection) = Box::pin(handshake(stream, &served, &timers)).await else { return };
    let streams = Rc::new(Streams::default());
    let mut count = 0;
    let mut closing = false;
    let mut idle = Deadline::after(&timers, Some(limits.idle_timeout));
    loop {
        let busy = streams.busy();
        let accepted = tokio::select! {
            biased;
            accepted = connection.accept() => accepted,
            () = served.drained(), if !closing => {
                // GOAWAY in two steps: the crate announces, waits a round trip, then names the last stream.
                closing = true;
                connection.graceful_shutdown();
                idle = Deadline::after(&timers, Some(GOODBYE));
                continue;
            }
            () = streams.ended(), if busy => {
                idle.restart();
                continue;
            }
            () = idle.elapsed(), if !busy => {
                if closing {
                    // GOAWAY was not answered: the client is gone, or keeps us waiting on purpose.
                    return;
                }
                closing = true;
                connection.graceful_shutdown();
                idle = Deadline::after(&timers, Some(GOODBYE));
                continue;
            }
        };
        match accepted {
            Some(Ok((request, respond))) => {
                count += 1;
                if count >= limits.max_requests_per_connection && !closing {
                    closing = true;
                    connection.graceful_shutdown();
                    idle = Deadline::after(&timers, Some(GOODBYE));
                }
                let exchange = Running::begin(&streams);
                let served = served.clone();
                tokio::task::spawn_local(async move {
                    answer(&served, request, respond).await;
                    drop(exchange);
                });
            }
            Some(Err(error)) => {
                served.refused(HttpVersion::Http2, 0, &error.to_string());
                return;
            }
            None => return,
        }
    }
}

/// Settings and preface. `None` for a client that does not send them.
async fn handshake(stream: Stream, served: &Served, timers: &Timers) -> Option<h2::server::Connection<Stream, Bytes>> {
    let limits = &served.listener.limits;
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(Some(MAX_RESETS))
        .max_concurrent_reset_streams(MAX_RESETS)
        // RFC 8441, section 3.
        .enable_connect_protocol();
    let mut deadline = Deadline::after(timers, Some(limits.header_timeout));
    let handshake = tokio::select! {
        handshake = builder.handshake::<Stream, Bytes>(stream) => handshake,
        () = deadline.elapsed() => {
            served.refused(HttpVersion::Http2, 0, "the preface did not come in time");
            return None;
        }
    };
    handshake.map_err(|error| served.refused(HttpVersion::Http2, 0, &format!("no HTTP/2 handshake: {error}"))).ok()
}

async fn answer(served: &Rc<Served>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (parts, stream) = request.into_parts();
    let limits = &served.listener.limits;
    let ended = stream.is_end_stream();
    let head = request_head(parts, HttpVersion::Http2, served.connection.tls, limits.max_headers);
    let checked = head.and_then(|head| Ok((stated_length(&head.headers, ended)?, head)));
    match checked {
        Ok((length, head)) => {
            let body = match (ended, length) {
                (true, _) => Incoming::Empty,
                (false, length) => Incoming::Http2(BodyReader::new(stream, length)),
            };
            let reply = Reply { respond, answered: false };
            served.exchange(head, body, crate::body::Reply::Http2(reply)).await;
        }
        Err(Refused::Malformed(reason)) => {
            served.refused(HttpVersion::Http2, 400, reason);
            respond.send_reset(Reason::PROTOCOL_ERROR);
        }
        Err(Refused::Status(status, reason)) => {
            served.refused(HttpVersion::Http2, status.as_u16(), reason);
            let mut response = Response::new(());
            *response.status_mut() = status;
            // A stream that is gone needs no answer.
            let _ = respond.send_response(response, true);
        }
    }
}

/// Where the response to one stream's request goes. Dropped unanswered, the stream is reset.
pub(crate) struct Reply {
    respond: SendResponse<Bytes>,
    answered: bool,
}

impl Reply {
    pub(crate) async fn interim(&mut self, head: ResponseHead) -> Result<(), SinkGone> {
        self.respond.send_informational(response(head)).map_err(|error| gone(&error))
    }

    pub(crate) fn head(mut self, mut head: ResponseHead, length: Length) -> Result<Outgoing, SinkGone> {
        self.answered = true;
        if let Length::Known(length) = length {
            head.headers.insert(http::header::CONTENT_LENGTH, length.into());
        }
        let ends = matches!(length, Length::None | Length::Known(0));
        let stream = self.respond.send_response(response(head), ends).map_err(|error| gone(&error))?;
        if ends {
            return Ok(Outgoing::Ended);
        }
        Ok(Outgoing::Http2(BodyWriter::new(stream, Reason::INTERNAL_ERROR)))
    }

    /// Accepts a tunnel: DATA is its bytes from now on. Cut off, it is cancelled, as TCP is reset (RFC 8441, section 5);
    /// for `CONNECT`, and what is like it, there is a code of its own (RFC 9113, section 8.5).
    pub(crate) fn open(mut self, head: ResponseHead, tunnel: Tunnel) -> Result<BodyWriter, SinkGone> {
        self.answered = true;
        let stream = self.respond.send_response(response(head), false).map_err(|error| gone(&error))?;
        let cut_off = match tunnel {
            Tunnel::WebSocket => Reason::CANCEL,
            Tunnel::Connect | Tunnel::ConnectUdp => Reason::CONNECT_ERROR,
        };
        Ok(BodyWriter::new(stream, cut_off))
    }

    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<SinkGone> {
        self.respond.poll_reset(cx).map(reset)
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            self.respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}

fn response(head: ResponseHead) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() =
        if head.status == StatusCode::SWITCHING_PROTOCOLS { StatusCode::BAD_GATEWAY } else { head.status };
    *response.headers_mut() = head.headers;
    response
}
