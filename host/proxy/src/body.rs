//! The seam between the exchange and the codecs: bodies that come in, bodies that go out, and the pump between them.
//!
//! Every version of HTTP, on either side, is one variant of [`Incoming`], [`Outgoing`], [`Reply`] and [`Awaiting`]; the
//! exchange never asks which. Nothing here buffers: a frame is pulled only when the other side can take it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use thiserror::Error;
use tidegate_policy::{Fault, ResponseHead, Tunnel};

use crate::buffer::{Claim, SpoolReader};
use crate::codec::{http1, http2, http3};

mod ahead;
mod encode;
mod pump;

pub(crate) use ahead::ReadAhead;
pub use encode::Coding;
pub(crate) use encode::Encoded;
#[cfg(fuzzing)]
pub(crate) use pump::strip_trailers;
pub(crate) use pump::{Activity, PumpError, PumpRules, Quiet, pump};

/// A piece of a message after its head.
#[derive(Debug)]
pub(crate) enum Frame {
    Data(Bytes),
    /// Always the last.
    Trailers(HeaderMap),
}

/// How long a body is, as far as its head told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Length {
    /// There is none, or none may be sent (`HEAD`, 204, 304): the head ends the message.
    None,
    Known(u64),
    Unknown,
}

/// Why a body could not be read to its end.
#[derive(Clone, Debug, Error)]
pub(crate) enum BodyError {
    /// The connection or stream ended before the message did.
    #[error("ended before the message was complete: {0}")]
    Truncated(String),
    /// The peer gave the stream up (RST_STREAM, RESET_STREAM, TCP reset).
    #[error("reset by the peer: {0}")]
    Reset(String),
    /// Framing or syntax broke the protocol.
    #[error("invalid: {0}")]
    Invalid(String),
    /// Longer than the configured limit.
    #[error("longer than the limit of {0} bytes")]
    TooLarge(u64),
    /// What was held of it cannot be had again.
    #[error("internal: {0}")]
    Internal(String),
}

/// Why a message could not be sent to its end: the receiver is gone, or does not want it.
#[derive(Clone, Debug, Error)]
#[error("the receiver is gone: {0}")]
pub(crate) struct SinkGone(pub(crate) String);

/// A body being received.
pub(crate) enum Incoming {
    Empty,
    /// Held in memory, whole or its beginning.
    Held(Box<Held>),
    /// Read ahead by whoever shares it, who polls both.
    Ahead(Rc<RefCell<ReadAhead>>),
    Encoded(Box<Encoded>),
    Http1(http1::BodyReader),
    Http2(http2::BodyReader),
    Http3(Box<http3::BodyReader>),
}

impl Incoming {
    /// What the head said. `Known(0)` is never reported: it is `None`.
    pub(crate) fn length(&self) -> Length {
        match self {
            Self::Empty => Length::None,
            Self::Held(held) => held.length,
            // For the one the head has been written by then, the other knows at its end.
            Self::Ahead(_) | Self::Encoded(_) => Length::Unknown,
            Self::Http1(body) => body.length(),
            Self::Http2(body) => body.length(),
            Self::Http3(body) => body.length(),
        }
    }

    /// Takes note of what has come since, without waiting: in HTTP/3 only the end of the stream tells that a message
    /// without content-length has no content, and it may come after the head. Then `length` is `None`.
    pub(crate) fn look(&mut self) {
        if let Self::Http3(body) = self {
            body.look();
        }
    }

    /// The next frame; `None` after the clean end of the message. After an error nothing more may be polled.
    ///
    /// Flow control: the codec gives the sender credit for a frame only when the next one is asked for.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Held(held) => held.poll_frame(cx),
            Self::Ahead(ahead) => ahead.borrow_mut().poll_frame(cx),
            Self::Encoded(encoded) => encoded.poll_frame(cx),
            Self::Http1(body) => body.poll_frame(cx),
            Self::Http2(body) => body.poll_frame(cx),
            Self::Http3(body) => body.poll_frame(cx),
        }
    }
}

