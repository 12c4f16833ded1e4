//! Bodies as HTTP/2 streams, both sides.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tidegate_policy::is_token;

use crate::body::{Activity, BodyError, Frame, Length, SinkGone};

/// The body of the message that comes in. Credit for a frame is given when the next is asked for: that is the
/// back-pressure (RFC 9113, section 5.2).
pub(crate) struct BodyReader {
    stream: RecvStream,
    length: Length,
    /// Bytes handed out, whose credit is still due.
    owed: usize,
    state: State,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum State {
    Data,
    Trailers,
    Done,
}

impl BodyReader {
    pub(super) fn new(stream: RecvStream, length: Length) -> Self {
        Self { stream, length, owed: 0, state: State::Data }
    }

    pub(crate) fn length(&self) -> Length {
        self.length
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if self.owed > 0 {
            // Fails only on a stream that is over, which the next poll tells.
            let _ = self.stream.flow_control().release_capacity(std::mem::take(&mut self.owed));
        }
        if self.state == State::Data {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.owed = data.len();
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(broken(&error)))),
                None => self.state = State::Trailers,
            }
        }
        if self.state == State::Trailers {
            let trailers = ready!(self.stream.poll_trailers(cx));
            self.state = State::Done;
            match trailers {
                Ok(Some(trailers)) if !trailers.keys().all(is_token) => {
                    return Poll::Ready(Some(Err(BodyError::Invalid("a field name in trailers".to_owned()))));
                }
                Ok(Some(trailers)) => return Poll::Ready(Some(Ok(Frame::Trailers(trailers)))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(broken(&error)))),
            }
        }
        Poll::Ready(None)
    }
}

fn broken(error: &h2::Error) -> BodyError {
    match error.reason() {
        // The crate found the peer's content-length, framing or flow wrong.
        Some(Reason::PROTOCOL_ERROR) if error.is_library() => BodyError::Invalid(error.to_string()),
        _ if error.is_reset() => BodyError::Reset(error.to_string()),
        _ => BodyError::Truncated(error.to_string()),
    }
}

/// The body of the message that goes out. Dropped before its end, the stream is reset.
pub(crate) struct BodyWriter {
    stream: SendStream<Bytes>,
    /// With what a cut-off is told.
    cut_off: Reason,
    ended: bool,
}

impl BodyWriter {
    pub(super) fn new(stream: SendStream<Bytes>, cut_off: Reason) -> Self {
        Self { stream, cut_off, ended: false }
    }

    pub(crate) async fn send(&mut self, frame: Frame, activity: &Activity) -> Result<(), SinkGone> {
        match frame {
            Frame::Data(mut data) => {
                while !data.is_empty() {
                    self.stream.reserve_capacity(data.len());
                    let room = poll_fn(|cx| self.stream.poll_capacity(cx)).await;
                    let room = match room {
                        Some(Ok(room)) => room,
                        Some(Err(error)) => return Err(gone(&error)),
                        None => return Err(SinkGone("the stream is closed".to_owned())),
                    };
                    let piece = data.split_to(room.min(data.len()));
                    if !piece.is_empty() {
                        self.stream.send_data(piece, false).map_err(|error| gone(&error))?;
                        activity.moved();
                    }
                }
                Ok(())
            }
            Frame::Trailers(trailers) => {
                self.ended = true;
                self.stream.send_trailers(trailers).map_err(|error| gone(&error))
            }
        }
    }

    pub(crate) async fn finish(&mut self) -> Result<(), SinkGone> {
        self.end()
    }

    pub(super) fn end(&mut self) -> Result<(), SinkGone> {
        if !self.ended {
            self.ended = true;
            self.stream.send_data(Bytes::new(), true).map_err(|error| gone(&error))?;
        }
        Ok(())
    }

    /// Cuts a tunnel off, ended or not.
    pub(crate) fn reset(mut self) {
        self.ended = true;
        self.stream.send_reset(self.cut_off);
    }

    /// Cuts a tunnel off because what its peer sent is malformed (RFC 9113, section 8.1.1).
    pub(crate) fn malformed(mut self) {
        self.cut_off = Reason::PROTOCOL_ERROR;
        self.reset();
    }

    /// RST_STREAM from the receiver, or the end of the connection.
    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<SinkGone> {
        self.stream.poll_reset(cx).map(reset)
    }
}

pub(super) fn gone(error: &h2::Error) -> SinkGone {
    SinkGone(error.to_string())
}

pub(super) fn reset(outcome: Result<Reason, h2::Error>) -> SinkGone {
    match outcome {
        Ok(reason) => SinkGone(format!("stream reset: {reason}")),
        Err(error) => gone(&error),
    }
}

impl Drop for BodyWriter {
    fn drop(&mut self) {
        if !self.ended {
            self.stream.send_reset(self.cut_off);
        }
    }
}
