//! A connection in memory: HTTP/1.1 by hyper, an instance for each request.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::DuplexStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::component::{Component, Shared};
use crate::guest::{self, Outcome, Response, Whole};
use crate::stats::FaultKind;

/// The guest gave no answer: the connection breaks off, as an origin's would.
#[derive(Debug, Error)]
#[error("the component failed: {}", .0.name())]
struct Failed(FaultKind);

/// Guests of a connection that are still at work: one, and those that go on after their response.
type Guests = Rc<RefCell<JoinSet<()>>>;

impl Component {
    /// Serves a connection until its other end closes it, or a guest fails. Needs a `LocalSet`. Dropped, it takes the
    /// guests along that are still at work.
    pub async fn serve(self: Arc<Self>, connection: DuplexStream) {
        let guests = Guests::default();
        let answer = service_fn(|request| answer(&self.shared, &guests, request));
        // What goes wrong was counted where it did.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(connection), answer).await;
    }
}

async fn answer(component: &Arc<Shared>, guests: &Guests, request: Request<Incoming>) -> Result<Response, Failed> {
    if let Some(short) = component.account.short_for_another(Instant::now()) {
        component.fault(FaultKind::Budget, short.why);
        return Ok(refused(FaultKind::Budget, short.time));
    }
    // At once where one is free, which it mostly is.
    let free = component.free.clone();
    let permit = match free.clone().try_acquire_owned() {
        Ok(permit) => Some(permit),
        Err(_) => {
            let waited = tokio::time::timeout(component.limits.pending_timeout, free.acquire_owned()).await;
            waited.ok().and_then(Result::ok)
        }
    };
    let Some(permit) = permit else {
        return Ok(turned_away(component, FaultKind::Full, "no instance came free in time"));
    };
    let place = match component.account.enter(&component.stats.live) {
        Ok(place) => place,
        Err(why) => return Ok(turned_away(component, FaultKind::Budget, why)),
    };
    let (answer, answered) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    {
        let mut guests = guests.borrow_mut();
        while guests.try_join_next().is_some() {}
        guests.spawn_local(guest::run(component.clone(), request, Outcome { answer, end }, (permit, place)));
    }
    let kind = match answered.await {
        Ok(Ok(answer)) => return Ok(Whole::of(answer, component, ended)),
        Ok(Err(kind)) => kind,
        Err(_) => match ended.await {
            Ok(Some(kind)) => kind,
            Ok(None) | Err(_) => {
                component.fault(FaultKind::NoAnswer, "it ended without an answer");
                FaultKind::NoAnswer
            }
        },
    };
    // Neither is the guest's fault.
    match kind {
        FaultKind::Full | FaultKind::Budget => Ok(refused(kind, SOON)),
        _ => Err(Failed(kind)),
    }
}

const SOON: Duration = Duration::from_secs(1);

/// Counts and logs why no instance is made for a request.
fn turned_away(component: &Shared, kind: FaultKind, why: &str) -> Response {
    component.fault(kind, why);
    refused(kind, SOON)
}

/// RFC 9209, sections 2.3.13 and 2.3.16: what no instance answers is answered here. `again` is when it may be.
fn refused(kind: FaultKind, again: Duration) -> Response {
    let mut response = guest::plain(StatusCode::SERVICE_UNAVAILABLE, "503 Service Unavailable\n");
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from(again.as_millis().div_ceil(1000).max(1) as u64));
    let status = HeaderValue::from_static(match kind {
        FaultKind::Budget => "component; error=http_request_denied; details=\"budget\"",
        _ => "component; error=connection_limit_reached",
    });
    headers.insert(HeaderName::from_static("proxy-status"), status);
    response
}