/// Frames that were kept, and the rest of the body if it did not fit. Cloning one without a rest shares its bytes:
/// that is how a request is sent again.
pub(crate) struct Held {
    pub(crate) length: Length,
    pub(crate) frames: VecDeque<Bytes>,
    /// After the frames.
    pub(crate) spooled: Option<SpoolReader>,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) rest: Option<Box<Incoming>>,
    /// What the frames take of the memory for buffers.
    pub(crate) claim: Option<Rc<Claim>>,
}

impl Held {
    /// Nothing yet, of a body of this length.
    pub(crate) fn new(length: Length) -> Self {
        Self { length, frames: VecDeque::new(), spooled: None, trailers: None, rest: None, claim: None }
    }

    /// A copy to send, which is only complete when there is no rest.
    pub(crate) fn replay(&self) -> Option<Held> {
        self.rest.is_none().then(|| Held {
            length: self.length,
            frames: self.frames.clone(),
            spooled: self.spooled.clone(),
            trailers: self.trailers.clone(),
            rest: None,
            claim: self.claim.clone(),
        })
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if let Some(data) = self.frames.pop_front() {
            return Poll::Ready(Some(Ok(Frame::Data(data))));
        }
        if let Some(spooled) = &mut self.spooled {
            match ready!(spooled.poll_next(cx)) {
                Some(Ok(data)) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                Some(Err(error)) => return Poll::Ready(Some(Err(BodyError::Internal(format!("spool: {error}"))))),
                None => self.spooled = None,
            }
        }
        match &mut self.rest {
            Some(rest) => rest.poll_frame(cx),
            None => Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::Trailers(trailers)))),
        }
    }
}

/// A body being sent. Dropped before [`finish`](Self::finish), it ends the message as an error: connection closed
/// without its end, or the stream reset, never as a clean end (RFC 9112, section 8; RFC 9113, section 8.1).
#[allow(clippy::large_enum_variant, reason = "one lives per exchange, in its future; a box would cost an allocation")]
pub(crate) enum Outgoing {
    /// The head already ended the message: what comes is discarded.
    Ended,
    Http1(http1::BodyWriter),
    Http2(http2::BodyWriter),
    Http3(http3::BodyWriter),
}

impl Outgoing {
    /// Waits until the receiver has room, then hands the frame over. May keep it in a buffer until `flush`. Every part
    /// that the receiver takes meanwhile is noted in `activity`: a slow one is not an idle one.
    pub(crate) async fn send(&mut self, frame: Frame, activity: &Activity) -> Result<(), SinkGone> {
        match self {
            Self::Ended => Ok(()),
            Self::Http1(body) => body.send(frame, activity).await,
            Self::Http2(body) => body.send(frame, activity).await,
            Self::Http3(body) => body.send(frame, activity).await,
        }
    }

    /// Sees to it that all that was handed over leaves the process. Called when the source has nothing at hand.
    pub(crate) async fn flush(&mut self, activity: &Activity) -> Result<(), SinkGone> {
        match self {
            Self::Ended => Ok(()),
            Self::Http1(body) => body.flush(activity).await,
            // Its connection's task flushes.
            Self::Http2(_) => Ok(()),
            Self::Http3(body) => body.flush().await,
        }
    }

    /// Ends the message cleanly, and flushes. Without effect after trailers were sent, which end it too.
    pub(crate) async fn finish(&mut self, activity: &Activity) -> Result<(), SinkGone> {
        match self {
            Self::Ended => Ok(()),
            Self::Http1(body) => body.finish(activity).await,
            Self::Http2(body) => body.finish().await,
            Self::Http3(body) => body.finish().await,
        }
    }

    /// Cuts a tunnel off in a way that its peer tells from an end: TCP reset, RST_STREAM. Unlike a drop, after `finish` too.
    pub(crate) fn reset(self) {
        match self {
            Self::Ended => {}
            Self::Http1(body) => body.reset(),
            Self::Http2(body) => body.reset(),
            // Its drop does.
            Self::Http3(_) => {}
        }
    }

    /// The same because what came from its peer is malformed: HTTP/2 and HTTP/3 have a code for that.
    pub(crate) fn malformed(self) {
        match self {
            Self::Ended => {}
            Self::Http1(body) => body.reset(),
            Self::Http2(body) => body.malformed(),
            Self::Http3(body) => body.malformed(),
        }
    }

