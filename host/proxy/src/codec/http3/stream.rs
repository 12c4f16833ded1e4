//! A request stream: what comes in is read through `message`, what goes out is written frame by frame, and neither half
//! can be dropped so that a part looks like a whole.

use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h3::error::Code;
use quinn::{ConnectionError, ReadError, WriteError};

use super::frame::{self, Violation};
use super::link::{Course, Role, varint};
use super::message::{Message, Piece, Refused, Step};
use crate::body::SinkGone;
use crate::timer::{Deadline, Timers};

/// Why nothing more comes.
#[derive(Clone, Debug)]
pub(super) enum Broken {
    Reset(u64),
    Lost(ConnectionError),
    /// The connection was closed for it.
    Violation(Violation),
    /// A HEADERS frame is larger than the limit.
    TooLarge,
}

impl From<Refused> for Broken {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Violation(violation) => Self::Violation(violation),
            Refused::TooLarge => Self::TooLarge,
        }
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Reset(code) => write!(f, "stream reset: {}", Code::from(*code)),
            Self::Lost(error) => write!(f, "connection lost: {error}"),
            Self::Violation(violation) => f.write_str(violation.reason),
            Self::TooLarge => f.write_str("a field section is too large"),
        }
    }
}

/// The receiving half. Dropped before its end, the peer is told to stop sending.
pub(super) struct Reader {
    recv: quinn::RecvStream,
    course: Rc<Course>,
    ahead: Bytes,
    message: Message,
    over: bool,
}

impl Reader {
    pub(super) fn new(recv: quinn::RecvStream, course: Rc<Course>, max_section: usize) -> Self {
        let message = Message::new(course.link.role, max_section);
        Self { recv, course, ahead: Bytes::new(), message, over: false }
    }

    pub(super) fn course(&self) -> &Rc<Course> {
        &self.course
    }

    /// The section that came was an interim response's: a head comes again.
    pub(super) fn was_interim(&mut self) {
        self.message.was_interim();
    }

