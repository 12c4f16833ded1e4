//! A request stream: frames come in and go out, in the order that RFC 9114, section 4.1 allows and no other.
//!
//! Nothing is gathered but a HEADERS frame, whose size is bounded; data passes as it comes, and what is unknown is read
//! over. A frame that is cut off, or not allowed where it is, closes the connection.

use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h3::error::Code;
use quinn::{ConnectionError, ReadError, WriteError};

use super::frame::{self, Kind, Violation};
use super::link::{Course, Role, varint};
use crate::body::SinkGone;
use crate::timer::{Deadline, Timers};

/// What a stream brings.
pub(super) enum Piece {
    /// The whole payload of a HEADERS frame.
    Section(Bytes),
    /// Some of the payload of a DATA frame; never empty.
    Data(Bytes),
}

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

/// What comes next within a message.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Phase {
    Head,
    Content,
    /// Trailers came: only what is unknown may follow.
    Over,
}

enum At {
    /// Bytes of a frame's type and length that came so far.
    Header(usize),
    Section {
        left: usize,
        gathered: BytesMut,
    },
    Data(u64),
    Skip(u64),
    End,
}

/// The receiving half.
pub(super) struct Reader {
    recv: quinn::RecvStream,
    course: Rc<Course>,
    max_section: usize,
    ahead: Bytes,
    header: [u8; frame::LONGEST_HEADER],
    at: At,
    phase: Phase,
}

impl Reader {
    pub(super) fn new(recv: quinn::RecvStream, course: Rc<Course>, max_section: usize) -> Self {
        let (ahead, header) = (Bytes::new(), [0; frame::LONGEST_HEADER]);
        Self { recv, course, max_section, ahead, header, at: At::Header(0), phase: Phase::Head }
    }

    pub(super) fn course(&self) -> &Rc<Course> {
        &self.course
    }

    /// The section that came was an interim response's: a head comes again.
    pub(super) fn was_interim(&mut self) {
        self.phase = Phase::Head;
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
                self.at = At::End;
                Poll::Ready(Err(broken))
            }
            other => other,
        }
    }

    /// Tells the peer that no more of it is wanted.
    pub(super) fn stop(&mut self, code: Code) {
        self.at = At::End;
        // Fails on a stream that is over.
        let _ = self.recv.stop(varint(code));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, Broken>> {
        loop {
            if matches!(self.at, At::End) {
                return Poll::Ready(Ok(None));
            }
            if self.ahead.is_empty() && !ready!(self.poll_more(cx))? {
                let between = matches!(self.at, At::Header(0));
                self.at = At::End;
                if between {
                    return Poll::Ready(Ok(None));
                }
                // Section 7.1: a frame that the end of its stream cuts off.
                return Poll::Ready(Err(violation(Code::H3_FRAME_ERROR, "the stream ends within a frame")));
            }
            match &mut self.at {
                At::Header(had) => {
                    let had = *had;
                    let room = &mut self.header[had..];
                    let take = room.len().min(self.ahead.len());
                    room[..take].copy_from_slice(&self.ahead[..take]);
                    match frame::header(&self.header[..had + take]) {
                        None => {
                            self.ahead.advance(take);
                            self.at = At::Header(had + take);
                        }
                        Some((kind, length, used)) => {
                            self.ahead.advance(used - had);
                            self.begin(kind, length)?;
                            // A section of nothing is one, and breaks QPACK; there is no byte to wait for.
                            if let At::Section { left: 0, .. } = self.at {
                                self.at = At::Header(0);
                                return Poll::Ready(Ok(Some(Piece::Section(Bytes::new()))));
                            }
                        }
                    }
                }
                At::Section { left, gathered } => {
                    let take = (*left).min(self.ahead.len());
                    *left -= take;
                    let done = *left == 0;
                    // Mostly it is all in one packet, and need not be copied.
                    let section = if done && gathered.is_empty() {
                        self.ahead.split_to(take)
                    } else {
                        gathered.extend_from_slice(&self.ahead.split_to(take));
                        if !done {
                            continue;
                        }
                        std::mem::take(gathered).freeze()
                    };
                    self.at = At::Header(0);
                    return Poll::Ready(Ok(Some(Piece::Section(section))));
                }
                At::Data(left) => {
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(self.ahead.len());
                    *left -= take as u64;
                    if *left == 0 {
                        self.at = At::Header(0);
                    }
                    return Poll::Ready(Ok(Some(Piece::Data(self.ahead.split_to(take)))));
                }
                At::Skip(left) => {
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(self.ahead.len());
                    *left -= take as u64;
                    self.ahead.advance(take);
                    if *left == 0 {
                        self.at = At::Header(0);
                    }
                }
                At::End => {}
            }
        }
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

    /// What may come where (section 4.1 and section 7, table 1).
    fn begin(&mut self, kind: Kind, length: u64) -> Result<(), Broken> {
        let link = &self.course.link;
        self.at = match (kind, self.phase) {
            (Kind::Headers, Phase::Head | Phase::Content) => {
                self.phase = if self.phase == Phase::Head { Phase::Content } else { Phase::Over };
                let left = usize::try_from(length).ok().filter(|length| *length <= self.max_section);
                At::Section { left: left.ok_or(Broken::TooLarge)?, gathered: BytesMut::new() }
            }
            (Kind::Data, Phase::Content) if length > 0 => At::Data(length),
            (Kind::Data, Phase::Content) => {
                link.idle_frame().map_err(Broken::Violation)?;
                At::Header(0)
            }
            (Kind::Unknown, _) => {
                link.idle_frame().map_err(Broken::Violation)?;
                if length == 0 { At::Header(0) } else { At::Skip(length) }
            }
            // Section 4.6: we never allowed a push.
            (Kind::PushPromise, _) if link.role == Role::Client => {
                return Err(violation(Code::H3_ID_ERROR, "a push that was not allowed"));
            }
            (Kind::Data, Phase::Head) => return Err(violation(Code::H3_FRAME_UNEXPECTED, "DATA before HEADERS")),
            (Kind::Data | Kind::Headers, _) => {
                return Err(violation(Code::H3_FRAME_UNEXPECTED, "a frame after the trailers"));
            }
            _ => return Err(violation(Code::H3_FRAME_UNEXPECTED, "a frame that no request stream has")),
        };
        Ok(())
    }
}

fn violation(code: Code, reason: &'static str) -> Broken {
    Broken::Violation(Violation::new(code, reason))
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
        Self { send, course, timers: timers.clone(), patience, cut_off, state: Sending::Between, watch: None }
    }

    pub(super) fn course(&self) -> &Rc<Course> {
        &self.course
    }

    /// Sends a HEADERS frame that was encoded whole.
    pub(super) async fn section(&mut self, frame: Bytes) -> Result<(), SinkGone> {
        self.write(&mut [frame]).await
    }

    pub(super) async fn data(&mut self, data: Bytes) -> Result<(), SinkGone> {
        // A DATA frame of nothing tells nothing.
        if data.is_empty() {
            return Ok(());
        }
        let mut header = BytesMut::with_capacity(frame::LONGEST_HEADER);
        frame::write_header(&mut header, frame::DATA, data.len());
        self.write(&mut [header.freeze(), data]).await
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
