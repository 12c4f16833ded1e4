//! Callouts: requests that plugins make to clusters while they are asked, on the worker's own pools.
//!
//! One is not an exchange: no route, no plugin and no tenant's turn before it, so that a guest never waits for a guest. It is
//! subject to what the cluster is to everybody: its algorithm, health, bounds, TLS, connect timeout and retry budget. Where
//! the cluster leads back to this gateway, `Via` carries what the exchange came through, and a circle is found out.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header;
use tidegate_policy::native::permitted;
use tidegate_policy::{
    Asked, Bound, Callout, CalloutError, CalloutResponse, Cause, Egress, EndpointsView, Fault, Outcome, Proof,
    RequestEdits, RequestHead, ResponseHead, Scheme, Sent, Side,
};

use super::attempt::InFlight;
use super::{OutgoingHead, again, decide, shape};
use crate::body::{Activity, Arrived, Frame, Incoming, Length};
use crate::codec::Served;
use crate::snapshot::{Cluster, Snapshot};
use crate::tenant::Tenant;
use crate::worker::Worker;

/// Most tries of one callout, where the first provably did nothing or may be made again.
const ATTEMPTS: u32 = 2;

/// What the plugins of one exchange call out, and what that took.
pub(super) struct Callouts {
    worker: Rc<Worker>,
    snapshot: Arc<Snapshot>,
    asked: Rc<Asked>,
    tenant: Option<Arc<Tenant>>,
    /// The request may be a replay: who is called hears of it (RFC 8470, section 5.1).
    early: bool,
    made: Cell<u32>,
    waited: Cell<Duration>,
}

impl Callouts {
    pub(super) fn new(
        served: &Served,
        snapshot: &Arc<Snapshot>,
        asked: &Rc<Asked>,
        tenant: Option<&Arc<Tenant>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            worker: served.worker.clone(),
            snapshot: snapshot.clone(),
            asked: asked.clone(),
            tenant: tenant.cloned(),
            early: !served.handshake.is_complete(),
            made: Cell::new(0),
            waited: Cell::new(Duration::ZERO),
        })
    }

    /// How many there were since this was asked last, and how long they took together.
    pub(super) fn take(&self) -> (u32, Duration) {
        (self.made.take(), self.waited.take())
    }

    async fn respond(&self, callout: Callout) -> Result<CalloutResponse, CalloutError> {
        let begun = Instant::now();
        self.made.set(self.made.get() + 1);
        // Of the runtime: a guest's times may be shorter than the worker's own wheel tells apart.
        let response = tokio::time::timeout(callout.timeout, self.try_to_send(&callout)).await;
        self.waited.set(self.waited.get() + begun.elapsed());
        // A guest that goes on is like one that begins: responses that come together are no reason to keep others waiting.
        if let Some(tenant) = &self.tenant {
            drop(self.worker.turns.take(tenant).await);
        }
        response.unwrap_or(Err(CalloutError::TimedOut))
    }

    async fn try_to_send(&self, callout: &Callout) -> Result<CalloutResponse, CalloutError> {
        let name = &*callout.cluster;
        // A guest learns the cause. Addresses and the like are for the log: a shared cluster's are not its tenants'.
        let failed = |fault: Fault| {
            tracing::debug!(cluster = name, cause = fault.cause.name(), detail = %fault.detail, "callout failed");
            CalloutError::Failed(fault.cause.name().to_owned())
        };
        let cluster = self.snapshot.cluster(name).filter(|cluster| cluster.owner.serves(self.tenant.as_deref()));
        let cluster = cluster.ok_or_else(|| CalloutError::Failed(format!("no cluster is named {name:?}")))?;
        let full = || CalloutError::Failed(format!("cluster {name:?} has all the requests it may have in flight"));
        let _permit = cluster.breaker.enter(Bound::Requests).ok_or_else(full)?;
        cluster.budget.deposit();
        let asked = self.asked_for(callout, cluster);
        let mut view = EndpointsView::new(cluster.set.clone(), self.worker.now());
        // One place among the cluster's retries, for as long as it tries.
        let (mut attempt, mut retrying) = (1, None);
        loop {
            view.refresh(self.worker.now());
            let index = decide::pick_natively(cluster, &asked, &view).map_err(failed)?;
            let fault = match self.attempt(cluster, &view, index, &asked, callout).await {
                Ok(response) => return Ok(response),
                Err(Broken::TooLarge) => return Err(CalloutError::TooLarge),
                Err(Broken::By(fault)) => fault,
            };
            again::report_fault(&self.worker, &view, index, &fault);
            let proof = Proof::of(fault.unprocessed, &callout.method);
            let may = attempt < ATTEMPTS && fault.cause.side() == Side::Upstream && permitted(proof, true, false);
            if !may {
                return Err(failed(fault));
            }
            if retrying.is_none() {
                retrying = cluster.breaker.enter(Bound::Retries);
            }
            if retrying.is_none() || !cluster.budget.withdraw(self.worker.now()) {
                return Err(failed(fault));
            }
            attempt += 1;
            view.tried.push(index);
            if !(0..view.len() as u32).any(|index| view.available(index)) {
                view.tried.clear();
            }
        }
    }

    /// The callout as a request of its own, of the exchange's client.
    fn asked_for(&self, callout: &Callout, cluster: &Cluster) -> Rc<Asked> {
        let mut headers = callout.headers.clone();
        for via in self.asked.request.headers.get_all(header::VIA) {
            headers.append(header::VIA, via.clone());
        }
        let name = cluster.tls.as_ref().and_then(|tls| tls.server_name.as_ref());
        let request = RequestHead {
            version: self.asked.request.version,
            method: callout.method.clone(),
            scheme: if cluster.tls.is_some() { Scheme::Https } else { Scheme::Http },
            authority: name.map(|name| name.to_str().into_owned().into()).unwrap_or_default(),
            target: callout.target.clone(),
            headers,
            tunnel: None,
        };
        Rc::new(Asked {
            connection: self.asked.connection.clone(),
            request,
            client: self.asked.client,
            received: Vec::new(),
            notes: RefCell::default(),
            draw: self.asked.draw,
        })
    }

    async fn attempt(
        &self,
        cluster: &Arc<Cluster>,
        view: &EndpointsView,
        index: u32,
        asked: &Rc<Asked>,
        callout: &Callout,
    ) -> Result<CalloutResponse, Broken> {
        let endpoint = view.get(index).ok_or_else(|| Fault::new(Cause::Internal, "the endpoint is out of range"))?;
        let _load = InFlight::begin(&endpoint.state);
        let mut head = OutgoingHead::new(asked, &RequestEdits::default(), Vec::new(), &self.snapshot);
        head.early = self.early;
        if head.authority.is_empty() {
            head.authority = endpoint.address.to_string().into();
        }
        let begun = Instant::now();
        let upstreams = &self.worker.upstreams;
        let lease = upstreams.lease(cluster, index, &asked.connection).await;
        let mut lease = lease.map_err(Fault::nothing_written)?;
        let length = match callout.body.len() {
            0 => Length::None,
            length => Length::Known(length as u64),
        };
        let (mut out, mut awaiting) = lease.start(&head, length).await.map_err(|mut fault| {
            fault.unprocessed |= !lease.written();
            fault
        })?;
        let activity = Activity::now();
        let (response, incoming) = {
            let mut sending = pin!(async {
                if length != Length::None {
                    // An origin that takes no more may have answered (RFC 9112, section 9.5).
                    let _ = out.send(Frame::Data(callout.body.clone()), &activity).await;
                    let _ = out.finish(&activity).await;
                }
            });
            let mut sent = false;
            loop {
                let arrived = poll_fn(|cx| {
                    sent = sent || sending.as_mut().poll(cx).is_ready();
                    awaiting.poll_head(cx)
                });
                match arrived.await {
                    Ok(Arrived::Interim(_)) => {}
                    Ok(Arrived::Final(head, incoming)) => break (head, incoming),
                    Ok(Arrived::Tunnel(..)) => {
                        return Err(Fault::new(Cause::ResponseInvalid, "a tunnel that nobody asked for").into());
                    }
                    Err(mut fault) => {
                        fault.unprocessed |= !lease.written();
                        return Err(fault.into());
                    }
                }
            }
        };
        lease.answered();
        endpoint.state.sample_latency(self.worker.now(), begun.elapsed());
        let grpc_status = response.headers.get("grpc-status").map(|status| status.as_bytes());
        again::report(&self.worker, view, index, Outcome::of_response(response.status, grpc_status));
        let body = read(incoming, callout.max_response).await?;
        let ResponseHead { status, mut headers, .. } = response;
        shape::strip_hop_by_hop(&mut headers);
        Ok(CalloutResponse { status, headers, body })
    }
}

