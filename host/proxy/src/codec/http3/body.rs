//! Bodies as HTTP/3 streams, both sides.

use std::task::{Context, Poll, Waker, ready};

use h3::error::Code;

use super::fields::{self, Bounds, Wrong};
use super::frame::Violation;
use super::message::Piece;
use super::stream::{Broken, Reader, Writer};
use crate::body::{Activity, BodyError, Frame, Length, SinkGone};

/// The body of the message that comes in. Dropped before its end, the peer is told to stop sending.
pub(crate) struct BodyReader {
    reader: Reader,
    /// For trailers.
    bounds: Bounds,
    length: Length,
    received: u64,
    /// Read to find out whether there is a body.
    ahead: Option<Result<Frame, BodyError>>,
    state: State,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum State {
    Data,
    /// Trailers came: the end is to follow.
    Ending,
    Done,
}

impl BodyReader {
    pub(super) fn new(reader: Reader, length: Length, bounds: Bounds) -> Self {
        Self { reader, bounds, length, received: 0, ahead: None, state: State::Data }
    }

    /// What the head said, or what the stream showed since: one that ended without content has none.
    pub(crate) fn length(&self) -> Length {
        self.length
    }

    /// Takes note of what has arrived, without waiting. Only a stream's end tells that a message without content-length
    /// has no content, and the end may come in a later packet than the head.
    pub(crate) fn look(&mut self) {
        // Whoever reads on registers its own waker.
        let _ = self.poll_look(&mut Context::from_waker(Waker::noop()));
    }

    /// Ready when some of it is here, or its end.
    pub(super) fn poll_look(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ahead.is_none() && self.state == State::Data {
            self.ahead = ready!(self.poll_frame(cx));
        }
        Poll::Ready(())
    }

    pub(super) fn ended(&self) -> bool {
        self.state == State::Done
    }

    /// Whether what is here already is wrong.
    pub(super) fn is_malformed(&self) -> bool {
        matches!(self.ahead, Some(Err(BodyError::Invalid(_))))
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if let Some(frame) = self.ahead.take() {
            return Poll::Ready(Some(frame));
        }
        if self.state == State::Done {
            return Poll::Ready(None);
        }
        let piece = match ready!(self.reader.poll_piece(cx)) {
            Ok(piece) => piece,
            Err(broken) => {
                self.state = State::Done;
                return Poll::Ready(Some(Err(self.broken(&broken))));
            }
        };
        Poll::Ready(match piece {
            Some(Piece::Data(data)) => {
                self.received += data.len() as u64;
                // RFC 9114, section 4.1.2: content that differs from content-length is malformed.
                match self.length {
                    Length::Known(length) if self.received > length => Some(Err(self.malformed(DIFFERS))),
                    Length::None => Some(Err(self.malformed(DIFFERS))),
                    _ => Some(Ok(Frame::Data(data))),
                }
            }
            Some(Piece::Section(section)) => match fields::trailers(section, self.bounds) {
                Ok(_) if self.differs() => Some(Err(self.malformed(DIFFERS))),
                Ok(trailers) => {
                    self.state = State::Ending;
                    Some(Ok(Frame::Trailers(trailers)))
                }
                Err(Wrong::Malformed(reason)) => Some(Err(self.malformed(reason))),
                Err(Wrong::TooLarge) => Some(Err(self.malformed("the trailers are too large"))),
                Err(Wrong::Violation(violation)) => Some(Err(self.violated(violation))),
            },
            None if self.state == State::Data && self.differs() => Some(Err(self.malformed(DIFFERS))),
            None => {
                if self.state == State::Data && self.received == 0 {
                    self.length = Length::None;
                }
                self.state = State::Done;
                None
            }
        })
    }

    fn differs(&self) -> bool {
        matches!(self.length, Length::Known(length) if self.received != length)
    }

    fn malformed(&mut self, reason: &'static str) -> BodyError {
        self.state = State::Done;
        self.reader.stop(Code::H3_MESSAGE_ERROR);
        BodyError::Invalid(reason.to_owned())
    }

    fn violated(&mut self, violation: Violation) -> BodyError {
        self.state = State::Done;
        self.reader.course().link.fail(violation);
        BodyError::Invalid(violation.reason.to_owned())
    }

    fn broken(&mut self, broken: &Broken) -> BodyError {
        match broken {
            Broken::Reset(_) => BodyError::Reset(broken.to_string()),
            Broken::Lost(_) => BodyError::Truncated(broken.to_string()),
            Broken::Violation(_) => BodyError::Invalid(broken.to_string()),
            Broken::TooLarge => self.malformed("the trailers are too large"),
        }
    }
}

const DIFFERS: &str = "the content differs from content-length";

/// The body of the message that goes out. Dropped before its end, the stream is reset.
pub(crate) struct BodyWriter {
    writer: Writer,
    /// The head ends the message: what comes is discarded.
    bodiless: bool,
}

impl BodyWriter {
    pub(super) fn new(writer: Writer) -> Self {
        Self { writer, bodiless: false }
    }

    pub(super) fn bodiless(writer: Writer) -> Self {
        Self { writer, bodiless: true }
    }

    pub(crate) async fn send(&mut self, frame: Frame, _: &Activity) -> Result<(), SinkGone> {
        match frame {
            _ if self.bodiless => Ok(()),
            Frame::Data(data) => self.writer.data(data).await,
            Frame::Trailers(trailers) => {
                let wanted = self.writer.course().link.peer().max_field_section_size;
                // Trailers that the peer does not want are left out (RFC 9114, section 4.2.2; RFC 9110, section 6.5.1).
                if let Some(frame) = fields::trailers_frame(&trailers, wanted).filter(|_| !trailers.is_empty()) {
                    self.writer.section(frame).await?;
                }
                self.writer.finish()
            }
        }
    }

    /// Sees to it that a head which waits for what follows goes out.
    pub(crate) async fn flush(&mut self) -> Result<(), SinkGone> {
        self.writer.flush().await
    }

    pub(crate) async fn finish(&mut self) -> Result<(), SinkGone> {
        self.writer.flush().await?;
        self.end()
    }

    /// The same without a wait.
    pub(super) fn end(&mut self) -> Result<(), SinkGone> {
        self.writer.finish()
    }

    /// Cuts a tunnel off because what its peer sent is malformed (RFC 9114, section 4.1.2).
    pub(crate) fn malformed(mut self) {
        self.writer.reset(Code::H3_MESSAGE_ERROR);
    }

    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<SinkGone> {
        self.writer.poll_closed(cx)
    }
}
