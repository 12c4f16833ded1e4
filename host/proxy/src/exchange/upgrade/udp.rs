//! connect-udp (RFC 9298): what a request must be, the socket to the endpoint, and the tunnel, which ends in
//! [`crate::relay::datagrams`].

use std::cell::Cell;
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use tidegate_policy::{Cause, EndpointsView, Fault, HttpVersion, Outcome, RequestHead, ResponseHead, Tunnel};

use crate::body::Reply;
use crate::exchange::attempt::Step;
use crate::exchange::request_body::RequestBody;
use crate::exchange::{Exchange, Plan, shape};
use crate::relay::datagrams::{Broke, DatagramRules, relay};
use crate::snapshot::{Cluster, Route};

mod target;

/// RFC 9297, section 3.4.
const CAPSULE_PROTOCOL: HeaderName = HeaderName::from_static("capsule-protocol");

/// Whether the request is one (sections 3.2 and 3.4), whoever grants it. All faults here are the client's.
pub(crate) fn check(request: &RequestHead) -> Result<(), Fault> {
    if request.tunnel != Some(Tunnel::ConnectUdp) {
        return Ok(());
    }
    let wrong = |why: &str| Err(Fault::new(Cause::RequestInvalid, format!("connect-udp: {why}")));
    if request.method != Method::GET {
        return wrong("the method is not GET");
    }
    // RFC 9297, section 3.2: capsules are not content.
    if request.headers.contains_key(header::CONTENT_LENGTH) || request.headers.contains_key(header::CONTENT_TYPE) {
        return wrong("fields of content");
    }
    match target::parse(request.target.as_str()) {
        Some(_) => Ok(()),
        None => wrong("the path is not /.well-known/masque/udp/HOST/PORT/"),
    }
}

/// Whether the route grants the target. As for `CONNECT`, a gateway that sends to whatever it is told is an open door.
pub(super) fn granted(request: &RequestHead, route: &Route) -> bool {
    target::parse(request.target.as_str())
        .is_some_and(|target| route.connect_udp.iter().any(|granted| granted.names(&target.host, target.port)))
}

/// A router may lead anywhere; what a cluster asks for that UDP has not is no detail to leave out.
fn plain(cluster: &Cluster) -> Result<(), Fault> {
    if cluster.tls.is_none() && cluster.pool.proxy_protocol.is_none() {
        return Ok(());
    }
    let detail = format!("cluster {:?} has tls or proxy_protocol, and UDP neither", cluster.name);
    Err(Fault::new(Cause::TunnelUnsupported, detail))
}

impl Exchange<'_> {
    /// An attempt at connect-udp: a socket, and an answer as soon as it is there (section 3.1): nobody knows whether the
    /// endpoint listens before it sends something.
    pub(in crate::exchange) async fn connect_udp(
        &mut self,
        plan: &mut Plan,
        body: &RequestBody,
        view: &mut EndpointsView,
        index: u32,
        reply: &mut Option<Reply>,
    ) -> Step {
        let begun = Instant::now();
        if let Err(fault) = plain(&plan.cluster) {
            return Step::Failed(fault);
        }
        let (socket, _seat) = match self.served.worker.upstreams.udp(&plan.cluster, index) {
            Ok(opened) => opened,
            Err(fault) => return self.after(plan, body, view, index, fault.nothing_written()).await,
        };
        self.record.upstream = Some(begun.elapsed());
        let status =
            if self.asked.request.opened_by_success() { StatusCode::OK } else { StatusCode::SWITCHING_PROTOCOLS };
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(CAPSULE_PROTOCOL, HeaderValue::from_static("?1"));
        shape::complete(&mut headers, None);
        let head = ResponseHead { version: HttpVersion::Http11, status, headers };
        let datagrams = reply.as_mut().and_then(Reply::datagrams);
        let (client, _open) = match self.open(plan, Tunnel::ConnectUdp, head, reply).await {
            Ok(opened) => opened,
            Err(step) => return step,
        };
        let worker = self.served.worker.clone();
        let answered = Cell::new(false);
        let rules = DatagramRules {
            idle: plan.route.udp_idle_timeout,
            timers: &worker.timers,
            metrics: &worker.metrics,
            up: &self.record.bytes_in,
            down: &self.record.bytes_out,
            answered: &answered,
        };
        let ended = relay(client, datagrams, &socket, self.served.drained(), rules).await;
        if answered.get() {
            self.report(view, index, Outcome::Success);
        }
        match ended {
            Ok(()) => self.record.complete = true,
            Err(broke @ Broke::Client(_)) => self.note(Cause::ClientGone, broke.to_string()),
            Err(broke @ Broke::Malformed(_)) => self.note(Cause::RequestInvalid, broke.to_string()),
            Err(broke @ Broke::Idle(_)) => self.note(Cause::IdleTimeout, broke.to_string()),
            Err(broke @ Broke::Endpoint(_)) if answered.get() => self.note(Cause::Reset, broke.to_string()),
            // It never was there.
            Err(broke @ Broke::Endpoint(_)) => {
                self.failed(view, index);
                self.blame(plan, view, index, Cause::ConnectRefused);
                self.note(Cause::ConnectRefused, broke.to_string());
            }
        }
        Step::Done
    }
}
