//! The buffers over a stream: what was read and not consumed, what is written and not sent.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::head::SectionScan;
use crate::stream::Stream;

/// A first read; grows for bodies that keep filling it.
const SMALL_READ: usize = 4 * 1024;
const LARGE_READ: usize = 256 * 1024;
/// Pieces below this are copied together, larger ones are sent from where they are.
const COPY_BELOW: usize = 1024;
/// A writer waits while more than this is unsent.
pub(super) const WRITE_AHEAD: usize = 64 * 1024;

pub(super) struct Wire {
    pub(super) stream: Stream,
    pub(super) read: BytesMut,
    /// How far `read` was searched for the end of a head.
    pub(super) scan: SectionScan,
    read_size: usize,
    queue: VecDeque<Bytes>,
    tail: BytesMut,
    unsent: usize,
    /// Bytes the kernel took since `begin_message`.
    pub(super) written: bool,
    pub(super) eof: bool,
}

impl Wire {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
            scan: SectionScan::default(),
            read_size: SMALL_READ,
            queue: VecDeque::new(),
            tail: BytesMut::new(),
            unsent: 0,
            written: false,
            eof: false,
        }
    }

    /// Reads more, at least a byte; `Ok(0)` at the end of the stream.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        if self.read.capacity() - self.read.len() < self.read_size / 2 {
            // An idle connection needs no buffer before there is something to put into it.
            ready!(self.stream.poll_read_ready(cx))?;
            self.read.reserve(self.read_size);
        }
        let room = self.read.capacity() - self.read.len();
        let count = ready!(pin!(self.stream.read_buf(&mut self.read)).poll(cx))?;
        self.eof = count == 0;
        if count == room && self.read_size < LARGE_READ {
            self.read_size *= 4;
        }
        Poll::Ready(Ok(count))
    }

    /// Gives buffers back while nothing is expected for a while.
    pub(super) fn release(&mut self) {
        if self.read.is_empty() {
            self.read = BytesMut::new();
            self.read_size = SMALL_READ;
        }
        if self.unsent == 0 {
            self.tail = BytesMut::new();
        }
    }

    /// Gives the read buffer back, as something may come at any time: the next is not much smaller.
    pub(super) fn rest(&mut self) {
        if self.read.is_empty() {
            self.read = BytesMut::new();
            self.read_size = (self.read_size / 4).max(SMALL_READ);
        }
    }

    /// The small-piece buffer: call `pushed` with its growth afterwards.
    pub(super) fn text(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let before = self.tail.len();
        write(&mut self.tail);
        self.unsent += self.tail.len() - before;
    }

    pub(super) fn push(&mut self, data: Bytes) {
        if data.len() < COPY_BELOW {
            return self.text(|tail| tail.extend_from_slice(&data));
        }
        if !self.tail.is_empty() {
            self.queue.push_back(self.tail.split().freeze());
        }
        self.unsent += data.len();
        self.queue.push_back(data);
    }

    pub(super) fn unsent(&self) -> usize {
        self.unsent
    }

    /// Forgets what was not sent.
    pub(super) fn discard(&mut self) {
        self.queue.clear();
        self.tail.clear();
        self.unsent = 0;
    }

    /// Sends until at most `keep` bytes are unsent.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, keep: usize) -> Poll<io::Result<()>> {
        while self.unsent > keep {
            let mut slices = [IoSlice::new(&[]); 16];
            let pieces = self.queue.iter().map(|piece| &piece[..]).chain([&self.tail[..]]);
            let used = slices.iter_mut().zip(pieces).map(|(slice, piece)| *slice = IoSlice::new(piece)).count();
            let mut count = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..used]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written = true;
            self.unsent -= count;
            while let Some(front) = self.queue.front_mut() {
                if front.len() > count {
                    front.advance(count);
                    count = 0;
                    break;
                }
                count -= front.len();
                self.queue.pop_front();
            }
            self.tail.advance(count);
        }
        // TLS keeps records of its own.
        if keep == 0 { Pin::new(&mut self.stream).poll_flush(cx) } else { Poll::Ready(Ok(())) }
    }

    /// Ends what we send, and says so.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A connection and the state of the two messages on it.
pub(super) struct Conn {
    pub(super) wire: RefCell<Wire>,
    /// The message that comes in was read to its end.
    pub(super) received: Cell<bool>,
    /// The message that goes out was written to its end.
    pub(super) sent: Cell<bool>,
    /// Both sides want another message after this one.
    pub(super) keep_alive: Cell<bool>,
}

impl Conn {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            wire: RefCell::new(Wire::new(stream)),
            received: Cell::new(true),
            sent: Cell::new(true),
            keep_alive: Cell::new(true),
        }
    }
}
