//! Two TCP connections, bytes both ways: what one side sends the other gets, unread and unchanged.
//!
//! - Small reads go through a buffer that the worker's tunnels share; once a read fills it, bytes are moved by splice(2)
//!   until there are few again. An idle tunnel holds neither.
//! - Back-pressure: nothing is read while something waits to be written. What waits is a pipe's worth at most.
//! - An end is passed on as an end (FIN) for its direction, the other goes on. A reset is passed on as a reset: nobody
//!   takes a part for the whole, and this side is left without a connection in TIME_WAIT.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use thiserror::Error;
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

use super::pipe::Pipe;
use crate::body::{Activity, Quiet};
use crate::stream::reset_on_close;
use crate::timer::{Deadline, Timers};

/// What is read at once while little comes.
const SMALL: usize = 4096;
/// What is read at once where there is no pipe to be had.
const LARGE: usize = 64 * 1024;
/// Reads in a row before others have their turn: with full pipes 8 MiB.
const TURN: usize = 8;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; LARGE].into());
}

/// How a tunnel is bounded and counted.
pub(super) struct Rules<'a> {
    /// Longest time without a byte in either direction.
    pub(super) idle: Option<Duration>,
    pub(super) lifetime: Option<Duration>,
    pub(super) timers: &'a Timers,
    /// Bytes from the client.
    pub(super) up: &'a Cell<u64>,
    /// Bytes to the client.
    pub(super) down: &'a Cell<u64>,
}

/// Why a tunnel did not end by itself.
#[derive(Debug, Error)]
pub(super) enum Broke {
    #[error("client: {0}")]
    Client(io::Error),
    #[error("upstream: {0}")]
    Upstream(io::Error),
    #[error("silent for {0:?}")]
    Idle(Duration),
    #[error("older than {0:?}")]
    Lifetime(Duration),
}

/// Moves bytes until both directions have ended, one breaks, or a time is over. What breaks is reset on both sides.
/// `ahead` goes to the upstream before all else and is not counted, `read` after it and is.
pub(super) async fn relay(
    client: &TcpStream,
    upstream: &TcpStream,
    ahead: Bytes,
    read: Bytes,
    rules: Rules<'_>,
) -> Result<(), Broke> {
    let activity = Activity::now();
    let mut idle = Quiet::new(&activity, rules.timers, rules.idle);
    let mut lifetime = rules.lifetime.map(|most| (Deadline::after(rules.timers, Some(most)), most));
    rules.up.set(read.len() as u64);
    let first = if ahead.is_empty() { read } else { [ahead, read].concat().into() };
    let mut up = Direction::new(client, upstream, first, rules.up, &activity);
    let mut down = Direction::new(upstream, client, Bytes::new(), rules.down, &activity);
    let ended = poll_fn(|cx| {
        let ups = up.poll(cx).map_err(|broken| broken.between(Broke::Client, Broke::Upstream))?;
        let downs = down.poll(cx).map_err(|broken| broken.between(Broke::Upstream, Broke::Client))?;
        if ups.is_ready() && downs.is_ready() {
            return Poll::Ready(Ok(()));
        }
        if let Some((deadline, most)) = &mut lifetime
            && deadline.poll_elapsed(cx).is_ready()
        {
            return Poll::Ready(Err(Broke::Lifetime(*most)));
        }
        idle.poll(cx).map(|idle| Err(Broke::Idle(idle)))
    })
    .await;
    if ended.is_err() {
        reset_on_close(client);
        reset_on_close(upstream);
    }
    ended
}

/// Which side of a direction broke.
enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

impl Broken {
    fn between(self, source: fn(io::Error) -> Broke, sink: fn(io::Error) -> Broke) -> Broke {
        match self {
            Self::Source(error) => source(error),
            Self::Sink(error) => sink(error),
        }
    }
}

