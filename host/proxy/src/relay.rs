//! Bytes both ways, for tunnels: what one side sends the other gets, unread and unchanged, until both have ended.
//!
//! Each direction ends by itself: the end of what comes in closes half of what goes out (FIN, END_STREAM), and the other
//! direction goes on. What breaks is cut off on both sides, so that nobody takes a part for the whole. Back-pressure is
//! the await on `send`, as for bodies; nothing is buffered here.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use thiserror::Error;

use crate::body::{Activity, BodyError, Frame, Incoming, Outgoing, Quiet, SinkGone};
use crate::timer::Timers;

pub(crate) mod datagrams;

/// One side of a tunnel: TCP, TLS, or a stream of HTTP/2 or HTTP/3.
pub(crate) struct End {
    pub(crate) incoming: Incoming,
    pub(crate) outgoing: Outgoing,
}

/// How a tunnel is bounded and counted.
pub(crate) struct RelayRules<'a> {
    /// Longest time without a byte in either direction.
    pub(crate) idle: Option<Duration>,
    pub(crate) timers: &'a Timers,
    /// Bytes from the client.
    pub(crate) up: &'a Cell<u64>,
    /// Bytes to the client.
    pub(crate) down: &'a Cell<u64>,
}

/// Why a tunnel did not end by itself.
#[derive(Debug, Error)]
pub(crate) enum Broke {
    #[error("tunnel, client: {0}")]
    Client(String),
    #[error("tunnel, upstream: {0}")]
    Upstream(String),
    #[error("tunnel: silent for {0:?}")]
    Idle(Duration),
}

/// Moves bytes until both directions have ended, one breaks, or nothing moves for too long.
pub(crate) async fn relay(mut client: End, mut upstream: End, rules: RelayRules<'_>) -> Result<(), Broke> {
    let activity = Activity::now();
    let ended = {
        let mut idle = Quiet::new(&activity, rules.timers, rules.idle);
        // An upstream over HTTP/2 may refuse more and still have sent all of its own; one over TCP has gone, and a client
        // that wants no more has left.
        let refusable = matches!(upstream.outgoing, Outgoing::Http2(_) | Outgoing::Http3(_));
        let up = pin!(one_way(&mut client.incoming, &mut upstream.outgoing, refusable, &activity, rules.up));
        let down = pin!(one_way(&mut upstream.incoming, &mut client.outgoing, false, &activity, rules.down));
        let (mut up, mut down) = (Direction::Running(up), Direction::Running(down));
        poll_fn(|cx| {
            match up.poll(cx) {
                Some(Stopped::Source(error)) => return Poll::Ready(Err(Broke::Client(error.to_string()))),
                Some(Stopped::Sink(gone)) => return Poll::Ready(Err(Broke::Upstream(gone.to_string()))),
                None => {}
            }
            match down.poll(cx) {
                Some(Stopped::Source(error)) => return Poll::Ready(Err(Broke::Upstream(error.to_string()))),
                Some(Stopped::Sink(gone)) => return Poll::Ready(Err(Broke::Client(gone.to_string()))),
                None => {}
            }
            if up.ended() && down.ended() {
                return Poll::Ready(Ok(()));
            }
            idle.poll(cx).map(|idle| Err(Broke::Idle(idle)))
        })
        .await
    };
    if ended.is_err() {
        client.outgoing.reset();
        upstream.outgoing.reset();
    }
    ended
}

/// Why one direction stopped before its end.
enum Stopped {
    Source(BodyError),
    Sink(SinkGone),
}

/// One direction while the other is looked at.
enum Direction<'a, F> {
    Running(Pin<&'a mut F>),
    Ended,
}

impl<F: Future<Output = Result<(), Stopped>>> Direction<'_, F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Option<Stopped> {
        let Self::Running(work) = self else { return None };
        match work.as_mut().poll(cx) {
            Poll::Pending => None,
            Poll::Ready(end) => {
                *self = Self::Ended;
                end.err()
            }
        }
    }

    fn ended(&self) -> bool {
        matches!(self, Self::Ended)
    }
}

/// One direction to its end. That the receiver refuses the rest is an end where it is `refusable`.
async fn one_way(
    from: &mut Incoming,
    to: &mut Outgoing,
    refusable: bool,
    activity: &Activity,
    moved: &Cell<u64>,
) -> Result<(), Stopped> {
    loop {
        let frame = match poll_fn(|cx| Poll::Ready(from.poll_frame(cx))).await {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                to.flush(activity).await.map_err(Stopped::Sink)?;
                let waited = poll_fn(|cx| {
                    if let Poll::Ready(frame) = from.poll_frame(cx) {
                        return Poll::Ready(Ok(frame));
                    }
                    to.poll_closed(cx).map(Err)
                });
                match waited.await {
                    Ok(frame) => frame,
                    Err(_) if refusable => return Ok(()),
                    Err(gone) => return Err(Stopped::Sink(gone)),
                }
            }
        };
        match frame {
            None => {
                return match to.finish(activity).await {
                    Err(gone) if !refusable => Err(Stopped::Sink(gone)),
                    _ => Ok(()),
                };
            }
            Some(Ok(Frame::Data(data))) => {
                moved.set(moved.get() + data.len() as u64);
                activity.moved();
                match to.send(Frame::Data(data), activity).await {
                    Ok(()) => {}
                    Err(_) if refusable => return Ok(()),
                    Err(gone) => return Err(Stopped::Sink(gone)),
                }
            }
            // RFC 9113, section 8.5: nothing but DATA is sent on a connected stream.
            Some(Ok(Frame::Trailers(_))) => {
                return Err(Stopped::Source(BodyError::Invalid("a field section within a tunnel".to_owned())));
            }
            Some(Err(error)) => return Err(Stopped::Source(error)),
        }
    }
}

#[cfg(test)]
mod tests;
