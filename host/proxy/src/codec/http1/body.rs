//! Bodies on a wire: the reader of the message that comes in, the writer of the one that goes out. Both sides use both.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{BufMut, BytesMut};
use http::HeaderMap;

use super::chunked::{ChunkDecoder, Piece};
use super::framing::Framing;
use super::wire::{Conn, WRITE_AHEAD};
use crate::body::{Activity, BodyError, Frame, Length, SinkGone};

#[derive(Debug)]
enum Decoder {
    Length(u64),
    Chunked(ChunkDecoder),
    UntilClose,
    Done,
}

/// The body of the message that comes in. Dropped early, the rest stays on the wire, and the connection cannot be used
/// for another message.
pub(crate) struct BodyReader {
    conn: Rc<Conn>,
    decoder: Decoder,
    length: Length,
}

impl BodyReader {
    /// `framing` is not `None`: a message without a body has no reader.
    pub(super) fn new(conn: &Rc<Conn>, framing: Framing, max_trailers: usize, max_fields: usize) -> Self {
        let (decoder, length) = match framing {
            Framing::None => (Decoder::Done, Length::None),
            Framing::Length(length) => (Decoder::Length(length), Length::Known(length)),
            Framing::Chunked => (Decoder::Chunked(ChunkDecoder::new(max_trailers, max_fields)), Length::Unknown),
            Framing::UntilClose | Framing::Tunnel => (Decoder::UntilClose, Length::Unknown),
        };
        conn.received.set(framing == Framing::None);
        Self { conn: conn.clone(), decoder, length }
    }

    pub(crate) fn length(&self) -> Length {
        self.length
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let mut wire = self.conn.wire.borrow_mut();
        loop {
            match &mut self.decoder {
                Decoder::Done => return Poll::Ready(None),
                Decoder::Length(left) => {
                    if !wire.read.is_empty() {
                        let take = wire.read.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                        let data = wire.read.split_to(take).freeze();
                        *left -= take as u64;
                        if *left == 0 {
                            self.decoder = Decoder::Done;
                            self.conn.received.set(true);
                        }
                        return Poll::Ready(Some(Ok(Frame::Data(data))));
                    }
                }
                Decoder::UntilClose => {
                    if !wire.read.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::Data(wire.read.split().freeze()))));
                    }
                }
                Decoder::Chunked(chunks) => match chunks.decode(&mut wire.read) {
                    Ok(Piece::Data(data)) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                    Ok(Piece::End(trailers)) => {
                        self.decoder = Decoder::Done;
                        self.conn.received.set(true);
                        return Poll::Ready(trailers.map(|trailers| Ok(Frame::Trailers(trailers))));
                    }
                    Ok(Piece::More) => {}
                    Err(reason) => {
                        self.conn.keep_alive.set(false);
                        return Poll::Ready(Some(Err(BodyError::Invalid(reason))));
                    }
                },
            }
            match wire.poll_fill(cx) {
                Poll::Pending => {
                    // A tunnel may be silent for hours.
                    if matches!(self.decoder, Decoder::UntilClose) {
                        wire.rest();
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => {
                    self.conn.keep_alive.set(false);
                    if matches!(self.decoder, Decoder::UntilClose) {
                        self.decoder = Decoder::Done;
                        self.conn.received.set(true);
                        return Poll::Ready(None);
                    }
                    let reason = "the connection was closed".to_owned();
                    return Poll::Ready(Some(Err(BodyError::Truncated(reason))));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    self.conn.keep_alive.set(false);
                    return Poll::Ready(Some(Err(BodyError::Reset(error.to_string()))));
                }
            }
        }
    }
}

/// The body of the message that goes out. Dropped before its end, the connection is closed in a way that the receiver
/// takes for an error.
pub(crate) struct BodyWriter {
    conn: Rc<Conn>,
    framing: Framing,
}

impl BodyWriter {
    pub(super) fn new(conn: &Rc<Conn>, framing: Framing) -> Self {
        Self { conn: conn.clone(), framing }
    }

    pub(crate) async fn send(&mut self, frame: Frame, activity: &Activity) -> Result<(), SinkGone> {
        match frame {
            Frame::Data(data) => {
                let mut wire = self.conn.wire.borrow_mut();
                match &mut self.framing {
                    Framing::None => {}
                    Framing::Length(left) => match left.checked_sub(data.len() as u64) {
                        Some(rest) => {
                            *left = rest;
                            wire.push(data);
                        }
                        None => return Err(SinkGone("the body is longer than its content-length".to_owned())),
                    },
                    Framing::UntilClose | Framing::Tunnel => wire.push(data),
                    // An empty chunk would end the message.
                    Framing::Chunked if data.is_empty() => {}
                    Framing::Chunked => {
                        wire.text(|tail| put_size(tail, data.len()));
                        wire.push(data);
                        wire.text(|tail| tail.extend_from_slice(b"\r\n"));
                    }
                }
            }
            Frame::Trailers(trailers) => return self.end(Some(&trailers), activity).await,
        }
        if self.conn.wire.borrow().unsent() > WRITE_AHEAD { self.drain(WRITE_AHEAD, activity).await } else { Ok(()) }
    }