struct Direction<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    /// Read and not written.
    rest: Bytes,
    /// Kept while it holds something, or while much comes.
    pipe: Option<Pipe>,
    /// The last read took all there was room for.
    much: bool,
    /// The source has ended; nothing more is to be read.
    end: bool,
    /// So has this direction: its end was passed on.
    ended: bool,
    /// While the sink takes nothing the source is not read, and so it would not be seen that it broke.
    broken: Option<Pin<Box<dyn Future<Output = io::Result<Ready>> + 'a>>>,
    moved: &'a Cell<u64>,
    activity: &'a Activity,
}

impl Drop for Direction<'_> {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl<'a> Direction<'a> {
    fn new(from: &'a TcpStream, to: &'a TcpStream, rest: Bytes, moved: &'a Cell<u64>, activity: &'a Activity) -> Self {
        Self { from, to, rest, pipe: None, much: false, end: false, ended: false, broken: None, moved, activity }
    }

    /// Ready when it has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        let mut reads = 0;
        loop {
            match self.write(cx) {
                Poll::Ready(result) => result.map_err(Broken::Sink)?,
                Poll::Pending => {
                    ready!(self.poll_broken(cx)).map_err(Broken::Source)?;
                }
            }
            self.broken = None;
            if self.end {
                self.ended = true;
                self.let_go();
                return match socket2::SockRef::from(self.to).shutdown(std::net::Shutdown::Write) {
                    // It has gone altogether, which the other direction finds out.
                    Err(error) if error.kind() != ErrorKind::NotConnected => Poll::Ready(Err(Broken::Sink(error))),
                    _ => Poll::Ready(Ok(())),
                };
            }
            if reads == TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            reads += 1;
            if self.from.poll_read_ready(cx).map_err(Broken::Source)?.is_pending() {
                self.let_go();
                return Poll::Pending;
            }
            match self.read() {
                Ok(0) => self.end = true,
                Ok(count) => {
                    self.moved.set(self.moved.get() + count as u64);
                    self.activity.moved();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(Broken::Source(error))),
            }
        }
    }

    /// Writes what was read. Ready when nothing of it is left.
    fn write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let written = if !self.rest.is_empty() {
                self.to.try_write(&self.rest).map(|count| self.rest.advance(count))
            } else if let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held() > 0) {
                pipe.drain(self.to).map(drop)
            } else {
                return Poll::Ready(Ok(()));
            };
            match written {
                Ok(()) => self.activity.moved(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.to.poll_write_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Reads once, with nothing of the last read left. 0 at the end.
    fn read(&mut self) -> io::Result<usize> {
        if self.much && self.pipe.is_none() {
            self.pipe = Pipe::take();
        }
        if let Some(pipe) = &mut self.pipe {
            let count = pipe.fill(self.from)?;
            self.much = count >= SMALL;
            return Ok(count);
        }
        let size = if self.much { LARGE } else { SMALL };
        BUFFER.with_borrow_mut(|buffer| {
            let buffer = &mut buffer[..size];
            let count = self.from.try_read(buffer)?;
            self.much = count == size;
            if (1..size).contains(&count) {
                // That was all (epoll(7), on edges): to ask again would be a call for nothing. An end is still noticed, by
                // the event that came with it.
                let nothing = || Err::<(), _>(ErrorKind::WouldBlock.into());
                let _ = self.from.try_io(Interest::READABLE, nothing);
            }
            // Mostly it is all taken at once, and nothing is to be kept. What is wrong comes again with the next write.
            let written = self.to.try_write(&buffer[..count]).unwrap_or(0);
            if written < count {
                self.rest = Bytes::copy_from_slice(&buffer[written..count]);
            }
            Ok(count)
        })
    }

    /// Ready with the error of a source that broke.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let from = self.from;
        let broken = self.broken.get_or_insert_with(|| Box::pin(from.ready(Interest::ERROR)));
        ready!(broken.as_mut().poll(cx))?;
        self.broken = None;
        Poll::Ready(Err(from.take_error()?.unwrap_or_else(|| ErrorKind::ConnectionReset.into())))
    }

    /// Gives the pipe to others while nothing comes.
    fn let_go(&mut self) {
        if let Some(pipe) = self.pipe.take_if(|pipe| pipe.held() == 0 || self.ended) {
            pipe.give_back();
        }
        self.much = false;
    }
}

#[cfg(test)]
mod tests;
