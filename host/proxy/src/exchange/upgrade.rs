//! WebSocket, CONNECT and connect-udp: whether a request may become a tunnel, what proves that the upstream accepted, and the tunnel
//! itself, which ends in [`crate::relay`].
//!
//! Nothing of what a client sends after its request is read before the upstream has accepted: in HTTP/1 it stays in the
//! connection's buffer, bounded, and is the next request if there is no tunnel; in HTTP/2 it waits for stream credit.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use tidegate_policy::{Cause, EndpointsView, Fault, HttpVersion, Outcome, RequestHead, ResponseHead, Tunnel};

use super::attempt::{Clocks, Step, select};
use super::request_body::RequestBody;
use super::{Exchange, Plan, reply, shape};
use crate::body::{Incoming, Length, Reply};
use crate::observe::WorkerMetrics;
use crate::relay::{Broke, End, RelayRules, relay};
use crate::snapshot::Route;

mod key;
mod udp;

pub(super) use udp::check as check_udp;

/// What the request may become. A protocol that the route does not take is left out where the request goes on without
/// it (HTTP/1.1, RFC 9110, section 7.8), and is the request's end where it does not.
pub(super) fn granted(request: &RequestHead, route: &Route) -> Result<Option<Tunnel>, Fault> {
    match request.tunnel {
        None => Ok(None),
        Some(Tunnel::WebSocket) if route.websocket => Ok(Some(Tunnel::WebSocket)),
        Some(Tunnel::WebSocket) if request.opened_by_success() => {
            Err(Fault::new(Cause::TunnelUnsupported, "the route takes no WebSocket"))
        }
        Some(Tunnel::WebSocket) => Ok(None),
        Some(Tunnel::Connect) if route.connect.iter().any(|target| target.allows(request)) => Ok(Some(Tunnel::Connect)),
        // Unlike WebSocket, it goes nowhere as an ordinary request.
        Some(Tunnel::ConnectUdp) if udp::granted(request, route) => Ok(Some(Tunnel::ConnectUdp)),
        Some(Tunnel::Connect | Tunnel::ConnectUdp) => Err(denied(request)),
    }
}

/// RFC 9110, section 9.3.6: a gateway that connects to whatever it is told is an open door.
pub(super) fn denied(request: &RequestHead) -> Fault {
    let to = if request.tunnel == Some(Tunnel::ConnectUdp) { request.target.path() } else { &*request.authority };
    Fault::new(Cause::TunnelDenied, format!("no route connects to {to:?}"))
}

/// The key of the handshake with an HTTP/1.1 upstream: the client's own, or one made up for a client that has none (RFC
/// 8441, section 5). HTTP/2 upstreams get none.
pub(super) fn handshake_key(request: &RequestHead) -> Result<HeaderValue, Fault> {
    if request.opened_by_success() {
        return Ok(key::random());
    }
    let mut keys = request.headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    match (keys.next(), keys.next()) {
        (Some(key), None) if key::is_valid(key.as_bytes()) => Ok(key.clone()),
        // RFC 6455, section 4.2.1, item 5.
        _ => Err(Fault::new(Cause::RequestInvalid, "sec-websocket-key is not 16 bytes in base64")),
    }
}

/// A request for a tunnel has no content of its own: what an HTTP/1 upstream took for it would be another request to
/// the next.
pub(super) fn without_content(request: &RequestHead, body: &Incoming) -> Result<(), Fault> {
    let none = match request.version {
        HttpVersion::Http10 | HttpVersion::Http11 => body.length() == Length::None,
        HttpVersion::Http2 | HttpVersion::Http3 => !matches!(body.length(), Length::Known(_)),
    };
    if none { Ok(()) } else { Err(Fault::new(Cause::RequestInvalid, "content in a request for a tunnel")) }
}

/// Whether the upstream's acceptance holds. The codecs have seen to status, `Connection` and `Upgrade`; `key` is what
/// was sent, and only whoever read it as a WebSocket server knows the answer (RFC 6455, section 4.1).
pub(super) fn accepted(head: &ResponseHead, key: Option<&HeaderValue>) -> Result<(), Fault> {
    if head.status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(());
    }
    let mut accepts = head.headers.get_all(header::SEC_WEBSOCKET_ACCEPT).iter();
    let right = match (accepts.next(), accepts.next(), key) {
        (Some(accept), None, Some(key)) => *accept == key::accept(key.as_bytes()),
        _ => false,
    };
    if right { Ok(()) } else { Err(Fault::new(Cause::UpgradeFailed, "sec-websocket-accept does not fit the key")) }
}

/// An open tunnel, as long as this lives.
struct Open(Arc<WorkerMetrics>);