    /// Ready when the receiver has gone away or refused more while we were silent.
    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<SinkGone> {
        match self {
            Self::Ended => Poll::Pending,
            Self::Http1(body) => body.poll_closed(cx),
            Self::Http2(body) => body.poll_closed(cx),
            Self::Http3(body) => body.poll_closed(cx),
        }
    }
}

/// Where the response to one request goes.
#[allow(clippy::large_enum_variant, reason = "one lives per exchange, in its future; a box would cost an allocation")]
pub(crate) enum Reply {
    Http1(http1::Reply),
    Http2(http2::Reply),
    Http3(http3::Reply),
}

impl Reply {
    /// An interim response (1xx, never 101). Silently left out where the client's version has none (HTTP/1.0).
    pub(crate) async fn interim(&mut self, head: ResponseHead) -> Result<(), SinkGone> {
        match self {
            Self::Http1(reply) => reply.interim(head).await,
            Self::Http2(reply) => reply.interim(head).await,
            Self::Http3(reply) => reply.interim(head).await,
        }
    }

    /// The final head. The codec writes the framing that `length` asks for (`content-length`, chunked, or close); with
    /// `Length::None` it ends the message and leaves a `content-length` in `headers` as it is.
    /// It may wait in a buffer until the body's first `flush` or `finish`.
    pub(crate) fn head(self, head: ResponseHead, length: Length) -> Result<Outgoing, SinkGone> {
        match self {
            Self::Http1(reply) => Ok(reply.head(head, length)),
            Self::Http2(reply) => reply.head(head, length),
            Self::Http3(reply) => reply.head(head, length),
        }
    }

    /// The way of HTTP Datagrams that is no stream, where the request has one: QUIC's (RFC 9297, section 2.1). Once.
    pub(crate) fn datagrams(&mut self) -> Option<http3::Datagrams> {
        match self {
            Self::Http1(_) | Self::Http2(_) => None,
            Self::Http3(reply) => reply.datagrams(),
        }
    }

    /// Accepts the tunnel that the request asked for. `body` is what the codec gave as the request's: in HTTP/1 the
    /// tunnel's bytes come from the connection instead, those that were read ahead first.
    pub(crate) async fn open(
        self,
        head: ResponseHead,
        tunnel: Tunnel,
        body: Incoming,
    ) -> Result<(Incoming, Outgoing), SinkGone> {
        match self {
            Self::Http1(reply) => {
                let (reader, writer) = reply.open(head, tunnel.name()).await?;
                Ok((Incoming::Http1(reader), Outgoing::Http1(writer)))
            }
            Self::Http2(reply) => Ok((body, Outgoing::Http2(reply.open(head, tunnel)?))),
            Self::Http3(reply) => Ok((body, Outgoing::Http3(reply.open(head, tunnel).await?))),
        }
    }

    /// Ready when the client has gone away, or given this request up.
    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<SinkGone> {
        match self {
            Self::Http1(reply) => reply.poll_closed(cx),
            Self::Http2(reply) => reply.poll_closed(cx),
            Self::Http3(reply) => reply.poll_closed(cx),
        }
    }
}

/// A response that has not arrived yet.
pub(crate) enum Awaiting {
    Http1(http1::Awaiting),
    Http2(http2::Awaiting),
    Http3(http3::Awaiting),
}

/// What arrives of a response.
#[allow(clippy::large_enum_variant, reason = "it is made and taken apart at once")]
pub(crate) enum Arrived {
    Interim(ResponseHead),
    Final(ResponseHead, Incoming),
    /// The tunnel that was asked for is open: both its ends on the upstream's side.
    Tunnel(ResponseHead, Incoming, Outgoing),
}

impl Awaiting {
    /// The next interim head, or the final one, after which nothing more may be polled. A fault says what it proves
    /// about the request (`unprocessed`).
    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arrived, Fault>> {
        match self {
            Self::Http1(awaiting) => awaiting.poll_head(cx),
            Self::Http2(awaiting) => awaiting.poll_head(cx),
            Self::Http3(awaiting) => awaiting.poll_head(cx),
        }
    }
}
