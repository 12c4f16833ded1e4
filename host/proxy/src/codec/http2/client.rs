//! The upstream's side of HTTP/2: requests as streams of a shared connection.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::Reason;
use h2::client::{ResponseFuture, SendRequest};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use tidegate_policy::{Cause, Fault, HttpVersion, ResponseHead, Tunnel, is_token};
use tokio::sync::Notify;

use super::body::{BodyReader, BodyWriter};
use super::{CONNECTION_WINDOW, SEND_BUFFER, STREAM_WINDOW};
use crate::body::{Arrived, Incoming, Length, Outgoing};
use crate::codec::pseudo::stated_length;
use crate::exchange::OutgoingHead;
use crate::stream::Stream;

/// Most that HTTP/2 allows (RFC 9113, section 6.9.1).
const MAX_WINDOW: u32 = i32::MAX as u32;
/// Most interim responses before the final one.
const MAX_INTERIM: usize = 16;

/// An upstream connection shared by many streams. Clones share it; it ends when told to retire and its streams are
/// over, or when either side closes it.
#[derive(Clone)]
pub(crate) struct ClientConnection {
    sender: SendRequest<Bytes>,
    shared: Rc<State>,
}

struct State {
    open: Cell<bool>,
    /// For one question, see `takes_tunnels`; gone once it was asked.
    ping: RefCell<Option<h2::PingPong>>,
    /// The peer's SETTINGS are known.
    settled: Cell<bool>,
    settling: Notify,
}

