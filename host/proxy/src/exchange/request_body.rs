//! The request's body between attempts: what of it can be sent again.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use tidegate_policy::{Cause, Fault, HttpVersion, RequestHead, ResponseHead};

use super::{Exchange, Plan, attempt};
use crate::body::{BodyError, Frame, Held, Incoming, Length, Reply};
use crate::buffer::{Claim, Frames, Spool};
use crate::pace::Pace;
use crate::timer::Deadline;

/// A request body that attempts take, and give back as long as none of it is lost.
pub(super) enum RequestBody {
    None,
    /// Complete in memory.
    Kept(Box<Held>),
    /// Passing through; gone once an attempt has read from it.
    Streaming(Option<Incoming>),
}

impl RequestBody {
    /// Reads ahead what the route buffers: in memory, then on disk, before any upstream is engaged. A body that fits
    /// can be replayed; of a larger one the beginning is held and the rest streams, unless the route refuses it.
    pub(super) async fn receive(
        exchange: &Exchange<'_>,
        plan: &mut Plan,
        mut body: Incoming,
        reply: &mut Option<Reply>,
    ) -> Result<Self, Fault> {
        let buffer = plan.route.buffer;
        let memory = match plan.edits.buffering {
            Some(tidegate_policy::Buffering::Stream) => 0,
            Some(_) => buffer.request.max(DEFAULT_BUFFER),
            None => buffer.request,
        };
        let length = body.length();
        let most = if memory == 0 { 0 } else { memory.saturating_add(buffer.spool) };
        let refused = |detail| Err(Fault::new(Cause::RequestBodyTooLarge, detail));
        if most == 0 {
            return Ok(Self::Streaming(Some(body)));
        }
        match length {
            Length::Known(length) if length > most && buffer.refuse_larger => {
                return refused(format!("{length} bytes, and {most} are kept"));
            }
            Length::Known(length) if length > most => return Ok(Self::Streaming(Some(body))),
            _ => {}
        }
        if expects_continue(&exchange.asked.request)
            && let Some(reply) = reply.as_mut()
        {
            // Whoever waits for a 100 would wait for the upstream's, which is not asked before the body is here.
            let head =
                ResponseHead { version: HttpVersion::Http11, status: StatusCode::CONTINUE, headers: HeaderMap::new() };
            let told = super::reply::taken(exchange.served, reply.interim(head)).await;
            told.map_err(|gone| Fault::new(Cause::ClientGone, gone))?;
            plan.head.continued = true;
        }
        let mut keep = Keep::new(exchange, memory, buffer.spool);
        let mut pace = Pace::of(exchange.served.listener.limits.upload_rate, &exchange.served.worker.timers);
        let mut held = Held::new(length);
        let whole = loop {
            match next_frame(exchange, &mut body, keep.size(), &mut pace, reply).await? {
                Some(Frame::Data(data)) => {
                    let size = keep.size() + data.len() as u64;
                    exchange.record.bytes_in.set(size);
                    if let Some(limit) = plan.route.max_request_body.filter(|limit| size > *limit) {
                        return Err(from_body(&BodyError::TooLarge(limit)));
                    }
                    match keep.put(data).await? {
                        None => {}
                        Some(_) if buffer.refuse_larger && size > most => {
                            return refused(format!("{size} bytes or more, and {most} are kept"));
                        }
                        Some(_) if buffer.refuse_larger => {
                            let detail = "no memory or disk is left to keep the request's body";
                            return Err(Fault::new(Cause::Overload, detail));
                        }
                        Some(data) => {
                            let mut rest = Held::new(Length::Unknown);
                            rest.frames.push_back(data);
                            rest.rest = Some(Box::new(body));
                            held.rest = Some(Box::new(Incoming::Held(Box::new(rest))));
                            break false;
                        }
                    }
                }
                Some(Frame::Trailers(trailers)) => {
                    held.trailers = Some(trailers);
                    break true;
                }
                None => break true,
            }
        };
        let size = keep.size();
        keep.finish(&mut held).await?;
        if !whole {
            return Ok(Self::Streaming(Some(Incoming::Held(Box::new(held)))));
        }
        // Its length is known now, so a chunked request need not stay chunked.
        if held.trailers.is_none() {
            held.length = if size == 0 { Length::None } else { Length::Known(size) };
        }
        Ok(Self::Kept(Box::new(held)))
    }

    /// The body for one attempt; `None` when it is gone.
    pub(super) fn take(&mut self) -> Option<Incoming> {
        match self {
            Self::None => Some(Incoming::Empty),
            Self::Kept(held) => held.replay().map(|held| Incoming::Held(Box::new(held))),
            Self::Streaming(incoming) => incoming.take(),
        }
    }

    /// Gives back a body of which nothing was read.
    pub(super) fn give_back(&mut self, incoming: Incoming) {
        if let Self::Streaming(place) = self {
            *place = Some(incoming);
        }
    }

