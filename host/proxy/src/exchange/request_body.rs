//! The request's body between attempts: what of it can be sent again.

use std::future::poll_fn;

use http::{HeaderMap, StatusCode, header};
use tidegate_policy::{Cause, Fault, HttpVersion, RequestHead, ResponseHead};

use super::{Exchange, Plan, attempt};
use crate::body::{BodyError, Frame, Held, Incoming, Length, Reply};
use crate::timer::Deadline;

/// A request body that attempts take, and give back as long as none of it is lost.
pub(super) enum RequestBody {
    None,
    /// Complete in memory.
    Kept(Held),
    /// Passing through; gone once an attempt has read from it.
    Streaming(Option<Incoming>),
}

impl RequestBody {
    /// Reads ahead what the route buffers: up to `buffer_request` bytes before any upstream is engaged. A body that fits
    /// can be replayed; of a larger one the beginning is held and the rest streams.
    pub(super) async fn receive(
        exchange: &Exchange<'_>,
        plan: &mut Plan,
        mut body: Incoming,
        reply: &mut Option<Reply>,
    ) -> Result<Self, Fault> {
        let most = match plan.edits.buffering {
            Some(tidegate_policy::Buffering::Stream) => 0,
            Some(_) => plan.route.buffer_request.max(DEFAULT_BUFFER),
            None => plan.route.buffer_request,
        };
        let length = body.length();
        if length == Length::None {
            return Ok(Self::None);
        }
        if most == 0 || matches!(length, Length::Known(length) if length > most) {
            return Ok(Self::Streaming(Some(body)));
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
        let idle = exchange.served.listener.limits.body_idle_timeout;
        let mut held = Held::new(length);
        let mut size = 0;
        while size <= most {
            let mut quiet = Deadline::after(&exchange.served.worker.timers, Some(idle));
            let frame = attempt::select(poll_fn(|cx| body.poll_frame(cx)), reply, |cx| {
                quiet.poll_elapsed(cx).map(|()| Fault::new(Cause::RequestBodyTimeout, "the client sent nothing"))
            });
            match frame.await?.transpose().map_err(|error| from_body(&error))? {
                Some(Frame::Data(data)) => {
                    size += data.len() as u64;
                    held.frames.push_back(data);
                }
                Some(Frame::Trailers(trailers)) => {
                    held.trailers = Some(trailers);
                    break;
                }
                None => break,
            }
        }
        exchange.record.bytes_in.set(size);
        if let Some(limit) = plan.route.max_request_body.filter(|limit| size > *limit) {
            return Err(from_body(&BodyError::TooLarge(limit)));
        }
        if size > most {
            held.rest = Some(Box::new(body));
            return Ok(Self::Streaming(Some(Incoming::Held(held))));
        }
        // Its length is known now, so a chunked request need not stay chunked.
        if held.trailers.is_none() {
            held.length = if size == 0 { Length::None } else { Length::Known(size) };
        }
        Ok(Self::Kept(held))
    }

    /// The body for one attempt; `None` when it is gone.
    pub(super) fn take(&mut self) -> Option<Incoming> {
        match self {
            Self::None => Some(Incoming::Empty),
            Self::Kept(held) => held.replay().map(Incoming::Held),
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

fn expects_continue(request: &RequestHead) -> bool {
    request.version != HttpVersion::Http10
        && request
            .headers
            .get(header::EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// What a router's `set-buffering(request)` keeps where the route says nothing, in bytes.
const DEFAULT_BUFFER: u64 = 64 * 1024;

/// A request body that broke is the client's fault.
pub(super) fn from_body(error: &BodyError) -> Fault {
    let cause = match error {
        BodyError::Truncated(_) | BodyError::Reset(_) => Cause::ClientGone,
        BodyError::Invalid(_) => Cause::RequestInvalid,
        BodyError::TooLarge(_) => Cause::RequestBodyTooLarge,
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
        let mut kept = RequestBody::Kept(held(&[b"a", b"b"]));
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
