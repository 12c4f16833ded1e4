//! A connection in memory: HTTP/1.1 by hyper, an instance for each request.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

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
        component.fault(FaultKind::Full, "no instance came free in time");
        return Ok(full());
    };
    let (answer, answered) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    {
        let mut guests = guests.borrow_mut();
        while guests.try_join_next().is_some() {}
        guests.spawn_local(guest::run(component.clone(), request, Outcome { answer, end }, permit));
    }
    let kind = match answered.await {
        Ok(Ok(answer)) => return Ok(Whole::of(answer, ended)),
        Ok(Err(kind)) => kind,
        Err(_) => match ended.await {
            Ok(Some(kind)) => kind,
            Ok(None) | Err(_) => {
                component.fault(FaultKind::NoAnswer, "it ended without an answer");
                FaultKind::NoAnswer
            }
        },
    };
    if kind == FaultKind::Full { Ok(full()) } else { Err(Failed(kind)) }
}

/// RFC 9209, section 2.3.13.
fn full() -> Response {
    let mut response = guest::plain(StatusCode::SERVICE_UNAVAILABLE, "503 Service Unavailable\n");
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    let status = HeaderValue::from_static("component; error=connection_limit_reached");
    headers.insert(HeaderName::from_static("proxy-status"), status);
    response
}