    /// The next piece; `None` at the clean end. After an error nothing more may be polled.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, Broken>> {
        match self.poll(cx) {
            Poll::Ready(Err(broken)) => {
                match &broken {
                    Broken::Violation(violation) => self.course.link.fail(*violation),
                    Broken::Reset(_) => self.course.cancelled(),
                    Broken::Lost(_) | Broken::TooLarge => {}
                }
                self.over = true;
                Poll::Ready(Err(broken))
            }
            other => other,
        }
    }

    /// Tells the peer that no more of it is wanted.
    pub(super) fn stop(&mut self, code: Code) {
        self.over = true;
        // Fails on a stream that is over.
        let _ = self.recv.stop(varint(code));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, Broken>> {
        while !self.over {
            match self.message.next(&mut self.ahead)? {
                Step::Piece(piece) => return Poll::Ready(Ok(Some(piece))),
                Step::Idle => self.course.link.idle_frame().map_err(Broken::Violation)?,
                Step::More => {
                    if !ready!(self.poll_more(cx))? {
                        self.over = true;
                        self.message.end().map_err(Broken::Violation)?;
                    }
                }
            }
        }
        Poll::Ready(Ok(None))
    }

    /// Reads more bytes; false at the end of the stream.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        // Safe to drop and poll anew: what is read is taken, and the waker stays registered with the connection.
        let chunk = ready!(pin!(self.recv.read_chunk(usize::MAX, true)).poll(cx));
        Poll::Ready(match chunk {
            Ok(Some(chunk)) => {
                self.ahead = chunk.bytes;
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(ReadError::Reset(code)) => Err(Broken::Reset(code.into_inner())),
            Err(ReadError::ConnectionLost(error)) => Err(Broken::Lost(error)),
            // We stopped it, or it was early data that was refused: neither is read on from.
            Err(_) => Err(Broken::Lost(ConnectionError::LocallyClosed)),
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.over {
            // RFC 9114, section 4.1: a server that needs no more of a request says so with NO_ERROR; section 4.1.1: a
            // client that wants no more of a response cancels the request.
            self.stop(match self.course.link.role {
                Role::Server => Code::H3_NO_ERROR,
                Role::Client => Code::H3_REQUEST_CANCELLED,
            });
        }
    }
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Sending {
    Between,
    /// A frame is on its way, or broke off: its stream must not end here as if it were whole.
    Within,
    Finished,
    Reset,
}

type Stopped = Pin<Box<dyn Future<Output = String>>>;

/// The sending half. Dropped before [`finish`](Self::finish), the stream is reset: quinn would end it cleanly.
pub(super) struct Writer {
    send: quinn::SendStream,
    course: Rc<Course>,
    timers: Timers,
    /// How long the peer may give no credit for what is to be sent.
    patience: Option<Duration>,
    /// With what a cut-off is told.
    cut_off: Code,
    /// A frame that goes out with the next one, or by `flush`.
    held: Option<Bytes>,
    state: Sending,
    /// Watches for STOP_SENDING, where no task does.
    watch: Option<Stopped>,
}

impl Writer {
    pub(super) fn new(
        send: quinn::SendStream,
        course: Rc<Course>,
        timers: &Timers,
        patience: Option<Duration>,
        cut_off: Code,
    ) -> Self {
        Self {
            send,
            course,
            timers: timers.clone(),
            patience,
            cut_off,
            held: None,
            state: Sending::Between,
            watch: None,
        }
    }

    pub(super) fn course(&self) -> &Rc<Course> {
        &self.course
    }

    /// Sends a HEADERS frame that was encoded whole.
    pub(super) async fn section(&mut self, frame: Bytes) -> Result<(), SinkGone> {
        self.flush().await?;
        self.write(&mut [frame]).await
    }

    /// Keeps a HEADERS frame that was encoded whole until something follows it.
    pub(super) fn hold(&mut self, frame: Bytes) {
        self.held = Some(frame);
    }

    pub(super) async fn flush(&mut self) -> Result<(), SinkGone> {
        match self.held.take() {
            Some(frame) => self.write(&mut [frame]).await,
            None => Ok(()),
        }
    }

    pub(super) async fn data(&mut self, data: Bytes) -> Result<(), SinkGone> {
        // A DATA frame of nothing tells nothing.
        if data.is_empty() {
            return Ok(());
        }
        let mut header = BytesMut::with_capacity(frame::LONGEST_HEADER);
        frame::write_header(&mut header, frame::DATA, data.len());
        match self.held.take() {
            Some(held) => self.write(&mut [held, header.freeze(), data]).await,
            None => self.write(&mut [header.freeze(), data]).await,
        }
    }

    /// Ends the message.
    pub(super) fn finish(&mut self) -> Result<(), SinkGone> {
        match self.state {
            Sending::Between => {
                self.send.finish().map_err(|error| SinkGone(error.to_string()))?;
                self.state = Sending::Finished;
                self.course.finished.set(true);
                Ok(())
            }
            Sending::Finished => Ok(()),
            Sending::Within | Sending::Reset => Err(SinkGone("the stream was cut off".to_owned())),
        }
    }

    /// With what a drop before the end resets the stream from now on.
    pub(super) fn cut_off(&mut self, code: Code) {
        self.cut_off = code;
    }

    pub(super) fn reset(&mut self, code: Code) {
        if matches!(self.state, Sending::Between | Sending::Within) {
            self.state = Sending::Reset;
            // Fails on a stream that is over.
            let _ = self.send.reset(varint(code));
        }
    }

    /// Ready when the peer takes no more: STOP_SENDING, or the end of the connection.
    pub(super) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<SinkGone> {
        if self.course.link.role == Role::Server {
            // The task that polls us polls the stream's signal too, and first.
            return match &*self.course.stopped.borrow() {
                Some(reason) => Poll::Ready(SinkGone(reason.clone())),
                None => Poll::Pending,
            };
        }
        let send = &self.send;
        let watch = self.watch.get_or_insert_with(|| {
            let stopped = send.stopped();
            Box::pin(async move {
                match stopped.await {
                    Ok(Some(code)) => stopped_with(code.into_inner()),
                    // All acknowledged: nobody left.
                    Ok(None) => std::future::pending().await,
                    Err(error) => error.to_string(),
                }
            })
        });
        watch.as_mut().poll(cx).map(SinkGone)
    }

    async fn write(&mut self, mut chunks: &mut [Bytes]) -> Result<(), SinkGone> {
        if self.state != Sending::Between {
            return Err(SinkGone("the stream is over".to_owned()));
        }
        self.state = Sending::Within;
        while !chunks.is_empty() {
            let mut quiet = Deadline::after(&self.timers, self.patience);
            let written = tokio::select! {
                biased;
                written = self.send.write_chunks(chunks) => written,
                () = quiet.elapsed() => {
                    return Err(SinkGone(format!("it took nothing for {:?}", self.patience.unwrap_or_default())));
                }
            };
            match written {
                Ok(written) => chunks = &mut chunks[written.chunks..],
                Err(WriteError::Stopped(code)) => {
                    // RFC 9000, section 3.5: answered by a reset with the same code.
                    self.reset(Code::from(code.into_inner()));
                    return Err(SinkGone(stopped_with(code.into_inner())));
                }
                Err(error) => return Err(SinkGone(error.to_string())),
            }
        }
        self.state = Sending::Between;
        Ok(())
    }
}

pub(super) fn stopped_with(code: u64) -> String {
    format!("the peer stopped reading: {}", Code::from(code))
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.reset(self.cut_off);
    }
}
