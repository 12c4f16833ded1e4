//! The pump: one body from the side that sends it to the side that takes it, with its times, its limit, and back-pressure.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use thiserror::Error;
use tidegate_policy::is_core_field;

use super::{BodyError, Frame, Incoming, Outgoing, SinkGone};
use crate::clock::Lately;
use crate::pace::{LeastRate, Pace};
use crate::timer::{Deadline, Timers};

/// Why a pump stopped early.
#[derive(Debug, Error)]
pub(crate) enum PumpError {
    #[error("reading: {0}")]
    Source(#[from] BodyError),
    #[error("writing: {0}")]
    Sink(#[from] SinkGone),
    /// The sender of the body was silent for too long.
    #[error("the sender was silent for {0:?}")]
    SourceIdle(Duration),
    /// The receiver took nothing for too long.
    #[error("the receiver took nothing for {0:?}")]
    SinkIdle(Duration),
    #[error("the sender is slower than {0} bytes a second")]
    SourceSlow(u64),
    #[error("the receiver is slower than {0} bytes a second")]
    SinkSlow(u64),
}

/// When a byte last moved in either direction of an exchange: a body that is quiet while the other one flows is not
/// idle (gRPC streams, early responses).
pub(crate) struct Activity(Cell<Lately>);

impl Activity {
    pub(crate) fn now() -> Self {
        Self(Cell::new(Lately::now()))
    }

    /// Notes that something moved.
    pub(crate) fn moved(&self) {
        self.0.set(Lately::now());
    }

    pub(crate) fn silent_for(&self) -> Duration {
        self.0.get().elapsed()
    }
}

/// How a pump is bounded and counted.
pub(crate) struct PumpRules<'a> {
    /// Bytes of data moved so far.
    pub(crate) moved: &'a Cell<u64>,
    pub(crate) activity: &'a Activity,
    /// Most bytes of data.
    pub(crate) limit: Option<u64>,
    /// Longest wait for the sender without a byte in either direction.
    pub(crate) source_idle: Option<Duration>,
    /// The same for the receiver.
    pub(crate) sink_idle: Option<Duration>,
    /// How slow the sender may be while we wait for it, and the receiver.
    pub(crate) source_rate: Option<LeastRate>,
    pub(crate) sink_rate: Option<LeastRate>,
    pub(crate) timers: &'a Timers,
}

/// Moves one body from `from` to `to` until it ends, breaks, or nothing moves for too long.
///
/// Back-pressure is the await on `send`: the next frame is not asked for before the last was taken. While the source is
/// silent the sink is flushed and watched, so that a client that leaves a quiet event stream is noticed at once.
pub(crate) async fn pump(from: &mut Incoming, to: &mut Outgoing, rules: PumpRules<'_>) -> Result<(), PumpError> {
    let mut silent = Quiet::new(rules.activity, rules.timers, rules.source_idle);
    let mut full = Taking {
        idle: Quiet::new(rules.activity, rules.timers, rules.sink_idle),
        pace: Pace::of(rules.sink_rate, rules.timers),
        moved: rules.moved,
    };
    let mut pace = Pace::of(rules.source_rate, rules.timers);
    loop {
        let frame = match poll_fn(|cx| Poll::Ready(from.poll_frame(cx))).await {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                full.unless(to.flush(rules.activity)).await??;
                poll_fn(|cx| {
                    if let Poll::Ready(frame) = from.poll_frame(cx) {
                        if let Some(pace) = &mut pace {
                            pace.rest();
                        }
                        return Poll::Ready(Ok(frame));
                    }
                    if let Poll::Ready(gone) = to.poll_closed(cx) {
                        return Poll::Ready(Err(PumpError::Sink(gone)));
                    }
                    if let Some(pace) = &mut pace
                        && let Poll::Ready(rate) = pace.poll_late(cx, rules.moved.get())
                    {
                        return Poll::Ready(Err(PumpError::SourceSlow(rate)));
                    }
                    silent.poll(cx).map(|idle| Err(PumpError::SourceIdle(idle)))
                })
                .await?
            }
        };
        let Some(frame) = frame else {
            return Ok(full.unless(to.finish(rules.activity)).await??);
        };
        let frame = match frame? {
            Frame::Trailers(mut trailers) => {
                strip_trailers(&mut trailers);
                Frame::Trailers(trailers)
            }
            data => data,
        };
        if let Frame::Data(data) = &frame {
            rules.moved.set(rules.moved.get() + data.len() as u64);
            if let Some(limit) = rules.limit.filter(|limit| rules.moved.get() > *limit) {
                return Err(BodyError::TooLarge(limit).into());
            }
        }
        rules.activity.moved();
        full.unless(to.send(frame, rules.activity)).await??;
    }
}

/// The idle time of one side of a pump: armed only while that side is waited for, put off by every byte of either
/// direction.
pub(crate) struct Quiet<'a> {
    idle: Option<Duration>,
    activity: &'a Activity,
    /// Since the first wait: most bodies are over without one.
    deadline: Option<Deadline>,
    timers: &'a Timers,
}

impl<'a> Quiet<'a> {
    pub(crate) fn new(activity: &'a Activity, timers: &'a Timers, idle: Option<Duration>) -> Self {
        Self { idle, activity, deadline: None, timers }
    }

    /// Ready with the idle time when nothing moved for that long.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        loop {
            let Some(idle) = self.idle else { return Poll::Pending };
            if let Some(deadline) = &mut self.deadline {
                ready!(deadline.poll_elapsed(cx));
            }
            let left = idle.saturating_sub(self.activity.silent_for());
            if left.is_zero() {
                return Poll::Ready(idle);
            }
            self.deadline = Some(Deadline::after(self.timers, Some(left)));
        }
    }
}

/// What bounds the wait for a receiver.
struct Taking<'a> {
    idle: Quiet<'a>,
    pace: Option<Pace<'a>>,
    moved: &'a Cell<u64>,
}

impl Taking<'_> {
    /// Runs `work` while something moves, fast enough.
    async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Result<T, PumpError> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            let done = work.as_mut().poll(cx);
            if let Some(pace) = &mut self.pace {
                if done.is_ready() {
                    pace.rest();
                } else if let Poll::Ready(rate) = pace.poll_late(cx, self.moved.get()) {
                    return Poll::Ready(Err(PumpError::SinkSlow(rate)));
                }
            }
            match done {
                Poll::Ready(done) => Poll::Ready(Ok(done)),
                Poll::Pending => self.idle.poll(cx).map(|idle| Err(PumpError::SinkIdle(idle))),
            }
        })
        .await
    }
}

/// Takes out the fields that a sender may not generate in trailers: framing, routing, authentication, what speaks of
/// one connection or of the client (RFC 9110, section 6.5.1). A recipient that merged them would be smuggled to.
pub(crate) fn strip_trailers(trailers: &mut HeaderMap) {
    use http::header as h;
    const FORBIDDEN: [HeaderName; 12] = [
        h::AUTHORIZATION,
        h::CACHE_CONTROL,
        h::CONTENT_ENCODING,
        h::CONTENT_RANGE,
        h::CONTENT_TYPE,
        h::COOKIE,
        h::PRAGMA,
        h::PROXY_AUTHORIZATION,
        h::RANGE,
        h::SET_COOKIE,
        h::VARY,
        h::WWW_AUTHENTICATE,
    ];
    let leaving: Vec<HeaderName> =
        trailers.keys().filter(|name| is_core_field(name) || FORBIDDEN.contains(name)).cloned().collect();
    for name in leaving {
        trailers.remove(name);
    }
}