impl Open {
    fn count(metrics: &Arc<WorkerMetrics>, kind: Tunnel) -> Self {
        match kind {
            Tunnel::WebSocket => metrics.tunnels_websocket.add(1),
            Tunnel::Connect => metrics.tunnels_connect.add(1),
            Tunnel::ConnectUdp => metrics.tunnels_connect_udp.add(1),
        }
        metrics.tunnels_active.add(1);
        Self(metrics.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.tunnels_active.sub(1);
    }
}

impl Exchange<'_> {
    /// An attempt at `CONNECT`: a connection to the endpoint, and then nothing but bytes.
    pub(super) async fn connect(
        &mut self,
        plan: &mut Plan,
        body: &RequestBody,
        view: &mut EndpointsView,
        index: u32,
        reply: &mut Option<Reply>,
    ) -> Step {
        let begun = Instant::now();
        let mut clocks = Clocks::new(self, plan);
        let upstreams = &self.served.worker.upstreams;
        let dialled =
            select(upstreams.tunnel(&plan.cluster, index, &self.asked.connection), reply, |cx| clocks.poll(cx)).await;
        let (incoming, outgoing, _seat) = match dialled.and_then(|dialled| dialled) {
            Ok(dialled) => dialled,
            Err(fault) => return self.after(plan, body, view, index, fault.nothing_written()).await,
        };
        self.record.upstream = Some(begun.elapsed());
        self.report(view, index, Outcome::Success);
        let mut head =
            ResponseHead { version: HttpVersion::Http11, status: StatusCode::OK, headers: HeaderMap::with_capacity(2) };
        shape::complete(&mut head.headers, None);
        self.tunnel(plan, Tunnel::Connect, head, End { incoming, outgoing }, reply).await
    }

    /// The upstream of a WebSocket accepted: so do we, and then nothing but bytes.
    pub(super) async fn upgraded(
        &mut self,
        plan: &mut Plan,
        mut head: ResponseHead,
        upstream: End,
        reply: &mut Option<Reply>,
    ) -> Step {
        let alt_svc = self.served.alt_svc.as_ref();
        shape::response(&mut head, &plan.edits.response_headers, alt_svc, &self.snapshot);
        head.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
        head.status = StatusCode::OK;
        if !self.asked.request.opened_by_success()
            && let Some(key) = self.asked.request.headers.get(header::SEC_WEBSOCKET_KEY)
        {
            head.status = StatusCode::SWITCHING_PROTOCOLS;
            head.headers.insert(header::SEC_WEBSOCKET_ACCEPT, key::accept(key.as_bytes()));
        }
        self.tunnel(plan, Tunnel::WebSocket, head, upstream, reply).await
    }

    /// Accepts: from here on nothing is tried again (conduct, section 2, last row). The client's end, or how it ended.
    async fn open(
        &mut self,
        plan: &mut Plan,
        kind: Tunnel,
        mut head: ResponseHead,
        reply: &mut Option<Reply>,
    ) -> Result<(End, Open), Step> {
        let (Some(reply), Some(body)) = (reply.take(), plan.client_half.take()) else {
            return Err(Step::Failed(Fault::new(Cause::Internal, "the client's half of the tunnel is gone")));
        };
        // RFC 9110, sections 8.6 and 9.3.6: an acceptance has no framing.
        head.headers.remove(header::CONTENT_LENGTH);
        self.record.status = head.status.as_u16();
        match reply::taken(self.served, reply.open(head, kind, body)).await {
            Ok((incoming, outgoing)) => {
                self.record.opened = Some(self.record.begun.elapsed());
                Ok((End { incoming, outgoing }, Open::count(&self.served.worker.metrics, kind)))
            }
            Err(gone) => {
                self.note(Cause::ClientGone, gone.to_string());
                Err(Step::Done)
            }
        }
    }

    async fn tunnel(
        &mut self,
        plan: &mut Plan,
        kind: Tunnel,
        head: ResponseHead,
        upstream: End,
        reply: &mut Option<Reply>,
    ) -> Step {
        let (client, _open) = match self.open(plan, kind, head, reply).await {
            Ok(opened) => opened,
            Err(step) => {
                upstream.outgoing.reset();
                return step;
            }
        };
        let worker = self.served.worker.clone();
        let rules = RelayRules {
            idle: plan.route.idle_timeout,
            timers: &worker.timers,
            up: &self.record.bytes_in,
            down: &self.record.bytes_out,
        };
        match relay(client, upstream, rules).await {
            Ok(()) => self.record.complete = true,
            Err(broke @ Broke::Client(_)) => self.note(Cause::ClientGone, broke.to_string()),
            Err(broke @ Broke::Upstream(_)) => self.note(Cause::Reset, broke.to_string()),
            Err(broke @ Broke::Idle(_)) => self.note(Cause::IdleTimeout, broke.to_string()),
        }
        Step::Done
    }
}