/// Why an attempt came to nothing.
enum Broken {
    TooLarge,
    By(Fault),
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Self {
        Self::By(fault)
    }
}

/// The whole body, if it is no longer than `most` bytes. Trailers are nobody's.
async fn read(mut incoming: Incoming, most: u64) -> Result<Bytes, Broken> {
    if matches!(incoming.length(), Length::Known(length) if length > most) {
        return Err(Broken::TooLarge);
    }
    let mut body = BytesMut::new();
    loop {
        match poll_fn(|cx| incoming.poll_frame(cx)).await {
            None => return Ok(body.freeze()),
            Some(Ok(Frame::Data(data))) if (body.len() + data.len()) as u64 > most => return Err(Broken::TooLarge),
            Some(Ok(Frame::Data(data))) => body.extend_from_slice(&data),
            Some(Ok(Frame::Trailers(_))) => {}
            Some(Err(error)) => return Err(Fault::new(Cause::ResponseTruncated, error).into()),
        }
    }
}

impl Egress for Callouts {
    fn send(self: Rc<Self>, callout: Callout) -> Sent {
        Box::pin(async move { self.respond(callout).await })
    }

    fn guest_ran(&self, time: Duration) {
        self.worker.guest_took(self.tenant.as_deref(), time);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::body::Held;

    fn held(length: Length, frames: &[&'static str]) -> Incoming {
        let mut held = Held::new(length);
        held.frames = frames.iter().map(|frame| Bytes::from_static(frame.as_bytes())).collect::<VecDeque<_>>();
        Incoming::Held(Box::new(held))
    }

    #[tokio::test]
    async fn a_body_is_read_to_its_bound_whatever_its_head_said() {
        let read = async |length: Length, frames: &[&'static str]| match super::read(held(length, frames), 6).await {
            Ok(body) => Some(body.len()),
            Err(Broken::TooLarge) => None,
            Err(Broken::By(fault)) => panic!("{fault}"),
        };
        assert_eq!(read(Length::Known(6), &["abc", "def"]).await, Some(6));
        assert_eq!(read(Length::Unknown, &["abc", "def"]).await, Some(6));
        assert_eq!(read(Length::Unknown, &["abc", "def", "g"]).await, None);
        assert_eq!(read(Length::Known(7), &[]).await, None, "before a byte of it is read");
        assert_eq!(super::read(Incoming::Empty, 0).await.ok().map(|body| body.len()), Some(0));
    }
}
