//! The response on its way to the client: compressed and read ahead of it where the route asks for that.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use http::{Method, StatusCode};
use tidegate_policy::{Buffering, Cause, Fault, Permit, ResponseHead};

use super::attempt::InFlight;
use super::request_body::{DEFAULT_BUFFER, from_body};
use super::{Exchange, Plan, compress, shape};
use crate::body::{Activity, BodyError, Encoded, Incoming, Length, PumpError, PumpRules, ReadAhead, Reply, pump};
use crate::buffer::{Claim, Spool};
use crate::timer::Deadline;
use crate::upstream::Lease;

/// What an exchange holds of its upstream: given up early where the response is read ahead of the client.
pub(super) struct Engaged<'a> {
    pub(super) _lease: Lease,
    pub(super) _load: InFlight<'a>,
    pub(super) _permits: [Option<Permit>; 2],
}

impl Exchange<'_> {
    /// Sends the response on. From its head on nothing can be tried again: an upstream that fails now ends the client's
    /// message as an error, never as a clean end (RFC 9112, section 8).
    #[allow(clippy::too_many_arguments, reason = "the ends of both messages, and what they hold")]
    pub(super) async fn relay(
        &mut self,
        plan: &Plan,
        mut head: ResponseHead,
        mut response: Incoming,
        upload: Option<impl Future<Output = Result<(), PumpError>> + Unpin>,
        activity: &Activity,
        reply: &mut Option<Reply>,
        engaged: Engaged<'_>,
    ) {
        let Some(reply) = reply.take() else { return };
        let alt_svc = self.served.alt_svc.as_ref();
        shape::response(&mut head, &plan.edits.response_headers, alt_svc, &self.snapshot);
        self.compress(plan, &mut head, &mut response);
        let method = &self.asked.request.method;
        let length = shape::response_length(method, head.status, &mut head.headers, &response);
        self.record.status = head.status.as_u16();
        let mut out = match reply.head(head, length) {
            Ok(out) => out,
            Err(gone) => return self.note(Cause::ClientGone, gone.to_string()),
        };
        let ahead = if length == Length::None { None } else { self.read_ahead(plan, &mut response) };
        let ended = {
            let mut engaged = Some(engaged);
            let rules = PumpRules {
                moved: &self.record.bytes_out,
                activity,
                limit: None,
                source_idle: plan.route.idle_timeout,
                sink_idle: Some(self.served.listener.limits.body_idle_timeout),
                source_rate: None,
                sink_rate: self.served.listener.limits.download_rate,
                timers: &self.served.worker.timers,
            };
            let mut download = pin!(pump(&mut response, &mut out, rules));
            let mut upload = upload;
            let mut deadline = Deadline::at(&self.served.worker.timers, plan.deadline);
            poll_fn(|cx| {
                if let Some(uploading) = &mut upload
                    && let Poll::Ready(end) = std::pin::Pin::new(uploading).poll(cx)
                {
                    upload = None;
                    // An upstream that answered may refuse the rest; a client that breaks off has left.
                    if let Err(PumpError::Source(error)) = end {
                        return Poll::Ready(Err(Err(from_body(&error))));
                    }
                }
                loop {
                    let full = ahead.as_ref().is_some_and(|ahead| ahead.borrow_mut().poll_fill(cx));
                    if upload.is_none() && ahead.as_ref().is_some_and(|ahead| ahead.borrow().complete()) {
                        // The rest is between the client and us.
                        engaged = None;
                    }
                    if let Poll::Ready(ended) = download.as_mut().poll(cx) {
                        return Poll::Ready(ended.map_err(Ok));
                    }
                    if !full || !ahead.as_ref().is_some_and(|ahead| ahead.borrow_mut().has_room()) {
                        break;
                    }
                }
                let late = || Err(Err(Fault::new(Cause::TotalTimeout, "the call's own deadline is over")));
                deadline.poll_elapsed(cx).map(|()| late())
            })
            .await
        };
        match ended {
            Ok(()) => self.record.complete = true,
            Err(Ok(PumpError::Source(error))) => self.note(from_response(&error), error.to_string()),
            Err(Ok(PumpError::Sink(gone))) => self.note(Cause::ClientGone, gone.to_string()),
            Err(Ok(error @ (PumpError::SourceIdle(_) | PumpError::SourceSlow(_)))) => {
                self.note(Cause::IdleTimeout, error.to_string());
            }
            Err(Ok(error @ (PumpError::SinkIdle(_) | PumpError::SinkSlow(_)))) => {
                self.note(Cause::ClientGone, error.to_string());
            }
            Err(Err(fault)) => self.note(fault.cause, fault.detail),
        }
    }

    /// Where the route compresses and the client takes it: `response` becomes what is sent of it.
    fn compress(&self, plan: &Plan, head: &mut ResponseHead, response: &mut Incoming) {
        let Some(compression) = &plan.route.compression else { return };
        let request = &self.asked.request;
        let length = response.length();
        // The fields of an answer to `HEAD` are those that `GET` has; else what has no content has no coding.
        if length == Length::None && request.method != Method::HEAD && head.status != StatusCode::NOT_MODIFIED {
            return;
        }
        let coding = compress::negotiate(compression, request, head.status, &mut head.headers, length);
        if let Some(coding) = coding.filter(|_| length != Length::None) {
            let source = std::mem::replace(response, Incoming::Empty);
            *response = Incoming::Encoded(Box::new(Encoded::new(source, coding, &self.served.worker.metrics)));
        }
    }

    /// Where the route buffers responses: `response` becomes what is read ahead of the client.
    fn read_ahead(&self, plan: &Plan, response: &mut Incoming) -> Option<Rc<RefCell<ReadAhead>>> {
        let buffer = plan.route.buffer;
        let most = match plan.edits.buffering {
            Some(Buffering::Stream) => 0,
            Some(Buffering::Both) => buffer.response.max(DEFAULT_BUFFER),
            Some(Buffering::Request) | None => buffer.response,
        };
        if most == 0 {
            return None;
        }
        let spool = (buffer.spool > 0).then(|| Spool::new(&self.snapshot.buffers, buffer.spool));
        let source = std::mem::replace(response, Incoming::Empty);
        let ahead = Rc::new(RefCell::new(ReadAhead::new(source, most, self.memory_claim(), spool)));
        *response = Incoming::Ahead(ahead.clone());
        Some(ahead)
    }

    /// Room for buffered bodies of this listener's clients.
    pub(super) fn memory_claim(&self) -> Claim {
        let listener = self.served.listener.buffer_memory.clone();
        Claim::on(listener.into_iter().chain([self.snapshot.buffers.memory.clone()]))
    }

    pub(super) fn note(&mut self, cause: Cause, detail: String) {
        self.record.cause = Some(cause);
        self.record.detail = Some(detail);
    }
}

/// A response body that broke is the upstream's fault.
fn from_response(error: &BodyError) -> Cause {
    match error {
        BodyError::Truncated(_) | BodyError::Reset(_) => Cause::ResponseTruncated,
        BodyError::Invalid(_) | BodyError::TooLarge(_) => Cause::ResponseInvalid,
        BodyError::Internal(_) => Cause::Internal,
    }
}