impl ClientConnection {
    /// Exchanges prefaces and runs the connection as a task of this worker.
    ///
    /// The connection's window has room for every stream's: however many readers stall, no other stream waits for them
    /// (RFC 9113, section 5.2). What may be held is bounded by the number of streams.
    pub(crate) async fn connect(stream: Stream, max_head_bytes: usize, streams: u32) -> Result<Self, Fault> {
        let window = streams.saturating_mul(STREAM_WINDOW).clamp(CONNECTION_WINDOW, MAX_WINDOW);
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(window)
            .max_header_list_size(u32::try_from(max_head_bytes).unwrap_or(u32::MAX))
            .max_send_buffer_size(SEND_BUFFER);
        let (sender, mut connection) = builder
            .handshake::<_, Bytes>(stream)
            .await
            .map_err(|error| Fault::new(Cause::ConnectFailed, format!("no HTTP/2 handshake: {error}")))?;
        let shared = Rc::new(State {
            open: Cell::new(true),
            ping: RefCell::new(connection.ping_pong()),
            settled: Cell::new(false),
            settling: Notify::new(),
        });
        let state = shared.clone();
        // The driver ends by itself once every sender and stream is gone.
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP/2 upstream connection ended");
            }
            state.open.set(false);
            state.settled.set(true);
            state.settling.notify_waiters();
        });
        Ok(Self { sender, shared })
    }

    /// Whether the origin takes extended CONNECT (RFC 8441, section 3). On a fresh connection its SETTINGS may not have
    /// come, and without them it must not be asked: a PING is answered after them.
    pub(crate) async fn takes_tunnels(&self) -> bool {
        let takes = || self.sender.is_extended_connect_protocol_enabled();
        let ping = self.shared.ping.borrow_mut().take();
        if let Some(mut ping) = ping.filter(|_| !takes()) {
            let state = self.shared.clone();
            tokio::task::spawn_local(async move {
                // A connection that fails has no settings to wait for.
                let _ = ping.ping(h2::Ping::opaque()).await;
                state.settled.set(true);
                state.settling.notify_waiters();
            });
        }
        loop {
            let settled = self.shared.settling.notified();
            if takes() || self.shared.settled.get() {
                return takes();
            }
            settled.await;
        }
    }

    /// Sends the head. The peer's stream limit is waited for.
    pub(crate) async fn start(&self, head: &OutgoingHead, length: Length) -> Result<(Outgoing, Awaiting), Fault> {
        let mut sender = self.sender.clone();
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(|error| {
            self.shared.open.set(false);
            // Nothing of this request was sent.
            Fault::new(if error.is_go_away() { Cause::GoAway } else { Cause::Reset }, error).nothing_written()
        })?;
        // HTTP/1 lets through targets that HTTP/2's `:path` does not take.
        let request = request(head, length).map_err(|error| Fault::new(Cause::RequestInvalid, error))?;
        let tunnel = head.upgrade.is_some();
        let ends = length == Length::None && !tunnel;
        let (response, stream) = sender.send_request(request, ends).map_err(|error| {
            if error.is_io() || error.is_go_away() {
                self.shared.open.set(false);
            }
            fault(&error).nothing_written()
        })?;
        let writer = (!ends).then(|| BodyWriter::new(stream, Reason::CANCEL));
        // Nothing is sent into a tunnel that is not open yet.
        let (body, tunnel) = if tunnel { (None, writer) } else { (writer, None) };
        let out = body.map_or(Outgoing::Ended, Outgoing::Http2);
        let method = head.method.clone();
        let awaiting = Awaiting { response, method, tunnel, interim: 0, shared: self.shared.clone() };
        Ok((out, awaiting))
    }

    /// Takes new streams: open, no GOAWAY seen.
    pub(crate) fn open(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.shared.open.get() && !matches!(self.sender.clone().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// The peer's limit on concurrent streams, as far as known.
    pub(crate) fn max_streams(&self) -> usize {
        self.sender.current_max_send_streams()
    }

    /// Takes no more streams from now on. The crate sends GOAWAY when the last handle and stream are gone.
    pub(crate) fn retire(&self) {
        self.shared.open.set(false);
    }
}

fn request(head: &OutgoingHead, length: Length) -> Result<Request<()>, http::Error> {
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    if head.upgrade.is_some() {
        // RFC 8441, section 5: no key, no Connection, no Upgrade.
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(h2::ext::Protocol::from_static(Tunnel::WebSocket.name()));
    }
    *request.version_mut() = http::Version::HTTP_2;
    let mut uri = http::uri::Parts::default();
    if head.authority.is_empty() {
        // An HTTP/1.0 request without Host has no authority to name: none is made up (RFC 9113, section 8.3.1). The
        // crate takes such a request as one of HTTP/1.
        *request.version_mut() = http::Version::HTTP_11;
    } else {
        uri.scheme = Some(head.scheme.as_str().parse()?);
        uri.authority = Some(Authority::from_maybe_shared(head.authority.as_bytes().clone())?);
    }
    uri.path_and_query = Some(PathAndQuery::from_maybe_shared(head.target.as_bytes().clone())?);
    *request.uri_mut() = Uri::from_parts(uri)?;
    let headers = request.headers_mut();
    head.for_each(|name, value| {
        headers.append(name.clone(), value.clone());
    });
    if let Length::Known(length) = length {
        headers.insert(http::header::CONTENT_LENGTH, length.into());
    }
    Ok(request)
}

/// What an error of the crate proves about the request (RFC 9113, section 8.7).
fn fault(error: &h2::Error) -> Fault {
    let cause = match error.reason() {
        // A stream above the last one of a GOAWAY ends with the connection's error, of the peer's making.
        Some(Reason::REFUSED_STREAM) => Cause::RefusedStream,
        _ if error.is_go_away() && error.is_remote() => Cause::GoAway,
        Some(_) if error.is_reset() && error.is_remote() => Cause::StreamReset,
        Some(_) if error.is_library() || error.is_reset() => Cause::ResponseInvalid,
        _ => Cause::Reset,
    };
    Fault::new(cause, error)
}

/// A response that has not come yet.
pub(crate) struct Awaiting {
    response: ResponseFuture,
    method: Method,
    /// Our half of the tunnel that was asked for.
    tunnel: Option<BodyWriter>,
    interim: usize,
    shared: Rc<State>,
}

impl Awaiting {
    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arrived, Fault>> {
        match self.response.poll_informational(cx) {
            Poll::Ready(Some(Ok(response))) => {
                self.interim += 1;
                if self.interim > MAX_INTERIM || response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    return Poll::Ready(Err(Fault::new(Cause::ResponseInvalid, "interim responses without an end")));
                }
                let (parts, ()) = response.into_parts();
                return Poll::Ready(head(parts.status, parts.headers).map(Arrived::Interim));
            }
            Poll::Ready(Some(Err(error))) => return self.failed(&error),
            Poll::Ready(None) | Poll::Pending => {}
        }
        match Pin::new(&mut self.response).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => self.failed(&error),
            Poll::Ready(Ok(response)) => {
                let (parts, stream) = response.into_parts();
                let ended = stream.is_end_stream();
                if let Some(mut writer) = self.tunnel.take() {
                    if parts.status.is_success() {
                        let reader = match ended {
                            true => Incoming::Empty,
                            false => Incoming::Http2(BodyReader::new(stream, Length::Unknown)),
                        };
                        let head = match head(parts.status, parts.headers) {
                            Ok(head) => head,
                            Err(fault) => return Poll::Ready(Err(fault)),
                        };
                        return Poll::Ready(Ok(Arrived::Tunnel(head, reader, Outgoing::Http2(writer))));
                    }
                    // Refused: a request without content like any other. The response tells what else is wrong.
                    let _ = writer.end();
                }
                let bodiless = self.method == Method::HEAD
                    || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
                let body = if ended || bodiless {
                    Incoming::Empty
                } else {
                    match stated_length(&parts.headers, false) {
                        Ok(length) => Incoming::Http2(BodyReader::new(stream, length)),
                        Err(_) => {
                            let fault = Fault::new(Cause::ResponseInvalid, "content-length is not one number");
                            return Poll::Ready(Err(fault));
                        }
                    }
                };
                if parts.status == StatusCode::SWITCHING_PROTOCOLS {
                    return Poll::Ready(Err(Fault::new(Cause::ResponseInvalid, "101 in HTTP/2")));
                }
                Poll::Ready(head(parts.status, parts.headers).map(|head| Arrived::Final(head, body)))
            }
        }
    }

    fn failed(&self, error: &h2::Error) -> Poll<Result<Arrived, Fault>> {
        if error.is_go_away() || error.is_io() {
            self.shared.open.set(false);
        }
        Poll::Ready(Err(fault(error)))
    }
}

fn head(status: StatusCode, headers: HeaderMap) -> Result<ResponseHead, Fault> {
    if !headers.keys().all(is_token) {
        return Err(Fault::new(Cause::ResponseInvalid, "a field name"));
    }
    Ok(ResponseHead { version: HttpVersion::Http2, status, headers })
}