    /// Whether another attempt could send it.
    pub(super) fn replayable(&self) -> bool {
        match self {
            Self::None => true,
            Self::Kept(held) => held.rest.is_none(),
            Self::Streaming(incoming) => incoming.is_some(),
        }
    }
}

/// What comes next from the client, who may neither fall silent nor be slower than the listener allows.
async fn next_frame(
    exchange: &Exchange<'_>,
    body: &mut Incoming,
    moved: u64,
    pace: &mut Option<Pace<'_>>,
    reply: &mut Option<Reply>,
) -> Result<Option<Frame>, Fault> {
    let idle = exchange.served.listener.limits.body_idle_timeout;
    let mut quiet = Deadline::after(&exchange.served.worker.timers, Some(idle));
    let frame = attempt::select(poll_fn(|cx| body.poll_frame(cx)), reply, |cx| {
        let late = pace.as_mut().map_or(Poll::Pending, |pace| pace.poll_late(cx, moved));
        if let Poll::Ready(rate) = late {
            let detail = format!("the client sends fewer than {rate} bytes a second");
            return Poll::Ready(Fault::new(Cause::RequestBodyTimeout, detail));
        }
        quiet.poll_elapsed(cx).map(|()| Fault::new(Cause::RequestBodyTimeout, "the client sent nothing"))
    });
    let frame = frame.await?;
    if let Some(pace) = pace {
        pace.rest();
    }
    frame.transpose().map_err(|error| from_body(&error))
}

/// A request's body as it is kept: in memory first, and on disk from where that has no room.
struct Keep {
    frames: Frames,
    claim: Claim,
    memory: u64,
    spool: Spool,
}

impl Keep {
    fn new(exchange: &Exchange<'_>, memory: u64, spool: u64) -> Self {
        let buffers = &exchange.snapshot.buffers;
        let spool = Spool::new(buffers, spool);
        Self { frames: Frames::default(), claim: exchange.memory_claim(), memory, spool }
    }

    fn size(&self) -> u64 {
        self.frames.bytes() + self.spool.length()
    }

    /// Gives the frame back that there is no room for.
    async fn put(&mut self, data: Bytes) -> Result<Option<Bytes>, Fault> {
        let length = data.len() as u64;
        if self.spool.is_empty() && self.frames.bytes() + length <= self.memory && self.claim.has_room() {
            self.claim.add(length);
            self.frames.push(data);
        } else if self.spool.has_room(length) {
            poll_fn(|cx| self.spool.poll_ready(cx)).await.map_err(|error| spool_lost(&error))?;
            self.spool.push(&data);
        } else {
            return Ok(Some(data));
        }
        Ok(None)
    }

    async fn finish(self, held: &mut Held) -> Result<(), Fault> {
        held.frames = self.frames.into_queue();
        held.claim = Some(Rc::new(self.claim));
        if !self.spool.is_empty() {
            held.spooled = Some(self.spool.finish().await.map_err(|error| spool_lost(&error))?);
        }
        Ok(())
    }
}

fn spool_lost(error: &std::io::Error) -> Fault {
    Fault::new(Cause::Internal, format!("spool: {error}"))
}

fn expects_continue(request: &RequestHead) -> bool {
    request.version != HttpVersion::Http10
        && request
            .headers
            .get(header::EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// What a router's `set-buffering` keeps of a request or response where the route says nothing, in bytes.
pub(super) const DEFAULT_BUFFER: u64 = 64 * 1024;

/// A request body that broke is the client's fault.
pub(super) fn from_body(error: &BodyError) -> Fault {
    let cause = match error {
        BodyError::Truncated(_) | BodyError::Reset(_) => Cause::ClientGone,
        BodyError::Invalid(_) => Cause::RequestInvalid,
        BodyError::TooLarge(_) => Cause::RequestBodyTooLarge,
        BodyError::Internal(_) => Cause::Internal,
    };
    Fault::new(cause, format!("request body: {error}"))
}

#[cfg(test)]
fn held(frames: &[&'static [u8]]) -> Held {
    let frames: std::collections::VecDeque<_> = frames.iter().map(|frame| bytes::Bytes::from_static(frame)).collect();
    let size = frames.iter().map(|frame| frame.len() as u64).sum();
    let mut held = Held::new(Length::Known(size));
    held.frames = frames;
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Conduct "Idempotent retries": a body is replayed only from a complete buffer.
    #[test]
    fn a_kept_body_is_replayed_and_a_streamed_one_is_not() {
        let mut kept = RequestBody::Kept(Box::new(held(&[b"a", b"b"])));
        assert!(kept.take().is_some() && kept.take().is_some() && kept.replayable());

        let mut streamed = RequestBody::Streaming(Some(Incoming::Empty));
        let taken = streamed.take().expect("the first attempt has it");
        assert!(!streamed.replayable() && streamed.take().is_none());
        streamed.give_back(taken);
        assert!(streamed.replayable());

        let mut part = held(&[b"a"]);
        part.rest = Some(Box::new(Incoming::Empty));
        assert!(part.replay().is_none());
    }
}
