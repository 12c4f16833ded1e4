//! The client's side of HTTP/3: streams become exchanges, a task each.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h3::error::Code;
use h3::server::{RequestResolver, RequestStream};
use http::{Response, StatusCode};
use tidegate_policy::{HttpVersion, ResponseHead};
use tokio::sync::Notify;

use super::body::{BodyReader, BodyWriter, gone};
use super::transport::{BidiStream, SendStream, Stopped, StoppedStreams, Transport};
use crate::body::{Held, Incoming, Length, Outgoing, SinkGone};
use crate::codec::Served;
use crate::codec::pseudo::{Refused, request_head, stated_length};
use crate::timer::{Deadline, Timers};

/// Serves one QUIC connection until it ends.
pub(crate) async fn serve(connection: quinn::Connection, served: Rc<Served>, timers: Timers) {
    let limits = &served.listener.limits;
    let (transport, stopped) = Transport::new(connection);
    let mut builder = h3::server::builder();
    builder.max_field_section_size(limits.max_header_bytes as u64).send_grease(false);
    let mut connection = match builder.build::<Transport, Bytes>(transport).await {
        Ok(connection) => connection,
        Err(error) => return served.refused(HttpVersion::Http3, 0, &format!("no HTTP/3 settings: {error}")),
    };
    let streams = Rc::new(Streams::default());
    let mut count = 0;
    let mut closing = false;
    let mut idle = Deadline::after(&timers, Some(limits.idle_timeout));
    loop {
        let busy = streams.active.get() > 0;
        if closing && !busy {
            // Dropping the connection closes it, with everything answered.
            return;
        }
        let accepted = tokio::select! {
            biased;
            accepted = connection.accept() => accepted,
            () = served.drained(), if !closing => {
                closing = true;
                goaway(&mut connection).await;
                continue;
            }
            () = streams.ended.notified(), if busy => {
                idle.restart();
                continue;
            }
            () = idle.elapsed(), if !busy => {
                closing = true;
                goaway(&mut connection).await;
                continue;
            }
        };
        match accepted {
            Ok(Some(resolver)) => {
                count += 1;
                if count >= limits.max_requests_per_connection && !closing {
                    closing = true;
                    goaway(&mut connection).await;
                }
                let running = Running::begin(&streams);
                let (served, stopped, timers) = (served.clone(), stopped.clone(), timers.clone());
                tokio::task::spawn_local(async move {
                    resolve(&served, resolver, &stopped, &timers).await;
                    drop(running);
                });
            }
            Ok(None) => {
                // GOAWAY was answered; what is under way still needs the connection.
                while streams.active.get() > 0 {
                    streams.ended.notified().await;
                }
                return;
            }
            Err(error) => {
                if !error.is_h3_no_error() {
                    tracing::debug!(%error, "an HTTP/3 connection ended");
                }
                return;
            }
        }
    }
}

/// RFC 9114, section 5.2. A connection that is gone needs none.
async fn goaway(connection: &mut h3::server::Connection<Transport, Bytes>) {
    if let Err(error) = connection.shutdown(0).await {
        tracing::debug!(%error, "no GOAWAY could be sent");
    }
}

#[derive(Default)]
struct Streams {
    active: Cell<usize>,
    ended: Notify,
}

struct Running(Rc<Streams>);

impl Running {
    fn begin(streams: &Rc<Streams>) -> Self {
        streams.active.set(streams.active.get() + 1);
        Self(streams.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.ended.notify_one();
    }
}

/// Reads the head, within the header time, and runs the exchange.
async fn resolve(
    served: &Rc<Served>,
    resolver: RequestResolver<Transport, Bytes>,
    stopped: &StoppedStreams,
    timers: &Timers,
) {
    let limits = &served.listener.limits;
    let mut deadline = Deadline::after(timers, Some(limits.header_timeout));
    let resolved = tokio::select! {
        resolved = resolver.resolve_request() => resolved,
        () = deadline.elapsed() => return served.refused(HttpVersion::Http3, 408, "the head did not come in time"),
    };
    let (request, stream) = match resolved {
        Ok(resolved) => resolved,
        Err(error) => return served.refused(HttpVersion::Http3, 400, &error.to_string()),
    };
    let Some(stopped) = stopped.borrow_mut().remove(&stream.id()) else { return };
    let (parts, ()) = request.into_parts();
    let head = request_head(parts, HttpVersion::Http3, served.connection.tls, limits.max_headers);
    let checked = head.and_then(|head| Ok((stated_length(&head.headers, false)?, head)));
    match checked {
        Ok((length, head)) => {
            let (send, recv) = stream.split();
            let body = incoming(BodyReader::new(recv, length), length).await;
            let reply = Reply { stream: Some(send), stopped };
            served.exchange(head, body, crate::body::Reply::Http3(reply)).await;
        }
        Err(refused) => refuse(served, stream, refused).await,
    }
}

/// Whether content follows is only known by reading on, unless the head has a content-length. A request without content
/// has its FIN in the packet of its head, so one look tells; a look that finds nothing yet takes it for a stream.
async fn incoming(mut reader: BodyReader, length: Length) -> Incoming {
    if length == Length::None {
        return Incoming::Empty;
    }
    match poll_fn(|cx| Poll::Ready(reader.poll_frame(cx))).await {
        Poll::Ready(None) => Incoming::Empty,
        Poll::Pending => Incoming::Http3(reader),
        Poll::Ready(Some(frame)) => Incoming::Held(Held::begun_with(frame, length, Incoming::Http3(reader))),
    }
}

async fn refuse(served: &Served, mut stream: RequestStream<BidiStream, Bytes>, refused: Refused) {
    match refused {
        Refused::Malformed(reason) => {
            served.refused(HttpVersion::Http3, 400, reason);
            stream.stop_sending(Code::H3_MESSAGE_ERROR);
            stream.stop_stream(Code::H3_MESSAGE_ERROR);
        }
        Refused::Status(status, reason) => {
            served.refused(HttpVersion::Http3, status.as_u16(), reason);
            stream.stop_sending(Code::H3_NO_ERROR);
            let mut response = Response::new(());
            *response.status_mut() = status;
            if stream.send_response(response).await.is_ok() {
                // A client that is gone needs no end.
                let _ = stream.finish().await;
            }
        }
    }
}

/// Where the response to one stream's request goes. Dropped unanswered, the stream is reset.
pub(crate) struct Reply {
    stream: Option<RequestStream<SendStream, Bytes>>,
    stopped: Stopped,
}

impl Reply {
    pub(crate) async fn interim(&mut self, head: ResponseHead) -> Result<(), SinkGone> {
        match &mut self.stream {
            Some(stream) => stream.send_response(response(head)).await.map_err(gone),
            None => Ok(()),
        }
    }

    pub(crate) async fn head(mut self, mut head: ResponseHead, length: Length) -> Result<Outgoing, SinkGone> {
        let Some(mut stream) = self.stream.take() else {
            return Err(SinkGone("the response was sent already".to_owned()));
        };
        if let Length::Known(length) = length {
            head.headers.insert(http::header::CONTENT_LENGTH, length.into());
        }
        let stopped = std::mem::replace(&mut self.stopped, Box::pin(std::future::pending()));
        stream.send_response(response(head)).await.map_err(gone)?;
        Ok(Outgoing::Http3(BodyWriter::new(stream, stopped)))
    }

    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<SinkGone> {
        self.stopped.as_mut().poll(cx).map(SinkGone)
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.stop_stream(Code::H3_INTERNAL_ERROR);
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
