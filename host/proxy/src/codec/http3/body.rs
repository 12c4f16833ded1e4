//! Bodies as HTTP/3 streams.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h3::error::{Code, StreamError};
use h3::server::RequestStream;

use super::transport::{RecvStream, SendStream, Stopped};
use crate::body::{Activity, BodyError, Frame, Length, SinkGone};

/// The body of a request. Dropped before its end, the client is told to stop sending.
pub(crate) struct BodyReader {
    stream: RequestStream<RecvStream, Bytes>,
    length: Length,
    received: u64,
    state: State,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum State {
    Data,
    Trailers,
    Done,
}

impl BodyReader {
    pub(super) fn new(stream: RequestStream<RecvStream, Bytes>, length: Length) -> Self {
        Self { stream, length, received: 0, state: State::Data }
    }

    pub(crate) fn length(&self) -> Length {
        self.length
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if self.state == State::Data {
            match ready!(self.stream.poll_recv_data(cx)) {
                Ok(Some(mut data)) => {
                    let data = data.copy_to_bytes(data.remaining());
                    self.received += data.len() as u64;
                    // RFC 9114, section 4.1.2: content that differs from content-length is malformed.
                    if matches!(self.length, Length::Known(length) if self.received > length) {
                        return Poll::Ready(Some(Err(self.mismatch())));
                    }
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
                Ok(None) if matches!(self.length, Length::Known(length) if self.received != length) => {
                    return Poll::Ready(Some(Err(self.mismatch())));
                }
                Ok(None) => self.state = State::Trailers,
                Err(error) => return Poll::Ready(Some(Err(broken(&error)))),
            }
        }
        if self.state == State::Trailers {
            let trailers = ready!(self.stream.poll_recv_trailers(cx));
            self.state = State::Done;
            match trailers {
                Ok(Some(trailers)) => return Poll::Ready(Some(Ok(Frame::Trailers(trailers)))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(broken(&error)))),
            }
        }
        Poll::Ready(None)
    }

    fn mismatch(&mut self) -> BodyError {
        self.state = State::Done;
        self.stream.stop_sending(Code::H3_MESSAGE_ERROR);
        BodyError::Invalid("the content differs from content-length".to_owned())
    }
}

impl Drop for BodyReader {
    fn drop(&mut self) {
        if self.state == State::Data {
            // RFC 9114, section 4.1: a server that needs no more of a request says so with NO_ERROR.
            self.stream.stop_sending(Code::H3_NO_ERROR);
        }
    }
}

fn broken(error: &StreamError) -> BodyError {
    match error {
        StreamError::RemoteTerminate { .. } => BodyError::Reset(error.to_string()),
        StreamError::StreamError { .. } | StreamError::HeaderTooBig { .. } => BodyError::Invalid(error.to_string()),
        _ => BodyError::Truncated(error.to_string()),
    }
}

/// The body of a response. Dropped before its end, the stream is reset.
pub(crate) struct BodyWriter {
    stream: RequestStream<SendStream, Bytes>,
    stopped: Stopped,
    ended: bool,
}

impl BodyWriter {
    pub(super) fn new(stream: RequestStream<SendStream, Bytes>, stopped: Stopped) -> Self {
        Self { stream, stopped, ended: false }
    }

    pub(crate) async fn send(&mut self, frame: Frame, _: &Activity) -> Result<(), SinkGone> {
        match frame {
            Frame::Data(data) => self.stream.send_data(data).await.map_err(gone),
            Frame::Trailers(trailers) => {
                self.stream.send_trailers(trailers).await.map_err(gone)?;
                self.finish().await
            }
        }
    }

    pub(crate) async fn finish(&mut self) -> Result<(), SinkGone> {
        if !self.ended {
            self.stream.finish().await.map_err(gone)?;
            self.ended = true;
        }
        Ok(())
    }

    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<SinkGone> {
        self.stopped.as_mut().poll(cx).map(SinkGone)
    }
}

pub(super) fn gone(error: StreamError) -> SinkGone {
    SinkGone(error.to_string())
}

impl Drop for BodyWriter {
    fn drop(&mut self) {
        if !self.ended {
            self.stream.stop_stream(Code::H3_INTERNAL_ERROR);
        }
    }
}