    pub(crate) async fn flush(&mut self, activity: &Activity) -> Result<(), SinkGone> {
        self.drain(0, activity).await
    }

    pub(crate) async fn finish(&mut self, activity: &Activity) -> Result<(), SinkGone> {
        if self.conn.sent.get() { Ok(()) } else { self.end(None, activity).await }
    }

    async fn end(&mut self, trailers: Option<&HeaderMap>, activity: &Activity) -> Result<(), SinkGone> {
        match self.framing {
            Framing::Length(left) if left > 0 => {
                return Err(SinkGone(format!("the body ended {left} bytes short of its content-length")));
            }
            Framing::Chunked => self.conn.wire.borrow_mut().text(|tail| {
                tail.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten() {
                    put_field(tail, name.as_str().as_bytes(), value.as_bytes());
                }
                tail.extend_from_slice(b"\r\n");
            }),
            // Only chunked carries trailers (RFC 9112, section 7.1.2).
            _ => {}
        }
        self.drain(0, activity).await?;
        if self.framing == Framing::Tunnel {
            // Our half is closed; theirs goes on.
            poll_fn(|cx| self.conn.wire.borrow_mut().poll_shutdown(cx)).await.map_err(gone)?;
        }
        self.conn.sent.set(true);
        Ok(())
    }

    /// Cuts a tunnel off: what is unsent is dropped, and the close is a reset.
    pub(crate) fn reset(self) {
        self.conn.sent.set(false);
        let mut wire = self.conn.wire.borrow_mut();
        wire.discard();
        wire.stream.reset_on_close();
    }

    async fn drain(&self, keep: usize, activity: &Activity) -> Result<(), SinkGone> {
        poll_fn(|cx| {
            let mut wire = self.conn.wire.borrow_mut();
            let before = wire.unsent();
            let sent = wire.poll_send(cx, keep);
            // Looking at the clock is for those who take it piece by piece.
            if sent.is_pending() && wire.unsent() < before {
                activity.moved();
            }
            sent
        })
        .await
        .map_err(gone)
    }

    /// While a response is written, a client that closes or resets has left (RFC 9112, section 9.5). What it pipelines
    /// meanwhile is kept, up to a bound.
    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<SinkGone> {
        if self.framing == Framing::Tunnel {
            // Its reader will notice a reset; the end of what comes in is none of what goes out.
            return Poll::Pending;
        }
        poll_closed(&self.conn, cx)
    }
}

/// Both ends of a connection that carries messages no more. What was read ahead comes first.
pub(super) fn tunnel(conn: &Rc<Conn>) -> (BodyReader, BodyWriter) {
    conn.keep_alive.set(false);
    conn.sent.set(false);
    (BodyReader::new(conn, Framing::Tunnel, 0, 0), BodyWriter::new(conn, Framing::Tunnel))
}

/// Most bytes of pipelined requests that are read ahead while a response is under way.
const READ_AHEAD: usize = 16 * 1024;

pub(super) fn poll_closed(conn: &Conn, cx: &mut Context<'_>) -> Poll<SinkGone> {
    let mut wire = conn.wire.borrow_mut();
    if wire.unsent() > 0
        && let Poll::Ready(Err(error)) = wire.poll_send(cx, 0)
    {
        return Poll::Ready(gone(error));
    }
    if !conn.received.get() {
        // Its reader will notice.
        return Poll::Pending;
    }
    while wire.read.len() < READ_AHEAD {
        match wire.poll_fill(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(0)) => return Poll::Ready(SinkGone("the connection was closed".to_owned())),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(gone(error)),
        }
    }
    Poll::Pending
}

pub(super) fn gone(error: io::Error) -> SinkGone {
    SinkGone(error.to_string())
}

impl Drop for BodyWriter {
    fn drop(&mut self) {
        if !self.conn.sent.get() {
            self.conn.keep_alive.set(false);
            // A message that ends with the connection looks whole after an orderly close, and so does one that broke off
            // after its last byte; only a reset says it is not. The other framings are cut short by any close.
            if matches!(self.framing, Framing::UntilClose | Framing::Tunnel | Framing::Length(0))
                && let Ok(wire) = self.conn.wire.try_borrow()
            {
                wire.stream.reset_on_close();
            }
        }
    }
}

pub(super) fn put_size(out: &mut BytesMut, size: usize) {
    use std::fmt::Write;
    // Writing to a buffer that grows cannot fail.
    let _ = write!(out, "{size:x}\r\n");
}

pub(super) fn put_field(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}
